import pytest

from ktlog.errors import EncodingError
from ktlog.wire.media import media_type, parse_foreign_json


def test_foreign_json_may_hold_any_number():
    assert parse_foreign_json(b'{"a":1.5,"b":-0.0,"c":123456789012345678901234567890,"d":1e3}')["a"] == 1.5


@pytest.mark.parametrize("data", [
    b'{"a":1,"a":2}', b'{"b":{"a":1,"\\u0061":2}}', b"NaN", b"[Infinity]", b'"\\ud800"', b'{"\\udfff":1}', b"\xff",
    b"\xef\xbb\xbf{}", b"{} {}", b"", b"[" * 100_000, b"9" * 5000,
])
def test_foreign_json_is_otherwise_strict(data):
    with pytest.raises(EncodingError) as caught:
        parse_foreign_json(data)
    assert caught.value.name in ("BadJson", "DuplicateKey")


def test_media_type():
    profile = 'application/ld+json; profile="https://www.w3.org/ns/activitystreams"; Charset=utf-8'
    assert media_type(profile) == (
        "application/ld+json", {"profile": "https://www.w3.org/ns/activitystreams", "charset": "utf-8"}
    )
    assert media_type(" TEXT/Plain ") == ("text/plain", {})
    assert media_type("") == ("", {})
    assert media_type("text/plain; " + " " * 100_000) == ("", {})
