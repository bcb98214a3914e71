"""The short way to what a signature signs, against the library's: the same bytes, or left to the library."""

from __future__ import annotations

from typing import Any

import http_sf
from http_message_signatures import HTTPSignatureKeyResolver
from hypothesis import given
from hypothesis import strategies as st

from ktlog.wire.httpsig import COMPONENTS, OneKeyVerifier, parse_dictionary
from ktlog.wire.httpsig_plain import parse_plain, plain_base

NAMES = ("content-type", "date", "x-note", "digest", "set-cookie", "@authority", "@path", "absent")


class Seen(Exception):
    """Carries what the library would verify."""


class Resolver(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> bytes:
        return bytes(32)


class Verifier(OneKeyVerifier):
    def _build_signature_base(self, *args: Any, **options: Any) -> tuple:
        found = super()._build_signature_base(*args, **options)
        raise Seen(found[0])


def by_library(method: str, url: str, headers: list[tuple[str, str]], member: Any) -> bytes | None:
    lines = dict(headers)
    lines["Signature-Input"] = http_sf.ser({"sig1": member})
    lines["Signature"] = http_sf.ser({"sig1": (bytes(64), {})})
    message = type("Message", (), {"method": method, "url": url, "headers": lines})()
    try:
        Verifier("ed25519", bytes(32)).verify(message, max_age=None, body=None)
    except Seen as seen:
        return str(seen).encode()
    except Exception as error:
        cause = error.__cause__ or error.__context__ or (error.args[0] if error.args else None)
        return str(cause).encode() if isinstance(cause, Seen) else None
    return None


VALUES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.text(max_size=6).filter(lambda text: "\n" not in text and "\r" not in text),
)


@given(
    method=st.sampled_from(["POST", "GET", "post", "P-T", "OPTIONS"]),
    url=st.one_of(
        st.just("https://keys.example.com/users/pubkeydir/inbox"),
        st.sampled_from([
            "https://keys.example.com", "https://keys.example.com/a?b=c", "https://keys.example.com:8443/x%2Fy",
            "https://keys.example.com:8443/x", "https://[::1]/x", "https://KEYS.example.com/x", "http://a/x",
        ]),
    ),
    headers=st.dictionaries(st.sampled_from([*NAMES[:5], "X-Note"]), VALUES, max_size=5),
    more=st.lists(st.tuples(st.sampled_from([*NAMES, "X-Note"]), st.sampled_from([{}, {}, {"sf": True}, {"bs": True}])), max_size=3),
    parameters=st.fixed_dictionaries(
        {"created": st.integers(0, 2**33), "keyid": st.just("https://example.com/users/a#main-key")},
        optional={"alg": st.sampled_from(["ed25519", "ml-dsa-44"]), "expires": st.integers(0, 2**33), "nonce": st.just("n")},
    ),
)
def test_the_same_bytes_or_none(method, url, headers, more, parameters):
    lines = [("Content-Digest", "sha-256=:AAAA:"), *headers.items()]
    if len({name.lower() for name, _ in lines}) != len(lines):
        return  # refused before
    parameters.pop("alg", None) if parameters.get("alg") == "ml-dsa-44" else None
    member = ([*((name, {}) for name in COMPONENTS), *more], parameters)
    found = plain_base(method, url, lines, member)
    assert found is None or found == by_library(method, url, lines, member)


def test_what_instances_send_goes_the_short_way():
    url = "https://keys.example.com/users/pubkeydir/inbox"
    headers = [("Content-Digest", "sha-256=:AAAA:"), ("Content-Type", "application/activity+json")]
    member = ([*((name, {}) for name in COMPONENTS), ("content-type", {})], {"created": 1, "keyid": "https://a.example/#k"})
    found = plain_base("POST", url, headers, member)
    assert found is not None
    assert found == by_library("POST", url, headers, member)
    assert found.decode().splitlines() == [
        '"@method": POST', f'"@target-uri": {url}', '"content-digest": sha-256=:AAAA:',
        '"content-type": application/activity+json',
        '"@signature-params": ("@method" "@target-uri" "content-digest" "content-type");created=1;keyid="https://a.example/#k"',
    ]


_PIECES = st.sampled_from([*'"();=:, \\ab@-*_.09z\t%A', "", ";created=5", '"a"', "alg"])


@given(
    st.lists(st.tuples(st.integers(0, 140), st.integers(0, 1), _PIECES), max_size=3),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1), _PIECES), max_size=1),
)
def test_what_is_read_the_short_way_the_library_reads_and_spells_alike(of_inputs, of_signatures):
    def changed(text, changes):
        for at, dropped, piece in changes:
            text = text[:at] + piece + text[at + dropped:]
        return text

    covered = '("@method" "@target-uri" "content-digest" "host")'
    inputs = changed(f'sig1={covered};created=1700000000;keyid="https://a.example/x#k";alg="ed25519"', of_inputs)
    signatures = changed("sig1=:QUJDRA==:", of_signatures)
    found = parse_plain(inputs, signatures)
    if not of_inputs and not of_signatures:
        assert found is not None
    if found is None:
        return
    said, signed = parse_dictionary(inputs), parse_dictionary(signatures, byte_sequences=True)
    assert found[0] == said and found[1] == signed
    for label, member in found[0].items():
        assert [type(value) for value in member[1].values()] == [type(value) for value in said[label][1].values()]
        assert member.text == http_sf.ser({"a": said[label]}).removeprefix("a=")
