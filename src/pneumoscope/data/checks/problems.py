"""A problem of a data source, and the evidence on which the checks decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from pneumoscope.data.checks.duplicates import Pair
from pneumoscope.data.scan import Scan

EXAMPLES = 10

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: the number of images, groups or patients, the message and the remedy.

    `voids`: a figure measured on this source would be wrong, not only imprecise.
    """

    kind: str
    severity: Severity
    count: int
    message: str
    remedy: str
    examples: tuple[str, ...] = ()
    voids: bool = False


@dataclass(frozen=True)
class Evidence:
    """The input of the checks: the scan, groups of equal pixels, nearly equal pairs, shortcut figures."""

    scan: Scan
    equal: list[list[int]] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)
    shortcuts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """One row per image."""
        return self.scan.table

    def names(self, rows: Sequence[int]) -> str:
        """Return the file names of these rows as `a = b`."""
        return " = ".join(str(self.table["name"][row]) for row in rows)

    def differing(self, groups: Iterable[Sequence[int]], column: str) -> list[Sequence[int]]:
        """Return the groups whose rows have two or more known values in `column`."""
        values = self.table[column]
        return [group for group in groups if values.iloc[list(group)].nunique() > 1]


def of_images(
    table: pd.DataFrame, kind: str, severity: Severity, *, says: tuple[str, str, str], remedy: str
) -> list[Problem]:
    """Return one problem about the images of `table`, none where it has no rows.

    `says`: the verb for one image, the verb for several, and the rest of the sentence.
    """
    if table.empty:
        return []
    one, several, rest = says
    text = f"{amount(len(table), f'image {one}', f'images {several}')} {rest}"
    examples = tuple(str(name) for name in table["name"].head(EXAMPLES))
    return [Problem(kind, severity, len(table), text, remedy, examples)]


def amount(count: int, one: str, several: str) -> str:
    """Write a count with its noun.

    >>> amount(1, "file", "files"), amount(1200, "file", "files")
    ('1 file', '1,200 files')
    """
    return f"{count:,} {one if count == 1 else several}"
