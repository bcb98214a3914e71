"""The log as an ActivityPub actor: its document, its WebFinger account, its inbox."""

from __future__ import annotations

import json

from flask import Blueprint, Response, current_app, request

from ktlog.errors import MessageRejected
from ktlog.operator.admission import Request
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.api import answer_json
from ktlog.web.context import Context
from ktlog.web.errors import error_response
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.httpd import header_lines, raw_target
from ktlog.wire.httpsig import target_uri
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS, JRD_TYPES

USER = "pubkeydir"

activitypub = Blueprint("activitypub", __name__)


def context() -> Context:
    return current_app.extensions["ktlog"]


def read_body(limit_bytes: int) -> bytes:
    """The whole body of the request, or none of it.

    Raises:
        MessageRejected: ``too_large``. (RequestEntityTooLarge, when the Content-Length says so already.)
    """
    body = request.get_data(cache=False)
    if len(body) > limit_bytes:
        raise MessageRejected("too_large", f"a request body has at most {limit_bytes} bytes")
    return body


@activitypub.post(f"/users/{USER}/inbox")
def inbox() -> Response:
    """Take a protocol message; 202 only when it has its leaf index, durably.

    A message that was accepted before gets its receipt again, marked ``already-processed``.
    """
    ctx = context()
    target_url = target_uri(ctx.settings.origin, raw_target(request.environ))
    headers = header_lines(request.environ)
    submission = ctx.admission.admit(Request("POST", target_url, headers, read_body(ctx.settings.body_limit_bytes)))
    receipt = ctx.link.append(submission)
    members: dict[str, object] = {
        "leaf-index": receipt.leaf_index,
        "tree-size": receipt.leaf_index + 1,
        "merkle-leaf": encode_base64url(receipt.entry),
        "merkle-root": receipt.root,
    }
    if receipt.duplicate:
        members["already-processed"] = True
    return answer_json("inbox", members, 202)


@activitypub.get(f"/users/{USER}")
def actor() -> Response:
    ctx = context()
    actor_id = ctx.settings.actor_id
    keys = (
        ("main-key", ED25519, ctx.http_ed25519.public_key().public_bytes_raw()),
        ("pq-key", ML_DSA_44, ctx.http_mldsa44.public_key().public_bytes_raw()),
    )
    document = {
        "@context": [ACTIVITYSTREAMS, "https://w3id.org/security/multikey/v1"],
        "id": actor_id,
        "type": "Service",
        "preferredUsername": USER,
        "name": "Public key directory",
        "inbox": f"{actor_id}/inbox",
        "outbox": f"{actor_id}/outbox",
        "assertionMethod": [
            actor_key(f"{actor_id}#{fragment}", actor_id, algorithm, public_key)
            for fragment, algorithm, public_key in keys
        ],
    }
    return Response(json.dumps(document), content_type=ACTIVITY_JSON)


@activitypub.get(f"/users/{USER}/outbox")
def outbox() -> Response:
    """Empty, and there: servers that look for one should not take its absence for a broken actor."""
    document = {
        "@context": ACTIVITYSTREAMS,
        "id": f"{context().settings.actor_id}/outbox",
        "type": "OrderedCollection",
        "totalItems": 0,
        "orderedItems": [],
    }
    return Response(json.dumps(document), content_type=ACTIVITY_JSON)


@activitypub.get("/.well-known/webfinger")
def webfinger() -> Response:
    """Answers for the log's own account only: looking up others would make it an open relay."""
    ctx = context()
    subject = f"acct:{USER}@{ctx.settings.origin}"
    if request.args.get("resource") not in (subject, ctx.settings.actor_id):
        return error_response("not_found", f"this host answers for {subject} alone")
    document = {
        "subject": subject,
        "aliases": [ctx.settings.actor_id],
        "links": [{"rel": "self", "type": ACTIVITY_JSON, "href": ctx.settings.actor_id}],
    }
    response = Response(json.dumps(document), content_type=JRD_TYPES[0])
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response
