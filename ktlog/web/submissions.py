"""The two messages that come by their own doors: ``POST /api/burndown`` and ``POST /api/revoke``.

Source: PKD specification, the two endpoints of these names.
"""

from __future__ import annotations

from flask import Blueprint, Response

from ktlog.errors import MessageRejected
from ktlog.operator.link import Receipt
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.api import answer_json
from ktlog.web.context import context
from ktlog.web.guarding import charge_repetition, current_request, guarded, penalize_sender

submissions = Blueprint("submissions", __name__, url_prefix="/api")

# A token that is none, or whose key nobody has here: nothing was revoked. What is no token request at all
# (no JSON, members missing) gets an error like everywhere.
USELESS_TOKEN = frozenset({"bad_token", "bad_token_signature", "unknown_token_key"})


@submissions.post("/burndown")
@guarded
def burndown() -> Response:
    """Take a BurnDown that the operator's instance signed; 200 only when it has its leaf index, durably.

    ``time`` and ``status`` are the specification's; the receipt stands beside them.
    """
    ctx = context()
    receipt = ctx.append(ctx.admission.admit_burndown(current_request()), current_request().source.domain)
    charge_repetition(receipt)
    return answer_json("burndown", {"time": str(ctx.now()), "status": True, **receipt_members(receipt)})


@submissions.post("/revoke")
@guarded
def revoke() -> Response:
    """Take a revocation token from anybody. 200: this log has revoked its key. 204: it has no use for it.

    The specification gives the 204 a body, which HTTP does not.
    """
    ctx = context()
    try:
        submission = ctx.admission.admit_revocation(current_request())
        charge_repetition(ctx.append(submission, current_request().source.domain))
    except MessageRejected as refusal:
        if refusal.code not in USELESS_TOKEN:
            raise
        penalize_sender()
        return Response(status=204)
    return answer_json("revoke", {"time": str(ctx.now())})


def receipt_members(receipt: Receipt) -> dict[str, object]:
    """Where an accepted message ended up; ``already-processed`` when that was before."""
    members: dict[str, object] = {
        "leaf-index": receipt.leaf_index,
        "tree-size": receipt.leaf_index + 1,
        "merkle-leaf": encode_base64url(receipt.entry),
        "merkle-root": receipt.root,
    }
    return members | ({"already-processed": True} if receipt.duplicate else {})
