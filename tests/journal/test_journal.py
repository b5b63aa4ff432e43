"""The journal: every answer once, nothing changed afterwards, nobody named."""

from __future__ import annotations

import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.entries import AT, CARD, SAID, entry

from pneumoscope.errors import DataError
from pneumoscope.journal.embedding import unpack_embedding
from pneumoscope.journal.entry import Decision, Label, answer_key, entry_of
from pneumoscope.journal.journal import Journal, erase_everywhere
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.records import PNEUMONIA


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    said = replace(SAID, embedding=(0.5, -1.5, 0.1))
    written = entry_of(said, CARD, "k", AT, study="s", covariates={"view": "PA", "age_years": 97.0})
    assert journal.append(written)
    (found,) = Journal(tmp_path / "j.sqlite").entries()
    assert (found.probability, found.label, found.at, found.study) == (0.75, PNEUMONIA, AT, "s")
    assert found.covariates == {"view": "PA", "age_years": 90.0}
    assert found.embedding == (0.5, -1.5, 0.0999755859375)  # half precision
    assert found.quality == {"mean": None}
    assert b"doe" not in (tmp_path / "j.sqlite").read_bytes()


def test_an_embedding_is_absent_or_of_a_known_version(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.append(entry())
    with sqlite3.connect(journal.path) as connection:
        assert connection.execute("SELECT embedding FROM predictions").fetchone() == ("null",)
    assert [found.embedding for found in journal.entries()] == [None]
    assert unpack_embedding([0.25, 2]) == (0.25, 2.0)  # a journal of format 1
    assert unpack_embedding({"version": 1, "float16": "ADgAvg=="}) == (0.5, -1.5)
    for odd, why in (({"version": 2, "float16": ""}, "version 2"), ({"version": 1, "float16": "A"}, "cannot be read")):
        with pytest.raises(DataError, match=why):
            unpack_embedding(odd)


def test_told_twice_it_is_written_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    assert [journal.append(entry()), journal.append(entry())] == [True, False]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: Journal(journal.path).append(entry(str(n % 10))), range(40))) == 10
    assert len(list(journal.entries())) == 11


@pytest.mark.parametrize("change", ["UPDATE predictions SET label = 'NORMAL'", "DELETE FROM predictions"])
def test_nothing_is_changed(tmp_path: Path, change: str) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.append(entry())
    with sqlite3.connect(journal.path) as connection, pytest.raises(sqlite3.IntegrityError, match="only appended"):
        connection.execute(change)


def test_labels(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    label = Label("l", AT, "s", PNEUMONIA, "page")
    assert [journal.append_label(label), journal.append_label(label)] == [True, False]
    asked = Label(
        "m", AT, "s", None, "blind review", answer="k", reader="r", certainty="not sure", blind=True, sample="a",
        inclusion_probability=0.25,
    )  # fmt: skip
    assert journal.append_labels([label, asked, replace(asked, key="n", reader="other")]) == 2, "all of one study"
    assert list(journal.labels()) == [label, asked, replace(asked, key="n", reader="other")]
    with pytest.raises(DataError, match="no kind of truth"):
        journal.append_labels([replace(label, key="new"), replace(label, key="odd", source="rumour")])
    assert len(list(journal.labels())) == 3, "all or none"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"label": "maybe"}, "not 'maybe'"),
        ({"label": None}, "not None"),
        ({"study": None}, "belongs to"),
        ({"certainty": "rather"}, "certain"),
        ({"inclusion_probability": 0.5}, "together"),
        ({"sample": "a", "inclusion_probability": 0.0}, "probability 0.0"),
        ({"sample": "a", "inclusion_probability": float("nan")}, "probability nan"),
    ],
)
def test_what_no_label_says(change: dict[str, object], why: str) -> None:
    with pytest.raises(DataError, match=why):
        replace(Label("l", AT, "s", PNEUMONIA, "page"), **change)


def test_decisions(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    decision = Decision("d", AT, "alarm 1", "fixed", "the plate was exchanged", "r")
    assert [journal.append_decision(decision), journal.append_decision(decision)] == [True, False]
    assert list(journal.decisions()) == [decision]
    assert journal.columns(("alarm", "decision"), of="decisions")["decision"].tolist() == ["fixed"]
    for change in ({"decision": "ignored"}, {"why": " "}):
        with pytest.raises(DataError, match="a decision"):
            replace(decision, **change)


def test_a_patient_is_erased_with_every_label_wherever_it_lies(tmp_path: Path) -> None:
    """A label may come after the month of its answer was archived, and name the answer alone."""
    journal = Journal(tmp_path / "j.sqlite")
    for patient in ("p", "q"):
        journal.append(entry(f"old {patient}", patient=patient, study=f"s {patient}"))
    journal.append_decision(Decision("d", AT, "alarm 1", "fixed", "the plate was exchanged", "r"))
    assert journal.archive(AT + timedelta(days=40)) == 2
    for patient in ("p", "q"):
        journal.append_label(Label(f"1{patient}", AT, f"s {patient}", PNEUMONIA, "report"))
        journal.append_label(Label(f"2{patient}", AT, None, PNEUMONIA, "report", answer=f"old {patient}"))
        journal.append(replace(entry(f"new {patient}", patient=patient), at=AT + timedelta(days=40)))
    assert erase_everywhere(journal.path, ["p"]) == (2, 2)
    assert erase_everywhere(journal.path, ["p"]) == (0, 0)
    assert [label.key for label in journal.labels()] == ["1q", "2q"]
    assert [item.key for item in journal.entries()] == ["new q"]
    assert len(list(journal.decisions())) == 1
    assert [tuple(counts) for _, why, *counts in journal.erasures() if why == "on request"] == [(0, 2), (1, 0)]


def test_a_reader_that_goes_on_misses_nothing_after_an_erasure(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    for n in range(3):
        journal.append(entry(str(n), patient=f"p{n}"))
    seen = int(journal.columns(("key",))["row"][-1])
    journal.erase(["p2"])
    journal.append(entry("next"))
    assert journal.columns(("key",), after=seen)["key"].tolist() == ["next"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.sqlite").write_text("not a database, but long enough to be looked at" * 40)
    with pytest.raises(DataError, match="is no journal"):
        Journal(tmp_path / "j.sqlite")


def test_pseudonyms_are_stable_and_keyed(tmp_path: Path) -> None:
    path = default_key(tmp_path / "j.sqlite")
    one = Pseudonyms.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert one.of("patient", "H", "4711") == Pseudonyms.load(path).of("patient", "H", "4711")
    assert one.of("patient", "H", "4711") != one.of("study", "H", "4711")
    assert one.of("patient", "H4", "711") != one.of("patient", "H", "4711")
    assert one.of("patient", None) is None
    assert Pseudonyms(b"x" * 32).of("patient", "4711") != Pseudonyms(b"y" * 32).of("patient", "4711")
    path.write_text("short")
    with pytest.raises(DataError, match="too short"):
        Pseudonyms.load(path)


def test_processes_that_start_together_go_on_with_one_secret(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def load(_: int) -> str | None:
        start.wait()
        return Pseudonyms.load(tmp_path / "deeper" / "j.key").of("patient", "4711")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load, range(8)))) == 1
    assert [file.name for file in (tmp_path / "deeper").iterdir()] == ["j.key"]


def test_an_answer_is_told_by_what_answered_about_what() -> None:
    keys = {answer_key(b, c, p) for b in "ab" for c in "cd" for p in ("balanced", "triage")}
    assert len(keys) == 8
