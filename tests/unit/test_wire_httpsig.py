import base64
import hashlib
import re

import http_sf
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import EncodingError, MessageRejected
from ktlog.wire.actor import ED25519, ML_DSA_44, Multikey
from ktlog.wire.httpsig import sign_request, target_uri, verify_request

NOW = 1_790_000_000
URL = "https://keys.alpha.example/users/pubkeydir/inbox"
ACTOR = "https://alpha.example/users/alice"
KEY_ID = f"{ACTOR}#main-key"
PQ_ID = f"{ACTOR}#pq-key"
BODY = b'{"type":"Create"}'
ED = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PQ = MLDSA44PrivateKey.from_seed_bytes(bytes(range(32)))
KEYS = {
    KEY_ID: Multikey(KEY_ID, ACTOR, ED25519, ED.public_key().public_bytes_raw()),
    PQ_ID: Multikey(PQ_ID, ACTOR, ML_DSA_44, PQ.public_key().public_bytes_raw()),
}


def signed(key=ED, key_id=KEY_ID, body=BODY, created=NOW, url=URL):
    return sign_request("POST", url, {"Content-Type": "application/activity+json"}, body, key_id, key, created)


def lines(headers):
    return list(headers.items())


def verify(headers, *, method="POST", url=URL, body=BODY, resolve=KEYS.__getitem__, now=NOW):
    return verify_request(method, url, headers, body, resolve, now)


def unauthorized(headers, **options):
    with pytest.raises(MessageRejected) as caught:
        verify(headers, **options)
    assert caught.value.code == "unauthorized"
    return caught.value.message


def digest(body, name="sha-256"):
    return f"{name}=:{base64.b64encode(hashlib.new(name.replace('-', ''), body).digest()).decode()}:"


def by_hand(
    components='"@method" "@target-uri" "content-digest"', parameters=None, values=None, key=ED, label="sig1",
    content_digest=None,
):
    """A signature made without the library: the base as RFC 9421 section 2.5 writes it down."""
    content_digest = content_digest or digest(BODY)
    known = {
        '"@method"': "POST", '"@target-uri"': URL, '"content-digest"': content_digest,
        '"content-type"': "application/activity+json", '"@authority"': "keys.alpha.example", **(values or {}),
    }
    if parameters is None:
        parameters = f';created={NOW};keyid="{KEY_ID}"'
    signature_input = f"({components}){parameters}"
    base = "\n".join([f"{c}: {known[c]}" for c in components.split()] + [f'"@signature-params": {signature_input}'])
    signature = base64.b64encode(key.sign(base.encode())).decode()
    return [
        ("Content-Type", "application/activity+json"), ("Content-Digest", content_digest),
        ("Signature-Input", f"{label}={signature_input}"), ("Signature", f"{label}=:{signature}:"),
    ]


def changed(headers, name, value):
    return [(key, value if key.lower() == name else old) for key, old in headers]


# -- what holds


@pytest.mark.parametrize(("key", "key_id", "algorithm", "size"), [
    (ED, KEY_ID, "ed25519", 64), (PQ, PQ_ID, "ml-dsa-44", 2420),
])
def test_sign_and_verify(key, key_id, algorithm, size):
    headers = signed(key, key_id)
    verified = verify(lines(headers))
    assert (verified.key_id, verified.created, verified.algorithms) == (key_id, NOW, (algorithm,))
    assert len(verified.signature) == size
    assert base64.b64encode(verified.signature).decode() in headers["Signature"]
    assert f'alg="{algorithm}"' in headers["Signature-Input"]


def test_the_signature_base_is_the_rfcs():
    headers = signed()
    parameters = headers["Signature-Input"].removeprefix("sig1=")
    base = "\n".join([
        '"@method": POST', f'"@target-uri": {URL}', f'"content-digest": {digest(BODY)}',
        f'"@signature-params": {parameters}',
    ])
    signature = base64.b64decode(headers["Signature"].removeprefix("sig1=:").removesuffix(":"))
    ED.public_key().verify(signature, base.encode())
    assert headers["Content-Digest"] == digest(BODY)


def test_a_foreign_signature_verifies():
    assert verify(by_hand()).key_id == KEY_ID
    assert verify(by_hand('"content-digest" "@target-uri" "@authority" "content-type" "@method"')).key_id == KEY_ID
    assert verify(by_hand(content_digest=digest(BODY, "sha-512"))).key_id == KEY_ID
    assert verify(by_hand(content_digest=f'{digest(BODY, "sha-512")}, {digest(BODY)}')).key_id == KEY_ID
    assert verify(by_hand(parameters=f';keyid="{KEY_ID}";alg="ed25519";created={NOW};nonce="n";tag="t"')).created == NOW


def test_keys_may_be_objects():
    assert verify(lines(signed()), resolve=lambda _: ED.public_key()).key_id == KEY_ID
    assert verify(lines(signed(PQ, PQ_ID)), resolve=lambda _: PQ.public_key()).key_id == PQ_ID


def test_target_uri_is_built_from_the_configured_origin():
    assert target_uri("keys.alpha.example", "/a%2Fb?c=%20&d") == "https://keys.alpha.example/a%2Fb?c=%20&d"
    url = target_uri("keys.alpha.example", "/api/actor/https%3A%2F%2Falpha.example%2Fusers%2Fa?x=%2f")
    assert verify(lines(signed(url=url)), url=url).key_id == KEY_ID
    unauthorized(lines(signed(url=url)), url=url.replace("%2f", "%2F"))


def test_the_host_header_says_nothing():
    assert verify([*lines(signed()), ("Host", "evil.example")]).key_id == KEY_ID


# -- what does not


def test_every_part_is_covered():
    headers = lines(signed())
    unauthorized(headers, method="PUT")
    unauthorized(headers, url=URL + "/")
    unauthorized(headers, url=URL.replace("alpha", "beta"))
    unauthorized(headers, body=BODY + b" ")
    unauthorized(headers, body=b"")
    other = Multikey(KEY_ID, ACTOR, ED25519, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    unauthorized(headers, resolve=lambda _: other)


@pytest.mark.parametrize("key", [ED, PQ])
def test_every_bit_of_a_signature_counts(key):
    key_id = KEY_ID if key is ED else PQ_ID
    headers = signed(key, key_id)
    signature = bytearray(base64.b64decode(headers["Signature"].removeprefix("sig1=:").removesuffix(":")))
    step = 1 if key is ED else 97
    for bit in range(0, len(signature) * 8, step):
        signature[bit // 8] ^= 1 << bit % 8
        text = f"sig1=:{base64.b64encode(signature).decode()}:"
        unauthorized(changed(lines(headers), "signature", text))
        signature[bit // 8] ^= 1 << bit % 8


def never(_):
    pytest.fail("asked for a key before the cheap checks were done")


@pytest.mark.parametrize("created", [NOW - 301, NOW + 301, 0, -1])
def test_too_old_or_too_new(created):
    unauthorized(lines(signed(created=created)), resolve=never)


@pytest.mark.parametrize("created", [NOW - 300, NOW + 300])
def test_just_within_the_window(created):
    assert verify(lines(signed(created=created))).created == created


@pytest.mark.parametrize("parameters", [
    f';keyid="{KEY_ID}"', f';created={NOW}.0;keyid="{KEY_ID}"', f';created="{NOW}";keyid="{KEY_ID}"',
    f';created=@{NOW};keyid="{KEY_ID}"', f';created;keyid="{KEY_ID}"', f';created=+{NOW};keyid="{KEY_ID}"',
    f";created={NOW}", f";created={NOW};keyid=key", f';created={NOW};keyid=""', f';created={NOW};keyid="main-key"',
    f';created={NOW};keyid="http://alpha.example/users/alice#main-key"', f';created={NOW};keyid="https://127.0.0.1/k"',
    f';created={NOW};keyid="https://user@alpha.example/k"', f';created={NOW};keyid="{KEY_ID}";expires={NOW - 1}',
    f';created={NOW};keyid="{KEY_ID}";expires="{NOW + 9}"', f';created={NOW};keyid="{KEY_ID}";surprise=1',
    f';created={NOW};created={NOW};keyid="{KEY_ID}"',
])
def test_parameters(parameters):
    unauthorized(by_hand(parameters=parameters), resolve=never)


def test_expires_in_the_future_is_fine():
    assert verify(by_hand(parameters=f';created={NOW};keyid="{KEY_ID}";expires={NOW}')).key_id == KEY_ID


@pytest.mark.parametrize("components", [
    "", '"@method"', '"@method" "@target-uri"', '"@method" "content-digest"', '"@target-uri" "content-digest"',
    '"@method" "@authority" "content-digest"',
])
def test_components_that_must_be_covered(components):
    unauthorized(by_hand(components), resolve=never)


def test_a_component_with_parameters_is_another_one():
    values = {'"content-digest";sf': digest(BODY), '"@method";req': "POST"}
    unauthorized(by_hand('"@method" "@target-uri" "content-digest";sf', values=values), resolve=never)
    unauthorized(by_hand('"@method";req "@target-uri" "content-digest"', values=values), resolve=never)


@pytest.mark.parametrize("components", [
    '"@method" "@method" "@target-uri" "content-digest"', '"@METHOD" "@method" "@target-uri" "content-digest"',
    '"@method" "@target-uri" "content-digest" "@unknown"', '"@method" "@target-uri" "content-digest" "x-absent"',
    '"@method" "@target-uri" "content-digest" "@status"', 'method "@method" "@target-uri" "content-digest"',
])
def test_components_that_do_not_exist(components):
    values = dict.fromkeys(components.split(), "POST")
    unauthorized(by_hand(components, values={**values, '"@target-uri"': URL, '"content-digest"': digest(BODY)}))


def test_a_covered_header_must_not_occur_twice():
    components = '"@method" "@target-uri" "content-digest" "x-note"'
    once = [*by_hand(components, values={'"x-note"': "a, b"}), ("X-Note", "a, b")]
    assert verify(once).key_id == KEY_ID
    unauthorized([*once[:-1], ("X-Note", "a"), ("x-note", "b")], resolve=never)
    # Two that are not covered are nobody's business.
    assert verify([*by_hand(), ("Via", "a"), ("Via", "b")]).key_id == KEY_ID


@pytest.mark.parametrize("name", ["Content-Digest", "Signature", "Signature-Input"])
def test_the_headers_themselves_occur_once(name):
    headers = by_hand()
    value = dict(headers)[name]
    unauthorized([*headers, (name.lower(), value)], resolve=never)
    unauthorized([line for line in headers if line[0] != name], resolve=never)


def test_alg_must_agree_with_the_key():
    for alg in ("ml-dsa-44", "rsa-v1_5-sha256", "hmac-sha256", "mldsa44", "Ed25519", ""):
        unauthorized(by_hand(parameters=f';created={NOW};keyid="{KEY_ID}";alg="{alg}"'))
    # A signature by one key says nothing under the other, whatever it calls itself.
    unauthorized(lines(signed(ED, PQ_ID)))
    unauthorized(lines(signed(PQ, KEY_ID)))


def test_a_key_of_small_order_verifies_nothing():
    # With the neutral element as the key, R = neutral and S = 0 satisfy the equation for every message.
    identity = b"\x01" + bytes(31)
    weak = Multikey(KEY_ID, ACTOR, ED25519, identity)
    forged = f"sig1=:{base64.b64encode(identity + bytes(32)).decode()}:"
    unauthorized(changed(by_hand(), "signature", forged), resolve=lambda _: weak)


@pytest.mark.parametrize("value", [
    "", "sha-256=::", "sha-256=:AAAA:", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:", f"{digest(BODY)}, {digest(BODY)}",
    f"{digest(BODY)}, {digest(b'other', 'sha-512')}", f"{digest(BODY)}, unixsum=:AAA=:", digest(BODY).replace("=:", ":", 1),
    digest(BODY).replace("=:", ":").replace("sha-256", "sha-256="), '"sha-256"', "sha-256",
])
def test_digests_that_are_none(value):
    unauthorized(by_hand(content_digest=value or " "), resolve=never)


def test_base64_has_one_form():
    signature = dict(by_hand())["Signature"]
    stray = signature[:-4] + chr(ord(signature[-4]) + 1) + signature[-3:]
    for text in (signature.replace("=:", ":").replace("sig1:", "sig1=:"), stray):
        assert http_sf.parse(text.encode(), tltype="dictionary"), "the parser itself takes it"
        unauthorized(changed(by_hand(), "signature", text), resolve=never)


@pytest.mark.parametrize(("name", "value"), [
    ("signature", "sig2=:AAAA:"), ("signature", "sig1=1"), ("signature", 'sig1="AAAA"'), ("signature", "sig1=(:AAAA:)"),
    ("signature", "sig1=:AA:, sig1=:AA:"), ("signature", "nonsense,"), ("signature", ""), ("signature", "sig1=:\u00e9:"),
    ("signature-input", "sig1=1"), ("signature-input", "sig1=:AAAA:"), ("signature-input", ""),
    ("signature-input", "sig1=(1 2)"),
])
def test_signature_headers_that_do_not_parse(name, value):
    unauthorized(changed(by_hand(), name, value), resolve=never)


# -- two signatures


def both(first, second):
    headers = dict(first)
    other = dict(second)
    return [
        *((key, value) for key, value in headers.items() if not key.startswith("Signature")),
        ("Signature-Input", f'{headers["Signature-Input"]}, {other["Signature-Input"]}'),
        ("Signature", f'{headers["Signature"]}, {other["Signature"]}'),
    ]


PQ_PARAMETERS = f';created={NOW};keyid="{PQ_ID}"'


def test_one_of_each_algorithm():
    headers = both(by_hand(), by_hand(parameters=PQ_PARAMETERS, key=PQ, label="pq"))
    verified = verify(headers)
    assert verified.key_id == PQ_ID
    assert verified.algorithms == ("ed25519", "ml-dsa-44")


def test_both_must_hold():
    bad = changed(by_hand(parameters=PQ_PARAMETERS, key=PQ, label="pq"), "signature", f"pq=:{'A' * 3226}==:")
    unauthorized(both(by_hand(), bad))
    unauthorized(both(by_hand(key=Ed25519PrivateKey.generate()), by_hand(parameters=PQ_PARAMETERS, key=PQ, label="pq")))


def test_one_signature_does_not_count_twice():
    unauthorized(both(by_hand(), by_hand(label="again")))


def test_three_are_too_many():
    headers = dict(both(by_hand(), by_hand(parameters=PQ_PARAMETERS, key=PQ, label="pq")))
    unauthorized(both(headers, by_hand(label="third")), resolve=never)


def test_two_signers_are_one_actor():
    mallory = "https://alpha.example/users/mallory#pq-key"
    keys = {**KEYS, mallory: Multikey(mallory, mallory, ML_DSA_44, PQ.public_key().public_bytes_raw())}
    theirs = by_hand(parameters=f';created={NOW};keyid="{mallory}"', key=PQ, label="pq")
    unauthorized(both(by_hand(), theirs), resolve=keys.__getitem__)


# -- signing


def test_what_may_be_signed():
    for url, key_id in ((URL.replace("https", "http"), KEY_ID), (URL, "main-key"), (URL + "#x", KEY_ID)):
        with pytest.raises(EncodingError):
            sign_request("POST", url, {}, BODY, key_id, ED, NOW)
    with pytest.raises(AssertionError):
        sign_request("POST", URL, {"content-digest": digest(BODY)}, BODY, KEY_ID, ED, NOW)


def test_a_resolvers_refusal_is_passed_on():
    def refuse(_):
        raise MessageRejected("unknown_http_key", "no such key")

    with pytest.raises(MessageRejected) as caught:
        verify(by_hand(), resolve=refuse)
    assert caught.value.code == "unknown_http_key"


@pytest.mark.parametrize("url", [
    "https://beta.example/users/bob/inbox", "https://beta.example:443/inbox", "https://beta.example/@bob/inbox",
    "https://beta.example/inbox?a=b", "https://beta.example/%41",
])
@pytest.mark.parametrize("body", [b"", BODY, b"\xff" * 5_000])
def test_what_is_written_without_the_library_is_what_it_writes(url, body, monkeypatch):
    ours = signed(body=body, url=url)
    monkeypatch.setattr("ktlog.wire.httpsig._PLAIN_KEY_ID", re.compile("(?!)"))
    assert list(ours.items()) == list(signed(body=body, url=url).items())
    verify(lines(ours), url=url, body=body)
