"""kill -9 of the sequencer's process at every named hook, in commit order; then it is started again.

The process is the real one, ``python -m ktlog.operator.service``, over a real SQLite file. The test plays
the web workers on its Unix socket, and a witness with a real record over loopback HTTPS. After each
death nothing that was acknowledged or published may be gone, and nothing may ever be signed twice
differently: not an entry, not a head.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ktlog import durable
from ktlog.config import Settings, write_settings
from ktlog.demo.pki import create_pki
from ktlog.errors import StoreError
from ktlog.keymap.output import parse_config, parse_leaf
from ktlog.keymap.prefix import subtree_hash
from ktlog.keymap.value import derive_opening, encode_value, value_of
from ktlog.operator import head, journal, mapping, migrate, publisher, rotate, sequencer, shred, signer
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.head import SignedHead, load_signed_head
from ktlog.operator.link import Receipt, SequencerLink, Submission
from ktlog.operator.service import TRY_AGAIN
from ktlog.operator.stores import open_log, open_map
from ktlog.pkd.entry import leaf_key_hash, verify_entry
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import pkd_root
from ktlog.pkd.messages import AddKey
from ktlog.store import connections
from ktlog.store.contracts import LogStore
from ktlog.store.documents import FileDocument
from ktlog.store.mapcontract import MapStore
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import open_note, parse_vkey
from ktlog.tlog.policy import Group, Policy, format_policy
from ktlog.tlog.policy import Witness as PolicyWitness
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.operator_world import ORIGIN, submission
from tests.pkd_samples import public, quick_argon2  # noqa: F401
from tests.tls_server import Request, TlsServer, answer
from witness.config import WitnessDir
from witness.keys import write_keys
from witness.store import WitnessStore
from witness.witness import Witness

HOOKS = (*sequencer.HOOKS, *publisher.HOOKS, *mapping.HOOKS)
MAP = f"{ORIGIN}/map"
WITNESS = "w1.witness.example"
SECONDS = 60.0
OPERATOR = Path(sequencer.__file__).parent


@dataclass
class Sent:
    """What the web workers remember: what was answered, and what may or may not have been accepted."""

    answered: list[tuple[Submission, Receipt]] = field(default_factory=list)
    unanswered: list[Submission] = field(default_factory=list)


@dataclass(frozen=True)
class Disk:
    """What was on disk when the process was dead."""

    entries: tuple[bytes, ...]
    files: dict[str, bytes]
    checkpoint: Checkpoint | None
    head: SignedHead | None


class Site:
    """A log's directory, the witness that it publishes to, and whatever the witness ever saw."""

    def __init__(self, directory: Path, **place: str) -> None:
        self.directory = directory
        made = create_log(directory / "log", ORIGIN, "spec", None, **place)
        self.settings = Settings(made.directory, ORIGIN, "spec", checkpoint_interval_ms=10, map_interval_ms=1, **place)
        write_settings(self.settings)
        public_keys = load_public_keys(self.settings)
        self.vkeys = tuple(map(parse_vkey, public_keys.vkeys))
        self.map_vkeys = tuple(map(parse_vkey, public_keys.map_vkeys))
        self.seen: list[bytes] = []
        self.processes: list[subprocess.Popen] = []
        self._numbers = itertools.count()
        self._open_witness()

    def _open_witness(self) -> None:
        directory = WitnessDir(self.directory / "witness")
        directory.make()
        signers = write_keys(directory, os.urandom(32), WITNESS)
        vkeys = tuple(signer.vkey for signer in signers)
        self._witness_store = WitnessStore.create(directory.database, WITNESS, vkeys, int(time.time()))
        self._witness_store.add_log(ORIGIN, self.vkeys, int(time.time()))
        self._witness_store.add_log(MAP, self.map_vkeys, int(time.time()))
        self._witness = Witness(self._witness_store, signers)
        names = {f"w-{vkey.algorithm}": vkey for vkey in vkeys}
        lines = {name: PolicyWitness(name, vkey, f"https://{WITNESS}") for name, vkey in names.items()}
        policy = Policy((), lines, {"w": Group("w", 2, tuple(lines))}, "w")
        self.settings.publish_policy.write_bytes(format_policy(policy))
        create_pki(self.directory / "tls", [WITNESS])
        self._server = TlsServer(self.directory / "tls", self._judge)
        self._server.start()
        table = {"ca_file": self._server.ca_file, "hosts": {WITNESS: f"127.0.0.1:{self._server.port}"}}
        (self.directory / "dial.json").write_text(json.dumps(table))

    def _judge(self, request: Request) -> list:
        if request.method == "GET":
            return answer(b"", 404, "text/plain")  # Asked before a log's first checkpoint, when there is none.
        # Kept before it is judged: whatever left the process was signed, whatever became of it.
        note = request.body.partition(b"\n\n")[2]
        if note.endswith(b"\n"):  # else whoever sent it died, or was stopped, before all of it had gone
            self.seen.append(note)
        found = self._witness.add_checkpoint(request.body)
        return answer(found.body, found.status, found.content_type)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self._server.stop()
        self._witness_store.close()

    # The process

    def start(self, **environment: str) -> subprocess.Popen:
        with open(self.directory / "output", "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ktlog.operator.service", "--dir", str(self.settings.directory)],
                env={**os.environ, "KTLOG_DIAL": str(self.directory / "dial.json"), **environment},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )
        self.processes.append(process)
        return process

    def output(self) -> str:
        return (self.directory / "output").read_text()[-3000:]

    def wait(self, what: str, process: subprocess.Popen, ready) -> bool:
        """Until ready() is true, or the process is dead (False)."""
        deadline = time.monotonic() + SECONDS
        while not ready():
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s\n{self.output()}"
            time.sleep(0.01)
        return True

    def listens(self) -> bool:
        """Whether the socket can be reached. No frame is sent: an answer would already be a hook."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.settings.socket_record.read_text().strip())
        except OSError:
            return False
        return True

    # The web workers

    def message(self) -> Submission:
        """The enrolment of somebody new, bound to the newest root."""
        with self.store() as store:
            state = store.state()
        name = f"https://example.com/users/u{next(self._numbers)}"
        return submission(AddKey(name, public("a"), int(time.time())), "a", pkd_root(state.size, state.root))

    def send_until_dead(self, process: subprocess.Popen, sent: Sent, most: int = 8) -> None:
        link = SequencerLink(self.settings.socket_record, timeout_seconds=SECONDS)
        if not self.wait("the socket", process, self.listens):
            return
        for _ in range(most):
            message = self.message()
            try:
                sent.answered.append((message, link.append(message)))
            except StoreError as error:
                assert error.name == "SequencerUnreachable"
                sent.unanswered.append(message)
                return
            size = sent.answered[-1][1].leaf_index + 1
            if not self.wait("publication", process, lambda s=size: self.published_size() >= s):
                return
            if not self.wait("the map", process, lambda s=size: self.mapped_size() >= s):
                return

    # What there is

    def store(self) -> LogStore:
        return open_log(self.settings, read_only=True)

    def checkpoint(self) -> Checkpoint | None:
        path = self.settings.tiles / "checkpoint"
        if not path.exists():
            return None
        note, checkpoint = parse_signed_checkpoint(path.read_bytes())
        assert len(open_note(note, self.vkeys)) == 2
        return checkpoint

    def published_size(self) -> int:
        checkpoint = self.checkpoint()
        return -1 if checkpoint is None else checkpoint.size

    def map_store(self) -> MapStore:
        return open_map(self.settings, read_only=True)

    def mapped_size(self) -> int:
        """How many entries the map covers whose checkpoint is shown."""
        path = self.settings.map_tiles / "checkpoint"
        if not path.exists():
            return -1
        size = parse_signed_checkpoint(path.read_bytes())[1].size
        store = self.map_store()
        try:
            return parse_leaf(store.output_leaves(size - 1, size)[0]).input_size
        finally:
            store.close()

    def look(self) -> Disk:
        with self.store() as store:
            entries = store.entries(0, store.state().size)
        root = self.settings.tiles
        files = {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*") if path.is_file() and path.name[0] != "." and path.name != "checkpoint"
        }
        return Disk(entries, files, self.checkpoint(), load_signed_head(FileDocument(self.settings.signed_head)))


@pytest.fixture
def site() -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="kt"))  # a socket's path must stay short
    made = Site(directory)
    yield made
    made.close()
    shutil.rmtree(directory)


def check_store(site: Site) -> None:
    """The store's self-check, and then everything from the first entry, by other code."""
    with sqlite3.connect(f"{site.settings.database.as_uri()}?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
    leaf_keys = {leaf_key_hash(key): key for key in load_public_keys(site.settings).leaf_keys}
    with site.store() as store:
        state = store.state()
        records = store.records(0, state.size)
        hashes = [hash_leaf(record.entry) for record in records]
        assert list(store.leaf_hashes(0, state.size)) == hashes
        for record in records:
            size = record.leaf_index + 1
            assert store.root_after(size) == record.root == root_hash(size, leaf_reader(hashes[:size]))
            verify_entry(record.entry, record.preimage, leaf_keys)
            assert store.seen(record.unique_hash) == record.leaf_index
            assert store.actor(record.plain["actor"]).keys[0].leaf_index == record.leaf_index
        assert state.root == root_hash(state.size, leaf_reader(hashes))
        assert state.frontier.root() == state.root


def check_map(site: Site) -> None:
    """One leaf for each index, whatever was signed on the way; and the map is the one that the log's store makes."""
    store = site.map_store()
    state = store.state()
    leaves = store.output_leaves(0, state.output.size)
    hashes = [hash_leaf(leaf) for leaf in leaves]
    assert state.output.root() == root_hash(len(leaves), leaf_reader(hashes))
    parse_config(leaves[0])
    parsed = [parse_leaf(leaf) for leaf in leaves[1:]]
    for one, two in itertools.pairwise(parsed):
        assert (one.time, one.input_size, one.erasures) <= (two.time, two.input_size, two.erasures)
        assert one.input_size < two.input_size or one.map_root == two.map_root
    with site.store() as log:
        for leaf in parsed:
            assert log.root_after(leaf.input_size) == leaf.input_root
        if parsed and state.input_size == log.state().size:
            names = log.actor_ids("", 1000)
            found = list(store.leaves())
            assert state.root == parsed[-1].map_root == subtree_hash(found) and len(found) == len(names)
            for name in names:
                index = map_index(ORIGIN, name)
                live = store.live(index)
                opening = derive_opening(log.salt(name), log.actor(name).version)
                tree = leaf_reader([hash_leaf(leaf) for leaf in store.history(index, 1000)])
                value = encode_value(value_of(log.actor(name), len(log.history(name)), root_hash(1, tree)))
                assert (live.value, live.opening) == (value, opening)
    seen: dict[int, bytes] = {}
    for note_bytes in site.seen:
        note, checkpoint = parse_signed_checkpoint(note_bytes)
        if checkpoint.origin != MAP:
            continue
        assert len(open_note(note, site.map_vkeys)) == 2
        assert seen.setdefault(checkpoint.size, checkpoint.root) == checkpoint.root
        if checkpoint.size <= len(leaves):
            assert checkpoint.root == root_hash(checkpoint.size, leaf_reader(hashes[: checkpoint.size]))
    assert max(seen, default=0) <= len(leaves) + 1
    store.close()


def check_signed(site: Site) -> None:
    """Every head that ever left the process: one root for each size, in order, and all of this one tree."""
    heads = []
    for note_bytes in site.seen:
        note, checkpoint = parse_signed_checkpoint(note_bytes)
        if checkpoint.origin == MAP:
            continue
        times = {verified.timestamp for verified in open_note(note, site.vkeys)} - {0}
        assert len(times) == 1
        heads.append((checkpoint.size, times.pop()))
        with site.store() as store:
            assert checkpoint == Checkpoint(ORIGIN, checkpoint.size, store.root_after(checkpoint.size))
    # A head that was published is offered again at each start: the same signature, and no new one.
    first_seen = list(dict.fromkeys(heads))
    assert first_seen == sorted(first_seen)
    assert site._witness_store.evidence() == ()


def check_nothing_lost(site: Site, disk: Disk, sent: Sent) -> None:
    now = site.look()
    assert now.entries[: len(disk.entries)] == disk.entries
    assert disk.files.items() <= now.files.items()
    with site.store() as store:
        for old, new in ((disk.checkpoint, now.checkpoint), (disk.head, now.head)):
            if old is not None:
                assert new.size >= old.size
                assert store.root_after(old.size) == old.root
        for _, receipt in sent.answered:
            assert now.entries[receipt.leaf_index] == receipt.entry
            assert receipt.root == pkd_root(receipt.leaf_index + 1, store.root_after(receipt.leaf_index + 1))


def recover(site: Site, sent: Sent) -> None:
    """Start again, without the kill; send again whatever was sent, and one more; stop in good order."""
    disk = site.look()
    check_nothing_lost(site, disk, sent)
    check_signed(site)
    check_store(site)
    check_map(site)
    process = site.start()
    assert site.wait("the socket", process, site.listens), site.output()
    link = SequencerLink(site.settings.socket_record, timeout_seconds=SECONDS)
    for message in sent.unanswered:
        receipts = [link.append(message), link.append(message)]
        assert receipts[1] == replace(receipts[0], duplicate=True)
        sent.answered.append((message, receipts[0]))
    for message, receipt in sent.answered:
        assert link.append(message) == replace(receipt, duplicate=True)
    message = site.message()
    sent.answered.append((message, link.append(message)))
    assert not sent.answered[-1][1].duplicate
    size = len(sent.answered)
    assert site.wait("publication", process, lambda: site.published_size() >= size), site.output()
    assert site.wait("the map", process, lambda: site.mapped_size() >= size), site.output()
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0, site.output()
    check_nothing_lost(site, disk, sent)
    check_signed(site)
    check_store(site)
    check_map(site)
    # Each message has exactly one leaf, whatever became of its first answer.
    with site.store() as store:
        logged = [record.preimage for record in store.records(0, store.state().size)]
        assert store.state().epoch in (len(site.processes) - 1, len(site.processes))  # one may die claiming it
    assert sorted(logged) == sorted(message.preimage for message, _ in sent.answered)


def kill_and_recover(site: Site, hook: str, occurrence: int) -> Sent:
    process = site.start(KTLOG_KILL_AT=f"{hook}:{occurrence}")
    sent = Sent()
    site.send_until_dead(process, sent)
    assert process.wait(SECONDS) == -signal.SIGKILL, site.output()
    recover(site, sent)
    return sent


# --- the hooks


def reached(path: Path) -> list[str]:
    """The names that reach() is called with in a module."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = getattr(node, "func", None)
        if isinstance(node, ast.Call) and "reach" in (getattr(called, "id", None), getattr(called, "attr", None)):
            assert len(node.args) == 1
            assert isinstance(node.args[0], ast.Constant), f"{path.name}: a hook whose name cannot be listed"
            names.append(node.args[0].value)
    return names


def test_the_hooks_are_all_that_there_are():
    """A hook that nobody lists is one that nobody kills at; one that is listed and gone tests nothing."""
    found = {path.name: reached(path) for path in OPERATOR.rglob("*.py") if reached(path)}
    # Those of the last three are killed in tests/fault/test_kill_signer.py and tests/unit/test_operator_rotate.py.
    assert set(found) == {
        "sequencer.py", "door.py", "publisher.py", "mapping.py", "shred.py", "journal.py", "head.py", "signer.py",
        "rotate.py", "pgdoor.py", "migrate.py",
    }
    assert found["migrate.py"] == list(migrate.HOOKS)  # killed at in tests/contract/test_migrate_store.py
    assert found["pgdoor.py"] == ["sequencer.answered"]  # stopped at in tests/fault/test_paused_sequencer.py
    assert (found["head.py"], sorted(found["signer.py"])) == (list(head.HOOKS), sorted(signer.HOOKS))
    assert sorted(found["rotate.py"]) == sorted(rotate.HOOKS)
    assert len(set(HOOKS)) == len(HOOKS)
    assert sorted(found["sequencer.py"] + found["door.py"]) == sorted(sequencer.HOOKS)
    assert found["publisher.py"] == list(publisher.HOOKS)  # one function after the other, in commit order
    assert sorted(found["mapping.py"]) == sorted(mapping.HOOKS)
    # These two are killed in tests/unit/test_operator_shred.py.
    assert (found["shred.py"], found["journal.py"]) == (list(shred.HOOKS), list(journal.HOOKS))
    assert all(name.startswith("sequencer.") for name in sequencer.HOOKS)
    assert all(name.startswith("publisher.") for name in publisher.HOOKS)
    assert all(name.startswith("mapping.") for name in mapping.HOOKS)


def test_no_kill_no_loss(site):
    """The same story without a death, so that what the others assert is known to be told."""
    process = site.start()
    sent = Sent()
    site.send_until_dead(process, sent, 3)
    assert [receipt.leaf_index for _, receipt in sent.answered] == [0, 1, 2]
    assert site.published_size() == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert {parse_signed_checkpoint(note)[1].size for note in site.seen} >= {0, 3}
    recover(site, sent)


@pytest.mark.slow
@pytest.mark.parametrize("occurrence", [pytest.param(1, id="first time"), pytest.param(2, id="second time")])
@pytest.mark.parametrize("hook", HOOKS)
def test_killed_at(site, hook, occurrence):
    sent = kill_and_recover(site, hook, occurrence)
    # What was never answered and yet is in the log: its sender gets the receipt when it asks again.
    found_again = sum(receipt.duplicate for _, receipt in sent.answered)
    if hook == "sequencer.after_commit":
        assert found_again == 1
    elif hook in ("sequencer.received", "sequencer.leaf_signed", "sequencer.before_commit"):
        assert found_again == 0
    if hook.startswith("sequencer."):
        assert len(sent.answered) == occurrence + 1  # so many messages it took, and one after the restart


@pytest.mark.parametrize("hook", ["sequencer.leaf_signed", "sequencer.before_commit", "sequencer.after_commit"])
def test_killed_in_a_crowd(site, hook):
    """Twelve workers send at once, so that batches hold more than one message when it dies."""
    process = site.start(KTLOG_KILL_AT=f"{hook}:{6 if hook == 'sequencer.leaf_signed' else 2}")
    sent = Sent()
    site.send_until_dead(process, sent, 1)
    messages = [site.message() for _ in range(12)]
    process.send_signal(signal.SIGSTOP)  # let them all queue up before it looks

    def send(message: Submission) -> None:
        try:
            sent.answered.append((message, SequencerLink(site.settings.socket_record, SECONDS).append(message)))
        except StoreError:
            sent.unanswered.append(message)

    threads = [threading.Thread(target=send, args=(message,)) for message in messages]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    process.send_signal(signal.SIGCONT)
    for thread in threads:
        thread.join(SECONDS)
    assert process.wait(SECONDS) == -signal.SIGKILL, site.output()
    assert sent.unanswered
    assert len(sent.answered) + len(sent.unanswered) == 13
    recover(site, sent)


@pytest.mark.slow
def test_killed_twice_in_a_row(site):
    """The second process dies while it publishes what the first had signed and not published."""
    sent = Sent()
    for hook in ("publisher.signed:2", "publisher.head_offered:1", "publisher.cosigned:1", "sequencer.after_commit:1"):
        process = site.start(KTLOG_KILL_AT=hook)
        site.send_until_dead(process, sent)
        assert process.wait(SECONDS) == -signal.SIGKILL, site.output()
    recover(site, sent)


def test_fenced_by_another_writer_it_ends_without_an_answer(site):
    """Somebody else claims the store: the next commit fails, and the process ends instead of guessing."""
    process = site.start()
    sent = Sent()
    site.send_until_dead(process, sent, 1)
    with SqliteStore.open(site.settings.database, origin=ORIGIN) as other:
        other.claim_epoch()
    message = site.message()
    with pytest.raises(StoreError, match="SequencerUnreachable"):
        SequencerLink(site.settings.socket_record, SECONDS).append(message)
    assert process.wait(SECONDS) == 70
    assert "Fenced" in site.output()
    site.processes.append(process)  # for the epoch that the intruder claimed
    sent.unanswered.append(message)
    recover(site, sent)


LOWER = [(hook, 3) for hook in connections.HOOKS] + [(hook, 12) for hook in durable.HOOKS]


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "occurrence"), [
    pytest.param(hook, occurrence, id=f"{hook} {occurrence}")
    for hook, most in LOWER for occurrence in range(1, most + 1)
])
def test_killed_inside_the_store_and_between_a_file_s_bytes_and_its_name(site, hook, occurrence):
    """The layers below have hooks of their own: the transaction, each file's bytes, each file's name.

    The signer's process writes files too. Which of the two comes to one first is chance, and it must not matter.
    """
    process, sent = site.start(KTLOG_KILL_AT=f"{hook}:{occurrence}"), Sent()
    site.send_until_dead(process, sent)
    if process.wait(SECONDS) != -signal.SIGKILL:
        assert process.returncode in (70, TRY_AGAIN) and "the signer" in site.output(), site.output()
    recover(site, sent)


@pytest.mark.slow
@pytest.mark.parametrize("occurrence", [3, 4])
@pytest.mark.parametrize("hook", HOOKS)
def test_killed_later(site, hook, occurrence):
    kill_and_recover(site, hook, occurrence)
