"""``POST /api/history/cosign/:hash``: a witness that the operator has listed cosigns a root."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from flask import Blueprint, Response

from ktlog.web.api import answer_json
from ktlog.web.context import context
from ktlog.web.guarding import current_request, guarded

cosign = Blueprint("cosign", __name__, url_prefix="/api/history/cosign")


@cosign.post("/<encoded>")
@guarded
def take(encoded: str) -> Response:
    """*encoded* is the root, its colon escaped or not."""
    root = unquote_to_bytes(encoded).decode("ascii", "replace")
    context().cosigning.take(root, current_request().body)
    return answer_json("history/cosign", {"success": True, "time": str(context().now())})
