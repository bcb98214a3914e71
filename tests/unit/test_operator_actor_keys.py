"""HTTP signing keys from actor documents: whose key it is, for how long, and how often anybody asks."""

from __future__ import annotations

import json
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.errors import MessageRejected, Unreachable
from ktlog.operator import actor_keys
from ktlog.operator.actor_keys import CACHE_SECONDS, REFRESH_SECONDS, REFUSE_SECONDS, ActorKeys
from ktlog.wire.actor import ED25519, actor_key, encode_base58btc
from ktlog.wire.fetch import Response
from tests.operator_world import Clock

ALICE = "https://alpha.example/users/alice"
BOB = "https://alpha.example/users/bob"
KEY_ID = f"{ALICE}#main-key"
ONE, TWO = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key().public_bytes_raw() for n in (1, 2))
IDENTITY = b"\x01" + bytes(31)


class Instance:
    """Serves actor documents; ``asked`` counts."""

    def __init__(self) -> None:
        self.documents: dict[str, object] = {ALICE: document(ALICE, ONE)}
        self.asked: list[str] = []
        self.status = 200
        self.content_type = "application/activity+json"
        self.error: Exception | None = None

    def get(self, url: str, *, accept: str, max_bytes: int) -> Response:
        self.asked.append(url)
        if self.error is not None:
            raise self.error
        found = self.documents.get(url)
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        return Response(self.status if found is not None else 404, {"content-type": self.content_type}, body, url)


def document(actor: str, *public_keys: bytes, **changes: object) -> dict:
    keys = [actor_key(f"{actor}#main-key{n or ''}", actor, ED25519, key) for n, key in enumerate(public_keys)]
    return {"id": actor, "type": "Person", "inbox": f"{actor}/inbox", "assertionMethod": keys} | changes


@pytest.fixture
def instance() -> Instance:
    return Instance()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(instance, clock) -> ActorKeys:
    return ActorKeys(instance, clock)


def code_of(keys: ActorKeys, key_id: str = KEY_ID, actor: str = ALICE, **options) -> str:
    with pytest.raises(MessageRejected) as caught:
        keys.find(key_id, actor, **options)
    return caught.value.code


def test_a_key_is_fetched_once_and_kept_for_a_while(keys, instance, clock):
    for _ in range(3):
        assert keys.find(KEY_ID, ALICE).public_key == ONE
    assert instance.asked == [ALICE]
    clock.now += CACHE_SECONDS - 1
    keys.find(KEY_ID, ALICE)
    assert len(instance.asked) == 1
    instance.documents[ALICE] = document(ALICE, TWO)
    clock.now += 1
    assert keys.find(KEY_ID, ALICE).public_key == TWO
    assert len(instance.asked) == 2


@pytest.mark.parametrize("key_id", [
    f"{BOB}#main-key", "https://beta.example/users/alice#main-key", f"{ALICE}/main-key", f"{ALICE}?x#main-key",
    f"{ALICE}/#main-key", "#main-key", "", f"{ALICE.upper()}#main-key", "https://alpha.example:443/users/alice#main-key",
])
def test_a_key_id_that_points_elsewhere_is_not_followed(keys, instance, key_id):
    assert code_of(keys, key_id) == "unknown_http_key"
    assert instance.asked == []


@pytest.mark.parametrize("key_id", [ALICE, f"{ALICE}#", f"{ALICE}#other", f"{ALICE}#main-key#main-key"])
def test_a_key_that_the_document_does_not_list(keys, instance, key_id):
    assert code_of(keys, key_id) == "unknown_http_key"
    assert instance.asked == [ALICE]


def test_a_key_of_an_actor_that_is_listed_by_another(keys, instance):
    """Bob lists a key under Alice's id, and Alice's document is asked, not his."""
    foreign = actor_key(KEY_ID, BOB, ED25519, TWO)
    instance.documents[BOB] = document(BOB, assertionMethod=[foreign])
    assert code_of(keys, KEY_ID, BOB) == "unknown_http_key"
    assert keys.find(KEY_ID, ALICE).public_key == ONE


@pytest.mark.parametrize("found", [
    document(BOB, ONE), document(ALICE, ONE, inbox="https://beta.example/inbox"), document(ALICE, ONE, inbox=5), [], 5,
    document(ALICE, ONE, ONE, assertionMethod=[actor_key(KEY_ID, ALICE, ED25519, ONE), actor_key(KEY_ID, ALICE, ED25519, TWO)]),
    document(ALICE, assertionMethod=[actor_key(KEY_ID, BOB, ED25519, ONE)]),
    document(ALICE, assertionMethod=[actor_key("https://beta.example/#k", ALICE, ED25519, ONE)]),
    document(ALICE, assertionMethod=[{"id": KEY_ID, "type": "Multikey", "controller": ALICE, "publicKeyMultibase": "z0OIl"}]),
    document(ALICE, assertionMethod=[actor_key(KEY_ID, ALICE, ED25519, IDENTITY)]),
    document(ALICE, assertionMethod=[actor_key(KEY_ID, ALICE, ED25519, bytes(32))]),
    document(ALICE, assertionMethod=[actor_key(KEY_ID, ALICE, ED25519, b"\xff" * 32)]),
    document(ALICE, assertionMethod=[{
        "id": KEY_ID, "type": "Multikey", "controller": ALICE,
        "publicKeyMultibase": "z" + encode_base58btc(b"\xed\x01" + ONE[:31]),
    }]),
    b"{", b'{"id":"x","id":"y"}', b"\xff", b'{"a":"\\ud800"}',
], ids=lambda found: repr(found)[:40])
def test_a_document_that_spoils_itself(keys, instance, found):
    """Low-order keys, keys of others, two keys under one id: the whole document counts for nothing."""
    instance.documents[ALICE] = found
    assert code_of(keys) == "unknown_http_key"


def test_keys_of_other_kinds_are_passed_over(keys, instance):
    listed = document(ALICE, ONE)
    listed["assertionMethod"] += [
        "https://alpha.example/keys/1", 5, None, {"type": "JsonWebKey"},
        {"id": f"{ALICE}#p256", "type": "Multikey", "controller": ALICE,
         "publicKeyMultibase": "z" + encode_base58btc(b"\x80\x24" + bytes(33))},
    ]
    instance.documents[ALICE] = listed
    assert keys.find(KEY_ID, ALICE).public_key == ONE
    assert code_of(keys, f"{ALICE}#p256") == "unknown_http_key"


@pytest.mark.parametrize(("status", "content_type"), [
    (404, "application/activity+json"), (500, "application/activity+json"), (410, "application/activity+json"),
    (200, "text/html"), (200, "application/json"), (200, ""), (200, "application/ld+json"),
])
def test_no_answer_or_one_of_another_type(keys, instance, status, content_type):
    instance.status, instance.content_type = status, content_type
    assert code_of(keys) == "actor_unreachable"


def test_an_instance_that_is_down_is_asked_again_after_a_moment_and_not_before(keys, instance, clock):
    instance.error = Unreachable("Timeout", "too slow")
    assert code_of(keys) == code_of(keys) == "actor_unreachable"
    instance.error = None
    clock.now += REFUSE_SECONDS - 1
    assert code_of(keys) == "actor_unreachable"
    assert instance.asked == [ALICE]
    clock.now += 1
    assert keys.find(KEY_ID, ALICE).public_key == ONE


def test_few_threads_wait_for_strangers(instance, clock):
    """A server that never answers holds its slots, and nobody else's thread."""
    entered, release = threading.Barrier(3), threading.Event()

    class Tarpit(Instance):
        def get(self, url: str, **options: object) -> Response:
            entered.wait(20)
            release.wait(20)
            return super().get(url, **options)

    keys = ActorKeys(Tarpit(), clock, 2)
    threads = [threading.Thread(target=code_of, args=(keys, f"{ALICE}{n}#k", f"{ALICE}{n}")) for n in range(2)]
    for thread in threads:
        thread.start()
    entered.wait(20)
    assert code_of(keys, f"{BOB}#k", BOB) == "overloaded"
    release.set()
    for thread in threads:
        thread.join()


def test_an_actor_with_a_thousand_keys_costs_nothing(keys, instance):
    instance.documents[ALICE] = document(ALICE, *[ONE] * 17)
    assert code_of(keys) == "unknown_http_key"


def test_an_actor_id_that_is_none(keys, instance):
    assert code_of(keys, "http://alpha.example/a#k", "http://alpha.example/a") == "unknown_http_key"
    assert instance.asked == []


# --- looking once more


def test_a_new_key_is_found_although_the_document_is_cached(keys, instance, clock):
    assert keys.may_refresh(ALICE) is False  # never seen: there is nothing to refresh
    keys.find(KEY_ID, ALICE)
    assert keys.may_refresh(ALICE) is False  # just fetched
    clock.now += REFRESH_SECONDS - 1
    assert keys.may_refresh(ALICE) is False
    clock.now += 1
    assert keys.may_refresh(ALICE) is True
    instance.documents[ALICE] = document(ALICE, TWO)
    assert keys.find(KEY_ID, ALICE).public_key == ONE
    assert keys.find(KEY_ID, ALICE, refresh=True).public_key == TWO
    assert keys.find(KEY_ID, ALICE).public_key == TWO
    assert keys.may_refresh(ALICE) is False


def test_a_key_that_was_withdrawn_is_gone_after_a_look(keys, instance, clock):
    keys.find(KEY_ID, ALICE)
    instance.documents[ALICE] = document(ALICE)
    clock.now += REFRESH_SECONDS
    assert code_of(keys, refresh=True) == "unknown_http_key"
    assert code_of(keys) == "unknown_http_key"


def test_a_refresh_that_fails_is_no_answer(keys, instance, clock):
    keys.find(KEY_ID, ALICE)
    instance.error = Unreachable("Refused", "down")
    clock.now += REFRESH_SECONDS
    assert code_of(keys, refresh=True) == "actor_unreachable"


def test_the_cache_is_bounded(keys, instance, monkeypatch):
    monkeypatch.setattr(actor_keys, "CACHE_LIMIT", 3)
    for number in range(10):
        actor = f"https://alpha.example/users/u{number}"
        instance.documents[actor] = document(actor, ONE)
        keys.find(f"{actor}#main-key", actor)
        assert len(keys._cache) <= 3


def test_many_threads(keys, instance):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(keys.find(KEY_ID, ALICE).public_key)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [ONE] * 8
