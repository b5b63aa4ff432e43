"""What a gateway must survive: slow and greedy peers, full disks, clocks, damaged pixels. See also the benchmarks."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import trustme
from sqlalchemy import select, update
from tests.support.cases import CONTENT, NAMES, OWN, PIXELS, Case
from tests.support.dicom_files import SEEDS, chest, encoded, garbled
from tests.support.gateway import CALLER, gateway, only_job, receiving
from tests.support.lines import link, send
from tests.support.mutations import MUTATIONS
from tests.support.waiting import until

from pneumoscope.errors import ImageError, StorageError
from pneumoscope.images import read_image
from pneumoscope.serving.intake.listener import Receiver
from pneumoscope.serving.settings.gateway import Receive
from pneumoscope.serving.store import jobs
from pneumoscope.serving.store.database import Store, now
from pneumoscope.serving.store.tables import WAITING, Image, Job
from pneumoscope.serving.wire.peers import Peers
from pneumoscope.serving.wire.spool import Spool

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom quotes what is damaged, at length


def settings(**receive: Any) -> dict[str, Any]:
    return {"port": 0, "callers": (CALLER,), "free_mb": 0, **receive}


def test_a_disk_that_fills_up_in_mid_transfer_is_told(tmp_path: Path) -> None:
    data = encoded(chest())
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        assert send(data, receiver.port, most=65536) == "0xA700"
        assert list(config.incoming.iterdir()) == []
        assert send(data, receiver.port) == "0x0000"
        assert only_job(store).state == WAITING


def test_an_object_that_is_too_large_is_refused(tmp_path: Path) -> None:
    config = gateway(tmp_path, receive=settings(object_mb=1))
    with receiving(config) as (receiver, _):
        assert send(encoded(chest(PixelData=bytes(2 << 20))), receiver.port) == "0xC000"
        assert list(config.incoming.iterdir()) == []


def test_room_is_looked_for_while_it_comes_in(tmp_path: Path) -> None:
    looks: list[int] = []

    def room() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise StorageError("no space left on the disk")

    spool = Spool(tmp_path, 1 << 30, room)
    for _ in range(40):
        spool.write(bytes(1 << 20))
    spool.close()
    assert isinstance(spool.fault, StorageError)
    assert len(looks) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    with receiving(config) as (receiver, _):
        with link(receiver.port, 60_000, "cut") as port:
            assert send(encoded(chest()), port) == "no status"
        until(lambda: not list(config.incoming.iterdir()))


@pytest.mark.parametrize(
    "limits", [{"seconds": 1.0}, {"seconds": 60.0, "object_seconds": 1.0}], ids=["one-pdu", "one-object"]
)
def test_who_drips_is_cut_off(tmp_path: Path, limits: dict[str, float]) -> None:
    config = gateway(tmp_path, receive=settings(**limits))
    with receiving(config) as (receiver, _), link(receiver.port, 60_000, "drip") as port:
        assert send(encoded(chest()), port) == "no status"
        until(lambda: not list(config.incoming.iterdir()))


class _Line:
    """An association that lives."""

    def __init__(self) -> None:
        self.ident, self.dul, self._started_dul = 1, self, True

    def is_alive(self) -> bool:
        return True


def test_limits_are_of_each_peer() -> None:
    moment = [0.0]
    peers = Peers(Receive(callers=("A",), peer_associations=2, seconds=10, object_seconds=30), lambda: moment[0])
    cut: list[Any] = []

    def noted(association: Any, reason: str) -> None:
        peers._lines[association].cut = True
        cut.append((association, reason))

    peers._cut = noted  # type: ignore[method-assign]
    lines = [_Line() for _ in range(4)]
    for line, host in zip(lines, ("a", "a", "b", "a"), strict=True):
        peers.opened(line, host)  # type: ignore[arg-type]
    assert [line for line, _ in cut] == [lines[3]]
    for moment[0] in range(0, 40, 5):
        peers._advanced(lines[0], message=False)  # type: ignore[arg-type]
        peers._advanced(lines[1])  # type: ignore[arg-type]
        peers.look()
    assert lines[1] not in [line for line, _ in cut]
    assert any(line is lines[2] and "silent" in reason for line, reason in cut)
    assert any(line is lines[0] and "one object" in reason for line, reason in cut)


def test_a_host_has_only_so_many_connections(tmp_path: Path) -> None:
    config = gateway(tmp_path, receive=settings(peer_associations=1))
    with receiving(config) as (receiver, _):
        with socket.create_connection(("127.0.0.1", receiver.port)):
            until(lambda: len(receiver.server.active_associations) == 1)
            assert send(encoded(chest()), receiver.port) == "no association"
        until(lambda: not receiver.server.active_associations)
        assert send(encoded(chest()), receiver.port) == "0x0000"


def test_who_says_nothing_keeps_nobody_from_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "ca")}
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    issued.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    context = ssl.create_default_context(cafile=str(files["ca"]))
    context.load_cert_chain(files["certificate"], files["key"])
    stranger = ssl.create_default_context(cafile=str(files["ca"]))
    config = gateway(tmp_path / "work", receive=settings(tls=files))
    with receiving(config) as (receiver, _), socket.create_connection(("127.0.0.1", receiver.port)):
        assert send(encoded(chest()), receiver.port, tls=(context, "127.0.0.1")) == "0x0000"
        assert send(encoded(chest()), receiver.port, tls=(stranger, "127.0.0.1")) == "no association"


def test_a_clock_that_was_set_back_holds_up_nobody(tmp_path: Path) -> None:
    with receiving(gateway(tmp_path)) as (receiver, store):
        assert send(encoded(chest()), receiver.port) == "0x0000"
        hour = now() + timedelta(hours=1)
        with store.write() as session:
            session.execute(update(Job).values(created_at=hour, not_before=hour))
        assert jobs.claim(store, "worker-1", timedelta(minutes=1), timedelta(hours=1)) is not None


QUICK = [case for case in (*PIXELS, *CONTENT, *NAMES, *OWN) if "megapixels" not in case.title]


@pytest.fixture(scope="module")
def open_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Receiver, Store]]:
    with receiving(gateway(tmp_path_factory.mktemp("gateway"))) as running:
        yield running


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.title.replace(" ", "-"))
def test_an_image_comes_in_as_it_must(case: Case, open_gateway: tuple[Receiver, Store]) -> None:
    """What the intake decides; the analysis is the benchmark's."""
    receiver, store = open_gateway
    data = case.make()
    uid = pydicom.dcmread(BytesIO(data), stop_before_pixels=True).file_meta.MediaStorageSOPInstanceUID
    assert send(data, receiver.port) == case.status
    with store.read() as session:
        image = session.scalar(select(Image).where(Image.sop_uid == uid))
        if "not kept" in case.state:
            assert image is None
            return
        assert image is not None
        if "declined" in case.state:
            assert image.job.state == "declined"
            assert case.says in str(image.job.reason)
        else:
            assert image.job.state == WAITING
        assert str(image.patient_name).startswith(case.name or "")


@pytest.mark.parametrize("name", [name for name in SEEDS if "Endian" not in name or "Deflated" in name])
def test_damage_of_compressed_pixels_is_told(name: str, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.dcm", tmp_path / "damaged.dcm"
    data = SEEDS[name]()
    whole.write_bytes(data)
    pixels, flawless = read_image(whole).pixels, 0
    for seed in range(4):
        damaged.write_bytes(garbled(data, seed=seed))
        try:
            flawless += bool(np.abs(read_image(damaged).pixels - pixels).mean() < 0.2)
        except ImageError:
            flawless += 1
    assert flawless == 4, "noise is never mistaken for an image"


@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_files_are_answered(kind: str, open_gateway: tuple[Receiver, Store], tmp_path: Path) -> None:
    """A small version of `benchmarks/gateway/fuzz.py`: 42 files through the intake."""
    data = SEEDS["Explicit VR Little Endian"]()
    receiver, _ = open_gateway
    for seed in range(3):
        arrival = tmp_path / "arrival.dcm"
        arrival.write_bytes(MUTATIONS[kind](data, 350, np.random.default_rng(seed)))
        with suppress(ImageError):  # anything else fails the test
            receiver.intake.take(arrival, "test")
        arrival.unlink(missing_ok=True)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_sequences_without_end_are_refused(depth: int, open_gateway: tuple[Receiver, Store], tmp_path: Path) -> None:
    data = SEEDS["Explicit VR Little Endian"]()
    offset = data.index(b"\x28\x00\x02\x00US")
    begin = bytes.fromhex("18004693") + b"SQ\0\0\xff\xff\xff\xff" + bytes.fromhex("feff00e0ffffffff")
    end = bytes.fromhex("feff0de000000000feffdde000000000")
    arrival = tmp_path / "arrival.dcm"
    arrival.write_bytes(data[:offset] + depth * begin + depth * end + data[offset:])
    with pytest.raises(ImageError, match="recursion"):
        open_gateway[0].intake.take(arrival, "test")
