"""Seeded divisions that never cut a patient in two and keep the mix of classes and subtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from pneumoscope.config import DataConfig
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.records import Sample


def folds(samples: Sequence[Sample], k: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield k pairs of (rest, part) index lists; every patient is in exactly one part.

    Stratified by label and subtype (scikit-learn's StratifiedGroupKFold).

    Raises:
        DataError: fewer patients than parts in a class.
    """
    strata = [f"{sample.label}/{sample.subtype}" for sample in samples]
    groups = [sample.patient_id for sample in samples]
    for label in sorted({str(sample.label) for sample in samples}):
        patients = {sample.patient_id for sample in samples if str(sample.label) == label}
        if len(patients) < k:
            raise DataError(
                f"class {label} has {len(patients)} patients, too few for {k} parts",
                remedy="use fewer folds or larger fractions",
            )
    # Few patients of one subtype may not reach every part, and scikit-learn would warn about that.
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    smallest = min(strata.count(stratum) for stratum in set(strata))
    y = strata if smallest >= k else [str(sample.label) for sample in samples]
    for rest, part in splitter.split(np.zeros(len(samples)), y, groups):
        yield rest.tolist(), part.tolist()


def part_off(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return (rest, part) index lists with about `fraction` of the images in the part, patients whole."""
    # Twenty fine folds put together reach any fraction to within 2.5 points, at least one fold.
    patients = len({sample.patient_id for sample in samples})
    k = min(20, max(2, patients // 4))
    parts = [part for _, part in _fine(samples, k, seed)]
    take = min(max(1, round(fraction * len(parts))), len(parts) - 1)
    chosen = sorted(index for part in parts[:take] for index in part)
    inside = set(chosen)
    return [index for index in range(len(samples)) if index not in inside], chosen


def _fine(samples: Sequence[Sample], k: int, seed: int) -> list[tuple[list[int], list[int]]]:
    smallest = min(
        len({s.patient_id for s in samples if s.label == label}) for label in {sample.label for sample in samples}
    )
    if smallest < 2:
        raise DataError(
            "a class has only one patient, so it cannot be in two parts",
            remedy="add images of other patients",
        )
    return list(folds(samples, min(k, smallest), seed))


def divide(manifest: Manifest, config: DataConfig, seed: int) -> Manifest:
    """Return the manifest with every sample's `split` set to train, val or test.

    A source with a test part keeps it as it is: `test_fraction` is for sources without one.

    Raises:
        DataError: a class is missing, or the source's own split was asked for and it has none.
    """
    manifest = manifest.labelled().require_both_classes("training")
    if config.split == "source":
        for name in ("train", "val"):
            manifest.select(name).require_both_classes(f"split {name!r}")
        return _disjoint(manifest)
    test = [sample for sample in manifest.samples if sample.split == "test"]
    samples = [sample for sample in manifest.samples if sample.split != "test"]
    if not samples:
        raise DataError("every image is marked test", path=manifest.source, remedy="give training images")
    test_patients = {sample.patient_id for sample in test}
    samples = [sample for sample in samples if sample.patient_id not in test_patients]
    if not samples:
        raise DataError(
            "every patient has an image marked test", path=manifest.source, remedy="give images of other patients"
        )
    try:
        names = _names(samples, config, seed, kept=bool(test))
    except DataError as error:
        raise DataError(error.what, path=manifest.source, remedy=error.remedy) from error
    divided = [replace(sample, split=name) for sample, name in zip(samples, names, strict=True)]
    result = replace(manifest, samples=tuple(divided + test))
    for name in ("train", "val"):
        result.select(name).require_both_classes(f"split {name!r}")
    return result


def divide_by_site(manifest: Manifest, site: str, config: DataConfig, seed: int) -> Manifest:
    """Return the manifest with one site's images as `test` and the others divided into train and val.

    A patient who was at several sites belongs to the one of most of the images, the first of equals. It is harder than
    a random division, in which a machine that goes with the label is in every part.

    Raises:
        DataError: no image is of this site, or a class is missing in a part.
    """
    manifest = manifest.labelled()
    counts: dict[str, Counter[str]] = {}
    for sample in manifest.samples:
        counts.setdefault(sample.patient_id, Counter())[sample.site or ""] += 1
    away = {patient for patient, sites in counts.items() if sites.most_common(1)[0][0] == site}
    marked = [replace(s, split="test" if s.patient_id in away else None) for s in manifest.samples]
    if not away:
        names = ", ".join(sorted({sample.site or "" for sample in manifest.samples}))
        raise DataError(f"no image is of {site!r}", path=manifest.source, remedy=f"choose one of {names}")
    plain = config.model_copy(update={"split": "grouped", "test_fraction": 0.0, "folds": None})
    return divide(replace(manifest, samples=tuple(marked)), plain, seed)


def _disjoint(manifest: Manifest) -> Manifest:
    split_of: dict[str, str | None] = {}
    for sample in manifest.samples:
        if split_of.setdefault(sample.patient_id, sample.split) != sample.split:
            raise DataError(
                f"patient {sample.patient_id!r} is in the splits {split_of[sample.patient_id]} and {sample.split}",
                path=manifest.source,
                remedy='divide anew with data.split = "grouped"',
            )
    return manifest


def _names(samples: Sequence[Sample], config: DataConfig, seed: int, *, kept: bool) -> list[str]:
    """Return the split of each sample: test first, unless the source has one that is kept, then val from the rest."""
    names = ["train"] * len(samples)
    rest = list(range(len(samples)))
    if config.folds is not None:
        rest, part = list(folds(samples, config.folds, seed))[config.fold]
        _assign(names, part, "test")
    elif config.test_fraction and not kept:
        rest, part = part_off(samples, config.test_fraction, seed)
        _assign(names, part, "test")
    left = [samples[index] for index in rest]
    _, part = part_off(left, config.val_fraction * len(samples) / len(left), seed + 1)
    _assign(names, [rest[index] for index in part], "val")
    return names


def _assign(names: list[str], indices: Sequence[int], name: str) -> None:
    for index in indices:
        names[index] = name
