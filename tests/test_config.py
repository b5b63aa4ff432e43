"""Experiment files: what is written is read back, and what is wrong is told by its key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope.config import (
    AugmentConfig,
    DataConfig,
    Experiment,
    ModelConfig,
    PrepareConfig,
    TrainConfig,
    load_experiment,
    save_experiment,
)
from pneumoscope.errors import ConfigError, StorageError

SECTIONS = {
    "data": DataConfig,
    "prepare": PrepareConfig,
    "augment": AugmentConfig,
    "model": ModelConfig,
    "train": TrainConfig,
}
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]


def load(folder: Path, text: str) -> Experiment:
    (folder / "x.toml").write_text(text, encoding="utf-8")
    return load_experiment(folder / "x.toml")


# --- round trip -------------------------------------------------------------------------------------------

share = st.floats(0, 0.99)
unit = st.floats(0.01, 1)
positive = st.floats(1e-9, 1e9)
triple = st.none() | st.tuples(*[st.floats(-10, 10)] * 3)


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    size = draw(st.integers(16, 1024))
    folds = draw(st.none() | st.integers(2, 50))
    strategy = draw(st.sampled_from(["scratch", "frozen", "finetune"]))
    weights = st.sampled_from(["offline", "hub", "/weights/a.safetensors"])
    return Experiment(
        title=draw(st.text()),
        seed=draw(st.integers(0, 2**31)),
        data=DataConfig(
            split=draw(st.sampled_from(["grouped", "source"])),
            val_fraction=draw(st.floats(0.01, 0.4)),
            test_fraction=draw(st.floats(0, 0.5)),
            folds=folds,
            fold=draw(st.integers(0, folds - 1)) if folds else 0,
        ),
        prepare=PrepareConfig(
            size=size,
            canvas=draw(st.none() | st.integers(size, 2048)),
            aspect=draw(st.sampled_from(["squash", "pad"])),
            mean=draw(triple),
            std=draw(triple),
        ),
        augment=AugmentConfig(
            rotation=draw(st.floats(0, 180)),
            crop_scale=draw(st.tuples(unit, unit)),
            crop_ratio=draw(st.tuples(positive, positive)),
            brightness=draw(st.floats(0, 1)),
            noise=draw(st.floats(0, 0.5)),
        ),
        model=ModelConfig(
            network=draw(st.text(min_size=1)),
            weights="none" if strategy == "scratch" else draw(weights),
            strategy=strategy,
            unfreeze=draw(st.integers(0, 9)),
            freeze_batchnorm=draw(st.booleans()),
            dropout=draw(share),
        ),
        train=TrainConfig(
            classes=draw(st.sampled_from([2, 3])),
            rate=draw(positive),
            precision=draw(st.sampled_from(["32-true", "bf16-mixed", "16-mixed"])),
            ema=draw(share),
        ),
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(experiments())
def test_what_is_written_is_read_back(tmp_path: Path, experiment: Experiment) -> None:
    save_experiment(experiment, tmp_path / "x.toml")
    assert load_experiment(tmp_path / "x.toml") == experiment


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Experiment()


def test_every_value_is_spelled_out(tmp_path: Path) -> None:
    save_experiment(Experiment(), tmp_path / "x.toml")
    text = (tmp_path / "x.toml").read_text(encoding="utf-8")
    unset = {("data", "seed"), ("data", "folds"), ("prepare", "canvas"), ("prepare", "mean"), ("prepare", "std")}
    for section, key in set(KEYS) - unset:
        assert f"\n{key} = " in text.split(f"[{section}]")[1].split("\n[")[0], (section, key)


def test_the_shipped_experiments_are_valid() -> None:
    shipped = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert shipped
    for path in shipped:
        assert load_experiment(path).title, path


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_named(tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"x\.toml: unknown key {section}\.typo; see docs/reference/experiment\.md"):
        load(tmp_path, f"[{section}]\ntypo = 1\n")


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key trian"):
        load(tmp_path, "[trian]\nepochs = 1\n")


@pytest.mark.parametrize(("section", "key"), KEYS)
@pytest.mark.parametrize("value", ["{ a = 1 }", "1979-05-27"])
def test_a_wrong_type_is_named(tmp_path: Path, section: str, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{key}\b.* = "):
        load(tmp_path, f"[{section}]\n{key} = {value}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[train]\nepochs = "3"', "train.epochs = '3': Input should be a valid integer"),
        ("[train]\nepochs = 3.0", "train.epochs = 3.0: Input should be a valid integer"),
        ("[train]\nepochs = true", "train.epochs = True: Input should be a valid integer"),
        ("[train]\nepochs = 0", "train.epochs = 0: Input should be greater than or equal to 1"),
        ('[train]\nrate = "fast"', "train.rate = 'fast': Input should be a valid number"),
        ("[train]\nrate = 0.0", "train.rate = 0.0: Input should be greater than 0"),
        ("[train]\nrate = inf", "train.rate = inf: Input should be a finite number"),
        ("[train]\nrate = nan", "train.rate = nan: Input should be a finite number"),
        ("[train]\nclasses = 4", "train.classes = 4: Input should be 2 or 3"),
        ("[model]\nfreeze_batchnorm = 1", "model.freeze_batchnorm = 1: Input should be a valid boolean"),
        ("[augment]\ncrop_scale = [0.1]", "augment.crop_scale.1"),
        ("[augment]\ncrop_scale = [0.1, 2.0]", "augment.crop_scale.1 = 2.0: Input should be less than or equal to 1"),
        ("[data]\nfolds = 5\nfold = 5", "fold 5 does not exist, folds are 0 to 4"),
        ("[data]\nval_fraction = 0.5\ntest_fraction = 0.5", "leave nothing to train on"),
        ("[prepare]\nsize = 224\ncanvas = 200", "canvas (200) must not be smaller than size (224)"),
        ('[model]\nstrategy = "frozen"', 'strategy = "frozen" needs weights, not "none"'),
        ("seed = -1", "seed = -1: Input should be greater than or equal to 0"),
    ],
)
def test_what_is_expected_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value)
    assert caught.value.path == str(tmp_path / "x.toml")
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key data\.typo.*train\.epochs"):
        load(tmp_path, '[data]\ntypo = 1\n[train]\nepochs = "x"\n')


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    rate = load(tmp_path, "[train]\nrate = 1\n").train.rate
    assert (rate, type(rate)) == (1.0, float)


def test_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.toml: is not valid TOML .*line 2.*; mend the line"):
        load(tmp_path, "seed = 1\nseed = \n")
    (tmp_path / "latin.toml").write_bytes('title = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_experiment(tmp_path / "latin.toml")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"absent\.toml: no such file or folder; check the spelling"):
        load_experiment(tmp_path / "absent.toml")
    with pytest.raises(StorageError, match="is a folder where a file was expected"):
        load_experiment(tmp_path)


# --- meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_weights", "kept"),
    [("offline", True), ("hub", True), ("/a/b.pth", True), ("b.pth", False), ("../b.pth", False)],
)
def test_weights_are_relative_to_the_file(tmp_path: Path, given_weights: str, kept: bool) -> None:
    (tmp_path / "configs").mkdir()
    model = load(tmp_path / "configs", f'[model]\nstrategy = "frozen"\nweights = "{given_weights}"\n').model
    expected = given_weights if kept else str((tmp_path / "configs" / given_weights).resolve())
    assert model.weights == expected


def test_teachers_are_relative_to_the_file_and_need_a_network_that_learns(tmp_path: Path) -> None:
    train = load(tmp_path, '[train]\nteachers = ["a.csv", "/b/c.csv"]\n').train
    assert train.teachers == (str((tmp_path / "a.csv").resolve()), "/b/c.csv")
    with pytest.raises(ConfigError, match=r"train\.teachers"):
        load(tmp_path, '[model]\nstrategy = "frozen"\nweights = "offline"\n[train]\nteachers = ["a.csv"]\n')


@pytest.mark.parametrize("key", AugmentConfig.model_fields)
def test_off_means_that_nothing_changes(key: str) -> None:
    assert AugmentConfig().off
    value: Any = (0.5, 0.9) if key.startswith("crop") else 0.1
    assert not AugmentConfig(**{key: value}).off


def test_the_canvas_defaults_to_the_size() -> None:
    assert PrepareConfig(size=160).canvas_size == 160
    assert PrepareConfig(size=160, canvas=224).canvas_size == 224


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Experiment().train.epochs = 3
    assert math.isclose(Experiment().data.val_fraction, 0.1)
