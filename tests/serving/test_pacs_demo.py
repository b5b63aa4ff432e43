"""The demo: what its patients are, and the whole of it once, with a real Orthanc where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pynetdicom import AE
from scripts.pacs.demo import DAY, patients, sink

ROOT = Path(__file__).parents[2]


def test_patients_differ_in_identity_and_repeat_in_pixels() -> None:
    first, again = list(patients()), list(patients())
    assert len(first) == len(DAY)
    assert len({image.SOPInstanceUID for _, image in first + again}) == 2 * len(DAY)
    assert [image.PixelData for _, image in first] == [image.PixelData for _, image in again]


def test_the_receiver_in_orthancs_place_takes_images_and_reports() -> None:
    _, image = next(patients())
    with sink() as (port, counts):
        sender = AE()
        sender.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
        sender.add_requested_context("1.2.840.10008.5.1.4.1.1.88.34")
        link = sender.associate("127.0.0.1", port, ae_title="TESTPACS")
        assert not link.rejected_contexts
        assert link.send_c_store(image).Status == 0
        link.release()
        assert counts[image.StudyInstanceUID] == 1


@pytest.mark.slow
def test_all_that_was_built_is_in_the_pacs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.pacs.demo", "--once", "--out", str(tmp_path / "demo")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sent 13, acknowledged 12" in done.stdout
    assert "its view is LL, not PA or AP" in done.stdout
    assert "pixels cannot be decoded" in done.stdout
