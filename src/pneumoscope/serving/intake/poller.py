"""Following an Orthanc: its changes are polled, and new radiographs go through the intake like every image.

The position in its changes moves in the transaction that accepts an image. After a crash the changes from that position
are requested again, and the intake recognises the images that it has.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Update, update
from sqlalchemy.orm import Session

from pneumoscope.errors import ImageError, ImageUnavailableError, PneumoscopeError, StorageError
from pneumoscope.files import out_folder
from pneumoscope.serving.intake.receipt import Intake, sweep
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.neighbours import Orthanc
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import Store
from pneumoscope.serving.store.tables import Feed
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire import orthanc
from pneumoscope.serving.wire.http import open_client
from pneumoscope.serving.wire.orthanc import Change, Gone, OrthancError

_LONGEST = timedelta(minutes=1)  # between attempts while it is down
_ATTEMPTS = 10  # at one image for which Orthanc answers with an error


class Poller:
    """Follows one Orthanc.

    `most`: bytes that an image may have. `stages`: called with the name of each stage; tests end it there.
    """

    def __init__(
        self,
        source: Orthanc,
        intake: Intake,
        incoming: Path,
        *,
        most: int,
        stages: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.source, self.intake, self.most, self.stages = source, intake, most, stages
        self.store = intake.store
        self.folder = out_folder(incoming / "orthanc" / source.name)  # not in the listener's own, which it clears
        sweep(self.folder, older_seconds=0)
        self.log = logger("poll", orthanc=source.name)
        self._failures = (0, 0)  # number of a change, and how often it failed

    def run(self, stop: threading.Event) -> None:
        """Follow it until `stop` is set, unless another host does; while it is down it is asked less and less often."""
        chance, failed = random.Random(), 0
        while not stop.is_set():
            try:
                with self.store.alone(f"poll {self.source.name}") as mine:
                    more = self.step() if mine else False
            except (OrthancError, PneumoscopeError) as error:
                failed += 1
                with suppress(StorageError):  # the database itself may be away
                    self.record_fault(error)
                stop.wait(outbox.delay(failed, chance, _LONGEST).total_seconds())
            else:
                failed = 0
                if not more:
                    stop.wait(self.source.poll_seconds)

    def step(self) -> bool:
        """Process one page of changes; True where there are more.

        Raises:
            OrthancError: it did not answer as it should.
            ConfigError, StorageError: a certificate, a secret, the disk or the database cannot be used.
        """
        source = self.source
        with open_client(source.tls, source.seconds, token_file=source.token_file, user_file=source.user_file) as http:
            client = orthanc.Client(source.url, http)
            page = self._page(client)
            self.stages("asked")
            modalities: dict[str, str | None] = {}  # of series
            for change in page.changes:
                if change.kind == orthanc.NEW:
                    self._take(client, change, modalities)
            self._move(page.changes[-1] if page.changes else None)
            self.stages("moved")
        return not page.done

    def record_fault(self, error: OrthancError | PneumoscopeError) -> None:
        """Record why an attempt failed."""
        fault = error.what if isinstance(error, PneumoscopeError) else str(error)
        self.log.warning("not reached", reason=fault)
        feed_of(self.store, self.source.name)  # creates the row where there is none
        with self.store.write() as session:
            session.execute(self._mine().values(fault=fault))

    def _page(self, client: orthanc.Client) -> orthanc.Page:
        """Return the changes after our position, or from the first one where the numbering restarted."""
        feed = feed_of(self.store, self.source.name)
        if feed.seq is None:
            feed = self._begin(client)
        # From one before, so that the last known change comes again: it shows whether the numbering is the same.
        page = client.changes(max(0, (feed.seq or 0) - 1))
        if _restarted(client, page, feed):
            self.log.warning("its numbering restarted: followed from its first change", seq=feed.seq)
            with self.store.write() as session:
                session.execute(self._mine().values(seq=0, date="", resource="", resets=Feed.resets + 1))
            feed.seq = 0
            page = client.changes(0)
        fresh = tuple(change for change in page.changes if change.seq > (feed.seq or 0))
        return page.model_copy(update={"changes": fresh})

    def _begin(self, client: orthanc.Client) -> Feed:
        seq, date, resource = 0, "", ""
        if self.source.start == "now":
            page = client.newest()
            seq = page.last
            if page.changes:
                date, resource = page.changes[-1].date, page.changes[-1].resource
        with self.store.write() as session:
            session.execute(self._mine().values(seq=seq, date=date, resource=resource, fault=None))
        self.log.info("begun", seq=seq)
        return feed_of(self.store, self.source.name)

    def _take(self, client: orthanc.Client, change: Change, modalities: dict[str, str | None]) -> None:
        try:
            self._fetch(client, change, modalities)
        except Gone:
            self.log.info("erased meanwhile", seq=change.seq)
        except ImageUnavailableError as error:
            raise StorageError(error.what, path=error.path, remedy=error.remedy) from error
        except ImageError as error:
            self._skip(change, error.what)
        except OrthancError as error:
            seq, count = self._failures
            count = count + 1 if seq == change.seq else 1
            self._failures = (change.seq, count)
            if error.status is None or error.status in (401, 403, 429, 502, 503, 504) or count < _ATTEMPTS:
                raise
            self._skip(change, str(error))

    def _fetch(self, client: orthanc.Client, change: Change, modalities: dict[str, str | None]) -> None:
        instance = client.instance(change.resource)
        if instance.series not in modalities:
            modalities[instance.series] = client.modality(instance.series)
        modality = modalities[instance.series]
        if modality is not None and modality not in self.source.modalities:
            return
        if instance.size > self.most:  # `fetch` reads no more than the announced size
            raise ImageError(f"the object is larger than {self.most >> 20} MB")
        self.intake.room()
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".dcm", delete=False) as stream:
            arrival = Path(stream.name)
        try:
            client.fetch(change.resource, instance.size, arrival)
            self.stages("fetched")
            receipt = self.intake.take(
                arrival, f"orthanc:{self.source.name}", lambda session: self._moved(session, change)
            )
        finally:
            arrival.unlink(missing_ok=True)
        self.log.info(receipt.outcome, seq=change.seq, image=receipt.image_id, state=receipt.state)
        self.stages("stored")

    def _skip(self, change: Change, reason: str) -> None:
        """Go on without an image, so that it does not block the others; it is counted and logged."""
        self.log.error("skipped", seq=change.seq, reason=reason)
        with self.store.write() as session:
            self._moved(session, change)
            session.execute(self._mine().values(skipped=Feed.skipped + 1))

    def _move(self, change: Change | None) -> None:
        """Move past changes that brought no image; writes nothing where nothing changed."""
        feed = feed_of(self.store, self.source.name)
        if feed.fault is None and (change is None or change.seq == feed.seq):
            return
        with self.store.write() as session:
            if change is not None:
                self._moved(session, change)
            session.execute(self._mine().values(fault=None))

    def _moved(self, session: Session, change: Change) -> None:
        session.execute(self._mine().values(seq=change.seq, date=change.date, resource=change.resource))

    def _mine(self) -> Update:
        return update(Feed).where(Feed.name == self.source.name)


def feed_of(store: Store, name: str) -> Feed:
    """Return the row with our position in an Orthanc's changes, detached; creates it where there is none."""
    with store.read() as session:
        row = session.get(Feed, name)
        if row is not None:
            session.expunge(row)
            return row
    with store.write() as session:
        session.merge(Feed(name=name, seq=None, date="", resource="", skipped=0, resets=0, fault=None))
    return feed_of(store, name)


def _restarted(client: orthanc.Client, page: orthanc.Page, feed: Feed) -> bool:
    """Say whether the numbering is that of another database than the one followed so far.

    A missing last change proves nothing: Orthanc forgets changes of erased images. A later date under a lower number
    does.
    """
    if not feed.seq:
        return False
    first = page.changes[0] if page.changes else None
    if first is not None and first.seq == feed.seq:
        return (first.date, first.resource) != (feed.date, feed.resource)
    newest = client.newest().changes
    return bool(newest) and newest[-1].seq < feed.seq and newest[-1].date > feed.date


def pollers(config: Gateway, intake: Intake) -> list[Poller]:
    """Return one poller for each Orthanc."""
    most = config.receive.object_mb << 20
    return [Poller(item, intake, config.incoming, most=most) for item in config.orthanc]
