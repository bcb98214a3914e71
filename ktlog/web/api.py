"""PKD's REST API: what all answers share, and what a directory says about itself.

Shapes are the specification's; added members make proofs checkable. ``ktlog/web/openapi.json``
describes every endpoint, and is tested against the running application.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from urllib.parse import unquote_to_bytes

from flask import Blueprint, Response, g, request

from ktlog.errors import EncodingError, MessageRejected
from ktlog.operator.reader import Tree
from ktlog.pkd.extensions import choose
from ktlog.pkd.keys import encode_public_key
from ktlog.tlog.encoding import encode_base64url, parse_decimal
from ktlog.web.context import context
from ktlog.web.logview import LogView
from ktlog.web.signing import NO_STORE

CONTENT_TYPE = "application/json"
SUITE = "MLKEM768-X25519, HKDF-SHA256, ChaCha20Poly1305"

api = Blueprint("api", __name__, url_prefix="/api")


def log_view() -> LogView:
    """The log that the request is about: our own, unless its path names one that is mirrored here."""
    return g.get("log_view") or context().view


def answer_json(context_name: str, members: dict[str, object], status: int = 200) -> Response:
    """A JSON answer as PKD writes it: compact, slashes and Unicode unescaped.

    Nobody may keep it: an answer about an actor must not outlive the actor's erasure.
    """
    response = Response(json_body(context_name, members, log_view()), status, content_type=CONTENT_TYPE)
    response.headers["Cache-Control"] = NO_STORE
    return response


def json_body(context_name: str, members: Mapping[str, object], view: LogView) -> bytes:
    """What :func:`answer_json` answers about *view*, in bytes."""
    return json.dumps(
        {"!pkd-context": f"fedi-e2ee:v1/api/{context_name}", **members, **view.members()},
        ensure_ascii=False, separators=(",", ":"),
    ).encode()


def encode_proof(proof: Sequence[bytes]) -> list[str]:
    return [encode_base64url(node) for node in proof]


# What a request asks for


def path_segment(encoded: str) -> str:
    """A segment of the path, decoded once, exactly as it was sent.

    Raises:
        EncodingError: ``BadPath``: it is not ASCII.
    """
    try:
        return unquote_to_bytes(encoded).decode("ascii")
    except UnicodeDecodeError:
        raise EncodingError("BadPath", "a segment of the path is not ASCII") from None


def one_argument(name: str) -> str | None:
    """The value of a query parameter, or None; two values could be read as either.

    Raises:
        EncodingError: ``BadQuery``: it is there twice.
    """
    values = request.args.getlist(name)
    if len(values) > 1:
        raise EncodingError("BadQuery", f"{name} is given more than once")
    return values[0] if values else None


def published_size() -> int:
    """How many entries the published checkpoint has; 0 before the first one."""
    published = log_view().published()
    return 0 if published is None else published.checkpoint.size


def asked_tree() -> Tree:
    """The tree that an answer about an actor is for: the published one, or an older one (``tree-size=N``).

    Raises:
        MessageRejected: ``not_published``.
        EncodingError: tree-size is no number.
    """
    asked, size = one_argument("tree-size"), published_size()
    tree_size = size if asked is None else parse_decimal(asked)
    if not 1 <= tree_size <= size:
        raise MessageRejected("not_published", f"the published checkpoint has size {size}")
    return Tree(tree_size, size)


# What a directory says about itself


@api.get("/info")
def info() -> Response:
    ctx = context()
    http_key = ctx.http_mldsa44.public_key().public_bytes_raw()
    return answer_json("info", {
        "current-time": str(ctx.now()),
        "actor": f"pubkeydir@{ctx.settings.origin}",
        "actor-url": ctx.settings.actor_id,
        "burndown-enabled": ctx.settings.burndown_enabled,
        "public-key": encode_public_key(http_key),
        "origin": ctx.settings.origin,
        "dialect": ctx.settings.dialect,
        "vkeys": list(ctx.public_keys.vkeys),
        "map-vkeys": list(ctx.public_keys.map_vkeys),
        # What this log lets pass against the specification, because its operator said so.
        "non-conformant": sorted(ctx.settings.compat_names()),
    })


@api.get("/server-public-key")
def server_public_key() -> Response:
    ctx = context()
    return answer_json("server-public-key", {
        "current-time": str(ctx.now()),
        "hpke-ciphersuite": SUITE,
        "hpke-public-key": encode_base64url(ctx.hpke_key.encapsulation_key),
    })


@api.get("/extensions")
def extensions() -> Response:
    """The types of auxiliary data that this log takes. (The specification's example says ``time``, its
    table ``current-time``.)"""
    ctx = context()
    taken = choose(ctx.settings.aux_type_names()).values()
    return answer_json("extensions", {
        "current-time": str(ctx.now()),
        "extensions": [{"id": item.id, "version": item.version, "ref": item.ref} for item in taken],
    })


@api.get("/openapi.json")
def openapi() -> Response:
    """This API, described by hand (OpenAPI 3.1)."""
    document = files("ktlog.web").joinpath("openapi.json").read_bytes()
    response = Response(document, content_type="application/json")
    response.headers["Cache-Control"] = "public, max-age=300"
    return response
