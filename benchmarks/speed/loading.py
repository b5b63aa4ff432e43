"""Epoch time from the pixel cache against torchvision's ImageFolder with the same transforms, in one run.

    python benchmarks/speed/loading.py ../shared/data/kermany_originals --copies 5

The images are read in their original size (about 1,500 x 1,200 pixels) and brought to 224 x 224. "Loading"
is decoding and resizing; "with augmentation" adds the same drawn augmentation and normalisation on both
sides. Times are medians of the epochs after the first, one process, no workers; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pneumoscope.config import AugmentConfig
from pneumoscope.data.cache import PixelCache, open_cache
from pneumoscope.data.sources import open_source
from pneumoscope.images.preparation import Preparation
from pneumoscope.training.dataset import Augmenter

SIZE = 224
PREPARATION = Preparation(SIZE, SIZE, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
AUGMENT = AugmentConfig(rotation=8.0, crop_scale=(0.2, 1.0), crop_ratio=(0.75, 1.333), flip=0.5, contrast=0.25)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with NORMAL and PNEUMONIA")
    parser.add_argument("--copies", type=int, default=5, help="how often each image is repeated")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        repeat(arguments.source, folder, arguments.copies)
        samples = open_source(folder).samples
        started = time.perf_counter()
        cache = open_cache(samples, canvas=SIZE, aspect="squash", root=Path(scratch) / "cache")
        filling = time.perf_counter() - started
        plain = ImageFolder(
            str(folder), transform=v2.Compose([v2.Grayscale(), v2.Resize((SIZE, SIZE)), v2.PILToTensor()])
        )
        report(len(samples), filling, plain, cache, arguments.epochs)


def report(count: int, filling: float, plain: ImageFolder, cache: PixelCache, epochs: int) -> None:
    """Time both sides, alternating, and print the table."""
    augmenter = Augmenter(AUGMENT, PREPARATION, seed=0)

    def from_files() -> None:
        for index in range(count):
            plain[index]

    def from_cache() -> None:
        for row in cache.rows:
            torch.from_numpy(np.array(cache.pixels[row]))[None]

    def files_augmented() -> None:
        for index in range(count):
            augmenter(plain[index][0][0].numpy(), 0, index)

    def cache_augmented() -> None:
        for index, row in enumerate(cache.rows):
            augmenter(cache.pixels[row], 0, index)

    times = {work.__name__: [] for work in (from_files, from_cache, files_augmented, cache_augmented)}
    for _ in range(epochs + 1):
        for work in (from_files, from_cache, files_augmented, cache_augmented):
            times[work.__name__].append(timed(work))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"{count} JPEG files, filling the cache once: {filling:.2f} s ({count / filling:.0f} images/s)\n")
    print("| epoch after the first | ImageFolder | cache | ratio |\n|---|---|---|---|")
    for label, ours, theirs in (
        ("loading alone", "from_cache", "from_files"),
        ("with augmentation", "cache_augmented", "files_augmented"),
    ):
        a, b = medians[theirs], medians[ours]
        print(f"| {label} | {a:.3f} s, {count / a:.0f}/s | {b:.4f} s, {count / b:.0f}/s | {a / b:.1f} |")


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def repeat(source: Path, folder: Path, copies: int) -> None:
    """Copy the images under several names; a comment marker makes each file's content its own."""
    for file in sorted(source.glob("*/*.jp*g")):
        for copy in range(copies):
            target = folder / file.parent.name / f"{file.stem}-{copy}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            with target.open("ab") as stream:  # bytes after the end marker are ignored by decoders
                stream.write(str(copy).encode())


if __name__ == "__main__":
    main()
