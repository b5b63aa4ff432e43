"""The cache holds what the reader sees, under the name of its content, whole or not at all."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data import cache
from pneumoscope.data.cache import PixelCache, cache_root, open_cache
from pneumoscope.errors import DataError, StorageError
from pneumoscope.images import read_image
from pneumoscope.images.preparation import to_canvas
from pneumoscope.records import Sample

FORK = multiprocessing.get_context("fork")
SIDE = 40


def picture(path: Path, seed: int) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE + 10), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Sample(str(path), f"p{seed}")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return [picture(tmp_path / "images" / f"{seed}.png", seed) for seed in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(root: Path) -> Callable[..., PixelCache]:
    def call(samples: list[Sample], **more: Any) -> PixelCache:
        return open_cache(samples, **{"canvas": 24, "aspect": "squash", "root": root, **more})

    return call


def caches(root: Path) -> list[str]:
    """What looks finished."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def unfinished(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


# --- content ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["squash", "pad"])
def test_it_holds_what_the_reader_sees(samples: list[Sample], opened: Callable[..., PixelCache], aspect: str) -> None:
    made = opened(samples, aspect=aspect)
    assert made.pixels.dtype == np.uint8
    assert made.failed == {}
    for sample, row in zip(samples, made.rows, strict=True):
        assert (made.pixels[row] == to_canvas(read_image(sample.path).pixels, 24, aspect)).all()
    with pytest.raises(ValueError, match="read-only"):
        made.pixels[0, 0, 0] = 1


def test_a_second_call_decodes_nothing(
    samples: list[Sample], opened: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(samples)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "read_image", never)
    again = opened(samples)
    assert again.folder == first.folder
    assert (again.pixels == first.pixels).all()


def test_the_name_is_that_of_the_content(
    samples: list[Sample], opened: Callable[..., PixelCache], tmp_path: Path
) -> None:
    first = opened(samples)
    moved = [Sample(str(Path(s.path).rename(tmp_path / f"moved-{i}.png")), "other") for i, s in enumerate(samples)]
    assert opened(moved).folder == first.folder
    backwards = opened(moved[::-1])
    assert backwards.folder == first.folder
    assert backwards.rows == first.rows[::-1]
    picture(Path(moved[0].path), 99)
    changed = opened(moved)
    assert changed.folder != first.folder
    assert (changed.pixels[changed.rows[0]] != first.pixels[first.rows[0]]).any()
    assert (changed.pixels[changed.rows[1]] == first.pixels[first.rows[1]]).all()


def test_geometry_and_version_are_part_of_the_name(
    samples: list[Sample], opened: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {opened(samples).folder, opened(samples, canvas=32).folder, opened(samples, aspect="pad").folder}
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    assert len(folders | {opened(samples).folder}) == 4


def test_copies_share_a_row(samples: list[Sample], opened: Callable[..., PixelCache], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(samples[2].path).read_bytes())
    made = opened([*samples, Sample(str(copy), "c")])
    assert made.rows[6] == made.rows[2]
    assert len(made.pixels) == 6


def test_rows_of_an_archive(tmp_path: Path, opened: Callable[..., PixelCache]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", val_images=pixels)
    rows = [Sample(f"{tmp_path / 'a.npz'}#val/{row}", str(row)) for row in range(3)]
    made = opened(rows, canvas=28)
    assert all((made.pixels[made.rows[i]] == pixels[i]).all() for i in range(3))
    missing = opened([*rows, Sample(f"{tmp_path / 'a.npz'}#val/3", "3")], canvas=28)
    assert "no such row" in missing.failed[f"{tmp_path / 'a.npz'}#val/3"]


def test_a_sharp_in_a_name(tmp_path: Path, opened: Callable[..., PixelCache]) -> None:
    assert opened([picture(tmp_path / "scan#1.png", 0)]).failed == {}


def test_progress_is_told(samples: list[Sample], opened: Callable[..., PixelCache]) -> None:
    told: list[tuple[int, int]] = []
    opened(samples, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 6) for number in range(1, 7)]


def test_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("PNEUMOSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "pneumoscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "pneumoscope"


# --- bad images -------------------------------------------------------------------------------------------


def test_unreadable_files_are_recorded(
    samples: list[Sample], opened: Callable[..., PixelCache], tmp_path: Path
) -> None:
    bad = {"text.png": b"no image", "empty.png": b""}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    odd = [Sample(str(tmp_path / name), name) for name in (*bad, "absent.png")]
    mixed = [odd[0], *samples, *odd[1:], Sample(str(tmp_path), "folder")]
    for _ in range(2):  # made, then found
        made = opened(mixed)
        assert [row >= 0 for row in made.rows] == [False] + [True] * 6 + [False] * 3
        reasons = {Path(path).name: reason for path, reason in made.failed.items()}
        assert "is not an image" in reasons["text.png"]
        assert "empty" in reasons["empty.png"]
        assert reasons["absent.png"] == "no such file or folder"
        assert "is a folder" in reasons[tmp_path.name]
        for sample, row in zip(mixed[1:7], made.rows[1:7], strict=True):
            assert (made.pixels[row] == to_canvas(read_image(sample.path).pixels, 24, "squash")).all()


def test_a_file_that_may_not_be_read_is_recorded(
    samples: list[Sample], opened: Callable[..., PixelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cache.sha256_file

    def guarded(path: Path) -> str:
        if str(path) == samples[0].path:
            raise StorageError("permission denied", path=path)
        return real(path)

    monkeypatch.setattr(cache, "sha256_file", guarded)
    assert opened(samples).failed == {samples[0].path: "permission denied"}


def test_not_one_image(tmp_path: Path, opened: Callable[..., PixelCache]) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: not one image could be read; is not an image"):
        opened([Sample(str(tmp_path / "text.png"), "p")])
    with pytest.raises(DataError, match="not one image could be read; no such file or folder"):
        opened([Sample(str(tmp_path / "absent.png"), "p")])
    with pytest.raises(DataError, match="the list is empty"):
        opened([])


# --- several writers, killed writers ----------------------------------------------------------------------


def _write_slowly(samples: list[Sample], root: Path, log: Path, start: Any) -> None:
    read = cache.read_image

    def slow(path: str, **more: Any) -> Any:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.02)
        return read(path, **more)

    cache.read_image = slow  # type: ignore[assignment]
    start.wait()
    made = open_cache(samples, canvas=24, aspect="squash", root=root)
    assert (made.pixels[made.rows[0]] == to_canvas(read(samples[0].path).pixels, 24, "squash")).all()


def test_of_two_writers_one_writes(samples: list[Sample], root: Path, tmp_path: Path) -> None:
    log, start = tmp_path / "log", FORK.Barrier(3)
    writers = [FORK.Process(target=_write_slowly, args=(samples, root, log, start)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    decoded = log.read_text().split()
    assert len(decoded) == 6
    assert len(set(decoded)) == 1
    assert len(caches(root)) == 1
    assert unfinished(root) == []


def _die_halfway(samples: list[Sample], root: Path) -> None:
    def die(done: int, _: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    open_cache(samples, canvas=24, aspect="squash", root=root, progress=die)


def test_a_killed_writer_leaves_nothing_that_looks_finished(
    samples: list[Sample], root: Path, opened: Callable[..., PixelCache]
) -> None:
    writer = FORK.Process(target=_die_halfway, args=(samples, root))
    writer.start()
    writer.join(120)
    assert writer.exitcode == -signal.SIGKILL
    assert caches(root) == []
    assert len(unfinished(root)) == 1, "it was killed while it wrote"
    made = opened(samples)
    assert made.failed == {}
    assert (made.pixels[made.rows[5]] == to_canvas(read_image(samples[5].path).pixels, 24, "squash")).all()
    assert unfinished(root) == [], "what the killed writer left is cleared away"


# --- the disk ---------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(samples: list[Sample], root: Path, opened: Callable[..., PixelCache]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(StorageError, match="grew over the allowed size"):
            opened(samples)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caches(root) == []
    assert unfinished(root) == []
    assert opened(samples).failed == {}


def test_no_space_is_told_and_the_rest_is_not_decoded(
    samples: list[Sample],
    root: Path,
    opened: Callable[..., PixelCache],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    many = samples + [picture(tmp_path / "more" / f"{seed}.png", seed) for seed in range(100, 160)]
    decoded: list[str] = []
    read = cache.read_image

    def counted(path: str, **more: Any) -> Any:
        decoded.append(path)
        time.sleep(0.005)
        return read(path, **more)

    def full(done: int, _: int) -> None:
        if done == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "read_image", counted)
    with pytest.raises(StorageError, match="no space left on the disk; free some space") as caught:
        opened(many, progress=full)
    assert caught.value.path
    assert len(decoded) < len(many)
    assert caches(root) == unfinished(root) == []


def test_a_root_that_cannot_be_made(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a file where a folder is needed"):
        open_cache(samples, canvas=24, aspect="squash", root=tmp_path / "file")


@pytest.mark.parametrize("damage", ["no pixels", "short pixels", "no JSON"])
def test_a_damaged_cache_is_told(samples: list[Sample], opened: Callable[..., PixelCache], damage: str) -> None:
    folder = opened(samples).folder
    if damage == "no pixels":
        (folder / "pixels.npy").unlink()
    elif damage == "short pixels":
        (folder / "pixels.npy").write_bytes((folder / "pixels.npy").read_bytes()[:200])
    else:
        (folder / "index.json").write_text(json.dumps({"rows": {}})[:-3])
    with pytest.raises(StorageError, match="the cache is damaged; delete this folder"):
        opened(samples)
