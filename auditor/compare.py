"""Compares what everybody showed of one log in one look, and with what they showed before: the heads alone.

::

    every head of one size           has one root             TwoRoots     evidence
    the log's newest head            begins with its last     Inconsistent evidence
    every other head                 is in the log's tree     Inconsistent evidence
    what the log shows               is no smaller            RolledBack
    what others know to be signed    the log shows, too       FrozenLog
    what the log showed              witnesses, mirrors have  WitnessBehind, ViewBehind
    cosigners of the policy          are all there            MissingCosignature, TooFewWitnesses, OldCosignatures

Nothing here decides what is worth an alarm: :mod:`auditor.debounce` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from auditor.debounce import Condition
from auditor.memory import LOG, OTHERS, Memory, Remembered
from auditor.report import Finding, finding_from
from auditor.views import ADDRESS, BUDGET_SPENT, MIRROR, THE_LOG, WITNESS, Source, View
from ktlog.client.verify import (
    Head,
    Log,
    check_cosigned,
    check_extends,
    check_two_roots,
)
from ktlog.errors import Forked, Invalid, KtlogError, Unreachable
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.evidence import parse_evidence
from ktlog.tlog.note import COSIGNATURE_MLDSA44
from ktlog.tlog.policy import NO_QUORUM, Policy
from ktlog.tlog.tree import HashReader
from ktlog.words import count_entries, some

Tiles = Callable[[Source, Head], HashReader]
"""Hashes of the tree of a head, as a source serves them, vouched for by that head's root."""

Keep = Callable[[str, str, bytes, str], tuple[str, Path | None]]
"""(finding's name, its key, evidence, kind of evidence) -> the key to use, and where the file is: that of the first
evidence under this key; none when there is more against the log than anybody needs."""

NAMES = frozenset({
    "TwoRoots", "Inconsistent", "RolledBack", "FrozenLog", "WitnessBehind", "ViewBehind", "BadView", "UnreachableView",
    "Unreachable", "NoCheckpoint", "MalformedCheckpoint", "WrongLog", "BadLogSignature", "BadConsistencyProof",
    "BadCosignature", "TooFewWitnesses", "TooFewVerifiers", "OldCosignatures", "MissingCosignature",
})
"""All that a comparison can say."""
SILENT = frozenset({"Unreachable", "UnreachableView", "NoCheckpoint"})
"""Of these, what it says of somebody of whom nothing was learnt."""

_LINEAGE = "lineage"
_NAMES = {WITNESS: "WitnessBehind", MIRROR: "ViewBehind", ADDRESS: "ViewBehind"}


@dataclass
class Looked:
    """The outcome of one look. blind: keys of the sources that said nothing; "" is the log."""

    conditions: list[Condition] = field(default_factory=list)
    blind: set[str] = field(default_factory=set)
    head: Head | None = None
    """The largest that the log itself shows, by any address."""

    @property
    def proven(self) -> list[Condition]:
        return [one for one in self.conditions if one.finding.kind == "Forked"]

    def was_checked(self, name: str, key: str) -> bool:
        """Whether this look could tell if that condition holds."""
        if name in SILENT:
            return True
        return key not in self.blind and "" not in self.blind

    def add(self, name: str, kind: str, what: str, key: str = "", since: int | None = None) -> None:
        self.conditions.append(Condition(Finding(name, kind, what), key, since))


@dataclass(frozen=True)
class Comparison:
    """What is needed to judge a look.

    skew: seconds by which clocks may differ. max_age: of the quorum's cosignatures, in seconds.
    """

    log: Log
    policy: Policy | None
    memory: Memory
    tiles: Tiles
    keep: Keep
    skew: int = 300
    max_age: int = 3600


def compare(of: Comparison, views: Sequence[View], now: int) -> Looked:
    """Judge one look. *views*: the log's own first, see :func:`auditor.views.look`.

    Raises:
        StoreError: evidence could not be kept, or the memory not be read.
    """
    out = Looked()
    _tell_silent(of, views, out)
    remembered = dict(of.memory.heads)
    shown = [(view.source, view.head) for view in views if view.head is not None]
    own = [head for source, head in shown if source.kind in (THE_LOG, ADDRESS)]
    out.head = max(own, key=lambda head: head.size, default=None)
    forked = _two_roots(of, shown, remembered, out)
    _convicted_elsewhere(of, views, out)
    for source, head in shown:
        of.memory.saw_size(LOG if source.kind in (THE_LOG, ADDRESS) else OTHERS, head.size, now)
    if not forked:
        _tie(of, shown, remembered, out, now)
    if out.head is None:
        return out
    _rolled_back(of, views, out)
    _frozen(of, out, now)
    _behind(of, views, out)
    _cosigned(of, out.head, out, now)
    return out


def _tell_silent(of: Comparison, views: Sequence[View], out: Looked) -> None:
    heard = {view.source.key for view in views if view.head is not None or view.nothing}
    for view in views:
        key, error = view.source.key, view.error
        if error is None or key in heard:
            continue
        out.blind.add(key)
        if error.name == BUDGET_SPENT and key:
            continue  # the log, or somebody before, took all the time: that is not said of this one
        if not view.silent:
            name = "BadView" if key else error.name if error.name in NAMES else "MalformedCheckpoint"
            out.conditions.append(Condition(finding_from(error, name, subject=view.source.words), key))
        elif key:
            out.conditions.append(Condition(finding_from(error, "UnreachableView", subject=view.source.words), key))
        else:
            name = error.name if error.name == "NoCheckpoint" else "Unreachable"
            out.conditions.append(Condition(finding_from(error, name, subject=of.log.origin), key))


# Forks


def _two_roots(
    of: Comparison, shown: Iterable[tuple[Source, Head]], remembered: dict[str, Remembered], out: Looked
) -> bool:
    """Whether two heads of one size have two roots, among all that are at hand."""
    known = [(f"{source or 'the log'}, earlier", item.head) for source, item in remembered.items()]
    roots: dict[int, list[tuple[str, Head]]] = {}
    found = False
    for words, head in [*known, *((source.words, head) for source, head in shown)]:
        others = roots.setdefault(head.size, [])
        if any(other.root == head.root for _, other in others):
            continue
        for seen, other in others:
            try:
                check_two_roots(of.log, other, head)
            except Forked as error:
                found = True
                _convict(of, error, (head.size,), f"one from {seen}, one from {words}", out)
        others.append((words, head))
    return found


def _convict(of: Comparison, error: Forked, sizes: tuple[int, ...], where: str, out: Looked) -> None:
    if error.evidence is None:
        out.add(error.name, "Invalid", f"{error.message} ({where}); no single key of the log signed both, so this"
                                       " convinces nobody else")
        return
    kind = "two-roots" if error.name == "TwoRoots" else "inconsistent"
    _add_proven(of, error.name, sizes, error.evidence, kind, f"{error.message} ({where})", out)


def _convicted_elsewhere(of: Comparison, views: Sequence[View], out: Looked) -> None:
    for view in views:
        for data in view.convictions:
            evidence = parse_evidence(data)
            name = "TwoRoots" if evidence.kind == "two-roots" else "Inconsistent"
            sizes = sorted({parse_signed_checkpoint(note)[1].size for note in evidence.notes})
            what = f"{of.log.origin} signed two histories; {view.source.words} keeps the evidence"
            _add_proven(of, name, tuple(sizes), data, evidence.kind, what, out)


def _add_proven(
    of: Comparison, name: str, sizes: tuple[int, ...], data: bytes, kind: str, what: str, out: Looked
) -> None:
    key, path = of.keep(name, "-".join(map(str, sizes)), data, kind)
    out.conditions.append(Condition(Finding(name, "Forked", what), key, evidence=path))


def _tie(
    of: Comparison, shown: Sequence[tuple[Source, Head]], remembered: dict[str, Remembered], out: Looked, now: int
) -> None:
    """See that the log's tree grows, and that everybody's head is in it; remember the newest of each."""
    lineage = remembered.get(_LINEAGE)
    trunk = None if lineage is None else lineage.head
    if out.head is not None and (trunk is None or out.head.size > trunk.size):
        source = next(source for source, head in shown if head is out.head)
        if trunk is None or _extends(of, trunk, out.head, source, "the log showed it before", out):
            trunk = out.head
            of.memory.keep(_LINEAGE, trunk, tied=True, now=now)
    sources = [source for source in dict.fromkeys(source for source, _ in shown) if source.kind != WITNESS]
    for source, head in shown:
        before = remembered.get(source.key)
        newest = head if before is None or head.size >= before.head.size else before.head
        tied = before is not None and before.tied and newest.root == before.head.root
        if not tied and trunk is not None:
            tied = _tie_one(of, source, newest, trunk, sources, out)
        if newest is not head and trunk is not None:
            _tie_one(of, source, head, trunk, sources, out)  # what is smaller now has to be the same past, too
        of.memory.keep(source.key, newest, tied=tied, now=now)
    # What somebody showed who says nothing now, or shows something older, still wants its place in the tree.
    names = {source.key for source, _ in shown}
    loose = {
        key: item.head for key, item in remembered.items() if key not in names and key != _LINEAGE and not item.tied
    }
    for key, head in loose.items():
        if trunk is None or head.size > trunk.size:
            continue
        if _extends_by(of, head, trunk, sources, f"{key} showed the smaller one before", out):
            of.memory.keep(key, head, tied=True, now=now)


def _tie_one(
    of: Comparison, source: Source, head: Head, trunk: Head, sources: Sequence[Source], out: Looked
) -> bool:
    """Whether *head* is known to be one with the log's tree *trunk*."""
    if head.size == trunk.size:
        return head.root == trunk.root
    if head.size < trunk.size:
        return _extends_by(of, head, trunk, sources, f"{source.words} has the smaller one", out)
    if source.kind in (MIRROR, ADDRESS):
        _extends(of, trunk, head, source, f"{source.words} has the larger one", out)
    # Not tied before the log itself shows as much: then the larger tree is the log's, and is judged once more.
    return False


def _extends_by(
    of: Comparison, older: Head, newer: Head, sources: Sequence[Source], where: str, out: Looked
) -> bool:
    """The same by the files of whoever has them: a log that has gone back serves no tiles of what it went back from."""
    convicted = len(out.proven)
    return any(
        _extends(of, older, newer, source, where, out) for source in sources if len(out.proven) == convicted
    )


def _extends(of: Comparison, older: Head, newer: Head, source: Source, where: str, out: Looked) -> bool:
    """Whether the tree of *newer*, by the tiles that *source* serves, begins with that of *older*."""
    try:
        check_extends(of.log, older, newer, of.tiles(source, newer))
        return True
    except Forked as error:
        _convict(of, error, tuple(dict.fromkeys((older.size, newer.size))), where, out)
    except Unreachable:
        pass  # next time
    except Invalid as error:
        # Tiles that do not make up a signed root are a lie of whoever serves them.
        out.conditions.append(Condition(finding_from(error, "BadConsistencyProof", subject=source.words), source.key))
    return False


# Behind


def _rolled_back(of: Comparison, views: Sequence[View], out: Looked) -> None:
    mine = [view.head for view in views if view.source.kind == THE_LOG and view.head is not None]
    beyond = of.memory.first_beyond(LOG, mine[-1].size) if mine else None
    if beyond is not None:
        out.add(
            "RolledBack", "Stale",
            f"{of.log.origin} shows {count_entries(mine[-1].size)} now, and has shown a signed tree of {beyond[0]:,} or"
            " more before", since=beyond[1],
        )


def _frozen(of: Comparison, out: Looked, now: int) -> None:
    head = out.head
    beyond = None if head is None else of.memory.first_beyond(OTHERS, head.size)
    if head is None or beyond is None:
        return
    size, since = beyond
    out.add(
        "FrozenLog", "Stale",
        f"{of.log.origin} shows {count_entries(head.size)}; others were shown a signed tree of {size:,} or more"
        f" {some(max(0, now - since), 'second')} ago", since=since,
    )


def _behind(of: Comparison, views: Sequence[View], out: Looked) -> None:
    for view in views:
        source = view.source
        if source.kind == THE_LOG or (view.head is None and not view.nothing):
            continue
        size = 0 if view.head is None else view.head.size
        missed = of.memory.first_beyond(LOG, size)
        if missed is not None:
            out.add(
                _NAMES[source.kind], "Stale",
                f"{source.words} has {count_entries(size)}; the log has shown {missed[0]:,} or more", source.key,
                missed[1],
            )


# Cosigners


def _cosigned(of: Comparison, head: Head, out: Looked, now: int) -> None:
    policy = of.policy
    if policy is None:
        return
    try:
        lines = policy.open_cosignatures(head.opened)
    except Invalid as error:
        out.conditions.append(Condition(finding_from(error)))
        return
    try:
        # Our clock may be behind theirs, or theirs behind ours.
        if policy.quorum != NO_QUORUM:
            check_cosigned(head, policy, now + of.skew, of.max_age + 2 * of.skew)
    except KtlogError as error:
        out.conditions.append(Condition(finding_from(error)))
    there = {line.vkey for line in lines}
    missing: dict[str, list[str]] = {}
    for witness in policy.witnesses.values():
        if witness.vkey not in there:
            kind = "ML-DSA-44" if witness.vkey.algorithm == COSIGNATURE_MLDSA44 else "Ed25519"
            missing.setdefault(witness.vkey.name, []).append(kind)
    for name, kinds in sorted(missing.items()):
        out.add(
            "MissingCosignature", "PolicyUnmet",
            f"the head of {count_entries(head.size)} that {of.log.origin} shows has no cosignature ({', '.join(kinds)})"
            f" of {name}, whom the policy names", name,
        )
