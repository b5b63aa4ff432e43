"""A real Orthanc, the gateway in processes of its own, and senders: what the gateway's benchmarks share."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import generate_uid
from scripts.pacs.gateway import Running, killed_at_the_end, write_gateway
from scripts.pacs.orthanc import Orthanc, start_orthanc
from scripts.pacs.radiographs import radiograph

from pneumoscope.images import read_image
from pneumoscope.serving.settings.gateway import load_gateway


@dataclass
class Rig(Running):
    """A gateway that sends to an Orthanc."""

    orthanc: Orthanc = field(kw_only=True)
    seen: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # by instance: study, modality, when
    since: int = 0

    def look(self) -> None:
        """Note what Orthanc has got since the last look."""
        changes = httpx.get(f"{self.orthanc.url}/changes", params={"since": self.since, "limit": 100}).json()
        moment = time.perf_counter()
        for change in changes["Changes"]:
            if change["ChangeType"] == "NewInstance":
                tags = httpx.get(f"{self.orthanc.url}/instances/{change['ID']}/simplified-tags").json()
                self.seen[change["ID"]] = (tags["StudyInstanceUID"], tags["Modality"], moment)
        self.since = changes["Last"]

    def results(self, study: str) -> list[str]:
        return sorted(modality for found, modality, _ in self.seen.values() if found == study)

    def complete(self, sources: list[pydicom.Dataset]) -> bool:
        self.look()
        return all(self.results(source.StudyInstanceUID) == ["OT", "SR"] for source in sources)


@contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """Start Orthanc, and prepare a gateway with the shipped bundle that sends to it; killed at the end."""
    (folder / "orthanc").mkdir()
    with start_orthanc(folder / "orthanc") as orthanc:
        file = write_gateway(folder, orthanc.port, orthanc.title)
        with killed_at_the_end(Rig(file, load_gateway(file), orthanc=orthanc)) as made:
            yield made


def chests(count: int, side: int, picture: Path | None = None) -> list[pydicom.Dataset]:
    """Radiographs of 16 bits a pixel, each a study of its own with the same pixels: those of `picture`, or computed.

    The shipped bundle's gate refuses the computed ones, so no heat map is made of them.
    """
    made = []
    pixels = None if picture is None else _enlarged(str(picture), side)
    for _ in range(count):
        uid = generate_uid()
        source = radiograph(side, SOPInstanceUID=uid, StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
        source.file_meta.MediaStorageSOPInstanceUID = uid
        if pixels is not None:
            source.PixelData = pixels
        made.append(source)
    return made


@cache
def _enlarged(picture: str, side: int) -> bytes:
    pixels = Image.fromarray(read_image(picture).pixels).resize((side, side), Image.Resampling.BICUBIC)
    return (np.clip(np.asarray(pixels), 0, 1) * 4095).astype("<u2").tobytes()


def machine() -> dict[str, Any]:
    """What a figure depends on that the program does not choose."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
