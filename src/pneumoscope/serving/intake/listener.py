"""The DICOM listener: C-ECHO, C-STORE and storage commitment. It acknowledges an image once it cannot be lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.transport import ThreadedAssociationServer
from sqlalchemy.exc import SQLAlchemyError

from pneumoscope.errors import ConfigError, ImageError, ImageUnavailableError, PneumoscopeError, StorageError
from pneumoscope.files import out_folder
from pneumoscope.serving.intake import commitment
from pneumoscope.serving.intake.receipt import Intake, sweep
from pneumoscope.serving.keeping import leftovers
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import now
from pneumoscope.serving.watch import meters
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire.association import COMMITMENT, NOT_AUTHORIZED, SUCCESS, VERIFICATION
from pneumoscope.serving.wire.internals import connection_of, file_of
from pneumoscope.serving.wire.peers import Peers
from pneumoscope.serving.wire.spool import Spool, discard, spool_into
from pneumoscope.serving.wire.tls import greet, server_tls

# PS3.4, B.2.3: statuses of C-STORE besides those of every service.
OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0xA700, 0xC000
_BEAT, _HOUR = 5.0, 3600.0  # seconds
_PDU = (
    1 << 20
)  # bytes: as fast as without limit, yet a slow sender shows progress; the default takes three times as long
# Besides radiographs: objects that may be routed here by mistake, and our own results. A CT of a thousand slices is
# refused at the association, not after it was sent.
_RADIOGRAPHS = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)
_OTHERS = ("Secondary Capture", "SR Storage", "SR Store", "Softcopy Presentation State", "Segmentation Storage")


def accepted_classes() -> tuple[str, ...]:
    """Return the accepted SOP classes: plain radiographs, secondary captures and the classes of results."""
    every = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    others = [uid for uid in every if any(word in UID(uid).name for word in _OTHERS)]
    return (*map(str, _RADIOGRAPHS), *others)


@dataclass
class Receiver:
    """A running listener."""

    server: ThreadedAssociationServer
    intake: Intake
    stop: threading.Event

    @property
    def port(self) -> int:
        """TCP port."""
        assert self.server.socket is not None
        return int(self.server.socket.getsockname()[1])

    def close(self) -> None:
        """Accept no more associations, and end."""
        self.stop.set()
        self.server.shutdown()


def start_receiver(
    config: Gateway,
    intake: Intake,
    *,
    handlers: Sequence[Any] = (),
    stages: Callable[[str], None] = lambda stage: None,
) -> Receiver:
    """Listen.

    `handlers`: of pynetdicom's events, besides those for images. `stages`: called with the name of each stage; tests
    end the process there.

    Raises:
        ConfigError: the address is in use, or a certificate cannot be read.
    """
    settings = config.receive
    for folder in (config.incoming, config.images):
        out_folder(folder)
    started = now().timestamp()
    spool_into(config.incoming, settings.object_mb << 20, intake.room)
    log = logger("receive")
    peers, stop = Peers(settings), threading.Event()

    def on_store(event: Any) -> int:
        caller = str(event.assoc.requestor.ae_title)
        if caller.strip() not in settings.callers:  # a destination, which may only report
            return NOT_AUTHORIZED
        stages("received")
        try:
            spool = file_of(event)
            if isinstance(spool, Spool) and spool.fault is not None:
                raise spool.fault
            with meters.timed("accept"):
                receipt = intake.take(event.dataset_path, f"dicom:{caller}")
        except (StorageError, ImageUnavailableError, SQLAlchemyError, OSError) as error:
            log.error("cannot store", caller=caller, error=type(error).__name__)
            return OUT_OF_RESOURCES
        except ImageError as error:
            log.warning("refused", caller=caller, reason=error.what)
            return CANNOT_UNDERSTAND
        log.info(receipt.outcome, caller=caller, image=receipt.image_id, state=receipt.state)
        stages("stored")
        return SUCCESS

    def on_open(event: Any) -> None:
        link = connection_of(event.assoc)
        if link is not None and (refused := greet(link, settings.seconds)) is not None:
            log.warning("connection refused", reason=refused)

    application = _application(config)
    try:
        server = application.start_server(
            (settings.bind, settings.port),
            block=False,
            ssl_context=None if settings.tls is None else server_tls(settings.tls),
            evt_handlers=[
                *peers.handlers,
                (evt.EVT_CONN_OPEN, on_open),
                (evt.EVT_CONN_CLOSE, lambda event: discard(event.assoc)),
                (evt.EVT_C_STORE, on_store),
                (evt.EVT_C_ECHO, lambda event: SUCCESS),
                (evt.EVT_N_ACTION, lambda event: commitment.answer(event, intake, settings)),
                *handlers,
            ],
        )
    except OSError as error:
        raise ConfigError(
            f"{settings.bind}:{settings.port} cannot be listened at ({error.strerror})",
            remedy="choose another receive.port, or end the program that listens there",
        ) from error
    assert server is not None
    sweep(config.incoming, older_seconds=now().timestamp() - started)  # with the port, the files there are ours
    threading.Thread(target=peers.watch, args=(stop,), daemon=True).start()
    return Receiver(server, intake, stop)


def _application(config: Gateway) -> AE:
    settings = config.receive
    reporting = [str(item.aet) for item in config.deliveries if item.commit]
    application = AE(ae_title=settings.aet)
    application.require_called_aet = True
    application.require_calling_aet = [*settings.callers, *reporting]
    application.maximum_associations = settings.associations
    application.maximum_pdu_size = _PDU
    application.network_timeout = settings.seconds
    application.acse_timeout = settings.seconds
    application.dimse_timeout = settings.seconds
    application.add_supported_context(VERIFICATION)
    if settings.commitment or reporting:
        application.add_supported_context(COMMITMENT, scu_role=settings.commitment, scp_role=bool(reporting))
    for uid in accepted_classes():
        application.add_supported_context(uid, AllTransferSyntaxes)
    return application


def run(receiver: Receiver, config: Gateway, stop: threading.Event, beat: Callable[[], None]) -> None:
    """Keep a listener running until `stop` is set; remove leftovers of transfers hourly, of crashes daily."""
    due, daily = time.monotonic() + _HOUR, time.monotonic() + _HOUR
    beaten = 0.0

    def go_on() -> bool:
        nonlocal beaten
        if time.monotonic() - beaten >= _BEAT:
            beat()
            beaten = time.monotonic()
        return not stop.is_set()

    while not stop.wait(_BEAT):
        go_on()
        if time.monotonic() >= due:
            due = time.monotonic() + _HOUR
            sweep(config.incoming, older_seconds=3600)
        if time.monotonic() >= daily:
            daily = time.monotonic() + 24 * _HOUR
            clear(receiver.intake, go_on)
    receiver.close()


def clear(intake: Intake, go_on: Callable[[], bool] = lambda: True) -> None:
    """Remove images without a row, and log how many; after a failure of disk or database the next day again."""
    log = logger("receive")
    try:
        if removed := leftovers.remove(intake.folder, intake.store, go_on):
            log.warning("files without a row removed", count=removed)
    except (PneumoscopeError, OSError) as error:
        log.error("files without a row not removed", reason=getattr(error, "what", type(error).__name__))
