"""Who may import whom beside the package: programs that start things, benchmarks, tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folder -> what it may import of the folders beside the package. Their own modules are judged below.
ALLOWED = {
    "src": (),
    "scripts": ("scripts",),
    "benchmarks": ("benchmarks", "scripts", "tests.support"),
    "tests": ("tests.support", "scripts"),
    "tests/benchmarks": ("tests.support", "scripts", "benchmarks"),
}
FOLDERS = ("benchmarks", "scripts", "tests")


def imported(source: str) -> list[str]:
    """Return each module that a source imports of our folders, wherever the import stands; names are joined on."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules += [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
    return [module for module in modules if module.partition(".")[0] in FOLDERS]


def may(folder: str, module: str) -> bool:
    """Whether files of a folder may import a module."""
    return any(f"{module}.".startswith(f"{other}.") for other in ALLOWED[folder])


@pytest.mark.parametrize("folder", ALLOWED)
def test_arrows_between_folders_are_those_above(folder: str) -> None:
    apart = [ROOT / other for other in ALLOWED if other.startswith(f"{folder}/")]
    files = [file for file in sorted((ROOT / folder).rglob("*.py")) if not apart or apart[0] not in file.parents]
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in imported(file.read_text(encoding="utf-8"))
        if not may(folder, module)
    ]
    assert wrong == [], "what tests share lies in tests/support, what starts programs in scripts"


def test_helpers_import_no_test() -> None:
    """A helper is a module of tests/support, and no test hides among them."""
    helpers = sorted((ROOT / "tests" / "support").glob("*.py"))
    assert helpers
    assert [file.name for file in helpers if file.name.startswith("test_")] == []


@pytest.mark.parametrize(
    ("folder", "source", "allowed"),
    [
        ("tests", "from tests.support.web import opened", True),
        ("tests", "def f():\n    from tests.serving.test_web import opened", False),
        ("tests", "import benchmarks.gateway.rig", False),
        ("tests", "from tests.supported import x", False),
        ("scripts", "from tests.support.gateway import sink", False),
        ("scripts", "from benchmarks import gateway", False),
        ("src", "import scripts.pacs.demo", False),
    ],
)
def test_a_wrong_import_is_seen(folder: str, source: str, allowed: bool) -> None:
    (module,) = imported(source)
    assert may(folder, module) == allowed
