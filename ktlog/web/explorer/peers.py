"""The directories that commit their roots to this log, and the logs of which a copy is kept here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ktlog.errors import EncodingError
from ktlog.pkd.actions import CheckpointMessage
from ktlog.pkd.keys import decode_root
from ktlog.store.contracts import LogStore, Record
from ktlog.web.explorer.people import attributes
from ktlog.web.explorer.standing import FRESH_SECONDS, NONE, OK, WARN
from ktlog.web.explorer.words import span

SCANNED = 2_048
"""The newest published entries, among which Checkpoints are looked for: no index has them by what they are."""
READ = 128
"""Of those that touch no actor, as a Checkpoint does and an erased actor's entry may: so many are read, and no more."""


def directory_rows(store: LogStore, allowed: Collection[str], published_size: int) -> list[dict[str, object]]:
    """A row for each directory whose Checkpoints are taken, with the newest one, or that sent one before."""
    with store.snapshot():
        newest = _newest_checkpoints(store, published_size)
    return [
        {"directory": url, "allowed": url in allowed, "newest": newest.get(url)} for url in sorted({*allowed, *newest})
    ]


def _newest_checkpoints(store: LogStore, published_size: int) -> dict[str, dict[str, object]]:
    start = max(0, published_size - SCANNED)
    touched = {leaf_index for leaf_index, _actor_id, _role in store.touched(start, published_size)}
    candidates = [index for index in range(published_size - 1, start - 1, -1) if index not in touched][:READ]
    found: dict[str, dict[str, object]] = {}
    for index in candidates:
        (record,) = store.records(index, index + 1)
        told = attributes(record)
        url = told.get("from-directory")
        if record.action == CheckpointMessage.action and url is not None and url not in found:
            found[url] = _checkpoint(store, record, told)
    return found


def _checkpoint(store: LogStore, record: Record, told: Mapping[str, str | None]) -> dict[str, object]:
    """What a directory said in *record*. replayed: how many entries of this log it had validated; None for no root."""
    try:
        root = decode_root(told.get("to-validated-root") or "")
    except EncodingError:
        replayed = None
    else:
        replayed = 0 if root == bytes(32) else store.size_of_root(root)  # PKD writes that of no entries as zeros
    return {
        "leaf-index": record.leaf_index, "time": record.created, "from-root": told.get("from-root"),
        "replayed": replayed,
    }


def mirror_rows(listed: Collection[Mapping[str, object]], now: int) -> list[dict[str, object]]:
    """A row for each log that is mirrored here. listed: as ``Replicas.listed`` gives them."""
    return [{**row, **_mirror_state(row, now)} for row in listed]


def _mirror_state(row: Mapping[str, object], now: int) -> dict[str, object]:
    heard, error = int(str(row["last-success"])), row["error"]
    if error is not None:
        return {"state": WARN, "words": f"not sound: {error}", "heard": heard or None}
    if not heard:
        return {"state": NONE, "words": "nothing copied yet", "heard": None}
    fresh = now - heard <= FRESH_SECONDS
    return {"state": OK if fresh else WARN, "words": f"heard {span(now - heard)} ago", "heard": heard}
