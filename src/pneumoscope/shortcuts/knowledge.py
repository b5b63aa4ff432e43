"""Items about maps and embeddings: where the network looks, and which attributes it encodes beside the disease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope.data.checks.shortcuts import encode
from pneumoscope.errors import BundleError, ConfigError
from pneumoscope.predict import Classifier
from pneumoscope.records import Bools, Estimate
from pneumoscope.shortcuts import verdict
from pneumoscope.shortcuts.attention import CAMS, Attention, attainable, attention, grain, maps_of
from pneumoscope.shortcuts.items import CLEAN, Answer, Item, not_tested
from pneumoscope.shortcuts.probes import attributes, embeddings, enough, exposure, probe, reduced, shape
from pneumoscope.shortcuts.radiographs import Radiographs


def attention_items(
    classifier: Classifier, radiographs: Radiographs, answers: Mapping[str, Answer], *, most: int, seed: int
) -> tuple[list[Item], dict[str, Attention]]:
    """Judge where maps lie, of at most `most` images that the network calls pneumonia.

    A map shows evidence for pneumonia, so images called normal are left out. Maps too coarse to follow the lungs are
    measured and not judged.
    """
    keys = [*(f"attention_{method}" for method in CAMS), "hotspot"]
    called = np.flatnonzero(answers[CLEAN].called)
    chosen = np.sort(np.random.default_rng(seed).permutation(called)[:most])
    if len(chosen) < verdict.MIN_MAPS:
        reason = f"the network calls {len(called)} images pneumonia, maps of {verdict.MIN_MAPS} are needed"
        return [not_tested(key, reason) for key in keys], {}
    side = classifier.bundle.preparation.size
    lungs = np.stack([_resized(radiographs.chests[index].lungs, side) for index in chosen])
    patients = [radiographs.patients[index] for index in chosen]
    items, measured = [], {}
    try:
        cells = grain(classifier)
    except BundleError as error:
        return [not_tested(key, error.what) for key in keys], {}
    most_inside = None if cells is None else attainable(lungs, cells)
    coarse = None
    if cells is not None and most_inside is not None and most_inside < verdict.INSIDE_AIM:
        coarse = f"maps of {cells} x {cells} places are too coarse: following the lungs, {most_inside:.0%} lie in them"
    for method in CAMS:
        try:
            maps = maps_of(classifier, radiographs.canvases[chosen], method)
        except (BundleError, ConfigError) as error:
            items.append(not_tested(f"attention_{method}", error.what))
            continue
        result = attention(maps, lungs, patients, method, seed=seed)
        if result is None or result.n < verdict.MIN_MAPS:
            items.append(not_tested(f"attention_{method}", "nearly all maps are blank"))
            continue
        measured[method] = result
        items.append(_inside(result, most_inside, coarse))
    items.append(_hotspot(next(iter(measured.values()), None), coarse))
    return items, measured


def _inside(measured: Attention, most: float | None, coarse: str | None) -> Item:
    light = verdict.at_least(measured.inside, verdict.INSIDE_AIM, verdict.INSIDE_LEAST)
    return Item(
        f"attention_{measured.method}",
        verdict.NOT_TESTED if coarse else light,
        "energy in the lungs",
        measured.inside,
        f"at least {verdict.INSIDE_AIM:.0%}; under {verdict.INSIDE_LEAST:.0%} is red",
        coarse,
        {**measured.as_json(), "attainable": most},
    )


def _hotspot(measured: Attention | None, coarse: str | None) -> Item:
    if measured is None:
        return not_tested("hotspot", "there are no maps")
    light = verdict.NOT_TESTED if coarse else verdict.hotspot(measured.follows, measured.hotspot)
    limit = "above 0, and the strongest places in the lungs"
    return Item("hotspot", light, "own lungs less others'", measured.follows, limit, coarse, measured.as_json())


def _resized(mask: Bools, side: int) -> Bools:
    if mask.shape == (side, side):
        return mask
    grown = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(grown) >= 128


def along_items(radiographs: Radiographs, seed: int) -> list[Item]:
    """Judge how far size, exposure and the table predict the label, without any network: shortcuts on offer."""
    if reason := radiographs.auroc_fault():
        return [not_tested("metadata", reason)]
    assert radiographs.labels is not None
    features = {"exposure": exposure(radiographs.canvases)}
    if (sizes := shape(radiographs.sizes)) is not None:
        features["size"] = sizes
    for name in ("age_years", "sex", "view", "site"):
        values = [getattr(sample, name) for sample in radiographs.samples]
        if (columns := encode(["" if value is None else str(value) for value in values])) is not None:
            features[name] = columns
    y, codes = radiographs.labels, radiographs.codes
    *alone, figure = probe([*features.values(), np.hstack(list(features.values()))], y, codes, seed)
    facts = {key: estimate.as_json() for key, estimate in zip(features, alone, strict=True)}
    light = verdict.never_red(verdict.at_most(figure, verdict.MOST_ALONG))
    return [Item("metadata", light, "AUROC", figure, f"at most {verdict.MOST_ALONG:.2f}", facts=facts)]


def probe_items(classifier: Classifier, radiographs: Radiographs, seed: int) -> list[Item]:
    """Judge whether embeddings predict attributes of patient and acquisition better than the grey levels do."""
    questions = [(name, known, true) for name, known, true in attributes(radiographs.samples)]
    questions = [(n, known, true) for n, known, true in questions if enough(true[known], radiographs.codes[known])]
    if not questions and radiographs.auroc_fault():
        return [not_tested("probes", "the table has neither labels nor age, sex, view or site of enough patients")]
    try:
        features = reduced(embeddings(classifier, radiographs.canvases))
    except BundleError as error:
        return [not_tested("probes", error.what)]
    grey = exposure(radiographs.canvases)
    facts: dict[str, Any] = {"attributes": {}}
    if not radiographs.auroc_fault() and radiographs.labels is not None:
        [by_label] = probe([features], radiographs.labels, radiographs.codes, seed)
        facts["label"] = by_label.as_json()
    pairs: dict[str, tuple[Estimate, Estimate]] = {}
    for name, known, true in questions:
        groups = np.unique(radiographs.codes[known], return_inverse=True)[1].astype(np.int64)
        by_network, by_grey = probe([features[known], grey[known]], true[known], groups, seed)
        pairs[name] = by_network, by_grey
        facts["attributes"][name] = {"embedding": by_network.as_json(), "exposure": by_grey.as_json()}
    if not questions:
        reason = "the table has no age, sex, view or site that differs in enough patients"
        return [Item("probes", verdict.NOT_TESTED, reason=reason, facts=facts)]
    name, (figure, grey_alone) = max(pairs.items(), key=lambda pair: pair[1][0].value)
    light = verdict.AMBER if figure.low > max(verdict.MOST_KNOWN, grey_alone.value) else verdict.GREEN
    limit = f"at most {verdict.MOST_KNOWN:.2f}, or no better than the grey levels"
    return [Item("probes", light, f"AUROC for {name}", figure, limit, facts=facts)]
