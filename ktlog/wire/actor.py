"""Actor documents, and the public keys in them.

An instance vouches for its actors' HTTP signing keys by listing them in ``assertionMethod`` of the actor
document that it serves under the actor's own id. A key counts only with that reverse link.

Spec: FEP-521a; Controlled Identifiers 1.0 (Multikey); the multicodec table for the two prefixes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ktlog.errors import EncodingError, Invalid, Unreachable
from ktlog.tlog.ed25519 import load_ed25519_public_key
from ktlog.tlog.encoding import decode_base64url
from ktlog.wire.actor_id import parse_actor_id, parse_https_url
from ktlog.wire.compat import PKD_PHP, RSA
from ktlog.wire.fetch import Fetcher
from ktlog.wire.media import parse_foreign_json
from ktlog.wire.rsa import parse_rsa_public_key
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS, LD_JSON, is_activity_type

ED25519 = "ed25519"
ML_DSA_44 = "ml-dsa-44"
#: Of keys in ``publicKey``, which are read only for the switch ``rsa``.
RSA_SHA256 = "rsa-v1_5-sha256"
ACCEPT = f'{ACTIVITY_JSON}, {LD_JSON}; profile="{ACTIVITYSTREAMS}"'
MAX_ACTOR_BYTES = 1 << 18
MAX_KEYS = 16
#: Name of the error that says that there never will be such an actor again (410). A 404 may be a server's bad day.
GONE = "GoneActor"

# Algorithm: multicodec code as an unsigned varint (0xed, 0x1210), length of the public key in bytes.
_CODECS = {ED25519: (b"\xed\x01", 32), ML_DSA_44: (b"\x90\x24", 1312)}
# As pkd-php writes them: the second code is no varint there.
_PHP_CODECS = {ED25519: (b"\xed\x01", 32), ML_DSA_44: (b"\x12\x10", 1312)}
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE = {character: value for value, character in enumerate(_BASE58)}
_MAX_MULTIKEY_LENGTH = 2048


@dataclass(frozen=True)
class Multikey:
    """A public key of an actor. public_key: raw bytes, 32 (ed25519) or 1312 (ml-dsa-44); of RSA, its DER."""

    id: str
    controller: str
    algorithm: str
    public_key: bytes


@dataclass(frozen=True)
class ActorDocument:
    """What is needed of an actor document. assertion_method: its keys of the two known algorithms.

    public_key: the RSA key in ``publicKey``, if it was asked for.
    key_packages: the URL of the collection in ``keyPackages``, if it is on the actor's own host; see ktlog.wire.mls.
    """

    id: str
    inbox: str
    assertion_method: tuple[Multikey, ...]
    public_key: Multikey | None = None
    key_packages: str | None = None


def encode_base58btc(data: bytes) -> str:
    """Base58 in Bitcoin's alphabet, one ``1`` for each leading zero byte."""
    digits = []
    value = int.from_bytes(data, "big")
    while value:
        value, digit = divmod(value, 58)
        digits.append(_BASE58[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def decode_base58btc(text: str) -> bytes:
    """Inverse of encode_base58btc. Raises EncodingError: ``BadBase58``."""
    value = 0
    for character in text:
        digit = _BASE58_VALUE.get(character)
        if digit is None:
            raise EncodingError("BadBase58", f"{ascii(character)} is no base58 digit")
        value = value * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + value.to_bytes((value.bit_length() + 7) // 8, "big")


def encode_multikey(algorithm: str, public_key: bytes) -> str:
    """*public_key* (raw bytes) as publicKeyMultibase: ``z``, then base58btc of codec prefix and key."""
    prefix, size = _CODECS[algorithm]
    if len(public_key) != size:
        raise AssertionError(f"a public key of {len(public_key)} bytes for {algorithm}")
    return "z" + encode_base58btc(prefix + public_key)


def decode_multikey(text: str, *, php: bool = False) -> tuple[str, bytes] | None:
    """(algorithm, raw public key) of a publicKeyMultibase; None for a codec that is not ours to know.

    php: takes what pkd-php writes too, which is base64url and has a prefix of its own.

    Raises:
        EncodingError: ``BadBase58``, ``BadBase64``, ``BadMultikey`` (wrong base or length), ``BadEd25519Key`` (a
            point of small order, or none of the curve).
    """
    if not text.startswith(("z", "u") if php else "z") or len(text) > _MAX_MULTIKEY_LENGTH:
        raise EncodingError("BadMultikey", "publicKeyMultibase is not base58btc of a key's length")
    if text.startswith("u"):
        codecs, data = _PHP_CODECS, decode_base64url(text[1:])
    else:
        codecs, data = _CODECS, decode_base58btc(text[1:])
    for algorithm, (prefix, size) in codecs.items():
        if data.startswith(prefix):
            if len(data) != len(prefix) + size:
                raise EncodingError("BadMultikey", f"a key for {algorithm} does not have {size} bytes")
            public_key = data[len(prefix):]
            if algorithm == ED25519:
                load_ed25519_public_key(public_key)
            return algorithm, public_key
    return None


def fetch_actor(fetcher: Fetcher, actor_id: str, compat: Collection[str] = ()) -> ActorDocument:
    """The document of *actor_id*, from its own server. compat: see ktlog.wire.compat.

    Raises:
        EncodingError: ``BadActorId``, ``BadJson``, ``DuplicateKey``, ``BadMultikey``, ``BadBase58``,
            ``BadEd25519Key``.
        Invalid: ``BadActor``: not a document about this actor, or it lists keys of another. ``GoneActor``: its
            server says that it was deleted.
        Unreachable: as every fetch; ``BadContent`` when the type does not say ActivityStreams.
    """
    response = fetcher.get(parse_actor_id(actor_id), accept=ACCEPT, max_bytes=MAX_ACTOR_BYTES)
    if response.status == 410:
        raise Invalid(GONE, f"{actor_id} was deleted, says its server")
    if response.status != 200:
        raise Unreachable("BadStatus", f"{actor_id} answers {response.status}")
    if not is_activity_type(response.headers.get("content-type", "")):
        raise Unreachable("BadContent", f"{actor_id} is {response.content_type or 'of no type'}, no actor")
    return parse_actor(parse_foreign_json(response.body), actor_id, compat)


def parse_actor(document: Any, actor_id: str, compat: Collection[str] = ()) -> ActorDocument:
    """What is needed of an actor document that was served as *actor_id*.

    Keys of unknown types are left out; a known one that belongs to someone else spoils the document.

    Raises:
        EncodingError, Invalid: as fetch_actor.
    """
    if not isinstance(document, dict) or document.get("id") != actor_id:
        raise Invalid("BadActor", f"what {actor_id} serves is not its own document")
    inbox = document.get("inbox")
    if not isinstance(inbox, str) or _host(inbox) != _host(actor_id):
        raise Invalid("BadActor", f"{actor_id} has no inbox on its own host")
    methods = document.get("assertionMethod", [])
    entries = methods if isinstance(methods, list) else [methods]
    # Decoding base58 takes time that grows with the square of its length, and a stranger pays nothing for ours.
    if len(entries) > MAX_KEYS:
        raise Invalid("BadActor", f"{actor_id} lists more than {MAX_KEYS} keys")
    keys = [_parse_key(entry, actor_id, PKD_PHP in compat) for entry in entries]
    known = tuple(key for key in keys if key is not None)
    if len({key.id for key in known}) != len(known):
        raise Invalid("BadActor", f"{actor_id} lists two keys under one id")
    rsa = _parse_rsa_key(document, actor_id) if RSA in compat else None
    return ActorDocument(actor_id, inbox, known, rsa, _parse_collection(document.get("keyPackages"), actor_id))


def _parse_collection(value: Any, actor_id: str) -> str | None:
    """The URL of a collection, or of the object that it is; None for what is elsewhere or is no URL."""
    url = value.get("id") if isinstance(value, dict) else value
    try:
        return url if isinstance(url, str) and _host(url) == _host(actor_id) else None
    except Invalid:  # nothing else of the document hangs on it
        return None


def _parse_rsa_key(document: dict[str, Any], actor_id: str) -> Multikey | None:
    """The one key in ``publicKey``, if it is the actor's, and RSA of a size that is taken."""
    entry = document.get("publicKey")
    if not isinstance(entry, dict) or entry.get("owner") != actor_id:
        return None
    key_id, pem = entry.get("id"), entry.get("publicKeyPem")
    if not isinstance(key_id, str) or not isinstance(pem, str):
        return None
    try:
        return Multikey(key_id, actor_id, RSA_SHA256, parse_rsa_public_key(pem))
    except EncodingError:
        return None


def _parse_key(entry: Any, actor_id: str, php: bool) -> Multikey | None:
    # A string is a reference to a key elsewhere; nothing is fetched on a stranger's say-so.
    if not isinstance(entry, dict) or entry.get("type") != "Multikey":
        return None
    multibase = entry.get("publicKeyMultibase")
    decoded = decode_multikey(multibase, php=php) if isinstance(multibase, str) else None
    if decoded is None:
        return None
    key_id, controller = entry.get("id"), entry.get("controller")
    if controller != actor_id:
        raise Invalid("BadActor", f"{actor_id} lists a key that it does not control")
    if not isinstance(key_id, str) or _host(key_id.partition("#")[0]) != _host(actor_id):
        raise Invalid("BadActor", f"{actor_id} lists a key whose id is on another host")
    return Multikey(key_id, controller, *decoded)


def _host(url: str) -> str:
    try:
        return parse_https_url(url).host
    except EncodingError as error:
        raise Invalid("BadActor", error.message) from None


def actor_key(key_id: str, actor_id: str, algorithm: str, public_key: bytes) -> dict[str, str]:
    """One entry of ``assertionMethod``: the inverse of what parse_actor reads."""
    return {
        "id": key_id,
        "type": "Multikey",
        "controller": actor_id,
        "publicKeyMultibase": encode_multikey(algorithm, public_key),
    }
