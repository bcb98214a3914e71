"""``ktlog init``: make a log's directory, once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from ktlog.config import Settings, write_settings
from ktlog.durable import write_atomic
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.operator.keys import (
    WEB_PURPOSES,
    PublicKeys,
    create_keys,
    load_checkpoint_signers,
    load_leaf_key,
    load_map_signers,
    load_seed,
    public_text,
)
from ktlog.operator.stores import (
    check_database,
    create_map,
    create_map_tiles,
    create_stores,
    create_tiles,
    map_exists,
    map_pending,
    map_signed_head,
    open_map,
    open_map_tiles,
    remove_map,
)
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import decode_public_key, encode_public_key
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.wire.actor_id import parse_host

PUBLIC_KEYS = "public-keys.json"


def create_log(
    directory: Path, origin: str, dialect: str, root_seed: bytes | None, *,
    heartbeat_seconds: int = Settings.heartbeat_seconds, notice_seconds: int = Settings.notice_seconds,
    store: str = "", store_file: str = "", objects: str = "", objects_endpoint: str = "", objects_region: str = "",
) -> Settings:
    """Make a new log in *directory*, which must be empty or absent.

    *root_seed* is 32 bytes, or None to draw them; it is not kept. The others: see ``Settings``.

    Raises:
        UsageError: the origin is no host name.
        StoreError: ``DirectoryInUse``, ``CannotCreate``.
    """
    check_origin(origin)
    settings = Settings(
        directory, origin, dialect, heartbeat_seconds=heartbeat_seconds, notice_seconds=notice_seconds, store=store,
        store_file=store_file, objects=objects, objects_endpoint=objects_endpoint, objects_region=objects_region,
    )
    check_database(settings)  # better a bad one now than after the keys are made
    if settings.place is not None:
        create_tiles(settings)
    try:
        if directory.exists() and any(directory.iterdir()):
            raise StoreError(
                "DirectoryInUse", f"{directory} is not empty", hint="Choose another directory; init never overwrites."
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise StoreError("CannotCreate", f"{directory}: {error}") from None
    create_keys(settings.keys, origin, root_seed or os.urandom(32))
    create_stores(settings)
    signers, map_signers = load_checkpoint_signers(settings.keys, origin), load_map_signers(settings.keys, origin)
    write_public_keys(settings, PublicKeys(
        tuple(str(signer.vkey) for signer in signers), (load_leaf_key(settings.keys).public,),
        tuple(str(signer.vkey) for signer in map_signers),
        web={purpose: public_text(origin, purpose, load_seed(settings.keys, purpose)) for purpose in WEB_PURPOSES},
    ))
    ensure_map(settings)
    # The settings come last: without them nothing here counts as a log.
    write_settings(settings)
    return settings


def check_origin(origin: str) -> None:
    """An origin is the log's host name: it is its URL, its key name and the first checkpoint line."""
    try:
        # The map's log is called O/map, and that name has to fit into a checkpoint as well.
        if len(parse_host(origin)) > MAXIMUM_ORIGIN_BYTES - len("/map"):
            raise EncodingError("BadOrigin", "too long")
    except EncodingError:
        raise UsageError(
            "BadOrigin", f"{origin!r} is not a host name in lower case, such as keys.example.com"
        ) from None


def ensure_map(settings: Settings) -> None:
    """Make what the map needs in the directory of a log that has none of it yet.

    Until the map's keys have signed anything its configuration may still change; from then on it is for ever.

    Raises:
        StoreError: ``MapLost``, ``WrongConfig``, and those of the map's store.
    """
    create_map_tiles(settings)
    signed = any(document.read() is not None for document in (map_signed_head(settings), map_pending(settings)))
    if map_exists(settings):
        try:
            open_map(settings).close()
            return
        except StoreError as error:
            if error.name != "WrongConfig" or signed:
                raise
        remove_map(settings)
    elif signed or open_map_tiles(settings, read_only=True).checkpoint() is not None:
        raise StoreError(
            "MapLost", "the map is gone, and its log was signed already",
            hint="Restore the newest copy. A new one would fork the map's log.",
        )
    create_map(settings)


def write_public_keys(settings: Settings, public: PublicKeys) -> None:
    """Write what may be known of the keys, for all processes that do not read the signing keys."""
    members = {
        "vkeys": list(public.vkeys), "map-vkeys": list(public.map_vkeys),
        "leaf-keys": [encode_public_key(key) for key in public.leaf_keys],
    }
    if public.retired_vkeys or public.retired_map_vkeys:
        members |= {
            "retired-vkeys": list(public.retired_vkeys), "retired-map-vkeys": list(public.retired_map_vkeys),
        }
    if public.web:
        members["web-keys"] = dict(public.web)
    write_atomic(settings.directory / PUBLIC_KEYS, json.dumps(members).encode() + b"\n")


def load_public_keys(settings: Settings) -> PublicKeys:
    path = settings.directory / PUBLIC_KEYS
    try:
        found = parse_json(path.read_bytes())
        return PublicKeys(
            tuple(found["vkeys"]), tuple(decode_public_key(key) for key in found["leaf-keys"]),
            tuple(found.get("map-vkeys", ())), tuple(found.get("retired-vkeys", ())),
            tuple(found.get("retired-map-vkeys", ())), dict(found.get("web-keys", {})),
        )
    except (OSError, EncodingError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError("BadPublicKeys", f"{path} cannot be used: {error}") from None


def check_public_keys(settings: Settings, signing: PublicKeys) -> PublicKeys:
    """Refuse to sign with keys that nobody was told of: *signing* are those that would sign.

    Raises:
        StoreError: ``KeysDiffer``, ``BadPublicKeys``.
    """
    public = load_public_keys(settings)
    if not public.map_vkeys:  # older code knew of no map; its keys are there all the same
        public = replace(public, map_vkeys=signing.map_vkeys)
        write_public_keys(settings, public)
    told = (public.vkeys, public.leaf_keys[-1:], public.map_vkeys)
    if told != (signing.vkeys, signing.leaf_keys, signing.map_vkeys):
        raise StoreError(
            "KeysDiffer", f"{settings.keys} holds other signing keys than {settings.directory / PUBLIC_KEYS} names",
            hint="A rotation that was not finished: ktlog keys settle --dir DIR. If there was none, somebody changed"
                 " a key: put back the one that was there.",
        )
    return public
