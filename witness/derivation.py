"""The verifier's own derivation of the directory and of its map: what the log's entries make of every actor.

Written from the two specifications and from nothing of the operator's: it shares with it the parsing of messages,
signatures and hashes, and no rule, no row and no tree. Pure; who feeds it does the reading.

    derivation = Derivation(origin)
    derivation.entry(0, entry, preimage, plain, salts, False)
    derivation.erase(record)            # once every entry below its input size was given
    derivation.map_root()               # as an output leaf of that input size must state it

A verifier that was there from the start gives each entry with its plaintext, and each erasure when it happens. One that
comes late gives the log's erasure records when it begins: entries whose text is withheld are then taken as far as they
change anybody who can still be read. An entry that breaks a rule changes nothing and is a :class:`Violation`. A
record or page that does not belong to its entry is refused, and the same entry can be given again.

Leaf signatures are the caller's (:func:`ktlog.pkd.entry.verify_entry`).

Spec: directory map §1 to §5, decision 0005; PKD "Protocol Messages", "Special Protocol Messages".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from hashlib import sha256

from ktlog.errors import EncodingError, Invalid, MessageRejected, UsageError
from ktlog.keymap.prefix import PrefixLeaf
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.identity import check_actor_id
from ktlog.pkd.keys import decode_public_key, decode_root, key_hash
from ktlog.pkd.messages import WireMessage, message_from_plain
from ktlog.tlog.tree import Frontier, hash_leaf
from witness.maptree import Strand, rebuild_root
from witness.rules import Effects, Ledger, RuleBroken, Said, datum_of

NAMES = frozenset({"actor", "operator", "old-actor", "new-actor"})
SPARED = {"AddKey": "public-key", "AddAuxData": "aux-data"}
"""What of an erased actor's message may stay readable, because somebody else has it now."""

_PRECISE = Context(prec=60)


@dataclass(frozen=True, slots=True)
class Violation:
    """An entry that the log should not have taken."""

    leaf_index: int
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry whose effect rests on withheld text, so on the word of the verifiers of its time."""

    leaf_index: int
    message: str


class Derivation:
    """The state after the entries and erasures given so far.

    Args:
        origin: of the input log.
        dialect: the log's, which its map's configuration states; None takes each entry's own.
        commitments: check every Argon2id commitment. Whoever does not believes the publisher about the plaintext.
        records: for who comes late: every erasure so far, in the erasure log's order.
        keys: where active keys are kept, by hash, 1312 bytes each; in memory unless the caller knows better.
    """

    def __init__(
        self, origin: str, *, dialect: Dialect | None = None, commitments: bool = True,
        records: Sequence[ErasureRecord] = (), keys: MutableMapping[bytes, bytes] | None = None,
    ) -> None:
        self.origin = origin
        self.violations: list[Violation] = []
        self.taken: list[Taken] = []
        self.erasures = 0
        self._dialect, self._commitments = dialect, commitments
        self._foretold = tuple(records)
        self._gone = {record.index: record.input_size for record in self._foretold}
        self._ledger = Ledger(origin, self._foretold, {} if keys is None else keys)
        self._withheld: dict[int, int] = {}
        self._tree = Frontier()
        self._roots: dict[bytes, int] = {}
        self._sizes: deque[tuple[int, bytes]] = deque()
        self._seen: set[bytes] = set()

    # -- what the caller asks

    @property
    def size(self) -> int:
        """How many entries were given."""
        return self._tree.size

    def input_root(self) -> bytes:
        """The root of the input log over the entries given."""
        return self._tree.root()

    def map_leaves(self) -> list[PrefixLeaf]:
        """Every leaf of the map, sorted."""
        return [strand.leaf(self.origin) for _, strand in sorted(self._ledger.strands.items())]

    def map_root(self) -> bytes:
        """The root of the map, built anew from all leaves."""
        return rebuild_root(self.map_leaves())

    def strand(self, actor_id: str) -> Strand | None:
        """What is known of an actor; None for one never enrolled."""
        return self._ledger.strands.get(self._ledger.index(actor_id))

    def strands(self) -> Iterable[Strand]:
        """Everybody who is or was in the map."""
        return self._ledger.strands.values()

    def check_withheld(self) -> None:
        """Once a late joiner has given all entries: as much is withheld as the erasures say, no more and no less.

        Raises:
            Invalid: ``RecordWithheld``, ``NotErased``.
        """
        for start in {0, *(record.input_size for record in self._foretold)}:
            # Whatever is withheld from here on was taken by an erasure that is later still.
            withheld = sum(count for leaf_index, count in self._withheld.items() if leaf_index >= start)
            told = sum(record.newly_withheld for record in self._foretold if record.input_size > start)
            if withheld > told or (start == 0 and withheld < told):
                name = "RecordWithheld" if withheld > told else "NotErased"
                raise Invalid(name, f"from entry {start} on {withheld} attributes are withheld, and {told} were erased")

    # -- entries

    def entry(
        self, leaf_index: int, entry_bytes: bytes, preimage: bytes, plain: Mapping[str, str | None],
        salts: Mapping[str, bytes], withheld: bool,
    ) -> Violation | None:
        """Take the next entry as the log publishes it.

        Args:
            plain: attribute to text, None for one that is withheld. withheld: the page's own word on whether any is.
            salts: attribute to the 32 bytes of the index that it names and that gets a value here.

        Raises:
            Invalid: the page does not belong to the entry: ``BadEntry`` (another preimage), ``PlaintextMismatch``,
                ``RecordWithheld`` (no erasure explains it), ``NotErased`` (one should have taken it), ``BadSalt``,
                ``BadErasure`` (a record says what cannot have been). Nothing was taken.
            UsageError: ``OutOfOrder``.
        """
        if leaf_index != self.size:
            raise UsageError("OutOfOrder", f"entry {self.size} comes next, not {leaf_index}")
        violation, effects, unique = None, Effects(), b""
        try:
            said = self._read(leaf_index, entry_bytes, preimage, plain, withheld)
            unique = self._check_unique(said)
            self._check_root(said.wire.recent_root)
            effects = self._ledger.judge(said, salts)
        except RuleBroken as broken:
            effects, unique = Effects(), b""
            violation = Violation(leaf_index, broken.name, broken.message)
            self.violations.append(violation)
        self._ledger.take(effects)
        if effects.taken:
            self.taken.append(Taken(leaf_index, effects.taken))
        if unique:
            self._seen.add(unique)
        if withheld:
            self._withheld[leaf_index] = sum(text is None for text in plain.values())
        self._append(entry_bytes)
        return violation

    def _read(
        self, leaf_index: int, entry_bytes: bytes, preimage: bytes, plain: Mapping[str, str | None], withheld: bool
    ) -> Said:
        missing = {name for name, text in plain.items() if text is None}
        if bool(missing) != withheld or (missing and leaf_index >= max(self._gone.values(), default=0)):
            raise Invalid("RecordWithheld", f"entry {leaf_index} is withheld, or said to be, by no erasure")
        try:
            dialect, logged = parse_entry(entry_bytes)
        except EncodingError as error:
            raise RuleBroken("BadEntry", error.message) from None
        if logged.message_hash != sha256(preimage).digest():
            raise Invalid("BadEntry", f"the preimage published for entry {leaf_index} is another's")
        if self._dialect not in (None, dialect):
            raise RuleBroken("BadEntry", f"the entry is written in the dialect {dialect.name}")
        try:
            wire, _ = message_from_plain(dialect, preimage, plain, commitments=self._commitments)
        except Invalid as error:
            if error.name != "BadEntry":
                raise
            raise RuleBroken(error.name, error.message) from None
        if missing and wire.action not in ("MoveIdentity", "BurnDown"):
            spared = set(plain) - missing
            if spared - {SPARED.get(wire.action)}:
                raise Invalid("RecordWithheld", f"no erasure takes just {', '.join(sorted(missing))}")
        return self._understand(leaf_index, wire, plain)

    def _understand(self, leaf_index: int, wire: WireMessage, plain: Mapping[str, str | None]) -> Said:
        texts = {**wire.body, **plain}
        said = Said(leaf_index, wire, {name: texts[name] for name in NAMES & texts.keys()})
        try:
            for name, text in said.names.items():
                if text is None or leaf_index >= self._gone.get(self._ledger.index(check_actor_id(text)), 0):
                    continue
                if name in plain:
                    raise Invalid("NotErased", f"entry {leaf_index} still names somebody who was erased")
                # A dialect that does not encrypt this name cannot forget it; all else about the actor is gone.
                said.names[name] = None
            if (key := texts.get("public-key")) is not None:
                said.key = decode_public_key(key)
            if wire.action in ("AddAuxData", "RevokeAuxData"):
                said.datum = datum_of(texts)
        except (EncodingError, MessageRejected) as error:
            raise RuleBroken("BadEntry", error.message) from None
        return said

    def _check_unique(self, said: Said) -> bytes:
        token = said.wire.token
        unique = sha256(b"message" + said.wire.signed_bytes).digest() if token is None else key_hash(token.public_key)
        if unique in self._seen:
            raise RuleBroken("NotUnique", "the log took the same message before")
        return unique

    def _check_root(self, text: str | None) -> None:
        if text is None:
            return
        root, size = decode_root(text), self.size
        if size == 0:
            good = root == bytes(32)
        else:
            good = root in self._roots and size - self._roots[root] <= window(size)
        if not good:
            raise RuleBroken("RootNotRecent", "the message names no root of this log, or one too old")

    def _append(self, entry_bytes: bytes) -> None:
        self._tree = self._tree.append(hash_leaf(entry_bytes))
        root, size = self._tree.root(), self.size
        self._roots[root] = size
        self._sizes.append((size, root))
        # The oldest root that is recent never gets older again.
        while self._sizes[0][0] < size - window(size):
            del self._roots[self._sizes.popleft()[1]]

    # -- erasures

    def erase(self, record: ErasureRecord) -> None:
        """Take the next record of the erasure log, after the last entry below its input size.

        Raises:
            Invalid: ``BadErasure`` when it does not say what is known here, or is not the one foretold.

        Spec: directory map §5; decision 0005.
        """
        foretold = self._foretold[self.erasures : self.erasures + 1]
        if record.input_size != self.size or (foretold and foretold[0] != record):
            raise Invalid("BadErasure", f"erasure {self.erasures} does not come at entry {self.size}")
        self._ledger.bury(record, self.erasures, foretold=bool(foretold))
        self.erasures += 1


def window(size: int) -> int:
    """How old the root that a message names may be in a log of *size* > 0 entries; the newest root has age 0.

    ``max(ceil(2 log2(size)^2), floor(size / 2))``, exactly: no rounding of logarithms decides.

    >>> [window(size) for size in (1, 2, 3, 4, 1000000)]
    [0, 2, 6, 8, 500000]

    Spec: directory map §3.
    """
    if size > 1024:
        return size // 2  # 2 * 10^2 < 512, and halves grow faster from there on
    bits = size.bit_length() - 1
    if size == 1 << bits:
        return max(2 * bits * bits, size // 2)
    power = _PRECISE.divide(_PRECISE.ln(Decimal(size)), _PRECISE.ln(Decimal(2)))
    return max(int(_PRECISE.multiply(2 * power, power).to_integral_value(ROUND_CEILING)), size // 2)
