"""Which parts of the recipe hold under shift? Each is changed alone, on patients that the results table never sees.

    python benchmarks/quality/study.py --data kermany224 --adults nih_adult --out runs/study

The held-out patients of the base's own division are put aside first. The others are divided anew, by patient, once per
`--divisions`: 70 % train, 10 % choose epoch, calibration and threshold, 20 % judge, clean and under fourteen
corruptions, with the threshold frozen. Runs that are complete are not repeated. Writes results/study.json, in which
other recipes stay, and prints Markdown.
"""

from __future__ import annotations

import argparse
import logging
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
from corruptions import CORRUPTIONS, corrupt
from numpy.typing import NDArray
from scipy.special import expit, logit
from shift import BATCH, Images, images_of

from pneumoscope.bundle.calibration import probabilities
from pneumoscope.config import DataConfig, Experiment, load_experiment, resolve_files
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide
from pneumoscope.files import atomic_path, out_folder, read_json, write_json
from pneumoscope.predict import Classifier
from pneumoscope.statistics.auc import auroc
from pneumoscope.statistics.comparison import compare, holm
from pneumoscope.training.experiment import Console, run_experiment

HERE = Path(__file__).parent
RESULT = HERE / "results" / "study.json"
SEVERITIES = (2, 4)
DIVISION = DataConfig(val_fraction=0.1, test_fraction=0.2)
PREVALENCE = 0.625  # of the official test, where 0.74 were taught
Floats = NDArray[np.float64]


def recipes(path: Path) -> dict[str, Experiment]:
    """Return the experiments of a study file: base, then the screen's changes, then each recipe's."""
    study = tomllib.loads(path.read_text())
    base = load_experiment(path.parent / study["base"])
    screened = changed(base, study["screen"])
    return {name: resolve_files(changed(screened, changes), path.parent) for name, changes in study["recipes"].items()}


def changed(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """Return the experiment with other values in the named keys; the canvas stays."""
    whole = experiment.model_dump()
    for section, values in changes.items():
        tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        whole[section] = {**whole[section], **tuples}
    return Experiment.model_validate(whole)


def open_to_study(source: Manifest, base: Experiment) -> Manifest:
    """Return the patients that are not held out by the base's division, undivided."""
    divided = divide(source, base.data, base.division_seed)
    samples = tuple(replace(sample, split=None) for sample in divided.samples if sample.split != "test")
    return replace(divided, samples=samples)


def trained(name: str, experiment: Experiment, manifest: Manifest, division: int, run: Path, console: Console) -> None:
    """Train one recipe on one division, unless that was done."""
    if (run / "run.json").is_file():
        return
    data = DIVISION.model_copy(update={"seed": 1000 + division})
    resume = (run / "experiment.json").is_file() and (run / "checkpoints").is_dir()
    run_experiment(
        experiment.model_copy(update={"data": data}), manifest, run, name=name, resume=resume, console=console
    )


def conditions(images: Images, path: Path) -> dict[str, NDArray[np.uint8]]:
    """Return the canvases of every condition, made once per division: uint8 [n, side, side] each."""
    names = [f"{name}-{severity}" for name in CORRUPTIONS for severity in SEVERITIES]
    if not path.is_file():
        shape = (len(names), *images.canvases.shape)
        with atomic_path(path) as temporary:
            stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            for index, name in enumerate(names):
                kind, severity = name.rsplit("-", 1)
                for key, canvas in enumerate(images.canvases):
                    stored[index, key] = corrupt(canvas, kind, int(severity), key)
            stored.flush()
            del stored
    stored = np.load(path, mmap_mode="r")
    return {"clean": images.canvases, **dict(zip(names, stored, strict=True))}


def logits(classifier: Classifier, canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logits [n, C]."""
    parts = [classifier.logits(np.ascontiguousarray(canvases[i : i + BATCH])) for i in range(0, len(canvases), BATCH)]
    return np.concatenate(parts)


def scored(run: Path, out: Path, division: int, adults: Manifest | None) -> Any:
    """Return what one run answers under every condition; computed once."""
    path = run / "scores.npz"
    if not path.is_file():
        classifier = Classifier.load(run / "bundle")
        images = images_of(open_source(run / "split.csv").select("test"), classifier)
        side = classifier.bundle.preparation.canvas
        every = conditions(images, out / f"division{division}-{side}.npy")
        arrays = {f"c/{name}": logits(classifier, canvases) for name, canvases in every.items()}
        mirrored = {f"m/{name}": logits(classifier, canvases[:, :, ::-1]) for name, canvases in every.items()}
        if adults is not None:
            others = images_of(adults, classifier)
            arrays |= {"adults": logits(classifier, others.canvases), "adults_y": others.y}
        codes = np.unique(images.patients, return_inverse=True)[1]
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, y=images.y, patients=codes, **arrays, **mirrored)
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def at_threshold(y: NDArray[np.bool_], p: Floats, threshold: float) -> dict[str, float]:
    """Return plain figures of one condition."""
    called = p >= threshold
    sensitivity, specificity = float(called[y].mean()), float((~called[~y]).mean())
    return {
        "auroc": auroc(y, p),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": PREVALENCE * sensitivity + (1 - PREVALENCE) * specificity,
    }


def answers(run: Path, scores: Any, *, mirrored: bool = False) -> tuple[dict[str, Floats], float]:
    """Return the probabilities of each condition, and the threshold; `mirrored`: of the mean log-odds of both views."""
    card = read_json(run / "bundle" / "card.json")
    calibration = card["calibration"]["temperature"], card["calibration"]["bias"]
    threshold = float(card["operating_points"]["balanced"]["threshold"])
    found = {}
    for key in scores:
        if key.startswith("c/"):
            p = probabilities(scores[key], *calibration)[0]
            if mirrored:
                q = probabilities(scores["m/" + key[2:]], *calibration)[0]
                p = expit((logit(np.clip(p, 1e-12, 1 - 1e-12)) + logit(np.clip(q, 1e-12, 1 - 1e-12))) / 2)
            found[key[2:]] = p
    return found, threshold


def figures(y: NDArray[np.bool_], found: dict[str, Floats], threshold: float) -> dict[str, Any]:
    """Return clean figures, and means and the worst over the corruptions."""
    rows = {name: at_threshold(y, p, threshold) for name, p in found.items()}
    corrupted = [row for name, row in rows.items() if name != "clean"]
    means = {key: float(np.mean([row[key] for row in corrupted])) for key in corrupted[0]}
    worst = min(row["balanced_accuracy"] for row in corrupted)
    return {"clean": rows["clean"], "corrupted": means | {"worst_balanced_accuracy": worst}, "conditions": rows}


def against(base: list[Any], other: list[Any]) -> Any:
    """Compare a recipe with the base over all corrupted images of all divisions, by patient."""
    y, a, b, patients = [], [], [], []
    for division, (base_part, part) in enumerate(zip(base, other, strict=True)):
        scores = base_part[0]
        for name in part[1]:
            if name != "clean":
                y.append(scores["y"])
                a.append(centred(part[1][name], part[2]))
                b.append(centred(base_part[1][name], base_part[2]))
                patients += [f"{division}/{code}" for code in scores["patients"]]
    pooled = (np.concatenate(values) for values in (y, a, b))
    return compare(*pooled, 0.5, 0.5, patients, resamples=300).as_json()


def centred(p: Floats, threshold: float) -> Floats:
    """Return probabilities whose threshold is one half: each division has its own."""
    return expit(logit(np.clip(p, 1e-12, 1 - 1e-12)) - logit(threshold))


def main() -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adults", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--study", type=Path, default=HERE / "study.toml")
    parser.add_argument("--only", nargs="+", help="names of recipes; the base is always one")
    parser.add_argument("--divisions", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    every = recipes(arguments.study)
    chosen = [name for name in every if not arguments.only or name in {"base", *arguments.only}]
    manifest = open_to_study(open_source(arguments.data), every["base"])
    adults = open_source(arguments.adults).labelled() if arguments.adults else None
    console = Console(say=print, report=lambda row: print(row, flush=True))
    out = out_folder(arguments.out)
    measured: dict[str, list[Any]] = {}
    for name in chosen:
        for division in arguments.divisions:
            run = out / f"{name}-{division}"
            trained(name, every[name], manifest, division, run, console)
            scores = scored(run, out, division, adults)
            measured.setdefault(name, []).append((scores, *answers(run, scores)))
        keep(report(measured, out, arguments.divisions))
    print("\n".join(table()))


def report(measured: dict[str, list[Any]], out: Path, divisions: Sequence[int]) -> dict[str, Any]:
    """Return every recipe's figures per division, its means, and its difference from the base."""
    result: dict[str, Any] = {"prevalence": PREVALENCE, "severities": SEVERITIES, "recipes": {}}
    for name, parts in measured.items():
        per_division = []
        for division, (scores, found, threshold) in zip(divisions, parts, strict=True):
            entry = figures(scores["y"], found, threshold)
            both, _ = answers(out / f"{name}-{division}", scores, mirrored=True)
            entry["mirrored"] = figures(scores["y"], both, threshold)["corrupted"]
            if "adults" in scores:
                odds = probabilities(scores["adults"], 1.0)[0]
                entry["adults_auroc"] = auroc(scores["adults_y"], odds)
            entry |= {"threshold": threshold, "seconds": read_json(out / f"{name}-{division}" / "run.json")["seconds"]}
            per_division.append({"division": division, "n": len(scores["y"]), **entry})
        result["recipes"][name] = {"divisions": per_division}
    others = [name for name in measured if name != "base"]
    pairs = [against(measured["base"], measured[name]) for name in others]
    adjusted = holm([pair["auroc"]["p"] for pair in pairs]) if pairs else []
    for name, pair, p in zip(others, pairs, adjusted, strict=True):
        result["recipes"][name]["against_base"] = {**pair["differences"], "auroc_p_holm": float(p)}
    return result


def keep(found: dict[str, Any]) -> None:
    """Write the figures of these recipes to results/study.json, beside those of others."""
    known = read_json(RESULT)["recipes"] if RESULT.is_file() else {}
    out_folder(RESULT.parent)
    write_json(RESULT, rounded({**found, "recipes": known | found["recipes"]}))


def rounded(value: Any) -> Any:
    """Return the same with floats of six digits: no figure is known better."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def table() -> list[str]:
    """Return Markdown lines of results/study.json: means over the divisions."""
    found = read_json(RESULT)
    lines = [
        "| recipe | clean accuracy / AUROC | corrupted accuracy / balanced / AUROC | worst balanced | mirrored too: "
        "accuracy / AUROC | adults AUROC | AUROC difference (95 %), p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in found["recipes"].items():
        parts = entry["divisions"]

        def mean(*keys: str, parts: Any = parts) -> str:
            return f"{np.mean([reduce(getitem, keys, part) for part in parts]):.4f}"

        cells = [
            f"{mean('clean', 'accuracy')} / {mean('clean', 'auroc')}",
            " / ".join(mean("corrupted", key) for key in ("accuracy", "balanced_accuracy", "auroc")),
            mean("corrupted", "worst_balanced_accuracy"),
            f"{mean('mirrored', 'accuracy')} / {mean('mirrored', 'auroc')}",
            mean("adults_auroc") if "adults_auroc" in parts[0] else "–",
        ]
        difference = ""
        if "against_base" in entry:
            pair = entry["against_base"]
            low, high = pair["auroc"]["ci95"]
            value, p = pair["auroc"]["value"], pair["auroc_p_holm"]
            difference = f"{value:+.4f} ({low:+.4f} to {high:+.4f}), {p:.2g}"
        lines.append(f"| {name} | {' | '.join(cells)} | {difference} |")
    return lines


if __name__ == "__main__":
    main()
