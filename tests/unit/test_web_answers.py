"""Kept answers: given again only to the same request, while nothing was committed, and for a minute."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

from ktlog.operator.shred import plan_for
from ktlog.pkd.messages import AddKey
from ktlog.web.answers import KEEP_SECONDS, TARGET_LIMIT, KeptAnswers
from ktlog.web.app import create_app
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, public, quick_argon2  # noqa: F401
from tests.reading_log import fill, reading_log

TARGET = "/api/actor/x/keys"


@dataclass
class Site:
    """An application that counts what it is asked, behind the cache."""

    version: object = 1
    time: int = NOW
    status: str = "200 OK"
    size: int = 10
    signature: str = ""
    limit: int = 100_000
    asked: list[str] = field(default_factory=list)
    closed: int = 0
    kept: KeptAnswers = field(init=False)

    def __post_init__(self) -> None:
        self.kept = KeptAnswers(
            self.application, lambda: self.version, frozenset([ORIGIN]), lambda: self.time, self.limit
        )

    def application(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.asked.append(environ["RAW_URI"])
        start_response(self.status, [("Signature", f"sig{len(self.asked)}{self.signature}")])
        return _Parts(self, [b"a" * self.size, b"b"])

    def get(self, target: str = TARGET, **changes: str) -> tuple[str, str, bytes]:
        environ = {"REQUEST_METHOD": "GET", "RAW_URI": target, "HTTP_HOST": ORIGIN, **changes}
        told: list[Any] = []
        body = b"".join(self.kept(environ, lambda *words: told.append(words)))
        status, headers = told[0]
        return status, dict(headers)["Signature"], body


class _Parts(list[bytes]):
    def __init__(self, site: Site, parts: list[bytes]) -> None:
        super().__init__(parts)
        self._site = site

    def close(self) -> None:
        self._site.closed += 1


def test_the_same_question_gets_the_same_signed_answer() -> None:
    site = Site()
    assert site.get() == site.get() == ("200 OK", "sig1", b"a" * 10 + b"b")
    assert (site.asked, site.closed) == ([TARGET], 1)
    assert site.get("/map/bundle/x?aux=true")[1] == "sig2"


def test_nothing_outlives_a_commit() -> None:
    site = Site()
    site.get()
    site.version = 2
    assert site.get()[1] == "sig2"
    # Not even in memory: an erased actor's text must not lie there.
    assert counted(site) == site.kept._bytes and len(site.kept._kept) == 1
    site.version = 1
    assert site.get()[1] == "sig3"


def test_an_answer_made_while_something_was_committed_is_not_kept_as_the_newer_one() -> None:
    site = Site()
    inner = site.application

    def slow(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = inner(environ, start_response)
        if len(site.asked) == 1:
            site.version = 2
            site.get("/api/actor/y")
        return answer

    site.kept._inner = slow
    site.get()
    assert site.get()[1] == "sig3"


def test_nothing_is_kept_when_nobody_knows_whether_something_was_committed() -> None:
    site = Site(version=None)
    assert (site.get()[1], site.get()[1]) == ("sig1", "sig2")


@pytest.mark.parametrize("passed", [KEEP_SECONDS, KEEP_SECONDS + 1, -1])
def test_it_ends_after_a_minute_and_when_the_clock_goes_back(passed: int) -> None:
    site = Site()
    site.get()
    site.time += passed
    assert site.get()[1] == "sig2"


def test_it_lasts_for_almost_a_minute() -> None:
    site = Site()
    site.get()
    site.time += KEEP_SECONDS - 1
    assert site.get()[1] == "sig1"


@pytest.mark.parametrize(("target", "changes"), [
    (TARGET, {"REQUEST_METHOD": "POST"}),
    (TARGET, {"REQUEST_METHOD": "HEAD"}),
    (TARGET, {"HTTP_HOST": "other.example"}),
    (TARGET, {"HTTP_CONTENT_DIGEST": "sha-256=:x:"}),
    (TARGET, {"CONTENT_LENGTH": "5"}),
    (TARGET, {"HTTP_TRANSFER_ENCODING": "chunked"}),
    ("/api/info", {}),
    ("/checkpoint", {}),
    ("//api/actor/x", {}),
    ("https://" + ORIGIN + TARGET, {}),
    ("/api/actor/" + "x" * TARGET_LIMIT, {}),
])
def test_other_requests_go_through(target: str, changes: dict[str, str]) -> None:
    site = Site()
    site.get()
    assert (site.get(target, **changes)[1], site.get(target, **changes)[1]) == ("sig2", "sig3")
    assert site.get()[1] == "sig1"


@pytest.mark.parametrize("status", ["404 NOT FOUND", "503 SERVICE UNAVAILABLE", "304 NOT MODIFIED", "500 X"])
def test_refusals_are_not_kept(status: str) -> None:
    site = Site(status=status)
    assert (site.get()[1], site.get()[1]) == ("sig1", "sig2")


def counted(site: Site) -> int:
    return sum(answer.weight for answer in site.kept._kept.values())


def test_memory_is_bounded_and_who_was_asked_for_longest_ago_goes_first() -> None:
    site = Site(size=8_600, limit=100_000)  # of almost 10,000 bytes each, with what they are kept under
    for number in range(10):
        site.get(f"{TARGET}{number}")
    site.get(f"{TARGET}0")
    site.get(f"{TARGET}10")
    assert site.kept._bytes == counted(site) <= 100_000 and len(site.kept._kept) == 10
    asked = len(site.asked)
    site.get(f"{TARGET}0")
    assert len(site.asked) == asked
    site.get(f"{TARGET}1")
    assert len(site.asked) == asked + 1


@pytest.mark.parametrize("long", ["target", "header"])
def test_long_targets_and_headers_count_too(long: str) -> None:
    """A short answer of 135 bytes under a long target took 8,700 bytes of memory, of which 135 were counted."""
    site = Site(limit=100_000)
    if long == "header":
        site.signature = "s" * 1_900
    padding = "a" * 1_900 if long == "target" else ""
    for number in range(200):
        site.get(f"{TARGET}?x={number}{padding}")
    assert site.kept._bytes == counted(site) <= 100_000
    assert len(site.kept._kept) <= 100_000 // 1_900


def test_one_large_answer_does_not_push_out_all_others() -> None:
    site = Site(size=13_000)
    assert (site.get()[1], site.get()[1]) == ("sig1", "sig2")


def test_many_threads_at_once() -> None:
    site = Site(limit=10_000)
    wrong: list[object] = []

    def ask() -> None:
        for number in range(200):
            if number % 50 == 0:
                site.version = object()
            status, _, body = site.get(f"{TARGET}{number % 40}")
            if (status, body) != ("200 OK", b"a" * 10 + b"b"):
                wrong.append((status, body))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert site.kept._bytes == counted(site) <= 10_000


def test_a_real_log_gives_kept_answers_until_something_is_published_or_erased(tmp_path) -> None:
    with reading_log(tmp_path / "log") as log:
        fill(log.desk)
        log.publish()
        log.publish_map()
        client = create_app(log.settings).test_client()

        def ask(target: str):
            return client.get(target, headers={"Host": ORIGIN})

        keys, bundle = (
            f"{before}/{quote(ALICE, safe='')}{after}" for before, after in (("/api/actor", "/keys"), ("/map/bundle", ""))
        )
        for target in (keys, bundle):
            first, again = ask(target), ask(target)
            assert (first.status_code, first.data) == (200, again.data)
            assert first.headers["Signature"] == again.headers["Signature"]
        old = ask(keys)
        log.desk.send(AddKey(ALICE, public("f"), NOW + 20), "c")
        pending = ask(bundle)
        assert len(pending.data) > len(again.data)  # what waits for the next map is in it at once
        log.publish()
        assert ask(keys).get_json()["tree-size"] == old.get_json()["tree-size"] + 1
        log.publish_map()
        assert ask(bundle).data != pending.data
        store = log.desk.store
        store.erase(plan_for(store, store.actor(ALICE)), store.state())
        assert ask(keys).status_code == 404
