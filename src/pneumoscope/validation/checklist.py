"""CLAIM 2024 and TRIPOD+AI, item by item: the figure that answers it, or that a person must.

The items are named in short words of our own; the wording that counts is that of the guidelines: Tejani et al.,
Radiology: Artificial Intelligence 2024;6:e240300 (CLAIM), and Collins et al., BMJ 2024;385:e078378 (TRIPOD+AI).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HUMAN, MEASURED = "human", "measured"

# (number, item, pointers into validation.json, what a person has to add); without a pointer, a person answers it.
CLAIM: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("1", "Title names the AI method", (), "write the title"),
    ("2", "Structured summary", (), "write the abstract"),
    ("3", "Background, intended use and clinical role", (), "state the intended use"),
    ("4", "Aims and hypotheses", (), "state them, with margins chosen in advance"),
    ("5", "Prospective or retrospective", (), "say how the images were collected"),
    ("6", "Goal of the study", (), "say what is to be decided by it"),
    ("7", "Data sources", ("/data", "/flow/found"), "name hospitals, dates, devices"),
    ("8", "Inclusion and exclusion criteria", ("/flow/left_out",), "say who was eligible before the files were made"),
    ("9", "Preprocessing", ("/card/preparation",), ""),
    ("10", "Selection of subsets", ("/data/splits", "/flow/left_out"), ""),
    ("11", "De-identification", (), "say how identity was removed, and who checked"),
    ("12", "Missing data", ("/flow/left_out", "/subgroups/not_recorded"), ""),
    ("13", "Acquisition of the images", ("/subgroups/columns",), "describe the protocol"),
    ("14", "Reference standard defined", (), "say what made an image pneumonia or normal"),
    ("15", "Why that reference standard", (), "give the reason and its known faults"),
    ("16", "Who annotated, with what training", (), "name the readers' qualifications"),
    ("17", "Annotation of the test set", (), "say by whom and how, blinded to the software"),
    ("18", "Agreement of the annotators", (), "report inter- and intra-reader agreement"),
    ("19", "Assignment to partitions", ("/data/splits", "/card/training/data"), ""),
    (
        "20",
        "Level at which partitions are disjoint",
        ("/flow/patients_are_known_by",),
        "confirm that it is the patient",
    ),
    ("21", "Sample size", ("/sample_size",), "say what was planned"),
    ("22", "Description of the model", ("/card/network", "/card/preparation"), ""),
    ("23", "Software and versions", ("/card/created",), "list the environment: environment.json of the run"),
    ("24", "Initialisation", ("/card/training/weights",), ""),
    ("25", "Training", ("/card/training/config",), ""),
    ("26", "Choice of the final model", ("/card/training/best",), ""),
    ("27", "Ensembling", (), "say whether several networks answer together"),
    ("28", "Metrics", ("/headline/metrics",), "say which was primary, in advance"),
    ("29", "Uncertainty", ("/headline/metrics/auroc", "/resamples", "/subgroups/rules"), ""),
    ("30", "Robustness", ("/subgroups/gaps", "/sites/left_out", "/metadata"), ""),
    ("31", "Explainability", (), "attach the explanations and how they were tested"),
    ("32", "Internal evaluation", ("/expected",), ""),
    ("33", "External testing", ("/headline/metrics",), "confirm that these images are external"),
    ("34", "Registration", (), "give the registry number"),
    ("35", "Flow of patients", ("/flow",), ""),
    ("36", "Characteristics of the cases", ("/headline/positives", "/subgroups/cells"), "add clinical characteristics"),
    ("37", "Performance with uncertainty", ("/headline/metrics",), ""),
    ("38", "Diagnostic accuracy with precision", ("/headline/metrics/recall", "/headline/metrics/specificity"), ""),
    ("39", "Failure analysis", ("/failures",), "look at the pictures and say why"),
    ("40", "Limitations", ("/limits", "/flags"), "add those of the study"),
    ("41", "Implications for practice", (), "state them"),
    ("42", "Protocol", (), "give a reference"),
    ("43", "Availability of software, model and data", ("/bundle", "/data/sha256"), "say where they can be had"),
    ("44", "Funding", (), "name the funders and their role"),
)

TRIPOD: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("1", "Title", (), "write it"),
    ("2", "Abstract", (), "write it"),
    ("3a", "Context and rationale", (), "write it"),
    ("3b", "Target population, purpose, users", ("/card/population",), "state the intended use"),
    ("3c", "Known inequalities between groups", (), "write it"),
    ("4", "Objectives", (), "write them"),
    ("5a", "Sources of data", ("/data",), "describe the source"),
    ("5b", "Dates", (), "give first and last date"),
    ("6a", "Setting", ("/sites/per_site",), "describe the hospitals"),
    ("6b", "Eligibility", ("/flow/left_out",), "say who was eligible"),
    ("6c", "Treatments", (), "say whether treatment had begun"),
    ("7", "Data preparation", ("/card/preparation",), ""),
    ("8a", "Outcome defined", (), "define pneumonia here"),
    ("8b", "Who assessed the outcome", (), "name qualifications and background"),
    ("8c", "Blinding of the outcome", (), "say it"),
    ("9a", "Choice of predictors", ("/card/network",), "the picture alone"),
    ("9b", "Predictors defined", ("/card/preparation",), ""),
    ("9c", "Predictors that people assess", (), "none: say so"),
    ("10", "Sample size", ("/sample_size",), "say what was planned"),
    ("11", "Missing data", ("/flow/left_out", "/subgroups/not_recorded"), ""),
    ("12a", "How the data were used", ("/data/splits",), ""),
    ("12b", "Handling of predictors", ("/card/preparation",), ""),
    ("12c", "Type of model and its building", ("/card/network", "/card/training"), ""),
    ("12d", "Heterogeneity between clusters", ("/sites/left_out",), ""),
    ("12e", "Measures of performance", ("/headline/metrics", "/headline/curves/decision"), ""),
    ("12f", "Updating", ("/recalibration",), ""),
    ("12g", "How predictions were made", ("/bundle", "/threshold"), ""),
    ("13", "Class imbalance", ("/headline/prevalence", "/card/calibration"), ""),
    ("14", "Fairness", ("/subgroups/rules", "/subgroups/gaps"), "say which groups matter and why"),
    ("15", "Output of the model", ("/threshold", "/operating_point"), ""),
    ("16", "Training against evaluation data", ("/card/population", "/headline/prevalence"), "compare the settings"),
    ("17", "Ethics approval", (), "give the approval"),
    ("18a", "Funding", (), "name it"),
    ("18b", "Conflicts of interest", (), "declare them"),
    ("18c", "Protocol", (), "give a reference"),
    ("18d", "Registration", (), "give the number"),
    ("18e", "Data sharing", (), "say where the data can be had"),
    ("18f", "Code sharing", ("/bundle",), "say where the code can be had"),
    ("19", "Involvement of patients and public", (), "say it"),
    ("20a", "Flow of participants", ("/flow",), ""),
    ("20b", "Characteristics", ("/subgroups/cells", "/flow/analysed"), "add clinical characteristics"),
    ("20c", "Comparison with the training data", ("/card/population", "/expected"), ""),
    ("21", "Numbers in each analysis", ("/flow/analysed", "/headline/positives"), ""),
    ("22", "Model in full", ("/bundle",), ""),
    ("23a", "Performance with intervals, and by group", ("/headline/metrics", "/subgroups/cells"), ""),
    ("23b", "Heterogeneity between clusters", ("/sites/per_site",), ""),
    ("24", "Results of updating", ("/recalibration/methods", "/transfer"), ""),
    ("25", "Interpretation", ("/flags",), "interpret"),
    ("26", "Limitations", ("/limits",), "add those of the study"),
    ("27a", "Poor or missing input", ("/flow/left_out",), "say what happens with such images in use"),
    ("27b", "Interaction with users", (), "say who sees what, and what training they need"),
    ("27c", "Next steps", (), "say them"),
)


def fill(validation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every item of both lists: `by` is `measured` with `figures` (pointer and content), or `human`.

    An item without figures in this validation goes to a person, with the reason. `measured` items may still carry
    `human`, what a person has to add.
    """
    rows = []
    for standard, items in (("CLAIM 2024", CLAIM), ("TRIPOD+AI", TRIPOD)):
        for number, item, pointers, human in items:
            figures = [{"pointer": p, "says": say(v)} for p in pointers if not _empty(v := resolve(validation, p))]
            missing = [p for p in pointers if _empty(resolve(validation, p))]
            by = MEASURED if figures else HUMAN
            todo = human
            if by == HUMAN and missing:
                todo = "; ".join([f"these images do not show ({', '.join(missing)})", *([human] if human else [])])
            rows.append(
                {"standard": standard, "number": number, "item": item, "by": by, "figures": figures, "human": todo}
            )
    return rows


def resolve(value: Any, pointer: str) -> Any:
    """Return what a JSON pointer (RFC 6901, names without ~ and /) points to, None where nothing is."""
    for part in pointer.split("/")[1:]:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, (Mapping, list, str)) and len(value) == 0)


def say(value: Any) -> str:
    """Write a figure, or what an object holds, in a few words."""
    if isinstance(value, Mapping):
        if "ci95" in value:
            low, high = value["ci95"]
            number = "undefined" if value["value"] is None else f"{value['value']:.3f}"
            return number if low is None or high is None else f"{number} ({low:.3f} to {high:.3f})"
        scalars = [f"{k} {say(v)}" for k, v in value.items() if isinstance(v, (str, int, float)) and len(str(v)) < 40]
        return ", ".join(scalars[:5]) if scalars else ", ".join(str(key) for key in list(value)[:8])
    if isinstance(value, list):
        return f"{len(value)} entries"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
