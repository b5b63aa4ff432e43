"""The shortcut card as a page: one verdict, one table, and pictures of what was tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError
from pneumoscope.files import read_json, write_text
from pneumoscope.report import html

FILE, PAGE = "audit.json", "audit.html"

# key -> (group, name, what it asks); in the order of the page.
ITEMS: Mapping[str, tuple[str, str, str]] = {
    "lung_region_removed": (
        "Without the lungs",
        "Region of all lungs removed",
        "One region, the same for every image, is painted over. What the network still knows comes from the rim.",
    ),
    "lungs_removed": (
        "Without the lungs",
        "Lungs removed, outline left",
        "Each image's own lungs are painted over, generously. The outline of the hole may still show something.",
    ),
    "lungs_only": ("Without the lungs", "Lungs alone", "All but the lungs is painted over."),
    "border_masked": ("Parts hidden", "Border hidden", "A tenth of the side is painted over at each edge, lungs left."),
    "corners_masked": ("Parts hidden", "Corners and letters hidden", "Where side markers and burnt-in text lie."),
    "letter_pasted": ("Things added", "An R pasted in", "A side marker is no finding."),
    "border_added": ("Things added", "A black border added", "Framing is no finding."),
    "mirrored": ("Things added", "Left and right exchanged", "Pneumonia may lie on either side."),
    "darker": ("Things added", "Darker", "Another exposure or display is no finding."),
    "brighter": ("Things added", "Brighter", "Another exposure or display is no finding."),
    "attention_gradcam": ("Heat maps", "Grad-CAM in the lungs", "Share of the map's energy that lies in the lungs."),
    "attention_hirescam": ("Heat maps", "HiResCAM in the lungs", "The same by another formula."),
    "attention_layercam": ("Heat maps", "LayerCAM in the lungs", "The same by another formula."),
    "hotspot": ("Heat maps", "Maps go with the lungs", "More in the patient's own lungs than in those of others?"),
    "probes": ("What is known", "Embedding knows more", "Age, sex, view or site, read from the network's features."),
    "metadata": ("What is known", "Predicted without any network", "From grey levels, size and the table."),
}
CONDITIONS: Mapping[str, str] = {
    "untouched": "as it is",
    "lungs_only": "lungs alone",
    "lungs_removed": "lungs removed",
    "lung_region_removed": "region of all lungs removed",
    "border_masked": "border hidden",
    "corners_masked": "corners and letters hidden",
    "letter_pasted": "an R pasted in",
    "border_added": "a border added",
    "mirrored": "mirrored",
}
METHODS: Mapping[str, str] = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "layercam": "LayerCAM"}
SIGNS: Mapping[str, str] = {"green": "✓", "amber": "!", "red": "✕", "not tested": "–"}
SENTENCES: Mapping[str, str] = {
    "green": "No sign was found that this network answers from anything but the lungs.",
    "amber": "Some tests leave doubt whether this network answers from the lungs.",
    "red": "This network answers in part from something other than the lungs. Do not trust its scores elsewhere.",
    "not tested": "Nothing could be tested on these images.",
}


def write(folder: Path) -> Path:
    """Write `audit.html` from `audit.json` and the pictures it names, and return the page, which fetches nothing.

    Raises:
        DataError: `audit.json` is missing or damaged.
        StorageError: a picture is missing, or the page cannot be written.
    """
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"holds no {FILE}", path=folder, remedy="run `pneumoscope audit` first")
    card = read_json(file)
    try:
        text = html.render("audit.html.j2", **view(card, folder))
    except (KeyError, TypeError) as error:
        raise DataError(f"lacks {error}", path=file, remedy="run `pneumoscope audit` again") from error
    write_text(folder / PAGE, text)
    return folder / PAGE


def view(card: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the template shows of a card; pictures become `data:` addresses."""
    rows = [row(item) for item in sorted(card["items"], key=_position)]
    bundle = card["bundle"]
    return {
        "title": f"Shortcut card of {bundle['name']}",
        "subtitle": f"Does it look at the lungs? {card['n']:,} images of {card['n_patients']:,} patients.",
        "contents": [("verdict", "Verdict"), ("pictures", "What was tested"), ("maps", "Where maps lie"),
                     ("details", "Figures in detail"), ("reading", "How to read this")],
        "card": card,
        "sentence": SENTENCES[card["verdict"]],
        "sign": SIGNS,
        "worst": [row["name"] for row in rows if row["light"] == card["verdict"] and card["verdict"] != "green"],
        "groups": [(name, [r for r in rows if r["group"] == name]) for name in dict.fromkeys(r["group"] for r in rows)],
        "examples": _examples(card["figures"]["examples"], folder),
        "maps": [
            {"uri": html.image_uri(folder / record["file"]), "method": METHODS.get(record["method"], record["method"]),
             "images": record["images"], "facts": _facts(card, f"attention_{record['method']}")}
            for record in card["figures"]["maps"]
        ],
        "conditions": [(name.replace("_", " ").replace(":noise", ", second fill"), facts)
                       for name, facts in card["conditions"].items()],
        "attributes": _facts(card, "probes").get("attributes", {}),
        "along": _facts(card, "metadata"),
    }  # fmt: skip


def _position(item: Mapping[str, Any]) -> int:
    return list(ITEMS).index(item["key"]) if item["key"] in ITEMS else len(ITEMS)


def row(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of the table: name, light, figure, limit, and what else matters, in words."""
    group, name, meaning = ITEMS.get(item["key"], ("Other", item["key"].replace("_", " "), ""))
    return {
        "group": group,
        "name": name,
        "meaning": meaning,
        "light": item["light"],
        "measure": item["measure"],
        "figure": item["figure"],
        "limit": item["limit"] if item["light"] != "not tested" else "",
        "reason": item["reason"],
        "beside": beside(item),
    }


def beside(item: Mapping[str, Any]) -> list[str]:
    """Say what belongs to a figure: what an even map would give, what a change costs, what makes a test void."""
    facts, notes = item["facts"], []
    if kept := facts.get("kept"):
        notes.append(f"{html.percent(kept['value'], 0)} of what the network knows is left")
    if noise := facts.get("auroc_noise"):
        notes.append(f"AUROC {html.number(noise['value'], 2)} with noise in place of the mean image")
    if outline := facts.get("outline"):
        notes.append(f"the outline of the hole alone tells pneumonia with AUROC {html.number(outline['value'], 2)}")
    if taken := facts.get("taken"):
        share = taken["value"] or 0.0
        goes = f"{html.percent(share, 0)} of the classes' distance in log-odds goes"
        notes.append(goes if share >= 0.005 else "the classes stay as far apart")
    if void := facts.get("void"):
        notes.append(f"not red, because {void}")
    if item["key"] == "hotspot" and "hotspot" in facts:
        notes.append(f"{html.percent(facts['hotspot'], 0)} of the strongest points lie in the lungs")
        notes.append(f"{html.percent(facts['constant'], 0)} of the maps' variance is the same in all")
    elif even := facts.get("even"):
        notes.append(f"an even map would have {html.percent(even['value'], 0)}")
        if facts.get("attainable"):
            notes.append(f"one that follows the lungs, as coarse as this, {html.percent(facts['attainable'], 0)}")
    if lost := [facts[key]["value"] for key in ("lost", "lost_on_normal", "lost_on_pneumonia") if key in facts]:
        where = " at worst, on both classes or on one" if len(lost) > 1 else ""
        fall = f"AUROC falls by {html.number(max(lost), 3)}{where}"
        notes.append(fall if max(lost) >= 0.0005 else "AUROC does not fall")
    if (shift := facts.get("shift")) and abs(shift["value"]) >= 0.005:
        notes.append(f"log-odds move by {html.number(shift['value'], 2)}")
    return notes


def _facts(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return next((item["facts"] for item in card["items"] if item["key"] == key), {})


def _examples(records: Sequence[Mapping[str, Any]], folder: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """Return the pictures of each label, in the order in which they were written."""
    groups: dict[str, list[dict[str, str]]] = {}
    for record in records:
        name = CONDITIONS.get(record["condition"], record["condition"])
        groups.setdefault(record["label"] or "an image", []).append(
            {"uri": html.image_uri(folder / record["file"]), "name": name}
        )
    return list(groups.items())
