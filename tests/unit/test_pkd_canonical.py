"""Strict JSON and its one canonical form: known answers, and what must be refused."""

from __future__ import annotations

import json

import pytest

from ktlog.errors import EncodingError
from ktlog.pkd.canonical import MAX_DEPTH, MAX_INTEGER, canonical, parse_json
from ktlog.pkd.dialects import PHP, SPEC, VECTOR


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        ("", b'""'),
        ({"b": "2", "a": "1", "!": "0"}, b'{"!":"0","a":"1","b":"2"}'),
        # Byte order: upper case before lower, "-" before letters, a prefix before what continues it.
        ({"a": "", "Z": "", "a-b": "", "aa": "", "-": ""}, b'{"-":"","Z":"","a":"","a-b":"","aa":""}'),
        ("https://example.com/users/alice", b'"https://example.com/users/alice"'),
        ('"\\', b'"\\"\\\\"'),
        ("\b\t\n\f\r\x00\x1f\x7f", b'"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f"'),
        ("é€😀", '"é€😀"'.encode()),
        # PHP escapes these two even with JSON_UNESCAPED_UNICODE.
        ("\u2027\u2028\u2029\u202a", b'"\xe2\x80\xa7\\u2028\\u2029\xe2\x80\xaa"'),
        ({"\u2028": "x"}, b'{"\\u2028":"x"}'),
        ("\\u2028", b'"\\\\u2028"'),
        ([None, True, False, 0, -1, 1, MAX_INTEGER], b"[null,true,false,0,-1,1,9007199254740991]"),
        # Astral characters sort after the rest of the BMP, as in UTF-8 and unlike UTF-16.
        ({"😀": "", "\uffff": ""}, b'{"\xef\xbf\xbf":"","\xf0\x9f\x98\x80":""}'),
    ],
)
def test_known_answers(value, text):
    assert canonical(value) == text
    assert parse_json(text) == value


def test_escaped_unicode_is_lower_case_pairs_and_ascii_stays():
    assert canonical("é€😀\u2028\x7f/", escape_unicode=True) == b'"\\u00e9\\u20ac\\ud83d\\ude00\\u2028\x7f/"'


def test_dialects_differ_beyond_ascii_only():
    value = {"actor": "https://example.com/é"}
    assert SPEC.canonical(value) == PHP.canonical(value) == '{"actor":"https://example.com/é"}'.encode()
    assert VECTOR.canonical(value) == b'{"actor":"https://example.com/\\u00e9"}'
    assert parse_json(VECTOR.canonical(value)) == value


def test_white_space_and_escapes_do_not_change_the_value():
    text = ' \n{"b" :\t"\\u0062", "a": [ "\\/" ] }\r\n'
    assert canonical(parse_json(text)) == b'{"a":["/"],"b":"b"}'


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"1","a":"1"}',
        b'{"a":"1","\\u0061":"2"}',
        b'[{"x":{"a":"1","b":"2","a":"3"}}]',
        b'{"":"","":""}',
    ],
)
def test_duplicate_keys_are_refused(text):
    assert json.loads(text) is not None, "the standard library takes it"
    with pytest.raises(EncodingError) as error:
        parse_json(text)
    assert error.value.name == "DuplicateKey"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b"'a'",
        b'{"a":1,}',
        b'{"a" 1}',
        b"{a:1}",
        b'"a" "b"',
        b'{"a":"1"}x',
        b'"\t"',
        b'"\x00"',
        b'"\\x"',
        b'"unfinished',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":""}',
        b'["\\ude00\\ud83d"]',
        '"\ud800"',
        "\ud800",
        b"1.0",
        b"1e3",
        b"-0",
        b"01",
        b"+5",
        b"1_000",
        "٣",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        str(MAX_INTEGER + 1).encode(),
        str(-MAX_INTEGER - 1).encode(),
        b"9" * 10_000,
        b"[" * 200_000,
        b'{"a":' * 200_000,
    ],
    ids=lambda text: repr(text[:16]),
)
def test_everything_else_is_bad_json(text):
    with pytest.raises(EncodingError) as error:
        parse_json(text)
    assert error.value.name == "BadJson"


def test_depth_is_counted_exactly():
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert canonical(parse_json(deepest)) == deepest.encode()
    for text in ("[" + deepest + "]", '{"a":' + deepest + "}"):
        with pytest.raises(EncodingError, match="nested deeper"):
            parse_json(text)


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), b"bytes", ("tuple",), {1: "number as key"}, {None: ""}, {"a": {"b": {1, 2}}},
     "\ud800", {"\udfff": ""}, MAX_INTEGER + 1, pytest.param([object()], id="an object")],
    ids=repr,
)
def test_values_without_canonical_form_are_refused(value):
    with pytest.raises(EncodingError) as error:
        canonical(value)
    assert error.value.name == "BadJson"


def test_a_list_within_itself_is_refused():
    value: list = []
    value.append(value)
    with pytest.raises(EncodingError):
        canonical(value)


def test_published_vectors_are_canonical_already(vectors):
    document = parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())
    texts = [
        step[field]
        for case in document["test-cases"]
        for step in case["steps"]
        for field in ("protocol-message", "signed-message")
        if step[field]
    ]
    assert len(texts) == 45
    for text in texts:
        assert VECTOR.canonical(parse_json(text)) == text.encode()
