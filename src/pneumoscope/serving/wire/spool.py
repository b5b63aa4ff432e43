"""The file into which an object is received: it keeps an error until the sender can be answered.

pynetdicom writes in the thread that reads the network, where an error ends the association without a reason. So a full
disk is noted, later bytes are dropped, and the complete request is refused with that reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from pynetdicom.association import Association

from pneumoscope.errors import ImageError, PneumoscopeError, storage_errors
from pneumoscope.serving.wire.internals import half_sent, receive_into

_EVERY = 16 << 20  # bytes between two checks of the free space


class Spool:
    """A file in `folder`, as pynetdicom uses one. `fault`: why it is incomplete, else None.

    `most`: bytes it may take. `room`: raises `StorageError` where the disk is too full.
    """

    def __init__(self, folder: Path, most: int, room: Callable[[], None], **ignored: Any) -> None:
        self.fault: PneumoscopeError | None = None
        self.name = str(folder / "none")
        self._folder, self._most, self._room = folder, most, room
        self._size, self._looked = 0, 0
        self._stream: IO[bytes] | None = None
        self._try(self._open)

    @property
    def file(self) -> Self:
        """The object that pynetdicom flushes after each write."""
        return self

    def write(self, data: bytes) -> int:
        """Append; after a fault, drop the bytes."""
        self._try(lambda: self._append(data))
        return len(data)

    def flush(self) -> None:
        """Hand written bytes to the system."""
        self._try(lambda: None if self._stream is None else self._stream.flush())

    def close(self) -> None:
        """Close the file; it stays."""
        self._try(lambda: None if self._stream is None else self._stream.close())
        self._stream = None

    def remove(self) -> None:
        """Close the file and remove it."""
        self.close()
        Path(self.name).unlink(missing_ok=True)

    def _open(self) -> None:
        self._room()
        self._stream = tempfile.NamedTemporaryFile(dir=self._folder, suffix=".dcm", delete=False)  # noqa: SIM115
        self.name = self._stream.name

    def _append(self, data: bytes) -> None:
        if self._stream is None:
            return
        self._size += len(data)
        if self._size > self._most:
            raise ImageError(f"the object is larger than {self._most >> 20} MB", path=self.name)
        if self._size - self._looked >= _EVERY:
            self._looked = self._size
            self._room()
        self._stream.write(data)

    def _try(self, act: Callable[[], object]) -> None:
        if self.fault is not None:
            return
        try:
            with storage_errors(self._folder):
                act()
        except PneumoscopeError as error:
            self.fault = error
            stream, self._stream = self._stream, None
            if stream is not None:
                Path(self.name).unlink(missing_ok=True)  # first: closing flushes bytes for which there is no space
                _close(stream)


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        return


def spool_into(folder: Path, most: int, room: Callable[[], None]) -> None:
    """Let this process's listeners receive into such files."""
    receive_into(partial(Spool, folder, most, room))


def discard(association: Association) -> None:
    """Remove the half-received object of an association that has ended."""
    half = half_sent(association)
    if isinstance(half, Spool):
        half.remove()
