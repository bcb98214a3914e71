"""The directory map: its output log as C2SP files, and the lookup bundle of any actor.

Spec: directory map §6 and §8.
"""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from ktlog.errors import EncodingError, MessageRejected
from ktlog.keymap.bundle import encode_bundle
from ktlog.operator.mapreader import MapReader
from ktlog.tlog.encoding import parse_decimal
from ktlog.web.actors import requested_actor
from ktlog.web.api import one_argument
from ktlog.web.context import Context
from ktlog.web.errors import error_response
from ktlog.web.files import IMMUTABLE

directory_map = Blueprint("map", __name__, url_prefix="/map")


def context() -> Context:
    return current_app.extensions["ktlog"]


def reader() -> MapReader:
    """Raises MessageRejected(``not_published``)."""
    found = context().map_reader()
    if found is None:
        raise MessageRejected("not_published", "this log has not published its map yet")
    return found


def wanted(name: str) -> bool:
    """Whether the query says ``name=true``.

    Raises:
        EncodingError: ``BadQuery``: it says something else than true or false.
    """
    text = one_argument(name)
    if text not in (None, "true", "false"):
        raise EncodingError("BadQuery", f"{name} is neither true nor false")
    return text == "true"


@directory_map.get("/checkpoint")
def checkpoint() -> Response:
    """The output log's newest checkpoint, under the witnesses' and verifiers' cosignatures."""
    return _note(reader().checkpoint(), "no-cache")


@directory_map.get("/checkpoint/<size>")
def checkpoint_of(size: str) -> Response:
    """The checkpoint that was published for exactly this size: the one that a bundle of this size goes with."""
    return _note(reader().checkpoint(parse_decimal(size)), IMMUTABLE)


def _note(note: bytes | None, cache: str) -> Response:
    if note is None:
        return error_response("not_published", "this log has published no such checkpoint of its map")
    response = Response(note, content_type="text/plain; charset=utf-8")
    response.headers["Cache-Control"] = cache
    return response


@directory_map.get("/tile/<path:rest>")
def tile(rest: str) -> Response:
    data = context().map_tiles.read(f"tile/{rest}")
    if data is None:
        return error_response("not_found", f"the map's log has no tile/{rest}")
    response = Response(data, content_type="application/octet-stream")
    response.headers["Cache-Control"] = IMMUTABLE
    return response


@directory_map.get("/bundle/<encoded>")
def bundle(encoded: str) -> Response:
    """What the map says of an actor, with the proof. Somebody whom nobody knows is an answer too.

    ``aux=true`` adds the texts of auxiliary data, ``full=true`` every entry behind the answer and those that wait for
    the next map, ``checkpoint=true`` the checkpoint of the bundle's own size.
    """
    actor_id = requested_actor(encoded)
    published = context().published()
    found = reader().bundle(
        actor_id, aux=wanted("aux"), full=wanted("full"), checkpoint=wanted("checkpoint"),
        published_size=0 if published is None else published.checkpoint.size,
    )
    response = Response(encode_bundle(found), content_type="application/octet-stream")
    # Nobody may keep it unasked: it would outlive the actor's erasure.
    response.headers["Cache-Control"] = "no-cache"
    return response
