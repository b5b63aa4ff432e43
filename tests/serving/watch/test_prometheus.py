"""The figures: what is there, that none names a patient, and that none reads a whole table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import event, text
from tests.support.crashing import Here
from tests.support.gateway import chest, gateway, only_job, push, receiving

from pneumoscope.records import PNEUMONIA
from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import DONE
from pneumoscope.serving.watch.meters import folder_of
from pneumoscope.serving.watch.prometheus import render

BIG = ("images", "jobs", "results", "objects", "deliveries", "events")


@pytest.fixture
def config(tmp_path: Path) -> Gateway:
    made = {
        "folder": tmp_path,
        "receive": {"callers": ("CT1",)},
        "destination": ({"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "port": 104, "aet": "PACS"},),
    }
    return Gateway.model_validate(made)


@pytest.fixture
def store(config: Gateway):
    opened = open_store(config.database, migrate=True)
    yield opened
    opened.close()


@pytest.mark.parametrize("shadow", [False, True])
def test_in_shadow_mode_answers_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadow: bool) -> None:
    counted: list[str | None] = []
    monkeypatch.setattr("pneumoscope.serving.watch.meters.answered", lambda label, abstained: counted.append(label))
    with receiving(gateway(tmp_path / "g", shadow=shadow)) as (receiver, store):
        assert push(receiver, chest()) == [0]
        worker = Worker(gateway(tmp_path / "g", shadow=shadow), store, "worker-1")
        worker.child = Here()  # type: ignore[assignment]
        assert worker.step()
        assert only_job(store).state == DONE
    assert counted == ([] if shadow else [PNEUMONIA])


def test_no_table_that_grows_is_read_as_a_whole(config: Gateway, store: Store) -> None:
    asked: list[tuple[str, object]] = []
    event.listen(
        store.engine, "before_cursor_execute", lambda c, cu, statement, values, *_: asked.append((statement, values))
    )
    render(config, store)
    plans = []
    with store.engine.connect() as link:
        for statement, values in list(asked):
            if statement.startswith("SELECT"):
                plans += [row[-1] for row in link.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert any("COVERING INDEX" in plan for plan in plans)
    assert not [p for p in plans for name in BIG if p.startswith(f"SCAN {name}") and "COVERING INDEX" not in p]


def test_there_is_a_plan_that_this_would_not_let_pass(store: Store) -> None:
    with store.engine.connect() as link:
        (row,) = link.execute(
            text("EXPLAIN QUERY PLAN SELECT label, count(*) FROM results GROUP BY label LIMIT 1")
        ).all()[:1]
    assert row[-1] == "SCAN results"


def test_processes_count_apart_and_are_added_up(config: Gateway, store: Store, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None)
    count = (
        "import sys; from pathlib import Path; from pneumoscope.serving.watch import meters\n"
        "meters.count_in(Path(sys.argv[1])); meters.took('send', 0.2, 'pacs'); meters.process_started('worker')\n"
        "meters.answered(None, abstained=True)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", count, str(folder)], check=True)
    look = (
        "import sys; from pathlib import Path; from pneumoscope.serving.watch import meters\n"
        "meters.count_in(Path(sys.argv[1]))\n"
        "from pneumoscope.serving.watch.prometheus import render\n"
        "from pneumoscope.serving.store.database import open_store\n"
        "from pneumoscope.serving.settings.gateway import load_gateway\n"
        "config = load_gateway(Path(sys.argv[2])); print(render(config, open_store(config.database)).decode())"
    )
    file = tmp_path / "gateway.toml"
    file.write_text('folder = "."\n[receive]\ncallers = ["CT1"]\n', encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, "-c", look, str(folder), str(file)], check=True, capture_output=True, text=True, env=os.environ
    ).stdout
    assert 'pneumoscope_stage_seconds_count{destination="pacs",stage="send"} 2.0' in shown
    assert 'pneumoscope_process_starts_total{kind="worker"} 2.0' in shown
    assert 'pneumoscope_answers_total{label="declined"} 2.0' in shown
    assert "pneumoscope_disk_free_bytes " in shown
    assert 'pneumoscope_jobs{state="waiting"} 0.0' in shown
