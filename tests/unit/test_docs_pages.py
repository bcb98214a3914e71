"""What the pages about the map say of names, policies and answers is what the code has; the auditor's commands are run."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from auditor_world import NOW, ORIGIN, honest_world, log_signers, policy_bytes

import auditor.cli
import auditor.commands.audit
import ktlog.errors
import ktlog.keymap.evidence
import ktlog.tlog.evidence
import witness.accuse
import witness.verifier
from auditor.report import EXIT_CODES
from ktlog.operator.witnessing import input_policy
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44, signer_from_seed
from ktlog.tlog.policy import parse_policy
from tests import map_vectors

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {name: one for name, one in vars(ktlog.errors).items() if isinstance(one, type)}


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def strings_of(*packages: str) -> set[str]:
    """Every string constant in some packages."""
    found: set[str] = set()
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found


# -- protocol.md

VERIFICATION = page("protocol").partition("## 9. Verification")[2].partition("## 10.")[0]
NAMED = re.findall(r"\b(Invalid|Stale|Forked|PolicyUnmet|NotLogged)/(\w+)", VERIFICATION)


def test_every_failure_is_one_that_the_client_has() -> None:
    assert len(set(NAMED)) >= 35
    known = strings_of("ktlog/client", "ktlog/keymap", "ktlog/tlog", "ktlog/pkd")
    assert {name for _, name in NAMED} <= known


def test_the_vectors_show_every_failure_of_a_light_answer() -> None:
    """All but those that need memory, and the one that is a question of its own."""
    light = VERIFICATION.partition("**Full check**")[0]
    told = set(re.findall(r"\b(Invalid|Stale|PolicyUnmet)/(\w+)", light))
    needs_memory = {("Stale", "RolledBack"), ("Invalid", "BadConsistencyProof")}
    shown = {(case["class"], case["name"]) for case in map_vectors.document()["refusals"]}
    assert shown == told - needs_memory


def test_the_texts_of_leaves_are_those_that_are_written() -> None:
    config, leaf = re.findall(r"^```\n(ktlog-map\S*/v1\n.*?)```", page("protocol"), re.DOTALL | re.MULTILINE)
    assert config.encode() == map_vectors.OUTPUT[0]
    words = [line.split(" ")[0] for line in leaf.splitlines()]
    assert words == [line.split(" ")[0] for line in map_vectors.OUTPUT[2].decode().splitlines()]


def test_exit_codes_of_classes() -> None:
    for text in (VERIFICATION, ):
        for name, code in re.findall(r"(Unreachable|NotLogged|Invalid|PolicyUnmet|Forked|Stale)\s+(\d)\b", text):
            assert CLASSES[name].exit_code == int(code)


# -- what-an-answer-claims.md


def test_kinds_of_failures_exist() -> None:
    rows = page("what-an-answer-claims").partition("## When there is no answer")[2]
    kinds = re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
    assert len(kinds) == 7 and set(kinds) <= CLASSES.keys()


# -- running.md


def filled(text: str) -> str:
    """*text*, lines of a policy, with real vkeys in place of the abridged ones: by name and kind."""
    def vkey(found: re.Match[str]) -> str:
        kind = COSIGNATURE_MLDSA44 if found["label"].endswith("-pq") else COSIGNATURE_ED25519
        seed = sum(found["label"].encode()).to_bytes(32, "big")
        return f"witness {found['label']} {signer_from_seed(found['name'], kind, seed).vkey} "

    return re.sub(r"witness (?P<label>\S+) (?P<name>[\w.]+)\+\S*… ", vkey, text)


def test_the_publish_policy_with_verifiers_is_safe() -> None:
    """Both blocks of the page, with the second and third witness like the first."""
    first, second = re.findall(r"^```\n(witness .*?)```", page("running"), re.DOTALL | re.MULTILINE)
    block, _, rest = first.partition("(the same for w2 and w3)\n")
    witnesses = "".join(block.replace("w1", name) for name in ("w1", "w2", "w3"))
    alone = parse_policy(filled(witnesses + rest).encode())
    alone.check_safe()
    policy = parse_policy(filled(witnesses + rest.replace("quorum witnesses\n", "") + second).encode())
    policy.check_safe(require_verifiers=True)
    assert input_policy(policy) == alone
    assert len(policy.witnesses) == 8


def test_what_may_end_a_start_is_coded() -> None:
    told = page("running").partition("- *At each start*")[2].partition("## ")[0]
    names = set(re.findall(r"`([A-Z]\w+)`", told))
    assert len(names) == 5 and names <= strings_of("ktlog/operator")


# -- verifying.md


def test_the_verifiers_answers_are_those_it_gives() -> None:
    text = page("verifying")
    given = set(re.findall(r"refuse\((\d+), \"(\w+)\"", inspect.getsource(witness.verifier)))
    assert set(re.findall(r"^\| (\d+) `(\w+)` \|", text, re.MULTILINE)) == given
    members = set(re.findall(r"\"([a-z]+-[a-z]+|violations|taken|wrong)\"", inspect.getsource(witness.verifier)))
    status = text.partition("`GET /replays`")[2].partition("\n\n")[0]
    assert set(re.findall(r"\(`([a-z-]+)`\)", status)) | {"wrong"} <= members
    formats = set(re.findall(r"`(ktlog-[a-z-]+/v1)`", text))
    assert formats == {
        witness.accuse.WRONG_LEAF, witness.accuse.CONTRADICTION, ktlog.tlog.evidence.FORMAT, ktlog.keymap.evidence.FORMAT,
    }


# -- auditing.md


def audit_lines() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page("auditing"), re.DOTALL)
    return [line.split() for block in blocks for line in block.splitlines() if " audit " in line]


@pytest.mark.parametrize("words", audit_lines(), ids=lambda words: " ".join(words[5:]))
def test_the_audits_of_the_page_run(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Word for word, but that the log is the tests' own; opening every commitment is left to other tests."""
    world = honest_world().clone()
    monkeypatch.chdir(tmp_path)
    Path("audit.policy").write_bytes(policy_bytes())
    Path("from-a-friend.checkpoint").write_bytes(world.checkpoint(7))
    monkeypatch.setattr(auditor.commands.audit.time, "time", lambda: NOW + 0.5)
    monkeypatch.setattr(auditor.commands.audit, "fetcher", lambda dial: nullcontext(world))
    replaced = {"keys.example.com": ORIGIN, "https://keys.example.com": f"https://{ORIGIN}",
                '"$VKEY"': str(log_signers()[1].vkey)}
    words = [replaced.get(word, word) for word in words]
    words += ["--commitments", "none"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        auditor.cli.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    sample = re.findall(r"```\n(keys.example.com: no fault.*?)```", page("auditing"), re.DOTALL)[0]
    if "--json" not in words:
        assert re.sub(r"\d+", "N", out.splitlines()[0]) == re.sub(r"\d+", "N", sample.splitlines()[0]).replace(
            "keys.example.com", ORIGIN
        )
        assert [line.split(":")[0] for line in out.splitlines()[1:4]] != []
        assert all(line.split()[0] in out for line in sample.splitlines()[1:4])


def test_the_pages_codes_are_the_auditors() -> None:
    table = page("auditing").partition("## What comes out")[2].partition("## ")[0]
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(", ")}
    assert codes == {0, 2, 8, *EXIT_CODES.values()}
    assert "7, 5, 6, 9, 3" in table and list(EXIT_CODES.values()) == [7, 5, 6, 9, 3]
