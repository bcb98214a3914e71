"""HTTP signing keys from actor documents: whose key it is, for how long, and how often anybody asks."""

from __future__ import annotations

import json
import logging
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.errors import Invalid, KtlogError, MessageRejected, Unreachable
from ktlog.operator import actor_keys
from ktlog.operator.actor_keys import (
    CACHE_SECONDS,
    GONE_SECONDS,
    HOST_BURST,
    HOST_PER_SECOND,
    REFRESH_SECONDS,
    REFUSE_SECONDS,
    ActorKeys,
)
from ktlog.operator.request import Source
from ktlog.wire.actor import ED25519, actor_key, encode_base58btc
from ktlog.wire.dial import BLOCKED
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


def test_each_fetch_is_told_of_and_what_is_remembered_is_none(instance, clock):
    seen: list[bool] = []
    keys = ActorKeys(instance, clock, observe=lambda seconds, blocked: seen.append(blocked and 0 <= seconds < 60))
    for _ in range(2):
        keys.find(KEY_ID, ALICE)
    instance.error = Unreachable(BLOCKED, "10.0.0.1 is not a public address")
    for _ in range(2):
        assert code_of(keys, f"{BOB}#main-key", BOB) == "actor_unreachable"
    assert seen == [False, True]


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
    (404, "application/activity+json"), (500, "application/activity+json"), (304, "application/activity+json"),
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
    with Tarpit(2) as tarpit:
        keys = ActorKeys(tarpit, clock, 2)
        tarpit.ask(keys, "https://beta.example/a", "https://gamma.example/a")
        assert code_of(keys, f"{BOB}#k", BOB) == "overloaded"
        assert BOB not in tarpit.asked


class Tarpit(Instance):
    """Answers when the test is over. Inside ``with``, *threads* requests are expected."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._entered, self._release = threading.Barrier(threads + 1), threading.Event()
        self._threads: list[threading.Thread] = []
        self.codes: list[str] = []

    def __enter__(self) -> Tarpit:
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        for thread in self._threads:
            thread.join(20)

    def ask(self, keys: ActorKeys, *actors: str, ip: str | None = None) -> None:
        """Look every actor up in a thread of its own; returns when all of these wait."""
        source = None if ip is None else Source(ip)
        for actor in actors:
            thread = threading.Thread(
                target=lambda actor=actor: self.codes.append(code_of(keys, f"{actor}#k", actor, source=source))
            )
            self._threads.append(thread)
            thread.start()
        self._entered.wait(20)

    def get(self, url: str, **options: object) -> Response:
        self._entered.wait(20)
        self._release.wait(20)
        return super().get(url, **options)


def test_one_server_does_not_get_every_slot(clock):
    with Tarpit(3) as tarpit:
        keys = ActorKeys(tarpit, clock, 4)
        tarpit.ask(keys, "https://slow.example/1", "https://slow.example/2", "https://slow.example/3")
        assert code_of(keys, "https://slow.example/4#k", "https://slow.example/4") == "overloaded"
        assert len(tarpit.asked) == 0  # nobody was answered yet, and the fourth was never asked for


@pytest.mark.parametrize(("hosts", "other"), [
    (["a.slow.example", "b.slow.example", "slow.example"], "c.d.slow.example"),
    (["a.slow.co.uk", "b.slow.co.uk", "slow.co.uk"], "c.slow.co.uk"),
])
def test_nor_does_whoever_owns_many_names(clock, hosts, other):
    with Tarpit(3) as tarpit:
        keys = ActorKeys(tarpit, clock, 4)
        tarpit.ask(keys, *[f"https://{host}/a" for host in hosts])
        assert code_of(keys, f"https://{other}/a#k", f"https://{other}/a") == "overloaded"
        tarpit._entered = threading.Barrier(2)
        tarpit.ask(keys, "https://else.co.uk/a")
    assert not keys._waiting


@pytest.mark.parametrize(("ip", "same", "other"), [
    ("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("2001:db8:1:2::5", "2001:db8:1:2:ffff::1", "2001:db8:1:3::5"),
    ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2"),
])
def test_one_address_has_one_lookup_at_a_time(clock, ip, same, other):
    """However many servers it names, and also if it asks for the very actor that it waits for."""
    with Tarpit(1) as tarpit:
        keys = ActorKeys(tarpit, clock, 8)
        tarpit.ask(keys, "https://a.example/1", ip=ip)
        for actor in ("https://b.example/1", "https://a.example/1"):
            source = Source(same)
            assert code_of(keys, f"{actor}#k", actor, source=source) == "overloaded"
            assert source.lookups == 0, "it cost nothing"
        tarpit._entered = threading.Barrier(2)
        tarpit.ask(keys, "https://b.example/1", ip=other)
    assert not keys._waiting
    tarpit._entered = threading.Barrier(1)
    source = Source(ip)
    assert code_of(keys, "https://c.example/1#k", "https://c.example/1", source=source) == "actor_unreachable"
    assert source.lookups == 1


def test_what_is_remembered_waits_for_nobody(clock, instance):
    source = Source("192.0.2.1")
    keys = ActorKeys(instance, clock)
    for _ in range(3):
        keys.find(KEY_ID, ALICE, source=source)
    assert source.lookups == 1


@pytest.mark.parametrize("error", [
    Unreachable("BadAddress", "alpha.example is at 10.1.2.3"), KtlogError("BadActor", "10.1.2.3"),
    Invalid("GoneActor", "10.1.2.3"),
])
def test_why_a_fetch_failed_is_not_told(keys, instance, caplog, error):
    """It would tell where names lead in the log's own network."""
    instance.error = error
    for _ in range(2):  # the second is from memory
        with pytest.raises(MessageRejected) as caught:
            keys.find(KEY_ID, ALICE)
        assert "10.1.2.3" not in str(caught.value) + caught.value.hint
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_no_line_names_whose_document_it_was(keys, instance, caplog):
    """Not even at debug: the lines outlast an erasure."""
    caplog.set_level(logging.DEBUG)
    actors = [f"https://alpha.example/users/alice{number}" for number in range(5)]
    spoilt = [
        {"status": 404}, {"status": 410}, {"content_type": "text/html"},
        {"error": Unreachable("BadAddress", f"{ALICE} leads to 10.1.2.3")}, {},
    ]
    for actor, change in zip(actors, spoilt, strict=True):
        instance.documents[actor] = document(ALICE, ONE)  # not its own
        instance.__dict__.update({"status": 200, "content_type": "application/activity+json", "error": None} | change)
        code_of(keys, f"{actor}#main-key", actor)
    lines = [record for record in caplog.records if record.name == actor_keys.log.name]
    errors = [record.fields["error"] for record in lines]
    assert errors == ["BadStatus", "GoneActor", "BadContent", "BadAddress", "BadActor"]
    assert {record.fields["host"] for record in lines} == {"alpha.example"}
    said = [record.getMessage() + str(getattr(record, "fields", "")) for record in caplog.records]
    assert not [line for line in said if "alice" in line]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_of_who_is_erased(instance, clock, fails):
    keys = ActorKeys(instance, clock, erased=lambda actor: actor == ALICE)
    instance.status = 404 if fails else 200
    for _ in range(2):
        if fails:
            assert code_of(keys) == "actor_unreachable"
        else:
            assert keys.find(KEY_ID, ALICE).public_key == ONE
    assert instance.asked == [ALICE] * 2
    assert (keys._cache, keys._refused) == ({}, {})


def test_a_server_is_asked_so_often_and_no_more(keys, instance, clock):
    def ask(number: int) -> str:
        return code_of(keys, f"https://victim.example/{number}#k", f"https://victim.example/{number}")

    assert {ask(number) for number in range(HOST_BURST)} == {"actor_unreachable"}
    assert ask(HOST_BURST) == "overloaded"
    assert len(instance.asked) == HOST_BURST
    assert keys.find(KEY_ID, ALICE).public_key == ONE  # another server's budget is its own
    clock.now += 1
    assert [ask(1000 + number) for number in range(HOST_PER_SECOND + 1)] == ["actor_unreachable"] * HOST_PER_SECOND + ["overloaded"]
    clock.now -= 100  # a clock that is set back gives nothing, and takes nothing
    assert ask(5000) == "overloaded"


def test_what_is_cached_costs_no_budget(keys, instance, clock, monkeypatch):
    monkeypatch.setattr(actor_keys, "HOST_BURST", 1)
    for _ in range(5):
        assert keys.find(KEY_ID, ALICE).public_key == ONE
    assert code_of(keys, f"{BOB}#k", BOB) == "overloaded"


def test_hosts_are_forgotten_but_not_those_that_are_waited_for(clock, monkeypatch):
    monkeypatch.setattr(actor_keys, "CACHE_LIMIT", 3)
    with Tarpit(1) as tarpit:
        keys = ActorKeys(tarpit, clock, 4)
        tarpit.ask(keys, "https://slow.example/1")
        tarpit._entered = threading.Barrier(1)
        tarpit._release.set()
        for number in range(10):
            code_of(keys, f"https://h{number}.example/a#k", f"https://h{number}.example/a")
            assert len(keys._hosts) <= 4
    assert tarpit.codes == ["actor_unreachable"]


def test_nobody_gets_a_new_budget_by_naming_others(keys, instance, clock, monkeypatch):
    monkeypatch.setattr(actor_keys, "CACHE_LIMIT", 3)
    monkeypatch.setattr(actor_keys, "HOST_BURST", 20)
    for number in range(20):
        code_of(keys, f"https://victim.example/{number}#k", f"https://victim.example/{number}")
    for name in ("a", "b"):  # the table is full now
        code_of(keys, f"https://{name}.example/1#k", f"https://{name}.example/1")
    clock.now += 1
    code_of(keys, "https://victim.example/x#k", "https://victim.example/x")
    keys._hosts["a.example"].since -= 100  # has its whole budget back
    code_of(keys, "https://c.example/1#k", "https://c.example/1")
    assert set(keys._hosts) == {"victim.example", "b.example", "c.example"}
    assert keys._hosts["victim.example"].left < 20


def test_threads_that_want_the_same_document_share_one_fetch(clock):
    """The second joins before the first is answered: the test lets the answer go only when it has."""
    instance = Instance()
    waits = threading.Semaphore(0)
    joined = threading.Event()

    class Slow(Instance):
        def get(self, url: str, **options: object) -> Response:
            waits.release()
            joined.wait(20)
            return instance.get(url, **options)

    keys = ActorKeys(Slow(), clock, 8)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(keys.find(KEY_ID, ALICE).public_key)) for _ in range(5)]
    for thread in threads:
        thread.start()
    waits.acquire(timeout=20)
    while keys._hosts["alpha.example"].waiting < 5:
        assert any(thread.is_alive() for thread in threads)
    joined.set()
    for thread in threads:
        thread.join(20)
    assert found == [ONE] * 5
    assert instance.asked == [ALICE]


def test_who_shares_a_fetch_shares_its_failure(clock):
    with Tarpit(1) as tarpit:
        keys = ActorKeys(tarpit, clock, 8)
        tarpit.ask(keys, BOB)
        second = threading.Thread(target=lambda: tarpit.codes.append(code_of(keys, f"{BOB}#k", BOB)))
        second.start()
        while keys._hosts["alpha.example"].waiting < 2:
            assert second.is_alive()
        tarpit._release.set()
        second.join(20)
    assert tarpit.codes == ["actor_unreachable"] * 2
    assert tarpit.asked == [BOB]
    assert keys._flights == {}
    assert keys._hosts["alpha.example"].waiting == 0


def test_not_found_is_not_gone(keys, instance, clock):
    """A 404 may be a server's bad day: what is cached still counts. A 410 is for ever: it counts no more."""
    keys.find(KEY_ID, ALICE)
    clock.now += REFRESH_SECONDS
    instance.status = 404
    assert code_of(keys, refresh=True) == "actor_unreachable"
    assert keys.find(KEY_ID, ALICE).public_key == ONE
    clock.now += REFUSE_SECONDS
    instance.status = 410
    assert code_of(keys, refresh=True) == "actor_gone"
    instance.status = 200
    assert code_of(keys) == "actor_gone"
    clock.now += GONE_SECONDS - 1
    assert code_of(keys) == "actor_gone"
    clock.now += 1
    assert keys.find(KEY_ID, ALICE).public_key == ONE


def test_an_erasure_empties_the_memory(instance, clock):
    erased = [0]
    keys = ActorKeys(instance, clock, generation=lambda: erased[0])
    keys.find(KEY_ID, ALICE)
    code_of(keys, f"{BOB}#k", BOB)
    erased[0] = 1
    keys.find(KEY_ID, ALICE)
    assert instance.asked == [ALICE, BOB, ALICE]
    assert keys._refused == {}


def test_a_fetch_that_was_under_way_when_somebody_was_erased_is_not_kept(clock):
    erased = [0]

    class Late(Instance):
        def get(self, url: str, **options: object) -> Response:
            answer = super().get(url, **options)
            if url == ALICE and erased[0] == 0:
                erased[0] = 1
                code_of(keys, f"{BOB}#k", BOB)  # whoever comes next sees it, and empties the memory
            return answer

    instance = Late()
    keys = ActorKeys(instance, clock, generation=lambda: erased[0])
    assert keys.find(KEY_ID, ALICE).public_key == ONE
    assert ALICE not in keys._cache


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
