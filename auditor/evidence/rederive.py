"""Claims that are checked by deriving again what the log's entries say.

Everything that the derivation rests on is bound to what the log signed: entries by the root, messages by the entries,
texts by the Argon2id commitments in the messages. Nothing is taken from the file on its author's word; a text that is
missing, or does not open its commitment, means only that the file is of no use.

An erasure changes what entries lead to, and nobody signs the list of erasures as it stands beside a head of the
entries. So a claim of these kinds rests on a leaf of the *output* log, which the map's key signed: it states the root
of the entries and that there was no erasure among them. A log that erased somebody is judged by those who read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice

from auditor.evidence.claims import Claim, Judgement, Logged, not_evidence
from auditor.evidence.plain import open_statement
from ktlog.errors import EncodingError, Invalid, KtlogError, MessageRejected
from ktlog.keymap.bundle import NoLeaf
from ktlog.keymap.evidence import open_actor_statement
from ktlog.keymap.output import MAP_SUFFIX, OutputLeaf, parse_leaf
from ktlog.keymap.value import value_of
from ktlog.pkd.attributes import check_commitment
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.identity import check_actor_id
from ktlog.pkd.messages import Message, WireMessage, message_from_plain, parse_wire
from ktlog.pkd.replay import Directory
from ktlog.tlog.note import open_note
from ktlog.tlog.tree import verify_consistency

_NOT_UNDERSTOOD = frozenset({"wrong_context", "unknown_action", "bad_token", "too_large"})
RULES = {
    "duplicate_message": "DuplicateMessage", "merkle_root_stale": "StaleRoot", "bad_signature": "BadMessageSignature",
    "unknown_key_id": "BadMessageSignature",
}
"""What a refusal of a logged message is called; any other is BadTransition."""

OpenCommitment = Callable[[Dialect, str, str, str, str], None]

LoggedReader = Callable[[int], Iterator[Logged]]
"""The first *size* entries of a log, in order, from wherever: nothing of them is believed."""

_BATCH = 128


class Refold:
    """The directory that the entries of a file lead to. Feed them in order.

    Raises (from :meth:`entry`):
        Invalid: ``NotEvidence`` when the file does not show what an entry says.
    """

    def __init__(self, origin: str, workers: int = 1) -> None:
        self.directory = Directory(origin)
        self._open: OpenCommitment = check_commitment
        self._workers = workers
        self._dialect: Dialect | None = None

    def entries(self, entries: Iterable[Logged]) -> str | None:
        """Take the next entries; what the last of them broke, as :meth:`entry` says it."""
        broken, upcoming = None, iter(entries)
        while batch := list(islice(upcoming, _BATCH)):
            self._open = open_commitments(batch, self._workers)
            for logged in batch:
                broken = self.entry(logged)
        return broken

    def entry(self, logged: Logged) -> str | None:
        """Take the next entry; the rule that it breaks, as ``Name: what``, or None where it takes effect."""
        at = self.directory.size
        read = self._read(at, logged)
        if isinstance(read, str):
            self.directory.append_void(at, logged.entry)
            return read
        wire, message = read
        try:
            self.directory.replay(wire, message, logged.entry)
        except MessageRejected as error:
            self.directory.append_void(at, logged.entry)
            return f"{RULES.get(error.code, 'BadTransition')}: {wire.action}: {error.message}"
        return None

    def _read(self, at: int, logged: Logged) -> tuple[WireMessage, Message] | str:
        """The message, or why it is none; only what the entry commits to decides."""
        try:
            dialect, parsed = parse_entry(logged.entry)
        except EncodingError:
            raise not_evidence(f"entry {at} is none of a key directory") from None
        if self._dialect not in (None, dialect):
            raise not_evidence(f"entry {at} is in another dialect than those before it")
        self._dialect = dialect
        if sha256(logged.message).digest() != parsed.message_hash:
            raise not_evidence(f"the file's message is not the one that entry {at} commits to")
        try:
            wire = parse_wire(dialect, logged.message)
        except MessageRejected as error:
            if error.code in _NOT_UNDERSTOOD:
                raise not_evidence(f"this program may be too old to read entry {at}") from None
            return f"BadMessage: {error.message}"
        if wire.preimage != logged.message:
            return "NotCanonical: the message is not in its canonical form"
        self._open_texts(at, dialect, wire, logged)
        try:
            _, message = message_from_plain(dialect, logged.message, logged.plain, commitments=False)
        except Invalid as error:
            return f"BadMessage: {error.message}"
        if message is None:
            raise not_evidence(f"a text of entry {at} is missing")
        return wire, message

    def _open_texts(self, at: int, dialect: Dialect, wire: WireMessage, logged: Logged) -> None:
        """Every text is there and is the one that the message commits to. Else whoever wrote the file chose it."""
        if set(logged.plain) != set(wire.encrypted):
            raise not_evidence(f"the file has other texts for entry {at} than its message")
        for name in wire.encrypted:
            text = logged.plain[name]
            if text is None or wire.recent_root is None:
                raise not_evidence(f"a text of entry {at} is missing")
            try:
                self._open(dialect, name, wire.body[name], text, wire.recent_root)
            except KtlogError:
                raise not_evidence(f"a text of entry {at} is not the one that its message commits to") from None


def open_commitments(entries: Iterable[Logged], workers: int) -> OpenCommitment:
    """Check all commitments on several cores first, and answer from what was found.

    Nothing is believed for being asked about early: what was not found to open is refused.
    """
    wanted: list[tuple[Dialect, str, str, str, str]] = []
    for logged in entries:
        try:
            dialect, _ = parse_entry(logged.entry)
            wire = parse_wire(dialect, logged.message)
        except KtlogError:
            continue
        for name in wire.encrypted:
            text = logged.plain.get(name)
            if text is not None and wire.recent_root is not None:
                wanted.append((dialect, name, wire.body[name], text, wire.recent_root))

    def opens(one: tuple[Dialect, str, str, str, str]) -> bool:
        try:
            check_commitment(*one)
            return True
        except KtlogError:
            return False

    with ThreadPoolExecutor(workers, "verify") as pool:
        opened = {
            (one[0].name, *one[1:]) for one, right in zip(wanted, pool.map(opens, wanted), strict=True) if right
        }

    def check(dialect: Dialect, name: str, ciphertext: str, text: str, root: str) -> None:
        if (dialect.name, name, ciphertext, text, root) not in opened:
            raise Invalid("PlaintextMismatch", f"attribute {name} does not commit to this plaintext")

    return check


def _input_origin(claim: Claim) -> str:
    if not claim.origin.endswith(MAP_SUFFIX):
        raise not_evidence("a claim of this kind accuses a map's log, whose origin ends with /map")
    return claim.origin.removesuffix(MAP_SUFFIX)


def _check_unerased(leaf: OutputLeaf) -> None:
    if leaf.erasures:
        raise not_evidence("there were erasures by then: entries and texts alone do not tell what they lead to")


def _entries(claim: Claim, size: int, source: LoggedReader | None) -> Iterable[Logged]:
    """The first *size* entries: the file's, or, where the file has none, those of *source*."""
    given: Sequence[Logged] = claim["entries"]
    if given:
        if len(given) != size:
            raise not_evidence(f"it takes {size} entries to see this, and the file holds {len(given)}")
        return given
    if source is None:
        raise Invalid(
            "NeedsLog", f"the file names {size} entries of the log and does not hold them",
            hint="Say with --log where they are to be read: the log's URL, or a directory with a copy of its files.",
        )
    return source(size)


def judge_rule(claim: Claim, source: LoggedReader | None = None, workers: int = 2) -> Judgement:
    """The last of the entries breaks a rule, and an output leaf without erasures commits to it."""
    origin = _input_origin(claim)
    checkpoint, proof, data = open_statement(claim, claim["statement"])
    if proof.leaf_index == 0:
        raise not_evidence("leaf 0 commits to no entries")
    leaf = parse_leaf(data)
    _check_unerased(leaf)
    size = claim["leaf-index"] + 1
    if size > leaf.input_size:
        raise not_evidence("the output leaf does not cover that entry")
    fold = Refold(origin, workers)
    broken = fold.entries(_entries(claim, size, source))
    directory = fold.directory
    verify_consistency(directory.size, leaf.input_size, claim["proof"], directory.roots[-1], leaf.input_root)
    name, _, why = (broken or "").partition(": ")
    if broken is None or name != claim["name"]:
        raise not_evidence(f"the last entry breaks no rule by the name {claim['name']}")
    return Judgement((checkpoint,), f"entry {directory.size - 1} breaks a rule, {name}: {why}")


def judge_value(claim: Claim, source: LoggedReader | None = None, workers: int = 2) -> Judgement:
    """The signed map says of an actor what its entries, all of them, do not give."""
    origin = _input_origin(claim)
    actor_id = check_actor_id(claim["actor-id"])
    note, checkpoint, mapped, _ = open_actor_statement(claim["bundle"], actor_id)
    if checkpoint.origin != claim.origin:
        raise Invalid("WrongLog", "the map is of another log")
    try:
        if not open_note(note, [claim.vkey]):
            raise Invalid("BadLogSignature", "the accused key did not sign the checkpoint")
    except Invalid as error:
        raise Invalid("BadLogSignature", error.message) from None
    leaf = mapped.leaf
    _check_unerased(leaf)
    fold = Refold(origin, workers)
    fold.entries(_entries(claim, leaf.input_size, source))
    directory = fold.directory
    if not directory.roots or directory.roots[-1] != leaf.input_root:
        raise not_evidence("the file's entries are not those that the map is about")
    actor = directory.actors.get(actor_id)
    expected = None if actor is None else value_of(actor, *directory.history(actor_id))
    if mapped.value == expected and (expected is not None or isinstance(mapped.outcome, NoLeaf)):
        raise not_evidence("the map says what the entries give")
    return Judgement((checkpoint,), _difference(expected is None, mapped.value is None))


def _difference(unknown: bool, absent: bool) -> str:
    if unknown:
        return "its map has somebody whom no entry enrolled"
    if absent:
        return "its map is without somebody whom its entries enrolled"
    return "its map says of somebody what its entries do not give: other keys, counters, or another history"
