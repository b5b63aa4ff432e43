"""How often `validate` raises a flag where nothing is wrong, and how often it names what is.

    python benchmarks/statistics/false_flags.py --clean 1000 --planted 200

Scores of three sites, two images a patient, are drawn calibrated. The subgroups, metadata and flags of `validate` see
them as they are, with one sex's images degraded, with another prevalence at one site, and with a marker that one site
puts on the images of one class and that the network reads. Prints a table and writes results/false_flags.json.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.support.studies import clean, degraded, marked, shifted

from pneumoscope.files import write_json
from pneumoscope.statistics.proportions import proportion
from pneumoscope.validation.flags import flags
from pneumoscope.validation.metadata import metadata
from pneumoscope.validation.study import AGE, SITE, Study, figures
from pneumoscope.validation.subgroups import subgroups

RESULT = Path(__file__).parent / "results" / "false_flags.json"
NAMES = (SITE, "sex", AGE)


# What is planted -> how it is drawn, and the flag that names it.
PLANTS: dict[str, tuple[Callable[[int, int], Study], tuple[str, str]]] = {
    "one sex's images degraded": (degraded, ("gap", "sex = F")),
    "one site's prevalence": (shifted, ("prevalence", f"{SITE} = C")),
    "a marker in one class of one site": (marked, ("metadata tells the label", f"marker at {SITE} B")),
}


def raised(study: Study, seed: int, resamples: int) -> set[tuple[str, str]]:
    """Return kind and place of each flag."""
    found = {
        "headline": figures(study, seed=seed, resamples=resamples),
        "expected": {},
        "subgroups": subgroups(study, NAMES, seed=seed, resamples=resamples),
        "metadata": metadata(study, seed=seed, resamples=resamples),
    }
    return {(flag["kind"], flag["where"]) for flag in flags(found)}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--patients", type=int, default=900)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("clean", "planted", "patients", "resamples", "first")}
    rows, kinds = {}, Counter[str]()
    some = []
    for seed in range(arguments.first, arguments.first + arguments.clean):
        seen = raised(clean(seed, arguments.patients), seed, arguments.resamples)
        some.append(bool(seen))
        kinds.update({kind for kind, _ in seen})
    rows["clean: any flag"] = some
    for name, (draw, named) in PLANTS.items():
        rows[name] = [
            named in raised(draw(seed, arguments.patients), seed, arguments.resamples)
            for seed in range(arguments.first, arguments.first + arguments.planted)
        ]
    print("| what | studies | flagged (95 %) |\n|---|---|---|")
    result = {}
    for name, each in rows.items():
        share = proportion(np.array(each), np.arange(len(each)))
        result[name] = {"studies": len(each), "flagged": share.as_json()}
        print(f"| {name} | {len(each)} | {share.value:.1%} ({share.low:.1%}–{share.high:.1%}) |")
    print("clean studies by kind of flag:", dict(kinds))
    write_json(arguments.result, {"options": options, "rows": result, "clean_by_kind": dict(kinds)})


if __name__ == "__main__":
    main()
