"""HTTP Message Signatures on requests: the profile that PKD allows, and no more.

Two algorithms, ``ed25519`` and ``ml-dsa-44``, chosen by the type of the trusted key and never by what the
message says; an ``alg`` parameter must agree with it. ``@method``, ``@target-uri`` and ``content-digest`` are
covered, ``created`` is there and recent, the digest is right for the body's bytes, and a header that occurs
twice is not covered. Cheap checks come first: the key is asked for last, because finding it may mean a fetch.

A message may carry one signature of each algorithm; then both must hold.

``compat`` (ktlog.wire.compat) widens this at the caller's word: by RSA, or by other labels for ML-DSA-44.

Spec: RFC 9421; RFC 9530; C2SP httpsig-pq v1.0.0; PKD v0.8 "JSON REST API".
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import http_sf
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
from http_message_signatures import (
    ContentDigest,
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureAlgorithm,
    HTTPSignatureKeyResolver,
)
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.keys import verify_mldsa44
from ktlog.tlog.ed25519 import verify_ed25519
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.wire.actor import ED25519, ML_DSA_44, RSA_SHA256, Multikey
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.compat import PKD_PHP, RSA
from ktlog.wire.httpsig_plain import PLAIN_METHOD, PLAIN_URL, parse_plain, plain_base
from ktlog.wire.rsa import verify_rsa_sha256

MAX_SKEW_SECONDS = 300
COMPONENTS = ("@method", "@target-uri", "content-digest")
#: What a 401 asks for: either of these, or both. Spec: RFC 9421 §5.
ACCEPT_SIGNATURE = ", ".join(
    f'sig{number}=("@method" "@target-uri" "content-digest");created;keyid;alg="{algorithm}"'
    for number, algorithm in enumerate((ED25519, ML_DSA_44), 1)
)

#: What pkd-php calls ML-DSA-44.
PHP_LABELS = ("mldsa44", "mldsa-44")

_LABEL = "sig1"
_MAX_SIGNATURES = 2
_MAX_COMPONENTS = 16
_PARAMETERS = frozenset({"created", "expires", "keyid", "alg", "nonce", "tag"})
_PLAIN_KEY_ID = re.compile(r"[!#-\[\]-~]+")  # nothing that a quoted string would escape
_PLAIN_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/=]*):")

PrivateKey = Ed25519PrivateKey | MLDSA44PrivateKey
PublicKey = Multikey | Ed25519PublicKey | MLDSA44PublicKey
ResolveKey = Callable[[str], PublicKey]


@dataclass(frozen=True)
class VerifiedRequest:
    """A signature that holds. signature: its decoded bytes, which with key_id name it in a replay cache.

    Of two signatures it is the ML-DSA-44 one. algorithms: all that were verified. signatures: of each, the key id
    and the bytes: a replay cache must know them all, for one of two can be sent again alone.
    """

    key_id: str
    created: int
    signature: bytes
    algorithms: tuple[str, ...]
    signatures: tuple[tuple[str, bytes], ...]


@dataclass
class _Message:
    """A request as the signature library reads one."""

    method: str
    url: str
    headers: Any


class _Lines:
    """Header lines, repeated ones apart. The library reads nothing but ``items``."""

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        self._lines = lines

    def items(self) -> Sequence[tuple[str, str]]:
        return self._lines


class _Ed25519(HTTPSignatureAlgorithm):
    algorithm_id = ED25519

    def __init__(self, public_key: Any = None, private_key: Any = None) -> None:
        self._public, self._private = public_key, private_key

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def verify(self, signature: bytes, message: bytes) -> None:
        verify_ed25519(self._public, signature, message)


class _MlDsa44(HTTPSignatureAlgorithm):
    """Pure ML-DSA-44 with an empty context string."""

    algorithm_id = ML_DSA_44

    def __init__(self, public_key: Any = None, private_key: Any = None) -> None:
        self._public, self._private = public_key, private_key

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def verify(self, signature: bytes, message: bytes) -> None:
        verify_mldsa44(self._public, signature, message)


class _RsaSha256(HTTPSignatureAlgorithm):
    """RSASSA-PKCS1-v1_5; verified with the switch ``rsa``, and never signed with."""

    algorithm_id = RSA_SHA256

    def __init__(self, public_key: Any = None, private_key: Any = None) -> None:
        self._public = public_key

    def sign(self, message: bytes) -> bytes:
        raise AssertionError("messages are never signed with RSA")

    def verify(self, signature: bytes, message: bytes) -> None:
        verify_rsa_sha256(self._public, signature, message)


_ALGORITHMS = {one.algorithm_id: one for one in (_Ed25519, _MlDsa44, _RsaSha256)}
_ALGORITHMS |= {label: type("_PhpMlDsa44", (_MlDsa44,), {"algorithm_id": label}) for label in PHP_LABELS}


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(self, key: Any) -> None:
        self._key = key

    def resolve_public_key(self, key_id: str) -> Any:
        return self._key

    def resolve_private_key(self, key_id: str) -> Any:
        return self._key


class OneKeyVerifier(HTTPMessageVerifier):
    """The library's verifier for one key, without its clock: the times were checked against the caller's.

    algorithm: as ``alg`` may spell it.
    """

    def __init__(self, algorithm: str, public_key: bytes) -> None:
        super().__init__(signature_algorithm=_ALGORITHMS[algorithm], key_resolver=_OneKey(public_key))

    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        return


def target_uri(origin_host: str, raw_target: str) -> str:
    """The URI that a request to *origin_host* (from configuration, never the Host header) is for.

    raw_target: path and query exactly as received.
    """
    return f"https://{origin_host}{raw_target}"


def sign_request(
    method: str, url: str, headers: Mapping[str, str], body: bytes, key_id: str, private_key: PrivateKey,
    created: int,
) -> dict[str, str]:
    """*headers* with ``Content-Digest``, ``Signature-Input`` and ``Signature`` for this request added.

    Args:
        method: in capitals. url: absolute, exactly as it will be requested.
        key_id: absolute https URL of the key. created: Unix seconds.

    Raises:
        EncodingError: ``BadUrl``: *url* or *key_id* is none that may be signed.

    Spec: RFC 9421 §3.1, with the components PKD's inbox needs.
    """
    parse_https_url(url)
    parse_https_url(key_id.partition("#")[0])
    algorithm = _Ed25519 if isinstance(private_key, Ed25519PrivateKey) else _MlDsa44
    signed = dict(headers)
    if any(name.lower() in ("content-digest", "signature", "signature-input") for name in signed):
        raise AssertionError("the request already has a digest or a signature")
    if PLAIN_URL.fullmatch(url) and PLAIN_METHOD.fullmatch(method) and _PLAIN_KEY_ID.fullmatch(key_id):
        return signed | _sign_plain(method, url, body, key_id, algorithm(private_key=private_key), created)
    HTTPMessageSigner(signature_algorithm=algorithm, key_resolver=_OneKey(private_key)).sign(
        _Message(method, url, signed),
        key_id=key_id,
        created=datetime.datetime.fromtimestamp(created, tz=datetime.UTC),
        label=_LABEL,
        covered_component_ids=COMPONENTS,
        body=body,
    )
    return signed


def _sign_plain(
    method: str, url: str, body: bytes, key_id: str, signer: _Ed25519 | _MlDsa44, created: int
) -> dict[str, str]:
    """The three headers, byte for byte as the library writes them, which takes a millisecond longer."""
    digest = f"sha-256=:{encode_base64(hashlib.sha256(body).digest())}:"
    covered = " ".join(f'"{name}"' for name in COMPONENTS)
    parameters = f'({covered});created={created};keyid="{key_id}";alg="{signer.algorithm_id}"'
    values = {"@method": method, "@target-uri": url, "content-digest": digest, "@signature-params": parameters}
    signature = signer.sign("\n".join(f'"{name}": {value}' for name, value in values.items()).encode())
    return {
        "Content-Digest": digest, "Signature-Input": f"{_LABEL}={parameters}",
        "Signature": f"{_LABEL}=:{encode_base64(signature)}:",
    }


def verify_request(
    method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, resolve_key: ResolveKey, now: int,
    compat: Collection[str] = (),
) -> VerifiedRequest:
    """Check every signature of a request.

    Args:
        method: as received. url: see target_uri. headers: every header line, repeated ones apart.
        body: the bytes as received. now: Unix seconds.
        resolve_key: gives the trusted key for a key id, or raises.
        compat: what is taken beyond the profile.

    Raises:
        MessageRejected: ``unauthorized``; and whatever *resolve_key* raises.
    """
    inputs, signatures = _parse_fields(headers)
    check_digest(_one_line(headers, "content-digest"), body)
    for parameters in inputs.values():
        check_parameters(parameters, now)
    verified = [
        _verify_one(method, url, headers, body, label, inputs[label], signatures[label], resolve_key, compat)
        for label in inputs
    ]
    if len({one.key_id.partition("#")[0] for one in verified}) != 1:
        raise _unauthorized("the signatures are by keys of different actors")
    algorithms = tuple(algorithm for one in verified for algorithm in one.algorithms)
    if len(set(algorithms)) != len(algorithms):
        raise _unauthorized("two signatures of one algorithm")
    best = max(verified, key=lambda one: one.algorithms == (ML_DSA_44,))
    created = max(one.created for one in verified)
    signatures = tuple(pair for one in verified for pair in one.signatures)
    return VerifiedRequest(best.key_id, created, best.signature, algorithms, signatures)


def _unauthorized(why: str) -> MessageRejected:
    return MessageRejected("unauthorized", why)


def _one_line(headers: Sequence[tuple[str, str]], name: str) -> str:
    values = [value for key, value in headers if key.lower() == name]
    if len(values) != 1:
        raise _unauthorized(f"{len(values)} {name} headers where one belongs")
    return values[0]


def _parse_fields(headers: Sequence[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Signature-Input and Signature by label: (components, parameters) and (bytes, parameters)."""
    texts = _one_line(headers, "signature-input"), _one_line(headers, "signature")
    inputs, signatures = parse_plain(*texts) or (
        parse_dictionary(texts[0]), parse_dictionary(texts[1], byte_sequences=True)
    )
    if inputs.keys() != signatures.keys() or not 1 <= len(inputs) <= _MAX_SIGNATURES:
        raise _unauthorized(f"not one or {_MAX_SIGNATURES} signatures, each with its input")
    repeated = _repeated_names(headers)
    for label, (components, _) in inputs.items():
        if not isinstance(components, list) or len(components) > _MAX_COMPONENTS:
            raise _unauthorized("a Signature-Input is not a list of a few components")
        names = {name for name, _ in components if isinstance(name, str)}
        plain = {name for name, parameters in components if isinstance(name, str) and not parameters}
        if not plain.issuperset(COMPONENTS):
            raise _unauthorized(f"the signature does not cover {' '.join(COMPONENTS)}")
        if names & repeated:
            raise _unauthorized(f"covered headers occur twice: {' '.join(sorted(names & repeated))}")
        if not isinstance(signatures[label][0], bytes):
            raise _unauthorized("a Signature is not a byte sequence")
    return inputs, signatures


def _repeated_names(headers: Sequence[tuple[str, str]]) -> set[str]:
    counts = Counter(name.lower() for name, _ in headers)
    return {name for name, count in counts.items() if count > 1}


def parse_dictionary(value: str, *, byte_sequences: bool = False) -> dict[str, Any]:
    """A structured dictionary, each name once; with byte_sequences their base64 is canonical too.

    Raises:
        MessageRejected: ``unauthorized``.
    """
    def refuse(key: str, _: str) -> None:
        raise _unauthorized(f"{ascii(key)} occurs twice in a signature header")

    try:
        # The library forgives missing padding and stray bits. One signature has one text here.
        for text in _BYTE_SEQUENCE.findall(value) if byte_sequences else ():
            decode_base64(text)
        return dict(http_sf.parse(value.encode("ascii"), tltype="dictionary", on_duplicate_key=refuse))
    except (EncodingError, ValueError, TypeError):
        raise _unauthorized("a signature header does not parse") from None


def check_digest(value: str, body: bytes) -> None:
    """That every digest of a ``Content-Digest`` that is known is right, and one is. Raises MessageRejected."""
    if plain := _PLAIN_DIGEST.fullmatch(value):  # as nearly all are; the library takes its time for it
        try:
            right = decode_base64(plain[1], 32) == hashlib.sha256(body).digest()
        except EncodingError:
            right = False
        if not right:
            raise _unauthorized("Content-Digest does not match the message body")
        return
    parse_dictionary(value, byte_sequences=True)
    try:
        ContentDigest.verify(value, body)
    except HTTPMessageSignaturesException as error:
        raise _unauthorized(str(error)) from None


def check_parameters(member: Any, now: int, max_age_seconds: int | None = MAX_SKEW_SECONDS) -> None:
    """That a signature's parameters are known ones, its times are right and its key is named by a URL.

    max_age_seconds: None takes any age. Raises MessageRejected.
    """
    parameters = member[1]
    if not parameters.keys() <= _PARAMETERS:
        raise _unauthorized("a signature has parameters that RFC 9421 does not know")
    created, expires = parameters.get("created"), parameters.get("expires")
    if type(created) is not int or created - now > MAX_SKEW_SECONDS:
        raise _unauthorized(f"created is missing, or more than {MAX_SKEW_SECONDS} s after now ({now})")
    if max_age_seconds is not None and now - created > max_age_seconds:
        raise _unauthorized(f"created is more than {max_age_seconds} s before now ({now})")
    if expires is not None and (type(expires) is not int or (max_age_seconds is not None and expires < now)):
        raise _unauthorized("the signature has expired")
    key_id = parameters.get("keyid")
    try:
        parse_https_url(key_id.partition("#")[0] if isinstance(key_id, str) else "")
    except EncodingError:
        raise _unauthorized("keyid is not an https URL") from None


def _verify_one(
    method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, label: str, member: Any,
    signature: Any, resolve_key: ResolveKey, compat: Collection[str],
) -> VerifiedRequest:
    parameters = member[1]
    key_id = parameters["keyid"]
    algorithm, public_key = key_material(resolve_key(key_id))
    if algorithm not in (ED25519, ML_DSA_44) and not (algorithm == RSA_SHA256 and RSA in compat):
        raise _unauthorized(f"signatures with {algorithm} are not taken here")
    spelled = parameters.get("alg", algorithm)
    by_php = PKD_PHP in compat and algorithm == ML_DSA_44 and spelled in PHP_LABELS
    if spelled != algorithm and not by_php:
        raise _unauthorized(f"alg does not agree with the key, which is for {algorithm}")
    base = plain_base(method, url, headers, member)
    try:
        if base is None:
            verifier = OneKeyVerifier(spelled, public_key)
            _verify_by_library(method, url, headers, body, label, member, signature, verifier)
        else:
            _ALGORITHMS[algorithm](public_key=public_key).verify(signature[0], base)
    except (HTTPMessageSignaturesException, EncodingError, Invalid, ValueError, TypeError) as error:
        raise _unauthorized(f"the HTTP signature does not verify: {error}") from None
    return VerifiedRequest(
        key_id, parameters["created"], signature[0], (algorithm,), ((key_id, signature[0]),)
    )


def _verify_by_library(
    method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes, label: str, member: Any, signature: Any,
    verifier: OneKeyVerifier,
) -> None:
    # The library verifies the only signature of a message without asking which; show it one at a time.
    alone = [line for line in headers if line[0].lower() not in ("signature", "signature-input")]
    alone.append(("Signature-Input", http_sf.ser({label: member})))
    alone.append(("Signature", http_sf.ser({label: signature})))
    verifier.verify(_Message(method, url, _Lines(alone)), max_age=None, require_components=COMPONENTS, body=body)


def key_material(key: PublicKey) -> tuple[str, bytes]:
    """The algorithm that a trusted key is for, and its raw bytes."""
    if isinstance(key, Multikey):
        return key.algorithm, key.public_key
    if isinstance(key, Ed25519PublicKey):
        return ED25519, key.public_bytes_raw()
    if isinstance(key, MLDSA44PublicKey):
        return ML_DSA_44, key.public_bytes_raw()
    raise AssertionError(f"a trusted key of type {type(key).__name__}")
