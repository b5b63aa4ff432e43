"""Fitting a gate: densities to training images, limits to held-out images and a stated rate of abstention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pneumoscope.bundle.bundle import GATE, WEIGHTS, Bundle, write_bundle
from pneumoscope.bundle.runtime import open_runtime
from pneumoscope.errors import DataError, ImageError
from pneumoscope.gate.scores import Density, Gate, directions, greys, layouts, raw_scores, thumbnails
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels, to_input
from pneumoscope.records import FloatArray, Floats

RATE = 0.01  # of held-out images, at most, that a gate refuses
LEAST = 2  # images, of those learned from and of those held out
_AXES: Mapping[str, int] = {"greys": 5, "layout": 20, "features": 64}
_FITS_WITHIN = 2.5  # standard deviations above the mean log-distance: still an image like those learned from
_FLOOR = 1e-6  # of the mean variance: no direction is without spread
_HAIR = 1e-4  # of a standard deviation
_BATCH = 32
_MOST = 5000  # images that a gate is fitted to: more change nothing measurable, and all stay in memory
_MEASURED = 50  # images whose stored size is looked up
_NEW = ("schema", "pneumoscope", "notice", "weights", "sha256", "card_sha256", "evidence", "gate", "runtime")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Images as a bundle sees them. `canvases`: uint8 [n, canvas, canvas]; `features`: float32 [n, F]."""

    canvases: Pixels
    features: FloatArray


def fit_gate(
    learned: Seen,
    held_out: Seen,
    *,
    rate: float = RATE,
    smallest_side: int = 0,
    ages: tuple[float, float] | None = None,
) -> Gate:
    """Fit a gate.

    Args:
        learned: training images: the densities.
        held_out: others of the same source, of other patients: the limits.
        rate: the share of them, 0..1, that the three checks together refuse at most. Where that is less than one
            image, the limits are bounds of one further image by a normal tail (prediction limit, Student's t).
        smallest_side: pixels under which the shorter side of a stored image is too small.
        ages: years, the youngest and the oldest patient that it is meant for; None where nobody knows.

    Raises:
        DataError: there are fewer than `LEAST` images of either.
    """
    counts = len(learned.canvases), len(held_out.canvases)
    if min(counts) < LEAST:
        few = f"{counts[0]} images to learn from and {counts[1]} held out are too few for a gate"
        raise DataError(few, remedy=f"give {LEAST} of each")
    points = {
        "greys": greys(learned.canvases),
        "layout": layouts(thumbnails(learned.canvases)),
        "features": directions(learned.features),
    }
    densities = {name: fit_density(values, _AXES[name]) for name, values in points.items()}
    apart = np.stack(
        [
            densities["layout"].log_distance(layouts(thumbnails(held_out.canvases))),
            densities["features"].log_distance(directions(held_out.features)),
        ],
        axis=1,
    )
    facts: dict[str, Any] = {
        "abstention_rate": rate, "learned": counts[0], "held_out": counts[1],
        "refused_held_out": 0, "tail": "", "fits_within": _FITS_WITHIN, "smallest_side": smallest_side,
        "ages": None if ages is None else list(ages),
    }  # fmt: skip
    scale = np.maximum(apart.std(axis=0), _FLOOR)
    open_gate = Gate(densities, apart.mean(axis=0), scale, np.zeros(3), np.ones(3), facts)
    raw = raw_scores(open_gate, held_out.canvases, held_out.features)
    limit, tail = limits(raw, rate)
    refused = int((raw > limit).any(axis=1).sum())
    facts |= {"refused_held_out": refused, "tail": tail}
    return replace(open_gate, middle=np.median(raw, axis=0), limit=limit, facts=facts)


def fit_density(points: Floats, axes: int) -> Density:
    """Fit a Gaussian to points float64 [n, d]: its first axes, at most one for eight points, and one rest."""
    mean = points.mean(axis=0)
    _, singular, directions_ = np.linalg.svd(points - mean, full_matrices=False)
    variance = singular**2 / max(1, len(points) - 1)
    width = points.shape[1]
    k = max(1, min(axes, len(points) // 8, width - 1))
    floor = max(_FLOOR * float(variance.sum()) / width, 1e-12)
    rest = max(float(variance[k:].sum()) / (width - k), floor)
    # Rounded as they are stored, so that what sets the limits is what is loaded later.
    parts = (mean, directions_[:k], np.maximum(variance[:k], rest))
    mean, axes_, spread = (part.astype(np.float32).astype(np.float64) for part in parts)
    return Density(mean, axes_, spread, float(np.float32(rest)))


def limits(raw: Floats, rate: float) -> tuple[Floats, str]:
    """Return the limits [m] of figures [n, m] of held-out images, and how they were set.

    All checks share one rank, the strictest at which together they refuse no more than `rate` of the images.
    """
    count, checks = raw.shape
    if count * rate < 1:
        bound = stats.t.ppf(1 - rate / checks, count - 1) * np.sqrt(1 + 1 / count)
        spread = np.maximum(raw.std(axis=0, ddof=1), _FLOOR)
        return np.maximum(raw.mean(axis=0) + bound * spread, raw.max(axis=0)), "normal tail, too few images for ranks"
    ordered = np.sort(raw, axis=0)[::-1]
    rank = 0
    while rank + 1 < count and (raw > ordered[rank + 1]).any(axis=1).mean() <= rate:
        rank += 1
    # A hair more: in batches of another size the features differ in the seventh digit.
    return ordered[rank] + _HAIR * np.maximum(raw.std(axis=0), _FLOOR), f"rank {rank + 1} of {count}"


def drawn(rows: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Return at most `_MOST` distinct rows of a cache, ascending, of images that could be read."""
    usable = np.unique([row for row in rows if row >= 0])
    chosen = np.random.default_rng(seed).choice(usable, min(_MOST, usable.size), replace=False)
    return np.sort(chosen)


def least_side(paths: Sequence[str], size: int) -> int:
    """Return the shorter side, in pixels, under which an image is too small: half of `size`, or what was learned from.

    `size`: the network's input. Some fifty of the paths are read; those that cannot be are passed over.
    """
    sides = []
    for path in paths[:: max(1, len(paths) // _MEASURED)]:
        try:
            image = read_image(path)
        except ImageError:
            continue
        sides.append(min(image.width, image.height))
    return min(size // 2, *sides) if sides else 0


def add_gate(
    bundle: Bundle,
    out: Path,
    learned: Pixels,
    held_out: Pixels,
    *,
    rate: float = RATE,
    smallest_side: int = 0,
    ages: tuple[float, float] | None = None,
) -> Gate:
    """Write a bundle again with a gate fitted to canvases uint8 [n, canvas, canvas]; arguments as in `fit_gate`.

    Its answers stay the same, its identity does not: evidence of the ungated bundle is left behind.
    """
    gate = fit_gate(see(bundle, learned), see(bundle, held_out), rate=rate, smallest_side=smallest_side, ages=ages)
    files = {WEIGHTS: (bundle.folder / WEIGHTS).read_bytes(), **bundle.runtime_files(), GATE: gate.to_bytes()}
    files |= bundle.fingerprints_file()
    runtime = {key: value for key, value in bundle.card["runtime"].items() if key != "files"}
    sections = {key: value for key, value in bundle.card.items() if key not in _NEW}
    sections |= {"preparation": asdict(bundle.preparation), "runtime": runtime, "gate": gate.section()}
    write_bundle(out, files, sections)
    return gate


def refit_gate(bundle: Bundle, original: Bundle, out: Path, learned: Pixels, held_out: Pixels, **facts: Any) -> None:
    """Write a bundle that was made from another, with a gate of its own at the other's rate.

    Arguments as in `add_gate`; `smallest_side` and `ages` are the original's where they are not given.
    """
    gate = original.card.get("gate", {})
    carried = {"smallest_side": gate.get("smallest_side", 0), "ages": gate.get("ages")}
    add_gate(bundle, out, learned, held_out, rate=gate.get("abstention_rate", RATE), **{**carried, **facts})


def see(bundle: Bundle, canvases: Pixels) -> Seen:
    """Return canvases uint8 [n, canvas, canvas] with what the bundle's head reads of them."""
    runtime = open_runtime(bundle, features=True)
    parts = []
    for start in range(0, len(canvases), _BATCH):
        inputs = to_input(np.array(canvases[start : start + _BATCH]), bundle.preparation)
        parts.append(runtime.answer(inputs)[1])
    return Seen(canvases, np.concatenate(parts) if parts else np.zeros((0, 1), np.float32))
