"""A phantom of the chest: anatomy of the patient, pose, and attenuation along the rays.

Everything is drawn in body coordinates (u, v): u = 0 at the spine, u > 0 to the image's right (the
patient's left), |u| = 1 at the widest inner rib cage; v = 0 at the lung apex, growing downwards, v = height
at the dome of the right diaphragm. Attenuations are sums along the ray (Beer-Lambert), in units of about one
full thickness of soft tissue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pneumoscope.records import FloatArray, Floats

BoolArray = NDArray[np.bool_]

AIR_CONTRAST = 0.46  # what an aerated lung takes away from the ray; consolidation gives it back
_V_LOW, _V_HIGH, _V_STEPS = -2.0, 4.0, 2048
_V_AXIS = np.linspace(_V_LOW, _V_HIGH, _V_STEPS)
_ROUNDING = np.hanning(81) / np.hanning(81).sum()  # about a quarter of a half thorax


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What stays the same between two radiographs of one patient; lengths in half thorax widths."""

    adult: bool
    age_years: float
    sex: str
    height: float
    taper: float
    wall: float
    heart: float
    knob: float
    thymus: float
    hila: float
    breast: float
    bend: float
    rib_pitch: float
    rib_width: float
    rib_drop: float
    bone: float
    seed: int


@dataclass(frozen=True, slots=True)
class Pose:
    """How the patient stood, breathed and was framed for one exposure; angles in radians."""

    view: str
    tilt: float
    turn: float
    shallow: float
    scale_u: float
    scale_v: float
    shift_x: float
    shift_y: float
    arms: float


def draw_anatomy(rng: np.random.Generator, adult: bool) -> Anatomy:
    """Draw one patient: adult 18..90 years, child 0.5..12 years."""
    uniform, normal = rng.uniform, rng.normal
    age = float(round(uniform(18, 90), 0) if adult else round(np.exp(uniform(np.log(0.5), np.log(12))), 1))
    sex = "F" if rng.random() < 0.5 else "M"
    infant = 0.0 if adult else float(np.clip(1 - age / 4, 0, 1))
    return Anatomy(
        adult=adult,
        age_years=age,
        sex=sex,
        height=uniform(1.45, 1.75) if adult else uniform(1.3, 1.5) - 0.1 * infant,
        taper=uniform(2.1, 2.7) if adult else uniform(1.75, 2.3),
        wall=uniform(0.1, 0.26) if adult else uniform(0.07, 0.16),
        heart=normal(1.0, 0.07) if adult else normal(1.06 + 0.08 * infant, 0.07),
        knob=uniform(0.2, 1.0) if adult else uniform(0, 0.25),
        thymus=float(infant * uniform(0, 1)),
        hila=uniform(0.6, 1.5),
        breast=uniform(0.3, 1.0) if adult and sex == "F" else 0.0,
        bend=rng.normal(0, 0.025),
        rib_pitch=uniform(0.16, 0.185) if adult else uniform(0.15, 0.17),
        rib_width=uniform(0.2, 0.26) if adult else uniform(0.18, 0.24),
        rib_drop=uniform(0.3, 0.45) if adult else uniform(0.2, 0.34),
        bone=uniform(0.75, 1.2) if adult else uniform(0.7, 1.0),
        seed=int(rng.integers(2**32)),
    )


def draw_pose(rng: np.random.Generator, anatomy: Anatomy) -> Pose:
    """Draw how one exposure of the patient was taken."""
    uniform = rng.uniform
    supine = rng.random() < (0.25 if anatomy.adult else max(0.2, 1 - anatomy.age_years / 10))
    scale = uniform(0.66, 0.84) if anatomy.adult else uniform(0.7, 0.92)
    arms_up = not anatomy.adult and rng.random() < 0.4
    return Pose(
        view="AP" if supine else "PA",
        tilt=rng.normal(0, 0.035),
        turn=rng.normal(0, 0.05),
        shallow=rng.beta(1.2, 3.0),
        scale_u=scale,
        scale_v=scale * uniform(0.95, 1.2),
        shift_x=rng.normal(0, 0.035),
        shift_y=rng.normal(0.02, 0.07),
        arms=uniform(-0.8, -0.2) if arms_up else uniform(0.9, 1.35),
    )


@dataclass(frozen=True)
class Thorax:
    """One posed patient on the detector; all maps are [size, size], row 0 at the top."""

    anatomy: Anatomy
    pose: Pose
    size: int

    @cached_property
    def _uv(self) -> tuple[FloatArray, FloatArray]:
        pose, height = self.pose, self.anatomy.height
        axis = np.asarray((np.arange(self.size) + 0.5) * (2 / self.size) - 1, np.float32)
        x, y = axis[None, :] - pose.shift_x, axis[:, None] - pose.shift_y
        cos, sin = math.cos(pose.tilt), math.sin(pose.tilt)
        v = np.asarray((cos * y - sin * x) / pose.scale_v + height / 2, np.float32)
        u = (cos * x + sin * y) / pose.scale_u - self._curve_of_spine(v)
        return np.asarray(u, np.float32), v

    def _curve_of_spine(self, v: FloatArray) -> FloatArray:
        return np.asarray(np.sin(v * (math.pi / self.anatomy.height)) * self.anatomy.bend, np.float32)

    def to_pixels(self, points: FloatArray) -> FloatArray:
        """Map body coordinates float32 [..., 2] (u, v) to pixel positions (x, y) of the same shape."""
        pose = self.pose
        u = (points[..., 0] + self._curve_of_spine(points[..., 1])) * pose.scale_u
        v = (points[..., 1] - self.anatomy.height / 2) * pose.scale_v
        cos, sin = math.cos(pose.tilt), math.sin(pose.tilt)
        xy = np.stack([cos * u - sin * v + pose.shift_x, sin * u + cos * v + pose.shift_y], axis=-1)
        return np.asarray((xy + 1) * (self.size / 2), np.float32)

    @property
    def u(self) -> FloatArray:
        """Distance from the spine, positive towards the patient's left."""
        return self._uv[0]

    @property
    def v(self) -> FloatArray:
        """Distance below the lung apex."""
        return self._uv[1]

    @cached_property
    def left(self) -> BoolArray:
        """Where the patient's left side is (the image's right)."""
        return self.u > 0

    def by_side(self, right: float, left: float) -> FloatArray:
        """Give each pixel the value of its half of the patient."""
        return np.where(self.left, np.float32(left), np.float32(right))

    @cached_property
    def lateral(self) -> FloatArray:
        """Distance from the midline; a turned patient shows one half wider than the other."""
        return np.abs(self.u) * self.by_side(1 - self.pose.turn, 1 + self.pose.turn)

    @cached_property
    def across(self) -> FloatArray:
        """0 at the midline, 1 at the inner rib cage."""
        return np.asarray(np.clip(self.lateral / self.cage, 0, 1), np.float32)

    @cached_property
    def down(self) -> FloatArray:
        """0 at the apex, 1 at the right dome of the diaphragm."""
        return self.v / self.dome

    @cached_property
    def dome(self) -> float:
        """Height v of the right diaphragm; a shallow breath leaves it high."""
        return self.anatomy.height * (1 - 0.2 * self.pose.shallow)

    # --- outlines -----------------------------------------------------------------------------------------

    @cached_property
    def _row(self) -> NDArray[np.intp]:
        steps = (self.v - _V_LOW) * ((_V_STEPS - 1) / (_V_HIGH - _V_LOW))
        return np.asarray(np.clip(steps, 0, _V_STEPS - 1), np.intp)

    def _along(self, *knots: tuple[float, float]) -> FloatArray:
        """Spread a smooth curve through (v / dome, value) over the image."""
        heights, values = np.array(knots).T
        corners = np.interp(_V_AXIS, heights * self.dome, values)
        return np.asarray(np.convolve(corners, _ROUNDING, mode="same"), np.float32)[self._row]

    @cached_property
    def cage(self) -> FloatArray:
        """Half width of the inner rib cage at each row."""
        above = 1 - np.clip((_V_AXIS / self.anatomy.height + 0.06) / 0.95, 0.002, 1)
        return np.asarray((1 - above**self.anatomy.taper) ** 0.53, np.float32)[self._row]

    @cached_property
    def mediastinum(self) -> tuple[FloatArray, FloatArray]:
        """Borders of heart and vessels, as distances to the right and to the left of the spine."""
        body = self.anatomy
        heart = body.heart * (1.08 if self.pose.view == "AP" else 1.0) * (1 + 0.1 * self.pose.shallow)
        thymus, knob, shift = 0.16 * body.thymus, 0.06 * body.knob, 1.2 * self.pose.turn
        top = ((-0.15, 0.4), (-0.04, 0.31), (0.115, 0.19))
        right = self._along(
            *top, (0.24, 0.15 + 0.6 * thymus), (0.34, 0.15 + thymus), (0.45, 0.18), (0.6, 0.24 * heart),
            (0.8, 0.28 * heart), (1.0, 0.25 * heart), (1.3, 0.2),
        )  # fmt: skip
        left = self._along(
            *top, (0.2, 0.18 + knob + 0.5 * thymus), (0.31, 0.17 + thymus), (0.41, 0.21),
            (0.53, 0.28 * heart), (0.7, 0.42 * heart), (0.88, 0.52 * heart), (1.0, 0.54 * heart), (1.2, 0.4),
        )  # fmt: skip
        return right - shift, left + shift

    @cached_property
    def diaphragm(self) -> FloatArray:
        """Height v of the diaphragm above or below each pixel: two domes, the left one lower."""
        offset = self.lateral - 0.48
        fall = np.maximum(1.05 * offset, -0.55 * offset) * np.abs(offset)
        return np.asarray(self.dome + self.by_side(0.0, 0.07) + fall, np.float32)

    @cached_property
    def air(self) -> FloatArray:
        """Aerated depth of the lungs, 0..1."""
        border = np.where(self.left, *self.mediastinum[::-1])
        wall = arc((0.97 * self.cage - self.lateral) / 0.3)
        hilum = arc((self.lateral - border) / 0.14)
        base = arc((self.diaphragm - self.v) / 0.07)
        return np.asarray(wall * (0.25 + 0.75 * hilum) * (hilum > 0) * base, np.float32)

    @cached_property
    def lungs(self) -> BoolArray:
        """Lung fields as a reader outlines them, without what hides behind heart and domes."""
        return np.asarray(self.air > 0.08)

    @cached_property
    def _inflation(self) -> FloatArray:
        # A shallow breath leaves the bases poorly aired.
        return np.asarray(1 - 0.3 * self.pose.shallow * np.clip(self.down - 0.4, 0, 1), np.float32)

    # --- tissues ------------------------------------------------------------------------------------------

    def attenuation(self) -> FloatArray:
        """Return what the rays lose in this patient without disease: float32 [size, size], about 0..1.4."""
        soft, inside = self._soft_tissue()
        lungs = AIR_CONTRAST * self.air * self._inflation
        total = soft + inside * (self._organs() + self._spine() + self._ribs()) - np.minimum(lungs, soft)
        total += self._shoulder_girdle() * inside + self._breasts() + self.vessels() * self.air
        return np.asarray(np.maximum(total, 0), np.float32)

    def _soft_tissue(self) -> tuple[FloatArray, FloatArray]:
        """Return trunk, neck and arms, and where the trunk is."""
        wall, chin = self.anatomy.wall, 0.0 if self.anatomy.adult else 0.1
        trunk = self._along(
            (-0.9, 0.36 + 1.4 * chin), (-0.5, 0.36 + 0.6 * chin), (-0.3, 0.46), (-0.12, 0.95),
            (0.05, 1.16), (0.3, 1.08), (0.55, 1.0 + wall), (1.0, 1.02 + wall), (1.6, 1.0 + wall),
        )  # fmt: skip
        chord = arc((trunk - self.lateral) / trunk * 1.4)
        soft = chord * self._along((-0.6, 0.6), (0.0, 0.78))
        shoulder, angle = (1.06, 0.1 * self.dome), self.pose.arms
        elbow = (shoulder[0] + 1.1 * math.cos(angle), shoulder[1] + 1.1 * math.sin(angle))
        reach = self._distance(shoulder, elbow)
        arms = 0.5 * tube(reach, 0.17 + wall / 3) + 0.2 * tube(reach, 0.055)
        return np.maximum(soft, arms), (chord > 0).astype(np.float32)

    def _organs(self) -> FloatArray:
        right, left = self.mediastinum
        centre, half = (left - right) / 2, (left + right) / 2
        heart = 0.2 * bulge(((self.u - centre) / half) ** 2)
        depth = self.v - self.diaphragm
        belly = 0.13 * arc(depth / 0.05) + 0.1 * arc(depth / 0.5)
        stomach = bulge(((self.u - 0.5) / 0.15) ** 2 + ((depth - 0.16) / 0.095) ** 2)
        belly -= 0.22 * (self.anatomy.seed % 7 / 6) * stomach * self.left
        carina = 0.36 * self.dome
        trachea = tube(self.lateral, 0.05) * (self.v < carina)
        airway = np.maximum(trachea, tube(self._distance((0.01, carina), (0.24, carina + 0.17)), 0.035))
        return np.asarray(np.maximum(heart, belly) - 0.1 * airway, np.float32)

    def _spine(self) -> FloatArray:
        body = self.anatomy
        column = self.u + 0.4 * self.pose.turn
        phase = self.v * (2 * math.pi / (body.rib_pitch * 1.02))
        discs = 0.8 + 0.2 * np.cos(phase)
        pedicles = np.exp(-2200 * (np.abs(column) - 0.085) ** 2) * np.maximum(np.sin(phase), 0)
        depth = tube(column, 0.125 if body.adult else 0.14) * discs + 0.3 * pedicles
        return np.asarray(0.12 * body.bone * depth, np.float32)

    def _ribs(self) -> FloatArray:
        """Posterior ribs fall from the spine to the flank, anterior ones on from there to the sternum."""
        body = self.anatomy
        swing = np.sqrt(1 - self.across * self.across)
        level = (self.v + 0.03) / body.rib_pitch
        drop = body.rib_drop / body.rib_pitch
        back = level - drop * (1 - swing) + 0.35 * swing
        front = level - drop * (1 + 1.1 * swing) - 2 * (1 - self.across)
        cartilage = np.clip((self.across - 0.42) * 4, 0, 1)
        bones = _rib_profile(back, body.rib_width)
        bones += 0.6 * _rib_profile(front, body.rib_width * 1.1) * cartilage
        bones *= np.clip((1 - self.across) * 60, 0, 1)
        dense = 0.45 + 0.55 * self.air  # a logarithmic film flattens what is already white
        # Rays along the flank pass through more bone than those through its middle.
        return np.asarray(0.2 * body.bone * bones * (0.75 + 0.6 * self.across**4) * dense, np.float32)

    def _shoulder_girdle(self) -> FloatArray:
        top, knee = self.dome, (0.5, 0.07 * self.dome)
        inner, outer = (0.1 + self.pose.turn, 0.17 * top), (1.1, 0.02 * top)
        clavicle = _hollow(np.minimum(self._distance(inner, knee), self._distance(knee, outer)), 0.036)
        blade = bulge(((self.lateral - 1) / 0.17) ** 2 + ((self.v - 0.27 * top) / (0.26 * top)) ** 2)
        return 0.19 * self.anatomy.bone * clavicle + 0.06 * blade

    def _breasts(self) -> FloatArray:
        across, below = self.lateral - 0.58, self.v - 0.8 * self.dome
        reach = across**2 + np.maximum(1.7 * below, -0.85 * below) ** 2
        return 0.15 * self.anatomy.breast * bulge(reach / 0.42**2)

    def _distance(self, start: tuple[float, float], end: tuple[float, float]) -> FloatArray:
        """Return the distance of each pixel from a segment and from its mirror image."""
        du, dv = end[0] - start[0], end[1] - start[1]
        x, y = self.lateral - start[0], self.v - start[1]
        along = np.clip((x * du + y * dv) / (du * du + dv * dv), 0, 1)
        return np.asarray(np.sqrt((x - along * du) ** 2 + (y - along * dv) ** 2), np.float32)

    def vessels(self) -> FloatArray:
        """Return the shadow of the pulmonary vessels, float32 [size, size] in attenuation units."""
        tree = branches(np.random.default_rng(self.anatomy.seed), self.dome, strength=self.anatomy.hila)
        return 0.12 * (1 + 0.35 * self.pose.shallow) * self.draw_lines(*tree)

    def draw_lines(self, points: FloatArray, widths: FloatArray) -> FloatArray:
        """Draw polylines [N, P, 2] in body coordinates, a width per step [N, P - 1]; float32 in 0..1."""
        canvas = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(canvas)
        pixels = 2 * self.to_pixels(points)
        unit = self.size * self.pose.scale_u  # pixels of the doubled canvas in one body unit
        thin_first = np.argsort(widths[:, 0])
        for line, width in zip(pixels[thin_first].tolist(), widths[thin_first].tolist(), strict=True):
            for start, end, thickness in zip(line, line[1:], width, strict=False):
                span = thickness * unit
                fill = int(min(1.0, 0.3 + 0.12 * span) * 255 * min(1.0, span + 0.3))
                pen.line((*start, *end), fill=fill, width=max(1, round(span)))
        return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


def branches(rng: np.random.Generator, dome: float, *, strength: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Grow the tree of both hila: polylines float32 [N, P, 2] in body coordinates, widths [N, P - 1]."""
    stems, twigs, steps = 22, 3, 6
    angle = np.tile(np.linspace(-1.3, 1.45, stems // 2), 2) + rng.normal(0, 0.12, stems)
    side = np.repeat([-1.0, 1.0], stems // 2)
    hilum = np.stack([side * 0.19, np.where(side < 0, 0.47, 0.43) * dome], axis=-1)
    length = rng.uniform(0.43, 0.79, stems)
    stem = _walk(rng, hilum + rng.normal(0, 0.025, hilum.shape), angle, side * length, steps)
    wide = 0.045 * strength * rng.uniform(0.6, 1.1, (stems, 1)) * np.linspace(1, 0.25, steps) ** 1.2

    fork = rng.integers(2, steps, (stems, twigs))
    origin = np.take_along_axis(stem, fork[:, :, None], axis=1).reshape(-1, 2)
    turn = rng.choice([-1, 1], stems * twigs) * rng.uniform(0.35, 0.8, stems * twigs)
    twig = _walk(rng, origin, np.repeat(angle, twigs) + turn, np.repeat(side * length / 2, twigs), steps)
    thin = np.take_along_axis(wide, fork - 1, axis=1).reshape(-1, 1) * np.linspace(0.7, 0.3, steps)
    return np.concatenate([stem, twig]).astype(np.float32), np.concatenate([wide, thin]).astype(np.float32)


def _walk(rng: np.random.Generator, origin: Floats, angle: Floats, reach: Floats, steps: int) -> Floats:
    """Wander [N, steps + 1, 2] from each origin [N, 2]; a negative reach goes to the patient's right."""
    heading = angle[:, None] + np.cumsum(rng.normal(0, 0.13, (len(angle), steps)), axis=1)
    stride = np.stack([np.sign(reach)[:, None] * np.cos(heading), np.sin(heading)], axis=-1)
    path = np.cumsum(stride * np.abs(reach)[:, None, None] / steps, axis=1)
    return np.concatenate([origin[:, None], origin[:, None] + path], axis=1)


def arc(x: FloatArray) -> FloatArray:
    """Rise from 0 (x <= 0) to 1 (x >= 1) as the chord of a circle does."""
    y = np.clip(x, 0, 1)
    return np.asarray(np.sqrt(y * (2 - y)), np.float32)


def bulge(squared: NDArray[np.floating]) -> FloatArray:
    """Depth of an ellipsoid, from the squared distance of its axis in radii."""
    return np.asarray(np.sqrt(np.maximum(1 - squared, 0)), np.float32)


def tube(distance: FloatArray, radius: float) -> FloatArray:
    """Depth of a cylinder seen from the side, 1 on its axis, 0 from `radius` on."""
    return bulge((distance * (1 / radius)) ** 2)


def _hollow(distance: FloatArray, radius: float) -> FloatArray:
    """Depth of cortical bone in a long bone: bright rims, a paler marrow."""
    return tube(distance, radius) - 0.45 * tube(distance, radius * 0.7)


def _rib_profile(level: FloatArray, half_width: float) -> FloatArray:
    """Return the ribs' depth where `level` counts ribs: 0 is the middle of the first, 11 of the twelfth."""
    nearest = np.rint(level)
    return _hollow(level - nearest, half_width) * ((nearest >= 0) & (nearest <= 11))
