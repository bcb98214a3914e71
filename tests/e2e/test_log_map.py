"""A running log serves its map: bundles that a client can check with nothing but the log's public keys and its own clock."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest

from ktlog.keymap.bundle import NoLeaf, Tombstone, parse_bundle
from ktlog.keymap.check import Mapped, check_bundle
from ktlog.keymap.output import map_origin, parse_config, parse_leaf
from ktlog.operator.create import load_public_keys
from ktlog.operator.link import SequencerLink
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note, parse_vkey
from ktlog.tlog.tiles import TileHashReader, entry_bundle_path
from ktlog.tlog.tiles import parse_bundle as parse_entries
from ktlog.tlog.tree import prove_consistency, verify_consistency
from tests.running_log import ORIGIN, RunningLog, actor

STRANGER = "https://alpha.example/users/never-enrolled"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    running = RunningLog(tmp_path_factory.mktemp("map"), notice_seconds=1)
    try:
        running.wait("the map", lambda: get(running, "/map/checkpoint").status == 200)
        yield running
    finally:
        running.stop()


def get(running: RunningLog, target: str):
    try:
        return running.get(target)
    except OSError:
        return type("Nothing", (), {"status": 0})


def head(running: RunningLog, size: int | None = None):
    """The newest checkpoint of the map's log, or that of *size*: under both keys of the log, and the witness."""
    found = running.get("/map/checkpoint" if size is None else f"/map/checkpoint/{size}")
    assert found.status == 200
    note, checkpoint = parse_signed_checkpoint(found.body)
    assert checkpoint.origin == map_origin(ORIGIN)
    assert len(open_note(note, [parse_vkey(text) for text in load_public_keys(running.settings).map_vkeys])) == 2
    assert sum("witness" in line.name for line in note.signatures) == 2
    return checkpoint


@pytest.mark.parametrize("simple", ["", "?aux=true"])
def test_what_is_answered_beside_the_framework_is_the_views_answer(log, simple):
    target = f"/map/bundle/{quote(STRANGER, safe='')}{simple}"
    found, viewed = log.get(target), log.get(f"{target}{'&' if simple else '?'}full=false")
    assert (found.status, found.body) == (viewed.status, viewed.body)
    assert describing(found) == describing(viewed)


def describing(response) -> dict[str, str]:
    """The headers, but for those that are another answer's in any case."""
    return {
        name: value for name, value in response.headers.items()
        if name not in ("date", "signature", "signature-input", "x-request-id")
    }


def ask(running: RunningLog, actor_id: str, query: str = "") -> tuple[Mapped, bytes]:
    found = running.get(f"/map/bundle/{quote(actor_id, safe='')}{query}")
    assert found.status == 200, found.body
    bundle = parse_bundle(found.body)
    checkpoint = head(running, bundle.output_size)
    config = parse_config(parse_entries(entries(running, bundle.output_size), min(bundle.output_size, 256))[0])
    now = int(time.time())
    return check_bundle(
        bundle, actor_id, config, checkpoint.size, checkpoint.root, now=now, as_of=now, max_age=3600
    ), found.body


def entries(running: RunningLog, size: int) -> bytes:
    found = running.get(f"/map/{entry_bundle_path(0, min(size, 256))}")
    assert found.status == 200
    return found.body


def keys(running: RunningLog, user: str) -> int:
    return len(ask(running, actor(user))[0].keys)


def test_the_three_answers(log):
    assert log.enrol("a01").status == 202 and log.enrol("a02").status == 202
    log.wait("the map of both", lambda: keys(log, "a01") == keys(log, "a02") == 1)
    present, body = ask(log, actor("a01"))
    assert present.keys[0].public_key == log.keys["a01"].public_key and len(body) < 4096
    assert isinstance(ask(log, STRANGER)[0].outcome, NoLeaf)
    link = SequencerLink(log.settings.socket_record)
    log.wait("the notice period", lambda: erased(link, actor("a02")))
    # The moment that the command returns, everybody is told, and proven, that there was an erasure.
    gone, _ = ask(log, actor("a02"))
    assert gone.outcome == Tombstone(2, 1, 0) and gone.leaf.erasures == 1
    assert all(actor("a02").encode() not in path.read_bytes() for path in log.settings.directory.glob("map*"))
    assert log.enrol("a02").status == 202
    log.wait("the new beginning", lambda: keys(log, "a02") == 1)
    assert ask(log, actor("a02"))[0].value.erasures == 1


def erased(link: SequencerLink, actor_id: str) -> bool:
    from ktlog.errors import MessageRejected

    try:
        report = link.shred(actor_id)
    except MessageRejected as refusal:
        assert refusal.code in ("notice_period", "overloaded"), refusal
        return False
    assert report.done and report.scrubbed
    return True


def test_the_output_log_only_grows(log):
    first = head(log)
    assert log.enrol("a03").status == 202
    log.wait("the next leaf", lambda: head(log).size > first.size)
    second = head(log)
    reader = TileHashReader(lambda path: log.get(f"/map/{path}").body, second.size, second.root)
    verify_consistency(first.size, second.size, prove_consistency(first.size, second.size, reader), first.root, second.root)
    leaves = parse_entries(entries(log, second.size), second.size)
    times = [parse_leaf(leaf).time for leaf in leaves[1:]]
    assert times == sorted(times)
    assert log.get(f"/map/checkpoint/{second.size + 1000}").status == 404
    assert log.get("/map/checkpoint/01").status == 400
    assert log.get("/map/tile/entries/999").status == 404


def test_bundles_are_signed_like_every_answer_and_say_what_was_asked_for(log):
    target = f"/map/bundle/{quote(actor('a01'), safe='')}"
    found = log.get(target)
    assert (found.headers["content-type"], found.headers["cache-control"]) == ("application/octet-stream", "no-cache")
    assert "signature" in found.headers
    assert parse_bundle(found.body).aux is None and parse_bundle(found.body).history is None
    full = parse_bundle(log.get(target + "?full=true&aux=true&checkpoint=true").body)
    assert full.aux == () and len(full.history) == 1 and parse_signed_checkpoint(full.checkpoint)[1].size == full.output_size
    assert log.get(target + "?full=yes").status == 400 and log.get(target + "?aux=true&aux=true").status == 400
    places = parse_bundle(log.get(target + "?leaves=true").body)
    assert [item.leaf for item in places.history] == [item.leaf for item in full.history]
    for query in ("?full=true&leaves=true", "?from=1", "?full=true&from=1", "?full=true&from=01", "?leaves=true&from=-1"):
        assert log.get(target + query).status == 400, query
    assert log.get("/map/bundle/nobody").status == 400
    assert log.get("/api/info").json()["map-vkeys"] == list(load_public_keys(log.settings).map_vkeys)
    assert "immutable" in log.get("/map/checkpoint/2").headers["cache-control"]
