"""The page of one run or of several beside one another: data, models, training, results, limits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import atomic_path, out_folder, sha256_file, write_text
from pneumoscope.report import evaluation_report, figures, html, wording
from pneumoscope.report.folders import Run, read_comparison, read_run

CURVES = 6  # as many as the palette tells apart
RESULTS: Mapping[str, str] = {
    "auroc": "AUROC",
    "recall": "Sensitivity (recall)",
    "specificity": "Specificity",
    "precision": "Precision",
    "accuracy": "Accuracy",
}
FOREST: Mapping[str, str] = {key: RESULTS[key] for key in ("auroc", "recall", "specificity")}
ENVIRONMENT: Mapping[str, str] = {
    "seed": "Seed",
    "started": "Started",
    "pneumoscope": "Pneumoscope",
    "python": "Python",
    "platform": "Platform",
    "torch": "PyTorch",
    "timm": "timm",
    "lightning": "Lightning",
    "cpu": "Processor",
    "cores": "Cores",
    "device": "Device",
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of the page: file name below `figures/`, inline form and caption."""

    file: str
    inline: str
    caption: str


def write(runs: Sequence[Path], out: Path, comparison: Path | None = None, data: Path | None = None) -> Path:
    """Write `report.html`, `report.md` and `figures/` for one run or several, and return the page.

    Args:
        runs: run folders, in the order in which they are to be shown.
        out: output folder.
        comparison: folder of `pneumoscope compare` over the same runs.
        data: folder of `pneumoscope data describe`, to which the page then points.

    Raises:
        DataError: no run is given, two have one name, or a file of a run is missing or damaged.
        StorageError: a file cannot be read or written.
    """
    read = [read_run(folder) for folder in runs]
    _check_names(read)
    folder = out_folder(out)
    page = _page(read, folder, None if comparison is None else read_comparison(comparison), data)
    write_text(folder / "report.md", html.render("run.md.j2", **page))
    write_text(folder / "report.html", html.render("run.html.j2", **page))
    return folder / "report.html"


def _check_names(runs: Sequence[Run]) -> None:
    if not runs:
        raise DataError("no run was given", remedy="name at least one folder that `pneumoscope train` wrote")
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise DataError(f"two runs are named {run.name}", path=run.folder, remedy="name each run once")


def _page(runs: Sequence[Run], out: Path, comparison: Mapping[str, Any] | None, data: Path | None) -> dict[str, Any]:
    several = len(runs) > 1
    names = ", ".join(run.name for run in runs)
    return {
        "title": f"Comparison of {len(runs)} networks" if several else runs[0].facts.get("title") or names,
        "subtitle": f"Pneumonia or normal on chest radiographs: {names}",
        "contents": _contents(several),
        "several": several,
        "synthetic": [run.name for run in runs if (run.facts.get("data") or {}).get("synthetic")],
        "validation_only": [run.name for run in runs if not _held_out(run)],
        "notices": _stated(runs, lambda run: run.facts.get("notices") or []),
        "data_differ": len({_fingerprint(run) for run in runs}) > 1,
        "runs": [_run(run, out, number) for number, run in enumerate(runs, 1)],
        "results": RESULTS,
        "forest": _forest(runs, out) if several else None,
        "roc": _roc(runs, out) if several else None,
        "comparison": None if comparison is None else _comparison(comparison),
        "data_sets": _data_sets(runs),
        "data_page": _data_page(data, out),
        "augmentations": _augmentations(runs, out),
        "environment": ENVIRONMENT,
        "limits": _stated(runs, lambda run: (*(run.facts.get("limits") or []), *(run.card.get("limits") or []))),
        "populations": _stated(runs, lambda run: [_population(run)]),
    }


def _contents(several: bool) -> list[tuple[str, str]]:
    entries = [("summary", "In short"), ("results", "Results")]
    if several:
        entries.append(("comparison", "Paired comparison"))
    return [
        *entries,
        ("data", "Data"),
        ("preparation", "Preparation"),
        ("models", "Models"),
        ("training", "Training"),
        ("runs", "Each run in detail" if several else "The run in detail"),
        ("explanations", "Explanations"),
        ("limits", "Limits"),
        ("reproducibility", "Reproducibility"),
    ]


# --- one run ----------------------------------------------------------------------------------------------


def _held_out(run: Run) -> bool:
    """Whether the figures shown are of images that neither taught nor tuned the network."""
    metrics = {} if run.evaluation is None else run.evaluation.metrics
    overlap = metrics.get("overlap") or {}
    flatters = overlap.get("void") or overlap.get("warning") or evaluation_report.seen(metrics)
    return run.evaluation is not None and not flatters


def _run(run: Run, out: Path, number: int) -> dict[str, Any]:
    """Return all that the templates say of one run; `key` is unique on the page and safe as a file name."""
    key = f"run{number}"
    score_name = figures.PROBABILITY if run.card.get("calibration") else "score (not calibrated)"
    drawn = evaluation_report.drawings(run.shown, run.name, score_name)
    evaluation_report.save(drawn, out / "figures" / key)
    strategy = str(run.facts.get("strategy") or "")
    return {
        "key": key,
        "name": run.name,
        "folder": str(run.folder),
        "facts": _Lenient(run.facts),
        "strategy": wording.STRATEGIES.get(strategy, strategy or "not recorded"),
        "held_out": _held_out(run),
        "view": evaluation_report.view(run.shown, drawn, key),
        "files": [(f"figures/{key}/{name}.svg", drawing.caption) for name, drawing in drawn.items()],
        "provenance": evaluation_report.provenance(run.shown),
        "validation": run.validation.estimates,
        "training": _training(run, out, key),
        "environment": _Lenient(run.environment),
        "recorded": bool(run.environment),
        "calibrated": (run.card.get("calibration") or {}).get("temperature"),
        "population": _population(run),
        "config": run.config,
        "bundle_sha": (run.shown.metrics.get("bundle") or {}).get("sha256"),
        "data_sha": (run.shown.metrics.get("data") or {}).get("sha256"),
    }


class _Lenient(dict[str, Any]):
    """A JSON object whose missing keys read as None, so that a template can say `not recorded`."""

    def __missing__(self, key: str) -> None:
        return None


def _training(run: Run, out: Path, key: str) -> Drawn | None:
    if run.history is None or run.history.empty:
        return None
    best = run.facts.get("best_epoch")
    chosen = f" The dotted line is the epoch that was kept ({best})." if best is not None else ""
    caption = f"{run.name}: loss and validation figures by epoch; a thin line parts the phases.{chosen}"
    return _save(figures.training_curves(run.history, best), out, f"{key}/training", caption)


def _save(figure: Figure, out: Path, name: str, caption: str) -> Drawn:
    drawing = html.drawing(figure, caption)
    write_text(out / "figures" / f"{name}.svg", drawing.document)
    return Drawn(f"figures/{name}.svg", drawing.inline(name), caption)


# --- several runs -----------------------------------------------------------------------------------------


def _forest(runs: Sequence[Run], out: Path) -> Drawn:
    rows = {run.name: run.shown.estimates for run in runs}
    caption = (
        "Each dot is an estimate, each bar its 95 % interval; the scales differ and do not begin at 0. "
        "Overlapping bars do not settle whether two networks differ: the paired comparison does."
    )
    return _save(figures.forest(rows, FOREST), out, "estimates", caption)


def _roc(runs: Sequence[Run], out: Path) -> Drawn | None:
    curves = [curve for run in runs if (curve := run.shown.scored(run.name))]
    if not curves:
        return None
    left = f" The first {CURVES} of {len(curves)} runs are drawn." if len(curves) > CURVES else ""
    caption = f"ROC curves. Each dot is the operating point in use; the grey line is guessing.{left}"
    return _save(figures.roc([curve.roc() for curve in curves[:CURVES]]), out, "roc", caption)


def _comparison(comparison: Mapping[str, Any]) -> dict[str, Any]:
    pairs = comparison.get("pairs") or []
    return {
        "n": comparison.get("n"),
        "n_patients": comparison.get("n_patients"),
        "pairs": [_Lenient(pair) | {"words": wording.compared(pair, len(pairs))} for pair in pairs],
    }


def _fingerprint(run: Run) -> tuple[Any, ...]:
    """Return what is equal for two runs only if they were measured on the same images."""
    metrics = run.shown.metrics
    data = metrics.get("data") or {}
    return run.evaluation is None, data.get("sha256") or data.get("source"), metrics.get("n")


def _data_sets(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return each distinct data set once, with the names of the runs that used it."""
    data_sets: dict[str, dict[str, Any]] = {}
    for run in runs:
        data = run.facts.get("data") or {}
        entry = data_sets.setdefault(json.dumps(data, sort_keys=True), {"data": _Lenient(data), "runs": []})
        entry["splits"] = {name: _Lenient(split) for name, split in (data.get("splits") or {}).items()}
        entry["runs"].append(run.name)
    return list(data_sets.values())


def _augmentations(runs: Iterable[Run], out: Path) -> list[dict[str, Any]]:
    """Return each distinct sheet of augmented examples once, copied beside the page for the Markdown."""
    sheets: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.augmentation is None:
            continue
        digest = sha256_file(run.augmentation)
        if digest not in sheets:
            file = f"figures/augmentation-{len(sheets) + 1}.png"
            with atomic_path(out / file) as temporary, storage_errors(run.augmentation):
                shutil.copyfile(run.augmentation, temporary)
            sheets[digest] = {"uri": html.image_uri(run.augmentation), "file": file, "runs": []}
        sheets[digest]["runs"].append(run.name)
    return list(sheets.values())


def _data_page(data: Path | None, out: Path) -> str | None:
    """Return the address of the data page relative to `out`, None where there is none."""
    if data is None:
        return None
    pages = sorted(data.glob("*.html"))
    if not pages:
        raise DataError("holds no HTML page", path=data, remedy="name a folder of `pneumoscope data describe`")
    return Path(os.path.relpath(pages[0].resolve(), out.resolve())).as_posix()


def _population(run: Run) -> str:
    return str((run.card.get("population") or {}).get("description") or "not recorded")


def _stated(runs: Sequence[Run], texts_of: Callable[[Run], Iterable[Any]]) -> list[dict[str, Any]]:
    """Return each text once, with the runs that state it."""
    runs_by_text: dict[str, list[str]] = {}
    for run in runs:
        for text in dict.fromkeys(texts_of(run)):
            runs_by_text.setdefault(str(text), []).append(run.name)
    return [{"text": text, "runs": names, "all": len(names) == len(runs)} for text, names in runs_by_text.items()]
