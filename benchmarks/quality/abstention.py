"""Which images does the gate refuse, and what does leaving out the least certain ones gain?

    python benchmarks/quality/abstention.py RUN/split.csv [--bundle default] [--adults FOLDER] [--part test]

Images of one part of a division that chose nothing are changed in ways that must be refused: greys inverted, turned,
one side only, both sides laid over one another as in a lateral view (no real lateral was at hand), cropped, too dark,
too bright. Beside them noise, checkerboards, pages of text, the photographs that scikit-image brings, radiographs of
adults. For each kind: AUROC of the largest of the gate's three figures against the unchanged images (DeLong,
every image counted as another patient), the share refused at the limits in the bundle, and how
often the reason is one that is right. `slightly changed`: fourteen corruptions in their weakest form, which had better
pass. Writes results/abstention.json and prints tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from corruptions import CORRUPTIONS, corrupt
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.data.cache import open_cache
from pneumoscope.data.sources import open_source
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.files import write_json
from pneumoscope.gate.pixel_rules import LungMasks, by_pixels
from pneumoscope.images import read_image
from pneumoscope.images.find import expand
from pneumoscope.images.preparation import Pixels, to_canvas, to_input
from pneumoscope.predict import Classifier
from pneumoscope.statistics.auc import auroc_estimate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion

RESULT = Path(__file__).parent / "results" / "abstention.json"
DRAWN, BATCH = 64, 32
# The reasons that are right; none where every reason is as good.
RIGHT: Mapping[str, tuple[str, ...]] = {
    "inverted": ("inverted",), "turned by 90": ("rotated",), "turned by 180": ("rotated",),
    "turned by 270": ("rotated",), "one side": ("cropped", "lateral"), "like a lateral": ("lateral",),
    "cropped": ("cropped", "lateral"), "too dark": ("exposure",), "too bright": ("exposure",),
    "noise": ("not a chest",), "checkerboards": ("not a chest",), "text": ("not a chest",),
    "photographs": ("not a chest",), "adults": (), "slightly changed": (),
}  # fmt: skip


def resized(image: Pixels, side: int) -> Pixels:
    """Return uint8 [side, side]."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BILINEAR))


def changed(images: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """Return each kind made from radiographs uint8 [n, S, S]."""
    side = images.shape[1]
    half, kept = side // 2, round(0.55 * side)

    def each(change: Callable[[Pixels], Pixels]) -> Pixels:
        return np.stack([change(image) for image in images])

    def lateral(image: Pixels) -> Pixels:
        right, left = image[:, : half + side // 18], image[:, half - side // 18 :][:, ::-1]
        both = (resized(right, side).astype(int) + resized(left, side)) // 2
        return np.asarray(Image.fromarray(both.astype(np.uint8)).rotate(12))

    def corner(image: Pixels) -> Pixels:
        top, left = (int(rng.choice([0, side - kept])) for _ in range(2))
        return resized(image[top : top + kept, left : left + kept], side)

    return {
        "inverted": 255 - images,
        **{f"turned by {90 * times}": np.ascontiguousarray(np.rot90(images, times, (1, 2))) for times in (1, 2, 3)},
        "one side": each(lambda image: resized(image[:, :half] if rng.random() < 0.5 else image[:, half:], side)),
        "like a lateral": each(lateral),
        "cropped": each(corner),
        "too dark": np.rint(255 * (images / 255) ** 3.5).astype(np.uint8),
        "too bright": np.clip(2.2 * images + 30.0, 0, 255).astype(np.uint8),
        "slightly changed": np.stack([
            corrupt(image, list(CORRUPTIONS)[index % len(CORRUPTIONS)], 1, index)
            for index, image in enumerate(images)
        ]),
    }  # fmt: skip


def no_chests(side: int, rng: np.random.Generator) -> dict[str, Pixels]:
    """Return noise, checkerboards, text and photographs, uint8 [n, side, side]."""
    places = np.indices((side, side))
    boards = [((places // width).sum(axis=0) % 2 * 255).astype(np.uint8) for width in rng.integers(4, side // 4, DRAWN)]
    return {
        "noise": rng.integers(0, 256, (DRAWN, side, side)).astype(np.uint8),
        "checkerboards": np.stack(boards),
        "text": np.stack([page(side, rng) for _ in range(DRAWN)]),
        "photographs": photographs(side, rng),
    }


def page(side: int, rng: np.random.Generator) -> Pixels:
    """Draw a page of random words, dark on light or light on dark."""
    paper, ink = (int(rng.integers(200, 256)), 0) if rng.random() < 0.7 else (0, 255)
    image, size = Image.new("L", (side, side), paper), int(rng.integers(8, 20))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for y in range(6, side, round(1.4 * size)):
        draw.text((6, y), "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz     "), 60)), fill=ink, font=font)
    return np.asarray(image)


def photographs(side: int, rng: np.random.Generator) -> Pixels:
    """Return scikit-image's pictures, whole and three times cut, and fifty of its faces; the phantom left out."""
    folder, found = Path(skimage.__file__).parent / "data", []
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".png", ".jpg") or file.name == "phantom.png":
            continue
        image = np.asarray(Image.open(file).convert("L"))
        if min(image.shape) < 100:
            continue
        found.append(resized(image, side))
        for _ in range(3):
            kept = int(min(image.shape) * rng.uniform(0.4, 0.9))
            top, left = (int(rng.integers(0, length - kept + 1)) for length in image.shape)
            found.append(resized(image[top : top + kept, left : left + kept], side))
    faces = np.load(folder / "lfw_subset.npy")[:100:2]
    return np.stack([*found, *(resized((255 * np.clip(face, 0, 1)).astype(np.uint8), side) for face in faces)])


def judge(classifier: Classifier, canvases: Pixels, lungs: LungMasks) -> tuple[Any, list[str]]:
    """Return the largest figure of each image, float64 [n], and the check that refused it, empty where it passes."""
    gate, figures, reasons = classifier.gate, [], []
    assert gate is not None, "the bundle has no gate"
    for start in range(0, len(canvases), BATCH):
        part = canvases[start : start + BATCH]
        _, features = classifier.runtime.answer(to_input(part, classifier.bundle.preparation))
        for canvas, scores in zip(part, gate.scores(part, features), strict=True):
            refusal = by_pixels(gate, scores, canvas, lungs)
            figures.append(scores.max())
            reasons.append("" if refusal is None else refusal.key)
    return np.array(figures), reasons


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("--bundle", type=Path, default=Path("default"))
    parser.add_argument("--adults", type=Path)
    parser.add_argument("--part", default="test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    classifier = Classifier(load_bundle(arguments.bundle), threads=arguments.threads)
    preparation = classifier.bundle.preparation
    part = open_source(arguments.split).select(arguments.part)
    cache = open_cache(part.samples, canvas=preparation.canvas, aspect=preparation.aspect)
    images = np.array(cache.pixels[[row for row in cache.rows if row >= 0]])
    patients = np.array([s.patient_id for s, row in zip(part.samples, cache.rows, strict=True) if row >= 0])
    rng = np.random.default_rng(0)
    kinds = {**changed(images[:: max(1, len(images) // 250)], rng), **no_chests(preparation.canvas, rng)}
    if arguments.adults is not None:
        read = (read_image(path, at_least=2 * preparation.canvas).pixels for path in expand([str(arguments.adults)]))
        kinds["adults"] = np.stack([to_canvas(one, preparation.canvas, preparation.aspect) for one in read])
    lungs = LungMasks()
    usual, refused = judge(classifier, images, lungs)
    _, codes = np.unique(patients, return_inverse=True)
    found: dict[str, Any] = {
        "bundle": {"name": classifier.bundle.name, "sha256": classifier.bundle.sha256},
        "part": arguments.part, "images": len(images), "patients": len(set(patients)),
        "refused": proportion(np.array([bool(one) for one in refused]), codes).as_json(),
        "reasons": dict(Counter(filter(None, refused))), "kinds": {},
    }  # fmt: skip
    for name, canvases in kinds.items():
        found["kinds"][name] = measured(name, usual, *judge(classifier, canvases, lungs))
        print(line(name, found["kinds"][name]), flush=True)
    print(line("unchanged", {"n": len(images), "refused": found["refused"], "reasons": found["reasons"]}))
    with tempfile.TemporaryDirectory() as folder:
        found["selective"] = evaluate(classifier, part, Path(folder))["selective"]
    print({key: found["selective"][key] for key in ("gain", "aurc", "best_aurc")})
    write_json(arguments.result, found)


def measured(name: str, usual: Any, figures: Any, reasons: list[str]) -> dict[str, Any]:
    """Return the figures of one kind."""
    alone = np.arange(len(figures))
    area = auroc_estimate(cohort(np.r_[np.zeros(len(usual)), np.ones(len(figures))], np.r_[usual, figures]))
    told: dict[str, Any] = {
        "n": len(figures), "auroc": area.as_json(), "reasons": dict(Counter(filter(None, reasons))),
        "refused": proportion(np.array([bool(one) for one in reasons]), alone).as_json(),
    }  # fmt: skip
    if RIGHT[name]:
        told["right_reason"] = sum(one in RIGHT[name] for one in reasons)
    return told


def line(name: str, told: Mapping[str, Any]) -> str:
    """Return one row of a Markdown table."""
    area = f"{told['auroc']['value']:.4f}" if "auroc" in told else "-"
    if "auroc" in told and told["auroc"]["ci95"][0] == told["auroc"]["ci95"][0]:
        area += " ({:.3f}–{:.3f})".format(*told["auroc"]["ci95"])
    share = "{:.1%} ({:.1%}–{:.1%})".format(told["refused"]["value"], *told["refused"]["ci95"])
    return f"| {name} | {told['n']} | {area} | {share} | {told.get('right_reason', '-')} | {told['reasons']} |"


if __name__ == "__main__":
    main()
