"""Synthetic frontal chest radiographs with known truth, for demonstrations and tests.

Nothing here comes from a person. Pneumonia follows the textbook patterns (Goodman, Felson's Principles of
Chest Roentgenology): bacterial is a consolidation inside one lobe, with air bronchograms where it is dense;
viral is a reticular haze around both hila. How the film was taken is drawn apart from the disease, so that
the same seed gives the same patient, pose and film for every kind.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import correlate1d

from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.files import atomic_folder, write_text
from pneumoscope.phantom.anatomy import AIR_CONTRAST, Anatomy, Thorax, branches, draw_anatomy, draw_pose
from pneumoscope.records import BACTERIAL, NORMAL, PNEUMONIA, SPLITS, VIRAL, FloatArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
KINDS = ("normal", BACTERIAL, VIRAL)
COLUMNS = ("path", "label", "patient_id", "site", "age_years", "sex", "view", "subtype", "split")
COMMENT = "synthetic radiograph, not a patient"
NOTICE_FILE = "SYNTHETIC.txt"
MIN_SIZE = 32

_NOTICE = """These images were computed by the radiograph generator of Pneumoscope.
They show no person: every patient number, age and sex in manifest.csv is made up.
The folder `masks` holds the true outlines of the lungs and of the opacities.
They serve demonstrations and tests; a figure measured on them says nothing about real radiographs.
For research use only. Not for diagnosis.
"""


@dataclass(frozen=True, slots=True)
class SyntheticRadiograph:
    """One generated image with its truth.

    `pixels`: uint8 [S, S], 0 black. `lungs`, `opacity`: bool [S, S]; `opacity` lies inside `lungs` and is
    empty for `kind` normal. `severity` in 0..1, 0 for normal. `marker` is the side letter `L` or `R`.
    """

    pixels: Pixels
    lungs: Mask
    opacity: Mask
    kind: str
    age_years: float
    sex: str
    view: str
    severity: float
    marker: str | None


@dataclass(frozen=True, slots=True)
class _Patient:
    anatomy: Anatomy
    kind: str
    severity: float
    seed: int


def render(
    rng: np.random.Generator,
    *,
    kind: str,
    size: int = 224,
    adult: bool | None = None,
    severity: float | None = None,
) -> SyntheticRadiograph:
    """Draw a patient and take one radiograph of them.

    Args:
        rng: the only source of randomness; generators in the same state give the same patient, pose and
            film for every `kind`, so that two renders differ by the disease alone.
        kind: `normal`, `bacterial` or `viral`.
        size: side of the square image in pixels, at least 32.
        adult: None draws an adult three times in ten.
        severity: 0..1, how dense and large the opacity is, 0 being barely visible; None draws one.

    Raises:
        ConfigError: the kind is unknown, the size too small, or the severity outside 0..1.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind {kind!r}", remedy=f"use one of {', '.join(KINDS)}")
    if size < MIN_SIZE:
        raise ConfigError(f"size {size} is too small to show a chest", remedy=f"use {MIN_SIZE} or more")
    if severity is not None and not 0 <= severity <= 1:
        raise ConfigError(f"severity {severity} is outside 0..1", remedy="give a number from 0 to 1")
    body, film = _streams(rng, 2)
    patient = _draw_patient(body, kind, 0.3 if adult is None else float(adult), severity)
    return _expose(film, patient, size)


def _streams(rng: np.random.Generator, count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, count)]


def _draw_patient(
    rng: np.random.Generator, kind: str, adult_fraction: float, severity: float | None = None
) -> _Patient:
    anatomy = draw_anatomy(rng, bool(rng.random() < adult_fraction))
    drawn, seed = rng.beta(1.5, 1.3), int(rng.integers(2**63))
    if kind == "normal":
        return _Patient(anatomy, kind, 0.0, seed)
    return _Patient(anatomy, kind, drawn if severity is None else severity, seed)


def _expose(rng: np.random.Generator, patient: _Patient, size: int) -> SyntheticRadiograph:
    stance, clutter, film = _streams(rng, 3)
    thorax = Thorax(patient.anatomy, draw_pose(stance, patient.anatomy), size)
    healthy = thorax.attenuation() + _clutter(clutter, thorax)
    ill, opacity = healthy, np.zeros((size, size), np.bool_)
    if patient.kind != "normal":
        draw = _consolidation if patient.kind == BACTERIAL else _interstitial
        added, opacity = draw(np.random.default_rng(patient.seed), thorax, patient.severity)
        ill = healthy + added
    pixels, marker = _develop(film, ill, healthy)
    age, sex, view = patient.anatomy.age_years, patient.anatomy.sex, thorax.pose.view
    return SyntheticRadiograph(pixels, thorax.lungs, opacity, patient.kind, age, sex, view, patient.severity, marker)


# --- disease ----------------------------------------------------------------------------------------------

# Lobes in the frontal projection: left side, top and bottom in `Thorax.down`, outer limit in `Thorax.across`.
_LOBES = (
    (False, 0.0, 0.47, 1.0),  # right upper, down to the horizontal fissure
    (False, 0.5, 0.95, 0.75),  # right middle: hides the right heart border
    (False, 0.5, 1.3, 1.0),  # right lower
    (True, 0.0, 0.55, 1.0),  # left upper
    (True, 0.5, 0.95, 0.85),  # lingula: hides the left heart border
    (True, 0.5, 1.3, 1.0),  # left lower
)


def _consolidation(rng: np.random.Generator, thorax: Thorax, severity: float) -> tuple[FloatArray, Mask]:
    """Fill the air spaces around one point of one lobe."""
    left, top, bottom, outer = _LOBES[rng.integers(len(_LOBES))]
    position, wide, tall = rng.random(), rng.uniform(0.75, 1.3), rng.uniform(0.9, 1.55)
    fissure, lean = (0.03 if rng.random() < 0.5 else 0.12), rng.normal(0, 0.12)
    warp = noise_field(rng, thorax.size, 9) + 0.6 * noise_field(rng, thorax.size, 22)
    level = thorax.down + lean * (thorax.across - 0.5) + 0.01 * warp
    lobe = _step(level - top, 0.06) * _step(bottom - level, fissure)
    lobe = lobe * _step(outer - thorax.across, 0.15) * (thorax.left == left)
    aired = thorax.air * thorax.lungs
    room = lobe * aired
    centres = np.flatnonzero(room > 0.6 * room.max())
    row, column = np.unravel_index(centres[int(position * len(centres))], room.shape)
    reach = 0.18 + 0.32 * severity
    x = (thorax.u - thorax.u[row, column]) / (reach * wide)
    y = (thorax.v - thorax.v[row, column]) / (reach * tall)
    focus = np.exp(-(x * x + y * y)) * (1 + 0.45 * warp)
    shape = _step(focus - 0.18, 0.5) * lobe
    density = (0.25 + 0.65 * severity) * shape * (1 + 0.12 * warp)
    bronchi = 0.5 * severity * thorax.draw_lines(*branches(rng, thorax.dome, strength=0.9)) * shape**2
    added: FloatArray = AIR_CONTRAST * aired * np.maximum(density - bronchi, 0)
    return added, _half_above(shape * aired)


def _interstitial(rng: np.random.Generator, thorax: Thorax, severity: float) -> tuple[FloatArray, Mask]:
    """Thicken the interstitium of both lungs: a net of fine lines, cuffed bronchi and a faint haze."""
    size = thorax.size
    patches = np.clip(1 + 0.5 * noise_field(rng, size, 7), 0, 1.5)
    patches *= thorax.by_side(rng.uniform(0.65, 1), rng.uniform(0.65, 1))
    x, y = thorax.across - 0.3, thorax.down - rng.uniform(0.5, 0.65)
    central = np.exp(-(x * x) / 0.3 - y * y / rng.uniform(0.1, 0.3))
    extent = patches * central * thorax.air * thorax.lungs
    net = _ridges(noise_field(rng, size, 38)) + 0.7 * _ridges(noise_field(rng, size, 60))
    pattern = 0.15 + 0.45 * np.maximum(net, _cuffs(rng, thorax))
    added: FloatArray = AIR_CONTRAST * (0.2 + 0.8 * severity) * extent * pattern
    return added, _half_above(extent * thorax.left) | _half_above(extent * ~thorax.left)


def _half_above(extent: FloatArray) -> Mask:
    """Outline what a reader would call the opacity: from 0.4 of its peak on."""
    return np.asarray((extent > 0) & (extent >= 0.4 * extent.max()))


def _cuffs(rng: np.random.Generator, thorax: Thorax) -> FloatArray:
    """Draw thick-walled bronchi seen end on around the hila."""
    count, turn = 10, np.linspace(0, 2 * np.pi, 11)
    u, v = (
        rng.choice([-1, 1], count) * rng.uniform(0.2, 0.5, count),
        rng.uniform(0.3, 0.7, count) * thorax.dome,
    )
    radius = rng.uniform(0.022, 0.04, (count, 1))
    ring = np.stack([u[:, None] + radius * np.cos(turn), v[:, None] + radius * np.sin(turn)], axis=-1)
    return 1.2 * thorax.draw_lines(ring.astype(np.float32), np.full((count, 10), 0.018, np.float32))


def _ridges(field: FloatArray) -> FloatArray:
    """Turn the zero crossings of a field into the lines of a net."""
    return np.asarray(np.exp(field * field * -10), np.float32)


# --- everything that is neither the patient nor the disease ------------------------------------------------


def noise_field(rng: np.random.Generator, size: int, cells: int) -> FloatArray:
    """Return smooth noise float32 [size, size] of about unit variance: a cubic B-spline over cells²."""
    field = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    position = (np.arange(size) + 0.5) * (cells / size)
    cell = position.astype(np.intp)
    t = np.asarray(position - cell, np.float32)[:, None]
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    for _ in ("rows", "columns"):
        # The squared weights of a cubic B-spline sum to 0.48 = 1 / 1.44² on average; 6 is their denominator.
        field = np.asarray(1.44 / 6 * sum(tap * field[cell + k] for k, tap in enumerate(taps)), np.float32).T
    return field


def _step(x: NDArray[np.floating], width: float) -> FloatArray:
    """Rise smoothly from 0 at x = 0 to 1 at x = width."""
    y = np.clip(x * (1 / width), 0, 1)
    return np.asarray(y * y * (3 - 2 * y), np.float32)


def _clutter(rng: np.random.Generator, thorax: Thorax) -> FloatArray:
    """Return what troubles readers of healthy films too: uneven lungs, folds of skin, soft shadows, leads."""
    size = thorax.size
    uneven = rng.uniform(0.01, 0.035) * noise_field(rng, size, 8)
    grain = rng.uniform(0.008, 0.025) * noise_field(rng, size, 45)
    total = (uneven + grain) * (0.3 + 0.7 * thorax.air) + rng.normal(0, 0.035) * thorax.u
    if rng.random() < 0.5:
        x, y = thorax.u - rng.uniform(-0.9, 0.9), thorax.v - rng.uniform(0.1, 1.0) * thorax.dome
        shadow = (x / rng.uniform(0.2, 0.5)) ** 2 + (y / rng.uniform(0.2, 0.5)) ** 2
        total += rng.uniform(0.03, 0.11) * np.exp(-shadow)
    if rng.random() < 0.2:
        fold = thorax.u - rng.uniform(-0.9, 0.9) - rng.uniform(-0.4, 0.4) * thorax.v
        total += 0.06 * (fold > 0).astype(np.float32) * np.exp(-6 * np.abs(fold))
    if rng.random() < 0.3:
        count, steps = int(rng.integers(1, 4)), 14
        start = np.stack([rng.uniform(-1, 1, count), rng.uniform(-0.2, 0.9, count)], axis=-1)
        walk = np.cumsum(rng.normal(0, 0.25, (count, steps)), axis=1) + rng.uniform(0, 6.3, (count, 1))
        path = start[:, None] + np.cumsum(np.stack([np.cos(walk), np.sin(walk)], axis=-1) * 0.11, axis=1)
        lead = thorax.draw_lines(path.astype(np.float32), np.full((count, steps - 1), 0.02, np.float32))
        total += rng.uniform(0.15, 0.4) * lead
    return np.asarray(total, np.float32)


def _develop(rng: np.random.Generator, film: FloatArray, healthy: FloatArray) -> tuple[Pixels, str | None]:
    """Turn attenuation into a displayed film: scatter, quantum noise, window, gamma and the side marker.

    The window is set by the healthy chest, so that a render with and without disease share one scale.
    """
    blur, dose = rng.uniform(0.0, 0.22), rng.uniform(0.003, 0.011)
    for axis in (0, 1):
        film = correlate1d(film, [blur, 1 - 2 * blur, blur], axis=axis, mode="nearest")
    # Noise of log(counts) is 1 / sqrt(counts), and a unit here is about two e-foldings of the beam.
    noise = rng.standard_normal(film.shape, dtype=np.float32)
    film = np.asarray(film + dose * np.exp(film) * noise, np.float32)
    low, high = np.quantile(healthy[::4, ::4], (0.02, 0.99)).tolist()
    low, high = low * rng.uniform(0.3, 1.0), high * rng.uniform(0.95, 1.25)
    grey = np.clip((film - low) / (high - low), 0, 1) ** math.exp(rng.normal(0.0, 0.28))
    black, white = rng.uniform(0, 0.1), rng.uniform(0.82, 1.0)
    grey = black + (white - black) * grey
    marker = None if rng.random() < 0.15 else str(rng.choice(["L", "R"]))
    if marker is not None:
        grey = np.maximum(grey, _letter(rng, marker, len(film)) * rng.uniform(0.8, 1.0))
    return np.rint(grey * 255).astype(np.uint8), marker


_STROKES = {  # (x, y) in letter heights
    "L": [[(0.0, 0.0), (0.0, 1.0), (0.6, 1.0)]],
    "R": [[(0, 1), (0, 0), (0.45, 0), (0.6, 0.25), (0.45, 0.5), (0, 0.5)], [(0.3, 0.5), (0.6, 1)]],
}


def _letter(rng: np.random.Generator, marker: str, size: int) -> FloatArray:
    """Draw the letter on the side of the patient that it names; float32 [size, size] in 0..1."""
    tall = rng.uniform(0.045, 0.075) * size
    inset, y = rng.uniform(0.02, 0.14) * size, rng.uniform(0.03, 0.8) * size
    x = inset if marker == "R" else size - inset - 0.6 * tall
    canvas = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(canvas)
    for stroke in _STROKES[marker]:
        line = [(2 * (x + tall * a), 2 * (y + tall * b)) for a, b in stroke]
        pen.line(line, fill=255, width=max(2, round(0.28 * tall)), joint="curve")
    return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


# --- a data set -------------------------------------------------------------------------------------------


def write_dataset(
    out: Path,
    *,
    patients: int,
    seed: int,
    size: int = 224,
    adult_fraction: float = 0.3,
    max_images_per_patient: int = 3,
    pneumonia_fraction: float = 0.6,
) -> Path:
    """Write a data set in the Kaggle layout, with truth in `masks/` and a `manifest.csv`; return `out`.

    Folders are `train|val|test/NORMAL|PNEUMONIA`, split 70/10/20 by patient within each kind; from three
    patients of a kind on, each split has one. File names follow Kermany et al. (2018):
    `IM-NNNN-000K.png`, `personN_bacteria_M.png`, `personN_virus_M.png`, where N counts within its kind.
    `masks/SPLIT/CLASS/STEM-lungs.png` and `STEM-opacity.png` are 0 or 255. A `SYNTHETIC.txt` explains
    the images. The folder appears whole or not at all.

    Raises:
        ConfigError: a count is below one or a fraction outside 0..1.
        StorageError: the disk refused, or `out` holds something else than an earlier synthetic data set.
    """
    if min(patients, max_images_per_patient) < 1 or size < MIN_SIZE:
        raise ConfigError(
            f"{patients} patients, {max_images_per_patient} images each, {size} pixels: too little to see",
            remedy=f"give at least 1, 1 and {MIN_SIZE}",
        )
    if not (0 <= adult_fraction <= 1 and 0 <= pneumonia_fraction <= 1):
        raise ConfigError("a fraction is outside 0..1", remedy="give numbers from 0 to 1")
    if out.exists() and not _is_ours(out):
        raise StorageError(
            "holds something else than a synthetic data set", path=out, remedy="choose a new or empty folder"
        )
    rng = np.random.default_rng(seed)
    with atomic_folder(out) as folder:
        rows: list[dict[str, str]] = []
        for slot in _slots(rng, patients, pneumonia_fraction):
            patient = _draw_patient(rng, slot.kind, adult_fraction)
            for shot in range(1, int(rng.integers(1, max_images_per_patient + 1)) + 1):
                rows.append(_write_image(folder, slot, shot, _expose(rng, patient, size)))
        _write_manifest(folder / "manifest.csv", rows)
        write_text(folder / NOTICE_FILE, _NOTICE)
    return out


def _is_ours(out: Path) -> bool:
    return out.is_dir() and ((out / NOTICE_FILE).is_file() or not any(out.iterdir()))


@dataclass(frozen=True, slots=True)
class _Slot:
    """One patient's position in the data set: `number` counts within the kind, `serial` over all."""

    kind: str
    number: int
    split: str
    serial: int


def _slots(rng: np.random.Generator, patients: int, pneumonia_fraction: float) -> Iterator[_Slot]:
    """Split each kind 70/10/20, then shuffle, so that the serial number carries no information."""
    ill = round(patients * pneumonia_fraction)
    serials = iter((rng.permutation(patients) + 1).tolist())
    for kind, count in zip(KINDS, (patients - ill, ill - ill // 2, ill // 2), strict=True):
        least = 1 if count >= len(SPLITS) else 0
        val, test = max(least, round(0.1 * count)), max(least, round(0.2 * count))
        splits = ["train"] * (count - val - test) + ["val"] * val + ["test"] * test
        for number, split in enumerate(splits, start=1):
            yield _Slot(kind, number, split, next(serials))


def _write_image(folder: Path, slot: _Slot, shot: int, image: SyntheticRadiograph) -> dict[str, str]:
    """Write one image with its masks; return its row of the manifest."""
    if image.kind == "normal":
        label, subtype, stem = NORMAL, "", f"IM-{slot.number:04d}-{shot:04d}"
    else:
        germ = "bacteria" if image.kind == BACTERIAL else "virus"
        label, subtype, stem = PNEUMONIA, image.kind, f"person{slot.number}_{germ}_{shot}"
    path = Path(slot.split, label, f"{stem}.png")
    _write_png(folder / path, image.pixels)
    for name, mask in (("lungs", image.lungs), ("opacity", image.opacity)):
        target = folder / "masks" / slot.split / label / f"{stem}-{name}.png"
        _write_png(target, np.where(mask, np.uint8(255), np.uint8(0)))
    person = (f"synthetic-{slot.serial:05d}", "synthetic", f"{image.age_years:g}", image.sex, image.view)
    return dict(zip(COLUMNS, (path.as_posix(), label, *person, subtype, slot.split), strict=True))


def _write_png(path: Path, values: Pixels) -> None:
    info = PngInfo()
    info.add_text("Comment", COMMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, pnginfo=info)


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["path"]))
    write_text(path, text.getvalue())
