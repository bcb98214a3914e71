"""One-time passwords: SHA-512, 8 digits, windows of 30 seconds, each good once.

A window is the number of whole 30-second steps since 1970. A password is accepted in its own window and
the two after it, and only if its window is later than that of the last one accepted: whoever overhears a
password cannot use it, nor an earlier one, again.

A secret is 32 random bytes. Apps take it as base32; PKD encrypts it to the directory with HPKE and does not
say in which form, so both the bytes and their base32 are read.

>>> totp_code(b"12345678901234567890123456789012", 1)
'53754366'

Spec: RFC 4226 §5.3, RFC 6238 §4; PKD "TOTP".
"""

from __future__ import annotations

import hmac
from base64 import b32decode, b32encode

from ktlog.errors import EncodingError
from ktlog.pkd.rejections import reject

WINDOW_SECONDS = 30
DIGITS = 8
PREVIOUS_WINDOWS = 2
SECRET_BYTES = 32

_BASE32_LENGTHS = (52, 56)  # without and with padding


def window_at(now: int) -> int:
    """The window of *now*, in Unix seconds."""
    return now // WINDOW_SECONDS


def hotp(key: bytes, counter: int) -> str:
    """The 8 digits that *key*, of any length, gives for *counter*.

    Spec: RFC 4226 §5.3, with HMAC-SHA-512 as RFC 6238 §1.2 allows.
    """
    digest = hmac.digest(key, counter.to_bytes(8, "big"), "sha512")
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset:offset + 4], "big") & 0x7FFFFFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def totp_code(secret: bytes, window: int) -> str:
    """The password of *window*, 8 digits.

    Raises:
        EncodingError: ``BadTotpSecret`` for a secret that is not 32 bytes long.

    Spec: RFC 6238 §4; PKD "TOTP Configuration".
    """
    _check_secret(secret)
    if not 0 <= window < 2**63:
        raise AssertionError("a window is counted from 1970")
    return hotp(secret, window)


def verify_totp(secret: bytes, code: str, now: int, last_window: int) -> int:
    """Check a password, and tell which window it is of.

    Args:
        now: Unix seconds.
        last_window: window of the last password accepted for this secret, or -1. Whoever accepts this one
            must store the returned window in its place, in the same step as what the password allows.

    Raises:
        MessageRejected: ``bad_otp``; ``otp_reused`` for one that is right and whose window, or a later
            one, is used up.

    Spec: PKD "TOTP Verification"; RFC 6238 §5.2 (one use).
    """
    current = window_at(now)
    # Every window is compared, so that the time taken does not tell which one came close.
    matching = [
        window for window in range(max(0, current - PREVIOUS_WINDOWS), current + 1)
        if _same(totp_code(secret, window), code)
    ]
    if not matching:
        raise reject("bad_otp")
    if matching[-1] <= last_window:
        raise reject("otp_reused")
    return matching[-1]


def verify_new_codes(secret: bytes, current_code: str, previous_code: str, now: int) -> int:
    """Check that whoever brings a new secret has an app that computes it: two passwords in a row.

    Returns:
        The ``last_window`` to store with the secret. It is the window of *now*, though the passwords may
        be one window older: nothing that was, or could have been, used before counts again, also when the
        "new" secret is one that was enrolled before.

    Raises:
        MessageRejected: ``bad_new_otp``.

    Spec: PKD "TOTP Enrollment", "TOTP Verification" (t and t-1 for any window t, both within the three).
    """
    current = window_at(now)
    fits = [
        _same(totp_code(secret, window), current_code) & _same(totp_code(secret, window - 1), previous_code)
        for window in range(max(1, current - PREVIOUS_WINDOWS + 1), current + 1)
    ]
    if not any(fits):
        raise reject("bad_new_otp")
    return current


def encode_secret(secret: bytes) -> str:
    """The secret as apps take it: 52 letters and digits of base32, without padding.

    Raises:
        EncodingError: ``BadTotpSecret``.

    Spec: RFC 4648 §6.
    """
    _check_secret(secret)
    return b32encode(secret).decode("ascii").rstrip("=")


def decode_secret(data: bytes) -> bytes:
    """The 32 bytes of a secret as it came out of HPKE: themselves, or their base32, padded or not.

    Raises:
        EncodingError: ``BadTotpSecret``.

    Spec: PKD "TOTP Enrollment" (256 bits; base32 for people).
    """
    if len(data) == SECRET_BYTES:
        return data
    if len(data) in _BASE32_LENGTHS:
        try:
            secret = b32decode(data.ljust(_BASE32_LENGTHS[1], b"="))
        except ValueError:
            secret = b""
        # Stray bits behind the last byte would make two texts of one secret.
        if len(secret) == SECRET_BYTES and b32encode(secret)[:52] == data[:52]:
            return secret
    raise EncodingError("BadTotpSecret", f"a TOTP secret is {SECRET_BYTES} bytes, or their base32")


def _check_secret(secret: bytes) -> None:
    if len(secret) != SECRET_BYTES:
        raise EncodingError("BadTotpSecret", f"a TOTP secret is {SECRET_BYTES} bytes long")


def _same(expected: str, code: str) -> bool:
    # Bytes, because text beyond ASCII is not compared. Half a surrogate pair becomes a question mark, no digit.
    return hmac.compare_digest(expected.encode("ascii"), code.encode("utf-8", "replace"))
