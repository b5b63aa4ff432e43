"""Make docs/results.md from the files in results/, which the other programs here wrote.

python benchmarks/quality/page.py
"""

from __future__ import annotations

from pathlib import Path

import operating_points
import seeds
import shift
import study

from pneumoscope.files import read_json, write_text

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def page() -> str:
    """Return the page, Markdown."""
    judged = ", ".join(operating_points.read_json(operating_points.RESULT)["runs"])
    lines = [
        "# Results",
        "",
        "Made by `benchmarks/quality/page.py` from the files in `benchmarks/quality/results/`. Children's radiographs",
        "of Kermany et al. 2018, squashed to 224 px, always divided by patient. For research use only.",
        "",
        "## Networks over seeds",
        "",
        "`benchmarks/quality/seeds.py`. The held-out images chose nothing; thresholds are frozen on validation images.",
        "",
        *seeds.tables(),
        "",
        *shipped(),
        "## Which parts of the recipe hold under shift",
        "",
        "`benchmarks/quality/study.py`. Each recipe changes the base in the named keys alone, at 128 px and five",
        "epochs, on patients other than those held out above. Accuracy at a prevalence of .625, threshold frozen;",
        "means over fourteen corruptions in two strengths; the difference is that of AUROC over all corrupted images,",
        "by patient. Base was trained anew, on another processor, for the last two; the others' differences are from",
        "its earlier run (AUROC .9944 clean, .9922 corrupted).",
        "",
        *study.table(),
        "",
        "## Where the threshold should be",
        "",
        f"`benchmarks/quality/operating_points.py` on {judged}. Rules that know only validation images, at four",
        "prevalences; the program says what each rule does. The shipped rule stays: those that look at changed images",
        "win in the worst case and where pneumonia is rarer, and lose as much where images are clean. Moving to a",
        "prevalence estimated without labels makes corrupted images worse.",
        "",
        *operating_points.table(),
        "",
    ]
    return "\n".join(lines)


def shipped() -> list[str]:
    """Return what shift.py measured of the network of version 0.1.0."""
    (entry,) = read_json(shift.RESULT)["runs"].values()
    clean = entry["clean"]
    figures = {
        key: (f"{clean[key]['value']:.3f}", *clean[key]["ci95"]) for key in ("accuracy", "balanced_accuracy", "auroc")
    }
    told = ", ".join(f"{key.replace('_', ' ')} {v} ({low:.3f}–{high:.3f})" for key, (v, low, high) in figures.items())
    rows = [
        f"| {p['prevalence']:g} | {p['accuracy']:.3f} | {p['ppv']:.3f} | {p['npv']:.3f} |" for p in entry["prevalence"]
    ]
    adults = entry["other"]["auroc"]
    low, high = adults["ci95"]
    return [
        "## The network of version 0.1.0 under shift",
        "",
        f"`benchmarks/quality/shift.py` on the {entry['n']} held-out images of {entry['n_patients']} patients,",
        f"threshold frozen on validation images. Clean: {told}.",
        "An earlier network was seen on these images, clean and corrupted, before blur was added to the recipe.",
        "",
        *shift.condition_table(entry),
        "",
        "Where another share of the patients is ill, the clean sensitivity and specificity give:",
        "",
        "| prevalence | accuracy | PPV | NPV |",
        "|---|---|---|---|",
        *rows,
        "",
        f"On adults (NIH, another hospital): AUROC {adults['value']:.3f} ({low:.3f}–{high:.3f}).",
        "",
    ]


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
