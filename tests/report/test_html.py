from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from PIL import Image

from pneumoscope.errors import StorageError
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report import html


def drawing(title: str = "a") -> Figure:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], marker="o", color="#0072b2")
    axes.fill_between([0, 1], [1, 2])
    axes.set_title(title)
    figure.set_label(f"drawing {title}")
    return figure


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        ({"value": 0.953, "ci95": [0.941, 0.964]}, "0.953 (95 % CI 0.941–0.964)"),
        ({"value": -0.02, "ci95": [-0.03, 0.01]}, "−0.020 (95 % CI −0.030 to 0.010)"),
        ({"value": 0.5, "ci95": [None, None]}, "0.500 (no interval)"),
        ({"value": 0.5}, "0.500 (no interval)"),
        ({"value": None, "ci95": [None, None]}, "not available"),
        ({"value": float("nan")}, "not available"),
        (None, "not available"),
    ],
)
def test_figure(estimate: dict[str, object] | None, said: str) -> None:
    assert html.figure(estimate).replace("\N{NO-BREAK SPACE}", " ") == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4.24, "4.2 s"),
        (59.9, "59 s"),
        (60, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.9, "59 min 59 s"),
        (3840, "1 h 04 min"),
        (None, "not available"),
    ],
)
def test_duration(seconds: float | None, said: str) -> None:
    assert html.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == said


def test_small_filters() -> None:
    assert html.percent(0.9534) == "95.3\N{NO-BREAK SPACE}%"
    assert html.integer(5216) == "5,216"
    assert html.integer(None) == html.percent(float("nan")) == html.number(None) == "not available"
    assert html.p_value(0.0004) == "<\N{NO-BREAK SPACE}0.001"
    assert html.p_value(0.0344) == "0.034"


def test_markdown_escapes_what_would_take_effect() -> None:
    text = html.markdown("a|b <script> `x` *y* _z_ [k](l)\nnext")
    assert "<" not in text
    assert text == r"a\|b &lt;script&gt; \`x\` \*y\* \_z\_ \[k\](l) next"


def test_image_uri_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (3, 2), 7).save(path)
    kind, _, data = html.image_uri(path).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == path.read_bytes()
    with pytest.raises(StorageError, match="no such file"):
        html.image_uri(tmp_path / "none.png")


def test_pixels_uri_is_small_and_like_the_pixels() -> None:
    pixels = np.tile(np.linspace(0, 1, 900, dtype=np.float32), (600, 1))
    data = base64.b64decode(html.pixels_uri(pixels, longest=300).partition(",")[2])
    image = Image.open(io.BytesIO(data))
    assert image.size == (300, 200)
    shown = np.asarray(image)[100] / 255
    assert np.abs(shown - np.linspace(0, 1, 300)).max() < 0.03


def test_svg_is_safe_inside_a_page() -> None:
    one, two = html.svg(drawing("a")), html.svg(drawing("b"))
    for text in (one, two):
        assert text.startswith("<svg viewBox=")
        assert "http" not in text
        assert "<style" not in text
        assert "<metadata" not in text
        ids = re.findall(r'\bid="([^"]+)"', text)
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
        assert used
        assert len(ids) == len(set(ids))
        assert {a or b for a, b in used} <= set(ids)
    assert not set(re.findall(r'\bid="([^"]+)"', one)) & set(re.findall(r'\bid="([^"]+)"', two))
    assert not set(re.findall(r'\bid="([^"]+)"', one)) & set(
        re.findall(r'\bid="([^"]+)"', html.svg(drawing("a"), key="again"))
    )


def test_svg_follows_the_colours_of_the_page_and_keeps_text_as_text() -> None:
    text = html.svg(drawing("sensitivity"))
    document = html.drawing(drawing("sensitivity")).document
    assert text.count("#ffffff") == document.count("#ffffff") - 1, "the page, not the figure, is the background"
    assert "stroke: var(--blue, #0072b2)" in text
    assert ">sensitivity</text>" in text
    assert 'aria-label="drawing sensitivity"' in text


def test_svg_escapes_text() -> None:
    text = html.svg(drawing("<script>alert(1)</script>"), alt='"><script>')
    assert "<script" not in text


def test_svg_is_the_same_each_time_and_leaves_settings_alone() -> None:
    before = dict(mpl.rcParams)
    assert html.svg(drawing()) == html.svg(drawing())
    assert html.drawing(drawing()) == html.drawing(drawing())
    assert dict(mpl.rcParams) == before


def test_render_wants_every_name() -> None:
    with pytest.raises(UndefinedError, match="subtitle"):
        html.render("base.html.j2", title="a", contents=[])


def test_render_escapes_and_says_research_only() -> None:
    text = html.render("base.html.j2", title="<b>", subtitle="&", contents=[("x", "<i>")])
    assert "<b>" not in text
    assert "&lt;i&gt;" in text
    assert text.count(RESEARCH_ONLY) >= 2


def _contrast(one: str, two: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast() -> None:
    css = (Path(html.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    for colours in (light, dark):
        for paper in ("paper", "raised"):
            for text in ("ink", "muted", "link"):
                assert _contrast(colours[text], colours[paper]) >= 4.5
        assert _contrast(colours["warn-ink"], colours["warn"]) >= 4.5
        for line in ("blue", "vermilion", "green"):
            assert _contrast(colours[line], colours["paper"]) >= 3
