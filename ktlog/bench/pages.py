"""The explorer's pages over HTTP: status, actors, entries, the search, each asked for over one connection in turn.

What the prefilled log does not have, an actor with as much as one may hold, is added by the sequencer itself out of
messages that a client made, so that its page and its entries are as long as real ones.
"""

from __future__ import annotations

import http.client
import os
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from typing import Any
from urllib.parse import quote

from ktlog.bench.mapped import enrolled
from ktlog.bench.names import ORIGIN, actor_name, bytes_of
from ktlog.bench.reads import web_worker
from ktlog.bench.row import Row, percentile
from ktlog.bench.stage import Stage, stage
from ktlog.client.build import Built, add_aux_data, add_key, enrol
from ktlog.client.keyfile import SigningKey
from ktlog.config import Settings
from ktlog.demo.processes import wait_until
from ktlog.errors import Invalid, MessageRejected, Unreachable
from ktlog.operator.keys import load_leaf_key
from ktlog.operator.leaves import local_signer
from ktlog.operator.link import Submission
from ktlog.operator.sequencer import AUX_LIMIT, KEYS_LIMIT, Sequencer
from ktlog.operator.stores import open_log, open_tiles
from ktlog.pkd import attributes
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, key_hash, pkd_root
from ktlog.pkd.messages import format_wire, open_message_attributes, parse_wire, plain_attributes
from ktlog.tlog.checkpoint import parse_signed_checkpoint

GOAL_MS = 50.0
STARTS = 5
DRAWN = 500
WARM_UP = 10
FULL = f"https://{ORIGIN}/users/full"
BATCH = 64
"""Messages of the fullest actor that are bound to one root: a small log takes none that is much older."""
ASK_SECONDS = 30.0


@dataclass(frozen=True)
class _Page:
    """What is asked for. words: that are in every answer of it."""

    work: str
    targets: Sequence[str]
    words: str
    status: int = 200


def measure_pages(settings: Settings, actors: int, requests: int) -> list[Row]:
    """Every row of the table, for a log that ``ktlog.bench.mapped.build`` made with *actors* actors.

    Raises:
        Unreachable: the log does not run, or answers with another status than it should.
        Invalid: ``BadPage``, a page lacks what it is about. StoreError: the log's.
    """
    begin = add_full_actor(settings)
    rows = []
    with stage(settings) as on:
        size = _wait_published(on)
        connection = http.client.HTTPConnection("127.0.0.1", on.port, timeout=ASK_SECONDS)
        with closing(connection):
            for page in _pages(actors, begin, size):
                rows += _measure(on, connection, page, requests)
        rows.append(Row("memory of the largest process, at most", max(on.server.peaks()) / 2**20, "MiB", None))
    return [*_first_answers(settings, size), *rows]


def _pages(actors: int, begin: int, size: int) -> list[_Page]:
    """begin: the first entry of the actor that has the most. size: of the published tree."""
    chance = random.Random(1)  # noqa: S311 - whom to ask about, to be repeatable
    drawn = [chance.randrange(actors) for _ in range(DRAWN)]
    return [
        _Page("status page", ["/"], f"{size:,}"),
        _Page("actor page, drawn from all", [_actor(actor_name(number)) for number in drawn], "<h1"),
        _Page(f"actor page, {KEYS_LIMIT} keys and {AUX_LIMIT} auxiliary data", [_actor(FULL)], FULL),
        _Page("entry page", [f"/e/{index}" for index in range(begin, size)], "The way to the root"),
        _Page("search that finds", [_question(number, turn) for turn, number in enumerate(drawn)], "", 303),
        _Page("search that does not", [f"/search?q=@n{number}@{ORIGIN}" for number in drawn], "a handle", 404),
        _Page("two sizes compared", [f"/checkpoints?old={begin}"], "consistent"),
        _Page("witnesses, peers, about, how to follow", ["/witnesses", "/peers", "/about", "/monitor"], "<h1"),
        _Page(f"feed of a domain with {actors:,} actors", [f"/domains/{ORIGIN}/feed.atom"], "<entry>"),
    ]


def _actor(actor_id: str) -> str:
    return f"/a/{quote(actor_id, safe='')}"


def _question(number: int, turn: int) -> str:
    """What somebody may search for actor *number* with, one kind after the other."""
    actor, name = enrolled(number, 0).actor, actor_name(number)
    (key,) = actor.keys
    user = name.rpartition("/")[2]
    asked = (name, f"@{user}@{ORIGIN}", key_hash(key.public_key).hex(), key.key_id, f"#{number}")[turn % 5]
    return f"/search?q={quote(asked, safe='')}"


# Asking


def _ask(connection: http.client.HTTPConnection, page: _Page, target: str) -> float:
    """Milliseconds for one answer, which is looked at."""
    try:
        started = time.perf_counter()
        connection.request("GET", target, headers={"Host": ORIGIN})
        response = connection.getresponse()
        body = response.read()
        elapsed = (time.perf_counter() - started) * 1000
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable("NoWorker", f"the web worker does not answer: {error}") from None
    if response.status != page.status:
        raise Unreachable("BadStatus", f"{target}: status {response.status}: {body[:200]!r}")
    if page.words.encode() not in body:
        raise Invalid("BadPage", f"{target}: there is no {page.words!r} in it")
    return elapsed


def _measure(on: Stage, connection: http.client.HTTPConnection, page: _Page, requests: int) -> list[Row]:
    for number in range(WARM_UP):
        _ask(connection, page, page.targets[number % len(page.targets)])
    before = on.server.usage()
    times = [_ask(connection, page, page.targets[number % len(page.targets)]) for number in range(requests)]
    cpu = (on.server.usage() - before).cpu.get("web", 0.0)
    return [
        Row(f"{page.work}: p50", percentile(times, 0.5), "ms", None),
        Row(f"{page.work}: p99", percentile(times, 0.99), "ms", GOAL_MS, cpu_ms=cpu / requests * 1000),
    ]


def _first_answers(settings: Settings, size: int) -> list[Row]:
    """The first pages of new web workers. Each is asked for its health before, so that it has started."""
    health, status, actor = _Page("", (), ""), _Page("", (), f"{size:,}"), _Page("", (), FULL)
    found: list[tuple[float, float]] = []
    for _ in range(STARTS):
        with web_worker(settings) as connection:
            _ask(connection, health, "/livez")
            found.append((_ask(connection, status, "/"), _ask(connection, actor, _actor(FULL))))
    return [
        row for work, times in zip(("status page", "then the fullest actor's"), zip(*found, strict=True), strict=True)
        for row in (
            Row(f"{work}, first of a worker: median of {STARTS}", statistics.median(times), "ms", None),
            Row(f"{work}, first of a worker: slowest", max(times), "ms", GOAL_MS),
        )
    ]


def _wait_published(on: Stage) -> int:
    """The size of the log, once it is published; from then on it stays as it is."""
    with closing(open_log(on.settings, read_only=True)) as store:
        size = store.state().size
    tiles = open_tiles(on.settings)

    def is_published() -> bool:
        raw = tiles.checkpoint()
        return raw is not None and parse_signed_checkpoint(raw)[1].size == size

    wait_until("the newest checkpoint", is_published, on.processes.ended)
    return size


# The actor that has the most


def add_full_actor(settings: Settings) -> int:
    """Enrol the actor ``FULL`` with as many keys and auxiliary data as one may have, if it is not there.

    Gives the index of its first entry. Commitments are not real ones: the sequencer leaves them to admission.

    Raises:
        StoreError: the log's.
    """
    with closing(open_log(settings)) as store:
        span = store.history_span(FULL)
        if span is not None:
            return span[0]
        begin, now = store.state().size, int(time.time())
        sequencer = Sequencer(
            store=store, origin=ORIGIN, dialect=SPEC, sign_entries=local_signer(SPEC, load_leaf_key(settings.keys)),
            now=lambda: now, random=os.urandom,
        )
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for start in range(0, KEYS_LIMIT + AUX_LIMIT, BATCH):
                root = pkd_root(sequencer.state.size, sequencer.state.root)
                wires = pool.submit(_wires, root, now, range(start, start + BATCH)).result()
                for outcome in sequencer.process([_submission(wire) for wire in wires]):
                    if isinstance(outcome, MessageRejected):
                        raise outcome
        return begin


def _submission(text: str) -> Submission:
    wire = parse_wire(SPEC, text)
    message = open_message_attributes(SPEC, wire, commitments=False)
    return Submission(wire.preimage, plain_attributes(wire, message), dict(wire.symmetric_keys))


def _wires(root: str, now: int, numbers: range) -> list[str]:
    """Some of its messages. In a process of its own, in which Argon2id is left out."""
    attributes.argon2id = lambda password, salt: sha256(password + salt).digest()
    key = SigningKey(bytes_of("the key that signs"))
    return [format_wire(_built(key, number, recent_root=root, now=now).wire) for number in numbers]


def _built(key: SigningKey, number: int, **about: Any) -> Built:
    if number == 0:
        return enrol(FULL, key, **about)
    text = bytes_of(f"what {FULL} has as number {number}", PUBLIC_KEY_BYTES)
    if number < KEYS_LIMIT:
        return add_key(FULL, text, key, **about)
    return add_aux_data(FULL, "ssh-v2", f"ssh-ed25519 {text[:51].hex()}", key, **about)
