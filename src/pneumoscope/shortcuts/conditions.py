"""Images changed on purpose, so that the answers show which parts the network reads.

The fill of a removed part must carry no information. It is one image, the same for all and so independent of the label:
where everything is removed, all answers are equal and the AUROC is .5 by construction. An image's own pixels, shuffled,
would carry its exposure; black or grey are called pneumonia by some networks.

The outline of the hole carries information too: ill lungs are outlined otherwise. Among children's radiographs the
outline alone had an AUROC of .94 for pneumonia. So the lungs are removed twice: within their own outline, and in one
region that is the same for all images (`lung_region_removed`), which leaves no outline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion
from scipy.spatial import ConvexHull, QhullError

from pneumoscope.images.burned import text_in, widened
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import lung_box, zones
from pneumoscope.predict import Classifier
from pneumoscope.records import Bools, FloatArray, Floats

HOLE = 0.04  # of the side, by which the hulls of the lungs are widened, to include the pleura
COMMON = 0.05  # of the images: pixels in the holes of so many are removed from all
BORDER = 0.10  # of the side, masked at each edge
CORNER = 0.20  # of the side, masked in each corner
LETTER = 0.10  # of the side, height of the letter that is pasted in
FRAME = 0.06  # of the side, the black border that is added
GAMMA = 1.3  # of the changes of exposure
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Chest:
    """One image and its lungs: `image` uint8 [S, S]; `lungs` bool [S, S]; `hole` bool [S, S], removed with them.

    `region`: bool [S, S], where the lungs of this and other images lie. `box`: top, bottom, left, right (half-open)
    of the lungs.
    """

    image: Pixels
    lungs: Bools
    hole: Bools
    region: Bools
    box: tuple[int, int, int, int]


Condition = Callable[[Chest, Pixels], Pixels]  # a chest and the fill uint8 [S, S] to uint8 [S, S]


def chest_of(image: Pixels, mask: FloatArray) -> Chest:
    """Return an image, uint8 [S, S], with its lungs, from their probabilities float32 [S, S].

    The hole is the convex hull of each lung, widened: opacities that the outline leaves out lie in it.
    """
    zone = zones(mask)
    hole = np.zeros(mask.shape, np.bool_)
    for first in (1, 4):
        lung = (zone >= first) & (zone < first + 3)
        if lung.any():
            hole |= _hull(lung)
    hole = widened(hole, HOLE)
    return Chest(image, zone > 0, hole, hole, lung_box(mask, margin=HOLE))


def _hull(mask: Bools) -> Bools:
    """Return the convex hull of what is true in bool [S, S]; the mask itself where that is a line."""
    points = np.argwhere(mask & ~binary_erosion(mask))
    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:
        return mask
    image = Image.new("L", mask.shape[::-1])
    ImageDraw.Draw(image).polygon([(int(x), int(y)) for y, x in corners], fill=1, outline=1)
    return (np.asarray(image) > 0) | mask


def with_region(chests: Sequence[Chest], share: float = COMMON) -> list[Chest]:
    """Return the chests with one region for all: the pixels where at least a share of them have a hole.

    Removed from every image alike, it leaves no outline that could show the size or position of the lungs.
    """
    total = np.zeros(chests[0].hole.shape, np.int64)
    for chest in chests:
        total += chest.hole
    region = np.asarray(total >= share * len(chests), np.bool_)
    return [replace(chest, region=region) for chest in chests]


# --- fills of removed parts -------------------------------------------------------------------------------


def mean_fill(canvases: Pixels, positive: Bools | None = None) -> Pixels:
    """Return the mean of images, uint8 [S, S] from uint8 [n, S, S]; with labels bool [n] both classes weigh alike.

    It looks like a chest of undecided disease, so the answers stay in the network's usual range.
    """
    groups = [canvases] if positive is None else [canvases[positive], canvases[~positive]]
    means = [group.mean(axis=0, dtype=np.float64) for group in groups if len(group)]
    return np.asarray(np.rint(np.mean(means, axis=0)), np.uint8)


def noise_fill(canvases: Pixels, positive: Bools | None = None, *, seed: int = 0) -> Pixels:
    """Return noise uint8 [S, S] with the grey levels of all images uint8 [n, S, S], both classes weighing alike."""
    groups = [canvases] if positive is None else [canvases[positive], canvases[~positive]]
    shares = [np.bincount(group.ravel(), minlength=256) / group.size for group in groups if len(group)]
    drawn = np.random.default_rng(seed).choice(256, canvases.shape[1:], p=np.mean(shares, axis=0))
    return drawn.astype(np.uint8)


# --- parts removed ----------------------------------------------------------------------------------------


def untouched(chest: Chest, fill: Pixels) -> Pixels:
    """Return the image as it is."""
    return chest.image


def lungs_removed(chest: Chest, fill: Pixels) -> Pixels:
    """Fill the hulls of both lungs: what the network still knows comes from elsewhere."""
    return np.where(chest.hole, fill, chest.image)


def lung_region_removed(chest: Chest, fill: Pixels) -> Pixels:
    """Fill the region of the lungs of all images, the same for all: no outline is left."""
    return np.where(chest.region, fill, chest.image)


def lungs_box_removed(chest: Chest, fill: Pixels) -> Pixels:
    """Fill the upright box that holds both lungs, the heart with them."""
    top, bottom, left, right = chest.box
    result = chest.image.copy()
    result[top:bottom, left:right] = fill[top:bottom, left:right]
    return result


def lungs_only(chest: Chest, fill: Pixels) -> Pixels:
    """Fill all but the lungs as they are outlined."""
    return np.where(chest.lungs, chest.image, fill)


def border_masked(chest: Chest, fill: Pixels) -> Pixels:
    """Fill a tenth of the side at each edge, lungs excepted."""
    return np.where(_frame(chest.image.shape[0], BORDER) & ~chest.lungs, fill, chest.image)


def corners_masked(chest: Chest, fill: Pixels) -> Pixels:
    """Fill the four corners, and what looks like burnt-in text, lungs excepted."""
    side = chest.image.shape[0]
    position = np.arange(side)
    edge = (position < CORNER * side) | (position >= side - CORNER * side)
    hidden = (edge[:, None] & edge) | text_in(chest.image)
    return np.where(hidden & ~chest.lungs, fill, chest.image)


def silhouette(chest: Chest, fill: Pixels) -> Pixels:
    """Fill everything, and show the outline of the hole alone: brighter outside by a sixth of the range."""
    return np.where(chest.hole, fill, np.clip(fill.astype(np.int16) + 43, 0, 255)).astype(np.uint8)


def everything_removed(chest: Chest, fill: Pixels) -> Pixels:
    """Return the fill: the control."""
    return fill


def _frame(side: int, share: float) -> Bools:
    position = np.arange(side)
    edge = (position < share * side) | (position >= side - share * side)
    return edge[:, None] | edge


# --- things added -----------------------------------------------------------------------------------------


def letter_pasted(chest: Chest, fill: Pixels) -> Pixels:
    """Paste a white R beside the patient's right shoulder, the image's upper left."""
    side = chest.image.shape[0]
    image = Image.fromarray(chest.image)
    font = ImageFont.load_default(round(LETTER * side))
    ImageDraw.Draw(image).text((0.05 * side, 0.05 * side), "R", fill=255, font=font)
    return np.asarray(image)


def border_added(chest: Chest, fill: Pixels) -> Pixels:
    """Scale the whole image down into a black border."""
    side = chest.image.shape[0]
    inner = side - 2 * round(FRAME * side)
    result = Image.new("L", (side, side))
    small = Image.fromarray(chest.image).resize((inner, inner), Image.Resampling.BILINEAR)
    result.paste(small, ((side - inner) // 2, (side - inner) // 2))
    return np.asarray(result)


def mirrored(chest: Chest, fill: Pixels) -> Pixels:
    """Exchange left and right."""
    return np.ascontiguousarray(chest.image[:, ::-1])


def darker(chest: Chest, fill: Pixels) -> Pixels:
    """Lower the mid greys, as another exposure or display would."""
    return _gamma(chest.image, GAMMA)


def brighter(chest: Chest, fill: Pixels) -> Pixels:
    """Raise the mid greys."""
    return _gamma(chest.image, 1 / GAMMA)


def _gamma(image: Pixels, gamma: float) -> Pixels:
    table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return table[image]


REMOVED: Mapping[str, Condition] = MappingProxyType(
    {
        "lung_region_removed": lung_region_removed,
        "lungs_removed": lungs_removed,
        "lungs_box_removed": lungs_box_removed,
        "lungs_only": lungs_only,
        "border_masked": border_masked,
        "corners_masked": corners_masked,
        "silhouette": silhouette,
        "everything_removed": everything_removed,
    }
)
ADDED: Mapping[str, Condition] = MappingProxyType(
    {
        "letter_pasted": letter_pasted,
        "border_added": border_added,
        "mirrored": mirrored,
        "darker": darker,
        "brighter": brighter,
    }
)


# --- answers ----------------------------------------------------------------------------------------------


def logits(classifier: Classifier, chests: Sequence[Chest], condition: Condition, fill: Pixels) -> FloatArray:
    """Return logits float32 [n, classes] of all chests under one condition, in batches; memory holds one."""
    parts = []
    for start in range(0, len(chests), _BATCH):
        changed = [condition(chest, fill) for chest in chests[start : start + _BATCH]]
        parts.append(classifier.logits(np.stack(changed)))
    return np.concatenate(parts)


def outline(chests: Sequence[Chest]) -> Floats:
    """Return features of the outline of the hole, float64 [n, 8]: area of both halves, box, centre."""
    rows = []
    for chest in chests:
        side = chest.hole.shape[0]
        down, across = (np.flatnonzero(chest.hole.any(axis=axis)) for axis in (1, 0))
        y, x = (positions.mean() for positions in np.nonzero(chest.hole))
        half = chest.hole[:, : side // 2].mean(), chest.hole[:, side // 2 :].mean()
        box = down[0], down[-1], across[0], across[-1]
        rows.append([*half, *(edge / side for edge in box), y / side, x / side])
    return np.array(rows, np.float64)
