"""Changes that make thirty adults teach a network about children, badly exposed films and lungs full of fluid.

`draw` fixes all numbers, `Change.apply` is then a function of the image alone. Shape: rotation, size (a child's lungs
fill less of the film, between chin and belly), aspect, shift, mirror image, elastic change. Film: gamma, window, uneven
exposure, blur, sharpening, noise, markers, dark surroundings. Disease: opacities painted over lungs whose outline
stays, so that pneumonia does not erase the lung.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn import functional as nnf

from pneumoscope.phantom.synthetic import noise_field
from pneumoscope.records import FloatArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Change:
    """One drawn change of shape; `seed` draws the film and the disease.

    `zoom` over 1 shows more than the film holds; `aspect` over 1 makes the chest narrower; `bend`: [2, 5, 5] shifts in
    fractions of the side. `beside`, `above`, `below`: grey (0..1) beyond the film, or None to go on with its edge.
    """

    angle: float
    zoom: float
    aspect: float
    shift: tuple[float, float]
    flip: bool
    bend: FloatArray
    beside: float | None
    above: float | None
    below: float | None
    seed: int

    def apply(self, image: Pixels, mask: Pixels, size: int) -> tuple[Pixels, Pixels]:
        """Return image and mask (0 or 1), uint8 [size, size], from uint8 [S, S]."""
        grid = self._grid(size)
        both = torch.from_numpy(np.stack([image, mask]))[None].float()
        grey, lungs = (
            nnf.grid_sample(both[:, index : index + 1], grid, padding_mode=mode, align_corners=False)[0, 0].numpy()
            for index, mode in ((0, "border"), (1, "zeros"))
        )
        grey, inside = grey / 255, (lungs > 0.5).astype(np.float32)
        x, y = grid[0, ..., 0].numpy(), grid[0, ..., 1].numpy()
        for beyond, shade in ((y < -1, self.above), (y > 1, self.below), (np.abs(x) > 1, self.beside)):
            if shade is not None:
                grey[beyond] = shade
        rng = np.random.default_rng(self.seed)
        for step, chance in _STEPS:
            if rng.random() < chance:
                grey = step(rng, grey, inside)
        grey = np.nan_to_num(np.clip(grey, 0, 1))
        return np.rint(grey * 255).astype(np.uint8), inside.astype(np.uint8)

    def _grid(self, size: int) -> torch.Tensor:
        """Return where each output pixel comes from: float32 [1, size, size, 2] in -1..1."""
        turn = math.radians(self.angle)
        across, down = self.zoom * self.aspect, self.zoom / self.aspect
        if self.flip:
            across = -across
        theta = torch.tensor(
            [
                [across * math.cos(turn), -down * math.sin(turn), self.shift[0]],
                [across * math.sin(turn), down * math.cos(turn), self.shift[1]],
            ]
        )
        grid = nnf.affine_grid(theta[None].float(), [1, 1, size, size], align_corners=False)
        bend = nnf.interpolate(torch.from_numpy(self.bend)[None], size=(size, size), mode="bicubic", align_corners=True)
        return grid + 2 * bend.permute(0, 2, 3, 1)


def draw(rng: np.random.Generator) -> Change:
    """Draw a change; the same generator state gives the same one."""
    zoom = math.exp(rng.uniform(0, 0.6) if rng.random() < 0.55 else rng.uniform(-0.35, 0))
    aspect = math.exp(rng.normal(0.05, 0.17))
    slack = 0.15 + 0.4 * max(0.0, zoom - 1)
    across, down = rng.uniform(-slack, slack, 2)
    if rng.random() < 0.2:  # the film begins below the apices, as many of children do
        down = zoom / aspect - rng.uniform(0.3, 0.85)
    dark = rng.uniform(0, 0.15)
    return Change(
        angle=rng.normal(0, 7),
        zoom=zoom,
        aspect=aspect,
        shift=(across, down),
        flip=bool(rng.random() < 0.5),
        bend=rng.normal(0, rng.uniform(0, 0.03), (2, 5, 5)).astype(np.float32),
        beside=dark if rng.random() < 0.7 else None,
        above=dark if rng.random() < 0.4 else None,
        below=dark if rng.random() < 0.15 else None,
        seed=int(rng.integers(2**63)),
    )


# --- disease: bright where the lung is, its outline kept --------------------------------------------------


def _opacities(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> FloatArray:
    """Consolidations: soft patches around points of the lungs, as bright as the heart."""
    points = np.argwhere(lungs > 0)
    if not len(points):
        return grey
    size, tissue = len(grey), _tissue(rng, grey, lungs)
    rows, columns = np.mgrid[:size, :size] / size
    for _ in range(rng.integers(1, 5)):
        row, column = points[rng.integers(len(points))] / size
        tall, wide = rng.uniform(0.04, 0.22, 2)
        warp = 1 + 0.5 * noise_field(rng, size, int(rng.integers(5, 16)))
        focus = np.exp(-(((rows - row) / tall) ** 2) - ((columns - column) / wide) ** 2) * warp
        shape = np.clip(focus * rng.uniform(1, 2.5), 0, 1) * rng.uniform(0.3, 1)
        grey = grey + shape * np.maximum(tissue - grey, 0) * np.maximum(lungs, rng.uniform(0, 1))
    return np.asarray(grey, np.float32)


def _white_lung(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> FloatArray:
    """A lung, or its lower part, as bright as the heart: lobar pneumonia, effusion, collapse."""
    side = _one_lung(rng, lungs)
    rows = np.flatnonzero(side.any(axis=1))
    if not len(rows):
        return grey
    size = len(grey)
    level = rows[0] + rng.uniform(-0.3, 0.8) * (rows[-1] - rows[0])
    slope = np.arange(size)[:, None] + rng.normal(0, 0.3) * (np.arange(size)[None] - size / 2)
    filled = 1 / (1 + np.exp(-(slope - level) / (rng.uniform(0.01, 0.08) * size)))
    # Soft edges hide the dome below as well.
    shape = gaussian_filter(side, rng.uniform(1, 10)) * filled * rng.uniform(0.5, 0.97)
    return np.asarray(grey + shape * np.maximum(_tissue(rng, grey, lungs) - grey, 0), np.float32)


def _haze(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> FloatArray:
    """Both lungs nearer to the grey of what surrounds them, evenly or in a net."""
    soft = gaussian_filter(lungs, rng.uniform(1, 8))
    net = 1 + rng.uniform(0, 0.6) * noise_field(rng, len(grey), int(rng.integers(6, 40)))
    shape = np.clip(soft * net, 0, 1) * rng.uniform(0.1, 0.75)
    return np.asarray(grey + shape * (_tissue(rng, grey, lungs) - grey), np.float32)


def _one_lung(rng: np.random.Generator, lungs: FloatArray) -> FloatArray:
    columns = np.flatnonzero(lungs.any(axis=0))
    if not len(columns):
        return lungs
    middle = (columns[0] + columns[-1]) // 2
    side = lungs.copy()
    if rng.random() < 0.5:
        side[:, :middle] = 0
    else:
        side[:, middle:] = 0
    return side


def _tissue(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> float:
    """Return the grey of heart and belly, roughly."""
    around = grey[(lungs == 0) & (grey > 0.2)]
    return float(np.quantile(around, rng.uniform(0.5, 0.95))) if around.size > 100 else 0.7


# --- film -------------------------------------------------------------------------------------------------


def _jaw(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> FloatArray:
    """A child's chin and skull at the upper edge, above the lungs."""
    rows = np.flatnonzero(lungs.any(axis=1))
    size = len(grey)
    bottom = (rows[0] if len(rows) else size // 4) * rng.uniform(0.4, 1.0)
    x = (np.arange(size)[None] - size * rng.normal(0.5, 0.06)) / (size * rng.uniform(0.12, 0.28))
    y = np.arange(size)[:, None] / max(bottom, 1.0)
    shape = gaussian_filter((x * x + y * y < 1).astype(np.float32), rng.uniform(1, 4)) * rng.uniform(0.5, 1)
    return np.asarray(grey + shape * (rng.uniform(0.6, 1) - grey), np.float32)


def _gas(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> FloatArray:
    """Gas in stomach and bowel: as dark as lung, and none."""
    rows, size = np.flatnonzero(lungs.any(axis=1)), len(grey)
    bottom = rows[-1] if len(rows) else size // 2
    y, x = np.mgrid[:size, :size]
    shape = np.zeros_like(grey)
    for _ in range(rng.integers(1, 4)):
        row, column = bottom + rng.uniform(-0.15, 0.25) * size, rng.uniform(0.1, 0.9) * size
        tall, wide = rng.uniform(0.02, 0.1, 2) * size
        shape = np.maximum(shape, ((y - row) / tall) ** 2 + ((x - column) / wide) ** 2 < 1)
    shape = gaussian_filter(shape * (1 - lungs), rng.uniform(0.5, 2.5)) * rng.uniform(0.3, 0.9)
    dark = np.quantile(grey[lungs > 0], 0.2) if lungs.any() else 0.2
    return np.asarray(grey + shape * np.minimum(dark - grey, 0), np.float32)


def _tone(rng: np.random.Generator, grey: FloatArray, _: FloatArray) -> FloatArray:
    low, high = np.quantile(grey, (rng.uniform(0, 0.15), rng.uniform(0.9, 1)))
    if high - low > 0.05:
        grey = np.clip((grey - low) / (high - low), 0, 1)
    black, white = rng.uniform(0, 0.25), rng.uniform(0.6, 1)
    grey = grey ** math.exp(rng.normal(0, 0.4))
    return np.asarray(black + (white - black) * grey, np.float32)


def _uneven(rng: np.random.Generator, grey: FloatArray, _: FloatArray) -> FloatArray:
    line = np.linspace(-1, 1, len(grey))
    slope = rng.normal(0, 0.12) * line[None] + rng.normal(0, 0.2) * line[:, None]
    return np.asarray(grey * (1 + slope) + 0.04 * noise_field(rng, len(grey), 4), np.float32)


def _sharpness(rng: np.random.Generator, grey: FloatArray, _: FloatArray) -> FloatArray:
    if rng.random() < 0.6:
        return np.asarray(gaussian_filter(grey, rng.uniform(0.3, 1.8)), np.float32)
    return np.asarray(grey + rng.uniform(0.3, 1.5) * (grey - gaussian_filter(grey, rng.uniform(1, 6))), np.float32)


def _noise(rng: np.random.Generator, grey: FloatArray, _: FloatArray) -> FloatArray:
    return np.asarray(grey + rng.uniform(0, 0.06) * rng.standard_normal(grey.shape), np.float32)


def _marks(rng: np.random.Generator, grey: FloatArray, _: FloatArray) -> FloatArray:
    """Letters, electrodes and plates, as bright boxes; anywhere, also over the lungs."""
    grey, size = grey.copy(), len(grey)
    for _ in range(rng.integers(1, 4)):
        tall, wide = (int(v) for v in rng.uniform(0.01, 0.09, 2) * size + 1)
        top, left = rng.integers(0, size - tall), rng.integers(0, size - wide)
        grey[top : top + tall, left : left + wide] = rng.uniform(0.6, 1)
    return grey


def _frame(rng: np.random.Generator, grey: FloatArray, lungs: FloatArray) -> FloatArray:
    """Collimated margins; the lung beneath them is seen no more, so it is not asked for."""
    top, bottom, left, right = (int(v) for v in rng.uniform(0, 0.1, 4) * len(grey))
    hidden = np.ones_like(lungs, dtype=bool)
    hidden[top : len(grey) - bottom, left : len(grey) - right] = False
    lungs[hidden] = 0
    return np.where(hidden, np.float32(rng.uniform(0, 0.1)), grey)


_Step = Callable[[np.random.Generator, FloatArray, FloatArray], FloatArray]
_STEPS: tuple[tuple[_Step, float], ...] = (
    (_haze, 0.3), (_gas, 0.3), (_opacities, 0.45), (_white_lung, 0.35), (_jaw, 0.25), (_uneven, 0.5), (_tone, 0.8),
    (_sharpness, 0.5), (_marks, 0.3), (_noise, 0.5), (_frame, 0.15),
)  # fmt: skip


def squashed(image: Image.Image, side: int) -> Pixels:
    """Return uint8 [side, side], the whole image whatever its shape: as the classifier's canvases are."""
    return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR))
