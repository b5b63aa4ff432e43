"""A table of labels: all of it or nothing, tied to answers that the journal knows, once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.entries import AT, CARD, entry
from typer.testing import CliRunner

from pneumoscope.cli.root import app
from pneumoscope.errors import DataError
from pneumoscope.files import sha256_bytes
from pneumoscope.journal.entry import answer_key
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.labelling import Imported, import_labels
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.records import NORMAL, PNEUMONIA

HEAD = "answer,study,study_uid,path,label,source,at,reader,blind,certainty,sample,inclusion_probability\n"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Three answers: one archived, one of a study by its UID, one about a file that lies beside the table."""
    made = Journal(tmp_path / "j.sqlite")
    secret = Pseudonyms.load(default_key(made.path))
    (tmp_path / "film.png").write_bytes(b"a film")
    about_file = answer_key(str(CARD["sha256"]), sha256_bytes(b"a film"), "triage")
    made.append(replace(entry("old", study="s-old"), acquired_on=date(2026, 3, 1)))
    assert made.archive(AT + timedelta(days=60)) == 1
    made.append(entry("by uid", study=secret.of("study", "1.2.3"), acquired_on=date(2026, 3, 1)))
    made.append(entry(about_file, operating_point="triage"))
    return made


def write(journal: Journal, rows: str, head: str = HEAD) -> Path:
    table = journal.path.with_name("labels.csv")
    table.write_text(head + rows, "utf-8-sig")
    return table


def run(journal: Journal, rows: str, head: str = HEAD) -> Imported:
    return import_labels(write(journal, rows, head), journal, default_key(journal.path))


def test_each_way_to_mean_an_image(journal: Journal) -> None:
    rows = (
        "old,,,,NORMAL,report,2026-03-05,,,,,\n"
        ",s-old,,,pneumonia,Laboratory,2026-03-05T12:00:00+01:00,,,likely,,\n"
        "\n"
        ",,1.2.3,,,blind review,,Dr. A,,not sure,march,0.25\n"
        ",,1.2.3,,PNEUMONIA,blind review,,Dr. B,yes,,march,0.25\n"
        ",,,film.png,NORMAL,page,,Dr. A,no,sure,,\n"
    )
    assert run(journal, rows) == Imported(5, 5, 5)
    assert run(journal, rows) == Imported(5, 5, 0), "the same table again"
    by_source = {(label.source, label.reader): label for label in journal.labels()}
    assert len(by_source) == 5, "both readers of one study are kept"
    of = Pseudonyms.load(default_key(journal.path)).of
    unsure = by_source["blind review", of("reader", "Dr. A")]
    assert (unsure.label, unsure.certainty, unsure.blind) == (None, "not sure", True)
    assert (unsure.sample, unsure.inclusion_probability, unsure.study) == ("march", 0.25, of("study", "1.2.3"))
    assert by_source["report", None].at == datetime(2026, 3, 5, tzinfo=UTC)
    assert by_source["laboratory", None].at == datetime(2026, 3, 5, 11, tzinfo=UTC)
    assert (by_source["laboratory", None].label, by_source["laboratory", None].blind) == (PNEUMONIA, None)
    page = by_source["page", of("reader", "Dr. A")]
    assert (page.label, page.blind) == (NORMAL, False)
    assert page.answer in journal.columns(("key",))["key"]
    assert b"Dr. A" not in journal.path.read_bytes()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("old,,,,maybe,report,,,,,,", "'maybe' is no label; use NORMAL or PNEUMONIA"),
        ("old,,,,,report,,,,,,", "'' is no label"),
        ("old,,,,NORMAL,rumour,,,,,,", "source is 'rumour'; use page, blind review, report"),
        (",,,,NORMAL,report,,,,,,", "means no image; give one of answer"),
        ("old,s-old,,,NORMAL,report,,,,,,", "means answer and study"),
        ("erased,,,,NORMAL,report,,,,,,", "no answer about it"),
        (",,,none.png,NORMAL,report,,,,,,", "none.png cannot be read"),
        ("old,,,,NORMAL,report,2026-02-28,,,,,", "the image was taken on 2026-03-01"),
        ("old,,,,NORMAL,report,05.03.2026,,,,,", "write 2026-03-04"),
        ("old,,,,NORMAL,report,2999-01-01,,,,,", "is to come"),
        ("old,,,,NORMAL,blind review,,,no,,,", "was not blind"),
        ("old,,,,NORMAL,report,,,maybe,,,", "blind is 'maybe'"),
        ("old,,,,NORMAL,report,,,,quite,,", "certainty is 'quite'; use sure, likely, not sure"),
        ("old,,,,NORMAL,report,,,,,a,2", "probability 2.0"),
        ("old,,,,NORMAL,report,,,,,a,half", "inclusion_probability is 'half'"),
        ("old,,,,NORMAL,report,,,,,a,", "give both or neither"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(journal: Journal, row: str, why: str) -> None:
    with pytest.raises(DataError, match=r"labels\.csv: row 3: ") as fault:
        run(journal, f"old,,,,NORMAL,report,,,,,,\n{row}\n")
    assert why in str(fault.value)
    assert "nothing was imported" in str(fault.value)
    assert list(journal.labels()) == []


def test_many_bad_rows_are_counted(journal: Journal) -> None:
    with pytest.raises(DataError, match=r"row 2: .*row 6: .*; 3 more rows"):
        run(journal, "erased,,,,NORMAL,report,,,,,,\n" * 8)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("answer,label\n", "no column 'source'"),
        ("answer,label,source,inclusion\n", "a column 'inclusion'"),
        ("answer,label,source,label\n", "two columns 'label'"),
        ("", "no column 'label'"),
    ],
)
def test_another_table_is_refused(journal: Journal, head: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        run(journal, "", head)


def test_what_is_no_table_is_refused(journal: Journal) -> None:
    table = write(journal, "")
    table.write_bytes("label,source,answer\nNORMAL,Müller,old".encode("latin-1"))
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        import_labels(table, journal, default_key(journal.path))
    with pytest.raises(DataError, match="row 2 has more cells"):
        run(journal, "old,NORMAL,report,4\n", "answer,label,source\n")


def test_a_missing_key_is_not_made(journal: Journal) -> None:
    key = default_key(journal.path)
    key.unlink()
    with pytest.raises(DataError, match=r"no key .* --key"):
        run(journal, ",,1.2.3,,NORMAL,report,,,,,,\n")
    assert not key.exists()
    assert run(journal, "old,,,,NORMAL,report,,,,,,\n").new == 1, "which needs none"


def test_an_erased_study_takes_no_label(journal: Journal) -> None:
    study = Pseudonyms.load(default_key(journal.path)).of("study", "1.2.3")
    journal.erase([], [str(study)])
    with pytest.raises(DataError, match="whether it was erased"):
        run(journal, ",,1.2.3,,NORMAL,report,,,,,,\n")


def test_the_command(journal: Journal, tmp_path: Path) -> None:
    table = write(journal, "old,,,,NORMAL,report,,,,,,\n")
    done = CliRunner().invoke(app, ["monitor", "labels", str(table), "--journal", str(journal.path)])
    assert (done.exit_code, len(list(journal.labels()))) == (0, 1)
    missing = CliRunner().invoke(app, ["monitor", "labels", str(table), "--journal", str(tmp_path / "none")])
    assert isinstance(missing.exception, DataError)
    assert not (tmp_path / "none").exists()


def test_a_decision_is_kept_with_its_reason(journal: Journal) -> None:
    def decide(alarm: str, decision: str, why: str = "the plate was exchanged") -> object:
        asked = ["monitor", "decide", alarm, "--journal", str(journal.path), "--as", decision, "--why", why]
        return CliRunner().invoke(app, [*asked, "--by", "Dr. A"]).exception

    assert decide("a-1", "acknowledged", "looked at") is None
    assert decide("a-1", "fixed") is None
    assert isinstance(decide("a-1", "ignored"), DataError)
    assert isinstance(decide("a-1", "fixed", " "), DataError)
    person = Pseudonyms.load(default_key(journal.path)).of("reader", "Dr. A")
    assert [(item.decision, item.why, item.person) for item in journal.decisions()] == [
        ("acknowledged", "looked at", person), ("fixed", "the plate was exchanged", person),
    ]  # fmt: skip
