"""``age-v1``: a native recipient of age, an X25519 public key in bech32.

Exactly the 62 characters that age-keygen prints: ``age1``, 52 characters for 32 bytes, 6 of checksum, all in
lower case. Beyond that, no set bits after the last byte, and a point that age can encrypt to: in its one
encoding, and not of small order. Plugin and post-quantum recipients are other types.

Spec: age v1, "The X25519 recipient type"; BIP 173 (bech32, not bech32m); RFC 7748 §5, §6.1.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ktlog.pkd.auxdata import Extension, bad_aux_data

LENGTH = 62
PREFIX = "age1"
KEY_BYTES = 32

_CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH = 6
_FIELD_PRIME = 2**255 - 19


def _polymod(values: list[int]) -> int:
    """BIP 173's checksum polynomial over 5-bit groups."""
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            if top >> bit & 1:
                state ^= generator
    return state


def decode_recipient(text: str) -> bytes:
    """The 32 bytes of the X25519 public key that *text* encodes.

    Raises:
        MessageRejected: ``bad_aux_data``.
    """
    if len(text) != LENGTH or not text.startswith(PREFIX):
        raise bad_aux_data(f"an age recipient is {PREFIX} and {LENGTH - len(PREFIX)} more characters")
    groups = [_CHARACTERS.find(character) for character in text[len(PREFIX):]]
    if -1 in groups:
        raise bad_aux_data("an age recipient holds a character outside lower-case bech32")
    name = PREFIX[:-1]
    expanded = [ord(letter) >> 5 for letter in name] + [0] + [ord(letter) & 31 for letter in name]
    if _polymod(expanded + groups) != 1:
        raise bad_aux_data("the checksum of an age recipient does not hold")
    number = 0
    for group in groups[:-_CHECKSUM_LENGTH]:
        number = number << 5 | group
    # 52 groups carry 260 bits, 4 more than 32 bytes.
    if number & 0x0F:
        raise bad_aux_data("an age recipient has bits set after its last byte")
    return (number >> 4).to_bytes(KEY_BYTES, "big")


def validate(text: str) -> None:
    """Accept an age recipient. Raises MessageRejected(``bad_aux_data``)."""
    raw = decode_recipient(text)
    if int.from_bytes(raw, "little") >= _FIELD_PRIME:
        raise bad_aux_data("an X25519 public key is not in its canonical form")
    try:
        # Any private key will do: the shared secret of a point of small order is zero with all of them.
        X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES)).exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError:
        raise bad_aux_data("an X25519 public key has small order") from None


EXTENSION = Extension(
    id="age-v1", aliases=("age",), version="1.0.0", ref="https://age-encryption.org/v1", validate=validate,
)
