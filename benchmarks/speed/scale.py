"""Time and memory of `pneumoscope predict` as the archive grows, by one process and through Ray.

    python benchmarks/speed/scale.py ../shared/data/kermany_originals --counts 1000 10000 100000

The images are links to the given ones, repeated. Memory is that of the command and all its children together, sampled;
pages they share count once per process, so that of Ray is an upper bound. Every output is checked: one line per image,
in order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pneumoscope.images.find import expand

ENGINES = ("auto", "ray")
PAGE = 4096


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--bundle", help="the shipped one by default")
    arguments = parser.parse_args()
    sources = expand([str(arguments.images.resolve())])
    print("| engine | images | seconds | images/s | peak memory, MiB | lines |\n|---|---|---|---|---|---|")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "images"
            folder.mkdir()
            for number in range(count):
                source = Path(sources[number % len(sources)])
                (folder / f"{number:07d}{source.suffix}").symlink_to(source)
            for engine in arguments.engines:
                out = Path(scratch) / f"{engine}.jsonl"
                seconds, peak = watched(folder, engine, out, arguments.bundle)
                paths = [json.loads(line)["path"] for line in out.open()]
                right = paths == sorted(str(path) for path in folder.iterdir())
                print(
                    f"| {engine} | {count:,} | {seconds:.0f} | {count / seconds:.0f} | {peak:.0f} "
                    f"| {'each once, in order' if right else 'WRONG'} |",
                    flush=True,
                )


def watched(folder: Path, engine: str, out: Path, bundle: str | None) -> tuple[float, float]:
    """Run the command; return its seconds and the peak of its memory in MiB."""
    command = [str(Path(sys.executable).parent / "pneumoscope"), "predict", str(folder)]
    if bundle:
        command += ["--bundle", bundle]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--engine", engine, "--jsonl", str(out)])
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{engine}: exit code {process.returncode}")
    return seconds, peak


def memory(root: int) -> float:
    """Return the resident memory of a process and its descendants, in MiB."""
    parents, pages = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
            except OSError:  # it ended meanwhile
                continue
            parents[int(folder.name)] = int(stat[1])

    def belongs(pid: int) -> bool:
        while pid not in (root, 0):
            pid = parents.get(pid, 0)
        return pid == root

    return sum(pages[pid] for pid in parents if belongs(pid)) * PAGE / 2**20


if __name__ == "__main__":
    main()
