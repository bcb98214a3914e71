"""POST /api/burndown and POST /api/revoke, from the request's bytes to the answer's, over a real store."""

from __future__ import annotations

import json

import pytest

from ktlog.operator.request import Request
from ktlog.pkd.keys import decode_root
from ktlog.pkd.messages import BurnDown, Fireproof
from ktlog.pkd.totp import totp_code, window_at
from ktlog.tlog.encoding import decode_base64url
from ktlog.web.context import Context
from ktlog.wire.fetch import Fetcher
from tests.admission_world import PEER, flipped, revocation, token_text
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, public, quick_argon2  # noqa: F401
from tests.submission_site import Internet, Site, make_settings

BURN = BurnDown(ALICE, BOB, NOW)
SECRET = b"\x0b" * 32


@pytest.fixture
def make(tmp_path, monkeypatch):
    internet = Internet()
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: internet))
    monkeypatch.setattr(Context, "now", lambda self: NOW)
    sites = []

    def start(**values) -> Site:
        sites.append(Site(make_settings(tmp_path / "log", **values), internet))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


@pytest.fixture
def site(make):
    return make(burndown_enabled=True, directories=PEER)


def refusal(response) -> tuple[int, str, str]:
    answer = response.get_json()
    assert answer["!pkd-context"] == "fedi-e2ee:v1/api/error"
    assert answer["message"]
    return response.status_code, answer["error"], answer["code"]


# --- burndown


def test_a_burn_down_is_answered_as_the_specification_says_with_a_receipt_beside(site):
    response = site.burn(BURN)
    answer = response.get_json()
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert "Signature" in response.headers
    assert {name: answer[name] for name in ("!pkd-context", "time", "status", "leaf-index", "tree-size")} == {
        "!pkd-context": "fedi-e2ee:v1/api/burndown", "time": str(NOW), "status": True, "leaf-index": 2, "tree-size": 3,
    }
    state = site.desk.store.state()
    assert decode_root(answer["merkle-root"]) == state.root
    assert decode_base64url(answer["merkle-leaf"]) == site.desk.store.records(2, 3)[0].entry
    assert site.context.store.actor(ALICE).keys == ()


def test_a_burn_down_that_is_sent_again_is_told_so(site):
    wire = site.inbox.wire(BURN, "c")
    first = site.post(site.inbox.burn_request(wire, BOB)).get_json()
    again = site.post(site.inbox.burn_request(wire, BOB, created=NOW + 1)).get_json()
    assert again == first | {"already-processed": True}
    assert site.desk.size == 3


@pytest.mark.parametrize(("send", "expected"), [
    (lambda site: site.burn(Fireproof(BOB, NOW)), (400, "invalid_request", "not_a_burndown")),
    (lambda site: site.burn(BurnDown(BOB, ALICE, NOW)), (403, "unauthorized", "actor_mismatch")),
    (lambda site: site.burn(BURN, signer="a"), (400, "invalid_signature", "bad_signature")),
    (lambda site: site.post(site.inbox.signed(b"{", BOB, f"https://{ORIGIN}/api/burndown")),
     (400, "invalid_request", "bad_json")),
    (lambda site: site.post(site.inbox.signed(b"[]", BOB, f"https://{ORIGIN}/api/burndown")),
     (400, "invalid_request", "bad_request")),
])
def test_a_burn_down_that_is_refused_adds_no_leaf(site, send, expected):
    response = send(site)
    assert refusal(response) == expected
    assert "Retry-After" in response.headers
    assert site.desk.size == 2


def test_a_burn_down_of_somebody_fireproof(site):
    site.desk.send(Fireproof(ALICE, NOW), "a")
    assert refusal(site.burn(BURN)) == (403, "fireproof", "actor_is_fireproof")


def test_a_burn_down_without_a_signature(site):
    request = site.inbox.revoke_request(json.loads(site.inbox.plain(site.inbox.wire(BURN, "c"), BOB)))
    unsigned = Request("POST", f"https://{ORIGIN}/api/burndown", request.headers, request.body, request.source)
    response = site.post(unsigned)
    assert refusal(response) == (401, "unauthorized", "unauthorized")
    assert "Accept-Signature" in response.headers


def test_a_log_that_takes_no_burn_down_says_so_in_both_places(make):
    site = make()
    assert refusal(site.burn(BURN)) == (403, "unauthorized", "burndown_disabled")
    info = site.app.test_client().get("/api/info", headers={"Host": ORIGIN})
    assert info.get_json()["burndown-enabled"] is False


def test_a_log_that_takes_burn_down_says_so(site):
    info = site.app.test_client().get("/api/info", headers={"Host": ORIGIN})
    assert info.get_json()["burndown-enabled"] is True


def test_a_guessed_password_costs_more_than_other_mistakes(make):
    site = make(burndown_enabled=True, rate_limit_base_ms=1_000)
    site.desk.store.set_totp("example.com", SECRET, 0, None)
    response = site.burn(BURN, otp="00000000")
    assert refusal(response) == (403, "unauthorized", "bad_otp")
    assert int(response.headers["Retry-After"]) >= 60
    assert site.burn(BURN, otp=totp_code(SECRET, window_at(NOW))).status_code == 429
    assert site.desk.size == 2


def test_a_password_that_is_missing_and_one_that_is_right(make):
    site = make(burndown_enabled=True, rate_limit_exempt="192.0.2.0/24")
    site.desk.store.set_totp("example.com", SECRET, 0, None)
    assert refusal(site.burn(BURN)) == (403, "unauthorized", "otp_required")
    assert site.burn(BURN, otp=totp_code(SECRET, window_at(NOW))).status_code == 200


# --- revoke


def test_a_valid_token_is_answered_with_a_time_and_nothing_else(site):
    response = site.revoke(revocation(token_text("a")))
    assert (response.status_code, response.get_json()) == (
        200, {"!pkd-context": "fedi-e2ee:v1/api/revoke", "time": str(NOW)},
    )
    assert site.context.store.actor(ALICE).keys == ()
    # Another token of the same key: revoked it is.
    assert site.revoke(revocation(token_text("a"))).status_code == 200
    assert site.desk.size == 3


def test_a_token_that_is_known_costs_who_makes_us_fetch_for_it(make):
    """It revokes nothing and is no mistake; sent by ever new actors, it would be look-ups for nothing."""
    site = make(rate_limit_base_ms=60_000)
    body = revocation(token_text("a"))
    new = [f"https://evil.example/users/{number}" for number in range(3)]
    first = site.post(site.inbox.revoke_request(body, new[0]))
    assert (first.status_code, "Retry-After" in first.headers) == (200, False), "it was of use"
    for _ in range(3):
        assert "Retry-After" not in site.revoke(body).headers, "unsigned, nobody is fetched"
    again = site.post(site.inbox.revoke_request(body, new[1]))
    assert (again.status_code, again.headers["Retry-After"]) == (200, "60")
    assert site.post(site.inbox.revoke_request(body, new[2])).status_code == 429
    assert site.post(site.inbox.revoke_request(body, new[2]), address="198.51.100.7").status_code == 200
    assert site.desk.size == 3


@pytest.mark.parametrize("token", ["x", flipped(token_text("a"), 5), flipped(token_text("a"), 4000), token_text("b")])
def test_a_token_of_no_use_is_answered_with_nothing_adds_no_leaf_and_counts(site, token):
    """No token, not a token of this version, not signed by its key, of a key that nobody has."""
    response = site.revoke(revocation(token))
    assert (response.status_code, response.data, "Content-Type" in response.headers) == (204, b"", False)
    assert int(response.headers["Retry-After"]) >= 1
    assert site.desk.size == 2
    assert site.revoke(revocation(token_text("a"))).status_code == 429
    assert site.revoke(revocation(token_text("a")), address="198.51.100.7").status_code == 200
    assert site.context.store.actor(BOB).keys[0].public_key == public("c")


@pytest.mark.parametrize(("body", "code"), [
    ({}, "wrong_context"), ([], "bad_request"), (revocation("x") | {"!pkd-context": "x"}, "wrong_context"),
    (revocation("x") | {"current-time": 5}, "bad_request"), (revocation("x") | {"current-time": "+5"}, "bad_time"),
    (revocation("x") | {"revocation-token": None}, "bad_request"), (revocation("x") | {"extra": "x"}, "bad_request"),
    (revocation("x") | {"action": "RevokeKey"}, "unknown_action"),
])
def test_what_is_no_revocation_at_all_gets_an_error(site, body, code):
    assert refusal(site.revoke(body)) == (400, "invalid_request", code)
    assert site.desk.size == 2


def test_a_revocation_with_a_signature_that_does_not_hold(site):
    good = site.inbox.revoke_request(revocation(token_text("a")), BOB)
    spoilt = Request("POST", good.target_url, good.headers, good.body + b"\n", good.source)
    assert refusal(site.post(spoilt)) == (401, "unauthorized", "unauthorized")
    assert site.desk.size == 2


@pytest.mark.parametrize("path", ["/api/burndown", "/api/revoke"])
def test_other_methods(site, path):
    assert site.app.test_client().get(path, headers={"Host": ORIGIN}).status_code == 405
