"""Headers that strangers write: whatever stands in them, only coded errors come out, and nothing bent is believed."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktlog.errors import Invalid, MessageRejected
from ktlog.operator.guard import address_name, parse_networks
from ktlog.web.guarding import claimed_domain, client_address
from ktlog.wire.actor import ED25519, Multikey
from ktlog.wire.httpsig import sign_request, verify_request
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response, verify_response

NOW = 1_790_000_000
URL = "https://keys.alpha.example/users/pubkeydir/inbox"
ACTOR = "https://alpha.example/users/alice"
KEY_ID = f"{ACTOR}#main-key"
ED = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = Multikey(KEY_ID, ACTOR, ED25519, ED.public_key().public_bytes_raw())
ANSWER = Exchange("POST", URL, 202, {"content-type": "application/json"}, b"{}", content_digest(b"[]"))
SIGNED = {name.lower(): value for name, value in sign_response(ANSWER, ((KEY_ID, ED),), NOW).items()}
REQUEST = sign_request("POST", URL, {}, b"{}", KEY_ID, ED, NOW)
NAMES = ("content-digest", "signature-input", "signature")

# A header as a WSGI server hands it on: Latin-1 without control characters.
text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
piece = text | st.sampled_from([
    '("@status")', "sig1=", ";created=1", ";keyid=\"\"", ":AAAA:", ",", ";", "=", "?1", "(", ")", '"', "1.5", "@1", '%"x"', ";req", ";bs", ";tr",
    ";key=\"sha-256\"", '"@query-param";name="x"', '"content-digest";sf', "999999999999999",
])


@st.composite
def bent(draw: st.DrawFn, values: dict[str, str]) -> dict[str, str]:
    """One of the three headers with a part of it replaced."""
    name = draw(st.sampled_from(NAMES))
    value = values[name]
    start = draw(st.integers(0, len(value)))
    end = draw(st.integers(start, min(len(value), start + 40)))
    return {**values, name: value[:start] + draw(piece) + value[end:]}


@settings(max_examples=300)
@given(bent(SIGNED))
def test_a_bent_answer_is_invalid_and_no_more(headers: dict[str, str]) -> None:
    exchange = replace(ANSWER, headers={**ANSWER.headers, **headers})
    try:
        verify_response(exchange, lambda key_id: KEY, NOW, algorithms=[ED25519])
    except Invalid as error:
        assert error.name == "BadResponseSignature"


@settings(max_examples=300)
@given(bent({name.lower(): value for name, value in REQUEST.items()}))
def test_a_bent_request_is_rejected_and_no_more(headers: dict[str, str]) -> None:
    try:
        verified = verify_request("POST", URL, list(headers.items()), b"{}", lambda key_id: KEY, NOW)
    except MessageRejected as error:
        assert error.code == "unauthorized"
    else:
        # Labels are not signed; everything that is verified is.
        assert (verified.key_id, verified.created, verified.algorithms) == (KEY_ID, NOW, (ED25519,))


@settings(max_examples=200)
@given(peer=text, lines=st.lists(text, max_size=3))
@example(peer="127.0.0.1", lines=["fe80::1%\u00b5, ::ffff:0:0"])
@example(peer="127.0.0.1", lines=["1" * 60])
def test_any_header_leads_to_some_address(peer: str, lines: list[str]) -> None:
    headers = [("X-Forwarded-For", line) for line in lines]
    found = client_address(peer, headers, parse_networks("127.0.0.0/8 ::1/128"))
    assert address_name(found)
    assert client_address("192.0.2.1", headers, parse_networks("127.0.0.0/8")) == "192.0.2.1"


@settings(max_examples=200)
@given(text | text.map(lambda value: f'keyid="https://{value}/"'))
def test_any_claim_is_a_host_or_none(value: str) -> None:
    domain = claimed_domain([("Signature-Input", value)])
    assert domain is None or (domain == domain.lower() and "." in domain)
