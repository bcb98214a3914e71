"""Are the keys there that this machine's part of a log will ask for? Looked at before any process of it is started.

What signs is only looked at from outside: but for the signer's process, none is to have it in its memory.
"""

from __future__ import annotations

from dataclasses import replace

from ktlog.config import ALL, SEQUENCER, WEB, Settings
from ktlog.durable import check_secret
from ktlog.errors import StoreError
from ktlog.operator.create import load_public_keys, write_public_keys
from ktlog.operator.keys import SEED_BYTES, WEB_PURPOSES, check_key_directory, check_seed, load_fetch_key, old_paths
from ktlog.operator.rotate import check_signing_keys, check_web_keys, web_halves
from ktlog.pkd.keychanges import KINDS

SIGNING = (*KINDS["leaf"], *KINDS["checkpoint"], *KINDS["map"])


def check_keys(settings: Settings) -> None:
    """Refuse to start with a key that is missing or cannot be used, or that is not the one that was announced.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret", "UnsafeKeys", "MissingStore", "TwoSources";
            "KeysDiffer", "BadPublicKeys", "BadKeyChanges", "KeyChangesLost", "RotationUnfinished".
    """
    signs_here = settings.role in (ALL, SEQUENCER) and not settings.signer
    if signs_here:
        _check(settings, SIGNING, " Or, if another process holds it, name that in ktlog.toml: signer = \"PATH\".")
    if settings.role in (ALL, WEB):
        _check(settings, WEB_PURPOSES, "")
        load_fetch_key(settings.keys)
    public = load_public_keys(settings)
    check_signing_keys(settings, public)
    if settings.role in (ALL, WEB):
        check_web_keys(settings)
        if not public.web:  # older code wrote down none of these
            write_public_keys(settings, replace(public, web=web_halves(settings)))


def _check(settings: Settings, purposes: tuple[str, ...], otherwise: str) -> None:
    try:
        check_key_directory(settings.keys)
        for purpose in purposes:
            check_seed(settings.keys, purpose)
            for path, _ in old_paths(settings.keys, purpose):
                check_secret(path, SEED_BYTES)
    except StoreError as error:
        if error.name not in ("MissingSecret", "BadSecret", "MissingStore"):
            raise
        raise StoreError(
            error.name, error.message,
            hint=f"Restore {settings.keys} from where the keys are kept (docs/keys.md): nothing makes a key again."
            " If the key is a systemd credential, this service was handed none of its name." + otherwise,
        ) from None
