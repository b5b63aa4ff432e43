"""From a path to a manifest, and what is said of paths that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.support.dicom_files import encoded, image_object

from pneumoscope.data.sources import open_source
from pneumoscope.errors import ConfigError, DataError
from pneumoscope.images import age_in_years, read_image
from pneumoscope.records import NORMAL, PNEUMONIA


def image(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), grey).save(path)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert caught.value.path
    assert caught.value.remedy
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- folders ----------------------------------------------------------------------------------------------


def test_the_kaggle_layout(tmp_path: Path) -> None:
    image(tmp_path / "train/NORMAL/IM-0001-0001.jpeg")
    image(tmp_path / "train/PNEUMONIA/person1_virus_6.jpeg")
    image(tmp_path / "val/PNEUMONIA/person1_bacteria_1.jpeg")
    image(tmp_path / "test/NORMAL/x.png")
    manifest = open_source(tmp_path)
    found = [(s.patient_id, s.label, s.subtype, s.split) for s in manifest.samples]
    assert sorted(found, key=str) == sorted(
        [
            ("IM-0001", NORMAL, None, "train"),
            ("virus-person1", PNEUMONIA, "viral", "train"),
            ("bacteria-person1", PNEUMONIA, "bacterial", "val"),
            ("test/NORMAL/x.png", NORMAL, None, "test"),
        ],
        key=str,
    )
    assert manifest.kind == "folder"


def test_one_split_of_it(tmp_path: Path) -> None:
    image(tmp_path / "normal/a.png")
    image(tmp_path / "Pneumonia/sub/b.png")
    assert [(s.label, s.split) for s in open_source(tmp_path).samples] == [(NORMAL, None), (PNEUMONIA, None)]


def test_a_name_without_a_rule_is_a_patient_of_its_own(tmp_path: Path) -> None:
    for name in ("train/NORMAL/1.png", "test/NORMAL/1.png", "train/NORMAL/1.jpeg", "train/NORMAL/deep/1.png"):
        image(tmp_path / name)
    image(tmp_path / "train/PNEUMONIA/1.png")
    samples = open_source(tmp_path).samples
    assert len({sample.patient_id for sample in samples}) == len(samples) == 5


def test_what_is_no_image_is_passed_over_and_told(tmp_path: Path) -> None:
    image(tmp_path / "NORMAL/a.png")
    image(tmp_path / "PNEUMONIA/b.png")
    (tmp_path / "NORMAL/notes.txt").write_text("x")
    (tmp_path / "NORMAL/.DS_Store").write_text("x")
    (tmp_path / "NORMAL/._a.png").write_text("x")
    manifest = open_source(tmp_path)
    assert len(manifest) == 2
    assert manifest.passed_over == ((str(tmp_path / "NORMAL/notes.txt"), "not an image file"),)


def test_folders_that_are_no_source(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent: no such file or folder", "check the path")
    refused(tmp_path, "no radiographs were found here", "expected train|val|test/NORMAL|PNEUMONIA")
    image(tmp_path / "loose.png")
    refused(tmp_path, "no radiographs were found here")
    refused(tmp_path / "loose.png", "is no data source", "expected")
    image(tmp_path / "NORMAL/a.png")
    (tmp_path / "PNEUMONIA").mkdir()
    refused(tmp_path, "PNEUMONIA: the class folder is empty", "put its images there or remove the folder")


def test_class_folders_that_differ_in_capitals_alone(tmp_path: Path) -> None:
    image(tmp_path / "NORMAL/a.png")
    image(tmp_path / "normal/b.png")
    image(tmp_path / "PNEUMONIA/c.png")
    refused(tmp_path, "twice")


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    for name in ("NORMAL/b.png", "NORMAL/a.png", "PNEUMONIA/c.png"):
        image(tmp_path / name)
    assert [Path(s.path).name for s in open_source(tmp_path).samples] == ["a.png", "b.png", "c.png"]


# --- MedMNIST ---------------------------------------------------------------------------------------------

PIXELS = np.zeros((4, 28, 28), np.uint8)


def test_an_archive(tmp_path: Path) -> None:
    labels = np.array([[0], [1], [1], [0]])
    np.savez(tmp_path / "a.npz", train_images=PIXELS, train_labels=labels, test_images=PIXELS[:1], test_labels=[[1]])
    samples = open_source(tmp_path / "a.npz").samples
    assert [(s.label, s.split) for s in samples][1:] == [
        (PNEUMONIA, "train"), (PNEUMONIA, "train"), (NORMAL, "train"), (PNEUMONIA, "test"),
    ]  # fmt: skip
    assert samples[4].path == f"{tmp_path / 'a.npz'}#test/0"
    assert len({sample.patient_id for sample in samples}) == 5


def test_archives_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, other=PIXELS)
    refused(path, "holds no train_images/train_labels")
    np.savez(path, train_images=PIXELS, train_labels=[0, 1, 2, 0])
    refused(path, "train_images and train_labels do not fit")
    np.savez(path, train_images=PIXELS, train_labels=[0, 1])
    refused(path, "train_images and train_labels do not fit")
    np.savez(path, train_images=PIXELS, train_labels=np.array([0, 1, None, 0], object))
    refused(path, "train_images and train_labels do not fit", "4 object")
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    refused(path, "is not a readable NumPy archive", "fetch it again")
    path.write_text("text")
    refused(path, "is not a readable NumPy archive")
    with path.open("wb") as stream:
        np.save(stream, PIXELS)
    refused(path, "is not a readable NumPy archive")
    np.savez_compressed(path, train_images=PIXELS, train_labels=np.arange(4000) % 2)
    content = bytearray(path.read_bytes())
    place = content.index(b"train_labels.npy") + 200
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    refused(path, "is not a readable NumPy archive")


# --- CSV --------------------------------------------------------------------------------------------------


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    for name in ("a.png", "b.png", "sub/a.png", "scan#1.png"):
        image(folder / name)
    (folder / "list.csv").write_text(text, encoding=encoding)
    return folder / "list.csv"


def test_a_table(tmp_path: Path) -> None:
    text = (
        "path,label,patient_id,site,age_years,sex,view,subtype,split,crp\n"
        "a.png,normal,p1,north,4.5,F,PA,,train,12\n"
        " b.png , PNEUMONIA ,,,,,,Viral,TEST,\n"
    )
    manifest = open_source(table(tmp_path, text))
    first, second = manifest.samples
    assert (first.label, first.patient_id, first.age_years, first.split) == (NORMAL, "p1", 4.5, "train")
    assert dict(first.covariates) == {"crp": "12"}
    assert (second.label, second.subtype, second.split, second.age_years) == (PNEUMONIA, "viral", "test", None)
    assert Path(second.path) == tmp_path / "b.png"
    assert manifest.patient_rule == "column patient_id"


def test_the_table_of_a_folder_decides(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        image(tmp_path / label / "a.png")
    assert len(open_source(tmp_path)) == 2
    (tmp_path / "manifest.csv").write_text("path,label,patient_id\nNORMAL/a.png,NORMAL,ann\n")
    assert [(s.label, s.patient_id) for s in open_source(tmp_path).samples] == [("NORMAL", "ann")]


def test_without_patients_every_image_is_one(tmp_path: Path) -> None:
    manifest = open_source(table(tmp_path, "path,label\na.png,NORMAL\nsub/a.png,NORMAL\nscan#1.png,PNEUMONIA\n"))
    assert [s.patient_id for s in manifest.samples] == ["a.png", "sub/a.png", "scan#1.png"]
    assert "file name" in manifest.patient_rule


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, encoding: str) -> None:
    assert len(open_source(table(tmp_path, "path,label\na.png,NORMAL\n", encoding))) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a readable CSV table"),
        ("path,label\n", "has no rows"),
        ("file,class\na.png,NORMAL\n", "lacks the column path and label; it has file, class"),
        ("path\na.png\n", "lacks the column label"),
        ("path,label\na.png,NORMAL\nb.png,SICK\n", "line 3: label 'SICK' is unknown; use NORMAL, PNEUMONIA"),
        ("path,label,subtype\na.png,PNEUMONIA,fungal\n", "line 2: subtype 'fungal' is unknown"),
        ("path,label,split\na.png,PNEUMONIA,dev\n", "line 2: split 'dev' is unknown; use train, val, test"),
        ("path,label,age_years\na.png,NORMAL,old\n", "line 2: age_years 'old' is no age"),
        ("path,label,age_years\na.png,NORMAL,-1\n", "line 2: age_years '-1' is no age"),
        ("path,label,age_years\na.png,NORMAL,inf\n", "line 2: age_years 'inf' is no age"),
        ("path,label\n,NORMAL\n", "line 2: the path is empty"),
        ("path,label\na.png,NORMAL\nc.png,NORMAL\nd.png,NORMAL\n", "names 2 of 3 images that do not exist, the first"),
        ("path,label\nabsent.npz#val/0,NORMAL\n", "names 1 of 1 images that do not exist"),
        ("path,label\nscan#2.png,NORMAL\n", "names 1 of 1 images that do not exist"),
        ('path,label\n"a.png,NORMAL\n', "is not a readable CSV table"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    refused(table(tmp_path, text), words, "list.csv")


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    refused(table(tmp_path, "path,label,site\na.png,NORMAL,Köln\n", "latin-1"), "save it as UTF-8 CSV")


# --- DICOM ------------------------------------------------------------------------------------------------


def dicom(path: Path, **elements: Any) -> Path:
    path.write_bytes(encoded(image_object(None, **{"Rows": 32, "Columns": 32, **elements})))
    return path


def test_a_dicom_folder(tmp_path: Path) -> None:
    dicom(tmp_path / "1.dcm", PatientID="77", PatientAge="018M", PatientSex="F", ViewPosition="AP", KVP="70")
    dicom(tmp_path / "2", PatientID="77", IssuerOfPatientID="north")
    dicom(tmp_path / "3.dcm", PatientID="77")
    dicom(tmp_path / "report.dcm", Rows=0)
    (tmp_path / "broken.dcm").write_text("no DICOM" * 50)
    (tmp_path / "notes.txt").write_text("x")
    manifest = open_source(tmp_path)
    assert manifest.kind == "dicom"
    first, issued, third = manifest.samples
    assert (first.age_years, first.sex, first.view, first.covariates["KVP"]) == (1.5, "F", "AP", "70")
    assert first.patient_id == third.patient_id != issued.patient_id
    assert "77" not in first.patient_id.removeprefix("dicom-")[:2]
    assert first.label is None
    reasons = {Path(path).name: reason for path, reason in manifest.passed_over}
    assert reasons["report.dcm"] == "the DICOM object has no pixels"
    assert "is not a readable DICOM file" in reasons["broken.dcm"]


def test_labels_beside_dicom(tmp_path: Path) -> None:
    dicom(tmp_path / "1.dcm", PatientID="a", PatientAge="030Y")
    dicom(tmp_path / "2.dcm", PatientID="a")
    dicom(tmp_path / "3.dcm", PatientID="b")
    (tmp_path / "labels.csv").write_text("path,label,patient_id,age_years\n1.dcm,NORMAL,,\n3.dcm,PNEUMONIA,mine,7\n")
    first, second, third = open_source(tmp_path).samples
    assert [s.label for s in (first, second, third)] == [NORMAL, None, PNEUMONIA]
    assert first.patient_id == second.patient_id, "an empty patient_id leaves the header's"
    assert (third.patient_id, third.age_years, first.age_years) == ("mine", 7, 30)
    (tmp_path / "labels.csv").write_text("path,label\nabsent.dcm,NORMAL\n")
    refused(tmp_path, "labels.csv: names 1 of 1 images that do not exist")


def test_a_damaged_header_is_passed_over(tmp_path: Path) -> None:
    dicom(tmp_path / "good.dcm", PatientID="a")
    (tmp_path / "odd.dcm").write_bytes(bytes(200))
    manifest = open_source(tmp_path)
    assert [Path(s.path).name for s in manifest.samples] == ["good.dcm"]
    [(name, reason)] = manifest.passed_over
    assert Path(name).name == "odd.dcm"
    assert "is not a readable DICOM file" in reason


def test_a_damaged_optional_element_costs_no_image(tmp_path: Path) -> None:
    for keyword, tag in (
        ("KVP", b"\x18\x00\x60\x00DS"),
        ("PatientAge", b"\x10\x00\x10\x10AS"),
        ("Rows", b"(\x00\x10\x00US"),
    ):
        path = dicom(tmp_path / f"{keyword}.dcm", PatientID="b", KVP="70.5", PatientAge="018M")
        content = path.read_bytes()
        place = content.index(tag)
        junk = (
            b"Q\xff" + content[place + 6 :] if keyword == "Rows" else tag[4:] + content[place + 6 : place + 8] + b"7,x;"
        )
        path.write_bytes(content[: place + 4] + (junk if keyword == "Rows" else junk + content[place + 12 :]))
    manifest = open_source(tmp_path)
    assert manifest.passed_over == ()
    assert sorted(Path(s.path).stem for s in manifest.samples) == ["KVP", "PatientAge", "Rows"]


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("018M", 1.5),
        ("004Y", 4.0),
        ("026W", 26 * 7 / 365.25),
        ("010D", 10 / 365.25),
        ("4Y", 4.0),
        ("²Y", None),
        ("004X", None),
        (None, None),
    ],
)
def test_ages(text: str | None, years: float | None) -> None:
    assert age_in_years(text) == pytest.approx(years)


@given(st.text(max_size=6))
def test_any_text_may_be_an_age(text: str) -> None:
    years = age_in_years(text)
    assert years is None or years >= 0


def test_a_third_class_folder_is_left_out_and_named(tmp_path: Path) -> None:
    for name in ("train/NORMAL", "train/PNEUMONIA", "train/COVID"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            image(tmp_path / name / f"{number}.png", grey=len(name) + number)
    manifest = open_source(tmp_path)
    assert len(manifest) == 4
    assert {reason for _, reason in manifest.passed_over} == {"in no class folder"}
    assert len(manifest.passed_over) == 2


# --- nothing is lost silently -----------------------------------------------------------------------------


def test_images_are_known_by_their_content_and_links_are_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("a.jfif", "b.jpe", "c.webp", "d.gif", "e.pgm", "f"):
        made = image(tmp_path / "made" / f"{name}.png", grey=ord(name[0]))
        kind = {"c.webp": "WEBP", "d.gif": "GIF", "e.pgm": "PPM", "f": "PNG"}.get(name, "JPEG")
        (data / "NORMAL").mkdir(parents=True, exist_ok=True)
        Image.open(made).save(data / "NORMAL" / name, kind)
    image(tmp_path / "elsewhere" / "g.png")
    (data / "NORMAL" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(data)
    (data / "NORMAL" / "nothing.png").symlink_to(tmp_path / "absent.png")
    (data / "NORMAL" / "notes").write_text("no image")
    image(data / "PNEUMONIA" / "h.png")
    image(data / "OTHER" / "i.png")
    manifest = open_source(data)
    names = [Path(sample.path).name for sample in manifest.samples]
    assert names == ["a.jfif", "b.jpe", "c.webp", "d.gif", "e.pgm", "f", "g.png", "h.png"]
    passed = {Path(name).name: reason for name, reason in manifest.passed_over}
    assert passed == {
        "notes": "not an image file",
        "nothing.png": "a link to nothing",
        "i.png": "in no class folder",
    }


def test_the_archive_of_kaggle_holds_a_copy_of_itself(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        for inner in ("", "chest_xray"):
            image(tmp_path / "chest_xray" / inner / "train" / label / f"{label}.png")
    (tmp_path / "__MACOSX").mkdir()
    for root in (tmp_path, tmp_path / "chest_xray"):
        manifest = open_source(root)
        assert len(manifest) == 2
        assert [reason for _, reason in manifest.passed_over] == ["the same image as one in an outer folder"] * 2


# --- tables: read, or named ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label,label\na.png,NORMAL,PNEUMONIA\n", "has the column label twice"),
        ("path,label, Label\na.png,NORMAL,PNEUMONIA\n", "has the column label twice"),
        ("path,label\na.png,NORMAL,1,2\n", "line 2 has 4 fields, and the first line 2"),
        ("path,label,age_years\n\na.png,NORMAL\n", "line 3 has 2 fields, and the first line 3"),
        ("path,label\na.png,1\n", "--label-map 0=NORMAL,1=PNEUMONIA"),
        ('path,label\n"a.png,NORMAL\n', "is not a readable CSV table"),
        ("", "is not a readable CSV table (it is empty)"),
    ],
)
def test_doubtful_tables_are_named(tmp_path: Path, text: str, words: str) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(text)
    refused(tmp_path / "t.csv", words)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_other_programs_are_read(tmp_path: Path, separator: str) -> None:
    image(tmp_path / "sub/a.png")
    image(tmp_path / "sub/b.png")
    lines = [
        "Path, label,Split ,patient_id,age_years,note",
        "sub\\a.png,normal,valid,NA,n/a,NA",
        "sub/b.png,NA,Training,p,4,x",
    ]
    (tmp_path / "t.csv").write_text("\r\n".join(line.replace(",", separator) for line in lines) + "\r\n\r\n")
    first, second = open_source(tmp_path / "t.csv").samples
    assert (first.path, first.label, first.split) == (str(tmp_path / "sub/a.png"), NORMAL, "val")
    assert (first.patient_id, first.age_years, dict(first.covariates)) == ("sub/a.png", None, {"note": "NA"})
    assert (second.label, second.split, second.patient_id, second.age_years) == (None, "train", "p", 4)


def test_a_label_map_says_what_a_source_means(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,0\nb.png,1.0\n")
    for words in ("0=NORMAL,1=PNEUMONIA", {0: "NORMAL", 1: "PNEUMONIA"}):
        assert [s.label for s in open_source(tmp_path / "t.csv", words).samples] == [NORMAL, PNEUMONIA]
    image(tmp_path / "k/train/healthy/a.png")
    image(tmp_path / "k/train/sick/b.png")
    image(tmp_path / "k/train/sicker/b.png")
    folders = open_source(tmp_path / "k", "healthy=NORMAL, sick=PNEUMONIA, SICKER=pneumonia")
    assert [s.label for s in folders.samples] == [NORMAL, PNEUMONIA, PNEUMONIA]
    np.savez(tmp_path / "a.npz", train_images=PIXELS, train_labels=[0, 1, 2, 2])
    archive = open_source(tmp_path / "a.npz", "2=PNEUMONIA,1=NORMAL")
    assert [s.label for s in archive.samples] == [NORMAL, NORMAL, PNEUMONIA, PNEUMONIA]


@pytest.mark.parametrize("text", ["", "0", "0=SICK", "0=NORMAL,0=PNEUMONIA", "=NORMAL"])
def test_a_label_map_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="label map"):
        open_source(tmp_path, text)


VALUES = (np.arange(4 * 28 * 28).reshape(4, 28, 28) * 4095) // (4 * 28 * 28 - 1)


@pytest.mark.parametrize(
    ("images", "white"),
    [
        ((VALUES >> 4).astype(np.uint8)[..., None], 255),
        (np.stack([VALUES >> 4] * 3, -1).astype(np.uint8), 255),
        (VALUES.astype(np.uint16), 4095),
        (VALUES.astype(np.int64), 4095),
        ((VALUES / 4095).astype(np.float32), 1),
        ((VALUES / 4095).astype(np.float16), 1),
        (VALUES > 2000, 1),
    ],
)
def test_archives_of_other_types_are_read_on_one_scale(tmp_path: Path, images: Any, white: float) -> None:
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=[0, 1, True, False])
    samples = open_source(tmp_path / "a.npz").samples
    flat = images[..., 0] if images.ndim == 4 else images
    for number, sample in enumerate(samples):
        found = read_image(sample.path).pixels
        np.testing.assert_allclose(found, flat[number].astype(np.float64) / white, atol=1e-3)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 3, 28, 28), np.float32), "train_images, 4x3x28x28 float32 are no images"),
        (np.zeros((4, 784), np.uint8), "train_images, 4x784 uint8 are no images"),
        (np.array([None] * 4, object), "train_images, 4 object are no grey values"),
        (np.zeros((4, 28, 28), complex), "complex128 are no grey values"),
    ],
)
def test_archives_that_cannot_be_read_name_type_and_shape(tmp_path: Path, images: Any, words: str) -> None:
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=[0, 1, 1, 0])
    refused(tmp_path / "a.npz", words)
