"""What other directories' logs say of a log: PKD Checkpoint messages, which a log sends to its peers about itself.

Such a message is signed by the log's own actor and names a root that it had, without a size. The reading of the log
itself knows the root after each of its entries; so a root that is not among them, and does not come to be, was never
the log's: it showed its peer another tree, or shows us less. That is a finding and no evidence: a root without a size
contradicts nothing by itself.

A peer is believed in nothing: it cannot make a message that our log's actor signed. What it can is leave one out.

Spec: PKD "Active Gossip (Checkpoints)".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from auditor.debounce import Condition
from auditor.findings_store import FindingStore
from auditor.report import Finding, finding_from
from ktlog.client.publicfiles import FileGetter, PublicFiles, parse_public_record
from ktlog.errors import EncodingError, Invalid, KtlogError, MessageRejected
from ktlog.pkd.actors import View
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.keys import decode_public_key, decode_root
from ktlog.pkd.messages import CheckpointMessage, message_from_plain
from ktlog.pkd.state import find_signer
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tiles import TILE_WIDTH

FIRST_PAGES = 4
"""Of a peer that was never read: so many of its newest pages."""
PAGES_A_ROUND = 40
MAX_CLAIMS = 100
"""Roots of one log in one peer's log that wait to be found."""
MAX_INFO_BYTES = 1 << 16
NAMES = frozenset({"PeerSawOtherRoot", "UnreachablePeer", "BadPeer"})

IsKnown = Callable[[bytes], bool]
"""Whether the log had this root after some entry, as far as its entries were read."""


@dataclass(frozen=True)
class Claim:
    """A root that a Checkpoint message in a peer's log has of the log that is watched."""

    leaf_index: int
    root: bytes


class Peers:
    """The peers of one log.

    Args:
        origin: of the log that is watched. urls: of the peers.
    """

    def __init__(self, store: FindingStore, origin: str, urls: tuple[str, ...]) -> None:
        self._store = store
        self._origin = origin
        self._urls = tuple(url.rstrip("/") for url in urls)

    def compare(
        self, getter: FileGetter, own_url: str, is_known: IsKnown, now: int
    ) -> tuple[list[Condition], set[str]]:
        """Read what is new at each peer, and compare all that waits.

        Returns:
            What holds, and the keys of those peers that said nothing.

        Raises:
            StoreError
        """
        if not self._urls:
            return [], set()
        found: list[Condition] = []
        blind: set[str] = set()
        try:
            keys = _own_keys(PublicFiles(getter, own_url))
        except KtlogError:
            return [], {_key(url) for url in self._urls}  # what the log does not say of itself, its looks tell
        for url in self._urls:
            try:
                self._read(PublicFiles(getter, url), url, keys, now)
            except KtlogError as error:
                blind.add(_key(url))
                name = "UnreachablePeer" if error.exit_code == 3 else "BadPeer"
                found.append(Condition(finding_from(error, name, subject=f"the peer {_name(url)}"), _key(url)))
            found += self._unknown(url, is_known)
        return found, blind

    def _read(self, peer: PublicFiles, url: str, keys: frozenset[bytes], now: int) -> None:
        try:
            size = parse_signed_checkpoint(peer.checkpoint())[1].size
        except EncodingError as error:
            raise Invalid("MalformedCheckpoint", error.message) from None
        rows = self._store.execute(
            "SELECT size FROM peers WHERE origin = ? AND peer = ?", (self._origin, url)
        )
        first = rows[0][0] if rows else max(0, (size // TILE_WIDTH - FIRST_PAGES + 1) * TILE_WIDTH)
        last = min(size, (first // TILE_WIDTH + PAGES_A_ROUND) * TILE_WIDTH)
        if first >= last:
            return
        claims = list(self._claims(peer, first, last, keys))
        with self._store.transaction():
            for claim in claims:
                self._store.execute(
                    "INSERT OR IGNORE INTO peer_roots SELECT ?1, ?2, ?3, ?4, ?5 WHERE"
                    " (SELECT count(*) FROM peer_roots WHERE origin = ?1 AND peer = ?2) < ?6",
                    (self._origin, url, claim.root, claim.leaf_index, now, MAX_CLAIMS),
                )
            self._store.execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?)", (self._origin, url, last))

    def _claims(self, peer: PublicFiles, first: int, last: int, keys: frozenset[bytes]) -> Iterator[Claim]:
        for number in range(first // TILE_WIDTH, -(-last // TILE_WIDTH)):
            width = min(TILE_WIDTH, last - number * TILE_WIDTH)
            entries, lines = peer.entries(number, width), peer.records(number, width)
            for at, (entry, line) in enumerate(zip(entries, lines, strict=True)):
                index = number * TILE_WIDTH + at
                # Most messages are no Checkpoints, and are not even parsed.
                if index >= first and b"Checkpoint" in line:
                    root = self._root_in(entry, line, index, keys)
                    if root is not None:
                        yield Claim(index, root)

    def _root_in(self, entry: bytes, line: bytes, index: int, keys: frozenset[bytes]) -> bytes | None:
        """The root of our log in a Checkpoint message that its actor signed; None for anything else."""
        try:
            record = parse_public_record(line, index)
            dialect, parsed = parse_entry(entry)
            if hashlib.sha256(record.preimage).digest() != parsed.message_hash:
                return None
            wire, message = message_from_plain(dialect, record.preimage, record.plain, commitments=False)
            if not isinstance(message, CheckpointMessage) or message.from_public_key not in keys:
                return None
            if message.from_directory != f"https://{self._origin}":
                return None
            find_signer(View({}, (), {}), message, wire)
            return decode_root(message.from_root)
        except (KtlogError, MessageRejected):
            return None

    def _unknown(self, url: str, is_known: IsKnown) -> Iterator[Condition]:
        waiting = self._store.execute(
            "SELECT root, leaf_index, first_seen FROM peer_roots WHERE origin = ? AND peer = ?", (self._origin, url)
        )
        for root, leaf_index, first_seen in waiting:
            if is_known(root):
                self._store.execute(
                    "DELETE FROM peer_roots WHERE origin = ? AND peer = ? AND root = ?", (self._origin, url, root)
                )
                continue
            yield Condition(
                Finding(
                    "PeerSawOtherRoot", "Invalid",
                    f"entry {leaf_index} of the log of {_name(url)} is a Checkpoint that {self._origin} signed, of a"
                    f" root that it never had: {root.hex()}",
                ), f"{_key(url)} {root.hex()[:16]}", first_seen,
            )


def _own_keys(own: PublicFiles) -> frozenset[bytes]:
    """The key that the log's actor signs messages with, as the log says. A wrong word only makes it overlook some."""
    try:
        document = parse_json(own.file("api/info", "MissingAnswer", MAX_INFO_BYTES))
        return frozenset({decode_public_key(document["public-key"])})
    except (EncodingError, KeyError, TypeError, AttributeError):
        raise Invalid("BadAnswer", "/api/info names no key") from None


def _name(url: str) -> str:
    return url.partition("://")[2]


def _key(url: str) -> str:
    return f"peer {_name(url)}"
