"""What the world has seen of a log, compared with what a disk has: before anything is signed with a restored copy.

A copy looks whole from inside. Only those who saw the rest can tell that there was more: everybody who shows the
published checkpoint, and every witness and verifier that was ever asked to cosign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import Invalid, KtlogError, Unreachable
from ktlog.operator.witnessing import KnownHeads, WitnessPeer, seen_size
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries

RootAfter = Callable[[int], bytes]


@dataclass(frozen=True)
class Seen:
    """The newest that somebody has of a log. where: whom it was read at.

    note: the checkpoint, as it was shown, and its root; None of a witness that told the size alone.
    """

    where: str
    size: int
    root: bytes | None = None
    note: bytes | None = None


@dataclass(frozen=True)
class World:
    """What was learnt of one log (or of the log of its map).

    heads: signed by the log itself, each. silent: by address, why somebody who must know said nothing.
    """

    origin: str
    heads: tuple[Seen, ...]
    silent: dict[str, str]

    @property
    def newest(self) -> Seen | None:
        return max(self.heads, key=lambda seen: (seen.size, seen.root is not None), default=None)

    def beyond(self, size: int, root_after: RootAfter) -> Seen | None:
        """The newest head that the tree of *size*, with these roots, does not contain; None if it has all of them.

        Raises:
            Invalid: ``TwoHistories``: a head of at most that size has another root. No restore mends that.
        """
        for seen in self.heads:
            if seen.root is not None and seen.size <= size and root_after(seen.size) != seen.root:
                raise Invalid(
                    "TwoHistories", f"{seen.where} has a head of {count_entries(seen.size)} of {self.origin} that the"
                    " tree of this copy does not contain",
                    hint="This is a copy of another history. Sign nothing with it: two heads of one log convict it.",
                )
        newest = self.newest
        return newest if newest is not None and newest.size > size else None


def look_around(
    fetcher: Fetcher, heads: KnownHeads, peers: Sequence[WitnessPeer], urls: Sequence[str], asked: Sequence[str]
) -> World:
    """Ask everybody at once. Nothing is signed for it: what was published before is offered again.

    Args:
        heads: what this copy knows; its vkeys, retired ones too: without their signature a head is an invention.
        peers: witnesses and verifiers, all of whom must answer.
        urls: where the log's files may be found; who does not answer is no surprise.
        asked: the same, of those who must.
    """
    def read(url: str) -> Seen | None:
        try:
            note = PublicFiles(fetcher, url).checkpoint()
        except Unreachable as error:
            if error.name == "NoCheckpoint":
                return None
            raise
        return _open(url, note, heads)

    def ask(peer: WitnessPeer) -> Seen | None:
        address = f"{peer.url.rstrip('/')}/{sha256(heads.origin.encode()).hexdigest()}/checkpoint"
        response = fetcher.get(address)
        if response.status == 200:
            return _open(peer.url, response.body, heads)
        # Not every witness shows what it cosigned; but each must say how far it is when it is offered less.
        size = seen_size(fetcher, peer, heads)
        return Seen(peer.url, size) if size else None

    tasks: list[tuple[str, bool, Callable[[], Seen | None]]] = [
        *((peer.url, True, lambda peer=peer: ask(peer)) for peer in peers),
        *((url, True, lambda url=url: read(url)) for url in asked),
        *((url, False, lambda url=url: read(url)) for url in urls),
    ]
    found: list[Seen] = []
    silent: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, len(tasks)), "world") as pool:
        for (where, must, _task), future in [(task, pool.submit(task[2])) for task in tasks]:
            try:
                seen = future.result()
            except KtlogError as error:
                if must or not isinstance(error, Unreachable):
                    silent[where] = str(error)
                continue
            if seen is not None:
                found.append(seen)
    return World(heads.origin, tuple(found), silent)


def _open(where: str, data: bytes, heads: KnownHeads) -> Seen:
    note, checkpoint = parse_signed_checkpoint(data)
    if checkpoint.origin != heads.origin or not open_note(note, heads.vkeys):
        raise Invalid("WrongLog", f"what {where} shows was not signed by {heads.origin}")
    return Seen(where, checkpoint.size, checkpoint.root, data)
