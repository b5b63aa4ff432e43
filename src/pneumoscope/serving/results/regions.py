"""Outlines of the evidence on the radiograph."""

from __future__ import annotations

from typing import Any

import numpy as np
from contourpy import LineType, contour_generator
from matplotlib.path import Path
from numpy.typing import NDArray

from pneumoscope.records import FloatArray

LEVEL = 0.5  # of the map's maximum, inside an outline: the full width at half maximum
MOST = 3  # regions; more would hide the anatomy
SMALLEST = 0.05  # of the largest region's area


def outlines(heatmap: FloatArray | None, width: int, height: int) -> list[NDArray[np.float64]]:
    """Return up to three closed outlines, float64 [N, 2] as (column, row) in pixels of the radiograph, largest first.

    `heatmap`: float32 [h, w], stretched over an image of `width` times `height` pixels. Empty for no map, and for one
    without evidence. First and last point are the same; the coordinates lie in 0..width and 0..height.
    """
    if heatmap is None or not np.isfinite(heatmap).all() or heatmap.max() <= 0:
        return []
    # A frame of zeros closes what touches the border of the map.
    framed = np.pad(np.asarray(heatmap, np.float64), 1)
    contours: Any = contour_generator(z=framed, line_type=LineType.Separate).lines(LEVEL * float(heatmap.max()))
    scale = np.array([width / heatmap.shape[1], height / heatmap.shape[0]])
    limits = np.array([width, height])
    drawn = []
    for contour in contours:
        points = np.clip((contour - 0.5) * scale, 0, limits)
        simple = _simplified(points, max(width, height) / 400)
        if _area(simple) > 0:  # negative for a hole
            drawn.append(np.round(simple, 2))
    drawn.sort(key=_area, reverse=True)
    return [points for points in drawn[:MOST] if _area(points) >= SMALLEST * _area(drawn[0])]


def _simplified(points: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Return a closed line with fewer points, at most `tolerance` from the original; the first point stays last."""
    path = Path(points)
    path.simplify_threshold = tolerance
    simple = path.cleaned(simplify=True)
    vertices: NDArray[np.float64] = np.asarray(simple.vertices, np.float64)[np.asarray(simple.codes) != Path.STOP]
    vertices[-1] = vertices[0]
    return vertices


def _area(points: NDArray[np.float64]) -> float:
    """Return the area by Gauss's formula, positive where the higher values lie inside."""
    x, y = points.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2
