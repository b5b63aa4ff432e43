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
PACKAGE = ROOT / "src" / "pneumoscope"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("[hr]*/*.md"))]
LANGUAGES = {"python", "bash", "toml", "text", "json", "{toctree}", "{eval-rst}"}


@pytest.mark.parametrize("name", ["cli.md", "experiment.md"])
def test_generated_page_is_fresh(name: str) -> None:
    page = runpy.run_path(str(DOCS / "_generate.py"))["PAGES"][name]()
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == page, "run python docs/_generate.py"


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
def test_code_is_in_a_language_that_is_run_or_shown(page: Path) -> None:
    opened = re.findall(r"^```(\S*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[::2]
    assert set(opened) <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_that_is_not_run_says_why(page: Path) -> None:
    skips = re.findall(r"^<!-- skip: (.*) -->$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert all(re.fullmatch(r'next "[^"]+"', skip) for skip in skips)


def test_readme_shows_every_room() -> None:
    rooms = {child.name for child in PACKAGE.iterdir() if child.suffix == ".py" or (child / "__init__.py").is_file()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    house = readme[readme.index("## The house") : readme.index("## Limits")]
    shown = {name.rstrip("/") for name in re.findall(r"^  (\S+)", house, flags=re.MULTILINE)}
    assert shown == rooms - {"__init__.py", "__main__.py"}


def test_readme_is_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_python_reference_lists_every_module() -> None:
    files = [file.relative_to(PACKAGE.parent).with_suffix("") for file in PACKAGE.rglob("*.py")]
    modules = {".".join(file.parts) for file in files if not file.name.startswith("__")}
    listed = set(
        re.findall(r"^   (pneumoscope\S+)$", (DOCS / "reference" / "python.md").read_text(), flags=re.MULTILINE)
    )
    packages = {"pneumoscope.explanation", "pneumoscope.images", "pneumoscope.serving.results"}
    assert listed - packages == {name for name in modules if ".cli." not in name}


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pneumoscope.__version__
    assert {"message", "title", "authors", "license"} <= set(citation)
