"""What a daemon says on standard error: one line for each thing that happened, for people or for machines.

    configure("auto", "info")
    log.info("cosigned", extra=fields(origin="example.com/log", size=7))

====== ==============================================================================
plain  for a terminal: time, level, logger, message, then the fields
logfmt ``time=… level=info logger=ktlog.witness msg="…" origin=…``; the default elsewhere
json   the same, one object a line
====== ==============================================================================

Whatever strangers sent is escaped in all three: a line is a line, and has no control characters. The fields of a record
are the caller's choice, and must hold nothing that is secret.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

from ktlog.errors import KtlogError, UsageError

FORMATS = ("auto", "logfmt", "json", "plain")
LEVELS = ("debug", "info", "warning", "error")

_MEMBERS = frozenset({"time", "level", "logger", "msg", "exception"})
_BARE = re.compile(r"[A-Za-z0-9_./:+@~-]+")
_OFFERED = re.compile(r"[A-Za-z0-9_-]{8,64}")


def fields(**values: Any) -> dict[str, Any]:
    """For ``extra`` of a logging call: what belongs to the record beside its message. None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process to *stream*, standard error, as lines of that form.

    Raises:
        UsageError: ``BadLogFormat``, ``BadLogLevel``.
    """
    stream = sys.stderr if stream is None else stream
    if form not in FORMATS:
        raise UsageError("BadLogFormat", f"{form!a} is none of {', '.join(FORMATS)}")
    if level not in LEVELS:
        raise UsageError("BadLogLevel", f"{level!a} is none of {', '.join(LEVELS)}")
    if form == "auto":
        form = "plain" if stream.isatty() else "logfmt"
    # What no form shows is not found out for every line; see "Optimization" in the documentation of logging.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = logging.logAsyncioTasks = False
    logging._srcfile = None  # type: ignore[attr-defined]  # the documented way
    handler = _Lines(stream)
    handler.setFormatter({"logfmt": _Logfmt, "json": _Json, "plain": _Plain}[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def configure_daemon(form: str, level: str) -> None:
    """:func:`configure` for a process of a log: of libraries only what is a warning, but for at debug.

    Raises:
        UsageError: ``BadLogFormat``, ``BadLogLevel``.
    """
    configure(form, level)
    if level == "info":
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("ktlog").setLevel(logging.INFO)
    _said.lines = form in ("logfmt", "json")


def are_lines() -> bool:
    """Whether somebody chose a form for machines, so that nothing else may be on standard error."""
    return _said.lines


def say(text: str, level: int = logging.INFO, **values: Any) -> None:
    """Tell whoever looks at standard error; as a line of the log where somebody chose the form of these."""
    if _said.lines:
        logging.getLogger("ktlog").log(level, text, extra=fields(**values))
    else:
        print(f"ktlog: {text}", file=sys.stderr, flush=True)


def say_why(error: KtlogError) -> None:
    """That *error* ends the process."""
    if _said.lines:
        say(error.message, logging.CRITICAL, error=error.name, hint=error.hint or None)
    else:
        say(error.diagnostics())


class _Said:
    """How :func:`say` speaks in this process."""

    lines = False


_said = _Said()


def adopt(name: str) -> None:
    """Have a logger that brought its own handlers write as all others do."""
    logger = logging.getLogger(name)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True


def toggle_debug(level: str) -> str:
    """Say more, or, if more is said already, as much as *level* again. Returns the level now."""
    root = logging.getLogger()
    now = level if root.level == logging.DEBUG else "debug"
    root.setLevel(now.upper())
    return now


class RequestIds:
    """Names for requests, unlike those of any other process that ran here."""

    def __init__(self) -> None:
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    def take(self, offered: str | None = None) -> str:
        """A new one; or the one that the proxy before us gave, if it looks like one."""
        if offered is not None and _OFFERED.fullmatch(offered):
            return offered
        return f"{self._prefix}-{next(self._numbers):x}"


@contextmanager
def lines_at_once() -> Iterator[None]:
    """What this thread logs within is written at the end, in one piece.

    A write lets go of the interpreter, and whoever writes line by line waits for it again and again.
    """
    outer = _held.lines
    _held.lines = held = []
    try:
        yield
    finally:
        _held.lines = outer
        for handler in dict.fromkeys(handler for handler, _ in held):
            handler.put(line for writer, line in held if writer is handler)


class _Held(threading.local):
    """The lines of a thread that keeps them back, each with what will write it."""

    lines: list[tuple[_Lines, str]] | None = None


_held = _Held()


class _Lines(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        held = _held.lines
        if held is None:
            super().emit(record)
            return
        try:
            held.append((self, self.format(record) + self.terminator))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nobody is told of a line that could not be written: the place to tell it is the one that failed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def put(self, lines: Iterable[str]) -> None:
        with self.lock, suppress(OSError, ValueError):  # standard error may be gone; what was logged, did happen
            self.stream.write("".join(lines))
            self.flush()


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        found = _fields(record)
        if record.exc_info or not _MEMBERS.isdisjoint(found):
            return " ".join([f"{name}={_word(value)}" for name, value in _members(self, record).items()])
        # What that makes of most of them, without the dictionary.
        words = [f"{name}={_word(value)}" for name, value in found.items()]
        return " ".join((
            f"time={_time(record)} level={record.levelname.lower()} logger={_quoted(record.name)}"
            f" msg={_quoted(record.getMessage())}", *words,
        ))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_members(self, record), default=str)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        more = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        level = record.levelname.lower()
        line = f"{_time(record)} {level} {record.name}: {_printable(record.getMessage())}{more}"
        if not record.exc_info:
            return line
        # A traceback is for people, who read it in lines: set in, so that nothing it quotes looks like one of ours.
        return "\n".join((line, *(f"  {_printable(one)}" for one in self.formatException(record.exc_info).split("\n"))))


def _members(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    members = {
        "time": _time(record), "level": record.levelname.lower(), "logger": record.name, "msg": record.getMessage(),
        **_fields(record),
    }
    if record.exc_info:
        members["exception"] = formatter.formatException(record.exc_info)
    return members


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    second = int(record.created)
    return f"{_second(second)}.{int((record.created - second) * 1000):03d}Z"


@lru_cache(4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _word(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return str(value)
    if kind is float:
        return f"{value:.6f}"
    return ("true" if value else "false") if kind is bool else _quoted(str(value))


@lru_cache(1024)  # the same words all day, and at most so many of strangers'
def _quoted(text: str) -> str:
    # Its escapes are JSON's, and it is ASCII: no terminal and no parser of lines finds anything else in it.
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )
