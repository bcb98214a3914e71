"""The command: exit codes, what is remembered, evidence, and errors a person can act on."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import tls_server
from auditor_world import NOW, ORIGIN, World, honest_world, log_signers, policy_bytes, witness_signers

from auditor import cli
from auditor.commands import audit as audit_command
from auditor.convict import fingerprint
from auditor.state import AuditDirectory, origin_filename
from ktlog.errors import StoreError, Unreachable
from ktlog.tlog.note import COSIGNATURE_MLDSA44, signer_from_seed

VKEY = str(log_signers()[1].vkey)


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


class Auditor:
    """Runs the command against *world*, with a fixed clock, in one directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, path: Path) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.path = path
        self.directory = path / "audits"
        self.policy = path / "policy.txt"
        self.policy.write_bytes(policy_bytes())
        monkeypatch.setattr(audit_command.time, "time", lambda: NOW + 0.5)

    def __call__(self, *arguments: object) -> Ran:
        self._monkeypatch.setattr(sys, "argv", ["ktlog-auditor", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Ran(code, captured.out, captured.err)

    def audit(self, world: World, *options: object, log: str = ORIGIN, key: tuple = ()) -> Ran:
        self._monkeypatch.setattr(audit_command, "fetcher", lambda dial: nullcontext(world))
        key = key or ("--policy", self.policy)
        return self("audit", log, "--dir", self.directory, *key, "--commitments", "none", *options)

    @property
    def head(self) -> bytes | None:
        with AuditDirectory(self.directory) as state:
            return state.load_head(ORIGIN)

    @property
    def evidence(self) -> list[Path]:
        return sorted((self.directory / "evidence").iterdir())


@pytest.fixture
def auditor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Auditor:
    return Auditor(monkeypatch, capsys, tmp_path)


def other_root() -> bytes:
    return honest_world().checkpoint(10, bytes(32), witnesses=0)


# Clean


def test_a_clean_audit_remembers_the_head_byte_for_byte(auditor: Auditor) -> None:
    ran = auditor.audit(honest_world().clone(), "--json")
    assert ran.code == 0
    assert ran.err == ""
    report = ran.json
    assert report["ok"] is True
    assert report["exit_code"] == 0
    assert (report["origin"], report["tree_size"], report["entries_audited"]) == (ORIGIN, 10, 10)
    assert report["commitments"] == {"checked": 0, "total": 15, "mode": "none"}
    assert report["findings"] == report["evidence"] == []
    assert all(sentence.endswith(".") for sentence in report["not_checked"])
    assert auditor.head == honest_world().serve["checkpoint"]
    assert auditor.audit(honest_world().clone(), "--json").json["ok"]


def test_the_report_for_a_person(auditor: Auditor) -> None:
    ran = auditor.audit(honest_world().clone())
    assert ran.code == 0
    assert ran.out.startswith(f"{ORIGIN}: no fault found in 10 entries.")
    assert "0 of 15 commitments" in ran.out
    assert "not checked: 15 of 15 plaintext commitments: none was asked for" in ran.out
    assert ran.err == ""


def test_a_url_and_a_key_do_as_well_as_an_origin_and_a_policy(auditor: Auditor) -> None:
    ran = auditor.audit(honest_world().clone(), log=f"https://{ORIGIN}/", key=("--vkey", VKEY))
    assert ran.code == 0
    assert "no policy was given" in ran.out


def test_all_commitments_are_checked_unless_told_otherwise(auditor: Auditor) -> None:
    ran = auditor.audit(honest_world().clone(), "--commitments", "all", "--workers", 2, "--json")
    assert ran.json["commitments"] == {"checked": 15, "total": 15, "mode": "all"}


def test_the_log_may_grow_between_audits(auditor: Auditor) -> None:
    assert auditor.audit(honest_world().first(7)).code == 0
    assert auditor.audit(honest_world().clone()).code == 0
    assert auditor.head == honest_world().serve["checkpoint"]


# Findings and their exit codes


def test_an_unreachable_log_is_3(auditor: Auditor) -> None:
    world = World()
    world.serve["checkpoint"] = Unreachable("Refused", "nobody listens")
    ran = auditor.audit(world)
    assert ran.code == 3
    assert "[Unreachable] Refused" in ran.out
    assert "Try again later" in ran.out
    assert auditor.head is None


def test_an_invalid_log_is_5_and_changes_nothing_remembered(auditor: Auditor) -> None:
    auditor.audit(honest_world().first(7))
    before = auditor.head
    world = honest_world().clone()
    world.serve["leaf-keys"] = b"{}"
    ran = auditor.audit(world)
    assert ran.code == 5
    assert "BadLeafKeys" in ran.out
    assert auditor.head == before
    assert auditor.evidence == []


def test_a_missing_quorum_is_6_and_is_not_remembered(auditor: Auditor) -> None:
    assert auditor.audit(honest_world().clone().publish(witnesses=1)).code == 6
    assert auditor.head is None


def test_a_smaller_tree_is_9_without_evidence_and_lowers_nothing(auditor: Auditor) -> None:
    auditor.audit(honest_world().clone())
    before = auditor.head
    ran = auditor.audit(honest_world().first(7), "--json")
    assert ran.code == 9
    assert [finding["name"] for finding in ran.json["findings"]] == ["RolledBack"]
    assert ran.json["evidence"] == []
    assert auditor.evidence == []
    assert auditor.head == before


def test_a_fork_is_7_with_evidence_that_convicts_offline(auditor: Auditor) -> None:
    auditor.audit(honest_world().clone())
    before = auditor.head
    forked = World()
    forked.serve["checkpoint"] = other_root()
    ran = auditor.audit(forked, "--json")
    assert ran.code == 7
    assert "TwoRoots" in {finding["name"] for finding in ran.json["findings"]}
    assert [Path(path) for path in ran.json["evidence"]] == auditor.evidence
    assert len(auditor.evidence) == 1
    assert auditor.evidence[0].name.startswith(f"two-roots-{ORIGIN}-")
    assert auditor.head == before
    # The same fork again is the same file.
    auditor.audit(forked)
    assert len(auditor.evidence) == 1
    verdict = auditor("verify-evidence", auditor.evidence[0], "--json")
    assert verdict.code == 0
    assert verdict.json["convicts"] is True
    assert verdict.json["log_key_known"] is False
    assert verdict.json["vkey"] == VKEY
    assert verdict.json["fingerprint"] == fingerprint(log_signers()[1].vkey)
    assert [head["tree_size"] for head in verdict.json["heads"]] == [10, 10]


def test_a_checkpoint_from_elsewhere_convicts_too(auditor: Auditor) -> None:
    given = auditor.path / "friend.note"
    given.write_bytes(honest_world().checkpoint(6, bytes(32), witnesses=0))
    ran = auditor.audit(honest_world().clone(), "--also-checkpoint", given)
    assert ran.code == 7
    assert "[Forked] Inconsistent" in ran.out
    assert str(given) in ran.out
    assert f"verify-evidence FILE --vkey {VKEY}\n" in ran.out
    assert auditor("verify-evidence", auditor.evidence[0]).code == 0
    assert auditor.head is None


def test_a_larger_checkpoint_from_elsewhere_is_a_roll_back(auditor: Auditor) -> None:
    given = auditor.path / "friend.note"
    given.write_bytes(honest_world().serve["checkpoint"])
    assert auditor.audit(honest_world().first(7), "--also-checkpoint", given).code == 9


def test_only_what_no_finding_was_made_about_is_remembered(auditor: Auditor) -> None:
    """Even the mildest finding keeps the head from being saved."""
    world = honest_world().clone()
    world.serve["tile/0/000.p/10"] = Unreachable("Timeout")
    assert auditor.audit(world).code == 3
    assert auditor.head is None


def test_an_answer_too_large_to_read_is_said_and_does_not_stop_the_audit(auditor: Auditor) -> None:
    world = honest_world().clone()
    world.serve["api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys"] = Unreachable("TooLarge", "too long")
    ran = auditor.audit(world, "--json")
    assert (ran.code, ran.json["findings"]) == (0, [])
    assert ran.json["answers"] == {"checked": 3, "total": 4, "mode": "new"}
    said = [sentence for sentence in ran.json["not_checked"] if "about 1 of 4 actors" in sentence]
    assert len(said) == 1
    assert "https://alpha.example/users/alice" in said[0]
    assert auditor.head == honest_world().serve["checkpoint"]


# Refused before anything is asked


def refused(ran: Ran, code: int, name: str) -> None:
    assert ran.code == code, ran
    assert name in ran.err
    assert ran.out == ""


def test_without_a_key_the_auditor_fails_closed(auditor: Auditor) -> None:
    world = honest_world().clone()
    ran = auditor.audit(world, key=("--answers", "none"))
    refused(ran, 2, "NoKey")
    assert "from a source other than the log itself" in ran.err
    assert world.requests == []
    assert not auditor.directory.exists()
    other = auditor.path / "other.txt"
    other.write_bytes(policy_bytes().replace(ORIGIN.encode(), b"keys.other.example", 1))
    refused(auditor.audit(world, key=("--policy", other)), 2, "BadPolicy")


def test_a_policy_without_the_log_is_no_key(auditor: Auditor) -> None:
    bare = auditor.path / "bare.txt"
    bare.write_bytes(b"".join(policy_bytes().splitlines(keepends=True)[1:]))
    refused(auditor.audit(honest_world().clone(), key=("--policy", bare)), 2, "NoKey")
    assert auditor.audit(honest_world().clone(), key=("--policy", bare, "--vkey", VKEY)).code == 0


@pytest.mark.parametrize(("vkey", "name"), [
    ("garbage", "BadVkey"),
    (VKEY.replace(ORIGIN, "keys.other.example"), "BadVkey"),
    (str(signer_from_seed("keys.other.example", COSIGNATURE_MLDSA44, b"\x05" * 32).vkey), "WrongKey"),
    (str(witness_signers()[0][0].vkey), "WrongKey"),
])
def test_a_key_that_cannot_be_the_logs(auditor: Auditor, vkey: str, name: str) -> None:
    refused(auditor.audit(honest_world().clone(), key=("--vkey", vkey)), 2, name)


@pytest.mark.parametrize("log", ["", "http://keys.alpha.example", "127.0.0.1", "keys.alpha.example:8443", "a b", "ftp://x"])
def test_a_log_that_is_no_origin(auditor: Auditor, log: str) -> None:
    refused(auditor.audit(honest_world().clone(), log=log), 2, "BadLog")


def test_a_policy_that_does_not_parse_or_is_not_safe(auditor: Auditor) -> None:
    bad = auditor.path / "bad.txt"
    bad.write_bytes(b"quorum nonsense\n")
    refused(auditor.audit(honest_world().clone(), key=("--policy", bad)), 2, "BadPolicy")
    unsafe = auditor.path / "unsafe.txt"
    unsafe.write_bytes(f"log {VKEY}\nquorum none\n".encode())
    refused(auditor.audit(honest_world().clone(), key=("--policy", unsafe)), 6, "UnsafePolicy")
    refused(auditor.audit(honest_world().clone(), key=("--policy", auditor.path / "absent")), 2, "UnreadableFile")


def test_options_that_say_nothing(auditor: Auditor) -> None:
    refused(auditor.audit(honest_world().clone(), "--answers", "some"), 2, "BadSelection")
    given = auditor.path / "x.note"
    given.write_bytes(b"garbage\n")
    refused(auditor.audit(honest_world().clone(), "--also-checkpoint", given), 2, "BadCheckpointFile")


def test_errors_are_json_when_json_was_asked_for(auditor: Auditor) -> None:
    ran = auditor.audit(honest_world().clone(), "--json", key=("--vkey", "garbage"))
    assert ran.code == 2
    assert ran.json["error"]["name"] == "BadVkey"
    assert ran.json["ok"] is False


# Local state


def test_a_saved_head_that_is_damaged_is_never_ignored(auditor: Auditor) -> None:
    note = honest_world().serve["checkpoint"].replace(b"\n10\n", b"\n11\n", 1)
    with AuditDirectory(auditor.directory) as state:
        state.save_head(ORIGIN, note)
    ran = auditor.audit(honest_world().clone())
    refused(ran, 8, "HeadOfAnotherKey")
    assert str(auditor.directory) in ran.err


def test_a_head_that_an_earlier_version_kept_is_taken_over(auditor: Auditor) -> None:
    kept = auditor.directory / "heads" / f"{ORIGIN}.note"
    kept.parent.mkdir(parents=True)
    note = honest_world().checkpoint(6, bytes(32))
    kept.write_bytes(note)
    ran = auditor.audit(honest_world().clone())
    assert ran.code == 7
    assert "[Forked] Inconsistent" in ran.out
    assert auditor.head == note
    assert not kept.exists()


def test_a_head_of_another_key_is_never_ignored(auditor: Auditor) -> None:
    auditor.audit(honest_world().clone())
    other = str(log_signers(90)[1].vkey)
    refused(auditor.audit(honest_world().clone(), key=("--vkey", other)), 8, "HeadOfAnotherKey")


def test_one_audit_at_a_time(auditor: Auditor) -> None:
    with AuditDirectory(auditor.directory):
        refused(auditor.audit(honest_world().clone()), 8, "Locked")
    assert auditor.audit(honest_world().clone()).code == 0


def test_a_directory_that_cannot_be_used(auditor: Auditor) -> None:
    auditor.directory.mkdir()
    (auditor.directory / "evidence").write_bytes(b"")
    ran = auditor.audit(honest_world().clone())
    assert ran.code == 8
    assert "evidence" in ran.err


def test_a_database_of_newer_code_or_of_none_is_refused(auditor: Auditor) -> None:
    auditor.audit(honest_world().clone())
    with AuditDirectory(auditor.directory) as state, closing(sqlite3.connect(state.database)) as database, database:
        database.execute("UPDATE audit_meta SET oldest_code = 99")
    refused(auditor.audit(honest_world().clone()), 8, "NewerSchema")
    (auditor.directory / "audit.db").write_bytes(b"no database, whatever its name says" * 1000)
    refused(auditor.audit(honest_world().clone()), 8, "Corrupt")


def test_origins_become_file_names_that_stay_inside(tmp_path: Path) -> None:
    names = [origin_filename(origin) for origin in (
        ORIGIN, "example.com/log", "..", ".", "../../x", "go.sum database tree", "a" * 255, "é" * 127, "a\\b", "%2E%2E",
    )]
    assert len(set(names)) == len(names)
    assert names[0] == ORIGIN
    for name in names:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name) < 200
    with AuditDirectory(tmp_path) as state:
        state.save_head("../../x", b"note")
        assert state.load_head("../../x") == b"note"
        assert state.head_path("../../x").resolve().parent == (tmp_path / "heads").resolve()


def test_evidence_is_never_overwritten(tmp_path: Path) -> None:
    with AuditDirectory(tmp_path) as state:
        path = state.save_evidence(b"one", "two-roots", ORIGIN)
        assert state.save_evidence(b"one", "two-roots", ORIGIN) == path
        assert state.save_evidence(b"two", "two-roots", ORIGIN) != path
        path.chmod(0o600)
        path.write_bytes(b"other")
        with pytest.raises(StoreError):
            state.save_evidence(b"one", "two-roots", ORIGIN)


# Evidence


@pytest.fixture
def evidence(auditor: Auditor) -> Path:
    given = auditor.path / "friend.note"
    given.write_bytes(other_root())
    auditor.audit(honest_world().clone(), "--also-checkpoint", given)
    return auditor.evidence[0]


def test_the_verdict_for_a_person_names_key_and_deed(auditor: Auditor, evidence: Path) -> None:
    ran = auditor("verify-evidence", evidence)
    assert ran.code == 0
    assert ran.out.startswith(
        f"CONVICTING: a key that calls itself {ORIGIN} signed what no honest log signs; check that this is {ORIGIN}'s key:"
        " run again with --vkey\n"
    )
    assert fingerprint(log_signers()[1].vkey) in ran.out
    assert "two different trees of 10 entries" in ran.out
    assert ran.out.count("root ") == 2


def test_the_key_that_is_known_must_be_the_convicted_one(auditor: Auditor, evidence: Path) -> None:
    assert "by the key you named" in auditor("verify-evidence", evidence, "--vkey", VKEY).out
    assert auditor("verify-evidence", evidence, "--vkey", VKEY, "--json").json["log_key_known"] is True
    for other in (log_signers()[0].vkey, log_signers(90)[1].vkey, witness_signers()[0][1].vkey):
        ran = auditor("verify-evidence", evidence, "--vkey", other)
        refused(ran, 5, "WrongLog")
        assert "convicts nobody" in ran.err
    refused(auditor("verify-evidence", evidence, "--vkey", "nonsense"), 2, "BadVkey")


def test_evidence_changed_anywhere_convicts_nobody(auditor: Auditor, evidence: Path) -> None:
    data = evidence.read_bytes()
    changed = auditor.path / "changed.json"
    for at in range(0, len(data), 397):
        changed.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        ran = auditor("verify-evidence", changed)
        assert ran.code == 5, at
        assert ran.err


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"[" * 100_000, b"\xff\xfe", b'{"format":"ktlog-evidence/v1"}'])
def test_garbage_convicts_nobody(auditor: Auditor, data: bytes) -> None:
    path = auditor.path / "garbage.json"
    path.write_bytes(data)
    ran = auditor("verify-evidence", path, "--json")
    assert ran.code == 5
    assert ran.json["convicts"] is False


def test_an_evidence_file_that_is_not_there(auditor: Auditor) -> None:
    refused(auditor("verify-evidence", auditor.path / "absent.json"), 2, "UnreadableFile")


# Over the real thing


@pytest.mark.parametrize("lie", [False, True])
def test_over_https_with_a_dial_table(auditor: Auditor, monkeypatch: pytest.MonkeyPatch, lie: bool) -> None:
    """The whole command with the real fetcher: TLS, keep-alive, a dial table given as a file."""
    monkeypatch.undo()
    world = honest_world().clone()
    world.cosigned_at = int(time.time())
    world.publish()
    if lie:
        world.edit_answer = lambda found: found["public-keys"].clear()

    def behave(request: tls_server.Request) -> list:
        found = world.get(f"https://{ORIGIN}{request.target}")
        return tls_server.answer(found.body, found.status)

    server = tls_server.TlsServer(auditor.path / "pki", behave)
    server.start()
    try:
        dial = auditor.path / "dial.json"
        dial.write_text(json.dumps({"ca_file": server.ca_file, "hosts": {ORIGIN: f"127.0.0.1:{server.port}"}}))
        ran = auditor(
            "audit", ORIGIN, "--dir", auditor.directory, "--policy", auditor.policy, "--dial", dial,
            "--commitments", "sample:1", "--json",
        )
    finally:
        server.stop()
    assert ran.code == (5 if lie else 0), ran
    assert {finding["name"] for finding in ran.json["findings"]} == ({"AnswerContradictsLog"} if lie else set())
    assert ran.json["entries_audited"] == 10


# Help, progress


def test_help_is_enough_to_work_from(auditor: Auditor) -> None:
    assert "7 fork proven" in auditor("--help").out
    text = auditor("audit", "--help").out
    for option in ("--dir", "--policy", "--vkey", "--json", "--commitments", "--answers", "--dial", "--max-age"):
        assert option in text
    assert "--vkey" in auditor("verify-evidence", "--help").out
    assert auditor("audit").code == 2
    assert auditor("dance").code == 2


def test_the_progress_bar_needs_a_terminal(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert auditor.audit(honest_world().clone()).err == ""
    import rich.console

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = rich.console.Console(file=sys.stderr, force_terminal=True, width=100)
    monkeypatch.setattr(rich.console, "Console", lambda **_: shown)
    ran = auditor.audit(honest_world().clone(), "--commitments", "all", "--from-start")
    assert ran.code == 0
    assert "entries" in ran.err
    assert "10/10" in ran.err


def test_text_from_the_log_cannot_forge_the_report(auditor: Auditor) -> None:
    world = honest_world().clone()
    world.edit_answer = lambda found: found.update({"actor-id": "\x1b[2J\x9b2J\u202eno fault found\r\n" + "x" * 5000})
    ran = auditor.audit(world)
    assert ran.code == 5
    assert not set(ran.out) & set("\x1b\x9b\u202e\r")
    assert "\\u001b[2J" in ran.out
    assert len(ran.out) < 6000
