"""Whatever form an image is given in, it is answered like its file."""

from __future__ import annotations

import io
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from tests.support.dicom_files import encoded, image_object

import pneumoscope
from pneumoscope.errors import BundleError, ConfigError, DataError
from pneumoscope.images.given import items
from pneumoscope.predict import Classifier

Make = Callable[..., Path]
RNG = np.random.default_rng(5)
GREY = np.clip(np.add.outer(np.arange(64) * 2, np.arange(80)) + RNG.integers(0, 20, (64, 80)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def classifier(make_bundle: Make, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(str(make_bundle(tmp_path_factory.mktemp("given") / "b")))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    Image.fromarray(GREY).save(path := tmp_path_factory.mktemp("images") / "chest.png")
    return path


def dataset() -> pydicom.Dataset:
    return image_object(GREY, WindowCenter="128", WindowWidth="256")


def saved(array: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


FORMS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "path": lambda file: file,
    "folder": lambda file: file.parent,
    "folder name": lambda file: str(file.parent),
    "list": lambda file: [file],
    "series": lambda file: pd.Series([str(file)]),
    "column": lambda file: np.array([str(file)], dtype=object),
    "frame": lambda file: pd.DataFrame({"path": [str(file)], "age": [3]}),
    "uint8": lambda file: GREY,
    "one channel": lambda file: GREY[..., None],
    "colour": lambda file: np.stack([GREY] * 3, axis=-1),
    "opaque": lambda file: np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)]),
    "uint16": lambda file: GREY.astype(np.uint16) * 257,
    "int64": lambda file: GREY.astype(np.int64),
    "0 to 1": lambda file: GREY / 255,
    "0 to 255": lambda file: GREY.astype(np.float32),
    "fortran": lambda file: np.asfortranarray(GREY),
    "pillow": lambda file: Image.fromarray(GREY),
    "pillow, opened": Image.open,
    "bytes": lambda file: file.read_bytes(),
    "bytearray": lambda file: bytearray(file.read_bytes()),
    "open file": lambda file: file.open("rb"),
    "stream": lambda file: io.BytesIO(file.read_bytes()),
    "dataset": lambda file: dataset(),
    "bytes of DICOM": lambda file: encoded(dataset()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_answered_like_the_file(classifier: Classifier, file: Path, form: str) -> None:
    [expected] = classifier.predict(file)
    [answer] = classifier.predict(FORMS[form](file))
    assert answer.error is None
    assert answer.probability == pytest.approx(expected.probability, abs=2e-3 if "DICOM" in form else 1e-6)


def test_a_mixed_list_keeps_its_order(classifier: Classifier, file: Path) -> None:
    given = [GREY, str(file), b"no image", np.full((40, 40), np.nan), file.parent, np.zeros((4, 4), np.uint8)]
    found = list(classifier.predict(given))
    assert [p.path for p in found] == ["<array 0>", str(file), "<bytes 2>", "<array 3>", str(file), "<array 5>"]
    faults = [p.error or "" for p in found]
    assert [bool(text) for text in faults] == [False, False, True, True, False, True]
    assert "matches no known format" in faults[2]
    assert "not finite" in faults[3]
    assert "is 4x4 pixels" in faults[5]


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.array([[0, 4095]], np.uint16), 4095),
        (np.array([[0, 1023]], np.int32), 1023),
        (np.array([[0, 200]], np.int64), 255),
        (np.array([[0, 200.0]]), 255),
        (np.array([[0, 0.5]]), 1),
        (np.array([[0, 30000]], np.uint16), 32767),
        (np.array([[False, True]]), 1),
    ],
)
def test_the_rule_for_black_and_white(values: np.ndarray[Any, Any], white: float) -> None:
    [given] = items(np.tile(values, (16, 8)))
    pixels = given.open().decode(None).pixels
    np.testing.assert_allclose(pixels[0, :2], values[0].astype(float) / white, atol=1e-6)


@pytest.mark.parametrize(
    "values", [np.array([[-1024.0, 1024]]), np.array([[-5, 300]], np.int16), np.array([[0, 70000]])]
)
def test_other_values_are_scaled_by_their_own_range_with_a_note(values: np.ndarray[Any, Any]) -> None:
    [given] = items(np.tile(values, (16, 8)))
    image = given.open().decode(None)
    np.testing.assert_allclose(image.pixels[0, :2], [0, 1], atol=1e-6)
    assert "scaled by their own range" in image.notes[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((5, 32, 32)), "list"),
        (np.zeros((32, 32), complex), "complex128"),
        (np.zeros((32, 32), "M8[s]"), "datetime64"),
        (np.zeros(32), "\\[32\\]"),
        (io.StringIO("text"), "binary mode"),
        (pd.DataFrame({"file": ["a.png"]}), "column `path`"),
    ],
)
def test_what_an_image_cannot_be(classifier: Classifier, given: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        list(classifier.predict(given))


# --- tables and notebooks ---------------------------------------------------------------------------------


def test_a_frame_has_a_row_for_each_image(classifier: Classifier, file: Path) -> None:
    table = pneumoscope.frame(classifier.predict([file, "nowhere.png", GREY]))
    assert list(table["path"]) == [str(file), "nowhere.png", "<array 2>"]
    assert table["probability"].dtype == np.float64
    assert list(table["probability"].isna()) == [False, True, False]
    assert "no such file" in table.loc[1, "error"]
    one = next(classifier.predict(file))
    assert pneumoscope.frame(one).loc[0, "label"] == one.label
    empty = pneumoscope.frame([])
    assert list(empty.columns) == list(table.columns)
    with pytest.raises(TypeError, match="made of predictions"):
        pneumoscope.frame("chest.png")  # type: ignore[arg-type]


def test_a_notebook_shows_a_table_and_loses_nothing(classifier: Classifier, file: Path) -> None:
    predictions = classifier.predict([file, "<b>.png"] + [file] * 30)
    assert "of 32 images" in repr(predictions)
    shown = predictions._repr_html_()
    assert "&lt;b&gt;.png" in shown
    assert "<b>.png" not in shown
    assert "The first 20 only" in shown
    assert shown.count("<tr>") == 21
    assert len(list(predictions)) == 32
    assert "research use only" in next(classifier.predict(file))._repr_html_()


def test_evaluate_and_explain_take_arrays_and_frames(classifier: Classifier, file: Path, tmp_path: Path) -> None:
    images = [np.roll(GREY, shift, axis=1) for shift in range(8)]
    labels = [0, 1] * 4
    names = []
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        names.append(str(tmp_path / f"{number}.png"))
    ways = [
        pneumoscope.evaluate(classifier, images, labels=labels),
        pneumoscope.evaluate(classifier, names, labels=["NORMAL", "pneumonia"] * 4),
        pneumoscope.evaluate(classifier, [saved(image) for image in images], labels=np.array(labels, float)),
        pneumoscope.evaluate(classifier, pd.DataFrame({"path": names, "label": labels, "patient_id": range(8)})),
        pneumoscope.evaluate(classifier, pd.DataFrame({"path": images, "label": labels})),
    ]
    aurocs = [figures["metrics"]["auroc"]["value"] for figures in ways]
    assert len(set(aurocs)) == 1
    assert [figures["n"] for figures in ways] == [8] * 5
    maps = [pneumoscope.explain(classifier, given).values for given in (file, GREY, file.read_bytes())]
    assert (maps[0] == maps[1]).all()
    assert (maps[0] == maps[2]).all()
    with pytest.raises(TypeError, match="one image is expected"):
        pneumoscope.explain(classifier, images)


@pytest.mark.parametrize(
    ("labels", "words"), [(None, "no labels"), ([0, 1], "do not fit"), ([0, 2, 1], "'2' is unknown")]
)
def test_labels_that_do_not_fit(classifier: Classifier, labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pneumoscope.evaluate(classifier, [GREY, GREY, GREY], labels=labels)


# --- processes --------------------------------------------------------------------------------------------


def test_a_pickled_classifier_opens_its_bundle_again(make_bundle: Make, file: Path, tmp_path: Path) -> None:
    first = Classifier.load(make_bundle(tmp_path / "b"), operating_point="triage", gate=False)
    data = pickle.dumps(first)
    assert len(data) < 5_000, "no weights"
    again = pickle.loads(data)
    assert again.threshold == first.threshold
    assert next(again.predict(file)).probability == next(first.predict(file)).probability
    card = tmp_path / "b" / "card.json"
    card.write_text(card.read_text().replace("untrained", "another"))
    with pytest.raises(BundleError):
        pickle.loads(data)


def test_a_fork_of_a_process_that_used_pytorch_raises(make_bundle: Make, file: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b"), engine="torch")
    next(classifier.predict(file))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            next(classifier.predict(file))
        except ConfigError as error:
            code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
