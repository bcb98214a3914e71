"""The signed bytes, spelt out by hand."""

from __future__ import annotations

import pytest

from ktlog.errors import EncodingError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.cosignature import (
    checkpoint_message,
    ed25519_message,
    join_timestamped,
    split_timestamped,
    subtree_message,
)


def test_the_specifications_ed25519_example():
    text = b"example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    assert ed25519_message(text, 1679315147) == b"cosignature/v1\ntime 1679315147\n" + text


def test_the_mldsa_structure():
    message = checkpoint_message("w.example", 0x0102, Checkpoint("o", 0x0304, b"h" * 32))
    assert message == (
        b"subtree/v1\n\0"
        b"\x09w.example"
        b"\0\0\0\0\0\0\x01\x02"
        b"\x01o"
        b"\0\0\0\0\0\0\0\0"
        b"\0\0\0\0\0\0\x03\x04" + b"h" * 32
    )


def test_a_subtree():
    message = subtree_message("w", 0, "o", 8, 13, bytes(32))
    assert message[-48:-32] == bytes(7) + b"\x08" + bytes(7) + b"\x0d"


def test_names_are_measured_in_bytes():
    assert subtree_message("é" * 127, 0, "x" * 255, 0, 1, bytes(32))[12] == 254


@pytest.mark.parametrize(
    "arguments",
    [
        ("", 0, "o", 0, 1, bytes(32)),
        ("w", 0, "", 0, 1, bytes(32)),
        ("é" * 128, 0, "o", 0, 1, bytes(32)),
        ("w", 0, "x" * 256, 0, 1, bytes(32)),
        ("w", -1, "o", 0, 1, bytes(32)),
        ("w", 2**63, "o", 0, 1, bytes(32)),
        ("w", 5, "o", 8, 13, bytes(32)),
        ("w", 0, "o", 2, 1, bytes(32)),
        ("w", 0, "o", 0, 2**63, bytes(32)),
        ("w", 0, "o", 0, 1, bytes(31)),
    ],
)
def test_what_does_not_fit_the_structure(arguments):
    with pytest.raises(EncodingError) as caught:
        subtree_message(*arguments)
    assert caught.value.name == "BadCosignature"


def test_the_blob():
    blob = join_timestamped(2**63 - 1, b"s" * 64)
    assert blob == b"\x7f" + b"\xff" * 7 + b"s" * 64
    assert split_timestamped(blob, 64) == (2**63 - 1, b"s" * 64)
    for bad in (blob[:-1], blob + b"s", b"\x80" + blob[1:], b""):
        with pytest.raises(EncodingError):
            split_timestamped(bad, 64)
    with pytest.raises(EncodingError):
        join_timestamped(2**63, b"")
