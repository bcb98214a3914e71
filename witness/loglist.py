"""Lists of logs as the public witness network publishes them, ``logs/v0``.

::

    logs/v0

    # a comment
    vkey log.example.com+3af057ed+AcOM…
    origin only where it is not the key's name
    qpd 86400
    contact whom to ask

Blank lines and comments are ignored, and white space around a line; the order of the lines is fixed. A list is taken
whole or not at all. Spec: witness-network.org/log-list-format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ktlog.errors import EncodingError
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import naming, parse_decimal
from ktlog.tlog.note import Vkey, parse_vkey
from ktlog.tlog.tree import EMPTY_ROOT
from witness.decide import LOG_KEY_ALGORITHMS

HEADER = "logs/v0"
MAXIMUM_PER_DAY = 2**31 - 1
MAXIMUM_BYTES = 64 << 20
"""Of a list. 40,000 logs, each with a long contact, have a quarter of that."""


@dataclass(frozen=True)
class ListedLog:
    """One log of a list. per_day: add-checkpoint requests. contact: for people."""

    origin: str
    vkey: Vkey
    per_day: int
    contact: str


def parse_log_list(data: bytes) -> tuple[ListedLog, ...]:
    """The logs of a list, in its order.

    Raises:
        EncodingError: ``BadLogList``, with the line; ``NameCollision``: an origin is listed twice, and with two keys.
    """
    lines = _lines(data)
    number, header = next(lines, (0, ""))
    if header != HEADER:
        raise EncodingError("BadLogList", f"line {number}: a log list begins with {HEADER}")
    logs: dict[str, ListedLog] = {}
    for number, line in lines:
        with naming("BadLogList", f"line {number}"):
            log = _parse_log(line, lines)
        if logs.setdefault(log.origin, log).vkey != log.vkey:
            raise EncodingError("NameCollision", f"line {number}: {log.origin!a} is listed with another key already")
    return tuple(logs.values())


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise EncodingError("BadLogList", "a log list is UTF-8 text") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, line


def _parse_log(line: str, lines: Iterator[tuple[int, str]]) -> ListedLog:
    vkey = parse_vkey(_value(line, "vkey"))
    if vkey.algorithm not in LOG_KEY_ALGORITHMS:
        raise EncodingError("BadLogList", f"a key of type {vkey.algorithm:02x} makes cosignatures, and no log's")
    line = _next(lines)
    origin = vkey.name
    if line.startswith("origin "):
        origin, line = _value(line, "origin"), _next(lines)
    format_checkpoint(Checkpoint(origin, 0, EMPTY_ROOT))  # is it an origin?
    if not origin.isprintable():  # it is shown on terminals, which take some of these for orders
        raise EncodingError("BadLogList", f"the origin {origin!a} holds a control character")
    per_day = parse_decimal(_value(line, "qpd"), MAXIMUM_PER_DAY)
    if per_day == 0:
        raise EncodingError("BadLogList", "qpd is at least 1")
    return ListedLog(origin, vkey, per_day, _value(_next(lines), "contact"))


def _value(line: str, name: str) -> str:
    found, _, value = line.partition(" ")
    if found != name or not value.strip():
        raise EncodingError("BadLogList", f"{name} and its value should be here, not {line[:80]!a}")
    return value.strip()


def _next(lines: Iterator[tuple[int, str]]) -> str:
    return next(lines, (0, "the end of the list"))[1]
