"""The keys of an actor, answered beside the framework: the same bytes as the view's, and the view where it is not simple."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.keymap.bundle import parse_bundle
from ktlog.operator.keys import load_seed
from ktlog.operator.request import Source
from ktlog.operator.shred import plan_for
from ktlog.pkd.keys import private_key_from_seed
from ktlog.web.app import create_app
from ktlog.web.signing import ACCEPT_LIMIT, asked_algorithms
from ktlog.wire.actor import ED25519, ML_DSA_44, Multikey
from ktlog.wire.httpsig_response import ACCEPT_BOTH, BOTH, Exchange, verify_response
from tests.operator_world import ORIGIN
from tests.pkd_samples import ALICE, BOB, quick_argon2  # noqa: F401
from tests.reading_log import fill, reading_log

ONLY = 'a=("@status");alg="ed25519"'


class Site:
    def __init__(self, log):
        self.log = log
        self.app = create_app(log.settings)
        self.context = self.app.extensions["ktlog"]
        self.quick = self.app.wsgi_app._inner._inner
        self.viewed = []
        self.view = self.quick._inner

        def counted(environ, start_response):
            self.viewed.append(environ["RAW_URI"])
            return self.view(environ, start_response)

        self.quick._inner = counted

    def get(self, target, app=None, method="GET", **headers):
        environ = {
            "REQUEST_METHOD": method, "RAW_URI": target, "PATH_INFO": "/", "SCRIPT_NAME": "", "HTTP_HOST": ORIGIN,
            "QUERY_STRING": target.partition("?")[2], "SERVER_NAME": "x", "SERVER_PORT": "80",
            "wsgi.url_scheme": "http", "REMOTE_ADDR": "127.0.0.1", **headers,
        }
        told = []
        body = b"".join((app or self.quick)(environ, lambda status, lines, _error=None: told.append((status, lines))))
        status, lines = told[-1]
        return status, {name.lower(): value for name, value in lines}, body

    def signed_with(self, target, **headers):
        status, found, body = self.get(target, **headers)
        keys = {}
        for name, algorithm in (("main-key", ED25519), ("pq-key", ML_DSA_44)):
            seed = load_seed(self.log.settings.keys, "http-ed25519" if algorithm == ED25519 else "http-mldsa44")
            key = Ed25519PrivateKey.from_private_bytes(seed) if algorithm == ED25519 else private_key_from_seed(seed)
            key_id = f"{self.log.settings.actor_id}#{name}"
            keys[key_id] = Multikey(
                key_id, self.log.settings.actor_id, algorithm, key.public_key().public_bytes_raw()
            )
        exchange = Exchange("GET", f"https://{ORIGIN}{target}", int(status[:3]), found, body)
        return verify_response(exchange, keys.__getitem__, int(time.time()), algorithms=()).algorithms


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with reading_log(tmp_path_factory.mktemp("quick") / "log") as log:
        fill(log.desk)
        log.publish()
        log.publish_map()
        yield Site(log)


def keys_of(actor_id):
    return f"/api/actor/{quote(actor_id, safe='')}/keys"


@pytest.fixture(autouse=True)
def nothing_seen(site):
    site.viewed.clear()


@pytest.mark.parametrize("actor_id", [ALICE, BOB])
def test_the_answer_is_the_views_to_the_byte(site, actor_id):
    status, headers, body = site.get(keys_of(actor_id))
    assert site.viewed == []
    of_view = site.get(keys_of(actor_id), site.view)
    signatures = ("signature", "signature-input")
    assert (status, body) == (of_view[0], of_view[2])
    assert {k: v for k, v in headers.items() if k not in signatures} == {
        k: v for k, v in of_view[1].items() if k not in signatures
    }
    assert site.signed_with(keys_of(actor_id)) == BOTH


@pytest.mark.parametrize(("target", "changes", "status"), [
    (f"{keys_of(ALICE)}?include-proofs=true", {}, "200"), (keys_of(ALICE), {"HTTP_HOST": "evil.example"}, "421"),
    (keys_of(ALICE), {"REQUEST_METHOD": "HEAD"}, "200"), (keys_of(ALICE), {"HTTP_CONTENT_DIGEST": "x"}, "200"),
    (keys_of(ALICE), {"CONTENT_LENGTH": "1"}, "200"), (keys_of("https://example.com/users/nobody"), {}, "404"),
    (keys_of("HTTPS://example.com/users/alice"), {}, "400"), (f"{keys_of(ALICE)}?tree-size=0", {}, "404"),
    (f"{keys_of(ALICE)}#x", {}, "404"), (f"/api/actor/{'a' * 3000}/keys", {}, "400"),
])
def test_whatever_is_not_that_simple_is_the_views(site, target, changes, status):
    found = site.get(target, **changes)
    assert (found[0][:3], site.viewed) == (status, [target])


def test_an_error_is_told_by_the_view(site, monkeypatch):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("ktlog.web.quick.keys_members", broken)
    assert site.get(keys_of(ALICE))[0] == "200 OK"
    assert site.viewed == [keys_of(ALICE)]


# -- which algorithms sign


@pytest.mark.parametrize(("accept", "algorithms"), [
    (None, BOTH), (ONLY, (ED25519,)), ('a=();alg="ml-dsa-44"', (ML_DSA_44,)), ('a=();alg="ml-dsa-44", b=();alg="ed25519"', BOTH),
    ('a=();alg="rsa-v1_5-sha256"', BOTH), ('a=();alg="ed25519", b=();alg="hmac-sha256"', BOTH), ("a=()", BOTH), ("", BOTH),
    ("not a dictionary;;", BOTH), (f"{ONLY};tag=\"{'x' * ACCEPT_LIMIT}\"", BOTH), ('a=();alg=1.5', BOTH),
])
def test_who_names_an_algorithm_gets_it_and_everybody_else_both(accept, algorithms):
    assert asked_algorithms(accept) == algorithms


@pytest.mark.parametrize(("signed", "accept", "algorithms"), [
    ((ED25519,), None, (ED25519,)), (("rsa-v1_5-sha256",), None, (ED25519,)), ((ML_DSA_44,), None, BOTH), (BOTH, None, BOTH),
    ((), None, BOTH), ((ED25519,), ACCEPT_BOTH["Accept-Signature"], BOTH), ((ED25519,), "a=()", BOTH), (BOTH, ONLY, (ED25519,)),
    ((ML_DSA_44,), ONLY, (ED25519,)),
])
def test_who_signs_without_ml_dsa_and_asks_for_nothing_is_answered_so(signed, accept, algorithms):
    """PKD, threat model: ML-DSA-44 where both sides know it. Whose request nobody verified may know it."""
    assert asked_algorithms(accept, Source("192.0.2.1", algorithms=signed)) == algorithms


def test_the_signatures_are_those_that_were_asked_for(site):
    for target in (keys_of(ALICE), f"{keys_of(ALICE)}?include-proofs=true", keys_of("https://example.com/users/nobody")):
        assert site.signed_with(target, HTTP_ACCEPT_SIGNATURE=ONLY) == (ED25519,)
        assert site.signed_with(target) == BOTH
    assert site.signed_with("/checkpoint", HTTP_ACCEPT_SIGNATURE=ONLY) == BOTH, "caches keep it, for everybody"


def test_kept_answers_keep_them_apart(site):
    kept = site.app.wsgi_app._inner
    found = [site.get(keys_of(BOB), kept, **headers)[1]["signature"] for headers in (
        {}, {"HTTP_ACCEPT_SIGNATURE": ONLY}, {}, {"HTTP_ACCEPT_SIGNATURE": ONLY},
    )]
    assert found[0] == found[2] and found[1] == found[3] and len(found[1]) < 200 < len(found[0])


@pytest.mark.parametrize(("query", "here"), [("", True), ("?aux=true", True), ("?aux=false", False), ("?full=true", False)])
def test_a_light_bundle_is_answered_here_and_no_other(site, monkeypatch, query, here):
    bundles, viewed = site.view, []
    view = bundles._inner
    monkeypatch.setattr(bundles, "_inner", lambda environ, start: viewed.append(1) or view(environ, start))
    target = f"/map/bundle/{quote(ALICE, safe='')}{query}"
    status, headers, body = site.get(target, bundles)
    assert (status, bool(viewed)) == ("200 OK", not here)
    assert parse_bundle(body).output_size == 2 and headers["cache-control"] == "no-cache"
    assert site.signed_with(target) == BOTH
    of_view = site.get(target, view)
    assert (of_view[2], of_view[1].keys()) == (body, headers.keys())


ENCODED = quote(ALICE, safe="")
ODD_TARGETS = [
    form % name for form in ("/api/actor/%s/keys", "/map/bundle/%s", "/map/bundle/%s?aux=true") for name in (
        ENCODED, ENCODED.lower(), quote(ENCODED, safe=""), quote(ALICE, safe=":"), ALICE, f"{ENCODED}/", f"{ENCODED}%00",
        f"{ENCODED}+", ENCODED.replace("a", "%61"), quote(f"{ALICE}/", safe=""), quote(f"{ALICE}{'a' * 1990}", safe=""),
        quote(f"{ALICE}{'a' * 2048}", safe=""), quote("https://example.com/users/nobody", safe=""), "", ".", "..", "%2e%2e",
        "%", "%zz", "%ff", "~",
    )
] + [f"/map/bundle/{ENCODED}{more}" for more in (
    "?", "?aux=true&", "?aux=true&aux=true", "?aux=TRUE", "?aux", "?%61ux=true", "?aux=true?aux=true", "#a", "\n", "?aux=true\n",
)] + [f"/{keys_of(ALICE)}", f"https://{ORIGIN}{keys_of(ALICE)}", f"{keys_of(ALICE)}/"]
ODD_REQUESTS = [
    {"REQUEST_METHOD": "HEAD"}, {"REQUEST_METHOD": "OPTIONS"}, {"REQUEST_METHOD": "POST"}, {"REQUEST_METHOD": "get"},
    {"HTTP_RANGE": "bytes=0-3"}, {"HTTP_IF_NONE_MATCH": "*"}, {"HTTP_ACCEPT": "text/html"}, {"HTTP_ACCEPT_ENCODING": "gzip"},
    {"HTTP_IF_MODIFIED_SINCE": "Fri, 01 Jan 2100 00:00:00 GMT"}, {"HTTP_ORIGIN": "https://evil.example"},
    {"HTTP_HOST": f"{ORIGIN}:443"}, {"HTTP_HOST": ORIGIN.upper()}, {"HTTP_HOST": ""}, {"CONTENT_LENGTH": "0"},
    {"HTTP_TRANSFER_ENCODING": "chunked"}, {"HTTP_CONTENT_DIGEST": "x"}, {"HTTP_ACCEPT_SIGNATURE": ONLY},
    {"HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE"},
]


@pytest.mark.parametrize(("targets", "requests"), [
    (ODD_TARGETS, [{}]), ([keys_of(ALICE), f"/map/bundle/{ENCODED}", f"/map/bundle/{ENCODED}?aux=true"], ODD_REQUESTS),
], ids=["targets", "requests"])
def test_however_it_is_asked_the_answer_is_the_views_line_for_line(site, targets, requests):
    view = site.view._inner
    for target in targets:
        for changes in requests:
            asked = target, changes
            status, headers, body = site.get(target, **changes)
            of_view = site.get(target, view, **changes)
            assert (asked, status, body, list(headers)) == (asked, of_view[0], of_view[2], list(of_view[1]))
            assert (asked, unsigned(headers)) == (asked, unsigned(of_view[1]))


def unsigned(headers):
    """ML-DSA-44 is randomised: signatures differ, and what they cover is in Signature-Input."""
    return {name: value for name, value in headers.items() if name not in ("signature", "signature-input")}


def test_an_erased_actor_is_gone_here_too(tmp_path):
    with reading_log(tmp_path / "log") as log:
        fill(log.desk)
        log.publish()
        site = Site(log)
        assert site.get(keys_of(ALICE))[0] == "200 OK"
        store = log.desk.store
        store.erase(plan_for(store, store.actor(ALICE)), store.state())
        assert site.get(keys_of(ALICE))[0][:3] == "404"
