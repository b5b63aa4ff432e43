"""Where class activation maps lie: in the lungs, or always at the same position?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pneumoscope.explanation import METHODS
from pneumoscope.explanation.method import DEFAULTS, Options, energy
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Bools, Estimate, FloatArray, Floats
from pneumoscope.statistics.bootstrap import mean_of

CAMS = ("gradcam", "hirescam", "layercam")


@dataclass(frozen=True, slots=True)
class Attention:
    """The share of a method's maps in the lungs, over images; estimates by patient.

    `inside`: share of the energy in the lungs. `even`: the share that an even map would have there, which is that of
    the lungs in the image. `elsewhere`: the share in the lungs of other patients. `follows`: `inside` less `elsewhere`,
    above 0 where the map goes with the lungs. `constant`: share of the maps' variance that the mean of the others
    explains, 0..1; `constant_lungs`: the same of the lung masks, which are alike too. `hotspot`: share of the mean
    map's strongest twentieth that lies where most images have lung. `blank`: empty maps, left out.
    """

    method: str
    n: int
    blank: int
    inside: Estimate
    even: Estimate
    elsewhere: Estimate
    follows: Estimate
    constant: float
    constant_lungs: float
    hotspot: float
    mean_map: FloatArray

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without the mean map."""
        names = ("inside", "even", "elsewhere", "follows")
        facts = {
            name: getattr(self, name) for name in ("method", "n", "blank", "constant", "constant_lungs", "hotspot")
        }
        return facts | {name: getattr(self, name).as_json() for name in names}


def maps_of(classifier: Classifier, canvases: Pixels, method: str, options: Options = DEFAULTS) -> FloatArray:
    """Return maps float32 [n, S, S] in 0..1, S the network's input size, from uint8 [n, canvas, canvas].

    Raises:
        ConfigError: the network has no spatial map.
    """
    return np.stack([METHODS[method](classifier, canvas, options).values for canvas in canvases])


def attention(
    maps: FloatArray, lungs: Bools, patients: Sequence[str], method: str, *, seed: int = 0
) -> Attention | None:
    """Measure maps, float32 [n, S, S] at least 0, against lungs, bool [n, S, S]; None where under two have content.

    Intervals resample patients. Each map counts alike, whatever its sum.
    """
    full = maps.sum(axis=(1, 2)) > 0
    shown, inside = maps[full].astype(np.float32), lungs[full]
    n = len(shown)
    if n < 2:
        return None
    groups = [patient for patient, use in zip(patients, full, strict=True) if use]
    shown = shown / shown.sum(axis=(1, 2), keepdims=True)
    own = np.array([energy(heat, mask) for heat, mask in zip(shown, inside, strict=True)])
    usual = inside.mean(axis=0, dtype=np.float32)
    others = np.einsum("nij,ij->n", shown, usual, dtype=np.float64)
    others = (n * others - own) / (n - 1)  # without the own lungs
    even = inside.mean(axis=(1, 2), dtype=np.float64)
    mean_map = shown.mean(axis=0)
    strongest = mean_map >= np.quantile(mean_map, 0.95)

    def by_patient(values: Floats) -> Estimate:
        return mean_of(values, seed=seed, groups=groups)

    return Attention(
        method=method,
        n=n,
        blank=int((~full).sum()),
        inside=by_patient(own),
        even=by_patient(even),
        elsewhere=by_patient(others),
        follows=by_patient(own - others),
        constant=explained_by_mean(shown),
        constant_lungs=explained_by_mean(inside.astype(np.float32)),
        hotspot=float((usual[strongest] >= 0.5).mean()),
        mean_map=mean_map,
    )


def grain(classifier: Classifier) -> int | None:
    """Return the cells along a side of a map of the default layer, None where it has no spatial map.

    Raises:
        BundleError: the bundle's PyTorch weights are missing or do not fit.
    """
    side = classifier.bundle.preparation.size
    network = classifier.bundle.network  # built here: made in inference mode, its weights could give no gradients
    with torch.inference_mode():
        last_map = network.encoder(torch.zeros(1, 3, side, side, device=classifier.device))
    return int(last_map.shape[2]) if last_map.ndim == 4 else None  # of both orders the third


def attainable(lungs: Bools, cells: int) -> float:
    """Return the share of energy in the lungs of a map that follows them as well as its grain allows, 0..1.

    `lungs`: bool [n, S, S]; `cells`: of the map along a side. Each cell has its share of lung, and the map is enlarged
    like a CAM. The energy that a coarse map has outside is no fault of the network.
    """
    masks = torch.from_numpy(lungs.astype(np.float32))[:, None]
    grown = F.interpolate(F.adaptive_avg_pool2d(masks, cells), lungs.shape[1:], mode="bilinear", align_corners=False)
    return float(((grown * masks).sum((1, 2, 3)) / grown.sum((1, 2, 3)).clamp_min(1e-9)).mean())


def explained_by_mean(maps: FloatArray) -> float:
    """Return the share of the variance over pixels that the mean of the other maps explains, 0..1, from [n, S, S].

    1 where all maps are equal, and about 0 where no two are alike. Maps are averaged over 4 x 4 pixels first.
    """
    n, side = len(maps), maps.shape[1] // 4 * 4
    flat = (
        maps[:, :side, :side].reshape(n, side // 4, 4, side // 4, 4).mean(axis=(2, 4), dtype=np.float64).reshape(n, -1)
    )
    flat = flat / np.maximum(flat.mean(axis=1, keepdims=True), 1e-12)
    others = (flat.sum(axis=0) - flat) / (n - 1)
    total = ((flat - 1) ** 2).sum()
    return float(np.clip(1 - ((flat - others) ** 2).sum() / total, 0, 1)) if total > 0 else 1.0
