"""The instance client: what signs for an actor and hands a protocol message to a log.

Stock servers sign with RSA, which PKD forbids, and cannot send a message of this size unchanged. So an instance
that enrols its actors runs this beside its server, with a key that the actor's document lists.

    receipt = deliver(fetcher, "https://keys.alpha.example", actor_id, key, actor_id + "#main-key", content,
                      now=int(time.time()), random=os.urandom)
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ktlog.errors import EncodingError, Invalid, MessageRejected, Unreachable
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.rejections import NEXT_STEPS
from ktlog.wire.actor import Multikey, fetch_actor
from ktlog.wire.actor_id import actor_domain
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig import PrivateKey, sign_request
from ktlog.wire.httpsig_response import ACCEPT_BOTH, Exchange, verify_response
from ktlog.wire.receipts import LOG_ACTOR_PATH, RECEIPT_CONTEXT, check_receipt_form
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS

ERROR_CONTEXT = "fedi-e2ee:v1/api/error"
MAX_ANSWER_BYTES = 65536

_CODE = re.compile(r"[a-z0-9_]{1,64}")
_Found = TypeVar("_Found")


def direct_message(log_actor: str, actor_id: str, content: str, random: Callable[[int], bytes]) -> dict[str, Any]:
    """*content* as the ActivityStreams direct message that a log's inbox takes.

    Spec: PKD v0.8, "Wire Format for Protocol Messages".

    Raises:
        EncodingError: ``BadActorId``.
    """
    domain = actor_domain(actor_id)
    activity, note = (uuid.UUID(bytes=random(16), version=4) for _ in range(2))
    return {
        "@context": ACTIVITYSTREAMS,
        "id": f"https://{domain}/activities/{activity}",
        "type": "Create",
        "actor": actor_id,
        "to": [log_actor],
        "object": {
            "id": f"https://{domain}/objects/{note}",
            "type": "Note",
            "attributedTo": actor_id,
            "to": [log_actor],
            "content": content,
        },
    }


def deliver(
    fetcher: Fetcher, log_url: str, actor_id: str, http_private_key: PrivateKey, http_key_id: str,
    envelope_content: str, now: int, random: Callable[[int], bytes],
    keep: Callable[[Exchange], None] = lambda exchange: None,
) -> dict[str, Any]:
    """Send one protocol message to a log and return its receipt.

    Args:
        log_url: ``https://`` and the log's host. actor_id: who sends; its document must list *http_key_id*.
        envelope_content: the JSON text of the encrypted or plaintext envelope. now: Unix seconds.
        random: gives that many random bytes, for the activity's ids.
        keep: is given the acceptance once the log's signatures on it have been verified.

    Returns:
        The parsed 202 answer: ``leaf-index``, ``tree-size``, ``merkle-leaf``, ``merkle-root``. The log signed it,
        with both keys that its own actor document lists, as its answer to this very request and its body.

    Raises:
        MessageRejected: the log refuses the message, and signed that; its code and its words.
        Unreachable: no valid answer; ``BadReceipt``, ``BadAnswer``: an acceptance or a refusal that the log did not
            sign. Whether the log accepted is not known; sending the same message again is safe, because a log
            takes no message twice.
        EncodingError: ``BadActorId``, ``BadUrl``.
    """
    log_actor = log_url.rstrip("/") + LOG_ACTOR_PATH
    inbox = log_actor + "/inbox"
    message = direct_message(log_actor, actor_id, envelope_content, random)
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    headers = {"Content-Type": ACTIVITY_JSON, "Accept": "application/json", **ACCEPT_BOTH}
    signed = sign_request("POST", inbox, headers, body, http_key_id, http_private_key, now)
    response = fetcher.post(inbox, body, signed, max_bytes=MAX_ANSWER_BYTES)
    exchange = exchange_of(inbox, signed, response)
    receipt = read_signed(fetcher, log_actor, exchange, now, lambda: read_answer(response), "BadReceipt")
    keep(exchange)
    return receipt


def exchange_of(url: str, headers: Mapping[str, str], response: Response) -> Exchange:
    """A POST to *url* with these headers, ``Content-Digest`` among them, and the answer to it."""
    return Exchange("POST", url, response.status, response.headers, response.body, headers["Content-Digest"])


def read_signed(
    fetcher: Fetcher, log_actor: str, exchange: Exchange, now: int, read: Callable[[], _Found],
    unsigned: str = "BadAnswer",
) -> _Found:
    """What *read* finds in a log's answer, or the refusal that it raises: only when the log signed the answer.

    A refusal that somebody made up on the way would hide that the log took the message. What *read* calls
    Unreachable (errors of proxies, a log that is busy) nobody believes, and needs no signature.

    Args:
        unsigned: the name of the Unreachable for an answer that is no refusal.

    Raises:
        MessageRejected, Unreachable: as *read*. Unreachable: ``BadAnswer``, or *unsigned*.
    """
    try:
        found = read()
    except MessageRejected as refusal:
        _check_signed(fetcher, log_actor, exchange, now, "BadAnswer", f"{refusal.code}: {refusal.message}")
        raise
    _check_signed(fetcher, log_actor, exchange, now, unsigned, "which should mean yes")
    return found


def _check_signed(fetcher: Fetcher, log_actor: str, exchange: Exchange, now: int, name: str, said: str) -> None:
    """That the log stands by its answer: only then can it be shown to others what it promised."""
    try:
        keys = {key.id: key for key in fetch_actor(fetcher, log_actor).assertion_method if key.controller == log_actor}

        def find(key_id: str) -> Multikey:
            if key_id not in keys:
                raise Invalid("UnknownKey", f"{log_actor} lists no key {key_id}")
            return keys[key_id]

        verify_response(exchange, find, now)
    except (EncodingError, Invalid, Unreachable) as error:
        raise Unreachable(
            name, f"{exchange.url} answers {exchange.status}, {said}; that the log signed this cannot be shown: "
            f"{error.message}"
        ) from None


def read_answer(response: Response) -> dict[str, Any]:
    """The receipt in a log's answer to a message.

    Raises:
        MessageRejected, Unreachable: as deliver.
    """
    try:
        answer = parse_json(response.body)
    except EncodingError:
        answer = None
    if not isinstance(answer, dict):
        answer = {}
    if response.status == 202:
        try:
            check_receipt_form(answer, RECEIPT_CONTEXT)
        except EncodingError as error:
            raise Unreachable(
                "BadReceipt", f"the log accepted, and its receipt is unreadable: {error.message}"
            ) from None
        return answer
    if answer.get("!pkd-context") != ERROR_CONTEXT:
        raise Unreachable("BadStatus", f"{response.url} answers {response.status} and does not say why")
    code, words = _error_code(answer), _printable(answer.get("message"))
    if response.status == 429 or response.status >= 500:
        raise Unreachable("BadStatus", f"{response.url} answers {response.status}, {code}: {words}")
    raise MessageRejected(code, words, hint=NEXT_STEPS.get(code, ""))


def _error_code(answer: dict[str, Any]) -> str:
    """The log's fine code, or the specification's coarse one. Both come from a stranger."""
    for member in ("code", "error"):
        code = answer.get(member)
        if isinstance(code, str) and _CODE.fullmatch(code):
            return code
    return "unknown_error"


def _printable(words: Any) -> str:
    text = words if isinstance(words, str) else ""
    return "".join(character if character.isprintable() else "?" for character in text[:500])
