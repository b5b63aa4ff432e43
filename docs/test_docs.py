"""The pages are fresh, whole and connected; `conftest.py` runs their code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

import pneumoscope

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("[hr]*/*.md"))]
LANGUAGES = {"python", "bash", "toml", "text", "json", "{toctree}", "{eval-rst}"}


def test_generated_pages_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    pages = runpy.run_path(str(DOCS / "_generate.py"))["PAGES"]
    stale = [name for name, page in pages.items() if (DOCS / name).read_text(encoding="utf-8") != page()]
    assert not stale, "run python docs/_generate.py"


def test_results_page_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "benchmarks" / "quality"
    monkeypatch.syspath_prepend(folder)
    page = runpy.run_path(str(folder / "page.py"))["page"]()
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page, "run python benchmarks/quality/page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"<!--.*?-->|```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text)
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_and_tests_that_are_named_exist(page: Path) -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.py|tests/[\w/]+)[` ]", page.read_text(encoding="utf-8"))
    roots = (ROOT, Path(pneumoscope.__file__).parent)
    assert [name for name in names if not any((root / name).exists() for root in roots)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_is_in_a_language_that_is_run_or_shown(page: Path) -> None:
    opened = re.findall(r"^```(\S*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[::2]
    assert set(opened) <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_that_is_not_run_says_why(page: Path) -> None:
    skips = re.findall(r"^<!-- skip: (.*) -->$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert all(re.fullmatch(r'next "[^"]+"', skip) for skip in skips)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_it_is_read_in_one_sitting(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").split()) <= 700


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pneumoscope.__version__
    assert {"message", "title", "authors", "license"} <= set(citation)
