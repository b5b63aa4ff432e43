"""The command line of a researcher: experiments by name, settings in place, a rehearsal, lists, quiet and JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.command import call, one_line

from pneumoscope.cli.explaining import foretelling, spread
from pneumoscope.config import config_files, load_experiment
from pneumoscope.errors import ConfigError, WeightsError

SMALL = ["--set", "prepare.size=32", "--set", "prepare.canvas=40", "--set", "train.epochs=2", "--set", "train.ema=0"]


def test_an_experiment_of_the_package_is_trained_by_name(chests: Path, tmp_path: Path) -> None:
    done = call("train", "custom-cnn", *SMALL, "--data", chests, "--out", tmp_path / "run", "--json", "--quiet")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary == json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["epochs"] == 2
    assert summary["input_size"] == 32
    assert "validation AUROC" not in done.err


def test_the_counts_of_each_part_are_said_first(chests: Path, tmp_path: Path) -> None:
    done = call("train", "custom-cnn", *SMALL, "--data", chests, "--out", tmp_path / "run", "--seed", 3)
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert [re.split(r"[:\d]", line)[0] for line in lines[:3]] == ["train", "val", "test"]
    assert "NORMAL" in lines[0]
    assert any("chose the epoch" in line for line in lines)
    assert "chose the epoch" not in lines[0]


def test_a_rehearsal_reads_no_image_and_writes_nothing(chests: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    for label in ("NORMAL", "PNEUMONIA"):
        (broken / label).mkdir(parents=True)
        for number in range(30):
            (broken / label / f"p{number}.png").write_bytes(b"no image")
    done = call("train", "custom-cnn", "--dry-run", "--data", broken, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "train:" in done.err
    assert "nothing was trained" in done.err
    assert not (tmp_path / "run").exists()
    faults = {
        "model.network=resnet19": "resnet19",
        "prepare.canvas=64": "must not be smaller",
        "model.weights=absent.pth": "absent.pth",
    }
    for change, said in faults.items():
        strategy = ["--set", "model.strategy=frozen"] if "weights" in change else []
        done = call(
            "train", "custom-cnn", "--dry-run", "--set", change, *strategy, "--data", broken, "--out", tmp_path / "run"
        )
        assert said in one_line(done, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["train.epoch=3"], "unknown key train.epoch, did you mean epochs?"),
        (["trian.epochs=3"], "unknown key trian, did you mean train?"),
        (["train.epochs=many"], "train.epochs = 'many'"),
        (["train.epochs"], "'train.epochs' changes nothing"),
        (["title.name=x"], "title of 'title.name=x' is no table"),
    ],
)
def test_a_wrong_setting_is_named(changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment(config_files()["custom-cnn"], changes)
    assert said in str(error.value)


def test_settings_are_read_as_toml_writes_them() -> None:
    changes = ["train.epochs=3", "train.rate=1e-4", "title=two words", 'model.network="resnet18"', "train.sizes=[128]"]
    experiment = load_experiment(Path("custom-cnn"), changes)
    assert (experiment.train.epochs, experiment.train.rate) == (3, 1e-4)
    assert (experiment.title, experiment.model.network) == ("two words", "resnet18")
    assert experiment.train.sizes == (128,)


def test_a_name_that_is_nearly_one_is_asked_after() -> None:
    with pytest.raises(ConfigError, match=r"did you mean lite0-frozen\?"):
        load_experiment(Path("lite0-frozn"))


def test_the_files_of_a_named_experiment_lie_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = load_experiment(Path("vgg16-frozen"))
    assert named.model.weights == str(tmp_path / "weights" / "vgg16_features_fp16.safetensors")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["configs"], "lite0-frozen"), (["bundles"], "fast"), (["methods"], "shap"), (["networks"], "custom-cnn")],
)
def test_every_list_has_its_names(arguments: list[str], name: str) -> None:
    done = call("list", *arguments)
    assert done.code == 0
    assert name in [line.split()[0] for line in done.out.splitlines()]


def test_networks_of_timm_are_listed_by_pattern() -> None:
    done = call("list", "networks", "resnet1?")
    assert {"resnet18", "resnet14t"} & {line.split()[0] for line in done.out.splitlines()}
    assert call("list", "networks", "nothing-like-it").code == 1


def test_the_version_has_a_short_form() -> None:
    assert call("-V").out == call("--version").out != ""


def test_a_hub_that_does_not_answer_is_an_error_within_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from pneumoscope.networks import weights
    from pneumoscope.networks.network import build_network

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port of discard: nobody listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    network, _ = build_network("resnet18", classes=2)
    with pytest.raises(WeightsError, match="cannot be fetched from the hub"):
        weights.load_weights(network, "resnet18", "hub")
    assert constants.HF_HUB_OFFLINE is False
    assert weights._PATIENCE < 10


# --- explain ----------------------------------------------------------------------------------------------


def test_a_limit_takes_images_from_the_whole_folder() -> None:
    files = [f"{number}.png" for number in range(10)]
    assert spread(files, 3) == ["0.png", "3.png", "6.png"]
    assert spread(files, None) == spread(files, 10) == spread(files, 99) == files


def test_the_time_that_is_left_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    report = foretelling(lambda done, total: None)
    for done in (0, 1, 2, 3):
        report(done, 61)
    said = capsys.readouterr().err
    assert said.count("--limit") == 1
    assert "60 more images take about 10\xa0min" in said


def test_a_reader_who_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-c", "from pneumoscope.cli import main; main()", "list", "networks", "*r*"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()
