"""The error tree is complete, survives a process border, and always speaks in one line."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope import errors
from pneumoscope.errors import ImageError, PneumoscopeError, StorageError, storage_errors

CLASSES = [getattr(errors, name) for name in errors.__all__ if name != "storage_errors"]


def tree(cls: type[PneumoscopeError]) -> set[type[PneumoscopeError]]:
    return {cls}.union(*(tree(child) for child in cls.__subclasses__() if child.__module__ == errors.__name__))


def test_every_error_is_exported_and_drawn() -> None:
    assert set(CLASSES) == tree(PneumoscopeError)
    assert set(CLASSES) == {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    for cls in CLASSES:
        assert cls.__name__ in (errors.__doc__ or ""), f"{cls.__name__} is not in the drawing"
        assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("path", "remedy"), [(None, None), ("a/b.png", None), (Path("a/b.png"), "copy it again")])
def test_pickling_keeps_everything(cls: type[PneumoscopeError], path: Path | str | None, remedy: str | None) -> None:
    error = cls("is wrong", path=path, remedy=remedy)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (again.what, again.path, again.remedy, again.exit_code) == (
        error.what, error.path, error.remedy, error.exit_code,
    )  # fmt: skip
    assert str(again) == str(error)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {cls.exit_code for cls in CLASSES} <= {1, 2, 3}
    assert PneumoscopeError.exit_code == 2
    assert ImageError.exit_code == 3


def test_the_message_is_file_fault_remedy() -> None:
    assert str(ImageError("is empty", path="x.png", remedy="copy it")) == "x.png: is empty; copy it"
    assert str(ImageError("is empty")) == "is empty"


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_a_message_is_one_line(what: str, path: str | None, remedy: str | None) -> None:
    assert len(str(ImageError(what, path=path, remedy=remedy)).splitlines()) <= 1


# --- the disk ---------------------------------------------------------------------------------------------

KNOWN = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EFBIG", "ENOTDIR", "EISDIR", "EEXIST", "ENOENT", "ENAMETOOLONG", "EIO"]


@pytest.mark.parametrize("name", KNOWN)
def test_known_disk_errors_name_the_file_and_the_remedy(name: str) -> None:
    code = getattr(errno, name)
    with pytest.raises(StorageError) as caught, storage_errors("given"):
        raise OSError(code, os.strerror(code))
    assert caught.value.path == "given"
    assert caught.value.remedy
    assert isinstance(caught.value.__cause__, OSError)


def test_the_file_of_the_system_is_more_exact_than_the_given_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file or folder") as caught, storage_errors("given"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.path == str(tmp_path / "absent")


def test_unknown_errors_pass_as_they_are() -> None:
    with pytest.raises(OSError, match="odd") as caught, storage_errors("given"):
        raise OSError(errno.ECONNRESET, "odd")
    assert not isinstance(caught.value, PneumoscopeError)
    with pytest.raises(ZeroDivisionError), storage_errors("given"):
        _ = 1 / 0
