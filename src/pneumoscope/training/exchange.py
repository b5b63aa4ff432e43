"""What training images lend each other, so that it no longer goes with the label: surroundings, framing, style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter

from pneumoscope.config import AugmentConfig
from pneumoscope.images.preparation import Pixels
from pneumoscope.images.style import restyled, style_of
from pneumoscope.lungs import lung_box
from pneumoscope.records import Bools, Floats, Ints

_MARGIN = 0.03  # of the side, kept around the lungs
_SEAM = 0.01  # of the side, standard deviation
_INWARD, _OUTWARD = 0.25, 0.08  # of the lungs' height and width, by which an edge of their box moves at most
_LEAST_STYLE = 0.3  # of the way to the other image's style
_LEAST_CROP = 0.25  # of the side; a smaller crop shows no chest

Crop = tuple[float, float, float, float]  # top, left, height, width in fractions of the side


class Exchange:
    """Changes one training image by others, drawn from (seed, epoch, index) alone.

    `rows`: the training images' rows in `pixels` uint8 [M, S, S]; `positive`: bool [n], which are of pneumonia;
    `lungs`: masks like `pixels`, 0..255, where the config needs them.
    """

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        pixels: Pixels,
        rows: Sequence[int],
        positive: Bools,
        lungs: Pixels | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.pixels, self.rows, self.lungs = pixels, np.asarray(rows), lungs
        self.positive, self.of_class = positive, (np.flatnonzero(~positive), np.flatnonzero(positive))
        self.styles = [style_of(np.asarray(pixels[row])) for row in rows] if config.style else []
        self.boxes = np.zeros((0, 4))
        if lungs is not None and config.lungs + config.framing > 0:
            self.boxes = _boxes(lungs, self.rows)

    def canvas(self, epoch: int, index: int) -> Pixels:
        """Return an image, uint8 [S, S], among another's surroundings and in another's style where that is drawn."""
        row = self.rows[index]
        canvas = np.asarray(self.pixels[row])
        # Each kind has a generator of its own, so that one switched on leaves the draws of the others as they were.
        rng = np.random.default_rng([self.seed, epoch, index, 1])
        if self.lungs is not None and rng.random() < self.config.surroundings:
            other = self.rows[int(rng.integers(len(self.rows)))]
            canvas = in_other_surroundings(canvas, self.lungs[row], self.pixels[other], self.lungs[other])
        rng = np.random.default_rng([self.seed, epoch, index, 2])
        if self.config.style:
            donor = int(rng.choice(self.of_class[not self.positive[index]]))
            shares = (rng.random(2) < self.config.style) * rng.uniform(_LEAST_STYLE, 1, 2)
            canvas = restyled(canvas, self.styles[donor], spectrum=float(shares[0]), greys=float(shares[1]))
        return canvas

    def crop(self, epoch: int, index: int) -> Crop | None:
        """Return the crop of an image where one by the lungs or by another's framing is drawn, else None."""
        rng = np.random.default_rng([self.seed, epoch, index, 3])
        drawn = rng.random()
        if not len(self.boxes) or drawn >= self.config.lungs + self.config.framing:
            return None
        box = self.boxes[index]
        if drawn < self.config.lungs:
            return by_lungs(box, rng)
        return framed_as(box, self.boxes[int(rng.integers(len(self.rows)))])


def _boxes(lungs: Pixels, rows: Ints) -> Floats:
    """Return top, bottom, left, right of the lungs in each row, float64 [n, 4] in fractions of the side."""
    boxes = [lung_box(lungs[row] / np.float32(255), 0) for row in rows]
    return np.asarray(np.array(boxes) / lungs.shape[1])


def by_lungs(box: Floats, rng: np.random.Generator) -> Crop:
    """Return a crop around the lungs, whose box is top, bottom, left, right: half of the edges move inward."""
    height, width = box[1] - box[0], box[3] - box[2]
    inward = np.where(rng.random(4) < 0.5, rng.uniform(0, _INWARD, 4), rng.uniform(-_OUTWARD, 0, 4))
    inward *= [height, -height, width, -width]
    return _inside(*(box + inward))


def framed_as(box: Floats, other: Floats) -> Crop:
    """Return the crop in which lungs with this box lie as those of the other image do, as far as the image goes."""
    scale = (box[1] - box[0]) / (other[1] - other[0]), (box[3] - box[2]) / (other[3] - other[2])
    top, left = box[0] - other[0] * scale[0], box[2] - other[2] * scale[1]
    return _inside(top, top + scale[0], left, left + scale[1])


def _inside(top: float, bottom: float, left: float, right: float) -> Crop:
    top, left, bottom, right = max(0.0, top), max(0.0, left), min(1.0, bottom), min(1.0, right)
    if min(bottom - top, right - left) < _LEAST_CROP:
        return 0.0, 0.0, 1.0, 1.0
    return float(top), float(left), float(bottom - top), float(right - left)


def in_other_surroundings(image: Pixels, lungs: Pixels, other: Pixels, other_lungs: Pixels) -> Pixels:
    """Return an image's lungs among the surroundings of another image, uint8 [S, S].

    `lungs` and `other_lungs`: masks uint8 [S, S], 0..255. A margin stays with the lungs, and so does the area of the
    other lungs; the seam is soft. Where either mask is empty the image is unchanged.
    """
    side = image.shape[0]
    margin, seam = 2 * round(_MARGIN * side) + 1, _SEAM * side
    if not (lungs > 127).any() or not (other_lungs > 127).any():
        return image
    own = maximum_filter(np.maximum(lungs, other_lungs), margin) > 127
    keep = gaussian_filter(own.astype(np.float32), seam)
    return np.asarray(np.round(other + keep * (image.astype(np.float32) - other)), np.uint8)
