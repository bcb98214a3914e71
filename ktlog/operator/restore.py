"""Puts a backup back, and lets it become the log again only if nobody in the world has seen more than it holds.

::

    the backup's manifest ─ every file's hash ─ copied into an empty DIR, which is no log yet: its configuration
    is called ktlog.toml.restoring ─ the published checkpoints, every witness and verifier: how far did the log get?
    further than this copy: stop, and say what is lost; or recover it from a mirror, and ask again
    every erasure that is published or journaled: again ─ heads and tiles ─ ktlog.toml

Nothing is signed here. What was accepted and never published can be on no other disk: the senders have receipts, and a
log that goes on gives their indexes to others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ktlog.config import Settings, load_settings
from ktlog.durable import file_errors, make_directories, read_file, sync_directory, write_atomic, write_secret
from ktlog.errors import EncodingError, PolicyUnmet, StoreError, UsageError
from ktlog.keymap.output import map_origin
from ktlog.operator.backup import CONFIGURATION, Manifest, check_files, generations, read_manifest
from ktlog.operator.create import load_public_keys
from ktlog.operator.fsck import Scope, examine
from ktlog.operator.head import SignedHead, load_signed_head, record_signed_head, signed_time
from ktlog.operator.mappending import load_pending
from ktlog.operator.nodes import write_tree
from ktlog.operator.recover import WORK, recover_log, recover_map
from ktlog.operator.shred import resume
from ktlog.operator.stores import (
    bring_up,
    map_pending,
    map_signed_head,
    open_log,
    open_map,
    open_map_tiles,
    open_tiles,
    signed_head,
)
from ktlog.operator.witnessing import KnownHeads, input_policy, peers_of
from ktlog.operator.world import Seen, World, look_around
from ktlog.pkd.entry import leaf_key_hash
from ktlog.store.contracts import TileStore
from ktlog.store.documents import Document
from ktlog.store.mapcontract import MapStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import Note, Vkey, format_note, open_note, parse_vkey
from ktlog.tlog.policy import Policy, parse_policy
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries, some

ENTRIES_AT_A_TIME = 1 << 14
"""Whose tiles and bundles are written at once."""

HELD = f"{CONFIGURATION}.restoring"
ORIGIN_FILE = "restored-from"
"""Says which backup an unfinished restore is of."""

MENDED = frozenset({"TileMissing", "BundleMissing", "FilesUnreadable", "ErasureUndone", "JournalDamaged"})
"""Findings about a copy that a restore mends, or judges itself."""

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Request:
    """What to restore. generation: the directory of one backup. urls: further places where the log's files may be.

    mirror: where to recover from what the copy lacks. keys: a directory with the secret keys, if the backup has none.
    journal: a newer journal than the backup's. accept_unknown: go on though somebody who must know did not answer.
    """

    generation: Path
    directory: Path
    urls: tuple[str, ...] = ()
    mirror: str | None = None
    keys: Path | None = None
    journal: Path | None = None
    accept_unknown: bool = False


@dataclass(frozen=True)
class Restored:
    """What came of it. size, map_size: of the log and of its map's log. recovered: entries and leaves from a mirror.

    erasures: how many were done again. unknown: who did not answer.
    """

    directory: Path
    size: int
    map_size: int
    recovered: tuple[int, int]
    erasures: int
    unknown: tuple[str, ...]


def choose(target: Path, name: str | None = None) -> Path:
    """The newest backup in *target*, or the one called *name*; *target* may be one itself.

    Raises:
        StoreError: ``NoBackup``.
    """
    if name is None and (target / "MANIFEST.json").is_file():
        return target
    found = [path for path in generations(target) if name in (None, path.name)]
    if not found:
        raise StoreError("NoBackup", f"{target} has no finished backup{f' {name}' if name else ''}")
    return found[-1]


def restore(
    request: Request, fetcher: Fetcher, now: Callable[[], int], tell: Tell = lambda text: None
) -> Restored:
    """See the module.

    Raises:
        StoreError: ``DirectoryInUse``; ``BackupDamaged``; ``BackupBehind``, somebody has seen more; ``ErasureUndone``.
        Invalid: ``TwoHistories``: the copy is of another history.
        PolicyUnmet: ``NotCompared``: somebody who must know did not answer.
        Whatever recovering raises. The copy then stays in DIR, and is no log: the same command goes on with it.
    """
    manifest = read_manifest(request.generation)
    settings = _put_back(request, manifest, tell)
    restoring = _Restoring(request, settings, fetcher, now, tell)
    return restoring.run()


# Files


def _put_back(request: Request, manifest: Manifest, tell: Tell) -> Settings:
    """Copy the backup's files, or find that they are there from before."""
    directory, mark = request.directory, str(request.generation.resolve()).encode() + b"\n"
    if read_file(directory / ORIGIN_FILE) == mark and (directory / HELD).is_file():
        tell("going on with an unfinished restore")
        return _held_settings(directory)
    if directory.exists() and any(directory.iterdir()):
        raise StoreError(
            "DirectoryInUse", f"{directory} is not empty", hint="Restore into an empty one; nothing is overwritten.",
        )
    tell(f"checking {some(len(manifest.files), 'file')}")
    wrong = list(check_files(request.generation, manifest))
    if wrong:
        raise StoreError(
            "BackupDamaged", f"{request.generation}: {wrong[0]}{f', and {len(wrong) - 1} more' if wrong[1:] else ''}",
            hint="Take another backup. Tiles alone can be made again, but this copy has lost more than it knows.",
        )
    with file_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    for path in manifest.files:
        _copy(request.generation / path, directory, HELD if path == CONFIGURATION else path)
    _put_keys(request, directory)
    if request.journal is not None:
        _put_journal(request.journal, directory / "journal.jsonl")
    write_atomic(directory / ORIGIN_FILE, mark, mode=0o600)
    settings = _held_settings(directory)
    if settings.origin != manifest.origin:
        raise StoreError("BackupDamaged", "its configuration is of another log than its manifest")
    for tiles in (settings.tiles, settings.map_tiles):
        make_directories(directory, tiles)
    return settings


def _copy(source: Path, directory: Path, path: str) -> None:
    place = directory / path
    make_directories(directory, place.parent)
    mode = 0o600
    if path.startswith("tiles/"):
        mode = 0o644 if path.endswith("checkpoint") else 0o444
    with file_errors(place):
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(source, "rb") as read, open(handle, "wb") as write:
            shutil.copyfileobj(read, write, 1 << 20)
            write.flush()
            os.fsync(write.fileno())
    sync_directory(place.parent)


def _put_keys(request: Request, directory: Path) -> None:
    if request.keys is None:
        return
    if (directory / "keys").exists():
        raise UsageError("BadArguments", "the backup has keys of its own: do not name others")
    with file_errors(directory):
        (directory / "keys").mkdir(mode=0o700)
    for path in sorted(request.keys.iterdir()):
        write_secret(directory / "keys" / path.name, path.read_bytes())


def _put_journal(newer: Path, place: Path) -> None:
    """A journal that was kept apart; it must go on where the backup's ends."""
    old, new = read_file(place) or b"", read_file(newer)
    if new is None or not new.startswith(old):
        raise UsageError("BadJournal", f"{newer} does not go on where the journal of the backup ends")
    write_atomic(place, new, mode=0o600)


def _held_settings(directory: Path) -> Settings:
    """The configuration that is not in its place yet."""
    view = directory / WORK / "view"
    make_directories(directory, view)
    data = read_file(directory / HELD)
    if data is None:
        raise StoreError("BackupDamaged", f"{directory / HELD} is gone")
    write_atomic(view / CONFIGURATION, data)
    return replace(load_settings(view, environment={}), directory=directory)


class _Restoring:
    """A copy in its directory, on the way to become the log."""

    def __init__(
        self, request: Request, settings: Settings, fetcher: Fetcher, now: Callable[[], int], tell: Tell
    ) -> None:
        self._request = request
        self._settings = settings
        self._fetcher = fetcher
        self._now = now
        self._tell = tell
        public = load_public_keys(settings)
        self._vkeys = _parse(public.vkeys + public.retired_vkeys)
        self._map_vkeys = _parse(public.map_vkeys + public.retired_map_vkeys)
        self._leaf_keys: Mapping[bytes, bytes] = {leaf_key_hash(key): key for key in public.leaf_keys}
        self._policy = _read_policy(settings)

    def run(self) -> Restored:
        settings, tell = self._settings, self._tell
        bring_up(settings)  # of a backup that an older release took, which is still there as it was
        tell("checking the copy")
        found = examine(settings, Scope(quick=True)).findings.kept
        damaged = [finding for finding in found if finding.name not in MENDED]
        if damaged:
            raise StoreError("BackupDamaged", str(damaged[0]), hint="Take another backup.")
        before = self._sizes()
        tell("asking witnesses, verifiers and the published files how far the log got")
        log, output = self._look()
        if self._is_behind(log, output):
            if self._request.mirror is None:
                raise self._behind(log, output)
            self._recover(self._request.mirror)
            log, output = self._look()
            if self._is_behind(log, output):
                raise self._behind(log, output)
        unknown = tuple(f"{where}: {why}" for where, why in (log.silent | output.silent).items())
        if unknown and not self._request.accept_unknown:
            raise PolicyUnmet(
                "NotCompared", "whether this copy is the newest is not known: " + "; ".join(unknown),
                hint="Try again when they answer. If one of them is gone for good, and you know that it saw nothing"
                " newer: --accept-unknown. A fork cannot be taken back.",
            )
        erasures = self._erase_again()
        self._take_heads(log, output)
        after = self._sizes()
        self._finish()
        recovered = after[0] - before[0], after[1] - before[1]
        return Restored(settings.directory, *after, recovered, erasures, unknown)

    # The world

    def _sizes(self) -> tuple[int, int]:
        with closing(open_log(self._settings, read_only=True)) as store, closing(self._open_map()) as map_store:
            return store.state().size, map_store.state().output.size

    def _open_map(self) -> MapStore:
        return open_map(self._settings, read_only=True)

    def _look(self) -> tuple[World, World]:
        """What everybody has of the log and of its map's log."""
        settings, request = self._settings, self._request
        asked = () if request.mirror is None else (request.mirror.rstrip("/"),)
        urls = tuple(dict.fromkeys((settings.url, *(url.rstrip("/") for url in request.urls))))
        known = self._known(signed_head(settings), open_tiles(settings), self._vkeys, settings.origin)
        log = look_around(self._fetcher, known, peers_of(input_policy(self._policy)), urls, asked)
        map_known = self._known(
            map_signed_head(settings), open_map_tiles(settings), self._map_vkeys, map_origin(settings.origin)
        )
        output = look_around(
            self._fetcher, map_known, peers_of(self._policy), tuple(f"{url}/map" for url in urls),
            tuple(f"{url}/map" for url in asked),
        )
        return self._with_published(log, known), self._with_published(output, map_known)

    def _known(self, document: Document, tiles: TileStore, vkeys: tuple[Vkey, ...], origin: str) -> KnownHeads:
        head, raw = load_signed_head(document), tiles.checkpoint()
        note, size = None, 0
        if raw is not None:
            opened, checkpoint = parse_signed_checkpoint(raw)
            own = open_note(opened, vkeys)
            note, size = format_note(Note(opened.text, tuple(one.line for one in own))), checkpoint.size
        return KnownHeads(origin, vkeys, note, size, 0 if head is None else head.size)

    @staticmethod
    def _with_published(world: World, known: KnownHeads) -> World:
        """*world*, and what the published files say that outlived the disk: those in an object store."""
        if known.published is None:
            return world
        root = parse_signed_checkpoint(known.published)[1].root
        return replace(world, heads=(*world.heads, Seen("the published files", known.published_size, root)))

    def _beyond(self, log: World, output: World) -> tuple[Seen | None, Seen | None]:
        """The newest heads that the copy does not contain."""
        with closing(open_log(self._settings, read_only=True)) as store, closing(self._open_map()) as map_store:
            size = map_store.state().output.size
            leaves = leaf_reader(map_store.output_hashes(0, size))
            found = log.beyond(store.state().size, store.root_after)
            return found, output.beyond(size, lambda count: root_hash(count, leaves))

    def _is_behind(self, log: World, output: World) -> bool:
        """Whether anybody has seen what is not here; and what was signed and not shown must be pending here."""
        entries, leaves = self._beyond(log, output)
        if entries is None and leaves is not None:
            # The one leaf that waits for its cosigners may have been seen by some of them.
            return not self._is_pending(leaves)
        return entries is not None

    def _is_pending(self, seen: Seen) -> bool:
        pending = load_pending(map_pending(self._settings))
        with closing(self._open_map()) as map_store:
            tree = map_store.state().output
        return (
            pending is not None and pending.leaf_index == tree.size and seen.size == tree.size + 1
            and seen.root in (None, tree.append(hash_leaf(pending.leaf)).root())
        )

    def _behind(self, log: World, output: World) -> StoreError:
        entries, leaves = self._beyond(log, output)
        size, map_size = self._sizes()
        said = []
        for what, seen, have in (("entries", entries, size), ("leaves of the map's log", leaves, map_size)):
            if seen is not None:
                root = "" if seen.root is None else f" (root {seen.root.hex()})"
                said.append(f"{what} {have} to {seen.size - 1} are not in it, and {seen.where} has seen them{root}")
        return StoreError(
            "BackupBehind", f"this copy is older than the log was: {'; '.join(said)}",
            hint=f"It is in {self._settings.directory}, and cannot be served. Go on with the same command and"
            " --from-mirror https://HOST/api/replica/ID, of somebody who mirrors this log. Signing without what is"
            " missing would fork it. If nobody mirrors it: restore a newer backup, or get the old disk read. If there"
            " is neither, this log has ended (docs/backup.md, \"Nobody mirrors it\").",
        )

    # Recovery

    def _recover(self, url: str) -> None:
        url = url.rstrip("/")
        self._tell(f"recovering entries from {url}")
        arguments = self._settings, self._fetcher, url
        size = recover_log(*arguments, self._vkeys, self._leaf_keys, input_policy(self._policy), self._now)
        self._tell(f"recovered: {count_entries(size)}; now the map")
        leaves = recover_map(*arguments, self._map_vkeys, self._policy, self._now, self._tell)
        self._tell(f"recovered: {some(leaves, 'leaf', 'leaves')} of the map's log")

    def _erase_again(self) -> int:
        """Every erasure that the journal knows of, before anything is served. Those published are recovered."""
        with closing(open_log(self._settings)) as store:
            before = store.erasure_count()
            resume(store, self._settings.journal, self._now)
            return store.erasure_count() - before

    # The end

    def _take_heads(self, log: World, output: World) -> None:
        """Remember the newest heads that were signed, whoever showed them, and publish what the world has."""
        settings = self._settings
        with closing(open_log(settings, read_only=True)) as store:
            newest = self._newest(
                log, signed_head(settings), self._vkeys, lambda size: size <= store.state().size
            )
            if newest is not None and newest.root is not None:
                tiles = open_tiles(settings)
                for start in range(0, newest.size, ENTRIES_AT_A_TIME):
                    end = min(start + ENTRIES_AT_A_TIME, newest.size)
                    write_tree(tiles, store, store.entries, start, end, store.root_after(end))
                self._publish(tiles, newest)
        with closing(self._open_map()) as map_store:
            # Its files and its checkpoint are written from the store when it starts.
            self._newest(
                output, map_signed_head(settings), self._map_vkeys, lambda size: size <= map_store.state().output.size
            )

    def _newest(
        self, world: World, document: Document, vkeys: tuple[Vkey, ...], has: Callable[[int], bool]
    ) -> Seen | None:
        """The newest head in *world* that the copy contains, remembered as signed if it is newer than what was."""
        head = load_signed_head(document)
        known = [one for one in world.heads if one.root is not None and has(one.size)]
        seen = max(known, key=lambda one: one.size, default=None)
        if seen is not None and seen.root is not None and (head is None or seen.size > head.size):
            time = 0 if seen.note is None else signed_time(parse_signed_checkpoint(seen.note)[0], vkeys)
            record_signed_head(document, SignedHead(seen.size, seen.root, max(time, 0 if head is None else head.time)))
        return seen

    def _publish(self, tiles: TileStore, seen: Seen) -> None:
        """Show the checkpoint that the world has, if it has its quorum; a witness's own copy may not."""
        raw = tiles.checkpoint()
        have = 0 if raw is None else parse_signed_checkpoint(raw)[1].size
        if seen.note is None or seen.size <= have:
            return
        try:
            note = parse_signed_checkpoint(seen.note)[0]
            lines = input_policy(self._policy).open_cosignatures(note)
        except EncodingError:
            return
        if input_policy(self._policy).satisfied([line.vkey for line in lines]):
            tiles.publish_checkpoint(seen.note)

    def _finish(self) -> None:
        """From here on it is the log."""
        directory = self._settings.directory
        shutil.rmtree(directory / WORK, ignore_errors=True)
        with file_errors(directory):
            (directory / HELD).rename(directory / CONFIGURATION)
            (directory / ORIGIN_FILE).unlink()
        sync_directory(directory)


def _parse(vkeys: Sequence[str]) -> tuple[Vkey, ...]:
    return tuple(map(parse_vkey, vkeys))


def _read_policy(settings: Settings) -> Policy:
    data = read_file(settings.publish_policy)
    if data is None:
        raise UsageError(
            "NoPublishPolicy", f"{settings.publish_policy} does not exist: nobody is named who could say how far"
            " the log got",
        )
    return parse_policy(data)

