"""Following an Orthanc: its changes are asked for, and new radiographs go the way of every image.

The place in its changes moves in the transaction that accepts an image. Whoever dies between two steps asks for what
followed that place once more, and the intake knows what it has.
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
_ATTEMPTS = 10  # at one image that Orthanc answers about with an error, while it answers otherwise


class Poller:
    """Follows one Orthanc.

    `most`: bytes that an image may have. `stages`: called with the name of each stage that was reached; tests end it
    there.
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
        self.folder = out_folder(incoming / "orthanc" / source.name)  # apart from the listener's, which clears its own
        sweep(self.folder, older_seconds=0)
        self.log = logger("poll", orthanc=source.name)
        self._failures = (0, 0)  # number of a change, and how often it failed

    def run(self, stop: threading.Event) -> None:
        """Follow it until told to stop, unless another host does; while it is down it is asked less and less often."""
        chance, failed = random.Random(), 0
        while not stop.is_set():
            try:
                with self.store.alone(f"poll {self.source.name}") as mine:
                    more = self.step() if mine else False
            except (OrthancError, PneumoscopeError) as error:
                failed += 1
                with suppress(StorageError):  # it may be the database that is away
                    self.tell(error)
                stop.wait(outbox.delay(failed, chance, _LONGEST).total_seconds())
            else:
                failed = 0
                if not more:
                    stop.wait(self.source.poll_seconds)

    def step(self) -> bool:
        """Deal with one page of changes; True where there are more.

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

    def tell(self, error: OrthancError | PneumoscopeError) -> None:
        """Write down why an attempt failed."""
        fault = error.what if isinstance(error, PneumoscopeError) else str(error)
        self.log.warning("not reached", reason=fault)
        place(self.store, self.source.name)
        with self.store.write() as session:
            session.execute(self._mine().values(fault=fault))

    def _page(self, client: orthanc.Client) -> orthanc.Page:
        """Return the changes that were not dealt with, from the first one where its numbering began anew."""
        at = place(self.store, self.source.name)
        if at.seq is None:
            at = self._begin(client)
        # Asked from one before, it tells the last one again: by it the numbering is known.
        page = client.changes(max(0, (at.seq or 0) - 1))
        if _anew(client, page, at):
            self.log.warning("its numbering began anew: asked from its first change", place=at.seq)
            with self.store.write() as session:
                session.execute(self._mine().values(seq=0, date="", resource="", resets=Feed.resets + 1))
            at.seq = 0
            page = client.changes(0)
        left = tuple(change for change in page.changes if change.seq > (at.seq or 0))
        return page.model_copy(update={"changes": left})

    def _begin(self, client: orthanc.Client) -> Feed:
        seq, date, resource = 0, "", ""
        if self.source.start == "now":
            page = client.newest()
            seq = page.last
            if page.changes:
                date, resource = page.changes[-1].date, page.changes[-1].resource
        with self.store.write() as session:
            session.execute(self._mine().values(seq=seq, date=date, resource=resource, fault=None))
        self.log.info("begun", place=seq)
        return place(self.store, self.source.name)

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
        known = client.instance(change.resource)
        if known.series not in modalities:
            modalities[known.series] = client.modality(known.series)
        modality = modalities[known.series]
        if modality is not None and modality not in self.source.modalities:
            return
        if known.size > self.most:  # `fetch` takes no more than it was told
            raise ImageError(f"the object is larger than {self.most >> 20} MB")
        self.intake.room()
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".dcm", delete=False) as stream:
            arrival = Path(stream.name)
        try:
            client.fetch(change.resource, known.size, arrival)
            self.stages("fetched")
            receipt = self.intake.take(
                arrival, f"orthanc:{self.source.name}", lambda session: self._moved(session, change)
            )
        finally:
            arrival.unlink(missing_ok=True)
        self.log.info(receipt.outcome, seq=change.seq, image=receipt.image_id, state=receipt.state)
        self.stages("stored")

    def _skip(self, change: Change, why: str) -> None:
        """Go on without an image, so that it does not hold up all others; it is counted and told."""
        self.log.error("skipped", seq=change.seq, reason=why)
        with self.store.write() as session:
            self._moved(session, change)
            session.execute(self._mine().values(skipped=Feed.skipped + 1))

    def _move(self, change: Change | None) -> None:
        """Move past what was not accepted as well; nothing is written where all is as it was."""
        at = place(self.store, self.source.name)
        if at.fault is None and (change is None or change.seq == at.seq):
            return
        with self.store.write() as session:
            if change is not None:
                self._moved(session, change)
            session.execute(self._mine().values(fault=None))

    def _moved(self, session: Session, change: Change) -> None:
        session.execute(self._mine().values(seq=change.seq, date=change.date, resource=change.resource))

    def _mine(self) -> Update:
        return update(Feed).where(Feed.name == self.source.name)


def place(store: Store, name: str) -> Feed:
    """Return how far an Orthanc was followed, out of any session."""
    with store.read() as session:
        found = session.get(Feed, name)
        if found is not None:
            session.expunge(found)
            return found
    with store.write() as session:
        session.merge(Feed(name=name, seq=None, date="", resource="", skipped=0, resets=0, fault=None))
    return place(store, name)


def _anew(client: orthanc.Client, page: orthanc.Page, at: Feed) -> bool:
    """Say whether the numbers are those of another database than the one that was followed.

    That the last change is absent proves nothing: Orthanc forgets changes of what is erased. A later change under a
    number that was dealt with does.
    """
    if not at.seq:
        return False
    first = page.changes[0] if page.changes else None
    if first is not None and first.seq == at.seq:
        return (first.date, first.resource) != (at.date, at.resource)
    newest = client.newest().changes
    return bool(newest) and newest[-1].seq < at.seq and newest[-1].date > at.date


def pollers(config: Gateway, intake: Intake) -> list[Poller]:
    """Return one poller for each Orthanc."""
    most = config.receive.object_mb << 20
    return [Poller(item, intake, config.incoming, most=most) for item in config.orthanc]
