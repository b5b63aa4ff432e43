"""Programs in processes of their own, forked from one that has imported PyTorch once: each would take seconds to."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# Nothing that reads its settings from the environment when it is imported, as huggingface_hub does.
FORKS.set_forkserver_preload(["torch", "torchvision", "lightning.pytorch"])


def _begin(folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["program.py", *arguments]
    runpy.run_path(str(folder / "program.py"), run_name="__main__")


def start(
    folder: Path, program: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """Start the text of a program, as `python -c` would; `folder` keeps what it prints, as `stdout` and `stderr`.

    PyTorch is imported before `environment` applies: the program itself sets the number of its threads.
    """
    (folder / "program.py").write_text(program, encoding="utf-8")
    given = dict(os.environ if environment is None else environment)
    process = FORKS.Process(target=_begin, args=(folder, arguments, given))
    process.start()
    return process


def run(
    program: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the text of a program to its end; what it prints is kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(folder, program, *arguments, environment=environment)
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"not ended after two minutes:\n{program}")
        said = [(folder / stream).read_text(encoding="utf-8") for stream in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, process.exitcode, *said)
