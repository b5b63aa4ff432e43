"""The page of the shortcut card says what `audit.json` says, and fetches nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import DataError, StorageError
from pneumoscope.files import write_json
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report import audit_page
from pneumoscope.report.audit_page import write
from pneumoscope.shortcuts.conditions import ADDED, REMOVED
from pneumoscope.shortcuts.examples import SHOWN
from pneumoscope.shortcuts.verdict import LIGHTS

Card = dict[str, Any]


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Card:
    return {"value": value, "ci95": [low, high], "method": "made up"}


def item(key: str, light: str, figure: Card | None = None, reason: str | None = None, **facts: Any) -> Card:
    measure, limit = "AUROC", "at most 50% of (AUROC − .5) left"
    return {"key": key, "light": light, "measure": measure, "figure": figure, "limit": limit, "reason": reason,
            "facts": facts}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "figures" / "a.png")
    write_json(tmp_path / "audit.json", card())
    return tmp_path


def card(**changes: Any) -> Card:
    attention = {"inside": estimate(0.312, 0.28, 0.34), "even": estimate(0.33, 0.31, 0.35)}
    return {
        "verdict": "red",
        "bundle": {"name": "mine <b>", "sha256": "ab" * 32},
        "data": {"source": "there", "sha256": "cd" * 32, "images": 40},
        "n": 40, "n_patients": 30, "n_pneumonia": 20, "left_out": {"unread": 1, "without_lungs": 2},
        "threshold": 0.5, "operating_point": "balanced", "seed": 3, "seconds": 12.0,
        "items": [
            item("metadata", "amber", estimate(0.8, 0.7, 0.9), exposure=estimate(0.8, 0.7, 0.9)),
            item("lungs_removed", "amber", estimate(0.972, 0.955, 0.983), kept=estimate(0.95, 0.9, 0.97),
                 outline=estimate(0.94, 0.9, 0.96), void="the outline tells"),
            item("lung_region_removed", "red", estimate(0.883, 0.845, 0.913), kept=estimate(0.77, 0.7, 0.83)),
            item("attention_gradcam", "red", estimate(0.312, 0.28, 0.34), **attention),
            item("probes", "not tested", reason="the table tells no age"),
            item("mirrored", "green", estimate(0.01, 0.0, 0.03), shift=estimate(0.1), lost=estimate(0.001)),
            item("something_new", "green", estimate(0.01, 0.0, 0.03)),
        ],
        "conditions": {"untouched": {"auroc": estimate(0.99, 0.98, 1.0), "called": 0.5, "log_odds": 0.3},
                       "lungs_removed:noise": {"auroc": None, "called": 0.5, "log_odds": 0.3}},
        "figures": {"examples": [{"file": "figures/a.png", "condition": "lungs_removed", "label": "NORMAL"}],
                    "maps": [{"file": "figures/a.png", "method": "gradcam", "images": 20}]},
        **changes,
    }  # fmt: skip


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))


def test_the_page_says_the_verdict_in_a_word_and_a_sentence(folder: Path) -> None:
    text = text_of(write(folder))
    assert "✕ red This network answers in part from something other than the lungs." in text
    assert "Red: Region of all lungs removed; Grad-CAM in the lungs." in text
    assert RESEARCH_ONLY in text
    assert "2 on which two lungs were not found, 1 that could not be read" in text


def test_figures_have_intervals_and_reasons(folder: Path) -> None:
    text = text_of(write(folder))
    assert "0.88 0.84–0.91" in text or "0.88 0.85–0.91" in text
    assert "Not tested, because the table tells no age." in text
    assert "The outline of the hole alone tells pneumonia with AUROC 0.94." in text
    assert "Not red, because the outline tells." in text
    assert "An even map would have 33" in text


def test_the_page_fetches_nothing_and_escapes_names(folder: Path) -> None:
    page = write(folder).read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "mine <b>" not in page
    assert page.count("data:image/png;base64,") == 2


def test_items_stand_in_a_fixed_order_and_new_ones_at_the_end(folder: Path) -> None:
    text = text_of(write(folder))
    names = ["Region of all lungs removed", "Lungs removed, outline left", "Left and right exchanged", "something new"]
    table = text[text.index("What it means") :]
    places = [table.index(name) for name in names]
    assert places == sorted(places)


@pytest.mark.parametrize("light", LIGHTS)
def test_every_light_has_a_sign_and_a_sentence(folder: Path, light: str) -> None:
    write_json(folder / "audit.json", card(verdict=light))
    assert audit_page.SENTENCES[light] in text_of(write(folder))
    assert len(set(audit_page.SIGNS.values())) == len(LIGHTS)


def test_every_condition_that_is_judged_or_shown_has_a_name() -> None:
    controls = {"silhouette", "everything_removed", "lungs_box_removed"}
    assert {*REMOVED, *ADDED} - controls <= set(audit_page.ITEMS)
    assert set(SHOWN) <= set(audit_page.CONDITIONS)


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `pneumoscope audit` first"):
        write(tmp_path / "figures")
    broken = card()
    del broken["items"]
    write_json(folder / "audit.json", broken)
    with pytest.raises(DataError, match="lacks 'items'"):
        write(folder)
    write_json(folder / "audit.json", card())
    (folder / "figures" / "a.png").unlink()
    with pytest.raises(StorageError):
        write(folder)
