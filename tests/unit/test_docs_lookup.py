"""docs/looking-up.md: its Python runs as it stands, top to bottom, against a log with a map; its policy is accepted."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_log import Network, key
from map_log import MapLog, map_policy, say

import ktlog.client.directory
import ktlog.wire.fetch
from ktlog.client import Present
from ktlog.client.build import add_key, enrol
from ktlog.errors import Forked, PolicyUnmet
from ktlog.pkd.canonical import canonical
from ktlog.pkd.hpke import open_message
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.policy import format_policy, parse_policy
from ktlog.tlog.proof import verify_proof

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "looking-up.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = re.findall(r"<!-- run -->\n```python\n(.*?)```", PAGE, re.DOTALL)
ALICE = "https://example.social/users/alice"


def log_of(origin: str, seed: int, *actions: tuple) -> MapLog:
    log = MapLog(origin, seed)
    log.now = int(time.time())
    for build, *arguments in actions:
        say(log, build, *arguments)
    return log.publish_map()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Everything that the page names: two logs, a handle, and the policy file in the current directory."""
    logs = [
        log_of("keys.example.social", 1, (enrol, ALICE, key(1)), (add_key, ALICE, key(2).public_key, key(1))),
        log_of("keys.example.net", 40),
    ]
    network = Network(*logs)
    network.handles["alice@example.social"] = ALICE
    (tmp_path / "trust.policy").write_bytes(format_policy(map_policy(*logs[:1])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ktlog.wire.fetch.Fetcher, "from_environment", lambda *a, **k: network)
    yield network


def test_every_python_block_is_run() -> None:
    assert len(RUN) == PAGE.count("```python") >= 6


def test_the_page_runs(world: Network, capsys: pytest.CaptureFixture[str]) -> None:
    """One program. Offline means offline: of all blocks only those that ask a log make requests."""
    log = world.logs["keys.example.social"]
    names: dict[str, object] = {}
    for number, block in enumerate(RUN):
        before = len(world.requests)
        if "lookup_across" in block:
            policy = map_policy(*world.logs.values())
            names["directory"] = ktlog.client.directory.Directory(policy, state="state-of-both")
        exec(compile(block, f"looking-up.md, block {number}", "exec"), names)  # noqa: S102
        if "verify_bundle" in block:
            assert len(world.requests) == before
            assert names["again"].keys == names["answer"].keys
    answer, printed = names["answer"], capsys.readouterr().out
    assert isinstance(answer, Present) and answer.map.full and len(names["recipients"]) == 2
    assert "2 keys: active" in printed and "LogsDisagree ['keys.example.social', 'keys.example.net']" in printed
    sealed = json.loads(names["content"])["encrypted-message"]
    wire = parse_wire(log.dialect, open_message(log.hpke, sealed))
    assert (wire.action, wire.preimage) == ("AddKey", names["first"].preimage)
    for built in (names["first"], names["add"], names["revoke"], names["guard"]):
        # Each was built at once, and names a root that is recent for a small log.
        log.accept(built)
    assert log.actors["https://example.social/users/bob"].fireproof
    assert parse_wire(log.dialect, canonical(dict(names["lost"].wire))).action == "RevokeKeyThirdParty"


def test_the_lookup_of_the_readme_runs(world: Network, capsys: pytest.CaptureFixture[str]) -> None:
    """In five lines: both keys, and nothing else; and of a log that is not there, what to do next."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block, {})  # noqa: S102
    assert sorted(capsys.readouterr().out.split()) == sorted(key(number).public_key.hex() for number in (1, 2))
    del world.logs["keys.example.social"]
    exec(block, {})  # noqa: S102
    assert capsys.readouterr().out.startswith("Refused ")


def test_a_proof_for_other_tools(world: Network) -> None:
    directory = ktlog.client.directory.Directory.from_policy_file(
        "trust.policy", domains={"example.social": "keys.example.social"}
    )
    answer = directory.lookup(ALICE)
    proof, leaf = ktlog.client.export_proof(answer.bundle)
    verify_proof(proof, leaf, parse_policy(Path("trust.policy").read_bytes()), int(time.time()))


def test_a_fork_is_evidence_as_the_page_says(world: Network) -> None:
    """The failure block writes what convicts."""
    log = world.logs["keys.example.social"]
    names: dict[str, object] = {}
    exec(RUN[0], names)  # noqa: S102
    twin = log.fork()
    twin.output[-1] = twin.output[-1].replace(b"erasures 0", b"erasures 1")
    twin.map_checkpoints = {len(twin.output): twin.sign_map()}
    world.logs["keys.example.social"] = twin
    exec(RUN[2], names)  # noqa: S102
    with pytest.raises(Forked, match="Convicted"):
        names["directory"].lookup(ALICE)
    assert json.loads(Path("evidence.json").read_bytes())["kind"] == "two-roots"


def test_the_policy_of_the_page_is_safe() -> None:
    """With keys in place of the dots; and without its verifiers it is not."""
    (text,) = re.findall(r"^```\n(log .*?)```", PAGE, re.DOTALL | re.MULTILINE)
    policy = map_policy(MapLog("keys.example.social"))
    vkeys = iter([str(policy.logs[0].vkey), *(str(one.vkey) for name, one in policy.witnesses.items() if name.endswith("-0"))])
    filled = re.sub(r"[\w./]+\+…", lambda _: next(vkeys), text)
    parse_policy(filled.encode()).check_safe(require_verifiers=True)
    with pytest.raises(PolicyUnmet, match="UnsafePolicy"):
        parse_policy(filled.replace("quorum both", "quorum witnesses").encode()).check_safe(require_verifiers=True)
