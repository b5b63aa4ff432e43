"""Planted shortcuts are found, a network that reads the lungs is left alone, and what cannot be tested is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import DataError
from pneumoscope.predict import Classifier
from pneumoscope.records import Sample
from pneumoscope.shortcuts.radiographs import drawn
from pneumoscope.shortcuts.shortcut_card import shortcut_card
from pneumoscope.shortcuts.verdict import AMBER, GREEN, LIGHTS, NOT_TESTED, RED

Card = dict[str, Any]


def lights(card: Card) -> dict[str, str]:
    return {item["key"]: item["light"] for item in card["items"]}


def facts(card: Card, key: str) -> Card:
    return next(item["facts"] for item in card["items"] if item["key"] == key)


@pytest.fixture(scope="module")
def of_lungs(
    make_toys: Callable[..., Any], lung_reader: Classifier, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Card, Path]:
    toys, out = make_toys(), tmp_path_factory.mktemp("lungs")
    return shortcut_card(lung_reader, toys.manifest, out, masks=toys.masks), out


@pytest.fixture(scope="module")
def of_corner(
    make_toys: Callable[..., Any], corner_reader: Classifier, tmp_path_factory: pytest.TempPathFactory
) -> Card:
    toys = make_toys(marked=True)
    return shortcut_card(corner_reader, toys.manifest, tmp_path_factory.mktemp("corner"), masks=toys.masks)


def test_a_network_that_reads_the_lungs_is_green(of_lungs: tuple[Card, Path]) -> None:
    card, _ = of_lungs
    assert card["conditions"]["untouched"]["auroc"]["value"] == 1
    found = lights(card)
    green = (
        "lung_region_removed", "lungs_removed", "lungs_only", "border_masked", "corners_masked", "letter_pasted",
        "attention_gradcam",
    )  # fmt: skip
    assert {key: found[key] for key in green} == dict.fromkeys(green, GREEN)
    assert found["hotspot"] == AMBER  # it always reads the same places, within the lungs
    assert RED not in {found[key] for key in found if key != "brighter"}  # it takes brighter lungs for opacities


def test_a_network_that_reads_a_corner_is_red(of_corner: Card) -> None:
    found = lights(of_corner)
    red = ("lung_region_removed", "lungs_removed", "border_masked", "corners_masked", "attention_gradcam", "hotspot")
    assert {key: found[key] for key in red} == dict.fromkeys(red, RED)
    assert of_corner["verdict"] == RED
    assert facts(of_corner, "lung_region_removed")["kept"]["value"] == pytest.approx(1)
    assert facts(of_corner, "corners_masked")["lost"]["value"] == pytest.approx(0.5, abs=0.05)


def test_with_everything_removed_nothing_is_told(of_lungs: tuple[Card, Path], of_corner: Card) -> None:
    for card in (of_lungs[0], of_corner):
        assert card["conditions"]["everything_removed"]["auroc"]["value"] == 0.5


def test_a_letter_moves_the_reader_of_corners_alone(of_lungs: tuple[Card, Path], of_corner: Card) -> None:
    assert facts(of_corner, "letter_pasted")["shift"]["value"] > 0.05
    assert facts(of_lungs[0], "letter_pasted")["shift"]["value"] == 0


def test_the_card_is_a_file_with_pictures(of_lungs: tuple[Card, Path]) -> None:
    card, out = of_lungs
    assert json.loads((out / "audit.json").read_text())["verdict"] == card["verdict"]
    assert card["verdict"] in LIGHTS
    files = [record["file"] for records in card["figures"].values() for record in records]
    assert len(files) > 15
    assert all((out / file).is_file() for file in files)
    assert card["left_out"] == {"unread": 0, "without_lungs": 0}


def test_the_same_seed_gives_the_same_card(
    make_toys: Callable[..., Any], lung_reader: Classifier, tmp_path: Path
) -> None:
    toys = make_toys(48)
    cards = [
        shortcut_card(lung_reader, toys.manifest, tmp_path / str(n), masks=toys.masks, images=44) for n in range(2)
    ]
    for card in cards:
        del card["seconds"]
    assert json.dumps(cards[0], default=float) == json.dumps(cards[1], default=float)
    assert cards[0]["n"] == 44


def test_without_labels_the_rest_is_tested(
    make_toys: Callable[..., Any], lung_reader: Classifier, tmp_path: Path
) -> None:
    toys = make_toys(labelled=False)
    card = shortcut_card(lung_reader, toys.manifest, tmp_path, masks=toys.masks)
    found = lights(card)
    assert {found[key] for key in ("lung_region_removed", "lungs_removed", "lungs_only", "metadata")} == {NOT_TESTED}
    assert found["letter_pasted"] == found["attention_gradcam"] == GREEN
    assert "not all images have a label" in {item["reason"] for item in card["items"]}


def test_too_few_patients_are_said(make_toys: Callable[..., Any], lung_reader: Classifier, tmp_path: Path) -> None:
    toys = make_toys(24)
    card = shortcut_card(lung_reader, toys.manifest, tmp_path, masks=toys.masks)
    reasons = {item["key"]: item["reason"] for item in card["items"]}
    assert "at least 10 are needed" in reasons["lung_region_removed"]
    assert "maps of 20 are needed" in reasons["hotspot"]


def test_images_without_lungs_are_left_out_and_counted(
    make_toys: Callable[..., Any], lung_reader: Classifier, tmp_path: Path
) -> None:
    toys = make_toys(48)

    def blind(images: Any) -> Any:
        masks = toys.masks(images)
        masks[::8] = 0
        return masks

    assert shortcut_card(lung_reader, toys.manifest, tmp_path, masks=blind)["left_out"]["without_lungs"] == 6
    with pytest.raises(DataError, match="no image shows two lungs"):
        shortcut_card(lung_reader, toys.manifest, tmp_path, masks=lambda images: toys.masks(images) * 0)


def test_embeddings_that_know_the_site_are_told(
    make_toys: Callable[..., Any], corner_reader: Classifier, tmp_path: Path
) -> None:
    """The site puts the marker there, whether ill or not, and leaves the grey levels as they are."""
    toys = make_toys(100)
    rng = np.random.default_rng(0)
    samples, masks = [], {}
    for index, sample in enumerate(toys.manifest.samples):
        image, here = toys.canvases[index].copy(), bool(rng.random() < 0.5)
        image[1:7, 1:7] = 255 if here else 120
        image[-7:-1, -7:-1] = 120 if here else 255
        path = tmp_path / f"{index:03d}.png"
        Image.fromarray(image).save(path)
        masks[image.tobytes()] = toys.lungs[index]
        samples.append(replace(sample, path=str(path), patient_id=str(index), site="A" if here else "B"))
    manifest = replace(toys.manifest, samples=tuple(samples))
    card = shortcut_card(
        corner_reader, manifest, tmp_path / "out", masks=lambda x: np.stack([masks[i.tobytes()] for i in x])
    )
    item = next(item for item in card["items"] if item["key"] == "probes")
    assert item["light"] == "amber"
    found = item["facts"]["attributes"]["site A" if "site A" in item["facts"]["attributes"] else "site B"]
    assert found["embedding"]["value"] > 0.95
    assert found["exposure"]["value"] < 0.8


def test_a_draw_keeps_the_shares_of_the_labels() -> None:
    samples = [Sample(str(i), str(i), "PNEUMONIA" if i % 4 else "NORMAL") for i in range(400)]
    some = drawn(samples, 40, 1)
    assert len(some) == 40
    assert sum(sample.label == "NORMAL" for sample in some) == 10
    assert some == sorted(some, key=lambda sample: int(sample.path))
    assert drawn(samples, 40, 2) != some
    assert drawn(samples, 400, 1) == samples
