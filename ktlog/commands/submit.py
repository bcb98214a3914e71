"""``ktlog submit``: an instance client on the command line."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ktlog.client import build
from ktlog.client.build import Built
from ktlog.client.keyfile import load_http_key, load_key
from ktlog.client.terms import Terms, fetch_terms
from ktlog.durable import read_file
from ktlog.errors import UsageError
from ktlog.operator.instance import deliver
from ktlog.pkd.keys import decode_public_key
from ktlog.wire.actor_id import canonical_actor_id
from ktlog.wire.dial import load_dial
from ktlog.wire.fetch import Fetcher

_FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Delivery:
    """How a message gets to a log: the options that all subcommands share."""

    fetcher: Fetcher
    log_url: str
    actor_id: str
    http_key: Path
    http_key_id: str
    as_json: bool

    def send(self, make: Callable[[Terms, dict[str, Any]], Built]) -> None:
        """Build a message with what the log asks for, deliver it encrypted, and check the receipt."""
        http_key = load_http_key(self.http_key)
        terms = fetch_terms(self.fetcher, self.log_url)
        now = int(time.time())
        built = make(terms, {"recent_root": terms.recent_root, "now": now, "dialect": terms.dialect})
        content = build.build_envelope(self.actor_id, build.seal(built, terms.encapsulation_key))
        answer = deliver(
            self.fetcher, self.log_url, self.actor_id, http_key, self.http_key_id, content, now, os.urandom
        )
        receipt = build.check_receipt(answer, built.preimage, built.dialect, terms.leaf_keys)
        self.report(
            answer, f"accepted: the log signed this message as an entry; as entry {receipt.leaf_index}, the log says"
        )

    def send_raw(self, content: str) -> None:
        """Deliver a finished envelope. Its message is not known here, so the receipt cannot be checked."""
        answer = deliver(
            self.fetcher, self.log_url, self.actor_id, load_http_key(self.http_key), self.http_key_id, content,
            int(time.time()), os.urandom,
        )
        self.report(answer, f"accepted as entry {answer['leaf-index']}, the log says; its signature was not checked")

    def report(self, answer: dict[str, Any], words: str) -> None:
        click.echo(json.dumps(answer) if self.as_json else words)


_DELIVERY_OPTIONS = (
    click.option("--log", "log", required=True, metavar="ORIGIN|URL", help="The log: keys.example.com."),
    click.option("--actor", required=True, metavar="URL", help="The actor that sends; see the subcommand."),
    click.option("--http-key", type=_FILE, required=True,
                 help="The actor's Ed25519 key for HTTP signatures: 32 bytes in hex, or PEM."),
    click.option("--http-key-id", metavar="URL", help="Its id in the actor's document.  [default: ACTOR#main-key]"),
    click.option("--dial", type=_FILE, help="Dial table, for tests; also KTLOG_DIAL."),
    click.option("--json", "as_json", is_flag=True, help="Print the log's receipt as JSON."),
)


def delivers(function: Callable[..., None]) -> Callable[..., None]:
    """Give a subcommand the shared options, as one Delivery."""

    @functools.wraps(function)
    def run(
        log: str, actor: str, http_key: Path, http_key_id: str | None, dial: Path | None, as_json: bool, **others: Any
    ) -> None:
        actor_id = canonical_actor_id(actor)
        function(Delivery(
            fetcher=Fetcher(load_dial(dial)) if dial else Fetcher.from_environment(),
            log_url=(log if "://" in log else f"https://{log}").rstrip("/"),
            actor_id=actor_id, http_key=http_key, http_key_id=http_key_id or f"{actor_id}#main-key", as_json=as_json,
        ), **others)

    for option in reversed(_DELIVERY_OPTIONS):
        run = option(run)
    return run


sign_with = click.option("--sign-with", type=_FILE, required=True, metavar="FILE", help="Key file that signs.")


@click.group()
def command() -> None:
    """Send a protocol message to a log, for an actor of your instance.

    The message is signed with the actor's own key (ktlog key), encrypted to the log, and delivered as
    a direct message with the actor's HTTP signature. The log's signature on the entry is checked; the
    index and the root in its receipt are what the log says.
    """


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
    return click.option("--key", type=_FILE, metavar="FILE", help="Key file of the key in question.")(function)


@command.command("add-key")
@delivers
@key_options
@click.option("--sign-with", type=_FILE, metavar="FILE",
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
@click.option("--token", metavar="TEXT", help="A revocation token.")
@click.option("--token-file", type=_FILE, metavar="FILE", help="A file that holds one.")
@click.option("--key", type=_FILE, metavar="FILE", help="The key file itself: makes the token.")
def revoke_third_party(delivery: Delivery, token: str | None, token_file: Path | None, key: Path | None) -> None:
    """Revoke a key by its token, whoever holds it. Any actor may deliver it."""
    given = [text for text in (
        token,
        _read_text(token_file).strip() if token_file is not None else None,
        load_key(key).revocation_token() if key is not None else None,
    ) if text is not None]
    if len(given) != 1:
        raise UsageError("BadOptions", "give one of --token, --token-file and --key")
    delivery.send(lambda terms, options: build.revoke_by_token(given[0], dialect=terms.dialect))


@command.command()
@delivers
@click.argument("path", metavar="FILE", type=_FILE)
def raw(delivery: Delivery, path: Path) -> None:
    """Deliver the finished envelope in FILE, byte for byte: what a user's own client made."""
    delivery.send_raw(_read_text(path))


def _read_text(path: Path) -> str:
    data = read_file(path)
    if data is None:
        raise UsageError("NoFile", f"{path} does not exist")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("NoFile", f"{path} is not text in UTF-8") from None
