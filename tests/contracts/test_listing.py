"""What a command is given and where its lines go: no image and no line is lost silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(make_bundle: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("listing") / "b")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = []
    for name in ("a.png", "b c.png", "d\ne.png", "f"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(tmp_path / "in" / name, "PNG")
        files.append(tmp_path / "in" / name)
    return files


def call(*words: object, stdin: bytes = b"", **options: Any) -> tuple[int, list[str], str]:
    done = subprocess.run(
        [sys.executable, "-m", "pneumoscope", *map(str, words)],
        input=stdin,
        capture_output=True,
        check=False,
        **options,
    )
    lines = [json.loads(line)["path"] for line in done.stdout.decode().splitlines() if line.startswith("{")]
    return done.returncode, lines, done.stderr.decode()


@pytest.mark.parametrize("form", ["lines", "windows lines", "nul"])
@pytest.mark.parametrize("way", ["-", "--from-file -", "--from-file FILE"])
def test_a_list_of_paths(bundle: Path, images: list[Path], tmp_path: Path, way: str, form: str) -> None:
    names = [str(image) for image in images if form == "nul" or "\n" not in image.name]
    data = {"lines": "\n", "windows lines": "\r\n", "nul": "\0"}[form].join([*names, ""]).encode()
    (tmp_path / "list").write_bytes(data)
    words = way.replace("FILE", str(tmp_path / "list")).split()
    code, found, _ = call("predict", *words, "--bundle", bundle, stdin=data)
    assert code == 0
    assert found == names


def test_no_image_at_all(bundle: Path) -> None:
    for words in ((), ("-",), ("--from-file", "-")):
        code, _, said = call("predict", *words, "--bundle", bundle)
        assert code == 2
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_lines_of_an_earlier_run_are_not_lost(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert call("predict", images[0], images[1], "--bundle", bundle, "--jsonl", file)[0] == 0
    before = file.read_bytes()
    code, _, said = call("predict", images[0], "--bundle", bundle, "--jsonl", file)
    assert code == 2
    assert "holds lines already, which would be lost; add --append" in said
    assert file.read_bytes() == before
    assert call("predict", images[3], "--bundle", bundle, "--jsonl", file, "--append")[0] == 0
    assert file.read_bytes().startswith(before)
    paths = [json.loads(line)["path"] for line in file.read_text().splitlines()]
    assert paths == [str(images[0]), str(images[1]), str(images[3])]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["in", "lines.jsonl"]


def test_a_folder_says_what_it_leaves_out(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "notes.txt").write_text("no image")
    (folder / "again").symlink_to(folder)
    code, found, said = call("predict", folder, "--bundle", bundle)
    assert code == 0
    assert found == sorted(map(str, images))
    assert "left out: 1 file (notes.txt: not an image file)" in said


def test_without_a_home_there_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "def none(*_): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = classmethod(none)\n"
        "from pneumoscope.data.cache import cache_root\n"
        "from pneumoscope.errors import StorageError\n"
        "try: cache_root()\n"
        "except StorageError as error: print(error)\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "PNEUMOSCOPE_CACHE")
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "HOME: the user has no home folder; set HOME to a folder\n"
