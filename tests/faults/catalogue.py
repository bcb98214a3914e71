"""Every kind of fault there is, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import flips, images, kinds, restores, syscalls
from tests.faults.kinds import Outcome, World


@dataclass(frozen=True)
class Kind:
    """weight: how often it is drawn among the others. heavy: it needs something of the machine, which ``need`` names."""

    words: str
    play: Callable[[World, str, Path, random.Random], Outcome]
    weight: int = 1
    need: tuple[str, ...] = ()
    every: Callable[[World, str, Path], list[Any]] | None = None
    """All its cases, each an argument for *one*, where they can be counted."""
    one: Callable[..., Outcome] | None = None

    @property
    def heavy(self) -> bool:
        return bool(self.need)

    def missing(self) -> str | None:
        """What the machine lacks for it, or None."""
        if not self.need:
            return None
        from tests.machine import CHECKS

        return next((line for word in self.need if (line := CHECKS[word]()) is not None), None)


KINDS = {
    "call": Kind("one call fails, or is done and said to have failed, or is half done, or the process dies", kinds.single, 6, (), kinds.every_call, kinds.one_call),
    "pair": Kind("two in a row, or one now and one at the next start", kinds.pair, 6, (), kinds.every_pair, kinds.one_pair),
    "broken": Kind("every call fails from one on", kinds.broken, 2),
    "full": Kind("no space from one call on, nor at the next start", kinds.full, 2),
    "cut": Kind("power cut: what was not synced is lost, or torn", kinds.cut, 6),
    "restored": Kind("a part of the log put back from an older copy, or taken away", restores.restored, 4, (), lambda *_: list(restores.OLDER | restores.GONE), restores.one_part),
    "flipped": Kind("one bit of a stored object is another", flips.flipped, 8, (), lambda *_: list(flips.OBJECTS), flips.flip_object),
    "bad write": Kind("one bit is another on its way to the disk", flips.bad_write, 4),
    "writers": Kind("a second sequencer on the same store, the lock removed", kinds.intruder, 1),
    "syscall": Kind("a system call fails or kills, by strace", syscalls.syscall, 1, ("strace",), syscalls.every_call, syscalls.one_call),
    "power": Kind("power cut on a mounted ext4", images.power, 1, ("loop",)),
    "room": Kind("a mounted ext4 without room", images.room, 1, ("loop",)),
    "twins": Kind("a copied directory is run as well", kinds.twins, 1),
}
