"""Published files in an object store that misbehaves: what is lost, what is doubtful, and what is never changed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from ktlog.errors import Conflict, KtlogError, StoreError, Unreachable, UsageError
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.place import Place, parse_place
from ktlog.store.s3 import PAUSES, UPLOADS, S3Tiles
from ktlog.store.s3bucket import Bucket, session
from ktlog.store.s3probe import bare, probe, quoted
from tests.object_stores import CREDENTIALS, credentials
from tests.objects_server import BUCKET, Habits, Kept, ObjectsServer
from tests.tile_samples import make_note

TILE, DATA = "tile/0/000.p/1", b"\x01" * 32
ATTEMPTS = len(PAUSES)
PATIENCE = 0.25
"""Seconds until a request that is held counts as unanswered."""


@pytest.fixture(autouse=True, scope="module")
def _credentials() -> Iterator[None]:
    with credentials():
        yield


@pytest.fixture
def server() -> Iterator[ObjectsServer]:
    with ObjectsServer() as running:
        yield running


def place(server: ObjectsServer) -> Place:
    return parse_place(f"s3://{BUCKET}/log", server.endpoint, "us-east-1")


def bucket(server: ObjectsServer, read_seconds: float = 5.0) -> Bucket:
    return Bucket(place(server), read_seconds=read_seconds)


def tiles(server: ObjectsServer, **options: float) -> S3Tiles:
    return S3Tiles(bucket(server, **options), pause=lambda _seconds: None)


def refused(call: Callable[[], object]) -> KtlogError:
    """The error of *call*, which shows no credential, not even to a debugger."""
    with pytest.raises(KtlogError) as caught:
        call()
    shown = "".join(traceback.format_exception(caught.value)) + caught.value.diagnostics()
    for secret in (CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"], "Signature="):
        assert secret not in shown
    return caught.value


def kept(server: ObjectsServer, name: str) -> bytes | None:
    found = server.kept.get(f"log/{name}")
    return None if found is None else found.data


# The probe


@pytest.mark.parametrize(
    ("habits", "spell"),
    [
        (Habits(), quoted), (Habits(quoted=False), quoted), (Habits(compares="quoted"), quoted),
        (Habits(compares="bare"), bare), (Habits(compares="bare", quoted=False), bare), (Habits(refusal=304), quoted),
    ],
    ids=["any", "unquoted", "only quoted", "only bare", "bare and unquoted", "304"],
)
def test_a_fit_store_is_taken_and_nothing_is_left_in_it(habits: Habits, spell: Callable[[str], str]) -> None:
    with ObjectsServer(habits) as server:
        assert probe(bucket(server)) is spell
        assert server.kept == {}
        store = S3Tiles(bucket(server), spell=spell)
        for note in (make_note(5), make_note(6)):
            store.publish_checkpoint(note)
        store.write_tiles({TILE: DATA})
        store.write_tiles({TILE: DATA})
        assert refused(lambda: store.write_tiles({TILE: bytes(32)})).name == "ImmutableChanged"
        assert (kept(server, "checkpoint"), kept(server, TILE)) == (make_note(6), DATA)


@pytest.mark.parametrize(
    ("habits", "what"),
    [
        (Habits(ignores=frozenset({"If-None-Match"})), "does not enforce If-None-Match"),
        (Habits(ignores=frozenset({"If-Match"})), "does not enforce If-Match"),
        (Habits(not_implemented=frozenset({"If-None-Match"})), "refused If-None-Match"),
        (Habits(not_implemented=frozenset({"If-Match"})), "refuses If-Match with the very ETag"),
        (Habits(hasty=6), "does not enforce If-None-Match between writers at the same moment"),
        (Habits(stale=True), "not read-after-write"),
        (Habits(no_etag=True), "gives no ETag"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unfit_store_is_refused_before_anything_is_written(habits: Habits, what: str) -> None:
    with ObjectsServer(habits) as server:
        error = refused(lambda: probe(bucket(server)))
        assert (type(error), error.name) == (StoreError, "UnfitObjectStore") and what in error.message
        assert "docs/objects.md" in error.hint
        assert all(key.startswith("log/probe/") for method, key, _ in server.requests if method == "PUT")
        assert server.kept == {}


def test_a_200_that_names_nothing_is_no_promise() -> None:
    """Of a proxy that says 200 to everything, or of a store that lost its ETags since it was probed."""
    with ObjectsServer() as server:
        store = tiles(server)
        server.puts.extend(["200"] * ATTEMPTS)
        assert refused(lambda: store.write_tiles({TILE: DATA})).name == AMBIGUOUS
        assert kept(server, TILE) is None
        server.puts.append("200")
        store.write_tiles({TILE: DATA})
        assert kept(server, TILE) == DATA


@pytest.mark.parametrize("etag", ["", '""', "*", '"*"', 'W/""', '" "'])
def test_an_etag_that_is_no_condition_is_not_sent(
    server: ObjectsServer, etag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiles(server)
    store.publish_checkpoint(make_note(5))
    real = Bucket.get
    monkeypatch.setattr(Bucket, "get", lambda self, key, limit: replace(real(self, key, limit), etag=etag))
    before = len(server.requests)
    assert refused(lambda: store.publish_checkpoint(make_note(6))).name == "BadObjectStore"
    assert not any(method == "PUT" for method, _key, _headers in server.requests[before:])


def test_an_answer_with_a_time_that_is_none_is_no_answer(server: ObjectsServer) -> None:
    store = tiles(server)
    store.publish_checkpoint(make_note(5))
    server.kept["log/checkpoint"] = Kept(make_note(5), {"Last-Modified": "the day before"})
    assert isinstance(refused(store.checkpoint), Unreachable)


def test_a_store_that_hides_what_is_absent_is_refused() -> None:
    """Without the right to list, "not there" cannot be told from "forbidden"."""
    with ObjectsServer(Habits(absent=403)) as server:
        error = refused(lambda: probe(bucket(server)))
        assert error.name == "ObjectsForbidden" and "s3:ListBucket" in error.hint


def test_a_store_that_does_not_answer_is_not_judged(server: ObjectsServer) -> None:
    server.puts.extend(["503"] * 9)
    assert isinstance(refused(lambda: probe(bucket(server))), Unreachable)


# Tiles: each write failed both ways


@pytest.mark.parametrize("faults", [
    ["503"], ["500"], ["drop"], ["409"], ["409", "409", "409"], ["503", "drop", "500"], ["503 stored"], ["500 stored"],
    ["drop stored"], ["drop", "drop stored"],
], ids=" ".join)
def test_a_write_that_fails_once_or_twice_is_made_good(server: ObjectsServer, faults: list[str]) -> None:
    server.puts.extend(faults)
    tiles(server).write_tiles({TILE: DATA})
    assert kept(server, TILE) == DATA
    # What was stored and not answered is found, not written again.
    assert server.asked("PUT", f"log/{TILE}") == len(faults) + (not faults[-1].endswith("stored"))


@pytest.mark.parametrize(
    ("puts", "gets", "name"),
    [
        (["503"] * ATTEMPTS, [], AMBIGUOUS),
        (["drop"] * ATTEMPTS, ["drop"] * ATTEMPTS, AMBIGUOUS),
        (["drop stored"] * ATTEMPTS, ["503"] * ATTEMPTS, AMBIGUOUS),
        (["503", "403"], [], AMBIGUOUS),
        (["503"], ["403"], AMBIGUOUS),
        (["409"] * ATTEMPTS, [], "ObjectsUnreachable"),
        (["503 SlowDown"] * ATTEMPTS, [], "ObjectsUnreachable"),
        (["412"] * ATTEMPTS, ["503"] * ATTEMPTS, "ObjectsUnreachable"),
        (["412"] * ATTEMPTS, [], "BadObjectStore"),
        (["403"], [], "ObjectsForbidden"),
        (["401"], [], "ObjectsForbidden"),
        (["400"], [], "ObjectsRefused"),
        (["501"], [], "ObjectsRefused"),
        (["404 NoSuchBucket"], [], "NoSuchBucket"),
    ],
)
def test_what_is_not_known_to_be_stored_is_said(
    server: ObjectsServer, puts: list[str], gets: list[str], name: str
) -> None:
    server.puts.extend(puts)
    server.gets.extend(gets)
    error = refused(lambda: tiles(server).write_tiles({TILE: DATA}))
    assert error.name == name
    assert isinstance(error, Unreachable if name == "ObjectsUnreachable" else StoreError)
    assert not server.puts, "no attempt may follow a refusal, and none be left out"
    server.gets.clear()
    tiles(server).write_tiles({TILE: DATA})
    assert kept(server, TILE) == DATA


def test_nobody_there_is_no_doubt() -> None:
    with ObjectsServer() as server:
        store = tiles(server)
    for call in (
        lambda: store.write_tiles({TILE: DATA}), lambda: store.publish_checkpoint(make_note(1)), store.checkpoint,
        lambda: store.read(TILE), lambda: store.remove_partials("tile/0/000"),
    ):
        assert isinstance(refused(call), Unreachable)


def test_of_several_errors_the_gravest_is_raised(server: ObjectsServer) -> None:
    store = tiles(server)
    store.write_tiles({"tile/1/000.p/1": b"\x02" * 32})
    server.puts.extend(["503"] * 40)
    error = refused(lambda: store.write_tiles({TILE: DATA, "tile/1/000.p/1": bytes(32), "tile/2/000.p/1": DATA}))
    assert error.name == "ImmutableChanged"
    assert kept(server, "tile/1/000.p/1") == b"\x02" * 32


def test_a_batch_is_stored_several_at_a_time_and_whole(server: ObjectsServer) -> None:
    files = {f"tile/0/{number:03d}.p/1": bytes([number]) * 32 for number in range(4 * UPLOADS)}
    server.puts.extend(["", "503", "drop stored"] * UPLOADS)
    tiles(server).write_tiles(files)
    assert {path: kept(server, path) for path in files} == files


def test_objects_say_what_they_are_and_how_long_they_keep(server: ObjectsServer) -> None:
    store = tiles(server)
    store.write_tiles({TILE: DATA})
    store.publish_checkpoint(make_note(1))
    assert server.kept[f"log/{TILE}"].headers == {
        "Content-Type": "application/octet-stream", "Cache-Control": "public, max-age=31536000, immutable",
    }
    assert server.kept["log/checkpoint"].headers == {
        "Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache",
    }


# A write that ends after it was given up (requirement R10)


def test_the_late_write_of_a_tile_changes_nothing(server: ObjectsServer) -> None:
    server.puts.append("hold")
    tiles(server, read_seconds=PATIENCE).write_tiles({TILE: DATA})
    assert kept(server, TILE) == DATA
    server.release.set()
    assert server.late.wait(30) and server.late_status == 412
    assert kept(server, TILE) == DATA


def test_the_late_write_of_an_old_checkpoint_does_not_replace_a_newer_one(server: ObjectsServer) -> None:
    store = tiles(server, read_seconds=PATIENCE)
    store.publish_checkpoint(make_note(5))
    server.puts.append("hold")
    store.publish_checkpoint(make_note(6))
    store.publish_checkpoint(make_note(7))
    server.release.set()
    assert server.late.wait(30) and server.late_status == 412
    assert store.checkpoint() == make_note(7)


def test_nor_after_a_restart(server: ObjectsServer) -> None:
    store = tiles(server, read_seconds=PATIENCE)
    store.publish_checkpoint(make_note(5))
    server.puts.extend(["hold", *["503"] * (ATTEMPTS - 1)])
    assert refused(lambda: store.publish_checkpoint(make_note(6))).name == AMBIGUOUS
    again = tiles(server)
    assert again.checkpoint() == make_note(5)
    again.publish_checkpoint(make_note(7))
    server.release.set()
    assert server.late.wait(30) and server.late_status == 412
    assert again.checkpoint() == make_note(7)


# The checkpoint


@pytest.mark.parametrize("old", [None, 5], ids=["the first", "the next"])
@pytest.mark.parametrize(
    "faults", [["503"], ["drop"], ["409"], ["412"], ["503", "500", "drop"], ["503 stored"], ["drop stored"]], ids=" ".join
)
def test_a_checkpoint_gets_through(server: ObjectsServer, faults: list[str], old: int | None) -> None:
    store = tiles(server)
    if old is not None:
        store.publish_checkpoint(make_note(old))
    before = server.asked("PUT", "log/checkpoint")
    server.puts.extend(faults)
    store.publish_checkpoint(make_note(6))
    assert store.checkpoint() == make_note(6)
    assert server.asked("PUT", "log/checkpoint") - before == len(faults) + (not faults[-1].endswith("stored"))


@pytest.mark.parametrize(
    ("puts", "gets", "kind", "name"),
    [
        (["503"] * ATTEMPTS, [], StoreError, AMBIGUOUS),
        (["drop"], ["", *["drop"] * ATTEMPTS], StoreError, AMBIGUOUS),
        (["drop stored"], ["", *["503"] * ATTEMPTS], StoreError, AMBIGUOUS),
        (["drop"], ["", "403"], StoreError, AMBIGUOUS),
        (["503", "403"], [], StoreError, AMBIGUOUS),
        (["403"], [], StoreError, "ObjectsForbidden"),
        (["412"] * ATTEMPTS, [], Conflict, "CheckpointMoved"),
        (["409"] * ATTEMPTS, [], Unreachable, "ObjectsUnreachable"),
        (["503 SlowDown"] * ATTEMPTS, [], Unreachable, "ObjectsUnreachable"),
        ([], ["503"] * (ATTEMPTS + 1), Unreachable, "ObjectsUnreachable"),
    ],
)
def test_a_checkpoint_that_is_not_known_to_be_stored(
    server: ObjectsServer, puts: list[str], gets: list[str], kind: type, name: str
) -> None:
    store = tiles(server)
    store.publish_checkpoint(make_note(5))
    server.puts.extend(puts)
    server.gets.extend(gets)
    error = refused(lambda: store.publish_checkpoint(make_note(6)))
    assert (type(error), error.name) == (kind, name)
    assert not server.puts and not server.gets
    assert kept(server, "checkpoint") == make_note(6 if puts == ["drop stored"] else 5)
    tiles(server).publish_checkpoint(make_note(7))
    assert kept(server, "checkpoint") == make_note(7)


class Overtaken(Bucket):
    """Between what is read and what is written, others publish *notes*."""

    def __init__(self, server: ObjectsServer, notes: Sequence[bytes]) -> None:
        super().__init__(place(server))
        self.server = server
        self.notes = list(notes)

    def get(self, key: str, limit: int):
        found = super().get(key, limit)
        if self.notes:
            self.server.kept["log/checkpoint"] = Kept(self.notes.pop(0), {})
        return found


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ([make_note(8)], "CheckpointWithdrawn"), ([make_note(6, bytes(32))], "CheckpointChanged"),
        ([make_note(5, cosigned=number) for number in range(9)], "CheckpointMoved"),
    ],
)
def test_whoever_is_overtaken_looks_again(server: ObjectsServer, others: list[bytes], name: str) -> None:
    store = S3Tiles(Overtaken(server, others), pause=lambda _seconds: None)
    error = refused(lambda: store.publish_checkpoint(make_note(6)))
    assert (type(error), error.name) == (Conflict, name)
    assert kept(server, "checkpoint") in others
    store = S3Tiles(Overtaken(server, [make_note(8), make_note(8, cosigned=1)]), pause=lambda _seconds: None)
    store.publish_checkpoint(make_note(9))
    assert kept(server, "checkpoint") == make_note(9)


def test_a_damaged_checkpoint_is_not_papered_over(server: ObjectsServer) -> None:
    server.kept["log/checkpoint"] = Kept(b"damaged", {})
    assert refused(lambda: tiles(server).publish_checkpoint(make_note(5))).name == "Corrupt"
    assert kept(server, "checkpoint") == b"damaged"


# Reading


def test_a_read_that_fails_once_is_repeated(server: ObjectsServer) -> None:
    store = tiles(server)
    store.write_tiles({TILE: DATA})
    for fault in ("503", "drop", "cut"):
        server.gets.append(fault)
        assert store.read(TILE) == DATA
        server.gets.extend([fault] * 2)
        assert isinstance(refused(lambda: store.read(TILE)), Unreachable)


def test_what_is_too_long_for_a_tile_is_not_read(server: ObjectsServer) -> None:
    server.kept[f"log/{TILE}"] = Kept(bytes(33), {})
    assert refused(lambda: tiles(server).read(TILE)).name == "Corrupt"


def test_a_reader_asks_for_the_checkpoint_now_and_then(server: ObjectsServer) -> None:
    now = [100.0]
    reader = S3Tiles(bucket(server), fresh_seconds=0.5, ticks=lambda: now[0])
    assert reader.checkpoint() is None
    tiles(server).publish_checkpoint(make_note(5))
    now[0] += 0.4
    asked = server.asked("GET", "log/checkpoint")
    assert reader.checkpoint() is None and server.asked("GET", "log/checkpoint") == asked
    now[0] += 0.2
    assert reader.checkpoint() == make_note(5)


def test_a_reader_that_failed_keeps_nothing_of_it(server: ObjectsServer) -> None:
    tiles(server).publish_checkpoint(make_note(5))
    reader = S3Tiles(bucket(server), fresh_seconds=60, pause=lambda _seconds: None)
    server.gets.extend(["503"] * 2)
    assert isinstance(refused(reader.checkpoint), Unreachable)
    assert reader.checkpoint() == make_note(5)


# Settings


def test_without_credentials_it_says_where_they_go(server: ObjectsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    session.cache_clear()
    error = refused(lambda: tiles(server).read(TILE))
    session.cache_clear()
    assert (error.name, "AWS_ACCESS_KEY_ID" in error.hint) == ("NoCredentials", True)
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("s3://keys.example.com",), "s3://keys.example.com/"), (("s3://abc/log/one",), "s3://abc/log/one/"),
        (("s3://abc", "https://s3.example.com"), "s3://abc/"), (("s3://abc", "http://127.0.0.1:9000"), "s3://abc/"),
        (("s3://abc", "http://[::1]:9000", "eu-central-1"), "s3://abc/"),
    ],
)
def test_places(arguments: tuple[str, ...], shown: str) -> None:
    found = parse_place(*arguments)
    assert str(found) == shown
    assert str(found.below("map")) == f"{shown}map/"


@pytest.mark.parametrize(
    "arguments",
    [
        ("",), ("abc",), ("s3://",), ("s3://ab",), ("s3://abc/",), ("s3://abc/../x",), ("s3://abc//x",), ("s3://Abc",),
        ("s3://key:hidden@abc",), ("s3://abc/x?y",), ("https://abc/x",), ("s3://abc/.x",),
        ("s3://abc", "s3.example.com"), ("s3://abc", "ftp://s3.example.com"), ("s3://abc", "https://k:hidden@s3.example.com"),
        ("s3://abc", "https://s3.example.com/x"), ("s3://abc", "https://s3.example.com?hidden"),
        ("s3://abc", "http://s3.example.com"), ("s3://abc", "http://10.0.0.1:9000"), ("s3://abc", "https://"),
        ("s3://abc", "https://[::1"), ("s3://abc", "https://h:x"), ("s3://abc", "", "Hidden Region"),
    ],
)
def test_what_is_no_place(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_place(*arguments)
    assert caught.value.name == "BadSetting" and "hidden" not in caught.value.diagnostics().lower()
