"""Kill training with SIGKILL at random moments, resume it, and compare with the run that was left alone.

Every random choice is on: augmentation, dropout, mixup, the moving average of weights, balanced sampling. The
history must agree in every figure but those of a clock, and the weights to the bit.

    python benchmarks/quality/kill_and_resume.py [--data SRC] [--kills 3] [--seed 0] [--epochs 8]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CLI = (sys.executable, "-c", "from pneumoscope.cli import main; main()")
CLOCK = ("seconds", "images_per_second")
EXPERIMENT = """
[data]
val_fraction = 0.2

[prepare]
size = 64
canvas = 72

[augment]
rotation = 8.0
crop_scale = [0.6, 1.0]
flip = 0.5
noise = 0.03

[model]
dropout = 0.3

[train]
epochs = {epochs}
batch_size = 16
classes = 3
mixup = 0.2
ema = 0.9
imbalance = "sampler"
"""


@dataclass(frozen=True)
class Kill:
    """One run that was killed: after how many whole epochs, how long into the next, and what the resume gave."""

    number: int
    epochs_done: int
    milliseconds: float
    figures: int
    differing: int
    weights_equal: bool
    seconds: float


def command(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [*CLI, "train", str(config), "--data", str(data), "--out", str(out), *more]


def wait_for_rows(process: subprocess.Popen[bytes], history: Path, rows: int) -> None:
    """Return as soon as the history holds so many epochs; the file is written whole or not at all."""
    while not (history.is_file() and len(json.loads(history.read_text())) >= rows):
        if process.poll() is not None:
            raise SystemExit(f"training ended before epoch {rows}; give more --epochs")
        time.sleep(0.002)


def kill_and_resume(number: int, config: Path, data: Path, folder: Path, epochs: int, rng: random.Random) -> Kill:
    """Start a run, kill it somewhere in a random epoch, resume it, and compare it with `folder/unbroken`."""
    run = folder / f"killed-{number}"
    target = rng.randint(1, epochs - 2)
    with (folder / "unbroken" / "history.csv").open() as stream:
        usual = 1000 * float(stream.readlines()[-1].split(",")[-2])
    delay = rng.uniform(0, usual)
    with subprocess.Popen(command(config, data, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_rows(process, run / "checkpoints" / "scratch" / "history.json", target)
        time.sleep(delay / 1000)  # not to wait for anything: this is the random moment
        process.kill()
    done = len(json.loads((run / "checkpoints" / "scratch" / "history.json").read_text()))
    if (run / "checkpoints" / "scratch-done.json").exists():
        raise SystemExit("training had ended before it was killed; give more --epochs")
    started = time.perf_counter()
    subprocess.run(
        command(config, data, run, "--resume"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    figures, differing = compare_histories(folder / "unbroken", run)
    same = weights_equal(folder / "unbroken", run)
    return Kill(number, done, delay, figures, differing, same, time.perf_counter() - started)


def compare_histories(a: Path, b: Path) -> tuple[int, int]:
    """Return how many figures the histories hold, those of a clock left out, and how many of them differ."""
    import pandas as pd

    one, two = (pd.read_csv(run / "history.csv").drop(columns=list(CLOCK)) for run in (a, b))
    if one.shape != two.shape:
        return one.size, one.size
    return one.size, int((one != two).to_numpy().sum())


def weights_equal(a: Path, b: Path) -> bool:
    """Say whether two bundles compute the same: weights, calibration and thresholds, by their identity."""
    first, second = ((run / "bundle" / "weights.safetensors").read_bytes() for run in (a, b))
    one, two = (json.loads((run / "bundle" / "card.json").read_text())["sha256"] for run in (a, b))
    return first == second and one == two


def table(kills: list[Kill]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| kill -9 | whole epochs done | ms after the last of them | figures of the history | that differ "
        "| weights and identity equal | resume, s |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for kill in kills:
        lines.append(
            f"| {kill.number} | {kill.epochs_done} | {kill.milliseconds:.0f} | {kill.figures} | {kill.differing} "
            f"| {'yes' if kill.weights_equal else 'NO'} | {kill.seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data source; synthetic radiographs by default")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ.setdefault("PNEUMOSCOPE_CACHE", str(folder / "cache"))
        data = options.data
        if data is None:
            from pneumoscope.phantom.synthetic import write_dataset

            data = write_dataset(folder / "data", patients=100, seed=0, size=96)
        config = folder / "experiment.toml"
        config.write_text(EXPERIMENT.format(epochs=options.epochs))
        subprocess.run(command(config, data, folder / "unbroken"), check=True, stdout=subprocess.DEVNULL)
        kills = [
            kill_and_resume(number, config, data, folder, options.epochs, rng) for number in range(1, options.kills + 1)
        ]
        print(table(kills))
        if any(kill.differing or not kill.weights_equal for kill in kills):
            raise SystemExit("a resumed run differs from the unbroken one")


if __name__ == "__main__":
    main()
