"""The curve arithmetic below is a second, slow implementation that derives the points to refuse."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.ed25519 import load_ed25519_public_key, verify_ed25519

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes_raw()


def add(one, two):
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2
    x3 = (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P) % P
    y3 = (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P) % P
    return x3, y3


def multiply(scalar, point):
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def decompress(y):
    """A point with this y, or None."""
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def encode(y, sign=0):
    return (y | sign << 255).to_bytes(32, "little")


def small_order_points():
    """All eight, as the multiples of a point of order 8 found by clearing the large factor."""
    y = 2
    while True:
        point = decompress(y)
        if point is not None:
            torsion = multiply(L, point)
            if multiply(4, torsion) != (0, 1):
                return [multiply(factor, torsion) for factor in range(8)]
        y += 1


SMALL = small_order_points()


def test_the_second_implementation_finds_the_torsion_group():
    assert len(set(SMALL)) == 8
    assert multiply(8, SMALL[1]) == (0, 1)


@pytest.mark.parametrize("point", SMALL)
def test_small_order_keys_are_refused(point):
    x, y = point
    for sign in (0, 1):
        with pytest.raises(EncodingError) as caught:
            load_ed25519_public_key(encode(y, sign))
        assert caught.value.name == "BadEd25519Key"
        with pytest.raises(EncodingError):
            verify_ed25519(encode(y, sign), bytes(64), b"")


def test_the_library_alone_accepts_what_is_refused_here():
    """Were this to change, the checks here would be idle; so say so."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    neutral = encode(1)
    signature = neutral + bytes(32)
    for message in (b"one", b"another"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(signature, message)


@pytest.mark.parametrize("excess", range(19))
def test_non_canonical_keys_are_refused(excess):
    for sign in (0, 1):
        with pytest.raises(EncodingError):
            load_ed25519_public_key(encode(P + excess, sign))


def test_keys_off_the_curve_are_refused():
    off = [y for y in range(2, 60) if decompress(y) is None]
    assert off
    for y in off:
        with pytest.raises(EncodingError):
            load_ed25519_public_key(encode(y))


def test_keys_on_the_curve_are_accepted():
    on = [y for y in range(2, 60) if decompress(y) is not None]
    assert on
    for y in on:
        for sign in (0, 1):
            load_ed25519_public_key(encode(y, sign))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_size_are_refused(size):
    with pytest.raises(EncodingError):
        load_ed25519_public_key(bytes(size))


def test_a_signature_verifies_and_covers_message_and_key():
    signature = PRIVATE.sign(b"message")
    verify_ed25519(PUBLIC, signature, b"message")
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    for key, message in ((PUBLIC, b"Message"), (other, b"message")):
        with pytest.raises(Invalid) as caught:
            verify_ed25519(key, signature, message)
        assert caught.value.name == "BadSignature"


def test_every_flipped_bit_of_a_signature_is_refused():
    signature = PRIVATE.sign(b"message")
    for bit in range(512):
        mutated = bytearray(signature)
        mutated[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Invalid):
            verify_ed25519(PUBLIC, bytes(mutated), b"message")


def test_a_signature_with_s_beyond_the_group_order_is_refused():
    signature = PRIVATE.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + L
    with pytest.raises(Invalid):
        verify_ed25519(PUBLIC, signature[:32] + s.to_bytes(32, "little"), b"message")


@pytest.mark.parametrize("size", [0, 63, 65])
def test_signatures_of_another_size_are_refused(size):
    with pytest.raises(Invalid):
        verify_ed25519(PUBLIC, bytes(size), b"message")
