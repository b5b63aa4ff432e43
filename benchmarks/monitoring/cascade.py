"""The shift identification of Roschewitz et al. (MICCAI 2025, arXiv 2411.07940), written anew from the paper.

Two tests at .05, by Bonferroni: KS on the score, MMD on the embedding. None passes: none. Then the share of pneumonia
is estimated, the reference is drawn anew at that share, and both are tested again: both quiet, prevalence; else,
whether the share moved by more than chance decides between covariate and mixed.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from pneumoscope.bundle.calibration import estimate_prevalence
from pneumoscope.monitoring.kind import COVARIATE, MIXED, NONE, PREVALENCE
from pneumoscope.monitoring.stream import Rows
from pneumoscope.records import Floats

ALPHA = 0.05
PERMUTATIONS = 100


def cascade(usual: Rows, truth: np.ndarray, rows: Rows, rng: np.random.Generator) -> str:
    """Return the kind of shift between two samples of answered images; `truth`: of the first."""
    a, b = (np.isfinite(side.number["logit"]) for side in (usual, rows))
    usual, truth, rows = usual.take(a), truth[a], rows.take(b)
    if not _differ(usual, rows, rng):
        return NONE
    now = estimate_prevalence(rows.number["probability"], 0.5)
    then = float(truth.mean())
    ill = rng.random(len(usual)) < now
    index = np.where(
        ill, rng.choice(np.flatnonzero(truth == 1), len(ill)), rng.choice(np.flatnonzero(truth == 0), len(ill))
    )
    if not _differ(usual.take(index), rows, rng):
        return PREVALENCE
    error = np.sqrt(then * (1 - then) / len(usual) + now * (1 - now) / len(rows))
    return MIXED if abs(now - then) > 1.96 * error else COVARIATE


def _differ(usual: Rows, rows: Rows, rng: np.random.Generator) -> bool:
    score = stats.ks_2samp(usual.number["logit"], rows.number["logit"]).pvalue
    return bool(min(score, _mmd(usual.embedding, rows.embedding, rng)) < ALPHA / 2)


def _mmd(a: Floats, b: Floats, rng: np.random.Generator) -> float:
    """Return the permutation p of the maximum mean discrepancy, Gaussian kernel of the median distance."""
    x = np.concatenate([a, b]).astype(np.float64)
    square = (x**2).sum(axis=1)
    distance = np.maximum(square[:, None] + square[None] - 2 * x @ x.T, 0)
    kernel = np.exp(-distance / np.median(distance))
    np.fill_diagonal(kernel, 0)
    sign = np.where(np.arange(len(x)) < len(a), 1 / len(a), -1 / len(b))
    signs = np.stack([sign, *(rng.permutation(sign) for _ in range(PERMUTATIONS))])
    values = ((signs @ kernel) * signs).sum(axis=1)
    return float((values >= values[0]).mean())
