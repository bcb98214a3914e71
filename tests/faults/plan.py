"""What is to go wrong, said so that it can be drawn from a seed and repeated."""

from __future__ import annotations

import re
from dataclasses import dataclass

WRITES = ("write", "db.write")
"""Calls that carry bytes, which can also be torn or flipped."""

MODES = ("fail", "done", "short", "torn", "flip", "kill", "cut")


@dataclass(frozen=True)
class Fault:
    """One call that goes wrong: the *occurrence*-th *call* on a file of the kind *file* in one process.

    mode: "fail", it is not done and says so; "done", it is done and says that it failed; "short", half is written
    and said to be; "torn", half is written and it says that it failed; "flip", one bit of what is written is another,
    and nobody says so; "kill", the process dies before it by SIGKILL; "cut", the power does, and what was not
    synced is lost, as *drop* says.
    error: the name of an errno, for those that say so.
    also: the call after it goes wrong too, in this mode ("" for not): the double fault of requirement R3.
    lasting: every call on any file goes wrong from then on, as on a full or broken disk.
    drop: of a cut: a seed for what is kept of what was not synced.
    """

    call: str
    file: str
    occurrence: int
    mode: str
    error: str = "EIO"
    also: str = ""
    lasting: bool = False
    drop: int = 0

    def __str__(self) -> str:
        more = f", then the next {self.also}" if self.also else ""
        more += ", and all after it" if self.lasting else ""
        return f"{self.call} {self.file} #{self.occurrence} {self.mode} ({self.error}{more})"


_TEMPORARY = re.compile(r"[0-9a-f]{16}\.tmp")
_TILE = re.compile(r"^(tiles/(?:map/)?tile/[^/]+)/.*")


def kind_of_file(path: str) -> str:
    """A file's path below the log's directory, with what differs from run to run left out.

    >>> kind_of_file("tiles/tile/0/000.p/.5.0123456789abcdef.tmp")
    'tiles/tile/0/*.tmp'
    """
    named = _TEMPORARY.sub("tmp", path) or "."
    found = _TILE.match(named)
    if found is None:
        return named
    return f"{found[1]}/*{'.tmp' if named.endswith('.tmp') else ''}"
