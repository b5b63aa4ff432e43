"""What every detector is: fed in append order, its state plain JSON, its share of one budget of false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import numpy as np

from pneumoscope.errors import ConfigError
from pneumoscope.monitoring.stream import Rows

YEAR = timedelta(days=365.25)
DAY_OF_IMAGES = 40.0  # where nothing says how many come
SHARES: Mapping[str, float] = {"windows": 0.5, "sequential": 0.3, "errors": 0.2}
_WINDOWS_A_YEAR = 366  # at most; a busier site has larger windows


@dataclass(frozen=True, slots=True)
class Budget:
    """How many false alarms a year are allowed, and how they are spent; all detectors, streams and families together.

    `images_a_year`, `labels_a_year`: planned; more of them spend more. `size`: images of a window.
    """

    alarms_per_year: float = 1.0
    images_a_year: float = DAY_OF_IMAGES * 365.25
    labels_a_year: float = 3_652.0
    size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be spent; raises `ConfigError`."""
        if not (0 < self.alarms_per_year <= 52):
            raise ConfigError(f"{self.alarms_per_year:g} alarms a year", remedy="allow between 0 and 52, such as 1")
        if self.size < 50:
            raise ConfigError(f"windows of {self.size} images show nothing", remedy="take at least 50")
        if not (self.images_a_year > 0 and self.labels_a_year > 0):
            raise ConfigError("the planned images or labels are not positive", remedy="leave them out")

    @property
    def window(self) -> int:
        """Images of a window: `size`, or more where that would make more windows than days."""
        return max(self.size, int(np.ceil(self.images_a_year / _WINDOWS_A_YEAR)))

    def alpha(self, closed: int) -> float:
        """Return the level of one window, `closed`: how many closed in the last 365 days (union bound).

        Windows share the reference, so they are not independent; a union bound needs no independence.
        """
        planned = max(365.25 / 7, self.images_a_year / self.window)
        return SHARES["windows"] * self.alarms_per_year / max(planned, closed)

    def sequential(self, streams: int) -> float:
        """Return the threshold of each of some streams: their average run length is at least as many images."""
        return max(1, streams) * self.images_a_year / (SHARES["sequential"] * self.alarms_per_year)

    @property
    def errors(self) -> float:
        """Threshold of missed and of false calls: each label goes to one of the two."""
        return self.labels_a_year / (SHARES["errors"] * self.alarms_per_year)


@dataclass(frozen=True, slots=True)
class Detection:
    """A detector's threshold was passed.

    `row`: the journal's row at which. `first`: the row since which the change is seen. `streams`: names of columns, the
    clearest first. `evidence`: plain figures.
    """

    detector: str
    family: str
    streams: Sequence[str]
    row: int
    first: int
    at: str
    since: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Detector(Protocol):
    """Fed with answers in append order, in pieces of any size: how they are cut changes nothing."""

    name: str

    @property
    def after(self) -> int:
        """The row up to which its state holds everything: after a restart rows behind it are fed again."""
        ...

    def step(self, rows: Rows) -> list[Detection]:
        """Take rows; those it has seen are ignored."""
        ...

    def state(self) -> dict[str, Any]:
        """Return its state as plain JSON, for another instance to go on from."""
        ...


def stamp(time: np.datetime64) -> str:
    """Return a time as ISO 8601 in UTC, to the second; empty where there is none."""
    return "" if np.isnat(time) else f"{np.datetime_as_string(time, unit='s')}Z"
