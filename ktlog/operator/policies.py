"""Policies written from vkeys alone: the one under which a log publishes, and those that it hands to readers.

A cosigner's name is the URL at which it is reached, without the scheme, so its vkeys say all that a policy needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktlog.errors import EncodingError, UsageError
from ktlog.keymap.output import map_origin
from ktlog.operator.keys import PublicKeys
from ktlog.operator.witnessing import input_policy
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44, Vkey, parse_vkey
from ktlog.tlog.policy import VERIFIERS, WITNESSES, Group, LogKey, Policy, Witness

_LABELS = {COSIGNATURE_ED25519: "ed", COSIGNATURE_MLDSA44: "pq"}


def parse_vkeys(text: str) -> tuple[Vkey, ...]:
    """One cosigner's vkeys, by space or line.

    Raises:
        UsageError: ``BadVkeys``.
    """
    try:
        vkeys = tuple(map(parse_vkey, text.split()))
    except EncodingError as error:
        raise UsageError("BadVkeys", f"not a vkey: {error.message}") from None
    names = {vkey.name for vkey in vkeys}
    if len(names) != 1 or not {vkey.algorithm for vkey in vkeys} <= _LABELS.keys():
        raise UsageError(
            "BadVkeys", f"these are not the vkeys of one witness: {', '.join(sorted(names)) or 'none'}",
            hint="Give all of what `ktlog-witness vkeys` prints for it, in one pair of quotes.",
        )
    return vkeys


def make_policy(witnesses: Sequence[Sequence[Vkey]], verifiers: Sequence[Sequence[Vkey]]) -> Policy:
    """The publish policy: more than half of the witnesses, and of the verifiers, if there are any, one.

    A cosigner counts when it signed with all of its keys. More than half, because two smaller sets could each be shown
    a history of their own.

    Raises:
        UsageError: ``NoWitnesses``, or ``BadVkeys``: a cosigner or a key stands twice.
    """
    if not witnesses:
        raise UsageError("NoWitnesses", "a policy needs a witness", hint="--witness, once for each of them.")
    lines: dict[str, Witness] = {}
    groups: dict[str, Group] = {}
    for role, letter, cosigners in ((WITNESSES, "w", witnesses), (VERIFIERS, "v", verifiers)):
        names = []
        for number, vkeys in enumerate(cosigners, 1):
            names.append(f"{letter}{number}")
            members = tuple(f"{names[-1]}-{_LABELS[vkey.algorithm]}" for vkey in vkeys)
            lines |= {
                label: Witness(label, vkey, f"https://{vkey.name}") for label, vkey in zip(members, vkeys, strict=True)
            }
            groups[names[-1]] = Group(names[-1], len(set(members)), members)
        if names:
            groups[role] = Group(role, len(names) // 2 + 1 if role == WITNESSES else 1, tuple(names))
    quorum = WITNESSES
    if verifiers:
        quorum = "both"
        groups[quorum] = Group(quorum, 2, (WITNESSES, VERIFIERS))
    try:
        return Policy(witnesses=lines, groups=groups, quorum=quorum)
    except EncodingError as error:
        raise UsageError("BadVkeys", f"no policy comes of these vkeys: {error.message}") from None


def for_clients(policy: Policy, origin: str, public: PublicKeys) -> Policy:
    """What a client of the log needs: where there are verifiers, the log's map, else the log itself."""
    if VERIFIERS not in policy.groups:
        return _with_logs(policy, _entries(origin, public))
    return _with_logs(policy, _map(origin, public))


def for_auditors(policy: Policy, origin: str, public: PublicKeys) -> Policy:
    """What auditors and mirrors of the log need: its entries and its map, and the witnesses, who cosign both.

    They derive the map themselves, so no verifier's word is asked for.
    """
    return _with_logs(input_policy(policy), _entries(origin, public), _map(origin, public))


def _entries(origin: str, public: PublicKeys) -> LogKey:
    return LogKey(_log_key(public.vkeys), f"https://{origin}")


def _map(origin: str, public: PublicKeys) -> LogKey:
    return LogKey(_log_key(public.map_vkeys), f"https://{map_origin(origin)}")


def _log_key(vkeys: Iterable[str]) -> Vkey:
    """The log key that policies name is ML-DSA-44: the other one does not outlast quantum computers."""
    return next(vkey for vkey in map(parse_vkey, vkeys) if vkey.algorithm == COSIGNATURE_MLDSA44)


def _with_logs(policy: Policy, *logs: LogKey) -> Policy:
    return Policy(logs, policy.witnesses, policy.groups, policy.quorum)
