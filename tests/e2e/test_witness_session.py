"""A witness as a process of its own, over loopback HTTP; each test reads as a session.

The log's requests are written out where that helps, so that this file can be compared with the
specification line by line. The kill tests end the daemon at every hook that it names.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.note import Note, open_note, parse_signature_lines, parse_vkey
from tests.witness_log import Log
from witness.store import BEFORE_COMMIT, WitnessStore, hash_origin
from witness.witness import CHECKED, HOOKS

ROOT = Path(__file__).resolve().parents[2]
FORKED = b"\x2a" * 32
SECONDS = 30


@dataclass(frozen=True)
class Reply:
    status: int
    content_type: str | None
    body: bytes


class Daemon:
    """A running ``ktlog-witness serve``, in a process group of its own."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process = process
        self.port = port

    def request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return Reply(response.status, response.headers["Content-Type"], response.read())
        finally:
            connection.close()

    def post(self, body: bytes) -> Reply:
        return self.request("POST", "/add-checkpoint", body)

    def monitor(self, origin: str) -> Reply:
        return self.request("GET", f"/{hash_origin(origin)}/checkpoint")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        """The power goes: master and worker at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)


class Desk:
    """Someone at a shell, with one witness directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemons: list[Daemon] = []

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "witness", command, "--dir", str(self.directory), *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
        )

    def run_json(self, command: str, *arguments: str) -> dict:
        result = self.run(command, *arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def serve(self, **environment: str) -> Daemon:
        process = subprocess.Popen(
            [sys.executable, "-m", "witness", "serve", "--dir", str(self.directory),
             "--listen", "127.0.0.1:0"],
            cwd=ROOT, env={**os.environ, **environment}, start_new_session=True,
            stdout=subprocess.PIPE, text=True,
        )
        daemon = Daemon(process, 0)
        self.daemons.append(daemon)
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        assert " listens on http://127.0.0.1:" in line, line
        daemon.port = int(line.strip().rpartition(":")[2])
        return daemon


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path / "w1")
    yield desk
    for daemon in desk.daemons:
        if daemon.process.poll() is None:
            daemon.kill()
        daemon.process.stdout.close()


@pytest.fixture
def log():
    return Log("example.com/behind-the-sofa")


@pytest.fixture
def vkeys(desk, log):
    """A witness that follows *log*; its vkeys."""
    answer = desk.run_json("init", "--name", "example.com/w1")
    desk.run_json("add-log", *(str(vkey) for vkey in log.vkeys))
    return tuple(parse_vkey(vkey) for vkey in answer["vkeys"])


def check_cosignatures(log: Log, size: int, vkeys, answer: Reply) -> None:
    assert (answer.status, answer.content_type) == (200, "text/plain; charset=utf-8"), answer.body
    text = parse_signed_checkpoint(log.note(size))[0].text
    verified = open_note(Note(text, parse_signature_lines(answer.body)), vkeys)
    assert [one.vkey for one in verified] == list(vkeys)
    assert answer.body.count(b"\n") == len(vkeys)
    for one in verified:
        assert abs(one.timestamp - time.time()) < SECONDS


def test_a_session(desk, log):
    # Make a witness, tell it of a log, start it.
    made = desk.run_json("init", "--name", "example.com/w1")
    vkeys = tuple(parse_vkey(vkey) for vkey in made["vkeys"])
    assert [vkey.algorithm for vkey in vkeys] == [4, 6]
    assert desk.run("init", "--name", "example.com/w1").returncode == 8
    assert desk.run("add-log", str(log.vkeys[0])).returncode == 0
    w1 = desk.serve()
    assert w1.request("GET", "/livez").status == w1.request("GET", "/readyz").status == 200
    assert str(vkeys[1]).encode() in w1.request("GET", "/").body
    assert w1.monitor(log.origin).status == 404

    # The log has three entries and asks for the first time.
    check_cosignatures(log, 3, vkeys, w1.post(b"old 0\n\n" + log.note(3)))
    # It forgot, and asks again as if for the first time.
    assert w1.post(b"old 0\n\n" + log.note(3)) == Reply(409, "text/x.tlog.size", b"3\n")
    # It grew, and forgets the proof; sends a wrong one; sends the right one.
    assert w1.post(b"old 3\n\n" + log.note(5)).status == 422
    wrong = b"KgEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
    assert w1.post(b"old 3\n" + wrong * 4 + b"\n" + log.note(5)).status == 422
    proof = "".join(f"{encode_base64(hash_)}\n" for hash_ in log.proof(3, 5)).encode()
    check_cosignatures(log, 5, vkeys, w1.post(b"old 3\n" + proof + b"\n" + log.note(5)))
    # It is restored from a backup, and then lies.
    assert w1.post(b"old 3\n\n" + log.note(3)) == Reply(409, "text/x.tlog.size", b"5\n")
    fork = w1.post(b"old 5\n\n" + log.note(5, root=FORKED))
    assert (fork.status, fork.body.split(b":")[0]) == (422, b"OtherRoot")
    # From then on nothing is signed for it, until the operator says so.
    frozen = w1.post(log.submission(5, 6))
    assert (frozen.status, frozen.body.split(b":")[0]) == (403, b"LogFrozen")
    (convicted,) = desk.run_json("evidence", "--save", str(desk.directory.parent / "saved"))["evidence"]
    assert (convicted["origin"], convicted["size"], convicted["frozen"]) == (log.origin, 5, True)
    verify_evidence(parse_evidence(Path(convicted["file"]).read_bytes()), log.vkeys[0])
    assert "FROZEN" in desk.run("list-logs").stdout
    assert desk.run_json("unfreeze", log.origin) == {"origin": log.origin, "lifted": 1}
    assert desk.run("unfreeze", log.origin).returncode == 2
    # Strangers: an unknown log; our log's name under another key; no submission at all.
    assert w1.post(Log("example.org/other").submission(0, 1)).status == 404
    stranger = w1.post(Log(log.origin, seed=7).submission(5, 6))
    assert (stranger.status, stranger.body.split(b":")[0]) == (403, b"NoTrustedSignature")
    assert w1.post(b"hello").status == 400
    assert w1.post(b"old 0\n" + b"x" * 200_000).status == 413
    assert w1.request("GET", "/add-checkpoint").status == 405

    # A second log is followed while the witness is running.
    other = Log("example.org/other")
    assert desk.run("add-log", str(other.vkeys[1])).returncode == 0
    check_cosignatures(other, 1, vkeys, w1.post(other.submission(0, 1)))
    # Nobody can serve the same directory twice.
    second = desk.run("serve", "--listen", "127.0.0.1:0")
    assert (second.returncode, "Locked" in second.stderr) == (8, True)

    # Stopped and started, it knows all it knew.
    before = w1.monitor(log.origin)
    assert w1.stop() == 0
    w1 = desk.serve()
    assert w1.monitor(log.origin) == before
    note, checkpoint = parse_signed_checkpoint(before.body)
    assert (checkpoint.size, checkpoint.root) == (5, log.root(5))
    assert {one.vkey for one in open_note(note, (*vkeys, *log.vkeys))} == {*vkeys, log.vkeys[0]}
    assert w1.post(b"old 0\n\n" + log.note(3)) == Reply(409, "text/x.tlog.size", b"5\n")
    check_cosignatures(log, 5, vkeys, w1.post(b"old 5\n\n" + log.note(5)))
    assert w1.stop() == 0

    # The lie is on record, and convicts by the log's public key alone.
    listed = desk.run_json("list-logs")
    assert [(entry["origin"], entry["size"]) for entry in listed["logs"]] == [(log.origin, 5), (other.origin, 1)]
    assert listed["evidence"] == 1
    (document,) = WitnessStore.open(desk.directory / "witness.db", read_only=True).evidence()
    verify_evidence(parse_evidence(document), log.vkeys[0])

    # Without its record it does not start, and does not make a new one.
    (desk.directory / "witness.db").rename(desk.directory / "elsewhere.db")
    refused = desk.run("serve", "--listen", "127.0.0.1:0")
    assert (refused.returncode, "DatabaseMissing" in refused.stderr) == (8, True)
    assert not (desk.directory / "witness.db").exists()


@pytest.mark.parametrize("hook", HOOKS)
def test_killed_at_every_hook_it_never_rolls_back_and_never_cosigns_two_roots(desk, log, vkeys, hook):
    w1 = desk.serve()
    check_cosignatures(log, 3, vkeys, w1.post(log.submission(0, 3)))
    assert w1.stop() == 0

    w1 = desk.serve(KTLOG_KILL_AT=hook)
    with pytest.raises((http.client.HTTPException, OSError)):
        w1.post(log.submission(3, 5))  # dies, and not one byte of an answer was sent
    w1.kill()

    w1 = desk.serve()
    note, checkpoint = parse_signed_checkpoint(w1.monitor(log.origin).body)
    committed = hook not in (CHECKED, BEFORE_COMMIT)
    assert (checkpoint.size, checkpoint.root) == ((5, log.root(5)) if committed else (3, log.root(3)))
    assert len(open_note(note, (*vkeys, *log.vkeys))) == len(note.signatures) == 4
    size = checkpoint.size
    # Neither a smaller tree nor another root of what it holds.
    assert w1.post(log.submission(1, 2)) == Reply(409, "text/x.tlog.size", b"%d\n" % size)
    assert w1.post(log.submission(size, size, root=FORKED)).status == 422
    assert w1.post(log.submission(3, 5)).status == 403
    assert desk.run("unfreeze", log.origin).returncode == 0
    # The log, which never had an answer, tries again and finds its way.
    again = w1.post(log.submission(3, 5))
    if committed:
        assert again == Reply(409, "text/x.tlog.size", b"5\n")
        again = w1.post(log.submission(5, 5))
    check_cosignatures(log, 5, vkeys, again)
    # From here on the other branch is refused, whatever the log sends along.
    for old, proof in ((5, []), (3, log.proof(3, 5)), (0, [])):
        assert w1.post(log.submission(old, 5, root=FORKED, proof=proof)).status in (403, 409, 422)
    _, checkpoint = parse_signed_checkpoint(w1.monitor(log.origin).body)
    assert (checkpoint.size, checkpoint.root) == (5, log.root(5))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.slow
def test_killed_at_first_contact_what_was_committed_binds(desk, log, vkeys, hook):
    """Two branches, and the process dies cosigning the first: at most one root is ever seen."""
    w1 = desk.serve(KTLOG_KILL_AT=hook)
    with pytest.raises((http.client.HTTPException, OSError)):
        w1.post(log.submission(0, 4))
    w1.kill()
    w1 = desk.serve()
    fork = w1.post(log.submission(0, 4, root=FORKED))
    if hook not in (CHECKED, BEFORE_COMMIT):
        assert fork == Reply(409, "text/x.tlog.size", b"4\n")
        assert desk.run("unfreeze", log.origin).returncode == 0
        check_cosignatures(log, 4, vkeys, w1.post(log.submission(4, 4)))
    else:  # no byte of the first ever left, so the second is the only one
        assert fork.status == 200
        assert w1.post(log.submission(4, 4)).status == 422
    assert w1.stop() == 0
    assert desk.run_json("list-logs")["evidence"] == 1


def test_a_worker_that_dies_is_replaced(desk, log, vkeys):
    """The hook kills the worker alone; its parent starts another, which reads the same record."""
    w1 = desk.serve(KTLOG_KILL_AT="witness.after_commit")
    with pytest.raises((http.client.HTTPException, OSError)):
        w1.post(log.submission(0, 4))
    deadline = time.monotonic() + SECONDS
    while w1.monitor(log.origin).status != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    _, checkpoint = parse_signed_checkpoint(w1.monitor(log.origin).body)
    assert checkpoint.size == 4
    assert w1.post(log.submission(0, 4)) == Reply(409, "text/x.tlog.size", b"4\n")
    assert w1.stop() == 0
