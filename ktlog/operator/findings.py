"""What a check of a whole log found: each finding names what is damaged, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

MOST = 100
"""Findings of one name that are kept; the rest is counted."""

_RESTORE = "Do not sign with this log. Restore it (docs/backup.md), or recover the newest state from a mirror."
_TILES = "It follows from the entries: stop nothing, and make it again with `ktlog fsck --repair-tiles`."
_MAP = "Restore map.db, map-signed-head.json and map-pending together, from the newest backup."
_DOCUMENT = "Restore it from the newest backup, or from whoever has what was published; sign nothing before that."

HINTS: Mapping[str, str] = {
    "TileMissing": _TILES, "TileDamaged": _TILES, "BundleMissing": _TILES, "BundleDamaged": _TILES,
    "MapLeafDamaged": _MAP, "MapValueDamaged": _MAP, "MapNodesDamaged": _MAP, "MapRootDamaged": _MAP,
    "MapAheadOfLog": _MAP, "MapUnreadable": _MAP,
    "UpdateDamaged": "It cannot be made again: put a good copy in its place, from whoever has one, or remove it."
    " It goes by itself 30 days after its leaf.",
    "CheckpointDamaged": _DOCUMENT, "CheckpointMissing": _DOCUMENT, "CheckpointBeyondLog": _RESTORE,
    "SignedHeadDamaged": _DOCUMENT,
    "SignedHeadAhead": "Nothing is signed before that time. If this machine's clock is behind, set it right. Else stop"
    " the log, and write into the file the time at which what is published was signed; its size and root stay.",
    "SignedHeadLost": _DOCUMENT, "PendingDamaged": _DOCUMENT, "PendingLost": _DOCUMENT,
    "MapCheckpointDamaged": "It is a copy of the newest one in map.db: remove the file, and the next start writes it.",
    "PublicKeysDamaged": "Restore public-keys.json, or make it again from DIR/keys.",
    "KeyDamaged": "Restore DIR/keys from where the keys are kept. A log whose keys are gone has ended.",
    "KeyChangesLost": "Restore keys.jsonl, from a backup, another machine of this log, or whoever read it at /keys.",
    "BadKeyChanges": "Restore keys.jsonl, from a backup, another machine of this log, or whoever read it at /keys.",
    "RotationUnfinished": "Finish it: ktlog keys settle --dir DIR. If that does nothing, public-keys.json is an older"
    " copy: restore the newest.",
    "JournalDamaged": "Restore journal.jsonl from a backup: it says what must stay erased.",
    "ErasureUndone": "The store is a copy from before an erasure. Take a newer one, or `ktlog restore`.",
    "LeafSignatureDamaged": "No leaf is ever signed again. Restore the entry from a backup or a mirror.",
}
"""What to do, by a finding's name; what is not listed asks for the log to be restored."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be.

    name: stable. where: the file, table and row. what: is wrong with it.
    """

    name: str
    where: str
    what: str

    @property
    def hint(self) -> str:
        """What to do next."""
        return HINTS.get(self.name, _RESTORE)

    def __str__(self) -> str:
        return f"{self.name}: {self.where}: {self.what}"

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "where": self.where, "what": self.what, "hint": self.hint}


@dataclass
class Findings:
    """What was found, what was looked at, and what could not be.

    kept: findings, at most ``MOST`` of each name. counts: all of them, by name. checked: how many of what held or
    not. skipped: sentences about what this check says nothing of.
    """

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.counts

    def add(self, name: str, where: str, what: str) -> None:
        self.counts[name] += 1
        if self.counts[name] <= MOST:
            self.kept.append(Finding(name, where, what))

    def skip(self, sentence: str) -> None:
        if sentence not in self.skipped:
            self.skipped.append(sentence)

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok, "findings": [finding.as_dict() for finding in self.kept], "counts": dict(self.counts),
            "checked": dict(self.checked), "not-checked": self.skipped,
        }
