"""One-time passwords: the RFC's known answers, the windows, one use, and a secret's two encodings."""

from __future__ import annotations

import base64

import pytest

from ktlog.errors import EncodingError, MessageRejected
from ktlog.pkd.totp import (
    decode_secret,
    encode_secret,
    hotp,
    totp_code,
    verify_new_codes,
    verify_totp,
    window_at,
)
from tests.pkd_samples import bytes_of

SECRET = bytes_of("totp secret")
NOW = 1_800_000_015  # in the middle of a window
WINDOW = NOW // 30


def code_of(call, *arguments) -> str:
    with pytest.raises(MessageRejected) as caught:
        call(*arguments)
    return caught.value.code


@pytest.mark.parametrize(("time", "digits"), [
    (59, "90693936"), (1111111109, "25091201"), (1111111111, "99943326"), (1234567890, "93441116"),
    (2000000000, "38618901"), (20000000000, "47863826"),
])
def test_rfc_6238_appendix_b_for_sha_512(time, digits):
    assert hotp(b"1234567890" * 6 + b"1234", window_at(time)) == digits


def test_digits_are_padded_to_eight():
    window = next(n for n in range(1000) if int(hotp(SECRET, n)) < 10**7)
    assert len(totp_code(SECRET, window)) == 8
    assert totp_code(SECRET, window).startswith("0")


@pytest.mark.parametrize("size", [0, 20, 31, 33, 64])
def test_a_secret_is_256_bits(size):
    with pytest.raises(EncodingError, match="BadTotpSecret"):
        totp_code(bytes(size), 1)


@pytest.mark.parametrize("age", [0, 1, 2])
def test_this_window_and_the_two_before_it_are_good(age):
    assert verify_totp(SECRET, totp_code(SECRET, WINDOW - age), NOW, -1) == WINDOW - age


@pytest.mark.parametrize("age", [3, 4, -1, -2])
def test_older_and_future_windows_are_not(age):
    assert code_of(verify_totp, SECRET, totp_code(SECRET, WINDOW - age), NOW, -1) == "bad_otp"


def test_a_window_ends_after_its_thirtieth_second():
    start = WINDOW * 30
    password = totp_code(SECRET, WINDOW)
    assert code_of(verify_totp, SECRET, password, start - 1, -1) == "bad_otp"
    assert verify_totp(SECRET, password, start, -1) == verify_totp(SECRET, password, start + 89, -1) == WINDOW
    assert code_of(verify_totp, SECRET, password, start + 90, -1) == "bad_otp"


def test_a_password_counts_once_and_so_do_older_ones():
    password = totp_code(SECRET, WINDOW - 1)
    assert code_of(verify_totp, SECRET, password, NOW, WINDOW - 1) == "otp_reused"
    assert code_of(verify_totp, SECRET, password, NOW, WINDOW) == "otp_reused"
    assert verify_totp(SECRET, password, NOW, WINDOW - 2) == WINDOW - 1


def test_a_password_that_two_windows_share_counts_for_the_later(monkeypatch):
    """Once in 10**8 the same digits come twice: the second time they are not a replay."""
    monkeypatch.setattr("ktlog.pkd.totp.hotp", lambda key, counter: "00000000")
    assert verify_totp(SECRET, "00000000", NOW, WINDOW - 1) == WINDOW
    assert code_of(verify_totp, SECRET, "00000000", NOW, WINDOW) == "otp_reused"


@pytest.mark.parametrize("spoil", [
    lambda code: "", lambda code: code[:7], lambda code: code + "0", lambda code: " " + code, lambda code: code + "\n",
    lambda code: code.translate({ord(str(n)): 0x660 + n for n in range(10)}), lambda code: "\ud800" + code,
    lambda code: code + "\x00", lambda code: "?" * 8, lambda code: "é",
])
def test_nothing_but_the_eight_digits_will_do(spoil):
    assert code_of(verify_totp, SECRET, spoil(totp_code(SECRET, WINDOW)), NOW, -1) == "bad_otp"


def test_another_secret_s_password():
    assert code_of(verify_totp, SECRET, totp_code(bytes_of("other"), WINDOW), NOW, -1) == "bad_otp"


def test_windows_begin_with_1970():
    assert verify_totp(SECRET, totp_code(SECRET, 0), 5, -1) == 0
    assert code_of(verify_new_codes, SECRET, totp_code(SECRET, 0), totp_code(SECRET, 0), 5) == "bad_new_otp"


# --- a new secret


@pytest.mark.parametrize("age", [0, 1])
def test_two_passwords_in_a_row(age):
    codes = totp_code(SECRET, WINDOW - age), totp_code(SECRET, WINDOW - age - 1)
    assert verify_new_codes(SECRET, *codes, NOW) == WINDOW


@pytest.mark.parametrize(("current", "previous"), [
    (2, 3), (0, 0), (1, 1), (0, 2), (1, 0), (-1, 0), (0, -1), (3, 4),
])
def test_passwords_that_are_not_in_a_row_or_out_of_the_three_windows(current, previous):
    codes = totp_code(SECRET, WINDOW - current), totp_code(SECRET, WINDOW - previous)
    assert code_of(verify_new_codes, SECRET, *codes, NOW) == "bad_new_otp"


def test_one_right_password_is_not_enough():
    current, previous = totp_code(SECRET, WINDOW), totp_code(SECRET, WINDOW - 1)
    assert code_of(verify_new_codes, SECRET, current, "00000000", NOW) == "bad_new_otp"
    assert code_of(verify_new_codes, SECRET, "00000000", previous, NOW) == "bad_new_otp"


def test_whatever_could_have_been_used_before_a_secret_came_is_used_up():
    """Also when the new secret is an old one, and its passwords here are those of the window before."""
    last = verify_new_codes(SECRET, totp_code(SECRET, WINDOW - 1), totp_code(SECRET, WINDOW - 2), NOW)
    for age in range(3):
        assert code_of(verify_totp, SECRET, totp_code(SECRET, WINDOW - age), NOW, last) == "otp_reused"
    assert verify_totp(SECRET, totp_code(SECRET, WINDOW + 1), NOW + 30, last) == WINDOW + 1


# --- how a secret is written


def test_a_secret_is_read_as_bytes_and_as_base32():
    text = base64.b32encode(SECRET)
    assert encode_secret(SECRET).encode() + b"====" == text
    assert decode_secret(SECRET) == decode_secret(text) == decode_secret(text[:52]) == SECRET


@pytest.mark.parametrize("spoil", [
    lambda text: text[:51], lambda text: text + b"=", lambda text: text.lower(), lambda text: text[:51] + b"1",
    lambda text: text[:51] + bytes([text[51] + 1]),  # sets a bit behind the last byte
    lambda text: text + b"A" * 4, lambda text: b"hpke:" + text[5:], lambda text: b"\xff" * 52, lambda text: b"",
    lambda text: b"=" * 56, lambda text: text[:48] + b"====" + b"====", lambda text: text[:31], lambda text: text[:33],
])
def test_and_as_nothing_else(spoil):
    with pytest.raises(EncodingError, match="BadTotpSecret"):
        decode_secret(spoil(encode_secret(SECRET).encode()))


def test_only_32_bytes_are_written():
    with pytest.raises(EncodingError, match="BadTotpSecret"):
        encode_secret(bytes(31))
