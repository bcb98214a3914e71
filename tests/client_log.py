"""A real log in memory, and a network to reach it by: everything a client can be shown, true or not.

The log signs with real keys and follows the real rules, so what the client accepts here it would
accept from a server. ``Network`` is the fetcher; a lie is one line: ``network.edit(change)`` changes
the JSON about an actor, ``network.replace(path, body)`` any other answer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ktlog.client import SigningKey
from ktlog.client.build import Built
from ktlog.errors import Unreachable
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import make_entry
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.keys import derive_key_id, encode_public_key, key_hash, pkd_root, private_key_from_seed
from ktlog.pkd.messages import parse_wire, plain_attributes
from ktlog.pkd.state import Actor, View, apply, created_time, find_signer, touched_by
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    Signer,
    format_note,
    signer_from_seed,
)
from ktlog.tlog.policy import Group, LogKey, Policy, Witness
from ktlog.tlog.tiles import parse_tile_path, tile_nodes
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash
from ktlog.wire.fetch import Response

NOW = 1_700_000_000
ORIGIN = "keys.alpha.example"
DOMAIN = "alpha.example"
WITNESS_NAMES = ("w1.witness.example", "w2.witness.example", "w3.witness.example")


@cache
def key(number: int) -> SigningKey:
    """A fixed actor's key for each number."""
    return SigningKey(number.to_bytes(32, "big"))


def actor(name: str, domain: str = DOMAIN) -> str:
    return f"https://{domain}/users/{name}"


@cache
def witness_signers() -> tuple[tuple[Signer, Signer], ...]:
    return tuple(
        (
            signer_from_seed(name, COSIGNATURE_ED25519, bytes([100 + number]) * 32),
            signer_from_seed(name, COSIGNATURE_MLDSA44, bytes([110 + number]) * 32),
        )
        for number, name in enumerate(WITNESS_NAMES)
    )


def make_policy(logs: list[TinyLog], need: int = 2) -> Policy:
    """Each witness counts when both its keys signed; *need* of three must."""
    witnesses, groups = {}, {}
    for name, signers in zip(("w1", "w2", "w3"), witness_signers(), strict=True):
        for number, signer in enumerate(signers):
            witnesses[f"{name}-{number}"] = Witness(f"{name}-{number}", signer.vkey)
        groups[name] = Group(name, 2, (f"{name}-0", f"{name}-1"))
    groups["witnesses"] = Group("witnesses", need, ("w1", "w2", "w3"))
    keys = tuple(LogKey(log.signers[1].vkey, log.url) for log in logs)
    return Policy(keys, witnesses, groups, "witnesses")


class TinyLog:
    """One log with all its secrets. ``accept`` obeys the rules; the lists may be changed by hand."""

    def __init__(self, origin: str = ORIGIN, seed: int = 1, dialect: Dialect = SPEC) -> None:
        self.origin, self.url, self.dialect = origin, f"https://{origin}", dialect
        self.signers = tuple(
            signer_from_seed(origin, algorithm, bytes([seed + number]) * 32)
            for number, algorithm in enumerate((ED25519, COSIGNATURE_MLDSA44))
        )
        self.leaf_key = private_key_from_seed(bytes([seed + 2]) * 32)
        self.leaf_public = self.leaf_key.public_key().public_bytes_raw()
        self.hpke = DecapsulationKey.from_seed(bytes([seed + 3]) * 32)
        self.entries: list[bytes] = []
        self.rows: list[dict[str, Any]] = []
        self.roles: list[dict[str, int]] = []
        self.states: list[dict[str, Actor]] = [{}]
        self.tokens: set[bytes] = set()
        self.greatest_time = 0
        self.published = 0
        self.checkpoint = b""
        self.rows_a_page = 100

    def fork(self) -> TinyLog:
        """The same log at the same point, free to go another way."""
        twin = copy.copy(self)
        for name in ("entries", "rows", "roles", "states", "tokens"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        return twin

    @property
    def actors(self) -> dict[str, Actor]:
        return self.states[-1]

    @property
    def size(self) -> int:
        return len(self.entries)

    def reader(self):
        return leaf_reader([hash_leaf(entry) for entry in self.entries])

    def root(self, size: int | None = None) -> bytes:
        return root_hash(self.size if size is None else size, self.reader())

    def recent(self) -> str:
        return pkd_root(self.size, self.root())

    def accept(self, built: Built) -> dict[str, Any]:
        """Log a message if the rules allow it; return the receipt."""
        wire, message = parse_wire(self.dialect, canonical(dict(built.wire))), built.message
        holders: dict[bytes, tuple[str, ...]] = {}
        for actor_id, row in self.actors.items():
            for held in row.keys:
                hashed = key_hash(held.public_key)
                holders[hashed] = (*holders.get(hashed, ()), actor_id)
        names = touched_by(message, lambda hashed: holders.get(hashed, ()))
        view = View({name: self.actors.get(name) for name in names}, self.tokens, holders)
        created = created_time(message, self.greatest_time)
        change = apply(
            view, message, self.size, derive_key_id(self.origin, self.size), find_signer(view, message, wire), created
        )
        roles = {leaf.actor_id: int(leaf.role) for leaf in change.history}
        receipt = self.append(wire.preimage, plain_attributes(wire, message), roles)
        self.states[-1].update({row.actor_id: row for row in change.actors})
        if change.token_revoked:
            self.tokens.add(change.token_revoked)
        self.greatest_time = max(self.greatest_time, created)
        return receipt

    def append(self, preimage: bytes, plain: Mapping[str, str], roles: dict[str, int]) -> dict[str, Any]:
        """Log anything, rules or no rules."""
        entry = make_entry(self.dialect, preimage, self.leaf_key, self.leaf_public)
        self.entries.append(entry)
        self.rows.append({
            "merkle-leaf": encode_base64url(entry), "encrypted-message": preimage.decode(), "plain": dict(plain),
        })
        self.roles.append(roles)
        self.states.append(dict(self.actors))
        return {
            "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": self.size - 1,
            "merkle-leaf": encode_base64url(entry), "merkle-root": self.recent(), "tree-size": self.size,
        }

    def sign(
        self, size: int | None = None, *, now: int = NOW, witnesses: int = 3, root: bytes | None = None,
        origin: str | None = None, signers: tuple[Signer, ...] | None = None,
    ) -> bytes:
        """A checkpoint, signed by the log and the first *witnesses* witnesses."""
        size = self.size if size is None else size
        text = format_checkpoint(Checkpoint(origin or self.origin, size, root or self.root(size)))
        own = self.signers if signers is None else signers
        others = [signer for pair in witness_signers()[:witnesses] for signer in pair]
        return format_note(Note(text, tuple(signer.sign(text, now) for signer in (*own, *others))))

    def publish(self, **options: Any) -> TinyLog:
        self.published = self.size
        self.checkpoint = self.sign(**options)
        return self

    def page(self, actor_id: str, size: int, after: int = -1) -> dict[str, Any] | None:
        """What /api/actor/<id>/keys answers at a tree size."""
        row = self.states[size].get(actor_id)
        indexes = [index for index, roles in enumerate(self.roles) if actor_id in roles and index > after]
        shown = indexes[:self.rows_a_page]
        if row is None:
            return None
        return {
            "!pkd-context": "fedi-e2ee:v1/api/actor/get-keys", "actor-id": actor_id, "tree-size": size,
            "merkle-root": pkd_root(size, self.root(size)),
            "public-keys": [
                {
                    "created": str(held.created), "key-id": held.key_id, "leaf-index": held.leaf_index,
                    "tree-size": size, "inclusion-proof": self._proof(held.leaf_index, size),
                    "merkle-root": pkd_root(size, self.root(size)), "public-key": encode_public_key(held.public_key),
                }
                for held in row.keys
            ],
            "history": [
                {
                    "leaf-index": index, "role": self.roles[index][actor_id], **copy.deepcopy(self.rows[index]),
                    "inclusion-proof": self._proof(index, size) if index < size else None,
                }
                for index in shown
            ],
            "history-next": shown[-1] if shown != indexes else None,
        }

    def _proof(self, index: int, size: int) -> list[str]:
        return [encode_base64url(node) for node in prove_inclusion(index, size, self.reader())]

    def answer(self, path: str, query: str) -> tuple[int, bytes]:
        """One request to the log's server."""
        if path == "/checkpoint":
            return 200, self.checkpoint
        if path.startswith("/tile/"):
            nodes = tile_nodes(parse_tile_path(path[1:]))
            if any((index + 1) << level > self.size for level, index in nodes):
                return 404, b"no such tile"
            return 200, b"".join(self.reader()(nodes))
        if path == "/leaf-keys":
            return 200, json.dumps({"leaf-keys": [encode_public_key(self.leaf_public)]}).encode()
        if path == "/api/history":
            return 200, json.dumps({"merkle-root": self.recent(), "tree-size": self.size}).encode()
        if path == "/api/server-public-key":
            return 200, json.dumps({"hpke-public-key": encode_base64url(self.hpke.encapsulation_key)}).encode()
        if path == "/api/info":
            return 200, json.dumps({"dialect": self.dialect.name, "origin": self.origin}).encode()
        if path.startswith("/api/actor/") and path.endswith("/keys"):
            asked = dict(parse_qsl(query))
            after = int(asked.get("history-after", -1))
            page = self.page(unquote(path[len("/api/actor/"): -len("/keys")]), int(asked["tree-size"]), after)
            if page is not None and after >= 0:
                del page["public-keys"]
            if page is not None:
                return 200, json.dumps(page).encode()
        return 404, b'{"!pkd-context":"fedi-e2ee:v1/api/error","error":"not_found","code":"not_found"}'


class Network:
    """The fetcher's place: hosts and what they answer, with lies put in by the test."""

    def __init__(self, *logs: TinyLog) -> None:
        self.logs = {log.origin: log for log in logs}
        self.handles: dict[str, str] = {}
        self.requests: list[str] = []
        self._replaced: dict[str, tuple[int, bytes] | Callable[[], Exception]] = {}
        self._edits: list[tuple[str | None, Callable[[dict[str, Any]], object]]] = []
        self.before: Callable[[str], None] = lambda url: None

    def replace(self, path: str, body: bytes, status: int = 200) -> None:
        """Answer *path* of every host with *body*."""
        self._replaced[path] = (status, body)

    def break_(self, path: str) -> None:
        """Let requests for *path* fail before they reach anybody."""
        self._replaced[path] = lambda: Unreachable("Timeout", "no answer")

    def edit(self, change: Callable[[dict[str, Any]], object], actor_id: str | None = None) -> None:
        """Change the answer about an actor, or about any, before it is sent."""
        self._edits.append((actor_id, change))

    def get(
        self, url: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None, max_bytes: int | None = None
    ) -> Response:
        self.requests.append(url)
        self.before(url)
        parts = urlsplit(url)
        content_type = "application/json"
        planned = self._replaced.get(parts.path)
        if callable(planned):
            raise planned()
        if planned is not None:
            status, body = planned
        elif parts.path == "/.well-known/webfinger":
            content_type = "application/jrd+json"
            status, body = self._webfinger(unquote(parts.query.rpartition("=")[2]))
        elif parts.netloc in self.logs:
            status, body = self.logs[parts.netloc].answer(parts.path, parts.query)
        else:
            raise Unreachable("Refused", f"no host {parts.netloc}")
        if parts.path.endswith("/keys") and "/api/actor/" in parts.path and status == 200:
            body = self._edited(body)
        if max_bytes is not None and len(body) > max_bytes:
            raise Unreachable("TooLarge", "more than was asked for")
        return Response(status, {"content-type": content_type}, body, url)

    def post(self, url: str, body: bytes, headers: Mapping[str, str] | None = None, **_: Any) -> Response:
        raise Unreachable("Refused", "this network takes no messages")

    def _webfinger(self, resource: str) -> tuple[int, bytes]:
        actor_id = self.handles.get(resource.removeprefix("acct:"))
        if actor_id is None:
            return 404, b"{}"
        link = {"rel": "self", "type": "application/activity+json", "href": actor_id}
        return 200, json.dumps({"subject": resource, "links": [link]}).encode()

    def _edited(self, body: bytes) -> bytes:
        page = json.loads(body)
        for actor_id, change in self._edits:
            if actor_id in (None, page["actor-id"]):
                change(page)
        return json.dumps(page).encode()


