"""Checks a log's head against the policy and against what is remembered. Bytes in, verdict out.

No clock, no network, no disk: whoever calls passes them in. The order of the checks is that of the
directory map's specification §9, steps 1 to 4, with one exception that
docs/decisions/0002-two-roots-before-quorum.md argues for: two roots for one size convict the log
by its own two signatures, so they are compared before anybody counts cosignatures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ktlog.errors import EncodingError, Forked, Invalid, PolicyUnmet, Stale, StoreError, UsageError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.evidence import format_evidence, inconsistent, two_roots
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Note, Verified, Vkey, open_note
from ktlog.tlog.policy import CLOCK_SKEW_SECONDS, Policy
from ktlog.tlog.tree import EMPTY_ROOT, HashReader, prove_consistency, root_hash
from ktlog.words import count_entries

DEFAULT_MAX_AGE_SECONDS = 3600
_FORK_HINT = (
    "The log signed two histories. Keep the evidence file and give it to others: it needs no more than"
    " the log's public key to convict. Do not use keys from this log."
)


@dataclass(frozen=True)
class Log:
    """A log as the policy knows it: its origin, the keys it may sign with, and where it answers.

    retired: keys whose time is over (:mod:`ktlog.client.rotation`): good for what was remembered before.
    """

    origin: str
    vkeys: tuple[Vkey, ...]
    url: str
    retired: tuple[Vkey, ...] = ()


@dataclass(frozen=True)
class Head:
    """A checkpoint that one of the log's own keys signed.

    note: the whole signed note. opened: the same, parsed. log: the lines of the log's keys, verified.
    """

    origin: str
    size: int
    root: bytes
    note: bytes
    opened: Note = field(repr=False, compare=False)
    log: tuple[Verified, ...] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Cosigned:
    """Who of the policy cosigned a head, and the greatest time at which they made a quorum."""

    names: tuple[str, ...]
    as_of: int


def find_log(policy: Policy, origin: str) -> Log:
    """The log *origin* as the policy's ``log`` lines have it.

    Raises:
        UsageError: ``UnknownLog`` when no line names it.
    """
    lines = [line for line in policy.logs if line.vkey.name == origin]
    if not lines:
        raise UsageError(
            "UnknownLog", f"the policy has no log line for {origin}",
            hint=f"Add `log VKEY URL` with the verifier key of {origin}, from a source you trust.",
        )
    url = next((line.url for line in lines if line.url), None) or f"https://{origin}"
    return Log(origin, tuple(line.vkey for line in lines), url.rstrip("/"))


def open_head(data: bytes, log: Log) -> Head:
    """Read a signed checkpoint and check that it is this log's, by name and by signature.

    Raises:
        Invalid: ``MalformedCheckpoint``; ``WrongLog`` for another origin; ``BadLogSignature`` when no key of
            the log signed, or one that did not sign right.
    """
    try:
        note, checkpoint = parse_signed_checkpoint(data)
    except EncodingError as error:
        raise Invalid("MalformedCheckpoint", f"the checkpoint of {log.origin} does not parse: {error}") from error
    if checkpoint.origin != log.origin:
        raise Invalid(
            "WrongLog", f"the checkpoint is of {checkpoint.origin!r}; the log of this domain is {log.origin!r}",
            hint="Which log serves a domain is your own configuration; the server cannot change it.",
        )
    try:
        signed = open_note(note, log.vkeys)
    except Invalid as error:
        raise Invalid("BadLogSignature", f"a signature of {log.origin} does not verify: {error.message}") from error
    if not signed:
        raise Invalid("BadLogSignature", f"no key that the policy knows for {log.origin} signed the checkpoint")
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise Invalid("MalformedCheckpoint", "an empty tree has one root, and this is another")
    return Head(checkpoint.origin, checkpoint.size, checkpoint.root, data, note, signed)


def open_remembered(data: bytes, log: Log) -> Head:
    """The head that was saved after the last verified lookup, checked again before it is relied on.

    Raises:
        StoreError: ``HeadOfAnotherKey``, because a damaged or foreign head must not vanish in silence.
    """
    try:
        return open_head(data, replace(log, vkeys=(*log.vkeys, *log.retired)))
    except Invalid as error:
        raise StoreError(
            "HeadOfAnotherKey",
            f"the remembered head of {log.origin} does not verify under the policy's keys: {error.message}",
            hint="The log's key changed in the policy, or the state is damaged. If you know that the key changed"
                 " honestly, move the file heads/*.json of this log out of the state directory.",
        ) from error


def check_two_roots(log: Log, remembered: Head, head: Head) -> None:
    """Compare the roots of two heads of one size.

    Raises:
        Forked: ``TwoRoots``, with evidence.
    """
    if remembered.size != head.size or remembered.root == head.root:
        return
    raise Forked(
        "TwoRoots", f"{log.origin} signed two different trees of {count_entries(head.size)}", hint=_FORK_HINT,
        evidence=_evidence(log, lambda vkey: format_evidence(two_roots(vkey, remembered.note, head.note))),
    )


def check_cosigned(
    head: Head, policy: Policy, now: int, max_age: int, *, pq: bool = False,
    open_lines: Callable[[Head, Policy], tuple[Verified, ...]] = lambda head, policy: (
        policy.open_cosignatures(head.opened)
    ),
) -> Cosigned:
    """Check the cosignatures on a head whose log signature holds.

    Args:
        now: Unix seconds.
        max_age: how many seconds ago the quorum may at most have seen it.
        pq: count ML-DSA lines alone, the log's too.
        open_lines: verifies the lines of the policy's cosigners; somebody may remember what it found.

    Raises:
        Invalid: ``BadCosignature`` when a line of a cosigner of the policy does not verify.
        PolicyUnmet: ``TooFewWitnesses`` (or ``TooFewVerifiers``) with have and need.
        Stale: ``OldCosignatures``.
    """
    cosignatures = open_lines(head, policy)
    try:
        as_of = policy.count(cosignatures, now)
    except PolicyUnmet as error:
        error.hint = "A head that the witnesses did not see may be shown to you alone. Try again later."
        if any(line.timestamp > now + CLOCK_SKEW_SECONDS for line in cosignatures):
            error.hint += " Some cosignatures do not count, as they are of a time that your clock has not come to."
        raise
    if pq:
        cosignatures, as_of = _post_quantum(head, policy, cosignatures, now)
    if as_of is None:
        raise AssertionError("a safe policy has a quorum, and a met quorum has a time")
    if now - as_of > max_age:
        raise Stale(
            "OldCosignatures",
            f"the quorum last saw this head of {head.origin} {now - as_of} seconds ago;"
            f" at most {max_age} seconds are allowed",
            hint="Either the log stopped publishing or somebody shows you an old copy. Check your clock, too."
            " (ktlog verify: an answer that was kept is checked as of its day, with --at.)",
        )
    names = dict.fromkeys(line.vkey.name for line in cosignatures)
    return Cosigned(tuple(names), as_of)


def _post_quantum(
    head: Head, policy: Policy, cosignatures: tuple[Verified, ...], now: int
) -> tuple[tuple[Verified, ...], int | None]:
    """The ML-DSA cosignatures of an accepted head, and since when they alone make the quorum."""
    if all(line.vkey.algorithm != COSIGNATURE_MLDSA44 for line in head.log):
        raise Invalid("BadLogSignature", f"no ML-DSA key that the policy knows for {head.origin} signed the checkpoint")
    lines = tuple(line for line in cosignatures if line.vkey.algorithm == COSIGNATURE_MLDSA44)
    as_of = policy.as_of({line.vkey: line.timestamp for line in lines}, now)
    if as_of is None:
        have, need = policy.shortfall([line.vkey for line in lines])
        raise PolicyUnmet(
            "TooFewWitnesses", "the ML-DSA cosignatures alone do not make the quorum", have=have, need=need,
            hint="With `pq`, a group that asks for an Ed25519 line can never be met.",
        )
    return lines, as_of


def check_not_smaller(remembered: Head, head: Head) -> None:
    """Refuse a head behind the remembered one. A smaller tree alone convicts nobody.

    Raises:
        Stale: ``RolledBack``.
    """
    if head.size < remembered.size:
        raise Stale(
            "RolledBack",
            f"{head.origin} showed {count_entries(remembered.size)} before and shows {head.size:,} now",
            hint="Somebody shows you an old copy, or the log lost entries. Try again; if it lasts, tell its auditors.",
        )


def check_extends(log: Log, older: Head, newer: Head, read: HashReader) -> None:
    """Check that the tree of *newer* begins with the tree of *older*.

    The proof is not asked of the log but computed here, from tiles that *read* has already checked
    against newer's root. So if it fails, the older root alone is wrong, and the log has signed both.

    Args:
        older: at most as large as newer.
        read: hashes of newer's tree; raises for any that its root does not vouch for.

    Raises:
        Forked: ``Inconsistent``, with evidence.
        Invalid: ``BadConsistencyProof`` when the tiles are not those of newer's root.
        Unreachable: the tiles are not to be had.
    """
    if older.size in (0, newer.size):
        check_two_roots(log, older, newer)
        return
    try:
        prefix_root = root_hash(older.size, read)
        if prefix_root == older.root:
            return
        proof = prove_consistency(older.size, newer.size, read)
    except Invalid as error:
        raise Invalid(
            "BadConsistencyProof", f"the tiles of {log.origin} do not make up its own root: {error.message}"
        ) from error
    raise Forked(
        "Inconsistent",
        f"{log.origin} signed a tree of {count_entries(older.size)} and a tree of {newer.size:,} that does not contain"
        " it",
        hint=_FORK_HINT,
        evidence=_evidence(
            log,
            lambda vkey: format_evidence(inconsistent(vkey, older.note, newer.note, proof, prefix_root)),
        ),
    )


def _evidence(log: Log, make: Callable[[Vkey], bytes]) -> bytes | None:
    """Evidence under whichever of the log's keys signed both notes; None when each has another."""
    for vkey in (*log.vkeys, *log.retired):
        try:
            return make(vkey)
        except Invalid:
            continue
    return None
