"""PKD's REST API, the part that reads. Shapes are the specification's; added members make proofs checkable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from flask import Blueprint, Response, current_app, request

from ktlog.errors import EncodingError
from ktlog.operator.reader import ActorAnswer, HistoryRow
from ktlog.pkd.keys import encode_public_key, pkd_root
from ktlog.tlog.encoding import encode_base64url, parse_decimal
from ktlog.web.context import Context
from ktlog.web.errors import error_response
from ktlog.web.files import preimage_text
from ktlog.wire.actor_id import parse_actor_id

SUITE = "MLKEM768-X25519, HKDF-SHA256, ChaCha20Poly1305"

api = Blueprint("api", __name__, url_prefix="/api")


def context() -> Context:
    return current_app.extensions["ktlog"]


def answer_json(context_name: str, members: dict[str, object], status: int = 200) -> Response:
    """A JSON answer as PKD writes it: compact, slashes and Unicode unescaped."""
    body = json.dumps(
        {"!pkd-context": f"fedi-e2ee:v1/api/{context_name}", **members}, ensure_ascii=False, separators=(",", ":")
    )
    return Response(body, status, content_type="application/json")


def encode_proof(proof: Sequence[bytes]) -> list[str]:
    return [encode_base64url(node) for node in proof]


@api.get("/info")
def info() -> Response:
    ctx = context()
    http_key = ctx.http_mldsa44.public_key().public_bytes_raw()
    return answer_json("info", {
        "current-time": str(ctx.now()),
        "actor": f"pubkeydir@{ctx.settings.origin}",
        "actor-url": ctx.settings.actor_id,
        "burndown-enabled": False,
        "public-key": encode_public_key(http_key),
        "origin": ctx.settings.origin,
        "dialect": ctx.settings.dialect,
        "vkeys": list(ctx.public_keys.vkeys),
    })


@api.get("/server-public-key")
def server_public_key() -> Response:
    ctx = context()
    return answer_json("server-public-key", {
        "current-time": str(ctx.now()),
        "hpke-ciphersuite": SUITE,
        "hpke-public-key": encode_base64url(ctx.hpke_key.encapsulation_key),
    })


@api.get("/history")
def history() -> Response:
    """The newest root, published or not: what a client signs as recent-merkle-root."""
    ctx = context()
    with ctx.store.snapshot():
        state = ctx.store.state()
        newest = ctx.store.records(state.size - 1, state.size)[0].created if state.size else 0
    return answer_json("history", {
        "current-time": str(ctx.now()),
        "created": str(newest),
        "merkle-root": pkd_root(state.size, state.root),
        "tree-size": state.size,
    })


def requested_actor(encoded: str) -> str:
    """The actor id of a path segment, decoded once, exactly as it was sent.

    Raises:
        EncodingError: not a canonical actor id.
    """
    try:
        return parse_actor_id(unquote_to_bytes(encoded).decode("ascii"))
    except UnicodeDecodeError:
        raise EncodingError("BadActorId", "the actor id in the path is not ASCII") from None


def one_argument(name: str) -> str | None:
    """The value of a query parameter, or None; two values could be read as either.

    Raises:
        EncodingError: it is there twice.
    """
    values = request.args.getlist(name)
    if len(values) > 1:
        raise EncodingError("BadQuery", f"{name} is given more than once")
    return values[0] if values else None


@api.get("/actor/<encoded>")
def actor(encoded: str) -> Response:
    actor_id = requested_actor(encoded)
    found = context().store.actor(actor_id)
    if found is None:
        return error_response("not_found", "this log knows no such actor")
    return answer_json("actor/info", {
        "actor-id": actor_id, "count-aux": len(found.aux), "count-keys": len(found.keys),
    })


@api.get("/actor/<encoded>/keys")
def keys(encoded: str) -> Response:
    """The actor's keys as of a published tree size, each with its inclusion proof.

    ``include-proofs=true`` adds every message that touched the actor, so that a client can replay
    them; ``tree-size=N`` asks for the tree of a checkpoint that the client holds.
    """
    ctx = context()
    actor_id = requested_actor(encoded)
    published = ctx.published()
    if published is None:
        return error_response("not_published", "this log has not published a checkpoint yet")
    size = published.checkpoint.size
    asked = one_argument("tree-size")
    tree_size = size if asked is None else parse_decimal(asked)
    if not 1 <= tree_size <= size:
        return error_response("not_published", f"the published checkpoint has size {size}")
    wants = one_argument("include-proofs")
    if wants not in (None, "true", "false"):
        return error_response("bad_request", "include-proofs must be true or false")
    answer = ctx.reader.answer(actor_id, tree_size, size, with_history=wants == "true")
    if answer is None:
        return error_response("not_found", "this log knows no such actor at this tree size")
    members: dict[str, object] = {
        "actor-id": actor_id,
        "tree-size": answer.tree_size,
        "merkle-root": pkd_root(answer.tree_size, answer.root),
        "public-keys": _public_keys(ctx, answer),
    }
    if wants == "true":
        members["history"] = [_history_row(row) for row in answer.history]
    return answer_json("actor/get-keys", members)


def _public_keys(ctx: Context, answer: ActorAnswer) -> list[dict[str, object]]:
    """The specification's rows. ``merkle-root`` is the root the proof leads to: a proof against
    the root at the time of the AddKey would say nothing about the tree that the witnesses saw."""
    return [
        {
            "created": str(key.created),
            "key-id": key.key_id,
            "leaf-index": key.leaf_index,
            "tree-size": answer.tree_size,
            "inclusion-proof": encode_proof(answer.key_proofs[key.leaf_index]),
            "merkle-root": pkd_root(answer.tree_size, answer.root),
            "public-key": encode_public_key(key.public_key),
        }
        for key in answer.actor.keys
    ]


def _history_row(row: HistoryRow) -> dict[str, object]:
    return {
        "leaf-index": row.record.leaf_index,
        "role": row.role,
        "merkle-leaf": encode_base64url(row.record.entry),
        "encrypted-message": preimage_text(row.record),
        "plain": dict(row.record.plain),
        "inclusion-proof": None if row.proof is None else encode_proof(row.proof),
    }
