"""What every explanation method takes and gives."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pneumoscope.errors import ConfigError
from pneumoscope.explanation.perturbation import FILLS
from pneumoscope.explanation.segments import SEGMENTS
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Bools, FloatArray, Heatmap

TARGET = "log-odds of pneumonia, not calibrated"
INPUT, ENCODER = "input", "encoder"  # layers: the image, and the last spatial map
_BLANK = 1e-12


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the methods; each uses those that concern it.

    `seed`: of all random draws. `samples`: number of changed images, or steps of an integral; None takes the method's
    own number. `layer`: name of a module, for the CAM family; None takes the
    last spatial map. `segments`: a key of `SEGMENTS`. `fill`: a key of `FILLS`, the content of removed parts.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    seed: int = 0
    samples: int | None = None
    layer: str | None = None
    segments: str = "slic"
    fill: str = "normal"

    def __post_init__(self) -> None:
        if self.seed < 0 or (self.samples is not None and self.samples < 1):
            raise ConfigError("seed or samples is out of range", remedy="a seed is at least 0, samples at least 1")
        for kind, name, choices in (("segments are", self.segments, SEGMENTS), ("fill is", self.fill, FILLS)):
            if name not in choices:
                raise ConfigError(f"no {kind} called {name!r}", remedy=f"use {', '.join(choices)}")


DEFAULTS = Options()


class Method(Protocol):
    """A function from a classifier and uint8 [canvas, canvas] to a heat map; options may be left out."""

    def __call__(self, classifier: Classifier, canvas: Pixels, options: Options = ...) -> Heatmap:
        """Explain one image."""
        ...


def finish(signed: FloatArray, started: float, *, positive: FloatArray | None = None, **facts: Any) -> Heatmap:
    """Return the heat map of a signed map.

    Args:
        signed: float32 [S, S], above zero is evidence for pneumonia.
        started: `time.perf_counter()` of the start.
        positive: float32 [S, S], at least 0, what is shown; None shows the positive part of `signed`.
        facts: further fields of `Heatmap`.
    """
    shown = np.clip(signed, 0, None) if positive is None else positive
    top = float(shown.max())
    blank = not top > _BLANK
    return Heatmap(
        values=np.zeros_like(shown) if blank else np.clip(shown / top, 0, 1).astype(np.float32),
        signed=signed,
        target=TARGET,
        verdict="blank" if blank else "not tested",
        reason="nothing in the map speaks for pneumonia" if blank else None,
        seconds=time.perf_counter() - started,
        **facts,
    )


def energy(heat: FloatArray, mask: Bools) -> float:
    """Return the share of the map's sum inside the mask, 0 for a blank map (Wang et al. 2020, arXiv:1910.01279)."""
    total = float(heat.sum())
    return float(heat[mask].sum()) / total if total > 0 else 0.0
