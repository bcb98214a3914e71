"""What became of an accepted message, for programs that would rather not read a direct message."""

from __future__ import annotations

from flask import Blueprint, Response

from ktlog.errors import EncodingError
from ktlog.pkd.keys import pkd_root
from ktlog.tlog.encoding import decode_base64url
from ktlog.web.api import answer_json
from ktlog.web.context import context
from ktlog.web.errors import error_response

HASH_BYTES = 32

status = Blueprint("status", __name__)


@status.get("/api/status/<encoded>")
def message(encoded: str) -> Response:
    """Where a message is, named by its unique hash: SHA-256 of what its author signed.

    There is no state before that: a message is accepted when it has its leaf index, or not at all. It
    is published when the published checkpoint holds it, which is what clients and auditors see.
    """
    ctx = context()
    unique_hash = decode_base64url(encoded)
    if len(unique_hash) != HASH_BYTES:
        raise EncodingError("BadHash", f"a message is named by {HASH_BYTES} bytes in base64url")
    with ctx.store.snapshot():
        leaf_index = ctx.store.seen(unique_hash)
        root = None if leaf_index is None else ctx.store.root_after(leaf_index + 1)
    if leaf_index is None or root is None:
        return error_response("not_found", "this log has accepted no such message")
    published = ctx.published()
    return answer_json("status", {
        "current-time": str(ctx.now()),
        "leaf-index": leaf_index,
        "tree-size": leaf_index + 1,
        "merkle-root": pkd_root(leaf_index + 1, root),
        "published": published is not None and published.checkpoint.size > leaf_index,
    })
