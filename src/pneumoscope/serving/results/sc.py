"""The secondary capture: the radiograph with the map blended in and the result beside it, for viewers without layers.

No text lies on the radiograph, and no identity is written into the picture.
"""

from __future__ import annotations

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.explanation.overlay import overlay, scale
from pneumoscope.palette import ORANGE, SKY
from pneumoscope.serving.results import words
from pneumoscope.serving.results.finding import Encoded
from pneumoscope.serving.results.instance import Case
from pneumoscope.serving.results.regions import outlines
from pneumoscope.serving.wire.references import reference

KIND = "sc"
LONGEST = 1024  # pixels of the longer side
_NARROWEST = 640  # lines of text need some width
_WHITE, _GREY = "#ffffff", "#b8c0c8"
_MARGIN = 14


def build(case: Case) -> Encoded:
    """Return the picture, RGB, at most 1,024 pixels of radiograph on the longer side."""
    header = case.header
    pixels, processing = draw(case)
    picture = SCImage.from_ref_dataset(
        ref_dataset=case.evidence,
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=header.get("PatientOrientation") or ("L", "F"),
        **case.arguments(KIND, 9002, "Pneumoscope overlay (research)"),
    )
    picture.PatientOrientation = header.get("PatientOrientation")  # empty where the radiograph has none
    # No identity is added; text burned into the radiograph stays.
    picture.BurnedInAnnotation = "YES" if header.get("BurnedInAnnotation") == "YES" else "NO"
    picture.DerivationDescription = processing
    picture.SourceImageSequence = [reference(header.SOPClassUID, header.SOPInstanceUID)]
    return case.finish(KIND, picture)


def draw(case: Case) -> tuple[NDArray[np.uint8], str]:
    """Return the picture uint8 [H, W, 3] and the processing of the radiograph, in words."""
    finding = case.finding
    above, below = _Column(), _Column()
    above.add(words.NOTICE, 20, ORANGE)
    below.add(words.headline(finding), 30, ORANGE if words.flagged(finding) else _WHITE)
    below.add(words.score(finding), 20, _WHITE)
    below.add(words.caution(finding), 20, _WHITE)
    if (explained := words.explanation(finding)) is not None:
        below.add(explained, 17, _GREY)
    below.add(words.algorithm(finding), 15, _GREY)
    picture, processing = _radiograph(case)
    width = max(_NARROWEST, picture.width if picture else 0)
    height = picture.height if picture else 0
    head, foot = above.height(width), below.height(width)
    bar = 30 if explained else 0
    canvas = Image.new("RGB", (width, head + height + bar + foot), "black")
    above.write(canvas, 0)
    if picture:
        canvas.paste(picture, ((width - picture.width) // 2, head))
    if bar:
        _key(canvas, head + height + 8)
    below.write(canvas, head + height + bar)
    return np.asarray(canvas), processing


def _radiograph(case: Case) -> tuple[Image.Image | None, str]:
    """Return the radiograph in colour, with the map where it was flagged, and the processing in words."""
    finding = case.finding
    if finding.image is None:
        return None, "The radiograph could not be read; text only."
    height, width = finding.image.shape
    factor = min(1.0, LONGEST / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    grey = Image.fromarray(finding.image)
    small = np.asarray(grey if factor == 1 else grey.resize(size, Image.Resampling.BOX, reducing_gap=None), np.float32)
    depth = "8 bits per pixel" if factor == 1 else f"Reduced from {width} x {height} to {size[0]} x {size[1]}, 8 bits"
    if words.explanation(finding) is None or finding.heatmap is None:
        return Image.fromarray(np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)).convert("RGB"), f"{depth}."
    picture = Image.fromarray(overlay(small, finding.heatmap))
    pen = ImageDraw.Draw(picture)
    for outline in outlines(finding.heatmap, *size):
        pen.line([(float(x), float(y)) for x, y in outline], fill=SKY, width=2)
    return picture, f"{depth}; map of evidence blended in."


class _Column:
    """Lines of text from top to bottom, wrapped at the width of the canvas."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, int, str]] = []

    def add(self, text: str, size: int, colour: str) -> None:
        self.parts.append((text, size, colour))

    def _lines(self, width: int) -> list[tuple[str, int, str]]:
        lines = []
        for text, size, colour in self.parts:
            lines += [(line, size, colour) for line in _wrapped(text, size, width - 2 * _MARGIN)]
        return lines

    def height(self, width: int) -> int:
        """Return the pixels that the lines take."""
        return sum(round(1.4 * size) for _, size, _ in self._lines(width)) + _MARGIN

    def write(self, canvas: Image.Image, top: int) -> None:
        """Write the lines from `top` on."""
        pen = ImageDraw.Draw(canvas)
        y = top + _MARGIN // 2
        for text, size, colour in self._lines(canvas.width):
            pen.text((_MARGIN, y), text, fill=colour, font=ImageFont.load_default(size))
            y += round(1.4 * size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    font = ImageFont.load_default(size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _key(canvas: Image.Image, top: int) -> None:
    """Draw the colours of the map from weak to strong."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    pen.text((_MARGIN, top - 2), "weak", fill=_GREY, font=font)
    left = _MARGIN + round(font.getlength("weak")) + 8
    for step, (_, colour) in enumerate(scale(40)):
        pen.rectangle((left + 4 * step, top, left + 4 * step + 3, top + 14), fill=colour)
    pen.text((left + 168, top - 2), "strongest for pneumonia", fill=_GREY, font=font)
