"""Explanations as files, and which images are chosen for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumoscope.bundle.bundle import load_bundle, save_bundle
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import ConfigError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation.explain import explain_evaluation, explain_images, typical_and_wrong
from pneumoscope.explanation.overlay import layer
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Preparation
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA, RESEARCH_ONLY


@pytest.fixture(scope="module")
def classifier(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(make_bundle(tmp_path_factory.mktemp("bundle") / "b"))


def paint(path: Path, width: int = 90, height: int = 60, grey: int | None = None) -> str:
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 9, height))[:, None] * np.sin(np.linspace(0, 7, width))
    values = (128 + 90 * waves + rng.integers(-30, 30, (height, width))).astype(np.uint8)
    Image.fromarray(values if grey is None else np.full_like(values, grey)).save(path)
    return str(path)


def test_each_image_gets_its_picture_overlay_map_and_facts(classifier: Classifier, tmp_path: Path) -> None:
    paths = [paint(tmp_path / "chest one.png"), paint(tmp_path / "b.png", 50, 80)]
    out = tmp_path / "out"
    entries = explain_images(classifier, paths, ["gradcam"], out)
    assert json.loads((out / "index.json").read_text()) == json.loads(json.dumps(entries))
    assert sorted(path.name for path in out.iterdir()) == [
        "001-chest_one-gradcam-layer.png", "001-chest_one-gradcam.json", "001-chest_one-gradcam.npz",
        "001-chest_one-gradcam.png", "001-chest_one.json", "001-chest_one.png",
        "002-b-gradcam-layer.png", "002-b-gradcam.json", "002-b-gradcam.npz", "002-b-gradcam.png",
        "002-b.json", "002-b.png", "explanation.json", "index.json",
    ]  # fmt: skip
    assert json.loads((out / "002-b.json").read_text())["age_checked"] is False
    entry = json.loads((out / "002-b-gradcam.json").read_text())
    assert entry["notice"] == RESEARCH_ONLY
    assert (entry["path"], entry["method"]) == (paths[1], "gradcam")
    assert {"probability", "label", "threshold", "bundle", "layer", "target", "verdict", "seconds"} <= set(entry)
    with np.load(out / entry["map"], allow_pickle=False) as stored:
        heat = stored["map"]
    assert heat.shape == (32, 32)
    assert heat.dtype == np.float32
    overlay = Image.open(out / entry["overlay"])
    assert (overlay.size, overlay.mode) == ((50, 80), "RGB")
    assert np.array_equal(np.asarray(Image.open(out / entry["image"])), np.asarray(Image.open(paths[1])))


def test_every_fact_of_a_map_is_written_and_its_arrays_too(classifier: Classifier, tmp_path: Path) -> None:
    options = Options(seed=3, samples=50, segments="grid", fill="mean")
    path = paint(tmp_path / "a.png")
    methods = ["gradcam++", "lime", "shap-partition"]
    entries = explain_images(classifier, [path], methods, tmp_path / "out", options=options)
    cam, lime, partition = (json.loads((tmp_path / "out" / f"001-a-{name}.json").read_text()) for name in methods)
    assert [e["method"] for e in entries] == methods
    facts = {
        "method", "layer", "target", "seed", "samples", "evaluations", "seconds", "surrogate_r2", "stability",
        "verdict", "verdict_reason",
    }  # fmt: skip
    assert all(facts <= set(entry) for entry in (cam, lime, partition))
    assert (cam["seed"], cam["samples"], cam["surrogate_r2"], cam["evaluations"]) == (None, None, None, 1)
    assert (lime["seed"], lime["samples"], lime["evaluations"]) == (3, 50, 50)
    assert lime["surrogate_r2"] <= 1
    assert (partition["seed"], partition["samples"]) == (None, 50)
    direct = METHODS["lime"](classifier, classifier.canvas(read_image(path)), options)
    with np.load(tmp_path / "out" / lime["map"], allow_pickle=False) as stored:
        assert sorted(stored) == ["contributions", "map", "segments", "signed"]
        assert np.array_equal(stored["contributions"], direct.contributions)
        assert np.array_equal(stored["segments"], direct.segments)
        assert np.array_equal(stored["map"], direct.values)
    with np.load(tmp_path / "out" / cam["map"], allow_pickle=False) as stored:
        assert sorted(stored) == ["map", "signed"]


def test_only_a_check_gives_a_verdict(classifier: Classifier, tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png")
    options = Options(samples=50, segments="grid")
    (plain,) = explain_images(classifier, [path], ["occlusion"], tmp_path / "plain", options=options)
    (checked,) = explain_images(classifier, [path], ["occlusion"], tmp_path / "checked", options=options, check=True)
    assert (plain["verdict"], plain["stability"]) == ("not tested", None)
    assert checked["verdict"] in {"stable", "unstable", "not faithful"}
    assert -1 <= checked["stability"] <= 1
    assert checked["verdict_reason"]
    assert checked["evaluations"] > 2 * plain["evaluations"]


def test_the_overlay_is_the_picture_where_the_map_is_empty(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b", size=160))
    path = paint(tmp_path / "a.png")
    (entry,) = explain_images(classifier, [path], ["gradcam"], tmp_path / "out")
    with np.load(tmp_path / "out" / entry["map"]) as stored:
        heat = np.asarray(Image.fromarray(stored["map"]).resize((90, 60), Image.Resampling.BILINEAR))
    overlay = np.asarray(Image.open(tmp_path / "out" / entry["overlay"])).astype(int)
    grey = np.asarray(Image.open(path)).astype(int)[..., None]
    low, high = heat < 0.15, heat > 0.8
    assert low.any()
    assert high.any()
    assert np.abs(overlay - grey)[low].max() <= 1
    assert np.ptp(overlay[high], axis=1).mean() > 20, "coloured where the map is strong"


def test_the_layer_is_clear_where_the_map_is_weak_and_never_opaque() -> None:
    heat = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    rgba = layer(heat)
    assert (rgba.shape, rgba.dtype) == ((8, 8, 4), np.uint8)
    alpha = rgba[..., 3] / 255
    assert alpha[heat < 0.2].max() == 0
    assert alpha.max() == pytest.approx(0.7, abs=0.01)
    assert np.all(np.diff(alpha.ravel()) >= 0)


def test_every_pair_of_maps_is_compared(classifier: Classifier, tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png")
    entries = explain_images(
        classifier, [path], ["occlusion", "gradcam", "layercam"], tmp_path / "out", options=Options(samples=50)
    )
    by_name = {entry["method"]: entry for entry in entries}
    for one, entry in by_name.items():
        assert set(entry["agreement"]) == set(by_name) - {one}
        for other, rho in entry["agreement"].items():
            assert rho == by_name[other]["agreement"][one]
            blank = "blank" in (entry["verdict"], by_name[other]["verdict"])
            assert (rho is None) == blank
    told = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [entry["agreement"] for entry in told] == [entry["agreement"] for entry in entries]


def test_with_zones_the_lungs_are_found_or_it_is_said_why_not(classifier: Classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    noise = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(noise)
    explain_images(classifier, [str(noise)], ["gradcam"], out, zones=True)
    told = json.loads((out / "001-noise.json").read_text())
    assert told["lungs"]["found"] is (told["lungs"]["reason"] is None)
    assert ("counterfactual" in told) is ("zones" in told) is told["lungs"]["found"]


def test_a_padded_image_loses_the_map_of_its_padding(classifier: Classifier, tmp_path: Path) -> None:
    bundle = classifier.bundle
    card = {key: value for key, value in bundle.card.items() if key not in ("sha256", "card_sha256")}
    padded = Preparation(32, 40, "pad", bundle.preparation.mean, bundle.preparation.std)
    save_bundle(tmp_path / "b", bundle.network, padded, card)
    out = tmp_path / "out"
    (entry,) = explain_images(
        Classifier(load_bundle(tmp_path / "b")), [paint(tmp_path / "wide.png", 120, 60)], ["gradcam"], out
    )
    assert Image.open(out / entry["overlay"]).size == (120, 60)
    with np.load(out / entry["map"]) as stored:
        assert stored["map"].shape == (32, 32), "the file holds the map as the network saw it, padding and all"


def test_where_the_image_was_cut_that_part_is_shown(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "crop", lambda pixels: pixels[10:50, 4:34])
    (entry,) = explain_images(classifier, [paint(tmp_path / "a.png")], ["gradcam"], tmp_path / "out")
    assert entry["cut"]
    with Image.open(tmp_path / "out" / entry["image"]) as shown:
        assert shown.size == (30, 40)


def test_a_bad_file_and_a_flat_one_are_told_and_the_rest_is_done(classifier: Classifier, tmp_path: Path) -> None:
    paths = [str(tmp_path / "missing.png"), paint(tmp_path / "flat.png", grey=5), paint(tmp_path / "good.png")]
    missing, flat, good = explain_images(classifier, paths, ["gradcam"], tmp_path / "out")
    assert "missing.png" in missing["error"]
    assert flat["overlay"] is None
    assert flat["verdict"].startswith("not explained: not analysed")
    assert (tmp_path / "out" / good["overlay"]).is_file()


def test_a_large_image_is_shown_smaller(classifier: Classifier, tmp_path: Path) -> None:
    (entry,) = explain_images(classifier, [paint(tmp_path / "a.png", 1600, 800)], ["gradcam"], tmp_path / "out")
    assert Image.open(tmp_path / "out" / entry["overlay"]).size == (1024, 512)
    assert entry["quality"]["width"] == 1600


def test_an_unknown_method_is_an_error_before_anything_is_written(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gradcamp'.*use gradcam"):
        explain_images(classifier, ["a.png"], ["gradcam", "gradcamp"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- which images -----------------------------------------------------------------------------------------


def test_the_most_confident_answers_of_each_kind_are_chosen() -> None:
    rows = [
        ("tp1", PNEUMONIA, 0.9), ("tp2", PNEUMONIA, 0.99), ("tp3", PNEUMONIA, 0.6), ("tn1", NORMAL, 0.3),
        ("tn2", NORMAL, 0.01), ("fp", NORMAL, 0.8), ("fn1", PNEUMONIA, 0.4), ("fn2", PNEUMONIA, 0.1),
        ("bad", PNEUMONIA, None),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["path", "label", "probability"])
    table["predicted"] = [None if p is None else PNEUMONIA if p >= 0.5 else NORMAL for _, _, p in rows]
    assert typical_and_wrong(table, 2) == [
        ("tp2", "true positive"), ("tp1", "true positive"), ("tn2", "true negative"), ("tn1", "true negative"),
        ("fp", "false positive"), ("fn2", "false negative"), ("fn1", "false negative"),
    ]  # fmt: skip


def test_an_evaluation_gets_its_explanations(classifier: Classifier, chest_manifest: Manifest, tmp_path: Path) -> None:
    evaluate(classifier, chest_manifest, tmp_path)
    explain_evaluation(classifier, tmp_path, 1)
    entries = json.loads((tmp_path / "explanations" / "index.json").read_text())
    table = pd.read_csv(tmp_path / "predictions.csv").set_index("path")
    assert entries
    for entry in entries:
        row = table.loc[entry["path"]]
        kind = "positive" if row["predicted"] == PNEUMONIA else "negative"
        right = "true" if row["predicted"] == row["label"] else "false"
        assert entry["case"] == f"{right} {kind}"
        assert (tmp_path / "explanations" / entry["overlay"]).is_file()
