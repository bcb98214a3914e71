"""What is on an actor's page, on an entry's page and in feeds: read from the published records and the directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ktlog.errors import EncodingError
from ktlog.operator.reader import Held
from ktlog.operator.timeline import IDLE
from ktlog.pkd.actors import Actor, Cause, Role, Status
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import decode_public_key, encode_public_key, key_hash
from ktlog.store.contracts import LogStore, Record
from ktlog.web.explorer.words import RESET, STATUS, action_words
from ktlog.wire.actor_id import actor_domain

PAGE_ROWS = 25
FEED_ROWS = 50
HELD_SHOWN = 50
NAMED_LIMIT = 100
"""Entries of an actor that are looked through for what became of a key."""
"""Keys, and pieces of auxiliary data; of more the newest. An actor may hold tens of thousands."""
AUX_SHOWN = 512
"""Characters of an auxiliary text on the page; all of it is in the API."""
DOMAIN_ACTORS = 200
DOMAIN_SCAN = 2_048
"""Of a domain with more actors than that, a feed has what is among so many newest entries."""


@dataclass(frozen=True)
class Timeline:
    """Rows, newest first; older: the entry before which the next page begins, None at the end."""

    rows: list[dict[str, object]]
    older: int | None


def attributes(record: Record) -> dict[str, str | None]:
    """What the message of *record* says, as far as it was not erased: None for what was."""
    try:
        message = parse_json(record.preimage).get("message")
    except (EncodingError, AttributeError):  # a log that is measured holds anything
        message = None
    told = {name: text for name, text in message.items() if isinstance(text, str)} if isinstance(message, dict) else {}
    return {**told, **record.plain}


def subjects(record: Record) -> list[str]:
    """Whom an entry names and the log still does: by its readable attributes."""
    told = record.plain if record.plain else attributes(record)
    return [name for key in ("actor", "old-actor", "new-actor", "operator") if (name := told.get(key)) is not None]


def fingerprint(encoded: str | None) -> str | None:
    """Of an encoded public key, as ``ktlog key`` prints it; None for what is none, or was erased."""
    try:
        return None if encoded is None else key_hash(decode_public_key(encoded)).hex()
    except EncodingError:
        return None


def reset_leaf(actor: Actor) -> int | None:
    """The entry with which keys began anew, with nothing to vouch for them; None where there was no such thing."""
    return actor.generation_leaf if actor.generation > 1 or actor.cause == Cause.ERASED else None


def row(record: Record, role: int, published_size: int, reset: int | None = None) -> dict[str, object]:
    """One line of a timeline. reset: see :func:`reset_leaf`."""
    told = attributes(record)
    other = told.get("new-actor") if role == Role.MOVED_OUT else told.get("old-actor")
    return {
        "leaf-index": record.leaf_index,
        "action": record.action,
        "words": action_words(record.action, role),
        "time": record.created,
        "published": record.leaf_index < published_size,
        "reset": record.leaf_index == reset,
        "withheld": record.withheld,
        "fingerprint": fingerprint(told.get("public-key")),
        "aux-type": told.get("aux-type"),
        "aux-id": told.get("aux-id"),
        "other-actor": other,
        "operator": told.get("operator"),
    }


def timeline(
    store: LogStore, actor_id: str, before: int | None, published_size: int, limit: int = PAGE_ROWS,
    reset_leaf: int | None = None,
) -> Timeline:
    """A page of an actor's history, from beyond entry *before* backwards. Inside a snapshot of the store."""
    touches = store.newest_touches(actor_id, before, limit + 1)
    rows = [
        row(_record(store, touch.leaf_index), touch.role, published_size, reset_leaf) for touch in touches[:limit]
    ]
    return Timeline(rows, touches[limit - 1].leaf_index if len(touches) > limit else None)


def named_keys(store: LogStore, actor_id: str) -> dict[str, int]:
    """The newest entry that named a key, by the key's fingerprint, among the newest of the actor's."""
    found: dict[str, int] = {}
    with store.snapshot():
        for touch in store.newest_touches(actor_id, None, NAMED_LIMIT):
            print_ = fingerprint(attributes(_record(store, touch.leaf_index)).get("public-key"))
            if print_ is not None:
                found.setdefault(print_, touch.leaf_index)
    return found


def actor_members(
    store: LogStore, actor: Actor, held: Held, page: Timeline, published_size: int, before: int | None
) -> dict[str, object]:
    """Everything on the page of an actor that the log knows. Inside a snapshot of the store."""
    reset = reset_leaf(actor)
    return {
        "actor-id": actor.actor_id,
        "domain": actor_domain(actor.actor_id),
        "tree-size": published_size,
        "pending": pending_members(store, actor, published_size),
        "status": STATUS[Status(actor.status)],
        "status-leaf-index": actor.status_leaf,
        "fireproof": actor.fireproof,
        "version": actor.version,
        "generation": actor.generation,
        "reset": {"because": RESET[Cause(actor.cause)], "leaf-index": reset} if reset is not None else None,
        "keys": [
            {
                "key-id": key.key_id, "public-key": encode_public_key(key.public_key),
                "fingerprint": key_hash(key.public_key).hex(), "leaf-index": key.leaf_index, "time": key.created,
            }
            for key in held.keys[::-1][:HELD_SHOWN]
        ],
        "key-count": len(held.keys),
        "auxiliary": [
            {
                "aux-id": aux.aux_id, "aux-type": aux.aux_type, "leaf-index": aux.leaf_index, "time": aux.created,
                "aux-data": None if aux.aux_data is None else aux.aux_data[:AUX_SHOWN],
                "cut": aux.aux_data is not None and len(aux.aux_data) > AUX_SHOWN,
            }
            for aux in held.aux[::-1][:HELD_SHOWN]
        ],
        "auxiliary-count": len(held.aux),
        "timeline": page.rows,
        "before": before,
        "older": page.older,
    }


def pending_members(store: LogStore, actor: Actor, published_size: int) -> dict[str, object] | None:
    """How many entries of the actor are not in the published tree, and which members are as of after them.

    Keys and auxiliary data are as of the published tree. The rest is the directory's, which is ahead of it.
    None: there is no such entry.
    """
    waiting, span = store.touches(actor.actor_id, published_size - 1), store.history_span(actor.actor_id)
    if not waiting or span is None:
        return None
    actions = {touch.action for touch in waiting}
    began, changed = actor.generation_leaf >= published_size, actor.status_leaf >= published_size
    ahead = {
        "status": changed, "fireproof": began or changed or bool(actions & IDLE), "version": True,
        "generation": began, "reset": began and reset_leaf(actor) is not None,
    }
    return {
        "entries": len(waiting), "members": [name for name, is_ahead in ahead.items() if is_ahead],
        "enrolled": span[0] < published_size,
    }


def domain_rows(store: LogStore, domain: str, published_size: int) -> list[dict[str, object]]:
    """The newest published changes of actors on *domain*, newest first. It reads so much and no more.

    Of a domain with few actors these are its newest ones, of one with many those among the log's newest entries.
    """
    starts = (f"https://{domain}/", f"https://{domain}:443/")
    found = [name for start in starts for name in store.actor_ids(start, DOMAIN_ACTORS + 1) if name.startswith(start)]
    if len(found) <= DOMAIN_ACTORS:
        touched: Iterable[tuple[int, str, int]] = (
            (touch.leaf_index, name, touch.role)
            for name in found for touch in store.newest_touches(name, published_size, FEED_ROWS)
        )
    else:
        touched = (
            item for item in store.touched(max(0, published_size - DOMAIN_SCAN), published_size)
            if item[1].startswith(starts)
        )
    newest = sorted(touched, reverse=True)[:FEED_ROWS]
    return [{"actor-id": name, **row(_record(store, at), role, published_size)} for at, name, role in newest]


def _record(store: LogStore, leaf_index: int) -> Record:
    return store.records(leaf_index, leaf_index + 1)[0]


def entry_members(record: Record, published_size: int) -> dict[str, object]:
    """What the log knows of one entry, apart from its proof."""
    told: Mapping[str, str | None] = attributes(record)
    return {
        "leaf-index": record.leaf_index,
        "action": record.action,
        "words": action_words(record.action, Role.MOVED_OUT).replace("moved away to", "moved an identity"),
        "time": record.created,
        "published": record.leaf_index < published_size,
        "withheld": record.withheld,
        "subjects": subjects(record),
        "attributes": {name: text for name, text in told.items() if name in record.plain},
        "fingerprint": fingerprint(told.get("public-key")),
        "leaf-hash": record.leaf_hash.hex(),
        "message": record.preimage.decode("utf-8", "replace"),
    }
