"""The PKD witness's duty: all was checked, and the log's own desk takes the cosignature; or nothing is signed."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from auditor_runs import run as audit_world
from auditor_world import NOW, ORIGIN, World, honest_world, policy_bytes
from client_world import remembering_argon2id

from auditor import cli
from auditor.audit import Selection
from auditor.commands import audit as audit_command
from auditor.cosigner import Cosigner, check_complete, cosign, load_cosigner
from auditor.report import Finding, Report
from ktlog.client.keyfile import SigningKey, save_key
from ktlog.errors import Invalid, KtlogError, MessageRejected, Unreachable, UsageError
from ktlog.operator.cosigning import CosignDesk
from ktlog.pkd import attributes
from ktlog.pkd.cosign import parse_cosigners
from ktlog.pkd.keys import decode_root
from ktlog.wire.fetch import Response

WITNESS = "https://auditor.example"
COSIGNER = Cosigner(WITNESS, SigningKey(bytes(range(32))))


class LogDesk:
    """The operator's side: its own check of cosignatures, behind the address that the specification gives it."""

    def __init__(self, world: World, cosigners: str = COSIGNER.line) -> None:
        self.world = world
        self.taken: list[SimpleNamespace] = []
        self.asked: list[str] = []
        self.answer: tuple[int, bytes] | None = None
        roots = {world.root(size): size for size in range(1, world.size + 1)}
        self._desk = CosignDesk(
            store=SimpleNamespace(size_of_root=roots.get, cosignatures=lambda size: ()),
            link=SimpleNamespace(cosign=self.taken.append), origin=ORIGIN,
            cosigners=parse_cosigners(cosigners.encode()), time_window_seconds=300, now=lambda: NOW,
        )

    def post(self, url: str, body: bytes, headers=None, *, max_bytes: int | None = None) -> Response:
        self.asked.append(url)
        prefix = f"https://{ORIGIN}/api/history/cosign/"
        assert url.startswith(prefix) and ":" not in url.removeprefix(prefix) and headers and max_bytes
        if self.answer is not None:
            return Response(self.answer[0], {}, self.answer[1], url)
        try:
            self._desk.take(unquote(url.removeprefix(prefix)), body)
        except MessageRejected as error:
            return Response(400, {}, json.dumps({"error": "x", "code": error.code}).encode(), url)
        done = {"!pkd-context": "fedi-e2ee:v1/api/history/cosign", "success": True, "time": str(NOW)}
        return Response(200, {}, json.dumps(done).encode(), url)

    def get(self, url: str, *, max_bytes: int | None = None):
        return self.world.get(url, max_bytes=max_bytes)


@pytest.fixture(autouse=True)
def _remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)


@pytest.fixture(scope="module")
def complete() -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "argon2id", remembering_argon2id)
        report = audit_world(honest_world().clone(), commitments=Selection("all"))
    assert report.complete
    return report


def test_the_log_takes_the_cosignature_of_a_complete_audit(complete: Report) -> None:
    desk = LogDesk(honest_world())
    made = cosign(complete, COSIGNER, desk, NOW)
    (taken,) = desk.taken
    assert (taken.tree_size, taken.witness, taken.time) == (10, WITNESS, NOW)
    assert decode_root(made.root) == complete.root and made.as_dict()["tree_size"] == 10


@pytest.mark.parametrize("options", [
    {"commitments": Selection("sample:3", 3)}, {"commitments": Selection("none", 0)}, {"tier": "structural"},
    {"leaf_signatures": False},
])
def test_nothing_less_than_all_is_cosigned(options: dict) -> None:
    report = audit_world(honest_world().clone(), **{"commitments": Selection("all")} | options)
    desk = LogDesk(honest_world())
    assert report.ok and not report.complete
    with pytest.raises(UsageError, match="NotCosigned"):
        cosign(report, COSIGNER, desk, NOW)
    assert not desk.asked


def test_a_finding_or_an_empty_tree_is_not_cosigned(complete: Report) -> None:
    world = honest_world().clone()
    report = audit_world(world, commitments=Selection("all"))
    report.findings.add(Finding("Slow", "Stale", "anything at all"))
    for refused in (report, audit_world(World().publish(), commitments=Selection("all"))):
        with pytest.raises(UsageError, match="NotCosigned"):
            check_complete(refused)


def test_what_the_log_answers_is_believed_only_where_it_says_so(complete: Report) -> None:
    desk = LogDesk(honest_world())
    for answer, error in (
        ((200, b"{}"), Invalid), ((200, b"no"), Invalid), ((200, b'{"success":true}'), Invalid), ((404, b""), Invalid),
        ((503, b"{}"), Unreachable), ((429, b""), Unreachable), ((400, b'{"code":["x"],"error":7}'), Invalid),
    ):
        desk.answer = answer
        with pytest.raises(error):
            cosign(complete, COSIGNER, desk, NOW)


def test_a_cosigner_that_is_not_listed_is_told_what_to_ask_for(complete: Report) -> None:
    with pytest.raises(Invalid, match="unknown_witness") as error:
        cosign(complete, COSIGNER, LogDesk(honest_world(), "# nobody\n"), NOW)
    assert COSIGNER.line in error.value.hint
    with pytest.raises(Invalid, match="stale_time"):
        cosign(complete, COSIGNER, LogDesk(honest_world()), NOW - 3600)


def test_the_key_file_and_the_id(tmp_path: Path) -> None:
    save_key(tmp_path / "key", COSIGNER.key)
    assert load_cosigner(tmp_path / "key", WITNESS).line == COSIGNER.line
    for witness in ("", "two words", "x" * 256, "#x", "h\u00e9"):
        with pytest.raises(UsageError, match="BadWitnessId"):
            load_cosigner(tmp_path / "key", witness)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(KtlogError):
        load_cosigner(tmp_path / "key", WITNESS)


def test_audit_and_cosign_in_one_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    save_key(tmp_path / "key", COSIGNER.key)
    (tmp_path / "policy").write_bytes(policy_bytes())
    desk = LogDesk(honest_world().clone())
    monkeypatch.setattr(audit_command, "fetcher", lambda dial: nullcontext(desk))
    monkeypatch.setattr("time.time", lambda: NOW)

    def ran(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [
            "ktlog-auditor", "audit", ORIGIN, "--dir", str(tmp_path / "dir"), "--policy", str(tmp_path / "policy"),
            "--workers", "1", "--json", *words,
        ])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, capsys.readouterr().out

    both = ("--cosign", str(tmp_path / "key"), "--cosign-as", WITNESS)
    code, out = ran("--commitments", "none", *both)
    assert code == 2 and json.loads(out)["cosigned"]["error"]["name"] == "NotCosigned" and not desk.taken
    code, out = ran("--from-start", *both)
    assert code == 0 and json.loads(out)["cosigned"]["tree_size"] == 10 and len(desk.taken) == 1
    # Nothing is new, and all of it was checked before.
    code, out = ran(*both)
    assert code == 0 and json.loads(out)["cosigned"]["tree_size"] == 10
    assert ran(*both[:2])[0] == 2
