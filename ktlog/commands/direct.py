"""``ktlog submit burn-down`` and ``ktlog submit revoke-token``: what does not go through a log's inbox."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click

from ktlog.client import build
from ktlog.client.keyfile import load_http_key, load_key
from ktlog.client.terms import fetch_terms
from ktlog.commands.delivery import FILE, Delivery, delivers, full_url, sign_with
from ktlog.durable import read_file
from ktlog.errors import MessageRejected, UsageError
from ktlog.operator.direct import deliver_burndown, deliver_token
from ktlog.pkd.token import parse_token
from ktlog.wire.actor_id import canonical_actor_id
from ktlog.wire.dial import load_dial
from ktlog.wire.fetch import Fetcher


def token_options(function: Callable[..., None]) -> Callable[..., None]:
    """Three ways to give a token, for :func:`given_token`."""
    for option in (
        click.option("--key", type=FILE, metavar="FILE", help="The key file itself: makes the token."),
        click.option("--token-file", type=FILE, metavar="FILE", help="A file that holds one."),
        click.option("--token", metavar="TEXT", help="A revocation token."),
    ):
        function = option(function)
    return function


def given_token(token: str | None, token_file: Path | None, key: Path | None) -> str:
    """The one token that the options give. Raises UsageError."""
    given = [text for text in (
        token,
        read_text(token_file).strip() if token_file is not None else None,
        load_key(key).revocation_token() if key is not None else None,
    ) if text is not None]
    if len(given) != 1:
        raise UsageError("BadOptions", "give one of --token, --token-file and --key")
    return given[0]


def read_text(path: Path) -> str:
    """A text file. Raises UsageError."""
    data = read_file(path)
    if data is None:
        raise UsageError("NoFile", f"{path} does not exist")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("NoFile", f"{path} is not text in UTF-8") from None


@click.command("burn-down")
@delivers
@sign_with
@click.option("--target", required=True, metavar="URL", help="The actor to empty, of the host of --actor.")
@click.option("--otp", metavar="DIGITS", help="One-time password, if your instance has enrolled them.")
def burn_down(delivery: Delivery, sign_with: Path, target: str, otp: str | None) -> None:
    """Take all keys and auxiliary data from an actor who lost their keys, so that they can start over.

    --actor is the moderator that issues this; a key that it has in the log signs. The message is not
    encrypted, and goes to the log's own endpoint. An actor who is Fireproof stays as they are.
    """
    signer, http_key = load_key(sign_with), load_http_key(delivery.http_key)
    actor_id = canonical_actor_id(target)
    terms, now = fetch_terms(delivery.fetcher, delivery.log_url), int(time.time())
    built = build.burn_down(
        actor_id, delivery.actor_id, signer, recent_root=terms.recent_root, now=now, dialect=terms.dialect,
        otp=otp,
    )
    answer = deliver_burndown(
        delivery.fetcher, delivery.log_url, http_key, delivery.http_key_id,
        build.build_plain_envelope(delivery.actor_id, built), now, delivery.keep,
    )
    if "merkle-leaf" not in answer:
        delivery.report(answer, "accepted, the log says and signed; it gives no receipt for the entry")
        return
    receipt = build.check_receipt(answer, built.preimage, built.dialect, terms.leaf_keys)
    delivery.report(
        answer,
        f"accepted: the log signed this message as an entry; as entry {receipt.leaf_index}, the log says",
    )


@click.command("revoke-token")
@click.option("--log", "log", required=True, metavar="ORIGIN|URL", help="The log: keys.example.com.")
@token_options
@click.option("--dial", type=FILE, help="Dial table, for tests; also KTLOG_DIAL.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def revoke_token(
    log: str, token: str | None, token_file: Path | None, key: Path | None, dial: Path | None, as_json: bool
) -> None:
    """Revoke a key by its token, at the log itself. No instance is asked, and no account is needed."""
    text = given_token(token, token_file, key)
    parse_token(text)
    fetcher = Fetcher(load_dial(dial)) if dial else Fetcher.from_environment()
    if not deliver_token(fetcher, full_url(log), text, int(time.time())):
        raise MessageRejected(
            "unknown_token_key", "the log has no use for the token: nobody has its key there",
            hint="The key is not revoked there for the future either. Send the token again if it turns up.",
        )
    words = "accepted: the key is revoked, the log says and signed"
    click.echo(json.dumps({"revoked": True}) if as_json else words)


COMMANDS = (burn_down, revoke_token)
