"""Both tiers over both logs at once, against a real operator's files: entries, erasures, map; at once and step by step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.audit import Selection
from auditor.fetch import LogReader
from auditor.follow import Advance, Follower
from auditor.position import STRUCTURAL
from auditor.state import AuditDirectory
from ktlog.client.verify import Log
from ktlog.keymap.updates import update_path
from ktlog.operator.keys import load_checkpoint_signers, load_map_signers
from ktlog.pkd.erasure import encode_erasure_record
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKey
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.policy import LogKey
from ktlog.tlog.tiles import format_bundle
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.web.files import record_json
from ktlog.wire.fetch import Response
from tests.map_world import MapPress
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_argon2")


class Published:
    """A fetcher over all that a press publishes; ``lies`` by path."""

    def __init__(self, press: MapPress) -> None:
        self.press = press
        self.lies: dict[str, bytes] = {}
        self.asked: list[str] = []

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        path = url.removeprefix(f"https://{ORIGIN}/")
        self.asked.append(path)
        body = self.lies.get(path, self._file(path))
        return Response(404 if body is None else 200, {}, body or b"", url)

    def _file(self, path: str) -> bytes | None:
        press, store = self.press, self.press.store
        records = store.erasures(0, store.erasure_count())
        leaves = [encode_erasure_record(record) for record in records]
        if path == "erasures":
            root = Frontier().extend(map(hash_leaf, leaves)).root()
            return json.dumps({"size": len(leaves), "root": encode_base64(root)}).encode()
        if path.startswith("erasures/"):
            return format_bundle(leaves)
        if path == "leaf-keys":
            return json.dumps({"leaf-keys": [encode_public_key(public("leaf"))]}).encode()
        if path.startswith("records/"):
            lines = [json.dumps(record_json(record)) for record in store.records(0, int(path.rpartition("/")[2]))]
            return "".join(f"{line}\n" for line in lines).encode()
        if path.startswith("map/checkpoint/"):
            return press.map.checkpoint(int(path.rpartition("/")[2]))
        folder = press.settings.map_tiles if path.startswith("map/") else press.settings.tiles
        file = folder / path.removeprefix("map/")
        return file.read_bytes() if file.is_file() else None


def advance(files: Published, path: Path, **options: object) -> Advance:
    press = files.press
    vkeys = tuple(signer.vkey for signer in load_checkpoint_signers(press.settings.keys, ORIGIN))
    names = {key.vkey for key in press.policy.logs}
    of_map = [signer.vkey for signer in load_map_signers(press.settings.keys, ORIGIN)]
    policy = replace(press.policy, logs=press.policy.logs + tuple(
        LogKey(vkey, None) for vkey in (*vkeys, *of_map) if vkey not in names
    ))
    options = {"commitments": Selection("all"), "answers": Selection("none", 0), **options}
    with AuditDirectory(path) as state:
        return Follower(
            Log(ORIGIN, vkeys, f"https://{ORIGIN}"), LogReader(files, f"https://{ORIGIN}"), state, policy=policy,
            save_seconds=0.0, **options,
        ).advance(press.clock())


STEPS = (
    lambda press: (
        press.desk.send(AddKey(ALICE, public("a"), NOW)), press.desk.send(AddKey(BOB, public("b"), NOW), "b"),
    ),
    lambda press: (
        press.desk.send(AddKey(ALICE, public("c"), NOW)), press.desk.send(RevokeKey(ALICE, public("a"), NOW), "c"),
        press.desk.send(Fireproof(ALICE, NOW), "c"),
    ),
    lambda press: press.erase(BOB),
    lambda press: (
        press.desk.send(MoveIdentity(ALICE, CAROL, NOW), "c"), press.desk.send(AddKey(ALICE, public("t"), NOW), "t"),
    ),
    lambda press: press.desk.send(AddKey(BOB, public("t"), NOW), "t"),
    lambda press: press.desk.send(BurnDown(ALICE, BOB, NOW), "t"),
)


def faults(found: Advance) -> list[str]:
    return [f"{one.name}: {one.what}" for one in found.report.findings]


def test_step_by_step_and_at_once_both_logs_hold(tmp_path: Path) -> None:
    press = MapPress(tmp_path / "log")
    files = Published(press)
    try:
        press.cycle()
        leaves = 0
        for step in STEPS:
            step(press)
            press.cycle()
            found = advance(files, tmp_path / "steps")
            assert faults(found) == []
            assert found.report.complete
            assert found.report.map_leaves == found.report.map_followed == found.report.map_derived >= 1
            assert found.report.entries_audited <= 3
            leaves += found.report.map_leaves
        once = advance(files, tmp_path / "once")
        assert faults(once) == []
        assert (once.report.complete, once.report.map_leaves, once.report.map_derived) == (True, leaves, leaves)
        files.asked.clear()
        outside = advance(files, tmp_path / "structural", tier=STRUCTURAL)
        assert faults(outside) == []
        assert (outside.report.map_leaves, outside.report.map_followed, outside.report.map_derived) == (leaves, leaves, 0)
        assert not [path for path in files.asked if path.startswith("records")]
    finally:
        press.close()


def test_a_map_that_does_not_follow_from_the_entries_is_found_in_either_tier(tmp_path: Path) -> None:
    press = MapPress(tmp_path / "log")
    files = Published(press)
    try:
        for step in STEPS[:2]:
            step(press)
            press.cycle()
        index = press.map.state().output.size - 1
        path = f"map/{update_path(index)}"
        update = files._file(path)
        files.lies[path] = update[:-1] + bytes([update[-1] ^ 1])
        for tier in ("semantic", "structural"):
            found = advance(files, tmp_path / tier, tier=tier)
            assert [name.partition(":")[0] for name in faults(found)] == ["BadMapUpdate"]
            assert not found.report.complete
    finally:
        press.close()


def test_audits_however_often_do_not_make_a_late_map_young(tmp_path: Path) -> None:
    press = MapPress(tmp_path / "log")
    files = Published(press)
    try:
        press.cycle()
        press.cycle()
        first = advance(files, tmp_path / "audits")
        assert not faults(first) and any("no audit before" in sentence for sentence in first.report.not_checked)
        press.publisher._mapping = None  # entries go on, and the map covers none of them
        press.desk.send(AddKey(ALICE, public("a"), NOW))
        press.cycle()
        found = []
        for _ in range(3):
            found.append({one.name for one in advance(files, tmp_path / "audits").report.findings})
            press.cycle(200)
        assert found == [set(), set(), {"LateMap"}]
    finally:
        press.close()
