"""Drawn studies of three sites, calibrated, and with faults planted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import special

from pneumoscope.validation.study import AGE, SITE, Study


def clean(seed: int, patients: int, prevalence: Mapping[str, float] | None = None) -> Study:
    """Draw a study of three sites; p is the true chance at a prevalence of one half, which sites may depart from."""
    rng = np.random.default_rng(seed)
    sites = rng.choice(["A", "B", "C"], patients)
    share = np.array([(prevalence or {}).get(site, 0.5) for site in sites])
    ill = rng.random(patients) < share
    who = np.repeat(np.arange(patients), 2)
    y = ill[who]
    x = rng.normal(size=patients)[who] * np.sqrt(0.5) + rng.normal(size=who.size) * np.sqrt(0.5) + 2.2 * (y - 0.5)
    columns = {
        SITE: sites[who],
        "sex": rng.choice(["F", "M"], patients)[who],
        AGE: rng.choice(["18 to 39", "40 to 64"], patients)[who],
    }
    return Study(y, special.expit(2.2 * x), np.char.add("p", who.astype(str)), 0.5, columns, dict(columns))


def degraded(seed: int, patients: int) -> Study:
    """Draw a study in which the images of women are noisy."""
    study = clean(seed, patients)
    noise = np.random.default_rng(seed).normal(size=study.n) * 4
    worse = special.expit(special.logit(study.p) * 0.4 + noise)
    return replace(study, p=np.where(study.columns["sex"] == "F", worse, study.p))


def shifted(seed: int, patients: int) -> Study:
    """Draw a study in which 85 % of site C's patients are ill."""
    return clean(seed, patients, {"C": 0.85})


def marked(seed: int, patients: int) -> Study:
    """Draw a study in which site B marks the ill, and the network reads the marker."""
    study = clean(seed, patients)
    marker = (study.columns[SITE] == "B") & study.y
    reads_it = np.where(marker, special.expit(special.logit(study.p) + 5), study.p)
    return replace(study, p=reads_it, raw={**study.raw, "marker": np.where(marker, "R", "none")})
