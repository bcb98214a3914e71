"""Check a message before it may cost the sequencer anything. Stateless, in many processes at once.

Three doors lead here: the inbox (:meth:`Admission.admit`), /api/burndown and /api/revoke. They differ
in what a message comes wrapped in and in who has to sign the request; behind them one set of checks
holds for all. Cheap checks come first, then signatures, then what has to wait for another server, and
Argon2id last, behind a semaphore of the machine's cores: 16 MiB and some 50 ms each, it is what a
flood would aim at. What passes here is checked again by the sequencer where it depends on the state;
what only the operator can enforce (HTTP signature, time window, allow-lists, one-time passwords, types
of auxiliary data) is enforced here. (Directory map specification, section 3.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ktlog.errors import EncodingError, Invalid, MessageRejected, RateLimited
from ktlog.operator.activity import (
    Envelope,
    is_small_talk,
    open_envelope,
    parse_burndown,
    parse_revocation,
    read_activity,
)
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.directories import Directories
from ktlog.operator.gate import Gate
from ktlog.operator.hpkekeys import HpkeKeys, open_hpke
from ktlog.operator.link import Submission
from ktlog.operator.request import Request
from ktlog.operator.rules import Anybody, RulesReader
from ktlog.operator.sequencer import KnownRoots, check_holdings, check_recent_root
from ktlog.operator.views import view_for
from ktlog.pkd.actions import TOKEN_ACTION
from ktlog.pkd.attributes import check_commitment
from ktlog.pkd.auxdata import Extension
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.messages import (
    AddAuxData,
    BurnDown,
    CheckpointMessage,
    Message,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    WireMessage,
    check_time,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.rejections import reject
from ktlog.pkd.state import apply, created_time, find_signer
from ktlog.pkd.totp import verify_totp
from ktlog.store.contracts import LogState, LogStore, TotpUse
from ktlog.wire.actor import RSA_SHA256
from ktlog.wire.actor_id import actor_domain

# Of one actor's messages: whoever asks for the actor's history reads all there ever were.
MESSAGES_LIMIT = 100
MESSAGES_SECONDS = 86_400
# Of one line of a records page. Auditors bound a page by 256 times a little more.
RECORD_LIMIT_BYTES = 290_000
# Of a Checkpoint. PKD, "Checkpoint Validation Steps", 4.
CHECKPOINT_WINDOW_SECONDS = 86_400

_KEY_ID = re.compile(r'keyid="([^"#]{1,2048})')


class Admission:
    """Turns requests into submissions, or refuses them. Safe to use from many threads.

    Args:
        authenticator: verifies HTTP signatures. directories: whose Checkpoints are taken.
        extensions: the types of auxiliary data that this log takes, by id.
        actor_domains: whose actors this log serves; none means everybody's.
        rules: whose messages the operator takes.
        gate: counts what is under way, and gives out the cores. Requests that it did not let in are not counted.
        burndown_enabled: whether /api/burndown is open.
        without_argon2: leave out the commitments, which only a log that is measured may do.

    Every method raises MessageRejected with a stable code, and then nothing was changed.
    """

    def __init__(
        self, *, store: LogStore, dialect: Dialect, inbox_actor: str, hpke_key: HpkeKeys | DecapsulationKey,
        authenticator: Authenticator, directories: Directories, extensions: Mapping[str, Extension],
        time_window_seconds: int, now: Callable[[], int], gate: Gate, actor_domains: frozenset[str] = frozenset(),
        burndown_enabled: bool = False, without_argon2: bool = False, rules: RulesReader | None = None,
    ) -> None:
        self._store = store
        self._roots = KnownRoots(store)
        self._dialect = dialect
        self._inbox_actor = inbox_actor
        self._hpke_key = hpke_key
        self._authenticator = authenticator
        self._directories = directories
        self._extensions = extensions
        self._actor_domains = actor_domains
        self._time_window_seconds = time_window_seconds
        self._burndown_enabled = burndown_enabled
        self._now = now
        self._gate = gate
        self._without_argon2 = without_argon2
        self._rules = Anybody() if rules is None else rules
        self._pool = ThreadPoolExecutor(gate.slots, "argon2")

    # The three doors

    def admit(self, request: Request) -> Submission:
        """Check a direct message to the log's inbox, from its shape to its commitments."""
        with _small_talk_is_free(request.body), _coded():
            activity = read_activity(request.parsed(), self._inbox_actor)
            envelope = open_envelope(activity.content)
        with _coded():
            self._check_knows(activity.actor)
            verified = self._authenticator.authenticate(request, activity.actor, at_inbox=True)
            self._gate.claim(request.source)
            if envelope.actor != activity.actor:
                raise MessageRejected(
                    "actor_mismatch", "the envelope names another actor than the one that signed the request"
                )
            wire = self._open(envelope)
            if wire.action == BurnDown.action:
                raise MessageRejected("burndown_by_inbox", "BurnDown is not accepted by the inbox")
            if wire.action == CheckpointMessage.action and RSA_SHA256 in verified.algorithms:
                raise MessageRejected("unauthorized", "a directory is no stock server, and signs as PKD says")
            return self._examine(wire, activity.actor)

    def admit_burndown(self, request: Request) -> Submission:
        """Check the body of a POST to /api/burndown, signed by the operator that it names.

        Source: PKD specification, "BurnDown Validation Steps". Step 9, same domain, is never skipped.
        """
        with _coded():
            if not self._burndown_enabled:
                raise MessageRejected("burndown_disabled", "this log does not accept BurnDown messages")
            envelope = parse_burndown(request.body)
            self._check_knows(envelope.actor)
            self._authenticator.authenticate(request, envelope.actor)
            self._gate.claim(request.source)
            wire = parse_wire(self._dialect, envelope.plaintext or "")
            if wire.action != BurnDown.action:
                raise MessageRejected("not_a_burndown", f"this endpoint takes BurnDown and no {wire.action}")
            return self._examine(wire, envelope.actor)

    def admit_revocation(self, request: Request) -> Submission:
        """Check the body of a POST to /api/revoke. It needs no HTTP signature; one that is there must hold.

        ``bad_token``, ``bad_token_signature`` and ``unknown_token_key`` say that the token has no use here. All
        that is known of it here comes first: nobody's document is fetched for a token of no use.

        Source: PKD specification, "RevokeKeyThirdParty Validation Steps", "Protocol Message Parsing".
        """
        with _coded():
            self._rules.rules().check_taking()
            members = {"action": TOKEN_ACTION, "revocation-token": parse_revocation(request.body)}
            submission = self._examine(parse_wire(self._dialect, canonical(members)), None)
            signer = _claimed_signer(request)
            if signer is not None:
                self._check_knows(signer)
                self._authenticator.authenticate(request, signer)
            return submission

    # What is checked behind each of them

    def _check_knows(self, actor: str) -> None:
        """Refuse strangers before anything is fetched for them, and whose messages the operator does not take."""
        self._rules.rules().check(actor_domain(actor))
        if not (self._serves(actor) or self._directories.is_host(actor_domain(actor))):
            raise MessageRejected("domain_not_served", f"this log does not serve {actor_domain(actor)}")

    def _serves(self, actor: str) -> bool:
        return not self._actor_domains or actor_domain(actor) in self._actor_domains

    def _open(self, envelope: Envelope) -> WireMessage:
        if envelope.encrypted is None:
            wire = parse_wire(self._dialect, envelope.plaintext or "")
            # PKD, "Protocol Message Encryption": over ActivityPub everything else comes encrypted. What is
            # not was read on its way, symmetric keys and all, and taking it would teach clients to go on so.
            if wire.action not in _PLAINTEXT_ACTIONS:
                raise MessageRejected("not_encrypted", f"{wire.action} must be encrypted to this log's key")
            return wire
        return parse_wire(self._dialect, open_hpke(self._hpke_key, envelope.encrypted))

    def _examine(self, wire: WireMessage, sender: str | None) -> Submission:
        """Check a message that *sender* brought; None for a token, which anybody may bring.

        A message that is in the log already passes once its sender is the right one: the sequencer
        finds its receipt, which a sender who never saw the first answer needs more than a refusal.
        """
        with self._store.snapshot():
            known = self._is_known(wire)
            state = self._store.state()
            if not known:
                self._check_outside(wire, state.size)
            message = open_message_attributes(self._dialect, wire, commitments=False)
            if sender is not None:
                self._check_sender(message, sender)
            if not known:
                self._check_state(wire, message, state)
        totp = None
        if not known:
            if isinstance(message, AddAuxData):
                self._extensions[message.aux_type].validate(message.aux_data)
            totp = self._check_password(wire, message)
            if isinstance(message, CheckpointMessage):
                self._directories.check_key(message)
            self._check_commitments(wire, message)
        plain = plain_attributes(wire, message)
        return _bounded(Submission(wire.preimage, plain, dict(wire.symmetric_keys), totp, wire.unique_hash))

    def _is_known(self, wire: WireMessage) -> bool:
        return self._store.seen(wire.unique_hash) is not None

    def _check_outside(self, wire: WireMessage, tree_size: int) -> None:
        """Type of auxiliary data, time window, recent root: cheap, and checked before any key is touched."""
        aux_type = wire.body.get("aux-type")
        # What is added must be of a type that this log takes; what is there may always be taken away.
        if wire.action == AddAuxData.action and aux_type not in self._extensions:
            raise MessageRejected("unsupported_aux_type", f"this log takes no aux-type {aux_type!r}")
        window = self._time_window_seconds
        if wire.action == CheckpointMessage.action:
            window = min(window, CHECKPOINT_WINDOW_SECONDS)
        check_time(wire.time, self._now(), window)
        if wire.recent_root is not None:
            check_recent_root(self._roots.size_of, tree_size, wire.recent_root)

    def _check_sender(self, message: Message, sender: str) -> None:
        """The actor that signed the request must be the one the message speaks for.

        Source: PKD specification, the validation steps of every action. For MoveIdentity it is the new
        actor, for BurnDown the operator. A revocation token speaks for itself, and a Checkpoint for a
        directory.
        """
        if isinstance(message, CheckpointMessage):
            self._directories.check(message, sender)
            return
        if not self._serves(sender):  # on the host of a directory, which sends Checkpoints and nothing else
            raise MessageRejected("domain_not_served", f"this log does not serve {actor_domain(sender)}")
        if isinstance(message, RevokeKeyThirdParty):
            return
        speaker = _speaker(message)
        if speaker != sender:
            raise MessageRejected(
                "actor_mismatch", "the message is for another actor than the one that signed the request"
            )

    def _check_state(self, wire: WireMessage, message: Message, state: LogState) -> None:
        """Try the transition on the state as it is in the snapshot; the sequencer does it again when it counts."""
        if isinstance(message, CheckpointMessage):
            check_recent_root(self._roots.size_of, state.size, message.to_validated_root)
        view = view_for(message, self._store.actor, self._store.token_revoked, self._store.holders)
        signer = find_signer(view, message, wire, use_key_id=True)
        # The key id is the sequencer's to derive; a trial needs none that could collide.
        change = apply(view, message, state.size, "", signer, created_time(message, state.greatest_time))
        check_holdings(message, change)
        if message.action not in _TAKING_AWAY:
            for actor in change.actors:
                # Each entry about an actor, this one too, raises the version: not that many are there yet.
                if actor.version > MESSAGES_LIMIT:
                    check_pace(self._store, actor.actor_id, self._now())

    def _check_password(self, wire: WireMessage, message: Message) -> TotpUse | None:
        """The one-time password of a BurnDown, where the operator's instance has enrolled a secret.

        It comes after every signature: whoever guesses must hold the operator's keys already. That it
        is used once, the sequencer sees to, together with the entry.

        Source: PKD specification, "BurnDown Validation Steps", 5, and "TOTP Verification".
        """
        if not isinstance(message, BurnDown):
            return None
        domain = actor_domain(message.operator)
        enrolled = self._store.totp(domain)
        if enrolled is None:
            return None
        if wire.otp is None:
            raise reject("otp_required")
        window = verify_totp(enrolled.secret, wire.otp, self._now(), enrolled.last_window)
        return TotpUse(domain, enrolled.serial, window)

    def _check_commitments(self, wire: WireMessage, message: Message) -> None:
        if self._without_argon2 or not wire.encrypted:
            return
        plain = plain_attributes(wire, message)

        def check(name: str) -> None:
            with self._gate.slot():
                check_commitment(self._dialect, name, wire.body[name], plain[name], wire.recent_root)

        with self._gate.hashing(len(wire.encrypted)):
            others = [self._pool.submit(check, name) for name in wire.encrypted[1:]]
            try:
                check(wire.encrypted[0])
            finally:
                for one in others:
                    one.exception()
            for one in others:
                one.result()


def check_pace(store: LogStore, actor_id: str, now: int) -> None:
    """Refuse to let an actor's history grow by more than ``MESSAGES_LIMIT`` entries in ``MESSAGES_SECONDS``.

    Of requests that are checked at the same time a few more may pass.

    Raises:
        RateLimited: ``too_many_messages``.
    """
    times = store.accepted_times(actor_id, MESSAGES_LIMIT)
    if len(times) < MESSAGES_LIMIT:
        return
    wait = times[-1] + MESSAGES_SECONDS - now
    # A clock that was set back must not lock anybody out until it is that late again.
    if 0 < wait <= MESSAGES_SECONDS:
        raise RateLimited(
            f"this log takes {MESSAGES_LIMIT} messages about an actor in {MESSAGES_SECONDS // 3600} hours",
            retry_after_ms=wait * 1000, limit=MESSAGES_LIMIT, reset=now + wait, code="too_many_messages",
        )


@contextmanager
def _coded() -> Iterator[None]:
    """Let what the pure packages call a failure reach the sender under a stable code."""
    try:
        yield
    except (EncodingError, Invalid) as error:
        raise MessageRejected(_REFUSALS.get(error.name, "bad_request"), str(error)) from None


@contextmanager
def _small_talk_is_free(body: bytes) -> Iterator[None]:
    """Count a refusal for nothing where nobody tried anything: whole servers mention the log's actor."""
    try:
        yield
    except MessageRejected as error:
        weight = 0 if is_small_talk(body) else error.weight
        raise MessageRejected(error.code, error.message, weight=weight) from None


def _claimed_signer(request: Request) -> str | None:
    """The actor whose key a request says it was signed with; None for a request without a signature.

    Raises:
        MessageRejected: ``unauthorized`` for a signature that does not say whose it is.
    """
    lines = [value for name, value in request.headers if name.lower() in ("signature", "signature-input")]
    if not lines:
        return None
    for line in lines:
        if found := _KEY_ID.search(line):
            return found[1]
    raise MessageRejected("unauthorized", "the HTTP signature does not say whose key made it")


def _bounded(submission: Submission) -> Submission:
    """Refuse a message whose published record would be too long to read 256 of at once.

    JSON writes a control character as six: what fits a request need not fit a page of records.
    """
    written = len(submission.preimage) + sum(len(name) + len(text) + 2 for name, text in submission.plain.items())
    if 6 * (written + 4) <= RECORD_LIMIT_BYTES:  # as nearly all are
        return submission
    text = json.dumps([submission.preimage.decode("utf-8"), dict(submission.plain)], ensure_ascii=False)
    if len(text.encode("utf-8", "surrogatepass")) > RECORD_LIMIT_BYTES:
        raise MessageRejected("too_large", f"the message's record would exceed {RECORD_LIMIT_BYTES} bytes")
    return submission


def _speaker(message: Message) -> str:
    """The actor that has to sign the request that brings *message*."""
    match message:
        case MoveIdentity():
            return message.new_actor
        case BurnDown():
            return message.operator
        case RevokeKeyThirdParty() | CheckpointMessage():
            raise AssertionError(f"a {message.action} speaks for no actor")
    return message.actor


# Never too many: each needs a message before it that was counted, and whoever has to get rid of a thief's key
# must not find that the thief used up the day's messages.
_TAKING_AWAY = frozenset({RevokeKey.action, RevokeKeyThirdParty.action, RevokeAuxData.action, BurnDown.action})
_PLAINTEXT_ACTIONS = (BurnDown.action, CheckpointMessage.action, TOKEN_ACTION)

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
