"""What bad input meets at the command line: every case, its exit code, and the line that is printed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tests.support.dicom_files import encoded, image_object
from tests.support.raster_files import png_of

FULL = Path("/dev/full")  # Linux: a device on which every write finds the disk full
SIDE = 64

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    `build` makes the input in an empty folder, with a bundle beside it, and returns the command line.
    `answer`: `error` is one line on stderr; `line` is the `error` of the first JSON line, the second image
    being fine; `note` is the `quality.notes` of an image that could be read; `report` is what stderr tells
    of a result that was written. `leaves`: the only new names in the folder afterwards. `limit`: size in
    bytes that no file may grow over, as on a full disk. `talks`: it tells of its work before the error.
    """

    name: str
    code: int
    build: Callable[[Path], list[str]]
    says: tuple[str, ...]
    answer: Literal["error", "line", "note", "report"] = "error"
    leaves: tuple[str, ...] = ()
    limit: int | None = None
    stdout: Path | None = None
    talks: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str
    new: tuple[str, ...]


# --- inputs -----------------------------------------------------------------------------------------------


def picture(seed: int = 0) -> NDArray[np.uint8]:
    """Return a bright blob on noise, uint8 [64, 64]."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    noise = np.random.default_rng(seed).normal(0, 12, (SIDE, SIDE))
    return np.asarray(np.clip(200 * np.exp(-2 * (x**2 + y**2)) + 20 + noise, 0, 255), np.uint8)


def grey(seed: int = 0) -> Image.Image:
    return Image.fromarray(picture(seed))


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def chest(root: Path, normal: int = 8, pneumonia: int = 8) -> None:
    """Write a source in the layout NORMAL/ and PNEUMONIA/."""
    for label, number in (("NORMAL", normal), ("PNEUMONIA", pneumonia)):
        (root / label).mkdir(parents=True)
        for seed in range(number):
            save(root / label / f"{label[0]}{seed}.png", grey(seed + (label == "NORMAL") * 100))


def truncated(path: Path) -> None:
    save(path, Image.fromarray(np.tile(picture(), (4, 4))))
    path.write_bytes(path.read_bytes()[:1500])


def dot(path: Path) -> None:
    save(path, Image.new("L", (1, 1)))


def deep(path: Path, factor: int) -> None:
    save(path, Image.fromarray(picture().astype(np.uint16) * factor))


def transparent(path: Path) -> None:
    image = grey().convert("RGBA")
    image.putalpha(Image.fromarray(np.tri(SIDE, dtype=np.uint8) * 255))
    save(path, image)


def animated(path: Path) -> None:
    save(path, grey(0), save_all=True, append_images=[grey(1), grey(2)])


def huge(path: Path) -> None:
    path.write_bytes(png_of(30_000, 30_000))


def dicom(path: Path, pixels: Pixels | None, **elements: Any) -> None:
    path.write_bytes(encoded(image_object(pixels, PatientID="made-up", Rows=SIDE, Columns=SIDE, **elements)))


def monochrome1(path: Path) -> None:
    dicom(path, 255 - picture(), PhotometricInterpretation="MONOCHROME1", WindowCenter="128", WindowWidth="256")


def experiment(path: Path, text: str = "[prepare]\nsize = 32\n[train]\nepochs = 1\nbatch_size = 4\n") -> None:
    path.write_text(text, encoding="utf-8")


def make_bundle(path: Path) -> Path:
    """Write a bundle of an untrained network: it answers, and knows nothing."""
    import torch

    from pneumoscope.bundle.bundle import save_bundle
    from pneumoscope.images.preparation import Preparation
    from pneumoscope.networks.network import build_network, round_weights

    torch.manual_seed(0)
    network, usual = build_network("custom-cnn", classes=2)
    round_weights(network)
    sections = {
        "name": "untrained",
        "network": {"name": "custom-cnn", "classes": ["normal", "pneumonia"]},
        "calibration": {"method": "none", "temperature": 1.0, "bias": 0.0},
        "operating_points": {"balanced": {"threshold": 0.5}},
        "operating_point": "balanced",
        "population": {"source": "none", "images": 0, "patients": 0},
        "training": {},
        "limits": ["Untrained."],
    }
    save_bundle(path, network, Preparation(SIDE, SIDE, "squash", usual["mean"], usual["std"]), sections)
    return path


# --- command lines ----------------------------------------------------------------------------------------


def predict(name: str, make: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """Predict one odd file, and a good one after it."""

    def build(root: Path) -> list[str]:
        make(root / name)
        save(root / "good.png", grey())
        return ["predict", name, "good.png", "--bundle", "bundle"]

    return build


def good(*options: str) -> Callable[[Path], list[str]]:
    def build(root: Path) -> list[str]:
        save(root / "good.png", grey())
        return ["predict", "good.png", *options]

    return build


def with_chest(
    *command: str, make: Callable[[Path], object] | None = None, **classes: int
) -> Callable[[Path], list[str]]:
    """Run a command beside a source `chest`, changed by `make`."""

    def build(root: Path) -> list[str]:
        chest(root / "chest", **classes)
        experiment(root / "tiny.toml")
        if make is not None:
            make(root)
        return list(command)

    return build


def changed(file: str) -> Callable[[Path], list[str]]:
    """Predict with a copy of the bundle in which one byte differs."""

    def build(root: Path) -> list[str]:
        shutil.copytree(root / "bundle", root / "changed")
        data = bytearray((root / "changed" / file).read_bytes())
        place = data.index(b"0.5") + 2 if file == "card.json" else len(data) // 2
        data[place] ^= 1
        (root / "changed" / file).write_bytes(data)
        return good("--bundle", "changed")(root)

    return build


def config(text: str) -> Callable[[Path], list[str]]:
    train = ("train", "wrong.toml", "--data", "chest", "--out", "out")
    return with_chest(*train, make=lambda root: experiment(root / "wrong.toml", text))


def empty_folder(*command: str) -> Callable[[Path], list[str]]:
    def build(root: Path) -> list[str]:
        (root / "nothing").mkdir()
        return list(command)

    return build


def labels(root: Path) -> None:
    text = "path,label\nchest/NORMAL/N0.png,NORMAL\nchest/NORMAL/renamed.png,NORMAL\n"
    (root / "labels.csv").write_text(text, encoding="utf-8")


def a_file(root: Path) -> None:
    (root / "out").write_text("kept", encoding="utf-8")


def mixed(*command: str) -> Callable[[Path], list[str]]:
    """Run a command beside a source of 16 good images and one that was cut off."""
    return with_chest(*command, make=lambda root: truncated(root / "chest/NORMAL/cut.jpeg"))


def error(name: str, build: Callable[[Path], list[str]], *says: str, **more: Any) -> Case:
    return Case(name, 2, build, says, **more)


def line(name: str, file: str, make: Callable[[Path], object], *says: str) -> Case:
    return Case(name, 3, predict(file, make), says, "line")


def note(name: str, file: str, make: Callable[[Path], object], *says: str) -> Case:
    return Case(name, 0, predict(file, make), says, "note")


def report(name: str, code: int, build: Callable[[Path], list[str]], *says: str) -> Case:
    return Case(name, code, build, says, "report", leaves=("out",))


OUT, CHEST, BUNDLE = ("--out", "out"), ("--data", "chest"), ("--bundle", "bundle")
TRAIN, DESCRIBE = ("train", "tiny.toml", *CHEST, *OUT), ("data", "describe", "chest", *OUT)
IMAGE = "chest/NORMAL/N0.png"
TOML = "see docs/reference/experiment.md"
CUT = ("cut.jpeg: the image is damaged", "truncated", "export it again")
NO_FOLDER = ("out: is a file, a folder is needed here", "choose another --out")
TOO_BIG = (": the file grew over the allowed size", "raise the limit")

# fmt: off
FOLDERS = (
    error("missing folder, described", lambda _: ["data", "describe", "absent", *OUT], "absent: no such file or folder",
        "check the path"),
    line("missing folder, predicted", "absent", lambda _: None, "absent: no such file", "check the path"),
    error("folder without images, described", empty_folder("data", "describe", "nothing", *OUT),
        "nothing: no radiographs were found here", "expected train|val|test/NORMAL|PNEUMONIA"),
    error("folder without images, predicted", empty_folder("predict", "nothing", *BUNDLE),
        "nothing: the folder holds no images", "give JPEG, PNG or DICOM files"),
    error("empty class", with_chest("data", "check", "chest", *OUT, pneumonia=0),
        "chest/PNEUMONIA: the class folder is empty", "put its images there"),
    error("one class only, trained", with_chest(*TRAIN, make=lambda root: shutil.rmtree(root / "chest/PNEUMONIA")),
        "chest: no PNEUMONIA images, both classes are needed for training", "add images of that class"),
    error("labels of unknown images", with_chest("evaluate", "--data", "labels.csv", *OUT, *BUNDLE, make=labels),
        "labels.csv: names 1 of 2 images that do not exist, the first is chest/NORMAL/renamed.png",
        "paths are relative to the CSV"),
    report("unreadable image, explained", 3, mixed("explain", "chest/NORMAL/cut.jpeg", IMAGE, *OUT, *BUNDLE), *CUT),
    report("unreadable image, evaluated", 3, mixed("evaluate", *CHEST, *OUT, *BUNDLE, "--explanations", "0"),
        "not analysed: 1; predictions.csv says why"),
    report("unreadable image, checked", 1, mixed("data", "check", "chest", *OUT),
        "error: 1 file is cut off before the end and will be left out"),
)

UNREADABLE = (
    line("unreadable image", "cut.jpeg", truncated, *CUT),
    line("empty file", "empty.png", Path.touch, "empty.png: the file is empty", "copy it again"),
    line("text named .jpeg", "a.jpeg", lambda path: path.write_text("text"), "a.jpeg: is not an image", "export it"),
    line("1x1 pixel", "dot.png", dot, "dot.png: is 1x1 pixels, at least 16x16", "use the original image"),
    line("30,000x30,000 pixels", "huge.png", huge, "huge.png: is larger than 80 megapixels", "scale it down first"),
    line("animated GIF", "film.gif", animated, "film.gif: holds 3 frames, one is expected", "save the frame you mean"),
    line("DICOM without pixels", "a.dcm", lambda path: dicom(path, None), "the DICOM object has no pixels", "send the"),
    line("DICOM with too few pixels", "cut.dcm", lambda path: dicom(path, picture(), PixelData=bytes(100)),
        "cut.dcm: pixels cannot be decoded", "send or copy it again"),
)

ODD_BUT_READ = (
    note("16-bit PNG", "deep.png", lambda path: deep(path, 257), "16 bits per pixel, read at full depth"),
    note("12 bits in a 16-bit PNG", "dark.png", lambda path: deep(path, 16), "is taken as white"),
    note("CMYK JPEG", "ink.jpeg", lambda path: save(path, grey().convert("CMYK")),
        "CMYK colours were turned into grey"),
    note("transparent PNG", "alpha.png", transparent, "transparent pixels were put on black"),
    note("DICOM MONOCHROME1", "inverse.dcm", monochrome1, "inverted for display (MONOCHROME1)"),
)

CONFIGS_AND_BUNDLES = (
    error("config with an unknown key", config("[train]\nepoch = 3\n"), "wrong.toml: unknown key train.epoch", TOML),
    error("config with a wrong type", config('[train]\nepochs = "three"\n'),
        "wrong.toml: train.epochs = 'three': Input should be a valid integer", TOML),
    error("config that is no TOML", config("[train\n"), "wrong.toml: is not valid TOML", "line 1", "mend the line"),
    error("bundle, one byte of the weights changed", changed("weights.safetensors"),
        "changed/weights.safetensors: the file was changed or damaged", "copy the bundle again"),
    error("bundle, one byte of the card changed", changed("card.json"),
        "changed/card.json: the card was changed after it was written", "copy the bundle again"),
    error("unknown bundle", good("--bundle", "absent"), "absent: no such bundle", "give the folder RUN/bundle"),
    error("folder that is no bundle", with_chest("predict", IMAGE, "--bundle", "chest"), "chest: holds no card.json",
        "give the folder RUN/bundle"),
    error("unknown operating point", good(*BUNDLE, "--operating-point", "daring"),
        "the bundle untrained has no operating point 'daring'", "use one of balanced"),
    error("unknown split", with_chest("evaluate", *CHEST, *OUT, *BUNDLE, "--split", "test"),
        "chest: no images in split 'test'", "the source is not split"),
    error("unknown method", with_chest("explain", IMAGE, *OUT, *BUNDLE, "--method", "tarot"),
        "no method is called 'tarot'", "use gradcam"),
)

DISK = (
    error("output path is a file, described", with_chest(*DESCRIBE, make=a_file), *NO_FOLDER),
    error("output path is a file, trained", with_chest(*TRAIN, make=a_file), *NO_FOLDER),
    error("output path is below a file", with_chest("evaluate", *CHEST, "--out", "out/deeper", *BUNDLE, make=a_file),
        "out/deeper: a part of the path is a file, not a folder", "choose another output folder"),
    error("output file is a folder", with_chest("predict", IMAGE, *BUNDLE, "--jsonl", "chest"),
        "chest: is a folder, a file is needed here", "choose another name"),
    error("full disk, predicted", with_chest("predict", "chest", *BUNDLE, "--jsonl", "lines.jsonl"), "lines.jsonl",
        *TOO_BIG, limit=1024),
    error("full disk, described", with_chest(*DESCRIBE), "out/", *TOO_BIG, leaves=("out",), limit=4096),
    error("full disk, trained", with_chest(*TRAIN), "cache", *TOO_BIG, leaves=("out", "cache"), limit=8192,
        talks=True),
    error("full disk, standard output", good(*BUNDLE), "standard output: no space left on the disk", "free some space",
        stdout=FULL),
)
# fmt: on

CASES = FOLDERS + UNREADABLE + ODD_BUT_READ + CONFIGS_AND_BUNDLES + DISK


# --- judging ----------------------------------------------------------------------------------------------


def possible(case: Case) -> bool:
    """Say whether this system has what the case needs."""
    return case.stdout is None or case.stdout.exists()


def printed(case: Case, outcome: Outcome) -> str:
    """Return the part of the output that answers the bad input."""
    if case.answer in ("line", "note"):
        first = json.loads(outcome.stdout.splitlines()[0])
        return str(first["error"]) if case.answer == "line" else "; ".join(first["quality"]["notes"])
    text = outcome.stderr.strip()
    return text.splitlines()[-1] if case.talks and text else text


def complaints(case: Case, outcome: Outcome) -> list[str]:
    """Return what is wrong with an outcome; empty where the contract holds."""
    found = []
    if outcome.code != case.code:
        found.append(f"exit code {outcome.code}, expected {case.code}")
    if "Traceback" in outcome.stdout + outcome.stderr:
        return [*found, "a traceback"]
    try:
        answer = printed(case, outcome)
    except (IndexError, KeyError, ValueError) as error:
        return [*found, f"no JSON line ({error})"]
    found += [f"does not say {words!r}" for words in case.says if words not in answer]
    if case.answer in ("error", "line") and ("\n" in answer or "; " not in answer):
        found.append("not one line with a remedy")
    if case.answer == "error" and not answer.startswith("error: "):
        found.append("stderr does not begin with 'error: '")
    if case.answer in ("line", "note"):
        good = json.loads(outcome.stdout.splitlines()[1])
        if good["path"] != "good.png" or good["probability"] is None:
            found.append("the good image was not answered")
    return found + [f"left {name}" for name in outcome.new if not _allowed(case, name)]


def _allowed(case: Case, name: str) -> bool:
    finished = not name.endswith((".part", ".old"))
    return finished and Path(name).parts[0] in case.leaves


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@contextmanager
def prepared(case: Case, bundle: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a fresh folder that holds the input and a link to the bundle, and the command line."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "bundle").symlink_to(bundle.resolve(), target_is_directory=True)
        yield root, case.build(root)
