"""Builds the requests about an instance's TOTP secret: the bodies of POSTs to ``/api/totp/...``.

::

    secret = new_secret()
    body = enroll(actor_id, key_id, key, secret, encapsulation_key, now=now)

The instance then sends ``canonical(body)`` with an HTTP signature of the same actor, and believes the answer, yes or
no, when the log signed it as the answer to this body (:func:`ktlog.operator.instance.read_signed`). *key_id* is the
id that the log gave the actor's key. Keep the secret away from the instance: it is there for the day when somebody
else is in control of that machine.

The passwords in a request are used up by it, and so are all older ones: the next is good in the next window
of 30 seconds.

Spec: PKD "TOTP".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from ktlog.client.keyfile import SigningKey
from ktlog.errors import EncodingError, Invalid, NotLogged
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.hpke import seal_message
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.totp import DIGITS, SECRET_BYTES, WINDOW_SECONDS, encode_secret, totp_code, window_at
from ktlog.pkd.totp_requests import Operation, build_totp_request


def new_secret(random: Callable[[int], bytes] = os.urandom) -> bytes:
    """32 random bytes."""
    return random(SECRET_BYTES)


def password(secret: bytes, now: int) -> str:
    """The one-time password of this moment. Raises EncodingError: ``BadTotpSecret``."""
    return totp_code(secret, window_at(now))


def otpauth_uri(secret: bytes, log: str, domain: str) -> str:
    """The secret as authenticator apps read it, from a QR code. Not every app knows these parameters.

    Args:
        log: the log's host name, shown as the issuer. domain: the instance's, shown as the account.

    Raises:
        EncodingError: ``BadTotpSecret``.
    """
    parameters = urlencode({
        "secret": encode_secret(secret), "issuer": log, "algorithm": "SHA512", "digits": DIGITS,
        "period": WINDOW_SECONDS,
    })
    return f"otpauth://totp/{quote(log)}:{quote(domain)}?{parameters}"


def enroll(
    actor_id: str, key_id: str, signer: SigningKey, secret: bytes, encapsulation_key: bytes, *, now: int
) -> dict[str, Any]:
    """Enroll *secret* for the actor's instance, which has none.

    Args:
        signer: the key of *actor_id* that the log calls *key_id*.
        encapsulation_key: the log's 1216 bytes. now: Unix seconds; the passwords are made for it.

    Raises:
        EncodingError: ``BadTotpSecret``, ``BadEncapsulationKey``.
    """
    current, previous = _two_passwords(secret, now)
    return build_totp_request(Operation.ENROLL, {
        "actor-id": actor_id, "key-id": key_id, "otp-current": current, "otp-previous": previous,
        "totp-secret": seal_message(encapsulation_key, secret),
    }, signer.private, now)


def rotate(
    actor_id: str, key_id: str, signer: SigningKey, secret: bytes, old_password: str, encapsulation_key: bytes, *,
    now: int,
) -> dict[str, Any]:
    """Replace the instance's secret by *secret*; *old_password* is one of the secret that it has.

    Raises:
        EncodingError: ``BadTotpSecret``, ``BadEncapsulationKey``.
    """
    current, previous = _two_passwords(secret, now)
    return build_totp_request(Operation.ROTATE, {
        "actor-id": actor_id, "key-id": key_id, "new-otp-current": current, "new-otp-previous": previous,
        "new-totp-secret": seal_message(encapsulation_key, secret), "old-otp": old_password,
    }, signer.private, now)


def disenroll(actor_id: str, key_id: str, signer: SigningKey, old_password: str, *, now: int) -> dict[str, Any]:
    """Remove the instance's secret: its BurnDowns need no password from then on."""
    fields = {"actor-id": actor_id, "key-id": key_id, "otp": old_password}
    return build_totp_request(Operation.DISENROLL, fields, signer.private, now)


def key_id_of(actor_page: bytes, public_key: bytes) -> str:
    """What the log calls a key: its id in the log's answer at ``/api/actor/.../keys``.

    Nothing is verified, and nothing need be: under a wrong id the log refuses the request.

    Args:
        public_key: 1312 raw bytes.

    Raises:
        NotLogged: ``KeyNotListed``.
        Invalid: ``MalformedAnswer``.
    """
    wanted = encode_public_key(public_key)
    try:
        found = [row["key-id"] for row in parse_json(actor_page)["public-keys"] if row["public-key"] == wanted]
    except (EncodingError, KeyError, TypeError):
        raise Invalid("MalformedAnswer", "the log's list of the actor's keys does not parse") from None
    if not found:
        raise NotLogged("KeyNotListed", "the log does not list this key for the actor")
    if not isinstance(found[0], str):
        raise Invalid("MalformedAnswer", "the log's list of the actor's keys does not parse")
    return found[0]


def _two_passwords(secret: bytes, now: int) -> tuple[str, str]:
    return totp_code(secret, window_at(now)), totp_code(secret, window_at(now) - 1)
