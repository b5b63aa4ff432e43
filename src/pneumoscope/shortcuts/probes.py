"""Predictions without the lungs, and attributes that the network's embedding encodes beyond the disease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pneumoscope.data.checks.shortcuts import out_of_fold, patient_folds
from pneumoscope.images.preparation import Pixels
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier
from pneumoscope.records import Bools, Estimate, Floats, Ints, Sample
from pneumoscope.shortcuts.verdict import MIN_PATIENTS
from pneumoscope.statistics.auc import auroc_interval

_BATCH, _BINS, _COMPONENTS, _MOST_LEVELS = 32, 32, 32, 4


def embeddings(classifier: Classifier, canvases: Pixels) -> Floats:
    """Return pooled features float64 [n, F] from uint8 [n, canvas, canvas].

    Raises:
        BundleError: the bundle's PyTorch weights are missing or do not fit.
    """
    network = classifier.bundle.network
    parts = []
    with torch.inference_mode():
        for start in range(0, len(canvases), _BATCH):
            images = torch.from_numpy(np.array(canvases[start : start + _BATCH])).to(classifier.device)
            parts.append(network.embed(prepare(images, classifier.bundle.preparation)).double().cpu().numpy())
    return np.concatenate(parts)


def reduced(features: Floats) -> Floats:
    """Return the first principal components, float64 [n, k], of features [n, F].

    k is at most 32 and a tenth of n, so that no probe learns its images by heart.
    """
    centred = features - features.mean(axis=0)
    centred = centred / np.maximum(centred.std(axis=0), 1e-9)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    k = max(1, min(_COMPONENTS, len(features) // 10, int((s > 1e-9 * s[0]).sum()) if s[0] > 0 else 1))
    return np.asarray(u[:, :k] * s[:k], np.float64)


def exposure(canvases: Pixels) -> Floats:
    """Return the shares of the pixels in 32 bins of grey, float64 [n, 32], from uint8 [n, S, S]: no place, no shape."""
    return np.stack(
        [np.bincount(canvas.ravel() // (256 // _BINS), minlength=_BINS) / canvas.size for canvas in canvases]
    )


def shape(sizes: Ints) -> Floats | None:
    """Return log width, log height and log aspect ratio, float64 [n, 3], from widths and heights in pixels [n, 2].

    None where all images are of one size.
    """
    logs = np.log(np.maximum(sizes, 1).astype(np.float64))
    return None if np.ptp(sizes, axis=0).max() == 0 else np.column_stack([logs, logs[:, 0] - logs[:, 1]])


def probe(features: Sequence[Floats], y: Bools, groups: Ints, seed: int) -> list[Estimate]:
    """Return the AUROC for `y`, bool [n], of a logistic regression on each [n, k], fitted without the patient."""
    folds = patient_folds(y, groups, seed)
    return [auroc_interval(y, out_of_fold(columns, y, folds), groups, seed=seed) for columns in features]


def enough(y: Bools, groups: Ints) -> bool:
    """Say whether both classes of bool [n] have ten patients."""
    return min(len(np.unique(groups[y])), len(np.unique(groups[~y]))) >= MIN_PATIENTS


def attributes(samples: Sequence[Sample]) -> Iterator[tuple[str, Bools, Bools]]:
    """Yield (name, known bool [n], true bool [n]) for attributes of patient and acquisition in the table.

    Age is cut at its median. A column of words gives one attribute for each of its four most frequent words, or one in
    all where it has two.
    """
    ages = np.array([np.nan if sample.age_years is None else sample.age_years for sample in samples])
    if np.isfinite(ages).any() and np.nanmin(ages) < np.nanmax(ages):
        middle = float(np.nanmedian(ages))
        yield f"age over {middle:g} years", np.isfinite(ages), ages > middle
    for column in ("site", "view", "sex"):
        words = np.array([getattr(sample, column) or "" for sample in samples])
        levels, counts = np.unique(words[words != ""], return_counts=True)
        order = levels[np.argsort(-counts, kind="stable")]
        for level in order[:1] if len(order) == 2 else order[:_MOST_LEVELS] if len(order) > 2 else ():
            yield f"{column} {level}", words != "", words == level
