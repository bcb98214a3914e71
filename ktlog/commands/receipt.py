"""``ktlog receipt``: what a log signed when it took a message, checked from a file and without the network.

The file is :mod:`ktlog.wire.receipts`'.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ktlog.durable import read_file
from ktlog.errors import Invalid, UsageError
from ktlog.pkd.keychanges import MOST_BYTES
from ktlog.pkd.keys import decode_public_key
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.actor import ML_DSA_44, Multikey, parse_actor
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpsig_response import BOTH, Exchange
from ktlog.wire.media import parse_foreign_json
from ktlog.wire.receipts import Acceptance, http_keys, log_actor_of, parse_receipt, verify_receipt

MAXIMUM_BYTES = 1 << 18

_FILE = click.Path(path_type=Path)


def _trusting(keys: tuple[Multikey, ...]) -> Callable[[str], Multikey]:
    def resolve(key_id: str) -> Multikey:
        for key in keys:
            if key.id == key_id:
                return key
        raise Invalid("UnknownKey", f"{key_id} is not trusted here")

    return resolve


def _read(path: Path, maximum: int = MAXIMUM_BYTES) -> bytes:
    data = read_file(path)
    if data is None or len(data) > maximum:
        raise UsageError("NoFile", f"{path} does not exist, or is longer than {maximum} bytes")
    return data


@click.group()
def command() -> None:
    """What a log signed when it took a message (ktlog submit … --receipt FILE)."""


@command.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--key", metavar="mldsa44:...", help="The log's key for answers: public-key in its /api/info.")
@click.option("--actor-document", type=_FILE, metavar="FILE",
              help="The log's actor document, from a time when you trusted it; then both signatures must hold.")
@click.option("--keys", "history", type=_FILE, metavar="FILE",
              help="With --key: what the log has at /keys. A receipt may then be of an older or newer key of its.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(path: Path, key: str | None, actor_document: Path | None, history: Path | None, as_json: bool) -> None:
    """Check a receipt without the network, and print what the log signed.

    A log that signed this and whose entries or roots are others has broken its word, and this file shows it.
    """
    exchange = parse_receipt(_read(path))
    log_actor = log_actor_of(exchange)
    if key is not None and actor_document is None:
        decode_public_key(key)
        found = _verify_by_key(exchange, key, history)
    elif key is None and actor_document is not None and history is None:
        keys = parse_actor(parse_foreign_json(_read(actor_document)), log_actor).assertion_method
        found = verify_receipt(exchange, _trusting(keys), int(time.time()), BOTH)
    else:
        raise UsageError("BadOptions", "give either --key mldsa44:... (and --keys FILE) or --actor-document FILE")
    _report(found, as_json)


def _verify_by_key(exchange: Exchange, key: str, history: Path | None) -> Acceptance:
    """By *key*, or by the key of the receipt's time in a *history* that *key* is in."""
    log_actor = log_actor_of(exchange)
    host = parse_https_url(exchange.url or "").host
    spans = {key: (0, None)} if history is None else http_keys(_read(history, MOST_BYTES), host, key)
    refused = None
    for public, (since, until) in spans.items():
        trusted = Multikey(f"{log_actor}#pq-key", log_actor, ML_DSA_44, decode_public_key(public))
        try:
            found = verify_receipt(exchange, _trusting((trusted,)), int(time.time()), (ML_DSA_44,))
        except Invalid as error:
            if error.name == "BadReceipt":
                raise
            refused = error
            continue
        if since <= found.created and (until is None or found.created <= until):
            return found
        refused = Invalid("KeyOfAnotherTime", f"signed with a key that the log did not use at {found.created}")
    hint = (
        f"If the log has replaced its `http` key since, this is not the key of the receipt's time: fetch"
        f" https://{host}/keys into a file, and add --keys FILE." if history is None else
        "No key in that file made it: fetch the newest, and compare --key with the log's /api/info."
    )
    raise Invalid(refused.name if refused else "UnknownKey", refused.message if refused else "", hint=hint)


def _report(found: Acceptance, as_json: bool) -> None:
    members: dict[str, Any] = {
        "log": found.log_actor, "leaf-index": found.leaf_index, "leaf-hash": encode_base64url(found.leaf_hash),
        "tree-size": found.leaf_index + 1, "root": found.root, "request-digest": found.request_digest,
        "time": found.created, "algorithms": list(found.algorithms),
    }
    if as_json:
        click.echo(json.dumps(members))
        return
    when = datetime.fromtimestamp(found.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"signed by {found.log_actor} ({', '.join(found.algorithms)}), {when}")
    for name in ("leaf-index", "leaf-hash", "tree-size", "root", "request-digest"):
        click.echo(f"{name}: {members[name]}")
