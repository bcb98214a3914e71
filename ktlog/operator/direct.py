"""The instance client's two other errands: a BurnDown and a revocation token go to endpoints of their own.

    answer = deliver_burndown(fetcher, "https://keys.alpha.example", key, operator + "#main-key",
                              build_plain_envelope(operator, built), now=int(time.time()))
    revoked = deliver_token(fetcher, "https://keys.alpha.example", token, now=int(time.time()))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ktlog.errors import EncodingError, Unreachable
from ktlog.operator.activity import REVOKE_CONTEXT
from ktlog.operator.instance import MAX_ANSWER_BYTES, exchange_of, read_answer, read_signed
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig import PrivateKey, sign_request
from ktlog.wire.httpsig_response import ACCEPT_BOTH, Exchange, content_digest
from ktlog.wire.receipts import BURNDOWN_CONTEXT, LOG_ACTOR_PATH

_JSON = {"Content-Type": "application/json", "Accept": "application/json", **ACCEPT_BOTH}


def deliver_burndown(
    fetcher: Fetcher, log_url: str, http_private_key: PrivateKey, http_key_id: str, envelope: str, now: int,
    keep: Callable[[Exchange], None] = lambda exchange: None,
) -> dict[str, Any]:
    """Send a BurnDown to a log and return its answer, which the log signed.

    Args:
        log_url: ``https://`` and the log's host. http_key_id: a key that the operator's document lists.
        envelope: from :func:`ktlog.client.build.build_plain_envelope`. now: Unix seconds.
        keep: is given the answer once the log's signatures on it have been verified.

    Returns:
        The parsed answer; of a log that gives receipts, with ``leaf-index``, ``merkle-leaf`` and so on.

    Raises:
        MessageRejected: the log refuses it, and signed that; its code and its words.
        Unreachable: no valid answer, or one that the log did not sign. Whether the log accepted is not known;
            sending the same message again is safe.
        EncodingError: ``BadUrl``.

    Spec: PKD "POST api/burndown".
    """
    url, body = _endpoint(log_url, "/api/burndown"), envelope.encode("utf-8")
    signed = sign_request("POST", url, _JSON, body, http_key_id, http_private_key, now)
    response = fetcher.post(url, body, signed, max_bytes=MAX_ANSWER_BYTES)
    exchange = exchange_of(url, signed, response)

    def read() -> dict[str, Any]:
        found = read_200(response, BURNDOWN_CONTEXT)
        if found.get("status") is not True:
            raise Unreachable("BadAnswer", f"{url} answers 200 and does not say that it took the BurnDown")
        return found

    answer = read_signed(fetcher, _endpoint(log_url, LOG_ACTOR_PATH), exchange, now, read, "BadReceipt")
    keep(exchange)
    return answer


def deliver_token(fetcher: Fetcher, log_url: str, token: str, now: int) -> bool:
    """Send a revocation token to a log, for nobody in particular.

    Returns:
        True: the log has revoked the token's key, now or before. False: it has no use for the token; nobody has
        the key there, or the token is none. The log signed either, as its answer to this token.

    Raises:
        MessageRejected, Unreachable, EncodingError: as :func:`deliver_burndown`.

    Spec: PKD "POST api/revoke".
    """
    url = _endpoint(log_url, "/api/revoke")
    parameters = {"!pkd-context": REVOKE_CONTEXT, "current-time": str(now), "revocation-token": token}
    body = canonical(parameters)
    headers = {**_JSON, "Content-Digest": content_digest(body)}
    response = fetcher.post(url, body, headers, max_bytes=MAX_ANSWER_BYTES)
    exchange = exchange_of(url, headers, response)
    return read_signed(
        fetcher, _endpoint(log_url, LOG_ACTOR_PATH), exchange, now,
        lambda: response.status != 204 and bool(read_200(response, REVOKE_CONTEXT)),
    )


def _endpoint(log_url: str, path: str) -> str:
    return log_url.rstrip("/") + path


def read_200(response: Response, context: str) -> dict[str, Any]:
    """The answer with status 200, which must be of this form; whatever else came is raised.

    Raises:
        MessageRejected, Unreachable: as :func:`ktlog.operator.instance.read_answer`.
    """
    if response.status == 200:
        try:
            answer = parse_json(response.body)
        except EncodingError:
            answer = None
        if isinstance(answer, dict) and answer.get("!pkd-context") == context:
            return answer
        raise Unreachable("BadAnswer", f"{response.url} answers 200 with something else than its answer")
    if response.status != 202:
        read_answer(response)
    raise Unreachable("BadStatus", f"{response.url} answers {response.status}")
