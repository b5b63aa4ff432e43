"""An archive scored in shards: one line per image, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.archive import score_archive, shard_file
from pneumoscope.bundle import Bundle, load_bundle
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
    if find_spec("ray") is None:  # not imported: that must happen after `score_archive` told it where to listen
        pytest.skip("Ray is not installed (the extra `ray`)")


@needs_ray
def test_it_says_what_one_process_says(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    reached_from_outside, handler = open_to_all(), signal.getsignal(signal.SIGTERM)
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
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(seen) == 4
    assert seen[-1] == (14, 14)
    assert list(tmp_path.iterdir()) == [out], "finished shards are cleared away"


@needs_ray
def test_what_is_done_is_not_done_again(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    unfinished(bundle, files, out)
    done = shard_file(tmp_path / "lines.jsonl.shards", 1)
    answers = Classifier(bundle).predict(files[4:8])
    done.write_text("".join(as_line(replace(answer, milliseconds=1234.0)) for answer in answers))
    kept = done.read_text().splitlines()
    score_archive(files, out, bundle, shard_size=4, workers=1)
    found = out.read_text().splitlines()
    assert found[4:8] == kept
    assert [json.loads(line)["path"] for line in found] == files


def unfinished(bundle: Bundle, files: list[str], out: Path) -> None:
    """Leave what a run leaves that was stopped before its first shard."""
    from pneumoscope import archive

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
    killed: list[int] = []
    finished = threading.Event()

    def kill_one() -> None:
        """Kill a worker as soon as the first shard is there."""
        shards = tmp_path / "lines.jsonl.shards"
        while not finished.wait(0.05):
            if any(shards.glob("0*.jsonl")) and (workers := list(scorers())):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        failed = score_archive(many, out, bundle, shard_size=10, workers=2)
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1, "no worker was killed: the test showed nothing"
    assert [line["path"] for line in lines(out)] == many
    assert failed == sum(name == files[5] or name == files[-1] for name in many)


@needs_ray
def test_what_a_worker_cannot_do_is_told_as_here(bundle: Bundle, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    unfinished(bundle, files, out)
    shard_file(tmp_path / "lines.jsonl.shards", 1).mkdir()
    with pytest.raises(StorageError, match=r"00000001\.jsonl: is a folder, a file is needed here; choose another name"):
        score_archive(files, out, bundle, shard_size=4, workers=1)
    assert not out.exists()


def scorers() -> Iterator[int]:
    """Yield the processes of Ray that score for this process's cluster."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"_Scorer" in title:
                yield int(folder.name)


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
