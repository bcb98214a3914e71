"""Does this store keep its conditions? Asked before a log writes a byte to it.

Everything in :mod:`ktlog.store.s3` rests on two conditions, and there are stores that take the headers and ignore them,
or look before they write and not while they do. So the probe writes objects of its own under ``probe/``, and does what
must not succeed. Of a store that lies now and then it can prove nothing; the tiles are compared when they are there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ktlog.errors import KtlogError, StoreError, Unreachable
from ktlog.store.s3bucket import Absent, Bucket, Outcome, Still, Stored

RACERS = 6
"""Writers who want the same object at once."""
MAXIMUM_BYTES = 1_024
ATTEMPTS = 3

_CHOOSE = "Choose another store: docs/objects.md names some that were tested. The log wrote nothing but below probe/."


def quoted(etag: str) -> str:
    """An ETag as HTTP writes it.

    >>> quoted("5d41")
    '"5d41"'
    """
    return f'"{bare(etag)}"'


def bare(etag: str) -> str:
    """The same without quotes, which some stores compare with what is sent."""
    return etag.removeprefix("W/").strip('"')


def probe(bucket: Bucket) -> Callable[[str], str]:
    """Try the store, and return how it wants an ETag spelled: :func:`quoted` or :func:`bare`.

    Raises:
        StoreError: "UnfitObjectStore" with what it did wrong; those of ``Bucket``.
        Unreachable
    """
    key = f"probe/{secrets.token_hex(16)}"
    try:
        if bucket.get(key, MAXIMUM_BYTES) is not None:
            raise _unfit(bucket, "has an object that nobody wrote")
        stored = _first_write(bucket, key)
        spell, stored = _replacing(bucket, key, stored)
        _race(bucket, key, lambda: Still(spell(stored.etag)), "If-Match")
        _race(bucket, f"{key}-race", Absent, "If-None-Match")
        return spell
    finally:
        # Without the right to delete them a few bytes stay.
        with suppress(KtlogError):
            for suffix in ("", "-race", "-absent"):
                bucket.delete(f"{key}{suffix}")


def _first_write(bucket: Bucket, key: str) -> Stored:
    outcome = _put(bucket, key, b"first", Absent())
    if outcome is Outcome.UNKNOWN:
        found = bucket.get(key, MAXIMUM_BYTES)
        if found is not None and not bare(found.etag):
            raise _unfit(bucket, "gives no ETag")
    _must(bucket, outcome, Outcome.STORED, "refused If-None-Match: * for a new object")
    stored = _expect(bucket, key, b"first")
    outcome = _put(bucket, key, b"second", Absent())
    _must(bucket, outcome, Outcome.REFUSED, "does not enforce If-None-Match: it would overwrite a tile")
    _expect(bucket, key, b"first")
    return stored


def _replacing(bucket: Bucket, key: str, stored: Stored) -> tuple[Callable[[str], str], Stored]:
    """Find out how If-Match is spelled, and that another ETag is refused however it is spelled."""
    for spell in (quoted, bare):
        # The ETag of something else, as long as a real one.
        other = spell("0" * len(bare(stored.etag)))
        outcome = _put(bucket, key, b"other", Still(other))
        _must(bucket, outcome, Outcome.REFUSED, "does not enforce If-Match: an old checkpoint could replace a new one")
        outcome = _put(bucket, f"{key}-absent", b"other", Still(other))
        _must(bucket, outcome, Outcome.REFUSED, "writes a new object under If-Match")
    _expect(bucket, key, b"first")
    for spell in (quoted, bare):
        if _put(bucket, key, b"third", Still(spell(stored.etag))) is Outcome.STORED:
            break
    else:
        raise _unfit(bucket, "refuses If-Match with the very ETag that it gave, quoted and unquoted")
    newer = _expect(bucket, key, b"third")
    outcome = _put(bucket, key, b"late", Still(spell(stored.etag)))
    _must(bucket, outcome, Outcome.REFUSED, "does not enforce If-Match: an old checkpoint could replace a new one")
    _expect(bucket, key, b"third")
    return spell, newer


def _race(bucket: Bucket, key: str, condition: Callable[[], Absent | Still], header: str) -> None:
    """Of those who write at the same moment under one condition, one may succeed, and what it wrote must stay.

    A loser may be told anything: Ceph says 500 to some of them.
    """
    def write(number: int) -> Outcome:
        return _put(bucket, key, f"racer {number}".encode(), condition())

    with ThreadPoolExecutor(RACERS, "probe") as racers:
        outcomes = list(racers.map(write, range(RACERS)))
    if set(outcomes) <= {Outcome.UNKNOWN, Outcome.UNSENT}:
        raise _silent(bucket)
    winners = [number for number, outcome in enumerate(outcomes) if outcome is Outcome.STORED]
    if len(winners) > 1:
        raise _unfit(bucket, f"does not enforce {header} between writers at the same moment")
    if winners:
        _expect(bucket, key, f"racer {winners[0]}".encode())


def _put(bucket: Bucket, key: str, data: bytes, condition: Absent | Still) -> Outcome:
    """One PUT; a store that is busy is asked again. Whatever says that nothing was stored counts as a refusal."""
    outcome = Outcome.BUSY
    for _ in range(ATTEMPTS):
        try:
            outcome = bucket.put(key, data, condition, content_type="application/octet-stream", cache="no-store")
        except StoreError as error:
            if error.name != "ObjectsRefused":
                raise
            outcome = Outcome.REFUSED  # as not implemented, perhaps
        if outcome is not Outcome.BUSY:
            break
    return outcome


def _must(bucket: Bucket, outcome: Outcome, wanted: Outcome, otherwise: str) -> None:
    if outcome in (Outcome.UNKNOWN, Outcome.UNSENT, Outcome.BUSY):
        raise _silent(bucket)
    if outcome is not wanted:
        raise _unfit(bucket, otherwise)


def _expect(bucket: Bucket, key: str, data: bytes) -> Stored:
    stored = bucket.get(key, MAXIMUM_BYTES)
    if stored is None or stored.data != data:
        raise _unfit(bucket, "does not give back what was written last: it is not read-after-write")
    if not bare(stored.etag):
        raise _unfit(bucket, "gives no ETag")
    return stored


def _silent(bucket: Bucket) -> Unreachable:
    return Unreachable("ObjectsUnreachable", f"{bucket.place}: the object store did not answer while it was probed")


def _unfit(bucket: Bucket, what: str) -> StoreError:
    return StoreError("UnfitObjectStore", f"{bucket.place}: this object store {what}", hint=_CHOOSE)
