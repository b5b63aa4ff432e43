"""`pneumoscope list`: the names that other commands take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from fnmatch import fnmatch
from typing import Annotated

import typer

from pneumoscope.cli.console import say


class Kind(StrEnum):
    """What can be listed."""

    NETWORKS = "networks"
    CONFIGS = "configs"
    BUNDLES = "bundles"
    METHODS = "methods"


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command("list")(list_names)


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    pattern: Annotated[str, typer.Argument(help="Names that fit, such as 'resnet*'.", show_default="all")] = "*",
) -> None:
    """List the names that other commands take, one on a line; networks of timm where a pattern is given."""
    listed = 0
    for name, says in _LISTS[kind](pattern):
        if fnmatch(name, pattern):
            typer.echo(f"{name:24} {says}".rstrip())
            listed += 1
    if not listed:
        say(f"no name of {kind.value} fits {pattern!r}")
        raise typer.Exit(1)


def _networks(pattern: str) -> Iterator[tuple[str, str]]:
    yield "custom-cnn", "residual, 1.1 million parameters, from scratch"
    yield "resnet20_mlnet", "the ResNet of ML.NET's image featurizer"
    if pattern == "*":
        say("and the networks of timm: give a pattern, such as 'efficientnet*'")
        return
    import timm

    with_weights = set(timm.list_pretrained())
    for name in timm.list_models():
        known = any(tagged == name or tagged.startswith(f"{name}.") for tagged in with_weights)
        yield name, "timm, weights on its hub" if known else "timm"


def _configs(pattern: str) -> Iterator[tuple[str, str]]:
    from pneumoscope.config import config_files, load_experiment

    for name, path in config_files().items():
        experiment = load_experiment(path)
        model = experiment.model
        yield name, experiment.title or f"{model.network}, {model.strategy}"


def _bundles(pattern: str) -> Iterator[tuple[str, str]]:
    from pneumoscope.bundle.bundle import SHIPPED
    from pneumoscope.bundle.card import read_card

    for name, folder in SHIPPED.items():
        card = read_card(folder)
        yield name, f"{card['network']['name']}, {card['sha256'][:12]}"


def _methods(pattern: str) -> Iterator[tuple[str, str]]:
    from pneumoscope.explanation import METHODS

    for name in METHODS:
        yield name, ""


_LISTS: dict[Kind, Callable[[str], Iterator[tuple[str, str]]]] = {
    Kind.NETWORKS: _networks,
    Kind.CONFIGS: _configs,
    Kind.BUNDLES: _bundles,
    Kind.METHODS: _methods,
}
