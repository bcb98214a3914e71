"""/api/totp/... and /api/history/cosign/..., from the request's bytes to the answer's, over a real store."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from click.testing import CliRunner

from ktlog.client import totp as client
from ktlog.commands import serve
from ktlog.config import Settings
from ktlog.errors import UsageError
from ktlog.pkd.keys import encode_root
from ktlog.pkd.totp_requests import Operation, build_totp_request
from ktlog.web.app import create_app
from tests.operator_world import NOW, ORIGIN, Clock
from tests.pkd_samples import ALICE, bytes_of, quick_argon2  # noqa: F401
from tests.totp_site import OTHER, SECRET, WITNESS, Site, make_log

ERROR = "fedi-e2ee:v1/api/error"


@pytest.fixture
def made(tmp_path, monkeypatch):
    clock = Clock()
    return make_log(tmp_path / "log", clock, monkeypatch), clock


@pytest.fixture
def site(made, monkeypatch):
    found = Site(*made, monkeypatch)
    yield found
    found.close()


def refusal(response) -> tuple[int, str, str]:
    body = response.get_json()
    assert body["!pkd-context"] == ERROR
    return response.status_code, body["error"], body["code"]


def test_enroll_rotate_disenroll(site):
    for name, call in (
        ("enroll", site.enroll), ("rotate", site.rotate),
        ("disenroll", lambda: site.disenroll(client.password(OTHER, site.clock()))),
    ):
        response = call()
        assert response.status_code == 200
        assert response.content_type == "application/json"
        assert response.get_json() == {
            "!pkd-context": f"fedi-e2ee:v1/api/totp/{name}", "success": True, "time": str(site.clock()),
        }
        site.clock.now += 30
    assert site.context.store.totp("example.com") is None


def test_statuses_of_the_specification(site):
    assert refusal(site.rotate()) == (400, "invalid_request", "totp_not_enrolled")
    site.clock.now += 3600
    assert refusal(site.disenroll()) == (409, "invalid_request", "totp_absent")
    site.clock.now += 3600
    site.enroll()
    assert refusal(site.enroll()) == (409, "invalid_request", "totp_exists")
    site.clock.now += 3600
    assert refusal(site.disenroll("00000000")) == (403, "unauthorized", "bad_otp")
    site.clock.now += 3 * 3600
    assert refusal(site.rotate(old="00000000")) == (403, "unauthorized", "bad_otp")


def test_a_secret_that_does_not_fit_is_not_acceptable(site):
    body = client.enroll(ALICE, site.key_id, site.signer, SECRET, site.hpke, now=NOW - 90)
    assert refusal(site.post("/api/totp/enroll", body)) == (406, "invalid_request", "bad_new_otp")
    site.clock.now += 3600
    other = client.enroll(ALICE, site.key_id, site.signer, SECRET[:31] + b"\x00", site.hpke, now=site.clock())
    fields = other["enrollment"] | {"totp-secret": "hpke:AAAA"}
    body = build_totp_request(Operation.ENROLL, fields, site.signer.private, site.clock())
    assert refusal(site.post("/api/totp/enroll", body)) == (406, "invalid_request", "bad_totp_secret")


def test_unsigned_requests(site):
    response = site.enroll(signed=False)
    assert refusal(response) == (401, "unauthorized", "unauthorized")
    assert "Accept-Signature" in response.headers


def test_guessing_is_slowed_down_at_once_and_from_everywhere(site):
    """One wrong guess: 12.8 s for the whole instance, whatever address the next one comes from."""
    site.enroll()
    site.clock.now += 30
    assert site.disenroll("00000000", address="192.0.2.1").status_code == 403
    waiting = site.disenroll(address="198.51.100.7")
    assert refusal(waiting) == (429, "rate_limited", "rate_limited")
    assert int(waiting.headers["Retry-After"]) >= 12
    site.clock.now += 14
    assert site.disenroll("00000000", address="203.0.113.9").status_code == 403
    site.clock.now += 60
    assert site.disenroll(address="192.0.2.200").status_code == 429
    site.clock.now += 24 * 3600
    assert site.disenroll(address="192.0.2.200").status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/api/totp/enroll", "/api/totp/rotate", "/api/totp/disenroll"])
def test_nothing_to_read_there(site, method, path):
    response = site.app.test_client().open(
        path, method=method, headers={"Host": ORIGIN}, environ_overrides={"RAW_URI": path}
    )
    assert response.status_code == 405


# --- cosignatures


def test_a_witness_cosigns_a_root(site):
    root = site.desk.root
    response = site.cosign(root)
    assert response.status_code == 200
    assert response.get_json() == {
        "!pkd-context": "fedi-e2ee:v1/api/history/cosign", "success": True, "time": str(NOW),
    }
    assert site.cosign(root).get_json() == response.get_json()
    (found,) = site.context.store.cosignatures(2)
    assert (found.witness, found.merkle_root) == (WITNESS, root)


def test_the_root_s_colon_may_be_escaped(site):
    assert site.cosign(site.desk.root, path=quote(site.desk.root, safe="")).status_code == 200


def test_refused_cosignatures(site):
    root, unknown = site.desk.root, encode_root(bytes_of("nowhere"))
    assert refusal(site.cosign(unknown)) == (404, "not_found", "unknown_root")
    site.clock.now += 3600
    assert refusal(site.cosign(root, witness="https://w2.example")) == (403, "unauthorized", "unknown_witness")
    site.clock.now += 3600
    assert refusal(site.cosign(root, signed_root=unknown)) == (400, "invalid_signature", "bad_cosignature")
    site.clock.now += 3600
    assert refusal(site.cosign(root, path="%ff")) == (400, "invalid_request", "bad_root")
    assert site.context.store.cosignatures(2) == ()


@pytest.mark.parametrize("setting", ["nonsense", "age", "age-v1 ssh"])
def test_types_of_auxiliary_data_that_are_not_registered(made, setting):
    settings, _clock = made
    with pytest.raises(UsageError, match="UnknownAuxType"):
        create_app(Settings(settings.directory, ORIGIN, "spec", aux_types=setting))


@pytest.mark.parametrize(("line", "name"), [
    ('aux_types = "age"', "UnknownAuxType"), ("", "BadCosigners"), ('aux_types = ""', "BadCosigners"),
])
def test_serve_does_not_start_with_what_it_cannot_honour(made, line, name):
    settings, _clock = made
    path = settings.directory / "ktlog.toml"
    path.write_text(f'origin = "{ORIGIN}"\ndialect = "spec"\n{line}\n')
    settings.cosigners.write_text("nonsense\n")
    result = CliRunner().invoke(serve.command, ["--dir", str(settings.directory)])
    assert isinstance(result.exception, UsageError)
    assert (result.exception.name, result.exception.exit_code) == (name, 2)
