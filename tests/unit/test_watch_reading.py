"""What a watch says of new entries, of the map's promises, and how it survives being cut off."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.commands.report import command as report
from auditor.convict import conviction
from auditor.evidence.judge import Known
from auditor.fetch import LogReader
from auditor.follow import Follower
from auditor.history import AuditHistory
from auditor.report import Coverage, Report
from auditor.state import AuditDirectory
from ktlog.client.verify import Log
from ktlog.errors import StoreError, Unreachable, UsageError
from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, format_leaf, hash_config
from ktlog.pkd.keys import encode_public_key, pkd_root
from ktlog.pkd.messages import CheckpointMessage
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.note import COSIGNATURE_MLDSA44, sign_checkpoint, signer_from_seed
from ktlog.tlog.tiles import bundles_between, format_bundle, tile_nodes, tiles_between
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response
from ktlog.wire.receipts import format_receipt
from tests.auditor_world import NOW, ORIGIN, World, checkpoint_message, honest_world, log_signers, person, public
from tests.liars.judges import Watcher
from tests.liars.names import MAP, URL, audited_log
from tests.liars.names import ORIGIN as LIARS_ORIGIN
from tests.liars.names import policy as liars_policy
from tests.liars.zoo import BEN, story
from tests.pkd_samples import quick_argon2  # noqa: F401
from tests.watch_world import MIRROR_HOST, WITNESS_HOST, WatchedWorld

MAP_SIGNER = signer_from_seed(f"{ORIGIN}/map", COSIGNATURE_MLDSA44, b"\x09" * 32)
MAP_LOG = Log(f"{ORIGIN}/map", (MAP_SIGNER.vkey,), f"https://{ORIGIN}/map")
CONFIG = MapConfig(ORIGIN, "spec")


@pytest.fixture(scope="module", autouse=True)
def own_world(quick_argon2):  # noqa: F811
    """A world that was made with the quick hash is no other module's."""
    honest_world.cache_clear()
    yield
    honest_world.cache_clear()


def publish_map(log: World, leaves: list[OutputLeaf]) -> None:
    """The map's log with *leaves* after its configuration, under /map of *log*."""
    entries = [format_config(CONFIG), *map(format_leaf, leaves)]
    reader = leaf_reader([hash_leaf(entry) for entry in entries])
    for tile in tiles_between(0, len(entries)):
        log.serve[f"map/{tile.path}"] = b"".join(reader(tile_nodes(tile)))
    for bundle in bundles_between(0, len(entries)):
        log.serve[f"map/{bundle.path}"] = format_bundle(entries)
    head = Checkpoint(MAP_LOG.origin, len(entries), root_hash(len(entries), reader))
    log.serve["map/checkpoint"] = sign_checkpoint(head, [MAP_SIGNER], 0)


def leaf(log: World, size: int, time: int) -> OutputLeaf:
    return OutputLeaf(hash_config(CONFIG), time, size, log.root(size), 0, bytes(32), bytes(32))


@pytest.fixture
def mapped(tmp_path):
    with WatchedWorld(tmp_path, map=MAP_LOG, policy=None) as made:
        publish_map(made.net.world, [leaf(made.net.world, 10, made.now)])
        yield made


def extend(made: WatchedWorld, count: int = 1) -> None:
    twin = made.net.world.clone()
    for _ in range(count):
        twin.say(checkpoint_message(twin), "beta")
    twin.publish()
    made.net.world = twin


def test_a_map_that_keeps_its_promises(mapped):
    leaves = [leaf(mapped.net.world, 10, mapped.now)]
    for _ in range(4):
        mapped.look(4, every=120)
        leaves.append(leaf(mapped.net.world, mapped.net.world.size, mapped.now))
        publish_map(mapped.net.world, leaves)
    assert mapped.store.all() == [] and mapped.look()[0].map_size == 6


def test_input_that_is_held_back_under_fresh_leaves(mapped):
    leaves = [leaf(mapped.net.world, 10, mapped.now)]
    extend(mapped)
    for _ in range(8):
        publish_map(mapped.net.world, leaves)
        mapped.look(every=150)
        leaves.append(leaf(mapped.net.world, 10, mapped.now))
    assert mapped.names() == {"InputHeldBack"}
    publish_map(mapped.net.world, [*leaves, leaf(mapped.net.world, 11, mapped.now)])
    mapped.look()
    assert mapped.names() == set()


def test_a_map_that_stands_still(mapped):
    mapped.look(5, every=150)
    assert mapped.names() == set()
    mapped.look(6, every=150)
    assert mapped.names() == {"StaleMap"}
    extend(mapped)
    mapped.look(6, every=150)
    assert mapped.names() == {"StaleMap", "LateMap"}


def test_a_leaf_that_is_not_of_the_signed_tree(mapped):
    bundle = mapped.net.world.serve["map/tile/entries/000.p/2"]
    mapped.net.world.serve["map/tile/entries/000.p/2"] = bundle.replace(b"ktlog-map/v1", b"ktlog-map/v2")
    mapped.look()
    assert mapped.names() == {"BadMapLeaf"}


def test_two_roots_of_the_map_are_found_too(mapped):
    mapped.look()
    head = Checkpoint(MAP_LOG.origin, 2, bytes([3]) * 32)
    mapped.net.world.serve["map/checkpoint"] = sign_checkpoint(head, [MAP_SIGNER], 0)
    mapped.look()
    assert (MAP_LOG.origin, "TwoRoots", "Forked") in {(row.origin, row.name, row.kind) for row in mapped.store.open()}


# Reading


@pytest.fixture
def read(tmp_path):
    with WatchedWorld(tmp_path, read="all", answers="none") as made:
        yield made


def reading(made: WatchedWorld):
    made.now += 60
    done = made.log.read(made.now)
    made.log.announce()
    return done


def test_new_entries_are_read_once_and_a_restart_goes_on(read):
    assert (reading(read).entries, reading(read).entries) == (10, 10)
    extend(read, 3)
    read.restart()
    done = reading(read)
    assert (done.first, done.entries, done.complete) == (10, 13, True)
    assert read.store.all() == []


def test_a_record_that_is_gone_has_a_grace_and_a_false_one_has_none(read):
    reading(read)
    extend(read)
    good = read.net.world.serve[read.net.world.records_path]
    del read.net.world.serve[read.net.world.records_path]
    reading(read)
    assert read.names() == set()
    for _ in range(6):
        reading(read)
    assert read.names() == {"MissingRecords"}
    read.net.world.serve[read.net.world.records_path] = good.replace(b"Checkpoint", b"Checkpoimt")
    reading(read)
    assert "MissingRecords" not in read.names() and read.names()
    read.net.world.serve[read.net.world.records_path] = good
    assert reading(read).entries == 11
    assert read.names() == set() and {row.name for row in read.store.all()} > {"MissingRecords"}


def test_a_log_that_answers_for_its_head_and_not_for_its_entries_is_late_and_no_more(read):
    for path in list(read.net.world.serve):
        if path.startswith("tile/"):
            read.net.world.serve[path] = Unreachable("Timeout", "it drips")
    assert not reading(read).complete
    for _ in range(3):
        read.now += 10_000
        reading(read)
    assert [(row.name, row.kind) for row in read.store.open()] == [("Late", "Unreachable")]


def test_a_reading_is_cut_off_by_its_budget(read, monkeypatch):
    monkeypatch.setattr("auditor.logwatch.READ_BYTES", 1)
    done = reading(read)
    assert not done.complete and read.log.overran and read.names() == set()


def test_the_position_waits_for_alarms(read):
    read.net.world = honest_world().clone()

    def refuse(*_: object) -> None:
        raise StoreError("OutboxFull")

    take, read.told.take = read.told.take, refuse
    with pytest.raises(StoreError):
        reading(read)
    read.told.take = take
    assert reading(read).first == 0 and {event.action for event in read.told.events} >= {"AddKey", "RevokeKey"}


# Peers


def peer_of(made: WatchedWorld, root: str, signer: str = "us") -> World:
    """The log of a peer, with a Checkpoint message about the log that is watched."""
    peer = World()
    message = CheckpointMessage(
        f"https://{ORIGIN}", root, public(signer), "https://keys.beta.example", peer.directory.root_text,
        peer.next_time(),
    )
    peer.say(message, signer)
    made.net.files["keys.beta.example"] = peer.publish().serve
    made.net.world.serve["api/info"] = json.dumps({"public-key": encode_public_key(public("us"))}).encode()
    return peer


@pytest.fixture
def gossiped(tmp_path):
    with WatchedWorld(tmp_path, read="all", answers="none", peers=("https://keys.beta.example/",)) as made:
        yield made


def hourly(made: WatchedWorld, times: int) -> None:
    for _ in range(times):
        made.now += 3000
        reading(made)


def test_a_root_that_the_log_gave_a_peer_and_never_had(gossiped):
    peer_of(gossiped, pkd_root(5, bytes([5]) * 32))
    reading(gossiped)
    assert gossiped.names() == set()
    hourly(gossiped, 2)
    (row,) = gossiped.store.open()
    assert (row.name, row.kind, row.evidence) == ("PeerSawOtherRoot", "Invalid", None)
    gossiped.net.down.add("keys.beta.example")
    hourly(gossiped, 3)
    assert gossiped.names() == {"PeerSawOtherRoot", "UnreachablePeer"}


def test_a_root_that_the_log_had_or_comes_to_have(gossiped):
    later = gossiped.net.world.clone()
    for _ in range(2):
        later.say(checkpoint_message(later), "beta")
    peer_of(gossiped, pkd_root(12, later.root(12)))
    reading(gossiped)
    later.serve["api/info"] = gossiped.net.world.serve["api/info"]
    gossiped.net.world = later.publish()
    hourly(gossiped, 3)
    assert gossiped.store.all() == [] and gossiped.store.execute("SELECT * FROM peer_roots") == []


def test_a_peer_cannot_frame_a_log(gossiped):
    peer_of(gossiped, pkd_root(5, bytes([5]) * 32), signer="somebody else")
    hourly(gossiped, 4)
    assert gossiped.store.all() == []


# Receipts


def receipt(log: World, index: int, created: int, **changes: object) -> bytes:
    """What the log signed when it took entry *index*."""
    actor = f"https://{ORIGIN}/users/pubkeydir"
    answer = {
        "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": index, "tree-size": index + 1,
        "merkle-leaf": encode_base64url(log.entries[index]), "merkle-root": pkd_root(index + 1, log.root(index + 1)),
        **changes,
    }
    bare = Exchange(
        "POST", f"{actor}/inbox", 202, {"content-type": "application/json"}, json.dumps(answer).encode(),
        content_digest(b"sent"),
    )
    made = sign_response(bare, [(f"{actor}#pq-key", person("us"))], created)
    return format_receipt(replace(bare, headers={**bare.headers, **{k.lower(): v for k, v in made.items()}}))


@pytest.fixture
def promised(tmp_path):
    (tmp_path / "receipts").mkdir()
    with WatchedWorld(tmp_path, receipts=tmp_path / "receipts") as made:
        made.net.world.serve["api/info"] = json.dumps({"public-key": encode_public_key(public("us"))}).encode()
        yield made


def test_receipts_that_are_kept_late_and_broken(promised):
    log, kept = promised.net.world, promised.directory / "receipts"
    after = log.clone()
    after.say(checkpoint_message(after), "beta")
    (kept / "kept").write_bytes(receipt(log, 4, promised.now))
    (kept / "late").write_bytes(receipt(after, 10, promised.now))
    (kept / "rubbish").write_bytes(b"{}")
    promised.look(3)
    assert promised.store.all() == [] and len(promised.store.execute("SELECT * FROM kept_receipts")) == 1
    promised.look(2, every=300)
    assert [(row.name, row.key, row.kind) for row in promised.store.open()] == [("DelayBroken", "late", "Stale")]
    promised.net.world = after.publish()
    (kept / "broken").write_bytes(receipt(after, 3, promised.now, **{"merkle-root": pkd_root(4, bytes(32))}))
    promised.look()
    (row,) = promised.store.open()
    assert (row.name, row.key, row.kind) == ("BrokenPromise", "broken", "Forked")
    known = Known((log_signers()[1].vkey,), http_keys=(public("us"),), now=promised.now)
    assert conviction(Path(row.evidence).read_bytes(), known)["kind"] == "broken-promise"


@pytest.mark.usefixtures("quick_argon2")  # as tests/unit/test_liars.py: the story is told once in a process
def test_one_policy_asks_witnesses_for_the_log_and_everybody_for_its_map(tmp_path: Path) -> None:
    """tests/liars/names.py has groups of witnesses and verifiers, quorum both, in its policy of the map."""
    log, both = story(), liars_policy(MAP)
    with Watcher(tmp_path / "watch", log, policy=both, map_policy=None) as watcher:
        assert [sorted(side.policy.witnesses) for side in watcher._log._sides] == [
            ["w1", "w2", "w3"], ["v1", "w1", "w2", "w3"],
        ]
        watcher.look(log.now)
        log.tick(200)
        watcher.look(log.now)
        assert not watcher.opened
    reader = LogReader(log, URL, pause=lambda _: None)
    with AuditDirectory(tmp_path / "audit") as state:
        assert Follower(audited_log(), reader, state, policy=both).advance(log.now).report.ok


@pytest.mark.parametrize("given", [{}, {"map_policy": None}, {"policy": None, "map_policy": None}])
def test_a_reading_derives_the_map_whoever_named_its_key(tmp_path: Path, given: dict) -> None:
    """Be it in the map's own policy, or given beside: where the map is watched, its roots are derived."""
    honest = story()
    lying = story().chat()
    lying.grow(leaves=lying.map_with(BEN, fireproof=False))
    for log, found in ((honest, set()), (lying, {"MapNotDerived"})):
        options = {
            "policy": liars_policy(LIARS_ORIGIN, mapped=False), "read": "all", "commitments": "none", "answers": "none", **given,
        }
        with Watcher(tmp_path / f"watch{len(found)}", log, **options) as watcher:
            watcher.read(log.now)
            assert watcher.names() == found


@pytest.mark.parametrize("info", [{}, {"public-key": encode_public_key(public("them"))}])
def test_another_key_in_the_log_s_information_silences_no_receipt(promised, info):
    log, kept = promised.net.world, promised.directory / "receipts"
    promised.look()
    (kept / "broken").write_bytes(receipt(log, 3, promised.now, **{"merkle-root": pkd_root(4, bytes(32))}))
    log.serve["api/info"] = json.dumps(info).encode()
    promised.look(3, every=300)
    found = {(row.name, row.key) for row in promised.store.open()}
    assert ("BrokenPromise", "broken") in found
    assert (("KeyReplacedSilently", "") in found) == bool(info)


def test_a_receipt_that_no_known_key_signed_is_said(promised):
    log, kept = promised.net.world, promised.directory / "receipts"
    log.serve["api/info"] = json.dumps({"public-key": encode_public_key(public("them"))}).encode()
    (kept / "broken").write_bytes(receipt(log, 3, promised.now, **{"merkle-root": pkd_root(4, bytes(32))}))
    promised.look(3, every=300)
    assert [(row.name, row.key, row.kind) for row in promised.store.open()] == [("ReceiptUnchecked", "broken", "Invalid")]


# The report


def test_a_watch_alone_is_enough_for_the_report(read, capsys):
    """What it read, and its findings with their times; what is met once and not held to is none."""
    read.net.world = honest_world().clone()
    words = ["report", ORIGIN, "--dir", str(read.directory), "--json"]
    read.net.down.add(ORIGIN)
    reading(read)
    with pytest.raises(UsageError, match="no audit"):
        report.main(words[1:], standalone_mode=False)
    read.net.down.clear()
    reading(read)
    first = read.now

    def numbers() -> dict:
        capsys.readouterr()
        report.main(words[1:], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    clean = numbers()
    assert (clean["as_of"], clean["tree_size"], clean["verdict"]["state"], clean["findings"]) == (first, 10, "partly", [])
    assert clean["audits"] == {"count": 1, "first": first, "clean": 1, "by_watch": 1, "looks": 0}
    assert clean["not_counted"] == 0
    extend(read)
    good = read.net.world.serve[read.net.world.records_path]
    read.net.world.serve[read.net.world.records_path] = good.replace(b"Checkpoint", b"Checkpoimt")
    reading(read)
    read.restart()
    reading(read)
    page = numbers()
    rows = read.store.all()
    assert [(one["name"], one["leaf_index"], one["first_seen"], one["last_seen"], one["source"])
            for one in page["findings"]] == [
        (row.name, row.leaf_index, first + 60, first + 120, "watch") for row in rows] and rows
    assert page["verdict"]["state"] == "faults" and numbers() == page
    read.net.world.serve[read.net.world.records_path] = good
    reading(read)
    mended = numbers()
    assert mended["verdict"]["state"] == "partly" and {one["open"] for one in mended["findings"]} == {False}
    assert (mended["tree_size"], mended["report"]["read_to"], mended["actions"]) == (11, 11, clean["actions"])


def numbers_of(directory: Path, capsys) -> dict:
    capsys.readouterr()
    report.main([ORIGIN, "--dir", str(directory), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def page_of(directory: Path) -> str:
    page = directory / "page.html"
    report.main([ORIGIN, "--dir", str(directory), "-o", str(page)], standalone_mode=False)
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8").partition("<body>")[2])


def test_a_watch_that_reads_nothing_reports_what_it_compared_and_that_nothing_was_audited(tmp_path, capsys):
    with WatchedWorld(tmp_path, witnesses=(f"https://{WITNESS_HOST}",), mirrors=(f"https://{MIRROR_HOST}",)) as made:
        made.net.mirror_shows(made.net.world)
        made.net.down.add(WITNESS_HOST)
        first = made.look()[0].began
        said = numbers_of(tmp_path, capsys)
        assert (said["verdict"], said["tree_size"], said["as_of"]) == (
            {"state": "unaudited", "complete": False}, 10, first)
        assert said["audits"] == {"count": 0, "first": first, "clean": 0, "by_watch": 0, "looks": 1}
        assert [(row["checked"], row["total"]) for row in said["checked"]] == [(1, 2), (3, None), (0, 10)]
        assert said["report"]["looked"]["silent"] == [f"witness {WITNESS_HOST}"]
        assert any(f"the witness {WITNESS_HOST}: it did not answer" in one for one in said["not_checked"])
        assert "nothing was audited" in said["not_checked"][0] and [one["heads"] for one in said["latency"]] == [1, 1, 1]
        words = page_of(tmp_path)
        assert "Not audited" in words and f"Nothing of {ORIGIN} was audited" in words and "1 other" in words
        assert "No fault found" not in words and "No audit; 1 look of a watch" in words
        # A quiet watch writes seldom, one that finds something says both; and no look outlives an audit.
        made.look(8)
        assert numbers_of(tmp_path, capsys)["as_of"] == first
        made.net.world.serve["checkpoint"] = made.net.world.checkpoint(root=bytes(32))
        made.look()
        said = numbers_of(tmp_path, capsys)
        assert said["verdict"]["state"] == "convicted" and "No entry of it was audited" in page_of(tmp_path)
        made.net.down.add(ORIGIN)
        made.look()
        said = numbers_of(tmp_path, capsys)
        assert said["tree_size"] is None and "showed no head" in said["not_checked"][-1]
    with WatchedWorld(tmp_path, read="all", answers="none") as made:
        made.look()
        assert "came to its end" in numbers_of(tmp_path, capsys)["not_checked"][0]
        reading(made)
        made.look()
        said = numbers_of(tmp_path, capsys)
        assert (said["audits"]["count"], said["audits"]["looks"], said["report"]["read_to"]) == (1, 0, 10)


def test_an_audit_in_a_log_s_directory_of_a_watch_is_in_the_one_report(tmp_path, capsys):
    inner = tmp_path / "logs" / ORIGIN
    outside = AuditHistory(inner, ORIGIN).path  # no watch is there yet: it is a directory like any other
    with WatchedWorld(tmp_path, read="all", answers="none") as made:
        reading(made)
    inner.mkdir()
    kept = AuditHistory(inner, ORIGIN)
    assert kept.path == AuditHistory(tmp_path, ORIGIN).path != outside
    kept.add(Report(ORIGIN, Coverage("all"), Coverage("all"), tree_size=11, root=bytes(32), read_to=11), NOW + 600)
    both = numbers_of(tmp_path, capsys)
    assert both == numbers_of(inner, capsys) and both["tree_size"] == 11
    assert (both["audits"]["count"], both["audits"]["by_watch"]) == (2, 1)
    # Of another log than the directory's it says nothing, and no other directory is a watch's.
    assert AuditHistory(inner, "other.example").path.is_relative_to(inner)
    assert AuditHistory(tmp_path / "logs" / "x" / ORIGIN, ORIGIN).path.is_relative_to(tmp_path / "logs" / "x")


def test_a_history_that_is_none_costs_no_reading(read):
    path = AuditHistory(read.directory, ORIGIN).path
    path.parent.mkdir()
    path.write_text("[]")
    assert reading(read).entries == 10 and path.read_text() == "[]"
