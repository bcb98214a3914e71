from __future__ import annotations

import pytest

from ktlog.errors import EncodingError
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_checkpoint, parse_signed_checkpoint
from ktlog.tlog.tree import EMPTY_ROOT

ROOT = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
TEXT = f"example.com/behind-the-sofa\n20852163\n{ROOT}\n".encode()


def test_the_specifications_example():
    checkpoint = parse_checkpoint(TEXT)
    assert checkpoint.origin == "example.com/behind-the-sofa"
    assert checkpoint.size == 20852163
    assert checkpoint.root.hex().startswith("0ac5186a91863e8e")
    assert checkpoint.extensions == ()
    assert format_checkpoint(checkpoint) == TEXT


def test_a_signed_one():
    note, checkpoint = parse_signed_checkpoint(TEXT + "\n— a.example AAAAAAA=\n".encode())
    assert note.text == TEXT
    assert checkpoint == parse_checkpoint(TEXT)
    with pytest.raises(EncodingError):
        parse_signed_checkpoint(b"text\n" + "\n— a.example AAAAAAA=\n".encode())


@pytest.mark.parametrize("origin", ["go.sum database tree", "a+b", "é", "x" * 255, "a\u2028b", " "])
def test_origins_are_free_text(origin):
    checkpoint = Checkpoint(origin, 0, EMPTY_ROOT)
    assert parse_checkpoint(format_checkpoint(checkpoint)) == checkpoint


def test_extension_lines_and_the_largest_size():
    checkpoint = Checkpoint("a", 2**63 - 1, bytes(32), ("one", "two words"))
    assert parse_checkpoint(format_checkpoint(checkpoint)) == checkpoint


def test_size_zero_with_any_root_parses():
    """A witness answers 422 to it, not 400: it is untrue, not malformed."""
    assert parse_checkpoint(f"a\n0\n{ROOT}\n".encode()).size == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "a\n", "a\n1\n", f"a\n1\n{ROOT}", f"\n1\n{ROOT}\n", f"a\n\n{ROOT}\n", f"a\n1\n{ROOT}\n\n",
        f"a\n1\n{ROOT}\nx\n\ny\n", f"a\n01\n{ROOT}\n", f"a\n-1\n{ROOT}\n", f"a\n+1\n{ROOT}\n", f"a\n1_0\n{ROOT}\n",
        f"a\n{2**63}\n{ROOT}\n", f"a\n1 \n{ROOT}\n", f"a\n1\n{ROOT[:-1]}\n", f"a\n1\n{ROOT} \n", "a\n1\nAAAA\n",
        f"a\n1\n{ROOT.replace('2I=', '2J=')}\n", f"a\r\n1\n{ROOT}\n", f"a\tb\n1\n{ROOT}\n", f"{'x' * 256}\n1\n{ROOT}\n",
        f"{'é' * 128}\n1\n{ROOT}\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(EncodingError) as caught:
        parse_checkpoint(text.encode())
    assert caught.value.name == "BadCheckpoint"


def test_bytes_that_are_not_utf8_and_texts_too_long_are_refused():
    for text in (b"\xff\n1\n" + ROOT.encode() + b"\n", TEXT + b"x" * (1 << 20) + b"\n"):
        with pytest.raises(EncodingError):
            parse_checkpoint(text)


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 1, bytes(32)),
        Checkpoint("a\nb", 1, bytes(32)),
        Checkpoint("x" * 256, 1, bytes(32)),
        Checkpoint("\ud800", 1, bytes(32)),
        Checkpoint("a", -1, bytes(32)),
        Checkpoint("a", 2**63, bytes(32)),
        Checkpoint("a", 1, bytes(31)),
        Checkpoint("a", 1, bytes(32), ("",)),
        Checkpoint("a", 1, bytes(32), ("x\ny",)),
    ],
)
def test_values_that_cannot_be_written(checkpoint):
    with pytest.raises(EncodingError) as caught:
        format_checkpoint(checkpoint)
    assert caught.value.name == "BadCheckpoint"
