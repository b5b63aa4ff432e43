"""Runs the code blocks of README.md and of the pages below docs/ as tests.

Each page gets a folder of its own and is run from top to bottom. How-to guides and the README begin with what
`docs/howto/index.md` makes: images and a trained bundle. A `toml` block must be a valid experiment, or the file of a
gateway where it is called `gateway.toml`, and is saved under the name in its first line. A block after
`<!-- skip: next "reason" -->` is shown and not run.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from tests.support.shared import once

ROOT = Path(__file__).parent
PREPARES = ROOT / "docs" / "howto" / "index.md"
FROM_NOTHING = ("tutorial.md", "index.md")
_SHELL = re.compile(r"[|&;<>$`*?()]")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def run_bash(example: Example) -> None:
    """Run plain `pneumoscope` lines in this process, where imports are paid for once, all else in bash."""
    text = str(example.parsed)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]
    if all(line.startswith("pneumoscope ") and not _SHELL.search(_QUOTED.sub("", line)) for line in lines):
        for line in lines:
            run_command(shlex.split(line, comments=True))
            if traces := example.namespace.get("traces"):
                faulthandler.enable(file=traces)  # training takes it away, see `_signals`
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, f"exit code {done.returncode}:\n{text}\n{done.stderr}"


def run_command(arguments: list[str]) -> None:
    """Run the command line in this process; fail where it exits with another code than 0."""
    from pneumoscope.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code, f"exit code {stop.value.code}: {shlex.join(arguments)}"


def read_toml(example: Example) -> None:
    """Save a block under the name in its first line, and load it: an experiment, or the file of a gateway."""
    name = re.match(r"# (\S+\.toml)\n", str(example.parsed))
    file = Path(name[1] if name else "block.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(example.parsed), encoding="utf-8")
    if file.name == "gateway.toml":
        from pneumoscope.serving.settings.gateway import load_gateway

        load_gateway(file)
    else:
        from pneumoscope.config import load_experiment

        load_experiment(file)


def _sybil(fixture: str) -> Sybil:
    parsers = [
        SkipParser(),
        PythonCodeBlockParser(),
        CodeBlockParser("bash", run_bash),
        CodeBlockParser("toml", read_toml),
    ]
    return Sybil(parsers, patterns=["README.md", "docs/*.md", "docs/**/*.md"], fixtures=[fixture, "traces"])


pages = _sybil("page")
prepares = _sybil("page")
_collect = pages.pytest()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect every page but the one that prepares the others: the fixture runs it."""
    return None if file_path == PREPARES else _collect(file_path, parent)


@pytest.fixture(scope="session")
def traces(pytestconfig: pytest.Config) -> int:
    """The file descriptor that a crash is written to."""
    return pytestconfig.stash[fault_handler_stderr_fd_key]


@pytest.fixture(autouse=True)
def _signals(traces: int) -> Iterator[None]:
    """A crash leaves a trace, and no test leaves its handlers to the next.

    Lightning gives back Python's handlers after training, and so takes faulthandler's, which Python does not know of.
    """
    faulthandler.enable(file=traces)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before, "this test leaves a signal's handler behind"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Say how a test process died, and what memory and kernel were like then: it cannot say so itself."""
    if not error:
        return
    code = node.gateway._io.popen.wait()  # or the signal, negative: whoever is told so here is dead
    memory = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(("MemTotal", "MemAv"))]
    kernel = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout.splitlines()[-5:]
    print(f"\n{node.gateway.id} died with exit code {code}", *memory, *kernel, sep="\n", flush=True)


@pytest.fixture(scope="session")
def _frugal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, no network, one thread: images this small gain nothing from more."""
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, _frugal: None) -> Path:
    """A folder with what `howto/index.md` makes: `images/`, `first.toml`, `runs/first/`."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for example in prepares.parse(PREPARES).examples():
                example.evaluate()

    return once(tmp_path_factory.getbasetemp(), "prepared", make)


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which one page is run."""
    folder = tmp_path_factory.mktemp("page")
    if request.node.path.name in FROM_NOTHING:
        request.getfixturevalue("_frugal")
    else:
        shutil.copytree(request.getfixturevalue("prepared"), folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "configs", folder / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
