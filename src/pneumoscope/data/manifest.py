"""The list of images that every later stage works on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from pneumoscope.errors import DataError
from pneumoscope.files import write_text
from pneumoscope.images import in_archive
from pneumoscope.records import LABELS, Sample

COLUMNS = ("path", "label", "patient_id", "site", "age_years", "sex", "view", "subtype", "split")


@dataclass(frozen=True)
class Manifest:
    """The samples of one source, in a stable order.

    `kind` is `folder`, `medmnist`, `csv` or `dicom`. `patient_rule` says where patient identity comes
    from. `passed_over` lists (path, reason) of files that look like data and were not taken.

    >>> manifest = pneumoscope.open_source("images").select("test")
    >>> ill = manifest.where(lambda sample: sample.label == "PNEUMONIA")
    >>> 0 < len(ill) < len(manifest)
    True
    """

    source: Path
    kind: str
    samples: tuple[Sample, ...]
    patient_rule: str
    passed_over: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def where(self, keep: Callable[[Sample], bool]) -> Manifest:
        """Return the manifest of the samples for which `keep` is true."""
        return replace(self, samples=tuple(sample for sample in self.samples if keep(sample)))

    def select(self, split: str) -> Manifest:
        """Return the samples of one split; raises `DataError` where it has none."""
        part = self.where(lambda sample: sample.split == split)
        if not part.samples:
            splits = sorted({sample.split for sample in self.samples if sample.split})
            raise DataError(
                f"no images in split {split!r}",
                path=self.source,
                remedy=f"the source has {', '.join(splits)}" if splits else "the source is not split",
            )
        return part

    def labelled(self) -> Manifest:
        """Return the samples with a label; raises `DataError` where none has one."""
        part = self.where(lambda sample: sample.label is not None)
        if not part.samples:
            raise DataError(
                "no image has a label",
                path=self.source,
                remedy="use the layout NORMAL/ and PNEUMONIA/, or a CSV with the columns path,label",
            )
        return part

    def require_both_classes(self, purpose: str) -> Manifest:
        """Return self; raises `DataError` where one of the two classes has no image."""
        present = {sample.label for sample in self.samples}
        missing = [label for label in LABELS if label not in present]
        if missing:
            raise DataError(
                f"no {' and no '.join(missing)} images, both classes are needed for {purpose}",
                path=self.source,
                remedy="add images of that class",
            )
        return self

    def frame(self) -> pd.DataFrame:
        """Return one row per sample, with the columns of the CSV manifest and the covariates."""
        rows = []
        for sample in self.samples:
            row = asdict(replace(sample, covariates={}))
            del row["covariates"]
            rows.append({**dict(sample.covariates), **row})
        return pd.DataFrame(rows, columns=[*COLUMNS, *_covariate_names(self.samples)])

    def fingerprint(self) -> str:
        """Return a SHA-256 over the images' names, labels, patients and sizes in bytes.

        It does not depend on the folder of the files, their order, or their division.
        """
        lines = []
        for sample in self.samples:
            archived = in_archive(sample.path)
            file = archived[0] if archived else Path(sample.path)
            size = file.stat().st_size if file.is_file() else -1
            lines.append(json.dumps([Path(sample.path).name, sample.label, sample.patient_id, size]))
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def write_csv(self, path: Path) -> None:
        """Write a CSV manifest that `open_source` reads back; paths are relative to the CSV."""
        frame = self.frame()
        frame["path"] = [os.path.relpath(name, path.parent) for name in frame["path"]]
        write_text(path, frame.to_csv(index=False))


def _covariate_names(samples: Sequence[Sample]) -> list[str]:
    names: dict[str, None] = {}
    for sample in samples:
        names.update(dict.fromkeys(sample.covariates))
    return [name for name in names if name not in COLUMNS]


def counts(samples: Iterable[Sample]) -> dict[str, int]:
    """Return images per label, with `unlabelled` where a label is missing."""
    result: dict[str, int] = {}
    for sample in samples:
        key = sample.label or "unlabelled"
        result[key] = result.get(key, 0) + 1
    return result
