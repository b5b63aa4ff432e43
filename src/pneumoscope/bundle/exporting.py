"""A bundle's network for programs that know nothing of ours: a folder for timm or a hub, or an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.files import atomic_folder, write_json, write_text
from pneumoscope.records import RESEARCH_ONLY

FORMS = ("timm", "onnx", "hf")
SAME = 1e-4  # largest difference of a logit


def export(bundle: Bundle, out: Path, to: str) -> Path:
    """Write the network of a bundle to a new folder in one of `FORMS`, and return the folder.

    `timm`: `config.json` and `model.safetensors`, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.
    `hf`: the same with a model card, as a hub takes it. `onnx`: `model.onnx`. Each has `preprocessing.json`: what is
    done to an image before, and to the logits after. What timm loads is compared with the bundle before it is written.

    Raises:
        ConfigError: there is no such form, or the network is none that timm or ONNX knows.
        StorageError: the folder exists and is not empty, or cannot be written.
    """
    if to not in FORMS:
        raise ConfigError(f"no form is called {to!r}", remedy=f"use one of {', '.join(FORMS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError("exists already", path=out, remedy="choose another --out")
    with atomic_folder(out) as temporary:
        write_json(temporary / "preprocessing.json", preprocessing(bundle, to))
        if to == "onnx":
            model = bundle.runtime_files().get("model.onnx")
            if model is None:
                raise ConfigError("the bundle holds no ONNX model", path=bundle.folder, remedy="export its original")
            (temporary / "model.onnx").write_bytes(model)
        else:
            _write_timm(bundle, temporary)
        if to == "hf":
            write_text(temporary / "README.md", model_card(bundle))
    return out


def preprocessing(bundle: Bundle, to: str) -> dict[str, Any]:
    """Return what is done to an image before the network and to its logits after, as JSON."""
    preparation, card = bundle.preparation, bundle.card
    steps = [
        "grey image, 0 black to 255 white, display window of the DICOM header applied",
        *(["cut down to the lungs (Pneumoscope's segmenter; the whole image where it finds none)"]
          if preparation.crop == "lungs" else []),
        f"resized to {preparation.canvas} x {preparation.canvas}"
        + (" whatever its shape" if preparation.aspect == "squash" else " after padding to a square with black"),
        f"resized to {preparation.size} x {preparation.size} with antialiasing",
        *(["its histogram made even"] if preparation.tone == "equalise" else []),
    ]  # fmt: skip
    mean, std = list(preparation.mean), list(preparation.std)
    if to == "onnx":
        steps.append("input `pixels` uint8 [n, size, size]; mean, deviation and mirror image are inside the model")
    else:
        steps.append("repeated to three channels, divided by 255, less `mean`, divided by `std`")
        if preparation.mirror:
            steps.append("the logits are the mean of those of the image and of its mirror image")
    temperature, bias = bundle.calibration
    return {
        "notice": RESEARCH_ONLY,
        "bundle": {"name": bundle.name, "sha256": bundle.sha256},
        "steps": steps,
        "size": preparation.size, "mean": mean, "std": std, "mirror": preparation.mirror,
        "classes": list(card["network"]["classes"]),
        "probability": "z = log(sum of exp of the logits after the first) - first; p = 1 / (1 + exp(-(z / T + b)))",
        "temperature": temperature, "bias": bias,
        "thresholds": {name: point["threshold"] for name, point in card["operating_points"].items()},
    }  # fmt: skip


def model_card(bundle: Bundle) -> str:
    """Return the README of a model hub: what it is for, on whom it was trained, its limits."""
    card = bundle.card
    limits = "\n".join(f"- {limit}" for limit in card.get("limits", ()))
    population = (card.get("population") or {}).get("description", "not recorded")
    return (
        "---\nlibrary_name: timm\npipeline_tag: image-classification\ntags: [chest-x-ray, pneumonia]\n---\n\n"
        f"# {bundle.name}\n\n{RESEARCH_ONLY}\n\n"
        f"{card['network']['name']}, classes {', '.join(card['network']['classes'])}. Trained on: {population}.\n\n"
        "`preprocessing.json` says what is done to an image before, and to the logits after.\n\n"
        '```python\nimport timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n```\n\n'
        f"## Limits\n\n{limits or '- none are recorded; that does not mean that there are none'}\n"
    )


def _write_timm(bundle: Bundle, folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    network, name = bundle.network, str(bundle.card["network"]["name"])
    classes = list(bundle.card["network"]["classes"])
    refused = ConfigError(f"timm has no network like this {name}", path=bundle.folder, remedy="export --to onnx")
    model: Any = network.encoder.model
    settings: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    classifier = settings.get("classifier")
    if not timm.is_model(name) or not isinstance(classifier, str):
        raise refused
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    head: Any = network.head[-1]
    tensors |= {f"{classifier}.weight": head.weight.clone(), f"{classifier}.bias": head.bias.clone()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    preparation = bundle.preparation
    usual = {key: settings[key] for key in ("first_conv", "pool_size") if key in settings}
    config = {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": network.features,
        "label_names": classes,
        "pretrained_cfg": {
            **usual,
            "tag": "pneumoscope",
            "input_size": [3, preparation.size, preparation.size],
            "mean": list(preparation.mean), "std": list(preparation.std),
            "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash",
            "num_classes": len(classes), "classifier": classifier,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    images = torch.rand(2, 3, preparation.size, preparation.size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            apart = float((loaded(images) - network(images)).abs().max())
    except RuntimeError as error:
        raise refused from error
    if not apart <= SAME:
        raise refused
