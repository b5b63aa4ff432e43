"""The page of the gateway: who may see what, what is shown, and what a reader's click becomes."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from sqlalchemy import select
from tests.support.databases import DATABASES
from tests.support.dicom_files import encoded
from tests.support.gateway import chest
from tests.support.web import PASSWORD, WebApp, answer, bring, events, opened, routes, secret_of, sign_in, upload
from typer.testing import CliRunner

from pneumoscope.cli.root import app as cli
from pneumoscope.errors import ConfigError
from pneumoscope.journal.entry import Label
from pneumoscope.journal.journal import Journal
from pneumoscope.records import NORMAL, PNEUMONIA, RESEARCH_ONLY
from pneumoscope.serving.people import accounts, trail
from pneumoscope.serving.store.database import now, open_store
from pneumoscope.serving.store.tables import DEAD, QUARANTINED, WAITING, Delivery, Event, Feedback, Image, Object
from pneumoscope.serving.store.tables import Job as JobRow
from pneumoscope.serving.web.guard import HEADERS, PUBLIC, Limiter
from pneumoscope.serving.web.pages import ago, day, person_name
from pneumoscope.serving.web.pixels import rendition


def key_of(page: str) -> str:
    match = re.search(r'name="key" value="([0-9a-f]{32})"', page)
    assert match is not None
    return match[1]


on_each_database = pytest.mark.parametrize("web", DATABASES, indirect=True)


# --- who gets in ------------------------------------------------------------------------------------------


def test_nobody_sees_anything(web: WebApp) -> None:
    browser = web.browser()
    for method, path in routes(web):
        if path in PUBLIC:
            continue
        answered = browser.request(method, path, data={} if method == "POST" else None)
        if method == "GET":
            assert answered.status_code == 303, path
            assert answered.headers["location"].startswith("/signin?back=/"), path
        else:
            assert answered.status_code in (401, 403), path
        plain = browser.request(method, path, headers={"accept": "application/json"})
        assert plain.status_code == (411 if method == "POST" and "content-length" not in plain.request.headers else 401)


def test_what_is_public_names_nobody(web: WebApp) -> None:
    bring(web, chest())
    browser = web.browser()
    for path in PUBLIC:
        text = browser.get(path).text
        assert "Doe" not in text
        assert "4711" not in text


def test_every_change_needs_the_secret_of_our_form(web: WebApp) -> None:
    browser, other = web.as_("admin"), web.as_("admin")
    foreign = secret_of(other.get("/worklist").text)
    posts = [path for method, path in routes(web) if method == "POST"]
    assert len(posts) >= 5
    for path in posts:
        assert browser.post(path, data={"verdict": "agree"}).status_code in (403, 422), path
        for form in ({"form_secret": "0" * 64}, {"form_secret": foreign}, {"form_secret": ""}):
            full = {**form, "verdict": "agree", "key": "0" * 32, "name": "admin", "password": PASSWORD}
            assert browser.post(path, data=full).status_code == 403, path


def test_a_wrong_password_and_an_unknown_name_look_alike(web: WebApp) -> None:
    wrong = sign_in(web.browser(), "reader", "wrong password")
    unknown = sign_in(web.browser(), "nobody", "wrong password")
    assert wrong.status_code == unknown.status_code == 401
    assert re.sub(r"[0-9a-f]{64}", "", wrong.text) == re.sub(r"[0-9a-f]{64}", "", unknown.text)
    assert len(events(web, trail.REFUSED)) == 2


def test_guessing_ends_soon_also_with_the_right_password(web: WebApp) -> None:
    browser = web.browser()
    assert [sign_in(browser, "reader", f"guess number {n}").status_code for n in range(5)] == [401] * 5
    assert sign_in(browser, "reader").status_code == 429


def test_limiter_forgets() -> None:
    time = [0.0]
    limiter = Limiter(2, 10.0, lambda: time[0])
    assert [limiter.count("a"), limiter.count("a"), limiter.count("a"), limiter.count("b")] == [True, True, False, True]
    assert limiter.full("a")
    time[0] = 10.0
    assert limiter.count("a")


@on_each_database
def test_sign_in_gives_a_new_secret_and_sign_out_ends_it(web: WebApp) -> None:
    browser = web.browser()
    browser.get("/signin")
    before = browser.cookies["pneumoscope"]
    given = sign_in(browser, "reader")
    assert "httponly" in given.headers["set-cookie"].lower()
    after = browser.cookies["pneumoscope"]
    assert before != after
    browser.post("/signout", data={"form_secret": secret_of(browser.get("/worklist").text)})
    browser.cookies.set("pneumoscope", after)
    assert browser.get("/worklist").status_code == 303


@on_each_database
def test_a_disabled_user_is_out_at_once(web: WebApp) -> None:
    browser = web.as_("reader")
    accounts.disable_user(web.store, "reader")
    assert browser.get("/worklist").status_code == 303
    assert sign_in(web.browser(), "reader").status_code == 401


@on_each_database
def test_a_sign_in_ends_by_itself(web: WebApp) -> None:
    person = accounts.sign_in(web.store, "reader", PASSWORD, 0)
    assert person is not None
    assert accounts.person_of(web.store, person.token) is None


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x"])
def test_signing_in_leads_nowhere_else(web: WebApp, back: str) -> None:
    assert sign_in(web.browser(), "reader", back=back).headers["location"] == "/worklist"


@pytest.mark.parametrize(
    ("name", "role", "password"),
    [("reader", "reader", PASSWORD), ("a b", "reader", PASSWORD), ("x", "king", PASSWORD), ("x", "reader", "short")],
)
def test_odd_users_are_refused(web: WebApp, name: str, role: str, password: str) -> None:
    with pytest.raises(ConfigError):
        accounts.add_user(web.store, name, role, password)


def test_passwords_are_kept_as_argon2(web: WebApp) -> None:
    """With the cost that RFC 9106 recommends where memory is short; the users of these tests have a lower one."""
    accounts.add_user(web.store, "new", "viewer", PASSWORD)
    users = accounts.users(web.store)
    assert all(user.password.startswith("$argon2id$") for user in users)
    (new,) = (user.password for user in users if user.name == "new")
    assert new.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


# --- what is shown ----------------------------------------------------------------------------------------


@on_each_database
def test_every_page_carries_notice_and_headers(web: WebApp) -> None:
    image_id = bring(web, chest())
    answer(web, image_id)
    browser = web.as_("admin")
    for path in ("/worklist", f"/study/{image_id}", "/technical", "/audit", "/upload", "/study/999", "/nowhere"):
        answered = browser.get(path)
        assert RESEARCH_ONLY in answered.text, path
        for name, value in HEADERS.items():
            assert answered.headers[name] == value, path
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=|javascript:", answered.text), path
        assert not re.search(r"""(?:src|href|action)="(?!/|#)""", answered.text), path
    assert "unsafe-inline" not in HEADERS["Content-Security-Policy"]


def test_secure_cookies_behind_https(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, web={"https": True}) as web:
        answered = web.browser().get("/signin")
    assert "secure" in answered.headers["set-cookie"].lower()
    assert "Strict-Transport-Security" in answered.headers


@on_each_database
def test_urgent_first_then_who_waits_longest_and_read_last(web: WebApp) -> None:
    first, flagged, stat, read = (bring(web, chest()) for _ in range(4))
    answer(web, first, 0.1)
    answer(web, flagged, 0.99)
    answer(web, read, 0.99)
    with web.store.write() as session:
        session.scalars(select(JobRow).where(JobRow.image_id == stat)).one().priority = 2
    reader = web.as_("reader")
    text = reader.get(f"/study/{read}").text
    reader.post(
        f"/study/{read}/feedback", data={"form_secret": secret_of(text), "key": key_of(text), "verdict": "agree"}
    )
    listed = reader.get("/worklist").text
    assert re.findall(r'href="/study/(\d+)"', listed) == [str(n) for n in (flagged, stat, first, read)]
    lines = reader.get("/api/worklist").json()
    assert [line["image_id"] for line in lines] == [flagged, stat, first, read]
    assert "Doe" not in str(lines)
    for show, wanted in {"flagged": [flagged, read], "not-flagged": [first], "pending": [stat]}.items():
        assert [line["image_id"] for line in reader.get(f"/api/worklist?show={show}").json()] == wanted
    assert [line["image_id"] for line in reader.get("/api/worklist?read=read").json()] == [read]
    assert reader.get("/api/worklist?show=x").status_code == 422


def test_the_rows_alone_are_the_rows_of_the_page(web: WebApp) -> None:
    browser = web.as_("viewer")
    assert "No image fits" in browser.get("/worklist/rows").text
    bring(web, chest())
    rows = browser.get("/worklist/rows").text
    assert "Doe, Jane" in rows
    assert "No answer yet" in rows
    assert "<html" not in rows


@pytest.mark.parametrize(
    ("changes", "result"), [({"Modality": "CT"}, None), ({}, {"probability": None, "reason": "nearly constant"})]
)
def test_what_is_not_analysed_never_reads_as_negative(web: WebApp, changes: dict[str, Any], result: Any) -> None:
    image_id = bring(web, chest(**changes))
    if result is not None:
        answer(web, image_id, **result)
    browser = web.as_("reader")
    for path in ("/worklist", f"/study/{image_id}"):
        text = browser.get(path).text
        assert "Not analysed" in text or "NOT ANALYSED" in text
        assert "not analysed, because" in text
        assert "Not flagged</span>" not in text
        assert "negative" not in text.lower()
    assert 'name="verdict"' not in text
    (line,) = browser.get("/api/worklist?show=not-analysed").json()
    assert line["score"] is None
    assert browser.get("/api/worklist?show=not-flagged").json() == []


def test_a_score_comes_with_what_it_is_worth(web: WebApp) -> None:
    image_id = bring(web, chest())
    answer(web, image_id, 0.2)
    text = web.as_("reader").get(f"/study/{image_id}").text
    assert "does not rule out pneumonia" in text
    assert "Sensitivity on validation images" in text
    assert "95" in text
    assert "Adults are outside its population" in text
    assert "<details open>" in text


def test_another_bundles_answer_is_not_dressed_in_this_ones_figures(web: WebApp) -> None:
    image_id = bring(web, chest())
    answer(web, image_id, 0.2, bundle_sha256="0" * 64)
    text = web.as_("reader").get(f"/study/{image_id}").text
    assert "another bundle answered" in text
    assert "Sensitivity" not in text
    assert "not a probability" in text


def test_in_shadow_only_an_administrator_sees_answers(web: WebApp) -> None:
    image_id = bring(web, chest())
    answer(web, image_id, 0.99, shadow=True)
    reader, admin = web.as_("reader"), web.as_("admin")
    for path in ("/worklist", f"/study/{image_id}"):
        text = reader.get(path).text
        assert "Answer kept back" in text
        assert "suspected" not in text
        assert "99" not in re.sub(r"[0-9a-f]{32,64}|\d+\.\d{5,}[\d.]*|T\S+", "", text)
        assert "Pneumonia suspected" in admin.get(path).text
    assert reader.get(f"/study/{image_id}/overlay.png").status_code == 404
    assert reader.get("/api/worklist?show=flagged").json() == []


def test_a_hostile_name_is_text(web: WebApp) -> None:
    evil = "<script>alert(1)</script>"
    image_id = bring(web, chest(PatientName=evil, StudyDescription='"><img src=x onerror=alert(1)>'))
    answer(web, image_id)
    browser = web.as_("reader")
    text = browser.get(f"/study/{image_id}").text
    form = {"form_secret": secret_of(text), "key": key_of(text), "verdict": "unsure", "comment": evil}
    assert browser.post(f"/study/{image_id}/feedback", data=form).status_code == 303
    for path in ("/worklist", f"/study/{image_id}"):
        text = browser.get(path).text
        assert "<script>" not in text
        assert "<img" not in text
        assert "&lt;script&gt;" in text


def test_pixels_keep_their_depth_and_window(web: WebApp) -> None:
    source = chest(WindowCenter=1000, WindowWidth=500)
    image_id = bring(web, source)
    answered = web.as_("viewer").get(f"/study/{image_id}/pixels")
    facts = json.loads(answered.headers["X-Rendition"])
    values = np.frombuffer(answered.content, "<u2").reshape(source.Rows, source.Columns)
    stored = np.frombuffer(source.PixelData, "<u2").reshape(values.shape).astype(float)
    low, high = stored.min(), stored.max()
    np.testing.assert_allclose(values, (stored - low) / (high - low) * 65535, atol=0.5)
    scale = 65535 / (high - low)
    assert facts == {"columns": source.Columns, "rows": source.Rows, "center": pytest.approx((1000 - low) * scale),
                    "width": pytest.approx(500 * scale), "first": low, "last": high}  # fmt: skip


def test_monochrome1_is_shown_with_air_dark(web: WebApp) -> None:
    plain, inverse = bring(web, chest()), bring(web, chest(PhotometricInterpretation="MONOCHROME1"))
    with web.store.read() as session:
        files = [web.config.images / str(session.get_one(Image, n).file) for n in (plain, inverse)]
    one, other = rendition(files[0]), rendition(files[1])
    assert (other.first, other.last) == (one.last, one.first)
    np.testing.assert_allclose(other.values.astype(int), 65535 - one.values.astype(int), atol=1)
    assert other.center == pytest.approx(65535 - one.center)
    assert other.width == pytest.approx(one.width)


def test_overlay_is_the_map_over_the_image(web: WebApp) -> None:
    image_id = bring(web, chest())
    answer(web, image_id)
    browser = web.as_("viewer")
    image = PIL.Image.open(io.BytesIO(browser.get(f"/study/{image_id}/overlay.png").content))
    alpha = np.asarray(image.getchannel("A"))
    y, x = np.unravel_index(alpha.argmax(), alpha.shape)
    assert (x / 64, y / 64) == (pytest.approx(0.3, abs=0.05), pytest.approx(0.6, abs=0.05))
    assert alpha.min() == 0
    text = browser.get(f"/study/{image_id}").text
    assert 'id="overlay" aria-pressed="false"' in text


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/config.py", "/static//etc/passwd",
     "/study/..%2f..%2fetc%2fpasswd/pixels", "/study/1%00/pixels", "/study/-1", "/study/99999999999999999999"],
)  # fmt: skip
def test_no_way_out_of_the_folder(web: WebApp, path: str) -> None:
    answered = web.as_("admin").get(path)
    assert answered.status_code in (404, 422)
    assert "import" not in answered.text
    assert "root:" not in answered.text


def test_an_image_that_cannot_be_decoded_says_so(web: WebApp) -> None:
    image_id = bring(web, chest(PixelData=b"\0" * 100))
    answered = web.as_("viewer").get(f"/study/{image_id}/pixels", headers={"accept": "application/json"})
    assert answered.status_code == 422
    assert "pixels cannot be decoded" in answered.json()["detail"]


# --- what is done -----------------------------------------------------------------------------------------


@on_each_database
@pytest.mark.parametrize(
    ("verdict", "probability", "label"),
    [("agree", 0.99, PNEUMONIA), ("disagree", 0.99, NORMAL), ("agree", 0.1, NORMAL), ("disagree", 0.1, PNEUMONIA),
     ("unsure", 0.99, None)],
)  # fmt: skip
def test_feedback_is_kept_and_tells_the_journal(
    web: WebApp, verdict: str, probability: float, label: str | None
) -> None:
    source = chest()
    image_id = bring(web, source)
    result_id = answer(web, image_id, probability)
    browser = web.as_("reader")
    text = browser.get(f"/study/{image_id}").text
    form = {"form_secret": secret_of(text), "key": key_of(text), "verdict": verdict, "comment": "Jane Doe, left base"}
    assert browser.post(f"/study/{image_id}/feedback", data=form).status_code == 303
    assert browser.post(f"/study/{image_id}/feedback", data=form).status_code == 303  # sent twice
    with web.store.read() as session:
        (kept,) = session.scalars(select(Feedback))
        assert (kept.result_id, kept.verdict, kept.label) == (result_id, verdict, label)
        assert kept.comment == "Jane Doe, left base"
    labels: list[Label] = list(Journal(web.config.journal_file).labels())
    assert [(item.label, item.note, item.blind) for item in labels] == [(label, verdict, False)]
    assert labels[0].certainty == ("not sure" if label is None else "sure")
    assert labels[0].answer == "a" * 32
    assert labels[0].reader not in (None, "reader")
    assert "Jane" not in str(labels)
    assert source.StudyInstanceUID not in str(labels)
    assert "left base" in browser.get(f"/study/{image_id}").text
    assert [event.image_id for event in events(web, trail.FEEDBACK)] == [image_id]


def form_of(web: WebApp, image_id: int) -> tuple[Any, dict[str, str]]:
    browser = web.as_("reader")
    text = browser.get(f"/study/{image_id}").text
    return browser, {"form_secret": secret_of(text), "key": key_of(text), "verdict": "agree"}


def counted(web: WebApp) -> tuple[int, int]:
    """How often feedback is in the tables, and labels in the journal."""
    with web.store.read() as session:
        return len(session.scalars(select(Feedback)).all()), len(list(Journal(web.config.journal_file).labels()))


def test_a_journal_that_is_locked_holds_up_no_other_writer(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = bring(web, chest())
    answer(web, image_id)
    browser, form = form_of(web, image_id)
    append = Journal.append_label

    def slowly(self: Journal, label: Label) -> bool:
        with closing(sqlite3.connect(web.config.folder / "gateway.sqlite", timeout=0.1)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.rollback()
        return append(self, label)

    monkeypatch.setattr(Journal, "append_label", slowly)
    assert browser.post(f"/study/{image_id}/feedback", data=form).status_code == 303
    assert counted(web) == (1, 1)


@on_each_database
def test_feedback_that_was_cut_off_is_written_once_in_both(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = bring(web, chest())
    answer(web, image_id)
    browser, form = form_of(web, image_id)
    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.serving.web.study_page.trail.add", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            browser.post(f"/study/{image_id}/feedback", data=form)
    assert counted(web) == (0, 1)
    posts = [threading.Thread(target=browser.post, args=(f"/study/{image_id}/feedback",), kwargs={"data": form})
             for _ in range(4)]  # fmt: skip
    for post in posts:
        post.start()
    for post in posts:
        post.join()
    assert counted(web) == (1, 1)


def test_feedback_about_nothing_is_refused(web: WebApp) -> None:
    image_id = bring(web, chest(Modality="CT"))
    browser = web.as_("reader")
    secret = secret_of(browser.get("/worklist").text)
    form = {"form_secret": secret, "key": "0" * 32, "verdict": "agree"}
    assert browser.post(f"/study/{image_id}/feedback", data=form).status_code == 409
    assert browser.post("/study/999/feedback", data=form).status_code == 404
    assert browser.post(f"/study/{image_id}/feedback", data={**form, "verdict": "x"}).status_code == 422


@on_each_database
def test_dead_letters_and_quarantined_images_go_back(web: WebApp) -> None:
    image_id = bring(web, chest())
    result_id = answer(web, image_id)
    stuck = bring(web, chest())
    with web.store.write() as session:
        moment = now()
        letter = Object(result_id=result_id, kind="sr", uid="1.2.3", sop_class=None, suffix=".dcm", data=b"x")
        letter.deliveries.append(
            Delivery(destination="pacs", state=DEAD, attempts=9, created_at=moment, not_before=moment, reason="<b>no")
        )
        session.add(letter)
        job = session.scalars(select(JobRow).where(JobRow.image_id == stuck)).one()
        job.state, job.reason, job.ended_at = QUARANTINED, "not analysed, because it died", moment
        session.flush()
        delivery_id, job_id = letter.deliveries[0].id, job.id
    browser = web.as_("admin")
    text = browser.get("/technical").text
    assert "&lt;b&gt;no" in text
    form = {"form_secret": secret_of(text)}
    for path in (f"/technical/deliveries/{delivery_id}/replay", f"/technical/jobs/{job_id}/again"):
        assert browser.post(path, data=form).status_code == 303
        assert browser.post(path, data=form).status_code == 409  # it is no longer given up
    with web.store.read() as session:
        assert session.get_one(Delivery, delivery_id).state == WAITING
        assert session.get_one(JobRow, job_id).state == WAITING
    assert len(events(web, trail.REPLAYED)) == len(events(web, trail.AGAIN)) == 1
    assert "Nothing was given up." in browser.get("/technical/rows").text


@on_each_database
def test_an_upload_goes_the_way_of_every_image(web: WebApp) -> None:
    browser = web.as_("reader")
    content = encoded(chest())
    answered = upload(browser, content, "../../evil.dcm")
    assert answered.status_code == 303
    assert upload(browser, content).headers["location"] == answered.headers["location"]
    with web.store.read() as session:
        (image,) = session.scalars(select(Image))
        assert image.source == "page:reader"
        assert image.job.state == WAITING
        assert (web.config.images / str(image.file)).is_file()
        assert answered.headers["location"] == f"/study/{image.id}"
    assert list(web.config.incoming.iterdir()) == []
    assert len(events(web, trail.UPLOADED)) == 2


@pytest.mark.parametrize(
    "content", [b"hello", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 300, b"\0" * 128 + b"DICM" + b"\xff" * 64]
)
def test_what_is_no_dicom_is_refused_in_words(web: WebApp, content: bytes) -> None:
    answered = upload(web.as_("reader"), content)
    assert answered.status_code == 422
    assert "The file was not taken: " in answered.text
    assert str(web.config.folder) not in answered.text
    assert list(web.config.incoming.iterdir()) == []


def test_what_an_object_lacks_is_told(web: WebApp) -> None:
    answered = upload(web.as_("reader"), encoded(chest(StudyInstanceUID=None)))
    assert answered.status_code == 422
    assert "The file was not taken: the DICOM object has no valid StudyInstanceUID." in answered.text


def test_of_an_upload_that_fills_the_disk_nothing_stays(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any) -> None:
        target.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    answered = upload(web.as_("reader"), encoded(chest()))
    assert answered.status_code == 507
    assert list(web.config.incoming.iterdir()) == []


def test_too_large_is_refused_before_it_is_read(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, web={"upload_mb": 1}) as web:
        browser = web.as_("reader")
        assert upload(browser, b"\0" * (2 << 20)).status_code == 413
        assert browser.post("/signout", data={"x": "y" * (100 << 10)}).status_code == 413
        assert list(web.config.incoming.iterdir()) == []


@on_each_database
def test_every_look_at_a_patient_is_written_down(web: WebApp) -> None:
    image_id = bring(web, chest())
    answer(web, image_id)
    browser = web.as_("viewer")
    for _ in range(3):
        browser.get("/worklist/rows")
    for path in ("", "/pixels", "/overlay.png"):
        assert browser.get(f"/study/{image_id}{path}").status_code == 200
    browser.get(f"/api/studies/{image_id}")
    for action, times in {trail.LISTED: 1, trail.VIEWED: 2, trail.PIXELS: 1, trail.OVERLAY: 1}.items():
        assert [event.image_id for event in events(web, action)] == [image_id] * times
    with web.store.read() as session:
        assert {event.user.name for event in session.scalars(select(Event)) if event.user} == {"viewer"}
    text = web.as_("admin").get("/audit").text
    assert "viewed" in text
    assert "Doe" not in text
    assert "4711" not in text


def test_programs_are_told_no_names_also_where_a_description_holds_one(web: WebApp) -> None:
    image_id = bring(web, chest(StudyDescription="Chest PA for Jane Doe"))
    browser = web.as_("viewer")
    assert "Jane Doe" in browser.get(f"/study/{image_id}").text
    for path in ("/api/worklist", f"/api/studies/{image_id}"):
        answered = browser.get(path)
        assert answered.status_code == 200
        assert "Doe" not in answered.text
        assert "4711" not in answered.text


def test_the_interface_is_described(web: WebApp) -> None:
    schema = web.as_("viewer").get("/api/openapi.json").json()
    assert {"/api/worklist", "/api/studies/{image_id}", "/upload"} <= set(schema["paths"])
    assert "verdict" in str(schema["paths"]["/study/{image_id}/feedback"]) + str(schema["components"])


def test_words_for_people() -> None:
    assert person_name("Doe^Jane^M^^Dr=ideographic") == "Doe, Jane M"
    assert person_name("^^") == person_name(None) == "no name"
    moment = now()
    assert ago(moment, moment) == "0 s"
    assert ago(None, moment) == "never"
    assert [day("20260304"), day("1.4.2026"), day(None)] == ["2026-03-04", "1.4.2026", "unknown"]


def test_a_damaged_bundle_is_told_as_a_page(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, bundle={"path": tmp_path / "nowhere"}) as web:
        answered = web.as_("admin").get("/technical")
    assert answered.status_code == 500
    assert RESEARCH_ONLY in answered.text


def test_users_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('folder = "work"\n[receive]\ncallers = ["X"]\n')

    def ask(*words: str, given: str = "") -> Any:
        return CliRunner().invoke(cli, ["users", *words, "--config", str(file)], input=given)

    assert ask("add", "ann", "--role", "admin", given=PASSWORD + "\n").output == "ann: admin\n"
    assert isinstance(ask("add", "bob", given="short\n").exception, ConfigError)
    assert ask("disable", "ann").exit_code == 0
    assert ask("list").output == "ann: admin, disabled\n"
    store = open_store(f"sqlite:///{tmp_path / 'work' / 'gateway.sqlite'}")
    assert accounts.sign_in(store, "ann", PASSWORD, 1) is None
    store.close()
