"""``ktlog key``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from ktlog.client.keyfile import SigningKey, load_key, save_key, save_token
from ktlog.pkd.keys import key_hash

_FILE = click.Path(path_type=Path)
_SHORT = 48
"""Characters of a key that are shown: enough to tell it from others, as `ktlog keys list` has it."""


@click.group()
def command() -> None:
    """Make and show an actor's signing keys (ML-DSA-44)."""


@command.command()
@click.option("--out", "path", type=_FILE, required=True, help="Where the secret goes; must not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new(path: Path, as_json: bool) -> None:
    """Make a key. The file holds the secret (32 bytes in hex, mode 0600): back it up.

    Prints the SHA-256 of its public half, to compare by voice; --json has all of that half, as `ktlog key show` does.
    """
    key = SigningKey.generate()
    save_key(path, key)
    if as_json:
        _print(key, as_json, {"file": str(path)})
        return
    click.echo(f"sha256 {key_hash(key.public_key).hex()}\n{key.public_text[:_SHORT]}…")
    token = shlex.join(["ktlog", "key", "revocation-token", str(path), "--out", str(path.with_suffix(".token"))])
    click.echo(
        f"Saved the secret to {path}: back it up. For the day it is lost or stolen, make a token now that revokes it,"
        f" and keep that elsewhere: {token}", err=True,
    )


@command.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(path: Path, as_json: bool) -> None:
    """Print the public half of the key in FILE, and its SHA-256, to compare by voice."""
    _print(load_key(path), as_json, {})


@command.command("revocation-token")
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--out", type=_FILE, help="Write it there, with mode 0600, and print nothing; must not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def revocation_token(path: Path, out: Path | None, as_json: bool) -> None:
    """Print a token that revokes the key in FILE, in every log, at any time.

    Make one now and keep it offline, away from the key: it is good when the key is lost or stolen.
    Whoever has it can revoke the key, and can do nothing else.
    """
    key = load_key(path)
    if out is not None:
        save_token(out, key)
        return
    token = key.revocation_token()
    if as_json:
        token = json.dumps({"revocation-token": token, "sha256": key_hash(key.public_key).hex()})
    click.echo(token)


def _print(key: SigningKey, as_json: bool, more: dict[str, str]) -> None:
    fingerprint = key_hash(key.public_key).hex()
    if as_json:
        click.echo(json.dumps({"public-key": key.public_text, "sha256": fingerprint, **more}))
        return
    click.echo(key.public_text)
    click.echo(f"sha256 {fingerprint}")
