"""The worker: takes jobs, has its child answer, and writes answer, results and debts in one transaction."""

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
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store import jobs, outbox
from pneumoscope.serving.store.database import Store, database_time, now
from pneumoscope.serving.store.jobs import Claim
from pneumoscope.serving.store.tables import DONE, Job, Object, Result
from pneumoscope.serving.watch import meters
from pneumoscope.serving.watch.logs import logger

_IDLE = 0.1  # seconds between looks at an empty queue
_BEAT = 5.0  # seconds between two signs of life
_GRACE = timedelta(seconds=30)  # of a lease, beyond the time that an analysis may take


class Worker:
    """One worker and its child. `stages`: called with the name of each stage that was reached; tests end it there."""

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
        """Work until told to stop; what was begun is finished."""
        if returned := jobs.release(self.store, self.name):
            self.log.warning("jobs of a predecessor returned", count=returned)
        self.child.warm_up()
        self.log.info("ready", child=self.child.pid)
        beaten = 0.0
        try:
            while not stop.is_set():
                if (moment := now().timestamp()) - beaten >= _BEAT:
                    self.store.beat(self.name, os.getpid(), child=self.child.pid)
                    beaten = moment
                if not self.step():
                    stop.wait(_IDLE)
        finally:
            self.child.close()

    def step(self) -> bool:
        """Do one job; False where none waits."""
        self.child.warm_up()  # what keeps it from starting, such as a damaged bundle, is no fault of any image
        limits = self.config.worker
        lease = timedelta(seconds=limits.seconds + limits.start_seconds) + _GRACE
        max_wait = timedelta(minutes=self.config.priority.max_wait_minutes)
        held = jobs.claim(self.store, self.name, lease, max_wait)
        if held is None:
            return False
        self.stages("claimed")
        meters.took("wait", held.waited)
        task = Task(self.config.images / held.file, self.kinds, now())
        if not os.access(task.path, os.R_OK):  # a share that is away, or slow to show what another host wrote
            self._failed(held, "file away", "its file is not there, or not readable", attempts=jobs.PATIENCE)
            return True
        try:
            with meters.timed("child"):
                analysis: Analysis = self.child.ask(task, limits.seconds)
        except (ImageUnavailableError, StorageError) as error:
            self._failed(held, "unreadable", f"the image cannot be read: {error.what}", attempts=jobs.PATIENCE)
        except ImageError as error:
            self._failed(held, "unusable", f"the image cannot be used: {error.what}", attempts=1)
        except PneumoscopeError as error:
            self._failed(held, "refused", error.what, attempts=1)
        except ChildLostError as error:
            self._failed(held, "child lost", str(error), attempts=limits.attempts)
        else:
            self.stages("analysed")
            try:
                self._finish(held, analysis)
            except StorageError as error:  # such as the journal's disk; where it is the database, this fails too
                why = f"its answer was not written down: {error.what}"
                self._failed(held, "not written", why, attempts=jobs.PATIENCE)
        return True

    def _failed(self, held: Claim, kind: str, why: str, *, attempts: int) -> None:
        """Record why a job failed, in words for people, and log its kind. `attempts`: then it is quarantined."""
        state = jobs.fail(self.store, held, f"not analysed, because {why}", attempts=attempts)
        self.log.warning("job failed", job=held.job_id, state=state, kind=kind)

    def _finish(self, held: Claim, analysis: Analysis) -> None:
        if analysis.prediction.error is not None:
            self._failed(held, "unusable", f"the image cannot be used: {analysis.prediction.fault}", attempts=1)
            return
        # The journal first: told twice after a crash it is written once, and nothing is sent that it does not know.
        with meters.timed("journal"):
            self.journal.append(self._entry(held, analysis))
        self.stages("journaled")
        mine = jobs.end(self.store, held, DONE, lambda session, job: self._record(session, job, analysis))
        self.stages("recorded")
        meters.took("analyse", analysis.seconds - analysis.encoding)
        meters.took("encode", analysis.encoding)
        if mine:
            meters.took("answer", (now() - held.created_at).total_seconds())
            if not self.config.shadow:  # anybody may read the figures, and an answer among few images is told by them
                meters.answered(analysis.prediction.label, abstained=analysis.prediction.abstained)
        self.log.info(
            "job done",
            job=held.job_id,
            current=mine,
            abstained=analysis.prediction.abstained,
            objects=len(analysis.objects),
            milliseconds=round(1000 * analysis.seconds),
        )

    def _record(self, session: Session, job: Job, analysis: Analysis) -> None:
        moment, said = database_time(session), analysis.prediction
        result = Result(
            bundle=said.bundle,
            bundle_sha256=analysis.card_sha256,
            probability=said.probability,
            label=said.label,
            threshold=said.threshold,
            subtype=None if said.subtype is None else dict(said.subtype),
            abstained=said.abstained,
            reason=said.reason,
            quality=plain(dict(said.quality)),
            milliseconds=said.milliseconds,
            map_png=analysis.map_png,
            explained_by=analysis.explained_by,
            urgent=analysis.urgent,
            shadow=self.config.shadow,
            created_at=moment,
        )
        job.result = result
        for built in analysis.objects:
            row = Object(
                kind=built.kind, uid=built.uid, sop_class=built.sop_class, suffix=built.suffix, data=built.data
            )
            result.objects.append(row)
            wanting = [item.name for item in self.config.deliveries if built.kind in item.sends]
            outbox.enqueue(session, row, wanting, moment)

    def _entry(self, held: Claim, analysis: Analysis) -> Entry:
        card = {"sha256": analysis.card_sha256, "calibration": analysis.calibrated}
        told = entry_facts(
            held.header,
            self.pseudonyms,
            study_uid=held.study_uid,
            patient=(held.issuer, held.patient_id),
            site=self.config.journal.site,
        )
        key = answer_key(analysis.card_sha256, held.digest, analysis.operating_point)
        return entry_of(analysis.prediction, card, key, now(), **told)
