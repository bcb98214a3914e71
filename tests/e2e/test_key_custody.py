"""A running log: which process reads which key; and new keys for all of it, while clients and a witness know the old."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from ktlog.client import Directory
from ktlog.client.answer import Present
from ktlog.operator.create import load_public_keys
from ktlog.operator.keys import load_checkpoint_signers
from ktlog.operator.rotate import read_changes, rotate, settle
from ktlog.pkd.entry import leaf_key_hash, parse_entry, verify_entry
from ktlog.pkd.keychanges import KINDS, parse_changes, verify_changes
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note, parse_vkey
from ktlog.tlog.policy import LogKey, Policy
from ktlog.wire.fetch import Fetcher
from tests.running_log import DOMAIN, ORIGIN, SECONDS, RunningLog, actor
from witness.cli import main as witness_command

pytestmark = pytest.mark.slow

SIGNING = ("leaf", "checkpoint-", "map-")
OF_THE_WEB = ("hpke", "http-", "fetch-")

WATCH = '''
"""Write down which process opens which key, and go on with the next sitecustomize."""
import importlib.machinery, importlib.util, os, sys

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and "/log/keys/" in os.fsdecode(arguments[0]):
        line = os.fsdecode(arguments[0]).rpartition("/")[2] + " " + " ".join(sys.orig_argv) + "\\n"
        handle = os.open(os.environ["KTLOG_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line.encode())
        os.close(handle)

sys.addaudithook(watch)
here = os.path.dirname(os.path.abspath(__file__))
rest = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
if spec is not None:
    module = importlib.util.module_from_spec(spec)
    module.__name__ = "sitecustomize"
    spec.loader.exec_module(module)
'''


@pytest.fixture
def watched(tmp_path, monkeypatch) -> Path:
    """Every process started from now on says which keys it opens."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'watch'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("KTLOG_WATCH", str(tmp_path / "opened"))
    return tmp_path / "opened"


class Stoppable(RunningLog):
    """Whose log can be stopped alone, and started again at the same address."""

    def stop_log(self) -> None:
        (self._running, process), = (pair for pair in self.processes._started if pair[0].name == "log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0, self.output()
        self.processes._started.remove((self._running, process))

    def start_log(self) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._running.port))
        listener.listen(128)
        self.processes.start("log", "ktlog", ["serve", "--dir", str(self.settings.directory)], listener)
        self.wait("the log to be ready again", self.is_ready)

    def follow(self, vkeys: tuple[str, ...], map_vkeys: tuple[str, ...]) -> None:
        """What the witness's operator does when told of new vkeys."""
        for some in (vkeys, map_vkeys):
            directory = ["--dir", str(self.directory / "witness")]
            witness_command.main(["add-log", *directory, *some], standalone_mode=False)


@pytest.fixture
def log(watched, tmp_path_factory):
    running = Stoppable(tmp_path_factory.mktemp("custody"))
    try:
        running.wait("the log to be ready", running.is_ready)
        yield running
        assert "Traceback" not in running.output()
    finally:
        running.stop()


def lookup(log: RunningLog, policy: Policy, user: str, state: Path) -> Present:
    with Fetcher.from_environment({"KTLOG_DIAL": str(log.directory / "dial.json")}) as fetcher:
        directory = Directory(policy, state=state, domains={DOMAIN: ORIGIN}, fetcher=fetcher, now=time.time)
        return directory.lookup(actor(user))


def test_who_reads_what_and_what_a_rotation_changes(log, watched, tmp_path):
    assert log.enrol("a01").status == 202
    log.wait_published(1)
    vkey = parse_vkey(load_public_keys(log.settings).vkeys[1])
    policy = Policy((LogKey(vkey),), log.policy.witnesses, log.policy.groups, log.policy.quorum)
    assert lookup(log, policy, "a01", tmp_path / "state").tree_size == 1

    opened = [line.partition(" ") for line in watched.read_text().splitlines()]
    signing = {command for name, _, command in opened if name.startswith(SIGNING)}
    assert signing and all("ktlog.operator.signer" in command for command in signing)
    of_signer = {name for name, _, command in opened if "ktlog.operator.signer" in command}
    assert of_signer and all(name.startswith(SIGNING) for name in of_signer)
    assert any(name == "hpke" for name, _, _ in opened), "the web workers were not watched"
    assert all(name.startswith((*SIGNING, *OF_THE_WEB)) for name, _, _ in opened)

    # Everything that it has is replaced. The old checkpoint keys sign on; a message to the old HPKE key is on its way.
    log.stop_log()
    for kind in KINDS:
        rotate(log.settings, kind, "a drill", int(time.time()))
    old_hpke = log.hpke()
    log.start_log()
    assert log.get("/api/server-public-key").json()["hpke-public-key"] not in ("", old_hpke)
    assert log.enrol("a02").status == 202  # sealed to the key that was fetched before
    log.wait_published(2)
    public = load_public_keys(log.settings)
    body = log.get("/keys").body
    assert body == log.get("/map/keys").body == log.settings.key_changes.read_bytes()
    changes = parse_changes(body)
    verify_changes(changes, ORIGIN)
    assert [change.kind for change in changes] == list(KINDS) and changes[0].tree_size == 1
    with SqliteStore.open(log.settings.database, read_only=True) as store:
        records = store.records(0, 2)
    keys = {leaf_key_hash(key): key for key in public.leaf_keys}
    for record in records:
        verify_entry(record.entry, record.preimage, keys)
    assert [parse_entry(record.entry)[1].key_hash for record in records] == list(keys)
    assert [bytes(key, "ascii") in log.get("/leaf-keys").body for key in
            (change.keys[0].old for change in changes if change.kind == "leaf")] == [True]
    info = log.get("/api/info").json()
    assert (tuple(info["vkeys"]), tuple(info["map-vkeys"])) == (public.vkeys, public.map_vkeys)
    assert lookup(log, policy, "a02", tmp_path / "state").tree_size == 2  # under the old vkey
    note, _ = parse_signed_checkpoint((log.settings.tiles / "checkpoint").read_bytes())
    all_vkeys = [parse_vkey(text) for text in (*public.vkeys, *public.retired_vkeys)]
    assert len(open_note(note, all_vkeys)) == 4

    # The witness is told, and the time of the old ones is over: only the new ones sign, and the client follows.
    log.follow(public.vkeys, public.map_vkeys)
    log.stop_log()
    assert len(settle(log.settings, changes[2].until + 1)) == 5
    log.start_log()
    assert log.enrol("a03").status == 400  # sealed to a key that is destroyed by now
    log._hpke = None
    assert log.enrol("a03").status == 202
    log.wait_published(3)
    note, _ = parse_signed_checkpoint((log.settings.tiles / "checkpoint").read_bytes())
    assert {one.vkey for one in open_note(note, all_vkeys)} == {
        signer.vkey for signer in load_checkpoint_signers(log.settings.keys, ORIGIN)
    }
    assert lookup(log, policy, "a03", tmp_path / "state").tree_size == 3
    assert (tmp_path / "state" / "keys" / f"{ORIGIN}.jsonl").read_bytes() == body
    assert log.get("/keys").headers["cache-control"] == "no-cache"
    assert read_changes(log.settings) == changes
