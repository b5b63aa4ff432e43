"""Predictions come in the order of the images, whatever single files, batches and threads do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special
from tests.support.dicom_files import encoded, image_object

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import BundleError, DataError
from pneumoscope.images import read_image
from pneumoscope.images.find import expand
from pneumoscope.images.preparation import to_canvas
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA

Make = Callable[..., Path]
KEYS = [
    "path", "probability", "label", "threshold", "subtype", "abstained", "reason", "quality", "bundle",
    "milliseconds",
]  # fmt: skip


@pytest.fixture(scope="module")
def classifier(make_bundle: Make, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(make_bundle(tmp_path_factory.mktemp("bundle") / "b"))


@pytest.fixture(scope="module")
def paths(chest_manifest: Manifest) -> list[str]:
    return [sample.path for sample in chest_manifest.samples][:40]


def paint(path: Path, size: tuple[int, int] = (64, 64), grey: int | None = None, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(values if grey is None else np.full(size[::-1], grey, np.uint8)).save(path)
    return path


# --- answers ----------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_the_steps_by_hand(classifier: Classifier, paths: list[str]) -> None:
    bundle = classifier.bundle
    for prediction, path in zip(classifier.predict(paths[:5]), paths, strict=False):
        canvas = to_canvas(read_image(path).pixels, 40, "squash")
        with torch.no_grad():
            logits = bundle.network(prepare(torch.from_numpy(canvas)[None], bundle.preparation)).double().numpy()[0]
        p = special.softmax(logits / 1.5)  # the temperature of the card
        assert prediction.path == path
        assert prediction.probability == pytest.approx(p[1] + p[2], abs=1e-5)
        assert prediction.subtype == {
            "bacterial": pytest.approx(p[1] / (p[1] + p[2]), abs=1e-5),
            "viral": pytest.approx(p[2] / (p[1] + p[2]), abs=1e-5),
        }
        plain = special.softmax(logits)
        assert prediction.logit == pytest.approx(special.logit(plain[1] + plain[2]), abs=1e-4)
        assert prediction.label == (PNEUMONIA if p[1] + p[2] >= 0.5 else NORMAL)


def test_two_classes_have_no_subtype(make_bundle: Make, tmp_path: Path, paths: list[str]) -> None:
    (prediction,) = Classifier.load(make_bundle(tmp_path / "b", classes=2)).predict(paths[:1])
    assert prediction.subtype is None
    assert prediction.probability is not None


def test_the_operating_point_moves_the_threshold_and_nothing_else(classifier: Classifier, paths: list[str]) -> None:
    triage = Classifier(classifier.bundle, operating_point="triage")
    assert (classifier.threshold, triage.threshold) == (0.5, 0.2)
    for a, b in zip(classifier.predict(paths[:8]), triage.predict(paths[:8]), strict=True):
        assert a.probability == b.probability
        assert b.label == (PNEUMONIA if (b.probability or 0) >= 0.2 else NORMAL)
    with pytest.raises(BundleError, match="use one of balanced, triage"):
        Classifier(classifier.bundle, operating_point="rule-out")


def test_a_probability_on_the_threshold_is_positive(make_bundle: Make, tmp_path: Path, paths: list[str]) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b"))
    (first,) = classifier.predict(paths[:1])
    classifier.threshold = first.probability or 0.0
    (again,) = classifier.predict(paths[:1])
    assert again.label == PNEUMONIA


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3), (64, 8)])
def test_batches_and_threads_do_not_change_answers(
    classifier: Classifier, paths: list[str], batch_size: int, workers: int
) -> None:
    reference = list(classifier.predict(paths))
    found = list(classifier.predict(paths, batch_size=batch_size, workers=workers))
    assert [p.path for p in found] == paths
    np.testing.assert_allclose([p.probability for p in found], [p.probability for p in reference], rtol=0, atol=1e-5)
    assert len({p.probability for p in found}) > 30, "different images must be answered differently"


# --- files that cannot be used ----------------------------------------------------------------------------


def test_bad_files_in_between_do_not_stop_or_shift_the_others(
    classifier: Classifier, paths: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpeg").write_text("this is no image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[0]).read_bytes()[:300])
    (tmp_path / "folder.png").mkdir()
    bad = [tmp_path / name for name in ("empty.png", "text.jpeg", "cut.png", "folder.png", "missing.png")]
    mixed = [str(item) for pair in zip(bad, paths, strict=False) for item in pair] + paths[5:30]
    found = list(classifier.predict(mixed, batch_size=4))
    assert [p.path for p in found] == mixed
    alone = {p.path: p.probability for p in classifier.predict(paths)}
    for prediction in found:
        if prediction.path in alone:
            assert prediction.error is None
            assert prediction.probability == pytest.approx(alone[prediction.path], abs=1e-5)
        else:
            assert prediction.error is not None
            assert prediction.path in prediction.error, "the message names the file"
            assert "\n" not in prediction.error
            assert (prediction.probability, prediction.label, prediction.logit) == (None, None, None)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_constant_image_is_not_analysed(classifier: Classifier, tmp_path: Path, grey: int) -> None:
    (prediction,) = classifier.predict([paint(tmp_path / "flat.png", grey=grey)])
    assert prediction.abstained
    assert prediction.error is None
    assert (prediction.reason or "").startswith("not analysed, because")
    assert (prediction.probability, prediction.label, prediction.subtype) == (None, None, None)


@pytest.mark.parametrize(
    ("modality", "answered"), [("CR", True), ("DX", True), ("", True), ("CT", False), ("PT", False)]
)
def test_another_modality_is_not_analysed(
    classifier: Classifier, tmp_path: Path, modality: str, answered: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    (tmp_path / "a.dcm").write_bytes(encoded(image_object(pixels, Modality=modality)))
    (prediction,) = classifier.predict([tmp_path / "a.dcm"])
    assert prediction.error is None
    assert (prediction.label is not None) == answered
    if not answered:
        assert prediction.reason == f"not analysed, because its modality is {modality}, not CR or DX or RG"


def test_only_bad_files_are_answered_too(classifier: Classifier, tmp_path: Path) -> None:
    found = list(classifier.predict([tmp_path / "a.png", tmp_path / "b.png"]))
    assert [p.error is None for p in found] == [False, False]
    assert list(classifier.predict([])) == []


# --- the line ---------------------------------------------------------------------------------------------


def test_the_line_has_the_keys_of_the_contract(classifier: Classifier, paths: list[str], tmp_path: Path) -> None:
    files = [paths[0], paint(tmp_path / "flat.png", grey=9), tmp_path / "missing.png"]
    good, flat, missing = (p.as_json() for p in classifier.predict(files))
    assert list(good) == KEYS
    assert list(flat) == KEYS
    assert list(missing) == [*KEYS, "error"]
    assert json.loads(json.dumps(good)) == good
    pictures = {"width", "height", "mean", "contrast", "sharpness", "noise", "collimated"}
    assert good["quality"].keys() == pictures | {"modality", "notes"}
    assert (good["quality"]["width"], good["quality"]["height"]) == (64, 64)
    assert good["bundle"] == load_label(classifier)
    assert good["milliseconds"] > 0
    assert (good["abstained"], flat["abstained"], missing["abstained"]) == (False, True, False)


def load_label(classifier: Classifier) -> str:
    card = classifier.bundle.card
    return f"{card['name']}@{card['sha256'][:12]}"


# --- many -------------------------------------------------------------------------------------------------


def test_images_are_read_as_they_are_asked_for(classifier: Classifier, paths: list[str]) -> None:
    """From an endless list: what is ahead of the answers is bounded by the batches, whatever comes."""
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for number in count():
            taken += 1
            yield paths[number % len(paths)]

    stream = classifier.predict(endless(), batch_size=4, workers=2)
    ahead = []
    for answered, prediction in enumerate(islice(stream, 200), start=1):
        assert prediction.path == paths[(answered - 1) % len(paths)]
        ahead.append(taken - answered)
    stream.close()  # type: ignore[attr-defined]
    assert max(ahead) <= 2 * 4 + 2 + 4
    assert taken < 220


def test_an_error_of_the_list_itself_reaches_the_caller(classifier: Classifier, paths: list[str]) -> None:
    def breaks() -> Iterator[str]:
        yield paths[0]
        raise RuntimeError("the list broke")

    with pytest.raises(RuntimeError, match="the list broke"):
        list(classifier.predict(breaks()))


# --- names ------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.png", "a.jpeg", "deep/c.PNG", "deep/d.txt", "deep/.hidden.png", "notes.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(("txt", "csv")):
            (tmp_path / name).write_text("no image")
        else:
            paint(tmp_path / "e.png").replace(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searched_through_in_order(album: Path) -> None:
    assert expand([str(album)]) == [str(album / name) for name in ("a.jpeg", "b.png", "deep/c.PNG")]


def test_globs_are_matched_here_and_from_the_root(album: Path) -> None:
    assert expand(["*.png"]) == ["b.png"]
    assert expand(["**/*.[pP][nN][gG]"]) == ["b.png", "deep/.hidden.png", "deep/c.PNG"]
    assert expand([f"{album}/deep/c.*"]) == [str(album / "deep" / "c.PNG")]


def test_the_order_of_the_names_is_kept_and_each_file_is_named_once(album: Path) -> None:
    assert expand(["b.png", "a.jpeg", "b.png", "*.png", "."]) == ["b.png", "a.jpeg", "deep/c.PNG"]


def test_what_matches_nothing_stays_to_be_reported(album: Path) -> None:
    assert expand(["nothing-*.png", "missing.png"]) == ["nothing-*.png", "missing.png"]


def test_a_name_with_brackets_is_a_file_where_it_is_one(album: Path) -> None:
    paint(album / "x[1].png")
    assert expand(["x[1].png"]) == ["x[1].png"]


def test_a_folder_without_images_is_an_error(album: Path) -> None:
    (album / "bare").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        expand(["bare"])


def test_a_dicom_file_needs_no_suffix(album: Path) -> None:
    (album / "deep" / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    assert str(album / "deep" / "IM0001") in expand([str(album)])


def test_rows_of_an_archive_are_images(classifier: Classifier, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    labels = np.array([[0], [1], [1]], np.uint8)
    parts = {f"{split}_{kind}": value for split in ("train", "val", "test") for kind, value in
             (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "pneumoniamnist.npz", **parts)
    names = [f"{tmp_path}/pneumoniamnist.npz#val/{row}" for row in (2, 0, 3)]
    third, first, missing = classifier.predict(expand(names))
    assert third.probability != first.probability
    assert (third.quality["width"], missing.error is None) == (28, False)


def test_loading_by_path_is_loading_the_bundle(make_bundle: Make, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    assert Classifier.load(path).bundle.sha256 == load_bundle(path).sha256
