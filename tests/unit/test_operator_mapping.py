"""The map's cycle: what each leaf says, who is asked, what is shown when cosigners are missing, and what a restart does."""

from __future__ import annotations

import random
import shutil
import sqlite3

import pytest

from ktlog.errors import KtlogError, MessageRejected, PolicyUnmet, StoreError
from ktlog.keymap.bundle import NoLeaf, Presented, Tombstone, encode_bundle
from ktlog.keymap.output import format_config, hash_config, map_origin
from ktlog.keymap.prefix import PrefixLeaf, subtree_hash
from ktlog.keymap.value import parse_history_leaf, parse_value
from ktlog.operator.create import ensure_map
from ktlog.operator.head import load_signed_head
from ktlog.operator.mapcheck import check_whole_map, stream_root
from ktlog.operator.mappending import encode_pending, load_pending, parse_pending
from ktlog.operator.witnessing import input_policy
from ktlog.pkd.actors import Cause, Role, Status
from ktlog.pkd.erasure import encode_erasure_record, map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, MoveIdentity, RevokeKey
from ktlog.store.documents import FileDocument
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note
from ktlog.tlog.tree import EMPTY_ROOT, hash_leaf, leaf_reader, root_hash, verify_inclusion
from tests.map_world import MAP, MapPress
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_argon2")
AGE = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@pytest.fixture
def press(tmp_path):
    made = MapPress(tmp_path / "log")
    yield made
    made.close()


@pytest.fixture
def verified(tmp_path):
    made = MapPress(tmp_path / "log", verified=True)
    yield made
    made.close()


def keys(mapped) -> list[bytes]:
    return [key.public_key for key in mapped.keys]


def silence(press: MapPress, *cosigners) -> dict:
    """Take them off the network; returns what to put back."""
    gone = {f"{one.url}/add-checkpoint": one for one in cosigners}
    for url in gone:
        del press.network.answers[url]
    return gone


# --- what is published


def test_the_first_leaf_is_about_the_empty_log(press):
    press.cycle()
    (leaf,) = press.leaves()
    assert (leaf.config, leaf.time, leaf.input_size, leaf.erasures) == (hash_config(press.config), NOW + 5, 0, 0)
    assert (leaf.input_root, leaf.erasures_root, leaf.map_root) == (EMPTY_ROOT, EMPTY_ROOT, bytes(32))
    assert press.checkpoint() == (press.checkpoint().__class__(MAP, 2, press.map.state().output.root()))
    assert isinstance(press.answer(ALICE).outcome, NoLeaf)
    assert press.map.output_leaves(0, 1) == (format_config(press.config),)
    assert not press.settings.map_pending.exists()


def test_keys_come_and_go(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    assert keys(press.answer(ALICE)) == [public("a")] and keys(press.answer(BOB)) == [public("b")]
    press.desk.send(AddKey(ALICE, public("c"), NOW))
    press.desk.send(AddAuxData(ALICE, "age-v1", AGE, None, NOW), "c")
    press.desk.send(RevokeKey(ALICE, public("a"), NOW), "c")
    press.cycle()
    alice = press.answer(ALICE)
    assert keys(alice) == [public("c")] and [item.aux_data for item in alice.aux] == [AGE]
    assert (alice.value.version, alice.value.history_size, alice.leaf.input_size) == (4, 4, 5)
    assert isinstance(press.answer(CAROL).outcome, NoLeaf)
    press.desk.send(BurnDown(ALICE, BOB, NOW), "b")
    press.cycle()
    alice = press.answer(ALICE)
    assert keys(alice) == [] and isinstance(alice.outcome, Presented) and alice.value.status == Status.BURNED
    assert [leaf.input_size for leaf in press.leaves()] == [2, 5, 6]


def test_the_checkpoint_carries_both_signatures_and_the_quorum(press):
    press.cycle()
    note, _ = parse_signed_checkpoint(press.map_tiles.checkpoint())
    cosigners = [witness.vkey for witness in press.policy.witnesses.values()]
    assert len(open_note(note, cosigners)) == 4
    assert {line.name for line in note.signatures} >= {map_origin(ORIGIN)}
    assert press.map.checkpoint() == press.map.checkpoint(2) == press.map_tiles.checkpoint()
    assert press.map.checkpoint(1) is None


def test_old_checkpoints_stay_and_the_output_log_proves_its_past(press):
    for number in range(5):
        press.desk.send(AddKey(f"https://example.com/users/u{number}", public("a"), NOW))
        press.cycle()
    size = press.checkpoint().size
    hashes = press.map.output_hashes(0, size)
    for earlier in range(2, size + 1):
        found = parse_signed_checkpoint(press.map.checkpoint(earlier))[1]
        assert (found.size, found.root) == (earlier, root_hash(earlier, leaf_reader(hashes[:earlier])))
    tile = press.map_tiles.read(f"tile/0/000.p/{size}")
    assert tile == b"".join(hashes)


def test_a_leaf_for_each_interval_and_one_for_each_heartbeat(press):
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle(1)
    assert press.publisher.published_size == 1 and press.checkpoint().size == 2
    press.mapping.hurry.set()
    press.cycle(1)
    assert press.checkpoint().size == 3 and not press.mapping.hurry.is_set()
    press.cycle(100)
    assert press.checkpoint().size == 3
    press.cycle(press.settings.heartbeat_seconds - 100)
    first, second = press.leaves()[-2:]
    assert (first.map_root, first.input_size) == (second.map_root, second.input_size)
    assert 0 < second.time - first.time <= press.settings.heartbeat_seconds


def test_time_never_falls(press):
    press.cycle()
    press.clock.now -= 100
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    with pytest.raises(KtlogError, match="ClockWentBack|ClockBehind"):
        press.cycle(5)  # of the log itself: the witnesses notice it first
    press.publisher._published_time = press.clock.now
    press.publisher.published_size = 1
    press.mapping.tend(press.mapping.draft_if_due())
    assert press.checkpoint().size == 2
    press.clock.now += 200
    press.cycle(5)
    times = [leaf.time for leaf in press.leaves()]
    assert times == sorted(times) and len(times) == 2


# --- moves and erasures


def test_a_move_carries_everything_and_names_the_history_before(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(ALICE, public("c"), NOW))
    press.cycle()
    before = press.answer(ALICE).value
    press.desk.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    press.cycle()
    alice, carol = press.answer(ALICE), press.answer(CAROL)
    assert keys(alice) == [] and alice.value.status == Status.MOVED and alice.value.history_size == 3
    assert keys(carol) == [public("a"), public("c")] and carol.value.cause == Cause.MOVED_IN
    (leaf,) = press.map.history(map_index(ORIGIN, CAROL), 9)
    assert parse_history_leaf(leaf) == (Role.MOVED_IN, 2, (before.history_size, before.history_root))
    # The same, when one leaf covers the enrolment and the move.
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.desk.send(MoveIdentity(BOB, "https://example.com/users/bert", NOW), "b")
    press.cycle()
    (leaf,) = press.map.history(map_index(ORIGIN, "https://example.com/users/bert"), 9)
    (first, _second) = press.map.history(map_index(ORIGIN, BOB), 9)
    assert parse_history_leaf(leaf)[2] == (1, hash_leaf(first))


def test_an_erasure_gets_a_leaf_with_exactly_its_size_and_leaves_no_bytes(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    assert any(ALICE.encode() in path.read_bytes() for path in press.settings.directory.glob("map.db*"))
    press.erase(ALICE)
    assert not press.mapping.covers(2, 1)
    with pytest.raises(MessageRejected, match="unavailable"):
        press.bundle(ALICE)
    press.cycle(0.1)
    assert press.mapping.covers(2, 1) and not press.mapping.scrub_due()
    alice = press.answer(ALICE)
    assert alice.outcome == Tombstone(2, 1, 0)
    record = encode_erasure_record(press.store.erasures(0, 1)[0])
    assert press.leaves()[-1].erasures_root == hash_leaf(record)
    assert keys(press.answer(BOB)) == [public("b")]
    for path in press.settings.directory.glob("map*"):
        assert ALICE.encode() not in path.read_bytes(), path
    assert press.map.history(map_index(ORIGIN, ALICE), 9) == ()
    # Enrolling again is a reset, and a history of its own.
    press.desk.send(AddKey(ALICE, public("c"), NOW), "c")
    press.cycle()
    alice = press.answer(ALICE)
    assert (alice.value.erasures, alice.value.cause, alice.value.history_size) == (1, Cause.ERASED, 1)
    assert keys(alice) == [public("c")]


def test_an_entry_before_the_erasure_was_mapped_is_refused(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle()
    press.erase(ALICE)
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    with pytest.raises(StoreError, match="LateErasure"):
        press.cycle()


def test_a_log_older_than_its_map_gets_one_of_everything(press):
    """Erasures before the first leaf cannot have had a leaf of their own size."""
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    press.erase(ALICE)
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    assert press.answer(ALICE).outcome == Tombstone(3, 1, 0)
    assert keys(press.answer(CAROL)) == [public("a")] and keys(press.answer(BOB)) == [public("b")]
    moved_from = parse_history_leaf(press.map.history(map_index(ORIGIN, CAROL), 1)[0])[2]
    assert moved_from == (1, hash_leaf(history_leaf(Role.SUBJECT, 0)))


# --- full bundles


def test_a_full_bundle_has_every_entry_and_what_is_pending(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(ALICE, public("c"), NOW))
    press.desk.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    press.desk.send(AddKey(CAROL, public("d"), NOW), "a")
    press.cycle()
    press.desk.send(RevokeKey(CAROL, public("a"), NOW), "c")
    full = press.bundle(CAROL, full=True, checkpoint=True)
    value = parse_value(full.outcome.value)
    hashes = [hash_leaf(item.leaf) for item in full.history]
    assert value.history_root == root_hash(len(hashes), leaf_reader(hashes)) and len(hashes) == 2
    role, moved_at, (old_size, old_root) = parse_history_leaf(full.history[0].leaf)
    (old,) = full.old_histories
    assert (role, moved_at, old_size) == (Role.MOVED_IN, 2, 2)
    assert root_hash(2, leaf_reader([hash_leaf(item.leaf) for item in old])) == old_root
    leaf = press.leaves()[-1]
    for item in (*full.history, *old):
        at = parse_history_leaf(item.leaf)[1]
        verify_inclusion(hash_leaf(item.entry), at, leaf.input_size, item.path, leaf.input_root)
        assert item.preimage == press.store.records(at, at + 1)[0].preimage
    (pending,) = full.pending
    assert (pending.leaf_index, pending.plain["public-key"] is not None) == (press.store.state().size - 1, True)
    # What the store does not hold any more is shown as the map says, not as the newest entry does.
    assert full.keys == (public("a"), public("c"), public("d"))
    assert parse_signed_checkpoint(full.checkpoint)[1] == press.checkpoint()
    light = press.bundle(CAROL)
    assert (light.history, light.pending, light.checkpoint) == (None, full.pending, None)
    assert len(encode_bundle(press.bundle(BOB, full=True))) < 2000


def test_the_history_of_an_old_name_that_was_erased_is_missing(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    press.cycle()
    press.erase(ALICE)
    press.cycle()
    full = press.bundle(CAROL, full=True)
    assert full.old_histories == ((),) and full.history[0].plain["old-actor"] is None
    assert keys(press.answer(CAROL)) == [public("a")]
    press.desk.send(AddKey(ALICE, public("d"), NOW), "d")
    press.cycle()
    assert press.bundle(CAROL, full=True).old_histories == ((),)


def test_before_the_first_leaf_there_is_no_bundle(press):
    with pytest.raises(MessageRejected, match="not_published"):
        press.bundle(ALICE)


# --- cosigners


def test_without_its_quorum_nothing_of_the_map_is_shown_and_the_same_leaf_is_offered_again(verified):
    press = verified
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    back = silence(press, press.verifier)
    press.cycle()
    assert press.publisher.published_size == 1, "the log does not wait for its map"
    assert press.checkpoint().size == 2 and isinstance(press.answer(ALICE).outcome, NoLeaf)
    pending = load_pending(FileDocument(press.settings.map_pending))
    assert (pending.leaf_index, pending.draft.input_size) == (2, 1)
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle(20)
    assert load_pending(FileDocument(press.settings.map_pending)) == pending and press.publisher.published_size == 2
    press.network.answers |= back
    press.cycle(40)
    assert press.map.output_leaves(2, 3) == (pending.leaf,)
    assert keys(press.answer(ALICE)) == [public("a")] and isinstance(press.answer(BOB).outcome, NoLeaf)
    press.cycle()
    assert keys(press.answer(BOB)) == [public("b")]
    heads = {(cp.origin, cp.size): cp.root for cp in press.network.checkpoints()}
    assert {(cp.origin, cp.size, cp.root) for cp in press.network.checkpoints()} == {(*k, v) for k, v in heads.items()}


def test_nobody_is_erased_while_a_heartbeat_waits(verified):
    """A verifier that begins only then could never derive its map, and no other leaf could come before it."""
    press = verified
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle()
    assert press.mapping.covers(1, 0)
    back = silence(press, press.verifier)
    press.cycle(600)
    assert load_pending(FileDocument(press.settings.map_pending)).draft.input_size == 1 and not press.mapping.covers(1, 0)
    press.network.answers |= back
    press.cycle(40)
    assert press.mapping.covers(1, 0)


def test_a_heartbeat_that_an_erasure_overtook_is_dropped(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle()
    press.ticks += 600
    press.clock.now += 600
    draft = press.mapping.draft_if_due()
    press.erase(ALICE)
    size = press.checkpoint().size
    press.mapping.tend(draft)
    assert draft is not None and press.checkpoint().size == size and load_pending(FileDocument(press.settings.map_pending)) is None
    press.cycle(0.1)
    assert press.mapping.covers(1, 1) and press.checkpoint().size == size + 1


def test_verifiers_are_asked_for_the_map_only(verified):
    verified.desk.send(AddKey(ALICE, public("a"), NOW))
    verified.cycle()
    assert set(verified.verifier.asked) == {MAP} and set(verified.witnesses[0].asked) == {ORIGIN, MAP}
    assert input_policy(verified.policy).quorum == "witnesses"
    assert len(input_policy(verified.policy).witnesses) == 4 and len(verified.policy.witnesses) == 6


def test_a_policy_without_verifiers_is_for_both(press):
    assert input_policy(press.policy) == press.policy


def test_a_map_that_lags_tries_ever_less_often(press):
    silence(press, press.witnesses[0])
    with pytest.raises(PolicyUnmet):
        press.cycle()  # the log itself
    press.network.answers[f"{press.witnesses[0].url}/add-checkpoint"] = press.witnesses[0]
    press.cycle()
    gone = silence(press, press.witnesses[0])
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.publisher.published_size, press.publisher._published_time = 1, press.clock.now + 10**6
    asked = []
    for _ in range(40):
        before = len(press.network.asked)
        press.cycle(1)
        asked.append(len(press.network.asked) > before)
    assert 3 <= sum(asked) <= 8
    press.network.answers |= gone


# --- restarts


def test_a_restart_goes_on_where_it_was(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle()
    press.restart()
    assert press.checkpoint().size == 2 and keys(press.answer(ALICE)) == [public("a")]
    press.desk.send(AddKey(ALICE, public("c"), NOW))
    press.cycle()
    assert keys(press.answer(ALICE)) == [public("a"), public("c")] and press.answer(ALICE).value.history_size == 2


def test_a_lost_copy_of_the_checkpoint_and_lost_tiles_are_made_again(press):
    for name in ("a", "c"):
        press.desk.send(AddKey(ALICE, public(name), NOW))
        press.cycle()
    note = press.map_tiles.checkpoint()
    shutil.rmtree(press.settings.map_tiles)
    ensure_map(press.settings)
    press.restart()
    assert press.map_tiles.checkpoint() == note and press.map_tiles.read("tile/0/000.p/3") is not None
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    assert press.checkpoint().size == 4


def name_of(action) -> str:
    with pytest.raises(StoreError) as caught:
        action()
    return caught.value.name


def copies(press: MapPress) -> dict:
    return {path: path.read_bytes() for path in press.settings.directory.glob("map*") if path.is_file()}


def put_back(press: MapPress, files: dict) -> None:
    for path in press.settings.directory.glob("map*"):
        path.unlink()
    for path, data in files.items():
        path.write_bytes(data)


def test_an_older_copy_of_the_map_is_refused_by_what_is_left_of_the_newer(press):
    press.cycle()
    press.mapping.close()
    old = copies(press)
    press.restart()
    for name in ("a", "c"):
        press.desk.send(AddKey(ALICE, public(name), NOW))
        press.cycle()
    press.mapping.close()
    head = press.settings.map_signed_head
    put_back(press, {**old, head: head.read_bytes()})
    assert name_of(press.restart) == "MapRestored"


def test_an_older_copy_of_everything_is_noticed_by_the_cosigners(press):
    press.cycle()
    press.mapping.close()
    old = copies(press)
    press.restart()
    for name in ("a", "c"):
        press.desk.send(AddKey(ALICE, public(name), NOW))
        press.cycle()
    signed = len(press.network.asked)
    press.mapping.close()
    shutil.rmtree(press.settings.map_tiles)
    put_back(press, old)
    ensure_map(press.settings)
    press.restart()
    press.cycle()
    assert load_signed_head(FileDocument(press.settings.map_signed_head)).size == 2
    sizes = {cp.size for cp in press.network.checkpoints()[signed:] if cp.origin == MAP}
    assert sizes <= {2, 3, 4}
    assert press.map.state().output.size == 2, "nothing was signed"


@pytest.mark.parametrize(("lose", "name"), [("map_signed_head", "SignedHeadLost")])
def test_lost_files(press, lose, name):
    press.cycle()
    press.mapping.close()
    getattr(press.settings, lose).unlink()
    assert name_of(press.restart) == name


def test_a_lost_map_is_not_begun_anew(press):
    press.cycle()
    press.mapping.close()
    for path in press.settings.directory.glob("map.db*"):
        path.unlink()
    assert name_of(lambda: ensure_map(press.settings)) == "MapLost"


def test_a_lost_pending_leaf_that_was_signed(press):
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle(0)  # the log; the map is not due
    silence(press, press.witnesses[0])
    press.mapping.hurry.set()
    press.cycle(0)
    assert press.settings.map_pending.exists() and press.checkpoint().size == 2
    press.mapping.close()
    kept = press.settings.map_pending.read_bytes()
    press.settings.map_pending.unlink()
    assert name_of(press.restart) == "PendingLost"
    press.settings.map_pending.write_bytes(kept[:-1])
    assert name_of(press.restart) == "BadPending"
    press.settings.map_pending.write_bytes(kept)
    press.restart()


def test_a_log_restored_below_its_map(press, tmp_path):
    press.cycle()
    press.store.close()
    data = press.settings.database.read_bytes()
    press2 = press
    press2.mapping.close()
    from ktlog.store.sqlite import SqliteStore
    press.store = SqliteStore.open(press.settings.database, origin=ORIGIN)
    press.desk.store = press.store
    press.desk.restart()
    press.restart()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle()
    press.mapping.close()
    press.store.close()
    for path in press.settings.directory.glob("log.db*"):
        path.unlink()
    press.settings.database.write_bytes(data)
    assert name_of(press.restart) == "MapRestored"


def test_the_configuration_is_for_ever_once_something_is_signed(press):
    from dataclasses import replace

    other = replace(press.settings, heartbeat_seconds=601)
    ensure_map(other)  # nothing is signed yet
    ensure_map(press.settings)
    press.restart()
    press.cycle()
    assert name_of(lambda: ensure_map(other)) == "WrongConfig"


def test_pending_leaves_are_read_as_they_were_written(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    press.desk.send(MoveIdentity(BOB, CAROL, NOW), "b")
    silence(press, press.witnesses[0])
    with pytest.raises(PolicyUnmet):
        press.cycle()
    press.publisher.published_size, press.publisher._published_time = 3, press.clock.now + 10**6
    press.cycle()
    pending = load_pending(FileDocument(press.settings.map_pending))
    assert len(pending.draft.changes) == 2 and parse_pending(encode_pending(pending)) == pending
    assert press.settings.map_pending.stat().st_mode & 0o777 == 0o600


def test_the_map_is_the_tree_of_its_leaves(press):
    for number in range(40):
        press.desk.send(AddKey(f"https://example.com/users/u{number}", public("a"), NOW))
        if number % 7 == 0:
            press.cycle()
    press.cycle()
    leaves = list(press.map.leaves())
    assert len(leaves) == 40 and subtree_hash(leaves) == press.leaves()[-1].map_root


# --- the check of the stored map


def spoil(press: MapPress, statement: str, *values: object) -> None:
    press.mapping.close()
    with sqlite3.connect(press.settings.map_database) as database:
        assert database.execute(statement, values).rowcount >= 1
    database.close()


def filled(press: MapPress) -> None:
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.desk.send(MoveIdentity(BOB, CAROL, NOW), "b")
    press.cycle()
    press.erase(ALICE)
    press.cycle()


@pytest.mark.parametrize(("statement", "what"), [
    ("UPDATE map_values SET value = CAST(substr(value, 1, length(value) - 32) || zeroblob(32) AS BLOB)", "a value is not the one in its leaf"),
    ("UPDATE map_values SET value = x'00'", "a value is malformed"),
    ("UPDATE map_values SET opening = zeroblob(16)", "a value is not the one in its leaf"),
    ("UPDATE map_values SET history = zeroblob(8)", "does not fit the frontier"),
    ("UPDATE map_values SET leaves = x'090100000000000000ff'", "a history is not the one"),
    ("UPDATE map_tombstones SET version = version + 1", "a tombstone is not the one"),
    ("DELETE FROM map_tombstones", "neither"),
    ("UPDATE map_buckets SET leaves = CAST(leaves || zeroblob(64) AS BLOB)", "neither"),
    ("UPDATE map_buckets SET leaves = substr(leaves, 1, 64)", "do not make up the root"),
])
def test_a_map_that_was_changed_on_disk_is_not_served(press, statement, what):
    filled(press)
    assert check_whole_map(press.settings) == 3
    spoil(press, statement)
    with pytest.raises(StoreError, match=what) as caught:
        check_whole_map(press.settings)
    assert caught.value.name in ("MapCorrupt", "Corrupt")
    assert name_of(press.restart) in ("MapCorrupt", "Corrupt")


def test_a_map_behind_its_log_is_sound(press):
    filled(press)
    press.desk.send(AddKey(CAROL, public("c"), NOW), "b")
    assert check_whole_map(press.settings) == 3
    press.restart()


def test_the_streamed_root_is_the_root():
    rng = random.Random(3)
    for count in (0, 1, 2, 3, 50, 700):
        leaves = sorted(PrefixLeaf(rng.randbytes(32), rng.randbytes(32)) for _ in range(count))
        assert stream_root(iter(leaves)) == subtree_hash(leaves)
