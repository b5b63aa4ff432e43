"""One answer, whatever computes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.bundle.runtime import Engine, open_runtime
from pneumoscope.errors import BundleError, ConfigError
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier

Make = Callable[..., Path]


def pixels(count: int, side: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


@pytest.fixture
def bundle(make_bundle: Make, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["custom-cnn", "resnet18", "vgg11", "tf_efficientnet_lite0", "convnext_atto"])
def test_openvino_answers_as_pytorch_does(name: str, make_bundle: Make, tmp_path: Path) -> None:
    loaded = load_bundle(make_bundle(tmp_path / "bundle", name))
    fast, slow = (open_runtime(loaded, engine=engine) for engine in ("openvino", "torch"))  # type: ignore[arg-type]
    assert (fast.engine, slow.engine) == ("openvino", "torch")
    for count in (1, 5):
        images = pixels(count, loaded.preparation.size)
        answer = fast.logits(images)
        assert (answer.shape, answer.dtype) == ((count, 3), np.float32)
        np.testing.assert_allclose(answer, slow.logits(images), atol=2e-5)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_mirrored_answer_is_the_mean_of_both_views(engine: Engine, make_bundle: Make, tmp_path: Path) -> None:
    one, both = (load_bundle(make_bundle(tmp_path / str(mirror), mirror=mirror)) for mirror in (False, True))
    assert (one.preparation.mirror, both.preparation.mirror) == (False, True)
    images = pixels(5, one.preparation.size)
    views = [
        open_runtime(one, engine=engine).logits(view) for view in (images, np.ascontiguousarray(images[..., ::-1]))
    ]
    assert np.abs(views[0] - views[1]).max() > 0.01
    found = open_runtime(both, engine=engine).logits(images)
    np.testing.assert_allclose(found, (views[0] + views[1]) / 2, atol=2e-5)


def test_threads_share_a_runtime(bundle: Path) -> None:
    runtime = open_runtime(load_bundle(bundle), engine="openvino", threads=2)
    batches = [pixels(3, load_bundle(bundle).preparation.size, seed) for seed in range(12)]
    expected = [runtime.logits(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(runtime.logits, batches * 4), expected * 4, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_an_answer_is_not_overwritten_by_the_next(bundle: Path) -> None:
    runtime = open_runtime(load_bundle(bundle))
    side = load_bundle(bundle).preparation.size
    first = runtime.logits(pixels(2, side, 1))
    kept = first.copy()
    runtime.logits(pixels(2, side, 2))
    np.testing.assert_array_equal(first, kept)


def test_without_openvino_pytorch_computes_and_says_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_runtime(load_bundle(bundle)).engine == "torch"
    assert "pip install openvino" in caplog.text
    with pytest.raises(ConfigError, match="OpenVINO cannot compute, because it is not installed"):
        open_runtime(load_bundle(bundle), engine="openvino")


def test_a_network_that_cannot_be_exported_runs_on_pytorch(
    make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> bytes:
        raise RuntimeError("an operation without a word for it")

    monkeypatch.setattr("pneumoscope.networks.export.to_onnx", refuse)
    loaded = load_bundle(make_bundle(tmp_path / "bundle", name="not exported"))  # no other test has built this one
    assert "without a word for it" in loaded.card["runtime"]["reason"]
    assert open_runtime(loaded).engine == "torch"
    assert "holds no model for it" in caplog.text


def test_an_engine_that_does_not_exist(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="no engine is called 'abacus'"):
        Classifier.load(bundle, engine="abacus")
    with pytest.raises(ConfigError, match="the device is cuda"):
        Classifier.load(bundle, engine="openvino", device="cuda")


def test_a_model_that_was_changed_is_refused(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(bytes(data))
    for use in (lambda: load_bundle(bundle), lambda: open_runtime(loaded, engine="openvino")):
        with pytest.raises(BundleError, match=r"model\.onnx: the file was changed or damaged"):
            use()
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx: is missing"):
        load_bundle(bundle)
