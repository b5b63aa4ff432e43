"""Which images a command was given: paths, a list in a file or on standard input; and where its lines may go."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import say

Paths = Annotated[
    list[str] | None,
    typer.Argument(help="Image files, folders or quoted globs; - reads a list of them from stdin.", show_default=False),
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from-file", help="A list of paths, one a line or separated by NUL, as of find -print0; - is stdin."
    ),
]


def wanted(paths: list[str] | None, from_file: Path | None) -> list[str]:
    """Return the images of all that was given, and say what in its folders was left out.

    Raises:
        ConfigError: nothing was given.
        DataError: a folder holds no images.
        StorageError: the list cannot be read.
    """
    from pneumoscope.errors import ConfigError
    from pneumoscope.images.find import find, left_out_text

    names: list[str] = []
    lists = [] if from_file is None else [str(from_file)]
    for name in paths or ():
        names += listed("-") if name == "-" else [name]
    for name in lists:
        names += listed(name)
    if not names:
        given = "the list is empty" if lists or paths else "no images were given"
        raise ConfigError(given, remedy="give files or folders, or a list by --from-file")
    found = find(names)
    if found.left_out:
        say(f"left out: {left_out_text(found.left_out)}")
    return list(found.files)


def listed(name: str) -> list[str]:
    """Return the paths of a list, `-` for standard input: separated by NUL where it has any, else one a line."""
    from pneumoscope.errors import storage_errors

    with storage_errors(name):
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    parts = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(part) for part in parts if part.strip()]


def refuse_overwriting(jsonl: Path | None, append: bool) -> None:
    """Raise `ConfigError` where lines of an earlier run would be lost, or there is no file to append to."""
    from pneumoscope.errors import ConfigError

    if append and jsonl is None:
        raise ConfigError("lines are appended to a file", remedy="give --jsonl FILE")
    if jsonl is not None and not append and jsonl.is_file() and jsonl.stat().st_size > 0:
        raise ConfigError(
            "holds lines already, which would be lost", path=jsonl, remedy="add --append, or choose another --jsonl"
        )
