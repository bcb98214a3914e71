"""``ssh-v2``: a public key as OpenSSH writes one, ``type base64``, without a comment.

Ed25519, ECDSA on the three NIST curves, and RSA with e = 65537 and a modulus of 2048 to 16384 bits. The
base64 is canonical, the type inside equals the type outside, every number has its shortest form, every
field its exact length, nothing follows, and a point is on its curve: one text for one key.

Spec: RFC 4253 §6.6 (formats), RFC 4251 §5 (string, mpint), RFC 5656 §3.1 (ECDSA), RFC 8709 §4 (Ed25519).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from ktlog.errors import EncodingError
from ktlog.pkd.auxdata import Extension, bad_aux_data
from ktlog.tlog.ed25519 import load_ed25519_public_key
from ktlog.tlog.encoding import decode_base64

MAX_LENGTH = 4096
"""Of the text; a 16384-bit RSA key takes 2778 characters."""

RSA_EXPONENT = 65537
RSA_BITS = range(2048, 16384 + 1)

_CURVES: dict[str, tuple[ec.EllipticCurve, int]] = {
    "nistp256": (ec.SECP256R1(), 32),
    "nistp384": (ec.SECP384R1(), 48),
    "nistp521": (ec.SECP521R1(), 66),
}
_ECDSA = "ecdsa-sha2-"
_TYPES = ("ssh-ed25519", "ssh-rsa", *(_ECDSA + curve for curve in _CURVES))
_LENGTH_BYTES = 4


def _fields(blob: bytes) -> list[bytes]:
    """The SSH strings that *blob* consists of, to its last byte."""
    fields = []
    while blob:
        end = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "big")
        if len(blob) < end:
            raise bad_aux_data("an SSH key is cut short")
        fields.append(blob[_LENGTH_BYTES:end])
        blob = blob[end:]
    return fields


def _positive(mpint: bytes) -> int:
    """A positive mpint in its shortest form."""
    number = int.from_bytes(mpint, "big", signed=True)
    if number <= 0 or len(mpint) != number.bit_length() // 8 + 1:
        raise bad_aux_data("a number in an RSA key is not positive, or not in its shortest form")
    return number


def _check_rsa(fields: list[bytes]) -> None:
    exponent, modulus = (_positive(field) for field in fields)
    if exponent != RSA_EXPONENT:
        raise bad_aux_data(f"the exponent of an RSA key is not {RSA_EXPONENT}")
    if modulus.bit_length() not in RSA_BITS or modulus % 2 == 0:
        raise bad_aux_data("the modulus of an RSA key is even, or does not have 2048 to 16384 bits")


def _check_ed25519(fields: list[bytes]) -> None:
    try:
        load_ed25519_public_key(fields[0])
    except EncodingError as error:
        raise bad_aux_data(error.message) from None


def _check_ecdsa(curve_name: str, fields: list[bytes]) -> None:
    curve, coordinate_bytes = _CURVES[curve_name]
    named, point = fields
    if named != curve_name.encode("ascii"):
        raise bad_aux_data("an ECDSA key names another curve than its type")
    if len(point) != 1 + 2 * coordinate_bytes or point[0] != 0x04:
        raise bad_aux_data("the point of an ECDSA key is not uncompressed, or of another length")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except ValueError:
        raise bad_aux_data("the point of an ECDSA key is not on its curve") from None


def validate(text: str) -> None:
    """Accept an SSH public key. Raises MessageRejected(``bad_aux_data``)."""
    key_type, space, encoded = text.partition(" ")
    if len(text) > MAX_LENGTH or not space or key_type not in _TYPES:
        raise bad_aux_data(f"an SSH key is its type, a space and base64; the type one of {', '.join(_TYPES)}")
    try:
        fields = _fields(decode_base64(encoded))
    except EncodingError as error:
        raise bad_aux_data(error.message) from None
    if not fields or fields[0] != key_type.encode("ascii"):
        raise bad_aux_data("the type inside an SSH key is not the type before it")
    if len(fields) != (2 if key_type == "ssh-ed25519" else 3):
        raise bad_aux_data("an SSH key has more or fewer parts than its type")
    if key_type == "ssh-rsa":
        _check_rsa(fields[1:])
    elif key_type == "ssh-ed25519":
        _check_ed25519(fields[1:])
    else:
        _check_ecdsa(key_type.removeprefix(_ECDSA), fields[1:])


EXTENSION = Extension(
    id="ssh-v2", aliases=("ssh",), version="2.0.0", ref="https://www.rfc-editor.org/rfc/rfc4253#section-6.6",
    validate=validate,
)
