"""Publish last: what is on disk and on the network at every step, and what is never signed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

import pytest

from ktlog.errors import Conflict, PolicyUnmet, StoreError, Unreachable
from ktlog.operator import head as head_module
from ktlog.operator import publisher as publisher_module
from ktlog.operator.head import SignedHead, load_signed_head, record_signed_head
from ktlog.operator.publisher import HOOKS
from ktlog.store.documents import FileDocument
from ktlog.store.memory import MemoryStore
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, open_note, sign_checkpoint, signer_from_seed
from ktlog.tlog.tiles import TileHashReader, format_bundle, parse_tile_path, tile_nodes, tiles_between
from ktlog.tlog.tree import EMPTY_ROOT, hash_leaf, leaf_reader, prove_inclusion, verify_inclusion
from tests.operator_world import NOW, ORIGIN, Press, log_signers, respond
from tests.store_samples import Draft, append


def grow(store, size: int) -> None:
    """Entries that nobody sent, up to *size* of them."""
    have = store.state().size
    if size > have:
        append(store, *(Draft(f"entry {index}") for index in range(have, size)))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(ORIGIN, "spec")


@pytest.fixture
def press(tmp_path, store) -> Press:
    return Press(tmp_path, store)


def files(press: Press) -> dict[str, bytes]:
    root = press.settings.tiles
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def without_checkpoint(found: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in found.items() if path != "checkpoint"}


def failure(action) -> str:
    with pytest.raises(StoreError) as caught:
        action()
    return caught.value.name


def check_files(press: Press) -> None:
    """Every file is what the entries make it, all that the published tree needs is there, and nothing else is."""
    published = press.published()
    entries = press.store.entries(0, press.store.state().size)
    read = leaf_reader([hash_leaf(entry) for entry in entries])
    found = files(press)
    note = found.pop("checkpoint")
    for path, data in found.items():
        tile = parse_tile_path(path)
        if tile.level == "entries":
            first = tile.number * 256
            assert data == format_bundle(entries[first : first + tile.width]), path
        else:
            assert data == b"".join(read(tile_nodes(tile))), path
    for tile in tiles_between(0, published.size):
        assert tile.path in found
        if tile.level == 0:
            assert replace(tile, level="entries").path in found
    opened, checkpoint = parse_signed_checkpoint(note)
    assert checkpoint == Checkpoint(ORIGIN, published.size, press.store.root_after(published.size))
    assert len(open_note(opened, [signer.vkey for signer in log_signers()])) == 2
    # And a stranger who trusts the checkpoint alone can prove entries from the files.
    reader = TileHashReader(found.__getitem__, checkpoint.size, checkpoint.root)
    for leaf_index in {0, checkpoint.size // 2, checkpoint.size - 1} - {-1}:
        proof = prove_inclusion(leaf_index, checkpoint.size, reader)
        verify_inclusion(hash_leaf(entries[leaf_index]), leaf_index, checkpoint.size, proof, checkpoint.root)


# --- growth


def test_the_empty_tree_is_published_first(press):
    press.publish()
    assert press.published() == Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert set(files(press)) == {"checkpoint"}
    assert press.publisher.published_size == 0
    note, _ = parse_signed_checkpoint(press.tiles.checkpoint())
    verified = open_note(note, [*(s.vkey for s in log_signers()), *(w.vkey for w in press.policy.witnesses.values())])
    assert [one.vkey.algorithm for one in verified] == [ED25519, COSIGNATURE_MLDSA44, 4, 6, 4, 6, 4, 6]
    assert press.policy.satisfied([one.vkey for one in verified])


@pytest.mark.parametrize("restart", [False, True], ids=["one process", "a process for each size"])
def test_growing_across_tiles(press, restart):
    for size in (1, 5, 255, 256, 257, 300, 511, 512, 513, 600, 1030):
        grow(press.store, size)
        press.clock.now += 1
        press.publish()
        assert press.publisher.published_size == size
        if size in (5, 257, 512, 600, 1030):
            check_files(press)
        if restart:
            press.restart()
            assert press.publisher.published_size == size
    assert [cp.size for cp in press.network.checkpoints()[::3]][0] == 1
    assert "tile/1/000.p/4" in files(press)


def test_one_jump_over_many_tiles(press):
    grow(press.store, 700)
    press.publish()
    check_files(press)
    assert {path for path in files(press) if path.startswith("tile/1/")} == {"tile/1/000.p/2"}
    assert "tile/0/002.p/188" in files(press)


def test_tiles_of_a_tree_that_was_never_published_are_in_nobody_s_way(press):
    """The process dies after writing tiles; when it is back, the log has grown on."""
    grow(press.store, 250)
    press.publish()
    press.cut(1, 2, 3)
    for size in (300, 301, 520):
        grow(press.store, size)
        with pytest.raises(PolicyUnmet):
            press.publish()
    before = files(press)
    assert "tile/0/001.p/44" in before
    for witness in press.witnesses:
        press.network.answers[f"{witness.url}/add-checkpoint"] = witness
    grow(press.store, 800)
    press.restart()
    assert press.publisher.published_size == 250
    press.publish()
    check_files(press)
    assert without_checkpoint(before).items() <= files(press).items()


def test_lost_tiles_are_made_again_byte_for_byte(press):
    grow(press.store, 600)
    press.publish()
    before = files(press)
    for path in sorted(press.settings.tiles.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    press.tiles = type(press.tiles)(press.settings.tiles)
    press.restart()
    press.publish()
    after = files(press)
    assert without_checkpoint(after) == without_checkpoint(before)
    check_files(press)


# --- when it is due


def test_nothing_new_and_nothing_old_is_nothing_to_do(press):
    grow(press.store, 3)
    assert press.publisher.publish_if_due() is True
    asked = len(press.network.asked)
    press.clock.now += press.settings.heartbeat_seconds - 1
    assert press.publisher.publish_if_due() is False
    assert len(press.network.asked) == asked


def test_the_heartbeat_cosigns_the_same_tree_anew(press):
    grow(press.store, 3)
    press.publisher.publish_if_due()
    first = press.tiles.checkpoint()
    tiles = {path for path in files(press) if path != "checkpoint"}
    press.clock.now += press.settings.heartbeat_seconds
    assert press.publisher.publish_if_due() is True
    second = press.tiles.checkpoint()
    assert second != first
    assert press.published().size == 3
    assert {path for path in files(press) if path != "checkpoint"} == tiles
    cosigners = [witness.vkey for witness in press.policy.witnesses.values()]
    times = [one.timestamp for one in open_note(parse_signed_checkpoint(second)[0], cosigners)]
    assert times == [NOW + press.settings.heartbeat_seconds] * 6
    assert load_signed_head(FileDocument(press.settings.signed_head)).time == NOW + press.settings.heartbeat_seconds
    assert {(cp.size, cp.root) for cp in press.network.checkpoints()} == {(3, press.store.root_after(3))}


def test_a_restart_publishes_at_once(press):
    """Nobody knows how old the cosignatures on disk are, so they are renewed."""
    grow(press.store, 3)
    press.publish()
    press.restart()
    assert press.publisher.publish_if_due() is True
    assert press.publisher.publish_if_due() is False


# --- a store restored from an older copy


def conflict(size: int):
    return lambda body: respond(409, f"{size}\n".encode(), "text/x.tlog.size")


def test_a_restored_copy_hears_of_it_from_the_witnesses_and_signs_nothing(press):
    grow(press.store, 3)
    press.publish()
    head, offered = load_signed_head(FileDocument(press.settings.signed_head)), len(press.network.notes())
    grow(press.store, 5)
    press.restart()
    press.answer(1, conflict(4))
    press.answer(2, conflict(4))
    with pytest.raises(PolicyUnmet, match="NotCompared.*has cosigned 4 entries"):
        press.publisher.publish_if_due()
    assert not press.publisher.compared.is_set()
    assert load_signed_head(FileDocument(press.settings.signed_head)) == head
    # Only what was published before was shown to anybody.
    assert {parse_signed_checkpoint(note)[1].size for note in press.network.notes()[offered:]} == {3}


def test_one_witness_that_claims_more_stops_nobody(press):
    grow(press.store, 3)
    press.publish()
    press.restart()
    press.answer(1, conflict(4))
    assert press.publisher.publish_if_due() is True
    assert press.publisher.compared.is_set()


def test_what_was_signed_and_not_published_is_no_older_copy(press):
    grow(press.store, 3)
    press.publish()
    grow(press.store, 5)
    record_signed_head(FileDocument(press.settings.signed_head), SignedHead(5, press.store.root_after(5), NOW))
    press.restart()
    for number in (1, 2, 3):
        press.answer(number, conflict(5))
    press.publisher.compare()
    assert press.publisher.compared.is_set()


def test_without_a_published_checkpoint_the_witnesses_say_what_they_have(press):
    """A copy from before the first publication has nothing to offer again, so it asks."""
    grow(press.store, 2)
    press.publish()
    note = press.tiles.checkpoint()
    (press.settings.tiles / "checkpoint").unlink()
    press.settings.signed_head.unlink()
    press.restart()
    for witness in press.witnesses[:2]:
        monitoring = f"{witness.url}/{sha256(ORIGIN.encode()).hexdigest()}/checkpoint"
        press.network.answers[monitoring] = lambda body: respond(200, note)
    with pytest.raises(PolicyUnmet, match="NotCompared.*has cosigned 2 entries"):
        press.publisher.compare()


def test_without_enough_witnesses_nothing_is_compared(press):
    press.cut(1, 2)
    with pytest.raises(PolicyUnmet, match="NotCompared.*nothing answers"):
        press.publisher.publish_if_due()
    assert press.published() is None


# --- the publish policy


def test_one_witness_away(press):
    press.cut(3)
    press.publish()
    names = {line.name for line in parse_signed_checkpoint(press.tiles.checkpoint())[0].signatures}
    assert names == {ORIGIN, "w1.witness.example", "w2.witness.example"}


def test_without_the_quorum_nobody_is_shown_anything(press):
    grow(press.store, 3)
    press.publish()
    published = press.tiles.checkpoint()
    press.cut(1, 2)
    grow(press.store, 5)
    press.clock.now += 10
    with pytest.raises(PolicyUnmet) as caught:
        press.publish()
    assert (caught.value.name, caught.value.have, caught.value.need) == ("TooFewWitnesses", 1, 2)
    assert press.tiles.checkpoint() == published
    assert press.publisher.published_size == 3
    assert load_signed_head(FileDocument(press.settings.signed_head)) == SignedHead(5, press.store.root_after(5), NOW + 10)
    # They come back: the same tree is signed again, never another one.
    press.network.answers[f"{press.witnesses[0].url}/add-checkpoint"] = press.witnesses[0]
    press.publish()
    assert press.published().size == 5
    assert {cp.root for cp in press.network.checkpoints() if cp.size == 5} == {press.store.root_after(5)}


def test_half_a_witness_is_none(press):
    """Each counts only with both its keys; w2 and w3 leave their ML-DSA key out."""
    for number in (2, 3):
        witness = press.witnesses[number - 1]
        press.answer(number, lambda body, w=witness: respond(200, w(body).body.splitlines(keepends=True)[0]))
    with pytest.raises(PolicyUnmet):
        press.publish()
    assert press.tiles.checkpoint() is None


def test_a_lying_witness_cannot_keep_the_log_from_publishing(press):
    def twice(body):
        return respond(200, press.witnesses[2](body).body * 2)

    for lie in (twice, lambda body: respond(200, b"rubbish"), lambda body: respond(409, b"999\n", "text/x.tlog.size")):
        press.answer(3, lie)
        grow(press.store, press.store.state().size + 1)
        press.publish()
        assert press.published().size == press.store.state().size


def test_a_witness_with_a_wrong_clock_does_not_make_the_quorum(press):
    press.cut(3)

    def cosign_ahead(body):
        text = parse_signed_checkpoint(body.partition(b"\n\n")[2])[0].text
        return respond(200, press.witnesses[1].cosign(text, NOW + 3600))

    press.answer(2, cosign_ahead)
    with pytest.raises(PolicyUnmet):
        press.publish()
    assert press.tiles.checkpoint() is None


# --- what is on disk contradicts itself


def test_a_store_that_lost_what_was_published(press):
    grow(press.store, 5)
    press.publish()
    press.store = MemoryStore(ORIGIN, "spec")
    grow(press.store, 4)
    assert failure(press.restart) == "StoreBehindCheckpoint"
    grow(press.store, 5)  # the same entries again: nothing is lost after all
    press.restart()
    other = MemoryStore(ORIGIN, "spec")
    append(other, *(Draft(f"other {index}") for index in range(9)))
    press.store = other
    assert failure(press.restart) == "StoreBehindCheckpoint"


def test_a_store_that_lost_what_was_only_signed(press):
    """Never published, yet witnesses have seen it: accepting on top of an older copy would be a fork."""
    grow(press.store, 5)
    press.cut(1, 2, 3)
    with pytest.raises(PolicyUnmet):
        press.publish()
    press.store = MemoryStore(ORIGIN, "spec")
    grow(press.store, 4)
    assert failure(press.restart) == "StoreBehindCheckpoint"


def test_a_lost_or_older_signed_head(press):
    grow(press.store, 5)
    press.publish()
    head = load_signed_head(FileDocument(press.settings.signed_head))
    record_signed_head(FileDocument(press.settings.signed_head), SignedHead(4, press.store.root_after(4), head.time))
    assert failure(press.restart) == "SignedHeadLost"
    press.settings.signed_head.unlink()
    assert failure(press.restart) == "SignedHeadLost"
    press.settings.signed_head.write_bytes(b"{}")
    assert failure(press.restart) == "BadSignedHead"
    record_signed_head(FileDocument(press.settings.signed_head), head)
    press.restart()


def note_of(press, signers, size: int = 5, origin: str = ORIGIN) -> bytes:
    return sign_checkpoint(Checkpoint(origin, size, press.store.root_after(size)), signers, NOW)


def test_a_published_checkpoint_that_is_damaged_or_somebody_else_s(press):
    grow(press.store, 5)
    press.publish()
    path = press.settings.tiles / "checkpoint"
    good = path.read_bytes()
    strangers = (signer_from_seed(ORIGIN, ED25519, b"\x77" * 32),)
    for content in (
        b"", b"rubbish", good[:-1], good[: len(good) // 2], good.replace(b"\n5\n", b"\n4\n", 1),
        good.replace(ORIGIN.encode(), b"keys.example.net"), note_of(press, strangers),
        note_of(press, log_signers(), origin="keys.example.net"),
    ):
        path.write_bytes(content)
        assert failure(press.restart) == "BadCheckpoint", content[:80]
        assert path.read_bytes() == content
    path.write_bytes(good)
    press.restart()


@pytest.mark.parametrize("leaf_index", [305, 258], ids=["in a new entry", "in one that the bundle is made of again"])
@pytest.mark.parametrize("column", ["entry", "leaf_hash"])
def test_a_bit_that_flipped_in_the_database(tmp_path, column, leaf_index):
    path = tmp_path / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        press = Press(tmp_path, store)
        grow(store, 300)
        press.publish()
        grow(store, 310)
        asked, head = len(press.network.asked), load_signed_head(FileDocument(press.settings.signed_head))
        with sqlite3.connect(path) as database:
            database.execute("DROP TRIGGER entries_no_update")
            database.execute(
                f"UPDATE entries SET {column} = CAST(substr({column}, 1, 4) || x'2a' || substr({column}, 6) AS BLOB)"
                f" WHERE leaf_index = {leaf_index}"
            )
        database.close()
        assert failure(press.publish) == {"entry": "CorruptEntry", "leaf_hash": "CorruptTree"}[column]
        assert len(press.network.asked) == asked
        assert load_signed_head(FileDocument(press.settings.signed_head)) == head
        assert press.published().size == 300


def one_bit_off(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


@pytest.mark.parametrize("part", ["entry", "leaf_hash", "root"])
def test_with_any_byte_of_the_newest_entry_flipped_nothing_is_signed(press, part):
    """Requirement R1."""
    grow(press.store, 9)
    press.publish()
    grow(press.store, 13)
    records = press.store._contents.records
    record, asked = records[12], len(press.network.asked)
    head = load_signed_head(FileDocument(press.settings.signed_head))
    for bad in one_bit_off(getattr(record, part)):
        records[12] = replace(record, **{part: bad})
        assert failure(lambda: (press.restart(), press.publish()))
        assert (len(press.network.asked), press.published().size) == (asked, 9)
        assert load_signed_head(FileDocument(press.settings.signed_head)) == head
    records[12] = record
    press.restart()
    press.publish()
    assert press.published().size == 13


@pytest.mark.parametrize(("table", "column"), [("log_state", "root"), ("log_state", "frontier"), ("leaf_roots", "root")])
def test_with_any_byte_of_the_state_flipped_the_log_is_not_even_opened(tmp_path, table, column):
    path = tmp_path / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        grow(store, 13)
    database = sqlite3.connect(path, isolation_level=None)
    for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    where = "tree_size = 13" if table == "leaf_roots" else "1"
    (good,) = database.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
    for bad in one_bit_off(good):
        database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (bad,))
        assert failure(lambda: SqliteStore.open(path, origin=ORIGIN))
    database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (good,))
    database.close()
    SqliteStore.open(path, origin=ORIGIN).close()


def test_entries_that_hang_together_and_do_not_make_the_root(press):
    grow(press.store, 20)
    record = press.store._contents.records[7]
    press.store._contents.records[7] = replace(record, entry=b"another", leaf_hash=hash_leaf(b"another"))
    assert failure(press.publish) == "CorruptTree"
    assert press.network.asked == []
    assert load_signed_head(FileDocument(press.settings.signed_head)) is None


def test_a_tile_on_disk_that_somebody_changed(press):
    grow(press.store, 20)
    press.tiles.write_tiles({"tile/0/000.p/20": bytes(20 * 32)})
    assert failure(press.publish) == "ImmutableChanged"
    assert press.network.asked == []


def test_a_published_tile_that_somebody_removed(press):
    grow(press.store, 600)
    press.publish()
    (press.settings.tiles / "tile/1/000.p/2").unlink()
    press.restart()
    grow(press.store, 800)
    assert failure(press.publish) == "MissingTile"
    assert press.published().size == 600


def test_a_clock_that_went_back(press):
    grow(press.store, 2)
    press.publish()
    asked = len(press.network.asked)
    press.clock.now -= 1
    assert failure(press.publish) == "ClockWentBack"
    assert len(press.network.asked) == asked
    press.clock.now += 1
    press.publish()


def test_the_store_changed_under_a_running_publisher(press):
    grow(press.store, 5)
    press.publish()
    press.store._contents.records[4] = replace(press.store._contents.records[4], root=b"\x2a" * 32)
    press.clock.now += 1
    assert failure(press.publish) in ("WouldFork", "CorruptTree")
    assert load_signed_head(FileDocument(press.settings.signed_head)).time == NOW


# --- the order


def test_what_is_done_at_each_hook(press, monkeypatch):
    grow(press.store, 300)
    seen: list[str] = []

    def look(hook: str) -> None:
        seen.append(hook)
        place = HOOKS.index(hook)
        assert "tile/0/001.p/44" in files(press)
        recorded = load_signed_head(FileDocument(press.settings.signed_head)) is not None
        assert recorded == (place >= HOOKS.index("publisher.signed"))  # by whoever holds the keys, before it signs
        assert bool(press.network.asked) == (place >= HOOKS.index("publisher.cosigned"))
        assert (press.tiles.checkpoint() is not None) == (hook == "publisher.published")

    monkeypatch.setattr(publisher_module, "reach", look)
    press.publish()
    assert tuple(seen) == HOOKS


@pytest.mark.parametrize("persists", [False, True], ids=["and it was not stored", "but it was stored"])
@pytest.mark.parametrize("step", ["write_tiles", "record_signed_head", "publish_checkpoint"])
def test_each_write_fails_once(press, monkeypatch, step, persists):
    """The disk says no, having done it or not; the next round puts everything right."""
    grow(press.store, 5)
    press.publish()
    grow(press.store, 300)
    press.clock.now += 1
    owner = head_module if step == "record_signed_head" else press.tiles
    real = getattr(owner, step)

    def fail(*arguments):
        if persists:
            real(*arguments)
        raise StoreError("DiskFull", "no room")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        assert failure(press.publish) == "DiskFull"
    if step != "publish_checkpoint":
        assert {cp.size for cp in press.network.checkpoints()} == {5}
    assert press.publisher.published_size == 5
    assert press.published().size == (300 if persists and step == "publish_checkpoint" else 5)
    press.clock.now += 1
    if step == "record_signed_head":
        assert failure(press.publish) == "Poisoned"
        press.restart()
    press.publish()
    check_files(press)
    press.restart()
    assert press.publisher.published_size == 300
    roots = {cp.size: cp.root for cp in press.network.checkpoints()}
    assert {(cp.size, cp.root) for cp in press.network.checkpoints()} == set(roots.items())


def test_another_writer_published_more(press):
    grow(press.store, 5)
    press.publish()
    later = Checkpoint(ORIGIN, 9, b"\x09" * 32)
    press.tiles.publish_checkpoint(sign_checkpoint(later, log_signers(), NOW))
    grow(press.store, 6)
    with pytest.raises(Conflict, match="CheckpointWithdrawn"):
        press.publish()
    assert press.published() == later


# --- round after round


def test_it_goes_on_after_a_failure_until_it_is_stopped(press, caplog):
    press.settings = replace(press.settings, checkpoint_interval_ms=1)
    press.restart()
    grow(press.store, 3)
    stop, rounds = threading.Event(), []
    answer = press.network.answers[f"{press.witnesses[0].url}/add-checkpoint"]

    def sometimes(body):
        rounds.append(body)
        if len(rounds) < 3:
            raise Unreachable("Refused", "not yet")
        return answer(body)

    press.cut(3)
    press.answer(1, sometimes)
    thread = threading.Thread(target=press.publisher.run, args=(stop,))
    thread.start()
    try:
        for _ in range(1000):
            if press.publisher.published_size == 3:
                break
            stop.wait(0.01)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert press.published().size == 3
    assert "TooFewWitnesses" in caplog.text
    assert "not yet" in caplog.text


def test_a_failure_that_is_no_ktlog_error_is_not_swallowed(press, monkeypatch):
    """It is a bug, and a publisher that went on silently would only look alive."""
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(press.publisher, "publish_if_due", fail)
    with pytest.raises(RuntimeError):
        press.publisher.run(threading.Event())
