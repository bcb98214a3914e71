"""Replay published PKD test vectors through this directory's own parser and transition function.

For each case a fresh directory in the dialect ``vector`` is told the story step by step. The
given leaf stands in for the one that the server would sign (its signature is hedged, so no second
server makes the same), and the clock is frozen: the vectors tick one second a step. Compared are
every key pair, every HPKE opening, every attribute decrypted and encrypted again byte for byte,
every ML-DSA-44 signature, every leaf, every root, whether each step is accepted, the words of each
refusal, and the state and tree at the end. Key-ids are random in the vectors: key material counts.

A case is left after a step that went the wrong way, since nothing after it could be right. What no
replay can see is a step that was taken off the end of a case and had been refused there: it left
no trace.

No I/O: the command line reads the file and prints the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ktlog.errors import KtlogError, MessageRejected
from ktlog.pkd.actions import TOKEN_ACTION, BurnDown, CheckpointMessage, Message
from ktlog.pkd.attributes import encrypt_attribute
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.dialects import VECTOR
from ktlog.pkd.entry import leaf_key_hash, verify_entry
from ktlog.pkd.hpke import DecapsulationKey, open_message
from ktlog.pkd.keys import encode_public_key, private_key_from_seed, verify_mldsa44
from ktlog.pkd.messages import (
    WireMessage,
    check_time,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.replay import Directory
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.vectors import Case, FinalActor, KeyPair, Step, parse_vectors, read_vectors

__all__ = ["CaseResult", "Failure", "Report", "format_report", "parse_vectors", "replay"]

FIRST_TIME = 1776655443
"""Unix seconds of every case's first step, 2026-04-20; each step is one second later."""

ORIGIN = "vectors.invalid"
PLAIN_ACTIONS = frozenset({BurnDown.action, CheckpointMessage.action, TOKEN_ACTION})
"""Never HPKE-encrypted, so their hpke-wrapped-message is empty."""


@dataclass(frozen=True)
class Failure:
    """One difference. *where* is its place in the case, as in ``steps[2].merkle-leaf``."""

    where: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class CaseResult:
    """How one case went; *steps* counts the file's steps."""

    name: str
    steps: int
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Report:
    """How a vectors file went."""

    cases: tuple[CaseResult, ...]

    @property
    def failed(self) -> int:
        """Number of cases with a failure."""
        return sum(1 for case in self.cases if case.failures)

    def as_dict(self) -> dict[str, Any]:
        """For a machine: counts, and every failure with its case and place."""
        return {
            "cases": len(self.cases),
            "steps": sum(case.steps for case in self.cases),
            "failed": self.failed,
            "failures": [
                {"case": case.name, "where": failure.where, "expected": failure.expected, "got": failure.got}
                for case in self.cases for failure in case.failures
            ],
        }


def _shorten(text: str, around: int) -> str:
    start = max(0, around - 16)
    piece = text[start:start + 48]
    return repr(("…" if start else "") + piece + ("…" if start + 48 < len(text) else ""))


def _difference(expected: str, got: str) -> tuple[str, str]:
    """Both texts, cut down to where they first differ."""
    first = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    if max(len(expected), len(got)) <= 64:
        return repr(expected), repr(got)
    return f"{_shorten(expected, first)} at character {first}", _shorten(got, first)


def _reason(error: Exception) -> str:
    hint = getattr(error, "hint", "")
    return f"{type(error).__name__} {error}" + (f" ({hint})" if hint else "")


class _CaseRun:
    """One case being replayed; collects failures instead of raising."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.failures: list[Failure] = []
        self.directory = Directory(ORIGIN)
        self.leaves: list[str] = []
        self.hpke_key: DecapsulationKey | None = None
        self.leaf_keys: dict[bytes, bytes] = {}
        self.signers: list[bytes] = []

    def fail(self, where: str, expected: str, got: str) -> None:
        self.failures.append(Failure(where, expected, got))

    def same(self, where: str, expected: str, got: str) -> None:
        if expected != got:
            self.fail(where, *_difference(expected, got))

    def holds(self, where: str, check: Callable[[], Any]) -> Any:
        """What *check* returns; None, and a failure, when it raises."""
        try:
            return check()
        except KtlogError as error:
            self.fail(where, "success", _reason(error))
            return None

    def run(self) -> CaseResult:
        self._check_keys()
        complete = all(self._run_step(number, step) for number, step in enumerate(self.case.steps))
        if complete:
            self._check_actors()
            self._check_tree()
        return CaseResult(self.case.name, len(self.case.steps), tuple(self.failures))

    # Keys

    def _pair(self, where: str, pair: KeyPair, derive: Callable[[bytes], bytes]) -> bytes | None:
        secret = self.holds(where, lambda: decode_base64url(pair.secret, 32))
        if secret is None:
            return None
        public = derive(secret)
        self.same(where, pair.public, encode_base64url(public))
        return secret

    def _check_keys(self) -> None:
        def signing(seed: bytes) -> bytes:
            return private_key_from_seed(seed).public_key().public_bytes_raw()

        def sealing(seed: bytes) -> bytes:
            return DecapsulationKey.from_seed(seed).encapsulation_key

        seed = self._pair("server-keys.hpke-encaps-key", self.case.hpke_keys, sealing)
        self.hpke_key = None if seed is None else DecapsulationKey.from_seed(seed)
        seed = self._pair("server-keys.sign-public-key", self.case.sign_keys, signing)
        if seed is not None:
            self.leaf_keys = {leaf_key_hash(signing(seed)): signing(seed)}
        for label, pair in self.case.signers.items():
            seed = self._pair(f"identities[{label!r}].mldsa44.public-key", pair, signing)
            if seed is not None:
                self.signers.append(signing(seed))
        for label, pair in self.case.recipients.items():
            self._pair(f"identities[{label!r}].xwing.public-key", pair, sealing)

    # Steps

    def _run_step(self, number: int, step: Step) -> bool:
        """Whether the directory is still where the vectors think it is."""
        where = f"steps[{number}]"
        self.same(f"{where}.merkle-root-before", step.root_before, self.directory.root_text)
        text = self._delivered(where, step)
        if text is None:
            return False
        now = FIRST_TIME + number
        try:
            wire = parse_wire(VECTOR, text)
            message = open_message_attributes(VECTOR, wire, commitments=False)
            self._check_message(where, step, wire, message, now)
            check_time(wire.time, now)
            signer = self.directory.check(wire, message)
            entry = step.leaf.encode("utf-8")
            self.directory.accept(self.directory.size, wire, message, signer, entry)
        except MessageRejected as error:
            on_course = self._refused(where, step, error)
        except Exception as error:  # a crash is a failure of this step, and never a refusal
            self.fail(where, "acceptance or a coded refusal", _reason(error))
            on_course = False
        else:
            self.leaves.append(encode_base64url(entry))
            on_course = self._accepted(where, step)
        if on_course:
            self.same(f"{where}.merkle-root-after", step.root_after, self.directory.root_text)
        return on_course

    def _accepted(self, where: str, step: Step) -> bool:
        if step.expect_fail:
            self.fail(f"{where}.expect-fail", f"a refusal, {step.expected_error!r}", "acceptance")
        elif step.expected_error is not None:
            self.fail(f"{where}.expected-error", "no such member in a step that succeeds",
                      repr(step.expected_error))
        return not step.expect_fail

    def _refused(self, where: str, step: Step, error: MessageRejected) -> bool:
        if not step.expect_fail:
            self.fail(f"{where}.expect-fail", "acceptance", f"refusal: {_reason(error)}")
            return False
        if step.expected_error is None:
            self.fail(f"{where}.expected-error", repr(error.message), "no such member")
        else:
            self.same(f"{where}.expected-error", step.expected_error, error.message)
        return True

    def _delivered(self, where: str, step: Step) -> str | bytes | None:
        """The text that reaches the parser, after the three forms of the message are compared."""
        unsigned = self._members(f"{where}.protocol-message", step.protocol_message)
        if unsigned is not None and unsigned.get("action") == TOKEN_ACTION:
            self.same(f"{where}.signed-message", "", step.signed_message)
            self.same(f"{where}.hpke-wrapped-message", "", step.hpke_message)
            return step.protocol_message
        signed = self._members(f"{where}.signed-message", step.signed_message)
        if signed is None:
            return None
        rest = {name: value for name, value in signed.items() if name != "signature"}
        self.same(f"{where}.protocol-message", VECTOR.canonical(rest).decode(), step.protocol_message)
        if signed.get("action") in PLAIN_ACTIONS:
            self.same(f"{where}.hpke-wrapped-message", "", step.hpke_message)
            return step.signed_message
        return self._opened(f"{where}.hpke-wrapped-message", step) or step.signed_message

    def _opened(self, where: str, step: Step) -> bytes | None:
        key = self.hpke_key
        if key is None:
            return None  # reported with the server's keys
        opened = self.holds(where, lambda: open_message(key, step.hpke_message))
        members = None if opened is None else self._object(where, opened)
        if members is None:
            return None
        members.pop("padding", None)
        self.same(where, step.signed_message, VECTOR.canonical(members).decode())
        return opened

    def _object(self, where: str, text: str | bytes) -> dict[str, Any] | None:
        try:
            members = parse_json(text)
        except KtlogError as error:
            self.fail(where, "a JSON object", _reason(error))
            return None
        if not isinstance(members, dict):
            self.fail(where, "a JSON object", type(members).__name__)
            return None
        return members

    def _members(self, where: str, text: str) -> dict[str, Any] | None:
        members = self._object(where, text)
        if members is not None:
            self.same(where, VECTOR.canonical(members).decode(), text)
        return members

    def _check_message(
        self, where: str, step: Step, wire: WireMessage, message: Message, now: int
    ) -> None:
        """What must hold for a refused message just as for an accepted one."""
        for name, text in plain_attributes(wire, message).items():
            place = f"{where}.signed-message.message.{name}"
            again = self.holds(place, lambda name=name, text=text: _encrypt_again(wire, name, text))
            if again is not None:
                self.same(place, wire.body[name], again)
        if wire.signature is not None and not any(self._signed(wire, key) for key in self.signers):
            self.fail(f"{where}.signed-message.signature", "a signature by one of the identities", "none")
        if wire.time is not None and wire.time != now:
            self.fail(f"{where}.signed-message.message.time", str(now), str(wire.time))
        if self.leaf_keys:
            entry = step.leaf.encode("utf-8")
            self.holds(f"{where}.merkle-leaf", lambda: verify_entry(entry, wire.preimage, self.leaf_keys))

    @staticmethod
    def _signed(wire: WireMessage, public_key: bytes) -> bool:
        try:
            verify_mldsa44(public_key, wire.signature or b"", wire.signed_bytes)
        except KtlogError:
            return False
        return True

    # The end

    def _check_actors(self) -> None:
        for actor_id, expected in self.case.actors.items():
            self._check_actor(f"final-mapping.actors[{actor_id!r}]", actor_id, expected)
        for actor_id in self.directory.actors:
            if actor_id not in self.case.actors:
                self.fail("final-mapping.actors", "no other actor", repr(actor_id))

    def _check_actor(self, where: str, actor_id: str, expected: FinalActor) -> None:
        actor = self.directory.actors.get(actor_id)
        self.same(f"{where}.fireproof", str(expected.fireproof), str(bool(actor and actor.fireproof)))
        active = sorted(encode_public_key(key.public_key) for key in (actor.keys if actor else ()))
        wanted = sorted(text for _, text, revoked in expected.keys if not revoked)
        self.same(f"{where}.public-keys", "\n".join(wanted), "\n".join(active))
        for key_id, _, _ in expected.keys:
            self.holds(f"{where}.public-keys[{key_id!r}]", lambda key_id=key_id: decode_base64url(key_id, 32))
        aux = tuple((aux.aux_type, aux.aux_data or "") for aux in (actor.aux if actor else ()))
        self.same(f"{where}.aux-data", repr(expected.aux), repr(aux))

    def _check_tree(self) -> None:
        where = "final-mapping.merkle-tree"
        self.same(f"{where}.root", self.case.root, self.directory.root_text)
        self.same(f"{where}.leaf-count", str(self.case.leaf_count), str(self.directory.size))
        self.same(f"{where}.leaves", "\n".join(self.case.leaves), "\n".join(self.leaves))


def _encrypt_again(wire: WireMessage, name: str, text: str) -> str:
    """The attribute's ciphertext, made from its plaintext and the random bytes it carries."""
    random32 = decode_base64url(wire.body[name])[1:33]
    return encrypt_attribute(
        VECTOR, name, text, wire.symmetric_keys[name], wire.recent_root or "", random32
    )


def replay(vectors: Any) -> Report:
    """Replay a vectors file.

    Args:
        vectors: its JSON value, from :func:`parse_vectors`.

    Raises:
        EncodingError: ``BadVectors`` when the file's structure is not that of the format. Wrong
            values are failures in the report, never errors.
    """
    return Report(tuple(_CaseRun(case).run() for case in read_vectors(vectors)))


def format_report(report: Report) -> str:
    """The report for people: a line a case, under it one for each difference, then the sum."""
    lines = []
    for case in report.cases:
        steps = f"{case.steps} step{'' if case.steps == 1 else 's'}"
        lines.append(f"{'FAIL' if case.failures else 'ok':4}  {case.name}  ({steps})")
        lines += [f"      {failure}" for failure in case.failures]
    counts = report.as_dict()
    lines.append(f"{counts['cases']} cases, {counts['steps']} steps, {counts['failed']} failed")
    return "\n".join(lines)
