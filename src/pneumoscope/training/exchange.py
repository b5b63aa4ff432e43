"""What training images lend each other, so that it no longer goes with the label: surroundings, framing, style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter

from pneumoscope.config import AugmentConfig
from pneumoscope.images.preparation import Pixels
from pneumoscope.images.style import restyled, style_of
from pneumoscope.lungs import Crop, crop_inside, framed_as, lung_box, lung_sides
from pneumoscope.records import Bools, FloatArray, Floats, Ints

_MARGIN = 0.03  # of the side, kept around the lungs
_SEAM = 0.01  # of the side, standard deviation
_INWARD, _OUTWARD = 0.25, 0.08  # of the lungs' height and width, by which an edge of their box moves at most
_LEAST_STYLE = 0.3  # of the way to the other image's style
_GROWN = 0.04  # of the side, by which what is replaced reaches beyond the lungs at most
NOBODY = -1  # whose lungs an image shows that shows none


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
        self.boxes, self.sides = np.zeros((0, 4)), np.zeros((0, 2, 4), np.int64)
        if lungs is not None and config.transplant:
            self.sides = np.array([lung_sides(lungs[row] > 127) for row in rows])
        if lungs is not None and config.lungs + config.framing > 0:
            self.boxes = boxes_of(lungs, rows)

    def canvas(self, epoch: int, index: int) -> tuple[Pixels, int]:
        """Return an image, uint8 [S, S], changed as drawn, and the index of whose lungs it shows, or `NOBODY`.

        Other surroundings first, then other lungs or none, then another style.
        """
        row, owner = self.rows[index], index
        canvas = np.asarray(self.pixels[row])
        # Each kind has a generator of its own, so that one switched on leaves the draws of the others as they were.
        rng = np.random.default_rng([self.seed, epoch, index, 1])
        if self.lungs is not None and rng.random() < self.config.surroundings:
            other = self.rows[int(rng.integers(len(self.rows)))]
            canvas = in_other_surroundings(canvas, self.lungs[row], self.pixels[other], self.lungs[other])
        if self.lungs is not None and self.config.transplant + self.config.blank:
            canvas, owner = self._lungs_changed(canvas, index, np.random.default_rng([self.seed, epoch, index, 4]))
        rng = np.random.default_rng([self.seed, epoch, index, 2])
        if self.config.style:
            donor = int(rng.choice(self.of_class[not self.positive[owner if owner != NOBODY else index]]))
            shares = (rng.random(2) < self.config.style) * rng.uniform(_LEAST_STYLE, 1, 2)
            canvas = restyled(canvas, self.styles[donor], spectrum=float(shares[0]), greys=float(shares[1]))
        return canvas, owner

    def _lungs_changed(self, canvas: Pixels, index: int, rng: np.random.Generator) -> tuple[Pixels, int]:
        """Return the image with other lungs, none or its own, and whose they are."""
        assert self.lungs is not None
        drawn, mask = rng.random(), self.lungs[self.rows[index]]
        if drawn >= self.config.transplant + self.config.blank or not mask.any():
            return canvas, index
        if drawn >= self.config.transplant:
            return without_lungs(canvas, mask, rng), NOBODY
        # Both classes alike, so that nothing of the image that receives goes with the label.
        donor = int(rng.choice(self.of_class[int(rng.integers(2))]))
        theirs = self.rows[donor]
        if not self.lungs[theirs].any():
            return canvas, index
        return with_other_lungs(canvas, mask, self.sides[index], self.pixels[theirs], self.sides[donor], rng), donor

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


def boxes_of(lungs: Pixels, rows: Sequence[int]) -> Floats:
    """Return top, bottom, left, right of the lungs in these masks, float64 [n, 4] in fractions of the side.

    `lungs`: uint8 [M, S, S], 0..255.
    """
    boxes = [lung_box(lungs[row] / np.float32(255), 0) for row in rows]
    return np.asarray(np.array(boxes) / lungs.shape[1])


def by_lungs(box: Floats, rng: np.random.Generator) -> Crop:
    """Return a crop around the lungs, whose box is top, bottom, left, right: half of the edges move inward."""
    height, width = box[1] - box[0], box[3] - box[2]
    inward = np.where(rng.random(4) < 0.5, rng.uniform(0, _INWARD, 4), rng.uniform(-_OUTWARD, 0, 4))
    inward *= [height, -height, width, -width]
    return crop_inside(*(box + inward))


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


def with_other_lungs(
    image: Pixels, mask: Pixels, sides: Ints, other: Pixels, other_sides: Ints, rng: np.random.Generator
) -> Pixels:
    """Return an image uint8 [S, S] with another's lungs in place of its own, each stretched to its place.

    `mask`: the image's lungs, uint8 [S, S] in 0..255. `sides`, `other_sides`: `lung_sides` of both. Their greys stay
    or are moved to the image's mean and spread; how far beyond the lungs they reach and how soft the seam is are drawn.
    """
    side = len(image)
    donor = Image.fromarray(other)
    canvas = image.astype(np.float32)
    grown = round(_GROWN * side)
    for own, theirs in zip(sides, other_sides, strict=True):
        top, left, bottom, right = own + grown * np.array([-1, -1, 1, 1])
        scale = (theirs[2:] - theirs[:2]) / np.maximum(own[2:] - own[:2], 1)
        (upper, outer), (lower, inner) = theirs[:2] - grown * scale, theirs[2:] + grown * scale
        box = np.clip([outer, upper, inner, lower], 0, side)
        size = right - left, bottom - top
        piece = np.asarray(donor.resize(size, Image.Resampling.BILINEAR, box=tuple(box)), np.float32)
        inside = np.s_[max(0, top) : bottom, max(0, left) : right]
        canvas[inside] = piece[max(0, -top) :, max(0, -left) :][: canvas[inside].shape[0], : canvas[inside].shape[1]]
    if rng.random() < 0.5:
        mean, spread = float(other.mean()), max(1.0, float(other.std()))
        canvas = (canvas - mean) * (float(image.std()) / spread) + float(image.mean())
    return _blended(image, canvas, mask, rng)


def without_lungs(image: Pixels, mask: Pixels, rng: np.random.Generator) -> Pixels:
    """Return an image uint8 [S, S] whose lungs, uint8 [S, S] in 0..255, are one grey, or its own pixels shuffled."""
    if rng.random() < 0.3:
        fill = rng.permutation(image.ravel()).reshape(image.shape).astype(np.float32)
    else:
        grey = rng.choice([0.0, float(image.mean()), rng.uniform(0, 255)])
        fill = np.full(image.shape, grey, np.float32)
    return _blended(image, fill, mask, rng)


def _blended(image: Pixels, inside: FloatArray, mask: Pixels, rng: np.random.Generator) -> Pixels:
    side = len(image)
    grown = 2 * round(float(rng.uniform(0, _GROWN)) * side) + 1
    keep = gaussian_filter((maximum_filter(mask, grown) > 127).astype(np.float32), float(rng.uniform(0, _SEAM)) * side)
    return np.asarray(np.clip(np.rint(image + keep * (inside - image)), 0, 255), np.uint8)
