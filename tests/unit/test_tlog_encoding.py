from __future__ import annotations

import pytest

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import (
    decode_base64,
    decode_base64url,
    encode_base64,
    encode_base64url,
    naming,
    parse_decimal,
)


@pytest.mark.parametrize(("data", "text"), [(b"", ""), (b"\0", "AA=="), (b"\xfb\xff", "+/8="), (b"abc", "YWJj")])
def test_base64(data, text):
    assert encode_base64(data) == text
    assert decode_base64(text) == data
    assert decode_base64(text, len(data)) == data


@pytest.mark.parametrize(
    "text",
    [
        "AA", "AA=", "AB==", "AA==\n", " AA==", "A A==", "AA===", "AA==AA==", "-_8=", "=", "A", "AAAA=",
        "ＡＡ==", "\ud800",
    ],
)
def test_base64_in_any_other_form_is_refused(text):
    with pytest.raises(EncodingError) as caught:
        decode_base64(text)
    assert caught.value.name == "BadBase64"


@pytest.mark.parametrize(("data", "text"), [(b"", ""), (b"\0", "AA"), (b"\xfb\xff", "-_8"), (b"abc", "YWJj")])
def test_base64url(data, text):
    assert encode_base64url(data) == text
    assert decode_base64url(text, len(data)) == data


@pytest.mark.parametrize("text", ["AA==", "AB", "A", "+/8", "A A", "AA\n", "ＡＡ", "=", "AAAA=", "A*A", "\udfff"])
def test_base64url_in_any_other_form_is_refused(text):
    with pytest.raises(EncodingError) as caught:
        decode_base64url(text)
    assert caught.value.name == "BadBase64"


def test_a_wrong_size_is_refused():
    for decode in (decode_base64, decode_base64url):
        with pytest.raises(EncodingError):
            decode("YWJj", 4)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("20852163", 20852163), (str(2**63 - 1), 2**63 - 1)])
def test_decimal(text, value):
    assert parse_decimal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "+5", "-1", "-0", "00", "01", "1_000", "٣", "²", " 1", "1 ", "1\n", "0x1", "1.0", "1e3",
        str(2**63), "9" * 5000,
    ],
)
def test_a_decimal_in_any_other_form_is_refused(text):
    with pytest.raises(EncodingError) as caught:
        parse_decimal(text)
    assert caught.value.name == "BadDecimal"


def test_the_maximum_is_included():
    assert parse_decimal("255", 255) == 255
    with pytest.raises(EncodingError):
        parse_decimal("256", 255)


def test_naming_keeps_the_reason_and_gives_the_name_of_the_format():
    with pytest.raises(EncodingError) as caught, naming("BadThing", "its size"):
        parse_decimal("x")
    assert caught.value.name == "BadThing"
    assert caught.value.message.startswith("its size: ")
