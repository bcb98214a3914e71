"""The state directory: names, pins, contradictions, and many writers at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ktlog.client import trust
from ktlog.client.trust import ActorMemory, TrustStore, check_history
from ktlog.errors import Conflict, Invalid, Stale, StoreError

ALICE = "https://alpha.example/users/alice"
HASHES = [bytes([number]) * 32 for number in range(9)]
MEMORY = ActorMemory(tree_size=6, generation=1, history=((1, HASHES[1]), (4, HASHES[4])), key_ids=("a", "b"))


@pytest.fixture
def store(tmp_path) -> TrustStore:
    return TrustStore(tmp_path / "deep" / "state")


def test_everything_comes_back(store):
    assert (store.head("o"), store.actor("o", ALICE), store.pinned("@a@b.example")) == (None, None, None)
    store.save_head("o", b"note\n")
    store.save_actor("o", ALICE, MEMORY)
    store.pin("@a@b.example", ALICE)
    again = TrustStore(store.directory)
    assert (again.head("o"), again.actor("o", ALICE), again.pinned("@a@b.example")) == (b"note\n", MEMORY, ALICE)
    assert again.actor("p", ALICE) is None


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../x", "go.sum database tree", "é", "x" * 255, "%2e%2e"])
def test_no_name_leaves_its_directory(store, name):
    store.save_head(name, b"note\n")
    store.save_actor(name, f"https://alpha.example/{'x' * 2000}", MEMORY)
    assert store.head(name) == b"note\n"
    files = [path for path in store.directory.parent.parent.rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in files) == ["actors", "heads"]


def test_names_do_not_collide(store):
    names = ["a b", "a%20b", "A b", "a", "x" * 181, "x" * 182]
    for name in names:
        store.save_head(name, name.encode())
    assert [store.head(name) for name in names] == [name.encode() for name in names]


def test_a_file_put_in_anothers_place_is_noticed(store):
    store.save_head("honest.example", b"note\n")
    store.save_head("other.example", b"other\n")
    (store.directory / "heads" / "honest.example.json").replace(store.directory / "heads" / "other.example.json")
    with pytest.raises(StoreError, match="BadState"):
        store.head("other.example")


def test_a_pin_holds(store):
    store.pin("@a@b.example", ALICE)
    store.pin("@a@b.example", ALICE)
    with pytest.raises(Conflict, match="HandleChanged") as caught:
        store.pin("@a@b.example", ALICE + "2")
    assert caught.value.stored == ALICE
    assert store.pinned("@a@b.example") == ALICE


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="BadState"):
        TrustStore(tmp_path / "file")
    with pytest.raises(StoreError, match="BadState"):
        TrustStore(tmp_path / "file" / "state")


@pytest.mark.parametrize("part", [".", "heads", "convicted"])
def test_what_others_may_write_is_no_memory(store, monkeypatch, part):
    path = store.directory / part
    path.chmod(0o702)
    with pytest.raises(StoreError, match="UnsafeState") as caught:
        TrustStore(store.directory)
    assert str(path) in caught.value.diagnostics()
    path.chmod(0o700)
    monkeypatch.setattr(trust.os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(StoreError, match="UnsafeState: .* belongs to user"):
        TrustStore(store.directory)


def test_a_link_that_leads_nowhere_is_no_empty_memory(store):
    store.save_head("o", b"note\n")
    store.save_actor("o", ALICE, MEMORY)
    store.save_key_changes("o", b"line\n")
    store.pin("@a@b.example", ALICE)
    store.convict("o", b"evidence")
    for path in store.directory.rglob("*.json*"):
        path.rename(path.with_suffix(".moved"))
        path.symlink_to("elsewhere")
    for read in (
        lambda: store.head("o"), lambda: store.actor("o", ALICE), lambda: store.key_changes("o"),
        lambda: store.pinned("@a@b.example"), lambda: store.check_not_convicted("o"),
    ):
        with pytest.raises(StoreError, match="BadState"):
            read()


# Two histories of one actor


def test_histories_that_agree():
    check_history(ALICE, MEMORY, MEMORY)
    grown = replace(MEMORY, tree_size=9, history=(*MEMORY.history, (7, HASHES[7])))
    check_history(ALICE, MEMORY, grown)
    check_history(ALICE, grown, MEMORY)


@pytest.mark.parametrize("history", [(), ((1, HASHES[1]),), ((1, HASHES[1]), (4, HASHES[5]))])
def test_a_history_that_lost_something(history):
    with pytest.raises(Stale, match="ActorRolledBack"):
        check_history(ALICE, MEMORY, replace(MEMORY, tree_size=9, history=history))


def test_a_history_that_gained_something_old():
    gained = replace(MEMORY, tree_size=9, history=(*MEMORY.history, (5, HASHES[5])))
    with pytest.raises(Invalid, match="HistoryRewritten"):
        check_history(ALICE, MEMORY, gained)
    with pytest.raises(Stale, match="ActorRolledBack"):
        check_history(ALICE, gained, MEMORY)


# Many writers

COUNTER = """
import sys
from ktlog.client.trust import TrustStore
store = TrustStore(sys.argv[1])
for _ in range(25):
    with store.locked():
        store.save_head("counter", b"%d" % (int(store.head("counter") or b"0") + 1))
"""


def test_processes_take_turns(store):
    running = [subprocess.Popen([sys.executable, "-c", COUNTER, str(store.directory)]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert store.head("counter") == b"100"


def test_a_lock_that_is_never_given_up(store, monkeypatch):
    monkeypatch.setattr(trust, "LOCK_TIMEOUT_SECONDS", 0.05)
    with store.locked(), pytest.raises(StoreError, match="Locked"), TrustStore(store.directory).locked():
        pass
    with store.locked():
        pass
