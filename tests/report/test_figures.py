from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from scipy.stats import mannwhitneyu

from pneumoscope.report import figures, html
from pneumoscope.report.figures import Scored


def scored(name: str = "net", n: int = 203, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.6
    score = 1 / (1 + np.exp(-rng.normal(np.where(positive, 1.0, -1.0), 1.0)))
    return Scored(name, positive, score, sensitivity=0.9, specificity=0.75)


def lines(axes: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines]


def test_the_area_under_the_roc_curve_is_the_mann_whitney_statistic() -> None:
    curve = scored()
    _, (x, y), _ = lines(figures.roc([curve.roc()]).axes[0])[:3]
    u = mannwhitneyu(curve.score[curve.positive], curve.score[~curve.positive]).statistic
    assert np.trapezoid(y, x) == pytest.approx(u / curve.positive.sum() / (~curve.positive).sum())


def test_the_operating_point_is_the_one_of_the_file() -> None:
    drawn = lines(figures.roc([scored().roc()]).axes[0])
    assert (drawn[2][0].item(), drawn[2][1].item()) == pytest.approx((0.25, 0.9))
    alone = Scored("net", scored().positive, scored().score)
    assert len(lines(figures.roc([alone.roc()]).axes[0])) == 2


def test_several_curves_have_a_legend_with_literal_names() -> None:
    names = ["plain", "_hidden", "cost $5 $x", "<script>alert(1)</script>"]
    figure = figures.roc([scored(name, seed=i).roc() for i, name in enumerate(names)])
    text = html.svg(figure)
    assert "<script" not in text
    for name in ("plain", "_hidden", "cost $5 $x", "&lt;script&gt;"):
        assert name in text.split("legend_1")[1]


def test_precision_recall_ends_at_the_prevalence() -> None:
    curve = scored()
    level, (recall, precision) = lines(figures.precision_recall([curve]).axes[0])[:2]
    assert level[1][0] == pytest.approx(curve.positive.mean())
    assert precision[np.argmax(recall)] == pytest.approx(curve.positive.mean(), abs=0.01)


def test_a_curve_needs_both_classes() -> None:
    one = Scored("net", np.ones(5, dtype=bool), np.linspace(0, 1, 5))
    assert not one.both_classes
    with pytest.raises(ValueError, match="both classes"):
        one.roc()
    with pytest.raises(ValueError, match="both classes"):
        figures.precision_recall([one])


def test_reliability_is_drawn_as_it_was_written() -> None:
    bins = [
        {"stated": 0.1, "observed": {"value": 0.2, "ci95": [0.05, 0.4]}, "n": 20},
        {"stated": 0.8, "observed": {"value": 0.7, "ci95": [None, None]}, "n": 21},
    ]
    drawn = [(x.tolist(), y.tolist()) for x, y in lines(figures.reliability(bins).axes[0])]
    assert drawn == [([0, 1], [0, 1]), ([0.1, 0.1], [0.05, 0.4]), ([0.1], [0.2]), ([0.8], [0.7])]


def test_the_confusion_matrix_says_counts_and_row_shares() -> None:
    figure = figures.confusion_matrix({"tn": 90, "fp": 10, "fn": 1, "tp": 199})
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["90", "90.0% of row", "10", "10.0% of row", "1", "0.5% of row", "199", "99.5% of row"]
    assert "NORMAL: 90 called normal, 10 called pneumonia" in figure.get_label()
    html.svg(figures.confusion_matrix({"tn": 0, "fp": 0, "fn": 0, "tp": 3}))


def test_histograms_count_every_score_and_mark_the_threshold() -> None:
    groups = {"NORMAL": np.array([0.1, 0.2, 1.0]), "PNEUMONIA": np.array([0.0, 0.9])}
    figure = figures.score_histogram(groups, 0.4)
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
        assert lines(axes)[0][0].tolist() == [0.4, 0.4]
    assert not figures.score_histogram(groups, None).axes[0].lines


def test_forest_leaves_out_what_is_missing() -> None:
    rows = {
        "a": {"auroc": {"value": 0.9, "ci95": [0.8, 0.95]}},
        "b": {"auroc": {"value": 0.7, "ci95": [None, None]}},
        "c": {"auroc": {"value": None}},
        "d": {},
    }
    panel = figures.forest(rows, {"auroc": "AUROC"}).axes[0]
    drawn = [(x.tolist(), y.tolist()) for x, y in lines(panel)]
    assert drawn == [([0.8, 0.95], [0, 0]), ([0.9], [0]), ([0.7], [1])]


def test_a_forest_of_groups_has_one_colour_and_a_line_to_compare_with() -> None:
    rows = {"a": {"auroc": {"value": 0.9, "ci95": [0.8, 0.95]}}, "b": {"auroc": {"value": 0.6, "ci95": [0.5, 0.7]}}}
    line, *drawn = figures.forest(rows, {"auroc": "AUROC"}, 0.5, ("#123456",)).axes[0].lines
    assert list(line.get_xdata()) == [0.5, 0.5]
    assert {one.get_color() for one in drawn} == {"#123456"}


def test_forest_does_not_pass_1() -> None:
    rows = {"a": {"auroc": {"value": 0.99, "ci95": [0.97, 1.0]}}}
    left, right = figures.forest(rows, {"auroc": "AUROC"}).axes[0].get_xlim()
    assert left < 0.97
    assert right == 1


def test_long_names_are_cut_in_the_middle() -> None:
    name = "one-of-the-very-longest-names-of-a-run-that-ends-in-seed-17"
    figure = figures.forest({name: {}, "b": {}}, {"auroc": "AUROC"})
    shown = figure.axes[0].get_yticklabels()[0].get_text()
    assert len(shown) <= figures.LONGEST_NAME
    assert shown.startswith("one-of-")
    assert shown.endswith("seed-17")
    assert name in figure.get_label()


def test_training_epochs_run_on_through_the_phases() -> None:
    history = pd.DataFrame(
        {
            "phase": ["head", "head", "finetune"],
            "epoch": [1, 2, 1],
            "train_loss": [3.0, 2, 1],
            "val_loss": [3.0, 2, 2],
        }
    )
    loss, score = figures.training_curves(history, best_epoch=3).axes
    assert lines(loss)[0][0].tolist() == [1, 2, 3]
    verticals = [x.tolist() for x, _ in lines(loss) if x.tolist() in ([2.5, 2.5], [3, 3])]
    assert verticals == [[2.5, 2.5], [3, 3]]
    assert not [x for x, _ in lines(score) if len(x) == 3]
