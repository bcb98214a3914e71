"""What ``ktlog admin`` asks the sequencer to do, in the sequencing thread: between two batches, never within one.

Who may ask is decided by who can reach it: the socket lies in a 0700 directory and is its owner's alone; with
PostgreSQL it is whoever has the database's password.

=======================  ===============================================================
act                      members
=======================  ===============================================================
block, allow             ``instances``: host names; ``reason``
forget                   ``instances``
mode                     ``mode``: ``open`` or ``allow-list``
pause                    ``reason``
resume
refusals
=======================  ===============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ktlog.errors import EncodingError, MessageRejected, StoreError, UsageError
from ktlog.operator.refusalbook import RefusalBook, RefusalKey, RefusalRow
from ktlog.operator.rules import (
    MODES,
    Note,
    Rules,
    RulesKeeper,
    allowed,
    blocked,
    check_name,
    check_reason,
    forgotten,
)
from ktlog.pkd.canonical import canonical
from ktlog.tlog.encoding import parse_decimal

AT_ONCE = 500
"""Instances in one request, and refusals in one answer."""

_NOTHING_STORED = frozenset({"DiskFull", "ReadOnly"})

Change = Callable[[Rules], Rules]


@dataclass(frozen=True)
class Administration:
    """Reads such requests, and does what they ask for. now: Unix seconds."""

    keeper: RulesKeeper
    book: RefusalBook
    now: Callable[[], int]

    def plan(self, request: Mapping[str, Any]) -> Callable[[], bytes]:
        """What a request asks for, to be done when it is its turn.

        Raises:
            EncodingError: something unknown, or in a way that is not known.
        """
        if request.get("act") == "refusals":
            return lambda: canonical({"ok": {"rows": [_members(row) for row in self.book.rows(self.now())[:AT_ONCE]]}})
        change = self._change(request)
        return lambda: self._do(change)

    def _change(self, request: Mapping[str, Any]) -> Change:
        try:
            act = request["act"]
            if act == "resume":
                return lambda rules: replace(rules, paused=None)
            if act == "mode" and request["mode"] in MODES:
                mode = request["mode"]
                return lambda rules: replace(rules, mode=mode)
            if act == "pause":
                note = Note(check_reason(request["reason"]), self.now())
                return lambda rules: replace(rules, paused=note)
            asked = request["instances"]
            if not isinstance(asked, list) or not 0 < len(asked) <= AT_ONCE:  # a text would be read letter by letter
                raise EncodingError("BadRequest", f"instances is no list of 1 to {AT_ONCE} host names")
            names = [check_name(name) for name in asked]
            if act == "forget":
                return lambda rules: forgotten(rules, names)
            note = Note(check_reason(request["reason"]), self.now())
            if act in ("block", "allow"):
                add = blocked if act == "block" else allowed
                return lambda rules: add(rules, names, note)
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise EncodingError("BadRequest", f"not an act of an operator: {error}") from None
        raise EncodingError("BadRequest", "no act of an operator")

    def _do(self, change: Change) -> bytes:
        try:
            return canonical({"ok": summary(self.keeper.change(change))})
        except StoreError as error:
            if error.name not in _NOTHING_STORED:
                raise  # what is stored is not known: the next process reads it
            raise MessageRejected("not_stored", f"nothing changed: {error.message}") from None


def summary(rules: Rules) -> dict[str, object]:
    """What holds, for an answer: how many are on which list, and why nothing is taken, if so."""
    paused = {} if rules.paused is None else {"reason": rules.paused.reason, "since": str(rules.paused.time)}
    return {
        "mode": rules.mode, "blocked": str(len(rules.blocked)), "allowed": str(len(rules.allowed)), "paused": paused,
    }


def _members(row: RefusalRow) -> dict[str, str]:
    key = row.key
    return {
        "by": key.by, "code": key.code, "instance": key.instance, "verified": "yes" if key.verified else "no",
        "count": str(row.count), "first": str(row.first), "last": str(row.last),
    }


def parse_rows(answer: Mapping[str, Any]) -> list[RefusalRow]:
    """The refusals in an answer. Raises EncodingError."""
    try:
        return [
            RefusalRow(
                RefusalKey(one["by"], one["code"], one["instance"], one["verified"] == "yes"),
                *(parse_decimal(one[name]) for name in ("count", "first", "last")),
            )
            for one in answer["rows"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadAnswer", "the sequencer's answer is no list of refusals") from None
