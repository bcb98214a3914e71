"""What a sequencer that was overtaken must not do outside of the database: sign a head, or publish one.

Inside, every write is fenced by the log's epoch. A published file and a signature are not in there. So the epoch is
looked at before a checkpoint is published, and once a head is signed, before the signature goes anywhere.

Nothing rests on it alone. A process may be stopped after it looked, and go on much later: the head that it sends then
was in the store, under the fence, before its successor came, so that the successor's heads continue it; and a
checkpoint is not replaced by a smaller one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ktlog.config import Settings
from ktlog.errors import Conflict
from ktlog.operator.head import HeadSigner, SignedHead
from ktlog.store.contracts import LogStore, TileStore
from ktlog.tlog.note import SignatureLine, Vkey

log = logging.getLogger("ktlog.publisher")

Fence = Callable[[], None]
"""Raises Conflict ``Fenced`` once another process has claimed the log; StoreError if that cannot be told."""


def epoch_fence(store: LogStore, epoch: int) -> Fence:
    """A fence that asks *store*, a reader's handle, for the epoch; *epoch* is the one that this process claimed."""

    def check() -> None:
        stored = store.state().epoch
        if stored != epoch:
            raise Conflict(
                "Fenced", f"writer {stored} has taken over from writer {epoch}", stored=stored,
                hint="Two sequencers run on one store. This one must stop.",
            )

    return check


def is_replaceable(settings: Settings) -> bool:
    """Whether somebody who was overtaken, on another machine, can put an older checkpoint in place of a newer one."""
    return settings.uses_postgres and settings.place is None


class FencedTiles:
    """*tiles*, whose checkpoint only moves for the process that has the log.

    Args:
        replaceable: as :func:`is_replaceable` says.
    """

    def __init__(self, tiles: TileStore, fence: Fence, *, replaceable: bool = False) -> None:
        self._tiles = tiles
        self._fence = fence
        self._replaceable = replaceable
        self._shown: bytes | None = None

    def read(self, path: str) -> bytes | None:
        return self._tiles.read(path)

    def write_tiles(self, files: Mapping[str, bytes]) -> None:
        self._tiles.write_tiles(files)

    def remove_partials(self, path: str) -> int:
        return self._tiles.remove_partials(path)

    def remove_update(self, path: str) -> None:
        self._tiles.remove_update(path)

    def checkpoint(self) -> bytes | None:
        self._shown = self._tiles.checkpoint()
        return self._shown

    def publish_checkpoint(self, note: bytes) -> None:
        self._fence()
        self._tiles.publish_checkpoint(note)
        self._shown = note

    def keep_shown(self) -> None:
        """Show again what this process found or published last, if somebody whom it overtook replaced it."""
        if not self._replaceable or self._shown is None or self._tiles.checkpoint() == self._shown:
            return
        self.publish_checkpoint(self._shown)
        log.warning("the published checkpoint was replaced by an older one, and is shown again")


class FencedHeads:
    """*signer*, whose signatures only get out for the process that has the log."""

    def __init__(self, signer: HeadSigner, fence: Fence) -> None:
        self._signer = signer
        self._fence = fence

    def vkeys(self) -> tuple[Vkey, ...]:
        return self._signer.vkeys()

    def last(self) -> SignedHead | None:
        return self._signer.last()

    def sign(self, text: bytes, proof: Sequence[bytes]) -> tuple[SignatureLine, ...]:
        lines = self._signer.sign(text, proof)
        self._fence()
        return lines
