"""Where the lungs are: a small network, shipped in `bundle/shipped`, and the geometry of its masks; no PyTorch.

A lung is outlined as the annotators of the training images did: with the part behind the heart, down to the
diaphragm. The patient's right lung is on the image's left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label

from pneumoscope.bundle.runtime import import_openvino, openvino_core
from pneumoscope.errors import BundleError, ConfigError, DataError, storage_errors
from pneumoscope.files import atomic_folder, sha256_bytes, write_json
from pneumoscope.images.preparation import Pixels, Preparation, to_canvas
from pneumoscope.records import RESEARCH_ONLY, FloatArray, Floats

LUNGS_BUNDLE = Path(__file__).parent / "bundle" / "shipped" / "lungs"
ZONES = (
    "outside", "right upper", "right middle", "right lower", "left upper", "left middle", "left lower",
)  # fmt: skip
SCHEMA = 1

_MODEL, _CARD = "model.onnx", "card.json"
_LUNG = 0.5  # probability from which on a pixel is lung
_REGION = 0.02  # share of the image under which a region is no lung; the training masks' smallest has .096
_AREA = (0.08, 0.75)  # share of the image that both lungs fill; .21 to .61 in the training masks
_APART = 0.15  # of the width, between the centres of two lungs
_MARGIN = 0.08  # of the lungs' height and width, around them in a crop: ribs and diaphragm stay in sight
_BATCH = 16

_LEAST_CROP = 0.25  # of the side; a smaller crop shows no chest

Mask = NDArray[np.bool_]
Crop = tuple[float, float, float, float]  # top, left, height, width in fractions of the side


@dataclass(frozen=True)
class LungSegmenter:
    """A verified segmenter. `card`: its training data and measured figures; `size`: side of its input.

    >>> from pneumoscope.lungs import LungSegmenter, mask_fault
    >>> segmenter = LungSegmenter.load()  # doctest: +SKIP
    >>> mask_fault(segmenter.masks(canvases)[0]) is None  # doctest: +SKIP
    """

    card: Mapping[str, Any]
    size: int
    _infer: Callable[[Pixels], FloatArray]

    @classmethod
    def load(cls, path: Path | None = None, *, threads: int | None = None) -> LungSegmenter:
        """Verify a segmenter (the shipped one by default) and make it ready, with as many threads as there are cores.

        Raises:
            BundleError: a file is missing, changed, damaged or of a newer version.
            ConfigError: OpenVINO is not installed.
        """
        folder = LUNGS_BUNDLE if path is None else path
        card = _read_card(folder / _CARD)
        file = folder / _MODEL
        model = _read(file)
        if sha256_bytes(model) != card["model"]["sha256"]:
            raise BundleError("the file was changed or damaged", path=file, remedy="copy the segmenter again")
        infer, size = _compile(model, file, threads)
        return cls(card, size, infer)

    @property
    def label(self) -> str:
        """Name and the first twelve digits of the model's SHA-256."""
        return f"{self.card['name']}@{self.card['model']['sha256'][:12]}"

    def masks(self, canvases: Pixels) -> FloatArray:
        """Return the probability of lung, float32 [B, S, S] in 0..1, from uint8 [B, S, S]: any S, air dark.

        Raises:
            DataError: the images are not of that form.
        """
        if canvases.dtype != np.uint8 or canvases.ndim != 3 or canvases.shape[1] != canvases.shape[2]:
            raise DataError(
                f"square images uint8 [B, S, S] are needed, not {canvases.dtype} {list(canvases.shape)}",
                remedy="make them with preparation.to_canvas",
            )
        masks = np.zeros(canvases.shape, np.float32)
        for start in range(0, len(canvases), _BATCH):
            part = canvases[start : start + _BATCH]
            inputs = np.stack([np.asarray(_resized(Image.fromarray(canvas), self.size)) for canvas in part])
            for index, mask in enumerate(self._infer(inputs), start):
                masks[index] = np.asarray(_resized(Image.fromarray(mask), canvases.shape[1]))
        return np.clip(masks, 0, 1)


def _resized(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


# --- geometry of one mask ---------------------------------------------------------------------------------


def lung_fraction(mask: FloatArray) -> float:
    """Return the share of the image that is lung, 0..1, from a mask float32 [S, S] of probabilities."""
    return float((mask >= _LUNG).mean())


@dataclass(frozen=True, slots=True)
class MaskFault:
    """Why a mask cannot be two lungs: a key, and the sentence for people."""

    key: Literal["share", "one region", "not beside"]
    reason: str

    def __str__(self) -> str:
        return f"lungs not found: {self.reason}"


def mask_fault(mask: FloatArray) -> MaskFault | None:
    """Return why a mask float32 [S, S] of probabilities cannot be two lungs, or None where it can.

    Two lungs are two sizeable regions beside each other that fill a usual share of the image. How good their outline is
    is not judged.
    """
    share = lung_fraction(mask)
    if not _AREA[0] <= share <= _AREA[1]:
        usual = f"{_AREA[0]:.0%} to {_AREA[1]:.0%} is usual"
        return MaskFault("share", f"{share:.0%} of the image looks like lung, {usual}")
    regions = _regions(mask)
    if len(regions) < 2:
        return MaskFault("one region", "one region looks like lung, two are usual")
    middles = [_middle(region) for region in regions]
    if max(middles) - min(middles) < _APART * mask.shape[1]:
        return MaskFault("not beside", "the regions that look like lung do not lie beside each other")
    return None


def lung_sides(mask: Mask) -> NDArray[np.int64]:
    """Return top, left, bottom, right (half-open) of the lung on the image's left and of the other, int64 [2, 4].

    `mask`: bool [S, S]. Told apart at the emptiest column in the middle third of both; empty without lungs.
    """
    boxes = np.zeros((2, 4), np.int64)
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return boxes
    first, last = int(columns[0]), int(columns[-1]) + 1
    third = (last - first) // 3
    middle = first + third + int(np.argmin(mask[:, first + third : last - third].sum(axis=0)))
    for box, (start, stop) in zip(boxes, ((first, middle), (middle, last)), strict=True):
        rows = np.flatnonzero(mask[:, start:stop].any(axis=1))
        if len(rows):
            box[:] = rows[0], start, rows[-1] + 1, stop
    return boxes


def zones(mask: FloatArray) -> NDArray[np.int64]:
    """Return int64 [S, S] from a mask float32 [S, S] of probabilities: an index into `ZONES` for each pixel.

    0 is outside; 1 to 3 are the upper, middle and lower third of the height of the right lung, 4 to 6 of the left.
    Small regions are left out. Where `mask_fault` gives a reason, the sides are those of the image's middle.
    """
    regions = _regions(mask)
    middle = (mask.shape[1] - 1) / 2
    if mask_fault(mask) is None:
        middles = [_middle(region) for region in regions]
        middle = (min(middles) + max(middles)) / 2
        right = [region for region, x in zip(regions, middles, strict=True) if x < middle]
        left = [region for region, x in zip(regions, middles, strict=True) if x >= middle]
        lungs = [_union(right, mask), _union(left, mask)]
    else:
        whole, columns = _union(regions, mask), np.arange(mask.shape[1])
        lungs = [whole & (columns <= middle), whole & (columns > middle)]
    numbers = np.zeros(mask.shape, np.int64)
    for first, lung in zip((1, 4), lungs, strict=True):
        rows = np.flatnonzero(lung.any(axis=1))
        if rows.size:
            third = (np.arange(mask.shape[0]) - rows[0]) * 3 // (rows[-1] - rows[0] + 1)
            numbers[lung] = np.broadcast_to(first + third[:, None], mask.shape)[lung]
    return numbers


def lung_box(mask: FloatArray, margin: float = 0.05) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right (half-open) of the lungs, for `image[top:bottom, left:right]`.

    `mask`: float32 [S, S] of probabilities. `margin`: added on each side, in fractions of the box's height and width,
    as far as the image goes. Without lungs it is the whole image.

    Raises:
        ConfigError: the margin is negative.
    """
    if margin < 0:
        raise ConfigError(f"a margin of {margin} would cut the lungs", remedy="give 0 or more")
    lungs = _union(_regions(mask), mask)
    if not lungs.any():
        return 0, mask.shape[0], 0, mask.shape[1]
    box: list[int] = []
    for axis in (1, 0):
        positions = np.flatnonzero(lungs.any(axis=axis))
        low, high = int(positions[0]), int(positions[-1]) + 1
        extra = round(margin * (high - low))
        box += [max(0, low - extra), min(lungs.shape[1 - axis], high + extra)]
    return box[0], box[1], box[2], box[3]


def boxes(canvases: Pixels) -> Floats:
    """Return where the shipped segmenter finds the lungs of images uint8 [n, S, S]: float64 [n, 4] in 0..1.

    Top, bottom, left, right; the whole image where it finds none. Raises as `LungSegmenter.load` does.
    """
    segmenter = LungSegmenter.load()
    rows = [lung_box(mask, 0) for start in range(0, len(canvases), _BATCH)
            for mask in segmenter.masks(canvases[start : start + _BATCH])]  # fmt: skip
    return np.asarray(np.array(rows, np.float64).reshape(-1, 4) / canvases.shape[1], np.float64)


def framed_as(box: Floats, other: Floats) -> Crop:
    """Return the crop in which lungs with this box lie as those of the other image do, as far as the image goes."""
    scale = (box[1] - box[0]) / (other[1] - other[0]), (box[3] - box[2]) / (other[3] - other[2])
    top, left = box[0] - other[0] * scale[0], box[2] - other[2] * scale[1]
    return crop_inside(top, top + scale[0], left, left + scale[1])


def crop_inside(top: float, bottom: float, left: float, right: float) -> Crop:
    """Return the part of a crop that lies in the image; the whole image where next to nothing does."""
    top, left, bottom, right = max(0.0, top), max(0.0, left), min(1.0, bottom), min(1.0, right)
    if min(bottom - top, right - left) < _LEAST_CROP:
        return 0.0, 0.0, 1.0, 1.0
    return float(top), float(left), float(bottom - top), float(right - left)


# --- cutting down to the lungs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LungCrop:
    """Crops a radiograph to its lungs and a margin; without two lungs it keeps the whole image."""

    segmenter: LungSegmenter

    @property
    def name(self) -> str:
        """The segmenter and the margin."""
        return f"{self.segmenter.label}+{_MARGIN}"

    def box(self, pixels: FloatArray) -> tuple[int, int, int, int]:
        """Return top, bottom, left, right (half-open) in pixels of an image float32 [H, W] in 0..1."""
        (height, width), side = pixels.shape, self.segmenter.size
        mask = self.segmenter.masks(to_canvas(pixels, side, "squash")[None])[0]
        if mask_fault(mask) is not None:
            return 0, height, 0, width
        top, bottom, left, right = lung_box(mask, _MARGIN)
        down, across = height / side, width / side
        return round(top * down), round(bottom * down), round(left * across), round(right * across)

    def __call__(self, pixels: FloatArray) -> FloatArray:
        """Return float32 [h, w], a view of an image float32 [H, W] in 0..1."""
        top, bottom, left, right = self.box(pixels)
        return pixels[top:bottom, left:right]


def crop_of(preparation: Preparation) -> LungCrop | None:
    """Return the crop of a preparation, or None; raises as `LungSegmenter.load` does."""
    return LungCrop(LungSegmenter.load(threads=1)) if preparation.crop == "lungs" else None


def _regions(mask: FloatArray) -> list[Mask]:
    """Return the sizeable connected regions of lung, the largest first."""
    labels, count = label(mask >= _LUNG)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    return [labels == index + 1 for index in order if sizes[index] >= _REGION * mask.size]


def _union(regions: list[Mask], like: FloatArray) -> Mask:
    whole = np.zeros(like.shape, np.bool_)
    for region in regions:
        whole |= region
    return whole


def _middle(region: Mask) -> float:
    return float(np.flatnonzero(region.any(axis=0)).mean())


# --- the files --------------------------------------------------------------------------------------------


def write_segmenter(path: Path, model: bytes, sections: Mapping[str, Any]) -> None:
    """Write a segmenter's folder atomically.

    `model`: ONNX, `pixels` uint8 [n, S, S] to `lungs` float32 [n, S, S]. `sections`: of the card, all but schema,
    notice and hash; `name` among them.
    """
    facts = {"file": _MODEL, "bytes": len(model), "sha256": sha256_bytes(model)}
    with atomic_folder(path) as temporary:
        (temporary / _MODEL).write_bytes(model)
        write_json(temporary / _CARD, {"schema": SCHEMA, "notice": RESEARCH_ONLY, **sections, "model": facts})


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise BundleError("is missing, so there is no lung segmenter", path=file, remedy="copy the segmenter again")
    with storage_errors(file):
        return file.read_bytes()


def _read_card(file: Path) -> Mapping[str, Any]:
    try:
        card: Mapping[str, Any] = json.loads(_read(file))
        schema, names = int(card["schema"]), (card["name"], card["model"]["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError("is damaged or is no card", path=file, remedy="copy the segmenter again") from error
    if schema > SCHEMA:
        raise BundleError(
            f"was written in format {schema}, this version reads up to {SCHEMA}",
            path=file,
            remedy="update Pneumoscope",
        )
    if not all(isinstance(name, str) for name in names):
        raise BundleError("is damaged or is no card", path=file, remedy="copy the segmenter again")
    return card


def _compile(model: bytes, file: Path, threads: int | None) -> tuple[Callable[[Pixels], FloatArray], int]:
    try:
        import_openvino()
    except ImportError as error:
        raise ConfigError("the lung segmenter needs OpenVINO", remedy="pip install openvino") from error
    core = openvino_core()
    # As in `runtime`: no bf16, so that every CPU gives one answer.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
        size = int(compiled.input(0).partial_shape[2].get_length())
    except (RuntimeError, IndexError) as error:
        raise BundleError("OpenVINO cannot read the model", path=file, remedy="copy the segmenter again") from error

    def infer(pixels: Pixels) -> FloatArray:
        # A request of its own, because one request serves one thread.
        return np.array(compiled.create_infer_request().infer([pixels], share_inputs=True)[0], dtype=np.float32)

    return infer, size
