"""The prefilled log that the benchmarks share: made once, then used again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ktlog.bench.mapped import build
from ktlog.bench.names import actor_name
from ktlog.config import Settings, load_settings
from ktlog.errors import UsageError
from ktlog.operator.stores import open_log


def prefilled(directory: Path, entries: int, told: Callable[[int], None] = lambda done: None) -> Settings:
    """The log in *directory* that begins with *entries* entries, each by an actor of its own; made if it is not there.

    Args:
        told: is called with the number of entries so far.

    Raises:
        UsageError: ``NotPrefilled``: what is there is no such log, or has fewer.
        StoreError: those of making it.
    """
    if not (directory / "ktlog.toml").exists():
        return build(directory, entries, told)
    settings = load_settings(directory)
    with closing(open_log(settings)) as store:  # for writing: one that older code made is brought up to date
        if store.actor(actor_name(entries - 1)) is None:
            raise UsageError(
                "NotPrefilled", f"the log in {directory} was not filled with {entries} entries to be measured",
                hint="Choose another directory, or the --entries that it was made with.",
            )
    return settings
