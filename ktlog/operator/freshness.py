"""When a log published last, and when each cosigner of its policy signed last: as far as this process knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ktlog.tlog.note import Verified, Vkey


@dataclass(frozen=True)
class Fresh:
    """Unix seconds. What was before this process began counts as its beginning.

    published: when a checkpoint was published last. cosigned: by a cosigner's name, when it signed last.
    """

    published: int
    cosigned: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def beginning(cls, vkeys: Sequence[Vkey], now: int) -> Fresh:
        """Nothing was published yet; *vkeys* are those of the policy's cosigners."""
        return cls(now, {vkey.name: now for vkey in vkeys})

    def after(self, verified: Sequence[Verified], now: int) -> Fresh:
        """With the checkpoint that *verified* cosigned, published at *now*."""
        return Fresh(now, {**self.cosigned, **{one.vkey.name: one.timestamp for one in verified}})
