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
    refusal,
    too_few,
)
from pneumoscope.adaptation.labelled import Labelled, read_labelled
from pneumoscope.adaptation.methods import METHODS, Basis, Change
from pneumoscope.bundle.bundle import FINGERPRINTS, WEIGHTS, Bundle, load_bundle, save_bundle, write_bundle
from pneumoscope.bundle.calibration import points_at
from pneumoscope.bundle.fingerprints import Fingerprints, fingerprints_of
from pneumoscope.bundle.overlap import overlap
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import ConfigError
from pneumoscope.files import plain, write_json
from pneumoscope.gate.fitting import refit_gate
from pneumoscope.predict import Classifier
from pneumoscope.records import RESEARCH_ONLY, Bools, Floats
from pneumoscope.statistics.bootstrap import RESAMPLES
from pneumoscope.validation.study import Study
from pneumoscope.validation.transfer import transfer, youden
from pneumoscope.validation.validate import calibrated_prevalence

LABELS = (20, 50, 100, 200)
_DRAWS = 100
_ANEW = ("schema", "pneumoscope", "notice", "weights", "sha256", "card_sha256", "evidence", "gate")
NOT_TRIED = {"light fine-tuning": "train with `model.weights` set to the bundle's folder, and evaluate that"}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
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
    """Return the path of the evidence, beside the bundle's folder."""
    return out.with_name(f"{out.name}.adaptation.json")


def adapt(
    bundle: Bundle,
    manifest: Manifest,
    out: Path,
    settings: Settings | None = None,
    *,
    original: Manifest | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Fit a bundle to a site where that is shown to be better; return the evidence, `adopted` None where it is not.

    The new bundle is written to `out`, the evidence beside it (`evidence_file`) and on its card. Where nothing is
    better no bundle is written and `out` stays.

    Args:
        bundle: stays as it is.
        manifest: labelled images of the site.
        out: folder of the new bundle.
        asked: how many labels may be used, the margin, the seed.
        original: labelled images of the population that the bundle was made for, none of which trained it.
        say: called with a line of progress.

    Raises:
        ConfigError: `out` is the bundle itself, or the margin or the number of labels is out of range.
        DataError: no image has a label, or none can be read.
        StorageError: `out` holds something else, or cannot be written.
    """
    settings = settings or Settings()
    _check(bundle, out, settings)
    classifier = Classifier(bundle)
    say(f"{len(manifest.labelled())} labelled images")
    images = read_labelled(classifier, manifest)
    basis = Basis(bundle, calibrated_prevalence(bundle.card), settings.seed)
    evidence: dict[str, Any] = {
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
        "asked": asdict(settings),
    }
    original_images = None if original is None else read_labelled(classifier, original)
    evidence["overlap"], void = _copies(bundle, manifest, original, say)
    choice = decide(basis, images, original_images, settings, void=void, say=say)
    evidence |= choice.evidence
    evidence["limits"] = _limits(evidence, original)
    if choice.change is not None:
        ages = [sample.age_years for sample in manifest.labelled().samples if sample.age_years is not None]
        known = _with_site(bundle, manifest)
        _write(out, basis, images, choice, evidence, (min(ages), max(ages)) if ages else None, known)
    write_json(evidence_file(out), evidence)
    return plain(evidence)  # type: ignore[no-any-return]


def _copies(
    bundle: Bundle, manifest: Manifest, original: Manifest | None, say: Say
) -> tuple[dict[str, Any], str | None]:
    """Return what `overlap` says of the site's images, and why these or the original's can measure nothing."""
    site, _ = overlap(bundle, manifest.labelled().samples)
    void = site["void"]
    if original is not None and void is None:
        void = overlap(bundle, original.labelled().samples)[0]["void"]
        void = void and f"of the original population {void}"
    for said in (site["warning"], site["note"]):
        if said:
            say(said)
    return site, void


def _with_site(bundle: Bundle, manifest: Manifest) -> Fingerprints | None:
    """Return the fingerprints of a bundle with those of the site's images; None where the bundle has none."""
    known = bundle.fingerprints()
    if known is None:
        return None
    paths = [sample.path for sample in manifest.labelled().samples]
    return known.joined(fingerprints_of(paths, ["adapted"] * len(paths), salt=known.salt))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The evidence, and the change that it adopts (None: nothing)."""

    evidence: dict[str, Any]
    change: Change | None = None


def decide(
    basis: Basis,
    images: Labelled,
    original: Labelled | None,
    settings: Settings,
    *,
    void: str | None = None,
    say: Say = lambda _: None,
) -> Choice:
    """Measure every candidate on images that it was not fitted to, and adopt the best that passes the guard.

    Best is the smallest log loss; `thresholds`, which change no probability, come last. Other weights must be shown
    to be better than the best calibration too, not only than the bundle as it is. `void`: why nothing can be measured.
    """
    evidence: dict[str, Any] = {
        "candidates": [],
        "left_out": [{"name": name, "why": reason} for name, reason in NOT_TRIED.items()],
        "guard": _guard(settings, original),
        "adopted": None,
    }
    nobody = {"images": 0, "patients": 0, "with_pneumonia": 0}
    few = void or too_few(images)
    if few is None:
        planned = plan(images, settings.labels, seed=settings.seed)
        few = too_few(images.take(planned.measured))
    if few:
        none = {"fitted_to": nobody, "measured_on": {**nobody, "how": "not measured"}}
        return Choice({**evidence, **none, "statement": f"not adapted, because {few}"})
    at = planned.measured
    evidence["fitted_to"] = {**images.take(planned.final).counts(), "labels_used": settings.labels != 0}
    evidence["measured_on"] = {**images.take(at).counts(), "how": planned.says}
    candidates: dict[str, Answer] = {}
    names = ["as it is", *(name for name in settings.methods if name != "as it is")]
    for name, answer, reason in answers(basis, images, planned, names, labels=settings.labels != 0):
        say(f"{name}: {reason or 'measured'}")
        if answer is None:
            evidence["left_out"].append({"name": name, "why": reason})
        else:
            candidates[name] = answer
    tests = max(1, len(candidates) - 1)
    evidence["guard"]["candidates"] = tests
    evidence["candidates"] = _candidates(images.take(at), candidates, settings, tests)
    evidence["threshold_from_labels"] = _thresholds(basis, images, candidates["as it is"].p, at, settings)
    return _adopted(basis, images, original, settings, planned, evidence)


def _candidates(
    images: Labelled, candidates: Mapping[str, Answer], settings: Settings, tests: int
) -> list[dict[str, Any]]:
    """Return the figures of every candidate, and why it is refused, None where it passes."""

    def against(name: str, base: str) -> dict[str, Any]:
        return measured(
            images.y, images.patients, candidates[name], candidates[base],
            tests=tests, seed=settings.seed, resamples=settings.resamples,
        )  # fmt: skip

    rows = []
    for name in candidates:
        method, figures = METHODS[name], against(name, "as it is")
        kind = {"name": name, "says": method.says, "labels": method.labels, "weights": method.weights}
        rows.append({**kind, **figures, "refused": refusal(name, figures)})
    passing = [row for row in rows if row["refused"] is None]
    simple = [row for row in passing if not row["weights"] and row["name"] != "thresholds"]
    if simple:
        best = min(simple, key=_log_loss)["name"]
        for row in passing:
            if row["weights"]:
                over = against(row["name"], best)
                row["over"] = {"name": best, "gains": over["gains"]}
                if refusal(row["name"], over):
                    row["refused"] = f"a gain over {best}, which leaves the weights alone, was not shown"
    return rows


def _log_loss(candidate: Mapping[str, Any]) -> float:
    return float(candidate["metrics"]["log_loss"]["value"])


def _adopted(
    basis: Basis,
    images: Labelled,
    original: Labelled | None,
    settings: Settings,
    planned: Plan,
    evidence: dict[str, Any],
) -> Choice:
    order = sorted(
        (candidate for candidate in evidence["candidates"] if candidate["refused"] is None),
        key=lambda candidate: (candidate["name"] == "thresholds", _log_loss(candidate)),
    )
    for candidate in order:
        change = METHODS[candidate["name"]].fit(basis, images.take(planned.final))
        if original is not None:
            candidate["original"] = on_original(basis, original, change, settings.margin)
            if not candidate["original"]["not_worse"]:
                loss = f"a loss of AUROC under {settings.margin:g}"
                candidate["refused"] = f"on the original population {loss} was not shown"
                continue
        evidence["adopted"] = candidate["name"]
        evidence["change"] = {
            "temperature": change.temperature, "bias": change.bias, "weights": change.weights, "note": change.note,
            "threshold": {"before": basis.threshold, "after": change.threshold(basis)},
        }  # fmt: skip
        evidence["statement"] = f"adapted by {candidate['name']}: {_gain(candidate)}"
        return Choice(evidence, change)
    refused = [f"{row['name']}: {row['refused']}" for row in evidence["candidates"] if row["name"] != "as it is"]
    reasons = "; ".join(refused) or "no candidate could be fitted"
    evidence["statement"] = f"not adapted, because no candidate passed ({reasons})"
    return Choice(evidence)


def _gain(candidate: Mapping[str, Any]) -> str:
    names = ("balanced_accuracy",) if candidate["name"] == "thresholds" else ("log_loss", "auroc")
    words = []
    for name in names:
        gain = candidate["gains"][name]
        low, high = gain["ci95"]
        words.append(f"{name.replace('_', ' ')} better by {gain['value']:.3f} ({low:.3f} to {high:.3f})")
    return ", ".join(words)


def _guard(settings: Settings, original: Labelled | None) -> dict[str, Any]:
    return {
        "here": "the lower bound of the gain in log loss, or in AUROC without loss of log loss, is above 0; "
        "for thresholds, that in balanced accuracy; one-sided 2.5 % divided by the number of candidates; "
        "AUROC is shown to exceed .5; other weights pass the same against the best calibration",
        "gains": list(GAINS),
        "original": "not measured" if original is None else f"AUROC shown to fall less than {settings.margin:g}",
        "folds": FOLDS,
    }


def _thresholds(basis: Basis, images: Labelled, p: Floats, at: Any, settings: Settings) -> dict[str, Any]:
    """Return the threshold chosen from k labels, how it does on other patients, and the spread of that choice."""
    y, patients = images.y[at], images.patients[at]
    study = Study(y, p, patients, basis.threshold, {}, {})
    rng = np.random.default_rng(settings.seed)
    _, codes = np.unique(patients, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    chosen = []
    for _ in range(_DRAWS):
        drawn = np.concatenate([members[code] for code in rng.integers(0, len(members), len(members))])
        if 0 < y[drawn].sum() < drawn.size:
            chosen.append(youden(y[drawn], p[drawn]))
    low, high = (float(value) for value in np.quantile(chosen, (0.025, 0.975)))
    curve = transfer(study, seed=settings.seed, sizes=LABELS, draws=_DRAWS)
    return {"balanced": {"value": youden(y, p), "ci95": [low, high], "method": "patient bootstrap"}, "curve": curve}


def _limits(evidence: Mapping[str, Any], original: Manifest | None) -> list[str]:
    fitted, on = evidence["fitted_to"], evidence["measured_on"]
    kept = "was not measured" if original is None else "is on this card as AUROC; its calibration was not guarded"
    return [
        f"Fitted to {fitted['images']} images of {fitted['patients']} patients of one site"
        f" ({evidence['data']['source']}), measured on {on['images']} images of {on['patients']} patients of the same.",
        f"How the adapted bundle does on the original population {kept}.",
        "Follow-up, view and device may predict the label too: a gain counts once `validate` shows it within these.",
        "The chosen candidate is the best of several on the images that measured: validate it on others before use.",
    ]


def _write(
    out: Path,
    basis: Basis,
    images: Labelled,
    choice: Choice,
    evidence: Mapping[str, Any],
    ages: tuple[float, float] | None,
    known: Fingerprints | None,
) -> None:
    bundle, change = basis.bundle, choice.change
    assert change is not None
    labelled = METHODS[str(evidence["adopted"])].labels
    share = {key: value for key, value in bundle.card["calibration"].items() if key == "prevalence"}
    if labelled and evidence["adopted"] != "thresholds":
        share = {"prevalence": evidence["fitted_to"]["with_pneumonia"] / evidence["fitted_to"]["images"]}
    card = {key: value for key, value in bundle.card.items() if key not in _ANEW}
    fitted = evidence["fitted_to"]["images"] if labelled else 0
    card |= {
        "name": f"{bundle.name}-adapted",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapted_from": {"name": bundle.name, "sha256": bundle.sha256},
        "calibration": {
            "method": f"adapted to {evidence['data']['source']}: {evidence['adopted']}",
            "temperature": change.temperature,
            "bias": change.bias,
            "n": fitted,
            "note": change.note,
            **share,
        },
        "operating_points": change.points or _kept_points(bundle, images, change),
        "limits": [*bundle.card.get("limits", ()), *evidence["limits"]],
        "adaptation": dict(evidence),
    }
    with TemporaryDirectory() as scratch:
        draft = Path(scratch) / "draft"
        if change.weights:
            save_bundle(draft, change.applied(bundle), bundle.preparation, card, known)
        else:
            files = {WEIGHTS: (bundle.folder / WEIGHTS).read_bytes(), **bundle.runtime_files()}
            if known is not None:
                files[FINGERPRINTS] = known.to_bytes()
                card["fingerprints"] = known.section()
            runtime = {key: value for key, value in bundle.card["runtime"].items() if key != "files"}
            write_bundle(draft, files, {**card, "preparation": asdict(bundle.preparation), "runtime": runtime})
        # The population has changed, so the gate is fitted anew.
        held_out = _a_third(images, basis.seed)
        refit_gate(load_bundle(draft), bundle, out, images.canvases[~held_out], images.canvases[held_out], ages=ages)


def _a_third(images: Labelled, seed: int) -> Bools:
    """Return bool [n]: the images of a third of the patients."""
    patients = np.unique(images.patients)
    chosen = np.random.default_rng(seed).choice(patients, max(1, patients.size // 3), replace=False)
    return np.isin(images.patients, chosen)


def _kept_points(bundle: Bundle, images: Labelled, change: Change) -> dict[str, Any]:
    """Return the operating points at their own thresholds, with their figures on all images of the site."""
    p = change.probability(bundle, images)
    points = points_at(bundle.card["operating_points"], images.y, p, images.patients.tolist())
    return {name: point.as_json() for name, point in points.items()}


def _check(bundle: Bundle, out: Path, settings: Settings) -> None:
    if out.resolve() == bundle.folder.resolve() or bundle.folder.resolve() in out.resolve().parents:
        raise ConfigError("is the bundle itself", path=out, remedy="choose another --out")
    if not 0 < settings.margin < 1:
        raise ConfigError(f"the margin is {settings.margin:g}", remedy="give a part of AUROC between 0 and 1")
    unknown = [name for name in settings.methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"no method is called {unknown[0]!r}", remedy=f"use one of {', '.join(METHODS)}")
    if settings.labels is not None and settings.labels < 0:
        raise ConfigError(f"the number of labels is {settings.labels}", remedy="give 0 or more")
