"""Whether a log keeps what its receipts promise: the entry, in its place, in time.

Receipts are files in a directory (``ktlog submit … --receipt``). One that the log's tree contradicts convicts the log;
one that is only late is a finding. A receipt that was kept is not looked at again.

Nobody signs the key that /api/info names, so it is believed once: told in watch.toml, or kept when first seen. After
that only signed lines of /keys lead to another. What no such key opens is said, and never passed over.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from auditor.debounce import Condition
from auditor.evidence.build import evidence_for_receipt
from auditor.evidence.promises import open_receipt
from auditor.findings_store import FindingStore
from auditor.report import Finding
from ktlog.client.publicfiles import PublicFiles
from ktlog.client.verify import Head, Log
from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keychanges import MOST_BYTES, parse_changes, successors, verify_changes
from ktlog.pkd.keys import decode_public_key
from ktlog.tlog.note import Vkey
from ktlog.tlog.tree import HashReader
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.receipts import Acceptance, parse_receipt
from ktlog.words import count_entries

MAX_RECEIPTS = 1000
MAX_RECEIPT_BYTES = 1 << 18
MAX_INFO_BYTES = 1 << 16
DEFAULT_DELAY_SECONDS = 60
"""What a log without a map promises nobody; what one with a map does by default."""
NAMES = frozenset({"DelayBroken", "BrokenPromise", "ReceiptUnchecked", "KeyReplacedSilently"})

_ANSWER_KEYS = """CREATE TABLE answer_keys (
    origin TEXT NOT NULL, key BLOB NOT NULL, PRIMARY KEY (origin, key)
) STRICT, WITHOUT ROWID"""

Keep = Callable[[str, str, bytes, str], tuple[str, Path | None]]

_LOG = logging.getLogger("ktlog.watch")


@dataclass(frozen=True)
class _Receipt:
    name: str
    data: bytes
    digest: bytes
    acceptance: Acceptance


class Receipts:
    """The receipts of one log in *directory*."""

    def __init__(self, store: FindingStore, log: Log, directory: Path, told: Collection[bytes] = ()) -> None:
        """told: the log's keys for answers, raw, where the watch was told them; else the first seen is kept."""
        self._store = store
        self._log = log
        self._directory = directory
        self._refused: set[str] = set()
        self._told = frozenset(told)
        from sqlite_utils import Migrations  # late: the import takes 0.2 s

        migrations = Migrations("receipts")
        migrations(name="0001_answer_keys")(lambda database: database.execute(_ANSWER_KEYS))
        with store.transaction():
            migrations.apply(store.database)

    def check(
        self, head: Head, files: PublicFiles, read: Callable[[], HashReader], keep: Keep, delay: int, skew: int,
        now: int,
    ) -> list[Condition] | None:
        """What does not hold under *head*; None when that could not be told.

        Args:
            files: of the log. read: hashes of head's tree. delay: what the log promises, in seconds.

        Raises:
            StoreError
        """
        try:
            shown: bytes | None = _shown_key(files)
        except Unreachable:
            shown = None
            if not self._known():
                return None
        try:
            waiting = self._waiting()
            known, changes, silent = self._keys(shown, files, bool(waiting))
            found = [silent] if silent else []
            for name, data, digest in waiting:
                opened = self._open(name, data, digest, known, now)
                if not isinstance(opened, tuple):
                    found += [opened] if opened else []
                    continue
                key, receipt = opened
                condition = self._judge(receipt, key, changes, head, read, keep, delay + skew, now)
                if condition is not None:
                    found.append(condition)
                elif receipt.acceptance.leaf_index < head.size:
                    self._store.execute(
                        "INSERT OR IGNORE INTO kept_receipts VALUES (?, ?)", (self._log.origin, receipt.digest)
                    )
            return found
        except Unreachable:
            return None
        except Invalid as error:
            _LOG.warning("receipts of %s are not checked: %s", self._log.origin, error)
            return None

    def _known(self) -> set[bytes]:
        """The log's keys for answers: those that were told, else the first seen, and what leads on from them."""
        rows = self._store.execute("SELECT key FROM answer_keys WHERE origin = ?", (self._log.origin,))
        return {*self._told, *(key for key, in rows)}

    def _keys(self, shown: bytes | None, files: PublicFiles, waiting: bool) -> tuple[
        set[bytes], bytes, Condition | None
    ]:
        """The keys that receipts may bear, the log's history of keys, and whether it shows a key that this lacks."""
        known, new = self._known(), set[bytes]()
        if not known and shown is not None:
            new.add(shown)
        changes = _key_changes(files) if waiting or shown not in known | new else b""
        if changes:
            new |= _successors(changes, self._log.origin, known | new, self._log.vkeys)
        for key in new:
            self._store.execute("INSERT OR IGNORE INTO answer_keys VALUES (?, ?)", (self._log.origin, key))
        known |= new
        silent = None
        if shown is not None and shown not in known and changes is not None:
            what = f"{self._log.origin} shows another key for answers, and no signed line of its /keys says so"
            silent = Condition(Finding("KeyReplacedSilently", "Invalid", what))
        return known, changes or b"", silent

    def _open(
        self, name: str, data: bytes, digest: bytes, known: Collection[bytes], now: int
    ) -> tuple[bytes, _Receipt] | Condition | None:
        """The receipt and the key that signed it; what is so when none did; None for no receipt of this log."""
        try:
            if parse_https_url(parse_receipt(data).url or "").host != self._log.origin:
                raise Invalid("WrongLog", "the receipt is of another log")
        except KtlogError as error:
            if name not in self._refused:
                self._refused.add(name)
                _LOG.warning("%s is no receipt of %s: %s", name, self._log.origin, error)
            return None
        why = "the log shows no key for answers"
        for key in sorted(known):
            try:
                return key, _Receipt(name, data, digest, open_receipt(data, key, self._log.origin, now + 3600))
            except KtlogError as error:
                why = error.message
        what = f"the receipt {name} cannot be checked with any key for answers that the log is known by: {why}"
        return Condition(Finding("ReceiptUnchecked", "Invalid", what), name)

    def _judge(
        self, receipt: _Receipt, key: bytes, changes: bytes, head: Head, read: Callable[[], HashReader], keep: Keep,
        patience: int, now: int,
    ) -> Condition | None:
        index, due = receipt.acceptance.leaf_index, receipt.acceptance.created + patience
        if index >= head.size:
            what = (
                f"the receipt {receipt.name} promised entry {index} at {receipt.acceptance.created}; the log shows"
                f" {count_entries(head.size)}"
            )
            return Condition(Finding("DelayBroken", "Stale", what, index), receipt.name, due) if now > due else None
        evidence = evidence_for_receipt(self._log.vkeys, head.note, read(), receipt.data, key, now, changes)
        if evidence is None:
            return None
        name, path = keep("BrokenPromise", receipt.name, evidence, "broken-promise")
        what = f"the log's tree of {count_entries(head.size)} is not the one that the receipt {receipt.name} promises"
        return Condition(Finding("BrokenPromise", "Forked", what, index), name, evidence=path)

    def _waiting(self) -> list[tuple[str, bytes, bytes]]:
        """Name, bytes and hash of the receipts that were not seen kept yet."""
        done = {digest for digest, in self._store.execute(
            "SELECT digest FROM kept_receipts WHERE origin = ?", (self._log.origin,)
        )}
        found: list[tuple[str, bytes, bytes]] = []
        try:
            for path in sorted(self._directory.iterdir())[:MAX_RECEIPTS]:
                if path.is_file() and path.stat().st_size <= MAX_RECEIPT_BYTES:
                    data = path.read_bytes()
                    digest = hashlib.sha256(data).digest()
                    if digest not in done:
                        found.append((path.name, data, digest))
        except OSError as error:
            raise Invalid("UnreadableFile", f"{self._directory}: {error.strerror}") from None
        return found


def _shown_key(files: PublicFiles) -> bytes | None:
    """The key for answers that the log says it has, which nobody signs; None when it says none.

    Raises:
        Unreachable
    """
    try:
        return decode_public_key(parse_json(files.file("api/info", "MissingAnswer", MAX_INFO_BYTES))["public-key"])
    except (EncodingError, Invalid, KeyError, TypeError, AttributeError):
        return None


def _key_changes(files: PublicFiles) -> bytes | None:
    """The log's history of keys as it serves it; None when it did not answer."""
    try:
        return files.file("keys", "MissingKeys", MOST_BYTES)
    except Invalid:
        return b""
    except Unreachable:
        return None


def _successors(changes: bytes, origin: str, known: Collection[bytes], vkeys: Collection[Vkey]) -> set[bytes]:
    """Keys for answers, old and new, of the lines that one of *vkeys* signed, and that lead on from a *known* one."""
    try:
        lines = parse_changes(changes)
        verify_changes(lines, origin)
        trusted = {str(vkey) for vkey in vkeys} | {str(one.new) for one in successors(lines, tuple(vkeys))}
        pairs = [
            {decode_public_key(key.old), decode_public_key(key.new)}
            for line in lines if line.log_key in trusted for key in line.keys if key.purpose == "http-mldsa44"
        ]
    except (EncodingError, Invalid) as error:
        _LOG.warning("the history of keys of %s does not hold: %s", origin, error)
        return set()
    found = set(known)
    # To and fro: a watch may have begun after a change, and an older receipt bears the key before it.
    for pair in (*pairs, *reversed(pairs)):
        if pair & found:
            found |= pair
    return found - set(known)
