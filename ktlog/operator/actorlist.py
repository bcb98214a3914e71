"""Whom a log knows, for its operator: found by a part of the id, with what each has of what it may have."""

from __future__ import annotations

from dataclasses import dataclass

from ktlog.operator.admission import MESSAGES_LIMIT, MESSAGES_SECONDS
from ktlog.operator.sequencer import AUX_LIMIT, KEYS_LIMIT
from ktlog.pkd.keys import encode_public_key
from ktlog.store.contracts import LogStore

PAGE = 1_000


@dataclass(frozen=True)
class FoundKey:
    """One key that an actor has: since entry *leaf_index*, at *created*, Unix seconds."""

    key_id: str
    public_key: str
    leaf_index: int
    created: int


@dataclass(frozen=True)
class Found:
    """An actor. aux: how much auxiliary data it has. entries: of its history. today: messages within the last day."""

    actor_id: str
    fireproof: bool
    keys: tuple[FoundKey, ...]
    aux: int
    entries: int
    today: int
    keys_limit: int = KEYS_LIMIT
    aux_limit: int = AUX_LIMIT
    today_limit: int = MESSAGES_LIMIT

    def as_dict(self) -> dict[str, object]:
        return {
            "actor": self.actor_id, "fireproof": self.fireproof, "aux": self.aux, "entries": self.entries,
            "messages-in-a-day": self.today,
            "limits": {"keys": self.keys_limit, "aux": self.aux_limit, "messages-in-a-day": self.today_limit},
            "keys": [
                {"key-id": key.key_id, "public-key": key.public_key, "leaf-index": key.leaf_index,
                 "created": key.created} for key in self.keys
            ],
        }


def find(store: LogStore, text: str, after: str, limit: int) -> tuple[list[str], bool]:
    """Ids that contain *text*, in order, behind *after*; and whether there are more."""
    if text and not after and store.standing(text) is not None:
        return [text], False
    found: list[str] = []
    while page := store.actor_ids(after, PAGE):
        for actor_id in page:
            if text in actor_id:
                if len(found) == limit:
                    return found, True
                found.append(actor_id)
        after = page[-1]
    return found, False


def describe(store: LogStore, actor_id: str, now: int) -> Found | None:
    """What there is of one actor; None if it was erased meanwhile."""
    with store.snapshot():
        actor = store.actor(actor_id)
        history = store.history(actor_id)
        times = store.accepted_times(actor_id, MESSAGES_LIMIT)
    if actor is None or not history:
        return None
    keys = tuple(
        FoundKey(key.key_id, encode_public_key(key.public_key), key.leaf_index, key.created) for key in actor.keys
    )
    today = sum(now - MESSAGES_SECONDS < time <= now for time in times)
    return Found(actor_id, actor.fireproof, keys, len(actor.aux), len(history), today)
