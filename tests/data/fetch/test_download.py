"""Fetching against a real server on the loopback that breaks off, lies and changes its mind."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import kagglehub
import kagglehub.exceptions
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.servers import Handler, http_server

from pneumoscope.data.fetch.catalogue import DataSet, RemoteFile, catalogue
from pneumoscope.data.fetch.download import SEAL, Patience, fetch
from pneumoscope.errors import DownloadError, StorageError

BODY = np.random.default_rng(7).bytes(300_000)
NAME = "tiny.npz"
Get = Callable[[DataSet], Path]


class Home:
    """A public home on 127.0.0.1. `script` says what each next request meets; afterwards all is well.

    Steps: `break N` closes the socket after N bytes of the answer's body; `plain` ignores Range; `new`
    changes the file's ETag (and its bytes, where `later` is set) first; a number is an HTTP status.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {NAME: BODY}
        self.later: bytes | None = None
        self.etag = '"one"'
        self.script: list[str] = []
        self.extra: dict[str, str] = {}
        self.asked: list[dict[str, str]] = []
        self.url = ""

    def handler(home) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Steps(Handler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                home.asked.append(dict(self.headers))
                home.answer(self)

        return Steps

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        step = self.script.pop(0) if self.script else "ok"
        if step == "new":
            self.etag = '"two"'
            self.files[NAME] = self.later or self.files[NAME]
        body = self.files.get(request.path.removeprefix("/").partition("?")[0])
        status = int(step) if step.isdecimal() else 200 if body is not None else 404
        if status != 200 or body is None:
            self._head(request, status, {"Content-Length": "0", **self.extra})
            return
        headers = {"ETag": self.etag, "Content-Length": str(len(body))}
        asked = request.headers.get("Range")
        if asked and step != "plain" and request.headers.get("If-Range") in (None, self.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
            headers["Content-Length"] = str(len(body))
        self._head(request, status, headers)
        if step.startswith("break"):
            request.wfile.write(body[: int(step.split()[1])])
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
        else:
            request.wfile.write(body)

    def _head(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]


@contextmanager
def at_home() -> Iterator[Home]:
    home = Home()
    with http_server(home.handler()) as home.url:
        yield home


@pytest.fixture
def home() -> Iterator[Home]:
    with at_home() as server:
        yield server


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as session:
        yield session


@pytest.fixture
def waits() -> list[float]:
    """The seconds that `patience` was asked to sleep."""
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    return Patience(attempts=4, sleep=waits.append, rng=np.random.default_rng(0))


@pytest.fixture
def get(home: Home, client: httpx.Client, tmp_path: Path, patience: Patience) -> Get:
    """Fetch a data set from `home` into `tmp_path`."""
    return partial(fetch, out=tmp_path, client=client, base_url=home.url, patience=patience)


def tiny(body: bytes = BODY, *, digest: str | None = "md5") -> DataSet:
    """A data set of one file, as the catalogue would hold it."""
    known = None if digest is None else f"{digest}:{hashlib.new(digest, body).hexdigest()}"
    remote = RemoteFile(NAME, "http://unused.invalid/x", len(body), known)
    return DataSet("tiny", "Tiny", "CC BY 4.0", "Nobody 2020", "https://example.org/tiny", file=remote)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".tiny.lock", ".kermany.lock"}


# --- the transfer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["md5", "sha256", None])
def test_fetches_the_bytes_and_leaves_nothing_else(
    home: Home, client: httpx.Client, tmp_path: Path, digest: str | None
) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch(
        tiny(digest=digest),
        tmp_path,
        client=client,
        base_url=home.url,
        progress=lambda done, total: told.append((done, total)),
    )
    assert path == tmp_path / NAME
    assert path.read_bytes() == BODY
    assert left(tmp_path) == {NAME}
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_goes_on_where_it_broke_off(get: Get, home: Home, waits: list[float]) -> None:
    home.script = ["break 100000", "break 50000"]
    path = get(tiny())
    assert path.read_bytes() == BODY
    assert home.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert [headers.get("If-Range") for headers in home.asked] == [None, '"one"', '"one"']
    assert len(waits) == 2


def test_a_later_run_goes_on_from_the_kept_part(get: Get, home: Home, client: httpx.Client, tmp_path: Path) -> None:
    home.script = ["break 120000", *["503"] * 9]
    once = Patience(attempts=1, sleep=lambda _: None)
    with pytest.raises(DownloadError, match="run the command again to go on"):
        fetch(tiny(), tmp_path, client=client, base_url=home.url, patience=replace(once, attempts=2))
    assert (tmp_path / f"{NAME}.part").read_bytes() == BODY[:120000]
    home.script, home.asked = [], []
    assert get(tiny()).read_bytes() == BODY
    assert home.ranges() == ["bytes=120000-"]
    assert left(tmp_path) == {NAME}


def test_a_part_that_was_whole_is_not_asked_for_again(get: Get, home: Home, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(BODY)
    note = {"url": f"{home.url}/{NAME}", "etag": '"one"', "total": len(BODY)}
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(note))
    assert get(tiny()).read_bytes() == BODY
    assert home.asked == []


@given(
    steps=st.lists(st.integers(0, 120_000).map(lambda n: f"break {n}") | st.sampled_from(["503", "new"]), max_size=5)
)
@settings(max_examples=30, deadline=None)
def test_any_run_of_breaks_gives_the_same_bytes(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("breaks")
    with at_home() as home, httpx.Client(trust_env=False) as client:
        home.script = [*steps]
        calm = Patience(attempts=9, sleep=lambda _: None)
        path = fetch(tiny(), folder, client=client, base_url=home.url, patience=calm)
    assert path.read_bytes() == BODY
    shutil.rmtree(folder)


def test_starts_anew_where_range_is_ignored(get: Get, home: Home) -> None:
    home.script = ["break 100000", "plain"]
    assert get(tiny()).read_bytes() == BODY
    assert home.ranges() == [None, "bytes=100000-"]


def test_starts_anew_where_the_file_changed(get: Get, home: Home) -> None:
    home.later = BODY[::-1]
    home.script = ["break 100000", "new"]
    path = get(tiny(BODY[::-1]))
    assert path.read_bytes() == BODY[::-1]
    assert home.asked[1]["If-Range"] == '"one"'


def test_a_server_that_ignores_if_range_is_found_out(get: Get, tmp_path: Path, patience: Patience) -> None:
    new, seen = BODY[::-1], []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Range"))
        if "Range" not in request.headers:
            return httpx.Response(200, headers={"ETag": '"two"', "Content-Length": str(len(new))}, content=iter([new]))
        span = f"bytes 1000-{len(new) - 1}/{len(new)}"
        return httpx.Response(206, headers={"ETag": '"two"', "Content-Range": span}, content=iter([new[1000:]]))

    (tmp_path / f"{NAME}.part").write_bytes(BODY[:1000])
    note = {"url": f"http://home.invalid/{NAME}", "etag": '"one"', "total": len(BODY)}
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(note))
    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        path = fetch(tiny(new), tmp_path, client=client, base_url="http://home.invalid", patience=patience)
    assert path.read_bytes() == new
    assert seen == ["bytes=1000-", None]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_it_starts_anew(get: Get, home: Home, etag: str) -> None:
    home.etag, home.script = etag, ["break 100000"]
    assert get(tiny()).read_bytes() == BODY
    assert home.ranges() == [None, None]


@pytest.mark.parametrize("note", ["{", "[]", '{"url": "http://elsewhere/tiny.npz", "etag": "x", "total": 9}'])
def test_a_part_of_unknown_origin_is_not_used(get: Get, home: Home, tmp_path: Path, note: str) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"other bytes")
    (tmp_path / f"{NAME}.part.json").write_text(note)
    assert get(tiny()).read_bytes() == BODY
    assert home.ranges() == [None]


def test_a_part_longer_than_the_file_is_dropped(get: Get, home: Home, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(BODY + b"more")
    note = {"url": f"{home.url}/{NAME}", "etag": '"one"', "total": len(BODY)}
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps(note))
    home.script = ["416"]
    assert get(tiny()).read_bytes() == BODY
    assert home.ranges() == [f"bytes={len(BODY) + 4}-", None]


# --- refusals ---------------------------------------------------------------------------------------------


def test_a_wrong_checksum_removes_the_part(get: Get, home: Home, tmp_path: Path) -> None:
    home.files[NAME] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    with pytest.raises(DownloadError, match="md5 checksum is") as caught:
        get(tiny())
    assert "https://example.org/tiny" in str(caught.value)
    assert left(tmp_path) == set()


def test_a_wrong_size_is_refused_before_the_download(get: Get, home: Home, tmp_path: Path) -> None:
    home.files[NAME] = BODY + b"!"
    with pytest.raises(DownloadError, match=f"offers {len(BODY) + 1} bytes where {len(BODY)} were published"):
        get(tiny(digest=None))
    assert left(tmp_path) == set()


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += len(BODY)
            yield BODY

    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=endless()))) as client,
        pytest.raises(DownloadError, match="sends more than the"),
    ):
        fetch(tiny(), tmp_path, client=client)
    assert sent == 2 * len(BODY)
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("code", "says"), [(404, "does not have this file"), (403, "refuses this file"), (418, "no file")]
)
def test_a_final_refusal_is_not_tried_again(get: Get, home: Home, waits: list[float], code: int, says: str) -> None:
    home.script = [str(code)]
    with pytest.raises(DownloadError, match=rf"{says} \(HTTP {code}") as caught:
        get(tiny())
    assert len(home.asked) == 1
    assert waits == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_tried_again(get: Get, home: Home, waits: list[float], code: int) -> None:
    home.script, home.extra = [str(code), str(code)], {"Retry-After": "17"}
    assert get(tiny()).read_bytes() == BODY
    assert waits == [17.0, 17.0]


def test_a_server_busy_for_ever_is_given_up_with_growing_waits(get: Get, home: Home, waits: list[float]) -> None:
    home.script = ["503"] * 50
    with pytest.raises(DownloadError, match=r"gave up after 4 attempts \(HTTP 503") as caught:
        get(tiny())
    assert len(home.asked) == 4
    assert len(waits) == 3
    assert all(2**n / 2 <= wait <= 2**n for n, wait in enumerate(waits))
    assert "download tiny.npz, put it into" in str(caught.value)


def test_a_server_that_hands_out_crumbs_is_given_up(get: Get, home: Home) -> None:
    home.script = ["break 1"] * 1000
    with pytest.raises(DownloadError, match="gave up after 40 attempts"):
        get(tiny())


def test_nobody_listening_names_the_manual_steps(
    client: httpx.Client, tmp_path: Path, waits: list[float], patience: Patience
) -> None:
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DownloadError) as caught:
            fetch(tiny(), tmp_path, client=client, base_url=url, patience=patience)
    text = str(caught.value)
    assert "127.0.0.1 cannot be reached" in text
    assert "https://example.org/tiny" in text
    assert f"download {NAME}, put it into {tmp_path}" in text
    assert "\n" not in text
    assert waits == []


def test_a_server_lost_on_the_way_is_waited_for(tmp_path: Path, waits: list[float], patience: Patience) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if len(waits) == 1:
            raise httpx.ConnectError("down")
        return httpx.Response(200, content=iter([BODY])) if waits else httpx.Response(503)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        path = fetch(tiny(), tmp_path, client=client, base_url="http://home.invalid", patience=patience)
    assert path.read_bytes() == BODY
    assert len(waits) == 2


def test_an_address_that_is_none(client: httpx.Client, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="is no web address"):
        fetch(tiny(), tmp_path, client=client, base_url="ftp://example.org")


def test_a_full_disk_is_seen_before_the_download(get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, len(BODY) - 1))
    with pytest.raises(StorageError, match="are needed"):
        get(tiny())
    assert (tmp_path / f"{NAME}.part").exists() is False


# --- what is there already --------------------------------------------------------------------------------


def test_present_and_right_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BODY)
    with httpx.Client(transport=httpx.MockTransport(no_network)) as client:
        assert fetch(tiny(), tmp_path, client=client) == tmp_path / NAME


def no_network(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"asked for {request.url}")


def test_present_but_wrong_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BODY[:-1] + b"?")
    with pytest.raises(DownloadError, match="remove it and run the command again"):
        fetch(tiny(), tmp_path)
    assert (tmp_path / NAME).read_bytes() == BODY[:-1] + b"?"


def test_two_at_once_fetch_once(home: Home, client: httpx.Client, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(fetch, tiny(), tmp_path, client=client, base_url=home.url) for _ in range(4)]
        paths = {job.result() for job in jobs}
    assert paths == {tmp_path / NAME}
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(home.asked) == 1


# --- a folder of radiographs ------------------------------------------------------------------------------

RADIOGRAPHS = {
    "train/NORMAL/IM-0115-0001.jpeg": b"n1",
    "train/PNEUMONIA/person1_bacteria_1.jpeg": b"p1",
    "test/PNEUMONIA/person1_virus_6.jpeg": b"v1",
}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def kermany(body: bytes, *, kaggle: str | None = None) -> DataSet:
    """The catalogue's entry, with an archive of three."""
    known = catalogue()["kermany"]
    assert known.file is not None
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    remote = replace(known.file, size=len(body), digest=digest, url="http://home.invalid/zip")
    return replace(known, file=remote, images=len(RADIOGRAPHS), kaggle=kaggle)


def tree(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop(SEAL)
    return found


GOOD_ZIP = zipped(
    {
        **{f"chest_xray/{name}": body for name, body in RADIOGRAPHS.items()},
        "chest_xray/train/.DS_Store": b"x",
        "chest_xray/train/NORMAL/.DS_Store": b"x",
        "__MACOSX/chest_xray/train/NORMAL/._IM-0115-0001.jpeg": b"x",
    }
)


def test_an_archive_becomes_a_folder_and_is_removed(get: Get, home: Home, tmp_path: Path) -> None:
    home.files["ChestXRay2017.zip"] = GOOD_ZIP
    folder = get(kermany(GOOD_ZIP))
    assert folder == tmp_path / "kermany"
    assert tree(folder) == RADIOGRAPHS
    assert left(tmp_path) == {"kermany"}
    seal = json.loads((folder / SEAL).read_text())
    assert (seal["images"], seal["bytes"], seal["licence"]) == (3, 6, "CC BY 4.0")
    assert seal["route"] == "mirror 127.0.0.1"
    assert get(kermany(GOOD_ZIP)) == folder
    assert len(home.asked) == 1


def test_an_archive_given_by_hand_is_taken_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_download(handle: str) -> str:
        raise AssertionError(f"asked Kaggle for {handle}")

    monkeypatch.setattr(kagglehub, "dataset_download", dataset_download)
    (tmp_path / "ChestXRay2017.zip").write_bytes(GOOD_ZIP)
    with httpx.Client(transport=httpx.MockTransport(no_network)) as client:
        folder = fetch(kermany(GOOD_ZIP, kaggle="never/asked"), tmp_path, client=client)
    assert tree(folder) == RADIOGRAPHS
    assert (tmp_path / "ChestXRay2017.zip").exists()


def test_a_folder_that_lost_radiographs_is_named_and_kept(get: Get, home: Home) -> None:
    home.files["ChestXRay2017.zip"] = GOOD_ZIP
    folder = get(kermany(GOOD_ZIP))
    (folder / "train/NORMAL/IM-0115-0001.jpeg").write_bytes(b"")
    with pytest.raises(DownloadError, match="move it away"):
        get(kermany(GOOD_ZIP))
    (folder / "train/NORMAL/IM-0115-0001.jpeg").unlink()
    with pytest.raises(DownloadError, match=r"2 radiographs .* where 3"):
        get(kermany(GOOD_ZIP))
    assert len(home.asked) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (zipped({"../train/NORMAL/a.jpeg": b"x"}), "points outside the folder"),
        (zipped({"chest_xray/train/NORMAL/a.jpeg": b"x"}), "holds 1 radiographs where 3"),
        (GOOD_ZIP[:-40], "no whole zip archive"),
        (b"<html>please log in</html>", "no whole zip archive"),
    ],
)
def test_a_bad_archive_leaves_nothing(home: Home, client: httpx.Client, tmp_path: Path, body: bytes, says: str) -> None:
    home.files["ChestXRay2017.zip"] = body
    out = tmp_path / "out"
    with pytest.raises(DownloadError, match=says) as caught:
        fetch(kermany(body), out, client=client, base_url=home.url)
    assert "https://data.mendeley.com/datasets/rscbjbr9sj/2" in str(caught.value)
    assert left(out) == set()
    assert left(tmp_path) == {"out"}


# --- Kaggle -----------------------------------------------------------------------------------------------


def test_kaggle_is_asked_first_and_each_radiograph_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    for top in ("chest_xray", "chest_xray/chest_xray", "chest_xray/__MACOSX/chest_xray"):
        for name, body in RADIOGRAPHS.items():
            path = cache / top / name
            path = path.with_name(f"._{path.name}") if "MACOSX" in top else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body if top == "chest_xray" else b"a copy that lies deeper")
    asked: list[str] = []

    def dataset_download(handle: str) -> str:
        asked.append(handle)
        return str(cache)

    monkeypatch.setattr(kagglehub, "dataset_download", dataset_download)
    with httpx.Client(transport=httpx.MockTransport(no_network)) as client:
        folder = fetch(kermany(GOOD_ZIP, kaggle="someone/something"), tmp_path / "out", client=client)
    assert asked == ["someone/something"]
    assert tree(folder) == RADIOGRAPHS
    assert json.loads((folder / SEAL).read_text())["route"] == "https://www.kaggle.com/datasets/someone/something"


KAGGLE_ERRORS = [
    *(kind for kind in vars(kagglehub.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    ConnectionError,
    PermissionError,
    ValueError,
    zipfile.BadZipFile,
]


@pytest.mark.parametrize("kind", KAGGLE_ERRORS, ids=lambda kind: kind.__name__)
def test_where_kaggle_fails_the_second_home_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def dataset_download(handle: str) -> str:
        raise kind("no")

    monkeypatch.setattr(kagglehub, "dataset_download", dataset_download)
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=iter([GOOD_ZIP])))) as client:
        folder = fetch(kermany(GOOD_ZIP, kaggle="someone/something"), tmp_path, client=client)
    assert tree(folder) == RADIOGRAPHS


def test_where_both_homes_fail_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_download(handle: str) -> str:
        raise kagglehub.exceptions.UnauthenticatedError

    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(kagglehub, "dataset_download", dataset_download)
    with (
        httpx.Client(transport=httpx.MockTransport(unreachable)) as client,
        pytest.raises(DownloadError) as caught,
    ):
        fetch(kermany(GOOD_ZIP, kaggle="someone/something"), tmp_path, client=client)
    text = str(caught.value)
    assert "Kaggle did not give someone/something (User is not authenticated)" in text
    assert "home.invalid cannot be reached" in text
    assert "open https://data.mendeley.com/datasets/rscbjbr9sj/2 in a browser, download ChestXRay2017.zip" in text
    assert "\n" not in text


# --- the catalogue ----------------------------------------------------------------------------------------


def test_the_catalogue_is_complete_and_its_digests_are_well_formed() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for key, entry in catalogue().items():
        assert entry.key == key
        assert all([entry.title, entry.licence, entry.citation, entry.home.startswith("https://")])
        if entry.file is None:
            assert entry.steps
            continue
        assert entry.file.url.startswith("https://")
        assert entry.file.check
        assert entry.file.digest is not None
        name, _, value = entry.file.digest.partition(":")
        assert len(bytes.fromhex(value)) * 2 == lengths[name]


def test_a_file_without_a_checksum_says_so() -> None:
    assert RemoteFile("a", "b").check == "no published checksum; size/zip integrity checked instead"


def test_fetch_knows_the_catalogue(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="choose one of kermany, pneumoniamnist,"):
        fetch("kermani", tmp_path)
    with pytest.raises(DownloadError, match=r"openi has no direct download; open https://openi\.nlm\.nih\.gov"):
        fetch("openi", tmp_path)


def test_fetch_asks_the_public_home_by_its_address(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(404)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client, pytest.raises(DownloadError):
        fetch("pneumoniamnist_64", tmp_path, client=client)
    assert asked == ["https://zenodo.org/records/10519652/files/pneumoniamnist_64.npz?download=1"]
