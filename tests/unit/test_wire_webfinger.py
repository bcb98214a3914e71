import json

import pytest
from tls_server import HOST, answer

from ktlog.errors import EncodingError, Invalid, NotLogged, Unreachable
from ktlog.wire.fetch import Fetcher
from ktlog.wire.webfinger import actor_of_jrd, is_activity_type, resolve_handle

RESOURCE = f"acct:alice@{HOST}"
ACTOR = f"https://{HOST}/users/alice"
LINK = {"rel": "self", "type": "application/activity+json", "href": ACTOR}


def jrd(*links, subject=RESOURCE, **members):
    return {"subject": subject, "links": list(links), **members}


def test_resolve_handle(server):
    server.behave = lambda _: answer(json.dumps(jrd(LINK)).encode(), 200, "application/jrd+json; charset=utf-8")
    assert resolve_handle(Fetcher(server.dial()), f"@alice@{HOST}") == ACTOR
    (request,) = server.requests
    assert request.target == "/.well-known/webfinger?resource=acct%3Aalice%40keys.alpha.example"
    assert "application/jrd+json" in request.header("accept")


@pytest.mark.parametrize(("status", "content_type", "kind", "name"), [
    (404, "application/jrd+json", NotLogged, "UnknownHandle"), (410, "text/html", NotLogged, "UnknownHandle"),
    (500, "application/jrd+json", Unreachable, "BadStatus"), (200, "text/html", Unreachable, "BadContent"),
])
def test_answers_that_are_none(server, status, content_type, kind, name):
    server.behave = lambda _: answer(json.dumps(jrd(LINK)).encode(), status, content_type)
    with pytest.raises(kind) as caught:
        resolve_handle(Fetcher(server.dial()), f"@alice@{HOST}")
    assert caught.value.name == name


def test_an_answer_is_strict_json_of_bounded_size(server):
    fetcher = Fetcher(server.dial())
    server.behave = lambda _: answer(b'{"subject":"a","subject":"b"}', 200, "application/jrd+json")
    with pytest.raises(EncodingError):
        resolve_handle(fetcher, f"@alice@{HOST}")
    server.behave = lambda _: answer(b'{"x":"' + b"y" * 70_000 + b'"}', 200, "application/jrd+json")
    with pytest.raises(Unreachable) as caught:
        resolve_handle(fetcher, f"@alice@{HOST}")
    assert caught.value.name == "TooLarge"


@pytest.mark.parametrize("document", [
    jrd(LINK),
    jrd(LINK, LINK),
    jrd(LINK, subject=f"acct:Alice@{HOST}"),
    jrd(LINK, {"rel": "http://webfinger.net/rel/profile-page", "type": "text/html", "href": "https://x.example/"}),
    jrd({**LINK, "type": 'application/ld+json; profile="https://www.w3.org/ns/activitystreams"'}),
    jrd(LINK, {"rel": "self", "type": "text/html", "href": "https://x.example/"}, {"rel": "self"}, 5, None),
    jrd(LINK, properties={"x": 1.5}, aliases=[ACTOR]),
])
def test_documents_that_name_the_actor(document):
    assert actor_of_jrd(document, RESOURCE) == ACTOR


@pytest.mark.parametrize("document", [
    [], "x", None, {}, {"links": [LINK]},
    jrd(), jrd(LINK, subject="acct:bob@keys.alpha.example"), jrd(LINK, subject="acct:alice@evil.example"),
    jrd(LINK, subject=f"alice@{HOST}"), jrd(LINK, subject=5), jrd(LINK, subject=None),
    {"subject": RESOURCE, "links": LINK}, {"subject": RESOURCE, "links": None},
    jrd(LINK, {**LINK, "href": f"https://{HOST}/users/bob"}),
    jrd({**LINK, "rel": "Self"}), jrd({**LINK, "type": "application/json"}), jrd({**LINK, "type": "application/ld+json"}),
    jrd({**LINK, "href": "http://keys.alpha.example/users/alice"}), jrd({**LINK, "href": "https://127.0.0.1/a"}),
    jrd({**LINK, "href": "javascript:alert(1)"}), jrd({**LINK, "href": ""}), jrd({**LINK, "href": 5}),
    jrd({**LINK, "href": f"{ACTOR}#main-key"}),
])
def test_documents_that_do_not(document):
    with pytest.raises(Invalid) as caught:
        actor_of_jrd(document, RESOURCE)
    assert caught.value.name == "BadWebFinger"


def test_activity_types():
    for good in (
        "application/activity+json", "Application/Activity+JSON; charset=utf-8",
        'application/ld+json;profile="https://www.w3.org/ns/activitystreams"',
        'application/ld+json; charset=utf-8; profile="https://example.com/x https://www.w3.org/ns/activitystreams"',
    ):
        assert is_activity_type(good), good
    for bad in (
        "", "application/json", "text/html", "application/ld+json", "application/activity+json2",
        'application/ld+json; profile="https://www.w3.org/ns/activitystreamsx"', "image/png; a=application/activity+json",
        'text/plain; profile="https://www.w3.org/ns/activitystreams"',
    ):
        assert not is_activity_type(bad), bad
