"""Limits and defaults that a page quotes are those of the code: one line of `QUOTED` for each.

A phrase stands on its page word for word, with the value where the braces are; line breaks do not count.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from pneumoscope.adaptation.adapt import Settings
from pneumoscope.adaptation.evidence import FOLDS
from pneumoscope.adaptation.normalisation import PRIOR
from pneumoscope.bundle.calibration import TARGET
from pneumoscope.data.checks.images import UNREADABLE_LIMIT
from pneumoscope.explanation import explain, faithfulness, gradients, occlusion, stability, surrogate
from pneumoscope.explanation.method import DEFAULTS
from pneumoscope.explanation.similar import NEIGHBOURS
from pneumoscope.images.decoded import MAX_PIXELS, MIN_SIDE
from pneumoscope.images.header import MAX_INFLATED
from pneumoscope.report.explanation_words import LEAST_AGREEMENT
from pneumoscope.serving.keeping import leftovers
from pneumoscope.serving.people.accounts import SHORTEST
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.shortcuts import verdict
from pneumoscope.statistics.bootstrap import RESAMPLES
from pneumoscope.validation.flags import LIMIT, SLOPE
from pneumoscope.validation.flow import LEAST_PATIENTS
from pneumoscope.validation.metadata import DROP
from pneumoscope.validation.subgroups import LEAST

DOCS = Path(__file__).parent
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

QUOTED: list[tuple[str, str, object]] = [
    ("howto/own-images.md", "from {} pixels up to", f"{MIN_SIDE}×{MIN_SIDE}"),
    ("howto/own-images.md", "up to {} megapixels", MAX_PIXELS // 1_000_000),
    ("howto/own-images.md", "more than {} % of a class unreadable", round(UNREADABLE_LIMIT * 100)),
    ("howto/read-report.md", "draws patients, {} times", f"{RESAMPLES:,}"),
    ("howto/explain.md", "The default, `--fill {}`", DEFAULTS.fill),
    ("howto/explain.md", "adds on the way from the fill to the image | {},", gradients._STEPS),
    ("howto/explain.md", "`occlusion` | what a window takes away | {} |", occlusion._WINDOWS + 1),
    ("howto/explain.md", "half of them being removed | {} |", surrogate.SAMPLES),
    ("howto/explain.md", "over {} seeds, or with noise", NUMBERS[stability.SEEDS]),
    ("howto/explain.md", "rank correlation at least {} |", stability.LEAST_RHO),
    ("howto/explain.md", "samples were raised up to {} |", f"{stability.MOST_SAMPLES:,}"),
    ("howto/explain.md", "shows the {} labelled images", NUMBERS[NEIGHBOURS]),
    ("howto/explain.md", "null where one is blank. Under {} the page says", LEAST_AGREEMENT),
    ("architecture.md", "So the default, `--fill {}`", DEFAULTS.fill),
    ("architecture.md", "lower 95 % bound of sensitivity reach {}", TARGET),
    ("tutorial.md", "`triage` (sensitivity at least {},", TARGET),
    ("howto/validate.md", "lies outside {} to {}", SLOPE),
    ("howto/validate.md", "is {} points under what the bundle states", round(LIMIT * 100)),
    ("howto/validate.md", "differs by more than {}, its interval", f"{DROP:.2f}".removeprefix("0")),
    ("howto/validate.md", "A group with fewer than {} images of pneumonia", LEAST),
    ("howto/validate.md", "a class has fewer than {} patients", NUMBERS[LEAST_PATIENTS]),
    ("howto/adapt.md", "beyond `--margin`, {} by default", f"{Settings().margin:.2f}".removeprefix("0")),
    ("howto/adapt.md", "a fit to other patients, in {} parts", NUMBERS[FOLDS]),
    ("howto/adapt.md", "which count as {} images", PRIOR),
    ("howto/audit.md", "more than {} % of (AUROC − .5) is left", round(verdict.MOST_KEPT * 100)),
    ("howto/audit.md", "amber where less than {} % is left", round(verdict.LEAST_ALONE * 100)),
    ("howto/audit.md", "AUROC falls by more than {};", f"{verdict.MOST_LOST:.2f}".removeprefix("0")),
    ("howto/audit.md", "amber where more than {} % of the calls turn", round(verdict.MOST_TURNED * 100)),
    ("howto/audit.md", "under {:.0f} %; green from {:.0f} %", (100 * verdict.INSIDE_LEAST, 100 * verdict.INSIDE_AIM)),
    ("howto/gateway-page.md", "it has {} characters or more", SHORTEST),
    ("reference/gateway.md", "of more than {} MB is refused", MAX_INFLATED // 1_000_000),
    ("reference/gateway.md", "images of more than {} million pixels", MAX_PIXELS // 1_000_000),
    ("reference/formats.md", "Pictures are at most {} pixels long", explain._SHOWN),
    ("howto/runbook.md", "If there are over {} of them", {100: "a hundred"}[leftovers._MOST]),
]  # fmt: skip


@pytest.mark.parametrize(("page", "phrase", "value"), QUOTED, ids=[f"{page}: {phrase}" for page, phrase, _ in QUOTED])
def test_the_page_quotes_the_code(page: str, phrase: str, value: object) -> None:
    text = re.sub(r"\s+", " ", (DOCS / page).read_text(encoding="utf-8"))
    assert phrase.format(*(value if isinstance(value, tuple) else (value,))) in text


def test_a_fill_that_keeps_half_is_said_to_be_no_use() -> None:
    assert faithfulness.MOST_KEPT == 0.5  # "more than half" on four pages
    assert surrogate.LEAST_R2 == 0.5  # "less than half of the variance"


def test_the_example_of_the_gateway_shows_its_defaults() -> None:
    text = (DOCS / "reference" / "gateway.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    other = {key: shown for key, shown, default in _defaults(Gateway, tomllib.loads(block[1])) if shown != default}
    assert other.keys() <= {"destination.objects"}  # by default the same: a report and a picture


def test_the_table_of_the_gateway_gives_its_defaults() -> None:
    text = (DOCS / "reference" / "gateway.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| (`[^`]+`)? ?\|", text, flags=re.MULTILINE)
    keys = {key: default.strip("`") for names, default in rows for key in re.findall(r"[a-z_]+[.][a-z_.]+", names)}
    assert len(keys) > 20
    for key, default in keys.items():
        model: Any = Gateway
        *sections, name = key.split(".")
        for section in sections:
            model = _section(model.model_fields[section].annotation)
        value = model.model_fields[name].default
        shown = {True: "true", False: "false"}.get(value, f"{value:g}" if isinstance(value, float | int) else value)
        assert default in ("", shown), key


def _defaults(model: type[BaseModel], shown: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield key, value shown and default of every key that has one."""
    for key, value in shown.items():
        field = model.model_fields[key]
        inner = _section(field.annotation)
        if inner is not None:
            for item in value if isinstance(value, list) else [value]:
                yield from _defaults(inner, item, f"{prefix}{key}.")
        elif not field.is_required() and field.default is not None:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            yield f"{prefix}{key}", value, str(default) if isinstance(default, Path) else default


def _section(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
