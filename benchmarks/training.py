"""How fast Winnow trains, held against its own ceiling and against LightlySSL, side by side in one run.

    python benchmarks/training.py                      what suits this machine
    python benchmarks/training.py --device cuda --sizes 224 --batches 128 512 --precision bf16

winnow   `train_round` as the trainer runs it, from packed patches
ceiling  the same network, optimiser, batch and precision on resident random tensors, without views
lightly  LightlySSL's SimCLR as its documentation sets it up (SimCLRTransform, NTXentLoss, a DataLoader with all cores),
         with the same network, size, batch and precision, from PNG files on disk, in one epoch that does not end; where
         `lightly` is not installed the row says so
embed    embeddings exported to a memory-mapped .npy, images a second

Asked for with --only:

torchvision  the ceiling with torchvision's own network: what convolutions.py is worth
tuned        the ceiling with cuDNN's algorithms found by trial (torch.backends.cudnn.benchmark), on a GPU

Each is a process of its own, one after the other, `--repeats` times in turn; the median counts. Each figure, or all of
what ended it, is told on standard error as it comes, and no turn of a size begins later than `--within` seconds after
the first: a machine may be borrowed for minutes. Patches are synthetic tissue, so that every machine measures the same;
`--images` of them are drawn at the start and not timed.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from winnow_trainer import memory

CONTENDERS = ("winnow", "ceiling", "lightly", "embed")
EXTRA = ("torchvision", "tuned")
UNITS = {"embed": "images/s"}
Rows = dict[int, list[dict[str, Any]]]  # by batch size


def main() -> None:
    options = parse()
    if options.contender:
        measured = globals()[f"run_{options.contender}"](options)
        print(json.dumps(measured | {"memory": peak_memory(options.device)}))
        return
    import torch

    print(f"# {datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}, {options.precision}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            draw_patches(Path(folder), size, options.images)
            rows: Rows = {batch: [] for batch in options.batches}
            try:
                measure(options, Path(folder), size, rows)
            finally:  # one that is stopped says what it has
                for batch, own in rows.items():
                    report(size, batch, own)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None, help="cpu or cuda; by default what is there")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="pixels a side")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="images a step")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=None)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--images", type=int, default=1536, help="patches in the dataset")
    parser.add_argument("--steps", type=int, default=None, help="timed steps of each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--within", type=float, default=math.inf, help="seconds in which all turns of a size begin")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS + EXTRA, default=CONTENDERS)
    parser.add_argument("--compiled", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--contender", choices=CONTENDERS + EXTRA, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device.startswith("cuda")
    options.sizes = options.sizes or ([224] if on_gpu else [64, 96])
    options.batches = options.batches or ([128, 512] if on_gpu else [128])
    options.precision = options.precision or ("bf16" if on_gpu else "fp32")
    options.steps = options.steps or (100 if on_gpu else 8)
    return options


def measure(options: argparse.Namespace, folder: Path, size: int, rows: Rows) -> None:
    """Add a row for each contender and turn."""
    began = time.monotonic()
    for turn in range(options.repeats):
        if turn and time.monotonic() - began > options.within:
            return
        for batch, own in rows.items():
            for contender in options.only:
                if contender == "embed" and batch != options.batches[0]:
                    continue  # its batches are its own
                own.append(run(options, contender, folder, size, batch))
                told = own[-1].get("error") or f"{own[-1]['rate']:,.1f} {UNITS.get(contender, 'pairs/s')}"
                print(f"# {size} px, batch {batch}, turn {turn + 1}: {contender} {told}", file=sys.stderr, flush=True)


def run(options: argparse.Namespace, contender: str, folder: Path, size: int, batch: int) -> dict[str, Any]:
    """One figure, by a process of its own, or the error that came in its place."""
    given = {"device": options.device, "precision": options.precision, "encoder": options.encoder}
    given |= {"images": options.images, "steps": options.steps, "compiled": options.compiled, "folder": folder}
    command = [sys.executable, __file__, "--contender", contender, "--sizes", str(size), "--batches", str(batch)]
    command += [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    environment = os.environ | (memory.environment() if contender != "lightly" else {})
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        sys.stderr.write(ended.stderr)
        last = ended.stderr.strip().splitlines()[-1:]
        return {"contender": contender, "error": last[0] if last else f"it ended with {ended.returncode}"}
    return {"contender": contender, **json.loads(ended.stdout.strip().splitlines()[-1])}


def report(size: int, batch: int, rows: list[dict[str, Any]]) -> None:
    """A table, then the ratios that count."""
    print(f"\n{size} px, batch {batch}")
    medians: dict[str, float] = {}
    for contender in CONTENDERS + EXTRA:
        own = [row for row in rows if row["contender"] == contender]
        rates = [row["rate"] for row in own if "rate" in row]
        if not own:
            continue
        if not rates:
            print(f"  {contender:8} not measured: {own[0]['error']}")
            continue
        medians[contender] = statistics.median(rates)
        spread = f"{min(rates):,.1f} to {max(rates):,.1f}"
        memory = max(row["memory"] for row in own) / 2**20
        unit = UNITS.get(contender, "pairs/s")
        print(f"  {contender:8} {medians[contender]:10,.1f} {unit}  ({spread})  {memory:,.0f} MiB")
    for one, other in (("winnow", "ceiling"), ("winnow", "lightly"), ("ceiling", "torchvision"), ("tuned", "ceiling")):
        if {one, other} <= set(medians):
            print(f"  {one} / {other}: {medians[one] / medians[other]:.2f}")


def draw_patches(folder: Path, size: int, count: int) -> None:
    """The same synthetic tissue twice: packed, and as PNG files."""
    from winnow.artefacts import DirectoryStore
    from winnow.datasets.packing import PackWriter
    from winnow.domain import SyntheticTissue

    files = folder / "files" / "all"
    files.mkdir(parents=True)
    draw = partial(draw_patch, SyntheticTissue(patches=count), files, size)
    writer = PackWriter(folder, DirectoryStore(folder / "packed").put, image_size=size, shard_size=4096)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool, writer as pack:
        for patch in pool.map(draw, range(count), chunksize=8):
            pack.append(patch)
        pack.finish()


def draw_patch(tissue: Any, files: Path, size: int, index: int) -> Any:
    """(size, size, 3) uint8, which lies in a file, too."""
    from PIL import Image

    from winnow.datasets import synthetic

    patch = synthetic.draw(tissue, index, size)
    Image.fromarray(patch).save(files / f"{index:06d}.png")
    return patch


def run_winnow(options: argparse.Namespace) -> dict[str, Any]:
    """The real training loop; its first steps warm up and are not timed."""
    from winnow.datasets import PackedImages
    from winnow.simclr import Rig, TrainingStopped, train_round

    images = PackedImages.open(options.folder / "packed")
    stamps: list[float] = []
    warm = warm_up(options)

    def stamp(progress: Any) -> None:
        if len(stamps) in (warm, warm + options.steps):
            synchronise(options.device)
        stamps.append(time.perf_counter())

    rig = Rig(options.device, compiled=options.compiled)
    with tempfile.TemporaryDirectory() as workspace, suppress(TrainingStopped):
        train_round(
            images,
            np.arange(len(images), dtype=np.int64),
            spec=spec_of(options),
            number=0,
            workspace=Path(workspace),
            start=None,
            rig=rig,
            on_progress=stamp,
            should_stop=lambda: len(stamps) > warm + options.steps,
        )
    seconds = stamps[warm + options.steps] - stamps[warm]
    return {"rate": options.steps * options.batches[0] / seconds, "notes": rig.notes}


def run_ceiling(options: argparse.Namespace) -> dict[str, Any]:
    """Nothing but the network: views are drawn once, at random, and lie on the device."""
    from winnow.simclr.model import build

    return run_alone(options, build(spec_of(options).encoder, 0))


def run_torchvision(options: argparse.Namespace) -> dict[str, Any]:
    """The ceiling with torchvision's own convolutions."""
    import torch

    return run_alone(options, plain_network(options).to(memory_format=torch.channels_last))


def run_tuned(options: argparse.Namespace) -> dict[str, Any]:
    """The ceiling when cuDNN has tried each algorithm for each convolution."""
    import torch

    torch.backends.cudnn.benchmark = True
    return run_ceiling(options)


def run_alone(options: argparse.Namespace, plain: Any) -> dict[str, Any]:
    import torch

    from winnow.simclr import nt_xent
    from winnow.simclr.optimisers import make_optimiser
    from winnow.simclr.step import SMALL_BATCH, Compiled

    spec, device, size, batch = spec_of(options), options.device, options.sizes[0], options.batches[0]
    network: Any = plain.to(device).train()
    if options.compiled == "on" or (options.compiled == "auto" and device.startswith("cuda")):
        repeats = options.precision == "fp32"
        network = Compiled(network, "network", print, graphs=batch <= SMALL_BATCH, repeats=repeats)
    optimizer = make_optimiser(spec.simclr, plain.parameters())
    x = torch.randn(2 * batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            z0, z1 = network(x).chunk(2)
        nt_xent(z0, z1, spec.simclr.temperature).backward()
        optimizer.step()

    return {"rate": batch * timed(step, device, warm_up(options), options.steps)}


def run_lightly(options: argparse.Namespace) -> dict[str, Any]:
    """LightlySSL as https://docs.lightly.ai/self-supervised-learning/examples/simclr.html has it."""
    import torch
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from torchvision.datasets import ImageFolder

    device, batch = options.device, options.batches[0]
    network = plain_network(options).to(device).train()
    transform = SimCLRTransform(input_size=options.sizes[0])
    dataset = ImageFolder(str(options.folder / "files"), transform=transform)
    workers = os.cpu_count() or 1
    # Each worker brings a batch at about the same time: whole turns are timed, and no more images in larger batches.
    warm, steps = (
        workers * math.ceil(count / workers / max(1, batch // 128)) for count in (warm_up(options), options.steps)
    )
    # One epoch for all steps: a small dataset's would end, and its workers start anew, more often than a real one's.
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=(warm + steps + 16) * batch)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, sampler=sampler, drop_last=True, num_workers=workers
    )
    criterion = NTXentLoss(temperature=0.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    batches = iter(loader)

    def step() -> None:
        (x0, x1), _ = next(batches)
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=options.precision == "bf16"):
            z0, z1 = network(x0.to(device)), network(x1.to(device))
            loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"rate": batch * timed(step, device, warm, steps)}


def plain_network(options: argparse.Namespace) -> Any:
    """The same network, as torchvision has it."""
    import torchvision
    from torch import nn

    from winnow.simclr.model import build

    encoder = getattr(torchvision.models, options.encoder)(weights=None)
    encoder.fc = nn.Identity()
    return nn.Sequential(encoder, build(spec_of(options).encoder, 0).head)


def run_embed(options: argparse.Namespace) -> dict[str, Any]:
    """Every patch of the dataset, over and over until there are enough; the second pass is timed."""
    from winnow.datasets import PackedImages
    from winnow.simclr import Rig, embed, untrained_encoder

    images, spec = PackedImages.open(options.folder / "packed"), spec_of(options)
    encoder = untrained_encoder(spec.encoder, 0, options.device)
    rig = Rig(options.device)
    indices = np.arange(len(images), dtype=np.int64)
    if options.device.startswith("cuda"):
        indices = np.tile(indices, 10)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            began = time.perf_counter()
            embed(encoder, images, indices, rig=rig, precision=options.precision, out=Path(folder) / "h.npy")
            seconds = time.perf_counter() - began
    return {"rate": len(indices) / seconds}


def spec_of(options: argparse.Namespace) -> Any:
    from winnow.domain import ExperimentSpec

    return ExperimentSpec.model_validate(
        {
            "name": "benchmark",
            "dataset": "tissue",
            "positive_class": "TUM",
            "encoder": {"name": options.encoder},
            "simclr": {
                "batch_size": options.batches[0],
                "precision": options.precision,
                "epochs": 100_000,
                "checkpoint_every": 100_000,
                "drop_last": True,
            },
        }
    )


def timed(step: Callable[[], None], device: str, warm: int, steps: int) -> float:
    """Steps a second, after those that warm up."""
    for _ in range(warm):
        step()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return steps / (time.perf_counter() - began)


def warm_up(options: argparse.Namespace) -> int:
    """Steps before those that are timed: a GPU's are compiled and recorded, a processor's heap grows."""
    return 20 if options.device.startswith("cuda") else 8


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """Bytes: the device's on a GPU, else of this process and the largest of its workers."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    return 1024 * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def describe_machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores"
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
