"""``ktlog admin page``: who may see it, what it shows, and that nothing of what strangers said is more than text."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ktlog.config import Settings
from ktlog.errors import StoreError, UsageError
from ktlog.operator.create import create_log
from ktlog.operator.refusalbook import RefusalKey, RefusalRow
from ktlog.operator.rules import Note, Rules
from ktlog.web import adminpage
from ktlog.web.adminpage import SHOWN, AdminServer, Seen, judge, look, render
from tests.operator_world import NOW, ORIGIN

STATUS = {
    "sequenced": "12", "integrated": "11", "published": "10", "mapped": "9", "waiting": "2", "oldest-seconds": "0.250",
    "accepted": "8", "batches": "7", "checkpoint-age": "3", "map-age": "200", "backup-age": "7300", "free-bytes": "2048",
    "database-bytes": {"log": "1048576"}, "cosigned-age": {"log/w1.example": "4", "map/w1.example": "5"},
    "rules": {"mode": "open", "blocked": 1, "allowed": 0, "paused": ""}, "version": "0.1",
}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    return create_log(tmp_path_factory.mktemp("page") / "log", ORIGIN, "spec", bytes(32))


@pytest.fixture
def seen(settings: Settings) -> Seen:
    found = look(settings)
    assert found.status is None, "nobody runs it"
    return replace(
        found, status=STATUS, why="", steps=(),
        refusals=(RefusalRow(RefusalKey("web", "instance_blocked", HOSTILE, False), 3, NOW - 9, NOW),),
        rules=Rules(blocked={"spam.example": Note(HOSTILE, NOW)}),
    )


@pytest.fixture
def page(settings: Settings, seen: Seen) -> Iterator[AdminServer]:
    server = AdminServer(settings, "127.0.0.1:0", now=lambda: NOW, look=lambda _settings: seen)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.close()
    thread.join()


def get(page: AdminServer, path: str = "", host: str | None = None, method: str = "GET") -> http.client.HTTPResponse:
    where = urlsplit(page.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.request(method, path or where.path, headers={"Host": host or where.netloc})
    answer = connection.getresponse()
    answer.text = answer.read().decode()
    connection.close()
    return answer


def test_it_shows_how_the_log_does_and_what_strangers_said_is_text(page: AdminServer) -> None:
    answer = get(page)
    assert answer.status == 200
    for words in (
        "All is well", ">12</p>", "<dd>9</dd>", "log/w1.example", "4 seconds", "3 minutes", "2 hours", "2.0 KiB", "1.0 MiB",
        "instance_blocked", "spam.example", "hpke", "ktlog admin pause", "2027-01-15 08:00:00 UTC",
    ):
        assert words in answer.text, words
    assert HOSTILE not in answer.text and answer.text.count("&lt;script&gt;") == 2
    assert "<script" not in answer.text and "<form" not in answer.text and "as it said itself" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert (answer.headers["Cache-Control"], answer.headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    assert answer.headers["Set-Cookie"] is None
    style = get(page, urlsplit(page.url).path + "admin.css")
    assert style.status == 200 and "--paper" in style.text
    head = get(page, method="HEAD")
    assert head.status == 200 and head.text == "" and int(head.headers["Content-Length"]) == len(answer.text.encode())


@pytest.mark.parametrize("path", ["/", "/metrics", "/wrong/", "/../", "/%00/", "/" + "a" * 22 + "/"])
def test_without_the_secret_there_is_nothing(page: AdminServer, path: str) -> None:
    assert get(page, path).status == 404
    assert get(page, urlsplit(page.url).path + path.strip("/")).status in (200 if path == "/" else 404, 404)


@pytest.mark.parametrize("host", ["keys.example.com", "rebound.example:80", "127.0.0.1", "localhost", "127.0.0.1.example"])
def test_under_another_name_there_is_nothing(page: AdminServer, host: str) -> None:
    assert get(page, host=host).status == 421
    assert get(page, host=f"localhost:{urlsplit(page.url).port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent_to_it(page: AdminServer, method: str) -> None:
    assert get(page, method=method).status == 501


def test_each_start_has_another_address_of_this_machine_alone(settings: Settings) -> None:
    servers = [AdminServer(settings, "127.0.0.1:0") for _ in range(2)]
    assert len({urlsplit(server.url).path for server in servers}) == 2
    for server in servers:
        server._server.server_close()
    for listen in ("0.0.0.0:0", "0.0.0.0:0 public", "127.0.0.1:0 public", "192.0.2.1:80", "keys.example.com:80", "80", ""):
        with pytest.raises(UsageError):
            AdminServer(settings, listen)


@pytest.mark.parametrize(("changes", "state", "words"), [
    ({}, "ok", "cosigned"),
    ({"status": None, "why": "SequencerUnreachable: nobody"}, "bad", "SequencerUnreachable: nobody"),
    ({"status": STATUS | {"rules": STATUS["rules"] | {"paused": {"since": "1", "reason": "x"}}}}, "warn", "resume"),
    ({"status": STATUS | {"checkpoint-age": "99999999"}}, "bad", "doctor"),
    ({"status": STATUS | {"map-age": "99999999"}}, "bad", "doctor"),
    ({"steps": ("a verifier",)}, "warn", "a verifier"),
])
def test_its_verdict(settings: Settings, seen: Seen, changes: dict, state: str, words: str) -> None:
    found = replace(seen, **changes)
    assert judge(found, settings.heartbeat_seconds)[0] == state
    assert words in judge(found, settings.heartbeat_seconds)[1] and words in render(settings, found, NOW)


def test_a_log_that_does_not_run_and_one_that_cannot_be_read(settings: Settings, tmp_path: Path) -> None:
    text = render(settings, look(settings), NOW)
    assert "Danger" in text and "SequencerUnreachable" in text and "Missing still" in text and "hpke" in text
    many = replace(look(settings), status=STATUS, refusals=tuple(
        RefusalRow(RefusalKey("web", f"code{at}"), 1, NOW, NOW) for at in range(SHOWN + 3)
    ))
    assert "And 3 more" in render(settings, many, NOW)
    gone = replace(settings, directory=tmp_path)
    with pytest.raises(StoreError):
        look(gone)
    server = AdminServer(gone, "127.0.0.1:0")
    thread = threading.Thread(target=server.serve)
    thread.start()
    answer = get(server)
    server.close()
    thread.join()
    assert answer.status == 503 and "BadPublicKeys" in answer.text and adminpage.HEADERS["Cache-Control"] == "no-store"
