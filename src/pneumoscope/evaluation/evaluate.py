"""From a bundle and labelled images to `metrics.json` and `predictions.csv`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from pneumoscope.bundle.overlap import overlap
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.evaluation.ledger import Look, record
from pneumoscope.evaluation.metrics import evaluate_predictions, subtype_metrics
from pneumoscope.evaluation.stress import evaluate_stressed
from pneumoscope.files import atomic_path, out_folder, write_json, write_text
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, VIRAL, Prediction, Progress, Sample
from pneumoscope.statistics.rates import confusion
from pneumoscope.statistics.reliability import reliability_diagram
from pneumoscope.statistics.selective import selective


def evaluate(
    classifier: Classifier,
    manifest: Manifest,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    look: Look | None = None,
    stress: int = 0,
    asked: bool = False,
) -> dict[str, Any]:
    """Predict every labelled image, write `metrics.json` and `predictions.csv` to `out`, return the metrics.

    The threshold is the bundle's: nothing is chosen on these images. Those that were not analysed are counted, and left
    out of the figures. `look`: announced in the ledger, where this is a locked test set.
    `stress`: how often each image is measured once more, changed towards the other class, or 0.
    `asked`: images that trained or tuned the bundle are meant; otherwise they make the figures void (`overlap`).

    Raises:
        DataError: no image has a label, or not one could be analysed.
    """
    manifest = manifest.labelled()
    out_folder(out)
    copies, parts = overlap(classifier.bundle, manifest.samples, asked=asked, progress=progress)
    predictions: list[Prediction] = []
    for prediction in classifier.predict(sample.path for sample in manifest.samples):
        predictions.append(prediction)
        if progress:
            progress(len(predictions), len(manifest))
    metrics = {
        **score(manifest.samples, predictions, classifier.threshold, seed=seed),
        "operating_point": classifier.operating_point,
        "limits": list(classifier.bundle.card.get("limits", ())),
        "overlap": copies,
        "bundle": {"name": classifier.bundle.name, "sha256": classifier.bundle.sha256},
        "data": {
            "source": manifest.source.name,
            "sha256": manifest.fingerprint(),
            "patients": manifest.patient_rule,
            "splits": dict(Counter(sample.split or "none" for sample in manifest.samples)),
        },
    }
    if stress:
        metrics["stressed"], picture = evaluate_stressed(classifier, manifest.samples, draws=stress, seed=seed)
        with atomic_path(out_folder(out / "figures") / "stress.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    if look is not None:
        metrics["official"] = asdict(record(look, metrics))
    table = prediction_table(manifest, predictions).assign(overlap=parts)
    write_text(out / "predictions.csv", table.to_csv(index=False))
    write_json(out / "metrics.json", metrics)
    return metrics


def score(
    samples: Sequence[Sample], predictions: Sequence[Prediction], threshold: float, *, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of the `metrics.json` contract for labelled samples and their predictions."""
    pairs = [
        (sample, prediction)
        for sample, prediction in zip(samples, predictions, strict=True)
        if prediction.probability is not None
    ]
    if not pairs:
        first = next((p.error or p.reason for p in predictions if p.error or p.reason), "no images")
        raise DataError(f"not one of {len(samples)} images could be analysed ({first})", remedy="check the images")
    y = [sample.label == PNEUMONIA for sample, _ in pairs]
    probability = [float(prediction.probability or 0.0) for _, prediction in pairs]
    patients = [sample.patient_id for sample, _ in pairs]
    metrics = evaluate_predictions(y, probability, patients, threshold, seed=seed)
    result: dict[str, Any] = {
        "n": len(pairs),
        "n_patients": len(set(patients)),
        "not_analysed": len(samples) - len(pairs),
        "refused": dict(Counter(str(p.quality.get("refused_by")) for p in predictions if p.abstained)),
        "failed": sum(prediction.error is not None for prediction in predictions),
        "prevalence": sum(y) / len(y),
        "threshold": threshold,
        "metrics": {name: estimate.as_json() for name, estimate in metrics.items()},
        "confusion": confusion(y, [value >= threshold for value in probability]),
    }
    result["reliability"] = [cell.as_json() for cell in reliability_diagram(y, probability, patients)]
    result["selective"] = selective(y, probability, patients, threshold, seed=seed).as_json()
    if subtype := _subtype(pairs, seed):
        result["subtype"] = subtype
    return result


def _subtype(pairs: Sequence[tuple[Sample, Prediction]], seed: int) -> dict[str, Any] | None:
    subtyped = [(s, p.subtype) for s, p in pairs if s.label == PNEUMONIA and s.subtype and p.subtype is not None]
    if len({sample.subtype for sample, _ in subtyped}) < 2:
        return None
    estimates = subtype_metrics(
        [sample.subtype == VIRAL for sample, _ in subtyped],
        [subtype[VIRAL] for _, subtype in subtyped],
        [sample.patient_id for sample, _ in subtyped],
        seed=seed,
    )
    return {
        "n": len(subtyped),
        "question": "viral against bacterial, among images of pneumonia",
        "metrics": {name: estimate.as_json() for name, estimate in estimates.items()},
    }


def prediction_table(manifest: Manifest, predictions: Sequence[Prediction]) -> pd.DataFrame:
    """Return one row per image; `probability` and `logit` are empty where it was not analysed."""

    def row(sample: Sample, prediction: Prediction) -> Mapping[str, Any]:
        return {
            "path": sample.path,
            "patient_id": sample.patient_id,
            "label": sample.label,
            "subtype": sample.subtype,
            "split": sample.split,
            "site": sample.site,
            "probability": prediction.probability,
            "predicted": prediction.label,
            "threshold": prediction.threshold,
            "viral": None if prediction.subtype is None else prediction.subtype[VIRAL],
            "abstained": prediction.abstained,
            "reason": prediction.reason,
            "error": prediction.error,
            "fault": prediction.fault,
            "logit": prediction.logit,
        }

    return pd.DataFrame([row(s, p) for s, p in zip(manifest.samples, predictions, strict=True)])
