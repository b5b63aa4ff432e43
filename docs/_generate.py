"""Writes what the pages say of the code from the code: commands, experiment file, conformance, modules, the house.

Run `python docs/_generate.py` after a change; `test_docs.py` fails where a page is stale.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import typer
from _house import NOTICE, architecture_page, modules_page
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from pneumoscope.cli.root import app
from pneumoscope.config import Experiment, Section

DOCS = Path(__file__).parent

CLI_HEAD = f"""{NOTICE}

# Command line

Results go to stdout, messages to stderr. Every command answers `--help`; `pneumoscope --version` prints the
version. `--bundle` defaults to the bundle shipped in the package.

A *data source* is one of: a folder `train|val|test/NORMAL|PNEUMONIA/*`, or one split of it
(`NORMAL|PNEUMONIA/*`); a MedMNIST `.npz`; a CSV manifest; a folder of DICOM files with an optional `labels.csv`.
[File formats](formats.md) describes each.

| exit code | meaning |
|---|---|
| 0 | good |
| 1 | `data check` found what would void a result; `audit` red; `validate` void; `adapt` found no help; `train` failed |
| 2 | usage, configuration, data source, weights, bundle or disk: the message names the file and the remedy |
| 3 | some images could not be read; the others were processed |
| 4 | `monitor`: an alarm is open |
| 130 | interrupted |
"""

EXPERIMENT_HEAD = f"""{NOTICE}

# Experiment file

One TOML file describes one training. Every key is optional; an unknown key, a wrong type or a value outside its
range is an error that names the file and the key. `RUN/config.toml` holds the experiment with every value spelled
out.
"""

EXPERIMENT_TAIL = """
## Example

```toml
# example.toml
title = "EfficientNet-Lite0, frozen feature extractor"
seed = 0

[data]
test_fraction = 0.15

[prepare]
size = 224

[model]
network = "tf_efficientnet_lite0"
weights = "offline"
strategy = "frozen"

[train]
classes = 3
head_epochs = 40
```
"""

MEANING = {
    "title": "Shown in the report; the file's name where empty.",
    "seed": "Of the division, the initial weights, the order of images, augmentation, dropout and mixup.",
    "data.split": "`grouped`: all that the source does not mark test is joined and divided anew, patients whole. "
    "`source`: the source's own train and val.",
    "data.seed": "Of the division of patients; the experiment's own seed where it is missing.",
    "data.val_fraction": "Share of the images that validate: they choose the epoch, the temperature, the thresholds.",
    "data.test_fraction": "Share of the images that are neither trained on nor chosen with, where none are marked "
    "test by the source.",
    "data.folds": "Cross-validation: the number of parts; `fold` is the test part, and `test_fraction` is ignored.",
    "data.fold": "Which part is held out, from 0.",
    "prepare.size": "Side of the network's input, pixels.",
    "prepare.canvas": "Side of the cached square from which crops are drawn, pixels; `size` where it is missing.",
    "prepare.aspect": "`squash` to a square, or `pad` with black first.",
    "prepare.mean": "Subtracted per RGB channel from values in 0..1; those of the network's weights where missing.",
    "prepare.std": "Divided by, per RGB channel; those of the network's weights where missing.",
    "prepare.crop": "`lungs`: what lies more than a margin away from the lungs is cut away first.",
    "prepare.tone": "`as-is`, or `equalise` the histogram of each image: no exposure is left to see.",
    "prepare.mirror": "Answer with the mean over the image and its mirror image, in twice the time.",
    "augment.rotation": "Degrees, uniform in ± this.",
    "augment.crop_scale": "Share of the area that a random crop keeps, from and to.",
    "augment.crop_ratio": "Width to height of a random crop, from and to; used where `crop_scale` is not 1 to 1.",
    "augment.flip": "Probability of mirroring left and right.",
    "augment.shift": "Fraction of the side, uniform in ± this, in both directions.",
    "augment.zoom": "Factor between 1 / (1 + zoom) and 1 + zoom.",
    "augment.brightness": "Added to values in 0..1, uniform in ± this.",
    "augment.contrast": "Factor about the mean between 1 / (1 + contrast) and 1 + contrast.",
    "augment.gamma": "Exponent between 1 / (1 + gamma) and 1 + gamma.",
    "augment.blur": "Largest standard deviation of a Gaussian blur, in fractions of the side; half of the images "
    "get one.",
    "augment.noise": "Largest standard deviation of Gaussian noise, in 0..1.",
    "augment.erase": "Probability of filling a rectangle with one grey.",
    "augment.frame": "Probability of painting over up to an eighth of each side.",
    "augment.surroundings": "Probability that all but the lungs is that of another training image.",
    "augment.transplant": "How often the lungs are those of another training image, of either class alike, and so is "
    "the label.",
    "augment.blank": "How often the lungs are painted over; both classes are then equally right.",
    "augment.lungs": "Probability that the crop is the box of the lungs, its edges moved up to a quarter inward.",
    "augment.framing": "Probability that the crop puts the lungs where those of another training image lie.",
    "augment.style": "Probability that the power spectrum, and that the greys, move to those of the other class.",
    "model.network": "`custom-cnn`, `resnet20_mlnet`, or the name of any timm network.",
    "model.weights": "`none`; `offline`, an installed package, for `tf_efficientnet_lite0` (`lite1` and "
    "`lite2` with the extra `weights`); `hub`, timm's hub; "
    "or the path of a `.safetensors` or `.pth` file, of a folder with `model.safetensors`, or of a bundle, relative to "
    "this file.",
    "model.strategy": "`scratch`; `frozen`: the pretrained encoder stays as it is and a linear head is trained; "
    "`finetune`: the head first, then head and encoder. The last two need weights. The head alone is trained on "
    "features computed once; `frozen` with augmentation computes them anew for each image.",
    "model.unfreeze": "How many of the last stages of the encoder `finetune` frees; 0 frees all.",
    "model.freeze_batchnorm": "Keep all batch-norm layers in evaluation mode. Those of frozen stages always are.",
    "model.dropout": "Before the linear head.",
    "model.drop_path": "Stochastic depth, for timm networks that have it.",
    "train.classes": "2: normal, pneumonia. 3: normal, bacterial, viral; pneumonia of unknown subtype may be either.",
    "train.epochs": "Of training on images: `scratch`, and the second phase of `finetune`.",
    "train.head_epochs": "Of training the head alone: `frozen`, and the first phase of `finetune`.",
    "train.refit_epochs": "Of training the head alone once more, after fine-tuning; 0 is off.",
    "train.batch_size": "Images per step, over all devices.",
    "train.rate": "Largest learning rate of AdamW when training on images; warm-up, then cosine decay to a hundredth.",
    "train.head_rate": "The same when training the head alone.",
    "train.layer_decay": "Factor on the rate from each stage to the one before it.",
    "train.weight_decay": "Of AdamW; none on biases and normalisation.",
    "train.warmup": "Share of the steps during which the rate rises.",
    "train.imbalance": "`weights`: the loss gives both classes equal totals. `sampler`: both are drawn equally often.",
    "train.label_smoothing": "Share of the target spread evenly over the classes.",
    "train.mixup": "Parameter of the Beta distribution of the mixing ratio; 0 is off.",
    "train.ema": "Decay of an exponential moving average of the weights, which is then what is kept; 0 is off.",
    "train.clip": "Largest norm of the gradient; 0 is off.",
    "train.patience": "Epochs without a better validation AUROC after which training stops; 0 is off.",
    "train.sizes": "Input sides of equal shares of the epochs, ascending to `prepare.size`; empty for one size.",
    "train.teachers": "Other networks that have a share in the targets, relative to this file: bundles, or "
    "`predictions.csv` files about the training images.",
    "train.teacher_share": "Weight of the teachers' mean opinion in the target; the label has the rest.",
    "train.attention": "Weight in the loss of the share of evidence that lies outside the lungs; 0 is off.",
    "train.stress": "Draws of the validation images, in turn in the style, and in the style and framing, of the other "
    "class: they choose the epoch, calibrate, and give the operating points; 0: the images as they are do.",
    "train.precision": "Arithmetic of training, as Lightning names it.",
    "train.workers": "Processes that prepare batches; 0 prepares them in the training process.",
}


_VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "", datetime: "YYYY-MM-DD"}

# --- commands ---------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Return the page of the commands."""
    parts = [CLI_HEAD]
    for name, function in _commands(app, "pneumoscope"):
        parameters = list(_parameters(function))
        usage = " ".join([name, *(usage for usage, *_ in parameters if usage)])
        rows = [f"| {cell} | {default} | {text} |" for _, cell, default, text in parameters]
        table = ["| argument | default | meaning |", "|---|---|---|", *rows]
        parts.append("\n".join([f"## {name}", "", inspect.getdoc(function) or "", "", f"`{usage}`", "", *table, ""]))
    return "\n".join(parts)


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{prefix} {inner.name}")
    own = group.registered_callback
    if own is not None and own.callback is not None and group.info.invoke_without_command is True:
        yield prefix, own.callback
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__}", command.callback


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (part of the usage line, cell, default, meaning) of each parameter; options last."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if hints[parameter.name] is typer.Context:
            continue
        kind, *notes = get_args(hints[parameter.name])
        info = next(note for note in notes if isinstance(note, ArgumentInfo | OptionInfo))
        needed = parameter.default is parameter.empty
        default = "required" if needed else _literal(parameter.default, info.show_default)
        if isinstance(info, ArgumentInfo):
            shown = parameter.name.upper() + ("…" if get_origin(kind) is list else "")
            yield shown, f"`{shown}`", default, str(info.help)
            continue
        usage = f"{_flag(info, parameter.name)} {_VALUES[_plain(kind)]}".strip()
        yield usage if needed else "", f"`{usage}`", default, f"{info.help}{_span(info)}"


def _flag(info: OptionInfo, name: str) -> str:
    given = [info.default, *(info.param_decls or ())]  # in Annotated, typer takes the first name for the default
    names = [item for item in given if isinstance(item, str) and item.startswith("--")]
    return names[0] if names else "--" + name.replace("_", "-")


def _plain(kind: Any) -> Any:
    found = next((arg for arg in get_args(kind) if arg is not types.NoneType), kind)
    return get_args(found)[0] if get_origin(found) is list else found


def _literal(value: Any, shown: bool | str) -> str:
    return "" if value is None or value is False or not shown else f"`{value}`"


def _span(info: OptionInfo) -> str:
    if info.max is None:
        return f" At least {info.min}." if info.min else ""
    return f" {info.min} to {info.max}."


# --- experiment -------------------------------------------------------------------------------------------


def experiment_page() -> str:
    """Return the page of the experiment file; raises `ValueError` where a key has no meaning here or is gone."""
    keys = dict(_keys(Experiment))
    if astray := sorted(set(keys) ^ set(MEANING)):
        raise ValueError(f"MEANING and config.py differ in {', '.join(astray)}")
    parts = [EXPERIMENT_HEAD, "## Top level\n"]
    parts += _table({key: field for key, field in keys.items() if "." not in key})
    for name, field in Experiment.model_fields.items():
        if _is_section(field.annotation):
            section = {key: field for key, field in keys.items() if key.startswith(f"{name}.")}
            parts += [f"\n## [{name}]\n", _prose(inspect.getdoc(field.annotation) or ""), "", *_table(section)]
    return "\n".join(parts) + "\n" + EXPERIMENT_TAIL


def _prose(docstring: str) -> str:
    return docstring.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")


def _keys(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            yield from _keys(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", field


def _is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, Section)


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        kind = _type(field.annotation, field.metadata)
        default = "" if field.default is None else f"`{_toml(field.default)}`"
        rows.append(f"| `{key.rpartition('.')[2]}` | {kind} | {default} | {MEANING[key]} |")
    return rows


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _type(annotation: Any, metadata: list[Any]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], [note for item in args[1:] for note in _notes(item)])
    if origin is Literal:
        return ", ".join(f"`{_toml(value)}`" for value in args)
    if origin in (Union, types.UnionType):
        return _type(next(arg for arg in args if arg is not types.NoneType), metadata)
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of {_type(args[0], [])}"
    if origin is tuple:
        return f"[{', '.join(_type(arg, []) for arg in args)}]"
    name = {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]
    return f"{name} {', '.join(filter(None, map(_bound, metadata)))}".strip()


def _notes(item: Any) -> list[Any]:
    return item.metadata if isinstance(item, FieldInfo) else [item]


def _bound(note: Any) -> str:
    signs = {annotated_types.Ge: "ge", annotated_types.Gt: "gt", annotated_types.Le: "le", annotated_types.Lt: "lt"}
    for kind, name in signs.items():
        if isinstance(note, kind):
            sign = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}[name]
            return f"{sign} {re.sub(r'[.]0$', '', str(getattr(note, name)))}"
    return ""


def conformance_page() -> str:
    """Return the conformance statement: the text with the tables of what the code takes."""
    from pydicom.uid import UID, AllTransferSyntaxes

    from pneumoscope.serving.intake.listener import accepted_classes
    from pneumoscope.serving.results import codes
    from pneumoscope.serving.settings.gateway import Receive
    from pneumoscope.serving.wire.association import COMMITMENT, VERIFICATION

    every = {code for code in vars(codes).values() if isinstance(code, codes.Code)}
    tables = [
        "## SOP classes as SCP\n\n| SOP class | UID |\n|---|---|",
        f"| {VERIFICATION.name} | {VERIFICATION} |",
        f"| {COMMITMENT.name}, with `receive.commitment` | {COMMITMENT} |",
        *(f"| {UID(uid).name} | {uid} |" for uid in accepted_classes()),
        "\nOther SOP classes are refused as the association is negotiated. What is taken and is no frontal chest",
        "radiograph is kept and declined, with a reason, [by its header](../howto/dicom.md#what-a-header-refuses).",
        "What cannot be decoded is quarantined, with a reason.",
        "\n| transfer syntax accepted for storage | UID |\n|---|---|",
        *(f"| {uid.name} | {uid} |" for uid in AllTransferSyntaxes),
        "\n## Codes\n\n| code | scheme | meaning |\n|---|---|---|",
        *(f"| {c.value} | {c.scheme_designator} | {c.meaning} |" for c in sorted(every, key=lambda c: c[:2])),
    ]
    text = (DOCS / "_templates" / "conformance.txt").read_text(encoding="utf-8")
    fields = Receive.model_fields
    told = {
        "NOTICE": NOTICE,
        "TABLES": "\n".join(tables),
        "ASSOCIATIONS": str(fields["associations"].default),
        "SECONDS": f"{fields['seconds'].default:g}",
    }
    return re.sub("|".join(told), lambda found: told[found[0]], text)


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/experiment.md": experiment_page,
    "reference/conformance.md": conformance_page,
    "reference/modules.md": modules_page,
    "architecture.md": architecture_page,
}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (DOCS / file).write_text(page(), encoding="utf-8")
