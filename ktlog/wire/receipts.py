"""Receipts: what a log signed when it took a message, as a file that anybody can check without the network.

A receipt file is one JSON object: the request's method, URL and ``Content-Digest``, the answer's status, the headers
that were signed and the body's bytes in base64url. It holds no key: whose word it is, the one who checks it has to
know. Nor does it hold the request: who has kept that can show with the digest that it is the one answered.

Pure: no I/O and no clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.keychanges import parse_changes, verify_changes
from ktlog.pkd.keys import decode_root
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.tlog.tree import hash_leaf
from ktlog.wire.actor import Multikey
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpsig_response import BOTH, Exchange, verify_response

RECEIPT_TYPE = "ktlog-receipt-v2"
LOG_ACTOR_PATH = "/users/pubkeydir"
RECEIPT_CONTEXT = "fedi-e2ee:v1/api/inbox"
BURNDOWN_CONTEXT = "fedi-e2ee:v1/api/burndown"

# Where a log takes messages: the status of an acceptance, and what its body says it is.
_DOORS = {
    f"{LOG_ACTOR_PATH}/inbox": (202, RECEIPT_CONTEXT),
    "/inbox": (202, RECEIPT_CONTEXT),
    "/api/burndown": (200, BURNDOWN_CONTEXT),
}


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


def check_receipt_form(answer: Any, context: str) -> None:
    """That *answer* has the members of a receipt, of the form that they must have.

    Args:
        context: its ``!pkd-context``, which tells the inbox from /api/burndown.

    Raises:
        EncodingError: ``BadReceipt``, and what base64url and a root ask for.
    """
    if not isinstance(answer, dict) or answer.get("!pkd-context") != context:
        raise EncodingError("BadReceipt", "not a receipt")
    leaf_index, tree_size = answer.get("leaf-index"), answer.get("tree-size")
    entry, root = answer.get("merkle-leaf"), answer.get("merkle-root")
    if type(leaf_index) is not int or leaf_index < 0:
        raise EncodingError("BadReceipt", "not a receipt")
    if tree_size != leaf_index + 1 or not isinstance(entry, str) or not isinstance(root, str):
        raise EncodingError("BadReceipt", "members are missing")
    decode_base64url(entry)
    decode_root(root)


def http_keys(data: bytes, origin: str, pinned: str) -> dict[str, tuple[int, int | None]]:
    """Every ML-DSA-44 key for answers in a log's history of keys: from when to when (None: still) it was in use.

    Each line is signed by the old key and by the new: whoever trusts one of them trusts them all.

    Raises:
        EncodingError, Invalid: ``BadKeyChange``; Invalid: ``UnknownKey``: *pinned* is none of them.
    """
    changes = parse_changes(data)
    verify_changes(changes, origin)
    spans: dict[str, tuple[int, int | None]] = {}
    for change in changes:
        for key in change.keys:
            if key.purpose == "http-mldsa44":
                spans[key.old] = (spans.get(key.old, (0, None))[0], change.until)
                spans[key.new] = (change.time, None)
    if spans and pinned not in spans:
        raise Invalid("UnknownKey", "the key is not in that history", hint="Compare it with the log's /api/info.")
    return spans or {pinned: (0, None)}
