"""PKD's replicas: what other logs published, served from here with the views of our own log.

An answer has the shape that the source's would have, with proofs against the source's roots. It does
not claim to be the source's: this log signs it, and its ``replica`` member has the source's checkpoint
with its cosignatures, so that a client verifies it under the policy that it has for the source.

What names an actor is served for as long as the source was heard from in the last seven days and left
no doubt that it erased nothing since; the history, which is all ciphertext, for ever.

Spec: PKD, "GET api/replicas", "GET api/replica/:replica_id", "Mirror Plaintext Cache Invalidation".
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g

from ktlog.web import actors, history
from ktlog.web.api import answer_json
from ktlog.web.context import context
from ktlog.web.replicafiles import add_routes

replicas = Blueprint("replicas", __name__, url_prefix="/api")
replica = Blueprint("replica", __name__, url_prefix="/api/replica/<replica_id>")


@replicas.get("/replicas")
def index() -> Response:
    """The directories that are mirrored here."""
    ctx = context()
    return answer_json("replicas", {"current-time": str(ctx.now()), "replicas": ctx.replicas.listed()})


@replica.url_value_preprocessor
def choose_log(_endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Let the views below read the mirrored log instead of our own."""
    if values is not None:
        g.log_view = context().replicas.view(values.pop("replica_id"))


for _rule, _view in (
    ("/actor/<encoded>", actors.actor),
    ("/actor/<encoded>/keys", actors.keys),
    ("/actor/<encoded>/key/<encoded_id>", actors.key),
    ("/actor/<encoded>/auxiliary", actors.auxiliary),
    ("/actor/<encoded>/auxiliary/<encoded_id>", actors.auxiliary_item),
    ("/history", history.newest),
    ("/history/since/<encoded>", history.since),
):
    replica.add_url_rule(_rule, view_func=_view)
add_routes(replica)
