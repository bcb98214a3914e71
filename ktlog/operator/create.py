"""``ktlog init``: make a log's directory, once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ktlog.config import MAP_MMD_SECONDS, Settings, write_settings
from ktlog.durable import file_errors, make_directories, write_atomic
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.keymap.output import MapConfig, format_config
from ktlog.operator.keys import PublicKeys, create_keys, load_checkpoint_signers, load_leaf_key, load_map_signers
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import decode_public_key, encode_public_key
from ktlog.store.mapdb import MapStore
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.wire.actor_id import parse_host

PUBLIC_KEYS = "public-keys.json"


def create_log(
    directory: Path, origin: str, dialect: str, root_seed: bytes | None, *,
    heartbeat_seconds: int = Settings.heartbeat_seconds, notice_seconds: int = Settings.notice_seconds,
) -> Settings:
    """Make a new log in *directory*, which must be empty or absent.

    *root_seed* is 32 bytes, or None to draw them; it is not kept.

    Raises:
        UsageError: the origin is no host name.
        StoreError: ``DirectoryInUse``, ``CannotCreate``.
    """
    check_origin(origin)
    settings = Settings(
        directory, origin, dialect, heartbeat_seconds=heartbeat_seconds, notice_seconds=notice_seconds
    )
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
    SqliteStore.create(settings.database, origin=origin, dialect=dialect).close()
    TileFiles.create(settings.tiles)
    write_public_keys(settings)
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


def map_config(settings: Settings) -> MapConfig:
    """What leaf 0 of the map's output log says."""
    return MapConfig(
        settings.origin, settings.dialect, mmd=MAP_MMD_SECONDS, heartbeat=settings.heartbeat_seconds,
        notice=settings.notice_seconds,
    )


def ensure_map(settings: Settings) -> None:
    """Make what the map needs in the directory of a log that has none of it yet.

    Until the map's keys have signed anything its configuration may still change; from then on it is for ever.

    Raises:
        StoreError: ``MapLost``, ``WrongConfig``, and those of the map's store.
    """
    make_directories(settings.tiles, settings.map_tiles)
    if not load_public_keys(settings).map_vkeys:
        write_public_keys(settings)
    config = format_config(map_config(settings))
    signed = settings.map_signed_head.exists() or settings.map_pending.exists()
    if settings.map_database.exists():
        try:
            MapStore.open(settings.map_database, origin=settings.origin, config=config).close()
            return
        except StoreError as error:
            if error.name != "WrongConfig" or signed:
                raise
        for suffix in ("", "-wal", "-shm"):
            with file_errors(settings.map_database):
                settings.map_database.with_name(settings.map_database.name + suffix).unlink(missing_ok=True)
    elif signed or (settings.map_tiles / "checkpoint").exists():
        raise StoreError(
            "MapLost", f"{settings.map_database} is gone, and its log was signed already",
            hint="Restore the newest copy. A new one would fork the map's log.",
        )
    MapStore.create(settings.map_database, settings.origin, config)


def write_public_keys(settings: Settings) -> None:
    """Write what may be known of the keys, for the web workers, which do not read the signing keys."""
    signers = load_checkpoint_signers(settings.keys, settings.origin)
    leaf_key = load_leaf_key(settings.keys)
    text = json.dumps({
        "vkeys": [str(signer.vkey) for signer in signers],
        "map-vkeys": [str(signer.vkey) for signer in load_map_signers(settings.keys, settings.origin)],
        "leaf-keys": [encode_public_key(leaf_key.public)],
    })
    write_atomic(settings.directory / PUBLIC_KEYS, text.encode() + b"\n")


def load_public_keys(settings: Settings) -> PublicKeys:
    path = settings.directory / PUBLIC_KEYS
    try:
        found = parse_json(path.read_bytes())
        return PublicKeys(
            tuple(found["vkeys"]), tuple(decode_public_key(key) for key in found["leaf-keys"]),
            tuple(found.get("map-vkeys", ())),
        )
    except (OSError, EncodingError, KeyError, TypeError, AttributeError) as error:
        raise StoreError("BadPublicKeys", f"{path} cannot be used: {error}") from None
