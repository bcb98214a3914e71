"""A log is backed up while it runs, loses its disk, and comes back with what a mirror has of it."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog.config import Settings, load_settings, write_settings
from ktlog.demo.front import write_routes
from ktlog.demo.processes import listen_on_loopback
from ktlog.durable import write_atomic
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.sources import load_sources, load_status
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import LogKey, format_policy, parse_policy
from tests.running_log import EVIL, ORIGIN, RunningLog, actor, running_log
from tests.tls_server import answer

pytestmark = pytest.mark.slow

MIRROR = EVIL  # the test's own TLS server passes on what is asked of it
GONE = "a01"


class Passing(dict):
    """What the mirror answers, over the TLS server of the test."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def get(self, target: str, default=None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", target, headers={"Host": MIRROR})
            found = connection.getresponse()
            return answer(found.read(), found.status, content_type=found.headers["Content-Type"])
        finally:
            connection.close()


def start_mirror(log: RunningLog):
    settings = create_log(log.directory / "mirror", MIRROR, "spec", None)
    settings = Settings(
        settings.directory, MIRROR, "spec", workers=1, replicas=ORIGIN, replica_interval_seconds=1,
        rate_limit_exempt="127.0.0.0/8",
    )
    write_settings(settings)
    witnesses = parse_policy(log.settings.publish_policy.read_bytes())
    write_atomic(settings.publish_policy, format_policy(witnesses))
    settings.replica_directory.mkdir()
    vkey = parse_vkey(load_public_keys(log.settings).vkeys[1])
    write_atomic(
        settings.replica_directory / f"{ORIGIN}.policy", format_policy(replace(witnesses, logs=(LogKey(vkey),)))
    )
    listener = listen_on_loopback()
    log.evil_documents = Passing(listener.getsockname()[1])
    log.processes.start("mirror", "ktlog", ["serve", "--dir", str(settings.directory)], listener)
    (source,) = load_sources(settings)
    return source


def size_of(path: Path) -> int:
    return parse_signed_checkpoint(path.read_bytes())[1].size if path.exists() else 0


def ktlog(log: RunningLog, *arguments: str) -> dict:
    return log.processes.run("ktlog", *arguments, "--json")


def test_a_lost_disk(tmp_path):
    with running_log(tmp_path, notice_seconds=1) as log:
        old = log.settings.directory
        keys, target, new = tmp_path / "keys-elsewhere", tmp_path / "backups", tmp_path / "new"
        shutil.copytree(old / "keys", keys)
        source = start_mirror(log)
        assert log.enrol(GONE).status == log.enrol("a02").status == 202
        log.wait_published(2)
        backing_up = subprocess.Popen(
            [sys.executable, "-m", "ktlog", "backup", "--dir", str(old), str(target), "--json"], stdout=subprocess.PIPE,
        )
        assert log.enrol("a03").status == 202
        told = json.loads(backing_up.communicate(timeout=120)[0])
        assert backing_up.returncode == 0
        assert told["size"] in (2, 3)
        assert ktlog(log, "fsck", "--dir", str(old))["findings"] == []

        # After the backup: more entries, and an erasure.
        assert log.enrol("a04").status == 202
        log.wait(
            "the end of the notice period",
            lambda: ktlog(log, "shred", "--dir", str(old), actor(GONE), "--yes")["exit_code"] == 0,
        )
        map_size = size_of(log.settings.map_tiles / "checkpoint")

        def mirrored() -> bool:
            if not source.database.exists() or size_of(source.map_tiles / "checkpoint") < map_size:
                return False
            with SqliteStore.open(source.database, read_only=True) as store:
                return store.erasure_count() == 1 and load_status(source).tree_size == 4

        log.wait("the mirror to have all of it", mirrored)
        log.processes.stop("log")
        shutil.rmtree(old)

        restoring = ["restore", str(target), "--dir", str(new), "--keys", str(keys)]
        refused = ktlog(log, *restoring)
        assert (refused["exit_code"], refused["error"]["name"]) == (8, "BackupBehind")
        assert not (new / "ktlog.toml").exists()
        done = ktlog(log, *restoring, "--from-mirror", f"https://{MIRROR}/api/replica/{source.id}")
        assert done["exit_code"] == 0, done
        assert (done["size"], done["recovered-entries"]) == (4, 4 - told["size"])

        # It is the log again: it takes messages, and nobody who was erased came back.
        listener = listen_on_loopback()
        routes = json.loads((tmp_path / "front" / "routes.json").read_bytes())
        write_routes(tmp_path / "front", routes | {ORIGIN: f"127.0.0.1:{listener.getsockname()[1]}"})
        log.processes.start("log", "ktlog", ["serve", "--dir", str(new)], listener)
        log.settings = load_settings(new)
        log.wait("the restored log", log.is_ready)
        assert log.enrol("a05").status == 202
        log.wait_published(5)
        assert actor(GONE).encode() not in b"".join(path.read_bytes() for path in new.glob("log.db*"))
        log.wait("the map", lambda: size_of(new / "tiles" / "map" / "checkpoint") > done["map-size"])
        audited = log.processes.run(
            "auditor", "audit", f"https://{ORIGIN}", "--dir", str(tmp_path / "auditor"), "--vkey",
            load_public_keys(log.settings).vkeys[1], "--json",
        )
        assert audited["exit_code"] == 0, audited
        for arguments in (["--dir", str(new)], [f"https://{ORIGIN}"]):
            checked = ktlog(log, "fsck", *arguments)
            assert (checked["exit_code"], checked["findings"]) == (0, [])
