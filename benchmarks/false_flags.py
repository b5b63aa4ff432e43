"""How often `validate` raises a flag where nothing is wrong, and how often it names what is.

    python benchmarks/false_flags.py --clean 1000 --planted 200

Scores of three sites, two images a patient, are drawn calibrated. The subgroups, metadata and flags of `validate` see
them as they are, with one sex's images degraded, with another prevalence at one site, and with a marker that one site
puts on the images of one class and that the network reads. Prints a table and writes results/false_flags.json.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import special

from pneumoscope.files import write_json
from pneumoscope.statistics.proportions import proportion
from pneumoscope.validation.flags import flags
from pneumoscope.validation.metadata import metadata
from pneumoscope.validation.study import AGE, SITE, Study, figures
from pneumoscope.validation.subgroups import subgroups

RESULT = Path(__file__).parent / "results" / "false_flags.json"
NAMES = (SITE, "sex", AGE)


def clean(seed: int, patients: int, prevalence: Mapping[str, float] | None = None) -> Study:
    """Draw a study of three sites; p is the true chance at a prevalence of one half, which sites may depart from."""
    rng = np.random.default_rng(seed)
    sites = rng.choice(["A", "B", "C"], patients)
    share = np.array([(prevalence or {}).get(site, 0.5) for site in sites])
    ill = rng.random(patients) < share
    who = np.repeat(np.arange(patients), 2)
    y = ill[who]
    x = rng.normal(size=patients)[who] * np.sqrt(0.5) + rng.normal(size=who.size) * np.sqrt(0.5) + 2.2 * (y - 0.5)
    columns = {
        SITE: sites[who],
        "sex": rng.choice(["F", "M"], patients)[who],
        AGE: rng.choice(["18 to 39", "40 to 64"], patients)[who],
    }
    return Study(y, special.expit(2.2 * x), np.char.add("p", who.astype(str)), 0.5, columns, dict(columns))


def degraded(seed: int, patients: int) -> Study:
    """Draw a study in which the images of women are noisy."""
    study = clean(seed, patients)
    noise = np.random.default_rng(seed).normal(size=study.n) * 4
    worse = special.expit(special.logit(study.p) * 0.4 + noise)
    return replace(study, p=np.where(study.columns["sex"] == "F", worse, study.p))


def shifted(seed: int, patients: int) -> Study:
    """Draw a study in which 85 % of site C's patients are ill."""
    return clean(seed, patients, {"C": 0.85})


def marked(seed: int, patients: int) -> Study:
    """Draw a study in which site B marks the ill, and the network reads the marker."""
    study = clean(seed, patients)
    marker = (study.columns[SITE] == "B") & study.y
    reads_it = np.where(marker, special.expit(special.logit(study.p) + 5), study.p)
    return replace(study, p=reads_it, raw={**study.raw, "marker": np.where(marker, "R", "none")})


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
