"""The provenance of a run for its card and report: data, population, limits, machine."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pneumoscope.config import Experiment
from pneumoscope.data.manifest import Manifest, counts
from pneumoscope.files import sha256_bytes
from pneumoscope.records import LABELS, PNEUMONIA, SUBTYPES, Sample
from pneumoscope.training.features import best_device
from pneumoscope.training.fit import Hardware
from pneumoscope.training.kept import Row, kept_row
from pneumoscope.version import __version__

SYNTHETIC_SITE = "synthetic"
_FEW = 30  # validation patients of a class, under which their choice is a matter of luck
_KERMANY_AGES = (1.0, 5.0)  # Kermany et al., Cell 2018


def split_counts(divided: Manifest) -> dict[str, dict[str, int]]:
    """Return images per class and subtype, and patients, for each split."""
    result = {}
    for split in ("train", "val", "test"):
        part = [sample for sample in divided.samples if sample.split == split]
        if part:
            subtypes = {key: sum(sample.subtype == key for sample in part) for key in SUBTYPES}
            patients = len({sample.patient_id for sample in part})
            result[split] = {**counts(part), **subtypes, "patients": patients}
    return result


def count_lines(divided: Manifest) -> list[str]:
    """Return a line for each split: images, patients, images of each class."""
    lines = []
    for split, found in split_counts(divided).items():
        each = ", ".join(f"{found.get(label, 0):,} {label}" for label in LABELS)
        images = sum(found.get(label, 0) for label in LABELS)
        lines.append(f"{split}: {images:,} images of {found['patients']:,} patients ({each})")
    return lines


def passed_over(manifest: Manifest) -> list[str]:
    """Return a line for each reason why files of a source are not taken."""
    reasons = Counter(reason for _, reason in manifest.passed_over)
    return [f"warning: {count:,} files are left out: {reason}" for reason, count in reasons.items()]


def is_synthetic(manifest: Manifest) -> bool:
    """Say whether a source was written by the synthetic generator."""
    folder = manifest.source if manifest.source.is_dir() else manifest.source.parent
    return (folder / "SYNTHETIC.txt").is_file() or any(s.site == SYNTHETIC_SITE for s in manifest.samples)


def population(divided: Manifest) -> dict[str, Any]:
    """Describe whom the training images show, as far as the manifest knows."""
    train = [sample for sample in divided.samples if sample.split == "train"]
    ages = sorted(sample.age_years for sample in train if sample.age_years is not None)
    facts: dict[str, Any] = {
        "source": divided.source.name,
        "synthetic": is_synthetic(divided),
        "images": len(train),
        "patients": len({sample.patient_id for sample in train}),
        "age_years": [ages[0], ages[-1]] if ages else None,
        "sites": sorted({sample.site for sample in train if sample.site}),
        "views": sorted({sample.view for sample in train if sample.view}),
        "prevalence": sum(sample.label == PNEUMONIA for sample in train) / len(train),
    }
    return {"description": _in_words(facts), **facts}


def ages(divided: Manifest) -> tuple[float, float] | None:
    """Return the youngest and the oldest age in years of the training patients, None where unknown."""
    years = [s.age_years for s in divided.samples if s.split == "train" and s.age_years is not None]
    if years:
        return min(years), max(years)
    return _KERMANY_AGES if _is_kermany(divided.samples) else None


def _is_kermany(samples: Sequence[Sample]) -> bool:
    """Say whether most images of pneumonia are named as Kermany's are: one such name proves nothing."""
    ill = [sample for sample in samples if sample.label == PNEUMONIA]
    return 2 * sum(sample.patient_id.startswith(("bacteria-person", "virus-person")) for sample in ill) > len(ill)


def _in_words(facts: Mapping[str, Any]) -> str:
    ages = facts["age_years"]
    images = f"{facts['images']:,} images of {facts['patients']:,} patients"
    aged = f"aged {ages[0]:g} to {ages[1]:g} years" if ages else "ages not recorded"
    views = f"views {', '.join(facts['views'])}" if facts["views"] else "views not recorded"
    kind = "computer-generated" if facts["synthetic"] else "from one source"
    return f"{images}, {kind} ({facts['source']}); {aged}; {views}; {100 * facts['prevalence']:.0f} % with pneumonia"


def limits(divided: Manifest, *, stressed: bool = False) -> list[str]:
    """Return the limits that belong beside every figure of this run."""
    if is_synthetic(divided):
        specific = ["Trained on computer-generated images: it has learned nothing about patients."]
    else:
        specific = _kermany_limits(divided.samples)
    return [
        *specific,
        "One source: how it does in another hospital, on other devices or at other ages these figures do not say.",
        "Probabilities are calibrated for "
        + ("equal shares of both classes." if stressed else "the prevalence of the validation split."),
        "It answers one question, pneumonia or normal; other disease is not looked for.",
    ]


def notices(divided: Manifest, history: Sequence[Row], best: Row) -> list[str]:
    """Return what page one must say of how the network was chosen: by few images, or that its last phase was worse."""
    said = []
    val = [sample for sample in divided.samples if sample.split == "val"]
    patients = {label: len({s.patient_id for s in val if s.label == label}) for label in LABELS}
    if min(patients.values()) < _FEW:
        each = ", ".join(f"{count} {label}" for label, count in patients.items())
        said.append(
            f"{len(val)} validation images of few patients ({each}) chose the epoch, the calibration and the "
            "thresholds: another draw would have chosen otherwise"
        )
    if best["phase"] != history[-1]["phase"]:
        last = kept_row([row for row in history if row["phase"] == history[-1]["phase"]])
        said.append(
            f"{last['phase']} made it worse on the validation images (AUROC {float(last['val_auroc']):.4f} against "
            f"{float(best['val_auroc']):.4f}), so the weights of {best['phase']} were kept"
        )
    return said


def _kermany_limits(samples: Sequence[Sample]) -> list[str]:
    if _is_kermany(samples):
        return [
            "The images show children of one to five years from one hospital (Guangzhou).",
            "Adults are outside its population: on adults it has nothing to say.",
            "Original image sizes, markers and borders differ by class in this source and may be used as a shortcut.",
        ]
    return []


def environment(experiment: Experiment, hardware: Hardware, started: float) -> dict[str, Any]:
    """Return the facts that repeat the run: versions, machine, seed."""
    packages = ("torch", "torchvision", "timm", "lightning", "numpy", "scikit-learn", "pillow", "pydicom")
    return {
        "pneumoscope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": str(best_device()),
        "devices": hardware.devices,
        "nodes": hardware.nodes,
        "threads": torch.get_num_threads(),
        "seed": experiment.seed,
        "config_sha256": sha256_bytes(experiment.model_dump_json().encode()),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
    }


def without_paths(experiment: Experiment) -> dict[str, Any]:
    """Return the settings with file names instead of paths, which mean nothing on another machine."""
    config: dict[str, Any] = experiment.model_dump(mode="json")
    config["model"]["weights"] = _named(config["model"]["weights"])
    config["train"]["teachers"] = [_named(name) for name in experiment.train.teachers]
    return config


def _named(file: str) -> str:
    """Return a file's or bundle's name; a run's bundle has that of the run."""
    path = Path(file)
    return path.parent.name if path.name == "bundle" and path.parent.name else path.name
