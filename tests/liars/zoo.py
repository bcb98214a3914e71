"""The liars, a line each: who, the lie, the name of the finding, the evidence it leaves, and the check that finds it.

Every liar begins as the honest :func:`story`. The auditor has seen its first head before (``log.known``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ktlog.pkd import attributes
from ktlog.pkd.entry import LogEntry, encode_entry, make_entry, parse_entry
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, Fireproof, RevokeKey
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Note, format_note, parse_note
from tests.liars.log import SimLog
from tests.liars.names import ORIGIN, WITNESSES, cosigner, log_signers, person
from tests.pkd_samples import private, public

ANN, BEN, CLEO, EVE = (person(name) for name in ("ann", "ben", "cleo", "eve"))


@cache
def _told(_argon2id: object) -> tuple[SimLog, SimLog]:
    """Once for each function that makes commitments: some tests have a quick one."""
    log = SimLog().enrol("ann", "p").enrol("ben", "q").enrol("cleo", "s")
    first = log.say(AddKey(ANN, public("r"), log.tick()), "p").grow().clone()
    log.say(RevokeKey(ANN, public("p"), log.tick()), "r").say(Fireproof(BEN, log.tick()), "q")
    log.grow().chat().grow()
    log.known = [log.notes[4]]
    return first, log


def first_half() -> SimLog:
    """The log under the first of :func:`story`'s heads."""
    return _told(attributes.argon2id)[0].clone()


def story() -> SimLog:
    """Ann enrolled p, added r and revoked p; Ben is fireproof; Cleo enrolled: seven entries, three heads."""
    return _told(attributes.argon2id)[1].clone()


@dataclass(frozen=True)
class Lie:
    """One liar.

    finding: its name, and the check's, where one is enough to miss the lie. also: other findings that come with it.
    believed: the log itself goes by the lie (it is told with the check turned off), so nothing else contradicts it.
    by: who finds it: an audit that does not know the map's key, one that does, or a watch, which compares what others see.
    later: what an auditor finds who has read what was there before; the same, where it is empty.
    more: evidence of other kinds that it leaves.
    overlap: other checks that see the same thing by their nature, and why.
    """

    title: str
    tell: Callable[[SimLog], Any]
    finding: str
    evidence: str | None
    check: str
    also: tuple[str, ...] = ()
    believed: bool = False
    by: str = "audit"
    later: str = ""
    overlap: tuple[str, ...] = ()
    why: str = ""
    more: tuple[str, ...] = ()


# -- what takes more than a line


def shown_other_head(log: SimLog, size: int) -> SimLog:
    """The auditor was shown, and keeps, a head of another tree of *size* entries."""
    other = log.clone().rewrite(size - 1)
    log.known.append(other.publish(size).note)
    return log


def old_tiles(log: SimLog, index: int) -> SimLog:
    """Entry *index* is another in a larger tree, and the tiles of the older one are served as they were."""
    tiles = {path: log.truth(path) for path in (f"tile/0/000.p/{log.size}", f"tile/entries/000.p/{log.size}")}
    log.rewrite(index).chat(root=log.root_text(index)).grow().lies.update(tiles)
    return log


def resign(log: SimLog, change: Callable[[Note], Note]) -> SimLog:
    log.lies["checkpoint"] = format_note(change(parse_note(log.note)))
    return log


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def spoil_last_line(note: Note) -> Note:
    line = note.signatures[-1]
    return replace(note, signatures=(*note.signatures[:-1], replace(line, blob=flipped(line.blob))))


def leaf_signed_by(log: SimLog, name: str, claimed: str) -> SimLog:
    """The last entry is signed by one leaf key, and names another."""
    entry = make_entry(log.dialect, log.preimages[-1], private(name), public(name))
    _, forged = parse_entry(entry)
    _, honest = parse_entry(make_entry(log.dialect, b"", private(claimed), public(claimed)))
    return log.put(-1, encode_entry(log.dialect, LogEntry(forged.message_hash, forged.signature, honest.key_hash)))


def other_key(log: SimLog, index: int, name: str) -> SimLog:
    """Everything that is published says that entry *index* enrolled another key."""
    return log.retell(index, "public-key", encode_public_key(public(name)))


def edited(log: SimLog, actor_id: str, change: Callable[[dict[str, Any]], Any]) -> SimLog:
    """The API's answer about one actor is another."""
    log.edit_answer = lambda answer: change(answer) if answer["actor-id"] == actor_id else None
    return log


def erasure_head(log: SimLog, **changes: Any) -> SimLog:
    return log.edit("erasures", lambda body: json.dumps({**json.loads(body), **changes}).encode())


def flip_proof(row: dict[str, Any]) -> None:
    row["inclusion-proof"][0] = ("A" if row["inclusion-proof"][0][0] != "A" else "B") + row["inclusion-proof"][0][1:]


_KEYS, _HISTORY = "public-keys", "history"
_OTHER = bytes([9]) * 32

LIARS: tuple[Lie, ...] = (
    # What is signed
    Lie("split view between two fetches", lambda log: shown_other_head(log, 7), "TwoRoots", "two-roots", "two heads of one size"),
    Lie("rewritten history", lambda log: shown_other_head(log.chat().grow(), 6), "Inconsistent", "inconsistent", "the tree begins with the known one"),
    Lie("rewritten entry beside the older tiles", lambda log: old_tiles(log.known.append(log.note) or log, 6), "Inconsistent", "two-leaves", "the tree begins with the known one", more=("inconsistent",)),
    Lie("roll-back", lambda log: log.known.append(log.notes[7]) or log.publish(4, first_half().root()), "RolledBack", None, "no smaller tree than known"),
    Lie("wrong root", lambda log: log.publish(root=_OTHER), "TreeMismatch", None, "root of the entries", also=("BadAnswerProof",), overlap=("proofs of keys", "proofs of a history"), why="an answer's proofs end at the same root"),
    Lie("checkpoint of another origin", lambda log: log.publish(named="keys.example.org"), "WrongLog", None, "the origin", overlap=("the log's signature",), why="a signature is over the origin"),
    Lie("checkpoint by another key", lambda log: log.publish(signers=log_signers(ORIGIN, 50)), "BadLogSignature", None, "the log's signature"),
    Lie("a spoilt cosignature", lambda log: resign(log, spoil_last_line), "BadCosignature", None, "each cosignature"),
    Lie("missing cosignatures", lambda log: log.publish(cosigners=[cosigner(WITNESSES[0])]), "TooFewWitnesses", None, "the quorum"),
    Lie("cosigned by a key of the log", lambda log: log.publish(cosigners=[cosigner(WITNESSES[0]), cosigner(ORIGIN)]), "TooFewWitnesses", None, "the quorum"),
    Lie("old cosignatures", lambda log: log.publish(cosigned_at=log.now - 3 * 3600), "OldCosignatures", None, "age of the cosignatures"),
    # The tree
    Lie("rewritten entry", lambda log: log.rewrite(6), "TreeMismatch", None, "root of the entries", also=("BadAnswerProof",), overlap=("proofs of keys", "proofs of a history"), why="an answer's proofs end at the same root"),
    Lie("swapped entries", lambda log: log.chat(2, log.live.root_text).grow().swap(7, 8), "TreeMismatch", None, "root of the entries", also=("BadAnswerProof",), overlap=("proofs of keys", "proofs of a history"), why="an answer's proofs end at the same root"),
    Lie("dropped entry", lambda log: log.edit("tile/entries/000.p/7", lambda body: body[: body.rindex(log.entries[6]) - 2]), "BadEntryBundle", None, ""),
    Lie("entries not there", lambda log: log.lies.update({"tile/entries/000.p/7": None}), "MissingEntries", None, ""),
    Lie("wrong partial tile", lambda log: log.edit("tile/0/000.p/7", flipped), "TileMismatch", None, "tiles"),
    Lie("tile not there", lambda log: log.lies.update({"tile/0/000.p/7": None}), "MissingTile", None, "tiles"),
    # Entries
    Lie("bad leaf signature", lambda log: leaf_signed_by(log.chat(), "mallory", "leaf").grow(), "BadLeafSignature", "bad-leaf-signature", "leaf signature"),
    Lie("unknown leaf key", lambda log: leaf_signed_by(log.chat(), "mallory", "mallory").grow(), "BadLeafSignature", None, "leaf key"),
    Lie("an entry that is none", lambda log: log.chat().put(-1, b"entry").grow(), "BadEntry", None, ""),
    Lie("entry without record", lambda log: log.edit("records/000.p/7", lambda body: b"".join(body.splitlines(True)[:-1])), "BadRecords", None, ""),
    Lie("record of another entry", lambda log: log.rewrite_record(6, **{"leaf-index": 5}), "BadRecord", None, "a record is about its entry"),
    Lie("records not there", lambda log: log.lies.update({"records/000.p/7": None}), "MissingRecords", None, ""),
    Lie("preimage mismatch", lambda log: log.rewrite_record(6, message=log.clone().chat(root=log.root_text(6)).preimages[-1].decode()), "PreimageMismatch", "wrong-record", "message of the entry"),
    Lie("preimage not canonical", lambda log: log.force_raw(log.preimages[6].replace(b":", b": ", 1)).grow(), "NotCanonical", "bad-message", "canonical form", overlap=("logged once",), why="it is the message of entry 6 again"),
    Lie("duplicate message", lambda log: log.force_raw(log.preimages[6]).grow(), "DuplicateMessage", "duplicate-message", "logged once"),
    Lie("wrong plaintext", lambda log: other_key(log.say(AddKey(BEN, public("u"), log.tick()), "q"), 7, "v").grow(), "PlaintextMismatch", "wrong-record", "commitments"),
    Lie("signed by a revoked key", lambda log: log.say(Fireproof(ANN, log.tick()), "p").grow(), "BadMessageSignature", "broken-rule", "signer", also=("AnswerContradictsLog",), believed=True),
    Lie("burning down who is fireproof", lambda log: log.enrol("eve", "t").say(BurnDown(BEN, EVE, log.tick()), "t").grow(), "BadTransition", "broken-rule", "fireproof", also=("AnswerContradictsLog",), believed=True),
    Lie("a revoked key added again", lambda log: log.say(AddKey(ANN, public("p"), log.tick()), "r").grow(), "BadTransition", "broken-rule", "revoked keys stay away", also=("AnswerContradictsLog",), believed=True),
    Lie("stale recent root", lambda log: log.say(AddAuxData(ANN, "test-v1", "late", None, log.tick()), "r", ZERO_ROOT).grow(), "StaleRoot", "broken-rule", "recent root", also=("AnswerContradictsLog",), believed=True),
    # Erasures
    Lie("erased without a record of it", lambda log: log.bury(CLEO).forget_erasure(0), "RecordWithheld", None, "an erasure for what is withheld", later="AnswerContradictsLog", overlap=("how much was withheld",), why="nothing withheld is more than nothing erased"),
    Lie("more withheld than erased", lambda log: log.enrol("eve", "t").bury(CLEO).withhold(7).vanish(EVE).grow(), "RecordWithheld", None, "how much was withheld"),
    Lie("another erasure log than its root", lambda log: erasure_head(log.bury(CLEO), root=encode_base64(_OTHER)), "BadErasures", None, "root of the erasures"),
    Lie("erasure with forged counters", lambda log: log.bury(CLEO).enrol("cleo", "u").bury(CLEO).forge_erasure(1, generation=1).grow(), "BadErasure", None, "counters of the erased"),
    Lie("erasures out of order", lambda log: log.bury(CLEO).enrol("eve", "t").bury(EVE).forge_erasure(1, input_size=2).grow(), "BadErasure", None, "order of the erasures", overlap=("how much was withheld", "what is erased is gone", "an erasure for what is withheld"), why="an erasure at another time explains other text"),
    Lie("erased and still shown", lambda log: log.bury(CLEO).retell(2, "actor", CLEO).retell(2, "public-key", encode_public_key(public("s"))), "NotErased", None, "what is erased is gone"),
    # What the API answers
    Lie("key swapped in the answer", lambda log: edited(log, ANN, lambda a: a[_KEYS][0].update({"public-key": encode_public_key(public("u"))})), "AnswerContradictsLog", None, "keys of an answer"),
    Lie("key omitted in the answer", lambda log: edited(log, ANN, lambda a: a[_KEYS].clear()), "AnswerContradictsLog", None, "keys of an answer"),
    Lie("message omitted in the answer", lambda log: edited(log, ANN, lambda a: a[_HISTORY].pop()), "AnswerContradictsLog", None, "history of an answer"),
    Lie("bad proof beside a key", lambda log: edited(log, ANN, lambda a: flip_proof(a[_KEYS][0])), "BadAnswerProof", None, "proofs of keys"),
    Lie("bad proof in a history", lambda log: edited(log, ANN, lambda a: flip_proof(a[_HISTORY][0])), "BadAnswerProof", None, "proofs of a history"),
    Lie("actor denied", lambda log: log.deny(ANN), "AnswerContradictsLog", None, "actor is known"),
    # The map
    Lie("map that no update leads to", lambda log: log.chat().grow(map_root=_OTHER), "BadMapUpdate", None, "update and leaf agree", also=("MapNotDerived",), by="map"),
    Lie("map leaf removed, for absence of who enrolled", lambda log: log.chat().grow(leaves=log.map_without(BEN)), "BadMapUpdate", None, "update and leaf agree", also=("MapNotDerived",), by="map"),
    Lie("map leaf changed without an entry", lambda log: log.chat().grow(leaves=log.map_with(BEN, fireproof=False)), "MapNotDerived", "wrong-value", "the map follows from the entries", by="map"),
    Lie("hidden revocation in the map", lambda log: log.enrol("eve", "t").say(BurnDown(ANN, EVE, log.tick()), "t").grow(leaves=log.map_as_before(ANN)), "MapNotDerived", "wrong-value", "the map follows from the entries", by="map"),
    Lie("erased and enrolled again without a reset", lambda log: log.bury(CLEO).enrol("cleo", "u").grow(leaves=log.map_with(CLEO, generation=1)), "MapNotDerived", None, "the map follows from the entries", by="map"),
    Lie("a version that fell", lambda log: log.say(AddKey(BEN, public("u"), log.tick()), "q").grow(leaves=log.map_with(BEN, version=1)), "MapNotDerived", None, "the map follows from the entries", by="map"),
    Lie("update not there", lambda log: log.lies.update({"map/updates/003": None}), "MissingMapUpdate", None, "", by="map"),
    Lie("output leaf with fewer entries", lambda log: log.chat().grow(input_size=6, input_root=log.root(6)), "MapContradiction", "map-contradiction", "leaves do not contradict", by="map"),
    Lie("output leaf with fewer entries, older heads not served", lambda log: log.chat().grow(input_size=6, input_root=log.root(6)).lies.update({"map/checkpoint/3": None, "map/checkpoint/4": None}), "MapContradiction", "map-contradiction", "leaves do not contradict", by="map"),
    Lie("output leaf of an earlier time", lambda log: log.chat().grow(time=log.now - 200), "MapContradiction", "map-contradiction", "leaves do not contradict", by="map"),
    Lie("two output leaves that contradict each other", lambda log: log.grow(leaves=log.map_with(BEN, fireproof=False)), "MapContradiction", "map-contradiction", "leaves do not contradict", by="map", overlap=("the map follows from the entries",), why="one of two maps of the same entries does not follow from them"),
    Lie("configuration changed", lambda log: log.with_config(mmd=3600).chat().grow(), "WrongConfig", None, "one configuration", by="map", overlap=("leaves do not contradict",), why="leaves of two configurations contradict each other"),
    Lie("map of other entries", lambda log: log.chat().grow(input_root=_OTHER), "InputMismatch", None, "entries of a leaf", by="map"),
    Lie("map of other erasures", lambda log: log.bury(BEN, erasures_root=_OTHER), "BadErasure", None, "erasures of a leaf", by="map"),
    Lie("erasure shown late", lambda log: log.erased(BEN).chat().grow(), "BadErasure", None, "erasures of a leaf", by="map"),
    Lie("map ahead of the log", lambda log: log.chat().add_leaf(), "MapAhead", None, "no leaf ahead of the log", by="map"),
    Lie("map that stands still", lambda log: log.idle(1200), "StaleMap", None, "age of the map", by="map"),
    # What others see
    Lie("split view between auditor and witness", lambda log: log.show_witness(log.clone().rewrite(6).publish(7)), "TwoRoots", "two-roots", "one root a size", by="watch"),
    Lie("a witness was shown another past", lambda log: log.chat(2).grow().show_witness(story().rewrite(5).chat().publish()), "Inconsistent", "inconsistent", "heads of others are in the tree", also=("WitnessBehind",), by="watch", overlap=("witnesses keep up",), why="what that witness has is smaller, too"),
    Lie("a witness is shown an older head of another past", lambda log: log.show_witness(log.clone().rewrite(5).publish(6)), "Inconsistent", "inconsistent", "heads of others are in the tree", also=("WitnessBehind",), by="watch", overlap=("witnesses keep up",), why="what that witness has is smaller, too"),
    Lie("frozen log", lambda log: log.show_witness(log.clone().chat().publish()), "FrozenLog", None, "no larger head elsewhere", by="watch"),
    Lie("roll-back after a look", lambda log: log.lies.update(checkpoint=log.notes[6]), "RolledBack", None, "no smaller head than before", also=("FrozenLog",), by="watch", overlap=("no larger head elsewhere",), why="others saw the larger head, too"),
    Lie("missing cosignature of one witness", lambda log: resign(log, lambda note: replace(note, signatures=note.signatures[:-1])), "MissingCosignature", None, "every cosigner is there", by="watch"),
    Lie("map without a verifier", lambda log: log.sign_map(cosigners=[cosigner(name) for name in WITNESSES]), "TooFewVerifiers", None, "the quorum", also=("MissingCosignature",), by="watch", overlap=("every cosigner is there",), why="that one line is missing is seen, too"),
    Lie("input held back under fresh output leaves", lambda log: log.chat().publish().next(lambda: log.hold_back(7)), "InputHeldBack", None, "the map follows in time", by="watch"),
    Lie("map that stands still while somebody watches", lambda log: log.idle(1200), "StaleMap", None, "the map follows in time", by="watch"),
    Lie("receipt not honoured", lambda log: log.promise(log.clone().chat()).chat().grow(), "BrokenPromise", "broken-promise", "receipts", by="watch"),
    Lie("receipt honoured late", lambda log: log.promise(log.clone().chat()).next(log.grow), "DelayBroken", None, "receipts", by="watch"),
    Lie("map that stays behind", lambda log: log.chat().publish().next(lambda: log.tick(400)), "LateMap", None, "the map follows in time", by="watch"),
)


def table() -> str:
    """The zoo as Markdown, a row for each finding; docs/reliability.md has it."""
    rows: dict[tuple[str, str], list[Lie]] = {}
    for lie in LIARS:
        rows.setdefault((lie.by, lie.finding), []).append(lie)
    lines = ["| found by | as | the lies | evidence |", "| --- | --- | --- | --- |"]
    for (by, finding), lies in rows.items():
        kinds = sorted({f"`{kind}`" for lie in lies for kind in (lie.evidence, *lie.more) if kind}) or ["none"]
        lines.append(f"| {by} | `{finding}` | {'; '.join(lie.title for lie in lies)} | {', '.join(kinds)} |")
    return "\n".join(lines) + "\n"
