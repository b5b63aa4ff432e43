"""`pneumoscope serve` as a whole: it becomes ready, works, starts again what is killed, and ends on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from scripts.pacs.orthanc import free_ports
from sqlalchemy import select, text
from tests.support.gateway import chest, gateway, push, sink
from tests.support.waiting import ready, until

from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.journal.journal import format_of
from pneumoscope.serving.run.check import check
from pneumoscope.serving.run.supervisor import _prepare, only_here, serve
from pneumoscope.serving.settings.gateway import load_gateway
from pneumoscope.serving.settings.process_names import KINDS, kind_of, names, signed
from pneumoscope.serving.store.database import open_store, revision
from pneumoscope.serving.store.tables import SENT, Beat, Delivery

TOML = """
folder = "{folder}"
[receive]
port = {dicom}
callers = ["XRAYROOM1"]
[web]
port = {web}
[[destination]]
name = "pacs"
kind = "dicom"
host = "127.0.0.1"
port = {pacs}
aet = "SINK"
"""


def stat(pid: int) -> list[str]:
    """State, parent and more of a process, as Linux tells them after its name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    return int(stat(pid)[1])


def alive(pid: int) -> bool:
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


class At:
    def __init__(self, port: int) -> None:
        self.port = port


@pytest.mark.slow
def test_it_runs_and_heals_and_ends(tmp_path: Path) -> None:
    dicom, web = free_ports(2)
    with sink() as pacs:
        file = tmp_path / "gateway.toml"
        file.write_text(TOML.format(folder="work", dicom=dicom, web=web, pacs=pacs.port))
        command = [sys.executable, "-m", "pneumoscope", "serve", "--config", str(file)]
        log = tmp_path / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream)
        try:
            until(lambda: ready(web))
            config = load_gateway(file)
            store = open_store(config.database)
            with store.read() as session:
                beats = {beat.name: (beat.pid, beat.facts) for beat in session.scalars(select(Beat))}
            assert push(At(dicom), chest()) == [0]  # type: ignore[arg-type]
            until(lambda: len(pacs.objects) == 2)
            os.kill(beats["worker-1"][0], signal.SIGKILL)
            os.kill(beats["send"][0], signal.SIGKILL)
            assert push(At(dicom), chest()) == [0]  # type: ignore[arg-type]
            until(lambda: len(pacs.objects) >= 4)  # what was cut off comes again

            def all_sent(objects: int) -> bool:
                with store.read() as session:
                    return list(session.scalars(select(Delivery.state))) == [SENT] * objects

            until(lambda: all_sent(4))
            listener = beats["receive"][0]
            os.kill(parent_of(listener), signal.SIGKILL)  # its parent, which knows how it ends
            until(lambda: not alive(listener))
            third = chest()
            until(lambda: push(At(dicom), third) == [0])  # type: ignore[arg-type]
            until(lambda: all_sent(6))
            until(lambda: ready(web))
            assert 'pneumoscope_jobs{state="done"} 3.0' in httpx.get(f"http://127.0.0.1:{web}/metrics").text
            store.close()
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    assert code == 0
    assert len({item.SOPInstanceUID for item in pacs.objects}) == 6
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert any(line["event"] == "process died" for line in lines)
    assert "Doe" not in log.read_text()
    assert "4711" not in log.read_text()


def test_check_tells_what_would_stop_it(tmp_path: Path) -> None:
    dicom, web, pacs = free_ports(3)
    file = tmp_path / "gateway.toml"
    file.write_text(TOML.format(folder="work", dicom=dicom, web=web, pacs=pacs))
    done = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "serve", "--config", str(file), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note   destination pacs: does not answer" in done.stdout
    assert "database: sqlite: does not exist yet" in done.stdout
    assert "1 to 5 years" in done.stdout
    assert list((tmp_path / "work").iterdir()) == []
    assert (tmp_path / "work").stat().st_mode & 0o077 == 0
    file.write_text(TOML.format(folder="work", dicom=dicom, web=web, pacs=pacs) + '\n[bundle]\npath = "nowhere"\n')
    done = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "serve", "--config", str(file), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "FAULT  bundle:" in done.stdout


def test_check_leaves_older_tables_as_they_are(tmp_path: Path) -> None:
    config = gateway(tmp_path / "work")
    config.folder.mkdir(mode=0o755)
    store = open_store(config.database, migrate=True)
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    faults = {(item.subject, item.fatal): item for item in check(config) if item.fault}
    assert "for good; back them up first" in faults["database", False].message
    assert "others on this machine may read it" in faults["folder", False].message
    assert revision(store)[0] == "0000"
    store.close()


def test_the_check_leaves_an_older_journal_as_it_is(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    with sqlite3.connect(config.journal_file) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    (found,) = [item for item in check(config) if item.subject == "journal"]
    assert "of format 2, the start brings it to 3" in found.message
    assert format_of(config.journal_file) == 2


def test_a_folder_is_served_once(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    refused = pytest.raises(ConfigError, match="its web process runs already")
    with only_here(config, ["receive", "web"]), only_here(config, ["worker"]), refused, only_here(config, ["web"]):
        pass
    with only_here(config, KINDS):
        pass


def test_hosts_that_share_a_database_are_told_apart(tmp_path: Path) -> None:
    store = {"url": "postgresql+psycopg://gateway@127.0.0.1/gateway"}
    alone, first = gateway(tmp_path), gateway(tmp_path, store={**store, "host": "first"}, worker={"count": 2})
    assert (signed(alone, "worker-1"), signed(first, "worker-1")) == ("worker-1", "worker-1@first")
    assert alone.incoming == tmp_path / "incoming"
    assert first.incoming == tmp_path / "incoming" / "first"
    assert gateway(tmp_path, store=store).host
    assert names(first, ["worker", "web"]) == ("worker-1", "worker-2", "web")
    assert {kind_of(signed(first, name)) for name in names(first)} == set(KINDS) - {"poll", "retain"}


def test_a_host_that_only_analyses_asks_for_the_shared_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no process is called 'workers'"):
        serve(gateway(tmp_path), ["workers"])
    with pytest.raises(StorageError, match="mount the folder"):
        serve(gateway(tmp_path / "absent"), ["worker"])
    assert not (tmp_path / "absent").exists()
    store = {"url": "postgresql+psycopg://gateway@127.0.0.1/gateway"}
    with pytest.raises(ConfigError, match="journal must not lie"):
        serve(gateway(tmp_path, store=store), ["worker"])


def test_hosts_are_asked_for_one_key(tmp_path: Path) -> None:
    url, own = "postgresql+psycopg://gateway@127.0.0.1/gateway", {"path": tmp_path / "own" / "journal.sqlite"}
    key = {**own, "key": tmp_path / "journal.key"}
    for store, kinds in (({"url": url}, ["worker"]), ({"url": url, "host": "second"}, KINDS)):
        with pytest.raises(ConfigError, match="key of its own"):
            _prepare(gateway(tmp_path, store=store, journal=own), kinds)
        _prepare(gateway(tmp_path / "g", store=store, journal=key), [*kinds, "receive"])
    _prepare(gateway(tmp_path, store={"url": url}, journal=own), KINDS)  # one host, which needs no name
    _prepare(gateway(tmp_path, store={"url": url, "host": "first"}), KINDS)  # the key lies in the shared folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[store]\nhost = "a"', "several machines"),
        ("[recieve]\nport = 1", "unknown key recieve"),
        ("[worker]\ncount = 0", "worker.count"),
        ('[[destination]]\nname = "pacs"\nkind = "fhir"\nurl = "http://x"', "two destinations are called pacs"),
        ('[[destination]]\nname = "b"\nkind = "stow"', "needs url"),
        ('[[destination]]\nname = "b"\nkind = "fhir"\nurl = "http://x"\nobjects = ["sr"]', "no 'sr', but fhir"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path: Path, more: str, message: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(TOML.format(folder="work", dicom=1, web=1, pacs=1) + more)
    with pytest.raises(ConfigError, match=r"gateway\.toml") as error:
        load_gateway(file)
    assert message in str(error.value)


def test_a_title_has_sixteen_characters(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(TOML.format(folder="work", dicom=1, web=1, pacs=1).replace("XRAYROOM1", "X" * 17))
    with pytest.raises(ConfigError, match="1 to 16 printable"):
        load_gateway(file)
