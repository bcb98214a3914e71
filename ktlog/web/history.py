"""PKD's REST API about the log: its newest root, its entries in order, and each entry by its root.

Unlike answers about actors these reach beyond the published checkpoint, to the newest entry: senders
sign its root, and who follows the log must be able to arrive there.
"""

from __future__ import annotations

from flask import Blueprint, Response

from ktlog.errors import MessageRejected
from ktlog.operator.reader import Tree
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.dialects import SIGNED_FIELDS, TOKEN_FIELDS
from ktlog.pkd.entry import LogEntry, parse_entry
from ktlog.pkd.keys import ZERO_ROOT_BYTES, decode_root, encode_root, pkd_root
from ktlog.store.contracts import Record
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.api import answer_json, encode_proof, log_view, path_segment, published_size
from ktlog.web.context import context
from ktlog.web.files import preimage_text

PAGINATION_LIMIT = 100
"""Entries on a page of ``history/since``. The specification names it and gives no number."""

history = Blueprint("history", __name__, url_prefix="/api/history")


def requested_size(encoded: str) -> int:
    """The size of the tree whose root a path segment names, 0 for PKD's zero root.

    Raises:
        EncodingError: not a Merkle root.
        MessageRejected: ``unknown_root``. An empty page would look as if nothing were missing.
    """
    root = decode_root(path_segment(encoded))
    if root == ZERO_ROOT_BYTES:
        return 0
    # The store also knows SHA-256 of nothing, C2SP's root of the empty tree. It is no root of PKD's.
    view = log_view()
    size = view.store.size_of_root(root)
    if not size or size > view.size():
        raise MessageRejected("unknown_root", "this log never had this root")
    return size


@history.get("")
def newest() -> Response:
    """The newest root, published or not: what a client signs as recent-merkle-root."""
    view = log_view()
    with view.store.snapshot():
        size = view.size()
        root = view.store.root_after(size)
        created = view.store.records(size - 1, size)[0].created if size else 0
    return answer_json("history", {
        "current-time": str(context().now()),
        "created": str(created),
        "merkle-root": pkd_root(size, root),
        "tree-size": size,
    })


@history.get("/since/<encoded>")
def since(encoded: str) -> Response:
    """The entries after the one that completed the tree with this root, oldest first; a page of them.

    The next page follows the last row's root. At the end ``records`` is empty.
    """
    view = log_view()
    with view.store.snapshot():
        start = requested_size(encoded)
        size = view.size()
        records = view.store.records(start, min(start + PAGINATION_LIMIT, size))
    return answer_json("history/since", {
        "current-time": str(context().now()),
        "tree-size": size,
        "records": [_entry_members(record) for record in records],
    })


@history.get("/view/<encoded>")
def view(encoded: str) -> Response:
    """The entry that completed the tree with this root, proven to be in it."""
    ctx = context()
    published = published_size()  # before the snapshot, which then has every entry that is published
    with ctx.store.snapshot():
        size = requested_size(encoded)
        if size == 0:
            raise MessageRejected("unknown_root", "the zero root stands for the empty tree, which has no entry")
        record, proof = ctx.view.reader.entry(size - 1, Tree(size, published))
        cosignatures = ctx.store.cosignatures(size)
    return answer_json("history/view", {
        **_entry_members(record),
        "tree-size": size,
        "merkle-leaf": encode_base64url(record.entry),
        "inclusion-proof": encode_proof(proof),
        "message": decrypted(record),
        "rewrapped-keys": None,
        "cosignatures": [
            {"witness": item.witness, "cosigned": item.cosigned, "time": str(item.time)} for item in cosignatures
        ],
    })


def decrypted(record: Record) -> dict[str, object] | None:
    """The protocol message as its sender wrote it, or None when any of it was erased."""
    if record.withheld or None in record.plain.values():
        return None
    members = parse_json(record.preimage)
    shown = {name: members[name] for name in (*SIGNED_FIELDS, *TOKEN_FIELDS) if name in members}
    if record.plain:
        shown["message"] = members["message"] | dict(record.plain)
    return shown


def _entry_members(record: Record) -> dict[str, object]:
    """What the log committed to, and with which signature: enough to make the leaf again."""
    entry: LogEntry = parse_entry(record.entry)[1]
    return {
        "created": str(record.created),
        "encrypted-message": preimage_text(record),
        "leaf-index": record.leaf_index,
        "merkle-root": encode_root(record.root),
        "dir-publickeyhash": encode_base64url(entry.key_hash),
        "dir-signature": encode_base64url(entry.signature),
    }
