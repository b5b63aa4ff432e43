"""Images that a bundle learned from are counted wherever it is measured, and make the figures void."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.bundle.bundle import Bundle, load_bundle
from pneumoscope.bundle.overlap import LIMIT, overlap
from pneumoscope.cli import main
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.records import Sample


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Bundle:
    return load_bundle(trained / "bundle")


@pytest.fixture(scope="module")
def learned(trained: Path) -> tuple[Sample, ...]:
    return open_source(trained / "split.csv").select("train").samples


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Images of patients that the bundle has not seen."""
    from pneumoscope.phantom.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("fresh")
    write_dataset(folder, patients=40, seed=99, size=64)
    return open_source(folder)


def _renamed(samples: tuple[Sample, ...], folder: Path) -> list[Sample]:
    """Write copies under other names: smaller, encoded anew, 2 % cut from each side."""
    copies = []
    for number, sample in enumerate(samples):
        with Image.open(sample.path) as image:
            grey = image.convert("L").resize((320, 320))
            path = folder / f"case-{number}.jpg"
            grey.crop((6, 6, 314, 314)).resize((200, 210)).save(path, quality=70)
        copies.append(replace(sample, path=str(path), patient_id=path.name, split=None))
    return copies


def test_a_subset_of_changed_copies_is_void(bundle: Bundle, learned: tuple[Sample, ...], tmp_path: Path) -> None:
    copies = _renamed(learned[:15], tmp_path)
    facts, parts = overlap(bundle, copies)
    assert parts == ["train"] * 15
    assert facts["by"] == {"look": 15}
    assert "15 of 15 images are copies" in facts["void"]


def test_images_of_new_patients_are_clear(bundle: Bundle, fresh: Manifest) -> None:
    facts, parts = overlap(bundle, fresh.samples)
    assert facts["checked"]
    assert not facts["parts"]
    assert set(parts) == {""}
    assert (facts["void"], facts["warning"], facts["note"]) == (None, None, None)


def test_some_copies_among_many_only_warn(
    bundle: Bundle, learned: tuple[Sample, ...], fresh: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [*fresh.samples, learned[0]]
    assert LIMIT * len(samples) < 1
    assert overlap(bundle, samples)[0]["void"]
    monkeypatch.setattr("pneumoscope.bundle.overlap.LIMIT", 1 / len(samples))
    facts, _ = overlap(bundle, samples)
    assert facts["void"] is None
    assert "flatter" in facts["warning"]


def test_images_that_were_asked_for_by_their_part_warn(bundle: Bundle, trained: Path) -> None:
    val = open_source(trained / "split.csv").select("val").samples
    facts, _ = overlap(bundle, val, asked=True)
    assert facts["void"] is None
    assert "no figures of a test" in facts["warning"]
    assert facts["parts"] == {"val": len(val)}


def test_images_kept_for_the_test_are_no_reason(bundle: Bundle, fresh: Manifest) -> None:
    from pneumoscope.bundle.fingerprints import fingerprints_of

    paths = [sample.path for sample in fresh.samples]
    known = fingerprints_of(paths, ["test"] * len(paths))

    class Known(Bundle):
        def fingerprints(self):  # type: ignore[no-untyped-def]
            return known

    facts, parts = overlap(Known(bundle.folder, bundle.card, bundle.preparation), fresh.samples)
    assert set(parts) == {"test"}
    assert facts["void"] is facts["warning"] is None


def test_a_list_that_is_not_whole_says_what_may_be_missed(bundle: Bundle, fresh: Manifest) -> None:
    whole = bundle.fingerprints()
    assert whole is not None
    part = replace(whole, totals={**whole.totals, "train": 10 * len(whole.part)})

    class Known(Bundle):
        def fingerprints(self):  # type: ignore[no-untyped-def]
            return part

    facts, _ = overlap(Known(bundle.folder, bundle.card, bundle.preparation), fresh.samples)
    assert facts["share"] < 0.1
    assert f"up to {3 / facts['share']:,.0f} copies may go unnoticed" in facts["note"]


def test_a_bundle_without_fingerprints_says_so(make_bundle: object, fresh: Manifest, tmp_path: Path) -> None:
    old = load_bundle(make_bundle(tmp_path / "old"))  # type: ignore[operator]
    facts, parts = overlap(old, fresh.samples)
    assert not facts["checked"]
    assert "not known" in facts["note"]
    assert set(parts) == {""}


# --- in the commands --------------------------------------------------------------------------------------


@pytest.fixture
def site(learned: tuple[Sample, ...], tmp_path: Path) -> Path:
    """A source of copies of training images."""
    (tmp_path / "images").mkdir()
    copies = _renamed(learned[:40], tmp_path / "images")
    Manifest(tmp_path, "csv", tuple(copies), "name").write_csv(tmp_path / "site.csv")
    return tmp_path / "site.csv"


@pytest.mark.parametrize("command", ["evaluate", "validate", "audit", "adapt"])
def test_every_command_that_measures_exits_with_1(
    command: str, site: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = site.parent / "out"
    options = {"evaluate": ["--explanations", "0", "--no-gate"], "validate": ["--no-gate"], "audit": ["--images", "40"]}
    arguments = [command, "--data", str(site), "--bundle", str(trained / "bundle"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["pneumoscope", *arguments, *options.get(command, [])])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "40 of 40 images are copies" in said
    file, page = {
        "evaluate": (out / "metrics.json", out / "report.html"),
        "validate": (out / "validation.json", out / "validation.html"),
        "audit": (out / "audit.json", out / "audit.html"),
        "adapt": (out.with_name("out.adaptation.json"), None),
    }[command]
    result = json.loads(file.read_text())
    assert result["overlap"]["parts"] == {"train": 40}
    assert "copies" in result["overlap"]["void"]
    if page is None:
        assert result["adopted"] is None
        assert not out.exists()
    else:
        assert "40 of 40 images are copies" in page.read_text()
