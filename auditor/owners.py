"""Owners and instances: the alarms that come of what a follower read.

Each alarm about an entry carries the entry, its record as published, and a tlog-proof under the head that the audit
judged, so that :func:`auditor.alarmproof.verify_alarm` needs no network. An alarm never waits for its proof: a log that
serves entries and no tiles could hold it back by that.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from random import SystemRandom
from typing import Any

from auditor.alarm import Alarm, event_alarm, finding_alarm
from auditor.events import ERASURE, Event, index_of
from auditor.findings_store import Row
from auditor.live import Due, Getter, KeysOf, LiveCheck
from auditor.outbox import Outbox, Sink
from auditor.subscriptions import Subscriptions, Watched
from ktlog.client.publicfiles import PublicFiles, parse_public_record
from ktlog.client.verify import Head
from ktlog.errors import KtlogError, UsageError
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.proof import TlogProof, format_proof
from ktlog.tlog.tiles import TILE_WIDTH, TileHashReader
from ktlog.tlog.tree import hash_leaf, prove_inclusion, verify_inclusion

_LOG = logging.getLogger("ktlog.watch")


class Owners:
    """Turns what a follower read into alarms in the outbox.

    Args:
        sinks: by name, those that are configured.
        live: fetches live actor documents; None: they are not looked at.
    """

    def __init__(self, outbox: Outbox, sinks: Mapping[str, Sink], live: Getter | None = None) -> None:
        self.outbox = outbox
        self.sinks = dict(sinks)
        self.subscriptions = Subscriptions(outbox)
        self._live = live
        self._lives: dict[str, LiveCheck] = {}
        self._looking: dict[str, threading.Thread] = {}

    def check_sinks(self) -> None:
        """Raises UsageError(``UnknownSink``) when a subscription names a sink that nobody has set up."""
        for row in self.subscriptions.all():
            if row.sink not in self.sinks:
                raise UsageError(
                    "UnknownSink", f"subscription {row.id} names the sink {row.sink}, and the settings do not have it",
                    hint="Its alarms would wait for ever. Set the sink up, or end the subscription with"
                         f" ktlog-auditor unsubscribe {row.id}.",
                )

    def take(
        self, origin: str, events: Sequence[Event], head: Head | None, files: PublicFiles, now: int
    ) -> int:
        """Keep an alarm for each event that somebody watches, durably; then forget whom an erasure took.

        Call it before the position after these events is saved. It may be called again with the same ones.

        Args:
            head: the one that the events were judged under; None: no proof can be had.

        Returns:
            How many alarms were new.

        Raises:
            StoreError: ``OutboxFull`` and the like: the position must not be saved.
        """
        rows = self.subscriptions.all(origin)
        erased = [index_of(origin, event.subjects[0]) for event in events if event.action == ERASURE]
        new = 0
        if rows:
            watched = Watched(rows)
            # So that who watches a whole domain hears of it: an erasure names nobody.
            was = {index: names[0] for index in erased if (names := self.outbox.names_of(origin, index))}
            wanted = [(event, told) for event in events if (told := watched.sinks_for(event, was))]
            members = dict.fromkeys(name for event in events for name in watched.domain_members(event))
            self.live_check(origin).note(list(members), now)
            prover = Prover(files, head)
            for start in range(0, len(wanted), 64):  # a few at a time: each holds a record and a proof
                new += self.outbox.put_all([
                    (event_alarm(event, now, prover.attach(event)), told)
                    for event, told in wanted[start : start + 64]
                ], now)
        rewriting = [name for name, sink in self.sinks.items() if sink.rewrites]
        for index in erased:
            self.outbox.forget_actor(origin, index, rewriting)
        return new

    def finding(self, row: Row) -> bool:
        """Keep an alarm for a finding of the watch that opened or closed, for every sink that wants findings."""
        told = {name: ["a finding of the watch"] for name, sink in self.sinks.items() if sink.findings}
        now = row.opened_at if row.is_open else row.closed_at or row.last_seen
        return self.outbox.put(
            finding_alarm(row.origin, row.finding, row.is_open, row.opened_at, now, row.openings), told
        )

    # Live documents

    def live_check(self, origin: str) -> LiveCheck:
        """The one that keeps an eye on the live documents of who is watched in a log."""
        if origin not in self._lives:
            self._lives[origin] = LiveCheck(
                self.outbox, self.subscriptions, origin, self._difference, chance=SystemRandom().random
            )
        return self._lives[origin]

    def look_live(self, origin: str, keys_of: KeysOf, now: int) -> None:
        """Compare the live documents that are due, in a thread of its own: their servers may be slow.

        Args:
            keys_of: called at once, in this thread.
        """
        before = self._looking.get(origin)
        if self._live is None or (before is not None and before.is_alive()):
            return
        check = self.live_check(origin)
        due = check.due(now, keys_of)
        if due:
            thread = threading.Thread(
                target=self._look, args=(check, self._live, due, now), name=f"live-{origin}", daemon=True
            )
            self._looking[origin] = thread
            thread.start()

    def finish(self, seconds: float) -> None:
        """Wait so long at most for each look under way."""
        for thread in list(self._looking.values()):
            thread.join(seconds)

    def _look(self, check: LiveCheck, fetcher: Getter, due: Sequence[Due], now: int) -> None:
        try:
            check.look(fetcher, due, now)
        except KtlogError as error:
            _LOG.error("live documents could not be compared: %s", error)

    def _difference(self, alarm: Alarm, actor_id: str) -> bool:
        """Keep an alarm about an actor's live document, for who watches the actor."""
        watched = Watched(self.subscriptions.all(alarm.origin))
        return self.outbox.put(alarm, watched.sinks_of(alarm.origin, actor_id))


class Prover:
    """Attaches entry, record and proof to alarms. Reads each page and tile once for events in order."""

    def __init__(self, files: PublicFiles, head: Head | None) -> None:
        self._files = files
        self._head = head
        self._reader: TileHashReader | None = None
        self._page: tuple[int, list[bytes], list[bytes] | None] | None = None

    def attach(self, event: Event) -> dict[str, Any]:
        """Members for the alarm; where something cannot be had, ``proof_missing`` says why."""
        out: dict[str, Any] = {"tlog_proof": None, "entry": None, "record": None}
        if event.action == ERASURE:
            return out | {"proof_missing": "an erasure is no entry; it is in the log's /erasures"}
        if self._head is None or event.leaf_index >= self._head.size:
            return out | {"proof_missing": "no head covers the entry yet"}
        try:
            entries, lines = self._read(event.leaf_index, self._head.size)
            at = event.leaf_index % TILE_WIDTH
            out["entry"] = encode_base64(entries[at])
            if lines is not None:
                parse_public_record(lines[at], event.leaf_index)
                out["record"] = json.loads(lines[at])
            out["tlog_proof"] = self._prove(entries[at], event.leaf_index, self._head).decode("utf-8")
            return out
        except KtlogError as error:
            return out | {"tlog_proof": None, "proof_missing": str(error)[:300]}

    def _read(self, leaf_index: int, size: int) -> tuple[list[bytes], list[bytes] | None]:
        number = leaf_index // TILE_WIDTH
        if self._page is None or self._page[0] != number:
            width = min(TILE_WIDTH, size - number * TILE_WIDTH)
            entries = self._files.entries(number, width)
            try:
                lines: list[bytes] | None = self._files.records(number, width)
            except KtlogError:
                lines = None
            self._page = number, entries, lines
        return self._page[1], self._page[2]

    def _prove(self, entry: bytes, leaf_index: int, head: Head) -> bytes:
        if self._reader is None:
            self._reader = TileHashReader(
                lambda path: self._files.file(path, "MissingTile"), head.size, head.root
            )
        hashes = tuple(prove_inclusion(leaf_index, head.size, self._reader))
        verify_inclusion(hash_leaf(entry), leaf_index, head.size, hashes, head.root)
        return format_proof(TlogProof(leaf_index, hashes, head.note))
