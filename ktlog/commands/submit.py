"""``ktlog submit``: an instance client on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from ktlog.client import build
from ktlog.client.keyfile import load_key
from ktlog.commands import direct, totp
from ktlog.commands.delivery import FILE, Delivery, delivers, sign_with
from ktlog.commands.direct import given_token, read_text, token_options
from ktlog.errors import UsageError
from ktlog.pkd.keys import decode_public_key
from ktlog.wire.actor_id import canonical_actor_id


@click.group()
def command() -> None:
    """Send a protocol message to a log, for an actor of your instance.

    The message is signed with the actor's own key (ktlog key), encrypted to the log, and delivered as
    a direct message with the actor's HTTP signature. The log's signatures on the entry, and on its whole answer to
    this very request, are checked, on a refusal too. With index and root in it the log makes a promise, which
    --receipt keeps; whether the log keeps it, a lookup tells.
    """


for subcommand in (*direct.COMMANDS, *totp.COMMANDS):
    command.add_command(subcommand)


def _public_key(key: Path | None, text: str | None) -> bytes:
    if key is not None and text is None:
        return load_key(key).public_key
    if key is None and text is not None:
        return decode_public_key(text)
    raise UsageError("BadOptions", "give either --key FILE or --public-key TEXT")


def key_options(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--public-key", "text", metavar="mldsa44:...", help="The key, if its file is elsewhere.")(
        function
    )
    return click.option("--key", type=FILE, metavar="FILE", help="Key file of the key in question.")(function)


@command.command("add-key")
@delivers
@key_options
@click.option("--sign-with", type=FILE, metavar="FILE",
              help="A key that the actor has. Without it the new key signs itself, which only an actor's first may.")
def add_key(delivery: Delivery, key: Path | None, text: str | None, sign_with: Path | None) -> None:
    """Add a key to an actor."""
    new_key = _public_key(key, text)
    signer_file = sign_with if sign_with is not None else key
    if signer_file is None:
        raise UsageError("BadOptions", "a first key signs itself: give --key FILE, or --sign-with FILE")
    signer = load_key(signer_file)
    delivery.send(lambda terms, options: build.add_key(delivery.actor_id, new_key, signer, **options))


@command.command("revoke-key")
@delivers
@key_options
@sign_with
def revoke_key(delivery: Delivery, key: Path | None, text: str | None, sign_with: Path) -> None:
    """Revoke a key for good, signed by another key of the actor."""
    old_key, signer = _public_key(key, text), load_key(sign_with)
    delivery.send(lambda terms, options: build.revoke_key(delivery.actor_id, old_key, signer, **options))


@command.command()
@delivers
@sign_with
def fireproof(delivery: Delivery, sign_with: Path) -> None:
    """Forbid BurnDown: the instance can no longer reset the actor."""
    signer = load_key(sign_with)
    delivery.send(lambda terms, options: build.fireproof(delivery.actor_id, signer, **options))


@command.command("undo-fireproof")
@delivers
@sign_with
def undo_fireproof(delivery: Delivery, sign_with: Path) -> None:
    """Allow BurnDown again."""
    signer = load_key(sign_with)
    delivery.send(lambda terms, options: build.undo_fireproof(delivery.actor_id, signer, **options))


@command.command("add-aux-data")
@delivers
@sign_with
@click.option("--type", "aux_type", required=True, metavar="TYPE", help="Such as age-v1.")
@click.option("--data", "aux_data", required=True, metavar="TEXT", help="The data itself.")
def add_aux_data(delivery: Delivery, sign_with: Path, aux_type: str, aux_data: str) -> None:
    """Attach auxiliary data, such as a public key of another protocol."""
    signer = load_key(sign_with)
    delivery.send(
        lambda terms, options: build.add_aux_data(delivery.actor_id, aux_type, aux_data, signer, **options)
    )


@command.command("revoke-aux-data")
@delivers
@sign_with
@click.option("--type", "aux_type", required=True, metavar="TYPE", help="Such as age-v1.")
@click.option("--id", "aux_id", required=True, metavar="ID", help="The data's id, as lookups show it.")
def revoke_aux_data(delivery: Delivery, sign_with: Path, aux_type: str, aux_id: str) -> None:
    """Detach auxiliary data."""
    signer = load_key(sign_with)
    delivery.send(
        lambda terms, options: build.revoke_aux_data(delivery.actor_id, aux_type, aux_id, signer, **options)
    )


@command.command("move-identity")
@delivers
@sign_with
@click.option("--from", "old_actor", required=True, metavar="URL", help="The actor that moves; its key signs.")
def move_identity(delivery: Delivery, sign_with: Path, old_actor: str) -> None:
    """Move keys and auxiliary data to --actor, the new actor, who delivers the message."""
    signer, source = load_key(sign_with), canonical_actor_id(old_actor)
    delivery.send(lambda terms, options: build.move_identity(source, delivery.actor_id, signer, **options))


@command.command("revoke-third-party")
@delivers
@token_options
def revoke_third_party(delivery: Delivery, token: str | None, token_file: Path | None, key: Path | None) -> None:
    """Revoke a key by its token, whoever holds it. Any actor may deliver it."""
    text = given_token(token, token_file, key)
    delivery.send(lambda terms, options: build.revoke_by_token(text, dialect=terms.dialect))


@command.command()
@delivers
@click.argument("path", metavar="FILE", type=FILE)
def raw(delivery: Delivery, path: Path) -> None:
    """Deliver the finished envelope in FILE, byte for byte: what a user's own client made."""
    delivery.send_raw(read_text(path))
