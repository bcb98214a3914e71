"""How ``ktlog submit`` gets a message to a log: the options that its subcommands share."""

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
from ktlog.client.keyfile import load_http_key
from ktlog.client.terms import Terms, fetch_terms
from ktlog.durable import write_once
from ktlog.errors import UsageError
from ktlog.operator.direct import read_200
from ktlog.operator.instance import MAX_ANSWER_BYTES, deliver, exchange_of, read_signed
from ktlog.pkd.canonical import canonical
from ktlog.wire.actor_id import canonical_actor_id
from ktlog.wire.dial import load_dial
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpsig import sign_request
from ktlog.wire.httpsig_response import ACCEPT_BOTH, Exchange
from ktlog.wire.receipts import LOG_ACTOR_PATH, format_receipt

FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Delivery:
    """How a message gets to a log: the options that all subcommands share."""

    fetcher: Fetcher
    log_url: str
    actor_id: str
    http_key: Path
    http_key_id: str
    as_json: bool
    receipt: Path | None = None

    def keep(self, exchange: Exchange) -> None:
        """Store a log's signed acceptance, if that was asked for. It is evidence whatever is in it.

        Raises:
            StoreError: it cannot be written. The log has accepted; sent again, the message gets a receipt again.
        """
        if self.receipt is not None:
            write_once(self.receipt, format_receipt(exchange))

    def send(self, make: Callable[[Terms, dict[str, Any]], Built]) -> None:
        """Build a message with what the log asks for, deliver it encrypted, and check the receipt."""
        http_key = load_http_key(self.http_key)
        terms = fetch_terms(self.fetcher, self.log_url)
        now = int(time.time())
        built = make(terms, {"recent_root": terms.recent_root, "now": now, "dialect": terms.dialect})
        content = build.build_envelope(self.actor_id, build.seal(built, terms.encapsulation_key))
        answer = deliver(
            self.fetcher, self.log_url, self.actor_id, http_key, self.http_key_id, content, now, os.urandom, self.keep
        )
        receipt = build.check_receipt(answer, built.preimage, built.dialect, terms.leaf_keys)
        self.report(
            answer, f"accepted: the log signed this message as an entry; as entry {receipt.leaf_index}, the log says"
        )

    def send_raw(self, content: str) -> None:
        """Deliver a finished envelope. Its message is not known here, so the entry in the receipt cannot be checked;
        that the log signed the receipt as its answer to these bytes is checked as everywhere."""
        answer = deliver(
            self.fetcher, self.log_url, self.actor_id, load_http_key(self.http_key), self.http_key_id, content,
            int(time.time()), os.urandom, self.keep,
        )
        index = answer["leaf-index"]
        self.report(answer, f"accepted as entry {index}, the log says and signed; the entry itself was not checked")

    def post(self, target: str, members: dict[str, Any], now: int) -> dict[str, Any]:
        """Send a JSON object to one of the log's own endpoints, with the actor's HTTP signature.

        Returns the answer of status 200, which the log signed as its answer to this very request.

        Raises:
            MessageRejected: the log refuses, and signed that; its code and its words.
            Unreachable: no valid answer, or one that the log did not sign. Whether the log has acted on the
                request is then not known.
        """
        url, body = self.log_url + target, canonical(members)
        headers = {"Content-Type": "application/json", "Accept": "application/json", **ACCEPT_BOTH}
        signed = sign_request("POST", url, headers, body, self.http_key_id, load_http_key(self.http_key), now)
        response = self.fetcher.post(url, body, signed, max_bytes=MAX_ANSWER_BYTES)
        return read_signed(
            self.fetcher, self.log_url + LOG_ACTOR_PATH, exchange_of(url, signed, response), now,
            lambda: read_200(response, members["!pkd-context"]),
        )

    def report(self, answer: dict[str, Any], words: str) -> None:
        click.echo(json.dumps(answer) if self.as_json else words)


_DELIVERY_OPTIONS = (
    click.option("--log", "log", required=True, metavar="ORIGIN|URL", help="The log: keys.example.com."),
    click.option("--actor", required=True, metavar="URL", help="The actor that sends; see the subcommand."),
    click.option("--http-key", type=FILE, required=True,
                 help="The actor's Ed25519 key for HTTP signatures: 32 bytes in hex, or PEM."),
    click.option("--http-key-id", metavar="URL", help="Its id in the actor's document.  [default: ACTOR#main-key]"),
    click.option("--dial", type=FILE, help="Dial table, for tests; also KTLOG_DIAL."),
    click.option("--json", "as_json", is_flag=True, help="Print the log's receipt as JSON."),
)


def full_url(log: str) -> str:
    """The URL of a log of which somebody typed the origin or the URL."""
    return (log if "://" in log else f"https://{log}").rstrip("/")


_RECEIPT_OPTION = click.option(
    "--receipt", type=FILE, metavar="FILE", help="Keep the log's signed acceptance here (ktlog receipt)."
)


def delivers(function: Callable[..., None]) -> Callable[..., None]:
    """Give a subcommand that sends a message the shared options, as one Delivery."""
    return _RECEIPT_OPTION(asks(function))


def asks(function: Callable[..., None]) -> Callable[..., None]:
    """The same for a subcommand whose request becomes no entry, and gets no receipt."""

    @functools.wraps(function)
    def run(
        log: str, actor: str, http_key: Path, http_key_id: str | None, dial: Path | None, as_json: bool,
        receipt: Path | None = None, **others: Any,
    ) -> None:
        actor_id = canonical_actor_id(actor)
        if receipt is not None and receipt.exists():
            raise UsageError("FileExists", f"{receipt} exists; a receipt is not replaced")
        function(Delivery(
            fetcher=Fetcher(load_dial(dial)) if dial else Fetcher.from_environment(),
            log_url=full_url(log),
            actor_id=actor_id, http_key=http_key, http_key_id=http_key_id or f"{actor_id}#main-key", as_json=as_json,
            receipt=receipt,
        ), **others)

    for option in reversed(_DELIVERY_OPTIONS):
        run = option(run)
    return run


sign_with = click.option("--sign-with", type=FILE, required=True, metavar="FILE", help="Key file that signs.")
