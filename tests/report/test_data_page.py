"""The page about a data source."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data.checks.quality import check
from pneumoscope.data.describe import describe
from pneumoscope.data.scan import scan
from pneumoscope.data.sources import open_source
from pneumoscope.errors import DataError, StorageError
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report.data_page import framing_chart, write_page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A described and checked source with one label conflict, sizes by class, and a hostile file name."""
    base = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for label, width in (("NORMAL", 150), ("PNEUMONIA", 190)):
        folder = base / "s" / label
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (140, width), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).save(folder / "twice & <b>.png")
    manifest = open_source(base / "s")
    scanned = scan(manifest)
    describe(manifest, base / "out", scanned=scanned)
    check(manifest, base / "out", scanned=scanned)
    return base / "out"


def copied(made: Path, target: Path, *names: str) -> Path:
    (target / "figures").mkdir(parents=True)
    for name in names:
        (target / name).write_bytes((made / name).read_bytes())
    for figure in (made / "figures").iterdir():
        (target / "figures" / figure.name).write_bytes(figure.read_bytes())
    return target


def test_page_holds_everything_and_fetches_nothing(made: Path) -> None:
    page = write_page(made).read_text(encoding="utf-8")
    assert RESEARCH_ONLY in page
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"""url\((?!["']?#)|@import|<script""", page)
    figures = {path.name for path in (made / "figures").iterdir()}
    assert page.count("data:image/png;base64,") == len(figures)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(ids)


def test_page_states_the_verdict_and_each_problem(made: Path) -> None:
    page = write_page(made).read_text(encoding="utf-8")
    assert "A result measured on this source would be wrong." in page
    assert "voids results" in page
    quality = json.loads((made / "quality.json").read_text(encoding="utf-8"))
    for problem in quality["problems"]:
        assert problem["message"][1:] in page
    low, high = quality["shortcuts"]["features"][0]["auroc"]["ci95"]
    assert f"{low:.3f}–{high:.3f}" in page


def test_file_names_are_escaped(made: Path) -> None:
    page = write_page(made).read_text(encoding="utf-8")
    assert "twice &amp; &lt;b&gt;.png" in page
    assert "twice & <b>" not in page


def test_images_have_text_alternatives(made: Path) -> None:
    page = write_page(made).read_text(encoding="utf-8")
    images = re.findall(r"<img [^>]+>", page)
    assert images
    assert all(re.search(r'alt="[^"]{5,}"', image) for image in images)
    assert all("aria-label" in drawing for drawing in re.findall(r"<svg [^>]+>", page))


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [("describe.json", 'id="mosaics"', 'id="problems"'), ("quality.json", 'id="problems"', 'id="mosaics"')],
)
def test_one_file_is_enough(made: Path, tmp_path: Path, name: str, present: str, absent: str) -> None:
    page = write_page(copied(made, tmp_path / "one", name)).read_text(encoding="utf-8")
    assert present in page
    assert absent not in page


def test_page_is_the_same_each_time(made: Path) -> None:
    assert write_page(made).read_bytes() == write_page(made).read_bytes()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither describe\.json nor quality\.json"):
        write_page(tmp_path)


def test_results_of_different_data_are_refused(made: Path, tmp_path: Path) -> None:
    out = copied(made, tmp_path / "two", "describe.json", "quality.json")
    quality = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    (out / "quality.json").write_text(json.dumps({**quality, "sha256": "0" * 64}))
    with pytest.raises(DataError, match="different data"):
        write_page(out)


def test_a_missing_figure_is_named(made: Path, tmp_path: Path) -> None:
    out = copied(made, tmp_path / "three", "describe.json")
    (out / "figures" / "difference.png").unlink()
    with pytest.raises(StorageError, match=r"difference\.png"):
        write_page(out)


def test_a_source_without_readable_images_or_labels_has_a_page(tmp_path: Path) -> None:
    Image.new("L", (200, 200), 9).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "m.csv").write_text("path,label\na.png,\nb.png,\n")
    for keep in ("ab", "b"):
        manifest = open_source(tmp_path / "m.csv").where(lambda s, keep=keep: Path(s.path).stem in keep)
        describe(manifest, tmp_path / keep)
        check(manifest, tmp_path / keep)
        page = write_page(tmp_path / keep).read_text(encoding="utf-8")
        assert "unlabelled" in page
        assert "Not measured" in page


def test_framing_is_drawn_from_the_medians_of_both_classes() -> None:
    sides = ("above", "below", "left of", "right of")
    medians = {
        f"{side} the lungs": {"NORMAL": 0.18, "PNEUMONIA": 0.07 + number / 100} for number, side in enumerate(sides)
    }
    figure = framing_chart(medians)
    normal, ill = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert (normal, ill) == (["18% above", "18% below"], ["7% above", "8% below"])
    width = [axes.patches[1].get_width() for axes in figure.axes]
    assert width == pytest.approx([0.64, 0.81])
