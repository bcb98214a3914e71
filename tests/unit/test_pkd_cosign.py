"""PKD cosignatures: the token's one form, what it is signed over, and the list of who may sign."""

from __future__ import annotations

import json

import pytest

from ktlog.errors import EncodingError, MessageRejected
from ktlog.pkd.cosign import (
    COSIGNATURE_CONTEXT,
    CosignatureToken,
    format_cosignature,
    make_cosignature,
    names_host,
    parse_cosignature,
    parse_cosigners,
    signed_bytes,
    verify_cosignature,
)
from ktlog.pkd.keys import encode_public_key, encode_root
from ktlog.tlog.encoding import encode_base64url
from tests.pkd_samples import NOW, bytes_of, private, public

ORIGIN = "keys.example.com"
ROOT = encode_root(bytes_of("root"))
OTHER_ROOT = encode_root(bytes_of("other root"))
TOKEN = make_cosignature(private("witness"), NOW, ORIGIN, ROOT)
MEMBERS = json.loads(TOKEN)


def refused(call, *arguments) -> str:
    with pytest.raises(MessageRejected) as caught:
        call(*arguments)
    assert caught.value.code == "bad_cosignature"
    return caught.value.hint


def test_made_parsed_and_written_again():
    token = parse_cosignature(TOKEN)
    assert (token.time, token.hostname, token.merkle_root) == (NOW, ORIGIN, ROOT)
    assert format_cosignature(token) == TOKEN
    verify_cosignature(token, public("witness"), ORIGIN, ROOT)


def test_what_is_signed_byte_by_byte():
    """Written down by hand, from the specification's text."""
    def piece(text: str) -> bytes:
        return len(text).to_bytes(8, "little") + text.encode()

    pieces = [
        "!pkd-context", "fedi-e2ee-v1:cosignature", "current-time", "1765655318", "hostname", "pkd.example.com",
        "merkle-root", ROOT,
    ]
    assert signed_bytes(1765655318, "pkd.example.com", ROOT) == (8).to_bytes(8, "little") + b"".join(map(piece, pieces))


def test_white_space_and_order_do_not_matter():
    text = json.dumps(dict(reversed(MEMBERS.items())), indent=2)
    assert parse_cosignature(text) == parse_cosignature(TOKEN)


@pytest.mark.parametrize("hostname", [ORIGIN, f"https://{ORIGIN}", f"http://{ORIGIN}"])
def test_the_host_may_be_written_as_in_the_specification_s_example(hostname):
    token = parse_cosignature(make_cosignature(private("witness"), NOW, hostname, ROOT))
    verify_cosignature(token, public("witness"), ORIGIN, ROOT)


@pytest.mark.parametrize("hostname", [
    "", "example.com", f"{ORIGIN}.", f"{ORIGIN}/", f"https://{ORIGIN}/", f"{ORIGIN}:443", ORIGIN.upper(),
    f"ftp://{ORIGIN}", f"https://https://{ORIGIN}", f"a.{ORIGIN}", f"{ORIGIN}.evil.example", f"user@{ORIGIN}",
    f" {ORIGIN}", f"https://{ORIGIN}@evil.example",
])
def test_a_cosignature_for_another_directory(hostname):
    assert not names_host(hostname, ORIGIN)
    token = parse_cosignature(make_cosignature(private("witness"), NOW, hostname, ROOT))
    assert "another directory" in refused(verify_cosignature, token, public("witness"), ORIGIN, ROOT)


def test_a_cosignature_of_another_root():
    token = parse_cosignature(make_cosignature(private("witness"), NOW, ORIGIN, OTHER_ROOT))
    assert "another root" in refused(verify_cosignature, token, public("witness"), ORIGIN, ROOT)


def test_a_cosignature_by_another_key():
    assert "does not verify" in refused(
        verify_cosignature, parse_cosignature(TOKEN), public("other"), ORIGIN, ROOT
    )


@pytest.mark.parametrize("change", [
    {"time": NOW + 1}, {"hostname": f"https://{ORIGIN}"}, {"signature": bytes(2420)},
])
def test_every_member_is_signed(change):
    token = parse_cosignature(TOKEN)
    fields = {"time": token.time, "hostname": token.hostname, "merkle_root": ROOT, "signature": token.signature}
    assert "does not verify" in refused(
        verify_cosignature, CosignatureToken(**(fields | change)), public("witness"), ORIGIN, ROOT
    )


@pytest.mark.parametrize("change", [
    {"!pkd-context": "fedi-e2ee:v1/api/history/cosign"}, {"!pkd-context": COSIGNATURE_CONTEXT.upper()},
    {"current-time": NOW}, {"current-time": f"+{NOW}"}, {"current-time": f"0{NOW}"}, {"current-time": ""},
    {"current-time": "-1"}, {"current-time": "9" * 30}, {"merkle-root": ROOT[10:]}, {"merkle-root": ROOT + "A"},
    {"merkle-root": ROOT.replace("pkd-mr-v1", "pkd-mr-v2")}, {"hostname": None}, {"hostname": [ORIGIN]},
    {"signature": ""}, {"signature": encode_base64url(bytes(2419))}, {"signature": MEMBERS["signature"] + "="},
    {"signature": None}, {"extra": "x"},
])
def test_malformed_members(change):
    refused(parse_cosignature, json.dumps(MEMBERS | change))


@pytest.mark.parametrize("missing", sorted(MEMBERS))
def test_missing_members(missing):
    refused(parse_cosignature, json.dumps({name: text for name, text in MEMBERS.items() if name != missing}))


@pytest.mark.parametrize("text", [
    "", "[]", "null", "{", '"x"', TOKEN + "x", TOKEN * 2, TOKEN[:-1] + ',"hostname":"x"}', " " * 9000 + TOKEN, "\ud800",
])
def test_not_a_token(text):
    refused(parse_cosignature, text)


def test_a_root_that_is_none_is_not_cosigned():
    with pytest.raises(EncodingError, match="BadMerkleRoot"):
        make_cosignature(private("witness"), NOW, ORIGIN, "root")


# --- the list


ONE, TWO = (encode_public_key(public(name)) for name in ("one", "two"))


def test_the_list_of_cosigners():
    data = f"# who\nhttps://w1.example {ONE}\n\n  w2.example\t{TWO}  \n".encode()
    assert parse_cosigners(data) == {"https://w1.example": public("one"), "w2.example": public("two")}
    assert parse_cosigners(b"") == {}


@pytest.mark.parametrize("text", [
    "w1.example", ONE, f"w1.example {ONE} more", f"w1.example {ONE[:-1]}", f"w1.example {ONE[8:]}",
    f"w1.example ed25519:{ONE[8:]}", f"w1.example {ONE}\nw1.example {TWO}", f"w1.example {ONE}\nw2.example {ONE}",
    f"w\u00e9.example {ONE}", "w" * 256 + f" {ONE}", f"w\x7f.example {ONE}",
])
def test_a_list_that_is_none(text):
    with pytest.raises(EncodingError, match="BadCosigners"):
        parse_cosigners(text.encode())
