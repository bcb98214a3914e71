"""The published files of a mirrored log, as they were read from it: for its operator, should it ever be lost.

Below ``/api/replica/<id>`` they lie as they do below the log's own URL: ``ktlog restore --from-mirror`` reads them,
and so do ``ktlog fsck`` and auditors. Records name actors, and are served only for as long as the mirror may show
plaintext.
"""

from __future__ import annotations

import json

from flask import Blueprint, Response, g

from ktlog.durable import read_file
from ktlog.operator.sources import Source
from ktlog.pkd.erasure import encode_erasure_record
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tiles import ENTRIES, TILE_WIDTH, format_bundle, parse_tile_path
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.web.errors import error_response
from ktlog.web.files import IMMUTABLE, note_response, record_json, tile_response
from ktlog.web.logview import ReplicaView


def _view() -> ReplicaView:
    return g.log_view


def _size() -> int:
    return _view().size()


def _bytes(data: bytes, cache: str = IMMUTABLE, kind: str = "application/octet-stream") -> Response:
    response = Response(data, content_type=kind)
    response.headers["Cache-Control"] = cache
    return response


def checkpoint() -> Response:
    published = _view().published()
    return note_response(None if published is None else published.raw, "no-cache")


def tile(rest: str) -> Response:
    """Tiles are kept; bundles are made of the entries."""
    found = parse_tile_path(f"tile/{rest}")
    start = found.number * TILE_WIDTH
    if found.level != ENTRIES:
        return tile_response(_view().tiles, rest)
    if start + found.width > _size():
        return error_response("not_found", f"this mirror has no tile/{rest}")
    return _bytes(format_bundle(_view().store.entries(start, start + found.width)))


def records(rest: str) -> Response:
    bundle = parse_tile_path(f"tile/entries/{rest}")
    start, end = bundle.number * TILE_WIDTH, bundle.number * TILE_WIDTH + bundle.width
    _ = _view().reader  # refuses when plaintext may not be shown
    if end > _size():
        return error_response("not_found", f"records/{rest} reaches beyond what is mirrored")
    lines = [json.dumps(record_json(record), ensure_ascii=False) for record in _view().store.records(start, end)]
    return _bytes(("\n".join(lines) + "\n").encode(), "no-cache", "application/jsonl")


def erasures() -> Response:
    store = _view().store
    leaves = [encode_erasure_record(one) for one in store.erasures(0, store.erasure_count(_size()))]
    root = Frontier().extend(map(hash_leaf, leaves)).root()
    return _bytes(
        json.dumps({"size": len(leaves), "root": encode_base64(root)}).encode(), "no-cache", "application/json"
    )


def erasure_bundle(rest: str) -> Response:
    bundle = parse_tile_path(f"tile/entries/{rest}")
    start, end = bundle.number * TILE_WIDTH, bundle.number * TILE_WIDTH + bundle.width
    store = _view().store
    if end > store.erasure_count(_size()):
        return error_response("not_found", f"this mirror has no erasures/{rest}")
    return _bytes(format_bundle([encode_erasure_record(one) for one in store.erasures(start, end)]))


def leaf_keys() -> Response:
    data = read_file(_view().source.leaf_keys)
    if data is None:
        return error_response("not_found", "this mirror has not kept the leaf keys yet")
    return _bytes(data, "no-cache", "application/json")


def _map(source: Source) -> TileFiles | None:
    return TileFiles(source.map_tiles) if source.map_tiles.is_dir() else None


def map_checkpoint() -> Response:
    tiles = _map(_view().source)
    return note_response(None if tiles is None else tiles.checkpoint(), "no-cache")


def map_tile(rest: str) -> Response:
    tiles = _map(_view().source)
    if tiles is None:
        return error_response("not_found", "this mirror has no copy of the map's log")
    return tile_response(tiles, rest)


def add_routes(replica: Blueprint) -> None:
    """Serve them below *replica*, which chooses the log."""
    for rule, view in (
        ("/checkpoint", checkpoint), ("/tile/<path:rest>", tile), ("/records/<path:rest>", records),
        ("/erasures", erasures), ("/erasures/<path:rest>", erasure_bundle), ("/leaf-keys", leaf_keys),
        ("/map/checkpoint", map_checkpoint), ("/map/tile/<path:rest>", map_tile),
    ):
        replica.add_url_rule(rule, endpoint=f"file_{view.__name__}", view_func=view)
