"""Commits this log's root to the logs that it mirrors: PKD's Checkpoint message, sent as its own actor.

What a Checkpoint says of the receiving log it must have validated. Ours was replayed from its first entry
by the mirror; without a mirror that is up to date nothing is said. The receiving log has to name this
one in its setting ``directories``.

Spec: PKD "Active Gossip (Checkpoints)", "Checkpoint".
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.client import build
from ktlog.client.build import Receipt
from ktlog.client.keyfile import SigningKey
from ktlog.client.terms import fetch_terms
from ktlog.client.verify import open_remembered
from ktlog.config import Settings
from ktlog.errors import EncodingError, NotLogged, Stale, StoreError
from ktlog.operator.instance import deliver
from ktlog.operator.keys import load_seed
from ktlog.operator.sources import Source, load_status
from ktlog.operator.stores import open_tiles
from ktlog.pkd.keys import pkd_root
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.wire.fetch import Fetcher


def published_root(settings: Settings) -> str:
    """The root of this log's published checkpoint, as PKD writes it: one that witnesses have seen.

    Raises:
        NotLogged: ``NoCheckpoint``. StoreError: ``BadCheckpoint``.
    """
    note = open_tiles(settings, read_only=True).checkpoint()
    if note is None:
        raise NotLogged("NoCheckpoint", f"{settings.origin} has not published a checkpoint yet")
    try:
        checkpoint = parse_signed_checkpoint(note)[1]
    except EncodingError as error:
        raise StoreError("BadCheckpoint", f"the published checkpoint is damaged: {error}") from None
    return pkd_root(checkpoint.size, checkpoint.root)


def validated_root(source: Source) -> str:
    """The newest root of *source* up to which every entry was replayed here, as PKD writes it.

    Raises:
        Stale: ``NotMirrored``, the mirror is not up to date, or something is wrong with the source.
    """
    status, note = load_status(source), TileFiles(source.tiles).checkpoint() if source.tiles.is_dir() else None
    if note is None or status.error is not None or status.stopped or not status.tree_size:
        raise Stale("NotMirrored", f"{source.log.origin} is not mirrored to the end ({status.error or 'nothing yet'})")
    head = open_remembered(note, source.log)
    return pkd_root(head.size, head.root)


def send_checkpoint(
    settings: Settings, source: Source, fetcher: Fetcher, now: int, random: Callable[[int], bytes]
) -> Receipt:
    """Send *source* a Checkpoint, and check the receipt.

    Args:
        now: Unix seconds. random: gives that many random bytes.

    Raises:
        Stale: ``NotMirrored``. NotLogged: ``NoCheckpoint``.
        MessageRejected: the log refuses it; ``directory_not_allowed`` when it does not know this one.
        Unreachable, Invalid: no valid answer or receipt.
        StoreError: keys or checkpoints cannot be read.
    """
    to_directory, validated = f"https://{source.log.origin}", validated_root(source)
    signer = SigningKey(load_seed(settings.keys, "http-mldsa44"))
    http_key = Ed25519PrivateKey.from_private_bytes(load_seed(settings.keys, "http-ed25519"))
    terms = fetch_terms(fetcher, to_directory)
    # The recent root of the message is the one that was validated, not the one that the log just told.
    built = build.checkpoint_message(
        settings.url, published_root(settings), to_directory, validated, signer,
        recent_root=validated, now=now, dialect=terms.dialect,
    )
    content = build.build_envelope(settings.actor_id, build.seal(built, terms.encapsulation_key))
    answer = deliver(
        fetcher, to_directory, settings.actor_id, http_key, f"{settings.actor_id}#main-key", content, now, random
    )
    return build.check_receipt(answer, built.preimage, built.dialect, terms.leaf_keys)
