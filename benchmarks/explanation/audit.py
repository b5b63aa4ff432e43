"""Does the shortcut card find planted shortcuts, and leave clean networks alone?

    python benchmarks/explanation/audit.py --seeds 20

For each seed, networks of one kind (a linear head on frozen ImageNet features) learn computed radiographs whose
disease lies in the lungs alone: once as they are (the control), once with a marker in a corner of every image with
pneumonia, once with a dark border, once with another exposure. Each is audited on held-out images planted likewise.
An item that is red where the shortcut concerns it counts as found; any red item about answers counts as a flag of the
control. Heat maps of so small images are too coarse to be judged; their figures are written down. Writes
results/audit.json and prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.data.sources import open_source
from pneumoscope.files import out_folder, write_json
from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.lungs import LungSegmenter
from pneumoscope.networks.network import build_network
from pneumoscope.networks.weights import load_weights
from pneumoscope.phantom.synthetic import KINDS, render
from pneumoscope.predict import Classifier
from pneumoscope.shortcuts.probes import embeddings
from pneumoscope.shortcuts.shortcut_card import shortcut_card
from pneumoscope.shortcuts.verdict import RED
from pneumoscope.statistics.proportions import proportion

RESULT = Path(__file__).parent / "results" / "audit.json"
NETWORK, SIDE = "tf_efficientnet_lite0", 112
SEVERITY = (0.7, 1.0)
ABOUT_ANSWERS = (
    "lung_region_removed", "lungs_removed", "border_masked", "corners_masked", "letter_pasted", "border_added",
    "mirrored", "darker", "brighter",
)  # fmt: skip


def clean(image: Pixels) -> Pixels:
    """Change nothing."""
    return image


def marker(image: Pixels) -> Pixels:
    """Put a bright square into the lower left corner."""
    result, side = image.copy(), image.shape[0]
    result[-round(0.12 * side) : -round(0.04 * side), round(0.04 * side) : round(0.12 * side)] = 255
    return result


def border(image: Pixels) -> Pixels:
    """Blacken the outermost pixels."""
    edge = round(0.05 * image.shape[0])
    result = np.zeros_like(image)
    result[edge:-edge, edge:-edge] = image[edge:-edge, edge:-edge]
    return result


def exposed(image: Pixels) -> Pixels:
    """Raise the mid greys."""
    return np.asarray(np.rint(255 * (image / 255) ** 0.7), np.uint8)


# The plant, and the items of which one must be red.
PLANTS: Mapping[str, tuple[Callable[[Pixels], Pixels], tuple[str, ...]]] = {
    "control": (clean, ()),
    "corner marker": (marker, ("lung_region_removed", "corners_masked", "border_masked")),
    "border": (border, ("lung_region_removed", "border_masked")),
    "exposure": (exposed, ("lung_region_removed", "darker", "brighter")),
}


def pairs(rng: np.random.Generator, count: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Return computed radiographs uint8 [n, side, side] and who is ill: every invented patient once well and once ill.

    Body, pose and film of a pair are the same, so the disease alone tells them apart, and it lies in the lungs alone.
    """
    images = []
    for seed, kind in zip(rng.integers(0, 2**31, count // 2), rng.choice(KINDS[1:], count // 2), strict=True):
        ill = np.random.default_rng(seed)
        images.append(render(np.random.default_rng(seed), kind=KINDS[0], size=SIDE).pixels)
        images.append(render(ill, kind=str(kind), size=SIDE, severity=float(rng.uniform(*SEVERITY))).pixels)
    return np.stack(images), np.arange(len(images)) % 2 == 1


def pool(rng: np.random.Generator, count: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Return the same of as many patients, half of them ill."""
    images, ill = pairs(rng, 2 * count)
    one_each = np.arange(2 * count).reshape(-1, 2)[np.arange(count), np.arange(count) % 2]
    return images[one_each], ill[one_each]


def planted(images: Pixels, ill: NDArray[np.bool_], plant: Callable[[Pixels], Pixels]) -> Pixels:
    """Return the images, those with pneumonia changed."""
    return np.stack([plant(image) if one else image for image, one in zip(images, ill, strict=True)])


def untrained() -> Classifier:
    """Return a classifier of two classes with ImageNet features and a head that knows nothing."""
    network, usual = build_network(NETWORK, classes=2)
    load_weights(network, NETWORK, "offline")
    preparation = Preparation(SIDE, SIDE, "squash", usual["mean"], usual["std"])
    card = {
        "name": "linear head", "sha256": "0" * 64, "calibration": {"temperature": 1.0, "bias": 0.0},
        "operating_points": {"balanced": {"threshold": 0.5}}, "operating_point": "balanced", "runtime": {"files": {}},
    }  # fmt: skip
    bundle = Bundle(Path(), card, preparation)
    vars(bundle)["_network"] = network.eval().requires_grad_(False)  # where the bundle keeps what it has read
    return Classifier(bundle, engine="torch")


def teach(classifier: Classifier, images: Pixels, ill: NDArray[np.bool_]) -> None:
    """Fit the head, a logistic regression on standardised features folded into one linear layer."""
    features = embeddings(classifier, images)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    fitted = LogisticRegression(C=0.01, max_iter=2000).fit((features - mean) / spread, ill)
    weight = fitted.coef_[0] / spread
    bias = float(fitted.intercept_[0] - weight @ mean)
    linear: Any = classifier.bundle.network.head[1]
    linear.weight.copy_(torch.tensor(np.stack([np.zeros_like(weight), weight]), dtype=torch.float32))
    linear.bias.copy_(torch.tensor([0.0, bias]))


def write_images(folder: Path, images: Pixels, ill: NDArray[np.bool_]) -> None:
    """Write PNG files in the layout of two classes."""
    for index, (image, one) in enumerate(zip(images, ill, strict=True)):
        file = out_folder(folder / ("PNEUMONIA" if one else "NORMAL")) / f"{index:05d}.png"
        Image.fromarray(image).save(file)


def one_seed(seed: int, train: int, held: int, maps: int, masks: Any) -> dict[str, Any]:
    """Return for each plant the lights of all items, and the figures of the first two."""
    rng = np.random.default_rng(seed)
    (taught, ill_taught), (images, ill) = pairs(rng, train), pool(rng, held)
    found: dict[str, Any] = {}
    for name, (plant, _) in PLANTS.items():
        classifier = untrained()
        teach(classifier, planted(taught, ill_taught, plant), ill_taught)
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder) / "data", planted(images, ill, plant), ill)
            card = shortcut_card(
                classifier, open_source(Path(folder) / "data"), Path(folder) / "card", masks=masks, cam_images=maps
            )
        found[name] = {
            "lights": {item["key"]: item["light"] for item in card["items"]},
            "auroc": {key: facts["auroc"]["value"] for key, facts in card["conditions"].items()},
            "inside": {
                item["key"]: item["figure"]["value"]
                for item in card["items"]
                if item["key"].startswith("attention") and item["figure"]
            },
            "lost": {
                item["key"]: {key: item["facts"][key]["value"] for key in item["facts"] if key.startswith("lost")}
                for item in card["items"]
                if "lost" in item["facts"]
            },
            "left_out": card["left_out"]["without_lungs"],
        }
        print(seed, name, flagged(found[name], name), found[name]["auroc"]["untouched"],
              found[name]["auroc"]["lung_region_removed"], flush=True)  # fmt: skip
    return found


def flagged(found: Mapping[str, Any], plant: str) -> list[str]:
    """Return the red items that count: those that concern the plant, or all about answers for the control."""
    keys = PLANTS[plant][1] or ABOUT_ANSWERS
    return [key for key in keys if found["lights"].get(key) == RED]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--held", type=int, default=240)
    parser.add_argument("--maps", type=int, default=30, help="heat maps a card; under 20 they are not judged")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    masks = LungSegmenter.load(threads=arguments.threads).masks
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    runs = {seed: one_seed(seed, arguments.train, arguments.held, arguments.maps, masks) for seed in seeds}
    summary = {name: summarise(name, runs) for name in PLANTS}
    print("\n| plant | flagged (95 %) | AUROC clean / without the region | Grad-CAM in lungs |\n|---|---|---|---|")
    for name, found in summary.items():
        low, high = found["flagged"]["ci95"]
        share = f"{found['flagged']['value']:.0%} ({low:.0%}–{high:.0%})"
        areas = f"{found['auroc']:.3f} / {found['auroc_without_region']:.3f}"
        print(f"| {name} | {share} | {areas} | {found['gradcam_inside']:.2f} |")
    out_folder(arguments.result.parent)
    settings = {"train": arguments.train, "held": arguments.held, "network": NETWORK, "side": SIDE}
    write_json(arguments.result, {**settings, "seeds": list(seeds), "summary": summary, "runs": runs})


def summarise(name: str, runs: Mapping[int, Any]) -> dict[str, Any]:
    """Return how often a plant was flagged over the seeds, and mean figures."""
    found = [run[name] for run in runs.values()]
    hits = np.array([bool(flagged(one, name)) for one in found])
    return {
        "flagged": proportion(hits, np.arange(len(hits))).as_json(),
        "auroc": float(np.mean([one["auroc"]["untouched"] for one in found])),
        "auroc_without_region": float(np.mean([one["auroc"]["lung_region_removed"] for one in found])),
        "gradcam_inside": float(np.mean([one["inside"].get("attention_gradcam", np.nan) for one in found])),
    }


if __name__ == "__main__":
    main()
