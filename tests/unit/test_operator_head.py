"""The last signed head: every way in which a new one may not follow it."""

from __future__ import annotations

import pytest

from ktlog.errors import StoreError
from ktlog.operator.head import (
    Heads,
    LocalHeads,
    SignedHead,
    check_successor,
    load_signed_head,
    record_signed_head,
)
from ktlog.store.documents import FileDocument
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, root_hash
from tests.operator_world import ORIGIN, log_signers

ROOTS = {0: b"\x00" * 32, 5: b"\x05" * 32, 6: b"\x06" * 32}
LAST = SignedHead(5, ROOTS[5], 1000)
ROOT_TEXT = encode_base64(ROOTS[5]).encode()


def refusal(new: SignedHead, roots=ROOTS) -> str:
    with pytest.raises(StoreError) as caught:
        check_successor(LAST, new, roots.__getitem__)
    assert caught.value.exit_code == 8
    assert caught.value.hint
    return caught.value.name


@pytest.mark.parametrize("new", [LAST, SignedHead(5, ROOTS[5], 1001), SignedHead(6, ROOTS[6], 1000)])
def test_what_may_follow(new):
    check_successor(LAST, new, ROOTS.__getitem__)


def test_anything_may_be_the_first():
    check_successor(None, LAST, lambda size: pytest.fail("there is nothing to compare with"))


def test_what_may_not():
    assert refusal(SignedHead(4, b"\x04" * 32, 2000)) == "WouldRollBack"
    assert refusal(SignedHead(0, ROOTS[0], 2000)) == "WouldRollBack"
    assert refusal(SignedHead(6, ROOTS[6], 999)) == "ClockWentBack"
    assert refusal(SignedHead(5, ROOTS[5], 999)) == "ClockWentBack"
    # The store has other entries below the signed head, whatever it has on top of them.
    assert refusal(SignedHead(6, ROOTS[6], 2000), ROOTS | {5: b"\x55" * 32}) == "WouldFork"
    assert refusal(SignedHead(5, b"\x55" * 32, 2000), ROOTS | {5: b"\x55" * 32}) == "WouldFork"


def test_a_fork_is_named_before_the_clock():
    """Setting the clock right must not be what an operator does about a fork."""
    assert refusal(SignedHead(5, b"\x55" * 32, 1), ROOTS | {5: b"\x55" * 32}) == "WouldFork"


def test_recorded_and_read_again(tmp_path):
    path = tmp_path / "signed-head.json"
    assert load_signed_head(FileDocument(path)) is None
    for head in (SignedHead(0, ROOTS[0], 0), LAST, SignedHead(2**62, ROOTS[6], 2**40)):
        record_signed_head(FileDocument(path), head)
        assert load_signed_head(FileDocument(path)) == head
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["signed-head.json"]


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b"null", b"5", b'"x"', b"not json", b"\xff\xfe",
    b'{"size":"5","root":"%s"}' % ROOT_TEXT,
    b'{"size":5,"root":"%s","time":"1"}' % ROOT_TEXT,
    b'{"size":"5","root":"%s","time":1}' % ROOT_TEXT,
    b'{"size":null,"root":"%s","time":"1"}' % ROOT_TEXT,
    b'{"size":"5","root":17,"time":"1"}',
    b'{"size":"5","root":["%s"],"time":"1"}' % ROOT_TEXT,
    b'{"size":"+5","root":"%s","time":"1"}' % ROOT_TEXT,
    b'{"size":"05","root":"%s","time":"1"}' % ROOT_TEXT,
    b'{"size":"5","root":"%s","time":"-1"}' % ROOT_TEXT,
    b'{"size":"5","root":"AAAA","time":"1"}',
    b'{"size":"5","size":"6","root":"%s","time":"1"}' % ROOT_TEXT,
    b'{"size":"5","root":"%s"' % ROOT_TEXT,
], ids=repr)
def test_a_damaged_record_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "signed-head.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="BadSignedHead"):
        load_signed_head(FileDocument(path))
    assert path.read_bytes() == content


def test_a_record_that_cannot_be_read_is_no_missing_one(tmp_path):
    path = tmp_path / "signed-head.json"
    path.mkdir()
    with pytest.raises(StoreError):
        load_signed_head(FileDocument(path))


# --- several machines, each with a signer of its own


class Shared:
    """What a database keeps: every machine sees it, and what was written when."""

    def __init__(self, events: list[str]) -> None:
        self.data: bytes | None = None
        self._events = events

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        self.data = data
        self._events.append("database")

    def remove(self) -> None:
        self.data = None


class Watched(FileDocument):
    def __init__(self, path, events: list[str]) -> None:
        super().__init__(path)
        self._events = events

    def write(self, data: bytes) -> None:
        super().write(data)
        self._events.append("file")


def test_another_machine_goes_on_after_what_the_database_says(tmp_path):
    read = leaf_reader([hash_leaf(bytes([n])) for n in range(12)])
    events: list[str] = []
    shared = Shared(events)

    def machine(name: str) -> Heads:
        return Heads(LocalHeads(Watched(tmp_path / name, events), log_signers(), lambda: 1000), shared, lambda: 1000)

    def root(size: int) -> bytes:
        return root_hash(size, read)

    def publish(heads: Heads, size: int) -> None:
        heads.offer(SignedHead(size, root(size), 1000), root)
        text = format_checkpoint(Checkpoint(ORIGIN, size, root(size)))
        assert len(heads.sign(text, size, lambda old, new: prove_consistency(old, new, read))) == 2

    one, two = machine("one"), machine("two")
    publish(one, 3)
    assert events == ["database", "file"]
    publish(two, 5)
    publish(two, 8)
    # The first one's file says 3; the database says 8: nothing before that is signed, and the proof is from 3.
    assert one.last() == SignedHead(8, root(8), 1000)
    with pytest.raises(StoreError, match="WouldRollBack"):
        publish(one, 7)
    publish(one, 8)
    publish(one, 11)
    assert load_signed_head(FileDocument(tmp_path / "one")).size == two.last().size == 11
    assert load_signed_head(FileDocument(tmp_path / "two")).size == 8
