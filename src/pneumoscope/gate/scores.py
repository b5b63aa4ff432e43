"""How unlike the training images an image is, in three figures, each 1 at its limit; NumPy and Pillow alone.

    exposure   the distance of five quantiles of its grey levels (Mahalanobis)
    turned     how much better it would fit turned, or inverted
    unlike     the distance of its coarse layout, and that of what the network's head reads, together

A distance is minus twice the log-density of a Gaussian with some axes of its own and one spread for all others
(Tipping and Bishop, J R Stat Soc B 1999, eq. 7 and 12), constants left out; its logarithm is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from pneumoscope.errors import BundleError
from pneumoscope.images.preparation import Pixels
from pneumoscope.records import FloatArray, Floats

CHECKS = ("exposure", "turned", "unlike")
SIDE = 16  # of the coarse layout, in pixels
TURNS = ("inverted", "turned by 90 degrees", "turned by 180 degrees", "turned by 270 degrees")
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FLAT = 0.02  # added to a layout's contrast (grey 0..1), so that noise in a flat one is not blown up
_PARTS = ("greys", "layout", "features")
_ARRAYS = ("mean", "axes", "spread", "rest")
_TINY = 1e-12
_FACTS = (
    "abstention_rate", "learned", "held_out", "refused_held_out", "tail", "fits_within", "smallest_side", "ages",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """A Gaussian. `mean`: [d]; `axes`: [k, d], orthonormal; `spread`: [k], variances along them; `rest`: that of all
    other directions.
    """

    mean: Floats
    axes: Floats
    spread: Floats
    rest: float

    def log_distance(self, points: Floats) -> Floats:
        """Return the logarithm of the squared distance of points float64 [n, d], in units of the spread: [n]."""
        away = points - self.mean
        along = away @ self.axes.T
        beside = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        return np.asarray(np.log((along**2 / self.spread).sum(axis=1) + beside / self.rest + _TINY))


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Three densities of the training images, and the limits.

    `centre`, `scale`: [2], of the log-distances of layout and features among held-out images. `middle`, `limit`: [3],
    of the three raw scores.
    """

    densities: Mapping[str, Density]
    centre: Floats
    scale: Floats
    middle: Floats
    limit: Floats
    facts: Mapping[str, Any]

    def scores(self, canvases: Pixels, features: FloatArray) -> Floats:
        """Return float64 [n, 3], in the order of `CHECKS`: 0 is usual, above 1 is refused.

        `canvases`: uint8 [n, canvas, canvas]; `features`: [n, F], what the network's head reads.
        """
        return (raw_scores(self, canvases, features) - self.middle) / (self.limit - self.middle)

    def embedding(self, features: FloatArray) -> NDArray[np.float16]:
        """Return float16 [n, k], where images lie among those learned from, comparable within one bundle alone.

        `features`: [n, F], what the network's head reads, put to length 1; k coordinates along the axes of most
        variance of the training images, from their mean, each within -2..2.
        """
        density = self.densities["features"]
        return np.asarray((directions(features) - density.mean) @ density.axes.T, np.float16)

    def best_turn(self, canvas: Pixels) -> str | None:
        """Return which of `TURNS` makes a canvas uint8 [S, S] one like those learned from; None where none does."""
        distances = turned_distances(self.densities["layout"], canvas[None])[:, 0]
        best = int(distances.argmin())
        usual = float(self.centre[0] + self.facts["fits_within"] * self.scale[0])
        return TURNS[best] if distances[best] <= usual else None

    def to_bytes(self) -> bytes:
        """Return the densities as safetensors."""
        arrays = {
            f"{part}.{name}": np.ascontiguousarray(np.atleast_1d(getattr(self.densities[part], name)), np.float32)
            for part in _PARTS
            for name in _ARRAYS
        }
        return save_tensors(arrays)

    def section(self) -> dict[str, Any]:
        """Return what the card says of the gate: the limits, and whom it was fitted to."""
        numbers = {name: getattr(self, name).tolist() for name in ("centre", "scale", "middle", "limit")}
        return {**self.facts, "checks": list(CHECKS), **numbers}


def read_gate(data: bytes, section: Mapping[str, Any], folder: Any) -> Gate:
    """Return the gate of a bundle from its file's bytes and the card's section.

    Raises:
        BundleError: the file or the section is not a gate of this version.
    """
    try:
        arrays = {name: array.astype(np.float64) for name, array in load_tensors(data).items()}
        densities = {
            part: Density(
                arrays[f"{part}.mean"],
                arrays[f"{part}.axes"],
                arrays[f"{part}.spread"],
                float(arrays[f"{part}.rest"][0]),
            )
            for part in _PARTS
        }
        numbers = [np.asarray(section[name], np.float64) for name in ("centre", "scale", "middle", "limit")]
        centre, scale, middle, limit = numbers
        if tuple(section["checks"]) != CHECKS or [n.shape for n in numbers] != [(2,), (2,), (3,), (3,)]:
            raise ValueError(f"its checks are {section['checks']}")
        if not all(np.isfinite(array).all() for array in (*arrays.values(), *numbers)):
            raise ValueError("some numbers are not finite")
        return Gate(densities, centre, scale, middle, limit, {key: section[key] for key in _FACTS})
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BundleError(
            f"the gate is not of this version ({error})", path=folder, remedy="update Pneumoscope, or train it again"
        ) from error


# --- what is looked at ------------------------------------------------------------------------------------


def raw_scores(gate: Gate, canvases: Pixels, features: FloatArray) -> Floats:
    """Return the three scores float64 [n, 3] before they are put on one scale."""
    density = gate.densities
    layout = density["layout"].log_distance(layouts(thumbnails(canvases)))
    features_distance = density["features"].log_distance(directions(features))
    turned = layout - turned_distances(density["layout"], canvases).min(axis=0)
    apart = (np.stack([layout, features_distance], axis=1) - gate.centre) / gate.scale
    exposure = density["greys"].log_distance(greys(canvases))
    return np.stack([exposure, turned, apart.sum(axis=1)], axis=1)


def greys(canvases: Pixels) -> Floats:
    """Return five quantiles of the grey levels, float64 [n, 5] in 0..1, from uint8 [n, S, S]."""
    flat = canvases.reshape(len(canvases), -1)
    counts = np.stack([np.bincount(image, minlength=256) for image in flat]).cumsum(axis=1) / flat.shape[1]
    return np.asarray(np.stack([(counts < q).sum(axis=1) for q in _QUANTILES], axis=1) / 255.0)


def thumbnails(canvases: Pixels) -> Floats:
    """Return float64 [n, SIDE, SIDE] in 0..1 from uint8 [n, S, S]: means of squares."""
    small = [Image.fromarray(canvas).resize((SIDE, SIDE), Image.Resampling.BOX) for canvas in canvases]
    return np.stack([np.asarray(image, np.float64) for image in small]) / 255


def layouts(thumbs: Floats) -> Floats:
    """Return float64 [n, SIDE²] from thumbnails: mean 0 and contrast near 1, so that no exposure is left."""
    flat = thumbs.reshape(len(thumbs), -1)
    return np.asarray((flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + _FLAT))


def directions(features: FloatArray) -> Floats:
    """Return features float64 [n, F] of length 1: what is seen, not how strongly."""
    values = np.asarray(features, np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _TINY))


def turned_distances(layout: Density, canvases: Pixels) -> Floats:
    """Return the log-distances float64 [4, n] that images would have if they were put right as `TURNS` names it."""
    thumbs = thumbnails(canvases)
    put_right: list[NDArray[Any]] = [1 - thumbs, *(np.rot90(thumbs, times, (1, 2)) for times in (1, 2, 3))]
    return np.stack([layout.log_distance(layouts(turned)) for turned in put_right])
