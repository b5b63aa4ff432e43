"""The monitor as it is used: a journal, a reference, runs that are killed, alarms that a person answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import monitored
from tests.support.monitored import entries, facts, fill
from typer.testing import CliRunner

from pneumoscope.cli.root import app
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.journal.entry import Decision
from pneumoscope.monitoring import monitor as module
from pneumoscope.monitoring.alarms import verify_chain
from pneumoscope.monitoring.fitting import from_journal
from pneumoscope.monitoring.monitor import monitor
from pneumoscope.monitoring.reference import read, write
from pneumoscope.monitoring.stream import Stream

FILES = ("monitoring.json", "alarms.jsonl", "state/state.json")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images as usual, 300 more, then 300 that are brighter, from another device; labels of the middle part."""
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    middle = facts(300, 2, first=600)
    fill(path, entries(facts(600, 1)), entries(middle), entries(facts(300, 3, first=900, bright=1.5), device="d2"))
    fill(path).append_labels(monitored.labels(middle))
    return path


@pytest.fixture(scope="module")
def usual(journal: Path) -> Path:
    out = journal.with_name("reference.json")
    assert run("monitor", "fit", "--journal", journal, "--to", "2026-01-15", "--out", out).exit_code == 0
    return out


def test_an_alarm_is_raised_named_and_answered(journal: Path, usual: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("monitor", "--journal", journal, "--reference", usual, "--out", out)
    assert result.exit_code == 4, result.output
    assert (out / "monitoring.html").is_file()
    found = json.loads((out / "monitoring.json").read_text())
    assert [alarm["family"] for alarm in found["alarms"]] == ["acquisition"]
    alarm = found["alarms"][0]
    assert alarm["kind"] == "covariate"
    assert alarm["streams"] == ["mean"]
    assert alarm["action"]["do"] == "fix"
    assert alarm["device"]["device"] == "d2"
    assert alarm["device"]["new"] is True
    assert "contrast" in alarm["did_not_move"]
    assert "mean" not in alarm["did_not_move"]
    began = datetime.fromisoformat(alarm["since"])
    assert abs(began - (monitored.START + timedelta(minutes=36 * 900))) < timedelta(days=1)
    assert len(alarm["images"]) == 12
    assert sum(key.endswith("-3") for key in alarm["images"]) >= 11
    assert "says nothing of errors" in found["families"]["truth"]["line"]
    assert verify_chain(out / "alarms.jsonl") == 1
    assert run("monitor", "--journal", journal, "--reference", usual, "--out", out).exit_code == 4, "it is still open"


def test_a_decision_closes_an_alarm(journal: Path, usual: Path, tmp_path: Path) -> None:
    copy = tmp_path / "journal.sqlite"
    copy.write_bytes(journal.read_bytes())
    found = monitor(copy, tmp_path / "out", reference=usual)
    decision = Decision("d", datetime.now(UTC), found["open"][0], "acknowledged", "the plate was changed")
    fill(copy).append_decision(decision)
    after = monitor(copy, tmp_path / "out", reference=usual)
    assert after["status"] == "quiet"
    assert after["alarms"][0]["decision"]["why"] == "the plate was changed"


def test_a_new_reference_closes_the_alarms_before_it(journal: Path, usual: Path, tmp_path: Path) -> None:
    monitor(journal, tmp_path / "out", reference=usual)
    reference = from_journal(Stream(journal), datetime(2026, 1, 23, 12, tzinfo=UTC))
    write(reference, tmp_path / "new.json")
    with pytest.raises(DataError, match="no answer after the reference"):
        monitor(journal, tmp_path / "out", reference=tmp_path / "new.json")
    copy = tmp_path / "journal.sqlite"
    copy.write_bytes(journal.read_bytes())
    fill(copy, entries(facts(260, 8, first=1_200, bright=1.5), device="d2"))
    found = monitor(copy, tmp_path / "out", reference=tmp_path / "new.json")
    assert found["status"] == "quiet"
    assert found["alarms"][0]["decision"]["decision"] == "new reference"


def test_quiet_images_exit_with_zero_and_the_truth_is_said_to_be_unseen(tmp_path: Path, usual: Path) -> None:
    fill(tmp_path / "j.sqlite", entries(facts(300, 4)))
    result = run("monitor", "--journal", tmp_path / "j.sqlite", "--reference", usual, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "monitoring.json").read_text())
    assert found["status"] == "quiet"
    assert found["families"]["truth"]["state"] == "no data"
    assert "Without labels" in found["families"]["truth"]["line"]


def test_without_a_reference_the_first_images_are_one(tmp_path: Path) -> None:
    fill(tmp_path / "j.sqlite", entries(facts(500, 5)), entries(facts(260, 6, first=500, axis=2.0)))
    found = monitor(tmp_path / "j.sqlite", tmp_path / "out")
    assert "first 500 images of this journal" in found["reference"]["source"]
    assert found["status"] == "alarm"
    assert found["alarms"][0]["moved"] == ["pictures look otherwise to the network: 1 of its axes moved"]


def test_wrong_labels_are_an_alarm_of_their_own(tmp_path: Path) -> None:
    usual = tmp_path / "reference.json"
    write(monitored.reference(), usual)  # says how often errors are usual
    drawn = facts(600, 7)
    journal = fill(tmp_path / "j.sqlite", entries(drawn))
    journal.append_labels(monitored.labels(drawn, flip=0.3, chance=1.0))
    found = monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual)
    assert [alarm["kind"] for alarm in found["alarms"]] == ["truth"]
    assert found["alarms"][0]["action"]["do"] == "retrain"
    assert found["labels"]["all"]["design"] is True


def test_another_share_of_pneumonia_proposes_a_threshold_not_a_repair(tmp_path: Path) -> None:
    usual = tmp_path / "reference.json"
    write(monitored.reference(), usual)
    fill(tmp_path / "j.sqlite", entries(facts(500, 9, ill=0.7)))
    found = monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual)
    assert {alarm["kind"] for alarm in found["alarms"]} == {"prevalence"}
    alarm = found["alarms"][0]
    assert alarm["action"]["do"] == "threshold"
    then, now = alarm["prevalence"]["then"], alarm["prevalence"]["now"]
    odds = (then / (1 - then)) / (now / (1 - now))
    assert f"{odds / (1 + odds):.3f} now means what 0.500 meant" in alarm["action"]["words"]


def test_a_room_that_calls_every_film_lateral_is_seen(tmp_path: Path) -> None:
    usual = tmp_path / "reference.json"
    write(monitored.reference(), usual)
    nothing = dict.fromkeys(("bundle", "bundle_sha256", "threshold", "probability", "logit", "label", "embedding"))
    declined = [
        replace(entry, state="declined", abstained=True, quality={"refused_by": "view"}, **nothing)
        if i % 5 == 0
        else entry
        for i, entry in enumerate(entries(facts(500, 10)))
    ]
    fill(tmp_path / "j.sqlite", declined)
    found = monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual)
    assert found["status"] == "alarm"
    moved = {name for window in found["windows"] for name in window["moved"]}
    assert {"abstained", "declined"} <= moved
    assert found["left_aside"]["answers of other bundles"] == 0


# --- killed -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the monitor catches it."""


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def test_a_run_that_is_killed_at_any_write_leaves_the_same_result(
    journal: Path, usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor(journal, tmp_path / "whole", reference=usual)
    writes = [0]
    for kill_at in range(1, 30):
        out = tmp_path / f"killed-{kill_at}"
        writes[0] = 0
        with monkeypatch.context() as patch:
            for name in ("write_json", "write_chain"):
                patch.setattr(module, name, _killing(getattr(module, name), writes, kill_at))
            try:
                monitor(journal, out, reference=usual, piece=61)
            except Killed:
                pass
            else:
                break
        monitor(journal, out, reference=usual, piece=47)
        assert outputs(out) == outputs(tmp_path / "whole"), f"killed at write {kill_at}"
    assert writes[0] >= 10, "there were writes to be killed at"


def _killing(function: Callable[..., None], writes: list[int], at: int) -> Callable[..., None]:
    def write_or_die(*arguments: Any) -> None:
        writes[0] += 1
        if writes[0] == at:
            raise Killed
        function(*arguments)

    return write_or_die


def test_kill_minus_nine_leaves_the_same_result(journal: Path, usual: Path, tmp_path: Path) -> None:
    monitor(journal, tmp_path / "whole", reference=usual)
    out = tmp_path / "killed"
    code = (
        "import sys; from pathlib import Path; from pneumoscope.monitoring.monitor import monitor\n"
        "monitor(Path(sys.argv[1]), Path(sys.argv[2]), reference=Path(sys.argv[3]), piece=5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(journal), str(out), str(usual)])
    while process.poll() is None and not (out / "state" / "state.json").is_file():
        pass
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    monitor(journal, out, reference=usual)
    assert outputs(out) == outputs(tmp_path / "whole")


# --- refused ----------------------------------------------------------------------------------------------


def _mixed(path: Path) -> None:
    fill(path, entries(facts(200, 1)), entries(facts(200, 2, first=200) | {"bundle": np.full(200, "c" * 64)}))


def _one_patient(path: Path) -> None:
    drawn = facts(600, 1)
    drawn["patient"] = np.where(np.arange(600) < 320, "p0", drawn["patient"])
    fill(path, entries(drawn))


def _drifting(path: Path) -> None:
    fill(path, entries(facts(300, 1)), entries(facts(300, 2, first=300, bright=1.0)))


def _one_score(path: Path) -> None:
    fill(path, entries(facts(400, 1) | {"probability": np.full(400, 0.2), "abstained": np.zeros(400, bool)}))


def _backwards(path: Path) -> None:
    fill(path, entries(facts(200, 1, first=400)), entries(facts(200, 2)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: fill(path, entries(facts(120, 1))), "120 images of 120 patients are too few"),
        (lambda path: fill(path, entries(facts(600, 1, each=10))), "600 images of 60 patients are too few"),
        (_mixed, "2 bundles: 200 of bbbbbbbbbbbb and 200 of cccccccccccc"),
        (_one_patient, "one patient has 320 of 600 images"),
        (_drifting, "drifts within: of its first 300 and last 300 images, mean brightness"),
        (_one_score, "all images have one score"),
        (_backwards, "clock goes back by"),
        (fill, "holds no answer"),
        (lambda path: path.write_text("no journal"), "is no journal"),
    ],
    ids=["small", "few patients", "mixed", "one patient", "drift", "one class", "clock", "empty", "no journal"],
)
def test_a_reference_is_refused_with_numbers_and_the_remedy(
    make: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "j.sqlite")
    with pytest.raises(PneumoscopeError, match=said) as raised:
        from_journal(Stream(tmp_path / "j.sqlite"))
    assert raised.value.remedy
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: fill(path, entries(facts(60, 1), site="there")), "of another site than the reference"),
        (
            lambda path: fill(path, entries(facts(60, 1) | {"bundle": np.full(60, "c" * 64)})),
            "last answer is of the bun",
        ),
        (fill, "holds no answer after the reference"),
        (_backwards, "clock goes back by"),
    ],
    ids=["site", "bundle", "empty", "clock"],
)
def test_a_journal_that_does_not_fit_is_refused(
    make: Callable[[Path], Any], said: str, tmp_path: Path, usual: Path
) -> None:
    make(tmp_path / "j.sqlite")
    with pytest.raises(PneumoscopeError, match=said) as raised:
        monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual)
    assert raised.value.remedy


def test_embeddings_of_another_length_are_not_compared(tmp_path: Path, usual: Path) -> None:
    drawn = facts(300, 1)
    longer = np.concatenate([drawn["embedding"], drawn["embedding"]], axis=1)
    fill(tmp_path / "j.sqlite", entries(drawn), entries(facts(300, 2, first=300) | {"embedding": longer[:300]}))
    with pytest.raises(DataError, match="embeddings of 6 and 12 numbers"):
        monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual, piece=280)


def test_a_window_of_one_patient_is_not_judged_and_said_so(tmp_path: Path, usual: Path) -> None:
    drawn = facts(250, 1, bright=3.0)
    drawn["patient"] = np.where(np.arange(250) < 130, "p0", drawn["patient"])
    fill(tmp_path / "j.sqlite", entries(drawn))
    found = monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual)
    assert "one patient has 130 of 250 images" in found["windows"][0]["refused"]


def test_a_label_older_than_its_image_is_left_out_and_counted(tmp_path: Path, usual: Path) -> None:
    drawn = facts(60, 1, abstain=0.0)
    fill(tmp_path / "j.sqlite", entries(drawn)).append_labels(monitored.labels(drawn, days=-3))
    found = monitor(tmp_path / "j.sqlite", tmp_path / "out", reference=usual)
    assert found["labels"]["refused"] == {"older than its image": 60}
    assert found["labels"]["all"] is None


def test_a_changed_chain_is_not_written_over(journal: Path, usual: Path, tmp_path: Path) -> None:
    monitor(journal, tmp_path / "out", reference=usual)
    chain = tmp_path / "out" / "alarms.jsonl"
    chain.write_text(chain.read_text().replace("acquisition", "population"))
    with pytest.raises(DataError, match="line 1 was changed"):
        verify_chain(chain)
    with pytest.raises(DataError, match="a line was changed"):
        monitor(journal, tmp_path / "out", reference=usual)


def test_a_reference_holds_no_identity_and_comes_back_as_it_was(usual: Path, journal: Path, tmp_path: Path) -> None:
    text = usual.read_text()
    assert not any(f'"{name}{number}' in text for name in "psk" for number in range(600))
    assert '"here"' not in text
    assert '"d1"' not in text
    reference = read(usual)
    write(reference, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text
    assert len(text) < 5e6
    assert read(tmp_path / "again.json").identity == reference.identity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda stored: stored | {"reference": 9}, "written in format 9"),
        (lambda stored: stored | {"arrays": {}}, "is damaged"),
        (lambda stored: {"schema": 1}, "is no reference"),
    ],
)
def test_a_reference_that_cannot_be_read_is_refused(change: Any, said: str, usual: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(change(json.loads(usual.read_text()))))
    with pytest.raises(DataError, match=said):
        read(file)


@pytest.mark.parametrize("wrong", [[], ["--journal", "j"], ["--out", "o"]])
def test_usage_errors_exit_with_two(wrong: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "monitor", *wrong], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "give --journal and --out" in result.stderr
