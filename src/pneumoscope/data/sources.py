"""From a path to a manifest: Kaggle folders, MedMNIST archives, CSV manifests, DICOM folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.data.labels import PLAIN, Labels
from pneumoscope.data.labels import label_map as read_label_map
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.naming import patient_from_name, subtype_from_name
from pneumoscope.data.table import SPLIT_NAMES, read_table, samples_of
from pneumoscope.errors import DataError, ImageError, storage_errors
from pneumoscope.images import age_in_years, dicom_errors, elements, image_errors, is_dicom, read_header
from pneumoscope.images.find import LeftOut, files_in, images_in, nested_copies, why_no_image
from pneumoscope.images.header import text_of
from pneumoscope.images.raster import archive_fault
from pneumoscope.records import NORMAL, PNEUMONIA, SPLITS, Sample

_LAYOUTS = (
    "expected train|val|test/NORMAL|PNEUMONIA/*, NORMAL|PNEUMONIA/*, a MedMNIST .npz, a CSV manifest or DICOM files"
)
_NAME_RULE = "file name (Kermany rule); one patient per image where the name follows no rule"
MANIFEST = "manifest.csv"


def open_source(path: Path | str, label_map: str | Mapping[object, object] | None = None) -> Manifest:
    """Read a data source of any known layout; in a folder that holds a `manifest.csv`, that decides.

    `label_map`: what the source's own labels mean, as `{0: "NORMAL", 1: "PNEUMONIA"}` or `"0=NORMAL,1=PNEUMONIA"`:
    words of a table, names of class folders, numbers of an archive.

    Raises:
        ConfigError: the map is none.
        DataError: the path is missing, or holds nothing that is known, or its table is wrong.

    >>> manifest = pneumoscope.open_source("images")
    >>> manifest.kind, sorted({sample.label for sample in manifest.samples})
    ('csv', ['NORMAL', 'PNEUMONIA'])
    """
    labels, source = read_label_map(label_map), Path(path)
    if not source.exists():
        raise DataError("no such file or folder", path=source, remedy="check the path of --data")
    if source.is_dir() and (source / MANIFEST).is_file():
        return replace(read_csv(source / MANIFEST, labels), source=source)
    if source.is_file():
        reader: Callable[[Path, Labels], Manifest] | None = {
            ".npz": read_medmnist,
            ".csv": read_csv,
        }.get(source.suffix.lower())
        if reader is None:
            raise DataError("is no data source", path=source, remedy=_LAYOUTS)
        return reader(source, labels)
    with storage_errors(source):
        manifest = read_class_folders(source, labels)
        if not manifest.samples:
            manifest = read_dicom_folder(source, labels)
        if not manifest.samples and (inner := _only_folder(source)) is not None:
            return open_source(inner, label_map)
    if not manifest.samples:
        raise DataError("no radiographs were found here", path=source, remedy=_LAYOUTS)
    return manifest


# --- folders ----------------------------------------------------------------------------------------------


def read_class_folders(root: Path, labels: Labels = PLAIN) -> Manifest:
    """Read the Kaggle layout `train|val|test/NORMAL|PNEUMONIA/*`, or one split of it.

    Files that lie elsewhere below it, or are no images, are passed over by name.
    """
    samples: list[Sample] = []
    passed: list[LeftOut] = []
    parts: list[tuple[str | None, Path]] = [
        (name, child) for child in _folders(root) if (name := SPLIT_NAMES.get(child.name.lower()))
    ]
    for split, folder in parts or [(None, root)]:
        for label, classes in sorted(_classes(folder, labels).items()):
            for child in classes:
                left: list[LeftOut] = []
                files = files_in(child, left)
                if not files and not left:
                    raise DataError(
                        "the class folder is empty", path=child, remedy="put its images there or remove the folder"
                    )
                for file in files:
                    if (reason := why_no_image(file)) is None:
                        samples.append(_sample_from_file(file, root, label, split))
                    else:
                        left.append((str(file), reason))
                passed += left
    if samples:
        known = {sample.path for sample in samples} | {name for name, _ in passed}
        passed += _elsewhere(root, known)
    return Manifest(root, "folder", tuple(samples), _NAME_RULE, tuple(passed))


def _classes(folder: Path, labels: Labels) -> dict[str, list[Path]]:
    """Return the class folders of each label; raises `DataError` where two have one name but for capitals."""
    names: dict[str, Path] = {}
    classes: dict[str, list[Path]] = {}
    for child in _folders(folder):
        label = labels.label(child.name)
        if label is None:
            continue
        if names.setdefault(child.name.upper(), child) != child:
            raise DataError("exists twice, in capitals and not", path=child, remedy="merge the two folders")
        classes.setdefault(label, []).append(child)
    return classes


def _elsewhere(root: Path, known: set[str]) -> list[LeftOut]:
    """Return the images below a folder that are in no class folder, and what could not be looked at."""
    left: list[LeftOut] = []
    images = [file for file in files_in(root, left) if why_no_image(file) is None]
    copies = nested_copies(root, images)
    reasons = dict.fromkeys(copies, "the same image as one in an outer folder")
    outside = [(str(file), reasons.get(file, "in no class folder")) for file in images if str(file) not in known]
    return [*outside, *(item for item in left if item[0] not in known)]


def _folders(root: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith(hidden))


def _only_folder(root: Path) -> Path | None:
    """Return the folder in which an archive put everything, such as `chest_xray`, None where there is another one."""
    folders = _folders(root)
    return folders[0] if len(folders) == 1 and not folders[0].is_symlink() else None


def _sample_from_file(file: Path, root: Path, label: str | None, split: str | None) -> Sample:
    return Sample(
        path=str(file),
        patient_id=patient_from_name(file.name) or file.relative_to(root).as_posix(),
        label=label,
        subtype=subtype_from_name(file.name) if label == PNEUMONIA else None,
        split=split,
    )


# --- MedMNIST ---------------------------------------------------------------------------------------------


def read_medmnist(path: Path, labels: Labels = PLAIN) -> Manifest:
    """Read a MedMNIST archive, `{train,val,test}_{images,labels}`: label 1 is pneumonia, patients are unknown.

    Raises:
        DataError: it is no archive, or its images or labels are of a shape or type that cannot be read.
    """
    samples: list[Sample] = []
    try:
        with (
            image_errors(path, "is not a readable NumPy archive", "fetch it again"),
            np.load(path, allow_pickle=False) as archive,
        ):
            names = list(archive.files)
            for split in SPLITS:
                if f"{split}_images" in names and f"{split}_labels" in names:
                    samples.extend(_archive_samples(path, archive, split, labels))
    except ImageError as error:
        raise DataError(error.what, path=path, remedy=error.remedy) from error
    if not samples:
        has = f"; it has {', '.join(names[:8])}" if names else ""
        raise DataError("holds no train_images/train_labels", path=path, remedy=f"use a MedMNIST 2-D archive{has}")
    return Manifest(path, "medmnist", tuple(samples), "none in the archive: every image counts as its own patient")


def _archive_samples(path: Path, archive: Any, split: str, labels: Labels) -> list[Sample]:
    shape, dtype = _archive_header(archive, f"{split}_images")
    if (fault := archive_fault(shape, dtype)) is not None:
        raise DataError(f"{split}_images, {fault}", path=path, remedy="convert it, for instance to uint8 [N, H, W]")
    said_shape, said_dtype = _archive_header(archive, f"{split}_labels")
    rows = int(np.prod(said_shape)) if said_shape else 0
    if said_dtype.kind not in "buifU" or rows != shape[0]:
        raise DataError(
            f"{split}_images and {split}_labels do not fit ({'x'.join(map(str, shape))} {dtype}, and "
            f"{'x'.join(map(str, said_shape))} {said_dtype}; labels must be 0 or 1, one per image)",
            path=path,
            remedy="give each image one label",
        )
    numbers = Labels({"0": NORMAL, "1": PNEUMONIA, "true": PNEUMONIA, "false": NORMAL, **labels.mapped})
    words = archive[f"{split}_labels"].reshape(-1).tolist()
    found = [numbers.label(str(word)) for word in words]
    if None in found:
        raise DataError(
            f"{split}_images and {split}_labels do not fit (labels must be 0 or 1, one per image; "
            f"{words[found.index(None)]!r} is neither)",
            path=path,
            remedy=f"correct it{labels.remedy}",
        )
    return [
        Sample(path=f"{path}#{split}/{row}", patient_id=f"{split}-{row}", label=label, split=split)
        for row, label in enumerate(found)
    ]


def _archive_header(archive: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type from an array's header, without unpacking it."""
    with archive.zip.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


# --- CSV --------------------------------------------------------------------------------------------------


def read_csv(path: Path, labels: Labels = PLAIN) -> Manifest:
    """Read a CSV manifest; its columns are those of `manifest.COLUMNS`, others are kept as covariates."""
    table = read_table(path)
    samples = samples_of(table, labels)
    named = [replace(s, patient_id=s.patient_id or os.path.relpath(s.path, path.parent)) for s in samples]
    rule = "column patient_id" if "patient_id" in table.columns else _NAME_RULE
    return Manifest(path, "csv", tuple(named), rule)


# --- DICOM ------------------------------------------------------------------------------------------------


def read_dicom_folder(root: Path, labels: Labels = PLAIN) -> Manifest:
    """Read a folder of DICOM images; `labels.csv` (path,label, …) beside them adds labels.

    Patient keys are hashes of Patient ID and its issuer, so that no identity leaves the header. Other images among them
    are samples as well, each a patient of its own.
    """
    table = root / "labels.csv"
    labelled = {}
    if table.is_file():
        labelled = {Path(row.path).resolve(): row for row in samples_of(read_table(table), labels)}
    samples: list[Sample] = []
    found, passed = images_in(root)
    for file in found:
        row = labelled.get(file.resolve())
        if not is_dicom(file):
            samples.append(row or _sample_from_file(file, root, None, None))
            continue
        try:
            header = read_header(file)
            with dicom_errors(file, "the DICOM header is damaged", "export it again"):
                if (elements.whole(header, "Rows") or 0) == 0:
                    passed.append((str(file), "the DICOM object has no pixels"))
                else:
                    samples.append(_sample_from_header(file, header, row))
        except ImageError as error:
            passed.append((str(file), error.what))
    if not labelled and not any(is_dicom(Path(sample.path)) for sample in samples):
        samples = []  # loose pictures without labels are no source
    samples = [replace(s, patient_id=s.patient_id or os.path.relpath(s.path, root)) for s in samples]
    passed = [item for item in passed if item[0] != str(table)]
    return Manifest(root, "dicom", tuple(samples), "DICOM Patient ID (hashed)", tuple(passed))


def _sample_from_header(file: Path, header: Any, row: Sample | None) -> Sample:
    def text(name: str) -> str | None:
        return text_of(header, name)

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
