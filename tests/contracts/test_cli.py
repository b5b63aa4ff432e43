"""The command line as its users and their scripts know it: output, files, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.support.command import Done, call, one_line

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.config import load_experiment
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import default_key
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.version import __version__

EXPERIMENT = """
title = "Small"

[data]
val_fraction = 0.2

[prepare]
size = 32
canvas = 40

[train]
epochs = 2
batch_size = 16
classes = 3
"""
KEYS = {
    "path", "probability", "label", "threshold", "subtype", "abstained", "reason", "quality", "bundle",
    "milliseconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


def images(chests: Path, count: int) -> list[Path]:
    return sorted((chests / "train" / "PNEUMONIA").glob("*.png"))[:count]


# --- without torch ----------------------------------------------------------------------------------------

HELP = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from pneumoscope.cli.root import app

def leaves(command, path):
    for name, child in getattr(command, "commands", {}).items():
        yield [*path, name]
        yield from leaves(child, [*path, name])

asked = [["--version"], ["--help"], []] + [[*path, "--help"] for path in leaves(get_command(app), [])]
for arguments in asked:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (0 if arguments else 2), (arguments, result.output)
    assert result.output.strip(), arguments
heavy = {"torch", "lightning", "timm", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "PIL", "pydicom"}
print(len(asked), sorted(heavy & set(sys.modules)))
"""


def test_version_and_every_help_page_import_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    count, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert int(count) >= 3 + 10


def test_the_version() -> None:
    assert call("--version") == Done(0, f"pneumoscope {__version__}\n", "")


def test_the_help_says_what_it_is_not_for() -> None:
    assert "research use only" in call("--help").out


# --- usage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["trian"], ["predict"], ["train", "a.toml"], ["predict", "a.png", "--nonsense"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err


def test_configuration_errors_are_2_and_one_line(chests: Path, tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(EXPERIMENT)
    assert "no such file" in one_line(call("train", config, "--data", tmp_path / "x", "--out", tmp_path / "r"), 2)
    logger = call("train", config, "--data", chests, "--out", tmp_path / "r", "--log", "paper")
    assert "use tensorboard or mlflow" in one_line(logger, 2)
    assert not (tmp_path / "r").exists()


# --- predict ----------------------------------------------------------------------------------------------


def test_predict_prints_one_line_per_image_in_order(chests: Path, bundle: Path) -> None:
    paths = images(chests, 6)[::-1]
    done = call("predict", *paths, "--bundle", bundle, "--batch-size", 2)
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in paths]
    for line in lines:
        assert set(line) == KEYS
        assert line["label"] == ("PNEUMONIA" if line["probability"] >= line["threshold"] else "NORMAL")


def test_a_bad_file_is_3_and_the_others_still_run(chests: Path, bundle: Path, tmp_path: Path) -> None:
    good = images(chests, 2)
    (tmp_path / "bad.png").write_text("no image")
    Image.fromarray(np.full((64, 64), 50, np.uint8)).save(tmp_path / "flat.png")
    file = tmp_path / "out" / "lines.jsonl"
    paths = [good[0], tmp_path / "bad.png", tmp_path / "flat.png", good[1]]
    done = call("predict", *paths, "--bundle", bundle, "--jsonl", file)
    assert (done.code, done.out) == (3, "")
    assert "4 images: 2 answered, 1 not analysed, 1 not read; the lines say why" in done.err
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in paths]
    assert set(lines[1]) == KEYS | {"error"}
    assert [line["abstained"] for line in lines] == [False, False, True, False]
    assert lines[0]["probability"] is not None
    assert lines[3]["probability"] is not None


def test_an_image_that_is_not_analysed_is_no_failure(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 50, np.uint8)).save(tmp_path / "flat.png")
    done = call("predict", tmp_path / "flat.png", "--bundle", bundle)
    assert (done.code, json.loads(done.out)["abstained"]) == (0, True)
    assert "1 image: 1 not analysed; the lines say why" in done.err


def test_a_pattern_that_matches_nothing_is_called_one(bundle: Path, tmp_path: Path) -> None:
    done = call("predict", tmp_path / "*.png", tmp_path / "a.png", "--bundle", bundle)
    pattern, name = (json.loads(line)["error"] for line in done.out.splitlines())
    assert "no file matches the pattern" in pattern
    assert "no such file" in name


def test_the_operating_point_is_chosen_by_name(chests: Path, bundle: Path) -> None:
    done = call("predict", *images(chests, 1), "--bundle", bundle, "--operating-point", "triage")
    assert json.loads(done.out)["threshold"] == 0.2


def test_predict_keeps_a_journal(chests: Path, bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    for _ in range(2):
        done = call("predict", *images(chests, 3), "--bundle", bundle, "--journal", journal)
        assert done.code == 0
    entries = {entry.probability for entry in Journal(journal).entries()}
    assert entries == {json.loads(line)["probability"] for line in done.out.splitlines()}
    assert len(entries) == 3
    assert default_key(journal).is_file()
    archive = call("predict", "x.png", "--engine", "ray", "--jsonl", tmp_path / "x", "--journal", journal)
    assert "leave --engine ray out" in one_line(archive, 2)


# --- train ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(chests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder made by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.toml").write_text(EXPERIMENT)
    command = [
        sys.executable, "-c", "from pneumoscope.cli import main; main()", "train", folder / "small.toml",
        "--data", chests, "--out", folder / "run", "--seed", "3",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'run' / 'bundle'}\n", "the result alone is on stdout"
    assert re.search(r"scratch 2: loss \d+\.\d{4}, validation AUROC \d\.\d{4}", done.stderr)
    return folder / "run"


def test_train_leaves_the_files_of_the_contract(run: Path) -> None:
    for name in ("bundle/card.json", "bundle/weights.safetensors", "metrics.json", "history.csv", "config.toml"):
        assert (run / name).is_file(), name
    assert json.loads((run / "environment.json").read_text())["seed"] == 3
    assert load_bundle(run / "bundle").name == "run", "named after its run"
    assert len(pd.read_csv(run / "history.csv")) == 2
    assert "seed = 3" in (run / "config.toml").read_text()


def test_train_goes_on_where_it_stopped_and_refuses_to_mix(run: Path, chests: Path) -> None:
    config, before = run.parent / "small.toml", load_bundle(run / "bundle").sha256
    assert "--resume" in one_line(call("train", config, "--data", chests, "--out", run, "--seed", 3), 2)
    other = call("train", config, "--data", chests, "--out", run, "--seed", 4, "--resume")
    assert "other settings" in one_line(other, 2)
    again = call("train", config, "--data", chests, "--out", run, "--seed", 3, "--resume")
    assert (again.code, again.out) == (0, f"{run / 'bundle'}\n")
    assert load_bundle(run / "bundle").sha256 == before


def test_train_logs_to_tensorboard(chests: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = tmp_path / "small.toml"
    config.write_text(EXPERIMENT.replace("epochs = 2", "epochs = 1"))
    done = call("train", config, "--data", chests, "--out", tmp_path / "run", "--log", "tensorboard")
    assert done.code == 0, done.err
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents*"))


# --- evaluate, explain, compare, report -------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluations(
    run: Path, bundle: Path, chests: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[Done]]:
    """Two bundles evaluated on the same images by the command line."""
    folder = tmp_path_factory.mktemp("evaluations")
    bundles = {"trained": run / "bundle", "untrained": bundle}
    options = ("--data", chests, "--split", "test", "--explanations", 1)
    done = [call("evaluate", *options, "--bundle", path, "--out", folder / name) for name, path in bundles.items()]
    return [folder / name for name in bundles], done


def test_evaluate_writes_figures_tables_and_a_page(evaluations: tuple[list[Path], list[Done]], chests: Path) -> None:
    (folder, _), (done, _) = evaluations
    assert done.code == 0, done.err
    page = Path(done.out.strip())
    assert page.suffix == ".html"
    assert RESEARCH_ONLY in page.read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == len(list((chests / "test").rglob("*.png")))
    assert len(pd.read_csv(folder / "predictions.csv")) == metrics["n"]
    assert json.loads((folder / "explanations" / "index.json").read_text())
    auroc = metrics["metrics"]["auroc"]
    assert re.search(
        rf"auroc +{auroc['value']:.4f} +95 % CI {auroc['ci95'][0]:.4f} to {auroc['ci95'][1]:.4f}", done.err
    )


def test_evaluate_says_which_splits_there_are(chests: Path, bundle: Path, tmp_path: Path) -> None:
    done = call("evaluate", "--data", chests, "--bundle", bundle, "--split", "tset", "--out", tmp_path / "o")
    assert "the source has test, train, val" in one_line(done, 2)


def test_evaluate_is_3_where_images_fail(chests: Path, bundle: Path, tmp_path: Path) -> None:
    rows = [f"{path},PNEUMONIA" for path in images(chests, 3)]
    normal = [f"{path},NORMAL" for path in sorted((chests / "train" / "NORMAL").glob("*.png"))[:3]]
    (tmp_path / "cut.png").write_bytes(images(chests, 1)[0].read_bytes()[:200])
    (tmp_path / "m.csv").write_text("path,label\n" + "\n".join([*rows, *normal, "cut.png,NORMAL"]) + "\n")
    done = call(
        "evaluate", "--data", tmp_path / "m.csv", "--bundle", bundle, "--out", tmp_path / "o", "--explanations", 0
    )
    assert done.code == 3
    assert "not analysed: 1;" in done.err
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["failed"] == 1
    assert not (tmp_path / "o" / "explanations").exists()


def test_a_runs_own_figures_are_not_overwritten(run: Path, bundle: Path, chests: Path) -> None:
    before = (run / "metrics.json").read_bytes()
    done = call("evaluate", "--data", chests, "--split", "test", "--bundle", bundle, "--out", run)
    assert "whose own figures would be lost" in one_line(done, 2)
    assert (run / "metrics.json").read_bytes() == before


def test_a_name_that_is_no_text_does_not_lose_the_answers(chests: Path, bundle: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/scan-\xff.png"
    Path(os.fsdecode(name)).write_bytes(images(chests, 1)[0].read_bytes())
    for target in ((), ("--jsonl", tmp_path / "answers.jsonl")):
        done = call("predict", tmp_path, "--bundle", bundle, *target)
        assert done.code == 0, done.err
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert answer["path"].endswith("scan-\udcff.png")
    assert answer["probability"] is not None


def test_a_pipe_takes_the_answers_and_stays_a_pipe(chests: Path, bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        assert call("predict", images(chests, 1)[0], "--bundle", bundle, "--jsonl", pipe).code == 0
        assert json.loads(read.result(10))["probability"] is not None
    assert pipe.is_fifo()


def test_an_official_test_is_put_on_record(
    chests: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    options = ("evaluate", "--data", chests, "--split", "test", "--bundle", bundle, "--explanations", 0, "--official")
    for number in (1, 2):
        done = call(*options, "--out", tmp_path / "o")
        assert f"look {number} at this test set, 1 bundles in all" in done.err
    official = json.loads((tmp_path / "o" / "metrics.json").read_text())["official"]
    assert (official["looks"], official["bundles"]) == (2, 1)
    assert "Looks at this locked test set" in (tmp_path / "o" / "report.html").read_text()
    chosen = call(*options, "--out", tmp_path / "p", "--operating-point", "triage")
    assert "leave --operating-point out" in one_line(chosen, 2)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 4, "a refused look leaves no trace"


def test_engines_agree_and_unknown_ones_are_refused(chests: Path, bundle: Path) -> None:
    answers = []
    for engine in ("openvino", "torch"):
        done = call("predict", images(chests, 1)[0], "--bundle", bundle, "--engine", engine, "--threads", 1)
        answers.append(json.loads(done.out)["probability"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert "use one of auto, openvino, torch, ray" in one_line(call("predict", "x.png", "--engine", "abacus"), 2)


def test_compare_writes_every_pair(evaluations: tuple[list[Path], list[Done]], tmp_path: Path) -> None:
    done = call("compare", *evaluations[0], "--out", tmp_path)
    assert (done.code, done.out) == (0, f"{tmp_path / 'comparison.json'}\n")
    (pair,) = json.loads((tmp_path / "comparison.json").read_text())["pairs"]
    assert (pair["a"], pair["b"]) == ("trained", "untrained")
    assert "after Holm" in done.err
    assert "at least two" in one_line(call("compare", evaluations[0][0], "--out", tmp_path), 2)


def test_report_writes_a_page(run: Path, tmp_path: Path) -> None:
    done = call("report", run, "--out", tmp_path)
    assert done.code == 0, done.err
    text = Path(done.out.strip()).read_text()
    assert RESEARCH_ONLY in text
    assert "http://" not in text.replace("http://www.w3.org", ""), "one page, self-contained"


def test_explain_writes_pictures_maps_and_facts(run: Path, chests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("explain", *images(chests, 2), "--bundle", run / "bundle", "--out", out)
    assert (done.code, done.out) == (0, f"{out / 'index.json'}\n")
    assert "explaining: 1 of 2\nexplaining: 2 of 2\n" in done.err
    for entry in json.loads((out / "index.json").read_text()):
        assert (out / entry["overlay"]).is_file()
        assert (out / entry["map"]).is_file()
    failing = call("explain", tmp_path / "x.png", "--bundle", run / "bundle", "--out", tmp_path / "o")
    assert failing.code == 3
    assert "x.png" in failing.err


def test_explain_by_several_methods_writes_what_is_known_of_each_map(run: Path, chests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("explain", *images(chests, 1), "--bundle", run / "bundle", "--out", out, "--method", "gradcam,lime,shap")
    done = call(*common, "--samples", 60, "--seed", 1, "--segments", "grid", "--fill", "mean", "--layer", "stages.1")
    assert (done.code, done.out) == (0, f"{out / 'index.json'}\n")
    cam, lime, shap = json.loads((out / "index.json").read_text())
    assert [entry["method"] for entry in (cam, lime, shap)] == ["gradcam", "lime", "shap"]
    assert (cam["layer"], lime["layer"]) == ("encoder.model.stages.1", "input")
    assert [(entry["seed"], entry["samples"]) for entry in (cam, lime, shap)] == [(None, None), (1, 60), (1, 60)]
    assert "'lobes'" in one_line(call(*common, "--segments", "lobes"), 2)
    assert "no layer 'stages.77'" in one_line(call(*common, "--layer", "stages.77"), 2)


EARLY = """
import sys
from pneumoscope.cli import main

folder, image = sys.argv[1:]
common = ["--out", f"{folder}/out"]
for arguments in (
    ["explain", folder, *common],
    ["explain", image, "--method", "magic", *common],
    ["explain", f"{folder}/x.png", f"{folder}/*.png", *common],
    ["explain", image, "--out", f"{image}"],
    ["audit", "--data", folder, *common],
    ["audit", "--data", f"{folder}/x", *common],
):
    sys.argv = ["pneumoscope", *arguments]
    try:
        main()
    except SystemExit as stop:
        print(stop.code)
print(sorted({"torch", "scipy.stats", "matplotlib", "openvino"} & set(sys.modules)))
"""


def test_what_is_wrong_with_a_command_is_said_before_anything_slow_is_loaded(chests: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EARLY, str(tmp_path), str(images(chests, 1)[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[:7] == ["2", "2", "3", "2", "2", "2", "[]"], done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    words = ["holds no images", "'magic'", "x.png: no such file", "a folder is needed", "", "no such file"]
    assert all(word in line for word, line in zip(words, told, strict=True)), told
    assert not (tmp_path / "out").exists()


# --- data -------------------------------------------------------------------------------------------------


def test_a_patient_in_two_splits_is_1(chests: Path, tmp_path: Path) -> None:
    copies = tmp_path / "leaky"
    for split, name in (
        ("train", "person1_virus_1.png"),
        ("test", "person1_virus_2.png"),
        ("train", "IM-0001-0001.png"),
    ):
        folder = copies / split / ("NORMAL" if name.startswith("IM") else "PNEUMONIA")
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name) + len(split))
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / name)
    done = call("data", "check", copies, "--out", tmp_path / "out")
    assert done.code == 1
    assert Path(done.out.strip()).is_file()
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["problems"]


def test_synthesize_and_describe(tmp_path: Path) -> None:
    made = call("data", "synthesize", "--out", tmp_path / "d", "--patients", 12, "--size", 64, "--seed", 2)
    assert (made.code, made.out) == (0, f"{tmp_path / 'd'}\n")
    described = call("data", "describe", tmp_path / "d", "--out", tmp_path / "o")
    assert described.code == 0
    assert Path(described.out.strip()).is_file()
    assert json.loads((tmp_path / "o" / "describe.json").read_text())["patients"]["n"] == 12


def test_split_divides_as_train_would_and_overwrites_nothing(tmp_path: Path) -> None:
    call("data", "synthesize", "--out", tmp_path / "d", "--patients", 60, "--size", 32)
    config = tmp_path / "experiment.toml"
    config.write_text('title = "divided"\n[data]\ntest_fraction = 0.2\nval_fraction = 0.2\n')
    asked = ("data", "split", tmp_path / "d", "--config", config, "--out", tmp_path / "new" / "split.csv")
    done = call(*asked)
    assert (done.code, done.out) == (0, f"{asked[-1]}\n")
    experiment = load_experiment(config)
    expected = divide(open_source(tmp_path / "d"), experiment.data, experiment.division_seed)
    written = open_source(Path(asked[-1]))
    for part in ("train", "val", "test"):
        assert written.select(part).fingerprint() == expected.select(part).fingerprint()
        assert f"{part}: {len(written.select(part).samples)} images" in done.err
    before = Path(asked[-1]).read_bytes()
    assert "choose another --out" in one_line(call(*asked), 2)
    assert Path(asked[-1]).read_bytes() == before


# --- audit ------------------------------------------------------------------------------------------------


def test_audit_writes_a_card_and_its_exit_code_is_the_verdict(chests: Path, bundle: Path, tmp_path: Path) -> None:
    done = call("audit", "--bundle", bundle, "--data", chests, "--out", tmp_path, "--images", 40, "--threads", 1)
    card = json.loads((tmp_path / "audit.json").read_text())
    assert done.code == (1 if card["verdict"] == "red" else 0), done.err
    assert Path(done.out.strip()) == tmp_path / "audit.html"
    assert f"the card is {card['verdict']}" in done.err
    assert card["n"] + card["left_out"]["without_lungs"] == 40
    assert RESEARCH_ONLY in (tmp_path / "audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("verdict", "code"), [("red", 1), ("amber", 0), ("green", 0), ("not tested", 0)])
def test_audit_fails_where_the_card_is_red(
    chests: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    monkeypatch.setattr(
        "pneumoscope.shortcuts.shortcut_card.shortcut_card", lambda *_, **__: {"verdict": verdict, "items": []}
    )
    monkeypatch.setattr("pneumoscope.report.audit_page.write", lambda out: out / "audit.html")
    assert call("audit", "--bundle", bundle, "--data", chests, "--out", tmp_path).code == code


def test_audit_of_a_split_that_is_not_there(chests: Path, bundle: Path, tmp_path: Path) -> None:
    done = call("audit", "--bundle", bundle, "--data", chests / "train", "--split", "test", "--out", tmp_path)
    assert "no images in split 'test'" in one_line(done, 2)
