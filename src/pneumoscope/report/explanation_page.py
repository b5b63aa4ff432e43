"""Pages that explain single scores: one for each image of a folder that `explain` wrote, and an index over all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import read_json, write_text
from pneumoscope.records import PNEUMONIA, FloatArray
from pneumoscope.report import explanation_words as words
from pneumoscope.report import html
from pneumoscope.report.folders import thumbnail

CONTEXT = "explanation.json"
_SHORT = {"right": "R", "left": "L"}
_SMALL = 640  # longest side of the radiograph under the zones, pixels


def write(folder: Path) -> Path:
    """Write `N-STEM.html` for each image of the folder, and `index.html`, and return the latter.

    Everything is read from the folder's files; the thumbnails of similar images from where the files say they lie.

    Raises:
        DataError: the folder was not written by `explain`, or a file is damaged.
        StorageError: a file is missing, or the folder cannot be written.
    """
    context = read_context(folder)
    rows = []
    names = [f"{Path(str(name)).stem}.html" for name in context["images"]]
    for index, name in enumerate(context["images"]):
        image, maps = read_image_facts(folder, str(name))
        around = {
            "previous": names[index - 1] if index else None,
            "next": names[index + 1] if index + 1 < len(names) else None,
            "position": f"{index + 1} of {len(names)}",
        }
        view = page_view(folder, context, image, maps)
        title = Path(str(image.get("path"))).name
        write_text(folder / names[index], html.render("explanation.html.j2", title=title, view=view, **around))
        rows.append({**_row(view), "page": names[index], "title": title, "thumb": _thumb(folder, image)})
    text = html.render("explanations.html.j2", title="Explanations", rows=rows, counts=_counts(rows), context=context)
    write_text(folder / "index.html", text)
    return folder / "index.html"


def read_context(folder: Path) -> Mapping[str, Any]:
    """Return what `explain` wrote of the network; raises `DataError` where there is none."""
    file = folder / CONTEXT
    if not file.is_file():
        raise DataError("is missing", path=file, remedy="name a folder that `pneumoscope explain` wrote")
    value = read_json(file)
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise DataError("is not what `explain` writes", path=file, remedy="write it anew with `pneumoscope explain`")
    return value


def read_image_facts(folder: Path, name: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Return what is known of an image, and of each of its maps."""
    image = read_json(beside(folder, name))
    return image, [read_json(beside(folder, str(file))) for file in image.get("maps") or []]


def beside(folder: Path, name: object) -> Path:
    """Return a file of the folder itself: a name from elsewhere pulls no other file into the page."""
    return folder / Path(str(name or "?")).name


# --- one page ---------------------------------------------------------------------------------------------


def page_view(
    folder: Path, context: Mapping[str, Any], image: Mapping[str, Any], maps: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return all that the template needs to show one image."""
    score = image.get("probability")
    points = words.points(context, score)
    threshold = context.get("threshold")
    outlines = zone_outlines(folder, image)
    view: dict[str, Any] = {
        "path": str(image.get("path")),
        "score": score,
        "state": "not read" if image.get("error") else "not analysed" if score is None else "analysed",
        "reason": _sentence(str(image.get("error") or image.get("reason") or "no reason given")),
        # Where there are no lungs, nothing is said of the patient's sides either.
        "sided": score is not None and (image.get("lungs") or {"found": True})["found"],
        "cut": bool(image.get("cut")),
        "called": image.get("label"),
        "call": "" if score is None or threshold is None else words.call(score, threshold),
        "meaning": words.meaning(context),
        "points": points,
        "uncertain": words.uncertain(points),
        "crossed": words.crossed(points),
        "age": words.age(context, image),
        "limits": words.limits(context, image),
        "picture": _picture(folder, image),
        "maps": [_map(folder, entry) for entry in maps],
        "shown_score": words.score(score),
        "outside": words.outside(maps, image.get("label")),
        "replaced": words.lungs_replaced(maps, image.get("counterfactual"), image.get("label"), threshold),
        "disagreement": words.disagreement(maps),
        "outlines": outlines,
        "legend": [(float(value), str(colour)) for value, colour in context.get("scale") or []],
        "lungs": image.get("lungs"),
        "zones": None,
        "similar": _similar(context, image),
        "quality": image.get("quality") or {},
        "bundle": context.get("bundle") or {},
    }
    if image.get("zones") and image.get("counterfactual"):
        view["zones"] = _zones(folder, image, outlines, threshold)
    return view


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _picture(folder: Path, image: Mapping[str, Any]) -> dict[str, Any] | None:
    if not image.get("image"):
        return None
    file = beside(folder, image["image"])
    with storage_errors(file), Image.open(file) as opened:
        width, height = opened.size
    quality = image.get("quality") or {}
    stored = max(quality.get("width") or 0, quality.get("height") or 0)
    size = f"reduced to {max(width, height)} pixels" if stored > max(width, height) else "in its stored size"
    how = "cut down to the lungs and a margin" if image.get("cut") else size
    return {"uri": html.image_uri(file), "width": width, "height": height, "how": how}


def _map(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    blank = entry.get("verdict") == "blank"
    samples, seed = entry.get("samples"), entry.get("seed")
    r2, energy, stability = (entry.get(key) for key in ("surrogate_r2", "energy_in_lungs", "stability"))
    facts = {
        "Layer": entry.get("layer"),
        "Explains": entry.get("target"),
        "Seed": None if seed is None else str(seed),
        "Samples": None if samples is None else html.integer(samples),
        "Answers of the network": html.integer(entry.get("evaluations")),
        "Time": html.duration(entry.get("seconds")),
        "Surrogate R²": None if r2 is None else html.number(r2, 2),
        "Rank correlation when repeated": None if stability is None else html.number(stability, 2),
        "In the lungs": None if energy is None else html.percent(energy, 0),
    }
    if entry.get("infidelity") is not None:
        facts["Infidelity"] = f"{html.number(entry['infidelity'], 2)}; 0 is best, 1 no better than no map"
    return {
        "name": words.method_name(str(entry.get("method"))),
        "method": str(entry.get("method")),
        "verdict": str(entry.get("verdict")),
        "words": words.verdict(entry),
        "shown": not blank,
        "uri": "" if blank else html.image_uri(beside(folder, entry.get("layer_file"))),
        "facts": [(name, str(value)) for name, value in facts.items() if value is not None],
    }


# --- zones ------------------------------------------------------------------------------------------------


def zone_outlines(folder: Path, image: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the outline and middle of each zone in pixels of the picture, None where no lungs were found."""
    lungs = image.get("lungs") or {}
    if not lungs.get("zones") or not image.get("image"):
        return None
    file = beside(folder, lungs["zones"])
    with storage_errors(file), np.load(file, allow_pickle=False) as stored:
        labels = stored["zones"]
    top, bottom, left, right = image.get("box") or (0, labels.shape[0], 0, labels.shape[1])
    labels = labels[top:bottom, left:right]
    with storage_errors(beside(folder, image["image"])), Image.open(beside(folder, image["image"])) as opened:
        width, height = opened.size
    scale = np.array([height / labels.shape[0], width / labels.shape[1]])
    zones = []
    for index, name in enumerate(lungs["names"]):
        if index and (labels == index).any():
            rows, columns = np.nonzero(labels == index)
            middle = (np.array([rows.mean(), columns.mean()]) + 0.5) * scale
            path = _path(labels == index, scale)
            zones.append({"name": name, "path": path, "x": round(float(middle[1]), 1), "y": round(float(middle[0]), 1)})
    return {"width": width, "height": height, "zones": zones}


def _path(mask: NDArray[np.bool_], scale: NDArray[np.float64]) -> str:
    """Return the outline of a mask as the `d` of an SVG path."""
    from skimage.measure import find_contours  # slow to load

    parts = []
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):  # type: ignore[no-untyped-call]
        points = (contour - 0.5) * scale
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points) + "Z")
    return "".join(parts)


def _zones(
    folder: Path, image: Mapping[str, Any], outlines: Mapping[str, Any] | None, threshold: float | None
) -> dict[str, Any]:
    surrogates, removed = image["zones"], image["counterfactual"]
    fill = removed.get("fill")
    names = list(surrogates["shap"]["contributions"])
    several = len(removed["without"]) > 1
    rows = []
    for name in names:
        others = [scores[name] for scores in removed["without"].values()]
        rows.append(
            {
                "name": "outside the lungs" if name == "outside" else name,
                "lime": None if surrogates["lime"]["hidden"] else surrogates["lime"]["contributions"][name],
                "shap": None if surrogates["shap"]["hidden"] else surrogates["shap"]["contributions"][name],
                "without": None if fill is None else words.score(removed["without"][fill][name]),
                "range": None if not several else f"{words.score(min(others))} to {words.score(max(others))}",
            }
        )
    pictures = []
    by_kind = {"LIME": surrogates["lime"], "SHAP": surrogates["shap"]}
    for kind, surrogate in by_kind.items():
        if outlines is not None and not surrogate["hidden"]:
            drawn = zone_figure(outlines, surrogate["contributions"])
            r2, rest = html.number(surrogate["surrogate_r2"], 2), _signed(surrogate["contributions"].get("outside"))
            pictures.append({"name": kind, "svg": drawn, "r2": r2, "outside": rest})
    drawable = None if outlines is not None else "the picture or the zones are missing"
    absent = {kind: surrogate["hidden"] or drawable for kind, surrogate in by_kind.items()}
    columns = [key for key in ("lime", "shap", "without", "range") if any(row[key] is not None for row in rows)]
    return {
        "said": words.removals(removed, threshold),
        "rows": rows,
        "columns": columns,
        "telling": bool(pictures) or (fill is not None and bool(words.moved(removed, fill))),
        "pictures": pictures,
        "hidden": words.hidden(absent),
        "small": html.pixels_uri(_grey(beside(folder, image["image"])), _SMALL),
        "fill": surrogates.get("fill"),
        "score": words.score(removed.get("score")),
        "empty": words.score(removed["empty"].get(str(surrogates.get("fill")))),
        "refused": removed.get("refused") or {},
        "evaluations": surrogates.get("evaluations", 0) + removed.get("evaluations", 0),
        "seconds": surrogates.get("seconds", 0) + removed.get("seconds", 0),
        "usable": fill is not None,
    }


def zone_figure(outlines: Mapping[str, Any], contributions: Mapping[str, float]) -> Markup:
    """Return inline SVG to lie over the radiograph: zones outlined, orange for pneumonia and purple against, valued."""
    most = max((abs(value) for value in contributions.values()), default=0.0) or 1.0
    size = outlines["width"] / 32
    parts = []
    for zone in outlines["zones"]:
        value = contributions.get(zone["name"], 0.0)
        colour = "orange" if value >= 0 else "purple"
        strength = 0.08 + 0.4 * abs(value) / most
        side, level = zone["name"].split()
        parts.append(
            f'<path d="{zone["path"]}" class="{colour}" fill-opacity="{strength:.2f}"/>'
            f'<text x="{zone["x"]}" y="{zone["y"]}" font-size="{size:.1f}">{_SHORT[side]} {escape(level)}'
            f'<tspan x="{zone["x"]}" dy="1.15em">{_signed(value)}</tspan></text>'
        )
    label = ", ".join(f"{name} {_signed(value)}" for name, value in contributions.items())
    return Markup(
        f'<svg class="zones" viewBox="0 0 {outlines["width"]} {outlines["height"]}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _signed(value: float | None) -> str:
    if value is None:
        return html.MISSING
    return ("+" if value >= 0 else "\N{MINUS SIGN}") + f"{abs(value):.2f}"


def _grey(file: Path) -> FloatArray:
    with storage_errors(file), Image.open(file) as opened:
        return np.asarray(opened.convert("L"), np.float32) / np.float32(255)


# --- images that are alike --------------------------------------------------------------------------------


def _similar(context: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any] | None:
    source = context.get("similar")
    if source is None:
        return None
    similar = image.get("similar")
    if source.get("reason") or similar is None:
        return {"reason": str(source.get("reason") or "the image was not analysed"), "images": []}
    images = []
    for near in similar.get("neighbours") or []:
        uri, fault = thumbnail(str(near["path"]), source.get("source"))
        facts = {"label": str(near["label"]), "subtype": near.get("subtype"), "distance": near.get("distance")}
        images.append({"uri": uri, "fault": fault, "name": Path(str(near["path"])).name, **facts})
    return {"reason": None, "images": images, "said": words.alike(similar), "source": source}


# --- the index --------------------------------------------------------------------------------------------


def _row(view: Mapping[str, Any]) -> dict[str, Any]:
    lungs = view["lungs"] or {}
    flags = [
        "uncertain: operating points differ" if view["uncertain"] else "",
        "most of a map lies outside the lungs" if view["outside"] else "",
        "still called pneumonia with both lungs replaced" if view["replaced"] else "",
        "methods disagree" if view["disagreement"] else "",
        str(lungs["reason"]) if lungs and not lungs.get("found") else "",
    ]
    verdicts = [f"{shown['name']}: {shown['verdict']}" for shown in view["maps"]]
    keys = ("state", "reason", "shown_score", "called")
    return {**{key: view[key] for key in keys}, "flags": [flag for flag in flags if flag], "verdicts": verdicts}


def _thumb(folder: Path, image: Mapping[str, Any]) -> str:
    if not image.get("image"):
        return ""
    return html.pixels_uri(_grey(beside(folder, image["image"])), 240)


def _counts(rows: list[dict[str, Any]]) -> str:
    sick = sum(row["called"] == PNEUMONIA for row in rows)
    silent = sum(row["state"] != "analysed" for row in rows)
    counts = f"{len(rows):,} images: {sick:,} called pneumonia, {len(rows) - sick - silent:,} not called pneumonia"
    return f"{counts}, {silent:,} not analysed, which were not found normal." if silent else f"{counts}."
