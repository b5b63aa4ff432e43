"""A bundle comes back bit for bit, or not at all."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pneumoscope.bundle.bundle import add_evidence, load_bundle, save_bundle
from pneumoscope.bundle.card import identity, sealed
from pneumoscope.errors import BundleError, StorageError
from pneumoscope.files import sha256_bytes, sha256_file
from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.network import Network, build_network, round_weights
from pneumoscope.records import RESEARCH_ONLY

Make = Callable[..., Path]
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


@pytest.fixture
def bundle(make_bundle: Make, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def logits(network: Network) -> torch.Tensor:
    network.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        return network(X)


@pytest.mark.parametrize("name", ["custom-cnn", "mobilenetv3_small_100", "convnext_atto"])
def test_what_was_rounded_and_saved_answers_the_same_to_the_bit(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    network, _ = build_network(name, classes=3)
    before = logits(network)
    round_weights(network)
    rounded = logits(network)
    card = {
        "name": "a", "network": {"name": name, "classes": ["normal", "bacterial", "viral"]}, "calibration": {},
        "operating_points": {}, "operating_point": "balanced",
    }  # fmt: skip
    preparation = Preparation(32, 40, "pad", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_bundle(tmp_path / "a", network, preparation, card)
    loaded = load_bundle(tmp_path / "a")
    assert torch.equal(logits(loaded.network), rounded)
    assert not torch.equal(before, rounded), "rounding must be seen, or this test shows nothing"
    assert loaded.preparation == preparation
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], value), key
    save_bundle(tmp_path / "b", loaded.network, loaded.preparation, card)
    assert sha256_file(tmp_path / "b" / "weights.safetensors") == sha256_file(tmp_path / "a" / "weights.safetensors")
    assert load_bundle(tmp_path / "b").sha256 == loaded.sha256


def test_matrices_are_stored_in_half_and_vectors_in_single_precision(bundle: Path) -> None:
    for key, value in load_file(bundle / "weights.safetensors").items():
        if value.is_floating_point():
            assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32), key


def test_a_loaded_network_is_ready_and_cannot_learn(bundle: Path) -> None:
    network = load_bundle(bundle).network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_card_says_what_it_is(bundle: Path) -> None:
    card = json.loads((bundle / "card.json").read_text())
    assert card["schema"] == 1
    assert card["notice"] == RESEARCH_ONLY
    data = (bundle / "weights.safetensors").read_bytes()
    assert card["weights"] == {"file": "weights.safetensors", "sha256": sha256_bytes(data), "bytes": len(data)}
    loaded = load_bundle(bundle)
    assert loaded.name == "untrained"
    assert loaded.label == f"untrained@{card['sha256'][:12]}"


def test_shipped_bundles_are_called_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_bundle(Path("default")).sha256 == load_bundle().sha256
    assert load_bundle(Path("fast")).sha256 != load_bundle().sha256
    assert load_bundle(Path("fast")).card["quantised_from"]["sha256"] == load_bundle().sha256
    monkeypatch.chdir(tmp_path)
    Path("default").mkdir()
    with pytest.raises(BundleError, match=r"holds no card\.json"):  # a folder here comes first
        load_bundle(Path("default"))
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(Path("some/fast"))


def test_the_shipped_bundle_is_whole_and_says_what_it_has_shown() -> None:
    bundle = load_bundle()
    assert bundle.card["evidence"]["validation"]["metrics"]["auroc"]["value"] > 0.5
    assert bundle.card["limits"]
    assert bundle.card["notice"] == RESEARCH_ONLY


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_in_the_weights_is_noticed(bundle: Path, seed: int) -> None:
    file, rng = bundle / "weights.safetensors", np.random.default_rng(seed)
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.safetensors: the file was changed or damaged"):
        load_bundle(bundle)


def test_a_flipped_bit_anywhere_in_the_card_is_noticed_or_means_the_same(bundle: Path) -> None:
    file, original = bundle / "card.json", json.loads((bundle / "card.json").read_text())
    data, noticed = file.read_bytes(), 0
    rng = np.random.default_rng(0)
    for position in rng.choice(len(data), 200, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            card = load_bundle(bundle).card
        except BundleError:
            noticed += 1
        else:
            assert card == original  # 1e-05 and 1E-05 are one number
    assert noticed > 190


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("calibration", {"temperature": 1.0}),
        ("operating_points", {"balanced": {"threshold": 0.1}, "triage": {"threshold": 0.2}}),
        ("name", "something better"),
        ("limits", ["none"]),
    ],
)
def test_a_card_edited_by_hand_is_refused(bundle: Path, section: str, value: object) -> None:
    card = json.loads((bundle / "card.json").read_text())
    card[section] = value
    (bundle / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="changed after it was written"):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"card"', "{}", '{"schema": "one"}', '{"schema": 1}', "\x00"])
def test_what_is_no_card_is_an_error_of_one_line(bundle: Path, text: str) -> None:
    (bundle / "card.json").write_text(text)
    with pytest.raises(BundleError, match="damaged or is no card") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rest", [{}, {"anything": "else"}])
def test_a_newer_format_asks_for_an_update(bundle: Path, rest: dict[str, str]) -> None:
    (bundle / "card.json").write_text(json.dumps({"schema": 2, **rest}))
    with pytest.raises(BundleError, match=r"format 2.*update Pneumoscope"):
        load_bundle(bundle)


def test_missing_files_are_named(bundle: Path, tmp_path: Path) -> None:
    (bundle / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match=r"weights\.safetensors: is missing"):
        load_bundle(bundle)
    (bundle / "card.json").unlink()
    with pytest.raises(BundleError, match="no bundle"):
        load_bundle(bundle)
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(tmp_path / "elsewhere")


def test_weights_of_another_network_are_refused(bundle: Path, make_bundle: Make, tmp_path: Path) -> None:
    """Whole files that do not belong together: the card of one bundle, and weights that its hash names."""
    network = load_bundle(bundle).network
    network.encoder.model.stages[0].reduce[0].weight = torch.nn.Parameter(torch.zeros(24, 1, 3, 3))
    card = {key: value for key, value in load_bundle(bundle).card.items() if key not in ("sha256", "card_sha256")}
    save_bundle(tmp_path / "odd", network, load_bundle(bundle).preparation, card)
    with pytest.raises(BundleError, match=r"does not fit its network.*stages\.0") as caught:
        _ = load_bundle(tmp_path / "odd").network
    assert "\n" not in str(caught.value)


def test_other_weights_in_their_place_are_refused(bundle: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    shutil.copy(tmp_path / "other.safetensors", bundle / "weights.safetensors")
    with pytest.raises(BundleError, match="changed or damaged"):
        load_bundle(bundle)


# --- writing ----------------------------------------------------------------------------------------------


def test_evidence_is_added_without_a_change_of_identity(bundle: Path) -> None:
    before = load_bundle(bundle)
    add_evidence(bundle, {"validation": {"auroc": 0.9, "low": float("nan")}})
    add_evidence(bundle, {"external": {"auroc": 0.8}})
    after = load_bundle(bundle)
    assert after.sha256 == before.sha256
    assert after.card["card_sha256"] != before.card["card_sha256"]
    assert after.card["evidence"] == {"validation": {"auroc": 0.9, "low": None}, "external": {"auroc": 0.8}}
    assert torch.equal(logits(after.network), logits(before.network))


@pytest.mark.parametrize(
    "sections",
    [{"calibration": {"temperature": 2.0}}, {"operating_point": "triage"}, {"seed": 1}, {"size": 48}, {"classes": 2}],
)
def test_what_changes_an_answer_changes_the_identity(
    bundle: Path, make_bundle: Make, tmp_path: Path, sections: dict[str, object]
) -> None:
    other = load_bundle(make_bundle(tmp_path / "other", **sections))
    assert other.sha256 != load_bundle(bundle).sha256


def test_words_do_not_change_the_identity(bundle: Path, make_bundle: Make, tmp_path: Path) -> None:
    other = load_bundle(make_bundle(tmp_path / "other", name="new name", limits=["adults"]))
    assert other.sha256 == load_bundle(bundle).sha256


def test_a_bundle_that_cannot_be_written_leaves_the_old_one(
    bundle: Path, make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = load_bundle(bundle).sha256

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="no space left"):
        make_bundle(bundle, seed=9)
    monkeypatch.undo()
    assert load_bundle(bundle).sha256 == old
    assert list(bundle.parent.iterdir()) == [bundle], "nothing half-written stays behind"


def test_loading_needs_no_network_connection(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_bundle(bundle)


def test_a_trained_bundle_names_no_place_of_this_machine(trained: Path) -> None:
    text = (trained / "bundle" / "card.json").read_text()
    assert str(trained.parent) not in text
    assert str(Path.home()) not in text

    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [found for item in value.values() for found in strings(item)]
        if isinstance(value, list):
            return [found for item in value for found in strings(item)]
        return [value] if isinstance(value, str) else []

    assert [found for found in strings(json.loads(text)) if found.startswith("/")] == []


def test_a_folder_of_other_things_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    network, preparation = load_bundle(bundle).network, load_bundle(bundle).preparation
    card = {key: value for key, value in load_bundle(bundle).card.items() if key not in ("sha256", "card_sha256")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(StorageError, match="holds other files"):
        save_bundle(tmp_path / "mine", network, preparation, card)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("change", [{"canvas": None}, {"extra": 1}])
def test_a_card_of_another_make_is_a_clear_error(bundle: Path, change: dict[str, object]) -> None:
    card = json.loads((bundle / "card.json").read_text())
    card["preparation"] |= change
    if change.get("canvas", 0) is None:
        del card["preparation"]["canvas"]
    card["sha256"] = identity(card)
    (bundle / "card.json").write_text(json.dumps(sealed(card)))
    with pytest.raises(BundleError, match="not of this version"):
        load_bundle(bundle)


def test_a_card_that_nests_without_end_is_damaged(bundle: Path) -> None:
    (bundle / "card.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="damaged or is no card"):
        load_bundle(bundle)


def test_evidence_of_another_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="evidence of another bundle"):
        add_evidence(bundle, {"validation": {"bundle": {"sha256": "0" * 64}}})


def test_a_network_first_asked_for_in_inference_mode_still_has_gradients(make_bundle: Make, tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "b"))
    image = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        bundle.network(image)
    asked = image.clone().requires_grad_(True)
    bundle.network(asked).sum().backward()
    assert asked.grad is not None
