"""Which studies readers are asked about: a sample of each day, drawn with known probabilities.

Readers' clicks on answers that they saw measure the readers. An unbiased label is asked for: of each day that is over,
so many studies, alike from five strata of score and abstention; some of them twice, so that readers can be compared.
A study stands for all its images, by the one with the highest score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pneumoscope.serving.settings.gateway import Review as Design
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import Image, Job, Result, Review, Sampled

STRATA = ("abstained", "far below", "below", "above", "far above")  # the threshold
AGAIN = ", repeated"  # ends the name of the sample of those asked about twice
_PREFIX = "review "
_OLDEST = 31  # days without a sample that are made up for


@dataclass(frozen=True, slots=True)
class Unit:
    """A study by the result of one of its images. `probability`: None where the network abstained."""

    result_id: int
    probability: float | None
    threshold: float

    @property
    def stratum(self) -> str:
        """One of `STRATA`; halfway from the threshold to 0 and to 1 divide far from near."""
        if self.probability is None:
            return STRATA[0]
        if self.probability < self.threshold:
            return STRATA[1] if self.probability < self.threshold / 2 else STRATA[2]
        return STRATA[3] if self.probability < (1 + self.threshold) / 2 else STRATA[4]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A study of a sample, the probability with which that sample takes it, and whether it is asked about again."""

    unit: Unit
    inclusion: float
    again: bool


def allocate(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return how many to draw of each stratum: alike, none more than it has; what is left over goes to the others."""
    drawn = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        for name in sizes:
            if left and drawn[name] < sizes[name]:
                drawn[name] += 1
                left -= 1
    return drawn


def draw(units: Sequence[Unit], design: Design, rng: np.random.Generator) -> list[Drawn]:
    """Return a stratified sample without replacement, in random order.

    With fewer to draw than strata there are, it is drawn from all alike: every study keeps a probability above 0.
    """
    parts: dict[str, list[Unit]] = {}
    for unit in units:
        parts.setdefault(unit.stratum, []).append(unit)
    if design.per_day < len(parts):
        parts = {"all": list(units)}
    numbers = allocate({name: len(part) for name, part in sorted(parts.items())}, design.per_day)
    drawn = []
    for name, number in numbers.items():
        part = parts[name]
        for index in rng.choice(len(part), number, replace=False):
            drawn.append(Drawn(part[index], number / len(part), bool(rng.random() < design.repeats)))
    return [drawn[index] for index in rng.permutation(len(drawn))]


def draw_days(store: Store, design: Design) -> int:
    """Draw the samples of days that are over and have none yet; returns how many studies are asked about.

    The first time, of yesterday; later at most of the last 31 days. The seed and the day decide what is drawn.

    Raises:
        StorageError: the database is away.
    """
    with store.read() as session:
        today = database_time(session).date()
        latest = session.scalar(select(func.max(Sampled.name)).where(Sampled.name.startswith(_PREFIX)))
    yesterday = today - timedelta(days=1)
    day = yesterday if latest is None else date.fromisoformat(latest.removeprefix(_PREFIX)) + timedelta(days=1)
    day, count = max(day, today - timedelta(days=_OLDEST)), 0
    while day <= yesterday:
        try:
            with store.write() as session:
                count += _draw_day(session, design, day)
        except IntegrityError:  # another process was faster
            pass
        day += timedelta(days=1)
    return count


def _draw_day(session: Session, design: Design, day: date) -> int:
    name, moment = f"{_PREFIX}{day}", database_time(session)
    if session.get(Sampled, name) is not None:
        return 0
    units = _units(session, datetime(day.year, day.month, day.day, tzinfo=UTC))
    drawn = draw(units, design, np.random.default_rng([design.seed, day.toordinal()]))
    sizes = {stratum: sum(unit.stratum == stratum for unit in units) for stratum in STRATA}
    taken = {stratum: sum(item.unit.stratum == stratum for item in drawn) for stratum in STRATA}
    strata = {stratum: [sizes[stratum], taken[stratum]] for stratum in STRATA}
    facts = {"studies": strata, "per_day": design.per_day, "seed": design.seed, "repeats": design.repeats}
    session.add(Sampled(name=name, drawn_at=moment, strata=facts))
    asked = [(item, name, item.inclusion) for item in drawn]
    asked += [(item, name + AGAIN, item.inclusion * design.repeats) for item in drawn if item.again]
    for item, sample, inclusion in asked:
        session.add(Review(result_id=item.unit.result_id, sample=sample, inclusion=inclusion, created_at=moment))
        session.flush()  # rows are numbered in the order drawn
    return len(drawn)


def _units(session: Session, start: datetime) -> list[Unit]:
    """Return the studies answered on a day whose image is still there."""
    query = select(Result.id, Result.probability, Result.threshold, Image.study_uid, Image.issuer, Image.patient_id)
    query = query.join(Result.job).join(Job.image).where(Image.file.is_not(None))
    query = query.where(Result.created_at >= start, Result.created_at < start + timedelta(days=1))
    studies: dict[tuple[str | None, ...], Unit] = {}
    for result_id, probability, threshold, *study in session.execute(query.order_by(Result.id)):
        unit, known = Unit(result_id, probability, threshold), studies.get(tuple(study))
        if known is None or _rank(unit) > _rank(known):
            studies[tuple(study)] = unit
    return list(studies.values())


def _rank(unit: Unit) -> float:
    return -1.0 if unit.probability is None else unit.probability
