"""Fetching actors safely: every line of the checklist, by name, under the guard that refuses the network.

The checklist is what went wrong in programs like this one: keys fetched from the operator's own network, an attacker's
key bound to somebody else's actor, answers without end. Sources: RFC 9421 section 7, ActivityPub section B.3,
FEP-521a, and the reports against Owncast, Discourse's ActivityPub plug-in and Omicron named below.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tls_server import HOST, OTHER, TlsServer, answer

from ktlog.errors import EncodingError, KtlogError, MessageRejected, NotLogged, Unreachable
from ktlog.operator.actor_keys import HOST_BURST, REFRESH_SECONDS, REFUSE_SECONDS, ActorKeys
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.federation import is_noise
from ktlog.operator.guard import Guard
from ktlog.operator.request import Request, Source
from ktlog.wire.actor import ED25519, MAX_ACTOR_BYTES, actor_key, fetch_actor
from ktlog.wire.actor_id import parse_actor_id, parse_handle
from ktlog.wire.dial import Dial
from ktlog.wire.fetch import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT_SECONDS, MAX_REDIRECTS, Fetcher
from ktlog.wire.httpsig import sign_request
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS, resolve_handle
from tests.operator_world import Clock

ALICE = f"https://{HOST}/users/alice"
KEY_ID = f"{ALICE}#main-key"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
INBOX = "https://keys.example.com/users/pubkeydir/inbox"


@pytest.fixture
def server(server):
    serve(server)
    return server


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(fetcher, clock):
    return ActorKeys(fetcher, clock)


@pytest.fixture
def authenticator(tmp_path, keys, clock):
    guard = Guard(tmp_path / "guard.db", 100, 3600, (), lambda: clock.now * 1000)
    yield Authenticator("keys.example.com", keys, guard, clock)
    guard.close()


def listed(key_id: str = KEY_ID, controller: str = ALICE, key: Ed25519PrivateKey = KEY) -> dict:
    return actor_key(key_id, controller, ED25519, key.public_key().public_bytes_raw())


def document(**changes: object) -> dict:
    return {"id": ALICE, "type": "Person", "inbox": f"{ALICE}/inbox", "assertionMethod": [listed()]} | changes


def serve(server: TlsServer, found: object = None, status: int = 200, content_type: str | None = ACTIVITY_JSON) -> None:
    body = json.dumps(document() if found is None else found).encode()
    server.behave = lambda request: answer(body, status, content_type)


def request(clock: Clock, *, key=KEY, key_id=KEY_ID, created: int | None = None, body=b"{}", **changes) -> Request:
    signed = sign_request("POST", INBOX, {"Content-Type": ACTIVITY_JSON}, body, key_id, key, created or clock.now)
    headers = {**signed, **changes.pop("headers", {})}
    fields = {"method": "POST", "target_url": INBOX, "body": body} | changes
    return Request(headers=tuple(headers.items()), source=Source("192.0.2.1"), **fields)


def refused(name: str, call, *arguments, **options) -> None:
    with pytest.raises(KtlogError) as caught:
        call(*arguments, **options)
    assert caught.value.name == name, caught.value


def resolving(monkeypatch, *answers: tuple[str, ...]) -> list[str]:
    """Let names resolve to *answers*, one after the other, the last for ever. Gives the names asked for."""
    asked: list[str] = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)) if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


# --- which URLs are followed


@pytest.mark.parametrize("url", ["http://{}/a", "ftp://{}/a", "HTTPS://{}/a", "//{}/a", "gopher://{}/a", "file:///etc/passwd"])
def test_https_only(server, fetcher, url):
    refused("BadActorId", fetch_actor, fetcher, url.format(HOST))
    refused("BadAddress", fetcher.get, url.format(HOST))
    assert server.connections == 0


@pytest.mark.parametrize("user", ["user@", "user:secret@", "@", "keys.alpha.example@", "%40@"])
def test_no_userinfo(server, fetcher, user):
    refused("BadActorId", fetch_actor, fetcher, f"https://{user}{HOST}/users/alice")
    assert server.connections == 0


@pytest.mark.parametrize("port", [":8443", ":80", ":22", ":0443", ":", ":443:443", ":+443"])
def test_port_443_only(server, fetcher, port):
    refused("BadActorId", fetch_actor, fetcher, f"https://{HOST}{port}/users/alice")
    assert server.connections == 0


@pytest.mark.parametrize("host", [
    "127.0.0.1", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[fe80::1%25eth0]", "169.254.169.254", "localhost", "1.2.3.4.", "127.0.0.1.nip", "127\u30020\u30020\u30021",
])
def test_no_address_literals_in_any_spelling(fetcher, monkeypatch, loopback_guard, host):
    asked = resolving(monkeypatch, ("127.0.0.1",))
    # A name whose last label begins with a letter is a name; this one leads to nothing public, and is refused as such.
    refused("BadAddress" if host == "127.0.0.1.nip" else "BadActorId", fetch_actor, fetcher, f"https://{host}/users/alice")
    assert asked in ([], ["127.0.0.1.nip"])
    assert loopback_guard.refused == []


def test_names_in_other_scripts_go_out_in_ascii():
    """What a person types is converted; what a program sends must be in the one form already."""
    assert parse_handle("@alice@b\xfccher.example") == ("alice", "xn--bcher-kva.example")
    refused("BadActorId", parse_actor_id, "https://b\xfccher.example/users/alice")


# --- where they lead


@pytest.mark.parametrize("addresses", [
    ("10.0.0.1",), ("127.0.0.1",), ("100.64.0.1",), ("169.254.169.254",), ("0.0.0.0",), ("224.0.0.1",), ("255.255.255.255",),
    ("::1",), ("fe80::1",), ("fc00::1",), ("ff02::1",), ("::ffff:10.0.0.1",), ("64:ff9b::a00:1",), ("2002:7f00:1::",),
    ("93.184.216.34", "10.0.0.1"), ("2606:4700:4700::1111", "::1"), ("10.0.0.1", "93.184.216.34"),
])
def test_every_address_of_a_name_is_public_or_none_is_used(monkeypatch, loopback_guard, addresses):
    asked = resolving(monkeypatch, addresses)
    refused("BadAddress", fetch_actor, Fetcher(), "https://rebound.example/users/alice")
    assert asked == ["rebound.example"]
    assert loopback_guard.refused == []


def test_a_name_is_resolved_once_and_the_checked_address_is_dialled(monkeypatch, loopback_guard):
    asked = resolving(monkeypatch, ("93.184.216.34",), ("127.0.0.1",))
    with pytest.raises(loopback_guard.LoopbackOnly):
        fetch_actor(Fetcher(), "https://rebound.example/users/alice")
    assert asked == ["rebound.example"]
    assert loopback_guard.refused == [("socket.connect", "93.184.216.34")]


def test_the_server_name_and_the_host_header_stay_the_urls(server, fetcher):
    fetch_actor(fetcher, ALICE)
    (seen,) = server.requests
    assert (seen.server_name, seen.header("host")) == (HOST, HOST)


def test_the_certificate_is_for_the_name_in_the_url(server):
    refused("TlsFailed", fetch_actor, Fetcher(server.dial(OTHER)), f"https://{OTHER}/users/alice")
    assert server.requests == []


# --- redirects


def test_two_redirects_at_most(server, fetcher):
    assert MAX_REDIRECTS == 2
    server.behave = lambda request: answer(b"", 302, None, Location=f"{request.target}x")
    refused("BadRedirect", fetch_actor, fetcher, ALICE)
    assert [request.target for request in server.requests] == ["/users/alice", "/users/alicex", "/users/alicexx"]


@pytest.mark.parametrize("location", [
    f"https://{OTHER}/users/alice", "https://127.0.0.1/", "https://169.254.169.254/latest/meta-data", "http://keys.alpha.example/",
    f"https://{HOST}:8443/", f"https://user@{HOST}/", "//evil.example/", "https://[::1]/", "file:///etc/passwd", "",
])
def test_every_hop_is_checked_and_stays_in_its_origin(server, loopback_guard, location):
    server.behave = lambda request: answer(b"", 302, None, Location=location)
    refused("BadRedirect", fetch_actor, Fetcher(server.dial(HOST, OTHER), timeout=5), ALICE)
    assert {request.target for request in server.requests} == {"/users/alice"}
    assert loopback_guard.refused == []


# --- what comes back


def test_activity_json_is_asked_for(server, fetcher):
    fetch_actor(fetcher, ALICE)
    accepted = server.requests[0].header("accept")
    assert ACTIVITY_JSON in accepted
    assert f'application/ld+json; profile="{ACTIVITYSTREAMS}"' in accepted


@pytest.mark.parametrize("content_type", [
    "application/json", "text/html", "text/plain", "application/octet-stream", "image/png", "application/ld+json", None, "",
    'application/ld+json; profile="https://evil.example/"', "multipart/form-data; x=application/activity+json",
])
def test_a_file_that_a_user_uploaded_is_no_actor(server, fetcher, content_type):
    serve(server, content_type=content_type)
    refused("BadContent", fetch_actor, fetcher, ALICE)


@pytest.mark.parametrize("content_type", [
    ACTIVITY_JSON, f"{ACTIVITY_JSON}; charset=utf-8", f'application/ld+json; profile="{ACTIVITYSTREAMS}"',
])
def test_both_types_of_activity_streams_are_taken(server, fetcher, content_type):
    serve(server, content_type=content_type)
    assert fetch_actor(fetcher, ALICE).id == ALICE


def test_a_megabyte_at_most(server, fetcher):
    assert MAX_ACTOR_BYTES <= DEFAULT_MAX_BYTES == 1 << 20
    padding = MAX_ACTOR_BYTES - len(json.dumps(document(summary="")).encode())
    serve(server, document(summary="x" * padding))
    assert fetch_actor(fetcher, ALICE).id == ALICE
    serve(server, document(summary="x" * (padding + 1)))
    refused("TooLarge", fetch_actor, fetcher, ALICE)


@pytest.mark.parametrize("where", ["body", "head", "redirect", "silence"])
def test_one_deadline_for_the_whole_request(server, where):
    """Ten seconds, or what was asked for, however slowly the bytes trickle in."""
    assert DEFAULT_TIMEOUT_SECONDS == 10

    def behave(_):
        if where == "silence":
            yield 20.0
        if where == "redirect":
            yield 0.3
            yield from answer(b"", 302, None, Location="/again")
            return
        if where == "body":
            yield b"HTTP/1.1 200 OK\r\nContent-Type: application/activity+json\r\n\r\n"
        while True:
            yield 0.05
            yield b"X"

    server.behave = behave
    refused("Timeout", fetch_actor, Fetcher(server.dial(), timeout=0.5), ALICE)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip", "x"])
def test_no_decompression_bombs(server, fetcher, encoding):
    server.behave = lambda _: answer(gzip.compress(bytes(10_000_000)), 200, ACTIVITY_JSON, Content_Encoding=encoding)
    refused("BadContent", fetch_actor, fetcher, ALICE)
    assert server.requests[0].header("accept-encoding") == "identity"


@pytest.mark.parametrize("name", ["Content-Length", "Content-Type", "Location", "Transfer-Encoding"])
def test_repeated_header_lines_are_refused(server, fetcher, name):
    body = json.dumps(document()).encode()
    value = {"Content-Length": str(len(body)), "Content-Type": ACTIVITY_JSON}.get(name, "x")
    (good,) = answer(body, content_type=ACTIVITY_JSON)
    server.behave = lambda _: [good.replace(b"\r\n\r\n", f"\r\n{name}: {value}\r\n{name}: {value}\r\n\r\n".encode(), 1), None]
    refused("Broken", fetch_actor, fetcher, ALICE)


@pytest.mark.parametrize("head", [b"HTTP/0.9 200 OK\r\n\r\n", b"", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 +200 OK\r\n\r\n"])
def test_http_of_another_age_is_refused(server, fetcher, head):
    server.behave = lambda _: [head + json.dumps(document()).encode(), None]
    refused("Broken", fetch_actor, fetcher, ALICE)


def test_informational_answers_are_not_the_answer(server, fetcher):
    (good,) = answer(json.dumps(document()).encode(), content_type=ACTIVITY_JSON)
    server.behave = lambda _: [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + good]
    for _ in range(2):
        assert fetch_actor(fetcher, ALICE).id == ALICE
    assert server.connections == 1


# --- whose document and whose key it is


@pytest.mark.parametrize("identity", [f"https://{HOST}/users/bob", f"{ALICE}/", f"{ALICE}?x", f"https://{OTHER}/users/alice", None, [ALICE]])
def test_the_id_is_the_url_that_was_asked_for(server, fetcher, identity):
    serve(server, document(id=identity))
    refused("BadActor", fetch_actor, fetcher, ALICE)


@pytest.mark.parametrize("controller", [f"https://{HOST}/users/bob", f"https://{OTHER}/users/alice", None, [ALICE], f"{ALICE}/"])
def test_the_controller_of_a_key_is_the_actor(server, keys, controller):
    serve(server, document(assertionMethod=[{**listed(), "controller": controller}]))
    refused("BadActor", fetch_actor, keys._fetcher, ALICE)
    refused("unknown_http_key", keys.find, KEY_ID, ALICE)


@pytest.mark.parametrize("key_id", [
    f"https://{OTHER}/users/alice#main-key", f"https://{HOST}/users/bob#main-key", f"{ALICE}/main-key", f"https://{HOST}.evil.example/users/alice#k",
    f"http://{HOST}/users/alice#main-key", "https://127.0.0.1/#main-key", "main-key", "",
])
def test_the_key_is_on_the_actors_own_document_or_nothing_is_fetched(server, keys, key_id):
    refused("unknown_http_key", keys.find, key_id, ALICE)
    assert server.connections == 0


@pytest.mark.parametrize("methods", [[], [listed(f"{ALICE}#other")], [KEY_ID], None])
def test_the_actor_lists_the_key(server, keys, methods):
    """The reverse link: that a key calls itself the actor's is nothing."""
    serve(server, document(assertionMethod=methods))
    refused("unknown_http_key", keys.find, KEY_ID, ALICE)


# --- how often anybody is asked


def test_one_forced_refresh_when_a_signature_fails_and_then_no_more(server, keys, authenticator, clock):
    authenticator.authenticate(request(clock), ALICE)
    for _ in range(5):  # a forger, just after: the document is fresh
        refused("unauthorized", authenticator.authenticate, request(clock, key=OTHER_KEY), ALICE)
    assert len(server.requests) == 1
    clock.now += REFRESH_SECONDS
    for _ in range(5):
        refused("unauthorized", authenticator.authenticate, request(clock, key=OTHER_KEY), ALICE)
    assert len(server.requests) == 2
    clock.now += REFRESH_SECONDS
    serve(server, document(assertionMethod=[listed(key=OTHER_KEY)]))  # the actor has a new key
    authenticator.authenticate(request(clock, key=OTHER_KEY, body=b"[]"), ALICE)
    assert len(server.requests) == 3


def test_a_failure_is_remembered_for_a_moment(server, keys, clock):
    serve(server, status=500)
    for _ in range(5):
        refused("actor_unreachable", keys.find, KEY_ID, ALICE)
    assert len(server.requests) == 1
    clock.now += REFUSE_SECONDS
    refused("actor_unreachable", keys.find, KEY_ID, ALICE)
    assert len(server.requests) == 2


def test_many_who_want_the_same_document_share_one_fetch(server, clock):
    asked, go = threading.Event(), threading.Event()
    body = json.dumps(document()).encode()

    def behave(_):
        asked.set()
        go.wait(20)
        yield from answer(body, content_type=ACTIVITY_JSON)

    server.behave = behave
    keys = ActorKeys(Fetcher(server.dial(), timeout=30), clock, 8)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(keys.find(KEY_ID, ALICE).id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    asked.wait(20)
    while keys._hosts[HOST].waiting < 6:
        assert any(thread.is_alive() for thread in threads)
    go.set()
    for thread in threads:
        thread.join(20)
    assert (found, len(server.requests)) == ([KEY_ID] * 6, 1)


def test_a_server_has_a_budget(server, keys, clock):
    serve(server, status=404)
    for number in range(HOST_BURST + 20):
        who = f"https://{HOST}/users/{number}"
        refused("actor_unreachable" if number < HOST_BURST else "overloaded", keys.find, f"{who}#k", who)
    assert len(server.requests) == HOST_BURST


def test_not_found_is_not_gone(server, keys, clock):
    keys.find(KEY_ID, ALICE)
    clock.now += REFRESH_SECONDS
    serve(server, status=404)
    refused("actor_unreachable", keys.find, KEY_ID, ALICE, refresh=True)
    assert keys.find(KEY_ID, ALICE).id == KEY_ID, "a server's bad day withdraws no key"
    clock.now += REFUSE_SECONDS
    serve(server, status=410)
    refused("actor_gone", keys.find, KEY_ID, ALICE, refresh=True)
    serve(server)
    refused("actor_gone", keys.find, KEY_ID, ALICE)


# --- what comes before any fetch


CHEAP = {
    "rate limit": lambda clock, guard: _penalized(clock, guard),
    "no signature": lambda clock, guard: request(clock, headers={"Signature": ""}),
    "header shape": lambda clock, guard: request(clock, headers={"Signature-Input": "sig1=("}),
    "created too old": lambda clock, guard: request(clock, created=clock.now - 301),
    "created in the future": lambda clock, guard: request(clock, created=clock.now + 301),
    "content digest": lambda clock, guard: request(clock, headers={"Content-Digest": f"sha-256=:{'A' * 43}=:"}),
    "body of another": lambda clock, guard: Request(**{**vars(request(clock)), "body": b"[]"}),
    "key on another host": lambda clock, guard: request(clock, key_id=f"https://{OTHER}/users/alice#main-key"),
    "key on an address": lambda clock, guard: _with_key_id(clock, "https://127.0.0.1/x#main-key"),
    "key over http": lambda clock, guard: _with_key_id(clock, f"http://{HOST}/users/alice#main-key"),
}


def _with_key_id(clock: Clock, key_id: str) -> Request:
    good = request(clock)
    headers = tuple((name, value.replace(KEY_ID, key_id)) for name, value in good.headers)
    return Request(good.method, good.target_url, headers, good.body, good.source)


def _penalized(clock: Clock, guard: Guard) -> Request:
    made = request(clock)
    guard.penalize(made.source, 8)
    return made


@pytest.mark.parametrize("name", CHEAP)
def test_nothing_is_fetched_before_the_cheap_checks(server, authenticator, clock, name):
    guard = authenticator._guard
    made = CHEAP[name](clock, guard)
    with pytest.raises(MessageRejected):
        guard.check(made.source, None)
        authenticator.authenticate(made, ALICE)
    assert server.connections == 0
    assert made.source.domain is None


def test_and_a_good_request_passes_them(server, authenticator, clock):
    made = request(clock)
    authenticator.authenticate(made, ALICE)
    assert (len(server.requests), made.source.domain) == (1, HOST)


def test_a_flood_of_deletions_fetches_nothing():
    """Told to everybody, signed by actors who are gone: to look for their keys is what it costs others."""
    assert is_noise(json.dumps({"type": "Delete", "actor": ALICE, "object": ALICE}).encode())
    assert not is_noise(json.dumps({"type": "Create", "actor": ALICE, "object": {}}).encode())


# --- what went wrong elsewhere


def test_owncast_5121_a_key_id_leads_into_no_network(server, authenticator, clock, loopback_guard, monkeypatch):
    """The key id of an unverified request was fetched, wherever it led."""
    asked = resolving(monkeypatch, ("127.0.0.1",))
    for key_id in ("https://169.254.169.254/latest#k", "https://internal.example/#k", "https://localhost/#k"):
        refused("unauthorized" if "internal" not in key_id else "unknown_http_key",
                authenticator.authenticate, _with_key_id(clock, key_id), ALICE)
    assert (asked, server.connections, loopback_guard.refused) == ([], 0, [])


def test_discourse_325_a_key_is_bound_to_nobody_by_its_own_word(server, authenticator, clock):
    """The attacker's own document offers a key under Alice's name; hers is the one that is asked."""
    mallory = f"https://{HOST}/users/mallory"
    offered = listed(KEY_ID, ALICE, OTHER_KEY)
    pages = {"/users/alice": document(), "/users/mallory": {**document(assertionMethod=[offered]), "id": mallory}}
    server.behave = lambda seen: answer(json.dumps(pages[seen.target]).encode(), content_type=ACTIVITY_JSON)
    forged = request(clock, key=OTHER_KEY)
    refused("unauthorized", authenticator.authenticate, forged, ALICE)
    refused("unknown_http_key", authenticator.authenticate, request(clock, key=OTHER_KEY), mallory)


def test_omicron_136_a_handle_leads_into_no_network(fetcher, monkeypatch, loopback_guard):
    asked = resolving(monkeypatch, ("127.0.0.1",))
    for handle in ("@a@127.0.0.1", "@a@localhost", "@a@[::1]", "@a@0x7f.1", "@a@keys.alpha.example:8080", "@a@x@y.example"):
        with pytest.raises(EncodingError):
            resolve_handle(fetcher, handle)
    assert asked == []
    refused("BadAddress", resolve_handle, Fetcher(), "@a@internal.example")
    assert loopback_guard.refused == []


def test_pkd_server_php_the_path_of_an_actor_is_not_rewritten(server, fetcher):
    """There, /users/alice became usersalice: the document that is asked for is at the id, as it is written."""
    fetch_actor(fetcher, ALICE)
    for path in ("/users//alice", "/users/alice/", "/Users/Alice", "/users/%61lice", "/@alice", "/usersalice"):
        refused("BadActor", fetch_actor, fetcher, f"https://{HOST}{path}")
    assert [seen.target for seen in server.requests][1:] == [
        "/users//alice", "/users/alice/", "/Users/Alice", "/users/%61lice", "/@alice", "/usersalice",
    ]


def test_pkd_server_php_the_key_that_is_named_is_the_one_that_counts(server, authenticator, clock):
    """There, the first that parsed was taken."""
    second = listed(f"{ALICE}#second", key=OTHER_KEY)
    serve(server, document(assertionMethod=[listed(), second]))
    authenticator.authenticate(request(clock, key=OTHER_KEY, key_id=f"{ALICE}#second"), ALICE)
    refused("unauthorized", authenticator.authenticate, request(clock, key_id=f"{ALICE}#second", body=b"[]"), ALICE)


def test_pkd_server_php_a_link_of_another_type_names_no_actor(server, fetcher):
    """There, the type of the link was not looked at."""
    jrd = {"subject": f"acct:alice@{HOST}", "links": [{"rel": "self", "type": "text/html", "href": ALICE}]}
    server.behave = lambda _: answer(json.dumps(jrd).encode(), content_type="application/jrd+json")
    refused("BadWebFinger", resolve_handle, fetcher, f"@alice@{HOST}")
    server.behave = lambda _: answer(b"", 404)
    with pytest.raises(NotLogged):
        resolve_handle(fetcher, f"@alice@{HOST}")


def test_the_dial_table_of_the_demo_leads_to_loopback_only(monkeypatch, loopback_guard):
    """It stands in for name resolution, for the names in it; all other rules are production's."""
    resolving(monkeypatch, ("127.0.0.1",))
    with pytest.raises(KtlogError):
        Dial({HOST: ("10.0.0.1", 443)})
    with pytest.raises(Unreachable):
        fetch_actor(Fetcher(Dial({HOST: ("127.0.0.1", 1)})), f"https://{OTHER}/users/alice")
    assert loopback_guard.refused == []
