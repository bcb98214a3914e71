"""XSalsa20, for the ``vector`` dialect alone.

The published vectors were made with it although the specification says AES-256-CTR, and no
library that ktlog's client may depend on offers it. The attributes are a few hundred bytes long
and exist in conformance runs only, so clear Python is fast enough. Not constant time in any
sense that Python could promise; no secret of a ``spec`` log passes through here.

Spec: Bernstein, "Extending the Salsa20 nonce" (2011); "The Salsa20 family of stream ciphers" (2007).
"""

from __future__ import annotations

import struct

_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_MASK = 0xFFFFFFFF

# The four columns, then the four rows, of the 4x4 state that one double round mixes.
_QUARTERS = (
    (0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11),
    (0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14),
)


def _rotate(word: int, count: int) -> int:
    word &= _MASK
    return (word << count | word >> (32 - count)) & _MASK


def _mixed(state: list[int]) -> list[int]:
    """The state after twenty rounds, before the input is added back."""
    x = list(state)
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            x[b] ^= _rotate(x[a] + x[d], 7)
            x[c] ^= _rotate(x[b] + x[a], 9)
            x[d] ^= _rotate(x[c] + x[b], 13)
            x[a] ^= _rotate(x[d] + x[c], 18)
    return x


def _state(key: bytes, middle: bytes) -> list[int]:
    k = struct.unpack("<8I", key)
    m = struct.unpack("<4I", middle)
    s = _SIGMA
    return [s[0], *k[:4], s[1], *m, s[2], *k[4:], s[3]]


def xsalsa20_xor(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """*data* XOR the XSalsa20 key stream; its own inverse.

    Args:
        key: 32 bytes.
        nonce: 24 bytes.

    Raises:
        AssertionError: for another length of key or nonce; both come out of HKDF.
    """
    if len(key) != 32 or len(nonce) != 24:
        raise AssertionError("XSalsa20 takes a 32-byte key and a 24-byte nonce")
    h = _mixed(_state(key, nonce[:16]))
    subkey = struct.pack("<8I", h[0], h[5], h[10], h[15], h[6], h[7], h[8], h[9])
    out = bytearray()
    for block in range((len(data) + 63) // 64):
        state = _state(subkey, nonce[16:] + struct.pack("<Q", block))
        stream = struct.pack("<16I", *((a + b) & _MASK for a, b in zip(_mixed(state), state, strict=True)))
        part = data[64 * block:64 * block + 64]
        out += bytes(a ^ b for a, b in zip(part, stream, strict=False))
    return bytes(out)
