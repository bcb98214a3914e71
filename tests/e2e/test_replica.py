"""One running log mirrors another: over HTTP, by a process of its own, before and after an actor is erased there."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from urllib.parse import quote

import pytest

from ktlog.client import SigningKey, add_key
from ktlog.client.verify import check_cosigned, open_head
from ktlog.config import Settings, write_settings
from ktlog.demo.processes import listen_on_loopback
from ktlog.durable import write_atomic
from ktlog.operator.create import create_log, load_checkpoint_signers, load_public_keys
from ktlog.operator.sources import load_sources, load_status
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import parse_vkey, sign_checkpoint
from ktlog.tlog.policy import LogKey, format_policy, parse_policy
from ktlog.tlog.tree import EMPTY_ROOT
from tests.running_log import EVIL, ORIGIN, RunningLog, actor, running_log
from tests.tls_server import answer

# The test's own TLS server answers for this host, and passes on what the mirroring log says of itself.
MIRROR = EVIL
VICTIM, OTHER = "a01", "a02"


class MirrorSite:
    """A second log, which mirrors *source* and is asked over plain HTTP as its proxy would."""

    def __init__(self, source: RunningLog) -> None:
        self.running = source
        settings = create_log(source.directory / "mirror", MIRROR, "spec", None)
        self.settings = Settings(
            settings.directory, MIRROR, "spec", workers=1, replicas=ORIGIN, replica_interval_seconds=1,
            rate_limit_exempt="127.0.0.0/8",
        )
        write_settings(self.settings)
        witnesses = parse_policy(source.settings.publish_policy.read_bytes())
        write_atomic(self.settings.publish_policy, format_policy(witnesses))
        vkey = parse_vkey(load_public_keys(source.settings).vkeys[1])
        self.settings.replica_directory.mkdir()
        write_atomic(
            self.settings.replica_directory / f"{ORIGIN}.policy", format_policy(replace(witnesses, logs=(LogKey(vkey),)))
        )
        (self.source,) = load_sources(self.settings)
        listener = listen_on_loopback()
        self.port = listener.getsockname()[1]
        source.processes.start("mirror", "ktlog", ["serve", "--dir", str(settings.directory)], listener)

    def get(self, target: str) -> tuple[int, dict]:
        status, _, body = self.raw(target)
        return status, json.loads(body)

    def raw(self, target: str) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", target, headers={"Host": MIRROR})
            found = connection.getresponse()
            return found.status, found.headers["Content-Type"], found.read()
        finally:
            connection.close()

    def be_reachable(self) -> None:
        """Let the source ask this log who it is."""
        for target in ("/api/info", "/users/pubkeydir"):
            _, content_type, body = self.raw(target)
            self.running.evil_documents[target] = answer(body, content_type=content_type)

    def checkpoint_peers(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ktlog", "checkpoint-peers", "--dir", str(self.settings.directory), "--json"],
            capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"KTLOG_DIAL": str(self.running.directory / "dial.json")},
        )

    def output(self) -> str:
        return (self.running.directory / "logs" / "mirror.log").read_text(encoding="utf-8", errors="replace")

    def wait(self, what: str, ready) -> None:
        def looked() -> bool:
            assert "Traceback" not in self.output(), self.output()
            return ready(load_status(self.source))

        self.running.wait(what, looked)

    def path(self, user: str, rest: str = "/keys") -> str:
        return f"/api/replica/{self.source.id}/actor/{quote(actor(user), safe='')}{rest}"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with running_log(tmp_path_factory.mktemp("replica"), notice_seconds=1, directories=f"https://{MIRROR}") as running:
        yield running


def rows(path) -> dict[str, list]:
    """Every row that the public files of a log determine, table by table."""
    actor_columns = (
        "actor_id, fireproof, version, generation, erasures, cause, generation_leaf, status, status_leaf, salt"
    )
    queries = {
        "entries": "SELECT * FROM entries ORDER BY 1",
        "roots": "SELECT * FROM leaf_roots ORDER BY 1",
        "state": "SELECT size, root, frontier, greatest_time FROM log_state",
        "records": "SELECT leaf_index, preimage, action, created, withheld FROM records ORDER BY 1",
        "plain": "SELECT leaf_index, plain, salts FROM record_plain ORDER BY 1",
        "actors": f"SELECT {actor_columns} FROM directory_actors ORDER BY 1",
        "keys": "SELECT actor_id, position, public_key, key_id, leaf_index, created FROM directory_keys"
                " JOIN directory_actors USING (actor_number) ORDER BY 1, 2",
        "history": "SELECT actor_id, leaf_index, role FROM directory_history"
                   " JOIN directory_actors USING (actor_number) ORDER BY 1, 2, 3",
        "erasures": "SELECT * FROM erasures ORDER BY 1",
        "tombstones": "SELECT * FROM tombstones ORDER BY 1",
    }
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
        found = {name: database.execute(query).fetchall() for name, query in queries.items()}
    database.close()
    return found


@pytest.mark.slow
def test_a_log_is_mirrored_and_an_erasure_followed(log):
    now = int(time.time())
    assert log.enrol(VICTIM).status == log.enrol(OTHER).status == 202
    second = SigningKey.generate()
    built = add_key(actor(VICTIM), second.public_key, log.keys[VICTIM], recent_root=log.root(), now=now)
    assert log.deliver(built.wire, VICTIM).status == 202
    log.wait_published(3)

    site = MirrorSite(log)
    site.wait("the log to be mirrored", lambda status: status.tree_size == 3)
    assert rows(site.source.database) == rows(log.settings.database)
    assert load_status(site.source).checked == load_status(site.source).total == 6
    status, found = site.get(site.path(VICTIM))
    assert (status, len(found["public-keys"])) == (200, 2)
    head = open_head(found["replica"]["checkpoint"].encode(), site.source.log)
    assert check_cosigned(head, site.source.policy, int(time.time()), 3600).names
    original = log.get(f"/api/actor/{quote(actor(VICTIM), safe='')}/keys?tree-size=3").json()
    assert original == {name: value for name, value in found.items() if name != "replica"}

    def shred() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ktlog", "shred", "--dir", str(log.settings.directory), actor(VICTIM), "--yes"],
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )

    log.wait("the end of the notice period", lambda: shred().returncode == 0)

    def followed(_status) -> bool:
        with SqliteStore.open(site.source.database, read_only=True) as store:
            return store.erasure_count() == 1 and not store.scrub_due()

    site.wait("the erasure to be followed", followed)
    site.wait("the mirror to be up to date", lambda status: not status.erasing)
    assert rows(site.source.database) == rows(log.settings.database)
    assert site.get(site.path(VICTIM))[0] == 404
    assert len(site.get(site.path(OTHER))[1]["public-keys"]) == 1
    needles = [actor(VICTIM).encode(), second.public_key, log.keys[VICTIM].public_key]
    for file in site.settings.directory.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(needle in data for needle in needles), file
    assert not any(needle in site.output().encode() for needle in needles)

    # Enrolled again, by the same mirror, whose process was killed meanwhile.
    pids = json.loads((site.settings.directory / "pids.json").read_bytes())
    os.kill(pids["replicas"], signal.SIGKILL)
    assert log.enrol(VICTIM).status == 202
    site.wait("the new enrolment to be mirrored", lambda status: status.tree_size == 4)
    assert rows(site.source.database) == rows(log.settings.database)
    assert json.loads((site.settings.directory / "pids.json").read_bytes())["replicas"] != pids["replicas"]
    _check_checkpoint_message(log, site)
    (listed,) = site.get("/api/replicas")[1]["replicas"]
    assert (listed["tree-size"], listed["error"]) == (5, None)


def _check_checkpoint_message(log: RunningLog, site: MirrorSite) -> None:
    """The mirroring log commits its root to the other's log, and says what it replayed there."""
    ended = site.checkpoint_peers()
    assert ended.returncode == 4, "it has published nothing itself"
    assert json.loads(ended.stdout)["peers"][ORIGIN]["error"]["name"] == "NoCheckpoint"
    signers = load_checkpoint_signers(site.settings.keys, MIRROR)
    own = Checkpoint(MIRROR, 0, EMPTY_ROOT)
    TileFiles(site.settings.tiles).publish_checkpoint(sign_checkpoint(own, list(signers), int(time.time())))
    site.be_reachable()
    validated = log.root()
    sent = site.checkpoint_peers()
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert json.loads(sent.stdout) == {"peers": {ORIGIN: {"leaf-index": 4}}}
    log.wait_published(5)
    site.wait("the Checkpoint to be mirrored", lambda status: status.tree_size == 5)
    with SqliteStore.open(site.source.database, read_only=True) as store:
        (record,) = store.records(4, 5)
    message = json.loads(record.preimage)["message"]
    assert record.action == "Checkpoint"
    assert (message["from-directory"], message["to-directory"]) == (f"https://{MIRROR}", f"https://{ORIGIN}")
    assert (message["from-root"], message["to-validated-root"]) == (ZERO_ROOT, validated)


def test_a_log_without_a_policy_for_what_it_mirrors_does_not_start(tmp_path):
    settings = create_log(tmp_path / "log", MIRROR, "spec", None)
    write_settings(replace(settings, replicas=ORIGIN))
    ended = subprocess.run(
        [sys.executable, "-m", "ktlog.operator.replica", "--dir", str(settings.directory)],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert ended.returncode == 2 and "NoReplicaPolicy" in ended.stderr
