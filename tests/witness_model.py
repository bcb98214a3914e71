"""What a witness must answer, written down a second time: from the specification, with lists of leaves for trees.

Nothing of ``witness`` is used. A tree is the tuple of its leaves, so that "extends" is "begins with"; keys are names;
a refusal is its status and the stable name that begins its body. Where tlog-witness leaves something open (a frozen log,
a retired key, which refusal comes first), this says what is promised in docs/witness.md and docs/keys.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORGED = "forged"
"""The leaf of a "tree" whose root nobody has leaves for."""

Tree = tuple[str, ...]


@dataclass(frozen=True)
class Submission:
    """An add-checkpoint request. signers: names of keys, in the order of their lines. spoilt: of these, whose do not
    verify. proof: "right" is what RFC 9162 asks for from the tree cosigned last to this one, by size; where that is
    none, nothing is sent."""

    origin: str
    old: int
    size: int
    tree: Tree
    signers: tuple[str, ...]
    proof: str = "right"
    spoilt: frozenset[str] = frozenset()
    extended: bool = False
    malformed: bool = False


@dataclass
class ModelLog:
    trusted: list[str]
    retired: list[str] = field(default_factory=list)
    key_changes: int = 1
    latest: tuple[int, Tree, int, tuple[str, ...]] | None = None
    """Size, tree, time, and the keys whose lines were verified."""
    cosigned: int = 0
    frozen: set[int] = field(default_factory=set)
    forks: set[int] = field(default_factory=set)
    forked_keys: set[str] = field(default_factory=set)

    @property
    def version(self) -> tuple:
        """What a judgement rests on."""
        return self.cosigned, self.key_changes, bool(self.frozen)

    @property
    def size(self) -> int:
        return 0 if self.latest is None else self.latest[0]


@dataclass(frozen=True)
class Verdict:
    """status, and the reason of a refusal. time: of the cosignatures. convicts: a key that signed two roots."""

    status: int
    reason: str = ""
    time: int = 0
    convicts: str = ""


class Model:
    def __init__(self) -> None:
        self.logs: dict[str, ModelLog] = {}

    def judge(self, asked: Submission, now: int) -> Verdict:
        if asked.malformed:
            return Verdict(400)
        log = self.logs.get(asked.origin)
        if log is None:
            return Verdict(404, "UnknownOrigin")
        if log.frozen:
            return Verdict(403, "LogFrozen")
        if asked.extended:
            return Verdict(400, "ExtensionLines")
        by = [key for key in asked.signers if key in log.trusted]
        formerly = [key for key in asked.signers if key in log.retired]
        if asked.spoilt & set(by):
            return Verdict(403, "BadSignature")
        if asked.spoilt & set(formerly):
            formerly = []
        convicts = self._convicted(log, asked, by + formerly)
        if not by:
            return Verdict(403, "RetiredKey", convicts=convicts) if formerly else Verdict(403, "NoTrustedSignature")
        status, reason = self._growth(log, asked)
        if status == 200 and now < (log.latest[2] if log.latest else 1):
            status, reason = 503, "ClockBehind"
        return Verdict(status, reason, now if status == 200 else 0, convicts if status != 200 else "")

    @staticmethod
    def _growth(log: ModelLog, asked: Submission) -> tuple[int, str]:
        if asked.old > asked.size:
            return 400, "OldAboveSize"
        if asked.old != log.size:
            return 409, f"{log.size}\n"
        if asked.size == 0 and asked.tree:
            return 422, "BadEmptyRoot"
        sent = asked.proof != "none" and not (asked.proof == "right" and asked.old in (0, asked.size))
        if asked.old == 0:
            return (422, "ProofFromNothing") if sent else (200, "")
        if asked.size == asked.old and asked.tree != log.latest[1]:
            return 422, "OtherRoot"
        needed = asked.size > asked.old
        if asked.tree[: asked.old] != log.latest[1] or sent != needed or asked.proof in ("garbage", "more"):
            return 422, "BadConsistencyProof"
        return 200, ""

    @staticmethod
    def _convicted(log: ModelLog, asked: Submission, verified: list[str]) -> str:
        if log.latest is None or log.latest[0] != asked.size or log.latest[1] == asked.tree:
            return ""
        return next((key for key in verified if key in log.latest[3]), "")

    def refused(self, asked: Submission, verdict: Verdict) -> None:
        """What a refusal leaves behind."""
        log = self.logs.get(asked.origin)
        if not verdict.convicts or log is None:
            return
        if verdict.convicts in log.retired:
            log.forked_keys.add(verdict.convicts)
        elif asked.size not in log.forks:
            log.forks.add(asked.size)
            log.frozen.add(asked.size)

    def accepted(self, asked: Submission, verdict: Verdict) -> None:
        log = self.logs[asked.origin]
        by = tuple(key for key in asked.signers if key in log.trusted)
        log.latest = (asked.size, asked.tree, verdict.time, by)
        log.cosigned += 1


def is_subtree(start: int, end: int, size: int) -> bool:
    """A subtree starts at a multiple of the smallest power of two that is not below its length."""
    if not 0 <= start < end <= size:
        return False
    width = 1
    while width < end - start:
        width *= 2
    return start % width == 0


def contradict(one: Tree, other: Tree) -> bool:
    """Whether no tree begins with both."""
    shorter = min(len(one), len(other))
    return one[:shorter] != other[:shorter]
