"""Who stands behind what the log publishes: cosigners by what they cosigned, and one sentence about all of it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ktlog.config import Settings
from ktlog.durable import read_file
from ktlog.errors import EncodingError, Invalid
from ktlog.operator.witnessing import input_policy
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey, open_note
from ktlog.tlog.policy import NO_QUORUM, VERIFIERS, WITNESSES, Policy, parse_policy
from ktlog.web.explorer.words import number, span
from ktlog.words import some

FRESH_SECONDS = 3_600
"""Older than this nobody's word makes an answer verified, unless the asker says so."""

OK, WARN, BAD, NONE = "ok", "warn", "bad", "none"


@dataclass(frozen=True)
class Head:
    """A published checkpoint, and when which of the policy's keys cosigned it; sound: every line of theirs verifies.

    signed: when it was signed or cosigned last; None where no line says a time.
    """

    raw: bytes
    checkpoint: Checkpoint
    times: Mapping[Vkey, int]
    sound: bool
    signed: int | None = None


class Vouchers:
    """Reads the log's publish policy and checks cosignatures by it. Safe to use from many threads.

    A cosignature takes a third of a millisecond to check, so heads are kept until they are replaced.
    """

    def __init__(self, settings: Settings, vkeys: Collection[Vkey]) -> None:
        self._path = settings.publish_policy
        self._vkeys = vkeys
        self._lock = threading.Lock()
        self._policy: tuple[bytes, Policy] = b"", Policy()
        self._heads: dict[str, tuple[bytes, Policy, Head]] = {}

    def policy(self) -> Policy:
        """The publish policy as it is now; empty where this machine has none, or one that cannot be read."""
        data = read_file(self._path) or b""
        with self._lock:
            if data != self._policy[0]:
                try:
                    self._policy = data, parse_policy(data)
                except EncodingError:
                    self._policy = data, Policy()
            return self._policy[1]

    def head(self, name: str, raw: bytes | None, policy: Policy) -> Head | None:
        """The published checkpoint *raw*, checked by *policy*. name: under which the newest one is kept."""
        if raw is None:
            return None
        kept = self._heads.get(name)
        if kept is None or kept[0] != raw or kept[1] is not policy:
            kept = raw, policy, check_head(raw, policy, self._vkeys)
            with self._lock:
                self._heads[name] = kept
        return kept[2]


def check_head(raw: bytes, policy: Policy, vkeys: Collection[Vkey] = ()) -> Head:
    """A published checkpoint, checked. vkeys: the log's own."""
    note, checkpoint = parse_signed_checkpoint(raw)
    try:
        lines, own = policy.open_cosignatures(note), open_note(note, vkeys)
    except Invalid:
        return Head(raw, checkpoint, {}, False)
    signed = max((line.timestamp for line in (*lines, *own) if line.timestamp), default=None)
    return Head(raw, checkpoint, {line.vkey: line.timestamp for line in lines}, True, signed)


def members_of(policy: Policy, name: str) -> list[Vkey]:
    """The keys of the group *name*, of groups within it too; of a policy without such a group none."""
    group = policy.groups.get(name)
    if group is None:
        return [policy.witnesses[name].vkey] if name in policy.witnesses else []
    return [vkey for member in group.members for vkey in members_of(policy, member)]


def matrix(policy: Policy, log: Head | None, directory: Head | None, now: int) -> list[dict[str, object]]:
    """A row for each cosigner: who it is, its keys, and what it cosigned of the log and of its map."""
    verifiers = set(members_of(policy, VERIFIERS))
    asked_for_log = {witness.vkey for witness in input_policy(policy).witnesses.values()}
    by_name: dict[str, list[Vkey]] = {}
    for witness in policy.witnesses.values():
        by_name.setdefault(witness.vkey.name, []).append(witness.vkey)
    return [
        {
            "name": name,
            "role": "verifier" if verifiers & set(vkeys) else "witness",
            "log": _cell(log, vkeys, now) if asked_for_log & set(vkeys) else _cell(None, (), now, asked=False),
            "map": _cell(directory, vkeys, now),
            "keys": [{"algorithm": algorithm(vkey), "key-id": vkey.key_id.hex(), "vkey": str(vkey)} for vkey in vkeys],
        }
        for name, vkeys in by_name.items()
    ]


def _cell(head: Head | None, vkeys: Collection[Vkey], now: int, *, asked: bool = True) -> dict[str, object]:
    """What one cosigner says of one head. state and words are for the eye, the rest for programs."""
    if not asked:
        return {"state": NONE, "words": "not asked", "cosigned": False, "time": None, "algorithms": [], "size": None}
    times = {} if head is None else {vkey: head.times[vkey] for vkey in vkeys if vkey in head.times}
    if head is None or not times:
        words = "nothing published" if head is None else "did not cosign this one"
        state = NONE if head is None else WARN
        return {"state": state, "words": words, "cosigned": False, "time": None, "algorithms": [], "size": None}
    newest = max(times.values())
    fresh = now - newest <= FRESH_SECONDS
    return {
        "state": OK if fresh else WARN,
        "words": f"{'fresh' if fresh else 'stale'}, {span(now - newest)} ago",
        "cosigned": True, "time": newest, "algorithms": sorted(algorithm(vkey) for vkey in times),
        "size": head.checkpoint.size,
    }


def algorithm(vkey: Vkey) -> str:
    return "ML-DSA-44" if vkey.algorithm == COSIGNATURE_MLDSA44 else "Ed25519"


def verdict(policy: Policy, log: Head | None, directory: Head | None, now: int) -> dict[str, str]:
    """One sentence about all of it, and the state that goes with it. It is about now, and by the log's own policy."""
    if log is None:
        return _said(NONE, "Nothing is published yet, so there is nothing that anybody could vouch for.")
    if not log.sound or directory is not None and not directory.sound:
        return _said(
            BAD, "A signature on what is published does not verify. Do not rely on this log until that is explained."
        )
    own = input_policy(policy)
    if own.quorum == NO_QUORUM:
        return _said(WARN, "No witness vouches for this log: what it shows you it may show to nobody else.")
    problem = _shortfall(own, log, now, "the log's newest checkpoint")
    if problem is not None:
        return _said(WARN, problem)
    witnesses = len({vkey.name for vkey in _fresh(log, now)})
    these = "this 1 entry" if log.checkpoint.size == 1 else f"these {number(log.checkpoint.size)} entries"
    seen = f"{some(witnesses, 'witness', 'witnesses')} cosigned {these} and no other history"
    if not {WITNESSES, VERIFIERS} <= policy.groups.keys():
        return _said(WARN, f"{seen}, but no verifier checks who has which keys: the log alone could leave one out.")
    if directory is None:
        return _said(WARN, f"{seen}; the map of who has which keys is not published yet.")
    problem = _shortfall(policy, directory, now, "the newest map of who has which keys")
    if problem is not None:
        return _said(WARN, f"{seen}. {problem}")
    verifiers = {vkey.name for vkey in members_of(policy, VERIFIERS) if vkey in _fresh(directory, now)}
    return _said(
        OK, f"{seen}, and {some(len(verifiers), 'verifier')} read them all, worked out who has which keys, and found"
        " the same.",
    )


def _fresh(head: Head, now: int) -> set[Vkey]:
    return {vkey for vkey, time in head.times.items() if now - time <= FRESH_SECONDS}


def _shortfall(policy: Policy, head: Head, now: int, what: str) -> str | None:
    """In words why the quorum does not stand behind *head* just now; None if it does."""
    as_of = policy.as_of(head.times, now)
    if as_of is None:
        have, need = policy.shortfall(list(head.times))
        return f"Too few stand behind {what}: {have} of the {need} that this log itself asks for."
    if now - as_of > FRESH_SECONDS:
        return f"Nobody has vouched for {what} for {span(now - as_of)}. By now apps refuse it."
    return None


def _said(state: str, sentence: str) -> dict[str, str]:
    return {"state": state, "sentence": sentence}
