"""The review queue: no answer before the verdict, and a blind label with its probability afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.support.databases import DATABASES
from tests.support.web import WebApp, asked, events, opened, secret_of, yesterdays

from pneumoscope.journal.entry import BLIND, PAGE
from pneumoscope.journal.journal import Journal
from pneumoscope.serving.people import trail
from pneumoscope.serving.store.tables import Review


@pytest.fixture(params=DATABASES)
def web(request: pytest.FixtureRequest, tmp_path: Path, with_users: Path) -> Iterator[WebApp]:
    """A gateway that asks about three studies a day, one of them twice at least, on each database."""
    users: Path | str = with_users
    if request.param != "sqlite":
        template = request.getfixturevalue("postgres_with_users")
        users = request.getfixturevalue("postgres").database(template)
    with opened(tmp_path, users, review={"per_day": 3, "repeats": 0.999999}) as running:
        yesterdays(running, 3)
        yield running


def form_of(text: str, verdict: str) -> tuple[str, dict[str, str]]:
    action = re.search(r'action="(/review/\d+)"', text)
    key = re.search(r'name="key" value="([0-9a-f]{32})"', text)
    assert action is not None
    assert key is not None
    return action[1], {"form_secret": secret_of(text), "key": key[1], "verdict": verdict}


def give(browser: Any, verdict: str, times: int = 1) -> int:
    address, form = form_of(browser.get("/review").text, verdict)
    return [browser.post(address, data=form).status_code for _ in range(times)][-1]


def test_a_verdict_becomes_a_blind_label_once(web: WebApp) -> None:
    browser = web.as_("reader")
    page = browser.get("/review").text
    for telling in ("Doe", "flagged", "Flagged", "overlay", "threshold", "%"):
        assert telling not in page.split("<main")[1], telling
    assert give(browser, "likely-pneumonia", times=2) == 303, "sent twice"
    assert give(browser, "unsure") == 303
    labels = list(Journal(web.config.journal_file).labels())
    assert sorted((item.label or "", item.certainty) for item in labels) == [("", "not sure"), ("PNEUMONIA", "likely")]
    assert {(item.source, item.blind, item.answer) for item in labels} == {(BLIND, True, "a" * 32)}
    told = {(sample, inclusion) for _, sample, inclusion in asked(web)}
    assert {(item.sample, item.inclusion_probability) for item in labels} <= told
    assert len({item.study for item in labels}) == 2
    assert len(events(web, trail.REVIEWED)) == 2
    with web.store.read() as session:
        answered = session.scalars(select(Review).where(Review.answered_at.is_not(None)))
        assert {item.certainty for item in answered} == {"likely", "not sure"}


def test_readers_are_compared_and_none_is_asked_twice(web: WebApp) -> None:
    first, second = web.as_("reader"), web.as_("admin")
    assert [give(first, "normal") for _ in range(3)] == [303] * 3
    assert "Nothing to review" in first.get("/review").text
    assert [give(second, "pneumonia") for _ in range(3)] == [303] * 3
    assert "Nothing to review" in second.get("/review").text
    labels = list(Journal(web.config.journal_file).labels())
    assert len({label.study for label in labels}) == 3
    assert len({(label.study, label.reader) for label in labels}) == len(labels) == 6


def test_who_saw_the_answer_before_is_not_blind(web: WebApp) -> None:
    browser = web.as_("reader")
    browser.get("/worklist?hours=0")
    assert give(browser, "normal") == 303
    (label,) = Journal(web.config.journal_file).labels()
    assert (label.source, label.blind) == (PAGE, False)
    assert label.inclusion_probability is not None


def test_the_second_of_two_readers_hears_of_it(web: WebApp) -> None:
    one, other = web.as_("reader"), web.as_("admin")
    pages = [browser.get("/review").text for browser in (one, other)]
    codes = []
    for browser, text in zip((one, other), pages, strict=True):
        address, form = form_of(text, "normal")
        codes.append(browser.post(address, data=form).status_code)
    assert codes == [303, 409]
    assert len(list(Journal(web.config.journal_file).labels())) == 1
    missing = form_of(other.get("/review").text, "normal")[1]
    assert other.post("/review/99999", data=missing).status_code == 404


def test_cut_off_between_journal_and_tables_it_is_written_once(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = web.as_("reader")
    address, form = form_of(browser.get("/review").text, "normal")
    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.serving.web.review_page.trail.add", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            browser.post(address, data=form)
    assert browser.post(address, data=form).status_code == 303
    assert len(list(Journal(web.config.journal_file).labels())) == 1
    assert len(events(web, trail.REVIEWED)) == 1


def test_in_shadow_mode_a_list_reveals_nothing(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, review={"per_day": 2}, shadow=True) as web:
        yesterdays(web, 2, shadow=True)
        browser = web.as_("reader")
        browser.get("/worklist?hours=0")
        assert give(browser, "pneumonia") == 303
        (label,) = Journal(web.config.journal_file).labels()
        assert (label.source, label.blind, label.label) == (BLIND, True, "PNEUMONIA")


def test_without_a_design_there_is_no_queue(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users) as web:
        browser = web.as_("reader")
        assert browser.get("/review").status_code == 404
        assert 'href="/review"' not in browser.get("/worklist").text
        assert web.as_("viewer").get("/review").status_code == 403
