"""Archives that lie."""

from __future__ import annotations

import io
import stat
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.fetch.unpack import Limits, unpack
from pneumoscope.errors import DownloadError


def as_is(path: PurePosixPath) -> PurePosixPath:
    return path


def written(folder: Path, *members: tuple[zipfile.ZipInfo | str, bytes], deflate: bool = False) -> Path:
    path = folder / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for info, body in members:
            archive.writestr(info, body)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def test_unpacks_what_place_names_and_prefers_the_shallower(tmp_path: Path) -> None:
    archive = written(tmp_path, ("x/y/a.txt", b"deep"), ("x/a.txt", b"shallow"), ("x/no.bin", b""), ("x/e/", b""))
    out = tmp_path / "out"
    count = unpack(archive, out, lambda path: PurePosixPath("to", path.name) if path.suffix == ".txt" else None)
    assert count == 1
    assert [(p.relative_to(out).as_posix(), p.read_bytes()) for p in out.rglob("*.*")] == [("to/a.txt", b"shallow")]


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "//host/share", "C:/a", "a\\..\\b", "..\\a", "c:a", "."]
)
def test_a_name_outside_the_folder_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    archive = written(tmp_path, ("good.txt", b"1"), (name, b"2"))
    with pytest.raises(DownloadError, match="points outside the folder"):
        unpack(archive, tmp_path / "out", as_is)
    assert not (tmp_path / "out").exists()


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    archive = written(tmp_path, ("aXb", b"1"))
    archive.write_bytes(archive.read_bytes().replace(b"aXb", b"a\0b"))
    with pytest.raises(DownloadError, match="points outside the folder"):
        unpack(archive, tmp_path / "out", as_is)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    archive = written(tmp_path, (special("link", kind), b"/etc/passwd"))
    with pytest.raises(DownloadError, match="is a link or a special file"):
        unpack(archive, tmp_path / "out", as_is)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    archive = written(tmp_path, ("zeros", bytes(8 << 20)), deflate=True)
    with pytest.raises(DownloadError, match="unpacks to far more"):
        unpack(archive, tmp_path / "out", as_is)


def test_too_many_bytes_or_files_are_refused(tmp_path: Path) -> None:
    archive = written(tmp_path, ("a", b"123"), ("b", b"456"))
    with pytest.raises(DownloadError, match="would unpack to 6 bytes"):
        unpack(archive, tmp_path / "out", as_is, Limits(total=5))
    with pytest.raises(DownloadError, match="holds 2 files"):
        unpack(archive, tmp_path / "out", as_is, Limits(members=1))
    assert unpack(archive, tmp_path / "out", as_is, Limits(total=6, members=2)) == 2


def test_a_size_that_lies_does_not_let_more_through(tmp_path: Path) -> None:
    archive = written(tmp_path, ("a", bytes(5000)), deflate=True)
    body = archive.read_bytes()
    archive.write_bytes(body.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DownloadError, match="no whole zip archive"):
        unpack(archive, tmp_path / "out", as_is)
    assert (tmp_path / "out/a").stat().st_size <= 10


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    archive = written(tmp_path, ("a", b"secret"))
    body = bytearray(archive.read_bytes())
    body[6] |= 1  # local header, general purpose flags
    body[body.index(b"PK\x01\x02") + 8] |= 1  # central directory
    archive.write_bytes(body)
    with pytest.raises(DownloadError, match="is encrypted"):
        unpack(archive, tmp_path / "out", as_is)


@given(data=st.data())
def test_damage_is_a_download_error_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damage")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as source:
        source.writestr("a/b.txt", b"radiograph " * 40)
        source.writestr("c.txt", b"other")
    body = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    (folder / "z.zip").write_bytes(body)
    with suppress(DownloadError):
        unpack(folder / "z.zip", folder / "out", lambda path: PurePosixPath("x", path.name))
    assert {path.name for path in folder.iterdir()} <= {"z.zip", "out"}
