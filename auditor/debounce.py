"""From what is so now to what is worth an alarm: how long something must hold, and in how many looks.

An honest log is restarted, is slow, prunes its partial tiles, is mirrored with a delay; clocks are minutes off. None of
that may raise an alarm. What can never be so in an honest log opens at once; all else only when it has held for a grace
and in several looks in a row. The table is in docs/watching.md, "When a finding opens"; a test holds the two together.

Pure: no clock; Unix seconds are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from auditor.report import Finding

AT_ONCE = "at once"
LAG = "lag"
COSIGNER = "cosigner grace"
SLOW = "slow grace"


@dataclass(frozen=True)
class Graces:
    """Seconds. lag: what a restart, a cache or a switch to another machine may take. cosigner: how long a witness, a
    mirror or a peer may be behind or silent. slow: how long reading may take longer than a round has time for."""

    lag: int = 300
    cosigner: int = 3600
    slow: int = 21_600

    def seconds(self, name: str) -> int:
        return {AT_ONCE: 0, LAG: self.lag, COSIGNER: self.cosigner, SLOW: self.slow}[name]


@dataclass(frozen=True)
class Rule:
    """grace: which of the graces; rounds: looks in a row in which it held; calm: looks in a row without, to close."""

    grace: str = AT_ONCE
    rounds: int = 1
    calm: int = 1


RULES = {
    "RolledBack": Rule(LAG, 2),
    "FrozenLog": Rule(LAG, 2),
    "OldCosignatures": Rule(LAG, 2),
    "TooFewWitnesses": Rule(LAG, 2),
    "TooFewVerifiers": Rule(LAG, 2),
    "MissingCosignature": Rule(COSIGNER, 3),
    "WitnessBehind": Rule(COSIGNER, 3),
    "ViewBehind": Rule(COSIGNER, 3),
    "BadView": Rule(LAG, 2),
    "PeerSawOtherRoot": Rule(COSIGNER, 3),
    "UnreachablePeer": Rule(COSIGNER, 3, 2),
    "BadPeer": Rule(COSIGNER, 3, 2),
    "InputHeldBack": Rule(LAG, 2),
    "LateMap": Rule(LAG, 2),
    "StaleMap": Rule(LAG, 2),
    "DelayBroken": Rule(LAG, 2),
    "ReceiptUnchecked": Rule(LAG, 2),
    "KeyReplacedSilently": Rule(LAG, 2, 2),
    "MissingMapLeaf": Rule(LAG, 2),
    "Unreachable": Rule(LAG, 3, 2),
    "UnreachableView": Rule(COSIGNER, 3, 2),
    "NoCheckpoint": Rule(LAG, 3, 2),
    "Late": Rule(SLOW, 3, 2),
    # Answers with 404 or 410, which a cache, a proxy or a sync between machines may give for a while.
    "MissingEntries": Rule(LAG, 2),
    "MissingRecords": Rule(LAG, 2),
    "MissingTile": Rule(LAG, 2),
    "MissingLeafKeys": Rule(LAG, 2),
    "MissingErasures": Rule(LAG, 2),
    "MissingMapUpdate": Rule(LAG, 2),
}
"""By the finding's name. What is not here opens at once, closes at once, and no honest log does it."""


@dataclass(frozen=True)
class Condition:
    """Something that is so, at this look.

    key: what it is about, within its name. since: from when on, where that is known better than by looking. evidence:
    the file of it.
    """

    finding: Finding
    key: str = ""
    since: int | None = None
    evidence: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.finding.name


@dataclass(frozen=True)
class Standing:
    """What is remembered of a condition between looks. since, last_seen: Unix seconds."""

    since: int
    last_seen: int
    rounds: int
    calm: int = 0


def rule_of(name: str) -> Rule:
    return RULES.get(name, Rule())


def holds(before: Standing | None, since: int | None, now: int) -> Standing:
    """The standing of a condition that holds at this look."""
    begun = since if since is not None else now if before is None else before.since
    # A clock that was set back must not make waiting longer; one that was set forward, `rounds` is against.
    return Standing(min(begun, now), now, 1 if before is None else before.rounds + 1)


def absent(before: Standing) -> Standing:
    """The standing of a condition that did not hold at this look, though it was looked for."""
    return Standing(before.since, before.last_seen, before.rounds, before.calm + 1)


def is_finding(name: str, standing: Standing, graces: Graces, now: int) -> bool:
    """Whether a condition that holds is worth an alarm by now."""
    rule = rule_of(name)
    return standing.rounds >= rule.rounds and now - standing.since >= graces.seconds(rule.grace)


def is_over(name: str, standing: Standing, *, opened: bool) -> bool:
    """Whether a condition that does not hold may be forgotten, and its finding closed."""
    return not opened or standing.calm >= rule_of(name).calm
