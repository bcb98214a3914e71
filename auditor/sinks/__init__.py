"""Where alarms go, each kind in a module of its own; and how ``watch.toml`` names them.

::

    [sinks.me]
    type = "mail"                     terminal, webhook, mail, atom, mastodon
    findings = false                  whether findings of the watch go there too; true by default
    …                                 what the kind needs: docs/alarms.md

Secrets are in files that only their owner may read, and only the path stands in the settings. What an alarm says was
written by strangers: each sink escapes it for its own medium.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from auditor.outbox import Sink
from auditor.sinks.settings import Settings
from ktlog.errors import UsageError
from ktlog.wire.fetch import Fetcher

KINDS = ("atom", "mail", "mastodon", "terminal", "webhook")
TERMINAL = "terminal"
MAX_SINKS = 64

__all__ = ["KINDS", "TERMINAL", "parse_sinks"]


def parse_sinks(
    table: Mapping[str, Any], base: Path | str = ".", fetcher: Callable[[], Fetcher] = Fetcher.from_environment
) -> dict[str, Sink]:
    """The sinks of the table ``[sinks]`` of watch.toml, by name; ``terminal`` is one of them whoever names it.

    Args:
        base: the directory that relative paths start from: the one of the file.
        fetcher: makes what HTTPS requests are made with, once one is needed.

    Raises:
        UsageError: ``BadSink``.
        StoreError: a secret's file is missing, or others may read it.
    """
    if not isinstance(table, Mapping) or len(table) > MAX_SINKS:
        raise UsageError("BadSink", f"sinks are at most {MAX_SINKS} tables [sinks.NAME]")
    out = {name: _parse(name, row, Path(base), fetcher) for name, row in table.items()}
    return out if TERMINAL in out else {**out, TERMINAL: _parse(TERMINAL, {"type": TERMINAL}, Path(base), fetcher)}


def _parse(name: str, row: Any, base: Path, fetcher: Callable[[], Fetcher]) -> Sink:
    settings = Settings(name, row, base)
    kind = settings.text("type")
    if kind not in KINDS:
        raise settings.bad(f"type is one of {', '.join(KINDS)}")
    module = importlib.import_module(f"auditor.sinks.{kind}")  # late: a watch imports what it uses
    sink: Sink = module.make(settings, fetcher)
    settings.check_known()
    return sink
