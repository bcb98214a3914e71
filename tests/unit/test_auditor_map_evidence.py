"""What a lookup wrote against a lying map, the auditor reads and judges: two clients with one file between them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from client_log import key
from client_world import remembering_argon2id
from map_log import ALICE, MAP, MapWorld, say

from auditor import cli
from ktlog.client.build import add_key, enrol, revoke_key
from ktlog.errors import Forked
from ktlog.keymap.evidence import format_map_evidence, parse_map_evidence
from ktlog.pkd import attributes


@pytest.fixture
def world(tmp_path, monkeypatch) -> MapWorld:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return MapWorld(tmp_path)


def contradiction(world: MapWorld) -> bytes:
    world.lookup()
    world.log.publish_map(map_root=bytes(32))
    return caught(world)


def roll_back(world: MapWorld) -> bytes:
    state = world.log.states[3][ALICE]
    world.lookup()
    say(world.log, enrol, "https://alpha.example/users/eve", key(40))
    world.log.states[-1][ALICE] = state
    world.log.roles[3] = world.log.roles[4] = {}
    world.log.publish_map()
    return caught(world)


def rewritten(world: MapWorld) -> bytes:
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.roles[2] = {}
    world.log.roles[5] = {**world.log.roles[5], ALICE: 1}
    world.log.publish_map()
    return caught(world)


def fork(world: MapWorld) -> bytes:
    """Two clients saw two trees, each with one revocation less; the second is shown the first one's head."""
    twin = world.log.fork()
    say(twin, revoke_key, ALICE, key(2).public_key, key(3))
    twin.publish_map()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish_map()
    world.lookup()
    world.serve(twin)
    return caught(world)


def caught(world: MapWorld) -> bytes:
    with pytest.raises(Forked) as error:
        world.lookup()
    assert error.value.evidence
    return error.value.evidence


def judge(monkeypatch, capsys, path: Path, *options: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ktlog-auditor", "verify-evidence", str(path), *options])
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


CASES = {
    "map-contradiction": (contradiction, "lead to two maps"),
    "actor-rolled-back": (roll_back, "the version fell from 4 to 2"),
    "history-rewritten": (rewritten, "are not those of before"),
    "two-roots": (fork, "two different trees of 4 entries"),
}


@pytest.mark.parametrize("kind", CASES)
def test_evidence_from_a_lookup_convicts(world, tmp_path, monkeypatch, capsys, kind):
    lie, reason = CASES[kind]
    path = tmp_path / "evidence.json"
    path.write_bytes(lie(world))
    vkey = str(world.policy.logs[0].vkey)
    code, out, _ = judge(monkeypatch, capsys, path, "--vkey", vkey)
    assert code == 0 and f"CONVICTED: the log {MAP}, by the key you named" in out and reason in out
    code, out, _ = judge(monkeypatch, capsys, path, "--json")
    verdict = json.loads(out)
    assert (verdict["convicts"], verdict["kind"], verdict["origin"], verdict["log_key_known"]) == (True, kind, MAP, False)
    assert len(verdict["heads"]) == 2 and verdict["vkey"] == vkey
    code, out, err = judge(monkeypatch, capsys, path, "--vkey", str(world.log.map_signers[0].vkey), "--json")
    assert code == 5 and "WrongLog" in err and json.loads(out)["convicts"] is False


def test_evidence_that_convicts_nobody(world, tmp_path, monkeypatch, capsys):
    """The same statement twice, another order, no actor, another actor; and a file changed anywhere."""
    data = roll_back(world)
    evidence, path = parse_map_evidence(data), tmp_path / "evidence.json"
    spoilt = [
        format_map_evidence(one) for one in (
            replace(evidence, items=(evidence.items[0],) * 2), replace(evidence, items=evidence.items[::-1]),
            replace(evidence, kind="map-contradiction", actor_id=None),
            replace(evidence, actor_id="https://alpha.example/users/bob"),
        )
    ]
    spoilt += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 1999)]
    spoilt += [data[:-1], data + b"\n", b'{\n  "format": "ktlog-map-evidence/v1"\n}\n']
    for one in spoilt:
        path.write_bytes(one)
        code, _, err = judge(monkeypatch, capsys, path)
        assert code == 5 and "convicts nobody" in err
