"""The guard that makes a fork impossible to sign: the last signed head, on disk before any signature.

``signed-head.json`` holds the greatest head that this log's keys ever signed. It is written and
synced before a signature leaves the process that holds the keys, so a crash between the two costs one
unused head and never a second history. (Design decision 14; requirement R2 of the failures of real logs.)

Whoever holds the keys believes nobody: not that the new tree contains the old one (it is shown a consistency
proof), not what time it is. So a publisher that is wrong, or in the hands of somebody else, cannot have two
heads signed that contradict each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ktlog.durable import reach
from ktlog.errors import EncodingError, Invalid, StoreError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.store.documents import Document, FileDocument
from ktlog.tlog.checkpoint import format_checkpoint, parse_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal
from ktlog.tlog.note import Note, SignatureLine, Signer, Vkey, open_note
from ktlog.tlog.tree import EMPTY_ROOT, verify_consistency
from ktlog.words import count_entries

# In order. A test kills whoever holds the keys at each.
HOOKS = ("head.recorded", "head.signed")


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
    if new.size < last.size:
        raise _would_roll_back(last, new)
    if root_after(last.size) != last.root:
        raise StoreError(
            "WouldFork", f"the store's root at size {last.size} is not the one that was signed", hint=_RESTORED
        )
    _check_clock(last, new)


_RESTORED = "This looks like a store restored from an older or another copy. Signing would fork the log."


def _would_roll_back(last: SignedHead, new: SignedHead) -> StoreError:
    return StoreError(
        "WouldRollBack", f"the log has signed size {last.size}; its store now has {new.size}", hint=_RESTORED
    )


def _check_clock(last: SignedHead, new: SignedHead) -> None:
    if new.time < last.time:
        raise StoreError(
            "ClockWentBack", f"the clock says {new.time}, before the last signature at {last.time}",
            hint="Set the clock right; signing goes on by itself once it has passed that time.",
        )


def load_signed_head(document: Document) -> SignedHead | None:
    """Read the last signed head; None when the log never signed.

    Raises:
        StoreError: the file is there but cannot be trusted. It is not replaced.
    """
    data = document.read()
    if data is None:
        return None
    try:
        found = parse_json(data)
        return SignedHead(
            parse_decimal(found["size"]), decode_base64(found["root"], 32), parse_decimal(found["time"])
        )
    except (EncodingError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            "BadSignedHead", f"{document} is damaged ({error}); without it a fork cannot be ruled out",
            hint="Restore it from a backup, or write the size and root of the newest checkpoint that any witness has.",
        ) from None


def signed_time(note: Note, vkeys: Sequence[Vkey]) -> int:
    """When the log says that it signed *note*, Unix seconds: the greatest time under its keys; 0 if none has one.

    Raises:
        Invalid: a signature under one of *vkeys* is none.
    """
    return max((verified.timestamp for verified in open_note(note, vkeys)), default=0)


def record_signed_head(document: Document, head: SignedHead) -> None:
    """Make *head* durable. Only after this may a signature over it leave the process."""
    text = canonical({"size": str(head.size), "root": encode_base64(head.root), "time": str(head.time)})
    document.write(text + b"\n")


class HeadSigner(Protocol):
    """Whoever holds the checkpoint keys of one log: this process, or the signer's (:mod:`ktlog.operator.signer`)."""

    def vkeys(self) -> tuple[Vkey, ...]:
        """What a head is signed with now; more than two while a key's successor is being introduced."""

    def last(self) -> SignedHead | None:
        """The last head that it signed, or was about to when it died.

        Raises:
            StoreError: ``Poisoned``: it is not known any more, for somebody else signed since.
        """

    def sign(self, text: bytes, proof: Sequence[bytes]) -> tuple[SignatureLine, ...]:
        """Sign the checkpoint *text*, durably remembered first.

        Args:
            proof: RFC 9162 consistency proof from the last head (from the empty tree, if there is none) to this.

        Raises:
            StoreError: ``WouldRollBack``, ``WouldFork``, ``ClockWentBack``, ``WrongOrigin``, ``NoCheckpoint``: nothing
                was signed. Any other: whether it was remembered is not known, and nothing is signed any more.
        """


class LocalHeads:
    """``HeadSigner`` with the keys in this process. Safe to use from many threads.

    Args:
        document: where the last head is kept.
        signers: all of one name, the log's origin.
        old: keys that still sign, each until a Unix time.
        now: Unix seconds.
    """

    def __init__(
        self, document: Document, signers: Sequence[Signer], now: Callable[[], int],
        old: Sequence[tuple[Signer, int]] = (),
    ) -> None:
        self._document = document
        self._signers = tuple(signers)
        self._old = tuple(old)
        self._now = now
        self._lock = threading.Lock()
        self._poisoned = False
        self._last = load_signed_head(document)

    def _in_use(self) -> tuple[Signer, ...]:
        now = self._now()
        return self._signers + tuple(signer for signer, until in self._old if now < until)

    def vkeys(self) -> tuple[Vkey, ...]:
        return tuple(signer.vkey for signer in self._in_use())

    def last(self) -> SignedHead | None:
        with self._lock:
            # A process that goes by an old head would wait for ever for witnesses who have seen a newer one.
            self._check_document()
            return self._last

    @property
    def poisoned(self) -> bool:
        """Whether a write failed or somebody else wrote, so that what is on disk is not known."""
        return self._poisoned

    def _check_document(self) -> None:
        """Refuse to go on when the last head on disk is not the one that this process left there."""
        if self._poisoned:
            raise StoreError("Poisoned", f"{self._document}: a write failed; what it holds has to be read afresh")
        self._poisoned = True
        if load_signed_head(self._document) != self._last:
            raise StoreError(
                "Poisoned", f"{self._document} is not as this process left it: somebody else signs, or restored it",
                hint="Nothing was signed. The next process goes by what the file says now.",
            )
        self._poisoned = False

    def sign(self, text: bytes, proof: Sequence[bytes]) -> tuple[SignatureLine, ...]:
        with self._lock:
            self._check_document()
            head = self._check(text, proof)
            self._poisoned = True
            record_signed_head(self._document, head)
            self._last, self._poisoned = head, False
            reach("head.recorded")
            lines = tuple(signer.sign(text, head.time) for signer in self._in_use())
            reach("head.signed")
            return lines

    def _check(self, text: bytes, proof: Sequence[bytes]) -> SignedHead:
        try:
            checkpoint = parse_checkpoint(text)
            if checkpoint.extensions or format_checkpoint(checkpoint) != text:
                raise EncodingError("BadCheckpoint", "extension lines")
        except EncodingError as error:
            raise StoreError("NoCheckpoint", f"what is to be signed is no plain checkpoint: {error.message}") from None
        origin = self._signers[0].vkey.name
        if checkpoint.origin != origin:
            raise StoreError("WrongOrigin", f"the keys of {origin} sign no checkpoint of {checkpoint.origin!a}")
        last, head = self._last, SignedHead(checkpoint.size, checkpoint.root, self._now())
        if last is not None and head.size < last.size:
            raise _would_roll_back(last, head)
        old_size, old_root = (0, EMPTY_ROOT) if last is None else (last.size, last.root)
        try:
            verify_consistency(old_size, head.size, proof, old_root, head.root)
        except Invalid as error:
            raise StoreError(
                "WouldFork", f"a tree of {count_entries(head.size)} does not contain that of {old_size:,}, which was"
                f" signed: {error.message}", hint=_RESTORED,
            ) from None
        if last is not None:
            _check_clock(last, head)
        return head


class Heads:
    """A publisher's way to the keys, and to the last head as all machines know it that may publish this log.

    Args:
        keys: a HeadSigner, or the signers themselves; then *document* is where their last head is kept.
        document: where the log's store keeps the last head. A file is the signer's own, and only read by it.
    """

    def __init__(
        self, keys: HeadSigner | Sequence[Signer], document: Document, now: Callable[[], int]
    ) -> None:
        self._signer: HeadSigner = LocalHeads(document, keys, now) if isinstance(keys, Sequence) else keys
        self._shared = None if isinstance(document, FileDocument) else document
        self._where = document

    def __str__(self) -> str:
        return str(self._where)

    def vkeys(self) -> tuple[Vkey, ...]:
        return self._signer.vkeys()

    def last(self) -> SignedHead | None:
        """The greatest head that was ever signed, as far as anybody here knows."""
        own = self._signer.last()
        shared = None if self._shared is None else load_signed_head(self._shared)
        return max((head for head in (own, shared) if head is not None), key=lambda head: head.size, default=None)

    def offer(self, head: SignedHead, root_after: Callable[[int], bytes]) -> None:
        """Check *head* against the last one, and record it where other machines' signers will look.

        Raises:
            StoreError: as :func:`check_successor`, and those of the store.
        """
        check_successor(self.last(), head, root_after)
        if self._shared is not None:
            record_signed_head(self._shared, head)

    def sign(self, text: bytes, size: int, prove: Callable[[int, int], Sequence[bytes]]) -> tuple[SignatureLine, ...]:
        """Have the checkpoint *text* of a tree of *size* signed; ``prove(old, size)`` makes the proof for it."""
        last = self._signer.last()
        old = 0 if last is None else last.size
        return self._signer.sign(text, prove(old, size) if 0 < old < size else ())
