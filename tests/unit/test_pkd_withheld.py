"""Fragments: which attributes an erasure may take, and what is still checked of what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ktlog.errors import Invalid, MessageRejected
from ktlog.pkd.actors import Aux, Key, Status
from ktlog.pkd.dialects import PHP, SPEC
from ktlog.pkd.entry import make_entry
from ktlog.pkd.erasure import CarriedMove
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, key_hash
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    aux_data_id,
    format_wire,
    message_from_plain,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.withheld import STAND_IN, read_fragment, stand_in_for
from tests.erasure_log import ErasingLog, check_same
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    ALICE,
    BOB,
    CAROL,
    NOW,
    build,
    private,
    public,
    quick_argon2,
    revoke_by_token,
)

DAN, ERIN = (f"https://example.com/users/{name}" for name in ("dan", "erin"))
KEY = encode_public_key(public("a"))


def fragment_of(message, *withheld: str, **changed: str):
    wire = parse_wire(SPEC, format_wire(build(SPEC, message, "a", ZERO_ROOT)))
    plain = plain_attributes(wire, message) | dict.fromkeys(withheld) | {
        name.replace("_", "-"): text for name, text in changed.items()
    }
    read, nothing = message_from_plain(SPEC, wire.preimage, plain, commitments=False)
    assert nothing is None
    return read_fragment(read, plain)


@pytest.mark.parametrize(("message", "withheld"), [
    (AddKey(ALICE, public("a"), NOW), ("public-key",)),
    (RevokeKey(ALICE, public("a"), NOW), ("actor",)),
    (RevokeKey(ALICE, public("a"), NOW), ("public-key",)),
    (AddAuxData(ALICE, "x", "y", None, NOW), ("aux-data",)),
    (RevokeAuxData(ALICE, "x", None, "y", NOW), ("actor",)),
    (RevokeAuxData(ALICE, "x", None, "y", NOW), ("aux-data",)),
], ids=str)
def test_no_erasure_takes_just_this(message, withheld) -> None:
    with pytest.raises(Invalid) as caught:
        fragment_of(message, *withheld)
    assert caught.value.name == "RecordWithheld"


def test_what_is_left_of_each_message() -> None:
    assert fragment_of(AddKey(ALICE, public("a"), NOW), "actor").public_key == public("a")
    assert fragment_of(AddKey(ALICE, public("a"), NOW), "actor", "public-key").public_key is None
    aux = fragment_of(AddAuxData(ALICE, "x", "y", None, NOW), "actor").aux
    assert aux == ("x", "y", aux_data_id("x", "y"))
    assert fragment_of(Fireproof(ALICE, NOW + 7), "actor").time == NOW + 7
    move = fragment_of(MoveIdentity(ALICE, CAROL, NOW), "old-actor")
    assert move.names == {"old-actor": None, "new-actor": CAROL} and move.changes_others()
    assert not fragment_of(MoveIdentity(ALICE, CAROL, NOW), "new-actor").changes_others()
    assert fragment_of(BurnDown(ALICE, BOB, NOW), "operator").changes_others()
    assert not fragment_of(BurnDown(ALICE, BOB, NOW), "actor").changes_others()
    assert not fragment_of(BurnDown(ALICE, BOB, NOW), "actor", "operator").changes_others()
    assert not fragment_of(RevokeAuxData(ALICE, "x", aux_data_id("x", "y"), None, NOW), "actor").changes_others()


def test_what_is_left_is_read_strictly() -> None:
    for make in (
        lambda: fragment_of(AddKey(ALICE, public("a"), NOW), "actor", public_key="mldsa44:AAAA"),
        lambda: fragment_of(MoveIdentity(ALICE, CAROL, NOW), "old-actor", new_actor="carol"),
        lambda: fragment_of(MoveIdentity(ALICE, CAROL, NOW), "old-actor", new_actor=STAND_IN),
        lambda: fragment_of(AddAuxData(ALICE, "x", "y", aux_data_id("x", "y"), NOW), "actor", aux_data="z"),
    ):
        with pytest.raises(Invalid) as caught:
            make()
        assert caught.value.name == "BadEntry"


def enrolled() -> ErasingLog:
    log = ErasingLog()
    log.send(AddKey(ALICE, public("a"), NOW), "a")
    log.send(AddKey(BOB, public("b"), NOW), "b")
    return log


def forge(log: ErasingLog, message, signer: str) -> int:
    """Put a message into the log that breaks a rule, unseen by the live directory's state."""
    wire = parse_wire(SPEC, format_wire(build(SPEC, message, signer, log.live.root_text)))
    entry = make_entry(SPEC, wire.preimage, private("leaf"), public("leaf"))
    log.live.append_void(log.live.size, entry)
    log.entries.append(entry)
    log.preimages.append(wire.preimage)
    log.plains.append(dict(plain_attributes(wire, message)))
    log.actions.append(wire.action)
    return log.live.size - 1


def refused(log: ErasingLog) -> str:
    with pytest.raises((MessageRejected, Invalid)) as caught:
        log.replayed()
    return caught.value.name


def test_a_burn_down_of_an_erased_actor_is_still_signed_by_its_operator() -> None:
    log = enrolled()
    log.send(BurnDown(ALICE, BOB, NOW), "b")
    log.erase(ALICE)
    check_same(log.replayed(), log.live)
    assert log.replayed().taken == {}
    for signer, code in (("b", None), ("a", "bad_signature")):
        log = enrolled()
        forge(log, BurnDown(ALICE, BOB, NOW), signer)
        log.erase(ALICE)
        assert code is None or refused(log) == code


def test_a_move_to_an_erased_actor_is_still_signed_by_who_left() -> None:
    log = enrolled()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    log.erase(CAROL)
    replayed = log.replayed()
    check_same(replayed, log.live)
    assert replayed.taken == {} and replayed.actors[ALICE].status == Status.MOVED
    log = enrolled()
    forge(log, MoveIdentity(ALICE, CAROL, NOW), "b")
    log.plains[2]["new-actor"] = None
    assert refused(log) == "bad_signature"


def test_a_move_from_an_erased_actor_needs_a_record_and_a_signature_of_what_moved() -> None:
    log = enrolled()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    log.erase(ALICE)
    assert list(log.replayed().taken) == [2]
    record, log.records = log.records, []
    assert refused(log) == "RecordWithheld"
    log = enrolled()
    forge(log, MoveIdentity(ALICE, CAROL, NOW), "b")
    log.plains[0]["actor"] = log.plains[2]["old-actor"] = None
    log.records = record
    assert refused(log) == "bad_signature"


def test_a_refused_move_from_an_erased_actor_is_refused_ever_after() -> None:
    """It carried nothing, so no record speaks of it. That explains its withheld text, and is no silence of the log."""
    log = enrolled()
    at = forge(log, MoveIdentity(ALICE, CAROL, NOW), "b")
    log.send(Fireproof(BOB, NOW), "b")
    record = log.erase(ALICE)
    assert record.carried == () and log.plains[at] == {"old-actor": None, "new-actor": CAROL}
    assert refused(log) == "actor_not_enrolled"
    voids: list[int] = []
    replayed = log.replayed(voids=voids)
    assert voids == [at]
    check_same(replayed, log.live)


def test_a_burn_down_by_an_erased_operator_obeys_the_rules_of_the_state() -> None:
    log = enrolled()
    log.send(Fireproof(ALICE, NOW), "a")
    forge(log, BurnDown(ALICE, BOB, NOW), "b")
    log.erase(BOB)
    assert refused(log) == "actor_is_fireproof"
    log = enrolled()
    forge(log, BurnDown(CAROL, BOB, NOW), "b")
    log.plains[2]["operator"] = None
    assert refused(log) == "actor_not_enrolled"


def test_the_same_actor_at_the_root_of_its_domain_can_be_burned_down() -> None:
    """The stand-in for the operator must not take the name of the actor."""
    root = "https://example.com/"
    log = enrolled()
    log.send(AddKey(root, public("r"), NOW), "r")
    log.send(BurnDown(root, BOB, NOW), "b")
    log.erase(BOB)
    check_same(log.replayed(), log.live)
    assert log.replayed().actors[root].status == Status.BURNED


def test_a_token_needs_somebody_who_may_have_held_its_key() -> None:
    log = enrolled()
    log.send(revoke_by_token("a"))
    log.erase(ALICE)
    assert list(log.replayed().taken) == [2]
    check_same(log.replayed(), log.live)
    # The key can never come back, whoever sends it.
    with pytest.raises(MessageRejected) as caught:
        log.send(AddKey(CAROL, public("a"), NOW), "a")
    assert caught.value.code == "key_revoked"
    log = enrolled()
    wire = parse_wire(SPEC, format_wire(build(SPEC, revoke_by_token("z"), "z")))
    _, message = message_from_plain(SPEC, wire.preimage, {}, commitments=False)
    with pytest.raises(MessageRejected) as caught:
        log.live.replay(wire, message, b"entry")
    assert caught.value.code == "unknown_token_key"


def test_what_a_move_cannot_have_carried() -> None:
    key, twin = Key(public("a"), "id", 0, NOW), Key(public("a"), "id", 1, NOW)
    datum = Aux("x", aux_data_id("x", "y"), "y", 2, NOW)
    limbo = {0: key, 1: twin, 2: datum}
    mover = stand_in_for(CarriedMove(5, True, (0, 2), 1, bytes(32)), limbo, frozenset())
    assert (mover.keys, mover.aux, mover.fireproof) == ((key,), (datum,), True)
    for leaves, revoked in (((0, 3), ()), ((0, 1), ()), ((2,), ()), ((0, 2), (key_hash(public("a")),))):
        with pytest.raises(Invalid) as caught:
            stand_in_for(CarriedMove(5, True, leaves, 1, bytes(32)), limbo, frozenset(revoked))
        assert caught.value.name == "BadErasure"


def test_names_that_a_dialect_never_hid_are_not_believed_to_be_enrolled() -> None:
    """The PHP dialect logs a BurnDown in plain text, so its names outlive the erasure."""
    log = ErasingLog(PHP)
    log.send(AddKey(ALICE, public("a"), NOW), "a")
    log.send(AddKey(BOB, public("b"), NOW), "b")
    log.send(BurnDown(ALICE, BOB, NOW), "b")
    log.erase(BOB)
    assert BOB.encode() in log.preimages[2]
    assert list(log.replayed().taken) == [2]
    check_same(log.replayed(), log.live)
    log.erase(ALICE)
    check_same(log.replayed(), log.live)


def test_nothing_is_carried_twice() -> None:
    """Two moves from erased actors cannot both have taken the one key along."""
    log = enrolled()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    forge(log, MoveIdentity(DAN, ERIN, NOW), "a")
    log.erase(ALICE)
    log.plains[3]["old-actor"] = None
    (record,) = log.records
    log.records = [replace(record, input_size=4, carried=(
        record.carried[0], replace(record.carried[0], move_leaf=3, history_size=2)))]
    assert refused(log) == "BadErasure"


def test_a_replay_that_stops_early_accuses_nobody() -> None:
    """The record counts text of entries, too, that were not replayed."""
    log = enrolled()
    log.send(AddKey(ALICE, public("c"), NOW), "a")
    log.erase(ALICE)
    for part in (log.entries, log.preimages, log.plains, log.actions):
        part.pop()
    assert log.replayed().erasure_faults() == ()


def test_text_is_accounted_for() -> None:
    log = enrolled()
    log.erase(ALICE)
    assert log.replayed().erasure_faults() == ()
    (record,) = log.records
    log.plains[0]["public-key"] = KEY
    assert [fault.name for fault in log.replayed().erasure_faults()] == ["NotErased"]
    log.plains[0]["public-key"] = None
    log.plains[1] = dict.fromkeys(log.plains[1])
    assert [fault.name for fault in log.replayed().erasure_faults()] == ["RecordWithheld"]
    assert [fault.name for fault in log.replayed([record, record]).erasure_faults()] == ["BadErasure"]
