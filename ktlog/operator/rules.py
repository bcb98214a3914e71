"""Whose messages a log takes: what its operator said by ``ktlog admin``, durable and in effect at once.

The rules are one document, which the sequencer alone replaces. It judges every message by them when that is its turn,
so that after the answer to ``admin block`` nothing more of that instance is accepted, whichever machine it came to. The
web workers read the same document, to refuse before anything costs anybody something.

======  ====================================================================
mode    ``open``: everybody but the blocked; ``allow-list``: the allowed alone
paused  no messages are taken, for the reason given; reads and publishing go on
======  ====================================================================

An instance is a host name and stands for its subdomains too, unless a longer name says otherwise.
"""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ktlog.errors import EncodingError, MessageRejected, StoreError, UsageError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.store.documents import Document
from ktlog.tlog.encoding import parse_decimal
from ktlog.wire.actor_id import actor_domain, parse_host

OPEN, ALLOW_LIST = MODES = ("open", "allow-list")
VERSION = "1"
INSTANCES_LIMIT = 20_000
"""On both lists together."""
REASON_LIMIT = 200
"""Characters of a reason."""
LOOK_SECONDS = 0.5
"""How old what a web worker knows of a database's rules may be; the sequencer's knowledge is never old."""

LIST_BYTES = 16 << 20
"""Of a list of another server, at most."""
SUSPEND = "suspend"
SEVERITIES = ("noop", "silence", SUSPEND)
"""Of a Mastodon server's blocks, the hardest last."""

PAUSED, BLOCKED, NOT_ALLOWED = "paused", "instance_blocked", "instance_not_allowed"


@dataclass(frozen=True)
class Note:
    """Why, in the operator's words, and since when, in Unix seconds."""

    reason: str
    time: int


@dataclass(frozen=True)
class Rules:
    """What holds. blocked, allowed: by host name. paused: why nothing is taken; None when something is."""

    mode: str = OPEN
    blocked: Mapping[str, Note] = field(default_factory=dict)
    allowed: Mapping[str, Note] = field(default_factory=dict)
    paused: Note | None = None

    def check_taking(self) -> None:
        """Raises MessageRejected ``paused``."""
        if self.paused is not None:
            raise MessageRejected(PAUSED, f"this log takes no messages for now: {self.paused.reason}")

    def check_instance(self, domain: str) -> None:
        """Raises MessageRejected ``instance_blocked``, ``instance_not_allowed``."""
        if not self.blocked and self.mode == OPEN:
            return
        name = domain
        while name:
            if name in self.blocked:
                raise MessageRejected(BLOCKED, f"the operator of this log takes no messages from {domain}")
            if name in self.allowed:
                return
            name = name.partition(".")[2]
        if self.mode != OPEN:
            raise MessageRejected(
                NOT_ALLOWED, f"this log takes messages from instances that its operator has listed, not from {domain}"
            )

    def check(self, domain: str | None) -> None:
        """Both, for a message that the instance *domain* signed; of nobody's, such as a token's, the first alone."""
        self.check_taking()
        if domain is not None:
            self.check_instance(domain)


def check_name(text: str) -> str:
    """An instance as people write it, as the lists have it: a host name.

    Raises:
        UsageError: ``BadInstance``.
    """
    try:
        return parse_host(text.lower())
    except EncodingError:
        raise UsageError("BadInstance", f"{text!a} is not the host name of an instance") from None


def check_reason(text: str) -> str:
    """Raises UsageError ``BadReason``: too long, or not one line of printable text."""
    if len(text) > REASON_LIMIT or not text.isprintable():
        raise UsageError("BadReason", f"a reason is one line of at most {REASON_LIMIT} characters")
    return text


def parse_domain_blocks(data: bytes, *, every_severity: bool = False) -> tuple[list[str], int]:
    """Whom a Mastodon server blocks, by the file that it exports: names, each once; and how many others are in there.

    Its first line names the columns, ``#domain`` and ``#severity`` among them; the others are not read.

    Args:
        every_severity: those too whom it only limits (``silence``, ``noop``), not the suspended alone.

    Raises:
        UsageError: ``BadBlockList``, with the number of the first line that is wrong.
    """
    if len(data) > LIST_BYTES:
        raise UsageError("BadBlockList", f"more than {LIST_BYTES >> 20} MiB")
    severities: dict[str, set[str]] = {}
    line = 1
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        if header.count("#domain") != 1 or header.count("#severity") != 1:
            raise UsageError("BadBlockList", "the first line must name the columns #domain and #severity")
        line = rows.line_num + 1
        for row in rows:
            if row:
                name, severity = _parse_row(dict(zip(header, row, strict=True)))
                severities.setdefault(name, set()).add(severity)
            line = rows.line_num + 1
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError("BadBlockList", f"line {line}: no UTF-8") from None
    except ValueError:
        raise UsageError("BadBlockList", f"line {line}: it has not as many fields as the first line") from None
    except csv.Error as error:
        raise UsageError("BadBlockList", f"line {line}: {error}") from None
    except UsageError as error:
        raise UsageError("BadBlockList", f"line {line}: {error.message}") from None
    names = [name for name, given in severities.items() if every_severity or SUSPEND in given]
    return names, len(severities) - len(names)


def _parse_row(row: Mapping[str, str]) -> tuple[str, str]:
    severity = row["#severity"].strip().lower()
    if severity not in SEVERITIES:
        raise UsageError("BadBlockList", f"{severity!a} is no severity: {', '.join(SEVERITIES)}")
    return check_name(row["#domain"].strip()), severity


def format_rules(rules: Rules) -> bytes:
    return canonical({
        "version": VERSION, "mode": rules.mode, "blocked": _format_notes(rules.blocked),
        "allowed": _format_notes(rules.allowed),
        "paused": [_format_note(note) for note in (rules.paused,) if note is not None],
    })


def parse_rules(data: bytes | None) -> Rules:
    """The inverse of :func:`format_rules`; without a document everybody's messages are taken.

    Raises:
        EncodingError: ``BadRules``.
    """
    if data is None:
        return Rules()
    try:
        found = parse_json(data)
        paused = [_parse_note(note) for note in found["paused"]]
        if found["version"] != VERSION or found["mode"] not in MODES or len(paused) > 1:
            raise EncodingError("BadRules", "of another version, or damaged")
        return Rules(
            found["mode"], _parse_notes(found["blocked"]), _parse_notes(found["allowed"]), paused[0] if paused else None
        )
    except (EncodingError, KeyError, TypeError, AttributeError) as error:
        raise EncodingError("BadRules", f"not the rules of a log: {error}") from None


def _format_note(note: Note) -> dict[str, str]:
    return {"reason": note.reason, "time": str(note.time)}


def _parse_note(found: Any) -> Note:
    if not isinstance(found["reason"], str):
        raise EncodingError("BadRules", "a reason is no text")
    return Note(found["reason"], parse_decimal(found["time"]))


def _format_notes(notes: Mapping[str, Note]) -> dict[str, dict[str, str]]:
    return {name: _format_note(note) for name, note in notes.items()}


def _parse_notes(found: Any) -> dict[str, Note]:
    return {parse_host(name): _parse_note(note) for name, note in found.items()}


# Changes


def blocked(rules: Rules, names: list[str], note: Note) -> Rules:
    """*rules* with these instances on the block list, and not on the other."""
    return _bounded(replace(
        rules, blocked={**rules.blocked, **dict.fromkeys(names, note)}, allowed=_without(rules.allowed, names)
    ))


def allowed(rules: Rules, names: list[str], note: Note) -> Rules:
    """The same the other way around."""
    return _bounded(replace(
        rules, allowed={**rules.allowed, **dict.fromkeys(names, note)}, blocked=_without(rules.blocked, names)
    ))


def forgotten(rules: Rules, names: list[str]) -> Rules:
    """*rules* with these instances on neither list.

    Raises:
        MessageRejected: ``not_listed``.
    """
    for name in names:
        if name not in rules.blocked and name not in rules.allowed:
            raise MessageRejected(
                "not_listed", f"{name} is on neither list, so nothing was changed; `ktlog admin list` shows both"
            )
    return replace(rules, blocked=_without(rules.blocked, names), allowed=_without(rules.allowed, names))


def _without(notes: Mapping[str, Note], names: list[str]) -> dict[str, Note]:
    return {name: note for name, note in notes.items() if name not in names}


def _bounded(rules: Rules) -> Rules:
    if len(rules.blocked) + len(rules.allowed) > INSTANCES_LIMIT:
        raise MessageRejected("too_many_instances", f"the lists have room for {INSTANCES_LIMIT} instances")
    return rules


# Where they are


def load_rules(document: Document) -> Rules:
    """Raises StoreError: ``BadRules``; those of the document."""
    return _parsed(document.read(), document)


def _parsed(data: bytes | None, where: object) -> Rules:
    try:
        return parse_rules(data)
    except EncodingError as error:
        raise StoreError(
            "BadRules", f"{where}: {error.message}",
            hint="Put it back from a backup; or remove it, and block again whom you had blocked.",
        ) from None


class RulesKeeper:
    """The sequencer's: what holds now, and the one who changes it. ``rules`` may be read in any thread."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.rules = load_rules(document)

    def change(self, how: Callable[[Rules], Rules]) -> Rules:
        """Replace them, durably. Raises MessageRejected as *how* does; StoreError, Conflict: nothing changed here."""
        changed = how(self.rules)
        if changed != self.rules:
            self._document.write(format_rules(changed))
            self.rules = changed
        return changed

    def check(self, domain: str | None) -> None:
        """See ``Rules.check``."""
        self.rules.check(domain)


class RulesReader(Protocol):
    """What a web worker has of them. Safe to use from many threads."""

    def rules(self) -> Rules:
        """Raises StoreError: they cannot be read, and then nothing is taken."""


class RulesFile:
    """``RulesReader`` over the file *path*, looked at each time: a file that was replaced is read anew."""

    def __init__(self, path: Path, read: Callable[[], bytes | None]) -> None:
        self._path = path
        self._read = read
        self._known: tuple[tuple[int, int, int] | None, Rules] | None = None

    def rules(self) -> Rules:
        known = self._known
        stamp = self._stamp()
        if known is None or known[0] != stamp:
            # The stamp from before the file was read: what comes in between is read again.
            self._known = known = stamp, _parsed(self._read(), self._path)
        return known[1]

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError("InputOutput", f"{self._path}: {error.strerror}") from None
        return found.st_ino, found.st_mtime_ns, found.st_size


class RulesRow:
    """``RulesReader`` over a row of the database, read twice a second at most."""

    def __init__(
        self, where: str, read: Callable[[], bytes | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._where = where
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, Rules] | None = None

    def rules(self) -> Rules:
        known = self._known
        if known is not None and self._clock() < known[0]:
            return known[1]
        with self._lock:
            known = self._known
            if known is None or self._clock() >= known[0]:
                self._known = known = self._clock() + LOOK_SECONDS, _parsed(self._read(), self._where)
        return known[1]


class Anybody:
    """``RulesReader`` without rules, for whoever has no log's directory."""

    def rules(self) -> Rules:
        return Rules()


def check_actor(reader: RulesReader, actor: str | None) -> None:
    """What a web worker can refuse before it knows whether *actor* sent anything. Raises as ``Rules.check``."""
    reader.rules().check(None if actor is None else actor_domain(actor))
