"""The shortcut card: all items, their worst light, and `audit.json`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pneumoscope
from pneumoscope.cohort import cohort
from pneumoscope.data.manifest import Manifest
from pneumoscope.evaluation.auc import auroc_estimate
from pneumoscope.files import out_folder, write_json
from pneumoscope.lungs import LungSegmenter
from pneumoscope.predict import Classifier
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.shortcuts import verdict
from pneumoscope.shortcuts.items import Answered, answer_all, change_items, removal_items
from pneumoscope.shortcuts.knowledge import along_items, attention_items, probe_items
from pneumoscope.shortcuts.material import Masks, Material, gather
from pneumoscope.shortcuts.pictures import write_examples, write_maps

SCHEMA = 1
MOST_IMAGES, MOST_MAPS = 1000, 200


def audit(
    classifier: Classifier,
    manifest: Manifest,
    out: Path,
    *,
    masks: Masks | None = None,
    images: int = MOST_IMAGES,
    cam_images: int = MOST_MAPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Find out whether a network answers from the lungs; write `audit.json` and pictures to `out`, return the card.

    Labels are not needed: without them the items that take an AUROC are not tested.

    Args:
        classifier: what is audited; maps and embeddings come from its PyTorch weights, answers from its runtime.
        manifest: frontal radiographs that did not teach the network.
        out: output folder.
        masks: finds the lungs, uint8 [n, S, S] to float32 [n, S, S] in 0..1; by default the shipped segmenter.
        images, cam_images: how many images at most, and how many of them for maps.
        seed: of the draw of images and of all intervals.
        progress: called with (conditions done, conditions in all).

    Raises:
        DataError: not one image could be read, or none shows two lungs.
        ConfigError: the lung segmenter cannot run here.
        StorageError: `out` cannot be written.
    """
    started = time.perf_counter()
    out_folder(out)
    find = masks or LungSegmenter.load().masks
    material = gather(classifier, manifest, find, most=images, seed=seed)
    found = answer_all(classifier, material, progress)
    about_maps, measured = attention_items(classifier, material, found, most=cam_images, seed=seed)
    items = [
        *removal_items(material, found, seed),
        *change_items(material, found, seed),
        *about_maps,
        *probe_items(classifier, material, seed),
        *along_items(material, seed),
    ]
    card = {
        "schema": SCHEMA,
        "pneumoscope": pneumoscope.__version__,
        "notice": RESEARCH_ONLY,
        "verdict": verdict.worst(item.light for item in items),
        "bundle": {"name": classifier.bundle.name, "sha256": classifier.bundle.sha256},
        "threshold": classifier.threshold,
        "operating_point": classifier.operating_point,
        **_facts(material, manifest, found),
        "seed": seed,
        "items": [item.as_json() for item in items],
        "figures": {
            "examples": write_examples(material, out, seed),
            "maps": write_maps(material, measured, out),
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(out / "audit.json", card)
    return card


def _facts(material: Material, manifest: Manifest, found: Mapping[str, Answered]) -> dict[str, Any]:
    conditions = {}
    for name, answered in found.items():
        area = None
        if not material.why_no_auroc() and material.labels is not None:
            area = auroc_estimate(cohort(material.labels, answered.score, material.codes)).as_json()
        conditions[name] = {
            "auroc": area,
            "called": float(answered.called.mean()),
            "log_odds": float(answered.score.mean()),
        }
    return {
        "n": material.n,
        "n_patients": len(set(material.patients)),
        "n_pneumonia": None if material.labels is None else int(material.labels.sum()),
        "left_out": {"unread": material.unread, "without_lungs": material.without_lungs},
        "data": {"source": manifest.source.name, "sha256": manifest.fingerprint(), "images": len(manifest)},
        "conditions": conditions,
    }
