"""ResNet-18 three ways: from scratch, from a local file in torchvision's naming, and from a hub.

No ImageNet weights are needed: the network trained from scratch is saved as torchvision would, and served by a
small hub on this machine that speaks the protocol of huggingface.co. Both are then used as a frozen feature
extractor through the command line, and every tensor of the resulting bundles is compared with the file.

    python benchmarks/quality/resnet18_transfer.py [--data SRC] [--size 64] [--epochs 1] [--work DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLI = (sys.executable, "-c", "from pneumoscope.cli import main; main()")


@dataclass
class Hub:
    """A hub on 127.0.0.1 with the files `{"owner/repo/name": bytes}`; `asked` lists its requests."""

    files: Mapping[str, bytes]
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """Return what makes a process use this hub alone, with an empty cache in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def serve_hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve files at `/owner/repo/resolve/main/name` on a free port, with the headers that the hub's client wants."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
            data = files.get(f"{match[1]}/{match[2]}") if match else None
            self.send_response(404 if data is None else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body and data:
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def hub_file(name: str, content: bytes) -> dict[str, bytes]:
    """Return the hub's file for timm's usual weights of a network."""
    import timm

    return {f"{timm.get_pretrained_cfg(name).hf_hub_id}/model.safetensors": content}


# --- the three runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    name: str
    auroc: float
    seconds: float
    compared: int
    equal: int
    dropped: str


def train(folder: Path, name: str, data: Path, size: int, sections: str, env: Mapping[str, str]) -> tuple[Path, float]:
    """Train through the command line; return the run folder and the seconds it took."""
    config = folder / f"{name}.toml"
    config.write_text(f"[data]\nval_fraction = 0.2\n\n[prepare]\nsize = {size}\n\n{sections}")
    started = time.perf_counter()
    command = [*CLI, "train", str(config), "--data", str(data), "--out", str(folder / name), "--seed", "0"]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return folder / name, time.perf_counter() - started


def as_torchvision(run: Path) -> tuple[dict[str, Any], bytes]:
    """Return the trained encoder with a new classifier as torchvision's own ResNet-18 names it, and as .safetensors."""
    import torch
    import torchvision
    from safetensors.torch import save

    from pneumoscope.bundle.bundle import load_bundle

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    encoder = load_bundle(run / "bundle").network.encoder.model.state_dict()
    left = model.load_state_dict(encoder, strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == ["fc.weight", "fc.bias"]
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    return tensors, save(tensors)


def compare(run: Path, tensors: Mapping[str, Any]) -> tuple[int, int]:
    """Count the tensors of the bundle's encoder, and those equal to the file's, matrices rounded to half precision."""
    import torch

    from pneumoscope.bundle.bundle import load_bundle

    found = load_bundle(run / "bundle").network.encoder.model.state_dict()
    compared = [key for key in found if not key.endswith("num_batches_tracked")]  # counters take no part
    equal = 0
    for key in compared:
        expected = tensors[key].half().float() if found[key].ndim > 1 else tensors[key]
        equal += torch.equal(found[key], expected)
    return len(compared), equal


def result(name: str, run: Path, seconds: float, tensors: Mapping[str, Any] | None) -> Result:
    card = json.loads((run / "bundle" / "card.json").read_text())
    auroc = json.loads((run / "metrics.json").read_text())["metrics"]["auroc"]["value"]
    compared, equal = (0, 0) if tensors is None else compare(run, tensors)
    weights = card["training"]["weights"]
    return Result(name, auroc, seconds, compared, equal, ", ".join(weights["dropped"]) if weights else "")


def run_all(folder: Path, data: Path, size: int, epochs: int) -> list[Result]:
    """Train from scratch, then transfer from a file and from the hub."""
    import torch

    os.environ.setdefault("PNEUMOSCOPE_CACHE", str(folder / "cache"))
    scratch = f'[model]\nnetwork = "resnet18"\n\n[train]\nepochs = {epochs}\nbatch_size = 16\n'
    run, seconds = train(folder, "scratch", data, size, scratch, os.environ)
    results = [result("none (from scratch)", run, seconds, None)]
    tensors, content = as_torchvision(run)
    torch.save(tensors, folder / "resnet18.pth")
    frozen = '[model]\nnetwork = "resnet18"\nstrategy = "frozen"\nweights = "{}"\n\n[train]\nhead_epochs = 20\n'
    run, seconds = train(folder, "file", data, size, frozen.format(folder / "resnet18.pth"), os.environ)
    results.append(result("local file, torchvision's naming", run, seconds, tensors))
    with serve_hub(hub_file("resnet18", content)) as hub:
        env = hub.environment(folder / "hub")
        run, seconds = train(folder, "hub", data, size, frozen.format("hub"), env)
        results.append(result(f"hub ({len(hub.asked)} requests)", run, seconds, tensors))
    return results


def table(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| weights | tensors compared | equal | left aside | validation AUROC | seconds, with start-up |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for row in results:
        lines.append(
            f"| {row.name} | {row.compared or '-'} | {row.equal if row.compared else '-'} | {row.dropped or '-'} "
            f"| {row.auroc:.3f} | {row.seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data source; synthetic radiographs by default")
    parser.add_argument("--size", type=int, default=64, help="input side in pixels")
    parser.add_argument("--epochs", type=int, default=1, help="of the training from scratch")
    parser.add_argument("--patients", type=int, default=60, help="synthetic patients")
    parser.add_argument("--work", type=Path, help="folder to keep; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = options.data
        if data is None:
            from pneumoscope.phantom.synthetic import write_dataset

            data = write_dataset(folder / "data", patients=options.patients, seed=0, size=options.size)
        results = run_all(folder.resolve(), data.resolve(), options.size, options.epochs)
        print(table(results))
        if any(row.compared != row.equal for row in results):
            raise SystemExit("some tensors differ")


if __name__ == "__main__":
    main()
