"""Checkpoints for tests of what is published."""

from __future__ import annotations

from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.envelope import Note, SignatureLine, format_note
from tests.store_samples import ORIGIN, hash_of


def make_note(size: int, root: bytes | None = None, origin: str = ORIGIN, cosigned: int = 0) -> bytes:
    checkpoint = Checkpoint(origin, size, hash_of(f"root {size}") if root is None else root)
    signatures = [SignatureLine(ORIGIN, bytes(4), bytes(64))]
    signatures += [SignatureLine(f"w{number}.example.com", bytes(4), bytes(72)) for number in range(cosigned)]
    return format_note(Note(format_checkpoint(checkpoint), tuple(signatures)))
