"""Shares of images with Wilson's interval, where patients are the unit of chance."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from pneumoscope.records import Bools, Estimate, Ints
from pneumoscope.statistics.cohort import ONE_CLASS

Z95 = float(ndtri(0.975))


def proportion(success: Bools, codes: Ints) -> Estimate:
    """Return a proportion of images with the Wilson interval, its sample size divided by the design effect.

    `success`: bool [n]. `codes`: int [n], the patient of each image. The design effect is that of the ratio
    estimator over patients (Rao and Scott, Biometrics 1992), never under 1. Where the proportion is 0 or 1
    it cannot be measured: patients, not images, are counted then, the worst case.
    """
    n = int(success.size)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, ONE_CLASS)
    share = float(success.mean())
    _, patient = np.unique(codes, return_inverse=True)
    sizes = np.bincount(patient)
    count = sizes.size
    effective = float(count)
    if 0 < share < 1 and count > 1:
        residual = np.bincount(patient, success) - share * sizes
        variance = count / (count - 1) * float(residual @ residual) / n**2
        effective = n / max(1.0, variance * n / (share * (1 - share)))
    low, high = wilson(share, effective)
    return Estimate(share, low, high, "Wilson, design effect by patient" if count < n else "Wilson")


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion among `n` > 0 (Wilson, J Am Stat Assoc 1927)."""
    centre = share + Z95**2 / (2 * n)
    half = Z95 * float(np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
