"""What an audit found, what it checked, and what it did not: for a person and for a machine.

A *finding* is a statement about the log under audit. Its ``class`` is the error class of
design decision 9 and fixes the exit code; its ``name`` is stable. What is proven to third
parties comes with an evidence file (auditor/evidence): class ``Forked``, and others where
what the log signed shows it.

========================  ===========  ======================================================
name                      class        the check that failed
========================  ===========  ======================================================
MalformedCheckpoint       Invalid      the checkpoint parses, and an empty tree has its one root
WrongLog                  Invalid      the checkpoint names the origin under audit
BadLogSignature           Invalid      every line of a named log key verifies, at least one is there
BadCosignature            Invalid      every line of a cosigner named by the policy verifies
TooFewWitnesses,          PolicyUnmet  the policy's quorum stands behind the checkpoint
TooFewVerifiers
OldCosignatures           Stale        ... and did so within ``--max-age``
TwoRoots                  Forked       a head of the same size, known before, has the same root
Inconsistent              Forked       the tree begins with the smaller tree known before
RolledBack                Stale        the tree is not smaller than one known before
BadEntryBundle            Invalid      an entry bundle holds exactly the entries of its name
TreeMismatch              Invalid      the entries hash to the checkpoint's root
TileMismatch              Invalid      every tile equals the one recomputed from the entries
BadLeafKeys               Invalid      the list of leaf-signing keys parses
BadEntry                  Invalid      an entry parses, in the dialect of the log
BadLeafSignature          Invalid      an entry is signed by a published leaf key
BadRecords, BadRecord     Invalid      a page of records has one well-formed record an entry
BadErasures,              Invalid      the list of erasure records parses, makes up the root beside it
MissingErasures                        and is served
ErasuresRewritten         Invalid      the erasure log begins with the records it had at the last audit
BadErasure                Invalid      erasure records do not contradict each other or the entries
RecordWithheld            Invalid      the plaintext of an entry is published, or an erasure explains
                                       why not
NotErased                 Invalid      what an erasure says is gone is not published any more
PreimageMismatch          Invalid      the published message is the one the entry commits to
NotCanonical              Invalid      ... and is the canonical form of itself
BadMessage                Invalid      ... and is a well-formed protocol message
PlaintextMismatch         Invalid      the plaintexts are those of the message's attributes, and
                                       each opens its Argon2id commitment
BadMessageSignature       Invalid      the message is signed by a key its signer had then
DuplicateMessage          Invalid      no message is logged twice
StaleRoot                 Invalid      a message names a root that was recent then
BadTransition             Invalid      the directory's rules allow the message
AnswerContradictsLog      Invalid      the API's keys and history are those the entries give
MalformedAnswer           Invalid      the API's answer parses
BadAnswerProof            Invalid      the API's inclusion proofs hold
MissingEntries,           Invalid      what the checkpoint commits to is served (404 and 410 are
MissingRecords,                        answers; a time-out is none)
MissingTile,
MissingLeafKeys
TooLarge                  Invalid      no answer exceeds what its name allows; that about an actor
                                       may, and is then listed as not checked
BadMapConfig, WrongConfig,  Invalid    the map's log: leaf 0 is a configuration of it, every leaf
BadOutputLeaf                          names it and parses
MapContradiction          Forked       ... no leaf takes back what the one before said
InputMismatch, MapAhead   Invalid      ... a leaf speaks of entries that the log has, and of their root
BadMapUpdate,             Invalid      ... an update leads from the map before to that of its leaf, and is
MissingMapUpdate                       served for 30 days
MapNotDerived,            Invalid      ... the map is what the entries and erasures lead to
MissingSalt
LateMap, StaleMap         Stale        ... the map follows the entries, and says so, as soon as promised
BrokenPromise             Forked       a watch: the tree is the one that a receipt promises
FrozenLog                 Stale        ... the log shows what others were shown
MissingCosignature        PolicyUnmet  ... every cosigner that the policy names is on the head
WitnessBehind, ViewBehind Stale        ... witnesses, mirrors, other addresses have what the log showed
BadView                   Invalid      ... and what they show is a head of the log
BadConsistencyProof       Invalid      ... the tiles behind a head are those of its tree
PeerSawOtherRoot          Invalid      ... what the log told its peers is a root that it had
BadPeer                   Invalid      ... and what a peer serves parses
InputHeldBack             Stale        ... fresh leaves of the map cover what was shown before
BadMapLeaf,               Invalid      ... the newest leaf is of the signed tree, and is served
MissingMapLeaf
DelayBroken               Stale        ... an entry that a receipt promises is in the tree in time
ReceiptUnchecked          Invalid      ... a key that the log is known by signed each receipt
KeyReplacedSilently       Invalid      ... the key for answers changes by signed lines of /keys only
Unreachable, Late,        Unreachable  ... the log answers; it gives out what its head commits to; the
UnreachableView,                       others answer
UnreachablePeer
ErasedMeanwhile           Unreachable  the erasure log stays as it is during one attempt of several
ErasuresNeverRest         Invalid      ... or did so in one of the last few audits
NoCheckpoint              Unreachable  the log has published a checkpoint
Timeout, Refused, ...     Unreachable  the log answers
========================  ===========  ======================================================

``TwoRoots`` and ``Inconsistent`` are of class ``Invalid`` when no single key signed both heads.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from auditor.position import SEMANTIC, Counts
from ktlog.errors import (
    Forked,
    Invalid,
    KtlogError,
    PolicyUnmet,
    Stale,
    Unreachable,
)
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Vkey
from ktlog.words import count_entries, some

# Gravest first: this order, not the numbers, decides the exit code.
EXIT_CODES = {
    cls.__name__: cls.exit_code for cls in (Forked, Invalid, PolicyUnmet, Stale, Unreachable)
}
# A log that breaks every entry must not fill the auditor's memory with complaints.
KEPT_PER_NAME = 50
_LONGEST_SHOWN = 1000


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the log. ``what`` is a plain sentence."""

    name: str
    kind: str
    what: str
    leaf_index: int | None = None
    about: str = field(default="", compare=False)
    """The actor whom an answer is about."""

    def __post_init__(self) -> None:
        if self.kind not in EXIT_CODES:
            raise AssertionError(f"no exit code for a finding of class {self.kind}")

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.kind]

    def as_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "class": self.kind, "what": self.what}
        if self.leaf_index is not None:
            out["leaf_index"] = self.leaf_index
        return out


def finding_from(error: KtlogError, name: str | None = None, leaf_index: int | None = None,
                 subject: str = "") -> Finding:
    """The finding that *error*, met while reading or checking the log, amounts to.

    What does not parse and what a directory would have refused are both Invalid here:
    it is the log that is being judged. *subject* says what was being looked at.
    """
    kind = type(error).__name__ if type(error).__name__ in EXIT_CODES else Invalid.__name__
    what = error.message if error.message != error.name else str(error)
    if name is not None and name != error.name:
        what = f"{what} ({error.name})" if error.name not in what else what
    return Finding(name or error.name, kind, f"{subject}: {what}" if subject else what, leaf_index)


class Findings:
    """What was found. Keeps at most KEPT_PER_NAME of a name, and counts the rest."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._count: Counter[str] = Counter()
        self._kinds: set[str] = set()

    def add(self, finding: Finding) -> None:
        self._count[finding.name] += 1
        self._kinds.add(finding.kind)
        if self._count[finding.name] <= KEPT_PER_NAME:
            self._kept.append(finding)

    def remove(self, gone: Callable[[Finding], bool], all_of: Collection[str] = ()) -> int:
        """Take out those that are *gone* and do not convict; how many there were.

        Of a name of which some were not kept none goes: nobody can tell of those. But *all_of* are gone, kept or not.
        """
        omitted = self.omitted.keys() - set(all_of)
        out = [one for one in self._kept if one.kind != Forked.__name__ and one.name not in omitted and gone(one)]
        for one in out:
            self._count[one.name] -= 1
        for name in {one.name for one in out} & set(all_of):
            self._count[name] = 0
        self._count = +self._count
        self._kept = [one for one in self._kept if not any(one is other for other in out)]
        self._kinds = {one.kind for one in self._kept}
        return len(out)

    def __iter__(self) -> Iterator[Finding]:
        """Gravest first, then by entry."""
        order = list(EXIT_CODES)
        return iter(sorted(
            self._kept, key=lambda f: (order.index(f.kind), -1 if f.leaf_index is None else f.leaf_index)
        ))

    def __len__(self) -> int:
        """How many were met, kept or not."""
        return self._count.total()

    def __contains__(self, name: object) -> bool:
        return name in self._count

    @property
    def kinds(self) -> frozenset[str]:
        """The classes that were met."""
        return frozenset(self._kinds)

    @property
    def omitted(self) -> dict[str, int]:
        """How many of each name are not listed."""
        return {name: n - KEPT_PER_NAME for name, n in self._count.items() if n > KEPT_PER_NAME}

    @property
    def exit_code(self) -> int:
        """Of the gravest; 0 without any."""
        for kind, code in EXIT_CODES.items():
            if kind in self._kinds:
                return code
        return 0


@dataclass
class Coverage:
    """How many of something were checked, of how many; *mode* is what was asked for."""

    mode: str
    checked: int = 0
    total: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"checked": self.checked, "total": self.total, "mode": self.mode}


@dataclass
class Report:
    """The outcome of one audit. Sizes and counts are entries unless named otherwise."""

    origin: str
    commitments: Coverage
    answers: Coverage
    commitments_before: int = 0
    """Opened by an earlier audit, and not again though the entries were read again."""
    url: str = ""
    tree_size: int | None = None
    root: bytes | None = None
    tier: str = SEMANTIC
    first: int = 0
    """Where this audit began to read; entries before it were judged by earlier ones."""
    read_to: int = 0
    """Entries whose place in the tree was checked, those of earlier audits counted."""
    covered: Counts = Counts()
    """What was checked of all entries up to there, by this audit and those that it goes on from."""
    entries_audited: int = 0
    leaf_signatures: int = 0
    message_signatures: int = 0
    tiles: int = 0
    actors: int = 0
    erasures: int = 0
    entries_withheld: int = 0
    taken: dict[int, str] = field(default_factory=dict)
    """By leaf index, what an entry did to an actor who is not erased, and rests on text that is."""
    cosigners: tuple[str, ...] = ()
    findings: Findings = field(default_factory=Findings)
    evidence: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    map_leaves: int = 0
    map_followed: int = 0
    map_derived: int = 0
    """Leaves of the map's log that were judged; of them, those whose update held, and whose map the entries lead to."""
    wrong_values: dict[Finding, tuple[str, ...]] = field(default_factory=dict)
    """Whose values a map has wrong, by the finding about it; the first of them. Not part of the output."""
    bytes_read: int = 0
    """Of the log's files and answers, and of the rows of the state."""
    partial: bool = False
    """Something that belongs to the tier was not checked, for another reason than the options."""
    convicted: Vkey | None = None
    """The log's key that signed two histories, for the advice. Not part of the output for machines."""
    signed_head: bytes | None = None
    """The checkpoint as served; what a clean audit remembers. Not part of the output."""

    @property
    def ok(self) -> bool:
        return len(self.findings) == 0

    @property
    def exit_code(self) -> int:
        return self.findings.exit_code

    @property
    def complete(self) -> bool:
        """Whether every entry of the tree was checked in every tier, by this audit and those that it goes on from.

        Both tiers, every leaf signature, every commitment that can still be opened; no finding. Nobody may cosign on
        less. The API's answers, which change with every question, have no part in it.
        """
        return (
            self.ok and self.tier == SEMANTIC and self.tree_size is not None and self.read_to == self.tree_size
            and not self.partial and self.covered.leaf_signatures == self.tree_size
            and self.covered.commitments_checked == self.covered.commitments
        )

    def skip(self, sentence: str) -> None:
        """Say once what was not checked."""
        if sentence not in self.not_checked:
            self.not_checked.append(sentence)

    def as_dict(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "url": self.url,
            "tree_size": self.tree_size,
            "root": encode_base64(self.root) if self.root is not None else None,
            "tier": self.tier,
            "first_entry": self.first,
            "read_to": self.read_to,
            "complete": self.complete,
            "covered": asdict(self.covered),
            "entries_audited": self.entries_audited,
            "leaf_signatures": self.leaf_signatures,
            "message_signatures": self.message_signatures,
            "tiles": self.tiles,
            "bytes_read": self.bytes_read,
            "map": {"leaves": self.map_leaves, "followed": self.map_followed, "derived": self.map_derived},
            "commitments": self.commitments.as_dict(),
            "commitments_before": self.commitments_before,
            "actors": self.actors,
            "erasures": self.erasures,
            "entries_withheld": self.entries_withheld,
            "taken": [{"leaf_index": index, "what": what} for index, what in sorted(self.taken.items())],
            "answers": self.answers.as_dict(),
            "cosigners": list(self.cosigners),
            "findings": [finding.as_dict() for finding in self.findings],
            "findings_omitted": self.findings.omitted,
            "evidence": list(self.evidence),
            "ok": self.ok,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "not_checked": list(self.not_checked),
        }


ADVICE = {
    "Forked": "The log signed two histories. Keep the evidence file and give it to others: anyone can "
              "confirm it with the command below, if they know the log's key. Do not trust keys from this log.",
    "Invalid": "What the log serves does not hold together. Without evidence it is no proof for others: audit again "
               "over another network path, then ask the operator.",
    "PolicyUnmet": "Too few cosigners stand behind this head, so it may have been made for you alone. "
                   "Audit again in some minutes; then ask the witnesses which head they see.",
    "Stale": "The log shows less, or older, than is already known. It convicts nobody: audit again later, and "
             "compare with what the witnesses see.",
    "Unreachable": "The log did not answer as a log does; nothing is known about it. Try again later.",
}


def printable(text: str) -> str:
    """*text* from elsewhere on one line of a terminal: nothing in it moves the cursor or hides other text."""
    shown = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in shown)


def _format_silence(report: Report) -> str:
    """Of a log of which nothing was read: why. Else the reason would stand among all that it is the reason of."""
    # What the log itself said, before what its map did.
    found = sorted(report.findings, key=lambda one: one.what.startswith("the map's log:"))
    reasons = list(dict.fromkeys(f"[{one.kind}] {one.name}: {printable(one.what)}" for one in found))
    return "\n".join([
        f"{report.origin}: not audited. {reasons[0]}", *(f"  {reason}" for reason in reasons[1:]),
        f"  {ADVICE[Unreachable.__name__]}", "  not checked: anything of this log.",
    ])


def format_report(report: Report) -> str:
    """The report for a person: the verdict first, then why, then what was not checked."""
    if report.tree_size is None and report.findings.kinds == {Unreachable.__name__}:
        return _format_silence(report)
    lines = []
    if report.ok and report.first and report.first == report.tree_size:
        lines.append(f"{report.origin}: no fault found; no entry is new since the last audit.")
    elif report.ok:
        new = "new " if report.first else ""
        what = some(report.entries_audited, f"{new}entry", f"{new}entries")
        lines.append(f"{report.origin}: no fault found in {what}.")
    else:
        lines.append(f"{report.origin}: {some(len(report.findings), 'finding')}.")
    if report.tree_size is not None and report.root is not None:
        lines.append(f"  tree size {report.tree_size:,}, root {encode_base64(report.root)}")
    for finding in report.findings:
        where = "" if finding.leaf_index is None else f" at entry {finding.leaf_index}"
        lines.append(f"  [{finding.kind}] {finding.name}{where}: {printable(finding.what)}")
    for name, count in report.findings.omitted.items():
        lines.append(f"  ... and {count:,} more named {name}")
    for path in report.evidence:
        lines.append(f"  evidence: {path}")
    lines.append(
        f"  checked: {count_entries(report.entries_audited)}, {some(report.tiles, 'tile')}, "
        f"{some(report.leaf_signatures, 'leaf signature')}, "
        f"{some(report.message_signatures, 'message signature')}, "
        f"{report.commitments.checked:,} of {some(report.commitments.total, 'commitment')}, "
        f"API answers for {report.answers.checked:,} of {some(report.answers.total, 'actor')}, "
        f"in {report.seconds:.1f} s"
    )
    if report.map_leaves:
        lines.append(
            f"  map: {some(report.map_leaves, 'map')}, {report.map_followed:,} followed from the one before,"
            f" {report.map_derived:,} derived from the entries"
        )
    if report.erasures or report.entries_withheld:
        lines.append(
            f"  erased: {some(report.erasures, 'actor')} in all; text of "
            f"{count_entries(report.entries_withheld)} is withheld"
        )
    for index, what in sorted(report.taken.items())[:KEPT_PER_NAME]:
        lines.append(f"  taken: entry {index} {what}")
    if len(report.taken) > KEPT_PER_NAME:
        lines.append(f"  ... and {len(report.taken) - KEPT_PER_NAME:,} more taken")
    lines += [f"  not checked: {printable(sentence)}" for sentence in report.not_checked]
    kinds = {finding.kind for finding in report.findings}
    lines += [f"  {ADVICE[kind]}" for kind in EXIT_CODES if kind in kinds]
    if report.convicted is not None:
        lines.append(f"    ktlog-auditor verify-evidence FILE --vkey {shlex.quote(str(report.convicted))}")
    return "\n".join(lines)
