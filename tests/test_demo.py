"""The demo, with networks of a second instead of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pneumoscope import demo
from pneumoscope.config import Experiment
from pneumoscope.errors import StorageError
from pneumoscope.networks.network import build_network
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.training.experiment import Console


def test_its_experiments_are_three_strategies_on_the_same_split() -> None:
    found = demo.experiments(5)
    assert [experiment.model.strategy for experiment in found.values()] == ["scratch", "frozen", "finetune"]
    assert {experiment.seed for experiment in found.values()} == {5}
    assert len({experiment.data.model_dump_json() for experiment in found.values()}) == 1, "one division for all"
    assert all(experiment.model.weights in ("none", "offline") for experiment in found.values()), "no internet needed"
    for name in {experiment.model.network for experiment in found.values()}:
        build_network(name, classes=2)


def test_from_nothing_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_experiment: Callable[..., Experiment]
) -> None:
    small = {name: small_experiment(train={"epochs": 1, "rate": rate}) for name, rate in (("one", 1e-3), ("two", 3e-3))}
    monkeypatch.setattr(demo, "experiments", lambda seed: small)
    draw = demo.write_dataset
    monkeypatch.setattr(demo, "write_dataset", lambda out, **options: draw(out, **{**options, "size": 64}))
    said: list[str] = []
    page = demo.run_demo(tmp_path / "demo", patients=40, seed=0, console=Console(say=said.append))
    text = page.read_text()
    assert page.is_relative_to(tmp_path / "demo")
    assert RESEARCH_ONLY in text
    assert "one" in text
    assert "two" in text
    assert any("40" in line for line in said)
    out = tmp_path / "demo"
    comparison = json.loads((out / "comparison" / "comparison.json").read_text())
    assert [entry["name"] for entry in comparison["evaluations"]] == ["one", "two"]
    split = pd.read_csv(out / "one" / "split.csv")
    tested = pd.read_csv(out / "one" / "evaluation" / "predictions.csv")
    assert len(tested) == (split["split"] == "test").sum()
    trained_on = set(split[split["split"] != "test"]["patient_id"])
    assert not trained_on & set(tested["patient_id"])
    assert (out / "one" / "evaluation" / "explanations" / "index.json").is_file()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        demo.run_demo(tmp_path, patients=40, seed=0, console=Console())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
