"""Protocol messages made before anything is timed: built, encrypted, committed and signed, on every core.

Each enrols a key of an actor, or adds one: the first message of every actor is signed by its own key, the others by
that. They are bound to a root that the log has when they are made. The HTTP signatures around them, which are cheap and
good for five minutes, are made last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context

from ktlog.bench.names import ORIGIN
from ktlog.bench.neighbours import http_key, http_key_id, instance_host
from ktlog.client.build import add_key, build_envelope, enrol, seal
from ktlog.client.keyfile import SigningKey
from ktlog.config import Settings
from ktlog.operator.instance import direct_message
from ktlog.operator.keys import load_seed
from ktlog.operator.stores import open_log
from ktlog.pkd import attributes
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, pkd_root
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpsig import sign_request
from ktlog.wire.receipts import LOG_ACTOR_PATH
from ktlog.wire.webfinger import ACTIVITY_JSON

EACH = 20
"""Messages of one actor, at most: an actor may have 64 keys, and the log remembers the documents of 1,000 actors."""
MOST_ACTORS = 900
AHEAD_SECONDS = 240
"""How far in the future requests are signed: the log takes them from a minute before until nine minutes after."""
_INBOX = f"https://{ORIGIN}{LOG_ACTOR_PATH}/inbox"


@dataclass(frozen=True)
class Prepared:
    """A message as its instance sends it. body: of the request. digest: SHA-256 of the text that the entry is of."""

    actor_id: str
    body: bytes
    digest: bytes


@dataclass(frozen=True)
class _Order:
    actor_id: str
    count: int
    root: str
    hpke: bytes
    now: int
    argon2: bool


def prepare(settings: Settings, count: int, run: str, now: int, *, argon2: bool = True) -> list[list[Prepared]]:
    """*count* messages, some actor's in each list, in the order in which they must reach the log in *settings*.

    Args:
        run: makes the names of the actors new. now: Unix seconds.
        argon2: whether the commitments are real ones. Without, no log takes them but one that does not look.
    """
    with closing(open_log(settings, read_only=True)) as store:
        state = store.state()
    root = pkd_root(state.size, state.root)
    hpke = DecapsulationKey.from_seed(load_seed(settings.keys, "hpke")).encapsulation_key
    actors = min(MOST_ACTORS, -(-count // EACH))
    orders = [
        _Order(
            f"https://{instance_host(number)}/users/{run}n{number}", count // actors + (number < count % actors), root,
            hpke, now, argon2,
        )
        for number in range(actors)
    ]
    with _pool() as pool:
        return list(pool.map(_prepare, orders, chunksize=2))


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn"))


def _prepare(order: _Order) -> list[Prepared]:
    if not order.argon2:
        attributes.argon2id = lambda password, salt: sha256(password + salt).digest()  # of this process alone
    key = SigningKey.generate()
    options = {"recent_root": order.root, "now": order.now}
    made = [enrol(order.actor_id, key, **options)]
    made += [add_key(order.actor_id, os.urandom(PUBLIC_KEY_BYTES), key, **options) for _ in range(order.count - 1)]
    found = []
    for built in made:
        content = build_envelope(order.actor_id, seal(built, order.hpke))
        message = direct_message(f"https://{ORIGIN}{LOG_ACTOR_PATH}", order.actor_id, content, os.urandom)
        body = json.dumps(message, separators=(",", ":")).encode()
        found.append(Prepared(order.actor_id, body, sha256(built.preimage).digest()))
    return found


def sign_all(messages: Iterable[Prepared], created: Sequence[int]) -> list[list[bytes]]:
    """The requests that bring each message, whole: one for each time in *created*, which no two may share.

    Each comes from another address, as a proxy before the log says, so that no two are kept waiting for each other.
    """
    messages = list(messages)
    with _pool() as pool:
        return list(pool.map(_sign, messages, range(len(messages)), [created] * len(messages), chunksize=32))


def _sign(message: Prepared, number: int, created: Sequence[int]) -> list[bytes]:
    return [request_of(message, when, _address(number, turn)) for turn, when in enumerate(created)]


def request_of(message: Prepared, created: int, address: str) -> bytes:
    """One request with a signature made at *created*, Unix seconds, from *address*."""
    headers = sign_request(
        "POST", _INBOX, {"Content-Type": ACTIVITY_JSON}, message.body, http_key_id(message.actor_id),
        http_key(parse_https_url(message.actor_id).host), created,
    )
    headers |= {"Host": ORIGIN, "X-Forwarded-For": address, "Content-Length": str(len(message.body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {LOG_ACTOR_PATH}/inbox HTTP/1.1\r\n{head}\r\n".encode("latin-1") + message.body


def _address(number: int, turn: int) -> str:
    # Of a customer each: an IPv6 network of 64 bits is one.
    return f"2001:db8:{turn % 65536:x}:{number % 65536:x}::1"
