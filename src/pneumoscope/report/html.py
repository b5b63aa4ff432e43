"""Pages from templates: one self-contained HTML file, figures inline, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import mimetypes
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from pneumoscope.errors import storage_errors
from pneumoscope.numerals import (
    GAP,
    MISSING,
    bounds,
    duration,
    figure,
    integer,
    interval,
    number,
    p_value,
    percent,
)
from pneumoscope.palette import VARIABLES
from pneumoscope.records import RESEARCH_ONLY, FloatArray
from pneumoscope.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With the figures as text, which pages write beside their figures as pictures.
__all__ = [
    "GAP",
    "MISSING",
    "Drawing",
    "bounds",
    "drawing",
    "duration",
    "figure",
    "image_uri",
    "integer",
    "interval",
    "markdown",
    "number",
    "p_value",
    "percent",
    "pixels_uri",
    "render",
    "svg",
]


def markdown(value: object) -> str:
    """Escape text for a Markdown cell: no tag, link, emphasis or table bar of a file name takes effect."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


# --- images and figures -----------------------------------------------------------------------------------


def image_uri(path: Path) -> str:
    """Return a raster file as a `data:` URI; raises `StorageError` where it cannot be read."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    with storage_errors(path):
        return _uri(kind, path.read_bytes())


def pixels_uri(pixels: FloatArray, longest: int = 320) -> str:
    """Return grey pixels, float32 [H, W] in 0..1, as a JPEG `data:` URI no longer than `longest` pixels."""
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure drawn once: `document` is a stand-alone SVG on white, `label` its text alternative."""

    document: str
    label: str
    caption: str

    def inline(self, key: str = "") -> Markup:
        """Return the figure for a page; `key` tells apart two of the same content (ids must be unique)."""
        return _inline(self.document, self.label, key)


def drawing(figure: Figure, caption: str = "") -> Drawing:
    """Draw a figure: the same figure gives the same bytes. Its own label is the text alternative."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text (read aloud, searched, sharp at any zoom); a fixed salt gives the same ids each time.
    import matplotlib as mpl  # slow to load, and the gateway's page draws no figures

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pneumoscope"}):
        figure.savefig(buffer, format="svg", metadata=nothing, facecolor="white")
    return Drawing(buffer.getvalue(), str(figure.get_label()), caption)


def svg(figure: Figure, alt: str = "", key: str = "") -> Markup:
    """Return a figure as inline SVG that follows the page's light or dark colours.

    Args:
        figure: its label is the text alternative where `alt` is empty.
        alt: the text alternative.
        key: tells apart two figures of the same content on one page (ids must be unique).
    """
    drawn = drawing(figure)
    return _inline(drawn.document, alt or drawn.label, key)


def _inline(document: str, label: str, key: str) -> Markup:
    """Turn Matplotlib's SVG document into an element that is safe beside others on a page."""
    text = document[document.index("<svg") :]
    # Matplotlib's own style sheet would apply to the whole page, and its metadata name outside addresses.
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("fill: #ffffff", "fill: none", 1)  # the first path is the figure's background
    text = text.replace("xlink:href=", "href=")
    prefix = "f" + hashlib.sha256((label + key + text).encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", text)
    for colour, variable in VARIABLES.items():
        text = re.sub(rf"\b(fill|stroke): {colour}\b", rf"\1: var(--{variable}, {colour})", text)
    box = [float(side) for side in re.findall(r'viewBox="([^"]+)"', text)[0].split()]
    named = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    width = box[2] * 4 / 3  # points to CSS pixels
    opening = f'<svg viewBox="0 0 {box[2]:g} {box[3]:g}" {named} style="max-width:{width:.0f}px">'
    return Markup(opening + text[text.index(">") + 1 :].strip())


# --- pages ------------------------------------------------------------------------------------------------


def render(template_name: str, **context: Any) -> str:
    """Fill a template of this package; a name that the template uses and nobody gives is an error.

    Names ending in `.html.j2` are escaped. Every page knows `research_only` and `version`, and the filters
    `figure, interval, number, percent, integer, duration, p_value, markdown`.

    Raises:
        jinja2.UndefinedError: the context lacks a name.
    """
    return _environment().get_template(template_name).render(**context)


@cache
def _environment() -> Environment:
    """Return the environment of all pages; it keeps each template compiled."""
    environment = Environment(
        loader=PackageLoader("pneumoscope.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for filter_ in (figure, interval, number, percent, integer, duration, p_value, markdown):
        environment.filters[filter_.__name__] = filter_
    environment.globals["research_only"] = RESEARCH_ONLY
    environment.globals["version"] = __version__
    return environment
