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

import axe_playwright_python
import numpy as np
import PIL.Image
import pytest
import uvicorn
from sqlalchemy import select
from tests.support.gateway import chest
from tests.support.waiting import until
from tests.support.web import PASSWORD, WebApp, answer, bring, opened, yesterdays

from pneumoscope.journal.journal import Journal
from pneumoscope.records import NORMAL
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import DEAD, QUARANTINED, WAITING, Delivery, Feedback, Job, Object

INSTALL = Path(__file__).parents[3] / "scripts" / "browser" / "install"
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
def served(web: WebApp) -> Iterator[str]:
    """The page on a free loopback port."""
    server = uvicorn.Server(uvicorn.Config(web.app, host="127.0.0.1", port=0, log_config=None, access_log=False))
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


def opened_at(chromium: Any, url: str, user: str = "admin", **viewport: Any) -> Any:
    """A page of a signed-in user."""
    page = chromium.new_context(**viewport).new_page()
    page.goto(url)
    page.get_by_label("Name").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/worklist")
    return page


def troubled(web: WebApp) -> dict[str, int]:
    """Images in every state, and a letter that was given up."""
    made = {name: bring(web, chest(side=512)) for name in ("flagged", "clear", "waiting", "refused", "stuck")}
    made["declined"] = bring(web, chest(Modality="CT"))
    result_id = answer(web, made["flagged"])
    answer(web, made["clear"], 0.1)
    answer(web, made["refused"], None, reason="nearly constant")
    moment = now()
    with web.store.write() as session:
        job = session.scalars(select(Job).where(Job.image_id == made["stuck"])).one()
        job.state, job.reason, job.ended_at = QUARANTINED, "not analysed, because its process died", moment
        letter = Object(result_id=result_id, kind="sr", uid="1.2.3", sop_class=None, suffix=".dcm", data=b"x")
        letter.deliveries.append(
            Delivery(destination="pacs", state=DEAD, attempts=9, created_at=moment, not_before=moment, reason="refused")
        )
        session.add(letter)
    return made


def complaints_of_axe(page: Any) -> list[str]:
    """What axe-core (WCAG 2 A and AA, and good practice) finds that is serious or critical."""
    violations = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{item['id']}: {item['nodes'][0]['html'][:200]}"
        for item in violations
        if item["impact"] in ("serious", "critical")
    ]


def coloured(pixels: np.ndarray) -> float:
    """How far the pixels are from grey."""
    return float(np.ptp(pixels, axis=2).mean())


@pytest.mark.slow
def test_a_reader_reads(tmp_path: Path, with_users: Path, chromium: Any) -> None:
    with opened(tmp_path, with_users) as web, served(web) as url:
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

        image_id = bring(web, chest(side=512))  # the open page finds it by itself
        page.locator(f"#open-{image_id}").wait_for()
        answer(web, image_id)
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
        with web.store.read() as session:
            assert session.scalars(select(Feedback.verdict)).all() == ["disagree"]
        assert [label.label for label in Journal(web.config.journal_file).labels()] == [NORMAL]
        assert complaints == []
        context.close()


@pytest.mark.slow
def test_axe_finds_nothing_serious_on_any_page(tmp_path: Path, with_users: Path, chromium: Any) -> None:
    script = Path(axe_playwright_python.__file__).parent / "axe.min.js"
    with opened(tmp_path, with_users) as web, served(web) as url:
        size = {"viewport": {"width": 1280, "height": 900}}
        first = chromium.new_context(**size, bypass_csp=True).new_page()  # axe is no script of ours

        def checked(page: Any, name: str) -> dict[str, list[str]]:
            if PICTURES:
                page.screenshot(path=f"{PICTURES}/axe-{name}.png", full_page=True)
            page.add_script_tag(path=script)
            complaints = complaints_of_axe(page)
            return {name: complaints} if complaints else {}

        first.goto(url)
        every = checked(first, "signin")
        first.get_by_label("Name").fill("admin")
        first.get_by_label("Password").fill("wrong password")
        first.keyboard.press("Enter")
        first.get_by_role("alert").wait_for()
        every |= checked(first, "signin-refused")
        page = opened_at(chromium, url, **size, bypass_csp=True)
        every |= checked(page, "worklist-empty")
        made = troubled(web)
        paths = {"worklist": "/worklist", "technical": "/technical", "upload": "/upload", "audit": "/audit",
                 "fault": "/study/999", **{name: f"/study/{image_id}" for name, image_id in made.items()}}  # fmt: skip
        for name, path in paths.items():
            page.goto(url + path)
            if name in made:
                page.locator("#canvas[data-ready=yes]").wait_for()
            every |= checked(page, name)
        page.goto(f"{url}/worklist")
        page.get_by_role("searchbox").fill("Doe, Jane")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Search").wait_for()
        every |= checked(page, "search")
        assert every == {}
        planted = page.evaluate("document.querySelector('main').innerHTML += '<img src=/static/icon.svg>'")
        assert planted is not None
        assert complaints_of_axe(page), "it finds an image without a text"
        first.context.close()
        page.context.close()


@pytest.mark.slow
def test_a_keyboard_is_enough(tmp_path: Path, with_users: Path, chromium: Any) -> None:
    with opened(tmp_path, with_users) as web, served(web) as url:
        image_id = bring(web, chest(side=512))
        answer(web, image_id)
        page = chromium.new_page()
        page.goto(url)

        def reach(selector: str) -> None:
            """Press Tab until the element has the focus."""
            for _ in range(60):
                if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                    return
                page.keyboard.press("Tab")
            raise AssertionError(f"Tab does not reach {selector}")

        reach("[name=name]")
        page.keyboard.type("reader")
        reach("[name=password]")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/worklist")
        reach(f"#open-{image_id}")
        page.keyboard.press("Enter")
        page.locator("#canvas[data-ready=yes]").wait_for()
        reach("#overlay")
        page.keyboard.press("Space")
        page.locator("#overlay[aria-pressed=true]").wait_for()
        assert coloured(look(page, "keyboard")) > 1.0
        page.keyboard.press("Space")
        page.locator("#overlay[aria-pressed=false]").wait_for()
        reach("[name=verdict]")
        page.keyboard.press("Space")
        reach("[name=comment]")
        page.keyboard.type("as I see it")
        reach(".feedback button")
        page.keyboard.press("Enter")
        page.get_by_text("as I see it").wait_for()
        with web.store.read() as session:
            assert session.scalars(select(Feedback.verdict)).all() == ["agree"]
        page.close()


@pytest.mark.slow
def test_a_dead_letter_goes_out_again_by_a_click(tmp_path: Path, with_users: Path, chromium: Any) -> None:
    with opened(tmp_path, with_users) as web, served(web) as url:
        troubled(web)
        page = opened_at(chromium, url)
        page.get_by_role("link", name="Technical").click()
        page.get_by_role("button", name="Send delivery 1 again").click()
        page.get_by_text("Nothing was given up.").wait_for()
        with web.store.read() as session:
            assert session.scalars(select(Delivery.state)).all() == [WAITING]
        page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/worklist", "/study/1", "/technical", "/upload", "/audit"])
def test_nothing_is_cut_off_at_twice_the_size(tmp_path: Path, with_users: Path, chromium: Any, path: str) -> None:
    """1280 pixels at 200 % are 640 CSS pixels (WCAG 1.4.4, 1.4.10): only tables may scroll sideways."""
    with opened(tmp_path, with_users) as web, served(web) as url:
        troubled(web)
        page = opened_at(chromium, url, viewport={"width": 640, "height": 400}, device_scale_factor=2)
        page.goto(url + path)
        if PICTURES:
            page.screenshot(path=f"{PICTURES}/large{path.replace('/', '-')}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 640
        page.context.close()


@pytest.mark.slow
def test_a_reader_reviews_without_the_answer(tmp_path: Path, with_users: Path, chromium: Any) -> None:
    script = Path(axe_playwright_python.__file__).parent / "axe.min.js"
    with opened(tmp_path, with_users, review={"per_day": 2, "repeats": 0}, shadow=True) as web, served(web) as url:
        yesterdays(web, 2, shadow=True)
        page = opened_at(chromium, url, "reader", viewport={"width": 1280, "height": 900}, bypass_csp=True)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        for verdict in ("Probably pneumonia", "I cannot say"):
            page.get_by_role("link", name="Review").click()
            page.locator("#canvas[data-ready=yes]").wait_for()
            assert look(page, "review").std() > 1
            page.add_script_tag(path=script)
            assert complaints_of_axe(page) == []
            page.get_by_label(verdict).check()
            page.get_by_role("button", name="Keep, and show the next").click()
            page.wait_for_url("**/review")
        page.get_by_text("Nothing to review").wait_for()
        assert faults == []
        labels = list(Journal(web.config.journal_file).labels())
        assert sorted((label.certainty, label.blind) for label in labels) == [("likely", True), ("not sure", True)]
        page.context.close()
