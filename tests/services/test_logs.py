"""What a service's log holds of a request that failed: the reason, the request's id, and no key."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KEY = "wnw_secret-of-the-caller"
SERVICE = """
import sys, threading
import httpx, uvicorn
from fastapi import FastAPI
from winnow import telemetry
from winnow.settings import Settings
from winnow_coordinator.app import make_app
from winnow_coordinator.auth import Caller
from winnow_coordinator.context import Coordinator

settings = Settings(bootstrap_key=sys.argv[1])
telemetry.configure(settings, "coordinator")
coordinator = Coordinator.open(settings)
coordinator.database.migrate()
app = make_app(coordinator, steward=False)

@app.get("/defect/{number}")
def defect(number: int, caller: Caller) -> float:
    return 1 / number

server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    thread.join(0.05)
port = server.servers[0].sockets[0].getsockname()[1]
headers = {"Authorization": f"Bearer {sys.argv[1]}"}
answer = httpx.get(f"http://127.0.0.1:{port}/defect/0", headers=headers, timeout=30)
print(answer.status_code, answer.headers["X-Request-Id"])
api = f"http://127.0.0.1:{port}/api/v1"
body = {"name": "n", "scopes": ["read"]}
print(httpx.post(f"{api}/keys", json=body, headers=headers, timeout=30).json()["key"])
wrong = {"Authorization": "Bearer wnw_of-a-stranger"}
print(httpx.get(f"{api}/keys", headers=wrong, timeout=30).status_code)
print(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text)
server.should_exit = True
thread.join()
coordinator.close()
"""


@pytest.mark.parametrize("service", ["coordinator", "sampler", "trainer"])
def test_a_service_that_is_to_die_at_a_step_says_so_when_it_starts(tmp_path: Path, service: str) -> None:
    ports = {"WINNOW_COORDINATOR_PORT": "0", "WINNOW_SAMPLER_PORT": "0"}
    environment = {"WINNOW_STATE_DIR": str(tmp_path), "WINNOW_FAILPOINT": "picks.inserted", **ports}
    process = subprocess.Popen(
        [sys.executable, "-m", f"winnow_{service}"], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.kill()
    assert "failpoint.armed" in first and "picks.inserted" in first


def test_a_line_that_cannot_be_written_ends_no_work() -> None:
    code = (
        "import logging; from winnow import telemetry; from winnow.settings import Settings\n"
        "telemetry.configure(Settings(), 'trainer')\n"
        "for _ in range(1000): telemetry.logger('here').warning('disk.full', of='x' * 100); logging.error('so it is')\n"
        "print('went on')"
    )
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert ran.stdout == "went on\n"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_defect_is_logged_without_the_callers_key(tmp_path: Path, log_format: str) -> None:
    environment = {"WINNOW_STATE_DIR": str(tmp_path), "WINNOW_LOG_FORMAT": log_format, "WINNOW_LOG_LEVEL": "debug"}
    ran = subprocess.run(
        [sys.executable, "-c", SERVICE, KEY],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    status, request_id = ran.stdout.splitlines()[0].split()
    assert status == "500"
    assert 'winnow_http_requests_total{method="GET",route="/defect/{number}",status="500"} 1.0' in ran.stdout
    assert "ZeroDivisionError" in ran.stderr and request_id in ran.stderr
    assert "Exception in ASGI application" in ran.stderr, "the framework's own line is formatted, too"
    made, refused = ran.stdout.splitlines()[1:3]
    assert made.startswith("wnw_") and refused == "401"
    for key in (KEY, made, "wnw_of-a-stranger"):
        assert key.removeprefix("wnw_") not in ran.stderr
    if log_format == "json":
        assert all(json.loads(line) for line in ran.stderr.splitlines())
