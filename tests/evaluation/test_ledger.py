"""A locked test set remembers who looked."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pneumoscope.bundle.bundle import Bundle, load_bundle
from pneumoscope.errors import DataError, StorageError
from pneumoscope.evaluation.ledger import Looks, announce, ledger_file, read_ledger, record

METRICS = {"n": 9, "metrics": {name: {"value": 0.9} for name in ("accuracy", "balanced_accuracy", "auroc")}}


@pytest.fixture
def bundles(make_bundle: Callable[..., Path], tmp_path: Path) -> list[Bundle]:
    return [load_bundle(make_bundle(tmp_path / f"bundle{seed}", seed=seed)) for seed in (0, 1)]


def take(ledger: Path, bundle: Bundle, source: Path, data: str = "set") -> Looks:
    return record(announce(ledger, source, bundle, "balanced"), {**METRICS, "data": {"sha256": data}})


def test_every_look_is_counted_and_every_bundle(bundles: list[Bundle], tmp_path: Path) -> None:
    ledger, source = tmp_path / "deep" / "ledger.jsonl", tmp_path / "images"
    found = [take(ledger, bundles[i], source) for i in (0, 0, 1, 0)]
    assert [(looks.looks, looks.bundles) for looks in found] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    other = take(ledger, bundles[0], tmp_path / "elsewhere", data="another set")
    assert (other.looks, other.bundles) == (1, 1)
    moved = take(ledger, bundles[1], tmp_path / "elsewhere")
    assert (moved.looks, moved.bundles) == (5, 2), "the same images in another place are the same set"
    assert moved.line == read_ledger(ledger)[-1][1]


def test_a_look_that_broke_off_counts(bundles: list[Bundle], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    announce(ledger, tmp_path / "images", bundles[0], "balanced")
    assert take(ledger, bundles[1], tmp_path / "images").looks == 2


def test_it_is_on_record_before_anything_is_read(bundles: list[Bundle], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    announce(ledger, tmp_path / "not there", bundles[0], "balanced")
    entry = json.loads(ledger.read_text())
    assert entry["bundle"]["sha256"] == bundles[0].sha256
    assert len(entry["config_sha256"]) == 64
    assert str(tmp_path) not in ledger.read_text(), "names no place of this machine"


@pytest.mark.parametrize("harm", ["change", "remove", "insert", "garbage"])
def test_other_hands_are_noticed(harm: str, bundles: list[Bundle], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    for _ in range(3):
        take(ledger, bundles[0], tmp_path / "images")
    lines = ledger.read_text().splitlines(keepends=True)
    if harm == "change":
        lines[1] = lines[1].replace("0.9", "0.8")
    elif harm == "remove":
        del lines[2]
    elif harm == "insert":
        lines.insert(3, lines[1])
    else:
        lines[4] = "\x00\n"
    ledger.write_text("".join(lines))
    with pytest.raises(DataError, match=r"line \d does not follow") as caught:
        announce(ledger, tmp_path / "images", bundles[0], "balanced")
    assert caught.value.remedy
    assert ledger.read_text() == "".join(lines)


def test_two_at_once_make_one_chain(bundles: list[Bundle], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: take(ledger, bundles[i % 2], tmp_path / "images"), range(16)))
    assert len(read_ledger(ledger)) == 32


def test_no_look_without_a_record(bundles: list[Bundle], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        announce(tmp_path / "file" / "ledger.jsonl", tmp_path / "images", bundles[0], "balanced")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "mine.jsonl"))
    assert ledger_file() == tmp_path / "mine.jsonl"
    monkeypatch.delenv("PNEUMOSCOPE_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert ledger_file() == tmp_path / "pneumoscope" / "ledger.jsonl"


def test_a_torn_line_is_written_over(bundles: list[Bundle], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    take(ledger, bundles[0], tmp_path / "images")
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"kind": "opened", "sou')
    assert take(ledger, bundles[0], tmp_path / "images").looks == 2
    assert ledger.read_bytes().startswith(whole + b'{"kind": "opened", "source"')
    assert len(read_ledger(ledger)) == 4
