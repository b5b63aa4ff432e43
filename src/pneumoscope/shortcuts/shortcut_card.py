"""The shortcut card: all items, their worst light, and `audit.json`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.bundle.overlap import overlap
from pneumoscope.data.manifest import Manifest
from pneumoscope.files import out_folder, write_json
from pneumoscope.lungs import LungSegmenter
from pneumoscope.predict import Classifier
from pneumoscope.records import RESEARCH_ONLY, Progress
from pneumoscope.shortcuts import verdict
from pneumoscope.shortcuts.examples import write_examples, write_maps
from pneumoscope.shortcuts.items import Answer, answer_all, change_items, removal_items
from pneumoscope.shortcuts.knowledge import along_items, attention_items, probe_items
from pneumoscope.shortcuts.radiographs import Masks, Radiographs, drawn, gather
from pneumoscope.statistics.auc import auroc_estimate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.version import __version__

SCHEMA = 1
MOST_IMAGES, MOST_MAPS = 1000, 200


def shortcut_card(
    classifier: Classifier,
    manifest: Manifest,
    out: Path,
    *,
    masks: Masks | None = None,
    images: int = MOST_IMAGES,
    cam_images: int = MOST_MAPS,
    seed: int = 0,
    asked: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Test whether a network answers from the lungs; write `audit.json` and figures to `out`, return the card.

    Without labels the items that need an AUROC are not tested.

    Args:
        classifier: under test; maps and embeddings come from its PyTorch weights, answers from its runtime.
        manifest: frontal radiographs that did not train the network.
        out: output folder.
        masks: segments lungs, uint8 [n, S, S] to float32 [n, S, S] in 0..1; by default the shipped segmenter.
        images, cam_images: how many images at most, and how many of them for maps.
        seed: of the draw of images and of all intervals.
        asked: images that trained or tuned the bundle are meant; otherwise they make the card void (`overlap`).
        progress: called with (conditions done, conditions in all).

    Raises:
        DataError: not one image could be read, or none shows two lungs.
        ConfigError: the lung segmenter cannot run here.
        StorageError: `out` cannot be written.
    """
    started = time.perf_counter()
    out_folder(out)
    copies, _ = overlap(classifier.bundle, drawn(manifest.samples, images, seed), asked=asked)
    segment = masks or LungSegmenter.load().masks
    radiographs = gather(classifier, manifest, segment, most=images, seed=seed)
    answers = answer_all(classifier, radiographs, progress)
    about_maps, measured = attention_items(classifier, radiographs, answers, most=cam_images, seed=seed)
    items = [
        *removal_items(radiographs, answers, seed),
        *change_items(radiographs, answers, seed),
        *about_maps,
        *probe_items(classifier, radiographs, seed),
        *along_items(radiographs, seed),
    ]
    card = {
        "schema": SCHEMA,
        "pneumoscope": __version__,
        "notice": RESEARCH_ONLY,
        "verdict": verdict.worst(item.light for item in items),
        "overlap": copies,
        "bundle": {"name": classifier.bundle.name, "sha256": classifier.bundle.sha256},
        "threshold": classifier.threshold,
        "operating_point": classifier.operating_point,
        **_facts(radiographs, manifest, answers),
        "seed": seed,
        "items": [item.as_json() for item in items],
        "figures": {
            "examples": write_examples(radiographs, out, seed),
            "maps": write_maps(radiographs, measured, out),
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(out / "audit.json", card)
    return card


def _facts(radiographs: Radiographs, manifest: Manifest, answers: Mapping[str, Answer]) -> dict[str, Any]:
    conditions = {}
    for name, answer in answers.items():
        area = None
        if not radiographs.auroc_fault() and radiographs.labels is not None:
            area = auroc_estimate(cohort(radiographs.labels, answer.score, radiographs.codes)).as_json()
        conditions[name] = {
            "auroc": area,
            "called": float(answer.called.mean()),
            "log_odds": float(answer.score.mean()),
        }
    return {
        "n": radiographs.n,
        "n_patients": len(set(radiographs.patients)),
        "n_pneumonia": None if radiographs.labels is None else int(radiographs.labels.sum()),
        "left_out": {"unread": radiographs.unread, "without_lungs": radiographs.without_lungs},
        "data": {"source": manifest.source.name, "sha256": manifest.fingerprint(), "images": len(manifest)},
        "conditions": conditions,
    }
