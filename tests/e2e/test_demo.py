"""``ktlog demo`` as a newcomer meets it: the whole story, on a terminal and off it, and every way to end it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ktlog.commands.demo import _commands
from ktlog.demo.processes import is_alive
from ktlog.demo.scene import Result
from ktlog.demo.story import CHECKS
from ktlog.demo.topology import plan
from tests.demo_run import PROCESSES, SECONDS, DemoRun, demo, wait_for
from tests.machine import program

GUARD = Path(__file__).resolve().parents[1] / "guard"
CHAPTERS = (
    "1. Two instances, two logs, three witnesses, a verifier", "2. Actors enrol", "3. Witnesses cosign", "4. A client",
    "5. One of them in full", "6. Somebody whom nobody enrolled", "7. One actor rotates", "8. The client looks again",
    "9. An operator erases", "10. An auditor", "11. Lie 1", "12. Lie 2", "13. Lie 3", "14. Lie 4", "15. Every process",
)


def test_the_whole_story(tmp_path):
    """All actors. One test, because the story is long and shall be told once."""
    refused = tmp_path / "refused"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with demo("--once", "--json", environment={"KTLOG_GUARD_LOG": str(refused)}) as run:
        assert run.wait() == 0, run.stdout + run.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = run.report()
        assert run.stdout == json.dumps(report) + "\n", "one object, and nothing else"
        assert run.stderr == ""
        _check_counts(report)
        _check_lies(report)
        _check_processes(report)
        assert _gone(run)
    # The guard (tests/guard) is in every process, as a test below shows, and it was never asked to refuse.
    assert not refused.exists(), refused.read_text()
    # Processor time does not depend on what else the machine does: 60 s on two cores at most.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * 60


def _check_counts(report):
    assert report["ok"] is True
    assert "failed" not in report
    assert report["actors"] == 20
    # Everybody, one of them in full, two again; somebody who was never there; and one who was erased.
    assert report["answers"] == {"present": 23, "never-enrolled": 1, "erased": 1}
    assert report["lookups_verified"] == 25
    assert report["entries_audited"] == 20 + 2  # every actor enrols, and one rotates with two messages
    assert report["checks"] == list(CHECKS)
    assert 0 < report["seconds"] < SECONDS
    assert [name for name in report if f"{name}:" not in Result.__doc__] == [], "every field is documented"


def _check_lies(report):
    assert report["lies_refused"] == len(report["lies"]) == 11
    assert all(verdict.keys() == {"lie", "refused_by", "reason"} for verdict in report["lies"])
    found = [(one["lie"], one["refused_by"], re.match(r"\w+", one["reason"])[0]) for one in report["lies"]]
    assert found == [
        ("smaller", "witness", "409"), ("smaller", "verifier", "409"), ("smaller", "client", "RolledBack"),
        ("swapped-key", "client", "UnlistedKey"), ("swapped-key", "auditor", "AnswerContradictsLog"),
        ("hidden-revocation", "verifier", "422"), ("hidden-revocation", "auditor", "MapNotDerived"),
        ("hidden-revocation", "client", "TooFewVerifiers"),
        ("same-size", "witness", "422"), ("same-size", "client", "TwoRoots"), ("same-size", "auditor", "TwoRoots"),
    ]
    hidden = next(one["reason"] for one in report["lies"] if one["lie"] == "hidden-revocation")
    assert "WrongMap: MapMismatch" in hidden
    # A smaller tree alone convicts nobody: a finding, and evidence for the fork only, of the log and of its map.
    assert report["findings"] == [{"lie": "smaller", "found_by": "auditor", "reason": "RolledBack"}]
    own, of_the_map = (Path(path).name for path in report["evidence"])
    assert own.startswith("two-roots-keys.beta.example")
    assert of_the_map == "two-roots-of-the-map.json"


def _check_processes(report):
    """Each is named once, with what it needs to be found, and none is left."""
    assert sorted(process["name"] for process in report["processes"]) == sorted(PROCESSES)
    pids = [process["pid"] for process in report["processes"]]
    assert len(set(pids)) == len(pids)
    no_port = [process["name"] for process in report["processes"] if process["port"] == 0]
    assert no_port == ["sequencer-alpha", "replies-alpha", "sequencer-beta", "replies-beta"]
    assert [pid for pid in pids if is_alive(pid)] == []


@pytest.mark.slow
def test_it_stays_up_prints_commands_that_work_and_ends_by_ctrl_c():
    with demo("--actors", "4") as run:
        run.wait_for_words("Everything stays up")
        run.wait_for_words(" audit ")
        said = run.stdout
        for chapter in CHAPTERS:
            assert f"\n{chapter}" in said
        assert (said.count("refused  "), said.count("noticed  ")) == (11, 1)  # eleven verdicts and a finding
        assert re.search(
            r"ok       keys.alpha.example: 4 entries, 8 commitments, 2 actors, \d+ maps \(\d+ derived from the entries\),"
            " nothing amiss", said,
        )
        assert "\x1b" not in said
        lines = [line.strip() for line in said.splitlines()]
        curls = [line for line in lines if line.startswith("curl ")]
        assert len(curls) == 2
        if shutil.which("curl"):
            fetched = [_shell(line) for line in curls]
            assert [text.split("\n")[0] for text in fetched] == ["keys.alpha.example", "keys.beta.example"]
        start = next(number for number, line in enumerate(lines) if line.startswith("export KTLOG_DIAL="))
        export, key, submit, lookup, audit = lines[start : start + 5]
        _shell(key)
        assert "accepted" in _shell(f"{export} && {submit}")
        # Until the next map the log proves that there is nobody of that name.
        def enrolled() -> str:
            said = _shell(f"{export} && {lookup}")
            assert said.startswith("@you@alpha.example\n")
            return "" if "NEVER ENROLLED in keys.alpha.example" in said else said

        found = wait_for("the new key to be published", enrolled)
        assert "1 active key, and no other:" in found
        assert "verifiers v1.verifier.example" in found
        assert "keys.alpha.example" in _shell(f"{export} && {audit}")
        run.wait_for_words("chromium ")
        doctor, watch, browser = (line.strip() for line in run.stdout.rstrip().splitlines()[-3:])
        assert _shell(f"{export} && {doctor} || true").splitlines()[-1].startswith(("All is well", "Nothing is bad"))
        assert "@you@alpha.example" in _shell(f"{export} && {watch} --count 1")
        if program("chromium"):
            page = _shell(browser.replace("chromium ", f"{program('chromium')} --headless --no-sandbox --disable-gpu --dump-dom ", 1))
            assert "keys.alpha.example" in page and "<title" in page
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0
        assert run.stderr == ""
        assert _gone(run)


def _shell(line: str) -> str:
    """What a line prints that somebody pastes into a shell, in any directory."""
    done = subprocess.run(["sh", "-c", line], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_terminal_shows_progress(tmp_path):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "TMPDIR": str(tmp_path)}
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "CI"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "ktlog", "demo", "--once", "--actors", "4"], stdin=terminal, stdout=terminal,
        stderr=terminal, env=environment, start_new_session=True,
    )
    os.close(terminal)
    try:
        shown = _read_terminal(controller, process)
        assert process.wait(60) == 0, shown
    finally:
        os.close(controller)
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    for chapter in CHAPTERS:
        assert chapter in plain
    assert re.search(r"enrolled ━+ 4/4 ", plain)
    assert re.search(r"looked up ━+ 4/4 ", plain)
    assert re.search(r"enrolled [━╸╺ ]+ [0-3]/4 ", plain)  # a bar that moved, not one that was drawn at the end
    assert "\x1b[1m" in shown
    assert "✓ ok" in plain
    assert (plain.count("✗ refused"), plain.count("! noticed")) == (11, 1)
    # The terminal breaks long lines, not we: what is copied from it stays whole.
    long = next(line for line in plain.splitlines() if "evidence: " in line)
    assert len(long) > 100
    assert long.rstrip().endswith("convicts the log by its public key alone")


def _read_terminal(controller: int, process: subprocess.Popen) -> str:
    """Everything that the terminal is sent until the program has ended."""
    shown = b""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        ready, _, _ = select.select([controller], [], [], 0.2)
        if ready:
            try:
                data = os.read(controller, 65536)
            except OSError:  # how Linux says that the other side was closed
                data = b""
            if not data:
                return shown.decode("utf-8")
            shown += data
        elif process.poll() is not None:
            return shown.decode("utf-8")
    raise AssertionError(f"no end within 300 s: {shown[-500:]!r}")


def _gone(run: DemoRun) -> bool:
    """Nothing is left of it, neither processes nor files."""
    assert run.left_running() == []
    assert list(run.temporary.iterdir()) == []
    return True


@pytest.mark.slow
def test_ctrl_c_ends_everything_and_the_guard_was_in_everything():
    with demo("--once", "--actors", "4", "--pause-before", "enrolled") as run:
        started = run.paused().processes
        assert sorted(started) == sorted(PROCESSES)
        for name, (pid, _) in started.items():
            found = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            path = next(line for line in found if line.startswith("PYTHONPATH=")).partition("=")[2]
            assert path.split(os.pathsep)[0] == str(GUARD), name
        assert run.left_running()  # that is, what looks for processes finds them
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
        assert [name for name, (pid, _) in started.items() if is_alive(pid)] == []
        assert _gone(run)
        assert run.stderr.strip() == "ktlog: aborted"


@pytest.fixture
def terminal_counts():
    """Under nohup this process ignores the signal, and so would what it starts, rightly."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_lost_terminal_ends_everything(terminal_counts):
    with demo("--once", "--actors", "4", "--pause-before", "started") as run:
        run.paused()
        run.process.send_signal(signal.SIGHUP)
        assert run.wait() == 130
        assert _gone(run)


def test_a_directory_of_ones_own_is_kept(tmp_path):
    home = tmp_path / "kept"
    with demo("--once", "--json", "--actors", "4", "--dir", str(home), "--pause-before", "started") as run:
        assert run.paused().directory == home
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 130
        assert run.left_running() == []
    assert (home / "output" / "front.log").is_file()
    assert (home / "log-alpha" / "log.db").is_file()


@pytest.mark.slow
def test_a_signal_while_it_works_ends_everything():
    with demo("--once", "--actors", "20") as run:
        run.wait_for_words("2. Actors enrol")
        time.sleep(0.5)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 130
        assert _gone(run)
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize("seconds", [0.2, 0.8])
def test_a_signal_while_keys_are_made_ends_everything(seconds):
    with demo("--once", "--actors", "4") as run:
        run.wait_for_words("Making keys")
        time.sleep(seconds)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
        assert _gone(run)


def test_impatience_does_not_stop_the_clearing_up():
    with demo("--once", "--actors", "4", "--pause-before", "started") as run:
        run.paused()
        for _ in range(20):
            if run.process.poll() is None:
                run.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        run.wait()
        assert _gone(run)


@pytest.mark.parametrize("content", ["file", "full"])
def test_a_directory_in_use_is_refused(tmp_path, content):
    home = tmp_path / "home"
    if content == "file":
        home.write_text("mine")
    else:
        home.mkdir()
        (home / "mine").write_text("mine")
    with demo("--once", "--dir", str(home)) as run:
        assert run.wait() == 2
        assert "home" in run.stderr
        assert "Traceback" not in run.stderr
    assert (home if content == "file" else home / "mine").read_text() == "mine"


def test_the_commands_are_ones_that_a_shell_understands():
    """Whatever the directory is called."""
    export, *lines = _commands(plan(Path("/some where/it's"), 4))
    assert shlex.split(export) == ["export", "KTLOG_DIAL=/some where/it's/dial.json"]
    assert len(lines) == 4
    for line, policy in zip(lines[2:], ("trust", "audit"), strict=True):
        words = shlex.split(line)
        assert words[words.index("--policy") + 1] == f"/some where/it's/{policy}.policy"
