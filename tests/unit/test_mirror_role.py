"""A mirror's answers, and what it has on its disk by then; over its WSGI application, without a network."""

from __future__ import annotations

import gzip
import json
import threading
import zlib

import pytest
from click.testing import CliRunner

import witness.mirror
from ktlog.errors import KtlogError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note, parse_note
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from ktlog.wire.fetch import Response
from tests.mirror_site import Site, check_copy, check_cosigned, entry, format_line, request_body
from tests.witness_log import Log
from witness.cli import main
from witness.mirror import SAVED
from witness.mirrorwire import MIRROR_INFO, Upload, format_upload, parse_info
from witness.store import hash_origin
from witness.witness import Answer


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    site.mirror.close()


def test_a_session(site: Site) -> None:
    assert site.add(0, 5).status == 422  # never a checkpoint yet
    reply = site.submit(0, 300)
    assert (reply.status, reply.body) == (200, b"")  # the mirror signs nothing here
    assert site.get("checkpoint").status_code == 404
    assert site.submit(0, 300).status == 409 and site.submit(0, 300).body == b"300\n"

    reply = site.add(0, 300, packages=1)
    assert (reply.status, reply.content_type) == (202, MIRROR_INFO)
    info = parse_info(reply.body)
    assert (info.size, info.next_entry) == (300, 256)
    assert site.get("tile/entries/000").status_code == 404  # nothing is shown before it is cosigned
    reply = site.add(256, 300, ticket=info.ticket)
    assert reply.status == 200
    check_cosigned(site, reply.body, 300)

    assert site.submit(300, 700).status == 200
    assert site.get("checkpoint").headers["Cache-Control"] == "no-cache"
    assert site.add(300, 700).status == 200  # from the middle of a bundle
    check_copy(site.fetch, site.log, 700)
    tile = site.get("tile/0/001")
    assert tile.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert tile.headers["Content-Type"] == "application/octet-stream"
    assert site.get("tile/0/001.p/44").status_code == 404  # the full one stands for it
    assert site.get("tile/0/002.p/188").status_code == 200


def test_an_empty_log_is_mirrored(site: Site) -> None:
    assert site.submit(0, 0).status == 200
    reply = site.add(0, 0)
    assert reply.status == 200
    assert parse_signed_checkpoint(site.fetch("checkpoint"))[1].size == 0


@pytest.mark.slow
def test_a_tile_of_the_next_level_is_made_when_it_is_full(site: Site) -> None:
    size = TILE_WIDTH * TILE_WIDTH + 600
    assert len(site.upload(size, packages=64)) == 2
    leaves = leaf_reader([hash_leaf(entry(site.log, index)) for index in range(size)])
    for path in ("tile/1/000", "tile/1/001.p/2", "tile/2/000.p/1"):
        assert site.get(path).status_code == 200, path
    assert site.fetch("tile/2/000.p/1") == root_hash(65536, leaves)
    site.restart()  # reads the edge again, from the files alone


def test_who_uploads_needs_no_more_than_the_answers(site: Site) -> None:
    """Also from a mirror that got further, and one that is to hold more than was uploaded for."""
    assert site.submit(0, 600).status == 200
    assert site.add(0, 600, packages=1).status == 202
    check_cosigned(site, b"".join(format_line(line) for line in site.upload(1000, packages=1)), 1000)
    check_cosigned(site, b"".join(format_line(line) for line in site.upload(1000)), 1000)  # nothing left to do
    with pytest.raises(KtlogError) as caught:
        site.upload(900)
    assert caught.value.name == "MirrorAhead"


def test_unknown_logs_and_ranges(site: Site) -> None:
    assert site.send(request_body(Log("example.com/other", seed=9), 0, 5)).status == 404
    assert site.post("add-checkpoint", Log("example.com/other", seed=9).submission(0, 5)).status == 404
    assert site.submit(0, 600).status == 200
    for start, end in ((0, 599), (0, 601), (1, 600)):
        reply = site.add(start, end)
        assert (reply.status, reply.content_type) == (409, MIRROR_INFO)
        info = parse_info(reply.body)
        assert (info.size, info.next_entry) == (600, 0)
    assert site.send(format_upload(Upload(site.log.origin, 0, 600))).status == 400  # no package
    assert site.send(b"\x00").status == 400
    assert site.state().next_entry == 0


def test_an_upload_may_be_for_an_earlier_checkpoint(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    ticket = parse_info(site.add(0, 1).body).ticket
    for size in range(300, 320):
        assert site.submit(size, size + 1).status == 200
    assert site.add(0, 310).status == 200  # one of the last sixteen
    assert site.add(0, 300).status == 409  # behind the mirror's own by now
    site.restart()
    assert site.submit(320, 400).status == 200
    assert site.add(256, 301).status == 409
    assert site.add(310, 400).status == 200
    check_copy(site.fetch, site.log, 400)
    assert ticket


def test_a_ticket_stands_for_a_checkpoint_that_is_forgotten(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    ticket = parse_info(site.add(1, 300).body).ticket
    for size in range(300, 320):
        assert site.submit(size, size + 1).status == 200
    reply = site.add(0, 300)
    assert reply.status == 409 and parse_info(reply.body).size == 320
    assert site.add(0, 300, ticket=bytes(len(ticket))).status == 409
    assert site.add(0, 300, ticket=ticket).status == 200
    check_copy(site.fetch, site.log, 300)
    note = parse_note(site.fetch("checkpoint"))
    assert len(open_note(note, site.log.vkeys)) == 2  # the log's signatures came with the ticket


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_upload_that_is_cut_short_goes_on(site: Site, encoding: str) -> None:
    assert site.submit(0, 700).status == 200
    pack = gzip.compress if encoding == "gzip" else bytes
    whole = pack(request_body(site.log, 0, 700))
    headers = {"Content-Encoding": encoding}
    assert site.send(whole[: len(whole) // 10], **headers).status == 400  # not one package
    assert site.state().next_entry == 0
    reply = site.send(whole[: len(whole) - 20], **headers)
    assert (reply.status, parse_info(reply.body).next_entry) == (202, 512)
    site.restart()
    assert site.state().next_entry == 512
    assert site.send(pack(request_body(site.log, 512, 700)), **headers).status == 200
    check_copy(site.fetch, site.log, 700)


def test_a_wrong_package_ends_an_upload_and_what_was_right_stays(site: Site) -> None:
    assert site.submit(0, 700).status == 200
    body = request_body(site.log, 0, 700)
    at = body.index(b"entry 400")
    reply = site.send(body[:at] + b"entry 4OO" + body[at + 9 :])
    assert (reply.status, site.state().next_entry) == (422, 256)
    assert b"BadSubtreeProof: entries 256 to 512" in reply.body
    forged = Log(prefix=b"forgery")
    assert site.send(request_body(forged, 256, 700)).status == 422
    assert site.send(body[:-32] + bytes(32)).status == 422  # the last proof
    assert site.get("checkpoint").status_code == 404
    assert site.state().next_entry == 512
    assert site.add(512, 700).status == 200
    check_copy(site.fetch, site.log, 700)


def test_entries_that_are_here_may_come_again(site: Site) -> None:
    assert site.submit(0, 700).status == 200
    assert site.add(0, 700, packages=2).status == 202
    reply = site.add(100, 700, packages=1)
    assert (reply.status, parse_info(reply.body).next_entry) == (202, 512)
    assert site.add(100, 700).status == 200
    assert site.add(600, 700).status == 200
    assert site.add(700, 700).status == 200  # nothing: but the end of an upload whose answer was lost
    check_copy(site.fetch, site.log, 700)


def test_bodies_that_are_no_uploads(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    body = request_body(site.log, 0, 300)
    assert site.post("add-entries", body, {"Content-Type": "text/plain"}).status == 415
    assert site.send(body, **{"Content-Encoding": "br"}).status == 415
    assert site.send(body, **{"Content-Encoding": "gzip"}).status == 400  # it is not
    answer = site.client.post("/add-entries", data=body, headers={"Content-Type": "application/octet-stream"})
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (200, "gzip")


def test_a_gzip_bomb_is_not_inflated(site: Site, monkeypatch) -> None:
    """Neither one of zeros, which are no packages, nor one whose first entries go on for ever."""
    assert site.submit(0, 300).status == 200
    inflated = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, **options) -> None:
            self.inner = real(**options)

        def __getattr__(self, name: str):
            return getattr(self.inner, name)

        def decompress(self, data: bytes, most: int) -> bytes:
            found = self.inner.decompress(data, most)
            inflated.append(len(found))
            return found

    monkeypatch.setattr("witness.mirrorweb.zlib.decompressobj", Counting)
    head = format_upload(Upload(site.log.origin, 0, 300))
    bomb = gzip.compress(head + bytes(40_000_000), 1)
    assert site.send(bomb, **{"Content-Encoding": "gzip"}).status == 422
    assert sum(inflated) < 1_000_000
    inflated.clear()
    bomb = gzip.compress(head + b"\xff" * 40_000_000, 1)
    assert site.send(bomb, **{"Content-Encoding": "gzip"}).status == 400
    assert sum(inflated) < 256 * 65537 + 1_000_000  # one package
    assert site.state().next_entry == 0


def test_one_request_is_not_read_for_ever(site: Site, monkeypatch) -> None:
    monkeypatch.setattr(witness.mirror, "MAX_PACKAGES", 2)
    assert site.submit(0, 1000).status == 200
    reply = site.add(0, 1000)
    assert (reply.status, parse_info(reply.body).next_entry) == (202, 512)
    monkeypatch.setattr(witness.mirror, "MAX_BYTES", 1000)
    reply = site.add(512, 1000)
    assert (reply.status, parse_info(reply.body).next_entry) == (202, 768)


def test_a_log_has_no_more_room_than_it_was_given(site: Site) -> None:
    site.mirror.store.add_log(site.log.origin, 3000, 1)
    assert site.submit(0, 1000).status == 200
    reply = site.add(0, 1000)
    assert reply.status == 202
    held = parse_info(reply.body).next_entry
    assert 0 < held < 1000
    assert site.add(held, 1000).status == 507
    assert site.get("checkpoint").status_code == 404
    site.mirror.store.add_log(site.log.origin, 10**6, 1)
    assert site.add(held, 1000).status == 200
    stored = sum(path.stat().st_size for path in site.paths.logs.rglob("*") if path.is_file())
    assert site.state().stored_bytes == stored


def test_it_counts_partial_tiles_and_takes_them_away(site: Site) -> None:
    for size in (10, 20, 300):
        old = 0 if site.state().pending is None else site.state().pending.checkpoint.size
        assert site.submit(old, size).status == 200
        assert site.add(old, size).status == 200
    stored = sum(path.stat().st_size for path in site.paths.logs.rglob("*") if path.is_file())
    assert site.state().stored_bytes == stored
    assert not list(site.paths.logs.rglob("000.p/20"))


def test_the_same_checkpoint_is_signed_again_only_after_a_while(site: Site) -> None:
    site.upload(5)
    first = site.add(5, 5).body
    assert site.add(5, 5).body == first
    site.clock.now += 61
    again = site.add(5, 5).body
    assert again != first
    check_cosigned(site, again, 5)
    site.clock.now -= 61
    assert site.add(5, 5).body == again  # fresh enough, by that clock
    assert site.submit(5, 6).status == 200
    assert site.add(5, 6).status == 503  # our own last cosignature is of a later time
    site.clock.now += 100
    assert site.add(5, 6).status == 200


def test_two_uploaders_at_once(tmp_path) -> None:
    """One stops between its files and its record; the other goes all the way, further; the first is told so."""
    stalled, go_on = threading.Event(), threading.Event()
    first = threading.Lock()

    def reach(name: str) -> None:
        if name == SAVED and first.acquire(blocking=False):
            stalled.set()
            assert go_on.wait(20)

    site = Site(tmp_path, reach)
    assert site.submit(0, 600).status == 200
    replies = []
    slow = threading.Thread(target=lambda: replies.append(site.add(0, 600)))
    slow.start()
    assert stalled.wait(20)
    assert site.submit(600, 900).status == 200
    fast = threading.Thread(target=lambda: replies.append(site.add(0, 900)))
    fast.start()
    go_on.set()
    slow.join(20)
    fast.join(20)
    assert sorted(reply.status for reply in replies) in ([200, 200], [200, 409])
    assert parse_signed_checkpoint(site.fetch("checkpoint"))[1].size == 900
    check_copy(site.fetch, site.log, 900)
    site.restart()
    site.mirror.close()


def test_an_upload_for_less_than_is_held_gets_its_own_partial_tiles(site: Site) -> None:
    assert site.submit(0, 300).status == 200
    assert site.submit(300, 400).status == 200
    assert site.add(0, 400, packages=1).status == 202
    # The entries get there, and the tree of 400 is not completed.
    commit, site.mirror._commit = site.mirror._commit, lambda *_: Answer(503, b"")
    assert site.add(256, 400).status == 503
    site.mirror._commit = commit
    assert site.state().next_entry == 400
    assert site.add(256, 300).status == 200
    check_copy(site.fetch, site.log, 300)
    assert site.add(400, 400).status == 200
    check_copy(site.fetch, site.log, 400)


def test_many_uploads_at_once_are_refused(site: Site) -> None:
    for _ in range(witness.mirror.UPLOADS_AT_ONCE):
        held = site.mirror.uploads.begin(lambda count: b"", lambda: None)
        assert held is not None
    assert site.submit(0, 5).status == 200
    assert site.add(0, 5).status == 503
    site.mirror.uploads.end(held)
    assert site.add(0, 5).status == 200


class Loopback:
    """A fetcher between sites in this process, by host name."""

    def __init__(self, **sites: Site) -> None:
        self.sites = sites

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def _at(self, url: str):
        host, _, path = url.removeprefix("https://").partition("/")
        return self.sites[host].client, f"/{path}", url

    def _response(self, url: str, answer) -> Response:
        return Response(answer.status_code, dict(answer.headers), answer.data, url)

    def get(self, url: str, *, max_bytes=None) -> Response:
        client, path, _ = self._at(url)
        return self._response(url, client.get(path))

    def post(self, url: str, body: bytes, headers) -> Response:
        client, path, _ = self._at(url)
        return self._response(url, client.post(path, data=body, headers=headers))


def test_a_mirror_is_fed_from_another(tmp_path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source, target = Site(tmp_path / "a"), Site(tmp_path / "b")
    source.upload(300)
    fetcher = Loopback(source=source, target=target)
    monkeypatch.setattr("witness.mirrorcli.Fetcher.from_environment", lambda **_: fetcher)
    arguments = ["push-mirror", f"https://source/{hash_origin(source.log.origin)}/", "https://target/", "--json"]
    for size in (300, 700):
        source.upload(size)
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert (found["origin"], found["size"]) == (source.log.origin, size)
        check_cosigned(target, found["cosignatures"].encode(), size)
    source.mirror.close()
    target.mirror.close()
