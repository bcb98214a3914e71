"""The diff against an actor's live document: what is compared, what is passed over, and who is never asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from auditor.events import Event
from auditor.live import (
    CONFIRM_SECONDS,
    EVERY_SECONDS,
    LOGGED_NOT_PUBLISHED,
    MAX_PACKAGE_FETCHES,
    PACKAGE_NOT_LOGGED,
    PER_ROUND,
    PUBLISHED_NOT_LOGGED,
    LiveCheck,
    compare,
    read_published,
)
from auditor.outbox import Outbox
from auditor.owners import Owners
from auditor.subscriptions import ACTOR, DOMAIN
from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import Invalid, Unreachable
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import encode_public_key
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.fetch import Fetcher, Response
from tests.tls_server import HOST, TlsServer, answer

ORIGIN = "keys.alpha.example"
ALICE = "https://alpha.example/users/alice"
NOW = 1_800_000_000
KEYS = [bytes([number]) * 1312 for number in range(4)]
ACTIVITY = "application/activity+json"


def person(actor_id: str = ALICE, keys: tuple[bytes, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "id": actor_id, "inbox": f"{actor_id}/inbox",
        "assertionMethod": [actor_key(f"{actor_id}#k{key[0]}", actor_id, ML_DSA_44, key) for key in keys], **more,
    }


class Web:
    """Documents by URL. An error is raised; bytes come with *content_type*."""

    def __init__(self, **pages: Any) -> None:
        self.pages: dict[str, Any] = pages
        self.asked: list[str] = []

    def get(self, url: str, *, accept: str = "", max_bytes: int | None = None) -> Response:
        self.asked.append(url)
        found = self.pages.get(url)
        if isinstance(found, Exception):
            raise found
        status = 404 if found is None else 200
        return Response(status, {"content-type": ACTIVITY}, json.dumps(found).encode(), url)


def web(document: dict[str, Any], **pages: Any) -> Web:
    return Web(**{document["id"]: document, **pages})


def names(logged: list[bytes], document: dict[str, Any], **pages: Any) -> set[tuple[str, int]]:
    published = read_published(web(document, **pages), ALICE)
    return {(one.name, one.public_key[0]) for one in compare(logged, published)}


def test_keys_that_are_in_one_place_alone_differ() -> None:
    assert names(KEYS[:2], person(keys=(KEYS[0], KEYS[1]))) == set()
    assert names([KEYS[0]], person(keys=(KEYS[0], KEYS[1]))) == {(PUBLISHED_NOT_LOGGED, 1)}
    assert names(KEYS[:2], person(keys=(KEYS[1],))) == {(LOGGED_NOT_PUBLISHED, 0)}


def test_a_document_without_a_key_that_can_be_compared_differs_from_nothing() -> None:
    stock = {"id": ALICE, "inbox": f"{ALICE}/inbox", "publicKey": {"id": "x", "publicKeyPem": "y"}}
    assert names(KEYS[:2], stock) == set()
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")  # RFC 8032, test 1
    other = actor_key(f"{ALICE}#e", ALICE, ED25519, raw)
    found = person() | {"assertionMethod": [other, "https://alpha.example/keys/1"]}
    assert names(KEYS[:2], found) == set()
    assert read_published(web(found), ALICE).uncompared == 2


def package(signer: str | None) -> dict[str, Any]:
    return {"type": ["Object", "KeyPackage"], "mediaType": "message/mls", "content": "AA==",
            **({} if signer is None else {"contentSignatureKeyId": signer})}


def test_key_packages_are_compared_by_the_key_that_signed_them() -> None:
    url = f"{ALICE}/keyPackages"
    document = person(keys=(KEYS[0], KEYS[1]), keyPackages=url)
    items = [package(f"{ALICE}#k0"), package(encode_public_key(KEYS[2])), package(None), package("elsewhere")]
    pages = {url: {"type": "Collection", "first": f"{url}?page=1"}, f"{url}?page=1": {"orderedItems": items}}
    assert names(KEYS[:2], document, **pages) == {(PACKAGE_NOT_LOGGED, 2)}
    assert read_published(web(document, **pages), ALICE).uncompared == 2
    assert names(KEYS[:2], person(keys=tuple(KEYS[:2]), keyPackages={"items": items[0]})) == set()


def test_nothing_on_another_host_is_asked_for_and_never_much() -> None:
    many = [f"{ALICE}/kp/{number}" for number in range(50)]
    found = web(person(keyPackages={"items": many}), **dict.fromkeys(many, package(None)))
    read_published(found, ALICE)
    assert len(found.asked) == 1 + MAX_PACKAGE_FETCHES
    for target in ("https://evil.example/kp", "http://alpha.example/kp", "https://alpha.example:8443/kp", "file:///x"):
        for document in (person(keyPackages=target), person(keyPackages={"items": [target]})):
            found = web(document)
            read_published(found, ALICE)
            assert found.asked == [ALICE]


def test_it_is_read_by_the_fetchers_rules_from_a_real_server(server: TlsServer) -> None:
    actor_id = f"https://{HOST}/users/alice"
    body = json.dumps(person(actor_id, (KEYS[0],))).encode()
    server.behave = lambda request: answer(body, content_type=ACTIVITY)
    with Fetcher(server.dial(), timeout=5) as fetcher:
        assert read_published(fetcher, actor_id).keys == (KEYS[0],)
        server.behave = lambda request: answer(body, content_type="text/html")
        with pytest.raises(Unreachable):
            read_published(fetcher, actor_id)
    with pytest.raises(Invalid):
        read_published(web(person() | {"id": ALICE, "inbox": "https://evil.example/inbox"}), ALICE)


# The rounds


class Site:
    def __init__(self, directory: Path, documents: Web, logged: dict[str, list[bytes]]) -> None:
        self.outbox = Outbox(directory)
        self.owners = Owners(self.outbox, {})
        self.web = documents
        self.logged = logged
        self.pauses: list[float] = []
        self.live = LiveCheck(
            self.outbox, self.owners.subscriptions, ORIGIN, self.owners._difference, pause=self.pauses.append
        )

    def watch(self, kind: str, text: str) -> None:
        self.owners.subscriptions.add(ORIGIN, kind, text, "box", "", NOW)

    def round(self, now: int) -> int:
        """One round of looks; how many alarms were new."""
        due = self.live.due(now, lambda names: {name: self.logged[name] for name in names if name in self.logged})
        return self.live.look(self.web, due, now)

    def told(self) -> list[tuple[str, str]]:
        return sorted((row["alarm"]["name"], row["alarm"]["state"]) for row in self.outbox.rows())


@pytest.fixture
def site(tmp_path: Path):
    site = Site(tmp_path, web(person(keys=(KEYS[0], KEYS[1]))), {ALICE: [KEYS[0]]})
    yield site
    site.outbox.close()


def test_a_difference_is_told_once_it_was_seen_twice_and_again_when_it_is_gone(site: Site) -> None:
    site.watch(ACTOR, ALICE)
    assert site.round(NOW) == 0 and site.told() == []
    assert site.round(NOW + CONFIRM_SECONDS - 1) == 0 and len(site.web.asked) == 1
    assert site.round(NOW + CONFIRM_SECONDS) == 1
    assert site.round(NOW + CONFIRM_SECONDS + 2 * EVERY_SECONDS) == 0
    assert site.told() == [(PUBLISHED_NOT_LOGGED, "opened")]
    site.logged[ALICE].append(KEYS[1])
    assert site.round(NOW + CONFIRM_SECONDS + 4 * EVERY_SECONDS) == 1
    assert site.told() == [(PUBLISHED_NOT_LOGGED, "closed"), (PUBLISHED_NOT_LOGGED, "opened")]


def test_a_change_that_was_half_done_is_no_alarm(site: Site) -> None:
    site.watch(ACTOR, ALICE)
    site.round(NOW)
    site.logged[ALICE].append(KEYS[1])
    for number in range(5):
        assert site.round(NOW + number * EVERY_SECONDS + CONFIRM_SECONDS) == 0
    assert site.told() == []


@pytest.mark.parametrize("trouble", [
    Unreachable("Timeout", "x"), {"id": "https://alpha.example/users/mallory"}, None, [1], {"id": ALICE},
])
def test_what_cannot_be_had_or_read_is_no_difference_and_ends_none(site: Site, trouble: Any) -> None:
    site.watch(ACTOR, ALICE)
    site.round(NOW)
    site.round(NOW + CONFIRM_SECONDS)
    site.web.pages[ALICE] = trouble
    assert site.round(NOW + 3 * EVERY_SECONDS) == 0
    assert site.told() == [(PUBLISHED_NOT_LOGGED, "opened")]


def test_a_whole_domain_is_looked_at_in_turn_and_politely(tmp_path: Path) -> None:
    actors = [f"https://alpha.example/users/u{number}" for number in range(12)]
    site = Site(tmp_path, Web(**{name: person(name, (KEYS[0],)) for name in actors}),
                {name: [KEYS[0]] for name in actors})
    site.watch(DOMAIN, "alpha.example")
    events = [Event(ORIGIN, number, "AddAuxData", (name,)) for number, name in enumerate(actors)]
    events.append(Event(ORIGIN, 12, "AddKey", ("https://beta.example/users/x",)))
    site.owners.take(ORIGIN, events, None, PublicFiles(site.web, "https://x"), NOW)
    assert site.round(NOW - 1) == 0 and site.web.asked == []
    for number in range(4):
        site.round(NOW + EVERY_SECONDS)
        assert len(site.web.asked) == min((number + 1) * PER_ROUND, len(actors))
    assert sorted(site.web.asked) == sorted(actors) and len(site.pauses) == 4 + 4 + 1 and min(site.pauses) >= 1
    site.outbox.close()


def test_who_was_erased_is_neither_asked_about_nor_kept(site: Site) -> None:
    site.watch(ACTOR, ALICE)
    site.watch(DOMAIN, "alpha.example")
    site.round(NOW)
    site.round(NOW + CONFIRM_SECONDS)
    asked = len(site.web.asked)
    site.outbox.forget_actor(ORIGIN, map_index(ORIGIN, ALICE))
    del site.logged[ALICE]
    for number in range(3):
        site.round(NOW + number * 2 * EVERY_SECONDS)
    assert len(site.web.asked) == asked
    assert site.outbox.read("SELECT count(*) FROM live_checks") == [(0,)] and ALICE not in str(site.outbox.rows())


def test_who_is_not_in_the_log_or_not_watched_any_more_is_not_asked_about(site: Site) -> None:
    site.watch(ACTOR, "https://alpha.example/users/nobody")
    site.watch(ACTOR, ALICE)
    site.owners.subscriptions.remove(2)
    site.live.note([ALICE], NOW - EVERY_SECONDS)
    site.round(NOW)
    assert site.web.asked == [] and site.outbox.read("SELECT count(*) FROM live_checks") == [(0,)]
