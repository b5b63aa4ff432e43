"""The worker: takes jobs, lets its child analyse, and writes answer, results and deliveries in one transaction."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from sqlalchemy.orm import Session

from pneumoscope.errors import ImageError, ImageUnavailableError, PneumoscopeError, StorageError
from pneumoscope.files import plain
from pneumoscope.journal.entry import Entry, answer_key, entry_of
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.journal.recording import entry_facts
from pneumoscope.serving.analysis.child import Child, ChildLostError, Factory
from pneumoscope.serving.analysis.task import Analysis, Task, open_analysis, open_in_haste
from pneumoscope.serving.keeping import unanalysed
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store import jobs, outbox
from pneumoscope.serving.store.database import Store, database_time, now
from pneumoscope.serving.store.jobs import Claim
from pneumoscope.serving.store.tables import DONE, Job, Object, Result
from pneumoscope.serving.watch import meters
from pneumoscope.serving.watch.logs import logger

_IDLE = 0.1  # seconds between checks of an empty queue
_BEAT = 5.0  # seconds between two signs of life
_GRACE = timedelta(seconds=30)  # of a lease, beyond the time that an analysis may take


class Worker:
    """One worker and its child. `stages`: called with the name of each stage; tests end it there."""

    def __init__(
        self,
        config: Gateway,
        store: Store,
        name: str,
        *,
        factory: Factory | None = None,
        stages: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.config, self.store, self.name, self.stages = config, store, name, stages
        self.kinds = tuple(dict.fromkeys(kind for item in config.deliveries for kind in item.sends))
        with store.read() as session:
            hurry = jobs.waiting_since(session) is not None
        self.child = Child(
            factory or partial(open_in_haste if hurry else open_analysis, rules=config.analyse),
            config.bundle,
            memory_mb=config.worker.memory_mb,
            start_seconds=config.worker.start_seconds,
        )
        self.journal = Journal(config.journal_file)
        self.pseudonyms = Pseudonyms.load(config.journal.key or default_key(config.journal_file))
        self.log = logger("worker", worker=name)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the current job is finished."""
        if returned := jobs.release(self.store, self.name):
            self.log.warning("jobs of a predecessor returned", count=returned)
        self.child.warm_up()
        self.log.info("ready", child=self.child.pid)
        beaten = 0.0
        try:
            while not stop.is_set():
                if (moment := now().timestamp()) - beaten >= _BEAT:
                    self.store.beat(self.name, os.getpid(), child=self.child.pid)
                    self.journal_unanalysed()
                    beaten = moment
                if not self.step():
                    stop.wait(_IDLE)
        finally:
            self.child.close()

    def journal_unanalysed(self) -> None:
        """Write into the journal which images were declined or quarantined since; it may be away for a while."""
        try:
            unanalysed.write(self.config, self.store, self.journal, self.pseudonyms)
        except StorageError as error:
            self.log.error("not journaled", reason=error.what)

    def step(self) -> bool:
        """Do one job; False where none waits."""
        self.child.warm_up()  # first: a damaged bundle, for instance, is no fault of an image
        limits = self.config.worker
        lease = timedelta(seconds=limits.seconds + limits.start_seconds) + _GRACE
        max_wait = timedelta(minutes=self.config.priority.max_wait_minutes)
        claim = jobs.claim(self.store, self.name, lease, max_wait)
        if claim is None:
            return False
        self.stages("claimed")
        meters.took("wait", claim.waited)
        task = Task(self.config.images / claim.file, self.kinds, now())
        if not os.access(task.path, os.R_OK):  # a share that is away, or slow to show a new file
            self._failed(claim, "file away", "its file is missing, or not readable", attempts=jobs.PATIENCE)
            return True
        try:
            with meters.timed("child"):
                analysis: Analysis = self.child.ask(task, limits.seconds)
        except (ImageUnavailableError, StorageError) as error:
            self._failed(claim, "unreadable", f"the image cannot be read: {error.what}", attempts=jobs.PATIENCE)
        except ImageError as error:
            self._failed(claim, "unusable", f"the image cannot be used: {error.what}", attempts=1)
        except PneumoscopeError as error:
            self._failed(claim, "refused", error.what, attempts=1)
        except ChildLostError as error:
            self._failed(claim, "child lost", str(error), attempts=limits.attempts)
        else:
            self.stages("analysed")
            try:
                self._finish(claim, analysis)
            except StorageError as error:  # such as the disk of the journal; if it is the database, this fails too
                reason = f"its answer was not recorded: {error.what}"
                self._failed(claim, "not written", reason, attempts=jobs.PATIENCE)
        return True

    def _failed(self, claim: Claim, kind: str, reason: str, *, attempts: int) -> None:
        """Record why a job failed, and log the kind of failure. `attempts`: after so many it is quarantined."""
        state = jobs.fail(self.store, claim, f"not analysed, because {reason}", attempts=attempts, cause=kind)
        self.log.warning("job failed", job=claim.job_id, state=state, kind=kind)

    def _finish(self, claim: Claim, analysis: Analysis) -> None:
        if analysis.prediction.error is not None:
            self._failed(claim, "unusable", f"the image cannot be used: {analysis.prediction.fault}", attempts=1)
            return
        # The journal first: it keeps one copy of an entry repeated after a crash, and no result is sent without one.
        entry = self._entry(claim, analysis)
        with meters.timed("journal"):
            self.journal.append(entry)
        self.stages("journaled")
        mine = jobs.end(self.store, claim, DONE, lambda session, job: self._record(session, job, analysis, entry.key))
        self.stages("recorded")
        meters.took("analyse", analysis.seconds - analysis.encoding)
        meters.took("encode", analysis.encoding)
        if mine:
            meters.took("answer", (now() - claim.created_at).total_seconds())
            if not self.config.shadow:  # anybody may read the metrics, which could reveal an answer among few images
                meters.answered(analysis.prediction.label, abstained=analysis.prediction.abstained)
        self.log.info(
            "job done",
            job=claim.job_id,
            current=mine,
            abstained=analysis.prediction.abstained,
            objects=len(analysis.objects),
            milliseconds=round(1000 * analysis.seconds),
        )

    def _record(self, session: Session, job: Job, analysis: Analysis, answer: str) -> None:
        moment, prediction = database_time(session), analysis.prediction
        result = Result(
            bundle=prediction.bundle,
            bundle_sha256=analysis.card_sha256,
            probability=prediction.probability,
            label=prediction.label,
            threshold=prediction.threshold,
            subtype=None if prediction.subtype is None else dict(prediction.subtype),
            abstained=prediction.abstained,
            reason=prediction.reason,
            quality=plain(dict(prediction.quality)),
            milliseconds=prediction.milliseconds,
            map_png=analysis.map_png,
            explained_by=analysis.explained_by,
            urgent=analysis.urgent,
            shadow=self.config.shadow,
            answer=answer,
            created_at=moment,
        )
        job.result = result
        for built in analysis.objects:
            row = Object(
                kind=built.kind, uid=built.uid, sop_class=built.sop_class, suffix=built.suffix, data=built.data
            )
            result.objects.append(row)
            destinations = [item.name for item in self.config.deliveries if built.kind in item.sends]
            outbox.enqueue(session, row, destinations, moment)

    def _entry(self, claim: Claim, analysis: Analysis) -> Entry:
        card = {"sha256": analysis.card_sha256, "calibration": analysis.calibrated}
        facts = entry_facts(
            claim.header,
            self.pseudonyms,
            study_uid=claim.study_uid,
            patient=(claim.issuer, claim.patient_id),
            site=self.config.journal.site,
        )
        key = answer_key(analysis.card_sha256, claim.digest, analysis.operating_point)
        return entry_of(
            analysis.prediction,
            card,
            key,
            now(),
            operating_point=analysis.operating_point,
            received_at=claim.received_at,
            feed=unanalysed.feed(claim.source),
            shown=not self.config.shadow,
            **facts,
        )
