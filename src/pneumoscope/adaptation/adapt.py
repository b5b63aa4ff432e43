"""From a bundle and labelled images of a site to a bundle for that site, or to the reasons why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pneumoscope.adaptation.evidence import (
    FOLDS,
    GAINS,
    Answer,
    Plan,
    answers,
    measured,
    on_original,
    plan,
    too_few,
    why_refused,
)
from pneumoscope.adaptation.material import Material, read_material
from pneumoscope.adaptation.methods import METHODS, Change, Site
from pneumoscope.bundle.calibration import points_at
from pneumoscope.bundle.files import WEIGHTS, Bundle, load_bundle, save_bundle, write_bundle
from pneumoscope.cohort import Bools, Floats
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import ConfigError
from pneumoscope.evaluation.bootstrap import RESAMPLES
from pneumoscope.files import plain, write_json
from pneumoscope.gate.fitting import refit_gate
from pneumoscope.predict import Classifier
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.validation.study import Study
from pneumoscope.validation.transfer import transfer, youden
from pneumoscope.validation.validate import taught

LABELS = (20, 50, 100, 200)
_DRAWS = 100
_ANEW = ("schema", "pneumoscope", "notice", "weights", "sha256", "card_sha256", "evidence", "gate")
NOT_TRIED = {"light fine-tuning": "train with `model.weights` set to the bundle's folder, and evaluate that"}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """How an adaptation is made.

    `labels`: how many labelled images may fit it, None for all; 0 fits without labels and uses them to measure only.
    `margin`: of AUROC that may be lost on the original population; `methods`: names in `METHODS` to try.
    """

    labels: int | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    margin: float = 0.02
    seed: int = 0
    resamples: int = RESAMPLES


def evidence_file(out: Path) -> Path:
    """Return where the evidence lies, beside the bundle's folder."""
    return out.with_name(f"{out.name}.adaptation.json")


def adapt(
    bundle: Bundle,
    manifest: Manifest,
    out: Path,
    asked: Asked | None = None,
    *,
    original: Manifest | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Fit a bundle to a site where that is shown to be better; return the evidence, `adopted` None where it is not.

    The new bundle is written to `out`, the evidence beside it (`evidence_file`) and on its card. Where nothing is
    better no bundle is written and what lies at `out` stays.

    Args:
        bundle: stays as it is.
        manifest: labelled images of the site.
        out: folder of the new bundle.
        asked: how many labels may be used, the margin, the seed.
        original: labelled images of the population that the bundle was made for, none of which trained it.
        say: tells of the progress.

    Raises:
        ConfigError: `out` is the bundle itself, or the margin or the number of labels is out of range.
        DataError: no image has a label, or none can be read.
        StorageError: `out` holds something else, or cannot be written.
    """
    asked = asked or Asked()
    _check(bundle, out, asked)
    classifier = Classifier(bundle)
    say(f"{len(manifest.labelled())} labelled images")
    images = read_material(classifier, manifest)
    site = Site(bundle, taught(bundle.card), asked.seed)
    found: dict[str, Any] = {
        "schema": 1,
        "notice": RESEARCH_ONLY,
        "from": {"name": bundle.name, "sha256": bundle.sha256},
        "data": {
            "source": manifest.source.name,
            "sha256": manifest.fingerprint(),
            "patients_are_known_by": manifest.patient_rule,
            **images.counts(),
            "not_read": len(images.failed),
        },
        "asked": asdict(asked),
    }
    there = None if original is None else read_material(classifier, original)
    choice = decide(site, images, there, asked, say=say)
    found |= choice.found
    found["limits"] = _limits(found, original)
    if choice.change is not None:
        known = [sample.age_years for sample in manifest.labelled().samples if sample.age_years is not None]
        _write(out, site, images, choice, found, (min(known), max(known)) if known else None)
    write_json(evidence_file(out), found)
    return plain(found)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The evidence, and the change that it adopts (None: nothing)."""

    found: dict[str, Any]
    change: Change | None = None


def decide(
    site: Site, images: Material, original: Material | None, asked: Asked, *, say: Say = lambda _: None
) -> Choice:
    """Measure every candidate on images that it was not fitted to, and adopt the best that passes the guard.

    Best is the smallest log loss; `thresholds`, which change no probability, come last. Other weights must be shown
    to be better than the best calibration too, not only than the bundle as it is.
    """
    found: dict[str, Any] = {
        "candidates": [],
        "left_out": [{"name": name, "why": why} for name, why in NOT_TRIED.items()],
        "guard": _guard(asked, original),
        "adopted": None,
    }
    nobody = {"images": 0, "patients": 0, "with_pneumonia": 0}
    few = too_few(images)
    if few is None:
        planned = plan(images, asked.labels, seed=asked.seed)
        few = too_few(images.take(planned.measured))
    if few:
        none = {"fitted_to": nobody, "measured_on": {**nobody, "how": "not measured"}}
        return Choice({**found, **none, "statement": f"not adapted, because {few}"})
    at = planned.measured
    found["fitted_to"] = {**images.take(planned.final).counts(), "labels_used": asked.labels != 0}
    found["measured_on"] = {**images.take(at).counts(), "how": planned.says}
    given: dict[str, Answer] = {}
    names = ["as it is", *(name for name in asked.methods if name != "as it is")]
    for name, answer, why in answers(site, images, planned, names, labels=asked.labels != 0):
        say(f"{name}: {why or 'measured'}")
        if answer is None:
            found["left_out"].append({"name": name, "why": why})
        else:
            given[name] = answer
    tests = max(1, len(given) - 1)
    found["guard"]["candidates"] = tests
    found["candidates"] = _candidates(images.take(at), given, asked, tests)
    found["threshold_from_labels"] = _thresholds(site, images, given["as it is"].p, at, asked)
    return _adopted(site, images, original, asked, planned, found)


def _candidates(images: Material, given: Mapping[str, Answer], asked: Asked, tests: int) -> list[dict[str, Any]]:
    """Return the figures of every candidate, and why it is refused, None where it passes."""

    def against(name: str, base: str) -> dict[str, Any]:
        return measured(
            images.y, images.patients, given[name], given[base],
            tests=tests, seed=asked.seed, resamples=asked.resamples,
        )  # fmt: skip

    found = []
    for name in given:
        method, figures = METHODS[name], against(name, "as it is")
        kind = {"name": name, "says": method.says, "labels": method.labels, "weights": method.weights}
        found.append({**kind, **figures, "refused": why_refused(name, figures)})
    passing = [one for one in found if one["refused"] is None]
    simple = [one for one in passing if not one["weights"] and one["name"] != "thresholds"]
    if simple:
        best = min(simple, key=_log_loss)["name"]
        for one in passing:
            if one["weights"]:
                over = against(one["name"], best)
                one["over"] = {"name": best, "gains": over["gains"]}
                if why_refused(one["name"], over):
                    one["refused"] = f"a gain over {best}, which leaves the weights alone, was not shown"
    return found


def _log_loss(one: Mapping[str, Any]) -> float:
    return float(one["metrics"]["log_loss"]["value"])


def _adopted(
    site: Site, images: Material, original: Material | None, asked: Asked, planned: Plan, found: dict[str, Any]
) -> Choice:
    order = sorted(
        (one for one in found["candidates"] if one["refused"] is None),
        key=lambda one: (one["name"] == "thresholds", _log_loss(one)),
    )
    for one in order:
        change = METHODS[one["name"]].fit(site, images.take(planned.final))
        if original is not None:
            one["original"] = on_original(site, original, change, asked.margin)
            if not one["original"]["not_worse"]:
                one["refused"] = f"on the original population a loss of AUROC under {asked.margin:g} was not shown"
                continue
        found["adopted"] = one["name"]
        found["change"] = {
            "temperature": change.temperature, "bias": change.bias, "weights": change.weights, "note": change.note,
            "threshold": {"before": site.threshold, "after": change.threshold(site)},
        }  # fmt: skip
        found["statement"] = f"adapted by {one['name']}: {_gain(one)}"
        return Choice(found, change)
    refused = [f"{one['name']}: {one['refused']}" for one in found["candidates"] if one["name"] != "as it is"]
    why = "; ".join(refused) or "no candidate could be fitted"
    found["statement"] = f"not adapted, because no candidate passed ({why})"
    return Choice(found)


def _gain(one: Mapping[str, Any]) -> str:
    names = ("balanced_accuracy",) if one["name"] == "thresholds" else ("log_loss", "auroc")
    words = []
    for name in names:
        gain = one["gains"][name]
        low, high = gain["ci95"]
        words.append(f"{name.replace('_', ' ')} better by {gain['value']:.3f} ({low:.3f} to {high:.3f})")
    return ", ".join(words)


def _guard(asked: Asked, original: Material | None) -> dict[str, Any]:
    return {
        "here": "the lower bound of the gain in log loss, or in AUROC without loss of log loss, is above 0; "
        "for thresholds, that in balanced accuracy; one-sided 2.5 % divided by the number of candidates; "
        "AUROC is shown to exceed .5; other weights pass the same against the best calibration",
        "gains": list(GAINS),
        "original": "not measured" if original is None else f"AUROC shown to fall less than {asked.margin:g}",
        "folds": FOLDS,
    }


def _thresholds(site: Site, images: Material, p: Floats, at: Any, asked: Asked) -> dict[str, Any]:
    """Return what k labels say of the threshold, probabilities as they are: other patients, and the choice's spread."""
    y, patients = images.y[at], images.patients[at]
    study = Study(y, p, patients, site.threshold, {}, {})
    rng = np.random.default_rng(asked.seed)
    _, codes = np.unique(patients, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    chosen = []
    for _ in range(_DRAWS):
        drawn = np.concatenate([members[code] for code in rng.integers(0, len(members), len(members))])
        if 0 < y[drawn].sum() < drawn.size:
            chosen.append(youden(y[drawn], p[drawn]))
    low, high = (float(value) for value in np.quantile(chosen, (0.025, 0.975)))
    curve = transfer(study, seed=asked.seed, sizes=LABELS, draws=_DRAWS)
    return {"balanced": {"value": youden(y, p), "ci95": [low, high], "method": "patient bootstrap"}, "curve": curve}


def _limits(found: Mapping[str, Any], original: Manifest | None) -> list[str]:
    fitted, on = found["fitted_to"], found["measured_on"]
    kept = "was not measured" if original is None else "is on this card as AUROC; its calibration was not guarded"
    return [
        f"Fitted to {fitted['images']} images of {fitted['patients']} patients of one place"
        f" ({found['data']['source']}), measured on {on['images']} images of {on['patients']} patients of the same.",
        f"How the adapted bundle does on the original population {kept}.",
        "Follow-up, view and device may tell the label here too: a gain counts once `validate` shows it within these.",
        "The chosen candidate is the best of several on the images that measured: validate it on others before use.",
    ]


def _write(
    out: Path, site: Site, images: Material, choice: Choice, found: Mapping[str, Any], ages: tuple[float, float] | None
) -> None:
    bundle, change = site.bundle, choice.change
    assert change is not None
    labelled = METHODS[str(found["adopted"])].labels
    share = found["fitted_to"]["with_pneumonia"] / found["fitted_to"]["images"]
    card = {key: value for key, value in bundle.card.items() if key not in _ANEW}
    fitted = found["fitted_to"]["images"] if labelled else 0
    card |= {
        "name": f"{bundle.name}-adapted",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapted_from": {"name": bundle.name, "sha256": bundle.sha256},
        "calibration": {
            "method": f"adapted to {found['data']['source']}: {found['adopted']}",
            "temperature": change.temperature,
            "bias": change.bias,
            "n": fitted,
            "note": change.note,
            **({"prevalence": share} if labelled and found["adopted"] != "thresholds" else {}),
        },
        "operating_points": change.points or _kept_points(bundle, images, change),
        "limits": [*bundle.card.get("limits", ()), *found["limits"]],
        "adaptation": dict(found),
    }
    with TemporaryDirectory() as scratch:
        draft = Path(scratch) / "draft"
        if change.weights:
            save_bundle(draft, change.applied(bundle), bundle.preparation, card)
        else:
            files = {WEIGHTS: (bundle.folder / WEIGHTS).read_bytes(), **bundle.runtime_files()}
            runtime = {key: value for key, value in bundle.card["runtime"].items() if key != "files"}
            write_bundle(draft, files, {**card, "preparation": asdict(bundle.preparation), "runtime": runtime})
        # Whom it is meant for has changed, so which images are unlike those is asked anew, here.
        held = _a_third(images, site.seed)
        refit_gate(load_bundle(draft), bundle, out, images.canvases[~held], images.canvases[held], ages=ages)


def _a_third(images: Material, seed: int) -> Bools:
    """Return bool [n]: the images of a third of the patients."""
    patients = np.unique(images.patients)
    chosen = np.random.default_rng(seed).choice(patients, max(1, patients.size // 3), replace=False)
    return np.isin(images.patients, chosen)


def _kept_points(bundle: Bundle, images: Material, change: Change) -> dict[str, Any]:
    """Return the operating points at their own thresholds, with what they achieve on all images here."""
    p = change.probability(bundle, images)
    found = points_at(bundle.card["operating_points"], images.y, p, images.patients.tolist())
    return {name: point.as_json() for name, point in found.items()}


def _check(bundle: Bundle, out: Path, asked: Asked) -> None:
    if out.resolve() == bundle.folder.resolve() or bundle.folder.resolve() in out.resolve().parents:
        raise ConfigError("is the bundle itself", path=out, remedy="choose another --out")
    if not 0 < asked.margin < 1:
        raise ConfigError(f"the margin is {asked.margin:g}", remedy="give a part of AUROC between 0 and 1")
    unknown = [name for name in asked.methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"no method is called {unknown[0]!r}", remedy=f"use one of {', '.join(METHODS)}")
    if asked.labels is not None and asked.labels < 0:
        raise ConfigError(f"the number of labels is {asked.labels}", remedy="give 0 or more")
