"""Make the picture that stands where a part of an image is removed (`--fill normal`): a typical normal radiograph.

    python benchmarks/explanation/normal_chest.py RUN/split.csv [--nearest 11] [--check val] [--out FILE.png]

The median of the normal training radiographs that lie nearest to the median of all of them, squashed to 224 px:
nobody's radiograph, and sharp, since the ones chosen are alike. The median of all is a blur, which networks call
pneumonia. Prints which share of the mean score before calibration each fill keeps of the images of `--check` with
pneumonia.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.data.sources import open_source
from pneumoscope.explanation.faithfulness import probability, validated
from pneumoscope.explanation.perturbation import network_input
from pneumoscope.files import atomic_path
from pneumoscope.images import read_image
from pneumoscope.images.preparation import to_canvas
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA, Sample

SIDE = 224


def main() -> None:
    """Write the picture and print what the fills keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("--nearest", type=int, default=11)
    parser.add_argument("--check", default="val")
    parser.add_argument("--out", type=Path, help="where it goes; left out, it is only checked")
    arguments = parser.parse_args()
    source = open_source(arguments.split)
    if arguments.out is not None:
        normal = [sample for sample in source.select("train").samples if sample.label == NORMAL]
        with atomic_path(arguments.out) as part:
            Image.fromarray(typical(normal, arguments.nearest)).save(part, format="PNG", optimize=True)
    classifier = Classifier.load(threads=1)
    ill = [sample for sample in source.select(arguments.check).samples if sample.label == PNEUMONIA]
    images = np.stack([network_input(classifier, classifier.canvas(read_image(sample.path))) for sample in ill])
    for name, share in validated(probability(classifier), images).items():
        print(f"{name}: the {len(images)} images keep {share:.0%}")


def typical(samples: list[Sample], nearest: int) -> NDArray[np.uint8]:
    """Return uint8 [224, 224], the median of those nearest to the median of all."""
    images = np.stack([to_canvas(read_image(sample.path).pixels, SIDE, "squash") for sample in samples])
    away = ((images - np.median(images, axis=0)) ** 2).mean(axis=(1, 2))
    return np.median(images[np.argsort(away, kind="stable")[:nearest]], axis=0).astype(np.uint8)


if __name__ == "__main__":
    main()
