"""The log as an ActivityPub actor: its document, its WebFinger account, its inbox, its collections."""

from __future__ import annotations

import json

from flask import Blueprint, Response, g, request

from ktlog.errors import MessageRejected
from ktlog.operator.keys import fetch_key_pem
from ktlog.operator.request import Request
from ktlog.web.api import CONTENT_TYPE
from ktlog.web.context import Context, context
from ktlog.web.errors import error_response
from ktlog.web.guarding import charge_repetition, current_request, guarded, read_early
from ktlog.web.inbox import NOISE_LIMIT_BYTES, REFUSED, USER, Refused, queue_reply, read_noise, take
from ktlog.web.signing import NO_STORE
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS, JRD_TYPES

SELF_LINK = "self"

activitypub = Blueprint("activitypub", __name__)


@activitypub.post(f"/users/{USER}/inbox", endpoint="inbox")
@activitypub.post("/inbox", endpoint="shared_inbox")
def inbox() -> Response:
    """Take an activity: a protocol message, or what the Fediverse's servers tell everybody.

    The latter is dropped with the answer that ends it, before the guard counts, a signature is looked at or
    a key is fetched: a refusal would be sent again for days, and the next one would be refused too.
    """
    refused: Refused | None = request.environ.get(REFUSED)
    if refused is not None and refused.error is not None:
        g.ktlog_wait = refused.wait
        if refused.request is not None:
            g.ktlog_request = refused.request
            _tell_sender(context(), refused.request, refused.error)
        raise refused.error
    if 0 < (request.content_length or 0) <= NOISE_LIMIT_BYTES:
        noise, g.ktlog_value = read_noise(read_early())
        if noise:
            return Response(b"", 202, content_type="text/plain; charset=utf-8")
    return take_message()


@guarded
def take_message() -> Response:
    """Take a protocol message; 202 only when it has its leaf index, durably.

    A message that was accepted before gets its receipt again, marked ``already-processed``. A sender whose
    HTTP signature was good is told of a new one, or of a refusal, once more in a direct message.
    """
    ctx, asked = context(), current_request()
    try:
        body, receipt = take(ctx, asked)
    except MessageRejected as refusal:
        _tell_sender(ctx, asked, refusal)
        raise
    charge_repetition(receipt)
    response = Response(body, 202, content_type=CONTENT_TYPE)
    response.headers["Cache-Control"] = NO_STORE
    return response


def _tell_sender(ctx: Context, asked: Request, error: Exception) -> None:
    """Tell who signed a message what was wrong with it."""
    if isinstance(error, MessageRejected):
        answer = error_response(error.code, error.message)
        if answer.status_code in (400, 403):
            queue_reply(ctx, asked, answer.get_data(as_text=True), accepted=False)


@activitypub.get(f"/users/{USER}")
def actor() -> Response:
    ctx = context()
    actor_id = ctx.settings.actor_id
    keys = (
        ("main-key", ED25519, ctx.http_ed25519.public_key().public_bytes_raw()),
        ("pq-key", ML_DSA_44, ctx.http_mldsa44.public_key().public_bytes_raw()),
    )
    document: dict[str, object] = {
        "@context": [ACTIVITYSTREAMS, "https://w3id.org/security/v1", "https://w3id.org/security/multikey/v1"],
        "id": actor_id,
        "type": "Service",
        "preferredUsername": USER,
        "name": "Public key directory",
        "inbox": f"{actor_id}/inbox",
        "outbox": f"{actor_id}/outbox",
        "followers": f"{actor_id}/followers",
        "following": f"{actor_id}/following",
        "endpoints": {"sharedInbox": f"{ctx.settings.url}/inbox"},
        "assertionMethod": [
            actor_key(f"{actor_id}#{fragment}", actor_id, algorithm, public_key)
            for fragment, algorithm, public_key in keys
        ],
    }
    if ctx.fetch_key is not None:
        # For servers that show an actor to nobody who does not sign. Nobody is asked to sign for this document:
        # they have to read it before they can check such a signature.
        document["publicKey"] = {
            "id": ctx.settings.fetch_key_id, "owner": actor_id, "publicKeyPem": fetch_key_pem(ctx.fetch_key),
        }
    return Response(json.dumps(document), content_type=ACTIVITY_JSON)


@activitypub.get(f"/users/{USER}/<any(outbox, followers, following):name>")
def collection(name: str) -> Response:
    """Empty, and there: servers that look for one should not take its absence for a broken actor."""
    document = {
        "@context": ACTIVITYSTREAMS,
        "id": f"{context().settings.actor_id}/{name}",
        "type": "OrderedCollection",
        "totalItems": 0,
        "orderedItems": [],
    }
    return Response(json.dumps(document), content_type=ACTIVITY_JSON)


@activitypub.get("/.well-known/webfinger")
def webfinger() -> Response:
    """Answers for the log's own account only: looking up others would make it an open relay. Spec: RFC 7033."""
    ctx = context()
    subject = f"acct:{USER}@{ctx.settings.origin}"
    resources = request.args.getlist("resource")
    if len(resources) != 1:
        return error_response("bad_request", "a WebFinger request names one resource")
    if resources[0] not in (subject, ctx.settings.actor_id):
        return error_response("not_found", f"this host answers for {subject} alone")
    wanted = request.args.getlist("rel")
    links = [{"rel": SELF_LINK, "type": ACTIVITY_JSON, "href": ctx.settings.actor_id}]
    document = {
        "subject": subject,
        "aliases": [ctx.settings.actor_id],
        "links": [link for link in links if not wanted or link["rel"] in wanted],
    }
    return Response(json.dumps(document), content_type=JRD_TYPES[0])
