"""A sheet of radiographs with the lungs outlined, to be looked at: no figure says where an outline fails.

    python benchmarks/lungs/mosaic.py FOLDER [FOLDER ...] --out lungs.png [--count 30] [--segmenter FOLDER]

As many images are drawn from each folder, by the seed. Edges between thirds of the lungs' height are thinner. A red bar
marks images where no plausible lungs were found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from pneumoscope.errors import DataError
from pneumoscope.files import atomic_path
from pneumoscope.images import RASTER_SUFFIXES, read_image
from pneumoscope.images.preparation import to_canvas
from pneumoscope.lungs import LungSegmenter, mask_fault, zones

SIDE, COLUMNS = 224, 6
OUTLINE, EDGE, MISSING = (255, 200, 0), (0, 150, 200), (255, 0, 0)


def drawn(folders: list[Path], count: int, seed: int) -> list[Path]:
    """Return `count` image files, as many from each folder as can be."""
    rng = np.random.default_rng(seed)
    chosen: list[Path] = []
    for index, folder in enumerate(folders):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in RASTER_SUFFIXES)
        if not files:
            raise DataError("holds no images", path=folder, remedy="give a folder of radiographs")
        share = count // len(folders) + (index < count % len(folders))
        chosen += [files[i] for i in rng.permutation(len(files))[:share]]
    return chosen


def outlined(canvas: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return uint8 [S, S, 3]: the image with the outline of its lungs and of their thirds."""
    picture = np.stack([canvas] * 3, axis=-1)
    parts = zones(mask)
    for zone in range(1, 7):
        part = parts == zone
        picture[part & ~binary_erosion(part)] = EDGE
    lungs = mask >= 0.5
    picture[lungs & ~binary_erosion(lungs)] = OUTLINE
    if mask_fault(mask):
        picture[:6] = MISSING
    return picture


def sheet(pictures: list[NDArray[np.uint8]]) -> Image.Image:
    rows = -(-len(pictures) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE))
    for index, picture in enumerate(pictures):
        whole.paste(Image.fromarray(picture), (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--segmenter", type=Path, help="its folder; the shipped one by default")
    arguments = parser.parse_args()
    files = drawn(arguments.folders, arguments.count, arguments.seed)
    canvases = np.stack([to_canvas(read_image(file).pixels, SIDE, "squash") for file in files])
    masks = LungSegmenter.load(arguments.segmenter, threads=1).masks(canvases)
    with atomic_path(arguments.out) as temporary:
        pictures = [outlined(canvas, mask) for canvas, mask in zip(canvases, masks, strict=True)]
        sheet(pictures).save(temporary, format="PNG")
    for number, (file, mask) in enumerate(zip(files, masks, strict=True), 1):
        print(f"{number:3} {file.name}: {mask_fault(mask) or 'two lungs'}")


if __name__ == "__main__":
    main()
