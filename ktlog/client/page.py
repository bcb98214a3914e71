"""Reads what a log's API says. Nothing here is believed: it is bounded, parsed and handed on.

Every failure is ``Invalid("MalformedAnswer")``: a log that answers out of form has answered, so
asking again is of no use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.hpke import ENCAPSULATION_KEY_BYTES
from ktlog.pkd.keys import decode_public_key, decode_root
from ktlog.pkd.state import Role
from ktlog.tlog.encoding import decode_base64url, parse_decimal

KEYS_CONTEXT = "fedi-e2ee:v1/api/actor/get-keys"
MAXIMUM_PROOF_HASHES = 63
MAX_ANSWER_BYTES = 32 << 20
"""Of all pages of the answer about one actor."""
MAX_HISTORY_PAGES = 100
"""Of 100 messages each, unless they are large."""


@dataclass(frozen=True)
class ListedKey:
    """One member of ``public-keys``: a claim, to be compared with the replayed state."""

    public_key: bytes
    key_id: str
    leaf_index: int
    created: int


@dataclass(frozen=True)
class HistoryRow:
    """One message that touched the actor; a claim. ``proof`` is None while it is not published."""

    leaf_index: int
    role: int
    entry: bytes
    preimage: bytes
    plain: Mapping[str, str | None]
    proof: tuple[bytes, ...] | None


@dataclass(frozen=True)
class ActorPage:
    """The answer about one actor at one tree size; rows in strictly ascending leaf index.

    ``history_next`` is None when there are no more rows, and the last row's leaf index otherwise.
    """

    actor_id: str
    tree_size: int
    keys: tuple[ListedKey, ...]
    rows: tuple[HistoryRow, ...]
    history_next: int | None = None

    @property
    def published(self) -> tuple[HistoryRow, ...]:
        return tuple(row for row in self.rows if row.leaf_index < self.tree_size)

    @property
    def unpublished(self) -> tuple[HistoryRow, ...]:
        return tuple(row for row in self.rows if row.leaf_index >= self.tree_size)


def actor_page_path(actor_id: str, tree_size: int, after: int | None = None) -> str:
    """Where a log has the first page about an actor, or the one with what comes after a leaf index."""
    path = f"/api/actor/{quote(actor_id, safe='')}/keys?include-proofs=true&tree-size={tree_size}"
    return path if after is None else f"{path}&history-after={after}"


def read_all_pages(
    read: Callable[[int | None, int], bytes], actor_id: str, tree_size: int, max_bytes: int = MAX_ANSWER_BYTES
) -> ActorPage:
    """The answer about an actor with the rows of all its pages.

    Args:
        read: gives a body of at most so many bytes: the first page's (None), or that of the page after a leaf index.

    Raises:
        Invalid: as :func:`parse_actor_page`; ``HistoryTooLong``. And whatever *read* raises.
    """
    body = read(None, max_bytes)
    answer = page = parse_actor_page(body, actor_id, tree_size)
    rows, left = list(page.rows), max_bytes - len(body)
    for _ in range(MAX_HISTORY_PAGES - 1):
        if page.history_next is None or left <= 0:
            break
        body = read(page.history_next, left)
        page = parse_actor_page(body, actor_id, tree_size, page.history_next)
        rows += page.rows
        left -= len(body)
    if page.history_next is not None:
        raise Invalid(
            "HistoryTooLong", f"the log has more about {actor_id} than {MAX_HISTORY_PAGES} pages or {max_bytes} bytes",
            hint="It may be honest. A log with a map proves its answers without the whole history.",
        )
    return replace(answer, rows=tuple(rows), history_next=None)


def parse_actor_page(body: bytes, actor_id: str, tree_size: int, after: int | None = None) -> ActorPage:
    """Read the answer of :func:`actor_page_path`. Only the first page lists keys.

    Raises:
        Invalid: ``WrongActor`` when it is about another actor; ``MalformedAnswer``.
    """
    page = _document(body)
    _expect(page.get("!pkd-context") == KEYS_CONTEXT, f"!pkd-context is not {KEYS_CONTEXT}")
    found = _text(page, "actor-id")
    if found != actor_id:
        raise Invalid("WrongActor", f"asked for {actor_id}, the log answered about {found[:200]}")
    size = _integer(page, "tree-size")
    _expect(size == tree_size, f"asked for tree size {tree_size}, the log answered for {size}")
    rows = tuple(_row(row, tree_size) for row in _objects(page, "history"))
    indexes = [row.leaf_index for row in rows]
    _expect(indexes == sorted(set(indexes)), "the history is not in the order of the log")
    _expect(after is None or not indexes or indexes[0] > after, "a page of the history goes back")
    _expect("history-next" in page, "history-next is not there, so the history may go on")
    following = None if page["history-next"] is None else _integer(page, "history-next")
    _expect(following is None or following in indexes[-1:], "history-next is not the last message of the page")
    keys = tuple(_listed(key) for key in _objects(page, "public-keys")) if after is None else ()
    return ActorPage(actor_id, size, keys, rows, following)


def parse_leaf_keys(body: bytes) -> Mapping[bytes, bytes]:
    """Read ``/leaf-keys``: SHA-256 of the raw key -> the raw 1312 bytes.

    Raises:
        Invalid: ``MalformedAnswer``.
    """
    texts = _list(_document(body), "leaf-keys")
    with _malformed():
        keys = [decode_public_key(text) for text in texts]
    return {hashlib.sha256(key).digest(): key for key in keys}


@dataclass(frozen=True)
class Recent:
    """The newest root of a log, published or not: what a new message names as its recent root."""

    tree_size: int
    root: str


def parse_recent(body: bytes) -> Recent:
    """Read ``/api/history``.

    Raises:
        Invalid: ``MalformedAnswer``.
    """
    page = _document(body)
    root = _text(page, "merkle-root")
    with _malformed():
        decode_root(root)
    return Recent(_integer(page, "tree-size"), root)


def parse_encapsulation_key(body: bytes) -> bytes:
    """Read ``/api/server-public-key``: the 1216 bytes that protocol messages are encrypted to.

    The suite's label is not looked at: the specification names the one suite in two ways.

    Raises:
        Invalid: ``MalformedAnswer``.
    """
    with _malformed():
        return decode_base64url(_text(_document(body), "hpke-public-key"), ENCAPSULATION_KEY_BYTES)


def parse_text(body: bytes, member: str) -> str:
    """One string member of a JSON answer. Raises Invalid(``MalformedAnswer``)."""
    return _text(_document(body), member)


def _plain(row: Mapping[str, Any]) -> dict[str, str | None]:
    plain = row.get("plain")
    _expect(
        isinstance(plain, dict) and all(text is None or isinstance(text, str) for text in plain.values()),
        "plain is not an object of strings and nulls",
    )
    return dict(plain)


def _row(row: Mapping[str, Any], tree_size: int) -> HistoryRow:
    leaf_index = _integer(row, "leaf-index")
    role = _integer(row, "role")
    _expect(role in frozenset(Role), f"{role} is no role in a history")
    proof: tuple[bytes, ...] | None = None
    if row.get("inclusion-proof") is not None:
        hashes = _list(row, "inclusion-proof")
        _expect(len(hashes) <= MAXIMUM_PROOF_HASHES, "an inclusion proof is longer than any tree is high")
        with _malformed():
            proof = tuple(decode_base64url(text, 32) for text in hashes)
    _expect(
        proof is None or leaf_index < tree_size, f"entry {leaf_index} cannot be included in a smaller tree"
    )
    with _malformed():
        entry = decode_base64url(_text(row, "merkle-leaf"))
    return HistoryRow(
        leaf_index, role, entry, _text(row, "encrypted-message").encode("utf-8"), _plain(row), proof
    )


def _listed(key: Mapping[str, Any]) -> ListedKey:
    # The inclusion proof beside each key is not read: the history proves the same entry, with
    # its content.
    with _malformed():
        public_key = decode_public_key(_text(key, "public-key"))
        created = parse_decimal(_text(key, "created"))
    return ListedKey(public_key, _text(key, "key-id"), _integer(key, "leaf-index"), created)


@contextmanager
def _malformed() -> Iterator[None]:
    """Turn an EncodingError within into Invalid(``MalformedAnswer``)."""
    try:
        yield
    except EncodingError as error:
        raise Invalid("MalformedAnswer", str(error)) from error


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise Invalid("MalformedAnswer", message)


def _document(body: bytes) -> Mapping[str, Any]:
    with _malformed():
        document = parse_json(body)
    _expect(isinstance(document, dict), "the answer is not a JSON object")
    return document


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    _expect(isinstance(value, str), f"{name} is not a string")
    return value


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    # type(), not isinstance(): true is an int to Python.
    _expect(type(value) is int and value >= 0, f"{name} is not a natural number")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    _expect(
        isinstance(value, list) and all(isinstance(item, str) for item in value),
        f"{name} is not a list of strings",
    )
    return value


def _objects(fields: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = fields.get(name)
    _expect(
        isinstance(value, list) and all(isinstance(item, dict) for item in value),
        f"{name} is not a list of objects",
    )
    return value
