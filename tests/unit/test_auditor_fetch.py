"""Reading a log: what is asked for, how often, and what every odd answer is called."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from auditor_world import Answer

from auditor.fetch import LogReader
from ktlog.client.publicfiles import MAX_BUNDLE_BYTES, PublicRecord, parse_public_record
from ktlog.errors import Invalid, KtlogError, Unreachable
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tiles import format_bundle

URL = "https://keys.example.com/log"


class Script:
    """Answers each request with the next item for its path; the last one stays."""

    def __init__(self, **items: list) -> None:
        self.items = {name.replace("__", "/").replace("_p_", ".p/"): list(found) for name, found in items.items()}
        self.requests: list[tuple[str, int | None]] = []

    def get(self, url: str, *, max_bytes: int | None = None) -> Answer:
        assert url.startswith(URL + "/")
        path = url.removeprefix(URL + "/")
        self.requests.append((path, max_bytes))
        found = self.items.get(path, [Answer(404, b"")])
        item = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(item, Exception):
            raise item
        return item if isinstance(item, Answer) else Answer(200, item)

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


def reader(script: Script) -> tuple[LogReader, list[float]]:
    pauses: list[float] = []
    return LogReader(script, URL, attempts=3, pause=pauses.append), pauses


def failure(call) -> KtlogError:
    with pytest.raises(KtlogError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("passing", [
    Unreachable("Timeout"), Unreachable("Refused"), Answer(503, b""), Answer(500, b""), Answer(429, b""),
])
def test_a_passing_failure_is_tried_again(passing) -> None:
    log, pauses = reader(Script(checkpoint=[passing, passing, b"note"]))
    assert log.checkpoint() == b"note"
    assert pauses == sorted(pauses)
    assert len(pauses) == 2
    log, pauses = reader(Script(checkpoint=[passing]))
    assert isinstance(failure(log.checkpoint), Unreachable)
    assert len(pauses) == 2


@pytest.mark.parametrize("name", ["BadAddress", "BadRedirect"])
def test_a_lasting_failure_is_not(name: str) -> None:
    script = Script(checkpoint=[Unreachable(name)])
    log, pauses = reader(script)
    assert failure(log.checkpoint).name == name
    assert pauses == []


@pytest.mark.parametrize("status", [204, 301, 400, 401, 403, 418])
def test_another_status_teaches_nothing(status: int) -> None:
    log, _ = reader(Script(checkpoint=[Answer(status, b"")]))
    error = failure(log.checkpoint)
    assert (type(error), error.name) == (Unreachable, "BadStatus")
    assert str(status) in error.message
    assert error.hint


def test_a_partial_bundle_that_is_gone_comes_from_the_full_one() -> None:
    entries = [b"%d" % index for index in range(256)]
    script = Script(tile__entries__000=[format_bundle(entries)])
    log, _ = reader(script)
    assert log.entries(0, 7) == entries[:7]
    assert script.paths() == ["tile/entries/000.p/7", "tile/entries/000"]


def test_a_partial_tile_and_records_likewise() -> None:
    script = Script(tile__0__000=[bytes(range(256)) * 32], records__000=[b"{}\n" * 256])
    log, _ = reader(script)
    assert log.tile(0, 0, 2) == (bytes(range(256)) * 32)[:64]
    assert log.records(0, 3) == [b"{}"] * 3


def test_a_full_bundle_has_no_other_form() -> None:
    script = Script()
    log, _ = reader(script)
    assert failure(lambda: log.entries(0, 256)).name == "MissingEntries"
    assert script.paths() == ["tile/entries/000"]


def test_what_neither_form_has_is_missing() -> None:
    script = Script()
    log, _ = reader(script)
    for call, name in (
        (lambda: log.entries(1234, 5), "MissingEntries"), (lambda: log.records(1234, 5), "MissingRecords"),
        (lambda: log.tile(1, 1234, 5), "MissingTile"), (log.leaf_keys, "MissingLeafKeys"),
        (lambda: log.actor_keys("https://a.example/u?x=1&y#", 9), "MissingAnswer"),
    ):
        error = failure(call)
        assert (type(error), error.name) == (Invalid, name)
    assert script.paths() == [
        "tile/entries/x001/234.p/5", "tile/entries/x001/234", "records/x001/234.p/5", "records/x001/234",
        "tile/1/x001/234.p/5", "tile/1/x001/234", "leaf-keys",
        "api/actor/https%3A%2F%2Fa.example%2Fu%3Fx%3D1%26y%23/keys?include-proofs=true&tree-size=9",
    ]


def test_a_time_out_of_the_partial_bundle_is_not_a_missing_one() -> None:
    script = Script(tile__entries__000_p_7=[Unreachable("Timeout")])
    log, _ = reader(script)
    assert failure(lambda: log.entries(0, 7)).name == "Timeout"
    assert "tile/entries/000" not in script.paths()


def test_every_request_is_bounded_and_the_bound_is_checked_here_too() -> None:
    script = Script(tile__entries__000_p_7=[bytes(MAX_BUNDLE_BYTES + 1)])
    log, _ = reader(script)
    error = failure(lambda: log.entries(0, 7))
    assert (type(error), error.name) == (Invalid, "TooLarge")
    assert all(limit is not None and limit <= 96 << 20 for _, limit in script.requests)


def test_pages_come_in_order_and_never_all_at_once() -> None:
    class Log:
        def __init__(self) -> None:
            self.read = 0

        def get(self, url: str, *, max_bytes: int | None = None) -> Answer:
            if "/tile/entries/" in url:
                self.read += 1
                return Answer(200, format_bundle([b"e"] * 256))
            return Answer(200, b"{}\n" * 256)

    log = Log()
    with ThreadPoolExecutor(2) as pool:
        pages = LogReader(log, URL).pages(256 * 1000, pool, ahead=3)
        assert [next(pages).first for _ in range(3)] == [0, 256, 512]
        pages.close()
    assert log.read <= 3 + 4


def test_a_page_holds_the_error_of_what_failed() -> None:
    script = Script(tile__entries__000=[format_bundle([b"e"] * 256)])
    with ThreadPoolExecutor(1) as pool:
        page, last = LogReader(script, URL).pages(257, pool)
    assert page.entries == [b"e"] * 256
    assert isinstance(page.records, Invalid)
    assert isinstance(last.entries, Invalid)
    assert (last.number, last.first, last.width) == (1, 256, 1)


def test_a_record_is_read() -> None:
    salt = encode_base64(bytes(32))
    line = b'{"leaf-index":3,"message":"m","plain":{"a":null,"b":"t"},"salts":{"b":"%s"},"withheld":true}' % salt.encode()
    record = parse_public_record(line, 3)
    assert (record, record.withheld) == (PublicRecord(3, b"m", {"a": None, "b": "t"}, {"b": bytes(32)}), True)
