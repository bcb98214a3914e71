"""``ktlog init``: make a log's directory, once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ktlog.config import Settings, write_settings
from ktlog.durable import write_atomic
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.operator.keys import PublicKeys, create_keys, load_checkpoint_signers, load_leaf_key
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import decode_public_key, encode_public_key
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.wire.actor_id import parse_host

PUBLIC_KEYS = "public-keys.json"


def create_log(directory: Path, origin: str, dialect: str, root_seed: bytes | None) -> Settings:
    """Make a new log in *directory*, which must be empty or absent.

    *root_seed* is 32 bytes, or None to draw them; it is not kept.

    Raises:
        UsageError: the origin is no host name.
        StoreError: ``DirectoryInUse``, ``CannotCreate``.
    """
    check_origin(origin)
    settings = Settings(directory, origin, dialect)
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


def write_public_keys(settings: Settings) -> None:
    """Write what may be known of the keys, for the web workers, which do not read the signing keys."""
    signers = load_checkpoint_signers(settings.keys, settings.origin)
    leaf_key = load_leaf_key(settings.keys)
    text = json.dumps({
        "vkeys": [str(signer.vkey) for signer in signers],
        "leaf-keys": [encode_public_key(leaf_key.public)],
    })
    write_atomic(settings.directory / PUBLIC_KEYS, text.encode() + b"\n")


def load_public_keys(settings: Settings) -> PublicKeys:
    path = settings.directory / PUBLIC_KEYS
    try:
        found = parse_json(path.read_bytes())
        return PublicKeys(tuple(found["vkeys"]), tuple(decode_public_key(key) for key in found["leaf-keys"]))
    except (OSError, EncodingError, KeyError, TypeError, AttributeError) as error:
        raise StoreError("BadPublicKeys", f"{path} cannot be used: {error}") from None
