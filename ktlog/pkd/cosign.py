"""PKD's cosignatures: a witness says that it saw a directory's tree with this root.

The token is a JSON text with five members, signed with ML-DSA-44 over the first four::

    {"!pkd-context":"fedi-e2ee-v1:cosignature","current-time":"1765655318","hostname":"keys.example.com",
     "merkle-root":"pkd-mr-v1:...","signature":"..."}

It is PKD's own and older kind of cosignature, kept beside the C2SP ones (:mod:`ktlog.tlog.cosignature`). It
names no tree size, and proves nothing about consistency.

``hostname`` is the receiving directory's. The specification's table says host name and its example shows a
URL, so both are read: the bare name, or ``https://`` or ``http://`` before it. All three name one host.

Spec: PKD "Cosignatures".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.keys import SIGNATURE_BYTES, decode_public_key, decode_root, sign_mldsa44, verify_mldsa44
from ktlog.pkd.pae import pae
from ktlog.pkd.rejections import reject
from ktlog.tlog.encoding import decode_base64url, encode_base64url, parse_decimal

COSIGNATURE_CONTEXT = "fedi-e2ee-v1:cosignature"
MAX_TOKEN_BYTES = 8192
MAX_WITNESS_LENGTH = 255

_MEMBERS = ("!pkd-context", "current-time", "hostname", "merkle-root", "signature")


@dataclass(frozen=True, slots=True)
class CosignatureToken:
    """A cosignature as received: well-formed, and not believed before :func:`verify_cosignature`."""

    time: int
    """Unix seconds, by the witness."""
    hostname: str
    """As signed; see :func:`names_host`."""
    merkle_root: str
    """``pkd-mr-v1:...``"""
    signature: bytes
    """2420 bytes."""


def signed_bytes(time: int, hostname: str, merkle_root: str) -> bytes:
    """What a witness signs. Spec: PKD "Cosigning A Merkle Root"."""
    return pae([
        "!pkd-context", COSIGNATURE_CONTEXT, "current-time", str(time), "hostname", hostname,
        "merkle-root", merkle_root,
    ])


def make_cosignature(private_key: MLDSA44PrivateKey, time: int, hostname: str, merkle_root: str) -> str:
    """A witness's token for *merkle_root* of the directory at *hostname*, as JSON text.

    Raises:
        EncodingError: ``BadMerkleRoot``, ``BadText``.
    """
    decode_root(merkle_root)
    signature = sign_mldsa44(private_key, signed_bytes(time, hostname, merkle_root))
    return format_cosignature(CosignatureToken(time, hostname, merkle_root, signature))


def format_cosignature(token: CosignatureToken) -> str:
    """The token as canonical JSON: the inverse of :func:`parse_cosignature`."""
    values = (
        COSIGNATURE_CONTEXT, str(token.time), token.hostname, token.merkle_root, encode_base64url(token.signature),
    )
    return canonical(dict(zip(_MEMBERS, values, strict=True))).decode("utf-8")


def parse_cosignature(text: str) -> CosignatureToken:
    """Read a token: exactly its five members, each a string in its one form.

    Raises:
        MessageRejected: ``bad_cosignature``.

    Spec: PKD "Verifying a Cosignature", steps 2 to 4.
    """
    if len(text) > MAX_TOKEN_BYTES:
        raise reject("bad_cosignature", f"longer than {MAX_TOKEN_BYTES} characters")
    try:
        members = parse_json(text)
        if not isinstance(members, dict) or set(members) != set(_MEMBERS):
            raise reject("bad_cosignature", f"want exactly {', '.join(_MEMBERS)}")
        if not all(isinstance(value, str) for value in members.values()):
            raise reject("bad_cosignature", "a member is not a string")
        if members["!pkd-context"] != COSIGNATURE_CONTEXT:
            raise reject("bad_cosignature", f"!pkd-context is not {COSIGNATURE_CONTEXT}")
        decode_root(members["merkle-root"])
        return CosignatureToken(
            parse_decimal(members["current-time"]), members["hostname"], members["merkle-root"],
            decode_base64url(members["signature"], SIGNATURE_BYTES),
        )
    except EncodingError as error:
        raise reject("bad_cosignature", error.message) from None


def names_host(hostname: str, origin: str) -> bool:
    """Whether a token's *hostname* means the directory *origin* (a bare host name)."""
    return hostname in (origin, f"https://{origin}", f"http://{origin}")


def verify_cosignature(token: CosignatureToken, public_key: bytes, origin: str, merkle_root: str) -> None:
    """Check that the witness with *public_key* signed *token*, for this directory and this root.

    Args:
        public_key: 1312 raw bytes. origin: the receiving directory's host name.

    Raises:
        MessageRejected: ``bad_cosignature``.

    Spec: PKD "Verifying a Cosignature", steps 5 to 7.
    """
    if not names_host(token.hostname, origin):
        raise reject("bad_cosignature", "it is for another directory")
    if token.merkle_root != merkle_root:
        raise reject("bad_cosignature", "it is for another root")
    try:
        verify_mldsa44(public_key, token.signature, signed_bytes(token.time, token.hostname, token.merkle_root))
    except Invalid:
        raise reject("bad_cosignature", "the signature does not verify under the witness's key") from None


def parse_cosigners(data: bytes) -> Mapping[str, bytes]:
    """The witnesses whose cosignatures a directory takes, as their public keys by id.

    A line holds an id and a key, ``https://witness.example mldsa44:...``; blank lines and lines that begin
    with ``#`` say nothing. The id is what the witness calls itself in ``witness``, byte for byte.

    Raises:
        EncodingError: ``BadCosigners``, also for an id or a key that occurs twice.
    """
    cosigners: dict[str, bytes] = {}
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise EncodingError("BadCosigners", "the list of cosigners is not ASCII") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 2 or not parts[0].isprintable() or len(parts[0]) > MAX_WITNESS_LENGTH:
            raise EncodingError("BadCosigners", f"line {number}: want a witness's id and its mldsa44: key")
        witness, key = parts
        try:
            public_key = decode_public_key(key)
        except EncodingError as error:
            raise EncodingError("BadCosigners", f"line {number}: {error.message}") from None
        if witness in cosigners or public_key in cosigners.values():
            raise EncodingError("BadCosigners", f"line {number}: the id or the key occurs twice")
        cosigners[witness] = public_key
    return cosigners
