"""One table ``[sinks.NAME]``, read strictly: every member is asked for, of one type, and none is left over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ktlog.durable import read_secret_file
from ktlog.errors import EncodingError, UsageError
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.dial import parse_loopback

MAX_SECRET_BYTES = 4096
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Settings:
    """Raises UsageError(``BadSink``) for anything that is not as it should be."""

    def __init__(self, name: str, row: Any, base: Path) -> None:
        self.name = name
        self._base = base
        self._asked = {"type", "findings"}
        if not _NAME.fullmatch(name):
            raise UsageError("BadSink", f"{name[:60]!a} is no name for a sink: small letters, digits, - and _")
        if not isinstance(row, Mapping):
            raise self.bad("it is a table [sinks.NAME]")
        self._row = row
        self.findings = self.flag("findings", True)

    def bad(self, what: str) -> UsageError:
        return UsageError("BadSink", f"the sink {self.name}: {what}", hint="docs/alarms.md lists what each kind takes.")

    def check_known(self) -> None:
        """Call when everything was asked for: a member that nobody knows is a slip of the pen, and said so."""
        unknown = sorted(self._row.keys() - self._asked)
        if unknown:
            raise self.bad(f"it has no setting {unknown[0][:60]!a}")

    def text(self, member: str, default: str | None = None) -> str:
        value = self._get(member, default)
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 2000:
            raise self.bad(f"{member} is text in one line")
        return value

    def optional(self, member: str) -> str | None:
        return self.text(member) if member in self._row else self._get(member, None, None)

    def flag(self, member: str, default: bool) -> bool:
        value = self._get(member, default)
        if not isinstance(value, bool):
            raise self.bad(f"{member} is true or false")
        return value

    def number(self, member: str, default: int, lowest: int, highest: int) -> int:
        value = self._get(member, default)
        if type(value) is not int or not lowest <= value <= highest:
            raise self.bad(f"{member} is a number from {lowest} to {highest}")
        return value

    def path(self, member: str) -> Path:
        return self._base / self.text(member)

    def secret(self, member: str) -> bytes:
        """What is in the file that *member* names, without the newline that an editor left at its end.

        Raises:
            StoreError: as :func:`ktlog.durable.read_secret_file`.
        """
        secret = read_secret_file(self.path(member), MAX_SECRET_BYTES).rstrip(b"\r\n")
        if not secret:
            raise self.bad(f"the file of {member} is empty")
        return secret

    def url(self, member: str) -> str:
        """An https URL; or, for tests and programs on the same machine, ``http://127.0.0.1:PORT/...`` where
        ``allow_loopback = true`` says that this is meant."""
        text = self.text(member)
        if self.flag("allow_loopback", False) and text.startswith("http://"):
            try:
                parse_loopback(urlsplit(text).netloc)
            except (UsageError, ValueError) as error:
                raise self.bad(f"{member}: {error}") from None
            return text
        try:
            return str(parse_https_url(text if text.count("/") > 2 else text + "/"))
        except EncodingError as error:
            raise self.bad(f"{member}: {error.message}") from None

    def _get(self, member: str, *default: Any) -> Any:
        self._asked.add(member)
        if member in self._row:
            return self._row[member]
        if not default or (default[0] is None and len(default) == 1):
            raise self.bad(f"{member} is missing")
        return default[0]
