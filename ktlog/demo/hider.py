"""The lie that takes a map to notice: a log that is whole, and a map of it that goes on listing a revoked key.

It is a whole log, working on a copy of the honest one's directory, under the same keys and the same name. Messages
are taken, receipts given, witnesses asked, all by the code of any honest log. What differs is one value of the map,
and the publish policy, which asks for witnesses alone.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask

from ktlog.config import Settings
from ktlog.demo.topology import LIARS_COPY
from ktlog.durable import write_atomic
from ktlog.keymap.value import Value, commit_value, encode_value, parse_value
from ktlog.operator import mapping
from ktlog.operator.mapper import Draft, Mapper
from ktlog.operator.service import Service, load_publish_policy
from ktlog.operator.stores import open_log, open_map
from ktlog.operator.witnessing import collect_cosignatures, input_policy, peers_of
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import key_hash
from ktlog.store.contracts import LogStore
from ktlog.store.mapcontract import Dead, Live, MapState, MapStore
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.policy import Policy, format_policy
from ktlog.tlog.tree import leaf_reader, prove_consistency
from ktlog.web.app import create_app
from ktlog.wire.fetch import Fetcher

LOOK_SECONDS = 0.1
Told = list[dict[str, Any]]


def hiding_log(honest: Settings, actor_id: str, write: Callable[[Told], None]) -> Flask:
    """Start the log in this process and give its web application.

    *write* is told, once a key that *actor_id* revoked was published as active, who cosigned that and who did not.
    """
    settings = copy_log(honest, honest.directory.with_name(LIARS_COPY))
    policy = load_publish_policy(honest)
    write_atomic(settings.publish_policy, format_policy(input_policy(policy)))
    # Nobody else runs in this process, and nobody honest.
    mapping.Mapper = partial(HidingMapper, actor_id=actor_id)  # type: ignore[misc, assignment]
    service = Service(settings)
    for work in (service.run, lambda: write([_ask_everybody(settings, policy, actor_id)])):
        threading.Thread(target=work, daemon=True).start()
    return create_app(settings)


def copy_log(honest: Settings, directory: Path) -> Settings:
    """A copy of a log that has nothing to do, all its secrets included."""
    databases = (honest.database.name, honest.map_database.name)
    live = shutil.ignore_patterns("*.db*", "*.lock", "*.sock", honest.socket_record.name, "pids.json", ".*")
    shutil.copytree(honest.directory, directory, ignore=live)
    for name in databases:
        with (
            closing(sqlite3.connect(f"file:{honest.directory / name}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(directory / name)) as copy,
        ):
            source.backup(copy)
    return replace(honest, directory=directory)


class HidingMapper(Mapper):
    """Drafts what an honest log would, but that no key which the map lists for one actor ever goes."""

    def __init__(self, store: LogStore, map_store: MapStore, actor_id: str) -> None:
        super().__init__(store, map_store)
        self._published = map_store
        self._hidden = map_index(store.origin, actor_id)

    def draft(self, state: MapState) -> Draft:
        draft = super().draft(state)
        return replace(draft, changes=tuple(self._hide(change) for change in draft.changes))

    def _hide(self, change: Live | Dead) -> Live | Dead:
        before = self._published.live(self._hidden)
        if not isinstance(change, Live) or change.index != self._hidden or before is None:
            return change
        value = parse_value(change.value)
        keys = sorted({*parse_value(before.value).keys, *value.keys}, key=lambda key: key.leaf_index)
        lie = encode_value(replace(value, keys=tuple(keys)))
        return replace(change, value=lie, commitment=commit_value(change.index, value.version, lie, change.opening))


def _ask_everybody(settings: Settings, policy: Policy, actor_id: str) -> dict[str, Any]:
    """Wait until the lie is published, and until the last of those asked for a cosignature has judged it."""
    store, published = open_log(settings, read_only=True), open_map(settings, read_only=True)
    while not _is_lying(store, published, actor_id):
        time.sleep(LOOK_SECONDS)
    size = published.state().output.size
    raw = published.checkpoint(size) or b""
    note, _ = parse_signed_checkpoint(raw)
    nodes = leaf_reader(published.output_hashes(0, size))
    peers, fetcher = peers_of(policy), Fetcher.from_environment()
    with ThreadPoolExecutor(len(peers)) as pool:
        while True:
            told = collect_cosignatures(
                fetcher, peers, raw, note.text, size, lambda old, new: prove_consistency(old, new, nodes), pool,
                lambda: int(time.time()),
            )
            if not any(" answered 503" in words for words in told.failures.values()):
                return {"cosigned": sorted({one.vkey.name for one in told.verified}), "refused": told.failures}
            time.sleep(LOOK_SECONDS)


def _is_lying(store: SqliteStore, published: MapStore, actor_id: str) -> bool:
    """Whether the map covers the whole log, and lists a key that the log says is revoked."""
    with store.snapshot():
        actor, size = store.actor(actor_id), store.state().size
    with published.snapshot():
        mapped, covered = published.live(map_index(store.origin, actor_id)), published.state().input_size
    if actor is None or mapped is None or covered < size:
        return False
    value: Value = parse_value(mapped.value)
    return not {key.key_hash for key in value.keys} <= {key_hash(key.public_key) for key in actor.keys}
