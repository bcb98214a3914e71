"""Judges the head a log shows: its signatures, its cosigners, and the heads known from before.

Two roots for one size convict the log by its own signatures, so that comparison needs no quorum
and no entries. The checks themselves are the client's; here their outcome becomes findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from auditor.report import Finding, Report, finding_from
from ktlog.client.verify import Head, Log, check_cosigned, check_extends, check_two_roots, open_head
from ktlog.errors import Forked, Invalid, KtlogError, StoreError, UsageError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.evidence import parse_evidence
from ktlog.tlog.policy import VERIFIERS, WITNESSES, Policy
from ktlog.tlog.tree import HashReader

SaveEvidence = Callable[[bytes, str], Path]
"""Writes (evidence, kind) durably and says where."""


@dataclass(frozen=True)
class KnownHead:
    """A head of the log under audit that was signed before; ``source`` says how it is known."""

    head: Head
    source: str


def open_saved_head(data: bytes, log: Log, path: Path) -> KnownHead:
    """The head of the last clean audit.

    Raises:
        StoreError: ``HeadOfAnotherKey`` when it is not signed by a key in use now.
    """
    try:
        return KnownHead(open_head(data, log), "the last clean audit")
    except Invalid as error:
        raise StoreError(
            "HeadOfAnotherKey",
            f"the head saved in {path} is not one of {log.origin} under the keys you named: {error.message}",
            hint="The file is damaged, or you named another key than last time. Name the old key too, or, if"
                 " you know that the key changed honestly, audit with another --dir.",
        ) from error


def open_noted_head(data: bytes, log: Log) -> Head:
    """The head that a saved position belongs to.

    Raises:
        StoreError: ``HeadOfAnotherKey`` when it is not signed by a key in use now.
    """
    try:
        return open_head(data, log)
    except Invalid as error:
        raise StoreError(
            "HeadOfAnotherKey",
            f"the saved position is in a tree that no key you named of {log.origin} signed: {error.message}",
            hint="Name the key that you named last time too; or audit --from-start.",
        ) from error


def open_given_head(data: bytes, log: Log, path: Path) -> KnownHead:
    """A head that the user got from elsewhere.

    Raises:
        UsageError: ``BadCheckpointFile`` when it says nothing about this log.
    """
    try:
        return KnownHead(open_head(data, log), str(path))
    except Invalid as error:
        raise UsageError(
            "BadCheckpointFile", f"{path} is no checkpoint of {log.origin} signed by its key: {error.message}",
            hint="It proves nothing about this log. Get the signed checkpoint again, byte for byte.",
        ) from error


def check_signed(data: bytes, log: Log, report: Report) -> Head | None:
    """The head in *data* if one of the log's keys signed it; else a finding and None."""
    try:
        head = open_head(data, log)
    except Invalid as error:
        report.findings.add(finding_from(error))
        return None
    note, _ = parse_signed_checkpoint(data)
    known = {(vkey.name, vkey.key_id) for vkey in log.vkeys}
    strange = [line for line in note.signatures if line.name == log.origin and (line.name, line.key_id) not in known]
    if strange:
        names = ", ".join(f"{line.name}+{line.key_id.hex()}" for line in strange)
        report.skip(f"Signature lines under the log's name by keys that you did not name: {names}.")
    return head


def for_entries(policy: Policy) -> Policy:
    """The part of *policy* that is for the log itself, where it has groups of witnesses and of verifiers.

    Verifiers cosign the log of maps only: design decision 8.
    """
    if not {WITNESSES, VERIFIERS} <= policy.groups.keys():
        return policy
    kept, names = {WITNESSES}, [*policy.groups][::-1]  # members are defined before the groups that they are in
    for name in names:
        kept |= set(policy.groups[name].members) if name in kept else set()
    return Policy(
        policy.logs, {name: item for name, item in policy.witnesses.items() if name in kept},
        {name: item for name, item in policy.groups.items() if name in kept}, WITNESSES,
    )


def check_quorum(head: Head, policy: Policy | None, now: int, max_age: int, report: Report) -> None:
    """Check that the policy's cosigners stand behind *head*, lately enough."""
    if policy is None:
        report.skip(
            "Cosignatures: no policy was given, so this head may have been shown to nobody but you."
        )
        return
    try:
        report.cosigners = check_cosigned(head, policy, now, max_age).names
    except KtlogError as error:
        report.findings.add(finding_from(error))


def check_forks(log: Log, heads: Sequence[KnownHead], report: Report, save: SaveEvidence) -> bool:
    """Whether any two of *heads* convict the log of two trees of one size. Writes the evidence."""
    found = False
    for number, first in enumerate(heads):
        for second in heads[number + 1:]:
            try:
                check_two_roots(log, first.head, second.head)
            except Forked as error:
                found = True
                _convict(error, f"one from {first.source}, one from {second.source}", log, report, save)
    return found


def check_prefix(
    log: Log, known: KnownHead, head: Head, read: HashReader, report: Report, save: SaveEvidence
) -> None:
    """Check that the tree of *head*, whose hashes *read* gives, begins with the tree of *known*."""
    try:
        check_extends(log, known.head, head, read)
    except Forked as error:
        _convict(error, f"the smaller one from {known.source}", log, report, save)


def check_rolled_back(known: Sequence[KnownHead], head: Head, report: Report) -> bool:
    """Whether *head* is behind a head that is known. That alone convicts nobody."""
    larger = [item for item in known if item.head.size > head.size]
    for item in larger:
        report.findings.add(Finding(
            "RolledBack", "Stale",
            f"{head.origin} shows {head.size} entries now; {item.source} has a signed tree of {item.head.size}",
        ))
    return bool(larger)


def _convict(error: Forked, source: str, log: Log, report: Report, save: SaveEvidence) -> None:
    what = f"{error.message} ({source})"
    if error.evidence is None:
        report.findings.add(Finding(
            error.name, "Invalid",
            f"{what}; no single key of the log signed both, so this convinces nobody else",
        ))
        return
    kind = "two-roots" if error.name == "TwoRoots" else "inconsistent"
    report.evidence.append(str(save(error.evidence, kind)))
    report.convicted = parse_evidence(error.evidence).vkey
    report.findings.add(Finding(error.name, "Forked", what))
