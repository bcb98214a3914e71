"""What a client remembers between lookups: heads, actors, and which actor a handle meant.

::

    DIR/                   mode 0700
      domains.toml         which log serves which domain; written by you, never by the library
      heads/ORIGIN.json    the largest head of each log that every check was passed against
      actors/….json        how much of an actor's history was verified, by log and actor; for a log with
                           a map the last answer, with the log's signature, ready to be held against it
      maps/ORIGIN.json     a map's configuration and its newest leaf, with the log's signature
      handles/….json       the actor id that a handle meant when it was first looked up
      keys/ORIGIN.jsonl    how the log's keys were replaced since the policy was written, as the log told it
      convicted/ORIGIN.json   evidence against a log that forked; nothing of it is believed any more
      lock                 held while anything is written

Every file is replaced in one step, so a reader sees the old state or the new. A file that cannot be
read is an error and never an empty memory: forgetting is what an attacker would want.
"""

from __future__ import annotations

import hashlib
import os
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ktlog.durable import FileLock, read_file, write_atomic
from ktlog.errors import Conflict, EncodingError, Forked, Invalid, Stale, StoreError, UsageError
from ktlog.keymap.evidence import parse_map_evidence
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal
from ktlog.tlog.evidence import parse_evidence
from ktlog.wire.actor_id import parse_host

LOCK_TIMEOUT_SECONDS = 20.0
DOMAINS_FILE = "domains.toml"

_HEAD, _ACTOR, _HANDLE = "ktlog-head/v1", "ktlog-actor/v1", "ktlog-handle/v1"
_MAP, _MAPPED = "ktlog-map/v1", "ktlog-mapped-actor/v1"
_LONGEST_NAME_BYTES = 180
_PARTS = ("heads", "actors", "maps", "handles", "keys", "convicted")


@dataclass(frozen=True)
class ActorMemory:
    """An actor as last verified.

    Attributes:
        tree_size: of the checkpoint it was verified against.
        generation: as the directory map counts them.
        history: (leaf index, leaf hash) of every published message that touched the actor, in order.
        key_ids: of the active keys.
    """

    tree_size: int
    generation: int
    history: tuple[tuple[int, bytes], ...]
    key_ids: tuple[str, ...]


@dataclass(frozen=True)
class MapMemory:
    """What is remembered of a log's map.

    config: leaf 0 of its output log. newest: the newest leaf that was relied on, as
    :func:`ktlog.keymap.evidence.leaf_statement` makes it; None before the first answer.
    """

    config: bytes
    newest: bytes | None


def check_history(actor_id: str, remembered: ActorMemory, found: ActorMemory) -> None:
    """Check that two verified histories of one actor do not contradict each other.

    Both are said to be complete for their tree size, so below the smaller size they are equal. A
    contradiction shows that the log left something out, then or now. It is no portable evidence:
    the answers are not signed.

    Raises:
        Stale: ``ActorRolledBack``, a message that was shown before is missing now.
        Invalid: ``HistoryRewritten``, a message is shown now that was left out before.
    """
    size = min(remembered.tree_size, found.tree_size)
    before = {row for row in remembered.history if row[0] < size}
    after = {row for row in found.history if row[0] < size}
    where = "To start over with this actor, move its file out of actors/ in the state directory."
    if missing := sorted(before - after):
        raise Stale(
            "ActorRolledBack",
            f"the log left out entry {missing[0][0]} of {actor_id}, which it showed before",
            hint=f"Do not use these keys: a revocation may be hidden. {where}",
        )
    if added := sorted(after - before):
        raise Invalid(
            "HistoryRewritten",
            f"the log now shows entry {added[0][0]} of {actor_id}, which it left out before",
            hint=f"An earlier answer was incomplete. {where}",
        )


def parse_domains(domains: Mapping[str, str], where: str) -> dict[str, str]:
    """Which log serves which domain; host names in lower case.

    Raises:
        UsageError: ``BadDomains``; *where* says whose mistake it is.
    """
    parsed = {}
    for domain, origin in domains.items():
        if not isinstance(domain, str) or not isinstance(origin, str):
            raise UsageError("BadDomains", f"{where}: domain and origin are both text")
        try:
            host = parse_host(domain.lower())
        except EncodingError as error:
            raise UsageError("BadDomains", f"{where}: {error.message}") from None
        if not origin or "/" in origin:
            raise UsageError(
                "BadDomains", f"{where}: {ascii(origin)}, for {host}, is not the origin of a log",
                hint="An origin is a bare name, such as keys.example.social: drop https:// and every slash.",
            )
        parsed[host] = origin
    return parsed


class TrustStore:
    """The state directory. Usable from many threads and processes at once.

    Raises:
        StoreError: "UnsafeState" when others may write to the directory, or it is somebody else's; otherwise as
            :mod:`ktlog.durable`.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).expanduser()
        parts = [self.directory, *(self.directory / name for name in _PARTS)]
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in parts[1:]:
                part.mkdir(mode=0o700, exist_ok=True)
            found = [(part, part.stat()) for part in parts]
        except OSError as error:
            raise StoreError(
                "BadState", f"{self.directory} cannot be used as the state directory: {error.strerror}"
            ) from error
        for part, status in found:
            _check_own(part, status)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the state's lock; waits for others.

        Raises:
            StoreError: "Locked" after LOCK_TIMEOUT_SECONDS.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        lock = FileLock(self.directory / "lock")
        pause = 0.001
        while True:
            try:
                lock.acquire()
                break
            except StoreError as error:
                if error.name != "Locked" or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        try:
            yield
        finally:
            lock.release()

    def domains(self) -> dict[str, str]:
        """Domain -> origin, from domains.toml; empty without the file.

        Raises:
            UsageError: "BadDomains".
        """
        path = self.directory / DOMAINS_FILE
        data = read_file(path)
        if data is None:
            return {}
        try:
            document = tomllib.loads(data.decode("utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError("BadDomains", f"{path}: {error}") from None
        table = document.get("domains")
        if document.keys() != {"domains"} or not isinstance(table, dict) or not all(
            isinstance(origin, str) for origin in table.values()
        ):
            raise UsageError(
                "BadDomains", f"{path} must hold one table of strings",
                hint='Like this:\n[domains]\n"example.social" = "keys.example.social"',
            )
        return parse_domains(table, str(path))

    # Convictions

    def convict(self, origin: str, evidence: bytes) -> Path:
        """Remember for good that *origin* forked; the first evidence stays."""
        path = self._path("convicted", origin)
        if read_file(path) is None:
            write_atomic(path, evidence, mode=0o600)
        return path

    def check_not_convicted(self, origin: str) -> None:
        """Refuse a log that was once caught here.

        Raises:
            Forked: ``Convicted``, with the evidence.
            StoreError: ``BadState``, the file is not evidence against this log. The log stays refused.
        """
        path = self._path("convicted", origin)
        evidence = _read_own(path)
        if evidence is None:
            return
        try:
            named = _accused(evidence)
        except (EncodingError, Invalid) as error:
            raise StoreError("BadState", f"{path} is damaged: {error}") from None
        if named != origin:
            raise StoreError("BadState", f"{path} is damaged: about something else")
        raise Forked(
            "Convicted", f"{origin} was caught before: it signed what cannot both be true",
            hint=f"Nothing from this log is believed, and it was not asked. The evidence is in {path}. Only a person"
                 " can decide to trust this log again: look into what happened, then remove that file.",
            evidence=evidence,
        )

    # Heads

    def head(self, origin: str) -> bytes | None:
        """The signed note of the largest head verified, or None before the first lookup."""
        return self._read(self._path("heads", origin), _HEAD, {"origin": origin})

    def save_head(self, origin: str, note: bytes) -> None:
        """Replace the head. The caller holds the lock and has compared it with the stored one."""
        self._write(self._path("heads", origin), _HEAD, {"origin": origin, "note": encode_base64(note)})

    # Actors

    def actor(self, origin: str, actor_id: str) -> ActorMemory | None:
        """What was verified of an actor in one log, or None."""
        path = self._path("actors", f"{origin} {actor_id}")
        return self._read(path, _ACTOR, {"origin": origin, "actor-id": actor_id})

    def save_actor(self, origin: str, actor_id: str, memory: ActorMemory) -> None:
        """Replace what is remembered of an actor. The caller holds the lock."""
        self._write(self._path("actors", f"{origin} {actor_id}"), _ACTOR, {
            "origin": origin, "actor-id": actor_id, "tree-size": str(memory.tree_size),
            "generation": str(memory.generation), "key-ids": list(memory.key_ids),
            "history": [[str(index), encode_base64(leaf_hash)] for index, leaf_hash in memory.history],
        })

    # Maps

    def map(self, origin: str) -> MapMemory | None:
        """What is remembered of the map *origin* (``O/map``)."""
        return self._read(self._path("maps", origin), _MAP, {"origin": origin})

    def save_map(self, origin: str, memory: MapMemory) -> None:
        """Replace what is remembered of a map. The caller holds the lock."""
        self._write(self._path("maps", origin), _MAP, {
            "origin": origin, "config": encode_base64(memory.config),
            "newest": None if memory.newest is None else encode_base64(memory.newest),
        })

    def mapped_actor(self, origin: str, actor_id: str) -> bytes | None:
        """The last proven answer about an actor, as :func:`ktlog.keymap.evidence.actor_statement` makes it."""
        path = self._path("actors", f"{origin} {actor_id}")
        return self._read(path, _MAPPED, {"origin": origin, "actor-id": actor_id})

    def save_mapped_actor(self, origin: str, actor_id: str, statement: bytes, shown: Mapping[str, Any]) -> None:
        """Replace the last proven answer. The caller holds the lock. shown: for people, never read back."""
        self._write(self._path("actors", f"{origin} {actor_id}"), _MAPPED, {
            "origin": origin, "actor-id": actor_id, "statement": encode_base64(statement), "shown": dict(shown),
        })

    # Keys

    def key_changes(self, origin: str) -> bytes | None:
        """The lines about the keys of the log *origin* that were relied on, or None."""
        return _read_own(self._path("keys", origin).with_suffix(".jsonl"))

    def save_key_changes(self, origin: str, lines: bytes) -> None:
        """Replace them by more. The caller holds the lock."""
        write_atomic(self._path("keys", origin).with_suffix(".jsonl"), lines, mode=0o600)

    # Handles

    def pinned(self, handle: str) -> str | None:
        """The actor id that *handle* ("@user@domain") is pinned to, or None."""
        return self._read(self._path("handles", handle), _HANDLE, {"handle": handle})

    def check_pin(self, handle: str, actor_id: str) -> None:
        """Refuse another actor id than the pinned one.

        Raises:
            Conflict: "HandleChanged"; ``stored`` is the pinned id.
        """
        stored = self.pinned(handle)
        if stored is not None and stored != actor_id:
            raise Conflict(
                "HandleChanged", f"{handle} meant {stored} before and means {actor_id} now",
                hint="Ask the person through another channel. If it is right, remove"
                     f" {self._path('handles', handle)} and look up again.",
                stored=stored,
            )

    def pin(self, handle: str, actor_id: str) -> None:
        """Pin a handle that is not pinned yet. The caller holds the lock.

        Raises:
            Conflict: as :meth:`check_pin`.
        """
        self.check_pin(handle, actor_id)
        if self.pinned(handle) is None:
            self._write(self._path("handles", handle), _HANDLE, {"handle": handle, "actor-id": actor_id})

    # Files

    def _path(self, kind: str, name: str) -> Path:
        """A file name that shows what it is about and cannot leave its directory."""
        text = quote(name, safe="")
        if len(text) > _LONGEST_NAME_BYTES:
            text = hashlib.sha256(name.encode("utf-8")).hexdigest()
        return self.directory / kind / f"{text}.json"

    def _write(self, path: Path, form: str, members: Mapping[str, Any]) -> None:
        write_atomic(path, canonical({"format": form, **members}) + b"\n", mode=0o600)

    def _read(self, path: Path, form: str, identity: Mapping[str, str]) -> Any:
        """The value in a file, or None when there is no file."""
        data = _read_own(path)
        if data is None:
            return None
        try:
            members = parse_json(data)
            if not isinstance(members, dict) or members.get("format") != form:
                raise EncodingError("BadState", f"not of the format {form}")
            if any(members.get(name) != value for name, value in identity.items()):
                raise EncodingError("BadState", "about something else")
            return _PARSERS[form](members)
        except (EncodingError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                "BadState", f"{path} is damaged: {error}",
                hint="Restore it from a backup. Without it, a roll-back since then cannot be noticed.",
            ) from None


def _check_own(path: Path, status: os.stat_result) -> None:
    """Raises StoreError("UnsafeState") unless nobody but this user, or root, may write to a directory."""
    if status.st_mode & 0o022:
        raise StoreError(
            "UnsafeState", f"{path} may be written by others (mode {status.st_mode & 0o777:04o})",
            hint=f"What is in it decides whom you trust. If nobody else wrote there: chmod 700 {path}",
        )
    if status.st_uid != os.geteuid():
        raise StoreError(
            "UnsafeState", f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}",
            hint="What is in it decides whom you trust, and its owner may write to it. Use a directory of your own.",
        )


def _read_own(path: Path) -> bytes | None:
    """Content of a file, or None when there is none.

    Raises:
        StoreError: "BadState" for a link that leads nowhere: something was remembered, and is out of reach.
    """
    data = read_file(path)
    if data is None and path.is_symlink():
        raise StoreError(
            "BadState", f"{path} is a link that leads nowhere",
            hint="Restore what it led to. Without it, a roll-back since then cannot be noticed.",
        )
    return data


def _parse_head(members: Mapping[str, Any]) -> bytes:
    return decode_base64(members["note"])


def _parse_handle(members: Mapping[str, Any]) -> str:
    actor_id = members["actor-id"]
    if not isinstance(actor_id, str):
        raise EncodingError("BadState", "no actor id")
    return actor_id


def _parse_map(members: Mapping[str, Any]) -> MapMemory:
    newest = members["newest"]
    return MapMemory(decode_base64(members["config"]), None if newest is None else decode_base64(newest))


def _parse_mapped(members: Mapping[str, Any]) -> bytes:
    return decode_base64(members["statement"])


def _accused(evidence: bytes) -> str:
    """The origin that evidence of either kind is about."""
    try:
        return parse_evidence(evidence).origin
    except EncodingError:
        return parse_map_evidence(evidence).origin


def _parse_actor(members: Mapping[str, Any]) -> ActorMemory:
    key_ids = members["key-ids"]
    if not isinstance(key_ids, list) or not all(isinstance(key_id, str) for key_id in key_ids):
        raise EncodingError("BadState", "no list of key ids")
    return ActorMemory(
        tree_size=parse_decimal(members["tree-size"]),
        generation=parse_decimal(members["generation"]),
        history=tuple((parse_decimal(index), decode_base64(text, 32)) for index, text in members["history"]),
        key_ids=tuple(key_ids),
    )


_PARSERS = {
    _HEAD: _parse_head, _ACTOR: _parse_actor, _HANDLE: _parse_handle, _MAP: _parse_map, _MAPPED: _parse_mapped,
}
