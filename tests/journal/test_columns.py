"""Columns of the journal: the same values as its entries, in append order, continued where a reader stopped."""

from __future__ import annotations

import doctest
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.support.entries import AT, entry

from pneumoscope.errors import DataError
from pneumoscope.journal.columns import TYPES
from pneumoscope.journal.entry import Label
from pneumoscope.journal.journal import Journal
from pneumoscope.records import NORMAL


def filled(folder: Path, count: int = 7) -> Journal:
    journal = Journal(folder / "journal.sqlite")
    for n in range(count):
        facts = {"covariates": {"kvp": 60.0 + n, "view": "PA"}} if n % 2 else {}
        embedded = replace(entry(f"k{n}", study=f"s{n}", patient=f"p{n % 2}", **facts), at=AT - timedelta(days=n))
        journal.append(replace(embedded, embedding=(0.5, -1.5, float(n)) if n else None))
    return journal


def test_the_example_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(Journal.columns, "columns", globs={"Journal": Journal, "Path": Path})
    assert doctest.DocTestRunner().run(example).failed == 0
    assert len(example.examples) > 2


def test_columns_say_what_entries_say(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    found = journal.columns(("key", "at", "probability", "abstained", "covariates.kvp", "covariates.view", "embedding"))
    entries = {item.key: item for item in journal.entries()}
    assert sorted(found["key"]) == sorted(entries)
    for index, key in enumerate(found["key"]):
        said = entries[str(key)]
        assert found["at"][index] == np.datetime64(said.at.replace(tzinfo=None), "ms")
        assert (found["probability"][index], found["abstained"][index]) == (said.probability, said.abstained)
        assert found["covariates.view"][index] == (said.covariates.get("view") or "")
        kvp = said.covariates.get("kvp")
        assert np.isnan(found["covariates.kvp"][index]) if kvp is None else found["covariates.kvp"][index] == kvp
        expected = [np.nan] * 3 if said.embedding is None else said.embedding
        np.testing.assert_array_equal(found["embedding"][index], np.float32(expected))


def test_pieces_join_to_the_whole_in_append_order(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    whole, after, pieces = journal.columns(("key",)), 0, []
    while len((piece := journal.columns(("key",), after=after, limit=3))["row"]):
        pieces.append(piece)
        after = int(piece["row"][-1])
    assert [len(piece["row"]) for piece in pieces] == [3, 3, 1]
    assert list(np.concatenate([piece["key"] for piece in pieces])) == [f"k{n}" for n in range(7)] == list(whole["key"])
    journal.append(replace(entry("late"), at=AT - timedelta(days=400)))
    assert list(journal.columns(("key",), after=after)["key"]) == ["late"]


@pytest.mark.parametrize("of", sorted(TYPES))
def test_every_column_has_its_type_in_an_empty_piece_too(tmp_path: Path, of: str) -> None:
    journal = filled(tmp_path)
    journal.append_label(Label("l", AT, "s1", NORMAL, "page"))
    full = journal.columns(list(TYPES[of]), of=of)
    empty = journal.columns(list(TYPES[of]), after=1000, of=of)
    assert {name: column.dtype.kind for name, column in full.items()} == {
        name: column.dtype.kind for name, column in empty.items()
    }
    assert all(len(column) == 0 for column in empty.values())


def test_another_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'name'") as fault:
        filled(tmp_path).columns(("key", "name"))
    assert "probability" in fault.value.remedy
