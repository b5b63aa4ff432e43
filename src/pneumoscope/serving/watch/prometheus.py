"""Metrics for Prometheus: states from the tables at the moment of the request, times from the processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store import jobs, outbox
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import (
    DELIVERY_STATES,
    REPORT_STATES,
    Beat,
    Feed,
    Report,
)

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 10, 30, 60, 300, 1800, 7200)
_OWN = CollectorRegistry()  # of this process alone, without a folder of counters
STAGES = Histogram(
    "pneumoscope_stage_seconds",
    "How long a stage took",
    ["stage", "destination"],
    registry=_OWN,
    buckets=_SECONDS,
)
STARTS = Counter(
    "pneumoscope_process_starts", "Starts of processes, and of the workers' children", ["kind"], registry=_OWN
)
ANSWERS = Counter("pneumoscope_answers", "Answers by call since the gateway started", ["label"], registry=_OWN)

_FEED: tuple[tuple[str, str, Callable[[Feed], float]], ...] = (
    ("feed_place", "Number of the last change of an Orthanc that was processed", lambda feed: feed.seq or 0),
    ("feed_skipped", "Images of an Orthanc that could not be taken", lambda feed: feed.skipped),
    ("feed_resets", "How often the numbering of an Orthanc restarted", lambda feed: feed.resets),
    ("feed_failing", "Whether the last attempt at an Orthanc failed", lambda feed: float(feed.fault is not None)),
)


class _Tables(Collector):
    def __init__(self, config: Gateway, store: Store) -> None:
        self.config, self.store = config, store

    def collect(self) -> Iterator[Metric]:
        with self.store.read() as session:
            moment = database_time(session)
            states = {(state,): count for state, count in jobs.counts(session).items()}
            yield _family("jobs", "Images by state", ["state"], states)
            since = jobs.waiting_since(session)
            age = 0.0 if since is None else (moment - since).total_seconds()
            yield _family("oldest_job_seconds", "How long the oldest image in the queue has waited", [], {(): age})
            counts = outbox.counts(session)
            every = {(d.name, s): counts.get((d.name, s), 0) for d in self.config.destination for s in DELIVERY_STATES}
            yield _family("deliveries", "Objects by destination and state", ["destination", "state"], every)
            waits = {}
            for item in self.config.deliveries:
                first = outbox.waiting_since(session, item.name)
                waits[(item.name,)] = 0.0 if first is None else (moment - first).total_seconds()
            description = "How long the oldest result for a destination has waited"
            yield _family("oldest_delivery_seconds", description, ["destination"], waits)
            rows = {feed.name: feed for feed in session.scalars(select(Feed))}
            feeds = {(o.name,): rows[o.name] for o in self.config.orthanc if o.name in rows}
            for name, description, value in _FEED:
                yield _family(name, description, ["orthanc"], {key: value(feed) for key, feed in feeds.items()})
            query_reports = select(Report.state, func.count()).group_by(Report.state)
            reports = dict(session.execute(query_reports).all())
            every_report = {(s,): reports.get(s, 0) for s in REPORT_STATES}
            yield _family("commitment_reports", "Reports of storage commitment", ["state"], every_report)
            beats = session.execute(select(Beat.name, Beat.at)).all()
            ages = {(name,): (moment - at).total_seconds() for name, at in beats}
            yield _family("beat_seconds", "Since the last sign of life of a process", ["process"], ages)
        free = shutil.disk_usage(self.config.folder).free
        yield _family("disk_free_bytes", "Space left on the disk of images, database and journal", [], {(): free})


def render(config: Gateway, store: Store) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Tables(config, store))
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(registry) + generate_latest(_OWN)
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _family(name: str, description: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(f"pneumoscope_{name}", description, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
