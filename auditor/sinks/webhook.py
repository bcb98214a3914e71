"""Alarms as POSTs of JSON, signed as Standard Webhooks: HMAC-SHA256 over id, time and body.

``webhook-id`` is the alarm's id, the same at every attempt: receivers drop duplicates by it. A receiver checks the
signature before it parses anything, and refuses what is older than five minutes::

    webhook-id: 80628c589fd05df364d5034c16aca7a7
    webhook-timestamp: 1800000000
    webhook-signature: v1,<base64 of HMAC-SHA256(secret, id "." timestamp "." body)>

Spec: Standard Webhooks 1.0 (standardwebhooks.com), symmetric signatures.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from auditor.outbox import Delivered
from auditor.sinks.posting import Poster, check_status
from auditor.sinks.settings import Settings
from ktlog.errors import EncodingError
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.wire.fetch import Fetcher

SECRET_PREFIX = b"whsec_"
_SHORTEST_SECRET, _LONGEST_SECRET = 24, 64


class Webhook:
    """Args: secret: raw bytes. clock: Unix seconds; receivers refuse old ones, so it is the time of the attempt."""

    rewrites = False

    def __init__(
        self, name: str, findings: bool, poster: Poster, secret: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        self.name = name
        self.findings = findings
        self._poster = poster
        self._secret = secret
        self._clock = clock

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None:
        """Raises Unreachable unless the receiver answers 2xx."""
        body = json.dumps({**document, "reasons": list(reasons)}).encode("ascii")
        headers = sign(self._secret, document["id"], int(self._clock()), body)
        check_status(self._poster.post(body, {"Content-Type": "application/json", **headers}), "the receiver")


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers."""
    digest = hmac.digest(secret, f"{message_id}.{timestamp}.".encode("ascii") + body, hashlib.sha256)
    return {
        "webhook-id": message_id, "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{encode_base64(digest)}",
    }


def parse_secret(text: bytes) -> bytes:
    """``whsec_`` and base64 of 24 to 64 bytes.

    Raises:
        EncodingError: ``BadSecret``, ``BadBase64``.
    """
    if not text.startswith(SECRET_PREFIX) or not text.isascii():
        raise EncodingError("BadSecret", "a webhook's secret is whsec_ and base64")
    secret = decode_base64(text.removeprefix(SECRET_PREFIX).decode("ascii"))
    if not _SHORTEST_SECRET <= len(secret) <= _LONGEST_SECRET:
        raise EncodingError("BadSecret", f"a webhook's secret has {_SHORTEST_SECRET} to {_LONGEST_SECRET} bytes")
    return secret


def make(settings: Settings, fetcher: Callable[[], Fetcher]) -> Webhook:
    try:
        secret = parse_secret(settings.secret("secret_file"))
    except EncodingError as error:
        # The message names the rule, and nothing of the secret.
        raise settings.bad(f"secret_file: {'no canonical base64' if error.name != 'BadSecret' else error.message}"
                           ) from None
    return Webhook(settings.name, settings.findings, Poster(settings.url("url"), fetcher), secret)
