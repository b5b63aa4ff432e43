"""An archive scored in shards: one line per image, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.archive.scoring import score_archive, shard_file
from pneumoscope.bundle.bundle import Bundle, load_bundle
from pneumoscope.errors import BundleError, ConfigError, StorageError
from pneumoscope.predict import Classifier, as_line


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Bundle:
    return load_bundle(trained / "bundle")


@pytest.fixture(scope="module")
def files(chests: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve images, a file that is none, and a missing one with a name beyond ASCII."""
    broken = tmp_path_factory.mktemp("broken") / "broken.png"
    broken.write_bytes(b"no image")
    images = sorted(str(path) for path in (chests / "train").rglob("*.png"))[:12]
    return [*images[:5], str(broken), *images[5:], "no such Röntgenbild.png"]


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for line in found:
        del line["milliseconds"]
    return found


def open_to_all() -> set[str]:
    """Return the ports on which somebody listens at every address."""
    ports = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.is_file() else []:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and not int(address, 16):
                ports.add(port)
    return ports


needs_ray = pytest.mark.usefixtures("ray")


@pytest.fixture
def ray() -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed (the extra `ray`)")


@needs_ray
def test_it_says_what_one_process_says(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    reached_from_outside = open_to_all()
    out = tmp_path / "lines.jsonl"

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        assert open_to_all() <= reached_from_outside, "a cluster of one machine listens on its loopback device alone"

    failed = score_archive(files, out, bundle, shard_size=4, workers=2, progress=progress)
    expected = [json.loads(json.dumps(line.as_json())) for line in Classifier(bundle).predict(files)]
    for line in expected:
        del line["milliseconds"]
    found = lines(out)
    for line, wanted in zip(found, expected, strict=True):
        assert line.pop("probability") == pytest.approx(wanted.pop("probability"), abs=1e-5)
        assert line.pop("subtype") == pytest.approx(wanted.pop("subtype"), abs=1e-5)
        assert line == wanted
    assert failed == 2
    assert "ray" not in sys.modules, "Ray has a process of its own"
    assert len(seen) == 4
    assert seen[-1] == (14, 14)
    assert list(tmp_path.iterdir()) == [out], "finished shards are cleared away"


def unfinished(bundle: Bundle, files: list[str], out: Path) -> None:
    """Leave what a run leaves that was stopped before its first shard."""
    from pneumoscope.archive import scoring as archive

    archive._claim(out.with_name(f"{out.name}.shards"), files, bundle, None, 4, True)


def test_shards_of_another_job_are_not_taken(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    unfinished(bundle, files, out)
    for options in ({"shard_size": 5}, {"operating_point": "triage", "shard_size": 4}):
        with pytest.raises(ConfigError, match=r"lines\.jsonl\.shards: holds shards of other images"):
            score_archive(files, out, bundle, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="remove it to begin anew"):
        score_archive(files[1:], out, bundle, shard_size=4)
    other = tmp_path / "other.jsonl.shards"
    other.mkdir()
    (other / "letter.txt").write_text("not ours")
    with pytest.raises(StorageError, match="is not empty"):
        score_archive(files, tmp_path / "other.jsonl", bundle)


@needs_ray
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found in /proc")
def test_a_killed_worker_loses_and_doubles_nothing(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    many = (files * 60)[:600]
    out = tmp_path / "lines.jsonl"
    with killed_in_the_middle(out, scorers):
        failed = score_archive(many, out, bundle, shard_size=10, workers=2)
    assert [line["path"] for line in lines(out)] == many
    assert failed == sum(name == files[5] or name == files[-1] for name in many)


@needs_ray
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_killed_driver_takes_its_workers_along_and_what_is_done_is_not_done_again(
    bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    many = (files * 60)[:600]
    out = tmp_path / "lines.jsonl"
    with (
        killed_in_the_middle(out, lambda: processes(b"pneumoscope.archive.cluster import drive")),
        pytest.raises(StorageError, match=r"Ray ended \(exit code -9\) after \d+ of 60 shards; start the same command"),
    ):
        score_archive(many, out, bundle, shard_size=10, workers=2)
    deadline = time.monotonic() + 60
    while list(scorers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(scorers())
    assert not out.exists()
    done = min(out.with_name("lines.jsonl.shards").glob("0*.jsonl"))
    answers = Classifier(bundle).predict(many[10 * int(done.stem) :][:10])
    done.write_text("".join(as_line(replace(answer, milliseconds=1234.0)) for answer in answers))
    kept = done.read_text().splitlines()
    score_archive(many, out, bundle, shard_size=10, workers=2)
    assert [line["path"] for line in lines(out)] == many
    assert out.read_text().splitlines()[10 * int(done.stem) :][:10] == kept


@contextmanager
def killed_in_the_middle(out: Path, victims: Callable[[], Iterator[int]]) -> Iterator[None]:
    """Kill one of `victims` as soon as the first shard is there."""
    killed: list[int] = []
    finished = threading.Event()

    def kill_one() -> None:
        shards = out.with_name(f"{out.name}.shards")
        while not finished.wait(0.05):
            if any(shards.glob("0*.jsonl")) and (found := list(victims())):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        yield
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1, "nobody was killed: the test showed nothing"


@needs_ray
def test_what_a_worker_cannot_do_is_told_as_here(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    unfinished(bundle, files, out)
    shard_file(tmp_path / "lines.jsonl.shards", 1).mkdir()
    with pytest.raises(StorageError, match=r"00000001\.jsonl: is a folder, a file is needed here; choose another name"):
        score_archive(files, out, bundle, shard_size=4, workers=1)
    assert not out.exists()


def scorers() -> Iterator[int]:
    """Yield the processes of Ray that score."""
    return (pid for pid in processes(b"Scorer") if command(pid).startswith(b"ray::"))


def processes(part: bytes) -> Iterator[int]:
    """Yield the processes that have `part` in their command line."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and part in command(int(folder.name)):
            yield int(folder.name)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@needs_ray
def test_what_cannot_begin_is_told_before_a_cluster_starts(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        score_archive(files, tmp_path, bundle)
    with pytest.raises(BundleError, match="no operating point 'cautious'"):
        score_archive(files, tmp_path / "lines.jsonl", bundle, operating_point="cautious", workers=1)
    with pytest.raises(ConfigError, match=r"cluster at 127\.0\.0\.1:1 cannot be reached"):
        score_archive(files, tmp_path / "others.jsonl", bundle, address="127.0.0.1:1")


def test_without_ray_it_says_what_to_install(
    bundle: Bundle, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "pneumoscope\[ray\]"'):
        score_archive(files, tmp_path / "lines.jsonl", bundle)
