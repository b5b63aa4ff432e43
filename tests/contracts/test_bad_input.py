"""Bad input at the command line: one line with the file and the remedy, the exit code, nothing half-written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support import bad_input

from pneumoscope.cli import main

BY_NAME = {case.name: case for case in bad_input.CASES}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = bad_input.make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    return path


@contextmanager
def files_limited_to(size: int | None) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(case, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["pneumoscope", *arguments])
        if case.stdout is not None:
            patch.setattr(sys, "stdout", case.stdout.open("w"))
        try:
            with files_limited_to(case.limit):
                main()
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            if case.stdout is not None:
                sys.stdout.close()
    return 0


@pytest.mark.parametrize("case", bad_input.CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_it_is_told_in_one_line(
    case, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not bad_input.possible(case):
        pytest.skip(f"this system has no {case.stdout}")
    with bad_input.prepared(case, bundle) as (root, arguments):
        monkeypatch.chdir(root)
        monkeypatch.setenv("PNEUMOSCOPE_CACHE", "cache")
        before = bad_input.files(root)
        code = run(case, arguments, monkeypatch)
        captured = capsys.readouterr()
        new = tuple(sorted(bad_input.files(root) - before))
        monkeypatch.chdir(bundle)
    assert bad_input.complaints(case, bad_input.Outcome(code, captured.out, captured.err, new)) == []


def test_a_file_in_the_way_is_kept(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["output path is a file, described"]
    with bad_input.prepared(case, bundle) as (root, arguments):
        monkeypatch.chdir(root)
        assert run(case, arguments, monkeypatch) == 2
        assert (root / "out").read_text(encoding="utf-8") == "kept"
        monkeypatch.chdir(bundle)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "", "x**.png", "[", "*" * 300])
def test_an_impossible_name_is_one_line_among_others(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    bad_input.save(tmp_path / "good.png", bad_input.grey())
    case = bad_input.Case("impossible name", 3, lambda _: [], ("check the path",), "line")
    code = run(case, ["predict", name, "good.png", "--bundle", str(bundle)], monkeypatch)
    captured = capsys.readouterr()
    assert bad_input.complaints(case, bad_input.Outcome(code, captured.out, captured.err, ())) == []


@pytest.mark.slow
def test_after_a_full_disk_the_same_command_trains(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["full disk, trained"]
    with bad_input.prepared(case, bundle) as (root, arguments):
        monkeypatch.chdir(root)
        monkeypatch.setenv("PNEUMOSCOPE_CACHE", "cache")
        assert run(case, arguments, monkeypatch) == 2
        assert run(bad_input.Case("space again", 0, case.build, ()), arguments, monkeypatch) == 0
        assert (root / "out" / "bundle" / "card.json").is_file()
        monkeypatch.chdir(bundle)


@pytest.mark.slow
def test_a_process_of_its_own_behaves_alike(bundle: Path) -> None:
    for case in (BY_NAME["config with an unknown key"], BY_NAME["full disk, predicted"]):
        with bad_input.prepared(case, bundle) as (root, arguments):
            before = bad_input.files(root)
            with files_limited_to(case.limit):  # a process inherits it
                done = subprocess.run(
                    [sys.executable, "-c", "from pneumoscope.cli import main; main()", *arguments],
                    cwd=root, env={**os.environ, "PNEUMOSCOPE_CACHE": "cache"}, capture_output=True, text=True,
                    check=False,
                )  # fmt: skip
            new = tuple(sorted(bad_input.files(root) - before))
            outcome = bad_input.Outcome(done.returncode, done.stdout, done.stderr, new)
            assert bad_input.complaints(case, outcome) == []


# --- the judge can say no ---------------------------------------------------------------------------------

GOOD = "error: absent: no such file or folder; check the path of --data\n"


@pytest.mark.parametrize(
    ("code", "stderr", "new", "complaint"),
    [
        (2, GOOD, (), None),
        (1, GOOD, (), "exit code 1, expected 2"),
        (2, "Traceback (most recent call last):\n" + GOOD, (), "a traceback"),
        (2, "error: no such file or folder; check the path\n", (), "does not say 'absent: no such file or folder'"),
        (2, "error: absent: no such file or folder, check the path\n", (), "not one line with a remedy"),
        (2, GOOD + "and more\n", (), "not one line with a remedy"),
        (2, GOOD, ("out",), "left out"),
        (2, GOOD, (".describe.json.x.part",), "left .describe.json.x.part"),
    ],
)
def test_the_judge(code: int, stderr: str, new: tuple[str, ...], complaint: str | None) -> None:
    case = BY_NAME["missing folder, described"]
    found = bad_input.complaints(case, bad_input.Outcome(code, "", stderr, new))
    assert found == ([] if complaint is None else [complaint])


def test_unfinished_files_are_complained_of_even_where_results_may_stay() -> None:
    case = BY_NAME["full disk, trained"]
    stderr = "error: cache/x: the file grew over the allowed size; raise the limit\n"
    found = bad_input.complaints(case, bad_input.Outcome(2, "", stderr, ("out/config.toml", "cache/.x.y.part")))
    assert found == ["left cache/.x.y.part"]
