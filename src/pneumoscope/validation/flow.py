"""The flow of images: analysed, left out with reasons, and the most confident wrong calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import StorageError
from pneumoscope.files import sha256_file
from pneumoscope.images import in_archive
from pneumoscope.records import NORMAL, PNEUMONIA, Sample

LEAST_PATIENTS = 10  # of each class, under which the result is void
SHOWN = 6
UNANSWERED = "unanswered"  # key of the step whose images the software did not analyse


def flow(manifest: Manifest, split: str | None, table: pd.DataFrame) -> dict[str, Any]:
    """Return the steps from the files of a source to the images in the figures, with reasons.

    `manifest`: the whole source; `split`: the part under validation; `table`: `predictions.csv`, one row per labelled
    image of it.
    """
    selected = [sample for sample in manifest.samples if split is None or sample.split == split]
    labelled = [sample for sample in selected if sample.label is not None]
    unread = table[table["error"].notna()]
    abstained = table[table["probability"].isna() & table["error"].isna()]
    analysed = table[table["probability"].notna()]
    outside = Counter({f"not in split {split}": len(manifest) - len(selected)})
    bare = Counter({"no label": len(selected) - len(labelled)})
    left_out = [
        ("passed_over", "files that are no images", Counter(reason for _, reason in manifest.passed_over), None),
        ("unselected", "outside the part that was asked for", outside, None),
        ("unlabelled", "without a label", bare, None),
        ("unread", "could not be read", Counter(unread["fault"]), unread),
        (UNANSWERED, "not analysed by the software", Counter(abstained["reason"].fillna("no reason given")), abstained),
    ]
    by_class = analysed["label"].value_counts()
    return {
        "found": {"images": len(manifest), "patients": len({sample.patient_id for sample in manifest.samples})},
        "left_out": [
            {
                "key": key,
                "step": step,
                "images": sum(reasons.values()),
                "reasons": dict(+reasons),
                "with_pneumonia": None if rows is None else int((rows["label"] == PNEUMONIA).sum()),
            }
            for key, step, reasons, rows in left_out
        ],
        "analysed": {
            "images": len(analysed),
            "patients": int(analysed["patient_id"].nunique()),
            "with_pneumonia": int(by_class.get(PNEUMONIA, 0)),
            "normal": int(by_class.get(NORMAL, 0)),
        },
        "patients_are_known_by": manifest.patient_rule,
    }


def voids(manifest: Manifest, split: str | None, table: pd.DataFrame, learned_from: str | None) -> list[str]:
    """Return the reasons why the whole validation is void; an empty list where it is not.

    `learned_from`: the fingerprint of the source that the network was trained on.
    """
    reasons = []
    learned = [s for s in manifest.samples if s.split in ("train", "val") and (split is None or s.split == split)]
    if learned_from and learned and manifest.fingerprint() == learned_from:
        reasons.append(f"{len(learned)} of these images are those that the network was trained or tuned on")
    analysed = table[table["probability"].notna()]
    for label in (PNEUMONIA, NORMAL):
        patients = int(analysed[analysed["label"] == label]["patient_id"].nunique())
        if patients < LEAST_PATIENTS:
            reasons.append(f"{patients} patients with {label}, {LEAST_PATIENTS} are the least that says anything")
    if conflicts := _conflicts(analysed):
        reasons.append(f"{conflicts} images have both labels, byte for byte")
    return reasons


def _conflicts(table: pd.DataFrame) -> int:
    labels: dict[str, set[str]] = {}
    sizes: dict[int, list[tuple[str, str]]] = {}
    for path, label in table[["path", "label"]].itertuples(index=False):
        if in_archive(path) is None and Path(path).is_file():
            sizes.setdefault(Path(path).stat().st_size, []).append((path, label))
    for same in sizes.values():
        if len({label for _, label in same}) < 2:
            continue
        for path, label in same:
            try:
                labels.setdefault(sha256_file(Path(path)), set()).add(label)
            except StorageError:
                continue  # removed since it was read: it cannot conflict
    return sum(len(kinds) > 1 for kinds in labels.values())


def failures(table: pd.DataFrame, samples: Iterable[Sample], shown: int = SHOWN) -> dict[str, Any]:
    """Return the most confident wrong calls of either kind, `shown` of each, with the facts of the image."""
    by_path = {sample.path: sample for sample in samples}
    rows = table[table["probability"].notna()]
    failed: dict[str, Any] = {}
    for name, label, rising in (("missed", PNEUMONIA, True), ("false_alarms", NORMAL, False)):
        wrong = rows[(rows["label"] == label) & (rows["predicted"] != label)]
        wrong = wrong.sort_values(["probability", "path"], ascending=[rising, True])
        failed[name] = {
            "total": len(wrong),
            "shown": [
                {"path": path, "probability": p, "label": label, **_about(by_path.get(path))}
                for path, p in wrong[["path", "probability"]].head(shown).itertuples(index=False)
            ],
        }
    return failed


def _about(sample: Sample | None) -> dict[str, Any]:
    if sample is None:
        return {}
    facts = {name: getattr(sample, name) for name in ("age_years", "sex", "view", "site")}
    return {name: value for name, value in facts.items() if value is not None}
