"""A bundle's network answers the same where nothing of ours is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.bundle.exporting import export
from pneumoscope.errors import ConfigError, StorageError

# What a stranger does: reads preprocessing.json, and loads the rest by timm or OpenVINO.
STRANGER = """
import json, sys
from pathlib import Path
import numpy as np
folder, pixels, out = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
facts = json.loads((folder / "preprocessing.json").read_text())
if (folder / "model.onnx").exists():
    import openvino
    model = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = model(pixels)[0]
else:
    import timm, torch
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.from_numpy(pixels).float()[:, None].repeat(1, 3, 1, 1) / 255
    images = (images - torch.tensor(facts["mean"])[:, None, None]) / torch.tensor(facts["std"])[:, None, None]
    with torch.inference_mode():
        logits = model(images)
        if facts["mirror"]:
            logits = (logits + model(images.flip(-1))) / 2
    logits = logits.numpy()
assert "pneumoscope" not in sys.modules
np.save(out, logits)
"""


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("b") / "b", network="resnet10t", classes=3, size=64, mirror=True)


@pytest.mark.parametrize("to", ["timm", "onnx", "hf"])
def test_a_stranger_gets_the_same_logits(to: str, bundle: Path, tmp_path: Path) -> None:
    folder = export(load_bundle(bundle), tmp_path / "out", to)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "pixels.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = load_bundle(bundle)
    from pneumoscope.networks.export import Deployed

    with torch.inference_mode():
        expected = Deployed(loaded.network, loaded.preparation)(torch.from_numpy(pixels)).numpy()
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() < 1e-4
    facts = json.loads((folder / "preprocessing.json").read_text())
    assert facts["classes"] == ["normal", "bacterial", "viral"]
    assert facts["thresholds"] == {"balanced": 0.5, "triage": 0.2}
    assert (folder / "README.md").exists() is (to == "hf")


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    make_bundle: Callable[..., Path], bundle: Path, tmp_path: Path
) -> None:
    ours = load_bundle(make_bundle(tmp_path / "ours"))
    with pytest.raises(ConfigError, match="timm has no network like this"):
        export(ours, tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no form is called"):
        export(ours, tmp_path / "out", "keras")
    with pytest.raises(StorageError, match="exists already"):
        export(load_bundle(bundle), tmp_path, "onnx")
