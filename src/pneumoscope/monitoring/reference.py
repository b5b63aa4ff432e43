"""The reference: what was usual, by patient, tied to one bundle, without identity, in one JSON file.

Arrays are base64 of little-endian numbers: the values of every column to half precision, scores to single.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError
from pneumoscope.files import read_json, sha256_bytes, write_json
from pneumoscope.monitoring.permutation import Sums, permuted, sums_of
from pneumoscope.monitoring.stream import OLD, Rows
from pneumoscope.monitoring.streams import Column, as_json, columns_of, said, values_of
from pneumoscope.records import Floats, Ints
from pneumoscope.version import __version__

SCHEMA = 1
LEAST_IMAGES, LEAST_PATIENTS = 300, 100
MOST_IMAGES = 8_000  # a seeded sample of patients beyond: the file stays under 5 MB
LARGEST_SHARE = 0.5  # of the images, that one patient may have
DRIFT_ALPHA = 0.001  # of the first half against the second
_PACKED = {"values": "<f2", "patients": "<i4", "logit": "<f4", "probability": "<f4", "truth": "|i1"}


@dataclass(frozen=True, eq=False)
class Reference:
    """What was usual.

    `values`: float64 [n, m] as `columns` have them. `patients`: int64 [n] from 0. `logit`, `probability`: [n], NaN
    where the image was not answered. `truth`: int8 [n], 1 pneumonia, 0 normal, -1 not known. `errors`: for `missed` and
    `false`, the share and its upper 95 % bound among pneumonia and normal, with where they come from. `facts`: source,
    period, images a day, sites and devices as hashes of their pseudonyms.
    """

    bundle: str
    bundle_sha256: str
    threshold: float
    columns: Sequence[Column]
    values: Floats
    patients: Ints
    logit: Floats
    probability: Floats
    truth: NDArray[np.int8]
    errors: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def sums(self) -> Sums:
        """Sums over patients, which tests permute."""
        return sums_of(self.values, self.patients)

    @property
    def identity(self) -> str:
        """SHA-256 of what it holds, lower-case hex."""
        return sha256_bytes(repr(_plain(self)).encode())

    def position(self, name: str) -> int | None:
        """Return where a column is, None where the reference does not watch it."""
        return next((place for place, column in enumerate(self.columns) if column.name == name), None)


def fit(
    rows: Rows,
    *,
    truth: NDArray[np.int8] | None = None,
    errors: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any],
    path: Path | None = None,
    check_drift: bool = True,
    seed: int = 0,
) -> Reference:
    """Make a reference of answers of one bundle.

    `truth`: int8 [n], -1 where not known. `errors`: of the bundle's card, where the rows have no labels. `path`: whom a
    refusal names. `check_drift`: whether the order of the rows is that of time.

    Raises:
        DataError: too few images or patients, several bundles, one class, half the images of one patient, or a
            drift within; with numbers and the remedy.
    """
    _refuse_mixed(rows, path)
    patients = rows.patients
    _refuse_small(rows, patients, path)
    truth = np.full(len(rows), -1, np.int8) if truth is None else truth
    _refuse_one_class(rows, truth, path)
    kept = _sampled(patients, seed)
    rows, truth = rows.take(kept), truth[kept]
    patients = np.unique(patients[kept], return_inverse=True)[1].astype(np.int64)
    columns = columns_of(rows)
    values = values_of(rows, columns)
    if check_drift:
        _refuse_drift(values, patients, columns, path, seed)
    known = {
        "pneumoscope": __version__,
        "images": len(rows),
        "patients": int(patients.max()) + 1,
        "labelled": int((truth >= 0).sum()),
        "patient_known": float((rows.text["patient"] != "").mean()),
        "from_archive": float((rows.number["delay"] > OLD).mean()),
        "sites": _hashes(rows.text["site"]),
        "devices": _hashes(rows.text["device"]),
        "first": _day(rows.at.min()),
        "last": _day(rows.at.max()),
        "images_a_day": _pace(rows),
    }
    return Reference(
        next((str(name) for name in rows.text["name"][::-1] if name), "").partition("@")[0],
        rows.newest_bundle,
        float(np.nanmedian(rows.number["threshold"])),
        columns,
        values.astype("<f2").astype(np.float64),  # what is kept is what is tested
        patients,
        rows.number["logit"].astype("<f4").astype(np.float64),
        rows.number["probability"].astype("<f4").astype(np.float64),
        truth.astype(np.int8),
        dict(errors or {}),
        {**known, **facts},
    )


def write(reference: Reference, out: Path) -> None:
    """Write a reference as one JSON file, atomically."""
    write_json(out, _plain(reference))


def read(path: Path) -> Reference:
    """Read a reference; raises `DataError` where it is none, or of a newer version."""
    if not path.is_file():
        raise DataError("there is no such file", path=path, remedy="make one with `pneumoscope monitor fit`")
    stored = read_json(path)
    if not isinstance(stored, dict) or "reference" not in stored:
        raise DataError("is no reference", path=path, remedy="make one with `pneumoscope monitor fit`")
    if stored["reference"] != SCHEMA:
        raise DataError(
            f"was written in format {stored['reference']}, this version knows {SCHEMA}",
            path=path,
            remedy="fit it again with this version",
        )
    try:
        columns = [Column(**column) for column in stored["columns"]]
        arrays = {name: np.frombuffer(base64.b64decode(stored["arrays"][name]), kind) for name, kind in _PACKED.items()}
        n = arrays["patients"].size
        return Reference(
            stored["bundle"]["name"],
            stored["bundle"]["sha256"],
            float(stored["threshold"]),
            columns,
            arrays["values"].reshape(n, len(columns)).astype(np.float64),
            arrays["patients"].astype(np.int64),
            arrays["logit"].astype(np.float64),
            arrays["probability"].astype(np.float64),
            arrays["truth"].astype(np.int8),
            stored["errors"],
            stored["facts"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"is damaged ({error})", path=path, remedy="fit it again") from error


def _plain(reference: Reference) -> dict[str, Any]:
    arrays = {
        name: base64.b64encode(np.ascontiguousarray(getattr(reference, name), kind).tobytes()).decode("ascii")
        for name, kind in _PACKED.items()
    }
    return {
        "reference": SCHEMA,
        "bundle": {"name": reference.bundle, "sha256": reference.bundle_sha256},
        "threshold": reference.threshold,
        "facts": dict(reference.facts),
        "errors": dict(reference.errors),
        "columns": [as_json(column) for column in reference.columns],
        "arrays": arrays,
    }


# --- refusals ---------------------------------------------------------------------------------------------


def _refuse_mixed(rows: Rows, path: Path | None) -> None:
    named = rows.text["bundle"][rows.text["bundle"] != ""]
    bundles, counts = np.unique(named, return_counts=True)
    if bundles.size > 1:
        said_ = " and ".join(f"{count:,} of {bundle[:12]}" for bundle, count in zip(bundles, counts, strict=True))
        raise DataError(
            f"holds answers of {bundles.size} bundles: {said_}",
            path=path,
            remedy="choose days on which one bundle answered, with --from and --to",
        )


def _refuse_small(rows: Rows, patients: Ints, path: Path | None) -> None:
    sizes = np.bincount(patients)
    if len(rows) < LEAST_IMAGES or sizes.size < LEAST_PATIENTS:
        raise DataError(
            f"{len(rows):,} images of {sizes.size:,} patients are too few for a reference of {LEAST_IMAGES} images of "
            f"{LEAST_PATIENTS} patients",
            path=path,
            remedy="take more days, or images of a data set with --data",
        )
    if sizes.max() >= LARGEST_SHARE * len(rows):
        raise DataError(
            f"one patient has {sizes.max():,} of {len(rows):,} images",
            path=path,
            remedy="take days on which more patients came: chance is counted by patient",
        )


def _refuse_one_class(rows: Rows, truth: NDArray[np.int8], path: Path | None) -> None:
    known = truth[truth >= 0]
    answered = rows.number["probability"][np.isfinite(rows.number["probability"])]
    one = known.size == len(rows) and np.unique(known).size == 1
    if one or answered.size == 0 or float(answered.std()) < 1e-6:
        what = "all images have one label" if one else "all images have one score, or none"
        raise DataError(what, path=path, remedy="take a period with normal images and with pneumonia")


def _refuse_drift(values: Floats, patients: Ints, columns: Sequence[Column], path: Path | None, seed: int) -> None:
    """Refuse where the later half differs from the earlier; a patient of both counts with the first image's half."""
    n = len(patients)
    first_seen = np.full(int(patients.max()) + 1, n)
    np.minimum.at(first_seen, patients, np.arange(n))
    late = first_seen[patients] >= n // 2
    margins = np.array([column.margin for column in columns])
    halves = [sums_of(values[mask], patients[mask]) for mask in (~late, late)]
    test = permuted(halves[0], halves[1], margins, DRIFT_ALPHA, np.random.default_rng([seed, 5]))
    if test.p <= DRIFT_ALPHA:
        top = int(np.nanargmax(test.t))
        change = said(columns[top], float(test.reference[top]), float(test.window[top]))
        raise DataError(
            f"drifts within: of its first {int((~late).sum()):,} and last {int(late.sum()):,} images, {change}",
            path=path,
            remedy="choose a period in which nothing changed, with --from and --to",
        )


# --- parts ------------------------------------------------------------------------------------------------


def _sampled(patients: Ints, seed: int) -> Ints:
    if patients.size <= MOST_IMAGES:
        return np.arange(patients.size)
    order = np.random.default_rng([seed, 3]).permutation(int(patients.max()) + 1)
    sizes = np.bincount(patients)[order].cumsum()
    chosen = order[sizes <= MOST_IMAGES]
    return np.flatnonzero(np.isin(patients, chosen))


def hashed(name: str) -> str:
    """Return twelve digits that stand for a site or device, from its pseudonym."""
    return sha256_bytes(name.encode())[:12]


def _hashes(names: NDArray[np.str_]) -> dict[str, int]:
    found, counts = np.unique(names[names != ""], return_counts=True)
    return {hashed(str(name)): int(count) for name, count in zip(found, counts, strict=True)}


def _day(time: np.datetime64) -> str | None:
    return None if np.isnat(time) else str(time)[:10]


def _pace(rows: Rows) -> float | None:
    """Return images a day, None where the rows are of less than a week: an import says nothing of the pace."""
    if np.isnat(rows.at).any():
        return None
    days = (rows.at.max() - rows.at.min()) / np.timedelta64(1, "D")
    return round(len(rows) / days, 2) if days >= 7 else None


def errors_of(
    called: NDArray[np.bool_], truth: NDArray[np.int8], patients: Ints, source: str
) -> dict[str, dict[str, Any]]:
    """Return the shares of missed and false calls with their upper 95 % bounds, clustered by patient."""
    from pneumoscope.statistics.proportions import proportion

    found = {}
    for name, mask, wrong in (("missed", truth == 1, ~called), ("false", truth == 0, called)):
        if mask.any():
            found[name] = {**asdict(proportion(wrong[mask], patients[mask])), "n": int(mask.sum()), "source": source}
    return found
