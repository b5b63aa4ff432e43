"""What a Python user calls: load a network, explain an answer, evaluate, validate, compare.

Each is a command without its files: it takes paths, and writes only where `out` names a folder. Imports happen when it
is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumoscope.data.manifest import Manifest
    from pneumoscope.predict import Classifier
    from pneumoscope.records import Heatmap


def load(bundle: str | Path = "default", **options: Any) -> Classifier:
    """Load a network: a shipped bundle by name, `default` or `fast`, or the folder of your own.

    Options are those of `Classifier`. Raises `BundleError` where the bundle is damaged or no bundle.

    >>> import pneumoscope
    >>> classifier = pneumoscope.load()
    >>> classifier.bundle.name, classifier.threshold > 0
    ('lite0-styles', True)
    """
    from pneumoscope.predict import Classifier

    return Classifier.load(bundle, **options)


def explain(classifier: Classifier, image: object, method: str = "gradcam", *, check: bool = False) -> Heatmap:
    """Return the map of what spoke for pneumonia in an image, float32 [S, S] in 0..1, S the network's input size.

    `image`: anything that `Classifier.predict` takes, but one: a file, an array [H, W], an image of Pillow, bytes, an
    open file, a dataset, or a frame of one row; of several, call it for each. `method`: `gradcam`, `lime`, `shap` or
    another key of `pneumoscope.explanation.METHODS`. `check` tests whether the map is stable and faithful, which takes
    many times as long; without it the verdict is `not tested`.

    Raises:
        ConfigError: there is no such method.
        ImageError: the image cannot be read.
        TypeError: it is no image, or there are several.

    >>> heatmap = pneumoscope.explain(pneumoscope.load(), "chest.png")
    >>> heatmap.values.shape, heatmap.verdict in ("not tested", "blank")
    ((144, 144), True)
    """
    from pneumoscope.errors import ConfigError
    from pneumoscope.explanation import METHODS
    from pneumoscope.explanation.explain import explain_canvas
    from pneumoscope.images.given import one_item

    if method not in METHODS:
        raise ConfigError(f"no method is called {method!r}", remedy=f"use {', '.join(METHODS)}")
    opened = one_item(image).open()
    radiograph = opened.decode(2 * classifier.bundle.preparation.canvas)  # as `predict` reads it
    return explain_canvas(classifier, classifier.canvas(radiograph), method, check=check)


def evaluate(
    classifier: Classifier,
    source: object,
    out: str | Path | None = None,
    *,
    labels: Iterable[object] | None = None,
    split: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a classifier on labelled images, with 95 % intervals by patient; returns what `metrics.json` holds.

    `source`: anything that `open_source` reads, or its manifest; a frame with the columns of a CSV manifest, `path` and
    `label` at least, where `path` may hold arrays; or images that `Classifier.predict` takes with their `labels`, one
    each: `NORMAL` and `PNEUMONIA`, or 0 and 1. `split`: `train`, `val` or `test` of it.

    Raises:
        DataError: no image has a label, none could be analysed, or labels and images do not fit.
        TypeError: an image is none.

    >>> figures = pneumoscope.evaluate(pneumoscope.load("fast", gate=False), "images", split="test")
    >>> sorted(figures["metrics"]["auroc"])
    ['ci95', 'method', 'value']
    """
    from pneumoscope.data.memory import manifest_of
    from pneumoscope.evaluation.evaluate import evaluate as measure
    from pneumoscope.notebook import bar

    with _folder(out) as folder, TemporaryDirectory(prefix="pneumoscope-images-") as images:
        manifest = (
            _manifest(source, split) if _opens(source, labels) else manifest_of(source, labels, Path(images), split)
        )
        asked = split in ("train", "val")
        return measure(classifier, manifest, folder, seed=seed, progress=bar("evaluating"), asked=asked)


def _opens(source: object, labels: object) -> bool:
    """Say whether a source is for `open_source`, or a manifest."""
    from pneumoscope.data.manifest import Manifest

    return labels is None and isinstance(source, str | Path | Manifest)


def validate(
    classifier: Classifier,
    source: str | Path | Manifest,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    site: str | None = None,
    groups: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a classifier at another hospital; returns what `validation.json` holds, `flags` and `void` first of all.

    `site`, `groups`: columns of the table that divide the images, beside age, sex, view and device.
    Raises `DataError` where no image has a label, none could be analysed, or a column is missing.

    >>> study = pneumoscope.validate(pneumoscope.load("fast", gate=False), "images", split="test")
    >>> study["flow"]["analysed"]["images"] == study["headline"]["n"]
    True
    """
    from pneumoscope.validation.validate import validate as study

    with _folder(out) as folder:
        return study(classifier, _manifest(source), folder, split=split, site=site, groups=groups, seed=seed)


def compare(
    evaluations: Sequence[str | Path], out: str | Path | None = None, *, seed: int = 0, anyway: bool = False
) -> dict[str, Any]:
    """Compare networks on the same images, by paired tests; returns what `comparison.json` holds.

    `evaluations`: two or more folders that `evaluate` wrote. Raises `DataError` where their images differ, and, unless
    `anyway`, where the images tuned a network or one evaluation is named twice.

    >>> for name in ("default", "fast"):
    ...     figures = pneumoscope.evaluate(pneumoscope.load(name, gate=False), "images", f"runs/{name}", split="test")
    >>> pair = pneumoscope.compare(["runs/default", "runs/fast"])["pairs"][0]
    >>> pair["a"], pair["b"], sorted(pair["auroc"]["difference"])
    ('default', 'fast', ['ci95', 'method', 'value'])
    """
    from pneumoscope.evaluation.pairs import compare_folders

    with _folder(out) as folder:
        return compare_folders([Path(name) for name in evaluations], folder, seed=seed, anyway=anyway)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with TemporaryDirectory(prefix="pneumoscope-") as folder:
        yield Path(folder)


def _manifest(source: Any, split: str | None = None) -> Manifest:
    from pneumoscope.data.sources import open_source

    manifest = open_source(source) if isinstance(source, str | Path) else source
    return manifest if split is None else manifest.select(split)
