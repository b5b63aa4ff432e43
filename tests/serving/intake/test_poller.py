"""Following an Orthanc: a real one, and one that answers wrongly."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from scripts.pacs.orthanc import Orthanc, free_ports, start_orthanc
from sqlalchemy import select
from tests.support.dicom_files import encoded
from tests.support.dying import poll
from tests.support.fake_orthanc import Fault, cut, fake_orthanc, status
from tests.support.findings import finding
from tests.support.gateway import chest, gateway, push, receiving
from tests.support.killed import NEVER, outside
from tests.support.waiting import ready, until

from pneumoscope.errors import StorageError
from pneumoscope.serving.intake.poller import _ATTEMPTS, Poller, feed_of, pollers
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.results import encode
from pneumoscope.serving.run.check import check
from pneumoscope.serving.settings.process_names import names
from pneumoscope.serving.store.database import Store, now, open_store
from pneumoscope.serving.store.tables import WAITING, Feed, Image, Job
from pneumoscope.serving.watch.prometheus import render
from pneumoscope.serving.wire import orthanc as rest
from pneumoscope.serving.wire.orthanc import OrthancError


@contextmanager
def following(folder: Path, url: str, **options: Any) -> Iterator[tuple[Poller, Store]]:
    """A gateway that asks one Orthanc, from its first image on where nothing else is said."""
    source = {"name": "pacs", "url": url, "start": "beginning", "seconds": 20.0, **options}
    limits = {name: source.pop(name) for name in ("free_mb", "object_mb") if name in source}
    receive = {"port": 0, "callers": ("XRAYROOM1",), "free_mb": 0, **limits}
    config = gateway(folder, orthanc=(source,), receive=receive)
    config.images.mkdir(exist_ok=True, parents=True)
    store = open_store(config.database, migrate=True)
    (poller,) = pollers(config, open_intake(config, store))
    try:
        yield poller, store
    finally:
        assert list(poller.folder.iterdir()) == [], "nothing is left of what came in"
        store.close()


def all_of(poller: Poller) -> None:
    while poller.step():
        pass


def came(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.scalars(select(Image.sop_uid).order_by(Image.id)))


def feed(store: Store) -> Feed:
    return feed_of(store, "pacs")


def upload(pacs: Orthanc, *sources: pydicom.Dataset | bytes) -> list[str]:
    """Give objects to Orthanc; returns its names for them."""
    ids = []
    for source in sources:
        content = source if isinstance(source, bytes) else encoded(source)
        response = httpx.post(f"{pacs.url}/instances", content=content)
        response.raise_for_status()
        ids.append(response.json()["ID"])
    return ids


# A real Orthanc.


def test_what_a_pacs_gets_from_now_on_comes_in_once(orthanc: Orthanc, tmp_path: Path) -> None:
    earlier, first, second = chest(), chest(), chest()
    scan = chest(Modality="CT", SeriesInstanceUID="1.2.3.9")
    mine = [built.data for built in encode(finding(first), ("sr", "sc"), now())]
    upload(orthanc, earlier)
    with following(tmp_path, orthanc.url, start="now", modalities=("DX", "CR", "SR", "OT")) as (poller, store):
        assert not poller.step()
        assert came(store) == []
        upload(orthanc, first, scan, *mine, second, first)
        all_of(poller)
        all_of(poller)
        assert came(store) == [first.SOPInstanceUID, second.SOPInstanceUID]
        with store.read() as session:
            assert list(session.scalars(select(Job.state))) == [WAITING] * 2
            assert set(session.scalars(select(Image.source))) == {"orthanc:pacs"}
            files = [poller.intake.folder / str(file) for file in session.scalars(select(Image.file))]
        assert pydicom.dcmread(files[0]).PixelData == first.PixelData
        last = httpx.get(f"{orthanc.url}/changes?last").json()["Last"]
        all_of(poller)  # Orthanc adds a change when a study has become stable
        assert feed(store).seq >= last
        assert feed(store).skipped == feed(store).resets == 0


def test_what_also_came_from_the_modality_is_one_image(orthanc: Orthanc, tmp_path: Path) -> None:
    source = chest()
    with following(tmp_path, orthanc.url, start="now") as (poller, store):
        all_of(poller)
        config = gateway(tmp_path)
        with receiving(config) as (receiver, _):
            assert push(receiver, source) == [0]
        upload(orthanc, source)
        all_of(poller)
        assert came(store) == [source.SOPInstanceUID]


@pytest.mark.slow
def test_a_pacs_that_begins_anew_is_followed_from_its_first_change(pacs_tools: None, tmp_path: Path) -> None:
    old, few, many = [chest() for _ in range(3)], chest(), [chest() for _ in range(6)]
    with following(tmp_path / "gateway", "http://127.0.0.1:1", start="now") as (poller, store):
        for number, sources in enumerate([old, [few], many]):  # with fewer changes than before, then with more
            (tmp_path / str(number)).mkdir()
            with start_orthanc(tmp_path / str(number)) as pacs:
                poller.source = poller.source.model_copy(update={"url": pacs.url})
                all_of(poller)
                upload(pacs, *sources)
                all_of(poller)
                assert feed(store).resets == number
        assert came(store) == [source.SOPInstanceUID for source in [*old, few, *many]]


def test_what_is_erased_is_no_new_beginning(pacs_tools: None, tmp_path: Path) -> None:
    with start_orthanc(tmp_path) as pacs, following(tmp_path / "gateway", pacs.url, start="now") as (poller, store):
        all_of(poller)
        first, second = upload(pacs, chest(), chest())
        all_of(poller)
        for erase in (f"/instances/{second}", f"/instances/{first}", "/changes"):
            httpx.delete(pacs.url + erase).raise_for_status()
            all_of(poller)
        upload(pacs, chest())
        all_of(poller)
        assert len(came(store)) == 3
        assert feed(store).resets == 0


def test_a_long_history_comes_page_by_page_with_a_password(
    pacs_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "PAGE", 4)
    user = tmp_path / "user"
    user.write_text("gateway:wrong\n")
    sources = [chest() for _ in range(9)]
    options = {"AuthenticationEnabled": True, "RegisteredUsers": {"gateway": "right horse"}}
    with (
        start_orthanc(tmp_path, **options) as pacs,
        following(tmp_path / "gateway", pacs.url, user_file=str(user)) as (poller, store),
    ):
        with pytest.raises(OrthancError, match="HTTP 401"):
            poller.step()
        user.write_text("gateway:right horse\n")
        for source in sources:
            httpx.post(f"{pacs.url}/instances", content=encoded(source), auth=("gateway", "right horse"))
        assert poller.step(), "there is more"
        assert len(came(store)) < 9
        all_of(poller)
        assert came(store) == [source.SOPInstanceUID for source in sources]


@pytest.mark.slow
def test_a_pacs_gets_back_what_was_found_in_it(pacs_tools: None, tmp_path: Path) -> None:
    dicom, web = free_ports(2)
    with start_orthanc(tmp_path) as pacs:
        file, log = tmp_path / "gateway.toml", tmp_path / "log"
        file.write_text(f"""
folder = "gateway"
[receive]
port = {dicom}
callers = ["NOBODY"]
[web]
port = {web}
[[orthanc]]
name = "pacs"
url = "{pacs.url}"
start = "beginning"
poll_seconds = 0.2
modalities = ["DX", "SR", "OT"]
[[destination]]
name = "pacs"
kind = "stow"
url = "{pacs.dicomweb}"
""")
        source = chest()
        upload(pacs, source)
        command = [sys.executable, "-m", "pneumoscope", "serve", "--config", str(file)]
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream)
        try:
            until(lambda: ready(web), 300)
            until(lambda: len(httpx.get(f"{pacs.url}/instances").json()) == 3, 300)
            last = httpx.get(f"{pacs.url}/changes?last").json()["Last"]
            metrics = f"http://127.0.0.1:{web}/metrics"
            until(lambda: f'pneumoscope_feed_place{{orthanc="pacs"}} {float(last)}' in httpx.get(metrics).text)
            assert 'pneumoscope_jobs{state="done"} 1.0' in httpx.get(metrics).text
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert len(httpx.get(f"{pacs.url}/instances").json()) == 3, "its own results did not come back in"
        assert '"own result"' in log.read_text()
        assert "Doe" not in log.read_text()


# One that fails.


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["asked", "fetched", "stored", "moved"])
def test_killed_between_two_steps_nothing_is_lost_or_doubled(tmp_path: Path, stage: str) -> None:
    sources = [chest(), chest()]
    with fake_orthanc(*map(encoded, sources)) as pacs:
        config = gateway(
            tmp_path / "gateway", orthanc=({"name": "pacs", "url": pacs.url, "start": "beginning"},)
        )  # fmt: skip
        config.images.mkdir(parents=True)
        open_store(config.database, migrate=True).close()
        assert outside(poll, config, stage) == -signal.SIGKILL
        store = open_store(config.database)
        done = {"asked": 0, "fetched": 0, "stored": 1, "moved": 2}[stage]
        assert (len(came(store)), feed(store).seq) == (done, done), "image and position are one transaction"
        assert outside(poll, config, NEVER) == 0
        assert came(store) == [source.SOPInstanceUID for source in sources]
        assert feed(store).seq == 2
        store.close()
        assert pacs.asked.count(f"/instances/{pacs.name(1)}/file") == (2 if stage == "fetched" else 1)


def test_other_modalities_are_not_fetched(tmp_path: Path) -> None:
    with fake_orthanc(encoded(chest(Modality="CT"))) as pacs, following(tmp_path, pacs.url) as (poller, store):
        pacs.modality = "CT"
        all_of(poller)
        assert came(store) == []
        assert feed(store).seq == 1
        assert not [path for path in pacs.asked if path.endswith("/file")]


@pytest.mark.parametrize("fault", [cut, status(503), status(500), status(401)], ids=["cut", "503", "500", "401"])
def test_what_fails_once_is_fetched_again(tmp_path: Path, fault: Fault) -> None:
    source = chest()
    with fake_orthanc(encoded(source)) as pacs, following(tmp_path, pacs.url) as (poller, store):
        pacs.faults["/file"] = [fault]
        with pytest.raises(OrthancError) as error:
            poller.step()
        poller.record_fault(error.value)
        assert feed(store).fault == str(error.value)
        assert feed(store).seq == 0
        assert b'pneumoscope_feed_failing{orthanc="pacs"} 1.0' in metrics(poller, store)
        all_of(poller)
        assert came(store) == [source.SOPInstanceUID]
        assert feed(store).fault is None
        assert b'pneumoscope_feed_failing{orthanc="pacs"} 0.0' in metrics(poller, store)


def metrics(poller: Poller, store: Store) -> bytes:
    return render(gateway(poller.intake.folder.parent, orthanc=(poller.source.model_dump(),)), store)


def test_one_image_that_cannot_be_had_does_not_hold_up_the_others(tmp_path: Path) -> None:
    source = chest()
    with fake_orthanc(encoded(chest()), encoded(source)) as pacs, following(tmp_path, pacs.url) as (poller, store):
        pacs.faults[f"{pacs.name(1)}/file"] = [status(500)] * 100
        for _ in range(_ATTEMPTS - 1):
            with pytest.raises(OrthancError):
                poller.step()
        all_of(poller)
        assert came(store) == [source.SOPInstanceUID]
        assert feed(store).skipped == 1


def test_a_pacs_that_is_down_skips_nothing(tmp_path: Path) -> None:
    with fake_orthanc(encoded(chest())) as pacs, following(tmp_path, pacs.url) as (poller, store):
        pacs.faults["/file"] = [cut, status(502)] * 2 * _ATTEMPTS
        for _ in range(4 * _ATTEMPTS):
            with pytest.raises(OrthancError):
                poller.step()
        all_of(poller)
        assert len(came(store)) == 1
        assert feed(store).skipped == 0


def test_what_is_no_dicom_is_skipped_and_counted(tmp_path: Path) -> None:
    source = chest()
    with fake_orthanc(b"no DICOM", encoded(source)) as pacs, following(tmp_path, pacs.url) as (poller, store):
        all_of(poller)
        assert came(store) == [source.SOPInstanceUID]
        assert feed(store).skipped == 1


def test_what_is_larger_than_the_listener_takes_is_skipped_and_not_fetched(tmp_path: Path) -> None:
    source, large = chest(), chest()
    large.Rows, large.Columns, large.PixelData = 1024, 1024, bytes(2 << 20)
    files = (encoded(large), encoded(source))
    with fake_orthanc(*files) as pacs, following(tmp_path, pacs.url, object_mb=1) as (poller, store):
        all_of(poller)
        assert came(store) == [source.SOPInstanceUID]
        assert (feed(store).seq, feed(store).skipped) == (2, 1)
        assert [path for path in pacs.asked if path.endswith("/file")] == [f"/instances/{pacs.name(2)}/file"]


def test_what_was_erased_meanwhile_is_no_fault(tmp_path: Path) -> None:
    with fake_orthanc(encoded(chest()), encoded(chest())) as pacs, following(tmp_path, pacs.url) as (poller, store):
        pacs.faults = {f"/instances/{pacs.name(1)}": [status(404)], "/file": [status(404)]}
        all_of(poller)
        assert came(store) == []
        assert (feed(store).seq, feed(store).skipped) == (2, 0)


def test_with_a_full_disk_the_image_waits_there(tmp_path: Path) -> None:
    with fake_orthanc(encoded(chest())) as pacs:
        with following(tmp_path, pacs.url, free_mb=1 << 40) as (poller, store):
            with pytest.raises(StorageError, match="no space"):
                poller.step()
            assert feed(store).seq == 0
        with following(tmp_path, pacs.url) as (poller, store):
            all_of(poller)
            assert len(came(store)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b"<html>",
        b'{"Changes": [{"Seq": 1}], "Done": true, "Last": 1}',
        b'{"Changes": [{"Seq": 1, "ChangeType": "NewInstance", "ID": "../a", "Date": "x"}], "Done": true, "Last": 1}',
    ],
)
def test_nonsense_is_a_fault_and_moves_nothing(tmp_path: Path, answer: bytes) -> None:
    with fake_orthanc(encoded(chest())) as pacs, following(tmp_path, pacs.url) as (poller, store):
        pacs.faults["/changes"] = [status(200, answer)]
        with pytest.raises(OrthancError, match="an answer is"):
            poller.step()
        assert feed(store).seq == 0
        all_of(poller)
        assert len(came(store)) == 1


def test_it_asks_again_when_the_pacs_is_back(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    stop = threading.Event()
    with following(tmp_path, f"http://127.0.0.1:{port}") as (poller, store):
        thread = threading.Thread(target=poller.run, args=[stop])
        thread.start()
        try:
            until(lambda: feed(store).fault == "ConnectError")
            with fake_orthanc(encoded(chest())) as pacs:
                poller.source = poller.source.model_copy(update={"url": pacs.url})
                until(lambda: len(came(store)) == 1)
                until(lambda: feed(store).fault is None)
                stop.set()
                thread.join()
        finally:
            stop.set()
            thread.join()


def test_check_tells_whether_it_answers(tmp_path: Path) -> None:
    with fake_orthanc() as pacs:
        sources = [{"name": "up", "url": pacs.url}, {"name": "down", "url": "http://127.0.0.1:1"},
                   {"name": "odd", "url": pacs.url, "user_file": str(tmp_path / "user")}]  # fmt: skip
        (tmp_path / "user").write_text("nobody")
        config = gateway(tmp_path, orthanc=tuple(sources))
        checks = {item.subject: item for item in check(config) if item.subject.startswith("orthanc")}
    assert checks["orthanc up"].message == "answers, version fake"
    assert checks["orthanc down"].fault is not None
    assert not checks["orthanc down"].fatal
    assert "name:password" in checks["orthanc odd"].message
    assert checks["orthanc odd"].fatal
    assert "poll" in names(config)
    assert "poll" not in names(gateway(tmp_path))


def test_names_differ_and_one_secret_is_enough(tmp_path: Path) -> None:
    one = {"name": "a", "url": "http://x"}
    with pytest.raises(ValueError, match="two orthancs are called a"):
        gateway(tmp_path, orthanc=(one, one))
    with pytest.raises(ValueError, match="give one of them"):
        gateway(tmp_path, orthanc=({**one, "user_file": Path("u"), "token_file": Path("t")},))
