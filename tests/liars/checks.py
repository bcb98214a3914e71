"""The checks that catch the liars, and how each is turned off: one function replaced by one that accepts.

With a check turned off, the lie it catches must go unseen: so each check is needed, and each lie is caught by the check
that it was meant for.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from unittest.mock import patch

from ktlog.errors import Invalid, MessageRejected
from ktlog.pkd.entry import LogEntry
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.note import Note, Verified


@dataclass(frozen=True)
class Check:
    """target: ``module:name`` of what is replaced, wherever it is looked up. accept: from what is there, what is put in its place."""

    target: str
    accept: Callable[[Any], Any]


def says(value: Any) -> Callable[[Any], Any]:
    """A function that answers *value*, whatever it is asked."""
    return lambda true: lambda *args, **options: value


@contextmanager
def without(*names: str) -> Iterator[None]:
    """The auditor without these checks of :data:`CHECKS`."""
    with ExitStack() as stack:
        for name in names:
            for target in CHECKS[name].target.split():
                owner, attribute = find(target)
                stack.enter_context(patch.object(owner, attribute, CHECKS[name].accept(getattr(owner, attribute))))
        yield


def find(target: str) -> tuple[Any, str]:
    module, _, name = target.partition(":")
    owner: Any = importlib.import_module(module)
    *path, attribute = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, attribute


def says_it(true: Any) -> Any:
    return tuple


# -- replacements that need more than a constant


def _any_signature(true: Any) -> Any:
    return lambda note, vkeys: tuple(Verified(vkey, note.signatures[0], 0) for vkey in vkeys)


def _any_origin(true: Any) -> Any:
    def parse(data: bytes) -> Any:
        note, checkpoint = true(data)
        return note, replace(checkpoint, origin=note.signatures[0].name)

    return parse


def _good_cosignatures(true: Any) -> Any:
    def opened(self: Any, note: Note) -> Any:
        good: list[Any] = []
        for line in note.signatures:
            try:
                good += true(self, replace(note, signatures=(line,)))
            except Invalid:
                continue
        return tuple(good)

    return opened


def _own_hash(true: Any) -> Any:
    """Replay._read_message, with what the record shows in place of what the entry commits to."""
    return lambda self, parsed, record, *more: true(
        self, LogEntry(sha256(record.preimage).digest(), parsed.signature, parsed.key_hash), record, *more
    )


def _whoever(true: Any) -> Any:
    """find_signer: the first key that might have signed, when none did."""
    def signer(view: Any, message: Any, wire: Any, **options: Any) -> Any:
        try:
            return true(view, message, wire, **options)
        except MessageRejected:
            return find("ktlog.pkd.state:_candidates")[0]._candidates(view, message, None)[0]

    return signer


def _burns_anybody(true: Any) -> Any:
    def burn(view: Any, message: Any, leaf_index: int, signer: Any) -> Any:
        actor = replace(view.actors[message.actor], fireproof=False)
        change = true(replace(view, actors={**view.actors, message.actor: actor}), message, leaf_index, signer)
        return replace(change, actors=tuple(replace(one, fireproof=True) for one in change.actors))

    return burn


def _own_root(true: Any) -> Any:
    """read_erasures, with the root of what is served in place of the root beside it."""
    def read(head: Any, fetch: Any, known: Any = ()) -> Any:
        from ktlog.tlog.tiles import parse_bundle
        from ktlog.tlog.tree import Frontier, hash_leaf

        leaves = parse_bundle(fetch(f"erasures/000.p/{head.size}"), head.size)
        return true(replace(head, root=Frontier().extend(map(hash_leaf, leaves)).root()), fetch, known)

    return read


class _Anything:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def _unjudged(*names: str) -> Callable[[Any], Any]:
    """MapAudit._find, deaf to some names."""
    return lambda true: lambda self, name, *more: None if name in names else true(self, name, *more)


def _any_update(true: Any) -> Any:
    from ktlog.keymap.updates import parse_update

    return lambda self, leaf, index: parse_update(self._fetch_update(index))


def _never_old(true: Any) -> Any:
    return lambda head, policy, now, max_age, **options: true(head, policy, now, 1 << 40, **options)


def _no(name: str) -> Callable[[Any], Any]:
    """A function that gives several findings, without those of one name."""
    return lambda true: lambda *args, **options: tuple(
        fault for fault in true(*args, **options) if fault.name != name
    )


def _any_leaf_signature(true: Any) -> Any:
    return lambda entry, keys: "" if entry.key_hash in keys else true(entry, keys)


def _any_leaf_key(true: Any) -> Any:
    return lambda entry, keys: true(entry, keys) if entry.key_hash in keys else ""


def _any_form(true: Any) -> Any:
    """message_from_plain, given the canonical form of what is there."""
    return lambda dialect, preimage, plain, **options: true(
        dialect, parse_wire(dialect, preimage).preimage, plain, **options
    )


def _about_any(true: Any) -> Any:
    """parse_public_record, told that the record is about the right entry."""
    return lambda line, leaf_index: true(json.dumps({**json.loads(line), "leaf-index": leaf_index}).encode(), leaf_index)


def _denied_too(true: Any) -> Any:
    return lambda answer, replayed: [] if isinstance(answer, Invalid) else true(answer, replayed)


CHECKS = {
    # the head
    "two heads of one size": Check("auditor.heads:check_two_roots", says(None)),
    "the tree begins with the known one": Check("auditor.heads:check_extends", says(None)),
    "no smaller tree than known": Check("auditor.audit:check_rolled_back", says(False)),
    "the origin": Check("ktlog.client.verify:parse_signed_checkpoint", _any_origin),
    "the log's signature": Check("ktlog.client.verify:open_note", _any_signature),
    "each cosignature": Check("ktlog.tlog.policy:Policy.open_cosignatures", _good_cosignatures),
    "the quorum": Check("ktlog.tlog.policy:Policy.satisfied", says(True)),
    "age of the cosignatures": Check("auditor.heads:check_cosigned", _never_old),
    # the tree
    "root of the entries": Check("auditor.reading:TreePass._judge_root", says(None)),
    "tiles": Check("auditor.tilecheck:TileCheck._compare", says(None)),
    # entries
    "leaf signature": Check("auditor.structural:_signature_fault", _any_leaf_signature),
    "leaf key": Check("auditor.structural:_signature_fault", _any_leaf_key),
    "message of the entry": Check("auditor.replay:Replay._read_message", _own_hash),
    "signer": Check("ktlog.pkd.replay:find_signer", _whoever),
    "logged once": Check("ktlog.pkd.replay:Directory.check_unique", says(None)),
    "recent root": Check("ktlog.pkd.replay:Directory.check_recent_root", says(None)),
    "fireproof": Check("ktlog.pkd.state:_burn_down", _burns_anybody),
    "revoked keys stay away": Check("ktlog.pkd.state:_cannot_return", says(False)),
    "canonical form": Check("auditor.replay:message_from_plain", _any_form),
    "a record is about its entry": Check("auditor.replay:parse_public_record", _about_any),
    "commitments": Check("auditor.replay:check_commitment", says(None)),
    # erasures
    "an erasure for what is withheld": Check("ktlog.pkd.replay:Directory.may_be_withheld", says(True)),
    "how much was withheld": Check("ktlog.pkd.replay:Directory.erasure_faults", _no("RecordWithheld")),
    "root of the erasures": Check("ktlog.client.publicfiles:read_erasures", _own_root),
    "counters of the erased": Check("ktlog.pkd.replay:Directory.erasure_faults", _no("BadErasure")),
    "what is erased is gone": Check("ktlog.pkd.replay:Directory.erasure_faults", _no("NotErased")),
    "order of the erasures": Check("ktlog.client.erasures:check_records ktlog.pkd.replay:check_records", says_it),
    # the API's answers
    "actor is known": Check("auditor.asking:check_answer", _denied_too),
    "keys of an answer": Check("auditor.answers:_compare_keys", says(())),
    "history of an answer": Check("auditor.answers:_compare_history", says(())),
    "proofs of keys": Check("auditor.answers:_check_key_proofs", says(())),
    "proofs of a history": Check("auditor.answers:_check_history_proofs", says(())),
    # the map
    "update and leaf agree": Check("auditor.mapaudit:MapAudit._check_update", _any_update),
    "the map follows from the entries": Check("auditor.mapaudit:check_changes", says(None)),
    "leaves do not contradict": Check("auditor.mapaudit:leaves_contradict", says(None)),
    "one configuration": Check("auditor.mapaudit:hash_config", says(_Anything())),
    "entries of a leaf": Check("auditor.mapaudit:MapAudit._find", _unjudged("InputMismatch")),
    "erasures of a leaf": Check("auditor.mapaudit:MapAudit._find", _unjudged("BadErasure")),
    "no leaf ahead of the log": Check("auditor.mapaudit:MapAudit._find", _unjudged("MapAhead")),
    "age of the map": Check("auditor.mapaudit:MapAudit._check_late", says(None)),
    # what others see
    "one root a size": Check("auditor.compare:check_two_roots", says(None)),
    "heads of others are in the tree": Check("auditor.compare:check_extends", says(None)),
    "no larger head elsewhere": Check("auditor.compare:_frozen", says(None)),
    "no smaller head than before": Check("auditor.compare:_rolled_back", says(None)),
    "witnesses keep up": Check("auditor.compare:_behind", says(None)),
    "every cosigner is there": Check("auditor.compare:_cosigned", says(None)),
    "receipts": Check("auditor.kept:Receipts._judge", says(None)),
    "the map follows in time": Check("auditor.promises:_late", says([])),
}
