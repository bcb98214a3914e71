"""The only writer: what it accepts it never signs twice, and what it refuses leaves no trace."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktlog.errors import Conflict, MessageRejected, StoreError
from ktlog.operator import sequencer as sequencer_module
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.sequencer import KnownRoots, check_recent_root
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR
from ktlog.pkd.entry import verify_entry
from ktlog.pkd.keys import ZERO_ROOT, encode_root, key_hash, pkd_root
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    Fireproof,
    MoveIdentity,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    open_message_attributes,
    parse_wire,
)
from ktlog.pkd.replay import Directory
from ktlog.pkd.state import recent_window
from ktlog.pkd.token import make_token, parse_token
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.memory import MemoryStore
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.tree import EMPTY_ROOT, hash_leaf
from tests.operator_world import NOW, ORIGIN, Desk
from tests.pkd_samples import (
    ALICE,
    BOB,
    CAROL,
    private,
    public,
    quick_argon2,  # noqa: F401
    revoke_by_token,
    text_of,
)
from tests.store_samples import Draft, append, dump

LEAF_KEYS = {hashlib.sha256(public("leaf")).digest(): public("leaf")}


def add(actor: str, name: str, time: int = NOW) -> AddKey:
    return AddKey(actor, public(name), time)


def revoke(actor: str, name: str, time: int = NOW) -> RevokeKey:
    return RevokeKey(actor, public(name), time)


def codes(results) -> list[str | int]:
    """Leaf index of what was accepted, code of what was not."""
    return [r.leaf_index if isinstance(r, Receipt) else r.code for r in results]


def begun() -> MemoryStore:
    """A log with one entry, so that a batch has a root to be bound to."""
    store = MemoryStore(ORIGIN, "spec")
    append(store, Draft("the first entry", time=NOW))
    return store


@pytest.fixture
def desk() -> Desk:
    """An empty log."""
    return Desk()


@pytest.fixture
def begun_desk() -> Desk:
    return Desk(begun())


# --- one batch


def test_a_batch_of_good_and_bad_gets_one_answer_each_in_order(begun_desk):
    desk = begun_desk
    garbage = Submission(b'{"action":"AddKey"}', {}, {})
    good = desk.make(add(BOB, "c"), "c")
    results = desk.batch(
        desk.make(add(ALICE, "a")),
        desk.make(add(ALICE, "b"), "b"),  # Alice has a key now, and it did not sign this one
        garbage,
        desk.make(add(BOB, "c"), "d"),  # enrolled by somebody else's signature
        good,
        desk.make(Fireproof(CAROL, NOW), "e"),
    )
    assert codes(results) == [1, "self_signed_not_allowed", "bad_request", "bad_signature", 2, "actor_not_enrolled"]
    assert desk.size == 3
    assert [key.public_key for key in desk.store.actor(ALICE).keys] == [public("a")]
    assert [key.public_key for key in desk.store.actor(BOB).keys] == [public("c")]
    assert desk.store.actor(CAROL) is None
    desk.batch(good, good)
    assert desk.sequencer.messages == {
        ("AddKey", "accepted"): 2, ("AddKey", "refused"): 2, ("unreadable", "refused"): 1, ("Fireproof", "refused"): 1,
        ("AddKey", "known"): 2,
    }


def test_a_receipt_says_where_the_entry_is_and_the_leaf_key_signed_it(begun_desk):
    desk = begun_desk
    submissions = [desk.make(add(ALICE, "a")), desk.make(add(BOB, "b"), "b")]
    for number, (result, sent) in enumerate(zip(desk.batch(*submissions), submissions, strict=True), 1):
        assert (result.leaf_index, result.duplicate) == (number, False)
        assert result.root == pkd_root(number + 1, desk.store.root_after(number + 1))
        assert desk.store.entries(number, number + 1) == (result.entry,)
        verify_entry(result.entry, sent.preimage, LEAF_KEYS)
    record = desk.store.records(1, 2)[0]
    assert (record.preimage, record.plain, record.keys) == (
        submissions[0].preimage, submissions[0].plain, submissions[0].keys
    )
    assert (record.action, record.created, record.accepted) == ("AddKey", NOW, NOW)


def test_a_batch_of_refusals_writes_nothing(desk):
    desk.send(add(ALICE, "a"))
    before = dump(desk.store)
    desk.store.commit = lambda batch: pytest.fail("there is nothing to commit")
    results = desk.batch(desk.make(Fireproof(BOB, NOW), "b"), desk.make(add(ALICE, "b"), "b"))
    assert codes(results) == ["actor_not_enrolled", "self_signed_not_allowed"]
    assert dump(desk.store) == before


@pytest.mark.parametrize("dialect", [SPEC, VECTOR, PHP], ids=lambda dialect: dialect.name)
def test_each_dialect(dialect):
    desk = Desk(dialect=dialect)
    receipt = desk.send(add(ALICE, "a"))
    assert len(receipt.entry) == dialect.entry_bytes
    assert desk.send(Fireproof(ALICE, NOW)).leaf_index == 1
    assert desk.store.actor(ALICE).fireproof
    assert set(DIALECTS) == {"spec", "vector", "php"}


# --- what comes earlier in a batch counts


def test_a_rotation_in_one_batch(desk):
    desk.send(add(ALICE, "a"))
    root = desk.root
    results = desk.batch(
        desk.make(add(ALICE, "b"), "a", root),
        desk.make(revoke(ALICE, "a"), "b", root),
        desk.make(revoke(ALICE, "b"), "b", root),
        desk.make(add(ALICE, "a", NOW + 1), "b", root),
    )
    assert codes(results) == [1, 2, "last_key", "key_revoked"]
    alice = desk.store.actor(ALICE)
    assert [key.public_key for key in alice.keys] == [public("b")]
    assert desk.store.history(ALICE) == ((0, 1), (1, 1), (2, 1))


def test_a_token_revokes_a_key_that_its_own_batch_enrolled(begun_desk):
    desk = begun_desk
    token = revoke_by_token("a")
    (bare,) = [Submission(parse_wire(SPEC, text_of(SPEC, token)).preimage, {}, {})]
    results = desk.batch(
        bare,  # nobody holds the key yet
        desk.make(add(ALICE, "a", NOW + 9)),
        bare,
        desk.make(add(ALICE, "a", NOW + 10)),  # never again in this log
        desk.make(add(BOB, "a", NOW + 11)),
        desk.make(add(ALICE, "b", NOW + 12), "b"),  # a new root of trust may be founded
    )
    assert codes(results) == ["unknown_token_key", 1, 2, "key_revoked", "key_revoked", 3]
    assert desk.store.token_revoked(key_hash(public("a")))
    record = desk.store.records(2, 3)[0]
    assert (record.plain, record.keys, record.salts, record.created) == ({}, {}, {}, NOW + 9)
    assert desk.store.actor(ALICE).generation == 2


def test_a_key_is_revoked_once_whichever_of_its_tokens_did_it(desk):
    desk.send(add(ALICE, "a"))
    first, second = (
        RevokeKeyThirdParty(parse_token(make_token(private("a"), public("a")))) for _ in range(2)
    )
    assert first.token.text != second.token.text
    one, other = desk.batch(desk.make(first), desk.make(second))
    assert (other.leaf_index, other.entry, other.duplicate) == (one.leaf_index, one.entry, True)
    assert desk.size == 2


def test_an_identity_moves_and_goes_on_in_one_batch(desk):
    desk.send(add(ALICE, "a"))
    root = desk.root
    results = desk.batch(
        desk.make(MoveIdentity(ALICE, CAROL, NOW), "a", root),
        desk.make(Fireproof(ALICE, NOW), "a", root),
        desk.make(Fireproof(CAROL, NOW), "a", root),
        desk.make(add(ALICE, "b"), "b", root),
    )
    assert codes(results) == [1, "actor_not_enrolled", 2, 3]
    assert desk.store.actor(CAROL).fireproof
    assert desk.store.actor(ALICE).generation == 2
    assert desk.store.holders(key_hash(public("a"))) == (CAROL,)


def test_a_revoked_key_does_not_come_back_with_a_move(desk):
    desk.send(add(BOB, "b"), "b")
    desk.send(add(BOB, "c"), "b")
    desk.send(revoke(BOB, "b"), "c")
    desk.send(MoveIdentity(BOB, CAROL, NOW), "c")
    desk.send(add(ALICE, "b"), "b")
    assert codes(desk.batch(desk.make(MoveIdentity(ALICE, BOB, NOW), "b"))) == ["key_revoked"]


def test_salts_are_drawn_once_for_each_new_name(desk):
    root = desk.root
    desk.batch(desk.make(add(ALICE, "a"), "a", root))
    root = desk.root
    desk.batch(desk.make(add(ALICE, "b"), "a", root), desk.make(MoveIdentity(ALICE, CAROL, NOW), "a", root))
    salts = [record.salts for record in desk.store.records(0, 3)]
    assert salts == [{"actor": b"\x07" * 32}, {}, {"new-actor": b"\x07" * 32}]


def test_the_hooks_come_in_commit_order(begun_desk, monkeypatch):
    """The process's own hook, after the answer, is in door.py."""
    reached: list[tuple[str, int]] = []
    monkeypatch.setattr(sequencer_module, "reach", lambda name: reached.append((name, begun_desk.size)))
    begun_desk.batch(begun_desk.make(add(ALICE, "a")), begun_desk.make(Fireproof(BOB, NOW), "b"))
    assert reached == [
        ("sequencer.received", 1), ("sequencer.received", 1), ("sequencer.leaf_signed", 1),
        ("sequencer.before_commit", 1), ("sequencer.after_commit", 2),
    ]
    assert [*dict.fromkeys(name for name, _ in reached), "sequencer.answered"] == list(sequencer_module.HOOKS)


# --- once is enough


def test_sent_twice_it_is_in_the_log_once(desk):
    message = desk.make(add(ALICE, "a"))
    first, twin = desk.batch(message, message)
    assert twin == replace(first, duplicate=True)
    assert desk.batch(message) == [twin]
    desk.restart()
    assert desk.batch(message) == [twin]
    assert desk.size == 1


def test_a_receipt_outlives_the_process_and_is_not_signed_again(tmp_path):
    with SqliteStore.create(tmp_path / "log.db", ORIGIN, "spec") as store:
        desk = Desk(store)
        message = desk.make(add(ALICE, "a"))
        (first,) = desk.batch(message)
    with SqliteStore.open(tmp_path / "log.db", origin=ORIGIN) as store:
        desk = Desk(store)
        assert store.state().epoch == 2
        assert desk.batch(message, message) == [replace(first, duplicate=True)] * 2
        assert desk.size == 1


def test_the_receipt_of_an_old_message_survives_what_came_after(desk):
    """A root that is stale by now and a key that is gone: the sender gets the first answer all the same."""
    enrolment = desk.make(add(ALICE, "a"))
    (first,) = desk.batch(enrolment)
    desk.send(add(ALICE, "b"))
    desk.send(revoke(ALICE, "a"), "b")
    append(desk.store, *(Draft(f"filler {number}") for number in range(200)))
    desk.restart()
    assert desk.batch(enrolment) == [replace(first, duplicate=True)]


def test_signed_again_it_is_the_same_message(desk):
    """ML-DSA is randomised: another signature, another text, but nothing new is said."""
    one, other = desk.make(add(ALICE, "a")), desk.make(add(ALICE, "a"))
    assert one.preimage != other.preimage
    first, second = desk.batch(one, other)
    assert second == replace(first, duplicate=True)
    assert desk.store.records(0, 1)[0].preimage == one.preimage


def test_other_white_space_is_no_other_message(desk):
    text = text_of(SPEC, add(ALICE, "a"))
    spaced = json.dumps(json.loads(text), indent=3)
    wires = [parse_wire(SPEC, body) for body in (text, spaced)]
    opened = open_message_attributes(SPEC, wires[1], commitments=False)
    assert opened == add(ALICE, "a")
    plain = {"actor": ALICE, "public-key": desk.make(add(ALICE, "a")).plain["public-key"]}
    sent = [Submission(wire.preimage, plain, wire.symmetric_keys) for wire in wires]
    first, second = desk.batch(*sent)
    assert second == replace(first, duplicate=True)
    # A preimage that is not canonical would be hashed as it stands: it is refused instead.
    loose = Submission(spaced.encode(), plain, wires[1].symmetric_keys)
    assert codes(desk.batch(loose)) == ["bad_request"]
    assert desk.size == 1


@pytest.mark.parametrize("plain", [
    {}, {"actor": ALICE}, {"actor": ALICE, "public-key": None}, {"actor": ALICE, "public-key": "mldsa44:x"},
    {"actor": "alice", "public-key": "mldsa44:" + "A" * 1750}, {"actor": 5, "public-key": "x"},
    {"actor": ALICE, "public-key": "x", "more": "x"},
])
def test_attributes_that_are_not_the_message_s(desk, plain):
    sent = replace(desk.make(add(ALICE, "a")), plain=plain)
    assert codes(desk.batch(sent)) == ["bad_request"]
    assert desk.size == 0


# --- recent roots


def test_a_known_root_is_looked_up_once_and_is_none_of_an_older_snapshot(begun_desk):
    asked = []

    class Noting:
        def size_of_root(self, root: bytes) -> int | None:
            asked.append(root)
            return begun_desk.store.size_of_root(root)

    roots, root, other = KnownRoots(Noting()), begun_desk.store.state().root, b"\x2a" * 32
    assert [roots.size_of(one) for one in (root, root, other, other)] == [1, 1, None, None]
    assert asked == [root, other, other], "what is not there yet may come"
    with pytest.raises(MessageRejected, match="merkle_root_stale"):
        check_recent_root(roots.size_of, 0, encode_root(root))
    check_recent_root(roots.size_of, 1, encode_root(root))


def test_roots_that_this_log_never_had(desk):
    never = encode_root(b"\x2a" * 32)
    assert codes(desk.batch(desk.make(add(ALICE, "a"), root=never))) == ["merkle_root_stale"]
    desk.send(add(ALICE, "a"))
    for root in (never, ZERO_ROOT, encode_root(EMPTY_ROOT)):
        assert codes(desk.batch(desk.make(add(ALICE, "b"), "a", root))) == ["merkle_root_stale"]
    assert desk.size == 1


def test_the_hash_of_nothing_is_not_the_zero_root(desk):
    """No replayer knows SHA-256("") as a root of the log: it would call the entry a violation."""
    sent = desk.make(add(ALICE, "a"), root=encode_root(EMPTY_ROOT))
    directory = Directory(ORIGIN)
    wire = parse_wire(SPEC, sent.preimage)
    with pytest.raises(MessageRejected, match="merkle_root_stale"):
        directory.check_recent_root(wire)
    assert codes(desk.batch(sent)) == ["merkle_root_stale"]


def test_a_root_grows_old(desk):
    desk.send(add(ALICE, "a"))
    old = desk.root
    append(desk.store, *(Draft(f"filler {number}") for number in range(199)))
    desk.restart()
    window = recent_window(200)
    assert 2 < window < 199
    for size, expected in ((1, "merkle_root_stale"), (200 - window - 1, "merkle_root_stale"), (200 - window, 200)):
        root = pkd_root(size, desk.store.root_after(size))
        assert codes(desk.batch(desk.make(add(ALICE, f"key {size}"), "a", root))) == [expected]
    assert old == pkd_root(1, desk.store.root_after(1))


@pytest.mark.parametrize("tree_size", [0, 1, 2, 3, 5, 100, 511, 512, 513, 5000])
def test_the_window_is_exactly_the_specification_s(tree_size):
    roots = {size: hash_leaf(b"%d" % size) for size in range(1, tree_size + 1)}
    sizes = {root: size for size, root in roots.items()}
    accepted = set()
    for size in range(1, tree_size + 1):
        try:
            check_recent_root(sizes.get, tree_size, encode_root(roots[size]))
            accepted.add(size)
        except MessageRejected as error:
            assert error.code == "merkle_root_stale"
    window = recent_window(tree_size)
    assert accepted == {size for size in range(1, tree_size + 1) if tree_size - size <= window}
    if tree_size:
        with pytest.raises(MessageRejected):
            check_recent_root(sizes.get, tree_size, ZERO_ROOT)
    else:
        check_recent_root(sizes.get, 0, ZERO_ROOT)


def test_a_batch_grows_older_as_it_goes(desk):
    """The first entry may name the zero root, and only the first, whatever is committed together."""
    results = desk.batch(desk.make(add(ALICE, "a")), desk.make(add(BOB, "b"), "b"), desk.make(add(CAROL, "c"), "c"))
    assert codes(results) == [0, "merkle_root_stale", "merkle_root_stale"]


# --- when the store fails


@pytest.mark.parametrize("error", [
    StoreError("DiskFull", "no room"), StoreError(AMBIGUOUS, "who knows"), Conflict("Fenced", "another writer"),
])
def test_a_failed_commit_ends_without_an_answer(desk, error):
    desk.send(add(ALICE, "a"))
    before, state = dump(desk.store), desk.sequencer.state

    def fail(batch):
        raise error

    desk.store.commit = fail
    with pytest.raises(StoreError) as caught:
        desk.batch(desk.make(Fireproof(ALICE, NOW)), desk.make(add(BOB, "b"), "b"))
    assert caught.value is error
    assert desk.sequencer.state == state
    assert dump(desk.store) == before


def test_committed_although_the_writer_was_told_otherwise(desk):
    """The lost acknowledgement: the next process finds the entry, and signs nothing anew."""
    commit = desk.store.commit

    def lose_answer(batch):
        commit(batch)
        raise StoreError(AMBIGUOUS, "the answer was lost")

    message = desk.make(add(ALICE, "a"))
    desk.store.commit = lose_answer
    with pytest.raises(StoreError):
        desk.batch(message)
    desk.store.commit = commit
    desk.restart()
    (entry,) = desk.store.entries(0, 1)
    (receipt,) = desk.batch(message)
    assert (receipt.entry, receipt.duplicate, desk.size) == (entry, True, 1)


def test_a_second_sequencer_fences_the_first(desk):
    first = desk.sequencer
    desk.restart()
    desk.send(add(ALICE, "a"))
    with pytest.raises(Conflict, match="Fenced"):
        first.process([desk.make(add(BOB, "b"), "b", ZERO_ROOT)])
    assert desk.size == 1


# --- any order, any batches


POOL = (
    (add(ALICE, "a"), "a"), (add(ALICE, "b"), "a"), (add(BOB, "c"), "c"), (revoke(ALICE, "a"), "b"),
    (revoke(ALICE, "b"), "a"), (Fireproof(ALICE, NOW), "a"), (UndoFireproof(ALICE, NOW), "b"),
    (MoveIdentity(ALICE, CAROL, NOW), "b"), (MoveIdentity(BOB, ALICE, NOW), "c"), (add(CAROL, "d"), "d"),
    (AddAuxData(ALICE, "test", "x", None, NOW), "a"), (revoke_by_token("a"), "a"), (revoke_by_token("c"), "c"),
    (add(BOB, "e"), "e"), (add(ALICE, "c"), "a"),
)


@pytest.fixture(scope="module")
def pool(quick_argon2) -> list[Submission]:  # noqa: F811
    """All bound to the root after a first entry, so that every order is possible."""
    desk = Desk(begun())
    return [desk.make(message, signer) for message, signer in POOL]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, len(POOL) - 1), max_size=20), cuts=st.lists(st.integers(1, 5), max_size=20))
def test_however_it_is_batched_a_replay_agrees(pool, order, cuts):
    desk = Desk(begun())
    directory = Directory(ORIGIN)
    directory.append_void(0, desk.store.entries(0, 1)[0])
    directory.greatest_time = NOW
    sent = [pool[number] for number in order]
    results: list[Receipt | MessageRejected] = []
    while len(results) < len(sent):
        size = cuts[len(results) % len(cuts)] if cuts else 1
        results += desk.batch(*sent[len(results) : len(results) + size])
    for number, result in zip(order, results, strict=True):
        if isinstance(result, MessageRejected) or result.duplicate:
            continue
        record = desk.store.records(result.leaf_index, result.leaf_index + 1)[0]
        wire = parse_wire(SPEC, record.preimage)
        directory.replay(wire, POOL[number][0], result.entry)
    assert directory.size == desk.size
    assert directory.frontier.root() == desk.store.state().root
    assert directory.greatest_time == desk.store.state().greatest_time
    for name in (ALICE, BOB, CAROL):
        assert desk.store.actor(name) == directory.actors.get(name)
        assert list(desk.store.history(name)) == directory.histories.get(name, [])
    assert {at: move for at in range(desk.size) if (move := desk.store.carried(at))} == directory.moves
