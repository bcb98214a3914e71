"""Of logs that are made to be measured: what they are called, and bytes that mean nothing.

Such a log is ``bench.invalid``, a name that nobody can own (RFC 2606).
"""

from __future__ import annotations

import hashlib

ORIGIN = "bench.invalid"


def actor_name(number: int) -> str:
    """Whom entry *number* of a prefilled log enrols."""
    return f"https://{ORIGIN}/users/u{number:07}"


def bytes_of(name: str, size: int = 32) -> bytes:
    """Arbitrary bytes, the same for the same name."""
    return hashlib.shake_256(name.encode("ascii")).digest(size)
