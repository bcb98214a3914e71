"""The guard that makes a fork impossible to sign: the last signed head, on disk before any signature.

``signed-head.json`` holds the greatest head that this log's keys ever signed. It is written and
synced before a signature leaves the process, so a crash between the two costs one unused head
and never a second history. (Design decision 14; requirement R2 of the failures of real logs.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktlog.durable import read_file, write_atomic
from ktlog.errors import EncodingError, StoreError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal


@dataclass(frozen=True)
class SignedHead:
    """The newest head signed: tree size, 32-byte root, Unix time of the signature."""

    size: int
    root: bytes
    time: int


def check_successor(
    last: SignedHead | None, new: SignedHead, root_after: Callable[[int], bytes]
) -> None:
    """Refuse to sign *new* after *last* unless the tree only grew and the clock did not go back.

    ``root_after(size)`` gives the root that this log's own store has for an earlier size.

    Raises:
        StoreError: ``WouldFork``, ``WouldRollBack`` or ``ClockWentBack``.
    """
    if last is None:
        return
    restored = "This looks like a store restored from an older or another copy. Signing would fork the log."
    if new.size < last.size:
        raise StoreError(
            "WouldRollBack", f"the log has signed size {last.size}; its store now has {new.size}", hint=restored
        )
    if root_after(last.size) != last.root:
        raise StoreError(
            "WouldFork", f"the store's root at size {last.size} is not the one that was signed", hint=restored
        )
    if new.time < last.time:
        raise StoreError(
            "ClockWentBack", f"the clock says {new.time}, before the last signature at {last.time}",
            hint="Set the clock right; signing goes on by itself once it has passed that time.",
        )


def load_signed_head(path: Path) -> SignedHead | None:
    """Read the last signed head; None when the log never signed.

    Raises:
        StoreError: the file is there but cannot be trusted. It is not replaced.
    """
    data = read_file(path)
    if data is None:
        return None
    try:
        found = parse_json(data)
        return SignedHead(
            parse_decimal(found["size"]), decode_base64(found["root"], 32), parse_decimal(found["time"])
        )
    except (EncodingError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            "BadSignedHead", f"{path} is damaged ({error}); without it a fork cannot be ruled out",
            hint="Restore it from a backup, or write the size and root of the newest checkpoint that any witness has.",
        ) from None


def record_signed_head(path: Path, head: SignedHead) -> None:
    """Make *head* durable. Only after this may a signature over it leave the process."""
    text = canonical({"size": str(head.size), "root": encode_base64(head.root), "time": str(head.time)})
    write_atomic(path, text + b"\n", mode=0o600)
