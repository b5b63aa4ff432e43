"""The tables, the queue and its order, the outbox; against SQLite and PostgreSQL."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.pacs.orthanc import free_ports
from scripts.postgres.server import Postgres
from sqlalchemy import select, update
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tests.support.gateway import gateway

from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.serving.delivery.send import DELIVERED
from pneumoscope.serving.keeping.retention import sweep
from pneumoscope.serving.people.accounts import vouched
from pneumoscope.serving.run.supervisor import _tidy
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.process_names import KINDS
from pneumoscope.serving.store import database, jobs, outbox
from pneumoscope.serving.store.database import MIGRATIONS, Store, database_time, hidden, now, open_store, revision
from pneumoscope.serving.store.outbox import Answer, Outcome
from pneumoscope.serving.store.tables import (
    DEAD,
    DONE,
    QUARANTINED,
    RUNNING,
    SENT,
    WAITING,
    Base,
    Beat,
    Delivery,
    Event,
    Feedback,
    Image,
    Job,
    Object,
    Result,
    User,
)

HOUR = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(database: dict[str, str], tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    opened = open_store(gateway(tmp_path, store=database).database, migrate=True)
    yield opened
    opened.close()


def add(store: Store, *, priority: int = 0, age: timedelta = timedelta(0), number: int = 0) -> int:
    moment = now() - age
    image = Image(
        sop_uid=f"1.2.{number}", version=1, digest="d" * 64, sop_class="1", study_uid="1", series_uid="1", file="f",
        size=1, source="test", received_at=moment, header={},
    )  # fmt: skip
    image.job = Job(
        state=WAITING, priority=priority, attempts=0, claims=0, created_at=moment, not_before=moment
    )  # fmt: skip
    with store.write() as session:
        session.add(image)
        session.flush()
        return image.job.id


def state(store: Store, job_id: int) -> str:
    with store.read() as session:
        return str(session.scalar(select(Job.state).where(Job.id == job_id)))


def test_migrations_give_the_models(store: Store) -> None:
    with store.engine.connect() as connection:
        assert (
            compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata) == []
        )
    assert revision(store) == (ScriptDirectory(str(MIGRATIONS)).get_current_head(),) * 2


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """When called, this version knows one more step of the tables than before."""

    def advance() -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(database.MIGRATIONS, folder)
        (folder / "versions" / "v0003_next.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\nrevision, down_revision = '0003', '0002'\n\n\n"
            "def upgrade():\n    op.add_column('jobs', sa.Column('more', sa.Text(), nullable=True))\n"
        )
        monkeypatch.setattr(database, "MIGRATIONS", folder)

    return advance


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_an_earlier_version_kept_is_there_after_a_later_one(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, later: Callable[[], None]
) -> None:
    url = f"sqlite:///{tmp_path / 'a'}" if kind == "sqlite" else request.getfixturevalue("postgres").database()
    with ThreadPoolExecutor() as pool:  # several processes may start at once
        for opened in pool.map(lambda _: open_store(url, migrate=True), range(3)):
            opened.close()
        old = open_store(url)
        job_id = add(old)
        old.close()
        later()
        with pytest.raises(StorageError, match="version 0002, this version needs 0003"):
            open_store(url, create=True)
        for opened in pool.map(lambda _: open_store(url, migrate=True), range(3)):
            assert state(opened, job_id) == WAITING
            assert revision(opened) == ("0003", "0003")
            opened.close()


def test_an_empty_database_is_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="version None"):
        open_store(f"sqlite:///{tmp_path / 'a.sqlite'}")
    with pytest.raises(StorageError, match="cannot be used"):
        open_store(f"sqlite:///{tmp_path / 'no' / 'a.sqlite'}", migrate=True)
    (port,) = free_ports(1)
    with pytest.raises(StorageError, match="cannot be used"):
        open_store(f"postgresql+psycopg://gateway@127.0.0.1:{port}/gateway")
    with pytest.raises(ConfigError):
        Store("nonsense")


def test_no_password_in_messages() -> None:
    assert hidden("postgresql+psycopg://me:secret@host/db") == "postgresql+psycopg://me@host/db"


def test_one_job_one_worker(store: Store) -> None:
    job_id = add(store)
    claim = jobs.claim(store, "a", HOUR, HOUR)
    assert claim is not None
    assert claim.job_id == job_id
    assert jobs.claim(store, "b", HOUR, HOUR) is None
    assert jobs.end(store, claim, DONE)
    assert not jobs.end(store, claim, DONE)
    assert state(store, job_id) == DONE


def test_workers_side_by_side_never_take_the_same_job(store: Store) -> None:
    expected = {add(store, number=number) for number in range(40)}

    def work(owner: str) -> list[int]:
        taken = []
        while claim := jobs.claim(store, owner, HOUR, HOUR):
            taken.append(claim.job_id)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [job_id for some in pool.map(work, "abcd") for job_id in some]
    assert sorted(taken) == sorted(expected)


def test_a_locked_job_is_passed_over_and_not_waited_for(postgres: Postgres, migrated: str) -> None:
    store = open_store(postgres.database(migrated))
    first, second = add(store, number=1), add(store, number=2)
    with store.write() as session:
        session.scalar(select(Job).where(Job.id == first).with_for_update())
        claim = jobs.claim(store, "b", HOUR, HOUR)
        assert claim is not None
        assert claim.job_id == second
        assert jobs.claim(store, "c", HOUR, HOUR) is None
    store.close()


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_host_whose_clock_is_wrong_keeps_to_the_databases(
    postgres: Postgres, migrated: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    store = open_store(postgres.database(migrated))
    job_id = add(store)
    wrong = datetime.now(UTC) + timedelta(hours=hours)
    monkeypatch.setattr("pneumoscope.serving.store.database.now", lambda: wrong)
    claim = jobs.claim(store, "a", HOUR, HOUR)
    assert claim is not None
    assert jobs.claim(store, "b", HOUR, HOUR) is None, "a lease of an hour has not passed"
    assert jobs.fail(store, claim, "died", attempts=3) == WAITING
    with store.read() as session:
        job = session.get_one(Job, job_id)
        assert abs(job.not_before - datetime.now(UTC)) < timedelta(minutes=5)
    store.close()


def test_a_delivery_is_sent_once_or_tried_again_or_given_up(store: Store) -> None:
    job_id = add(store)
    with store.write() as session:
        moment = database_time(session)
        result = Result(job_id=job_id, bundle="b", bundle_sha256="0" * 64, threshold=0.5, abstained=False, quality={},
                        milliseconds=1.0, urgent=False, shadow=False, created_at=moment)  # fmt: skip
        for kind in ("sr", "sc"):
            built = Object(kind=kind, uid=kind, suffix=".dcm", data=b"\0" + kind.encode())
            outbox.enqueue(session, built, ["pacs", "other"], moment)
            result.objects.append(built)
        session.add(result)
    chance, day = random.Random(0), timedelta(days=1)
    first, second = outbox.due(store, "pacs", 20)
    assert (first.kind, first.data) == ("sr", b"\0sr")
    assert outbox.record(store, first, DELIVERED, day, chance) == SENT
    assert outbox.record(store, second, Answer(Outcome.RETRY, "down"), day, chance) == WAITING
    assert outbox.due(store, "pacs", 20) == [], "one is sent, one waits for its next attempt"
    assert outbox.record(store, second, Answer(Outcome.RETRY, "down"), timedelta(0), chance) == DEAD
    assert not outbox.replay(store, first.delivery_id)
    assert outbox.replay(store, second.delivery_id)
    assert [parcel.delivery_id for parcel in outbox.due(store, "pacs", 20)] == [second.delivery_id]
    assert len(outbox.due(store, "other", 20)) == 2


def test_deliveries_to_a_removed_destination_are_given_up(store: Store) -> None:
    job_id, moment = add(store), now()
    with store.write() as session:
        result = Result(job_id=job_id, bundle="b", bundle_sha256="0" * 64, threshold=0.5, abstained=False, quality={},
                        milliseconds=1.0, urgent=False, shadow=False, created_at=moment)  # fmt: skip
        for kind in ("sr", "sc"):
            built = Object(kind=kind, uid=kind, suffix=".dcm", data=kind.encode())
            outbox.enqueue(session, built, ["pacs", "gone"], moment)
            result.objects.append(built)
        session.add(result)
    sent, left = outbox.due(store, "gone", 20)
    outbox.record(store, sent, DELIVERED, timedelta(days=1), random.Random(0))
    config = gateway(Path("g"), 104)
    off = config.model_copy(update={"destination": (config.destination[0].model_copy(update={"enabled": False}),)})
    _tidy(off, store, ["receive", "worker"])
    assert [parcel.delivery_id for parcel in outbox.due(store, "gone", 20)] == [left.delivery_id]
    _tidy(off, store, ["send"])
    assert outbox.due(store, "gone", 20) == []
    assert len(outbox.due(store, "pacs", 20)) == 2, "disabled is not removed"
    with store.read() as session:
        query = select(Delivery.state, Delivery.reason).where(Delivery.destination == "gone").order_by(Delivery.state)
        assert session.execute(query).all() == [
            (DEAD, "given up: the destination is no longer configured"),
            (SENT, None),
        ]


def test_a_process_that_is_no_longer_configured_is_not_missed(store: Store) -> None:
    def beats() -> set[str]:
        with store.read() as session:
            return set(session.scalars(select(Beat.name)))

    several = {"url": "postgresql+psycopg://gateway@127.0.0.1/gateway", "host": "first"}
    alone, first = gateway(Path("g")), gateway(Path("g"), store=several)
    ours = {"worker-1", "receive", "web"}
    others = {"worker-2", "retain", "worker-2@first", "worker-2@second"}
    for name in ours | others:
        store.beat(name, 1)
    _tidy(first, store, ["send"])
    assert beats() == ours | others
    _tidy(first, store, ["worker"])
    assert beats() == ours | others - {"worker-2@first"}
    _tidy(alone, store, KINDS)
    assert beats() == ours | {"worker-2@second"}


def test_one_host_sends_to_a_destination_and_another_takes_over(postgres: Postgres, migrated: str) -> None:
    url = postgres.database(migrated)
    one, other = open_store(url), open_store(url)
    with one.alone("send pacs") as mine:
        assert mine
        with other.alone("send pacs") as other_sends, other.alone("send else") as free:
            assert (other_sends, free) == (False, True)
    with other.alone("send pacs") as other_sends:
        assert other_sends
    one.close()
    other.close()


def test_a_late_worker_cannot_write_over_the_next(store: Store) -> None:
    job_id = add(store)
    late = jobs.claim(store, "a", timedelta(seconds=-1), HOUR)
    claim = jobs.claim(store, "b", HOUR, HOUR)
    assert late is not None
    assert claim is not None
    assert not jobs.end(store, late, DONE)
    assert jobs.fail(store, late, "late", attempts=1) is None
    assert state(store, job_id) == RUNNING
    assert jobs.end(store, claim, DONE)


def test_failures_are_tried_again_then_quarantined_then_sent_back(store: Store) -> None:
    job_id = add(store)
    for expected in (WAITING, QUARANTINED):
        claim = jobs.claim(store, "a", HOUR, HOUR)
        assert claim is not None
        assert jobs.fail(store, claim, "died", attempts=2) == expected
        with store.write() as session:
            job = session.get_one(Job, job_id)
            job.not_before = now()
    assert jobs.claim(store, "a", HOUR, HOUR) is None
    assert jobs.try_again(store, job_id)
    assert not jobs.try_again(store, job_id)
    assert jobs.claim(store, "a", HOUR, HOUR) is not None


def test_a_dead_workers_job_comes_back_without_counting_as_its_fault(store: Store) -> None:
    add(store)
    assert jobs.claim(store, "a", HOUR, HOUR) is not None
    assert jobs.release(store, "b") == 0
    assert jobs.release(store, "a") == 1
    claim = jobs.claim(store, "a", HOUR, HOUR)
    assert claim is not None
    assert jobs.fail(store, claim, "died", attempts=2) == WAITING


def test_who_waited_too_long_goes_before_the_urgent(store: Store) -> None:
    urgent = add(store, priority=2, age=timedelta(minutes=1), number=1)
    old = add(store, age=timedelta(hours=2), number=2)
    new = add(store, number=3)
    taken = [claim.job_id for _ in range(3) if (claim := jobs.claim(store, "a", HOUR, HOUR))]
    assert taken == [old, urgent, new]


waiting = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 200)), min_size=1, max_size=12
)  # priority, minutes waited


def test_retention_and_what_it_spares(store: Store, tmp_path: Path) -> None:
    ids = [add(store, age=100 * 24 * HOUR, number=number) for number in range(4)]
    long_ago = now() - 100 * 24 * HOUR
    with store.write() as session:
        session.execute(update(Job).values(state=DONE, ended_at=long_ago))
        for number, job_id in enumerate(ids):
            result = Result(
                job_id=job_id, bundle="b", bundle_sha256="", threshold=0.5, abstained=False, quality={},
                milliseconds=1.0, map_png=b"m", urgent=False, shadow=False, created_at=long_ago,
            )  # fmt: skip
            built = Object(kind="sr", uid=f"1.{number}", suffix="", data=b"d")
            sent = {"attempts": 1, "created_at": long_ago, "not_before": long_ago}
            built.deliveries.append(Delivery(destination="p", state=DEAD if number == 1 else SENT, **sent))
            result.objects.append(built)
            session.add(result)
        session.add(Event(at=long_ago, action="listed"))
        session.flush()
        user = User(name="u", role="reader", password="", disabled=False, created_at=long_ago)
        values = {"verdict": "agree", "created_at": long_ago}
        answer = session.scalars(select(Result.id).where(Result.job_id == ids[2])).one()
        session.add_all([user, Feedback(key="f", result_id=answer, user=user, **values)])
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "f").touch()
        assert jobs.commit(session, tmp_path / "images", ["1.2.3"]) == {"1.2.3"}
    receive = {"callers": ("A",)}
    kept = {"images": 30, "results": 30, "jobs": 30, "events": 30}
    to = ({"name": "p", "kind": "fhir", "url": "http://127.0.0.1:1"},)
    config = Gateway.model_validate(
        {"folder": tmp_path, "receive": receive, "retention": kept, "destination": to}, strict=False
    )
    assert sweep(config, store) == {
        "jobs": 1,
        "commitment reports": 0,
        "images": 1,
        "results": 2,
        "events": 1,
        "sign-ins": 0,
    }
    with store.read() as session:
        files = [image.file for image in session.scalars(select(Image).order_by(Image.id))]
        assert files == [None, "f", None, "f"]
        assert list(session.scalars(select(Job.id).order_by(Job.id))) == ids[1:]
        assert [item.data for item in session.scalars(select(Object).order_by(Object.id))] == [b"d", None, None]


def test_whom_an_issuer_vouches_for(store: Store) -> None:
    asked = (("a", "reader"), ("b", "admin"), ("a", "admin"))
    people = [vouched(store, subject, "ann", role, 5) for subject, role in asked]
    assert [person and (person.name, person.role) for person in people] == [
        ("ann", "reader"), ("ann-3e23e816", "admin"), ("ann", "admin"),
    ]  # fmt: skip


@given(waiting)
@settings(max_examples=200)
def test_nobody_waits_for_ever(queue: list[tuple[int, int]]) -> None:
    moment = START
    ranked = sorted(
        (jobs.rank(priority, moment - timedelta(minutes=waited), number, moment, HOUR), waited, priority)
        for number, (priority, waited) in enumerate(queue)
    )
    overdue = [waited for _, waited, _ in ranked if waited >= 60]
    assert [waited for _, waited, _ in ranked][: len(overdue)] == sorted(overdue, reverse=True)
    rest = [(-priority, -waited) for _, waited, priority in ranked[len(overdue) :]]
    assert rest == sorted(rest)


def test_the_database_orders_as_the_rule_does(store: Store) -> None:
    queue = [(n % 3, (n * 37) % 130) for n in range(20)]
    ids = {add(store, priority=p, age=timedelta(minutes=m), number=n): (p, m) for n, (p, m) in enumerate(queue)}
    moment = now()
    with store.read() as session:
        rows = list(session.scalars(select(Job).order_by(*jobs.ordering(moment, HOUR))))
        expected = sorted(rows, key=lambda job: jobs.rank(job.priority, job.created_at, job.id, moment, HOUR))
        assert [job.id for job in rows] == [job.id for job in expected]
        assert len(rows) == len(ids)


def test_no_connection_in_time_is_a_database_that_cannot_be_used(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'gateway.sqlite'}")
    with pytest.raises(StorageError, match="cannot be used"), store.errors():
        raise PoolTimeout("QueuePool limit reached")


def test_tables_are_made_by_who_only_looks(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 'new.sqlite'}", create=True).close()
