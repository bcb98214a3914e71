"""The only writer: gives every accepted message its leaf index, durably, before anybody is told.

One thread owns the write connection. It takes whatever has queued up (one message on an idle log, up to
256 under load), re-checks what depends on the state, has all leaves that it accepts signed at once, chains
their hashes, and commits the batch in one fenced transaction. Recovery never signs again: ML-DSA signing is
randomised, so a second signature would be a second history.

After a commit whose outcome is not known the process ends: its memory may be wrong, and the
store is read afresh by the next one (requirement R3).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ktlog.durable import reach
from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.operator.leaves import SignEntries
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.views import view_for
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.identity import actor_domain
from ktlog.pkd.keys import decode_root, derive_key_id, pkd_root
from ktlog.pkd.keys import key_hash as hash_of
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, Message, MoveIdentity, WireMessage, message_from_plain
from ktlog.pkd.rejections import reject
from ktlog.pkd.state import (
    Actor,
    Change,
    apply,
    created_time,
    find_signer,
    recent_root_ok,
)
from ktlog.store.contracts import Batch, LogState, LogStore, Record, TotpUse
from ktlog.store.instances import use_allowed
from ktlog.tlog.tree import hash_leaf

BATCH_LIMIT = 256
# What one actor may hold: every message of theirs is checked against each key, also by every replayer.
KEYS_LIMIT = 64
AUX_LIMIT = 256
KNOWN_ROOTS = 1_024
UNREADABLE = "unreadable"
"""In place of an action, of a submission that is no message."""

# In commit order. A test kills the process at each and checks that nothing is lost or forked.
HOOKS = (
    "sequencer.received",
    "sequencer.leaf_signed",
    "sequencer.before_commit",
    "sequencer.after_commit",
    "sequencer.answered",
)


class KnownRoots:
    """Where the log's roots are. One that was found is remembered, for it stays there, and thousands are bound to it.

    Safe to use from many threads, in snapshots of different ages: what it knows may be newer than the snapshot.
    """

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._known: dict[bytes, int] = {}

    def size_of(self, root: bytes) -> int | None:
        """As ``LogStore.size_of_root``."""
        size = self._known.get(root)
        if size is None:
            size = self._store.size_of_root(root)
            if size is not None:
                if len(self._known) >= KNOWN_ROOTS:
                    self._known.clear()
                self._known[root] = size
        return size


class Overlay:
    """The store's directory as it will be once the batch so far is committed, on top of *state*."""

    def __init__(self, store: LogStore, state: LogState) -> None:
        self.store = store
        self.size = state.size
        self.greatest_time = state.greatest_time
        self.actors: dict[str, Actor] = {}
        self.revoked_tokens: set[bytes] = set()
        self.accepted: dict[bytes, int] = {}
        self.totp_uses: dict[str, TotpUse] = {}

    def actor(self, actor_id: str) -> Actor | None:
        return self.actors[actor_id] if actor_id in self.actors else self.store.actor(actor_id)

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        from_store = (a for a in self.store.holders(key_hash) if a not in self.actors)
        from_batch = (
            a for a, actor in self.actors.items() if any(hash_of(k.public_key) == key_hash for k in actor.keys)
        )
        return tuple(sorted({*from_store, *from_batch}))

    def token_revoked(self, key_hash: bytes) -> bool:
        return key_hash in self.revoked_tokens or self.store.token_revoked(key_hash)

    def take(self, unique_hash: bytes, change: Change, created: int, use: TotpUse | None) -> None:
        """The next entry is one that does *change*."""
        self.actors |= {actor.actor_id: actor for actor in change.actors}
        if change.token_revoked is not None:
            self.revoked_tokens.add(change.token_revoked)
        if use is not None:
            self.totp_uses[use.domain] = use
        self.accepted[unique_hash] = self.size
        self.size += 1
        self.greatest_time = max(self.greatest_time, created)

    def check_totp(self, message: Message, use: TotpUse | None) -> TotpUse | None:
        """The one-time password that *message* uses up; None where none is asked for.

        Admission checked the code against what was stored then; here it must still be stored, and unused.

        Raises:
            MessageRejected: ``otp_required``, ``otp_reused``.
        """
        if not isinstance(message, BurnDown):
            return None
        domain = actor_domain(message.operator)
        stored = self.store.totp(domain)
        if stored is None:
            return None
        if use is None or use.domain != domain:
            raise reject("otp_required")
        if domain in self.totp_uses or not use_allowed(stored, use):
            raise reject("otp_reused")
        return use


@dataclass(frozen=True)
class _Accepted:
    """A message that will be entry *leaf_index*; nothing of it is signed yet."""

    leaf_index: int
    submission: Submission
    wire: WireMessage
    change: Change
    created: int


@dataclass(frozen=True)
class _Twin:
    """A message that says what another of its batch said before, at *leaf_index*."""

    leaf_index: int


class Sequencer:
    """Turns submissions into entries. Not thread-safe: one thread, one store, one log.

    Args:
        sign_entries: makes the entries of a batch; see ``ktlog.operator.leaves``.
        before_answers: told size and root of what is committed, before anybody else; see ``ktlog.operator.acked``.
    """

    def __init__(
        self, *, store: LogStore, origin: str, dialect: Dialect, sign_entries: SignEntries,
        now: Callable[[], int], random: Callable[[int], bytes],
        before_answers: Callable[[int, bytes], None] = lambda _size, _root: None,
    ) -> None:
        self._store = store
        self._roots = KnownRoots(store)
        self._before_answers = before_answers
        self._origin = origin
        self._dialect = dialect
        self._sign_entries = sign_entries
        self._now = now
        self._random = random
        self.commit_seconds = 0.0
        """Spent in commits since the start."""
        self.messages: Counter[tuple[str, str]] = Counter()
        """Since the start, by action and what became of them: accepted, known (in the log already) or refused."""
        store.claim_epoch()
        self.state: LogState = store.state()

    def process(self, submissions: Sequence[Submission]) -> list[Receipt | MessageRejected]:
        """Sequence a batch; one result for each submission, in order.

        Returns only after the accepted ones are durable. A refused one changes nothing.

        Raises:
            StoreError: nothing of the batch may be assumed; the process must end.
        """
        overlay = Overlay(self._store, self.state)
        with self._store.snapshot():  # one transaction for all that is looked up
            outcomes = [self._outcome(overlay, submission) for submission in submissions]
        accepted = [outcome for outcome in outcomes if isinstance(outcome, _Accepted)]
        records: list[Record] = []
        if accepted:
            records, state = self._seal(accepted)
            changes = tuple(one.change for one in accepted)
            reach("sequencer.before_commit")
            started = time.monotonic()
            self._store.commit(
                Batch(self.state, tuple(records), state, changes, tuple(overlay.totp_uses.values()))
            )
            self.commit_seconds += time.monotonic() - started
            self.state = state
            for one in accepted:
                self.messages[one.wire.action, "accepted"] += 1
            reach("sequencer.after_commit")
            self._before_answers(state.size, state.root)
        by_index = {record.leaf_index: record for record in records}
        return [
            _receipt(by_index[outcome.leaf_index], duplicate=isinstance(outcome, _Twin))
            if isinstance(outcome, _Accepted | _Twin) else outcome
            for outcome in outcomes
        ]

    def _outcome(
        self, overlay: Overlay, submission: Submission
    ) -> _Accepted | _Twin | Receipt | MessageRejected:
        reach("sequencer.received")
        action = UNREADABLE
        try:
            wire, message = message_from_plain(
                self._dialect, submission.preimage, submission.plain, commitments=False
            )
            if message is None:
                raise MessageRejected("bad_request", "an attribute's text is missing")
            action = wire.action
            found = self._judge(overlay, submission, wire, message)
        except MessageRejected as refusal:
            self.messages[action, "refused"] += 1
            return refusal
        except (EncodingError, Invalid) as error:
            self.messages[action, "refused"] += 1
            return MessageRejected("bad_request", str(error))
        if not isinstance(found, _Accepted):
            self.messages[action, "known"] += 1
        return found

    def _judge(
        self, overlay: Overlay, submission: Submission, wire: WireMessage, message: Message
    ) -> _Accepted | _Twin | Receipt:
        """Check one message against the state so far, and take it into *overlay*; or find its receipt."""
        known = self._known(overlay, wire.unique_hash)
        if known is not None:
            return known
        use = overlay.check_totp(message, submission.totp)
        if wire.recent_root is not None:
            # No root of this very batch: nobody can have been told of one.
            check_recent_root(self._roots.size_of, overlay.size, wire.recent_root)
        created = created_time(message, overlay.greatest_time)
        view = view_for(message, overlay.actor, overlay.token_revoked, overlay.holders)
        signer = find_signer(view, message, wire)
        key_id = derive_key_id(self._origin, overlay.size)
        change = apply(view, message, overlay.size, key_id, signer, created)
        check_holdings(message, change)
        accepted = _Accepted(overlay.size, submission, wire, change, created)
        overlay.take(wire.unique_hash, change, created, use)
        return accepted

    def _known(self, overlay: Overlay, unique_hash: bytes) -> Receipt | _Twin | None:
        """The receipt of a message that is in the log already: sent twice is accepted once."""
        if unique_hash in overlay.accepted:
            return _Twin(overlay.accepted[unique_hash])
        leaf_index = self._store.seen(unique_hash)
        if leaf_index is None:
            return None
        return _receipt(self._store.records(leaf_index, leaf_index + 1)[0], duplicate=True)

    def _seal(self, accepted: Sequence[_Accepted]) -> tuple[list[Record], LogState]:
        """Sign the entries of a batch, once each, and chain them to the tree. The root is known after each leaf."""
        entries = self._sign_entries([one.wire.preimage for one in accepted])
        leaf_hashes = [hash_leaf(entry) for entry in entries]
        frontier, roots = self.state.frontier.append_each(leaf_hashes)
        records: list[Record] = []
        for one, entry, leaf_hash, root in zip(accepted, entries, leaf_hashes, roots, strict=True):
            reach("sequencer.leaf_signed")
            plain = one.submission.plain
            needs_salt = one.change.needs_salt
            records.append(Record(
                leaf_index=one.leaf_index, entry=entry, leaf_hash=leaf_hash, root=root,
                preimage=one.wire.preimage, plain=dict(plain), keys=dict(one.submission.keys),
                salts={name: self._random(32) for name, text in plain.items() if text in needs_salt},
                unique_hash=one.wire.unique_hash, action=one.wire.action, created=one.created,
                accepted=self._now(),
            ))
        greatest_time = max(self.state.greatest_time, *(one.created for one in accepted))
        return records, replace(
            self.state, size=frontier.size, root=roots[-1], frontier=frontier, greatest_time=greatest_time
        )


def _receipt(record: Record, *, duplicate: bool) -> Receipt:
    return Receipt(record.leaf_index, record.entry, pkd_root(record.leaf_index + 1, record.root), duplicate)


def check_holdings(message: Message, change: Change) -> None:
    """Refuse a message that would give an actor more than it may hold here. What takes away always passes.

    Raises:
        MessageRejected: ``too_many_keys``.
    """
    if not isinstance(message, AddKey | AddAuxData | MoveIdentity):
        return
    if any(len(actor.keys) > KEYS_LIMIT or len(actor.aux) > AUX_LIMIT for actor in change.actors):
        raise MessageRejected(
            "too_many_keys", f"an actor may have {KEYS_LIMIT} keys and {AUX_LIMIT} auxiliary data here"
        )


def check_recent_root(
    size_of_root: Callable[[bytes], int | None], tree_size: int, recent_root: str
) -> None:
    """Refuse a message bound to a root this log never had, or had too long ago.

    Raises:
        MessageRejected: ``merkle_root_stale``.

    Source: PKD specification, "Recent Merkle Root Included in Plaintext Commitments", with the
    limits of the directory map specification, section 3.
    """
    root = decode_root(recent_root)
    # The store also knows SHA-256(""), the tree's own empty root. It is no root of PKD's: replayers refuse it.
    size = 0 if root == bytes(32) else size_of_root(root) or None
    if size is None or size > tree_size:
        raise MessageRejected("merkle_root_stale", "recent-merkle-root is not a root of this log")
    if not recent_root_ok(tree_size - size, tree_size):
        raise MessageRejected(
            "merkle_root_stale",
            f"recent-merkle-root is {tree_size - size} messages old; fetch api/history and sign again",
        )
