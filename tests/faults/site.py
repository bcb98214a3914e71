"""A prepared log, and a copy of it that something happens to: what it was sent, what it answered, what it signed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import select
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktlog.config import Settings, load_settings, write_settings
from ktlog.errors import EncodingError, MessageRejected
from ktlog.keymap.output import parse_leaf
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.link import Receipt, Submission, decode_receipt, encode_submission
from ktlog.operator.rotate import rotate
from ktlog.pkd import attributes
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import pkd_root
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    Message,
    MoveIdentity,
    RevokeKey,
    RevokeKeyThirdParty,
)
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import Vkey, parse_vkey
from tests.faults import child as children
from tests.faults.child import Child
from tests.faults.plan import Fault
from tests.faults.witness import FaultWitness, Memory, policy_text, receive, send
from tests.operator_world import ORIGIN, submission
from tests.pkd_samples import private, public

MAP = f"{ORIGIN}/map"
SECONDS = 60.0
HOME = "https://example.com/users/"


def make_commitments_quick() -> None:
    """In this process, which is the harness's own, and in what it forks: commitments are not the matter."""
    attributes.argon2id = lambda password, salt: hashlib.sha256(salt + password).digest()


class Stuck(Exception):
    """The log neither answers nor ends: a violation."""


@dataclass(frozen=True)
class Ack:
    """One line of the journal: an answer that was given."""

    leaf_index: int
    entry: bytes
    root: str
    preimage: bytes


@dataclass
class Base:
    """A log that was stopped in good order.

    bank: messages that it will take, bound to its newest root. forbidden: those that it must not take: keys that were
    revoked come again.
    """

    directory: Path
    vkeys: dict[str, tuple[Vkey, ...]]
    memory: Memory
    acks: list[Ack]
    bank: list[Submission]
    forbidden: list[Submission] = field(default_factory=list)
    state: bytes = b""
    """The judge's own derivation of it, pickled; see ``judge``."""

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def size(self) -> int:
        return len(self.acks)


def people(count: int, start: int = 0) -> list[Message]:
    now = int(time.time())
    return [AddKey(f"{HOME}u{number}", public("a"), now) for number in range(start, start + count)]


def life(start: int) -> list[Message]:
    """What else may happen to people, and leaves rows in every table of the directory."""
    now = int(time.time())
    one, two, three, four = (f"{HOME}u{number}" for number in range(start, start + 4))
    return [
        AddKey(one, public("c"), now), RevokeKey(one, public("c"), now), AddAuxData(one, "test-v1", "datum", None, now),
        AddKey(two, public("t"), now), RevokeKeyThirdParty(parse_token(make_token(private("t"), public("t")))),
        Fireproof(two, now), BurnDown(three, one, now), MoveIdentity(four, f"{HOME}moved", now),
    ]


def make_forbidden(root: str, start: int) -> list[Submission]:
    now = int(time.time())
    return [
        submission(AddKey(f"{HOME}u{start + number}", public(name), now), "a", root) for number, name in ((0, "c"), (1, "t"))
    ]


def make_bank(root: str, size: int) -> list[Submission]:
    """New people, and the life of those who are there; in any order, with any of them missing."""
    now = int(time.time())
    messages: list[Message] = []
    for number in range(16):
        messages.append(AddKey(f"{HOME}new{number}", public("a"), now))
        old = f"{HOME}u{number // 4}"
        match number % 4:
            case 0:
                messages.append(AddKey(old, public("b"), now))
            case 1:
                messages.append(AddAuxData(old, "test-v1", f"datum {number}", None, now))
            case 2:
                messages.append(Fireproof(old, now))
            case 3:
                messages.append(RevokeKey(old, public("b"), now))
    return [submission(message, "a", root) for message in messages]


class Run:
    """A copy of *base* in *directory*, which somebody is about to hurt."""

    _numbers = itertools.count()

    def __init__(self, base: Base, directory: Path) -> None:
        self.base = base
        self.directory = directory
        self.log = directory / "log"
        directory.mkdir(parents=True)
        shutil.copytree(base.log, self.log, ignore=shutil.ignore_patterns("*.sock", "*.addr"))
        self.settings: Settings = load_settings(self.log, environment={})
        self.witness = FaultWitness(base.vkeys, base.memory.copy())
        self.acks = list(base.acks)
        self.unanswered: list[Submission] = []
        self.bank = iter(base.bank)
        self.children: list[Child] = []
        self.guests: list[Child] = []  # of another directory, which ask the same witness
        self.faults: list[str] = []
        self.counts: dict[str, int] = {}
        self.cut = False
        self.posted: list[tuple[Submission, socket.socket]] = []
        self.exits: list[int] = []

    # The process

    @property
    def output(self) -> Path:
        return self.directory / "output"

    def words(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def start(self, faults: Sequence[Fault] = (), **options: Any) -> Child:
        child = children.start(self.log, self.output, faults, **options)
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def read_report(self, child: Child) -> None:
        data = b""
        while True:
            try:
                more = os.read(child.report, 65536)
            except BlockingIOError:
                break
            if not more:
                break
            data += more
        for line in data.splitlines():
            told = json.loads(line)
            if "fault" in told:
                self.faults.append(told["fault"])
            self.counts |= told.get("counts", {})
            self.cut |= told.get("cut", False)

    def pump(self, child: Child, ready: Callable[[], bool], *more: socket.socket, seconds: float = SECONDS) -> bool:
        """Play the witness until ready(), or one of *more* can be read (True), or the process is dead (False).

        Raises:
            Stuck: neither.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if child.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise Stuck(f"neither ready nor dead after {seconds} s")
            served = {one.witness for one in (*self.children, *self.guests) if one.poll() is None}
            readable, _, _ = select.select([*served, child.handle, *more], [], [], 0.005)
            for asking in served.intersection(readable):
                asked = receive(asking)
                if asked is not None:
                    with suppress(OSError):  # it died while it waited
                        send(asking, self.witness.answer(*asked))
            if any(one in readable for one in more):
                return True
        return True

    def wait(self, child: Child, seconds: float = SECONDS) -> int:
        self.pump(child, lambda: False, seconds=seconds)
        self.read_report(child)
        self.exits.append(child.poll() or 0)
        return self.exits[-1]

    def stop(self, child: Child, number: int = signal.SIGTERM) -> int:
        child.signal(number)
        return self.wait(child)

    def listens(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.settings.socket_record.read_text().strip())
        except OSError:
            return False
        return True

    # The web workers

    def connect(self, child: Child) -> socket.socket | None:
        """A connection to the sequencer, once it listens; None when it dies before."""
        found: list[socket.socket] = []

        def ready() -> bool:
            connection = socket.socket(socket.AF_UNIX)
            try:
                # The record of an earlier process may lead nowhere, or to a socket that another path had.
                connection.connect(self.settings.socket_record.read_text().strip())
            except OSError:
                connection.close()
                return False
            found.append(connection)
            return True

        return found[0] if self.pump(child, ready) else None

    def send(self, child: Child, *messages: Submission) -> list[Receipt | MessageRejected | None]:
        """Send all at once, each over its own connection; None for what was not answered."""
        connections: list[socket.socket] = []
        results: list[Receipt | MessageRejected | None] = []
        for message in messages:
            connection = self.connect(child)
            if connection is None:
                break  # nothing was sent, so nothing can have been taken
            connections.append(connection)
            data = encode_submission(message)
            try:
                connection.sendall(len(data).to_bytes(4, "big") + data)
            except OSError:
                pass
        for message, connection in itertools.zip_longest(messages, connections):
            results.append(None if connection is None else self._answer(child, message, connection))
        return results

    def _answer(self, child: Child, message: Submission, connection: socket.socket) -> Receipt | MessageRejected | None:
        with connection:
            self.pump(child, lambda: False, connection)
            try:
                head = connection.recv(4, socket.MSG_WAITALL)
                data = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL) if len(head) == 4 else b""
                result: Receipt | MessageRejected = decode_receipt(parse_json(data))
            except MessageRejected as refusal:
                if refusal.code == "overloaded":
                    self.unanswered.append(message)  # it may have been taken
                return refusal
            except Exception:
                self.unanswered.append(message)
                return None
        self.acks.append(Ack(result.leaf_index, result.entry, result.root, message.preimage))
        return result

    # What there is

    @property
    def size(self) -> int:
        """How many entries there are at least, by what was answered."""
        return 1 + max(ack.leaf_index for ack in self.acks)

    def shown(self, tiles: Path) -> int:
        try:
            return parse_signed_checkpoint((tiles / "checkpoint").read_bytes())[1].size
        except (OSError, EncodingError):
            return -1

    def mapped(self) -> int:
        """How many entries the shown map covers."""
        size = self.shown(self.settings.map_tiles)
        if size < 1:
            return -1
        database = sqlite3.connect(f"{self.settings.map_database.as_uri()}?mode=ro", uri=True)
        try:
            (leaf,) = database.execute("SELECT leaf FROM output_leaves WHERE leaf_index = ?", (size - 1,)).fetchone()
        except (sqlite3.Error, TypeError):
            return -1  # hurt
        finally:
            database.close()
        return parse_leaf(leaf).input_size

    def settle(self, child: Child, size: int, seconds: float = SECONDS) -> bool:
        """Until *size* entries are published and mapped; False when it dies before."""
        return self.pump(child, lambda: self.shown(self.settings.tiles) >= size, seconds=seconds) and self.pump(
            child, lambda: self.mapped() >= size and not self.settings.map_pending.exists(), seconds=seconds
        )

    def after_cut(self) -> None:
        """The power is back: the disk has what it has."""
        shutil.rmtree(self.log)
        os.rename(self.directory / "after", self.log)


def make_base(directory: Path, size: int, *, lived: bool = False, **settings: Any) -> Base:
    """A log with *size* people, all published and mapped, stopped in good order.

    lived: with a key that was rotated, and more than people who enrol.
    """
    people_count = size
    made = create_log(directory / "log", ORIGIN, "spec", None)
    wanted = Settings(made.directory, ORIGIN, "spec", **{
        "checkpoint_interval_ms": 5, "map_interval_ms": 1, "unpublished_limit": 1000,
        "free_space_floor_mib": 0, **settings
    })
    write_settings(wanted)
    wanted.publish_policy.write_bytes(policy_text())
    if lived:
        rotate(wanted, "hpke", "", int(time.time()))
    keys = load_public_keys(wanted)
    vkeys = {ORIGIN: tuple(map(parse_vkey, keys.vkeys)), MAP: tuple(map(parse_vkey, keys.map_vkeys))}
    base = Base(directory, vkeys, Memory(), [], [])
    run = Run(base, directory / "making")
    child = run.start(watch=False)
    done = 0
    for batch in _batched(people(size), 32):
        root = run.acks[-1].root if run.acks else pkd_root(0, bytes(32))
        if not run.acks:  # nothing but the first message may be bound to the empty log
            batch, rest = batch[:1], batch[1:]
            run.send(child, *[submission(message, "a", root) for message in batch])
            if not run.acks:
                raise AssertionError(run.words())
            batch, root = rest, run.acks[-1].root
        run.send(child, *[submission(message, "a", root) for message in batch])
        done = len(run.acks)
        run.settle(child, done)
    for message in life(size - 4) if lived else ():
        run.send(child, submission(message, "a", run.acks[-1].root))
        size, done = size + 1, len(run.acks)
        run.settle(child, done)
    if done != size:
        raise AssertionError(f"{done} of {size} entries: {run.words()}")
    if run.stop(child) != 0:
        raise AssertionError(run.words())
    for database in (wanted.database, wanted.map_database):
        empty_wal(run.log / database.name)
    shutil.rmtree(base.log)
    os.rename(run.log, base.log)
    base.acks = sorted(run.acks, key=lambda ack: ack.leaf_index)
    base.memory = Memory(dict(run.witness.memory.latest), run.witness.memory.notes[-4:], [])
    base.bank = make_bank(base.acks[-1].root, size)
    base.forbidden = make_forbidden(base.acks[-1].root, people_count - 4) if lived else []
    run.close()
    return base


def empty_wal(database: Path) -> None:
    """Move everything into the file itself, where a flipped byte is looked for."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _batched(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    return [items[at : at + count] for at in range(0, len(items), count)]


def save_base(base: Base, path: Path) -> None:
    path.write_bytes(pickle.dumps(base))
