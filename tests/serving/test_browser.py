"""The page in a real browser: what a reader does, from signing in to feedback."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import uvicorn
from sqlalchemy import select
from tests.serving.test_gateway import chest
from tests.serving.test_serve import until
from tests.serving.test_web import PASSWORD, Place, answer, bring, opened, with_users

from pneumoscope.journal import Journal
from pneumoscope.records import NORMAL
from pneumoscope.serving.tables import Feedback

__all__ = ["with_users"]

INSTALL = Path(__file__).parents[2] / "scripts" / "browser" / "install"
FLAGS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
PICTURES = os.environ.get("PNEUMOSCOPE_PICTURES")  # a folder, for a person who wants to look


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; skipped with the reason where there is none."""
    done = subprocess.run([str(INSTALL)], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def served(place: Place) -> Iterator[str]:
    """The page on a free loopback port."""
    server = uvicorn.Server(uvicorn.Config(place.app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def look(page: Any, name: str) -> np.ndarray:
    """The viewer's pixels as they are drawn."""
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)
    picture = PIL.Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")
    return np.asarray(picture, float)[4:-4, 4:-4]  # without the focus ring and halves of pixels at the rim


def coloured(pixels: np.ndarray) -> float:
    """How far the pixels are from grey."""
    return float(np.ptp(pixels, axis=2).mean())


@pytest.mark.slow
def test_a_reader_reads(tmp_path: Path, with_users: Path, chromium: Any) -> None:
    with opened(tmp_path, with_users) as place, served(place) as url:
        context = chromium.new_context(viewport={"width": 1400, "height": 1000})
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        page.goto(url)
        page.get_by_label("Name").fill("reader")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/worklist")
        assert page.get_by_text("No image fits").is_visible()

        image_id = bring(place, chest(side=512))  # the open page finds it by itself
        page.locator(f"#open-{image_id}").wait_for()
        answer(place, image_id)
        page.get_by_text("Pneumonia suspected").wait_for()
        page.locator(f"#open-{image_id}").focus()
        page.keyboard.press("Enter")
        page.locator("#canvas[data-ready=yes]").wait_for()
        shown = look(page, "study")
        assert shown.max() > 200
        assert coloured(shown) == 0.0  # off until it is asked for

        page.locator("#canvas").focus()
        page.keyboard.press("o")
        page.locator("#overlay[aria-pressed=true]").wait_for()
        over = look(page, "overlay")
        assert coloured(over) > 1.0
        page.get_by_label("Opacity").fill("10")
        assert coloured(look(page, "faint")) < coloured(over) / 2
        page.locator("#canvas").focus()
        page.keyboard.press("o")
        np.testing.assert_array_equal(look(page, "off"), shown)

        page.keyboard.press("[")
        assert not np.array_equal(look(page, "narrow"), shown)
        page.keyboard.press("r")
        np.testing.assert_array_equal(look(page, "reset"), shown)
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 120)
        page.mouse.up()
        assert look(page, "darker").mean() != shown.mean()
        page.get_by_role("button", name="Reset").click()
        page.get_by_role("button", name="Invert").click()
        corner = (slice(0, 60), slice(shown.shape[1] // 2 - 30, shown.shape[1] // 2 + 30))
        np.testing.assert_allclose(look(page, "inverted")[corner], 255 - shown[corner], atol=2)
        page.get_by_role("button", name="Reset").click()
        page.get_by_role("button", name="Zoom in").click()
        assert not np.array_equal(look(page, "zoomed"), shown)

        page.get_by_label("wrong: I disagree").check()
        page.get_by_label("Comment").fill("a fold of skin")
        page.get_by_role("button", name="Keep").click()
        page.get_by_text("a fold of skin").wait_for()
        look(page, "feedback")
        with place.store.read() as session:
            assert session.scalars(select(Feedback.verdict)).all() == ["disagree"]
        assert [label.label for label in Journal(place.config.journal_file).labels()] == [NORMAL]
        assert complaints == []
        context.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/worklist", "/study/1", "/technical", "/upload", "/audit"])
def test_nothing_is_cut_off_at_twice_the_size(tmp_path: Path, with_users: Path, chromium: Any, path: str) -> None:
    """1280 pixels at 200 % are 640 CSS pixels (WCAG 1.4.4, 1.4.10): only tables may scroll sideways."""
    with opened(tmp_path, with_users) as place, served(place) as url:
        answer(place, bring(place, chest()))
        bring(place, chest(Modality="CT"))
        context = chromium.new_context(viewport={"width": 640, "height": 400}, device_scale_factor=2)
        page = context.new_page()
        page.goto(url)
        page.get_by_label("Name").fill("admin")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/worklist")
        page.goto(url + path)
        if PICTURES:
            page.screenshot(path=f"{PICTURES}/large{path.replace('/', '-')}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 640
        context.close()
