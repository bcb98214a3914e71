"""The only writer: gives every accepted message its leaf index, durably, before anybody is told.

One thread owns the write connection. It takes whatever has queued up (one message on an idle
log, up to 256 under load), re-checks what depends on the state, signs each leaf once, and
commits the batch in one fenced transaction. Recovery never signs again: ML-DSA signing is
randomised, so a second signature would be a second history.

After a commit whose outcome is not known the process ends: its memory may be wrong, and the
store is read afresh by the next one (requirement R3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ktlog.durable import reach
from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.operator.keys import LeafKey
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.views import view_for
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import make_entry
from ktlog.pkd.identity import actor_domain
from ktlog.pkd.keys import decode_root, derive_key_id, pkd_root
from ktlog.pkd.keys import key_hash as hash_of
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, Message, MoveIdentity, message_from_plain
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

# In commit order. A test kills the process at each and checks that nothing is lost or forked.
HOOKS = (
    "sequencer.received",
    "sequencer.leaf_signed",
    "sequencer.before_commit",
    "sequencer.after_commit",
    "sequencer.answered",
)


@dataclass
class Overlay:
    """The store's directory as it will be once the batch so far is committed."""

    store: LogStore
    actors: dict[str, Actor] = field(default_factory=dict)
    revoked_tokens: set[bytes] = field(default_factory=set)
    accepted: dict[bytes, Record] = field(default_factory=dict)
    roots: dict[bytes, int] = field(default_factory=dict)
    totp_uses: dict[str, TotpUse] = field(default_factory=dict)

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

    def size_of_root(self, root: bytes) -> int | None:
        return self.roots.get(root) or self.store.size_of_root(root)

    def take(self, record: Record, change: Change) -> None:
        self.actors |= {actor.actor_id: actor for actor in change.actors}
        if change.token_revoked is not None:
            self.revoked_tokens.add(change.token_revoked)
        self.accepted[record.unique_hash] = record
        self.roots[record.root] = record.leaf_index + 1

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


class Sequencer:
    """Turns submissions into entries. Not thread-safe: one thread, one store, one log."""

    def __init__(
        self, *, store: LogStore, origin: str, dialect: Dialect, leaf_key: LeafKey,
        now: Callable[[], int], random: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._origin = origin
        self._dialect = dialect
        self._leaf_key = leaf_key
        self._now = now
        self._random = random
        store.claim_epoch()
        self.state: LogState = store.state()

    def process(self, submissions: Sequence[Submission]) -> list[Receipt | MessageRejected]:
        """Sequence a batch; one result for each submission, in order.

        Returns only after the accepted ones are durable. A refused one changes nothing.

        Raises:
            StoreError: nothing of the batch may be assumed; the process must end.
        """
        overlay = Overlay(self._store)
        records: list[Record] = []
        changes: list[Change] = []
        results: list[Receipt | MessageRejected] = []
        state = self.state
        for submission in submissions:
            reach("sequencer.received")
            try:
                outcome = self._sequence(overlay, state, submission)
            except MessageRejected as refusal:
                results.append(refusal)
                continue
            except (EncodingError, Invalid) as error:
                results.append(MessageRejected("bad_request", str(error)))
                continue
            if isinstance(outcome, Receipt):
                results.append(outcome)
                continue
            record, change, state, use = outcome
            overlay.take(record, change)
            if use is not None:
                overlay.totp_uses[use.domain] = use
            records.append(record)
            changes.append(change)
            results.append(
                Receipt(record.leaf_index, record.entry, pkd_root(state.size, record.root))
            )
        if records:
            reach("sequencer.before_commit")
            uses = tuple(overlay.totp_uses.values())
            self._store.commit(Batch(self.state, tuple(records), state, tuple(changes), uses))
            self.state = state
            reach("sequencer.after_commit")
        return results

    def _sequence(
        self, overlay: Overlay, state: LogState, submission: Submission
    ) -> Receipt | tuple[Record, Change, LogState, TotpUse | None]:
        """Check one message against the state so far and make its entry, or find its receipt."""
        wire, message = message_from_plain(
            self._dialect, submission.preimage, submission.plain, commitments=False
        )
        if message is None:
            raise MessageRejected("bad_request", "an attribute's text is missing")
        known = self._known(overlay, wire.unique_hash)
        if known is not None:
            return known
        use = overlay.check_totp(message, submission.totp)
        if wire.recent_root is not None:
            check_recent_root(overlay.size_of_root, state.size, wire.recent_root)
        leaf_index = state.size
        key_id = derive_key_id(self._origin, leaf_index)
        created = created_time(message, state.greatest_time)
        view = view_for(message, overlay.actor, overlay.token_revoked, overlay.holders)
        signer = find_signer(view, message, wire)
        change = apply(view, message, leaf_index, key_id, signer, created)
        check_holdings(message, change)

        entry = make_entry(self._dialect, wire.preimage, self._leaf_key.private, self._leaf_key.public)
        reach("sequencer.leaf_signed")
        leaf_hash = hash_leaf(entry)
        frontier = state.frontier.append(leaf_hash)
        root = frontier.root()
        after = replace(
            state, size=leaf_index + 1, root=root, frontier=frontier,
            greatest_time=max(state.greatest_time, created),
        )
        record = Record(
            leaf_index=leaf_index, entry=entry, leaf_hash=leaf_hash, root=root, preimage=wire.preimage,
            plain=dict(submission.plain), keys=dict(submission.keys),
            salts={
                attribute: self._random(32)
                for attribute, text in submission.plain.items()
                if text in change.needs_salt
            },
            unique_hash=wire.unique_hash, action=wire.action, created=created, accepted=self._now(),
        )
        return record, change, after, use

    def _known(self, overlay: Overlay, unique_hash: bytes) -> Receipt | None:
        """The receipt of a message that is in the log already: sent twice is accepted once."""
        record = overlay.accepted.get(unique_hash)
        if record is None:
            leaf_index = self._store.seen(unique_hash)
            if leaf_index is None:
                return None
            record = self._store.records(leaf_index, leaf_index + 1)[0]
        root = pkd_root(record.leaf_index + 1, record.root)
        return Receipt(record.leaf_index, record.entry, root, duplicate=True)


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
    if size is None:
        raise MessageRejected("merkle_root_stale", "recent-merkle-root is not a root of this log")
    if not recent_root_ok(tree_size - size, tree_size):
        raise MessageRejected(
            "merkle_root_stale",
            f"recent-merkle-root is {tree_size - size} messages old; fetch api/history and sign again",
        )
