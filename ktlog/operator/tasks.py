"""What the sequencing thread does besides messages: one-time password secrets, cosignatures, erasures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ktlog.errors import Conflict, MessageRejected
from ktlog.operator.administration import Administration
from ktlog.operator.link import (
    TotpChange,
    decode_cosign,
    decode_shred,
    decode_totp_change,
    encode_shred_report,
)
from ktlog.operator.mapping import MapCycle
from ktlog.operator.publisher import Publisher
from ktlog.operator.sequencer import Sequencer
from ktlog.operator.shred import Shredder
from ktlog.pkd.canonical import canonical
from ktlog.pkd.keys import pkd_root
from ktlog.store.contracts import Cosignature, LogStore
from ktlog.wire.actor_id import actor_domain

PUBLISH_SECONDS = 10.0
"""How long an erasure waits, and every message with it, until all entries are published."""

Task = Callable[[], bytes]
"""Something else than a message for the sequencing thread to do; gives the answer's bytes."""


@dataclass(frozen=True)
class Tasks:
    """Reads requests that are no messages, and does what they ask for.

    stop: set when the process ends, which nothing here may outlast. forget_copies: remove copies of the store that were
    made before an upgrade: they have what is erased.
    """

    store: LogStore
    sequencer: Sequencer
    publisher: Publisher
    mapping: MapCycle
    shredder: Shredder
    stop: threading.Event
    administration: Administration
    forget_copies: Callable[[], object] = lambda: None

    def plan(self, op: Any, request: Mapping[str, Any]) -> Task | None:
        """What a request other than a message asks for; None for a message.

        Raises:
            EncodingError: it asks for something known in a way that is not.
        """
        if op == "totp":
            change = decode_totp_change(request)
            return lambda: self._set_totp(change)
        if op == "cosign":
            cosignature = decode_cosign(request)
            return lambda: self._add_cosignature(cosignature)
        if op == "shred":
            actor_id, preview = decode_shred(request)
            return lambda: self._shred(actor_id, preview)
        if op == "admin":
            return self.administration.plan(request)
        return None

    def _set_totp(self, change: TotpChange) -> bytes:
        self.administration.keeper.check(change.domain)
        try:
            stored = self.store.set_totp(
                change.domain, change.secret, change.used_window, change.expected_serial
            )
        except Conflict as error:
            raise MessageRejected("totp_moved", error.message) from None
        return canonical({"ok": {"serial": "" if stored is None else str(stored.serial)}})

    def _add_cosignature(self, cosignature: Cosignature) -> bytes:
        size = cosignature.tree_size
        if size > self.sequencer.state.size or pkd_root(size, self.store.root_after(size)) != cosignature.merkle_root:
            raise MessageRejected("unknown_root", "this log never had that root")
        return canonical({"ok": {"added": "yes" if self.store.add_cosignature(cosignature) else "no"}})

    def _shred(self, actor_id: str, preview: bool) -> bytes:
        """Erase between two checkpoints: every entry before the erasure is published and mapped, none comes after yet.

        Else an auditor would for a moment see text withheld by an erasure that is not published. And the map commits to
        an erasure with exactly the entries before it, so that no entry is taken until it has done so.
        """
        state = self.sequencer.state
        deadline = time.monotonic() + PUBLISH_SECONDS
        while not preview and not (
            self.publisher.published_size >= state.size and self._mapped(state.size, self.store.erasure_count())
        ):
            if time.monotonic() > deadline or self.stop.wait(0.02):
                raise MessageRejected("overloaded", "the newest entries are not published; try again when they are")
        report = self.shredder.shred(actor_id, state, preview=preview)
        if report.done:
            self.administration.book.forget([actor_domain(actor_id)])
            self.forget_copies()
        while report.done and not self._mapped(state.size, self.store.erasure_count()):
            if self.stop.wait(0.02):
                # The next process publishes it, before it takes anything.
                return encode_shred_report(replace(report, scrubbed=False))
        return encode_shred_report(replace(report, scrubbed=report.scrubbed and not self.mapping.scrub_due()))

    def _mapped(self, size: int, erasures: int) -> bool:
        if self.mapping.covers(size, erasures):
            return True
        self.mapping.hurry.set()
        return False
