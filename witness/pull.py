"""Following the logs of a published list: logs are added, and nothing that is there is changed or taken away.

A list is written by somebody else. What it can do here is to add a log that is unknown, and to set how often the logs
that lists have added may submit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from ktlog import durable
from ktlog.errors import StoreError, Unreachable, UsageError
from ktlog.tlog.note import parse_vkey
from ktlog.wire.fetch import Fetcher
from witness.loglist import MAXIMUM_BYTES, ListedLog
from witness.reading import is_retired
from witness.store import WitnessStore

FETCH_SECONDS = 60.0

#: Logs added in one transaction: few enough that a daemon beside us does not wait.
CHUNK = 500


@dataclass(frozen=True)
class Pulled:
    """What became of a list. added: origins. warnings: what somebody should look at, in sentences."""

    listed: int
    added: tuple[str, ...]
    warnings: tuple[str, ...]


def read_list(source: str, fetcher: Fetcher) -> bytes:
    """The bytes at *source*, an https URL or a file's path.

    Raises:
        Unreachable: see Fetcher; ``BadStatus``. StoreError: the file cannot be read. UsageError: ``BadSource``.
    """
    if source.startswith("https://"):
        response = fetcher.get(source, max_bytes=MAXIMUM_BYTES)
        if response.status != 200:
            raise Unreachable("BadStatus", f"{source} answers {response.status}")
        return response.body
    if "://" in source:
        raise UsageError("BadSource", f"{source}: a list is read from an https URL or from a file")
    data = durable.read_file(source)
    if data is None:
        raise StoreError("MissingStore", f"{source}: no such file")
    return data


def pull(store: WitnessStore, logs: Sequence[ListedLog], source: str, now: int) -> Pulled:
    """Follow *logs*, found at *source*. Doing it again changes nothing; half done, it can be done again.

    Raises:
        StoreError: the record cannot be written.
    """
    own = {parse_vkey(vkey).public_key for vkey in store.vkeys}
    added: list[str] = []
    warnings: list[str] = []
    for at in range(0, len(logs), CHUNK):
        with store.writing() as database:
            for log in logs[at : at + CHUNK]:
                if store.name in (log.origin, log.vkey.name) or log.vkey.public_key in own:
                    warnings.append(f"{log.origin}: not added, it has the name or the key of this witness")
                else:
                    _pull_one(database, log, source, now, added, warnings)
    warnings += _unlisted(store, {log.origin for log in logs}, source)
    return Pulled(len(logs), tuple(added), tuple(warnings))


def _pull_one(
    database: sqlite3.Connection, log: ListedLog, source: str, now: int, added: list[str], warnings: list[str]
) -> None:
    keys = {vkey for (vkey,) in database.execute("SELECT vkey FROM log_keys WHERE origin = ?", (log.origin,))}
    limited = not keys  # what an operator added by hand, no list limits
    if not keys:
        WitnessStore.insert_log(database, log.origin, [log.vkey], now)
        added.append(log.origin)
    elif str(log.vkey) not in keys:
        warnings.append(
            f"{log.origin}: the list has another key, {log.vkey.name}+{log.vkey.key_id.hex()}, which is NOT trusted."
            " If the log's operator confirms it, use add-log"
        )
        return
    else:
        if is_retired(database, log.origin, log.vkey):
            warnings.append(
                f"{log.origin}: the list still has {log.vkey.name}+{log.vkey.key_id.hex()}, which was retired here and"
                " stays so"
            )
        limited = database.execute("SELECT 1 FROM log_limits WHERE origin = ?", (log.origin,)).fetchone() is not None
    if limited:
        WitnessStore.insert_limit(database, log.origin, source, log.per_day, log.contact)


def _unlisted(store: WitnessStore, listed: set[str], source: str) -> list[str]:
    with store.reading() as database:
        before = {origin for (origin,) in database.execute(
            "SELECT origin FROM log_limits WHERE source = ?", (source,)
        )}
    return [f"{origin}: no longer in the list, and followed all the same" for origin in sorted(before - listed)]
