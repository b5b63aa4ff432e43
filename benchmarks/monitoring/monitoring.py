"""Does the monitor keep its budget of false alarms, what does it find how soon, and does it name the kind of shift?

    python benchmarks/monitoring/monitoring.py PART --data ../shared/data --cache FOLDER [--size 0.1]

PART: null (windows without any change), years (quiet years), power (windows of 250 with a change), kind (what kind of
shift, against the cascade of Roschewitz et al., MICCAI 2025), labels (delays on errors), sampling (intervals of
chosen labels). `--size`: share of the full number of draws. Images and their facts: `images.py`. Patients are drawn
from one pool with replacement, so that reference and window differ by chance alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cascade import cascade
from numpy.typing import NDArray

from images import conditions
from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.files import out_folder, read_json, write_json
from pneumoscope.monitoring.detector import Budget
from pneumoscope.monitoring.errors import MARGIN, bets
from pneumoscope.monitoring.kind import COVARIATE, MIXED, NONE, PREVALENCE, diagnose
from pneumoscope.monitoring.performance import weighted_share
from pneumoscope.monitoring.permutation import permuted, sums_of
from pneumoscope.monitoring.reference import Reference, fit
from pneumoscope.monitoring.sequential import Sequential
from pneumoscope.monitoring.stream import Rows, as_rows
from pneumoscope.monitoring.streams import values_of
from pneumoscope.monitoring.windows import Windows
from pneumoscope.statistics.proportions import wilson

RESULT = Path(__file__).parent / "results" / "monitoring.json"
YEAR_OF_IMAGES = 14_600
Facts = dict[str, NDArray[np.generic]]


def picked(facts: Facts, index: NDArray[np.int64], patients: NDArray[np.int64], start: str = "2026-01-01") -> Rows:
    """Return rows of a journal: images `index` of a condition, for patients, 36 minutes apart."""
    bundle = load_bundle()
    refused = facts["refused"][index] != ""
    probability = np.where(refused, np.nan, facts["probability"][index].astype(float))
    gate = facts["gate"][index].astype(float)
    return as_rows(
        {
            "probability": probability,
            "logit": np.where(refused, np.nan, facts["logit"][index].astype(float)),
            "threshold": np.full(len(index), bundle.card["operating_points"]["balanced"]["threshold"]),
            "abstained": refused,
            "embedding": facts["embedding"][index],
            "mean": facts["mean"][index],
            "contrast": facts["contrast"][index],
            **{name: gate[:, place] for place, name in enumerate(("exposure", "turned", "unlike"))},
            "patient": np.char.add("p", patients.astype(str)),
            "bundle": np.full(len(index), bundle.sha256),
            "name": np.full(len(index), bundle.name),
            "at": np.datetime64(start, "ms") + np.arange(len(index)) * np.timedelta64(36, "m"),
        }
    )


def single(facts: Facts, n: int, rng: np.random.Generator, start: int = 0) -> Rows:
    """Return n images of n patients, drawn with replacement."""
    return picked(facts, rng.integers(0, len(facts["truth"]), n), start + np.arange(n))


def reference_of(facts: Facts, n: int, rng: np.random.Generator, *, labelled: bool = True) -> Reference:
    """Return a reference of n images of n patients."""
    index = rng.integers(0, len(facts["truth"]), n)
    truth = facts["truth"][index].astype(np.int8) if labelled else None
    return fit(picked(facts, index, np.arange(n)), truth=truth, facts={"source": "drawn"}, check_drift=False)


def share(hits: int, of: int) -> dict[str, Any]:
    """Return a share with its 95 % interval (Wilson)."""
    low, high = wilson(hits / of, of)
    return {"hits": hits, "of": of, "share": hits / of, "ci95": [low, high]}


# --- null windows, quiet years ----------------------------------------------------------------------------


def clustered(
    values: NDArray[np.float64], patients: int, each: int, correlation: float, rng: np.random.Generator
) -> Any:
    """Return values [patients * each, m] and codes: rows of one patient correlate, each column keeps its distribution.

    Each number of an image is the patient's own with the chance that gives the correlation, else another patient's.
    """
    own = np.repeat(values[rng.integers(0, len(values), patients)], each, axis=0)
    other = values[rng.integers(0, len(values), patients * each)]
    keep = rng.random(patients * each) < np.sqrt(correlation)  # both of two images: with the chance `correlation`
    return np.where(keep[:, None], own, other), np.repeat(np.arange(patients), each)


def null(pool: Facts, size: float) -> dict[str, Any]:
    """Count windows of 250 that alarm though nothing changed, by images a patient and size of the reference."""
    budget, found = Budget(), {}
    windows, of_one = round(2_000 * size), 20
    for each in (1, 3):
        for images in (300, 800, 3_000):
            rng = np.random.default_rng([1, each, images])
            base = reference_of(pool, 2_000, rng)
            margins, hits = np.array([column.margin for column in base.columns]), 0
            raw, without = 0, np.zeros_like(margins)
            for number in range(windows):
                if number % of_one == 0:
                    usual = sums_of(*clustered(base.values, images // each, each, 0.8, rng))
                window = sums_of(*clustered(base.values, 250 // each, each, 0.8, rng))
                hits += permuted(usual, window, margins, budget.alpha(0), rng).p <= budget.alpha(0)
                raw += permuted(usual, window, without, 0.01, rng).p <= 0.01
            found[f"{each} a patient, reference {images}"] = {
                "alarms": share(hits, windows), "p<=.01 without margins": share(raw, windows),
            }  # fmt: skip
    return found


def years(pool: Facts, size: float) -> dict[str, Any]:
    """Count false alarms in quiet years of 40 images a day, by the windows and the bets as they run."""
    rows_out: dict[str, Any] = {}
    for images in (300, 800, 3_000):
        counts = {"windows": [], "sequential": []}
        for year in range(max(2, round(40 * size))):
            rng = np.random.default_rng([2, images, year])
            usual = reference_of(pool, images, rng)
            budget = Budget(images_a_year=YEAR_OF_IMAGES, seed=year)
            stream = single(pool, YEAR_OF_IMAGES, rng, 10**6)
            for make in (Windows, Sequential):
                counts[make.name].append(len(make(usual, budget).step(stream)))
        every = np.array(counts["windows"]) + np.array(counts["sequential"])
        rows_out[f"reference {images}"] = {
            "years": len(every),
            "alarms_a_year": float(every.mean()),
            "upper95": float(every.mean() + 1.645 * every.std(ddof=1) / np.sqrt(len(every))) if every.any()
            else float(3 / len(every)),
            **{name: float(np.mean(numbers)) for name, numbers in counts.items()},
        }  # fmt: skip
    return rows_out


# --- power ------------------------------------------------------------------------------------------------


def power(all_: dict[str, Facts], size: float) -> dict[str, Any]:
    """Return the share of windows of 250 that alarm where some images are changed, and images until the bets do."""
    changes = {
        "inverted 5 %": ("inverted", 0.05), "turned 5 %": ("turned", 0.05), "adults 25 %": ("adults", 0.25),
        "adults 10 %": ("adults", 0.10), "gain +20 %": ("gain", 1.0), "contrast -20 %": ("contrast", 1.0),
        "noise .04": ("noise", 1.0), "gain +20 %, 25 % of images": ("gain", 0.25),
    }  # fmt: skip
    found, draws = {}, max(10, round(200 * size))
    for images in (300, 800):
        for name, (condition, part) in changes.items():
            rng = np.random.default_rng([3, images])
            hits, delays = 0, []
            for draw in range(draws):
                if draw % 10 == 0:
                    usual = reference_of(all_["clean"], images, rng)
                    margins = np.array([column.margin for column in usual.columns])
                    sums, budget = usual.sums, Budget(images_a_year=YEAR_OF_IMAGES)
                rows = mixed(all_, condition, part, 250, rng)
                test = permuted(
                    sums, sums_of(values_of(rows, usual.columns), rows.patients), margins, budget.alpha(0), rng
                )
                hits += test.p <= budget.alpha(0)
                if draw % 5 == 0:
                    first = Sequential(usual, budget).step(mixed(all_, condition, part, 2_000, rng))
                    delays.append(first[0].row if first else np.inf)
            found[f"{name}, reference {images}"] = {
                "windows": share(hits, draws), "images_until_bets": float(np.median(delays)),
            }  # fmt: skip
    return found


def mixed(all_: dict[str, Facts], condition: str, part: float, n: int, rng: np.random.Generator) -> Rows:
    """Return n images of n patients, each changed with a chance."""
    changed = rng.random(n) < part
    both = {
        name: np.concatenate([all_["clean"][name], all_[condition][name]])
        for name in all_["clean"]
    }  # fmt: skip
    clean = len(all_["clean"]["truth"])
    index = np.where(changed, clean + rng.integers(0, len(all_[condition]["truth"]), n), rng.integers(0, clean, n))
    return picked(both, index, 10**6 + np.arange(n))


# --- kind -------------------------------------------------------------------------------------------------


def kinds(all_: dict[str, Facts], size: float, n: int = 500) -> dict[str, Any]:
    """Return how often the kind of shift is right, of the monitor and of the cascade, on the same draws."""
    usual_share = float(all_["clean"]["truth"].mean())
    cases = {
        "none": ("clean", usual_share, NONE), "prevalence -19": ("clean", usual_share - 0.19, PREVALENCE),
        "prevalence -10": ("clean", usual_share - 0.10, PREVALENCE), "gain": ("gain", usual_share, COVARIATE),
        "noise": ("noise", usual_share, COVARIATE), "adults": ("adults", usual_share, COVARIATE),
        "gain, prevalence -19": ("gain", usual_share - 0.19, MIXED),
        "noise, prevalence -19": ("noise", usual_share - 0.19, MIXED),
    }  # fmt: skip
    found, draws = {}, max(5, round(200 * size))
    for name, (condition, prevalence, right) in cases.items():
        rng = np.random.default_rng([4, len(name)])
        ours: dict[str, int] = {}
        theirs: dict[str, int] = {}
        for draw in range(draws):
            usual_index = rng.integers(0, len(all_["clean"]["truth"]), 500)
            usual_rows = picked(all_["clean"], usual_index, np.arange(500))
            usual_truth = all_["clean"]["truth"][usual_index].astype(np.int8)
            usual = fit(usual_rows, truth=usual_truth, facts={"source": "drawn"}, check_drift=False)
            index = drawn(all_[condition]["truth"].astype(bool), prevalence, n, rng)
            rows = picked(all_[condition], index, 10**6 + np.arange(n))
            kind = diagnose(usual, rows, seed=draw).kind
            ours[kind] = ours.get(kind, 0) + 1
            if draw % 4 == 0:
                other = cascade(usual_rows, usual_truth, rows, rng)
                theirs[other] = theirs.get(other, 0) + 1
        found[name] = {"right": right, "ours": ours, "share": ours.get(right, 0) / draws, "cascade": theirs,
                       "cascade_share": theirs.get(right, 0) / max(1, sum(theirs.values()))}  # fmt: skip
    return found


def drawn(truth: NDArray[np.bool_], prevalence: float | None, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return n images, with replacement, at a share of pneumonia; None: as they are."""
    if prevalence is None:
        return rng.integers(0, len(truth), n)
    ill = rng.random(n) < prevalence
    positive, negative = np.flatnonzero(truth), np.flatnonzero(~truth)
    return np.where(ill, rng.choice(positive, n), rng.choice(negative, n))


# --- labels -----------------------------------------------------------------------------------------------


def labels(size: float) -> dict[str, Any]:
    """Return labels until an alarm where labels are turned round, and how often there is one in 10,000 where not.

    `known`: the base error is the bound, as in tables of others; `estimated`: the bound is that of 786 images.
    """
    found: dict[str, Any] = {}
    draws, threshold = max(50, round(2_000 * size)), 10_000.0
    for base in (0.03, 0.05):
        for baseline in ("known", "estimated"):
            rng = np.random.default_rng([5, round(1000 * base), len(baseline)])
            counted = rng.binomial(786, base, draws) / 786
            high = base if baseline == "known" else np.array([wilson(share, 786)[1] for share in counted])
            row: dict[str, Any] = {}
            for flips in (0.2, 0.1, 0.05, 0.0):
                wrong = base * (1 - flips) + (1 - base) * flips
                times = run_lengths(wrong, np.broadcast_to(high + MARGIN, draws), threshold, 10_000, rng)
                if flips:
                    late = float(np.quantile(times, 0.9, method="higher"))
                    row[f"flips {flips:g}"] = {"median": float(np.median(times)), "p90": late}
            row["alarm within 10,000 labels, nothing turned"] = share(int(np.isfinite(times).sum()), draws)
            found[f"base error {base:g}, {baseline}, margin 1 point, threshold 10,000"] = row
    return found


def run_lengths(
    wrong: float, bound: NDArray[np.float64], threshold: float, most: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return labels until the first alarm of each of some runs, infinite beyond `most`."""
    capital, times = np.zeros((bound.size, 12)), np.full(bound.size, np.inf)
    for label in range(1, most + 1):
        capital = (capital + 1 / 12) * bets(rng.random(bound.size) < wrong, bound)
        passed = np.isinf(times) & (capital.sum(axis=1) >= threshold)
        times[passed] = label
        if np.isfinite(times).all():
            break
    return times


def sampling(size: float) -> dict[str, Any]:
    """Return how often the interval of sensitivity covers where the call chooses labels: all flagged, 5 % of others.

    A year of 14,600 images of 10,000 patients, 30 % ill, sensitivity .9; of those asked 30 % never come.
    """
    covered, naive = 0, 0
    draws, true = max(50, round(1_000 * size)), 0.9
    values = []
    for draw in range(draws):
        rng = np.random.default_rng([6, draw])
        n = YEAR_OF_IMAGES
        patient = rng.integers(0, 10_000, n)
        ill = (rng.random(10_000) < 0.3)[patient]
        called = rng.random(n) < np.where(ill, true, 0.08)
        chance = np.where(called, 1.0, 0.05)
        asked = (rng.random(n) < chance) & (rng.random(n) < 0.7)
        mask = asked & ill
        estimate = weighted_share(called[mask], 1 / chance[mask], patient[mask])
        covered += estimate.low <= true <= estimate.high
        plain = weighted_share(called[mask], np.ones(mask.sum()), patient[mask])
        naive += plain.low <= true <= plain.high
        values.append((estimate.value, plain.value))
    return {"coverage": share(covered, draws), "naive coverage": share(naive, draws),
            "mean": float(np.mean(values, axis=0)[0]), "naive mean": float(np.mean(values, axis=0)[1]),
            "true": true}  # fmt: skip


PARTS: dict[str, Callable[[dict[str, Facts], float], dict[str, Any]]] = {
    "null": lambda all_, size: null(all_["clean"], size),
    "years": lambda all_, size: years(all_["clean"], size),
    "power": power,
    "kind": kinds,
    "labels": lambda all_, size: labels(size),
    "sampling": lambda all_, size: sampling(size),
}


def main() -> None:
    """Run one part, print it, and put it beside the others in the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2_400)
    parser.add_argument("--size", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    needed = arguments.part not in ("labels", "sampling")
    all_ = conditions(arguments.data, arguments.cache, arguments.images) if needed else {}
    started = time.process_time()
    found = PARTS[arguments.part](all_, arguments.size)
    result = read_json(arguments.out) if arguments.out.is_file() else {}
    result[arguments.part] = {"size": arguments.size, "cpu_seconds": round(time.process_time() - started), **found}
    out_folder(arguments.out.parent)
    write_json(arguments.out, result)
    for name, value in found.items():
        print(name, value)


if __name__ == "__main__":
    main()
