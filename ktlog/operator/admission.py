"""Check a message before it may cost the sequencer anything. Stateless, in many processes at once.

Cheap checks come first and Argon2id last, behind a semaphore of the machine's cores: 16 MiB and
some 50 ms each, it is what a flood would aim at. What passes here is checked again by the
sequencer where it depends on the state; what only the operator can enforce (HTTP signature, time
window, allow-lists) is enforced here and nowhere else. (Directory map specification, section 3.)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.operator.activity import Envelope, open_envelope, parse_activity
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.link import Submission
from ktlog.operator.sequencer import check_recent_root
from ktlog.operator.views import view_for
from ktlog.pkd.attributes import check_commitment
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.hpke import open_message as open_hpke
from ktlog.pkd.messages import (
    AddAuxData,
    CheckpointMessage,
    Message,
    MoveIdentity,
    RevokeKeyThirdParty,
    WireMessage,
    check_time,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.state import apply, created_time, find_signer
from ktlog.store.contracts import LogStore
from ktlog.wire.actor_id import actor_domain
from ktlog.wire.httpsig import verify_request

# What one actor may hold: every message of theirs is checked against each key, also by every replayer.
KEYS_LIMIT = 64
AUX_LIMIT = 256
# Of one line of a records page. Auditors bound a page by 256 times a little more.
RECORD_LIMIT_BYTES = 290_000


@dataclass(frozen=True)
class Request:
    """An HTTP request as it came: *target_url* is built from the configured origin, never Host."""

    method: str
    target_url: str
    headers: Sequence[tuple[str, str]]
    body: bytes


class Admission:
    """Turns requests into submissions, or refuses them. Safe to use from many threads."""

    def __init__(
        self, *, store: LogStore, dialect: Dialect, inbox_actor: str, hpke_key: DecapsulationKey,
        actor_keys: ActorKeys, aux_types: frozenset[str], time_window_seconds: int, now: Callable[[], int],
        actor_domains: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._dialect = dialect
        self._inbox_actor = inbox_actor
        self._hpke_key = hpke_key
        self._actor_keys = actor_keys
        self._aux_types = aux_types
        self._actor_domains = actor_domains
        self._time_window_seconds = time_window_seconds
        self._now = now
        cores = os.cpu_count() or 1
        self._argon2_slots = threading.Semaphore(cores)
        self._pool = ThreadPoolExecutor(cores, "argon2")

    def admit(self, request: Request) -> Submission:
        """Check a direct message to the log's inbox, from its shape to its commitments.

        Raises:
            MessageRejected: with a stable code. Nothing was changed.
        """
        try:
            return self._admit(request)
        except (EncodingError, Invalid) as error:
            raise MessageRejected(_REFUSALS.get(error.name, "bad_request"), str(error)) from None

    def _admit(self, request: Request) -> Submission:
        activity = parse_activity(request.body, self._inbox_actor)
        if self._actor_domains and actor_domain(activity.actor) not in self._actor_domains:
            raise MessageRejected("domain_not_served", f"this log does not serve {actor_domain(activity.actor)}")
        self._authenticate(request, activity.actor)
        envelope = open_envelope(activity.content)
        if envelope.actor != activity.actor:
            raise MessageRejected(
                "actor_mismatch", "the envelope names another actor than the one that signed the request"
            )
        wire = self._parse(envelope)
        self._check_action(wire)
        self._check_fresh(wire)
        message = open_message_attributes(self._dialect, wire, commitments=False)
        self._check_extension(message)
        _check_sender(message, activity.actor)
        self._check_state(wire, message)
        self._check_commitments(wire, message)
        return _bounded(Submission(wire.preimage, plain_attributes(wire, message), dict(wire.symmetric_keys)))

    def _authenticate(self, request: Request, actor: str) -> None:
        """Verify the HTTP signature under a key that the actor's own document lists."""
        def verify(refresh: bool) -> None:
            verify_request(
                request.method, request.target_url, request.headers, request.body,
                lambda key_id: self._actor_keys.find(key_id, actor, refresh=refresh), self._now(),
            )
        try:
            verify(refresh=False)
        except MessageRejected:
            # The actor may have a new key since its document was cached: look once more, then refuse.
            if not self._actor_keys.may_refresh(actor):
                raise
            verify(refresh=True)

    def _parse(self, envelope: Envelope) -> WireMessage:
        if envelope.encrypted is None:
            wire = parse_wire(self._dialect, envelope.plaintext)
            # PKD, "Protocol Message Encryption": over ActivityPub everything else comes encrypted. What is not was
            # read on its way, symmetric keys and all, and taking it would teach clients to go on like that.
            if wire.action not in _PLAINTEXT_ACTIONS:
                raise MessageRejected("not_encrypted", f"{wire.action} must be encrypted to this log's HPKE key")
            return wire
        return parse_wire(self._dialect, open_hpke(self._hpke_key, envelope.encrypted))

    def _check_action(self, wire: WireMessage) -> None:
        if wire.action == "BurnDown":
            raise MessageRejected("burndown_by_inbox", "BurnDown is not accepted by the inbox")

    def _check_fresh(self, wire: WireMessage) -> None:
        """Time window and recent root: both cheap, both before any key is touched.

        A message that is in the log already passes: the sequencer finds its receipt, which a
        sender who never saw the first answer needs more than a refusal.
        """
        if self._store.seen(wire.unique_hash) is not None:
            return
        check_time(wire.time, self._now(), self._time_window_seconds)
        if wire.recent_root is not None:
            check_recent_root(self._store.size_of_root, self._store.state().size, wire.recent_root)

    def _check_extension(self, message: Message) -> None:
        if isinstance(message, AddAuxData) and message.aux_type not in self._aux_types:
            raise MessageRejected("unsupported_aux_type", f"this log takes no aux-type {message.aux_type!r}")
        if isinstance(message, CheckpointMessage):
            raise MessageRejected(
                "directory_not_allowed", f"{message.from_directory} is not on this log's list of directories"
            )

    def _check_state(self, wire: WireMessage, message: Message) -> None:
        """Try the transition on the state as it is now; the sequencer does it again when it counts."""
        with self._store.snapshot():
            if self._store.seen(wire.unique_hash) is not None:
                return
            state = self._store.state()
            view = view_for(message, self._store.actor, self._store.token_revoked, self._store.holders)
            signer = find_signer(view, message, wire, use_key_id=True)
            # The key id is the sequencer's to derive; a trial needs none that could collide.
            change = apply(view, message, state.size, "", signer, created_time(message, state.greatest_time))
        for actor in change.actors:
            if len(actor.keys) > KEYS_LIMIT or len(actor.aux) > AUX_LIMIT:
                raise MessageRejected(
                    "too_many_keys", f"an actor may have {KEYS_LIMIT} keys and {AUX_LIMIT} auxiliary data here"
                )

    def _check_commitments(self, wire: WireMessage, message: Message) -> None:
        plain = plain_attributes(wire, message)
        if not wire.encrypted or self._store.seen(wire.unique_hash) is not None:
            return

        def check(name: str) -> None:
            with self._argon2_slots:
                check_commitment(self._dialect, name, wire.body[name], plain[name], wire.recent_root)

        for done in [self._pool.submit(check, name) for name in wire.encrypted]:
            done.result()


def _bounded(submission: Submission) -> Submission:
    """Refuse a message whose published record would be too long to read 256 of at once.

    JSON writes a control character as six: what fits a request need not fit a page of records.
    """
    text = json.dumps([submission.preimage.decode("utf-8"), dict(submission.plain)], ensure_ascii=False)
    if len(text.encode("utf-8", "surrogatepass")) > RECORD_LIMIT_BYTES:
        raise MessageRejected("too_large", f"the message's record would exceed {RECORD_LIMIT_BYTES} bytes")
    return submission


def _check_sender(message: Message, sender: str) -> None:
    """The actor that signed the request must be the one the message speaks for.

    Source: PKD specification, the validation steps of every action. For MoveIdentity it is the
    new actor. A revocation token speaks for itself, and a Checkpoint for a directory.
    """
    if isinstance(message, RevokeKeyThirdParty | CheckpointMessage):
        return
    speaker = message.new_actor if isinstance(message, MoveIdentity) else message.actor
    if speaker != sender:
        raise MessageRejected(
            "actor_mismatch", "the message is for another actor than the one that signed the request"
        )


_PLAINTEXT_ACTIONS = ("BurnDown", "Checkpoint", "RevokeKeyThirdParty")

# What the pure packages call a failure, and the code under which a sender is told of it.
_REFUSALS: Mapping[str, str] = {
    "AttributeDecryptionFailed": "attribute_decryption_failed",
    "BadActorId": "bad_actor_id",
    "BadHpkeMessage": "decryption_failed",
    "BadJson": "bad_json",
    "DuplicateKey": "duplicate_json_key",
    "HpkeOpenFailed": "decryption_failed",
    "PlaintextMismatch": "plaintext_mismatch",
}
