"""A directory told real, signed messages: all ten actions in all three dialects, and every refusal."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ktlog.pkd.dialects import DIALECTS, SPEC
from ktlog.pkd.entry import make_entry
from ktlog.pkd.keys import ZERO_ROOT, derive_key_id, encode_root, key_hash
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    aux_data_id,
    format_wire,
    message_from_plain,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.replay import Directory
from ktlog.pkd.state import Role, Status, View, find_signer
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    ALICE,
    BOB,
    CAROL,
    NOW,
    ONE_OF_EACH,
    Log,
    build,
    private,
    public,
    quick_argon2,
    refusal,
    revoke_by_token,
)

EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)


def state_of(directory: Directory) -> dict[str, Any]:
    return copy.deepcopy(vars(directory))


def refused(log: Log, *arguments: Any, **options: Any) -> str:
    """The code of a refusal, which must leave the directory as it was."""
    before = state_of(log.directory)
    code = refusal(lambda: log.send(*arguments, **options))
    assert state_of(log.directory) == before
    return code


def enrolled(dialect) -> Log:
    """Alice with key a, Bob with key b."""
    log = Log(dialect)
    log.send(AddKey(ALICE, public("a"), NOW), "a")
    log.send(AddKey(BOB, public("b"), NOW + 1), "b")
    return log


# --- all ten actions


@EVERY_DIALECT
def test_a_life_with_all_ten_actions(dialect) -> None:
    log = enrolled(dialect)
    log.send(AddKey(ALICE, public("c"), NOW), "a")
    log.send(RevokeKey(ALICE, public("a"), NOW), "c")
    log.send(AddAuxData(ALICE, "test-v1", "datum", aux_data_id("test-v1", "datum"), NOW), "c")
    log.send(AddAuxData(ALICE, "test-v1", "other", None, NOW), "c")
    log.send(RevokeAuxData(ALICE, "test-v1", None, "other", NOW), "c")
    log.send(Fireproof(ALICE, NOW), "c")
    log.send(MoveIdentity(ALICE, CAROL, NOW), "c")
    log.send(UndoFireproof(CAROL, NOW), "c")
    log.send(RevokeAuxData(CAROL, "test-v1", aux_data_id("test-v1", "datum"), None, NOW), "c")
    log.send(ONE_OF_EACH[-1], "directory")
    log.send(AddKey(ALICE, public("d"), NOW), "d")
    log.send(BurnDown(ALICE, BOB, NOW), "b")
    log.send(revoke_by_token("c"))
    actors = log.directory.actors
    assert {name: (a.status, a.version, a.generation) for name, a in actors.items()} == {
        ALICE: (Status.BURNED, 10, 2), BOB: (Status.ACTIVE, 1, 1), CAROL: (Status.REVOKED, 4, 1),
    }
    assert log.directory.size == 15 and log.directory.greatest_time == NOW + 1
    assert log.directory.histories[ALICE][-3:] == [
        (8, Role.MOVED_OUT), (12, Role.SUBJECT), (13, Role.SUBJECT),
    ]
    assert log.directory.histories[CAROL][0] == (8, Role.MOVED_IN)
    assert log.directory.holders(key_hash(public("b"))) == (BOB,)
    assert log.directory.holders(key_hash(public("c"))) == ()


@EVERY_DIALECT
def test_a_replayer_without_keys_comes_to_the_same_directory(dialect) -> None:
    log = Log(dialect)
    replayer = Directory("keys.example.com")
    story = [
        (AddKey(ALICE, public("a"), NOW), "a"), (AddAuxData(ALICE, "x", "y", None, NOW), "a"),
        (MoveIdentity(ALICE, CAROL, NOW), "a"), (RevokeAuxData(CAROL, "x", None, "y", NOW), "a"),
        (revoke_by_token("a"), "a"),
    ]
    for message, signer in story:
        text = format_wire(build(dialect, message, signer, log.directory.root_text))
        wire = parse_wire(dialect, text)
        plain = plain_attributes(wire, open_message_attributes(dialect, wire, commitments=True))
        entry = make_entry(dialect, wire.preimage, private("leaf"), public("leaf"))
        log.directory.replay(wire, message, entry)
        read, again = message_from_plain(dialect, wire.preimage, plain, commitments=True)
        replayer.replay(read, again, entry)
    assert replayer.actors == log.directory.actors and replayer.roots == log.directory.roots
    assert replayer.seen == log.directory.seen


@EVERY_DIALECT
def test_moves_that_are_refused(dialect) -> None:
    log = enrolled(dialect)
    assert refused(log, MoveIdentity(ALICE, BOB, NOW), "a") == "target_has_keys"
    assert refused(log, MoveIdentity(ALICE, CAROL, NOW), "b") == "bad_signature"
    assert refused(log, MoveIdentity(CAROL, ALICE, NOW), "a") == "actor_not_enrolled"


@EVERY_DIALECT
def test_auxiliary_data_that_is_refused(dialect) -> None:
    log = enrolled(dialect)
    log.send(AddAuxData(ALICE, "x", "y", None, NOW), "a")
    wrong = aux_data_id("x", "z")
    assert refused(log, AddAuxData(ALICE, "x", "y", None, NOW + 1), "a") == "aux_exists"
    assert refused(log, AddAuxData(ALICE, "x", "w", wrong, NOW), "a") == "aux_id_mismatch"
    assert refused(log, AddAuxData(ALICE, "x", "w", None, NOW), "b") == "bad_signature"
    assert refused(log, AddAuxData(CAROL, "x", "w", None, NOW), "a") == "actor_not_enrolled"
    assert refused(log, RevokeAuxData(ALICE, "x", wrong, None, NOW), "a") == "unknown_aux"
    assert refused(log, RevokeAuxData(ALICE, "x", None, "z", NOW), "a") == "unknown_aux"
    assert refused(log, RevokeAuxData(ALICE, "x", wrong, "y", NOW), "a") == "aux_id_mismatch"
    assert refused(log, RevokeAuxData(ALICE, "x", None, "y", NOW), "b") == "bad_signature"
    assert refused(log, RevokeAuxData(CAROL, "x", None, "y", NOW), "a") == "actor_not_enrolled"


def test_other_refusals_with_real_signatures() -> None:
    log = enrolled(SPEC)
    assert refused(log, AddKey(ALICE, public("c"), NOW), "c") == "self_signed_not_allowed"
    assert refused(log, AddKey(ALICE, public("a"), NOW), "a") == "self_signed_not_allowed"
    assert refused(log, AddKey(ALICE, public("c"), NOW), "b") == "bad_signature"
    assert refused(log, AddKey(CAROL, public("c"), NOW), "a") == "bad_signature"
    assert refused(log, Fireproof(CAROL, NOW), "a") == "actor_not_enrolled"
    assert refused(log, BurnDown(ALICE, BOB, NOW), "a") == "bad_signature"
    assert refused(log, revoke_by_token("c")) == "unknown_token_key"
    assert refused(log, ONE_OF_EACH[-1], "a") == "bad_signature"


def test_a_signature_over_anything_else_is_refused() -> None:
    log = enrolled(SPEC)
    members = build(SPEC, Fireproof(ALICE, NOW), "a", log.directory.root_text)
    other = build(SPEC, UndoFireproof(ALICE, NOW), "a", log.directory.root_text)
    changes = [
        {"signature": other["signature"]}, {"action": "UndoFireproof"},
        {"message": members["message"] | {"time": str(NOW + 1)}},
        {"recent-merkle-root": encode_root(log.directory.roots[0])},
    ]
    for change in changes:
        assert refusal(lambda change=change: log.deliver(json.dumps(members | change))) == "bad_signature"
    log.deliver(json.dumps(members))


# --- once only


def test_the_same_message_is_taken_once_however_it_is_written_or_signed() -> None:
    log = enrolled(SPEC)
    root = log.directory.root_text
    members = build(SPEC, AddAuxData(ALICE, "x", "y", None, NOW), "a", root)
    log.deliver(json.dumps(members))
    log.send(RevokeAuxData(ALICE, "x", None, "y", NOW), "a")
    again = build(SPEC, AddAuxData(ALICE, "x", "y", None, NOW), "a", root)
    assert again["signature"] != members["signature"]
    for text in (json.dumps(members), json.dumps(members, indent=1), json.dumps(again)):
        assert refusal(lambda text=text: log.deliver(text)) == "duplicate_message"
    log.send(AddAuxData(ALICE, "x", "y", None, NOW + 1), "a", root=root)


def test_a_key_is_revoked_by_token_once_whatever_token_it_is() -> None:
    log = enrolled(SPEC)
    log.send(revoke_by_token("a"))
    another = RevokeKeyThirdParty(parse_token(make_token(private("a"), public("a"))))
    assert refused(log, another) == "duplicate_message"


def test_a_refused_message_may_come_again() -> None:
    log = enrolled(SPEC)
    text = format_wire(build(SPEC, Fireproof(CAROL, NOW), "c", log.directory.root_text))
    assert refusal(lambda: log.deliver(text)) == "actor_not_enrolled"
    log.send(AddKey(CAROL, public("c"), NOW), "c")
    log.deliver(text)
    assert log.directory.actors[CAROL].fireproof


# --- recent roots


def test_only_roots_of_this_log_count() -> None:
    log = Log(SPEC)
    unknown = encode_root(bytes(31) + b"\x01")
    assert refused(log, AddKey(ALICE, public("a"), NOW), "a", root=unknown) == "merkle_root_stale"
    log.send(AddKey(ALICE, public("a"), NOW), "a", root=ZERO_ROOT)
    for root in (ZERO_ROOT, unknown):
        assert refused(log, AddKey(BOB, public("b"), NOW), "b", root=root) == "merkle_root_stale"


def test_roots_grow_old() -> None:
    """A directory of 600 entries: 300 is the greatest age. Entries without effect make it cheaply."""
    log = enrolled(SPEC)
    for leaf_index in range(2, 600):
        log.directory.append_void(leaf_index, b"entry %d" % leaf_index)
    roots = log.directory.roots
    assert refused(log, Fireproof(ALICE, NOW), "a", root=encode_root(roots[298])) == "merkle_root_stale"
    log.send(Fireproof(ALICE, NOW), "a", root=encode_root(roots[299]))
    assert refused(log, Fireproof(BOB, NOW), "b", root=encode_root(roots[299])) == "merkle_root_stale"
    log.send(Fireproof(BOB, NOW), "b", root=encode_root(roots[300]))


# --- the tree and the names


def test_roots_are_those_of_the_tree_over_the_entries() -> None:
    log = Log(SPEC)
    assert log.directory.root_text == ZERO_ROOT
    entries = [b"one", b"two", b"three", b"four", b"five"]
    for i, entry in enumerate(entries):
        log.directory.append_void(i, entry)
        reader = leaf_reader([hash_leaf(e) for e in entries[:i + 1]])
        assert log.directory.roots[i] == root_hash(i + 1, reader)
        assert log.directory.root_text == encode_root(log.directory.roots[i])
    with pytest.raises(AssertionError):
        log.directory.append_void(4, b"again")


def test_entries_are_accepted_in_order_only() -> None:
    log = Log(SPEC)
    message = AddKey(ALICE, public("a"), NOW)
    wire = parse_wire(SPEC, format_wire(build(SPEC, message)))
    with pytest.raises(AssertionError):
        log.directory.accept(1, wire, message, public("a"), b"entry")
    assert log.directory.size == 0


def test_key_ids_are_derived_from_origin_and_index_unless_given() -> None:
    log = enrolled(SPEC)
    keys = [log.directory.actors[name].keys[0] for name in (ALICE, BOB)]
    assert [key.key_id for key in keys] == [derive_key_id("keys.example.com", i) for i in (0, 1)]
    directory, message = Directory("keys.example.com"), AddKey(ALICE, public("a"), NOW)
    wire = parse_wire(SPEC, format_wire(build(SPEC, message)))
    change = directory.accept(0, wire, message, directory.check(wire, message), b"entry", key_id="injected")
    assert change.actors[0].keys[0].key_id == "injected"


def test_created_of_what_follows_a_token_is_not_disturbed_by_it() -> None:
    log = enrolled(SPEC)
    log.send(revoke_by_token("a"))
    assert log.directory.greatest_time == NOW + 1
    log.send(AddKey(CAROL, public("c"), NOW - 5), "c")
    assert log.directory.actors[CAROL].keys[0].created == NOW - 5
    assert log.directory.greatest_time == NOW + 1


# --- who signed


def test_the_key_id_is_a_hint_for_admission_and_nothing_to_a_replayer() -> None:
    log = enrolled(SPEC)
    log.send(AddKey(ALICE, public("c"), NOW), "a")
    ids = {name: derive_key_id("keys.example.com", i) for name, i in (("a", 0), ("b", 1), ("c", 2))}

    def text(key_id: str) -> str:
        wire = build(SPEC, Fireproof(ALICE, NOW), "c", log.directory.root_text, key_id=key_id)
        return format_wire(wire)

    assert refusal(lambda: log.deliver(text(ids["a"]), use_key_id=True)) == "bad_signature"
    assert refusal(lambda: log.deliver(text(ids["b"]), use_key_id=True)) == "unknown_key_id"
    assert refusal(lambda: log.deliver(text(encode_base64url(bytes(32))), use_key_id=True)) == "unknown_key_id"
    log.deliver(text(ids["c"]), use_key_id=True)
    wire = build(SPEC, UndoFireproof(ALICE, NOW), "c", log.directory.root_text, key_id=ids["b"])
    log.deliver(format_wire(wire))


def test_a_first_key_needs_no_hint_and_ignores_one() -> None:
    log = Log(SPEC)
    members = build(SPEC, AddKey(ALICE, public("a"), NOW), "a", key_id=encode_base64url(bytes(32)))
    log.deliver(format_wire(members), use_key_id=True)


def test_find_signer_names_the_key() -> None:
    log = enrolled(SPEC)
    log.send(AddKey(ALICE, public("c"), NOW), "a")
    for message, signer in [
        (Fireproof(ALICE, NOW), "c"), (AddKey(CAROL, public("d"), NOW), "d"),
        (BurnDown(ALICE, BOB, NOW), "b"), (ONE_OF_EACH[-1], "directory"),
    ]:
        wire = parse_wire(SPEC, format_wire(build(SPEC, message, signer)))
        assert find_signer(log.directory.view_for(message), message, wire) == public(signer)
    token = revoke_by_token("a")
    wire = parse_wire(SPEC, format_wire(build(SPEC, token)))
    assert find_signer(View({}, frozenset(), {}), token, wire) is None
    assert isinstance(ONE_OF_EACH[-1], CheckpointMessage)
