"""What a timestamped signature on a checkpoint signs.

Both kinds say: of the log named, this is the largest consistent tree seen as of the time given.
Spec: c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

from ktlog.errors import EncodingError
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES, Checkpoint
from ktlog.tlog.encoding import MAXIMUM_INTEGER

TIMESTAMP_BYTES = 8

_SUBTREE_LABEL = b"subtree/v1\n\0"


def ed25519_message(text: bytes, time: int) -> bytes:
    """The bytes a 0x04 cosignature signs: a header, *time* (Unix seconds), the whole note text.

    Extension lines are covered; the cosigner's name is not, so one Ed25519 key serves one cosigner.
    """
    check_time(time)
    return b"cosignature/v1\ntime %d\n" % time + text


def subtree_message(
    cosigner_name: str, time: int, origin: str, start: int, end: int, subtree_hash: bytes
) -> bytes:
    """The bytes a 0x06 signature signs for the leaves [start, end) of *origin*'s tree.

    A checkpoint has start 0 and end = tree size. Extension lines are not covered.

    Raises:
        EncodingError: ``BadCosignature`` when a field does not fit, or a subtree that does not start
            at 0 bears a time.
    """
    check_time(time)
    if not 0 <= start <= end <= MAXIMUM_INTEGER or (start and time) or len(subtree_hash) != 32:
        raise EncodingError("BadCosignature", "not the range, time or hash of a subtree")
    return b"".join((
        _SUBTREE_LABEL,
        _short_string(cosigner_name),
        time.to_bytes(8, "big"),
        _short_string(origin),
        start.to_bytes(8, "big"),
        end.to_bytes(8, "big"),
        subtree_hash,
    ))


def checkpoint_message(cosigner_name: str, time: int, checkpoint: Checkpoint) -> bytes:
    """:func:`subtree_message` for the whole tree of *checkpoint*."""
    return subtree_message(cosigner_name, time, checkpoint.origin, 0, checkpoint.size, checkpoint.root)


def join_timestamped(time: int, signature: bytes) -> bytes:
    """A signature line's blob: u64 time, then the signature."""
    check_time(time)
    return time.to_bytes(TIMESTAMP_BYTES, "big") + signature


def split_timestamped(blob: bytes, signature_bytes: int) -> tuple[int, bytes]:
    """Inverse of :func:`join_timestamped`. Raises EncodingError ``BadCosignature``."""
    if len(blob) != TIMESTAMP_BYTES + signature_bytes:
        raise EncodingError("BadCosignature", f"a timestamped signature has {len(blob)} bytes")
    time = int.from_bytes(blob[:TIMESTAMP_BYTES], "big")
    check_time(time)
    return time, blob[TIMESTAMP_BYTES:]


def check_time(time: int) -> None:
    """Refuse (``BadCosignature``) a time outside 0..2^63-1."""
    if not 0 <= time <= MAXIMUM_INTEGER:
        raise EncodingError("BadCosignature", "a time is out of range")


def _short_string(text: str) -> bytes:
    data = text.encode("utf-8")
    if not 1 <= len(data) <= MAXIMUM_ORIGIN_BYTES:
        raise EncodingError("BadCosignature", "a name does not have 1 to 255 bytes")
    return bytes((len(data),)) + data
