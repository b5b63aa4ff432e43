"""What is written is whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope import files
from pneumoscope.errors import DataError, StorageError
from pneumoscope.files import (
    atomic_folder,
    atomic_path,
    out_folder,
    plain,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_across_the_chunk_border(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "x").write_bytes(data[:size])
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data[:size]).hexdigest() == sha256_bytes(data[:size])


def test_sha256_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent: no such file or folder"):
        sha256_file(tmp_path / "absent")


# --- atomic_path ------------------------------------------------------------------------------------------


def test_a_file_appears_with_its_parents_and_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert names(path.parent) == ["x.txt"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="grew over the allowed size") as caught:
            write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.path == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_folder_in_the_way_is_told_before_the_work(tmp_path: Path) -> None:
    worked = False
    with pytest.raises(StorageError, match="is a folder, a file is needed here"), atomic_path(tmp_path):
        worked = True
    assert not worked


def test_a_file_among_the_parents(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a file where a folder is needed"):
        write_text(tmp_path / "file" / "x.txt", "text")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        write_text(tmp_path / "file" / "deeper" / "x.txt", "text")


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    versions = {letter * 200_000 for letter in "ab"}
    write_text(path, "a" * 200_000)
    done = threading.Event()

    def write() -> None:
        for number in range(40):
            write_text(path, "ab"[number % 2] * 200_000)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_text())
    writer.join()
    assert seen <= versions


# --- atomic_folder ----------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x.txt").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")
    (tmp_path / "f" / "stray").touch()
    fill(tmp_path / "f", "new")
    assert [path.name for path in (tmp_path / "f").rglob("*")] == ["deep", "x.txt"]
    assert (tmp_path / "f" / "deep" / "x.txt").read_text() == "new"
    assert names(tmp_path) == ["f"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "f", "old")

    def fail() -> None:
        with atomic_folder(tmp_path / "f") as temporary:
            (temporary / "x.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "f" / "deep" / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_failed_last_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "f", "old")
    replace = Path.replace

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_new)
    with pytest.raises(StorageError, match="no space left"):
        fill(tmp_path / "f", "new")
    assert (tmp_path / "f" / "deep" / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("kept")
    with pytest.raises(StorageError, match="is a file, a folder is needed here"):
        fill(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "kept"


def test_out_folder(tmp_path: Path) -> None:
    assert out_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file: is a file, a folder is needed here; choose another --out"):
        out_folder(tmp_path / "file")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        out_folder(tmp_path / "file" / "deeper")


# --- JSON -------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def expected(value: Any) -> Any:
    """What JSON can keep of a value."""
    if isinstance(value, dict):
        return {key: expected(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expected(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(VALUES)
def test_json_round_trip(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == expected(value)


def test_numpy_becomes_plain() -> None:
    value = {
        "scalar": np.float32(0.5), "whole": np.int64(3), "flag": np.bool_(True), "nan": np.float64("nan"),
        "array": np.array([[1.0, np.inf]]), "tuple": (1, 2), "path": Path("a/b"), 3: "key",
    }  # fmt: skip
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "scalar": 0.5, "whole": 3, "flag": True, "nan": None,
        "array": [[1.0, None]], "tuple": [1, 2], "path": "a/b", "3": "key",
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b'"\xff"'])
def test_what_is_no_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.json: is not valid JSON .*; write it anew"):
        read_json(tmp_path / "x.json")


def test_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file or folder"):
        read_json(tmp_path / "absent.json")


def test_the_folder_is_synced_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(files, "sync_folder", lambda folder: synced.append((folder, (tmp_path / "x.txt").exists())))
    write_text(tmp_path / "x.txt", "text")
    assert synced == [(tmp_path, True)]


def test_an_interrupt_between_the_renames_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kept"
    target.mkdir()
    (target / "a").write_text("old")
    rename, calls = Path.replace, []

    def interrupted(self: Path, other: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as temporary:
        (temporary / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "scan-\udcff.png")
    assert (tmp_path / "x").read_bytes() == b"scan-\\udcff.png"
