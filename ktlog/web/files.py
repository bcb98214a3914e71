"""The C2SP tlog-tiles files, and the records beside them.

In production a web server or an object store serves the tiles and the checkpoint straight from
``DIR/tiles``; these routes are what makes a log complete without one.
"""

from __future__ import annotations

import json

from flask import Blueprint, Response

from ktlog.durable import read_file
from ktlog.errors import EncodingError
from ktlog.pkd.erasure import encode_erasure_record
from ktlog.pkd.keys import encode_public_key
from ktlog.store.contracts import Record, TileStore
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tiles import TILE_WIDTH, format_bundle, parse_tile_path
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.web.context import Context, context
from ktlog.web.errors import error_response

IMMUTABLE = "public, max-age=31536000, immutable"
FOR_A_DAY = "public, max-age=86400, immutable"
"""Of what never changes, and goes some day."""
FOR_ANY_PAGE = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "Retry-After, Signature, Signature-Input"),
)
"""Headers with which a browser lets a page of any site read an answer, and its signatures."""

files = Blueprint("files", __name__)


@files.get("/checkpoint")
def checkpoint() -> Response:
    published = context().published()
    return note_response(None if published is None else published.raw, "no-cache")


def note_response(note: bytes | None, cache: str) -> Response:
    """A signed checkpoint; None is the error that says it was not published."""
    if note is None:
        return error_response("not_published", "no such checkpoint has been published yet")
    response = Response(note, content_type="text/plain; charset=utf-8")
    response.headers["Cache-Control"] = cache
    return response


@files.get("/tile/<path:rest>")
def tile(rest: str) -> Response:
    return tile_response(context().tiles, rest)


def tile_response(tiles: TileStore, rest: str) -> Response:
    """The tile or entry bundle at tile/*rest*, or the error that says there is none."""
    data = tiles.read(f"tile/{rest}")
    if data is None:
        return error_response("not_found", f"this log has no tile/{rest}")
    response = Response(data, content_type="application/octet-stream")
    response.headers["Cache-Control"] = IMMUTABLE
    return response


@files.get("/records/<path:rest>")
def records(rest: str) -> Response:
    """A page of records, in step with the entry bundle of the same number and width.

    Source: directory map specification, section 4. A page changes only by erasure; a cache must not outlive it.
    """
    ctx = context()
    bundle = parse_tile_path(f"tile/entries/{rest}")
    published = ctx.published()
    start = bundle.number * TILE_WIDTH
    end = start + bundle.width
    if published is None or end > published.checkpoint.size:
        return error_response("not_found", f"records/{rest} reaches beyond the published checkpoint")
    lines = [json.dumps(record_json(record), ensure_ascii=False) for record in ctx.store.records(start, end)]
    response = Response("\n".join(lines) + "\n", content_type="application/jsonl")
    # A page kept by a cache would show, after an erasure, what the log has withheld.
    response.headers["Cache-Control"] = "no-cache"
    return response


def record_json(record: Record) -> dict[str, object]:
    return {
        "leaf-index": record.leaf_index,
        "message": preimage_text(record),
        "plain": dict(record.plain),
        "salts": {name: encode_base64(salt) for name, salt in record.salts.items()},
        "withheld": record.withheld,
    }


def preimage_text(record: Record) -> str:
    try:
        return record.preimage.decode("utf-8")
    except UnicodeDecodeError:
        raise EncodingError("BadRecord", f"record {record.leaf_index} is not UTF-8") from None


@files.get("/erasures")
def erasures() -> Response:
    """Where the erasure log stands: its size, and the RFC 9162 root of its records.

    Only erasures that take effect within the published tree count: each can be checked against it.

    Source: directory map specification, section 5.
    """
    ctx = context()
    size = published_erasures(ctx)
    frontier = Frontier()
    for start in range(0, size, TILE_WIDTH):
        for record in erasure_records(ctx, start, min(start + TILE_WIDTH, size)):
            frontier = frontier.append(hash_leaf(record))
    response = Response(
        json.dumps({"size": size, "root": encode_base64(frontier.root())}), content_type="application/json"
    )
    response.headers["Cache-Control"] = "no-cache"
    return response


@files.get("/erasures/<path:rest>")
def erasure_bundle(rest: str) -> Response:
    """A page of encoded erasure records, in the form of an entry bundle. It never changes."""
    ctx = context()
    bundle = parse_tile_path(f"tile/entries/{rest}")
    start = bundle.number * TILE_WIDTH
    end = start + bundle.width
    if end > published_erasures(ctx):
        return error_response("not_found", f"erasures/{rest} reaches beyond the published erasures")
    response = Response(
        format_bundle(erasure_records(ctx, start, end)), content_type="application/octet-stream"
    )
    response.headers["Cache-Control"] = IMMUTABLE
    return response


def published_erasures(ctx: Context) -> int:
    """How many erasures the published checkpoint covers."""
    published = ctx.published()
    return 0 if published is None else ctx.store.erasure_count(published.checkpoint.size)


def erasure_records(ctx: Context, start: int, end: int) -> list[bytes]:
    return [encode_erasure_record(record) for record in ctx.store.erasures(start, end)]


@files.get("/leaf-keys")
def leaf_keys() -> Response:
    keys = [encode_public_key(key) for key in context().public_keys.leaf_keys]
    response = Response(json.dumps({"leaf-keys": keys}), content_type="application/json")
    response.headers["Cache-Control"] = "public, max-age=300"
    return response


@files.get("/keys")
@files.get("/map/keys", endpoint="map_keys")
def keys() -> Response:
    """Every replacement of one of the log's keys, a line each; see ``ktlog.pkd.keychanges``. Empty before the first."""
    response = Response(read_file(context().settings.key_changes) or b"", content_type="application/jsonl")
    response.headers["Cache-Control"] = "no-cache"
    return response
