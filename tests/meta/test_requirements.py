"""`make setup TORCH=DIR`: everything pinned but torch, and nothing that torch's CUDA build alone needs."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALL = (ROOT / "requirements" / "dev.txt").read_text()


def names(text: str) -> set[str]:
    return set(re.findall(r"^([A-Za-z0-9._-]+)==", text, re.M))


def test_without_torch_drops_torch_and_its_cuda_packages_alone() -> None:
    command = [str(ROOT / "requirements" / "without-torch"), str(ROOT / "requirements" / "dev.txt")]
    left = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    dropped = names(ALL) - names(left)
    assert {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit"} <= dropped
    assert all(re.match("torch|torchvision|triton|nvidia-|cuda-", name) for name in dropped)
    assert not re.search("nvidia|cuda|triton|^torch", left, re.M)
    kept = [block for block in re.split(r"\n(?=\S)", ALL.strip()) if re.split("==", block)[0] in names(left)]
    assert left.strip().splitlines() == "\n".join(kept).splitlines(), "what is left keeps its hashes"


def test_make_installs_torch_from_the_folder_that_was_named() -> None:
    def commands(*given: str) -> str:
        wanted = ["make", "-n", "--no-print-directory", "VENV=not-there", "setup", *given]
        return subprocess.run(wanted, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "without-torch" not in commands()
    own = commands("TORCH=/wheels")
    assert own.index("without-torch") < own.index('--no-index --find-links "/wheels" torch torchvision')
