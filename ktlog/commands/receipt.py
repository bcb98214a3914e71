"""``ktlog receipt``: what a log signed when it took a message, kept in a file and checked without the network.

A receipt file is one JSON object: the request's method, URL and ``Content-Digest``, the answer's status, the headers
that were signed and the body's bytes in base64url. It holds no key: whose word it is, the one who checks it has to
know. Nor does it hold the request: who has kept that can show with the digest that it is the one answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ktlog.durable import read_file
from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.operator.direct import BURNDOWN_CONTEXT
from ktlog.operator.instance import LOG_ACTOR_PATH, RECEIPT_CONTEXT, check_receipt_form
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.keys import decode_public_key
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.tlog.tree import hash_leaf
from ktlog.wire.actor import ML_DSA_44, Multikey, parse_actor
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpsig_response import BOTH, Exchange, verify_response
from ktlog.wire.media import parse_foreign_json

RECEIPT_TYPE = "ktlog-receipt-v2"
MAXIMUM_BYTES = 1 << 18

# Where a log takes messages: the status of an acceptance, and what its body says it is.
_DOORS = {
    f"{LOG_ACTOR_PATH}/inbox": (202, RECEIPT_CONTEXT),
    "/inbox": (202, RECEIPT_CONTEXT),
    "/api/burndown": (200, BURNDOWN_CONTEXT),
}
_FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Acceptance:
    """What a log signed: that its entry *leaf_index* is *entry*, and *root* that of the tree which ends with it.

    request_digest: ``Content-Digest`` of the request that it answered so. created: Unix seconds, when it said so.
    algorithms: of the signatures that were verified.
    """

    log_actor: str
    leaf_index: int
    entry: bytes
    root: str
    request_digest: str
    created: int
    algorithms: tuple[str, ...]

    @property
    def leaf_hash(self) -> bytes:
        return hash_leaf(self.entry)


def format_receipt(exchange: Exchange) -> bytes:
    """*exchange*, which has signatures, as a receipt file. The headers that no signature covers are left out."""
    inputs = exchange.headers["signature-input"]
    kept = {name for name in exchange.headers if f'"{name}"' in inputs} | {"signature", "signature-input"}
    return json.dumps({
        "type": RECEIPT_TYPE, "method": exchange.method, "url": exchange.url,
        "request-digest": exchange.request_digest, "status": exchange.status,
        "headers": {name: exchange.headers[name] for name in sorted(kept)},
        "body": encode_base64url(exchange.body),
    }, indent=2).encode("utf-8") + b"\n"


def parse_receipt(data: bytes) -> Exchange:
    """Inverse of format_receipt. Nothing is verified.

    Raises:
        EncodingError: ``BadReceiptFile``, and what strict JSON and base64url ask for.
    """
    members = parse_json(data)
    wanted = {
        "type": str, "method": str, "url": str, "request-digest": str, "status": int, "headers": dict, "body": str,
    }
    if not isinstance(members, dict) or {name: type(value) for name, value in members.items()} != wanted:
        raise EncodingError("BadReceiptFile", f"a receipt file has the members {', '.join(wanted)}")
    headers = members["headers"]
    if members["type"] != RECEIPT_TYPE or any(
        type(value) is not str or name != name.lower() for name, value in headers.items()
    ):
        raise EncodingError("BadReceiptFile", f"not of the type {RECEIPT_TYPE}")
    return Exchange(
        members["method"], members["url"], members["status"], headers, decode_base64url(members["body"]),
        members["request-digest"],
    )


def log_actor_of(exchange: Exchange) -> str:
    """The actor of the log that was asked; who else signs has no say. Raises EncodingError: ``BadUrl``."""
    return f"https://{parse_https_url(exchange.url or '').host}{LOG_ACTOR_PATH}"


def verify_receipt(
    exchange: Exchange, resolve_key: Callable[[str], Multikey], now: int, algorithms: tuple[str, ...] = BOTH
) -> Acceptance:
    """Check that *exchange* is a log's signed acceptance, of whatever age.

    What is in the entry is not looked at, nor the leaf signature in it, nor whether the log kept its word.

    Args:
        resolve_key, algorithms: whose signatures count, and which must be there; see verify_response.
        now: Unix seconds: a signature from the future is none.

    Raises:
        Invalid: ``BadReceipt``: signed, but no acceptance; ``BadResponseSignature``.
        EncodingError: ``BadUrl``.
    """
    log_actor = log_actor_of(exchange)
    status, context = _DOORS.get(parse_https_url(exchange.url or "").target, (None, ""))
    if exchange.method != "POST" or exchange.status != status:
        raise Invalid("BadReceipt", "this is no answer with which a log takes a message")
    verified = verify_response(exchange, resolve_key, now, algorithms=algorithms, max_age_seconds=None)
    try:
        answer = parse_json(exchange.body)
        check_receipt_form(answer, context)
        entry = decode_base64url(answer["merkle-leaf"])
        parse_entry(entry)
    except EncodingError as error:
        raise Invalid("BadReceipt", f"the log signed something, but no receipt: {error.message}") from None
    return Acceptance(
        log_actor, answer["leaf-index"], entry, answer["merkle-root"], exchange.request_digest or "",
        verified.created, verified.algorithms,
    )


def _trusting(keys: tuple[Multikey, ...]) -> Callable[[str], Multikey]:
    def resolve(key_id: str) -> Multikey:
        for key in keys:
            if key.id == key_id:
                return key
        raise Invalid("UnknownKey", f"{key_id} is not trusted here")

    return resolve


def _read(path: Path) -> bytes:
    data = read_file(path)
    if data is None or len(data) > MAXIMUM_BYTES:
        raise UsageError("NoFile", f"{path} does not exist, or is longer than {MAXIMUM_BYTES} bytes")
    return data


@click.group()
def command() -> None:
    """What a log signed when it took a message (ktlog submit … --receipt FILE)."""


@command.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--key", metavar="mldsa44:...", help="The log's key for answers: public-key in its /api/info.")
@click.option("--actor-document", type=_FILE, metavar="FILE",
              help="The log's actor document, from a time when you trusted it; then both signatures must hold.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(path: Path, key: str | None, actor_document: Path | None, as_json: bool) -> None:
    """Check a receipt without the network, and print what the log signed.

    A log that signed this and whose entries or roots are others has broken its word, and this file shows it.
    """
    exchange = parse_receipt(_read(path))
    log_actor = log_actor_of(exchange)
    if key is not None and actor_document is None:
        keys = (Multikey(f"{log_actor}#pq-key", log_actor, ML_DSA_44, decode_public_key(key)),)
        algorithms: tuple[str, ...] = (ML_DSA_44,)
    elif key is None and actor_document is not None:
        keys = parse_actor(parse_foreign_json(_read(actor_document)), log_actor).assertion_method
        algorithms = BOTH
    else:
        raise UsageError("BadOptions", "give either --key mldsa44:... or --actor-document FILE")
    _report(verify_receipt(exchange, _trusting(keys), int(time.time()), algorithms), as_json)


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
