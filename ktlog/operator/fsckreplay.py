"""Records against their entries, and the directory that they lead to, replayed from entry 0.

The rules are those of ``ktlog.operator.follower``, by which mirrors live. After the first entry that does not replay
nothing is said of the directory any more: whatever comes later could rest on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from hashlib import sha256

from ktlog.client.publicfiles import PublicRecord
from ktlog.errors import EncodingError, Invalid, KtlogError, MessageRejected
from ktlog.operator.findings import Findings
from ktlog.operator.follower import Follower
from ktlog.pkd.attributes import check_commitment, decrypt_without_commitment
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.keys import verify_mldsa44
from ktlog.pkd.messages import WireMessage, parse_wire
from ktlog.pkd.replay import Directory
from ktlog.store.contracts import Record

SIGNATURES_AT_A_TIME = 64
WAITING = 64
"""Tasks under way at most: two pages of entries and what hangs on them."""

_Signed = tuple[int, bytes, bytes, bytes]
"""leaf index, message hash, signature, key hash"""
_Task = list[tuple[str, int, str]]


class Replay:
    """The directory after the entries so far.

    Args:
        erasures: the whole erasure log. leaf_keys: by SHA-256 of the raw key; None: signatures are not checked.
        pool: for what leaves the interpreter alone while it works.
        commitments: check every Argon2id commitment, too: some 50 ms of a core for each.
    """

    def __init__(
        self, origin: str, dialect: Dialect, erasures: Sequence[ErasureRecord], leaf_keys: Mapping[bytes, bytes] | None,
        findings: Findings, pool: Executor, *, commitments: bool,
    ) -> None:
        self._follower = Follower(origin, dialect, erasures, leaf_keys or {})
        self._leaf_keys = leaf_keys
        self._findings = findings
        self._pool = pool
        self._commitments = commitments
        self._signed: list[_Signed] = []
        self._tasks: deque[Future[_Task]] = deque()
        self.salts: dict[str, bytes] = {}
        """By actor id, as the records say."""
        self.operators: list[tuple[int, str]] = []
        """Leaf index and id of everybody who ordered a BurnDown, and can be read."""
        self.tokens: set[bytes] = set()
        self.broken: int | None = None
        """The entry from which on nothing is known of the directory."""

    @property
    def directory(self) -> Directory:
        return self._follower.directory

    def give_up(self, leaf_index: int) -> None:
        if self.broken is None:
            self.broken = leaf_index
            self._findings.skip(
                f"The directory and the map from entry {leaf_index} on: that entry cannot be replayed."
            )

    def take(self, leaf_index: int, entry: bytes, shown: PublicRecord, stored: Record | None) -> None:
        """The next entry with its record, and with all that a store of our own has of it."""
        self._take_signature(leaf_index, entry)
        wire = self._read(leaf_index, entry, shown)
        if wire is not None and stored is not None:
            self._check_keys(stored, wire)
        if wire is not None and self._commitments:
            self._submit_commitments(shown, wire)
        if self.broken is not None:
            return
        if wire is None:
            self.give_up(leaf_index)
            return
        try:
            record, change = self._follower.take(entry, shown, commitments=False, signed=False)
        except KtlogError as error:
            self._add(error.name if error.name in _RECORD_FAULTS else "BadTransition", leaf_index, error.message)
            self.give_up(leaf_index)
            return
        self.salts |= {shown.plain[name] or "": salt for name, salt in shown.salts.items()}
        operator = shown.plain.get("operator")
        if operator is not None:
            self.operators.append((leaf_index, operator))
        if change.token_revoked is not None:
            self.tokens.add(change.token_revoked)
        if stored is not None:
            for name in ("unique_hash", "action", "created", "withheld"):
                if getattr(stored, name) != getattr(record, name):
                    self._add("RecordDamaged", leaf_index, f"its {name} is not what the message says")
        self._findings.checked["records"] += 1

    def finish(self) -> None:
        """Wait for what is under way, and judge the erasure log by what was read."""
        self._flush()
        self._drain(0)
        if self.broken is None:
            for fault in self.directory.erasure_faults():
                self._findings.add("ErasureDamaged", "log.db erasures", f"{fault.name}: {fault.message}")

    def _read(self, leaf_index: int, entry: bytes, shown: PublicRecord) -> WireMessage | None:
        """The message as it was received; None after a finding."""
        try:
            dialect, parsed = parse_entry(entry)
        except EncodingError as error:
            self._add("EntryDamaged", leaf_index, error.message, table="entries")
            return None
        if sha256(shown.preimage).digest() != parsed.message_hash:
            self._add("PreimageDamaged", leaf_index, "its message is not the one that the entry commits to")
            return None
        try:
            wire = parse_wire(dialect, shown.preimage)
        except (MessageRejected, EncodingError) as error:
            self._add("BadTransition", leaf_index, f"its message is none: {error.message}")
            return None
        if set(shown.plain) != set(wire.encrypted):
            self._add("RecordDamaged", leaf_index, "its attributes are not those of the message")
            return None
        return wire

    def _check_keys(self, record: Record, wire: WireMessage) -> None:
        """Whether each stored key decrypts the message's attribute to the stored text."""
        dialect = self._follower.dialect
        for name, text in record.plain.items():
            key = record.keys.get(name)
            if key is None or text is None:
                if key is not None:
                    self._add("RecordDamaged", record.leaf_index, f"the key of {name} is there, and its text withheld")
                elif text is not None:
                    self._findings.checked["texts without a key"] += 1
                continue
            try:
                if decrypt_without_commitment(dialect, name, wire.body[name], key) != text:
                    raise Invalid("PlaintextMismatch", "the key gives another text")
            except (EncodingError, Invalid) as error:
                self._add("PlaintextDamaged", record.leaf_index, f"{name} and its key do not fit: {error.message}")
            self._findings.checked["texts"] += 1

    # What runs beside

    def _take_signature(self, leaf_index: int, entry: bytes) -> None:
        if self._leaf_keys is None:
            return
        try:
            parsed = parse_entry(entry)[1]
        except EncodingError:
            return  # said where the entry is read
        self._signed.append((leaf_index, parsed.message_hash, parsed.signature, parsed.key_hash))
        if len(self._signed) == SIGNATURES_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        signed, self._signed = self._signed, []
        if signed and self._leaf_keys is not None:
            self._findings.checked["leaf signatures"] += len(signed)
            self._submit(_check_signatures, signed, self._leaf_keys)

    def _submit_commitments(self, shown: PublicRecord, wire: WireMessage) -> None:
        for name in wire.encrypted:
            text = shown.plain[name]
            if text is not None and wire.recent_root is not None:
                self._findings.checked["commitments"] += 1
                self._submit(
                    _check_commitment, self._follower.dialect, shown.leaf_index, name, wire.body[name], text,
                    wire.recent_root,
                )

    def _submit(self, work, *arguments: object) -> None:  # noqa: ANN001 - any of the functions below
        self._tasks.append(self._pool.submit(work, *arguments))
        self._drain(WAITING)

    def _drain(self, left: int) -> None:
        while len(self._tasks) > left:
            for name, leaf_index, what in self._tasks.popleft().result():
                self._add(name, leaf_index, what, table="entries" if name == "LeafSignatureDamaged" else "records")

    def _add(self, name: str, leaf_index: int, what: str, table: str = "records") -> None:
        self._findings.add(name, f"log.db {table} {leaf_index}", what)


_RECORD_FAULTS = frozenset({"PlaintextMismatch", "RecordWithheld", "BadErasure", "BadRecord"})


def _check_signatures(signed: Sequence[_Signed], leaf_keys: Mapping[bytes, bytes]) -> _Task:
    found = []
    for leaf_index, message_hash, signature, key_hash in signed:
        public_key = leaf_keys.get(key_hash)
        try:
            if public_key is None:
                raise Invalid("BadLeafSignature", "the entry names a leaf key that is none of this log's")
            verify_mldsa44(public_key, signature, message_hash)
        except KtlogError as error:
            found.append(("LeafSignatureDamaged", leaf_index, error.message))
    return found


def _check_commitment(dialect: Dialect, leaf_index: int, name: str, sealed: str, text: str, root: str) -> _Task:
    try:
        check_commitment(dialect, name, sealed, text, root)
    except KtlogError as error:
        return [("PlaintextDamaged", leaf_index, f"the message does not commit to its {name}: {error.message}")]
    return []
