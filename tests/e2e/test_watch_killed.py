"""A watch that SIGKILL ends at one moment after the other, over a real log: no event is missing, none waits."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ktlog.client import SigningKey, add_key, build_envelope, seal
from ktlog.operator.create import load_public_keys
from ktlog.operator.stores import open_log
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import LogKey, format_policy
from tests.running_log import ORIGIN, RunningLog, actor, running_log

pytestmark = pytest.mark.slow
SECRET = b"whsec_" + base64.b64encode(bytes(range(32))) + b"\n"
WHO, OTHER = "a01", "a02"
SECONDS = 90.0


class Hook(ThreadingHTTPServer):
    """A receiver: what it took, and whether it takes. ``meet`` is called with each alarm before it answers."""

    def __init__(self) -> None:
        self.took: list[dict] = []
        self.meet: Callable[[], int] = lambda: 200
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.meet()
        if status == 200:
            self.server.took.append(document)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # who asked was killed

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunningLog]:
    with running_log(tmp_path / "running") as running:
        yield running


class Watching:
    """The watch's directory, and what is done in it."""

    def __init__(self, log: RunningLog, hook: Hook, directory: Path) -> None:
        self.log = log
        self.directory = directory
        public = load_public_keys(log.settings)
        keys = tuple(LogKey(parse_vkey(text), f"https://{ORIGIN}") for text in public.vkeys)
        directory.mkdir()
        (directory / "audit.policy").write_bytes(format_policy(replace(log.policy, logs=keys)))
        (directory / "hook.secret").write_bytes(SECRET)
        (directory / "hook.secret").chmod(0o600)
        (directory / "watch.toml").write_text(
            f'every = 5\n[[log]]\nlog = "{ORIGIN}"\npolicy = "audit.policy"\n[sinks.hook]\ntype = "webhook"\n'
            f'url = "http://127.0.0.1:{hook.server_port}/hook"\nallow_loopback = true\nsecret_file = "hook.secret"\n'
        )
        self.environment = {**os.environ, "KTLOG_DIAL": str(log.directory / "dial.json")}

    def run(self, *words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "auditor", *words, "--dir", str(self.directory)], env=self.environment,
            capture_output=True, text=True, timeout=SECONDS, check=True,
        ).stdout

    @contextmanager
    def watch(self, **environment: str) -> Iterator[subprocess.Popen]:
        process = subprocess.Popen(
            [sys.executable, "-m", "auditor", "watch", "--dir", str(self.directory), "--json", "--no-live"],
            env={**self.environment, **environment}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def say(self) -> None:
        """One key more of the actor."""
        log = self.log
        built = add_key(
            actor(WHO), SigningKey.generate().public_key, log.keys[WHO], recent_root=log.root(), now=int(time.time())
        )
        content = build_envelope(actor(WHO), seal(built, log.hpke()))
        assert log.post(json.dumps(log.activity(content, WHO)).encode(), WHO).status == 202

    def pauses_are_over(self) -> None:
        with closing(sqlite3.connect(self.directory / "watch.db")) as database, database:
            database.execute("UPDATE sinks SET next_try = 0")
            database.execute("UPDATE deliveries SET next_try = 0")


def entries(log: RunningLog) -> list[bytes]:
    with closing(open_log(log.settings, read_only=True)) as store:
        return [bytes(entry) for entry in store.entries(0, store.state().size)]


def test_a_watch_that_is_killed_again_and_again_tells_everything(
    log: RunningLog, hook: Hook, tmp_path: Path
) -> None:
    assert (log.enrol(WHO).status, log.enrol(OTHER).status) == (202, 202)
    log.wait_published(2)
    watching = Watching(log, hook, tmp_path / "watch")
    watching.run("subscribe", ORIGIN, "--actor", actor(WHO), "--to", "hook")
    met = threading.Event()

    def meets(status: int, then: Callable[[], object]) -> Callable[[], int]:
        def meet() -> int:
            then()
            met.set()
            return status
        return meet

    # Where the code says: an alarm is kept and its position is not; an alarm is sent and not noted.
    for point in ("outbox.put", "outbox.sent"):
        with watching.watch(KTLOG_KILL_AT=point) as process:
            watching.say()
            assert process.wait(SECONDS) == -signal.SIGKILL, point
    assert len(hook.took) >= 1
    # While the receiver has the alarm and has not answered; and after it refused.
    for status, at_once in ((200, True), (500, False)):
        watching.pauses_are_over()
        with watching.watch() as process:
            met.clear()
            hook.meet = meets(status, process.kill if at_once else lambda: None)
            watching.say()
            assert met.wait(SECONDS)
            process.kill()
            assert process.wait(SECONDS) == -signal.SIGKILL
    # After a reading is over and before its alarms are sent; the receiver still refuses.
    with watching.watch() as process:
        watching.say()
        assert next(line for line in process.stdout if json.loads(line)["event"] == "reading")
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
    hook.meet = lambda: 200
    watching.pauses_are_over()
    logged = entries(log)
    log.wait_published(len(logged))
    wanted = {number: entry for number, entry in enumerate(logged) if number != 1}
    assert len(wanted) == 6
    with watching.watch() as process:
        log.wait("every alarm", lambda: {one.get("leaf_index") for one in hook.took} >= set(wanted))
        assert next(line for line in process.stdout if json.loads(line).get("entries") == len(logged))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    assert {one["kind"] for one in hook.took} == {"event"}
    assert {one["leaf_index"]: base64.b64decode(one["entry"]) for one in hook.took} == wanted
    ids = {(one["id"], one["leaf_index"]) for one in hook.took}
    assert len(ids) == len(wanted) < len(hook.took)  # what was sent and not noted came again, with the same id
    with closing(sqlite3.connect(watching.directory / "watch.db")) as database:
        assert database.execute("SELECT count(*) FROM deliveries WHERE delivered_at IS NULL").fetchone() == (0,)
    page = json.loads(watching.run("report", ORIGIN, "--json"))
    assert (page["tree_size"], page["verdict"]["state"], page["findings"]) == (len(logged), "clean", [])
    assert sum(page["actions"].values()) + page["not_counted"] == len(logged)
