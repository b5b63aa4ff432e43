"""Shared fixtures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.shared import once

from pneumoscope.records import RESEARCH_ONLY

pytest.register_assert_rewrite("tests.support")

if TYPE_CHECKING:
    from pneumoscope.config import Experiment
    from pneumoscope.data.manifest import Manifest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real radiographs; the test is skipped where they are absent."""
    folder = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real radiographs are not at {folder}; set PNEUMOSCOPE_DATA to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded pixels of the tests lie in a folder of their own, never in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic radiographs in the Kaggle layout: 48 patients, one or two images each, 64 pixels."""
    from pneumoscope.phantom.synthetic import write_dataset

    def make(folder: Path) -> None:
        write_dataset(folder / "data", patients=48, seed=7, size=64, max_images_per_patient=2)

    return once(tmp_path_factory.getbasetemp(), "chests", make) / "data"


@pytest.fixture(scope="session")
def chest_manifest(chests: Path) -> Manifest:
    """The manifest of `chests`."""
    from pneumoscope.data.sources import open_source

    return open_source(chests)


@pytest.fixture(scope="session")
def small_experiment() -> Callable[..., Experiment]:
    """Make an experiment that trains in a second; sections given by name are merged over the defaults."""
    from pneumoscope.config import Experiment

    def make(seed: int = 0, **sections: dict[str, Any]) -> Experiment:
        raw: dict[str, Any] = {
            "data": {"val_fraction": 0.2},
            "prepare": {"size": 32, "canvas": 40},
            "model": {"dropout": 0.0},
            "train": {"epochs": 3, "head_epochs": 3, "batch_size": 16, "classes": 3},
        }
        merged = {key: {**raw.get(key, {}), **sections.get(key, {})} for key in {*raw, *sections}}
        return Experiment.model_validate({"seed": seed, **merged})

    return make


@pytest.fixture(scope="session")
def trained(
    chest_manifest: Manifest, small_experiment: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder of a custom CNN trained for three epochs on `chests`; read it, do not write into it."""
    from pneumoscope.training.experiment import run_experiment

    def make(folder: Path) -> None:
        run_experiment(small_experiment(augment={"flip": 0.5}), chest_manifest, folder / "run", name="small")

    return once(tmp_path_factory.getbasetemp(), "trained", make) / "run"


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write an untrained bundle with lively batch-norm statistics: `make_bundle(folder, network, classes, size)`.

    Each kind is built once; who asks again gets a copy.
    """
    import torch

    from pneumoscope.bundle.bundle import save_bundle
    from pneumoscope.images.preparation import Preparation
    from pneumoscope.networks.network import build_network, round_weights

    built_once: dict[str, Path] = {}

    def make(
        folder: Path,
        network: str = "custom-cnn",
        classes: int = 3,
        size: int = 32,
        seed: int = 0,
        mirror: bool = False,
        **sections: Any,
    ) -> Path:
        kind = repr((network, classes, size, seed, mirror, sorted(sections.items())))
        if kind not in built_once:
            whole = tmp_path_factory.mktemp("untrained") / "bundle"
            built_once[kind] = build(whole, network, classes, size, seed, mirror, sections)
        shutil.copytree(built_once[kind], folder)
        return folder

    def build(
        folder: Path, network: str, classes: int, size: int, seed: int, mirror: bool, sections: dict[str, Any]
    ) -> Path:
        torch.manual_seed(seed)
        built, usual = build_network(network, classes=classes)
        for module in built.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        round_weights(built)
        names = ["normal", "pneumonia"] if classes == 2 else ["normal", "bacterial", "viral"]
        card = {
            "name": "untrained",
            "network": {"name": network, "classes": names},
            "calibration": {"temperature": 1.5, "bias": 0.0},
            "operating_points": {"balanced": {"threshold": 0.5}, "triage": {"threshold": 0.2}},
            "operating_point": "balanced",
            **sections,
        }
        save_bundle(folder, built, Preparation(size, size + 8, "squash", usual["mean"], usual["std"], mirror), card)
        return folder

    return make


class Page(HTMLParser):
    """What a test asks of a page; raises `AssertionError` where tags do not nest."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input", "col"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def check(self) -> None:
        """Assert what holds of every page: nothing fetched, ids unique, links and alternatives there."""
        ids = [a["id"] for _, a in self.tags if "id" in a]
        assert len(ids) == len(set(ids))
        assert not self.all("script")
        assert not self.all("link")
        for _, a in self.tags:
            assert not any(name.startswith("on") for name in a)
            for name in ("src", "href"):
                if name in a and (a[name] or "").startswith("#"):
                    assert (a[name] or "")[1:] in ids
                elif name in a:
                    assert (a[name] or "").startswith("data:") or "//" not in (a[name] or "")
            for name in ("aria-labelledby", "aria-describedby"):
                assert a.get(name, ids[0]) in ids
        assert all(a.get("alt") for a in self.all("img"))
        assert all(a.get("aria-label") for a in self.all("svg"))
        assert all(a.get("scope") in ("col", "row") for a in self.all("th"))
        assert len(self.all("caption")) == len(self.all("table"))
        assert len(self.all("h1")) == 1
        assert RESEARCH_ONLY in self.text


@pytest.fixture
def read_page() -> Callable[[Path], Page]:
    """Return a function that parses a page and checks what holds of every page."""

    def read(path: Path) -> Page:
        text = path.read_text(encoding="utf-8")
        assert "url(http" not in text
        assert "@import" not in text
        page = Page(text)
        page.check()
        return page

    return read
