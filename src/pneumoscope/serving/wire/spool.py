"""What an object is written to while it comes in: a file that keeps its fault until the sender can be answered.

pynetdicom writes in the thread that reads the network, where any error ends the association without a word of why.
So a full disk is noted, what follows is dropped, and the request, once it is complete, is refused for that reason.
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

_EVERY = 16 << 20  # bytes between two looks at how much room is left


class Spool:
    """A file in `folder`, as pynetdicom uses one. `fault`: why it is not what was sent; None while it is.

    `most`: bytes it may take. `room`: raises `StorageError` where the disk is too full to go on.
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
        """What is flushed after each write."""
        return self

    def write(self, data: bytes) -> int:
        """Append, or drop what can no longer be kept."""
        self._try(lambda: self._append(data))
        return len(data)

    def flush(self) -> None:
        """Hand over to the system what was written."""
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
                Path(self.name).unlink(missing_ok=True)  # first: to close it flushes what found no room
                _close(stream)


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        return


def spool_into(folder: Path, most: int, room: Callable[[], None]) -> None:
    """Have this process's listeners write what comes into such files."""
    receive_into(partial(Spool, folder, most, room))


def discard(association: Association) -> None:
    """Remove what an association that has ended left half-sent."""
    half = half_sent(association)
    if isinstance(half, Spool):
        half.remove()
