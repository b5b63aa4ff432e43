"""The public face: what `import pneumoscope` offers, that its examples run, and that it costs nothing."""

from __future__ import annotations

import ast
import doctest
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pneumoscope
from pneumoscope.errors import ConfigError
from pneumoscope.phantom.synthetic import write_dataset

NAMES = [name for name in pneumoscope.__all__ if name != "__version__"]
INIT = Path(pneumoscope.__file__)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `images/`, computed radiographs, and `chest.png`, in which the examples run."""
    folder = tmp_path_factory.mktemp("api")
    write_dataset(folder / "images", patients=24, seed=0, size=96)
    shutil.copy(INIT.parent / "explanation" / "normal.png", folder / "chest.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, images: Path) -> None:
    text = getattr(pneumoscope, name).__doc__
    example = doctest.DocTestParser().get_doctest(text, {"pneumoscope": pneumoscope}, name, None, 0)
    assert example.examples, f"{name} has no example"
    assert doctest.DocTestRunner().run(example).failed == 0


def test_each_name_is_there_and_listed() -> None:
    assert set(pneumoscope.__all__) <= set(dir(pneumoscope))
    checked = {
        alias.name
        for node in ast.walk(ast.parse(INIT.read_text(encoding="utf-8")))
        if isinstance(node, ast.If)
        for line in node.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert checked == set(NAMES)  # what an editor and mypy see is what there is


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'diagnose'"):
        pneumoscope.diagnose  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, pneumoscope; print(*sorted({n.partition('.')[0] for n in sys.modules} & {'numpy', 'torch'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_file_a_folder_and_a_list_are_answered_alike(images: Path) -> None:
    classifier = pneumoscope.load("fast", gate=False)
    files = sorted((images / "images" / "test").rglob("*.png"))

    def answers(given: str | Path | list[Path]) -> list[tuple[str, float | None]]:
        return [(prediction.path, prediction.probability) for prediction in classifier.predict(given)]

    assert len(files) > 1
    assert answers(images / "images" / "test") == answers(files) == answers(str(images / "images" / "test"))
    assert answers(files[0]) == answers(str(files[0])) == answers(files)[:1]


@pytest.mark.parametrize(
    "given", [7, None, {}, {"chest.png"}, object(), np.zeros((2, 3, 32, 32)), [None], [["chest.png"]]]
)
def test_what_is_no_image_is_said_so(given: object, images: Path) -> None:
    with pytest.raises(TypeError, match="an image cannot be"):
        list(pneumoscope.load("fast").predict(given))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}, {"batch_size": 1.5}, {"workers": 0}])
def test_no_step_can_be_empty(options: dict[str, Any], images: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        pneumoscope.load("fast").predict("chest.png", **options)


def test_an_unknown_method_names_the_known_ones(images: Path) -> None:
    with pytest.raises(ConfigError, match="gradcam"):
        pneumoscope.explain(pneumoscope.load("fast"), "chest.png", "tea-leaves")
