"""Atom feeds of what happens to one actor, or to the actors of a domain. Who was erased is in none of them.

Spec: RFC 4287.
"""

from __future__ import annotations

import hashlib

from flask import Blueprint, Response, request

from ktlog.errors import KtlogError
from ktlog.pkd.actors import Status
from ktlog.web.actors import requested_actor
from ktlog.web.api import path_segment
from ktlog.web.context import context
from ktlog.web.explorer.answer import environment, finish
from ktlog.web.explorer.explorer import actor_url
from ktlog.web.explorer.people import FEED_ROWS, domain_rows, reset_leaf, timeline
from ktlog.web.explorer.sorry import failed, unknown
from ktlog.wire.actor_id import parse_host

CONTENT_TYPE = "application/atom+xml; charset=utf-8"

feeds = Blueprint("explorer_feeds", __name__)


@feeds.errorhandler(KtlogError)
def on_error(error: KtlogError) -> Response:
    return failed(error)


@feeds.get("/a/<encoded>/feed.atom")
def of_actor(encoded: str) -> Response:
    """The newest published messages about one actor."""
    ctx, actor_id = context(), requested_actor(encoded)
    size = _published_size()
    with ctx.store.snapshot():
        actor = ctx.store.actor(actor_id)
        if actor is None or actor.status == Status.ERASED:
            return unknown(actor)
        page = timeline(ctx.store, actor_id, size, size, FEED_ROWS, reset_leaf(actor))
    rows = [{"actor-id": actor_id, **row} for row in page.rows]
    return _feed(f"{actor_id} in {ctx.settings.origin}", f"{actor_url(actor_id)}/feed.atom", actor_url(actor_id), rows)


@feeds.get("/domains/<encoded>/feed.atom")
def of_domain(encoded: str) -> Response:
    """The newest published messages about actors of one domain, as far back as this reads."""
    ctx, domain = context(), parse_host(path_segment(encoded))
    with ctx.store.snapshot():
        rows = domain_rows(ctx.store, domain, _published_size())
    return _feed(f"{domain} in {ctx.settings.origin}", f"/domains/{domain}/feed.atom", "/", rows)


def _published_size() -> int:
    found = context().published()
    return 0 if found is None else found.checkpoint.size


def _feed(title: str, path: str, page: str, rows: list[dict[str, object]]) -> Response:
    body = environment().get_template("feed.xml").render(
        title=title, url=context().settings.url, path=path, html=page, rows=rows,
    ).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    unchanged = etag in request.headers.get("If-None-Match", "")
    response = finish(
        Response(b"" if unchanged else body, 304 if unchanged else 200, content_type=CONTENT_TYPE), names_actors=True,
    )
    response.headers["ETag"] = etag
    return response
