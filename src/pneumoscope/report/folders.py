"""The files that a report reads: of a run, of an evaluation, of a comparison.

A required file that is missing or damaged raises. An optional one is None, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.errors import DataError, ImageError, StorageError, storage_errors
from pneumoscope.files import read_json
from pneumoscope.images import read_image
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.report import html
from pneumoscope.report.figures import Scored

_TEXT_COLUMNS = ("path", "patient_id", "label", "subtype", "split", "predicted", "reason", "error")
_NEEDED_COLUMNS = ("path", "label", "probability", "predicted")


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """One explained image: original and overlay as files, and what `index.json` says of them."""

    image: Path
    overlay: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Files of an evaluation, or of a run's own validation.

    `predictions` has one row per image: text columns without NaN, `probability` float64 with NaN where the
    image was not analysed, `abstained` bool.
    """

    folder: Path
    metrics: Mapping[str, Any]
    predictions: pd.DataFrame | None
    explanations: tuple[Explained, ...] = ()

    @property
    def estimates(self) -> Mapping[str, Any]:
        """The `metrics` of the contract: name -> `{"value", "ci95", "method"}`."""
        estimates: Mapping[str, Any] = self.metrics.get("metrics") or {}
        return estimates

    def analysed(self) -> pd.DataFrame:
        """Rows with a label, a score and an answer; empty where there are no predictions."""
        if self.predictions is None:
            return pd.DataFrame(columns=[*_TEXT_COLUMNS, "probability", "abstained"])
        table = self.predictions
        keep = table["label"].isin((NORMAL, PNEUMONIA)) & table["probability"].notna()
        return table[keep & (table["error"] == "") & ~table["abstained"]]

    def scored(self, name: str) -> Scored | None:
        """The scores for a curve, None where the images are of one class only or there are none."""
        rows = self.analysed()
        curve = Scored(
            name,
            (rows["label"] == PNEUMONIA).to_numpy(dtype=np.bool_),
            rows["probability"].to_numpy(dtype=np.float64),
            (self.estimates.get("recall") or {}).get("value"),
            (self.estimates.get("specificity") or {}).get("value"),
        )
        return curve if curve.both_classes else None


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Files of one training run."""

    folder: Path
    facts: Mapping[str, Any]
    validation: Evaluation
    evaluation: Evaluation | None = None
    history: pd.DataFrame | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    augmentation: Path | None = None

    @property
    def name(self) -> str:
        """The short name of the run, its folder's name where the file gives none."""
        return str(self.facts.get("name") or self.folder.name)

    @property
    def shown(self) -> Evaluation:
        """The evaluation that stands in front: on held-out images where there is one, else validation."""
        return self.evaluation or self.validation


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: `run.json` or `metrics.json` is missing or not what `pneumoscope train` writes.
    """
    inner = folder / "evaluation"
    augmentation = folder / "figures" / "augmentation.png"
    config = folder / "config.toml"
    return Run(
        folder,
        _needed(folder / "run.json", "pneumoscope train"),
        read_evaluation(folder),
        read_evaluation(inner) if (inner / "metrics.json").is_file() else None,
        _table(folder / "history.csv"),
        _optional(folder / "environment.json"),
        _optional(folder / "bundle" / "card.json"),
        _text(config) if config.is_file() else None,
        augmentation if augmentation.is_file() else None,
    )


def read_evaluation(folder: Path) -> Evaluation:
    """Read `metrics.json`, and where they exist `predictions.csv` and `explanations/index.json`.

    Raises:
        DataError: a file is missing or not what `pneumoscope evaluate` writes.
    """
    return Evaluation(
        folder,
        _needed(folder / "metrics.json", "pneumoscope evaluate"),
        read_predictions(folder / "predictions.csv"),
        tuple(_explanations(folder / "explanations")),
    )


def read_comparison(folder: Path) -> Mapping[str, Any]:
    """Read `comparison.json`; raises `DataError` where it is missing."""
    return _needed(folder / "comparison.json", "pneumoscope compare")


def read_predictions(path: Path) -> pd.DataFrame | None:
    """Read `predictions.csv`, None where there is none; raises `DataError` where a column is missing."""
    table = _table(path)
    if table is None:
        return None
    missing = [name for name in _NEEDED_COLUMNS if name not in table]
    if missing:
        raise DataError(f"lacks the column {', '.join(missing)}", path=path, remedy="write it anew with `evaluate`")
    for name in _TEXT_COLUMNS:
        table[name] = table[name].fillna("").astype(str) if name in table else ""
    table["probability"] = pd.to_numeric(table["probability"], errors="coerce")
    abstained = table["abstained"].astype(str) if "abstained" in table else pd.Series("", index=table.index)
    table["abstained"] = abstained.str.lower().isin(("true", "1", "1.0", "yes"))
    return table


def _explanations(folder: Path) -> Iterator[Explained]:
    index = folder / "index.json"
    if not index.is_file():
        return
    entries = read_json(index)
    if not isinstance(entries, list):
        raise DataError("is not a list of explanations", path=index, remedy="write it anew with `explain`")
    for entry in entries:
        # Only the files beside the index: an index from elsewhere cannot pull other files into the page.
        image, overlay = (folder / Path(str(entry.get(key) or "?")).name for key in ("image", "overlay"))
        yield Explained(image, overlay, entry)


def thumbnail(path: str, source: str | None) -> tuple[str, str]:
    """Return a small copy of an image as a `data:` URI and "", or "" and what is wrong with it."""
    for file in (path, *([str(Path(source) / path)] if source else [])):
        try:
            return html.pixels_uri(read_image(file, at_least=320).pixels), ""
        except (ImageError, StorageError) as error:
            fault = error.what
    return "", fault


# --- files ------------------------------------------------------------------------------------------------


def _needed(path: Path, maker: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError("is missing", path=path, remedy=f"name a folder that `{maker}` wrote")
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", path=path, remedy=f"write it anew with `{maker}`")
    return value


def _optional(path: Path) -> Mapping[str, Any]:
    return _needed(path, "pneumoscope train") if path.is_file() else {}


def _text(path: Path) -> str:
    with storage_errors(path):
        return path.read_text(encoding="utf-8")


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        with storage_errors(path):
            texts = dict.fromkeys(_TEXT_COLUMNS, "str")
            return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"is not a CSV table ({error})", path=path, remedy="write it anew") from error
