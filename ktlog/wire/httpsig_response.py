"""HTTP Message Signatures on answers: the server's word for what it answered to which request.

An answer is signed with Ed25519 and with ML-DSA-44 over its status, its content type, the digest of its body, and
the method and URI of the request it answers. So nobody can pass it off as the answer to another request: a signed
"not found" for one actor says nothing about another.

Requests with a body are told apart by their ``Content-Digest``, which is covered too, as it was sent. A server
covers it only when it has read the body and the digest is right, or it would sign an answer to one body that names
another. A verifier takes no answer to a POST without it.

Spec: RFC 9421 §2.4 (``;req``) and §3; RFC 9530 §2; C2SP httpsig-pq v1.0.0; PKD v0.8 "JSON REST API".
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import http_sf
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.wire.actor import ED25519, ML_DSA_44, Multikey
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpsig import (
    MAX_SKEW_SECONDS,
    OneKeyVerifier,
    PrivateKey,
    check_digest,
    check_parameters,
    key_material,
    parse_dictionary,
)

BOTH = (ED25519, ML_DSA_44)
ACCEPT_BOTH = {"Accept-Signature": ", ".join(f'sig{n}=("@status");alg="{name}"' for n, name in enumerate(BOTH, 1))}
"""The header of a request whose answer is to be signed with each of BOTH (RFC 9421 §5)."""

_REQUEST_COMPONENTS = (("@method", "req"), ("@target-uri", "req"))
_REQUEST_DIGEST = ("content-digest", "req")
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_MAX_SIGNATURES = 4
_MAX_COMPONENTS = 16


@dataclass(frozen=True)
class Exchange:
    """A request and the answer to it, as far as signatures are concerned.

    method, url: of the request, exactly as sent; url None when it had none that can be named. headers: of the
    answer, names in lower case, repeated ones joined. body: the answer's bytes as received. request_digest: the
    request's ``Content-Digest`` as sent, which is right for its body; None when it had none.
    """

    method: str
    url: str | None
    status: int
    headers: Mapping[str, str]
    body: bytes
    request_digest: str | None = None


@dataclass(frozen=True)
class VerifiedResponse:
    """Signatures that hold. created: Unix seconds, of the oldest. algorithms: all that were verified."""

    created: int
    algorithms: tuple[str, ...]


@dataclass
class _Asked:
    method: str
    url: str
    headers: Mapping[str, str]


@dataclass
class _Answered:
    """An answer as the signature library reads one."""

    status_code: int
    headers: Mapping[str, str]
    request: _Asked


def content_digest(body: bytes) -> str:
    """``Content-Digest`` with both digests that RFC 9530 calls active."""
    digests = (("sha-256", hashlib.sha256(body)), ("sha-512", hashlib.sha512(body)))
    return ", ".join(f"{name}=:{base64.b64encode(digest.digest()).decode()}:" for name, digest in digests)


def sign_response(
    exchange: Exchange, keys: Sequence[tuple[str, PrivateKey]], created: int
) -> dict[str, str]:
    """The three headers that sign *exchange*: ``Content-Digest``, ``Signature-Input``, ``Signature``.

    An answer to a request without a URL is signed without one, and no verifier of ours takes it.

    Args:
        keys: each private key with its id, an absolute https URL; one signature is made with each.
        created: Unix seconds.

    Raises:
        EncodingError: ``BadUrl``: a key id is no URL.
    """
    digest = content_digest(exchange.body)
    values = [('"@status"', str(exchange.status))]
    if "content-type" in exchange.headers:
        values.append(('"content-type"', exchange.headers["content-type"].strip()))
    values.append(('"content-digest"', digest))
    values.append(('"@method";req', exchange.method))
    if exchange.url is not None:
        values.append(('"@target-uri";req', exchange.url))
    if exchange.request_digest is not None:
        values.append(('"content-digest";req', exchange.request_digest.strip()))
    covered = " ".join(component for component, _ in values)
    base = "\n".join(f"{component}: {value}" for component, value in values)
    inputs, signatures = [], []
    for number, (key_id, key) in enumerate(keys, 1):
        _check_key_id(key_id)
        algorithm = ED25519 if isinstance(key, Ed25519PrivateKey) else ML_DSA_44
        parameters = f'({covered});created={created};keyid="{key_id}";alg="{algorithm}"'
        signature = key.sign(f'{base}\n"@signature-params": {parameters}'.encode())
        inputs.append(f"sig{number}={parameters}")
        signatures.append(f"sig{number}=:{base64.b64encode(signature).decode()}:")
    return {
        "Content-Digest": digest, "Signature-Input": ", ".join(inputs), "Signature": ", ".join(signatures),
    }


@lru_cache(maxsize=16)  # the same two for every answer
def _check_key_id(key_id: str) -> None:
    parse_https_url(key_id.partition("#")[0])


def verify_response(
    exchange: Exchange, resolve_key: Callable[[str], Multikey], now: int, *,
    algorithms: Sequence[str] = BOTH, max_age_seconds: int | None = MAX_SKEW_SECONDS,
) -> VerifiedResponse:
    """Check that *exchange* was signed, with every one of *algorithms*, by the keys that are trusted for it.

    A signature under a key that *resolve_key* does not know is passed over; a bad one under a known key spoils
    the answer.

    Args:
        exchange: its url is there; of a POST also the request_digest, which the caller made of the body it sent.
        resolve_key: the trusted key for a key id; raises Invalid when it trusts none of this id.
        now: Unix seconds. max_age_seconds: how long ago it may have been signed; None for an answer that was kept.

    Raises:
        Invalid: ``BadResponseSignature``.
    """
    try:
        return _verify(exchange, resolve_key, now, tuple(algorithms), max_age_seconds)
    except MessageRejected as error:  # what the parsers shared with requests call it
        raise _bad(error.message) from None


def _bad(why: str) -> Invalid:
    return Invalid("BadResponseSignature", why)


def _verify(
    exchange: Exchange, resolve_key: Callable[[str], Multikey], now: int, wanted: tuple[str, ...],
    max_age_seconds: int | None,
) -> VerifiedResponse:
    if exchange.url is None:
        raise AssertionError("an answer to no URL cannot be verified")
    missing = [name for name in ("signature-input", "signature", "content-digest") if name not in exchange.headers]
    if missing:
        raise _bad(f"the answer has no {missing[0]} header")
    inputs = parse_dictionary(exchange.headers["signature-input"])
    signatures = parse_dictionary(exchange.headers["signature"], byte_sequences=True)
    if inputs.keys() != signatures.keys() or not 1 <= len(inputs) <= _MAX_SIGNATURES:
        raise _bad("not a few signatures, each with its input")
    check_digest(exchange.headers["content-digest"], exchange.body)
    if exchange.request_digest is not None:
        parse_dictionary(exchange.request_digest, byte_sequences=True)
    found: dict[str, int] = {}
    for label, member in inputs.items():
        check_parameters(member, now, max_age_seconds)
        try:
            key = resolve_key(member[1]["keyid"])
        except Invalid:
            continue
        _check_components(member, exchange)
        algorithm = _verify_one(exchange, label, member, signatures[label], key)
        if algorithm in found:
            raise _bad("two signatures of one algorithm")
        found[algorithm] = member[1]["created"]
    if not found or not found.keys() >= set(wanted):
        lacking = ", ".join(name for name in wanted or BOTH if name not in found)
        raise _bad(f"the answer is not signed with {lacking} by a key that is trusted for it")
    return VerifiedResponse(min(found.values()), tuple(found))


def _check_components(member: Any, exchange: Exchange) -> None:
    components = member[0]
    if not isinstance(components, list) or len(components) > _MAX_COMPONENTS:
        raise _bad("a Signature-Input is not a list of a few components")
    covered = {(name, *parameters) for name, parameters in components if isinstance(name, str)}
    wanted = {("@status",), ("content-digest",), *_REQUEST_COMPONENTS}
    if "content-type" in exchange.headers:
        wanted.add(("content-type",))
    if exchange.request_digest is not None or exchange.method in _METHODS_WITH_BODY:
        wanted.add(_REQUEST_DIGEST)
    if not covered >= wanted:
        lacking = ", ".join(sorted(";".join(one) for one in wanted - covered))
        raise _bad(f"the signature does not cover {lacking}")


def _verify_one(exchange: Exchange, label: str, member: Any, signature: Any, key: Multikey) -> str:
    algorithm, public_key = key_material(key)
    if algorithm not in BOTH:
        raise _bad(f"answers are not signed with {algorithm}")
    if member[1].get("alg", algorithm) != algorithm or not isinstance(signature[0], bytes):
        raise _bad(f"a signature does not agree with its key, which is for {algorithm}")
    others = {name: value for name, value in exchange.headers.items() if name not in ("signature", "signature-input")}
    alone = others | {"Signature-Input": http_sf.ser({label: member}), "Signature": http_sf.ser({label: signature})}
    sent = {} if exchange.request_digest is None else {"Content-Digest": exchange.request_digest}
    answered = _Answered(exchange.status, alone, _Asked(exchange.method, exchange.url or "", sent))
    try:
        OneKeyVerifier(algorithm, public_key).verify(answered, max_age=None, body=exchange.body)
    except (HTTPMessageSignaturesException, EncodingError, ValueError, TypeError) as error:
        raise _bad(f"the signature of the answer does not verify: {error}") from None
    return algorithm
