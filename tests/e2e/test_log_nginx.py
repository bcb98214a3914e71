"""deploy/nginx.conf before a running log: it serves the published files itself, and leaves answers as they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.config import Settings
from ktlog.demo.pki import pki_in
from ktlog.operator.keys import load_seed
from ktlog.pkd.keys import private_key_from_seed
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tiles import entry_bundle_path, tile_path
from ktlog.wire.actor import Multikey
from ktlog.wire.httpsig import ED25519, ML_DSA_44
from ktlog.wire.httpsig_response import Exchange, verify_response
from tests.machine import need
from tests.nginx_server import nginx
from tests.running_log import INBOX_PATH, LOG_ACTOR, ORIGIN, Answer, RunningLog, actor, running_log

pytestmark = pytest.mark.slow

WAITING = {"rate_limit_exempt": "127.0.0.1/32", "rate_limit_base_ms": 60_000, "trusted_proxies": "127.0.0.1/32"}
"""Whoever comes from another address than the proxy's, and is refused, has to wait for a minute."""
IMMUTABLE = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    """Everything that is sent to it goes through nginx."""
    need("nginx")
    with running_log(tmp_path_factory.mktemp("nginx"), **WAITING) as running:
        upstream = next(found.port for found in running.processes.running() if found.name == "log")
        pki = pki_in(running.directory / "front")
        with nginx(ORIGIN, running.settings.tiles, upstream, pki.certificate_file, pki.key_file) as port:
            running.port = port
            yield running


@pytest.fixture(scope="module")
def enrolled(log: RunningLog) -> Answer:
    """The answer to an enrolment."""
    answer = log.enrol("a01")
    assert answer.status // 100 == 2, answer.body
    log.wait_published(1)
    log.wait("the map", lambda: log.get("/map/checkpoint").status == 200)
    return answer


def check_signed(log: RunningLog, answer: Answer, method: str, target: str, digest: str | None = None) -> None:
    """The answer holds, with both signatures, for this request."""
    trusted = trusted_keys(log.settings, LOG_ACTOR)
    exchange = Exchange(method, f"https://{ORIGIN}{target}", answer.status, answer.headers, answer.body, digest)
    assert set(verify_response(exchange, trusted.__getitem__, int(time.time())).algorithms) == {ED25519, ML_DSA_44}
    assert "content-encoding" not in answer.headers


def trusted_keys(settings: Settings, log_actor: str) -> dict[str, Multikey]:
    ed25519 = Ed25519PrivateKey.from_private_bytes(load_seed(settings.keys, "http-ed25519"))
    mldsa44 = private_key_from_seed(load_seed(settings.keys, "http-mldsa44"))
    return {
        f"{log_actor}#{name}": Multikey(f"{log_actor}#{name}", log_actor, algorithm, key.public_key().public_bytes_raw())
        for name, algorithm, key in (("main-key", ED25519, ed25519), ("pq-key", ML_DSA_44, mldsa44))
    }


def test_published_files_come_from_nginx(log: RunningLog, enrolled: Answer) -> None:
    size = log.published_size()
    map_size = parse_signed_checkpoint(log.get("/map/checkpoint").body)[1].size
    for path in (
        tile_path(0, 0, size), entry_bundle_path(0, size), f"map/{tile_path(0, 0, map_size)}",
        f"map/{entry_bundle_path(0, map_size)}",
    ):
        answer = log.get(f"/{path}", headers={"Accept-Encoding": "gzip, br"})
        assert answer.status == 200
        assert answer.body == (log.settings.tiles / path).read_bytes()
        assert (answer.headers["cache-control"], answer.headers["content-type"]) == (IMMUTABLE, "application/octet-stream")
        # The log itself would have signed it.
        assert answer.headers["server"] == "nginx" and "signature" not in answer.headers
        assert "content-encoding" not in answer.headers


def test_updates_of_the_map_are_kept_for_a_day(log: RunningLog, enrolled: Answer) -> None:
    answer = log.get("/map/updates/001", headers={"Accept-Encoding": "gzip"})
    assert (answer.status, answer.body) == (200, (log.settings.map_tiles / "updates/001").read_bytes())
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "public, max-age=86400, immutable"
    assert answer.headers["server"] == "nginx" and "signature" not in answer.headers


def test_what_is_not_there_is_kept_by_nobody(log: RunningLog, enrolled: Answer) -> None:
    for path in ("/tile/0/000.p/255", "/tile/0/000", "/tile/entries/x001/000", "/map/tile/3/000.p/9", "/map/updates/x001/000"):
        answer = log.get(path)
        assert (answer.status, answer.headers["cache-control"]) == (404, "no-store")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "signature" not in answer.headers


@pytest.mark.parametrize("path", [
    "/tile/0/0000", "/tile/../../ktlog.toml", "/tile/0/..%2f..%2f..%2fktlog.toml", "/tile/0/000.p/0", "/tile/", "/ktlog.toml",
    "/..%2fktlog.toml", "/map/../../log.db", "/tile/0/%2e%2e/%2e%2e/%2e%2e/log.db", "/checkpoint/", "/tiles/checkpoint",
])
def test_nothing_else_of_the_directory_is_reached(log: RunningLog, path: str) -> None:
    answer = log.get(path)
    assert answer.status in (400, 404)
    assert b"origin" not in answer.body and not answer.body.startswith(b"SQLite")


def test_the_checkpoint_moves_for_who_asks_whether_it_did(log: RunningLog, enrolled: Answer) -> None:
    before = log.get("/checkpoint")
    assert (before.headers["cache-control"], before.headers["content-type"]) == ("no-cache", "text/plain; charset=utf-8")
    assert "signature" not in before.headers and "etag" not in before.headers and "last-modified" not in before.headers
    since = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    size = log.published_size()
    assert log.enrol("a02").status // 100 == 2
    log.wait_published(size + 1)
    after = log.get("/checkpoint", headers={"If-Modified-Since": since, "If-None-Match": "*"})
    assert after.status == 200 and after.body != before.body
    assert parse_signed_checkpoint(after.body)[1].size == size + 1


def test_answers_stay_signed_through_it(log: RunningLog, enrolled: Answer) -> None:
    for target in (
        f"/api/actor/{quote(actor('a01'), safe='')}?include-proofs=true", "/api/info", "/api/history/latest",
        f"/map/bundle/{quote(actor('a01'), safe='')}?full=true", "/api/actor/https%3A%2F%2Fnobody.example%2Fusers%2Fx%2F%2Fy",
        "/api/nothing//there", "/erasures",
    ):
        answer = log.get(target, headers={"Accept-Encoding": "gzip"})
        check_signed(log, answer, "GET", target)
    assert log.get(f"/api/actor/{quote(actor('a01'), safe='')}").status == 200


def test_so_does_the_answer_to_a_message(log: RunningLog, enrolled: Answer) -> None:
    body = b'{"not": "an activity"}'
    headers = log.signed_headers(body)
    answer = log.request("POST", INBOX_PATH, headers, body)
    assert answer.status == 400
    digest = next(value for name, value in headers.items() if name.lower() == "content-digest")
    check_signed(log, answer, "POST", INBOX_PATH, digest)


def check_senders(log: RunningLog) -> None:
    """Whose fault it was has to wait, and nobody else: the proxy says who sends, and believes nobody about it."""
    def send(source: str, headers: dict[str, str]) -> int:
        log.source = source
        try:
            return log.request("POST", INBOX_PATH, headers, b"{}").status
        finally:
            log.source = None

    assert [send("127.0.0.2", {}), send("127.0.0.2", {}), send("127.0.0.3", {})] == [400, 429, 400]
    assert send("127.0.0.2", {"X-Forwarded-For": "203.0.113.1"}) == 429
    assert send("127.0.0.4", {"X-Forwarded-For": "127.0.0.2"}) == 400


def test_who_is_refused_has_to_wait_and_no_other(log: RunningLog) -> None:
    check_senders(log)


def test_limits(log: RunningLog) -> None:
    assert log.get("/api/info", headers={"X-Long": "x" * 8_000}).status == 200
    assert log.request("POST", INBOX_PATH, {}, bytes(256 * 1024 + 1)).status == 413
    for host in ("other.example.com", "127.0.0.1"):
        assert log.get("/api/info", host=host).status == 421
