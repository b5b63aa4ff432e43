"""What bad input meets at the command line: every case, its exit code, and the line that is printed.

    python benchmarks/bad_input.py             run every case and print a Markdown table
    python benchmarks/bad_input.py NAME ...    only the cases whose name holds one of these words

Exit code 1 where a case does not behave. The tests run the same cases within one process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

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
    bytes that no file may grow over, as on a full disk.
    """

    name: str
    code: int
    build: Callable[[Path], list[str]]
    says: tuple[str, ...]
    answer: Literal["error", "line", "note", "report"] = "error"
    leaves: tuple[str, ...] = ()
    limit: int | None = None
    stdout: Path | None = None


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
    return np.clip(200 * np.exp(-2 * (x**2 + y**2)) + 20 + noise, 0, 255).astype(np.uint8)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(picture())).save(path, **options)
    return path


def chest(root: Path, normal: int = 8, pneumonia: int = 8) -> Path:
    """Write a source in the layout NORMAL/ and PNEUMONIA/."""
    for label, number in (("NORMAL", normal), ("PNEUMONIA", pneumonia)):
        (root / label).mkdir(parents=True)
        for seed in range(number):
            save(root / label / f"{label[0]}{seed}.png", Image.fromarray(picture(seed + (label == "NORMAL") * 100)))
    return root


def truncated(path: Path) -> Path:
    save(path, Image.fromarray(np.tile(picture(), (4, 4))))
    path.write_bytes(path.read_bytes()[:1500])
    return path


def huge(path: Path, side: int = 30_000) -> Path:
    """Write a valid PNG of side x side black pixels, 110 kB that unpack to 900 MB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row, packer = bytes(side + 1), zlib.compressobj(9)
    lines = b"".join([packer.compress(row * 100) for _ in range(side // 100)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def dicom(path: Path, pixels: Pixels | None, **elements: object) -> Path:
    """Write a greyscale DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID = "made-up"
    dataset.Rows = dataset.Columns = SIDE
    if pixels is not None:
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
        dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
        dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def experiment(path: Path, text: str = "") -> Path:
    path.write_text(text or "[prepare]\nsize = 32\n[train]\nepochs = 1\nbatch_size = 4\n", encoding="utf-8")
    return path


def make_bundle(path: Path) -> Path:
    """Write a bundle of an untrained network: it answers, and knows nothing."""
    import torch

    from pneumoscope.bundle import round_weights, save_bundle
    from pneumoscope.models.network import build_network
    from pneumoscope.transforms import Preparation

    torch.manual_seed(0)
    network, usual = build_network("custom-cnn", classes=2)
    round_weights(network)
    sections = {
        "name": "untrained",
        "network": {"name": "custom-cnn", "classes": ["normal", "pneumonia"]},
        "calibration": {"method": "none", "temperature": 1.0},
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
        save(root / "good.png")
        return ["predict", name, "good.png", "--bundle", "bundle"]

    return build


def predict_good(*options: str) -> Callable[[Path], list[str]]:
    def build(root: Path) -> list[str]:
        save(root / "good.png")
        return ["predict", "good.png", *([] if "--bundle" in options else ["--bundle", "bundle"]), *options]

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
        return predict_good("--bundle", "changed")(root)

    return build


def config(text: str) -> Callable[[Path], list[str]]:
    train = ("train", "wrong.toml", "--data", "chest", "--out", "run")
    return with_chest(*train, make=lambda root: experiment(root / "wrong.toml", text))


def empty_folder(command: list[str]) -> Callable[[Path], list[str]]:
    def build(root: Path) -> list[str]:
        (root / "nothing").mkdir()
        return command

    return build


def labels(root: Path) -> None:
    text = "path,label\nchest/NORMAL/N0.png,NORMAL\nchest/NORMAL/renamed.png,NORMAL\n"
    (root / "labels.csv").write_text(text, encoding="utf-8")


def rgba(path: Path) -> None:
    image = Image.fromarray(picture()).convert("RGBA")
    image.putalpha(Image.fromarray(np.tri(SIDE, dtype=np.uint8) * 255))
    save(path, image)


def animated(path: Path) -> None:
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    save(path, frames[0], save_all=True, append_images=frames[1:])


def a_file(root: Path) -> None:
    (root / "out").write_text("kept", encoding="utf-8")


DATA_OUT = ("--data", "chest", "--out", "out")
BUNDLE = ("--bundle", "bundle")

CASES = (
    # folders and labels
    Case(
        "missing folder, described",
        2,
        lambda _: ["data", "describe", "absent", "--out", "out"],
        ("absent: no such file or folder", "check the path"),
    ),
    Case(
        "missing folder, predicted",
        3,
        predict("absent", lambda _: None),
        ("absent: no such file", "check the path"),
        "line",
    ),
    Case(
        "folder without images, described",
        2,
        empty_folder(["data", "describe", "nothing", "--out", "out"]),
        ("nothing: no radiographs were found here", "expected train|val|test/NORMAL|PNEUMONIA"),
    ),
    Case(
        "folder without images, predicted",
        2,
        empty_folder(["predict", "nothing", *BUNDLE]),
        ("nothing: the folder holds no images", "give JPEG, PNG or DICOM files"),
    ),
    Case(
        "empty class",
        2,
        with_chest("data", "check", "chest", "--out", "out", pneumonia=0),
        ("chest/PNEUMONIA: the class folder is empty", "put its images there"),
    ),
    Case(
        "one class only, trained",
        2,
        with_chest(
            "train", "tiny.toml", "--data", "chest", "--out", "run",
            make=lambda root: shutil.rmtree(root / "chest/PNEUMONIA"),
        ),
        ("chest: no PNEUMONIA images, both classes are needed for training", "add images of that class"),
    ),  # fmt: skip
    Case(
        "labels of unknown images",
        2,
        with_chest("evaluate", "--data", "labels.csv", "--out", "out", *BUNDLE, make=labels),
        ("labels.csv: names 1 of 2 images that do not exist", "renamed.png", "paths are relative to the CSV"),
    ),
    # images
    Case(
        "unreadable image, predicted",
        3,
        predict("cut.jpeg", truncated),
        ("cut.jpeg: the image is damaged", "truncated", "export it again"),
        "line",
    ),
    Case(
        "unreadable image, explained",
        3,
        lambda root: [
            "explain",
            truncated(root / "cut.jpeg").name,
            save(root / "good.png").name,
            "--out",
            "out",
            *BUNDLE,
        ],
        ("cut.jpeg: the image is damaged", "export it again"),
        "report",
        leaves=("out",),
    ),
    Case(
        "unreadable image, evaluated",
        3,
        with_chest(
            "evaluate", *DATA_OUT, *BUNDLE, "--explanations", "0",
            make=lambda root: truncated(root / "chest/NORMAL/cut.jpeg"),
        ),
        ("1 images were not analysed; predictions.csv says why",),
        "report",
        leaves=("out",),
    ),  # fmt: skip
    Case(
        "unreadable image, checked",
        1,
        with_chest("data", "check", "chest", "--out", "out", make=lambda root: truncated(root / "chest/NORMAL/cut.jpeg")),
        ("error: 1 file is cut off before the end and will be left out",),
        "report",
        leaves=("out",),
    ),
    Case("empty file", 3, predict("empty.png", Path.touch), ("empty.png: the file is empty", "copy it again"), "line"),
    Case(
        "text named .jpeg",
        3,
        predict("notes.jpeg", lambda path: path.write_text("no image")),
        ("notes.jpeg: is not an image", "export it again"),
        "line",
    ),
    Case(
        "1x1 pixel",
        3,
        predict("dot.png", lambda path: save(path, Image.new("L", (1, 1)))),
        ("dot.png: is 1x1 pixels, at least 16x16", "use the original image"),
        "line",
    ),
    Case(
        "30,000x30,000 pixels",
        3,
        predict("huge.png", huge),
        ("huge.png: is larger than 80 megapixels", "scale it down first"),
        "line",
    ),
    Case(
        "animated GIF",
        3,
        predict("film.gif", animated),
        ("film.gif: holds 3 frames, one is expected", "save the frame you mean"),
        "line",
    ),
    Case(
        "DICOM without pixels",
        3,
        predict("report.dcm", lambda path: dicom(path, None)),
        ("report.dcm: the DICOM object has no pixels", "send the image object"),
        "line",
    ),
    Case(
        "DICOM with too few pixels",
        3,
        predict("cut.dcm", lambda path: dicom(path, picture(), PixelData=bytes(100))),
        ("cut.dcm: pixels cannot be decoded", "export it"),
        "line",
    ),
    # odd, but read
    Case(
        "16-bit PNG",
        0,
        predict("deep.png", lambda path: save(path, Image.fromarray(picture().astype(np.uint16) * 257))),
        ("16 bits per pixel, read at full depth",),
        "note",
    ),
    Case(
        "12 bits in a 16-bit PNG",
        0,
        predict("dark.png", lambda path: save(path, Image.fromarray(picture().astype(np.uint16) * 16))),
        ("may hold fewer bits than it says",),
        "note",
    ),
    Case(
        "CMYK JPEG",
        0,
        predict("print.jpeg", lambda path: save(path, Image.fromarray(picture()).convert("CMYK"))),
        ("CMYK colours were turned into grey",),
        "note",
    ),
    Case("transparent PNG", 0, predict("alpha.png", rgba), ("transparent pixels were put on black",), "note"),
    Case(
        "DICOM MONOCHROME1",
        0,
        predict(
            "inverse.dcm",
            lambda path: dicom(
                path, 255 - picture(), PhotometricInterpretation="MONOCHROME1", WindowCenter="128", WindowWidth="256"
            ),
        ),
        ("inverted for display (MONOCHROME1)",),
        "note",
    ),
    # configuration
    Case(
        "config with an unknown key",
        2,
        config("[train]\nepoch = 3\n"),
        ("wrong.toml: unknown key train.epoch", "see docs/reference/experiment.md"),
    ),
    Case(
        "config with a wrong type",
        2,
        config('[train]\nepochs = "three"\n'),
        ("wrong.toml: train.epochs = 'three': Input should be a valid integer", "see docs/reference/experiment.md"),
    ),
    Case("config that is no TOML", 2, config("[train\n"), ("wrong.toml: is not valid TOML", "line 1", "mend the line")),
    # bundles
    Case(
        "bundle, one byte of the weights changed",
        2,
        changed("weights.safetensors"),
        ("changed/weights.safetensors: the file was changed or damaged", "copy the bundle again"),
    ),
    Case(
        "bundle, one byte of the card changed",
        2,
        changed("card.json"),
        ("changed/card.json: the card was changed after it was written", "copy the bundle again"),
    ),
    Case(
        "unknown bundle",
        2,
        predict_good("--bundle", "absent"),
        ("absent: no such bundle", "give the folder RUN/bundle that training wrote"),
    ),
    Case(
        "folder that is no bundle",
        2,
        with_chest("predict", "chest/NORMAL/N0.png", "--bundle", "chest"),
        ("chest: holds no card.json", "give the folder RUN/bundle"),
    ),
    # names
    Case(
        "unknown operating point",
        2,
        predict_good("--operating-point", "daring"),
        ("the bundle untrained has no operating point 'daring'", "use one of balanced"),
    ),
    Case(
        "unknown split",
        2,
        with_chest("evaluate", *DATA_OUT, *BUNDLE, "--split", "test"),
        ("chest: no images in split 'test'", "the source is not split"),
    ),
    Case(
        "unknown method",
        2,
        with_chest("explain", "chest/NORMAL/N0.png", "--out", "out", *BUNDLE, "--method", "tarot"),
        ("no method is called 'tarot'", "use gradcam"),
    ),
    # the disk
    Case(
        "output path is a file, described",
        2,
        with_chest("data", "describe", "chest", "--out", "out", make=a_file),
        ("out: is a file, a folder is needed here", "choose another --out"),
    ),
    Case(
        "output path is a file, trained",
        2,
        with_chest("train", "tiny.toml", *DATA_OUT, make=a_file),
        ("out: is a file, a folder is needed here", "choose another --out"),
    ),
    Case(
        "output path is below a file",
        2,
        with_chest("evaluate", "--data", "chest", "--out", "out/deeper", *BUNDLE, make=a_file),
        ("out/deeper: a part of the path is a file, not a folder", "choose another output folder"),
    ),
    Case(
        "output file is a folder",
        2,
        with_chest("predict", "chest/NORMAL/N0.png", *BUNDLE, "--jsonl", "chest"),
        ("chest: is a folder, a file is needed here", "choose another name"),
    ),
    Case(
        "full disk, predicted",
        2,
        with_chest("predict", "chest", *BUNDLE, "--jsonl", "lines.jsonl"),
        ("lines.jsonl: the file grew over the allowed size", "raise the limit"),
        limit=1024,
    ),
    Case(
        "full disk, described",
        2,
        with_chest("data", "describe", "chest", "--out", "out"),
        (": the file grew over the allowed size", "raise the limit"),
        leaves=("out",),
        limit=4096,
    ),
    Case(
        "full disk, trained",
        2,
        with_chest("train", "tiny.toml", *DATA_OUT),
        ("cache", ": the file grew over the allowed size", "raise the limit"),
        leaves=("out", "cache"),
        limit=8192,
    ),
    Case(
        "full disk, standard output",
        2,
        predict_good(),
        ("standard output: no space left on the disk", "free some space"),
        stdout=FULL,
    ),
)  # fmt: skip


# --- judging ----------------------------------------------------------------------------------------------


def possible(case: Case) -> bool:
    """Say whether this system has what the case needs."""
    return case.stdout is None or case.stdout.exists()


def printed(case: Case, outcome: Outcome) -> str:
    """Return the part of the output that answers the bad input."""
    if case.answer in ("line", "note"):
        first = json.loads(outcome.stdout.splitlines()[0])
        return str(first["error"]) if case.answer == "line" else "; ".join(first["quality"]["notes"])
    return outcome.stderr.strip()


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


def run_case(case: Case, bundle: Path) -> tuple[list[str], Outcome]:
    """Run one case in a process of its own."""

    def limit() -> None:
        if case.limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit, case.limit))

    with prepared(case, bundle) as (root, arguments):
        before = files(root)
        environment: Mapping[str, str] = {**os.environ, "PNEUMOSCOPE_CACHE": "cache"}
        command = [sys.executable, "-c", "from pneumoscope.cli import main; main()", *arguments]
        with tempfile.TemporaryFile("w+") as spool:
            target = case.stdout.open("w") if case.stdout else spool
            done = subprocess.run(
                command, cwd=root, env=environment, stdout=target, stderr=subprocess.PIPE, text=True,
                preexec_fn=limit, check=False,
            )  # fmt: skip
            if case.stdout:
                target.close()
            spool.seek(0)
            new = tuple(sorted(files(root) - before))
            return arguments, Outcome(done.returncode, spool.read(), done.stderr, new)


def main() -> int:
    """Run the cases and print the table."""
    chosen = [case for case in CASES if not sys.argv[1:] or any(word in case.name for word in sys.argv[1:])]
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle")
        print("| case | command | exit | what is printed |\n|---|---|---|---|")
        for case in chosen:
            if not possible(case):
                continue
            arguments, outcome = run_case(case, bundle)
            found = complaints(case, outcome)
            wrong += [f"{case.name}: {text}" for text in found]
            text = outcome.stderr if found else printed(case, outcome)
            cells = (case.name, f"`{' '.join(arguments)}`", str(outcome.code), " ⏎ ".join(text.strip().splitlines()))
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
    print("\n".join(["", *wrong]) if wrong else f"\nAll {len(chosen)} cases behave.")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
