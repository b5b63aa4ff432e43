"""Files of images that no row names go, and no other ever does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway import chest, gateway

from pneumoscope.errors import StorageError
from pneumoscope.serving.intake import listener
from pneumoscope.serving.intake.receipt import STORED, Intake, Receipt, open_intake, sweep
from pneumoscope.serving.keeping import leftovers
from pneumoscope.serving.store.database import now, open_store

NAME = "ab" + 62 * "0"


@pytest.fixture
def intake(tmp_path: Path, database: dict[str, str]) -> Iterator[Intake]:
    config = gateway(tmp_path, store=database)
    config.images.mkdir()
    store = open_store(config.database, migrate=True)
    yield open_intake(config, store)
    store.close()


def take(intake: Intake) -> Receipt:
    arrival = intake.folder / "arrival.part"
    chest().save_as(arrival, enforce_file_format=True)
    return intake.take(arrival, "test")


def put(intake: Intake, name: str = NAME, days: float = 2) -> Path:
    file = intake.folder / name[:2] / f"{name}.dcm"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"pixels")
    age(file, days)
    return file


def age(file: Path, days: float) -> None:
    moment = now().timestamp() - days * 86400
    os.utime(file, (moment, moment))


def everything(intake: Intake) -> set[Path]:
    return {file for file in intake.folder.rglob("*") if file.is_file()}


def test_only_what_is_old_and_has_no_row_goes(intake: Intake) -> None:
    assert take(intake).outcome == STORED
    (named,) = everything(intake)
    age(named, 400)
    stays = {named, put(intake, "cd" + 62 * "1", days=0.9), put(intake, "readme", days=9), put(intake, NAME[:-1])}
    left = put(intake)
    assert leftovers.remove(intake.folder, intake.store, lambda: False) == 0
    assert left.exists()
    assert leftovers.remove(intake.folder, intake.store) == 1
    assert everything(intake) == stays


def test_what_broken_transfers_left_goes_and_what_others_write_to_stays(tmp_path: Path) -> None:
    names = ("a.dcm", "stow/a.dcm", "orthanc/archive/a.dcm")
    for prefix, days in (("new", 0.0), ("old", 0.5)):
        for name in names:
            file = tmp_path / name.replace("a.dcm", f"{prefix}.dcm")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"half")
            age(file, days)
    assert sweep(tmp_path, older_seconds=3600) == 3
    assert {file.name for file in tmp_path.rglob("*.dcm")} == {"new.dcm"}
    age(tmp_path / "stow" / "new.dcm", 0.5)
    assert sweep(tmp_path, older_seconds=0) == 2, "as the listener starts: its own, and what nobody writes to"
    assert [file.parent.name for file in tmp_path.rglob("*.dcm")] == ["archive"]


def test_an_arrival_that_is_being_written_down_keeps_its_file(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_OLD", -60.0)
    written, ended, counts = threading.Event(), threading.Event(), []
    insert = Intake._insert

    def slowly(*args: Any) -> Receipt:
        receipt = insert(*args)
        written.set()
        ended.wait(1.0)  # what does not wait for this transaction has removed the file by then
        return receipt

    def remove() -> None:
        written.wait(30.0)
        counts.append(leftovers.remove(intake.folder, intake.store))
        ended.set()

    monkeypatch.setattr(Intake, "_insert", slowly)
    remover = threading.Thread(target=remove)
    remover.start()
    assert take(intake).outcome == STORED
    remover.join()
    assert counts == [0]
    assert len(everything(intake)) == 1


def test_an_arrival_whose_file_went_is_refused(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_OLD", -60.0)
    settle, counts = Intake._settle, []

    def too_slow(self: Intake, arrival: Path, path: Path) -> None:
        settle(self, arrival, path)
        counts.append(leftovers.remove(self.folder, self.store))

    monkeypatch.setattr(Intake, "_settle", too_slow)
    with pytest.raises(StorageError):
        take(intake)
    assert counts == [1]
    monkeypatch.undo()
    assert take(intake).outcome == STORED


def test_so_many_are_no_crash(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_MOST", 2)
    monkeypatch.setattr(leftovers, "_NAMES", 2)
    files = {put(intake, f"{number:02x}" + 62 * "0") for number in range(3)}
    with pytest.raises(StorageError, match="older database"):
        leftovers.remove(intake.folder, intake.store)
    listener.clear(intake)  # tells, and goes on
    assert everything(intake) == files


def test_the_receiver_looks_by_itself(intake: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_HOUR", 0.0)
    monkeypatch.setattr(listener, "_BEAT", 0.01)
    config, left, stop = gateway(tmp_path), put(intake), threading.Event()
    config.incoming.mkdir()

    class Listener:
        def __init__(self) -> None:
            self.intake = intake

        def close(self) -> None:
            pass

    def beat() -> None:
        if not left.exists():
            stop.set()

    limit = threading.Timer(60.0, stop.set)
    limit.start()
    listener.run(Listener(), config, stop, beat)  # type: ignore[arg-type]
    limit.cancel()
    assert not left.exists()
