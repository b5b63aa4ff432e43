"""From a path to a manifest: Kaggle folders, MedMNIST archives, CSV manifests, DICOM folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.data.manifest import COLUMNS, Manifest
from pneumoscope.data.naming import patient_from_name, subtype_from_name
from pneumoscope.errors import DataError, ImageError, storage_errors
from pneumoscope.images import (
    RASTER_SUFFIXES,
    age_in_years,
    dicom_errors,
    image_errors,
    in_archive,
    is_dicom,
    read_header,
)
from pneumoscope.records import LABELS, NORMAL, PNEUMONIA, SPLITS, SUBTYPES, Sample

_LAYOUTS = (
    "expected train|val|test/NORMAL|PNEUMONIA/*, NORMAL|PNEUMONIA/*, a MedMNIST .npz, a CSV manifest or DICOM files"
)
_NAME_RULE = "file name (Kermany rule); one patient per image where the name follows no rule"
MANIFEST = "manifest.csv"
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def open_source(path: Path | str) -> Manifest:
    """Read a data source of any known layout; in a folder that holds a `manifest.csv`, that decides.

    Raises:
        DataError: the path is missing, or holds nothing that is known, or its table is wrong.

    >>> manifest = pneumoscope.open_source("images")
    >>> manifest.kind, sorted({sample.label for sample in manifest.samples})
    ('csv', ['NORMAL', 'PNEUMONIA'])
    """
    source = Path(path)
    if not source.exists():
        raise DataError("no such file or folder", path=source, remedy="check the path of --data")
    if source.is_dir() and (source / MANIFEST).is_file():
        return replace(read_csv(source / MANIFEST), source=source)
    if source.is_file():
        reader: Callable[[Path], Manifest] | None = {".npz": read_medmnist, ".csv": read_csv}.get(source.suffix.lower())
        if reader is None:
            raise DataError("is no data source", path=source, remedy=_LAYOUTS)
        return reader(source)
    with storage_errors(source):
        manifest = read_class_folders(source)
        if not manifest.samples:
            manifest = read_dicom_folder(source)
    if not manifest.samples:
        raise DataError("no radiographs were found here", path=source, remedy=_LAYOUTS)
    return manifest


# --- folders ----------------------------------------------------------------------------------------------


def read_class_folders(root: Path) -> Manifest:
    """Read the Kaggle layout `train|val|test/NORMAL|PNEUMONIA/*`, or one split of it."""
    samples: list[Sample] = []
    passed: list[tuple[str, str]] = []
    parts: list[tuple[str | None, Path]] = [
        (name, root / child.name) for child in _folders(root) if (name := _SPLIT_NAMES.get(child.name.lower()))
    ]
    for split, folder in parts or [(None, root)]:
        classes: dict[str, Path] = {}
        for child in _folders(folder):
            if classes.setdefault(child.name.upper(), child) != child:
                raise DataError("exists twice, in capitals and not", path=child, remedy="merge the two folders")
        present = [label for label in LABELS if label in classes]
        if present:
            passed += _of_other_classes(child for name, child in classes.items() if name not in LABELS)
        for label in present:
            files = _files(classes[label])
            if not files:
                raise DataError(
                    "the class folder is empty",
                    path=classes[label],
                    remedy="put its images there or remove the folder",
                )
            for file in files:
                if file.suffix.lower() in RASTER_SUFFIXES or is_dicom(file):
                    samples.append(_sample_from_file(file, root, label, split))
                elif not file.name.startswith("."):
                    passed.append((str(file), "not an image file"))
    return Manifest(root, "folder", tuple(samples), _NAME_RULE, tuple(passed))


def _of_other_classes(folders: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for folder in folders:
        if _SPLIT_NAMES.get(folder.name.lower()):
            continue
        for file in _files(folder):
            if file.suffix.lower() in RASTER_SUFFIXES:
                yield str(file), f"in the class folder {folder.name}, which is neither {' nor '.join(LABELS)}"


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(root: Path) -> list[Path]:
    return sorted(child for child in root.rglob("*") if child.is_file() and not child.name.startswith("."))


def _sample_from_file(file: Path, root: Path, label: str, split: str | None) -> Sample:
    return Sample(
        path=str(file),
        patient_id=patient_from_name(file.name) or file.relative_to(root).as_posix(),
        label=label,
        subtype=subtype_from_name(file.name) if label == PNEUMONIA else None,
        split=split,
    )


# --- MedMNIST ---------------------------------------------------------------------------------------------


def read_medmnist(path: Path) -> Manifest:
    """Read a MedMNIST archive, `{train,val,test}_{images,labels}`: label 1 is pneumonia, patients are unknown."""
    samples: list[Sample] = []
    try:
        with (
            image_errors(path, "is not a readable NumPy archive", "fetch it again"),
            np.load(path, allow_pickle=False) as archive,
        ):
            for split in SPLITS:
                if f"{split}_images" not in archive.files or f"{split}_labels" not in archive.files:
                    continue
                labels = archive[f"{split}_labels"].reshape(-1)
                n = _archive_length(archive, f"{split}_images")
                if n != len(labels) or not np.isin(labels, (0, 1)).all():
                    raise DataError(
                        f"{split}_images and {split}_labels do not fit (labels must be 0 or 1, one per image)",
                        path=path,
                        remedy="fetch the archive again",
                    )
                samples.extend(
                    Sample(
                        path=f"{path}#{split}/{row}",
                        patient_id=f"{split}-{row}",
                        label=PNEUMONIA if value else NORMAL,
                        split=split,
                    )
                    for row, value in enumerate(labels.tolist())
                )
    except ImageError as error:
        raise DataError(error.what, path=path, remedy=error.remedy) from error
    if not samples:
        raise DataError("holds no train_images/train_labels", path=path, remedy="use a MedMNIST 2-D archive")
    return Manifest(path, "medmnist", tuple(samples), "none in the archive: every image counts as its own patient")


def _archive_length(archive: Any, name: str) -> int:
    """Read the shape from the array's header, without unpacking the images."""
    with archive.zip.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(stream)
    return int(shape[0])


# --- CSV --------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> Manifest:
    """Read a CSV manifest; its columns are those of `manifest.COLUMNS`, others are kept as covariates."""
    table = _read_table(path)
    samples = _samples_from_table(path, table)
    named = [replace(s, patient_id=s.patient_id or os.path.relpath(s.path, path.parent)) for s in samples]
    rule = "column patient_id" if "patient_id" in table.columns else _NAME_RULE
    return Manifest(path, "csv", tuple(named), rule)


def _read_table(path: Path) -> pd.DataFrame:
    with storage_errors(path):
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            first = str(error).strip().split("\n", maxsplit=1)[0]
            raise DataError(
                f"is not a readable CSV table ({first})", path=path, remedy="save it as UTF-8 CSV"
            ) from error
    missing = [name for name in ("path", "label") if name not in table.columns]
    if missing:
        raise DataError(
            f"lacks the column {' and '.join(missing)}",
            path=path,
            remedy=f"it has {', '.join(map(str, table.columns)) or 'none'}; path and label are required",
        )
    if table.empty:
        raise DataError("has no rows", path=path, remedy="list at least one image")
    return table


def _samples_from_table(path: Path, table: pd.DataFrame) -> list[Sample]:
    """Return one sample per row; `patient_id` is empty where neither table nor file name gives it."""
    extra = [name for name in table.columns if name not in COLUMNS]
    samples = [_row_to_sample(path, number, row, extra) for number, row in enumerate(table.to_dict("records"), start=2)]
    files = [(s.path, archived[0] if (archived := in_archive(s.path)) else Path(s.path)) for s in samples]
    absent = [name for name, file in files if not file.is_file()]
    if absent:
        raise DataError(
            f"names {len(absent)} of {len(samples)} images that do not exist, the first is {absent[0]}",
            path=path,
            remedy="paths are relative to the CSV file",
        )
    return samples


def _row_to_sample(path: Path, number: int, row: dict[Any, Any], extra: list[str]) -> Sample:
    def value(name: str) -> str | None:
        return str(row.get(name, "")).strip() or None

    def one_of(name: str, words: tuple[str, ...], fold: Callable[[str], str]) -> str | None:
        text = value(name)
        if text is not None and fold(text) not in words:
            raise DataError(
                f"line {number}: {name} {text!r} is unknown",
                path=path,
                remedy=f"use {', '.join(words)} or leave it empty",
            )
        return None if text is None else fold(text)

    name = value("path")
    if name is None:
        raise DataError(f"line {number}: the path is empty", path=path, remedy="fill it in or delete the line")
    age = value("age_years")
    try:
        age_years = None if age is None else float(age)
        if age_years is not None and not 0 <= age_years <= 130:
            raise ValueError
    except ValueError:
        raise DataError(
            f"line {number}: age_years {age!r} is no age", path=path, remedy="give years, e.g. 4.5"
        ) from None
    return Sample(
        path=os.path.normpath(path.parent / name),
        patient_id=value("patient_id") or patient_from_name(name) or "",
        label=one_of("label", LABELS, str.upper),
        subtype=one_of("subtype", SUBTYPES, str.lower),
        split=one_of("split", SPLITS, str.lower),
        site=value("site"),
        age_years=age_years,
        sex=value("sex"),
        view=value("view"),
        covariates={column: str(row[column]) for column in extra},
    )


# --- DICOM ------------------------------------------------------------------------------------------------


def read_dicom_folder(root: Path) -> Manifest:
    """Read a folder of DICOM images; `labels.csv` (path,label, …) beside them adds labels.

    Patient keys are hashes of Patient ID and its issuer, so that no identity leaves the header.
    """
    labels = root / "labels.csv"
    labelled = {}
    if labels.is_file():
        labelled = {Path(row.path).resolve(): row for row in _samples_from_table(labels, _read_table(labels))}
    samples: list[Sample] = []
    passed: list[tuple[str, str]] = []
    for file in _files(root):
        if file == labels or not is_dicom(file):
            continue
        try:
            header = read_header(file)
            with dicom_errors(file, "the DICOM header is damaged", "export it again"):
                if int(header.get("Rows") or 0) == 0:
                    passed.append((str(file), "the DICOM object has no pixels"))
                else:
                    samples.append(_sample_from_header(file, header, labelled.get(file.resolve())))
        except ImageError as error:
            passed.append((str(file), error.what))
    return Manifest(root, "dicom", tuple(samples), "DICOM Patient ID (hashed)", tuple(passed))


def _sample_from_header(file: Path, header: Any, row: Sample | None) -> Sample:
    def text(name: str) -> str | None:
        return str(header.get(name, "") or "").strip() or None

    identity = "\0".join([text("PatientID") or text("StudyInstanceUID") or str(file), text("IssuerOfPatientID") or ""])
    hashed = "dicom-" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    covariates = {
        name: value
        for name in (
            "Manufacturer",
            "ManufacturerModelName",
            "KVP",
            "PhotometricInterpretation",
            "BodyPartExamined",
        )
        if (value := text(name))
    }
    return Sample(
        path=str(file),
        patient_id=(row.patient_id if row else "") or hashed,
        label=row.label if row else None,
        subtype=row.subtype if row else None,
        split=row.split if row else None,
        site=(row.site if row else None) or text("InstitutionName"),
        age_years=row.age_years if row and row.age_years is not None else age_in_years(text("PatientAge")),
        sex=(row.sex if row else None) or text("PatientSex"),
        view=(row.view if row else None) or text("ViewPosition"),
        covariates={**covariates, **(dict(row.covariates) if row else {})},
    )
