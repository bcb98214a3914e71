"""A log as the reading endpoints see it: this server's own, or one that is mirrored here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator.reader import ActorReader
from ktlog.operator.sources import MirrorStatus, Source, load_status
from ktlog.pkd.dialects import DIALECTS, Dialect
from ktlog.store.contracts import LogStore, TileStore
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint


@dataclass(frozen=True)
class Published:
    """The checkpoint that everybody is shown now."""

    raw: bytes
    checkpoint: Checkpoint


class LogView:
    """This server's own log. Safe to use from many threads."""

    def __init__(self, store: LogStore, tiles: TileStore, dialect: Dialect) -> None:
        self.store = store
        self._tiles = tiles
        self._reader = ActorReader(store, tiles.read, dialect)
        self._parsed: Published | None = None

    def published(self) -> Published | None:
        """The newest published checkpoint, parsed once for as long as its bytes stay the same."""
        raw = self._tiles.checkpoint()
        if raw is None:
            return None
        parsed = self._parsed
        if parsed is None or parsed.raw != raw:
            try:
                parsed = Published(raw, parse_signed_checkpoint(raw)[1])
            except EncodingError as error:
                raise StoreError("BadCheckpoint", f"the published checkpoint is damaged: {error}") from None
            self._parsed = parsed
        return parsed

    @property
    def reader(self) -> ActorReader:
        """For whatever names an actor."""
        return self._reader

    def size(self) -> int:
        """How many entries the history shows; also those that are not published yet."""
        return self.store.state().size

    def members(self) -> Mapping[str, object]:
        """What every answer says besides."""
        return {}


class ReplicaView(LogView):
    """One mirrored log, as of the checkpoint up to which it was verified."""

    def __init__(self, source: Source, now: Callable[[], int]) -> None:
        store = SqliteStore.open(source.database, origin=source.log.origin, read_only=True)
        super().__init__(store, TileFiles(source.tiles), DIALECTS[store.dialect])
        self._source = source
        self._now = now

    @property
    def source(self) -> Source:
        return self._source

    @property
    def tiles(self) -> TileStore:
        return self._tiles

    @property
    def reader(self) -> ActorReader:
        """Raises MessageRejected: ``replica_stale``."""
        if not load_status(self._source).may_show_plaintext(self._now()):
            raise MessageRejected(
                "replica_stale", f"{self._source.log.origin} could not be asked lately whether it erased anything"
            )
        return super().reader

    def size(self) -> int:
        published = self.published()
        return 0 if published is None else published.checkpoint.size

    def members(self) -> Mapping[str, object]:
        published = self.published()
        return {"replica": {
            "id": self._source.id,
            "ref": self._source.log.url,
            # The source's head, not ours: with its cosignatures, for whoever has a policy for the source.
            "checkpoint": "" if published is None else published.raw.decode("utf-8"),
            "last-success": str(load_status(self._source).last_success),
        }}


class Replicas:
    """Every log that is mirrored here. Safe to use from many threads."""

    def __init__(self, sources: Iterable[Source], now: Callable[[], int]) -> None:
        self._sources = {source.id: source for source in sources}
        self._now = now
        self._lock = threading.Lock()
        self._views: dict[str, ReplicaView] = {}

    def listed(self) -> list[dict[str, object]]:
        return [_listed(source, load_status(source)) for source in self._sources.values()]

    def view(self, replica_id: str) -> ReplicaView:
        """The view of a mirrored log, opened when it is first asked for: before that there may be none.

        Raises:
            MessageRejected: ``not_found``; ``not_published``, nothing is mirrored yet.
        """
        source = self._sources.get(replica_id)
        if source is None:
            raise MessageRejected("not_found", "no log with this id is mirrored here")
        with self._lock:
            view = self._views.get(replica_id)
            if view is None:
                if not source.database.exists():
                    raise MessageRejected("not_published", "nothing of this log is mirrored yet")
                view = self._views[replica_id] = ReplicaView(source, self._now)
        if view.published() is None:
            raise MessageRejected("not_published", "this log is not mirrored to the end yet")
        return view


def _listed(source: Source, status: MirrorStatus) -> dict[str, object]:
    return {
        "id": source.id,
        "ref": source.log.url,
        "tree-size": status.tree_size,
        "last-success": str(status.last_success),
        "error": status.error,
        # What the mirror took on the source's word: commitments that were not among those drawn, and
        # entries that rest on erased text.
        "commitments-checked": status.checked,
        "commitments": status.total,
        "taken": len(status.taken),
    }
