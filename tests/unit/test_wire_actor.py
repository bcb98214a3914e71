import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tls_server import HOST, answer

from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable
from ktlog.wire.actor import (
    ED25519,
    ML_DSA_44,
    Multikey,
    actor_key,
    decode_base58btc,
    decode_multikey,
    encode_base58btc,
    encode_multikey,
    fetch_actor,
    parse_actor,
)
from ktlog.wire.fetch import Fetcher

ACTOR = f"https://{HOST}/users/alice"
KEY_ID = f"{ACTOR}#main-key"
PUBLIC = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
ACTIVITY = "application/activity+json"


def key(**changes):
    return {**actor_key(KEY_ID, ACTOR, ED25519, PUBLIC), **changes}


def document(*keys, **changes):
    return {"id": ACTOR, "type": "Person", "inbox": f"{ACTOR}/inbox", "assertionMethod": list(keys), **changes}


# -- Multikeys


def test_base58_known_answers():
    # draft-msporny-base58-03, section 5.
    for data, text in (
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (b"The quick brown fox jumps over the lazy dog.", "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z"),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
        (b"", ""), (b"\0", "1"), (b"\0\0", "11"),
    ):
        assert encode_base58btc(data) == text
        assert decode_base58btc(text) == data


@given(st.binary(max_size=80))
def test_base58_round_trip(data):
    assert decode_base58btc(encode_base58btc(data)) == data


@given(st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", max_size=80))
def test_base58_text_is_canonical(text):
    assert encode_base58btc(decode_base58btc(text)) == text


def test_multikey_known_answer():
    # did:key method specification, test vectors, Ed25519: the public key of the all-zero seed.
    public = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    text = "z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"
    assert encode_multikey(ED25519, public) == text
    assert decode_multikey(text) == (ED25519, public)


def test_multikey_of_both_algorithms():
    post_quantum = bytes(range(256)) * 5 + bytes(32)
    text = encode_multikey(ML_DSA_44, post_quantum)
    assert text.startswith("z") and decode_base58btc(text[1:])[:2] == b"\x90\x24"
    assert decode_multikey(text) == (ML_DSA_44, post_quantum)
    with pytest.raises(AssertionError):
        encode_multikey(ED25519, bytes(31))


@pytest.mark.parametrize("data", [
    b"\xec\x01" + bytes(32), b"\x85\x24" + bytes(270), b"\x12\x10" + bytes(1312), b"\xed", b"", b"\x00",
])
def test_codecs_of_others_are_none_of_ours(data):
    assert decode_multikey("z" + encode_base58btc(data)) is None


@pytest.mark.parametrize("text", [
    "", "u7QE", "Z6Mk", "6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp", "z0OIl", "z6Mk i", "z\u0661",
    "z" + encode_base58btc(b"\xed\x01" + PUBLIC[:31]), "z" + encode_base58btc(b"\xed\x01" + PUBLIC + b"\0"),
    "z" + encode_base58btc(b"\x90\x24" + bytes(1311)), "z" + "1" * 5000,
    "z" + encode_base58btc(b"\xed\x01" + bytes(32)),  # order 4
    "z" + encode_base58btc(b"\xed\x01\x01" + bytes(31)),  # the neutral element
    "z" + encode_base58btc(b"\xed\x01" + b"\xff" * 32),  # not a canonical encoding
])
def test_bad_multikeys(text):
    with pytest.raises(EncodingError):
        decode_multikey(text)


# -- documents


def test_parse_actor():
    second = actor_key(f"{ACTOR}#pq-key", ACTOR, ML_DSA_44, bytes(1312))
    actor = parse_actor(document(key(), second), ACTOR)
    assert (actor.id, actor.inbox) == (ACTOR, f"{ACTOR}/inbox")
    assert actor.assertion_method == (
        Multikey(KEY_ID, ACTOR, ED25519, PUBLIC), Multikey(f"{ACTOR}#pq-key", ACTOR, ML_DSA_44, bytes(1312))
    )


@pytest.mark.parametrize("methods", [
    [], f"{ACTOR}#elsewhere", [f"{ACTOR}#elsewhere"], None, [None, 5],
    [key(type="JsonWebKey")], [{"type": "Multikey"}], [key(publicKeyMultibase=5)],
    [key(publicKeyMultibase="z" + encode_base58btc(b"\xec\x01" + bytes(32)))],
])
def test_methods_that_are_not_keys_of_ours_are_left_out(methods):
    assert parse_actor(document(assertionMethod=methods), ACTOR).assertion_method == ()


def test_one_method_may_stand_without_a_list():
    assert len(parse_actor(document(assertionMethod=key()), ACTOR).assertion_method) == 1
    without = document()
    del without["assertionMethod"]
    assert parse_actor(without, ACTOR).assertion_method == ()


OTHER = f"https://{HOST}/users/mallory"


@pytest.mark.parametrize("bad", [
    [], None, "x", {}, document(id=OTHER), document(id=ACTOR + "/"), document(id=None), document(id=[ACTOR]),
    document(inbox=None), document(inbox="https://evil.example/inbox"), document(inbox="http://keys.alpha.example/inbox"),
    document(inbox="/inbox"), document(inbox=[f"{ACTOR}/inbox"]),
    document(key(controller=OTHER)), document(key(controller=None)), document(key(controller=[ACTOR])),
    document(key(id="https://evil.example/users/alice#main-key")), document(key(id="#main-key")), document(key(id=None)),
    document(key(id=f"http://{HOST}/users/alice#main-key")), document(key(), key()),
    document(key(publicKeyMultibase="z")  | {"publicKeyMultibase": "nope"}),
])
def test_documents_that_vouch_for_nothing(bad):
    with pytest.raises((Invalid, EncodingError)) as caught:
        parse_actor(bad, ACTOR)
    assert caught.value.name in ("BadActor", "BadMultikey")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from([ACTOR, KEY_ID, "Multikey"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "type", "inbox", "assertionMethod", "controller", "publicKeyMultibase"]), children
    ),
    max_leaves=12,
))
def test_whatever_comes_is_parsed_or_refused_with_a_code(value):
    try:
        parse_actor(value, ACTOR)
    except KtlogError:
        pass


def test_fetch_actor(server):
    server.behave = lambda _: answer(json.dumps(document(key(), x=1.5)).encode(), 200, f"{ACTIVITY}; charset=utf-8")
    assert fetch_actor(Fetcher(server.dial()), ACTOR).assertion_method[0].public_key == PUBLIC
    assert ACTIVITY in server.requests[0].header("accept")


@pytest.mark.parametrize(("status", "content_type", "name"), [
    (404, ACTIVITY, "BadStatus"), (200, "application/json", "BadContent"), (200, "text/html", "BadContent"),
    (200, "application/ld+json", "BadContent"), (200, None, "BadContent"),
])
def test_fetch_actor_wants_an_activitystreams_document(server, status, content_type, name):
    server.behave = lambda _: answer(json.dumps(document(key())).encode(), status, content_type)
    with pytest.raises(Unreachable) as caught:
        fetch_actor(Fetcher(server.dial()), ACTOR)
    assert caught.value.name == name


def test_fetch_actor_compares_the_id_with_what_was_asked_for(server):
    fetcher = Fetcher(server.dial())
    server.behave = lambda _: answer(json.dumps(document(key())).encode(), 200, ACTIVITY)
    with pytest.raises(Invalid):
        fetch_actor(fetcher, OTHER)
    # Also when the server redirects there itself: the id that was asked for is the one that counts.
    server.behave = lambda request: (
        answer(b"", 302, None, Location="/users/alice") if request.target != "/users/alice"
        else answer(json.dumps(document(key())).encode(), 200, ACTIVITY)
    )
    with pytest.raises(Invalid):
        fetch_actor(fetcher, OTHER)


def test_fetch_actor_of_something_else(server):
    for text in ("", "@alice@keys.alpha.example", "https://127.0.0.1/users/alice", f"{ACTOR}#main-key"):
        with pytest.raises(EncodingError) as caught:
            fetch_actor(Fetcher(server.dial()), text)
        assert caught.value.name == "BadActorId"
    assert server.connections == 0
