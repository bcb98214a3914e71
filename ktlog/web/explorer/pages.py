"""The addresses of the explorer, and what each shows."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from ktlog import __version__
from ktlog.errors import EncodingError, KtlogError, MessageRejected
from ktlog.operator.reader import Held, Tree
from ktlog.operator.request import Source
from ktlog.pkd.actors import Actor, Status
from ktlog.pkd.keys import encode_public_key, pkd_root
from ktlog.tlog.encoding import encode_base64, parse_decimal
from ktlog.tlog.policy import Policy, Witness, format_policy
from ktlog.tlog.proof import TlogProof, format_proof
from ktlog.web.actors import requested_actor
from ktlog.web.api import one_argument, path_segment
from ktlog.web.context import Context, context
from ktlog.web.explorer import pictures
from ktlog.web.explorer.answer import Page, finish, show, stylesheet, stylesheet_response
from ktlog.web.explorer.explorer import actor_url, explorer
from ktlog.web.explorer.heads import SAVED_BYTES, consistency_members, judge_saved
from ktlog.web.explorer.live import differences
from ktlog.web.explorer.peers import SCANNED, directory_rows, mirror_rows
from ktlog.web.explorer.people import actor_members, entry_members, named_keys, reset_leaf, timeline
from ktlog.web.explorer.search import likely_actor_ids
from ktlog.web.explorer.sorry import failed, unknown
from ktlog.web.explorer.standing import FRESH_SECONDS
from ktlog.web.explorer.words import span
from ktlog.web.guarding import client_address
from ktlog.web.logview import Published
from ktlog.wire.actor_id import parse_actor_id, parse_handle
from ktlog.wire.environ import header_lines
from ktlog.wire.webfinger import is_activity_type
from ktlog.words import count_entries

pages = Blueprint("explorer", __name__)


@pages.errorhandler(KtlogError)
def on_error(error: KtlogError) -> Response:
    return failed(error)


def published() -> Published:
    """The published checkpoint. Raises MessageRejected: ``not_published``."""
    found = context().published()
    if found is None:
        raise MessageRejected("not_published", "this log has not published anything yet")
    return found


# The log


@pages.get("/")
def front() -> Response:
    """Status. A server that asks for an actor here, where many servers have theirs, is told where this one is."""
    if _wants_activity():
        response = finish(Response(status=303), names_actors=False)
        response.headers["Location"] = context().settings.actor_id
        return response
    ctx, found = context(), context().published()
    sizes = explorer().growth()
    grown = sizes[-1] - sizes[0]
    members: dict[str, object] = {
        "origin": ctx.settings.origin,
        "current-time": ctx.now(),
        **explorer().standing(),
        "checkpoint": None if found is None else _head_members(ctx, found),
        "entries": sizes[-1],
        "waiting": sizes[-1] - (0 if found is None else found.checkpoint.size),
        "erasures": ctx.store.erasure_count(),
        "growth": sizes,
        "grown": grown,
    }
    label = f"{count_entries(grown)} in 30 days"
    return show(Page("status", f"{ctx.settings.origin}: status", members, pictures={
        "spark": pictures.sparkline(sizes, label),
    }, names_actors=False))


def _wants_activity() -> bool:
    asked = request.headers.get("Accept", "")
    return len(asked) < 1024 and any(is_activity_type(part.strip()) for part in asked.split(","))


def _head_members(ctx: Context, found: Published) -> dict[str, object]:
    size, root = found.checkpoint.size, found.checkpoint.root
    since = ctx.store.public_since(size - 1) if size else None
    return {
        "size": size, "root": encode_base64(root), "merkle-root": pkd_root(size, root), "since": since,
        "note": found.raw.decode("utf-8", "replace"),
    }


@pages.get("/witnesses")
def witnesses() -> Response:
    ctx = context()
    found = ctx.published()
    tokens = () if found is None else ctx.store.cosignatures(found.checkpoint.size)
    members = {
        **explorer().standing(),
        "current-time": ctx.now(),
        "fresh-seconds": FRESH_SECONDS,
        "pkd-cosignatures": [{"witness": item.witness, "time": item.time} for item in tokens],
    }
    return show(Page("witnesses", "Witnesses and verifiers", members, names_actors=False))


@pages.get("/peers")
def peers() -> Response:
    ctx, found = context(), context().published()
    members = {
        "directories": directory_rows(
            ctx.store, ctx.settings.directory_urls(), 0 if found is None else found.checkpoint.size
        ),
        "mirrors": mirror_rows(ctx.replicas.listed(), ctx.now()),
        "scanned": SCANNED,
    }
    return show(Page("peers", "Peers", members, names_actors=False))


@pages.get("/monitor")
def monitor() -> Response:
    """How to follow an actor, a domain, or all of the log."""
    return show(Page("monitor", "Follow", {"origin": context().settings.origin}, names_actors=False))


@pages.get("/about")
def about() -> Response:
    ctx = context()
    settings, public = ctx.settings, ctx.public_keys
    policy = explorer().vouchers.policy()
    shown = Policy(  # without the URLs, which may lead into somebody's own network
        (), {name: Witness(name, item.vkey) for name, item in policy.witnesses.items()}, policy.groups, policy.quorum,
    )
    members = {
        "origin": settings.origin, "software": f"ktlog {__version__}", "actor": settings.actor_id,
        "dialect": settings.dialect, "aux-types": sorted(settings.aux_type_names()),
        "actor-domains": sorted(settings.actor_domain_names()),
        "burndown-enabled": settings.burndown_enabled,
        "notice": span(settings.notice_seconds),
        "heartbeat": span(settings.heartbeat_seconds),
        "non-conformant": sorted(settings.compat_names()),
        "vkeys": list(public.vkeys), "map-vkeys": list(public.map_vkeys),
        "retired-vkeys": [*public.retired_vkeys, *public.retired_map_vkeys],
        "leaf-keys": [encode_public_key(key) for key in public.leaf_keys],
        "policy": format_policy(shown).decode("utf-8", "replace"),
    }
    return show(Page("about", f"About {settings.origin}", members, names_actors=False))


# Checkpoints


@pages.get("/checkpoints")
def checkpoints() -> Response:
    """The newest checkpoint, and with ``old`` and ``new`` the proof between two sizes."""
    ctx, found = context(), published()
    old, new = one_argument("old"), one_argument("new")
    compared = None
    if old or new:
        sizes = _size("old", old or "0"), _size("new", new or str(found.checkpoint.size))
        if not 0 <= sizes[0] <= sizes[1] <= found.checkpoint.size:
            raise EncodingError(
                "BadQuery", f"sizes go up from 0 to {found.checkpoint.size}, the older one not above the newer"
            )
        compared = consistency_members(ctx.store, ctx.tiles.read, *sizes, found.checkpoint.size)
    members = {"checkpoint": _head_members(ctx, found), "consistency": compared, "judged": None}
    return show(Page("checkpoints", "Checkpoints", members, names_actors=False))


@pages.post("/checkpoints")
def saved() -> Response:
    """Judge a checkpoint that somebody saved. Nothing is kept of it. With ``download`` the evidence alone."""
    ctx, found = context(), context().published()
    text = request.form.get("checkpoint", "")
    if len(text) > SAVED_BYTES:
        raise MessageRejected("too_large", f"a checkpoint has at most {SAVED_BYTES} characters")
    judged = judge_saved(text, ctx.settings.origin, explorer().vkeys, ctx.store, found, ctx.tiles.read)
    if judged.evidence is not None and request.form.get("download"):
        return download(judged.evidence, f"{ctx.settings.origin}-fork.json", "application/json", names_actors=True)
    members = {
        "checkpoint": None if found is None else _head_members(ctx, found), "consistency": None,
        "judged": judged.members, "pasted": text,
    }
    return show(Page("checkpoints", "Your checkpoint", members))


def _size(name: str, text: str) -> int:
    try:
        return parse_decimal(text.strip())
    except EncodingError:
        raise EncodingError("BadQuery", f"{name} is not a number of entries") from None


def download(data: bytes, name: str, content_type: str, *, names_actors: bool) -> Response:
    response = finish(Response(data, content_type=content_type), names_actors)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


# Entries


@pages.get("/e/<index>")
def entry(index: str) -> Response:
    ctx, leaf_index = context(), _leaf_index(index)
    found = ctx.published()
    size = 0 if found is None else found.checkpoint.size
    with ctx.store.snapshot():
        _check_there(leaf_index)
        record = ctx.store.records(leaf_index, leaf_index + 1)[0]
        proof = ctx.view.reader.entry(leaf_index, Tree(size, size))[1] if leaf_index < size else []
        root = ctx.store.root_after(size)
    steps = pictures.path_steps(record.leaf_hash, leaf_index, size, proof) if leaf_index < size else []
    members = {
        **entry_members(record, size), "origin": ctx.settings.origin, "tree-size": size, "root": root.hex(),
        "last": ctx.store.state().size - 1,
        "path": [{"side": "left" if left else "right", "hash": node.hex()} for left, node, _above in steps],
    }
    drawn = {"path": pictures.audit_path(record.leaf_hash, steps)} if leaf_index < size else {}
    return show(Page("entry", f"Entry {leaf_index:,}", members, pictures=drawn))


@pages.get("/e/<index>.tlog-proof")
def proof_file(index: str) -> Response:
    """The proof that the entry is in the published tree, with its cosigned checkpoint. Spec: c2sp.org/tlog-proof."""
    ctx, leaf_index, found = context(), _leaf_index(index), published()
    if leaf_index >= found.checkpoint.size:
        raise MessageRejected("not_published", f"the published checkpoint has size {found.checkpoint.size}")
    size = found.checkpoint.size
    _record, proof = ctx.view.reader.entry(leaf_index, Tree(size, size))
    data = format_proof(TlogProof(leaf_index, tuple(proof), found.raw))
    return download(data, f"{leaf_index}.tlog-proof", "text/plain; charset=utf-8", names_actors=False)


@pages.get("/e/<index>.leaf")
def leaf_file(index: str) -> Response:
    """The entry as it was hashed; it names nobody."""
    leaf_index = _leaf_index(index)
    _check_there(leaf_index)
    data = context().store.entries(leaf_index, leaf_index + 1)[0]
    return download(data, f"{leaf_index}.leaf", "application/octet-stream", names_actors=False)


def _leaf_index(text: str) -> int:
    return parse_decimal(text)


def _check_there(leaf_index: int) -> None:
    size = context().store.state().size
    if leaf_index >= size:
        raise MessageRejected("not_found", f"this log has {count_entries(size)}, and the first is number 0")


# Actors


@pages.get("/a/<encoded>")
def actor(encoded: str) -> Response:
    """One actor, as of the published tree; ``before=N`` leafs back in the timeline."""
    return _actor_page(requested_actor(encoded), compare=False)


@pages.get("/a/<encoded>/live")
def compared(encoded: str) -> Response:
    """The same, beside what the actor's own server publishes. Only asked for by a click: it costs two fetches."""
    if not context().settings.explorer_live:
        raise MessageRejected("not_found", "this log does not look up what other servers publish")
    return _actor_page(requested_actor(encoded), compare=True)


@pages.get("/a/<path:rest>")
def unescaped(rest: str) -> Response:
    """An actor id written out, slashes and all, or with them unescaped by a proxy on the way: where its page is."""
    text = path_segment(rest)
    head, _, tail = text.partition(":/")
    response = finish(Response(status=303), names_actors=True)
    response.headers["Location"] = actor_url(parse_actor_id(f"{head}://{tail.lstrip('/')}"))
    return response


def _actor_page(actor_id: str, *, compare: bool) -> Response:
    ctx, found = context(), context().published()
    size = 0 if found is None else found.checkpoint.size
    asked = one_argument("before")
    before = None if asked is None else parse_decimal(asked)
    with ctx.store.snapshot():
        known = ctx.store.actor(actor_id)
        if known is None or known.status == Status.ERASED:
            return unknown(known)
        held = _held(ctx, known, size)
        page = timeline(ctx.store, actor_id, before, size, reset_leaf=reset_leaf(known))
        told = actor_members(ctx.store, known, held, page, size, before)
    members = {
        **told, "origin": ctx.settings.origin,
        "may-compare": ctx.settings.explorer_live, "handle": _handle(actor_id), "live": None,
        "map-vkeys": bool(ctx.public_keys.map_vkeys),
    }
    if compare:
        members["live"] = _live_members(ctx, actor_id, held)
    drawn = {
        f"qr-{at}": pictures.qr(str(key["fingerprint"]).upper(), f"Fingerprint {key['fingerprint']}")
        for at, key in enumerate(_dicts(members["keys"])[:4])
    }
    return show(Page("actor", actor_id, members, pictures=drawn))


def _held(ctx: Context, known: Actor, size: int) -> Held:
    """What the actor held in the published tree: as nearly always all that it holds, which was just read."""
    history = ctx.store.history_span(known.actor_id)
    if history is not None and history[1] < size:
        return Held(known.keys, known.aux)
    return ctx.view.reader.held_at(known.actor_id, size) or Held((), ())


def _dicts(value: object) -> Sequence[dict[str, object]]:
    return value if isinstance(value, list) else []


def _handle(actor_id: str) -> str | None:
    """The handle that the search box led here from: the page says what it does not claim of it.

    Anybody can write one into a link. It is not shown unless the search would lead from it to this actor.
    """
    try:
        user, domain = parse_handle(one_argument("handle") or "")
    except EncodingError:
        return None
    return f"@{user}@{domain}" if actor_id in likely_actor_ids(user, domain) else None


def _live_members(ctx: Context, actor_id: str, held: Held) -> dict[str, object]:
    address = client_address(request.remote_addr or "", header_lines(request.environ), ctx.trusted_proxies)
    try:
        live = explorer().live.look(actor_id, Source(address))
    except MessageRejected as error:
        return {"failure": {
            "actor_gone": "its server says that this actor was deleted",
            "overloaded": "too much is being looked up just now; try again in a few seconds",
        }.get(error.code, "its server did not give a document about this actor"), "rows": [], "time": None}
    now = ctx.store.actor(actor_id)  # after the server was asked: it publishes a new key as soon as the log took it
    taken = Held((), ()) if now is None else Held(now.keys, now.aux)
    named = named_keys(ctx.store, actor_id)
    return {"failure": live.failure or None, "rows": differences(live, held, taken, named), "time": live.fetched}


@pages.get("/explorer/<name>")
def style(name: str) -> Response:
    if name != stylesheet()[0]:
        raise NotFound
    return stylesheet_response()
