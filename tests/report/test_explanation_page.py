"""The page that explains one score: what stands on it, what does not, and that no file name takes effect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import DataError
from pneumoscope.explanation.explain import explain_images
from pneumoscope.predict import Classifier
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report import explanation_figure, explanation_page
from pneumoscope.report import explanation_words as words

NASTY = "z\"<b>'&.png"


def paint(path: Path, grey: int | None = None) -> str:
    rows, columns = np.mgrid[:60, :90]
    waves = 128 + 90 * np.sin(rows / 7) * np.sin(columns / 9)
    Image.fromarray((waves if grey is None else np.full_like(waves, grey)).astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    classifier = Classifier.load(make_bundle(root / "bundle", limits=["Only <i>children</i>."]))
    paths = [paint(root / NASTY), paint(root / "flat.png", 5), str(root / "missing.png")]
    explain_images(classifier, paths, ["occlusion", "gradcam"], root / "out", similar="not available, because <x>")
    explanation_page.write(root / "out")
    return root / "out"


@pytest.fixture
def page(folder: Path) -> str:
    return (folder / "001-z__b___.html").read_text()


def test_each_image_has_a_page_and_the_index_leads_to_all(folder: Path) -> None:
    names = sorted(path.name for path in folder.glob("*.html"))
    assert names == ["001-z__b___.html", "002-flat.html", "003-missing.html", "index.html"]
    index = (folder / "index.html").read_text()
    assert all(f'href="{name}"' in index for name in names[:3])
    assert "3 images" in index
    assert "2 not analysed, which were not found normal" in index


def test_the_overlay_is_off_until_it_is_chosen_and_needs_no_script(page: str) -> None:
    assert re.findall(r"<input[^>]*\bchecked\b[^>]*>", page) == ['<input type="radio" name="map" id="map0" checked>']
    assert ".stage .over { opacity: 0;" in page
    assert "#map1:checked) .map1 { opacity: var(--strength, .65); }" in page, "CSS alone shows a map"
    assert '<label class="fade" hidden>' in page, "what needs a script is not there without it"


def test_the_page_fetches_nothing(folder: Path) -> None:
    for file in folder.glob("*.html"):
        text = file.read_text()
        assert all(source.startswith("data:") for source in re.findall(r'\bsrc="([^"]*)"', text))
        assert not re.findall(r"https?://|@import|url\(", text)


def test_file_names_limits_and_reasons_are_text(folder: Path, page: str) -> None:
    for text in (page, (folder / "index.html").read_text()):
        assert "<b>" not in text
        assert "<i>children" not in text
        assert "z&#34;&lt;b&gt;&#39;&amp;.png" in text
    assert "Only &lt;i&gt;children" in page
    assert "because &lt;x&gt;" in page


def test_limits_and_notice_stand_beside_the_score(page: str) -> None:
    score = page[page.index('<section class="score"') : page.index('<section class="viewer"')]
    assert RESEARCH_ONLY in score
    assert "children" in score
    assert "threshold" in score
    assert "threshold 0.500<" in score, "as in the sentence below"


@pytest.mark.parametrize(("name", "state"), [("002-flat", "NOT ANALYSED"), ("003-missing", "NOT READ")])
def test_what_was_not_judged_does_not_look_normal(folder: Path, name: str, state: str) -> None:
    text = (folder / f"{name}.html").read_text()
    assert state in text
    assert "not found normal" in text
    assert "not called pneumonia" not in text
    assert 'class="over' not in text


def test_the_picture_keeps_its_shape(page: str) -> None:
    assert "aspect-ratio:90/60" in page


def with_zones(folder: Path, out: Path, hidden: str | None) -> str:
    """Copy the folder and give its first image zones of the lungs."""
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    zones = np.zeros((32, 32), np.uint8)
    zones[4:12, 3:12], zones[4:12, 20:29] = 1, 4
    np.savez(out / "zones.npz", zones=zones)
    names = ["outside", "right upper", "right middle", "right lower", "left upper", "left middle", "left lower"]
    worth = {"outside": 0.5, "right upper": 2.25, "left upper": -0.75}
    file = out / "001-z__b___.json"
    facts = json.loads(file.read_text())
    facts["lungs"] = {"found": True, "reason": None, "zones": "zones.npz", "names": names}
    facts["zones"] = {"fill": "shuffle", "evaluations": 8, "seconds": 0.1}
    facts["zones"]["shap"] = {"surrogate_r2": 0.9, "hidden": None, "contributions": worth}
    facts["zones"]["lime"] = {"surrogate_r2": 0.3 if hidden else 0.9, "hidden": hidden, "contributions": worth}
    facts["counterfactual"] = REMOVED
    file.write_text(json.dumps(facts))
    explanation_page.write(out)
    return (out / "001-z__b___.html").read_text()


REMOVED = {
    "fill": "shuffle", "score": 0.91, "empty": {"shuffle": 0.1, "mean": 0.9}, "refused": {"mean": 0.99},
    "without": {"shuffle": {"outside": 0.9, "right upper": 0.4, "left upper": 0.93}},
    "together": {"shuffle": {"both lungs": 0.2}}, "evaluations": 8, "seconds": 0.1,
}  # fmt: skip


def test_zones_are_outlined_valued_and_told(folder: Path, tmp_path: Path) -> None:
    text = with_zones(folder, tmp_path, None)
    assert "Without the right upper zone the score falls from 0.91 to 0.40" in text
    assert "Where all zones of a lung are removed at once it scores 0.20 (both lungs)." in text
    assert text.count("R upper<tspan") == 2, "one figure by LIME, one by SHAP"
    assert "+2.25" in text
    assert "\N{MINUS SIGN}0.75" in text
    assert "mean (keeps 99" in text


def test_zones_of_a_bad_surrogate_are_hidden_with_the_reason(folder: Path, tmp_path: Path) -> None:
    text = with_zones(folder, tmp_path, "a linear model explains 0.30 of the variance, less than 0.5")
    assert text.count("R upper<tspan") == 1
    assert "LIME by zone is hidden: a linear model explains 0.30" in text
    assert '<th scope="col" class="num">SHAP</th>' in text
    assert '<th scope="col" class="num">LIME</th>' not in text, "a column that says nothing is not there"
    assert "<details open>" in text


def test_where_nothing_can_be_told_of_zones_one_sentence_stands_for_the_table(folder: Path, tmp_path: Path) -> None:
    with_zones(folder, tmp_path, "it explains 0.30 of the variance")
    file = tmp_path / "001-z__b___.json"
    facts = json.loads(file.read_text())
    facts["zones"]["shap"]["hidden"] = "it explains 0.20"
    facts["lungs"]["segmenter"] = "lungs@1"
    facts["counterfactual"] = {**REMOVED, "fill": None, "without": {}, "together": {}}
    file.write_text(json.dumps(facts))
    explanation_page.write(tmp_path)
    text = (tmp_path / "001-z__b___.html").read_text()
    zones = text[text.index('<h2 id="zones">') : text.index('<h2 id="points">')]
    assert "LIME and SHAP by zone are hidden: it explains 0.30 of the variance; it explains 0.20." in zones
    assert "No zone&#39;s part in the score" in zones
    assert "<table" not in zones
    assert "<details><summary>" in zones
    assert "Lungs found by lungs@1, which learned from adults." in zones


def test_facts_that_do_not_apply_are_left_out(page: str) -> None:
    maps = page[page.index('<h2 id="maps">') : page.index('<h2 id="points">')]
    assert "Layer: " in maps
    for absent in ("Seed", "Surrogate", "Rank correlation", "In the lungs"):
        assert absent not in maps


def test_normal_lung_that_raises_a_score_is_no_test() -> None:
    told = {**REMOVED, "fill": "normal", "without": {"normal": {"outside": 0.91, "left lower": 0.99}}, "together": {}}
    said = " ".join(words.removals({**told, "empty": {"normal": 0.1}}, 0.8))
    assert "Without the left lower zone the score rises" in said
    assert "Normal lung raised the score, which is no sign of disease: do not trust this test" in said
    other = {**told, "without": {"normal": {"outside": 0.99, "left lower": 0.5}}}
    assert "do not trust" not in " ".join(words.removals(other, 0.8))


def test_an_age_that_nobody_checked_is_told() -> None:
    context = {"ages": [1.0, 5.0], "limits": ["One."]}
    said = "Age not known, so not checked: the network is meant for patients of 1 to 5 years."
    assert words.age(context, {"age_checked": False}) == said
    assert words.age(context, {"age_checked": True}) is None
    assert "names no ages" in str(words.age({}, {"age_checked": False}))
    assert words.limits(context, {"age_checked": True}) == ["One."]
    assert "many pass" in words.limits(context, {"age_checked": False})[-1]


def test_an_image_that_was_not_analysed_offers_nothing_to_choose(folder: Path) -> None:
    text = (folder / "002-flat.html").read_text()
    assert "until you choose it" not in text
    assert "shows nothing.</p>" in text, "a reason is a sentence"


def test_the_picture_tells_that_it_is_reduced(page: str, folder: Path, tmp_path: Path) -> None:
    assert 'z&#34;&lt;b&gt;&#39;&amp;.png, in its stored size"' in page
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "001-z__b___.json"
    facts = json.loads(file.read_text())
    facts["quality"]["width"] = 2048
    file.write_text(json.dumps(facts))
    explanation_page.write(tmp_path)
    text = (tmp_path / "001-z__b___.html").read_text()
    assert "&amp;.png, reduced to 90 pixels" in text
    assert "Shown reduced to 90 pixels." in text
    assert "look for names before you pass this page on" in text


def test_print_shows_no_overlay_and_says_so(page: str) -> None:
    printed = page[page.index("\n.print { display: none; }") :]
    assert ".controls, .screen, .stage .over, .stage .lines { display: none; }" in printed
    assert '<span class="print">Printed without overlays' in page
    caption = page[page.index('<span class="print">') : page.index("before you pass this page on")]
    assert not re.search(r"\.[A-Z]", re.sub("<[^>]+>", "", caption)), "sentences are apart"


def test_without_lungs_the_score_is_doubted_and_no_side_is_named(folder: Path, tmp_path: Path) -> None:
    text = with_zones(folder, tmp_path, None)
    assert 'aria-hidden="true">R</span>' in text
    file = tmp_path / "001-z__b___.json"
    facts = json.loads(file.read_text())
    facts["lungs"] = {"found": False, "reason": "lungs not found: <none>"}
    file.write_text(json.dumps({key: value for key, value in facts.items() if key not in ("zones", "counterfactual")}))
    explanation_page.write(tmp_path)
    text = (tmp_path / "001-z__b___.html").read_text()
    assert "Lungs not found: &lt;none&gt;. Do not rely on this score" in text
    assert 'aria-hidden="true">R</span>' not in text
    assert "<tspan" not in text


def test_a_folder_of_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pneumoscope explain"):
        explanation_page.write(tmp_path)


def test_files_named_elsewhere_are_not_pulled_in(folder: Path) -> None:
    assert explanation_page.beside(folder, "../../etc/passwd") == folder / "passwd"


def test_the_figure_for_print_is_a_pdf_and_repeats(folder: Path) -> None:
    (file,) = explanation_figure.write(folder)
    first = file.read_bytes()
    assert first.startswith(b"%PDF")
    explanation_figure.write(folder)
    assert file.read_bytes() == first


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"), [(0.9997, "> 0.99"), (0.001, "< 0.01"), (0.5, "0.50"), (None, "not available")]
)
def test_no_score_is_told_as_certain(value: float | None, said: str) -> None:
    assert words.score(value).replace("\N{NO-BREAK SPACE}", " ") == said


def test_a_fall_across_the_threshold_is_told_with_the_other_fills() -> None:
    told = {
        **REMOVED,
        "without": {**REMOVED["without"], "black": {"outside": 0.9, "right upper": 0.95, "left upper": 0.9}},
    }  # type: ignore[dict-item]
    first, *_, last = words.removals(told, 0.8)
    assert "from 0.91 to 0.40, across the threshold (filled by shuffle; 0.95 with black: the fills disagree)." in first
    assert last == "For comparison, an image that is nothing but the fill (shuffle) scores 0.10."


def test_where_no_fill_serves_no_zone_is_blamed() -> None:
    (said,) = words.removals({**REMOVED, "fill": None, "without": {}}, 0.8)
    assert said.startswith("No zone's part in the score of 0.91 can be told")
    assert "scores 0.10 to 0.90" in said


def test_maps_outside_the_lungs_and_maps_that_disagree_are_told() -> None:
    cam = {"method": "gradcam", "energy_in_lungs": 0.28, "agreement": {"lime": 0.1, "shap": None}}
    lime = {"method": "lime", "energy_in_lungs": 0.6, "agreement": {"gradcam": 0.1, "shap": 0.9}}
    shap = {"method": "shap", "energy_in_lungs": None, "agreement": {"gradcam": None, "lime": 0.9}}
    outside, apart = words.outside([cam, lime, shap], "PNEUMONIA"), words.disagreement([cam, lime, shap])
    assert outside is not None
    assert re.search(r"lungs: 72.% of Grad-CAM\.", outside)
    assert apart is not None
    assert "Grad-CAM and LIME (0.10)," in apart
    assert "SHAP" not in apart + outside
    assert words.outside([lime, shap], "PNEUMONIA") is None
    assert words.outside([cam, lime, shap], "NORMAL") is None, "evidence for pneumonia explains no low score"
    assert words.disagreement([lime, shap]) is None


POINT = {
    "threshold": 0.8, "n": 446, "sensitivity": {"value": 0.95, "ci95": [0.92, 0.97]},
    "specificity": {"value": 1.0, "ci95": [0.964, 1.0]},
}  # fmt: skip
CHOSEN = {"operating_point": "a", "threshold": 0.8, "operating_points": {"a": POINT, "b": {**POINT, "threshold": 0.4}}}
HELD = {
    "n": 780, "n_patients": 544, "operating_point": "a", "threshold": 0.8,
    "data": {"source": "split.csv", "splits": {"test": 786}},
    "metrics": {"recall": {"value": 0.9705, "ci95": [0.9526, 0.9838]},
                "specificity": {"value": 0.9704, "ci95": [0.9367, 0.9906]}},
}  # fmt: skip


def test_figures_of_images_that_chose_the_threshold_are_told_with_reserve() -> None:
    *_, said = words.meaning(CHOSEN)
    assert "on 446 images that chose it, which flatters: Of 100 radiographs with pneumonia" in said
    assert "flags 92 to 97 (95 % CI; 95 among these images)" in said
    assert "leaves 96 to 100 alone (95 % CI; 100 among these images) and raises a false alarm on 0 to 4." in said
    assert {row["images"] for row in words.points(CHOSEN, 0.5)} == {"446 images that chose it"}


@pytest.mark.parametrize(
    ("facts", "carried"),
    [
        ({"carried": True, "note": "any words"}, True),
        ({"carried": False, "note": "threshold carried over"}, False),
        ({"note": "threshold carried over"}, True),  # cards written before the key
        ({"note": ""}, False),
    ],
)
def test_a_threshold_chosen_on_other_images_is_known_by_its_key(facts: dict[str, object], carried: bool) -> None:
    points = {"a": {**POINT, **facts}}
    *_, said = words.meaning({**CHOSEN, "operating_points": points})
    assert ("on 446 images, threshold carried over: Of 100" in said) == carried
    assert ("on 446 images that chose it, which flatters: Of 100" in said) != carried


def test_figures_of_images_that_chose_nothing_are_preferred() -> None:
    context = {**CHOSEN, "held_out": HELD}
    *_, said = words.meaning(context)
    assert "on 780 images of 544 patients (test of split.csv), which chose nothing: Of 100" in said
    assert "leaves 97 alone (95 % CI 94 to 99) and raises a false alarm on 3." in said
    used, other = words.points(context, 0.5)
    assert used["images"] == "780 images of 544 patients (test of split.csv), which chose nothing"
    assert used["specificity"]["value"] == 0.9704
    assert other["images"] == "446 images that chose it"
    assert words.held_out({**context, "threshold": 0.7}) is None, "they are of another threshold"


@pytest.mark.parametrize(
    ("share", "fill", "said"),
    [
        (
            0.9,
            "normal",
            "replaced by a normal child's, the network still says pneumonia (0.97), though most of the map",
        ),
        (0.9, "normal", "lies in the lungs (90 % of Grad-CAM): map and test disagree."),
        (0.3, "normal", "(0.97): the score does not rest on the lungs alone."),
        (0.9, "shuffle", "replaced by something else (shuffle), the network"),
    ],
)
def test_a_score_that_needs_no_lungs_is_told(share: float, fill: str, said: str) -> None:
    maps = [{"method": "gradcam", "energy_in_lungs": share}]
    told = {"fill": fill, "together": {fill: {"both lungs": 0.97}}}
    warning = words.lungs_replaced(maps, told, "PNEUMONIA", 0.8)
    assert warning is not None
    assert said in warning.replace("\N{NO-BREAK SPACE}", " ")
    assert words.lungs_replaced(maps, told, "PNEUMONIA", 0.98) is None
    assert words.lungs_replaced(maps, told, "NORMAL", 0.8) is None
    assert words.lungs_replaced(maps, {**told, "fill": None}, "PNEUMONIA", 0.8) is None
    assert words.lungs_replaced(maps, None, "PNEUMONIA", 0.8) is None


def test_a_score_that_needs_no_lungs_is_flagged_on_page_and_index(folder: Path, tmp_path: Path) -> None:
    with_zones(folder, tmp_path, None)
    file = tmp_path / "001-z__b___.json"
    facts = json.loads(file.read_text())
    facts["label"], facts["counterfactual"]["together"] = "PNEUMONIA", {"shuffle": {"both lungs": 0.9}}
    for label, count in (("PNEUMONIA", 1), ("NORMAL", 0)):
        file.write_text(json.dumps({**facts, "label": label}))
        explanation_page.write(tmp_path)
        assert (tmp_path / "001-z__b___.html").read_text().count("the network still says pneumonia") == count
        assert (tmp_path / "index.html").read_text().count("still called pneumonia with both lungs replaced") == count


def test_a_score_between_thresholds_is_uncertain() -> None:
    context = {"operating_point": "a", "operating_points": {"a": {"threshold": 0.8}, "b": {"threshold": 0.4}}}
    assert words.uncertain(words.points(context, 0.9)) is None
    assert words.uncertain(words.points(context, None)) is None
    assert "b would call it pneumonia, a would not" in str(words.uncertain(words.points(context, 0.6)))


def test_a_rule_in_that_is_laxer_than_balanced_is_told() -> None:
    rows = [{"name": "balanced", "threshold": 0.875}, {"name": "rule-in", "threshold": 0.870}]
    assert "rule-in is laxer than balanced" in str(words.crossed(rows))
    assert words.crossed([*rows[:1], {"name": "rule-in", "threshold": 0.9}]) is None
    assert words.crossed(rows[:1]) is None
