"""The directory map: its output log as C2SP files, and the lookup bundle of any actor.

Spec: directory map §6 and §8.
"""

from __future__ import annotations

from flask import Blueprint, Response

from ktlog.errors import EncodingError, MessageRejected
from ktlog.keymap.bundle import encode_bundle
from ktlog.operator.mapreader import MapReader, Wanted
from ktlog.tlog.encoding import parse_decimal
from ktlog.web.actors import requested_actor
from ktlog.web.api import one_argument
from ktlog.web.context import context
from ktlog.web.errors import error_response
from ktlog.web.files import FOR_A_DAY, IMMUTABLE, note_response, tile_response

BUNDLE_TYPE = "application/octet-stream"
UNKEPT = "no-cache"
"""Nobody may keep a bundle unasked: it would outlive the actor's erasure."""

directory_map = Blueprint("map", __name__, url_prefix="/map")


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
    return note_response(reader().checkpoint(), "no-cache")


@directory_map.get("/checkpoint/<size>")
def checkpoint_of(size: str) -> Response:
    """The checkpoint that was published for exactly this size: the one that a bundle of this size goes with."""
    return note_response(reader().checkpoint(parse_decimal(size)), IMMUTABLE)


@directory_map.get("/tile/<path:rest>")
def tile(rest: str) -> Response:
    return tile_response(context().map_tiles, rest)


@directory_map.get("/updates/<path:rest>")
def update(rest: str) -> Response:
    """What an output leaf changed, for 30 days. A cache should not keep it for much longer."""
    # Leaf 0 is the configuration, and changed nothing.
    data = None if rest == "000" else context().map_tiles.read(f"updates/{rest}")
    if data is None:
        return error_response("not_found", f"there is no updates/{rest}, or none any more")
    response = Response(data, content_type="application/octet-stream")
    response.headers["Cache-Control"] = FOR_A_DAY
    return response


@directory_map.get("/bundle/<encoded>")
def bundle(encoded: str) -> Response:
    """What the map says of an actor, with the proof. Somebody whom nobody knows is an answer too.

    ``aux=true`` adds the texts of auxiliary data, ``full=true`` every entry behind the answer, ``leaves=true`` their
    places alone, ``checkpoint=true`` the checkpoint of the bundle's own size. A long history comes in pages:
    ``from=N`` asks for the one that begins with item N.
    """
    actor_id = requested_actor(encoded)
    start = one_argument("from")
    ask = Wanted(
        aux=wanted("aux"), full=wanted("full"), leaves=wanted("leaves"),
        start=0 if start is None else parse_decimal(start), checkpoint=wanted("checkpoint"),
    )
    if ask.full and ask.leaves or ask.start and not ask.history:
        raise EncodingError("BadQuery", "full, or leaves; and only these have pages")
    # Only where messages are shown does it matter how far the tiles reach.
    published = context().published() if ask.full else None
    found = reader().bundle(actor_id, ask, published_size=0 if published is None else published.checkpoint.size)
    response = Response(encode_bundle(found), content_type=BUNDLE_TYPE)
    response.headers["Cache-Control"] = UNKEPT
    return response
