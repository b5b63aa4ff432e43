"""References from a journal's accepted period, or from images with or without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.bundle.bundle import SHIPPED, Bundle, load_bundle
from pneumoscope.bundle.card import read_card
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.files import sha256_bytes
from pneumoscope.journal.entry import ANALYSED, DECLINED, QUARANTINED
from pneumoscope.monitoring.labels import labels_of
from pneumoscope.monitoring.reference import Reference, errors_of, fit
from pneumoscope.monitoring.stream import Rows, Stream, as_rows, joined
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, Prediction, Progress, Sample

FIRST_PERIOD = 500  # images, of a site that gave no reference
LEAST_LABELS = 30  # of a class, for errors of the site's own


def from_journal(
    stream: Stream, first: datetime | None = None, last: datetime | None = None, bundle: Path | None = None
) -> Reference:
    """Return the reference of a period, by default all days, of a journal.

    `bundle`: whose card says how often it errs, where the journal has too few labels; shipped ones are known.
    Raises `DataError` where the period cannot be a reference.
    """
    rows = stream.rows(first, last)
    return _of_rows(stream, rows, bundle, "a period of the journal")


def first_period(stream: Stream, bundle: Path | None = None) -> Reference:
    """Return the reference of the first 500 images of the bundle that the journal's last row names."""
    last = ""
    found: list[Rows] = []
    for piece in stream.pieces(light=True):
        last = piece.newest_bundle or last
    if not last:
        raise DataError("holds no answer", path=stream.path, remedy="start with `pneumoscope predict --journal`")
    count = 0
    for piece in stream.pieces():
        mine = piece.take(piece.of_bundle(last))
        found.append(mine)
        count += len(mine)
        if count >= FIRST_PERIOD:
            break
    if count < FIRST_PERIOD:
        raise DataError(
            f"holds {count} images of the bundle {last[:12]}; a first period has {FIRST_PERIOD}",
            path=stream.path,
            remedy="wait for more, or make a reference with `pneumoscope monitor fit` and give it with --reference",
        )
    return _of_rows(stream, joined(found).take(slice(0, FIRST_PERIOD)), bundle, "the first images of this journal")


def _of_rows(stream: Stream, rows: Rows, bundle: Path | None, source: str) -> Reference:
    labels = labels_of(stream, rows.newest_bundle)
    truth = np.full(len(rows), -1, np.int8)
    of = dict(zip(labels.study.tolist(), labels.positive.tolist(), strict=True))
    for index, (study, key) in enumerate(zip(rows.text["study"].tolist(), rows.text["key"].tolist(), strict=True)):
        truth[index] = of.get(study or key, -1)
    card = _card_of(rows.newest_bundle, bundle)
    errors = _errors(rows, truth) or _card_errors(card)
    facts = {
        "source": source,
        "source_prevalence": _source_prevalence(card),
        "last_row": int(rows.row[-1]),
        "last_key": sha256_bytes(str(rows.text["key"][-1]).encode())[:12],
    }
    return fit(rows, truth=truth, errors=errors, facts=facts, path=stream.path)


def from_images(classifier: Classifier, manifest: Manifest, progress: Progress | None = None) -> Reference:
    """Return the reference of a data source's images, answered by a bundle; labels serve where it has them.

    Raises:
        DataError: too few images could be read, or as `reference.fit` does.
    """
    samples = list(manifest.samples)
    rows, truth = rows_of(classifier, samples, progress)
    errors = _errors(rows, truth) or _card_errors(classifier.bundle.card)
    facts = {
        "source": f"images of {manifest.source.name}",
        "source_prevalence": _source_prevalence(classifier.bundle.card),
    }
    return fit(rows, truth=truth, errors=errors, facts=facts, path=Path(manifest.source), check_drift=False)


def rows_of(
    classifier: Classifier, samples: list[Sample], progress: Progress | None = None
) -> tuple[Rows, NDArray[np.int8]]:
    """Return the answers to samples as rows of a journal, and their truth, -1 where not known."""
    predictions: list[Prediction] = []
    for prediction in classifier.predict([sample.path for sample in samples]):
        predictions.append(prediction)
        if progress is not None:
            progress(len(predictions), len(samples))
    rows = as_rows(_columns(classifier.bundle, samples, predictions))
    truth = [-1 if sample.label is None else int(sample.label == PNEUMONIA) for sample in samples]
    return rows, np.array(truth, np.int8)


def _columns(bundle: Bundle, samples: list[Sample], predictions: list[Prediction]) -> dict[str, Any]:
    width = max((len(p.embedding) for p in predictions if p.embedding is not None), default=0)
    nothing = (float("nan"),) * width

    def numbers(values: Iterable[Any]) -> list[float]:
        return [float("nan") if value is None else float(value) for value in values]

    def quality(name: str) -> list[float]:
        return numbers(p.quality.get(name) for p in predictions)

    def gate(name: str) -> list[float]:
        return numbers((p.quality.get("gate") or {}).get(name) for p in predictions)

    return {
        "probability": numbers(p.probability for p in predictions),
        "logit": numbers(p.logit for p in predictions),
        "threshold": [p.threshold for p in predictions],
        "abstained": [p.abstained for p in predictions],
        "state": [_state(p) for p in predictions],
        "embedding": np.array([p.embedding or nothing for p in predictions], np.float32).reshape(
            len(predictions), width
        ),
        **{name: quality(name) for name in ("mean", "contrast", "sharpness", "noise", "collimated", "width", "height")},
        **{name: gate(name) for name in ("exposure", "turned", "unlike")},
        "age_years": numbers(sample.age_years for sample in samples),
        "sex": [sample.sex or "" for sample in samples],
        "view": [sample.view or "" for sample in samples],
        "modality": [str(p.quality.get("modality") or "") for p in predictions],
        # No site: the journal knows sites by pseudonyms, which the names of a data source cannot be compared with.
        "patient": [sample.patient_id for sample in samples],
        "bundle": [bundle.sha256] * len(samples),
        "name": [bundle.name] * len(samples),
    }


def _state(prediction: Prediction) -> str:
    """Return the state that the journal would have."""
    if prediction.error is not None:
        return QUARANTINED
    return DECLINED if prediction.abstained and prediction.quality.get("mean") is None else ANALYSED


# --- how often it errs ------------------------------------------------------------------------------------


def _errors(rows: Rows, truth: NDArray[np.int8]) -> dict[str, Any]:
    """Return errors on the reference's own labels, where both classes have enough."""
    answered = np.isfinite(rows.number["probability"])
    kept = answered & (truth >= 0)
    if min((truth[kept] == 1).sum(), (truth[kept] == 0).sum()) < LEAST_LABELS:
        return {}
    called = rows.number["probability"][kept] >= rows.number["threshold"][kept]
    return errors_of(called, truth[kept], rows.patients[kept], "labels of the reference")


def _card_errors(card: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return errors as the bundle's card has them; those images chose the threshold, so they flatter."""
    if card is None:
        return {}
    point = card["operating_points"][card["operating_point"]]
    found = {}
    for kind, name in (("missed", "sensitivity"), ("false", "specificity")):
        low, high = point[name]["ci95"]
        if None not in (low, high, point[name]["value"]):
            share = 1 - point[name]["value"]
            n = max(30, round(share * (1 - share) / max(1e-9, ((high - low) / 3.92) ** 2)))
            found[kind] = {"value": share, "low": 1 - high, "high": 1 - low, "n": n, "source": "the card of the bundle"}
    return found


def _card_of(sha256: str, bundle: Path | None) -> Mapping[str, Any] | None:
    """Return the card of the bundle that answered: the one given, or a shipped one."""
    if bundle is not None:
        card = load_bundle(bundle).card
        if card["sha256"] != sha256:
            raise DataError(
                f"the journal's answers are of the bundle {sha256[:12]}, this is {str(card['sha256'])[:12]}",
                path=bundle,
                remedy="give the bundle that answered, or leave --bundle out",
            )
        return card
    cards = (read_card(folder) for folder in SHIPPED.values())
    return next((card for card in cards if card["sha256"] == sha256), None)


def _source_prevalence(card: Mapping[str, Any] | None) -> float | None:
    """Return the share of pneumonia at which the bundle's probabilities are calibrated."""
    if card is None:
        return None
    stated = card["calibration"].get("prevalence") or card.get("population", {}).get("prevalence")
    return None if stated is None else float(stated)
