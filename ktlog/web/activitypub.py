"""The log as an ActivityPub actor: its document, its WebFinger account, its inbox, its collections."""

from __future__ import annotations

import json
import logging
import os

from flask import Blueprint, Response, request

from ktlog.errors import MessageRejected, StoreError
from ktlog.operator.federation import is_noise, parse_question, reply
from ktlog.operator.keys import fetch_key_pem
from ktlog.operator.link import Submission
from ktlog.operator.request import Request
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.api import answer_json
from ktlog.web.context import Context, context
from ktlog.web.errors import error_response
from ktlog.web.guarding import charge_repetition, current_request, guarded
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.actor_id import actor_domain
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS, JRD_TYPES

USER = "pubkeydir"
# An activity that is longer than this is not what a server tells everybody.
NOISE_LIMIT_BYTES = 65_536
SELF_LINK = "self"

log = logging.getLogger("ktlog.web")
activitypub = Blueprint("activitypub", __name__)


@activitypub.post(f"/users/{USER}/inbox", endpoint="inbox")
@activitypub.post("/inbox", endpoint="shared_inbox")
def inbox() -> Response:
    """Take an activity: a protocol message, or what the Fediverse's servers tell everybody.

    The latter is dropped with the answer that ends it, before the guard counts, a signature is looked at or
    a key is fetched: a refusal would be sent again for days, and the next one would be refused too.
    """
    if 0 < (request.content_length or 0) <= NOISE_LIMIT_BYTES and is_noise(request.get_data()):
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
        submission = ctx.admission.admit(asked)
        receipt = ctx.link.append(submission)
    except MessageRejected as refusal:
        answer = error_response(refusal.code, refusal.message)
        if answer.status_code in (400, 403):
            _queue_reply(ctx, asked, answer)
        raise
    members: dict[str, object] = {
        "leaf-index": receipt.leaf_index,
        "tree-size": receipt.leaf_index + 1,
        "merkle-leaf": encode_base64url(receipt.entry),
        "merkle-root": receipt.root,
        "status-url": status_url(ctx, submission),
    }
    if receipt.duplicate:
        charge_repetition(receipt)
        return answer_json("inbox", members | {"already-processed": True}, 202)
    answer = answer_json("inbox", members, 202)
    _queue_reply(ctx, asked, answer)
    return answer


def status_url(ctx: Context, submission: Submission) -> str:
    """Where the sender of an accepted message can see what became of it."""
    unique_hash = parse_wire(ctx.dialect, submission.preimage).unique_hash
    return f"{ctx.settings.url}/api/status/{encode_base64url(unique_hash)}"


def _queue_reply(ctx: Context, asked: Request, answer: Response) -> None:
    """Let the courier tell the sender what *answer* says, if they signed their message and it gets an answer.

    Nobody who was erased is written down again, not even as the recipient of a message.
    """
    question = parse_question(asked.body, ctx.settings.actor_id)
    if question is None or asked.source.domain != actor_domain(question.actor):
        return
    if asked.source.domain in {url.removeprefix("https://").partition("/")[0] for url in ctx.settings.directory_urls()}:
        return  # another directory, whose inbox takes protocol messages only
    activity = reply(ctx.settings.actor_id, question, answer.get_data(as_text=True), ctx.now(), os.urandom)
    body = json.dumps(activity, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    try:
        if ctx.is_erased(question.actor):
            return
        ctx.replies.put(question.actor, asked.source.domain, body, ctx.now())
        if ctx.is_erased(question.actor):  # just now, and the erasure may have looked into the queue before this
            ctx.replies.forget(question.actor)
    except StoreError as error:
        # The sender has the answer. That it is not told a second time must not cost it the first.
        log.warning("a reply was not queued: %s", error.name)


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
    response = Response(json.dumps(document), content_type=JRD_TYPES[0])
    response.headers["Access-Control-Allow-Origin"] = "*"
    return response
