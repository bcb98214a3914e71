"""Signing a batch: every leaf once, in order, however many threads share the work."""

from __future__ import annotations

import hashlib

import pytest

from ktlog.operator import leaves
from ktlog.operator.leaves import local_signer
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import verify_entry
from tests.operator_world import leaf_key

LEAF_KEYS = {hashlib.sha256(leaf_key().public).digest(): leaf_key().public}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_one_entry_for_each_in_order(monkeypatch, threads, count):
    signed: list[bytes] = []
    make = leaves.make_entry
    monkeypatch.setattr(leaves, "make_entry", lambda *args: (signed.append(args[1]), make(*args))[1])
    preimages = [b"message %d" % number for number in range(count)]
    entries = local_signer(SPEC, leaf_key(), threads)(preimages)
    assert sorted(signed) == preimages
    for entry, preimage in zip(entries, preimages, strict=True):
        verify_entry(entry, preimage, LEAF_KEYS)


def test_a_failure_is_the_batch_s(monkeypatch):
    """Nothing may be taken of a batch of which one leaf could not be signed."""
    make = leaves.make_entry

    def fail(dialect, preimage, private, public):
        if preimage == b"3":
            raise MemoryError
        return make(dialect, preimage, private, public)

    monkeypatch.setattr(leaves, "make_entry", fail)
    with pytest.raises(MemoryError):
        local_signer(SPEC, leaf_key(), 2)([b"1", b"2", b"3"])
