"""Alarms on standard error of the watch: a terminal, or the journal of systemd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from auditor.alarm import plain_lines
from auditor.outbox import Delivered
from auditor.sinks.settings import Settings
from ktlog.errors import Unreachable
from ktlog.wire.fetch import Fetcher


class Terminal:
    """Args: stream: None for standard error as it is when an alarm comes."""

    rewrites = False

    def __init__(self, name: str, findings: bool = True, stream: TextIO | None = None) -> None:
        self.name = name
        self.findings = findings
        self._stream = stream

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None:
        """Raises Unreachable(``Refused``) when there is nobody to read it."""
        first, _, *rest = plain_lines(document, reasons)
        text = "\n".join([f"ALARM: {first}", *(f"  {line}" for line in rest)]) + "\n"
        stream = self._stream or sys.stderr
        try:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            raise Unreachable("Refused", f"standard error takes nothing: {type(error).__name__}") from None


def make(settings: Settings, fetcher: Callable[[], Fetcher]) -> Terminal:
    return Terminal(settings.name, settings.findings)
