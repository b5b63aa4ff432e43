"""Each module of the package has a test of its name in the folder of its name, or `mirror.toml` says which tests it."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pneumoscope"
TESTS = ROOT / "tests"
LIST = Path(__file__).parent / "mirror.toml"


def modules(source: Path) -> list[str]:
    """Return the modules below a package, `room/module`, without those that only gather or start."""
    files = (file for file in source.rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
    return sorted(file.relative_to(source).with_suffix("").as_posix() for file in files)


def unmirrored(source: Path, tests: Path) -> list[str]:
    """Return the modules without a mirrored test: that of `room/module` is `room/test_module.py`."""
    paths = ((module, Path(module)) for module in modules(source))
    return [module for module, path in paths if not (tests / path.parent / f"test_{path.name}.py").exists()]


def listed() -> list[str]:
    return [
        module for group in tomllib.loads(LIST.read_text(encoding="utf-8"))["tested"] for module in group["modules"]
    ]


def test_modules_without_a_mirrored_test_are_those_listed() -> None:
    missing, known = set(unmirrored(SOURCE, TESTS)), set(listed())
    assert sorted(missing - known) == [], f"write tests/ROOM/test_MODULE.py, or say in {LIST.name} what tests them"
    assert sorted(known - missing) == [], f"gone, moved or mirrored by now: take them out of {LIST.name}"


def test_the_list_names_each_module_once_and_tests_that_exist() -> None:
    groups = tomllib.loads(LIST.read_text(encoding="utf-8"))["tested"]
    assert [module for module, count in Counter(listed()).items() if count > 1] == []
    for group in groups:
        assert set(group) == {"by", "why", "modules"}
        assert (ROOT / group["by"]).exists(), f"{group['by']} is not there"
        assert len(group["why"].split()) >= 4
        assert group["modules"] == sorted(group["modules"])
    assert len({group["by"] for group in groups}) == len(groups), "one group for a test"


def test_a_module_is_mirrored_by_its_room_and_name(tmp_path: Path) -> None:
    for name in (
        "src/a.py",
        "src/room/b.py",
        "src/room/c.py",
        "src/room/__init__.py",
        "t/test_a.py",
        "t/room/test_c.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert unmirrored(tmp_path / "src", tmp_path / "t") == ["room/b"]
