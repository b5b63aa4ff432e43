from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.report import html, wording


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "ci95": [low, high], "method": "Wilson"}


def pair(value: float, low: float, high: float, p: float | None, **more: Any) -> dict[str, Any]:
    auroc = {"difference": estimate(value, low, high), "p": p, "p_holm": p}
    return {"a": "A", "b": "B", "auroc": auroc, **more}


def test_of_hundred_rounds_as_the_tables_do() -> None:
    assert wording.of_hundred(estimate(0.953, 0.9412, 0.9638)) == (95, 100, "95 % CI 94 to 96")
    assert wording.of_hundred(estimate(0.95, 0.94, 0.96)) == (95, 100, "95 % CI 94 to 96")


def test_of_hundred_does_not_make_an_imperfect_figure_perfect() -> None:
    assert wording.of_hundred(estimate(0.997, 0.991, 0.999)) == (997, 1000, "95 % CI 991 to 999")
    assert wording.of_hundred(estimate(1.0, 0.98, 1.0)) == (100, 100, "95 % CI 98 to 100")


@pytest.mark.parametrize("nothing", [None, estimate(None), estimate(float("nan"))])
def test_of_hundred_of_nothing(nothing: dict[str, Any] | None) -> None:
    assert wording.of_hundred(nothing) is None
    assert wording.findings({"recall": nothing}) == []


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_of_hundred_says_what_a_table_says(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    said = wording.of_hundred(estimate(value, low, high))
    assert said is not None
    n, base, text = said
    ends = [int(word.replace(",", "")) for word in text.removeprefix("95 % CI ").split(" to ")]
    digits = 2 if base == 100 else 3
    assert f"{n / base:.{digits}f}" == html.number(value, digits)
    dash = html.interval(estimate(value, low, high), digits)
    assert f"{ends[0] / base:.{digits}f}–{ends[1] / base:.{digits}f}" == dash
    assert n < base or value == 1 or base == 1000


def test_findings_count_found_and_missed() -> None:
    said = wording.findings({"recall": estimate(0.97, 0.95, 0.98), "specificity": estimate(0.8, 0.7, 0.9)})
    assert said == [
        "Of 100 radiographs with pneumonia the network flags 97 (95 % CI 95 to 98) and misses 3.",
        "Of 100 normal radiographs it leaves 80 alone (95 % CI 70 to 90) and raises a false alarm on 20.",
    ]


def test_a_figure_without_error_is_told_by_its_interval() -> None:
    perfect = {"specificity": estimate(1.0, 0.964, 1.0)}
    said = "Of 100 normal radiographs it leaves 96 to 100 alone (95 % CI; 100 among these images)"
    assert wording.findings(perfect) == [f"{said} and raises a false alarm on 0 to 4."]


def test_where_images_chose_the_threshold_the_interval_stands_first() -> None:
    (said,) = wording.findings({"recall": estimate(0.97, 0.95, 0.98)}, flattered=True)
    assert "flags 95 to 98 (95 % CI; 97 among these images) and misses 2 to 5." in said


def test_alarms_at_a_lower_prevalence_follow_bayes() -> None:
    figures = {
        "precision": estimate(0.9, 0.85, 0.94),
        "recall": estimate(0.9, 0.8, 0.95),
        "specificity": estimate(0.8, 0.7, 0.9),
    }
    here, rarer = wording.alarms(figures, 0.7)
    assert "90 of 100 alarms are right (95 % CI 85 to 94)" in here
    # Of 1,000 people 100 are ill: 90 found; of 900 well 180 false alarms: 90 / 270 = 33 %.
    # Lower ends: 80 / (80 + 270) = 23 %; upper ends: 95 / (95 + 90) = 51 %.
    assert "about 33 of 100 alarms right (23 to 51 over both intervals)" in rarer
    assert len(wording.alarms(figures, 0.08)) == 1


def test_a_difference_needs_its_interval_and_its_adjusted_p() -> None:
    assert wording.compared(pair(0.02, 0.01, 0.03, 0.001), 3) == ["A has the higher AUROC than B."]
    assert wording.compared(pair(-0.02, -0.03, -0.01, 0.001), 3) == ["B has the higher AUROC than A."]
    assert "No difference in AUROC was shown" in wording.compared(pair(0.02, -0.01, 0.05, 0.01), 3)[0]
    assert "does not hold after correction for 3" in wording.compared(pair(0.02, 0.01, 0.03, 0.06), 3)[0]
    assert "does not hold" in wording.compared(pair(0.02, 0.01, 0.03, None), 3)[0]


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_no_winner_where_the_interval_includes_0(value: float, down: float, up: float, p: float) -> None:
    low, high = min(value - down, 0.0), max(value + up, 0.0)
    said = " ".join(wording.compared(pair(value, low, high, p), 2))
    assert "higher" not in said
    assert "better" not in said
    assert "includes 0" in said


def test_mcnemar_names_the_one_that_calls_more_images_right() -> None:
    counts = {"only_a_right": 4, "only_b_right": 20}
    shown = wording.compared({"a": "A", "b": "B", "mcnemar": {"p_holm": 0.01, **counts}}, 1)
    assert shown == ["B calls more images right (4 images only A calls right, 20 only B)."]
    hidden = wording.compared({"a": "A", "b": "B", "mcnemar": {"p_holm": 0.2, **counts}}, 1)
    assert hidden[0].startswith("No difference in calls was shown")


def test_nested_figures_are_found_with_their_names() -> None:
    nested = {"n": 5, "metrics": {"auroc": estimate(0.8)}, "viral": {"recall": estimate(0.9)}}
    assert [name for name, _ in wording.estimates_within(nested)] == ["AUROC", "viral · Sensitivity (recall)"]
    assert list(wording.estimates_within(None)) == []
