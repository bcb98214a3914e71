"""One text for one value: what is read is exactly what would be written."""

from __future__ import annotations

from base64 import urlsafe_b64decode

from hypothesis import example, given
from hypothesis import strategies as st

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import decode_base64url, encode_base64url


def reads(text: str) -> bytes | None:
    try:
        return decode_base64url(text)
    except EncodingError:
        return None


def generously(text: str) -> bytes | None:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None


@given(st.binary(max_size=40))
def test_what_is_written_is_read(data):
    assert decode_base64url(encode_base64url(data)) == data


@given(st.text(alphabet="AQgwxyz019-_+/=! \n\x00é", max_size=12))
@example("A")
@example("AB")
@example("AAB")
@example("A===")
@example("AA==")
@example("AAAA=")
@example("AA\n")
@example("+/+/")
def test_nothing_else_is(text):
    """Decoded as generously as the standard library does, and written again, it must be the same text."""
    data = generously(text)
    wanted = data if data is not None and encode_base64url(data) == text else None
    assert reads(text) == wanted
