"""An alarm: what a sink is given. Pure.

It is a JSON object (docs/alarms.md has its members), whole in itself: with the entry, its record and its proof, so that
whoever receives it can check it offline with nothing but their own policy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from auditor.events import ERASURE, Event, erased_name
from auditor.report import Finding
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.pae import pae

SCHEMA = "ktlog-alarm/1"
EVENT, FINDING, DIFFERENCE, TEST = "event", "finding", "difference", "test"
MAX_LINE = 500
# What may go on after a prefix of an actor id and make it another actor's.
_LONGER = r"(?![A-Za-z0-9_~@/%-])"


@dataclass(frozen=True)
class Alarm:
    """One thing that somebody wants to be woken for.

    Attributes:
        alarm_id: the same for the same cause, however often it is made: receivers drop duplicates by it.
        time: when the auditor saw it, in Unix seconds.
        kind: ``event``, ``finding``, ``difference`` or ``test``.
        name: of the action, the finding or the difference.
        sentence: one plain line.
        subjects: actor ids, or ``erased:…``.
        more: further members of the JSON object.
    """

    alarm_id: str
    time: int
    origin: str
    kind: str
    name: str
    sentence: str
    subjects: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "id": self.alarm_id, "time": self.time, "origin": self.origin, "kind": self.kind,
            "name": self.name, "sentence": self.sentence, "subjects": list(self.subjects), **self.more,
        }


def alarm_id(origin: str, kind: str, name: str, *rest: str) -> str:
    """32 hexadecimal digits that stand for a cause."""
    return hashlib.sha256(pae(["ktlog/v1/alarm", origin, kind, name, *rest])).hexdigest()[:32]


def event_alarm(event: Event, now: int, proof: Mapping[str, Any]) -> Alarm:
    """The alarm of an event. *proof*: what :func:`auditor.owners.attach` gives, members of the object."""
    which = event.subjects if event.action == ERASURE else ()
    more: dict[str, Any] = {
        "leaf_index": event.leaf_index, "claimed_time": event.time, "reset": event.reset,
        "generation": event.generation, "detail": event.detail,
        "keys_added": [encode_public_key(key) for key in event.added],
        "keys_removed": [encode_public_key(key) for key in event.removed], "key_ids": list(event.key_ids), **proof,
    }
    return Alarm(
        alarm_id(event.origin, EVENT, event.action, str(event.leaf_index), *which), now, event.origin, EVENT,
        event.action, sentence_of(event), event.subjects, more,
    )


def sentence_of(event: Event) -> str:
    """What happened, in one line."""
    who = ", ".join(event.subjects)
    if event.action == ERASURE:
        return f"The log erased the actor {who} after entry {event.leaf_index}. It can be enrolled anew."
    words = [f"{event.action} for {who} (entry {event.leaf_index})"]
    words += [f"{len(keys)} key{'s' if len(keys) > 1 else ''} {what}"
              for keys, what in ((event.added, "added"), (event.removed, "removed")) if keys]
    if event.reset:
        words.append("a new root of trust began" + (f", {event.detail}" if event.detail else ""))
    elif event.detail:
        words.append(event.detail)
    return f"{'; '.join(words)}. If you did not do this, tell your contacts not to trust the new state."


def finding_alarm(
    origin: str, finding: Finding, opened: bool, first_seen: int, now: int, openings: int = 1
) -> Alarm:
    """The alarm of a finding of the watch that was opened, for the *openings*-th time, or closed; or changed class."""
    state = "opened" if opened else "closed"
    where = "" if finding.leaf_index is None else str(finding.leaf_index)
    what = _line(finding.what)
    return Alarm(
        alarm_id(
            origin, FINDING, finding.name, where, finding.what, state, str(first_seen), finding.kind, str(openings)
        ), now, origin, FINDING, finding.name, f"{finding.name} {state} at the log {origin}: {what}", (),
        {"state": state, "class": finding.kind, "leaf_index": finding.leaf_index, "what": what,
         "first_seen": first_seen},
    )


def test_alarm(origin: str, now: int, unique: str) -> Alarm:
    """What ``ktlog-auditor test-sink`` sends. *unique*: drawn by the caller, so that no receiver drops it."""
    return Alarm(
        alarm_id(origin, TEST, "Test", unique), now, origin, TEST, "Test",
        "This is a test alarm of ktlog-auditor. Nothing has happened.",
    )


test_alarm.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take it for one


# Forgetting


def redact(document: Mapping[str, Any], origin: str, actor_ids: Sequence[str]) -> dict[str, Any]:
    """*document* without the erased actors' ids, and without the plaintext of messages about them.

    Keys added and removed are the actor's data too and go; the entry, its hash and proof stay: they are public and
    name nobody.
    """
    names = {actor_id: erased_name(map_index(origin, actor_id)) for actor_id in actor_ids}
    pattern = re.compile("|".join(re.escape(name) + _LONGER for name in sorted(names, key=len, reverse=True)))

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return names[value] if value in names else pattern.sub(lambda found: names[found[0]], value)
        if isinstance(value, Mapping):
            return {name: clean(member) for name, member in value.items()}
        return [clean(member) for member in value] if isinstance(value, list | tuple) else value

    out = clean(document)
    if set(names) & set(document.get("subjects", ())):
        for member in ("keys_added", "keys_removed", "key_ids"):
            if member in out:
                out[member] = []
        if isinstance(out.get("record"), dict):
            out["record"] |= {"plain": dict.fromkeys(out["record"].get("plain") or {}), "salts": {}, "withheld": True}
        out["redacted"] = True
    return out


# Showing


def plain_lines(document: Mapping[str, Any], reasons: Sequence[str] = ()) -> list[str]:
    """The alarm for a person, safe for a terminal and for a mail: printable characters only, bounded lines."""
    lines = [
        _line(document["sentence"]), "",
        f"log: {_line(document['origin'])}", f"kind: {_line(document['kind'])}, {_line(document['name'])}",
        f"id: {_line(document['id'])}",
    ]
    lines += [f"about: {_line(subject)}" for subject in document.get("subjects", ())]
    lines += [f"because of: {_line(reason)}" for reason in reasons]
    for member, word in (("keys_added", "added"), ("keys_removed", "removed")):
        lines += [f"{word}: {_line(key)[:40]}..." for key in document.get(member, ())]
    if document.get("tlog_proof"):
        lines.append("proof: in its JSON (ktlog-auditor alarms --json), for ktlog-auditor verify-alarm")
    elif document.get("proof_missing"):
        lines.append(f"proof: none yet: {_line(document['proof_missing'])}")
    return lines


def _line(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= MAX_LINE else shown[:MAX_LINE] + "..."


printable_line = _line
