"""What a verifier must remember beside what every witness does, in the same database.

* Which logs it replays, and where they are read.
* The largest checkpoint that each of them signed and showed: one that contradicts it convicts, also after a restart.
* When each input checkpoint was first seen, for as long as an output leaf may be judged by it.
* Up to where a map's log was checked, and from which leaf on it was seen in time and derived.
* That an entry and its published text were found to hold, as a keyed digest: no text is kept, and after a restart
  no commitment is computed twice.
* The verdict on a log that was caught. Nothing takes it back.

Spec: directory map §6.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ktlog.client.verify import Head, Log, open_remembered
from ktlog.errors import UsageError
from ktlog.keymap.output import map_origin
from ktlog.tlog.note import Vkey
from witness.store import WitnessStore

SIGHTINGS_SECONDS = 86_400
"""How long a sighting of an input checkpoint is kept, but for the newest of those older than that."""


@dataclass(frozen=True)
class Replay:
    """A log that this verifier replays. url: where it is read, without a slash at the end."""

    origin: str
    url: str
    secret: bytes
    vkeys: tuple[Vkey, ...]
    map_vkeys: tuple[Vkey, ...]
    retired: tuple[Vkey, ...] = ()
    """Keys of the log that it was trusted under before: what they signed is still what was seen."""
    map_retired: tuple[Vkey, ...] = ()

    @property
    def map_origin(self) -> str:
        return map_origin(self.origin)

    @property
    def log(self) -> Log:
        return Log(self.origin, self.vkeys, self.url, self.retired)

    @property
    def map_log(self) -> Log:
        return Log(self.map_origin, self.map_vkeys, f"{self.url}/map", self.map_retired)


@dataclass(frozen=True)
class Checked:
    """A map's log as far as every leaf was checked.

    timely_from: the first leaf from which on each was seen when it was new, and was of its time.
    derived_from: the first leaf from which on each map was derived here.
    """

    head: Head
    timely_from: int
    derived_from: int


@dataclass(frozen=True)
class Verdict:
    """Why nothing is signed for a map any more. document: the evidence file."""

    name: str
    message: str
    recorded: int
    document: bytes


class ReplayStore:
    """The verifier's part of a :class:`WitnessStore`. As safe to use from many threads."""

    def __init__(self, store: WitnessStore) -> None:
        self._store = store

    # -- which logs

    def replays(self) -> tuple[Replay, ...]:
        """By origin; none in the directory of a witness."""
        if self._store.schema_version < 2:
            return ()
        with self._store.reading() as database:
            rows = database.execute("SELECT origin, url, secret FROM replays ORDER BY origin").fetchall()
        return tuple(
            self._replay(origin, url, secret) for origin, url, secret in rows
        )

    def _replay(self, origin: str, url: str, secret: bytes) -> Replay:
        log, map_log = (self._store.log(name) for name in (origin, map_origin(origin)))
        if log is None or map_log is None:
            raise AssertionError("a log is replayed that has no key")  # its row refers to both
        return Replay(origin, url, secret, log.vkeys, map_log.vkeys, log.retired, map_log.retired)

    def add_replay(
        self, origin: str, url: str, vkeys: Mapping[str, Sequence[Vkey]], now: int, *, again: bool = False
    ) -> tuple[Vkey, ...]:
        """Replay *origin*, read at *url*; *vkeys* by origin, of the log and of its map. Returns the new keys.

        With *again*, keys that were retired are trusted as before.

        Raises:
            UsageError: ``WitnessDirectory``: a witness does not become a verifier. ``KeyCollision``. ``KeyRetired``.
        """
        known = {replay.origin for replay in self.replays()}
        if self._store.schema_version < 2 or (not known and self._store.count_logs()):
            raise UsageError(
                "WitnessDirectory", "this directory holds a witness, and clients count verifiers and witnesses apart",
                hint="Make a verifier in a directory of its own: ktlog-witness init --dir V --name NAME",
            )
        added: tuple[Vkey, ...] = ()
        with self._store.writing() as database:
            for name in (origin, map_origin(origin)):
                added += self._store.insert_log(database, name, vkeys[name], now, again=again)
            database.execute(
                "INSERT INTO replays VALUES (?, ?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE SET url = excluded.url",
                (origin, map_origin(origin), url, os.urandom(32), now),
            )
        return added

    # -- what was seen

    def head(self, log: Log) -> tuple[Head, int] | None:
        """The largest head seen of a log, and when.

        Raises:
            StoreError: ``HeadOfAnotherKey``.
        """
        with self._store.reading() as database:
            row = database.execute("SELECT note, seen FROM heads WHERE origin = ?", (log.origin,)).fetchone()
        return None if row is None else (open_remembered(row[0], log), row[1])

    def note_head(self, head: Head, now: int, *, sighting: bool = False) -> None:
        """Remember a head that is larger than the one before; *sighting*: and the time, of an input log's."""
        with self._store.writing() as database:
            database.execute(
                "INSERT INTO heads VALUES (?, ?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE SET "
                "size = excluded.size, root = excluded.root, seen = excluded.seen, note = excluded.note "
                "WHERE excluded.size > size",
                (head.origin, head.size, head.root, now, head.note),
            )
            if sighting:
                database.execute("INSERT OR IGNORE INTO sightings VALUES (?, ?, ?)", (head.origin, head.size, now))
                database.execute(
                    "DELETE FROM sightings WHERE origin = ?1 AND size < (SELECT coalesce(max(size), 0) "
                    "FROM sightings WHERE origin = ?1 AND seen < ?2)", (head.origin, now - SIGHTINGS_SECONDS),
                )

    def size_seen(self, origin: str, until: int) -> int:
        """The size of the largest input checkpoint seen until then, in Unix seconds; 0 for none."""
        with self._store.reading() as database:
            row = database.execute(
                "SELECT size FROM sightings WHERE origin = ? AND seen <= ? ORDER BY size DESC LIMIT 1", (origin, until)
            ).fetchone()
        return 0 if row is None else row[0]

    def first_seen(self, origin: str, leaf_index: int) -> int | None:
        """When a checkpoint was first seen that covers an entry; later than that for one seen long ago."""
        with self._store.reading() as database:
            row = database.execute(
                "SELECT seen FROM sightings WHERE origin = ? AND size > ? ORDER BY size LIMIT 1", (origin, leaf_index)
            ).fetchone()
        return None if row is None else row[0]

    # -- what was checked

    def checked(self, log: Log) -> Checked | None:
        """Up to where a map's log was checked.

        Raises:
            StoreError: ``HeadOfAnotherKey``.
        """
        with self._store.reading() as database:
            row = database.execute(
                "SELECT note, timely_from, derived_from FROM checked WHERE origin = ?", (log.origin,)
            ).fetchone()
        return None if row is None else Checked(open_remembered(row[0], log), row[1], row[2])

    def note_checked(self, checked: Checked) -> None:
        head = checked.head
        with self._store.writing() as database:
            database.execute(
                "INSERT INTO checked VALUES (?, ?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE SET size = excluded.size,"
                " timely_from = excluded.timely_from, derived_from = excluded.derived_from, note = excluded.note"
                " WHERE excluded.size > size",
                (head.origin, head.size, checked.timely_from, checked.derived_from, head.note),
            )

    def digests(self, origin: str, start: int, end: int) -> dict[int, bytes]:
        """By leaf index, of the entries [start, end) that were found to hold."""
        with self._store.reading() as database:
            return dict(database.execute(
                "SELECT leaf_index, digest FROM digests WHERE origin = ? AND leaf_index >= ? AND leaf_index < ?",
                (origin, start, end),
            ))

    def note_digests(self, origin: str, digests: Mapping[int, bytes]) -> None:
        with self._store.writing() as database:
            database.executemany(
                "INSERT INTO digests VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET digest = excluded.digest",
                [(origin, leaf_index, digest) for leaf_index, digest in digests.items()],
            )

    def forget_digests(self, origin: str, leaf_indexes: Iterable[int]) -> None:
        """Of entries whose text was erased."""
        with self._store.writing() as database:
            database.executemany(
                "DELETE FROM digests WHERE origin = ? AND leaf_index = ?",
                [(origin, leaf_index) for leaf_index in leaf_indexes],
            )

    # -- who was caught

    def verdict(self, origin: str) -> Verdict | None:
        """Why nothing is signed for the map's log *origin* any more."""
        with self._store.reading() as database:
            row = database.execute(
                "SELECT name, message, recorded, document FROM verdicts WHERE origin = ?", (origin,)
            ).fetchone()
        return None if row is None else Verdict(*row)

    def verdicts(self) -> tuple[tuple[Replay, Verdict], ...]:
        """Every log that was caught, by origin."""
        found = ((replay, self.verdict(replay.map_origin)) for replay in self.replays())
        return tuple((replay, verdict) for replay, verdict in found if verdict is not None)

    def record_verdict(self, origin: str, verdict: Verdict) -> None:
        """The first verdict stays."""
        with self._store.writing() as database:
            database.execute(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?) ON CONFLICT (origin) DO NOTHING",
                (origin, verdict.name, verdict.message, verdict.recorded, verdict.document),
            )
