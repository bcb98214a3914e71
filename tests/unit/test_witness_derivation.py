"""The verifier's derivation by itself: known answers, pages that do not belong to their entries, false erasures."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from ktlog.errors import Invalid, MessageRejected, UsageError
from ktlog.keymap.prefix import PrefixLeaf, subtree_hash
from ktlog.pkd.compose import signed_bytes
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR
from ktlog.pkd.entry import LogEntry, encode_entry
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.keys import key_hash, sign_mldsa44
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    UndoFireproof,
    aux_data_id,
    format_wire,
    message_from_plain,
    open_message_attributes,
    parse_wire,
)
from ktlog.pkd.state import recent_root_ok
from ktlog.tlog.encoding import encode_base64url
from tests import naive_map
from tests.erasure_log import ORIGIN
from tests.mapped_log import MappedLog, check_same
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    NOW,
    build,
    bytes_of,
    private,
    public,
    quick_argon2,
    revoke_by_token,
)
from witness.derivation import Derivation, window
from witness.maptree import Added, Key, Strand, rebuild_root

ANN, BEN, CLEO, OPS = (f"https://example.com/users/{name}" for name in ("ann", "ben", "cleo", "ops"))
EVE = "https://example.net/users/eve"
ALICE = "https://example.com/users/alice"


# -- the map


def alice() -> Strand:
    strand = Strand(map_index(ORIGIN, ALICE))
    strand.enter(ALICE, bytes(32))
    strand.add(Added(0, Key(0, NOW, key_hash(bytes(1312)))))
    return strand


def test_known_answers() -> None:
    """Directory map §10."""
    strand = alice()
    assert len(strand.value()) == 150
    leaf = strand.leaf(ORIGIN)
    assert leaf.commitment.hex() == "fb0c3f089d65c055f8fc12836611e3a5d73c16776d8196472ce4fd523e383500"
    assert rebuild_root([leaf]).hex() == "02d0fb348b01c68654cb0cd84c86570927ed234551e9ffb7823d79f60a61715b"
    strand.bury(0, 2, 1)
    tombstone = "c2c79d59d982a7f291fee6fb86817c4b59aab793a0b7e511ab6e53eb152d0223"
    assert strand.leaf(ORIGIN).commitment.hex() == tombstone


def test_a_leaf_is_computed_again_after_every_event() -> None:
    strand = alice()
    before = strand.leaf(ORIGIN)
    assert strand.leaf(ORIGIN) is before
    strand.add(Added(1, Key(1, NOW, bytes(32))))
    assert strand.leaf(ORIGIN) != before


def close_leaves(random: Random) -> list[PrefixLeaf]:
    """Indexes that share long prefixes, up to 255 bits."""
    numbers = {random.getrandbits(256)}
    for _ in range(random.randrange(12)):
        numbers.add(random.choice(sorted(numbers)) ^ 1 << random.choice([0, 1, 7, 8, 100, 254, 255]))
        numbers.add(random.getrandbits(256))
    return [PrefixLeaf(number.to_bytes(32, "big"), random.randbytes(32)) for number in sorted(numbers)]


def test_the_root_is_the_one_of_two_other_ways() -> None:
    random = Random(5)
    for _ in range(60):
        leaves = close_leaves(random)
        assert rebuild_root(leaves) == subtree_hash(leaves)
        assert rebuild_root(leaves) == naive_map.root({leaf.index: leaf.commitment for leaf in leaves})
    assert rebuild_root([]) == bytes(32)


def test_unsorted_leaves_are_a_bug() -> None:
    leaves = close_leaves(Random(1)) + [PrefixLeaf(bytes(32), bytes(32))]
    with pytest.raises(AssertionError):
        rebuild_root(leaves)


def test_the_window_at_every_size() -> None:
    """Against the operator's; and a root once too old never is recent again, so it can be forgotten."""
    for size in range(1, 700):
        for age in {0, window(size), window(size) + 1, size // 2, size // 2 + 1} & set(range(size)):
            assert recent_root_ok(age, size) == (age <= window(size)), (age, size)
    starts = [size - window(size) for size in range(1, 5000)]
    assert all(max(1, one) <= max(1, other) for one, other in zip(starts, starts[1:], strict=False))


# -- pages


def a_log(*messages: tuple[object, str], dialect: str = "spec") -> MappedLog:
    log = MappedLog(DIALECTS[dialect])
    for message, signer in messages:
        assert log.log(message(signer) if callable(message) else message, signer), message
    return log


def enrol(who: str, letter: str, signer: str = "") -> tuple[AddKey, str]:
    return AddKey(who, public(letter), NOW), signer or letter


def fed(log: MappedLog, **options: object) -> Derivation:
    derivation = Derivation(ORIGIN, **options)
    for at in range(len(log.pages)):
        assert log.give(derivation, at) is None
    return derivation


def page(log: MappedLog, at: int) -> dict[str, object]:
    salts = dict(log.pages[at].salts)
    return {
        "leaf_index": at, "entry_bytes": log.pages[at].entry, "preimage": log.preimages[at],
        "plain": dict(log.plains[at]), "salts": salts, "withheld": False,
    }


PAGES = {
    "another preimage": ("BadEntry", lambda p: p | {"preimage": p["preimage"] + b" "}),
    "another text": ("PlaintextMismatch", lambda p: p | {"plain": p["plain"] | {"actor": BEN}}),
    "a text too few": ("PlaintextMismatch", lambda p: p | {"plain": {"actor": ANN}}),
    "a text too many": ("PlaintextMismatch", lambda p: p | {"plain": p["plain"] | {"operator": ANN}}),
    "withheld by no erasure": ("RecordWithheld", lambda p: p | {"plain": p["plain"] | {"actor": None}, "withheld": True}),
    "withheld, it says": ("RecordWithheld", lambda p: p | {"withheld": True}),
    "withheld without saying": ("RecordWithheld", lambda p: p | {"plain": p["plain"] | {"actor": None}}),
    "no salt": ("BadSalt", lambda p: p | {"salts": {}}),
    "a short salt": ("BadSalt", lambda p: p | {"salts": {"actor": bytes(31)}}),
    "a salt for nobody": ("BadSalt", lambda p: p | {"salts": p["salts"] | {"operator": bytes(32)}}),
}


@pytest.mark.parametrize("case", PAGES)
def test_a_page_that_is_not_the_entrys_is_refused_and_the_right_one_taken(case: str) -> None:
    name, change = PAGES[case]
    log, derivation = a_log(enrol(ANN, "p")), Derivation(ORIGIN)
    with pytest.raises(Invalid) as caught:
        derivation.entry(**change(page(log, 0)))
    assert caught.value.name == name
    assert (derivation.size, derivation.map_leaves(), derivation.violations) == (0, [], [])
    assert derivation.entry(**page(log, 0)) is None
    check_same(log, derivation)


def test_a_salt_where_nobody_is_new() -> None:
    log = a_log(enrol(ANN, "p"), enrol(ANN, "q", "p"))
    derivation = Derivation(ORIGIN)
    log.give(derivation, 0)
    with pytest.raises(Invalid, match="BadSalt"):
        derivation.entry(**page(log, 1) | {"salts": {"actor": bytes(32)}})


def test_entries_come_in_order() -> None:
    log = a_log(enrol(ANN, "p"))
    with pytest.raises(UsageError, match="OutOfOrder"):
        Derivation(ORIGIN).entry(**page(log, 0) | {"leaf_index": 1})


@pytest.mark.parametrize("entry", [b"", b"x" * 2484, encode_entry(VECTOR, LogEntry(bytes(32), bytes(2420), bytes(32)))])
def test_what_is_no_entry_of_this_log_changes_nothing(entry: bytes) -> None:
    log, derivation = a_log(enrol(ANN, "p")), Derivation(ORIGIN, dialect=PHP)
    preimage = b"" if len(entry) != 3312 else log.preimages[0]
    if len(entry) in (2484, 3312):  # it commits to something else
        with pytest.raises(Invalid, match="BadEntry"):
            derivation.entry(0, entry, preimage, {}, {}, False)
        return
    assert derivation.entry(0, entry, preimage, {}, {}, False).name == "BadEntry"
    assert derivation.size == 1 and derivation.map_root() == bytes(32)


def test_another_dialect_than_the_logs() -> None:
    log = a_log(enrol(ANN, "p"))
    violation = Derivation(ORIGIN, dialect=PHP).entry(**page(log, 0))
    assert violation is not None and violation.name == "BadEntry"


def test_keys_that_nobody_has_are_forgotten() -> None:
    kept: dict[bytes, bytes] = {}
    log = a_log(enrol(ANN, "p"), enrol(ANN, "q", "p"), enrol(BEN, "p"), (RevokeKey(ANN, public("p"), NOW), "q"))
    derivation = fed(log, keys=kept)
    assert set(kept) == {key_hash(public("p")), key_hash(public("q"))}
    log.log(BurnDown(BEN, ANN, NOW), "q")
    log.give(derivation, 4)
    assert set(kept) == {key_hash(public("q"))}
    derivation.erase(log.erase(ANN))
    assert kept == {}


# -- rules where the specification leaves room; the operator's reading and this one must stay the same

DECIDED = {
    "burning down whom nothing is left of": (
        [enrol(ANN, "p"), enrol(OPS, "q"), (BurnDown(ANN, OPS, NOW), "q")], (BurnDown(ANN, OPS, NOW + 1), "q"), False),
    "burning down oneself": ([enrol(ANN, "p")], (BurnDown(ANN, ANN, NOW), "p"), True),
    "a token for a key that nobody has": ([enrol(ANN, "p")], (revoke_by_token, "q"), False),
    "a revoked key comes back with a move": (
        [enrol(ANN, "p"), enrol(ANN, "q", "p"), (RevokeKey(ANN, public("p"), NOW), "q"), (BurnDown(ANN, ANN, NOW), "q"),
         enrol(EVE, "p"), enrol(EVE, "r", "p")], (MoveIdentity(EVE, ANN, NOW), "r"), False),
    "a key that only the mover had revoked does not hinder": (
        [enrol(ANN, "p"), enrol(ANN, "q", "p"), (RevokeKey(ANN, public("p"), NOW), "q"), enrol(BEN, "p"),
         (BurnDown(BEN, ANN, NOW), "q")], (MoveIdentity(ANN, BEN, NOW), "q"), True),
    "a revoked key after the one who revoked it moved away": (
        [enrol(ANN, "p"), enrol(ANN, "q", "p"), (RevokeKey(ANN, public("p"), NOW), "q"), (MoveIdentity(ANN, BEN, NOW), "q")],
        (AddKey(ANN, public("p"), NOW), "p"), False),
    "a move takes the new actor's Fireproof away": (
        [enrol(ANN, "p"), (Fireproof(ANN, NOW), "p"), (revoke_by_token, "p"), enrol(BEN, "q"), enrol(OPS, "r"),
         (MoveIdentity(BEN, ANN, NOW), "q")], (BurnDown(ANN, OPS, NOW), "r"), True),
    "data revoked by id under another type": (
        [enrol(ANN, "p"), (AddAuxData(ANN, "one", "x", None, NOW), "p")],
        (RevokeAuxData(ANN, "two", aux_data_id("one", "x"), None, NOW), "p"), False),
    "the same data again": (
        [enrol(ANN, "p"), (AddAuxData(ANN, "one", "x", None, NOW), "p")], (AddAuxData(ANN, "one", "x", None, NOW + 1), "p"),
        False),
}


@pytest.mark.parametrize("case", DECIDED)
def test_both_read_it_alike(case: str) -> None:
    before, (message, signer), taken = DECIDED[case]
    log = MappedLog()
    for earlier, letter in before:
        assert log.log(earlier(letter) if callable(earlier) else earlier, letter)
    assert log.log(message(signer) if callable(message) else message, signer) == taken
    derivation = Derivation(ORIGIN)
    violations = [log.give(derivation, at) for at in range(len(log.pages))]
    assert [one is None for one in violations] == [True] * len(before) + [taken]
    check_same(log, derivation)


def test_the_same_message_again_changes_nothing_though_every_other_rule_allows_it() -> None:
    log = a_log(enrol(ANN, "p"), (Fireproof(ANN, NOW), "p"), (UndoFireproof(ANN, NOW), "p"))
    assert not log.repeat(1)
    derivation = Derivation(ORIGIN)
    assert [getattr(log.give(derivation, at), "name", None) for at in range(4)] == [None, None, None, "NotUnique"]
    check_same(log, derivation)


@pytest.mark.parametrize("how", ["itself", "somebody who moved there", "a token"])
def test_a_move_brings_no_key_back_that_was_revoked_for_ever(how: str) -> None:
    """The same code for whoever sent it, the operator's replay and this one."""
    before = {
        "itself": [enrol(BEN, "p"), enrol(BEN, "q", "p"), (RevokeKey(BEN, public("p"), NOW), "q"),
                   (BurnDown(BEN, BEN, NOW), "q")],
        "somebody who moved there": [
            enrol(CLEO, "p"), enrol(CLEO, "q", "p"), (RevokeKey(CLEO, public("p"), NOW), "q"),
            (MoveIdentity(CLEO, BEN, NOW), "q"), (BurnDown(BEN, BEN, NOW), "q")],
        "a token": [enrol(CLEO, "p"), (revoke_by_token("p"), "p")],
    }[how]
    # A token takes a key from everybody, so nobody has it who could move: AddKey is where it stops.
    last = (enrol(BEN, "p")) if how == "a token" else (MoveIdentity(ANN, BEN, NOW), "r")
    others = [] if how == "a token" else [enrol(ANN, "p"), enrol(ANN, "r", "p")]
    log = a_log(*before, *others)
    with pytest.raises(MessageRejected) as caught:
        log.send(*last)
    assert caught.value.code == "key_revoked"
    assert not log.log(*last)
    derivation = Derivation(ORIGIN)
    violation = [log.give(derivation, at) for at in range(len(log.pages))][-1]
    assert violation is not None and (violation.name, "(key_revoked)" in violation.message) == ("BadTransition", True)
    check_same(log, derivation)


# -- rulings that make verifiers fail closed (docs/decisions/0007); both derivations take them alike


def test_burn_downs_by_an_erased_operator_are_taken() -> None:
    log = a_log(enrol(ANN, "p"), enrol(OPS, "q"), (BurnDown(ANN, OPS, NOW), "q"))
    assert fed(log).taken == [] and log.replayed().taken == {}
    record = log.erase(OPS)
    joiner = late(log)
    joiner.erase(record)
    assert [one.leaf_index for one in joiner.taken] == list(log.replayed().taken) == [2]
    check_same(log, joiner)


def test_what_had_no_effect_and_was_withheld_has_one_for_who_comes_late() -> None:
    """So that no late verifier arrives at the map that those who saw it derived: it signs nothing."""
    log = a_log(enrol(ANN, "p"), enrol(OPS, "q"))
    assert not log.log(BurnDown(ANN, OPS, NOW), "p")
    live = Derivation(ORIGIN)
    assert [getattr(log.give(live, at), "name", "") for at in range(3)] == ["", "", "BadMessageSignature"]
    record = log.erase(OPS)
    live.erase(record)
    check_same(log, live)
    joiner = late(log)
    joiner.erase(record)
    joiner.check_withheld()
    assert joiner.violations == [] and joiner.strand(ANN).keys == {} and live.strand(ANN).keys
    assert joiner.map_root() != live.map_root()
    assert not log.replayed().actors[ANN].keys and log.live.actors[ANN].keys


def test_a_token_for_a_key_that_nobody_holds_does_not_bar_the_key() -> None:
    log = a_log(enrol(ANN, "p"))
    assert not log.log(revoke_by_token("q"), "q")
    assert log.log(*enrol(BEN, "q"))
    derivation = Derivation(ORIGIN)
    assert [getattr(log.give(derivation, at), "name", "") for at in range(3)] == ["", "BadTransition", ""]
    check_same(log, derivation)
    # And the token counts once somebody holds it: the first time was no use of it.
    assert log.log(revoke_by_token("q"), "q") and log.give(derivation, 3) is None
    check_same(log, derivation)


def test_an_entry_that_no_text_opens_is_never_got_over() -> None:
    log = a_log(enrol(ANN, "p"))
    wire = build(SPEC, Fireproof(ANN, NOW), "p", log.live.root_text)
    # Its commitment was made for another root, so it is to no text under this one.
    elsewhere = build(SPEC, Fireproof(ANN, NOW), "p")
    body = wire["message"] | {"actor": elsewhere["message"]["actor"]}
    signature = sign_mldsa44(private("p"), signed_bytes(SPEC, "Fireproof", body, wire["recent-merkle-root"]))
    assert log.log_text(format_wire(wire | {"message": body, "signature": encode_base64url(signature)}))
    derivation = Derivation(ORIGIN)
    log.give(derivation, 0)
    for text, name in ((ANN, "PlaintextMismatch"), (BEN, "PlaintextMismatch"), (None, "RecordWithheld")):
        log.plains[1]["actor"] = text
        with pytest.raises(Invalid) as caught:
            log.give(derivation, 1)
        assert (caught.value.name, derivation.size) == (name, 1)
    # Nor by the operator's own replay, which every auditor runs. Admission refuses it: plaintext_mismatch.
    with pytest.raises(Invalid, match="PlaintextMismatch"):
        message_from_plain(SPEC, log.preimages[1], {"actor": ANN}, commitments=True)
    with pytest.raises(MessageRejected, match="plaintext_mismatch"):
        open_message_attributes(SPEC, parse_wire(SPEC, format_wire(wire | {"message": body, "signature": encode_base64url(signature)})), commitments=True)


# -- erasures


def moved_log() -> MappedLog:
    return a_log(enrol(ANN, "p"), (Fireproof(ANN, NOW), "p"), (MoveIdentity(ANN, BEN, NOW), "p"), enrol(CLEO, "q"))


RECORDS = {
    "another version": lambda r: replace(r, version=r.version + 1),
    "another generation": lambda r: replace(r, generation=r.generation + 1),
    "other keys carried": lambda r: replace(r, carried=(replace(r.carried[0], leaves=(1,)),)),
    "Fireproof left out": lambda r: replace(r, carried=(replace(r.carried[0], fireproof=False),)),
    "another history size": lambda r: replace(r, carried=(replace(r.carried[0], history_size=1),)),
    "another history root": lambda r: replace(r, carried=(replace(r.carried[0], history_root=bytes(32)),)),
    "a move left out": lambda r: replace(r, carried=()),
    "another index": lambda r: replace(r, index=bytes(32)),
    "another size": lambda r: replace(r, input_size=r.input_size - 1),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_that_is_not_true_is_refused(case: str) -> None:
    log = moved_log()
    derivation = fed(log)
    record = log.erase(ANN)
    with pytest.raises(Invalid, match="BadErasure"):
        derivation.erase(RECORDS[case](record))
    derivation.erase(record)
    check_same(log, derivation)


def late(log: MappedLog, records: list[ErasureRecord] | None = None, **options: object) -> Derivation:
    derivation = Derivation(ORIGIN, records=log.records if records is None else records, **options)
    for at in range(len(log.pages)):
        log.give(derivation, at)
    return derivation


def test_a_late_joiner_takes_a_move_and_its_history_from_the_record() -> None:
    log = moved_log()
    record = log.erase(ANN)
    derivation = late(log)
    derivation.erase(record)
    derivation.check_withheld()
    assert [one.leaf_index for one in derivation.taken] == [2] and derivation.strand(BEN).fireproof
    check_same(log, derivation)
    # Told another history, it derives another map, and signs none.
    for change in ({"history_size": 1}, {"history_root": bytes(32)}):
        (moved,) = record.carried
        lied = late(log, [replace(record, carried=(replace(moved, **change),))])
        assert lied.violations == [] and lied.map_root() != derivation.map_root()


def test_a_late_joiner_is_told_too_little() -> None:
    log = moved_log()
    record = log.erase(ANN)
    silent = late(log, [replace(record, carried=())])
    assert [one.leaf_index for one in silent.violations] == [2] and silent.strand(BEN) is None
    for leaves in ((0, 1), (1,)):
        carried = (replace(record.carried[0], leaves=leaves),)
        with pytest.raises(Invalid, match="BadErasure"):
            late(log, [replace(record, carried=carried)])
    with pytest.raises(Invalid, match="BadErasure"):
        late(log, [replace(record, version=9)]).erase(record)


def test_a_move_without_effect_carried_nothing_when_its_actor_was_erased() -> None:
    log = a_log(enrol(ANN, "p"), enrol(BEN, "q"))
    assert not log.log(MoveIdentity(ANN, BEN, NOW), "p") and not log.log(MoveIdentity(ANN, CLEO, NOW), "q")
    live = Derivation(ORIGIN)
    violations = [log.give(live, at) for at in range(4)][2:]
    record = log.erase(ANN)
    live.erase(record)
    assert (record.carried, record.newly_withheld) == ((), 4)
    check_same(log, live)
    joiner = late(log)
    joiner.erase(record)
    joiner.check_withheld()
    assert [one.leaf_index for one in joiner.violations] == [one.leaf_index for one in violations] == [2, 3]
    check_same(log, joiner)


def test_nothing_is_carried_away_twice() -> None:
    log = a_log(enrol(ANN, "p"), (MoveIdentity(ANN, BEN, NOW), "p"), enrol(ANN, "q"), (MoveIdentity(ANN, CLEO, NOW), "q"))
    record = log.erase(ANN)
    assert [move.leaves for move in record.carried] == [(0,), (2,)]
    with pytest.raises(Invalid, match="BadErasure"):
        late(log, [replace(record, carried=(record.carried[0], replace(record.carried[1], leaves=(0, 2))))])
    assert late(log).violations == []


def test_a_token_after_the_last_erasure_was_nobodys() -> None:
    """Before it, somebody erased may have had the key; after it everybody who has a key can be read."""
    log = a_log(enrol(ANN, "p"), enrol(BEN, "q"), (revoke_by_token, "p"))
    log.erase(ANN)
    assert [one.leaf_index for one in late(log).taken] == [2]
    log.log(revoke_by_token("r"), "r")
    log.erase(BEN)
    assert [one.leaf_index for one in late(log).taken] == [2, 3], "what nobody can tell apart any more"
    log.log(revoke_by_token("s"), "s")
    assert [one.leaf_index for one in late(log).violations] == [4]


def test_a_late_joiner_counts_what_is_withheld() -> None:
    log = moved_log()
    record = log.erase(ANN)
    for number, name in ((record.newly_withheld - 1, "RecordWithheld"), (record.newly_withheld + 1, "NotErased")):
        with pytest.raises(Invalid, match=name):
            late(log, [replace(record, newly_withheld=number)]).check_withheld()
    early = [replace(record, input_size=3, newly_withheld=9), replace(record, version=9, generation=2)]
    log.plains[3]["actor"] = log.plains[3]["public-key"] = None
    with pytest.raises(Invalid, match="NotErased"):
        late(log, early).check_withheld()


def test_an_erased_name_that_is_still_readable() -> None:
    log = moved_log()
    record = log.erase(ANN)
    log.plains[0]["actor"] = ANN
    with pytest.raises(Invalid, match="NotErased"):
        late(log, [record])


def test_a_key_withheld_alone_is_explained_by_nothing() -> None:
    log = moved_log()
    log.erase(ANN)
    log.plains[3]["public-key"] = None
    with pytest.raises(Invalid, match="RecordWithheld"):
        late(log)


def test_an_actor_erased_twice_goes_on_counting() -> None:
    log = a_log(enrol(ANN, "p"))
    derivation = fed(log)
    derivation.erase(log.erase(ANN))
    log.log(*enrol(ANN, "p"))
    log.give(derivation, 1)
    derivation.erase(log.erase(ANN))
    assert (derivation.strand(ANN).version, derivation.strand(ANN).erasures, derivation.strand(ANN).buried) == (4, 2, 1)
    check_same(log, derivation)
    backwards = [log.records[0], replace(log.records[1], version=3)]
    joiner = Derivation(ORIGIN, records=backwards)
    log.give(joiner, 0)
    joiner.erase(backwards[0])
    log.give(joiner, 1)
    with pytest.raises(Invalid, match="BadErasure"):
        joiner.erase(backwards[1])


# -- independence


@pytest.mark.parametrize("module", ["derivation", "rules", "maptree"])
def test_it_shares_no_rule_with_the_operator(module: str) -> None:
    """Nor does it read, wait or draw anything."""
    source = Path(__file__).resolve().parents[2] / "witness" / f"{module}.py"
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    operators = {"ktlog.pkd.state", "ktlog.pkd.replay", "ktlog.pkd.actors", "ktlog.pkd.withheld"}
    assert not names & (operators | {"os", "time", "secrets", "random", "pathlib", "sqlite3"})
    assert {name for name in names if name.startswith("ktlog.")} <= {
        "ktlog.errors", "ktlog.keymap.prefix", "ktlog.keymap.value", "ktlog.pkd.actions", "ktlog.pkd.dialects",
        "ktlog.pkd.entry", "ktlog.pkd.erasure", "ktlog.pkd.identity", "ktlog.pkd.keys", "ktlog.pkd.messages",
        "ktlog.pkd.pae", "ktlog.tlog.encoding", "ktlog.tlog.tree",
    }
