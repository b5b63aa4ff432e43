"""Sensitivity and specificity over time from labels that are late, partial and chosen; what can be said without.

Labels that a design asked for are weighted by the inverse of their chance (Hájek 1971), with intervals by patient.
Labels without a design are no sample: readers correct what struck them. Beside them stands Begg and Greenes'
correction (Biometrics 1983), which is right if, given the call, whether a study was labelled has nothing to do with
its truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pneumoscope.monitoring.labels import Judged
from pneumoscope.monitoring.stream import Rows
from pneumoscope.records import Bools, Estimate, Floats, Ints
from pneumoscope.statistics.proportions import wilson

BLIND = (
    "Without labels nobody can see that the truth has moved: if a fifth of the labels were turned round, every figure "
    "computed from scores alone would stay as it is."
)
NO_SAMPLE = "not a sample: no design chose these studies, so a figure over them measures who gave labels, too"
LEAST = 10  # labelled images of a class for a figure of a month


def weighted_share(success: Bools, weights: Floats, codes: Ints) -> Estimate:
    """Return a weighted share (Hájek's ratio) with a 95 % interval by patient.

    `success`: bool [n]; `weights`: > 0 [n], inverse chances; `codes`: int [n], patients. Wilson's interval at the
    number of independent images that has the variance of the linearised ratio; Kish's number where the share is 0 or 1.
    """
    if success.size == 0:
        return Estimate(np.nan, np.nan, np.nan, "no labelled image")
    total = float(weights.sum())
    share = float(weights @ success) / total
    patient = np.unique(codes, return_inverse=True)[1]
    by_patient = np.bincount(patient, weights)
    effective = total**2 / float(by_patient @ by_patient)
    if 0 < share < 1 and by_patient.size > 1:
        residual = np.bincount(patient, weights * (success - share))
        variance = by_patient.size / (by_patient.size - 1) * float(residual @ residual) / total**2
        effective = min(float(success.size), share * (1 - share) / variance) if variance > 0 else effective
    low, high = wilson(share, max(1.0, effective))
    return Estimate(share, low, high, "Hájek, Wilson by patient")


def by_month(labels: Judged, called_share: dict[str, float]) -> list[dict[str, Any]]:
    """Return figures of each month of images, oldest first.

    `called_share`: share of all answered images that were called, by month, for Begg and Greenes' check.
    """
    months = labels.at.astype("datetime64[M]").astype(str)
    found = []
    for month in np.unique(months):
        part = labels.take(months == month)
        row: dict[str, Any] = {"month": str(month), **figures(part)}
        if not row["design"] and month in called_share:
            row["begg_greenes"] = begg_greenes(part, called_share[str(month)])
        found.append(row)
    return found


def figures(labels: Judged) -> dict[str, Any]:
    """Return counts, sensitivity and specificity; of designed labels alone where there are any."""
    designed = np.isfinite(labels.chance) & (labels.chance > 0)
    design = bool(designed.any())
    part = labels.take(designed) if design else labels
    weights = 1 / part.chance if design else np.ones(len(part))
    codes = np.unique(part.patient, return_inverse=True)[1]
    found: dict[str, Any] = {"labels": len(labels), "design": design, "note": "" if design else NO_SAMPLE}
    for name, mask, right in (
        ("sensitivity", part.positive, part.called),
        ("specificity", ~part.positive, ~part.called),
    ):
        enough = int(mask.sum()) >= LEAST
        estimate = weighted_share(right[mask], weights[mask], codes[mask])
        found[name] = {"n": int(mask.sum()), **(estimate.as_json() if enough else {"value": None})}
    return found


def begg_greenes(labels: Judged, called: float) -> dict[str, float | None]:
    """Return sensitivity and specificity if, given the call, labelled studies are like the others.

    `called`: share of all answered images that were called pneumonia.
    """
    flagged, cleared = labels.positive[labels.called], labels.positive[~labels.called]
    if min(flagged.size, cleared.size) < LEAST:
        return {"sensitivity": None, "specificity": None}
    ill_called, ill_cleared = float(flagged.mean()) * called, float(cleared.mean()) * (1 - called)
    well_called, well_cleared = called - ill_called, 1 - called - ill_cleared
    return {
        "sensitivity": ill_called / (ill_called + ill_cleared) if ill_called + ill_cleared else None,
        "specificity": well_cleared / (well_called + well_cleared) if well_called + well_cleared else None,
    }


def estimated(rows: Rows) -> dict[str, Any]:
    """Return sensitivity and specificity as the scores themselves would have them, with what that is blind to."""
    probability = rows.number["probability"]
    answered = np.isfinite(probability)
    p, called = probability[answered], probability[answered] >= rows.number["threshold"][answered]
    ill, well = float(p.sum()), float((1 - p).sum())
    return {
        "images": int(answered.sum()),
        "sensitivity": float(p[called].sum()) / ill if ill else None,
        "specificity": float((1 - p)[~called].sum()) / well if well else None,
        "blind": BLIND,
    }
