"""Figures in plain words, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pneumoscope.report import html

ALPHA = 0.05

STRATEGIES: Mapping[str, str] = {
    "scratch": "trained from scratch, no pretrained weights",
    "frozen": "pretrained features kept fixed, a new head trained on them",
    "finetune": "pretrained network, new head first, then fine-tuned",
}

# name -> (heading, what it says); in the order in which a reader wants them.
METRICS: Mapping[str, tuple[str, str]] = {
    "auroc": ("AUROC", "chance that a pneumonia image gets a higher score than a normal one; 0.5 is guessing"),
    "recall": ("Sensitivity (recall)", "share of pneumonia images that are flagged"),
    "specificity": ("Specificity", "share of normal images that are left alone"),
    "precision": ("Precision (PPV)", "share of alarms that are right, at the prevalence of these images"),
    "npv": ("NPV", "share of all-clears that are right, at the prevalence of these images"),
    "accuracy": ("Accuracy", "share of images called right; depends on the prevalence"),
    "balanced_accuracy": ("Balanced accuracy", "mean of sensitivity and specificity"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "mcc": ("MCC", "Matthews correlation of calls and labels; 0 is chance, 1 is perfect"),
    "auprc": ("AUPRC", "area under the precision-recall curve; guessing reaches the prevalence"),
    "brier": ("Brier score", "mean squared error of the probability; lower is better"),
    "ece": ("Calibration error (ECE)", "mean gap between stated and observed frequency; lower is better"),
}


def of_hundred(estimate: Mapping[str, Any] | None) -> tuple[int, int, str] | None:
    """Say a proportion as (how many, of how many, interval in words), None where it is not available.

    Counts of 1,000 where 100 would round an imperfect figure to perfect. Rounded as in tables, which stand beside it.
    """
    counted = _counted(estimate)
    if counted is None:
        return None
    count, base, ends = counted
    return count, base, "no interval" if ends is None else f"95 % CI {ends[0]:,} to {ends[1]:,}"


def _counted(estimate: Mapping[str, Any] | None) -> tuple[int, int, tuple[int, int] | None] | None:
    """Return a proportion as (how many, of how many, both ends of its interval)."""
    value = None if estimate is None else estimate.get("value")
    if value is None or not math.isfinite(value):
        return None
    base = 1000 if 0 < value < 1 and _of(100, value) in (0, 100) else 100
    low, high = html.bounds(estimate)
    return _of(base, value), base, None if low is None or high is None else (_of(base, low), _of(base, high))


def _of(base: int, share: float) -> int:
    return round(base * round(share, len(str(base)) - 1))


def findings(estimates: Mapping[str, Any], *, flattered: bool = False) -> list[str]:
    """Say what the network finds, misses and over-calls; a missing figure gives no sentence.

    `flattered`: the images chose the threshold, so the interval stands first, as it does where no error was seen.
    """
    sentences = []
    if sick := _counted(estimates.get("recall")):
        flagged, spread, missed = _split(sick, flattered)
        called = f"the network flags {flagged} ({spread}) and misses {missed}"
        sentences.append(f"Of {sick[1]:,} radiographs with pneumonia {called}.")
    if well := _counted(estimates.get("specificity")):
        spared, spread, wrong = _split(well, flattered)
        alarmed = f"it leaves {spared} alone ({spread}) and raises a false alarm on {wrong}"
        sentences.append(f"Of {well[1]:,} normal radiographs {alarmed}.")
    return sentences


def _split(counted: tuple[int, int, tuple[int, int] | None], flattered: bool) -> tuple[str, str, str]:
    """Write how many, how sure that is, and how many are left over."""
    count, base, ends = counted
    if ends is None:
        return f"{count:,}", "no interval", f"{base - count:,}"
    low, high = ends
    if flattered or count in (0, base):
        return f"{low:,} to {high:,}", f"95 % CI; {count:,} among these images", f"{base - high:,} to {base - low:,}"
    return f"{count:,}", f"95 % CI {low:,} to {high:,}", f"{base - count:,}"


def alarms(estimates: Mapping[str, Any], prevalence: float | None) -> list[str]:
    """Say how far an alarm can be trusted here, and where pneumonia is rarer.

    The second sentence applies Bayes' rule to sensitivity and specificity; its range is that of both intervals' ends.
    """
    sentences = []
    right = of_hundred(estimates.get("precision"))
    if right and prevalence is not None:
        n, base, spread = right
        share = html.percent(prevalence, 0)
        sentences.append(f"Among these images, {share} with pneumonia, {n:,} of {base:,} alarms are right ({spread}).")
    recall, specificity = estimates.get("recall") or {}, estimates.get("specificity") or {}
    ends = (*html.bounds(recall), *html.bounds(specificity))
    if prevalence is not None and prevalence > 0.1 and None not in ends and recall.get("value") is not None:
        low, high = (_ppv(ends[i] or 0.0, ends[i + 2] or 0.0, 0.1) for i in (0, 1))
        middle = _ppv(recall["value"], specificity["value"], 0.1)
        sentences.append(
            f"Where only 10 % have pneumonia, the same sensitivity and specificity would make about "
            f"{100 * middle:.0f} of 100 alarms right "
            f"({100 * low:.0f} to {100 * high:.0f} over both intervals)."
        )
    return sentences


def _ppv(sensitivity: float, specificity: float, prevalence: float) -> float:
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return true / (true + false) if true + false > 0 else 0.0


def compared(pair: Mapping[str, Any], comparisons: int) -> list[str]:
    """Say what a paired comparison shows about ranking (AUROC) and about calls (McNemar)."""
    a, b = str(pair["a"]), str(pair["b"])
    sentences = []
    auroc = pair.get("auroc")
    if auroc:
        sentences.append(_difference(a, b, auroc, comparisons))
    mcnemar = pair.get("mcnemar")
    if mcnemar and mcnemar.get("p_holm") is not None:
        only_a, only_b = int(mcnemar["only_a_right"]), int(mcnemar["only_b_right"])
        counts = f"{only_a:,} images only {a} calls right, {only_b:,} only {b}"
        if mcnemar["p_holm"] < ALPHA and only_a != only_b:
            sentences.append(f"{a if only_a > only_b else b} calls more images right ({counts}).")
        else:
            sentences.append(f"No difference in calls was shown ({counts}).")
    return sentences


def _difference(a: str, b: str, test: Mapping[str, Any], comparisons: int) -> str:
    estimate = test.get("difference") or {}
    low, high = html.bounds(estimate)
    value, p = estimate.get("value"), test.get("p_holm")
    if value is None or low is None or high is None:
        return "The difference in AUROC could not be estimated."
    if low <= 0 <= high:
        return "No difference in AUROC was shown; its interval includes 0, which does not prove the two equal."
    if p is None or p >= ALPHA:
        return (
            "The interval of the AUROC difference excludes 0, "
            f"but the difference does not hold after correction for {comparisons:,} comparisons."
        )
    return f"{a if value > 0 else b} has the higher AUROC than {b if value > 0 else a}."


def estimates_within(value: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk nested JSON and yield each `{"value", "ci95"}` with the names that lead to it."""
    if not isinstance(value, Mapping):
        return
    if "value" in value:
        yield name, value
        return
    for key, inner in value.items():
        heading = METRICS[key][0] if key in METRICS else key.replace("_", " ")
        joined = name if key == "metrics" else f"{name} · {heading}" if name else heading
        yield from estimates_within(inner, joined)
