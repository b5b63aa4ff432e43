"""From a bundle and the images of another hospital to `validation.json`, for a review board to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from pneumoscope.data.manifest import Manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.ledger import Look
from pneumoscope.files import plain, write_json
from pneumoscope.predict import Classifier
from pneumoscope.records import RESEARCH_ONLY, Progress
from pneumoscope.statistics.benefit import decision_curve
from pneumoscope.statistics.rates import predictive_values
from pneumoscope.statistics.reliability import log_odds, reliability_diagram
from pneumoscope.statistics.sample_size import Planned, required
from pneumoscope.validation.checklist import fill
from pneumoscope.validation.flags import flags
from pneumoscope.validation.flow import failures, flow, voids
from pneumoscope.validation.metadata import metadata
from pneumoscope.validation.recalibration import recalibration
from pneumoscope.validation.study import SITE, USUAL, Study, figures, study_of
from pneumoscope.validation.subgroups import subgroups
from pneumoscope.validation.transfer import left_out_sites, transfer

PREVALENCES = (0.01, 0.05, 0.1, 0.25, 0.5)
RESAMPLES = 1000
_POINTS = 150  # of a ROC curve on file
_CARD = ("network", "preparation", "population", "calibration", "operating_points", "training", "weights", "created")


def validate(
    classifier: Classifier,
    manifest: Manifest,
    out: Path,
    *,
    split: str | None = None,
    site: str | None = None,
    groups: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle on labelled images and write `validation.json` and `checklist.json` beside its metrics.

    `site`, `groups`: columns of the table to compare groups by, beside age band, sex, view and device.
    The bundle is not changed: thresholds and calibrations chosen here are measured on other patients, and show what
    an adaptation would gain. `void` in the result lists the reasons why the whole result is void.

    Raises:
        DataError: no labelled image, none that can be analysed, or a named column is missing.
    """
    selected = manifest.select(split) if split else manifest
    labelled = selected.labelled().samples
    study_of(labelled, [0.5] * len(labelled), 0.5, groups, site)  # raises for a missing column before the work
    metrics = evaluate(classifier, selected, out, seed=seed, progress=progress, look=look)
    table = pd.read_csv(out / "predictions.csv", dtype={"path": str, "patient_id": str, "error": str, "reason": str})
    analysed = table["probability"].notna().to_numpy()
    samples = [sample for sample, answered in zip(labelled, analysed, strict=True) if answered]
    p = table["probability"][analysed].to_numpy(dtype=np.float64)
    study = study_of(samples, p.tolist(), classifier.threshold, groups, site)
    card = {name: value for name, value in classifier.bundle.card.items() if name in _CARD}
    validation: dict[str, Any] = {
        "schema": 1,
        "notice": RESEARCH_ONLY,
        **{name: metrics[name] for name in ("bundle", "data", "threshold", "operating_point", "limits")},
        "images_from": str(manifest.source),
        "official": metrics.get("official"),
        "seed": seed,
        "resamples": RESAMPLES,
        "overlap": metrics["overlap"],
        "void": voids(manifest, split, table, None if metrics["overlap"]["checked"] else _learned_from(card)),
        "flow": flow(manifest, split, table),
        "expected": _expected(card, classifier.operating_point),
        **analyse(study, [*USUAL, *groups], prevalence=calibrated_prevalence(card), seed=seed),
        "failures": failures(table, samples),
        "card": card,
    }
    validation = plain(validation)
    if copies := validation["overlap"]["void"]:
        validation["void"].insert(0, copies)
    validation["flags"] = flags(validation)
    validation["checklist"] = fill(validation)
    write_json(out / "validation.json", validation)
    write_json(out / "checklist.json", validation["checklist"])
    return validation


def analyse(
    study: Study, names: Sequence[str], *, prevalence: float | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return every section of `validation.json` that follows from scores, labels, patients and columns alone.

    `names`: columns of the study for subgroups; `prevalence`: the share of pneumonia at calibration.
    """
    names = list(dict.fromkeys(names))
    per_site = [
        {"site": level, **figures(study.take(study.columns[SITE] == level), seed=seed, resamples=resamples)}
        for level in study.levels(SITE)
    ]
    return {
        "headline": headline(study, seed=seed, resamples=resamples),
        "sites": {"per_site": per_site, "left_out": left_out_sites(study, seed=seed, resamples=resamples)},
        "subgroups": subgroups(study, names, seed=seed, resamples=resamples),
        "metadata": metadata(study, seed=seed, resamples=resamples),
        "transfer": transfer(study, seed=seed),
        "recalibration": recalibration(study, prevalence, seed=seed, resamples=resamples),
        "sample_size": sample_size(study),
    }


def headline(study: Study, *, seed: int, resamples: int) -> dict[str, Any]:
    """Return the figures of all images together, with their curves and predictive values elsewhere."""
    patients = study.patients.tolist()
    called = study.p >= study.threshold
    overall = figures(study, seed=seed, resamples=resamples)
    if not 0 < overall["positives"] < study.n:
        return {**overall, "curves": {}, "at_prevalence": []}
    specific, sensitive, _ = roc_curve(study.y, study.p)
    keep = np.unique(np.linspace(0, specific.size - 1, _POINTS).round().astype(int))
    return {
        **overall,
        "curves": {
            "roc": {"false_alarms": specific[keep], "sensitivity": sensitive[keep]},
            "reliability": [b.as_json() for b in reliability_diagram(study.y, study.p, patients)],
            "decision": decision_curve(study.y, study.p, patients, seed=seed, resamples=resamples).as_json(),
        },
        "at_prevalence": [
            {
                "prevalence": share,
                **{k: e.as_json() for k, e in predictive_values(study.y, called, patients, share).items()},
            }
            for share in PREVALENCES
        ],
    }


def sample_size(study: Study) -> dict[str, Any]:
    """Return the images that Riley's criteria need at the observed figures, and the number there is."""
    positives = int(study.y.sum())
    if not 0 < positives < study.n:
        return {"why_not": "one class only", "have": {"n": study.n, "with_pneumonia": positives}}
    metrics = figures(study, seed=0, resamples=20)["metrics"]
    area = metrics["auroc"]["value"]
    planned = Planned(
        positives / study.n,
        float(np.clip(max(area, 1 - area), 0.51, 0.995)),
        float(metrics["recall"]["value"]),
        float(metrics["specificity"]["value"]),
        log_odds(study.p),
        study.n / study.n_patients,
        _correlation(study),
    )
    needed = required(planned)
    return {
        "have": {"n": study.n, "with_pneumonia": positives},
        "needed": needed,
        "enough": bool(study.n >= needed["n"]),
        "correlation": planned.correlation,
        "source": "Riley et al., Stat Med 2021;40:4230 and BMJ 2024;384:e074821; scores taken as well calibrated",
    }


def _correlation(study: Study) -> float:
    """Return the intra-class correlation 0..1 of the log-odds within patients and class (one-way, by moments)."""
    key = np.char.add(study.patients, np.where(study.y, "|1", "|0"))
    _, group = np.unique(key, return_inverse=True)
    sizes = np.bincount(group)
    if sizes.max() < 2:
        return 0.0
    odds = log_odds(study.p)
    odds = odds - np.where(study.y, odds[study.y].mean(), odds[~study.y].mean())
    means = np.bincount(group, odds) / sizes
    within = float(((odds - means[group]) ** 2).sum() / max(1, odds.size - sizes.size))
    between = float((sizes * (means - odds.mean()) ** 2).sum() / max(1, sizes.size - 1))
    size = (odds.size - float((sizes**2).sum()) / odds.size) / max(1, sizes.size - 1)
    shared = max(0.0, (between - within) / size)
    return shared / (shared + within) if shared + within > 0 else 0.0


def calibrated_prevalence(card: Mapping[str, Any]) -> float | None:
    """Return the share of pneumonia, 0..1, at which a bundle's probabilities were calibrated; None if not known."""
    share = card["calibration"].get("prevalence", (card.get("population") or {}).get("prevalence"))
    return float(share) if share is not None and 0 < share < 1 else None


def _learned_from(card: Mapping[str, Any]) -> str | None:
    fingerprint = ((card.get("training") or {}).get("data") or {}).get("fingerprint")
    return None if fingerprint is None else str(fingerprint)


def _expected(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the sensitivity and specificity that the bundle states for its operating point."""
    point = (card.get("operating_points") or {}).get(name) or {}
    return {key: point[key] for key in ("sensitivity", "specificity") if isinstance(point.get(key), Mapping)}
