"""Heads against policy and memory, where the lookup's own tests do not reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
from client_log import NOW, ORIGIN, TinyLog, make_policy

from ktlog.client import verify
from ktlog.errors import Forked, Invalid, UsageError
from ktlog.tlog.policy import LogKey, Policy


def log_of(size: int, word: bytes = b"{}") -> TinyLog:
    log = TinyLog()
    log.entries = [word + b"%d" % number for number in range(size)]
    return log


@pytest.fixture
def both() -> verify.Log:
    """A log whose two keys the policy knows."""
    log = TinyLog()
    policy = make_policy([log])
    return verify.find_log(replace(policy, logs=tuple(LogKey(signer.vkey) for signer in log.signers)), ORIGIN)


def head(log: TinyLog, trusted: verify.Log, **options) -> verify.Head:
    return verify.open_head(log.sign(**options), trusted)


def test_a_log_line_names_the_log():
    log = TinyLog()
    found = verify.find_log(make_policy([log]), ORIGIN)
    assert (found.url, found.vkeys) == (log.url, (log.signers[1].vkey,))
    bare = Policy((LogKey(log.signers[1].vkey),))
    assert verify.find_log(bare, ORIGIN).url == f"https://{ORIGIN}"
    slash = Policy((LogKey(log.signers[1].vkey, "https://tiles.example/log/"),))
    assert verify.find_log(slash, ORIGIN).url == "https://tiles.example/log"
    with pytest.raises(UsageError, match="UnknownLog"):
        verify.find_log(bare, "keys.beta.example")


def test_either_key_may_sign_but_none_may_sign_wrong(both):
    log = log_of(3)
    for signers in ((log.signers[0],), (log.signers[1],), log.signers):
        assert head(log, both, signers=signers).size == 3
    with pytest.raises(Invalid, match="BadLogSignature"):
        head(log, both, signers=())
    other = log.sign(root=bytes(32)).split(b"\n")
    mixed = log.sign().split(b"\n")
    for line in (4, 5):
        note = b"\n".join([*mixed[:line], other[line], *mixed[line + 1:]])
        with pytest.raises(Invalid, match="BadLogSignature"):
            verify.open_head(note, both)


def test_an_empty_tree_has_one_root(both):
    assert head(log_of(0), both).size == 0
    with pytest.raises(Invalid, match="MalformedCheckpoint"):
        head(log_of(0), both, root=bytes(32))


def test_two_roots_under_different_keys_are_a_fork_without_evidence(both):
    one, other = log_of(3), log_of(3, b"other")
    with pytest.raises(Forked, match="TwoRoots") as caught:
        verify.check_two_roots(
            both, head(one, both, signers=one.signers[:1]), head(other, both, signers=one.signers[1:])
        )
    assert caught.value.evidence is None
    with pytest.raises(Forked) as caught:
        verify.check_two_roots(both, head(one, both), head(other, both, signers=one.signers[:1]))
    assert caught.value.evidence is not None


def test_two_roots_of_different_sizes_or_equal_ones_are_none(both):
    verify.check_two_roots(both, head(log_of(3), both), head(log_of(4, b"other"), both))
    verify.check_two_roots(both, head(log_of(3), both), head(log_of(3), both, now=NOW + 1))


@pytest.mark.parametrize("size", [0, 1, 2, 5, 8, 9])
def test_every_older_tree_is_contained(both, size):
    log = log_of(9)
    verify.check_extends(both, head(log, both, size=size), head(log, both), log.reader())


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
def test_a_tree_that_is_not_contained(both, size):
    log = log_of(9)
    with pytest.raises(Forked) as caught:
        verify.check_extends(both, head(log_of(size, b"other"), both), head(log, both), log.reader())
    assert caught.value.name == ("TwoRoots" if size == 9 else "Inconsistent")
    assert caught.value.evidence is not None
