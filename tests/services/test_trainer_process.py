"""The child's process, the lease that is watched, and the reasons: every end is told, and told truly."""

import errno
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import wait_until
from services.trainer_parts import add_dataset, add_round, read_round, worker_at

from winnow.domain import RoundStatus
from winnow.settings import Settings
from winnow.store import Database, workers
from winnow.store.claims import TRAIN
from winnow_cli.stack import PATIENCE
from winnow_trainer.devices import Device, Devices, find_gpus
from winnow_trainer.lease import Lease
from winnow_trainer.process import STOP_SECONDS, Child
from winnow_trainer.protocol import Message
from winnow_trainer.reasons import explain

SLEEPS = 'import signal; print(\'{"type": "progress"}\', flush=True); signal.pause()'


def spawn(code: str, *, stop_seconds: float = 30) -> Child:
    return Child([sys.executable, "-c", code], {}, stop_seconds=stop_seconds)


def heard(child: Child) -> list[Message]:
    """All it says until its last message."""
    return list(iter(lambda: child.messages.get(timeout=20), None))


def test_a_child_that_dies_in_mid_line_is_heard_to_its_end() -> None:
    child = spawn('import os; os.write(1, b\'{"type": "progress"}\\n{"type": "chec\'); os.kill(os.getpid(), 9)')
    assert heard(child) == [{"type": "progress"}]
    assert "SIGKILL" in child.close() and child.end is None


def test_a_line_that_is_no_message_ends_the_child_with_that_reason() -> None:
    child = spawn("import signal; print('\\udcff or so'.encode('utf8', 'replace'), flush=True); signal.pause()")
    assert heard(child) == []
    child.close()
    assert child.end is not None and child.end["cause"] == "failed"
    assert "not JSON" in child.end["message"] and "or so" in child.end["message"]


def test_a_child_that_does_not_hear_stop_is_killed_and_counts_as_stopped() -> None:
    child = spawn(SLEEPS, stop_seconds=0.1)
    assert child.messages.get(timeout=20) == {"type": "progress"}
    wait_until(lambda: child.stop() or child.end, 60, "the child to be killed")
    child.close()
    assert child.end == {"type": "stopped"}


def test_a_child_that_still_starts_is_not_waited_for() -> None:
    child = spawn("import signal; signal.pause()")
    child.stop()
    assert heard(child) == []
    child.close()
    assert child.end == {"type": "stopped"}


def test_whoever_stops_a_trainer_waits_longer_than_it_waits_for_its_child() -> None:
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    found = re.search(r"&trainer\n(?:  .*\n)*?  stop_grace_period: (\d+)s", compose)
    assert found and int(found[1]) >= STOP_SECONDS + Settings().lease_seconds
    assert PATIENCE["trainer"] > STOP_SECONDS


def test_a_lease_that_is_not_renewed_acts_before_it_ends() -> None:
    acted = threading.Event()
    lease = Lease(2, time.monotonic())
    with lease.guard(acted.set):
        assert acted.wait(60)
        assert 0 < lease.left <= 0.2


def test_a_renewed_lease_goes_on() -> None:
    acted, renewals = threading.Event(), 0
    lease = Lease(2, time.monotonic())
    with lease.guard(acted.set):
        while renewals < 50:
            assert not acted.wait(0.05)
            lease.renewed(time.monotonic())
            renewals += 1


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert f"while writing {tmp_path} (" in explain(full, tmp_path)[1]
    told = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert f"while writing {tmp_path} (" in explain(told, tmp_path)[1], "as safetensors says it"
    full.filename = "/dev/full/of/something"
    assert "while writing /dev/full/of/something (" in explain(full, tmp_path)[1]


def test_a_write_that_fails_in_the_artefact_store_names_its_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    limited = subprocess.run(command, capture_output=True, text=True, check=True)
    assert limited.stdout.strip() == str(tmp_path / "a" / "x.bin")


LIMITED = """
import resource, signal, sys
from pathlib import Path
from winnow.artefacts import DirectoryStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    DirectoryStore(Path(sys.argv[1])).put("a/x.bin", bytes(5000))
except OSError as error:
    print(error.filename)
"""


def test_running_out_of_memory_is_told_with_advice_whoever_says_it(tmp_path: Path) -> None:
    import torch

    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (
        on_cpu.value,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        cause, text = explain(error, tmp_path)
        assert cause == "failed" and text.startswith("out of memory") and "simclr.batch_size" in text


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported later",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "No CUDA GPUs are available",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: no CUDA-capable device is detected",
        "CUDA unknown error - this may be due to an incorrectly set up environment",
    ],
)
def test_a_gpu_that_does_not_compute_is_neither_the_codes_fault_nor_the_datas(said: str, tmp_path: Path) -> None:
    cause, text = explain(RuntimeError(said), tmp_path)
    assert cause == "sick" and said.splitlines()[0] in text and "later" not in text


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: operation not permitted when stream is capturing",
        "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`",
        "[Errno 524] Unknown error 524: 'patches/0001.png'",
    ],
)
def test_what_the_code_did_wrong_is_not_the_gpus_fault(said: str, tmp_path: Path) -> None:
    assert explain(RuntimeError(said), tmp_path) == ("failed", f"RuntimeError: {said}")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose nvidia-smi lists two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU-aaaa-1, First'\necho 'GPU-bbbb-2, Second'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["First", "Second"]),
        ("1", ["Second"]),
        ("1,0", ["Second", "First"]),
        ("GPU-bbbb", ["Second"]),
        ("GPU-bbbb-2, GPU-aaaa-1", ["Second", "First"]),
        ("0,7,1", ["First"]),
        ("-1", []),
        ("", []),
    ],
)
def test_only_gpus_that_were_given_are_used(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [name for _, name in find_gpus()] == names


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_lost_hides_none_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'Unable to determine the device handle for GPU0'\necho 'GPU-bbbb-2, Second'\nexit 15\n"
    )
    assert find_gpus() == [("GPU-bbbb-2", "Second")]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert find_gpus() == []
    smi.unlink()
    monkeypatch.setenv("PATH", str(smi.parent))
    assert find_gpus() == []


@contextmanager
def devices(
    tmp_path: Path, device: str, owner: str = "w1", clock: Callable[[], float] = time.monotonic
) -> Iterator[Devices]:
    settings = Settings(state_dir=tmp_path / "state", device=device)
    database = Database(settings.database_url)
    database.migrate()
    try:
        yield Devices(settings, database, owner, clock=clock)
    finally:
        database.close()


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_stays_with_the_gpu_that_its_process_waits_on(tmp_path: Path) -> None:
    """Else one that starts while the others are idle sends each of them to its neighbour's."""
    with devices(tmp_path, "cuda") as one, devices(tmp_path, "cuda", "w2") as other:
        first, second = one.take(), other.take()
        assert first is not None and second is not None
        assert (first.uuids, second.uuids) == (("GPU-aaaa-1",), ("GPU-bbbb-2",))
        one.take(first.uuids)
        with one._database.begin() as session:
            workers.release_devices(session, one._host, "w1")
        assert other.take(second.uuids) == second
        assert other.take() == first and other.keep(first)
        assert not one.keep(first), "it is somebody else's by now"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_ended_its_work_rests_longer_each_time_and_nobody_else_finds_out(tmp_path: Path) -> None:
    clock = [1000.0]
    with devices(tmp_path, "cuda", clock=lambda: clock[0]) as given, devices(tmp_path, "cuda", "w2") as neighbour:
        first = given.take()
        assert first is not None
        given.judge(first, worked=False)
        second = given.take(first.uuids)
        assert second is not None and second.uuids == ("GPU-bbbb-2",)
        given.judge(second, worked=False)
        assert given.take() is None and neighbour.take() is None
        for seconds in (60, 120, 240, 480, 600, 600):
            clock[0] += seconds - 1
            assert given.take() is None
            clock[0] += 1
            assert given.take() == first
            given.judge(first, worked=False)
            given.judge(second, worked=False)
        clock[0] += 600
        given.judge(first, worked=True)
        given.judge(first, worked=False)
        clock[0] += 60
        assert given.take() == first, "it was well in between"


@pytest.mark.usefixtures("two_gpus")
def test_an_ingest_waits_for_no_gpu(tmp_path: Path) -> None:
    with worker_at(tmp_path / "state", device="cuda") as worker, devices(tmp_path, "cuda", "w2") as other:
        for uuid, _ in other.gpus:
            other.keep(Device("cuda", {}, (uuid,)))
        assert add_dataset(worker).status == "ready"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="GPUs that are not there are no others'")
def test_a_round_on_a_gpu_that_does_not_compute_is_lost_and_not_failed(
    tmp_path: Path, ingested: Path, count: int
) -> None:
    shutil.copytree(ingested, tmp_path / "state")
    with worker_at(tmp_path / "state", device="cuda", devices=count) as worker:
        round, attempts = add_round(worker), 2 // count
        assert all(worker.attend(TRAIN, round.id) for _ in range(attempts))
        row = read_round(worker, round)
        assert (row.status, row.losses, row.failures) == (RoundStatus.QUEUED, attempts, 0)
        assert row.error is not None and row.error.startswith("the GPU does not compute (")
        assert not worker.attend(TRAIN, round.id), "both rest"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_chosen_by_its_number_and_one_that_is_not_there_is_told_at_start(tmp_path: Path) -> None:
    with devices(tmp_path, "cuda:1") as given:
        taken = given.take()
        assert taken is not None and taken.environment == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb-2"}
    with pytest.raises(SystemExit, match="cuda:0 to cuda:1"), devices(tmp_path, "cuda:5"):
        pass


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:", "cuda:x"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="cuda"):
        Settings(device=device)
