"""docker-compose.yml: how far each container is trusted, and with what."""

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from meta.test_tree import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = ("migrate", "coordinator", "sampler", "trainer", "trainer-gpu")
SECRETS = {
    "postgres": {"postgres_password"},
    "redis": {"redis_password"},
    "migrate": {"postgres_password", "coordinator_password", "worker_password"},
    "coordinator": {"coordinator_password", "redis_password", "sampler_token", "bootstrap_key"},
    "sampler": {"sampler_token"},
    "trainer": {"worker_password", "redis_password"},
    "trainer-gpu": {"worker_password", "redis_password"},
}
"""What each is handed, and nothing else is."""
NETWORKS = {
    "postgres": {"state"},
    "redis": {"state"},
    "migrate": {"state"},
    "coordinator": {"front", "state", "picks"},
    "sampler": {"picks"},
    "trainer": {"state"},
    "trainer-gpu": {"state"},
}


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "pid", "network_mode", "devices", "user"} & set(service)
    added = set(service.get("cap_add", []))
    assert added <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"} and not (added and name in OWN)


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_handed_its_own_secrets_as_files_and_no_other(name: str) -> None:
    service = SERVICES[name]
    assert set(service["secrets"]) == SECRETS[name]
    for variable, value in (service.get("environment") or {}).items():
        if re.search("PASSWORD|TOKEN|KEY", variable):
            assert variable.endswith("_FILE"), f"{variable} would stand in the environment"
            assert value.removeprefix("/run/secrets/") in SECRETS[name]
        assert not re.search(r"://[^/]*:[^/]*@", str(value)), f"{variable} holds a password"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_on_the_networks_it_needs(name: str) -> None:
    assert set(SERVICES[name]["networks"]) == NETWORKS[name]


def test_only_the_coordinator_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["coordinator"]
    assert all(port.startswith("127.0.0.1:") for port in published["coordinator"])
    outward = {name for name, network in COMPOSE["networks"].items() if not (network or {}).get("internal")}
    assert outward == {"front"}


def test_the_images_run_as_a_user_without_a_name() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)
    served = {stage.split()[2]: stage for stage in stages if re.match(r"base AS ", stage)}
    assert set(served) == {"coordinator", "sampler", "trainer"}
    for stage in served.values():
        assert re.search(r"^USER 10001:10001$", stage, re.M)
        assert stage.index("USER ") > stage.rindex("RUN "), "what is built as root stays root's"


def test_patches_are_mounted_read_only() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", []) if ":/data" in mount]
    assert len(mounts) == 4 and all(mount.endswith(":/data:ro") for mount in mounts)


def test_make_secrets_makes_each_once_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    def made() -> dict[str, str]:
        command = ["make", "--no-print-directory", "secrets", f"SECRETS_DIR={folder}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return {path.name: path.read_text().strip() for path in folder.iterdir()}

    first = made()
    assert set(first) == set(COMPOSE["secrets"])
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in first.values())
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}, (
        "the containers' user reads them"
    )
    (folder / "bootstrap_key").unlink()
    again = made()
    assert again["bootstrap_key"] != first["bootstrap_key"]
    assert {**again, "bootstrap_key": ""} == {**first, "bootstrap_key": ""}, "what is there stays"


def test_secrets_are_neither_tracked_nor_sent_to_the_builder() -> None:
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*", "what is sent is named"
