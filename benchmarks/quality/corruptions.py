"""What another machine, technician or archive does to a radiograph, in five strengths, as pure functions of pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Pixels = NDArray[np.uint8]
Corruption = Callable[[Image.Image, int, np.random.Generator], Image.Image]
SEVERITIES = (1, 2, 3, 4, 5)
_BILINEAR = Image.Resampling.BILINEAR


def _level(severity: int, *values: float) -> float:
    return values[severity - 1]


def cropped(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Keep a square of the image, at a random place."""
    side = image.width
    kept = round(side * _level(severity, 0.95, 0.9, 0.85, 0.8, 0.7))
    left, top = rng.integers(0, side - kept + 1, 2)
    return image.crop((left, top, left + kept, top + kept)).resize((side, side), _BILINEAR)


def padded(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Put a black frame around the whole image."""
    side = image.width
    inner = round(side * _level(severity, 0.96, 0.92, 0.87, 0.8, 0.7))
    result = Image.new("L", image.size)
    result.paste(image.resize((inner, inner), _BILINEAR), ((side - inner) // 2, (side - inner) // 2))
    return result


def stretched(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Change the aspect ratio, in either direction, and cut what overhangs."""
    side = image.width
    longer = round(side * _level(severity, 1.05, 1.1, 1.18, 1.28, 1.4))
    size = (longer, side) if rng.random() < 0.5 else (side, longer)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return image.resize(size, _BILINEAR).crop((left, top, left + side, top + side))


def rotated(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Turn either way, black corners."""
    angle = _level(severity, 3, 6, 10, 15, 20) * rng.choice([-1, 1])
    return image.rotate(float(angle), _BILINEAR)


def darker(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Gamma above one."""
    return _curve(image, lambda x: x ** _level(severity, 1.2, 1.4, 1.7, 2.0, 2.5))


def brighter(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Gamma below one."""
    return _curve(image, lambda x: x ** (1 / _level(severity, 1.2, 1.4, 1.7, 2.0, 2.5)))


def flatter(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Less contrast about the mean."""
    factor, mean = _level(severity, 0.85, 0.7, 0.55, 0.4, 0.3), np.asarray(image).mean() / 255
    return _curve(image, lambda x: (x - mean) * factor + mean)


def steeper(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """More contrast about the mean, with clipping."""
    factor, mean = _level(severity, 1.2, 1.4, 1.7, 2.0, 2.5), np.asarray(image).mean() / 255
    return _curve(image, lambda x: (x - mean) * factor + mean)


def noisy(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise, as of a low dose."""
    grey = np.asarray(image) / 255 + _level(severity, 0.01, 0.02, 0.04, 0.06, 0.1) * rng.standard_normal(
        image.size[::-1]
    )
    return Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))


def blurred(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur; radius in pixels of a side of 224."""
    return image.filter(ImageFilter.GaussianBlur(_level(severity, 0.5, 0.8, 1.2, 1.6, 2.2) * image.width / 224))


def coarser(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Scale down and up again."""
    side = round(image.width * _level(severity, 0.8, 0.65, 0.5, 0.4, 0.3))
    return image.resize((side, side), _BILINEAR).resize(image.size, _BILINEAR)


def compressed(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """JPEG of low quality."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(_level(severity, 60, 40, 25, 15, 8)))
    return Image.open(stream).convert("L")


def lettered(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """A white side marker, `R` or `L`, near an upper corner."""
    side = image.width
    height = int(side * _level(severity, 0.06, 0.08, 0.1, 0.13, 0.16))
    x = rng.choice([0.06, 0.82]) * side + rng.normal(0, 0.02) * side
    result = image.copy()
    font = ImageFont.load_default(height)
    ImageDraw.Draw(result).text((x, rng.uniform(0.04, 0.25) * side), str(rng.choice(["R", "L"])), fill=255, font=font)
    return result


def framed(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Black over the outermost pixels, as of a collimator; with them go markers and the corners' cues."""
    side = image.width
    margin = round(side * _level(severity, 0.03, 0.05, 0.08, 0.11, 0.15))
    result = Image.new("L", image.size)
    box = (margin, margin, side - margin, side - margin)
    result.paste(image.crop(box), box)
    return result


def _curve(image: Image.Image, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Image.Image:
    table = (np.clip(change(np.arange(256) / 255), 0, 1) * 255).round().astype(int).tolist()
    return image.point(table)


CORRUPTIONS: Mapping[str, Corruption] = {
    function.__name__: function
    for function in (
        cropped, padded, stretched, rotated, darker, brighter, flatter, steeper, noisy, blurred, coarser, compressed,
        lettered, framed,
    )
}  # fmt: skip


def corrupt(canvas: Pixels, name: str, severity: int, key: int) -> Pixels:
    """Return uint8 [side, side]; what is random depends on (name, severity, key) alone."""
    rng = np.random.default_rng([list(CORRUPTIONS).index(name), severity, key])
    return np.asarray(CORRUPTIONS[name](Image.fromarray(canvas), severity, rng))
