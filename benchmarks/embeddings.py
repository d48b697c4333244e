"""Embeddings of real patches for benchmarks/selection.py: crops of a folder's images, by an encoder trained on some.

    python benchmarks/embeddings.py PATCHES h.npy --size 32 --stride 9 --train 5000

Every image below PATCHES is cut into crops of `--size` pixels, `--stride` apart; `--train` of them, drawn at random,
train ResNet-18 by one epoch of SimCLR at batch 128. The features of `--rows` crops are written as float32 `.npy`.
Crops of one image overlap, as patches of a slide that is tiled densely do: near copies are among them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


class Crops:
    """Crops in memory, as the library takes images: uint8 (n, size, size, 3)."""

    def __init__(self, pixels: Any) -> None:
        self._pixels = pixels
        self.image_size = pixels.shape[1]

    def __len__(self) -> int:
        return len(self._pixels)

    def take(self, indices: Any, out: Any = None) -> Any:
        return np.take(self._pixels, indices, axis=0, out=out)


def main() -> None:
    options = parse()
    images = Crops(cut_all(options.patches, options.size, options.stride))
    order = np.random.default_rng(0).permutation(len(images))
    print(f"{len(images):,} crops; {min(options.train, len(images)):,} train the encoder", flush=True)
    export(images, order, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--stride", type=int, default=9)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=104_000, help="crops whose features are written, at most")
    return parser.parse_args()


def cut_all(folder: Path, size: int, stride: int) -> Any:
    """(n, size, size, 3) crops of every image, by name of the file."""
    from PIL import Image

    crops = []
    for path in sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES):
        with Image.open(path) as image:
            crops += cut(np.asarray(image.convert("RGB")), size, stride)
    return np.stack(crops)


def cut(pixels: Any, size: int, stride: int) -> list[Any]:
    rows, columns = (range(0, side - size + 1, stride) for side in pixels.shape[:2])
    return [pixels[top : top + size, left : left + size] for top in rows for left in columns]


def export(images: Crops, order: Any, options: argparse.Namespace) -> None:
    """Train on the first of `order`, and write features in that order."""
    from winnow.domain import ExperimentSpec
    from winnow.simclr import embed, load_encoder, train_round

    simclr = {"batch_size": 128, "epochs": 1, "drop_last": True}
    named = {"name": "benchmark", "dataset": "patches", "positive_class": "none"}
    spec = ExperimentSpec.model_validate(named | {"encoder": {"name": "resnet18"}, "simclr": simclr})
    with tempfile.TemporaryDirectory() as folder:
        trained = train_round(images, order[: options.train], spec=spec, number=0, workspace=Path(folder), start=None)
        embed(load_encoder(spec.encoder, trained.state, "cpu"), images, order[: options.rows], out=options.out)


if __name__ == "__main__":
    main()
