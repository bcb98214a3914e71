"""The demo's processes: none is forgotten, none that is not ours is touched, and what they said is quoted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ktlog.demo import processes as module
from ktlog.demo.processes import Processes, is_alive, listen_on_loopback, signals_held_back, wait_until
from ktlog.errors import Invalid, Unreachable

# Takes `--listen fd://N` like every server of the demo, says so, and serves nobody.
SERVER = """
import subprocess, sys, time
print("listening on", sys.argv[-1], flush=True)
{body}
time.sleep(60)
"""


@pytest.fixture
def module_path(tmp_path, monkeypatch):
    """Where a test puts modules that ``python -m`` shall find."""
    path = tmp_path / "modules"
    path.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{path}")
    return path


@pytest.fixture
def started(tmp_path, module_path):
    running = Processes(tmp_path / "output", {})
    yield running
    running.stop_all()


def _server(processes: Processes, module_path, name: str = "server", body: str = "") -> int:
    (module_path / f"{name}_module.py").write_text(SERVER.format(body=body))
    pid = processes.start(name, f"{name}_module", [], listen_on_loopback()).pid
    output = module_path.parent / "output" / f"{name}.log"
    _until(lambda: b"listening" in output.read_bytes())
    return pid


def _until(ready) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_started_process_runs_until_it_is_stopped(started, module_path):
    pid = _server(started, module_path)
    assert is_alive(pid)
    assert [running.pid for running in started.running()] == [pid]
    assert started.ended() == []
    started.stop("server")
    assert not is_alive(pid)
    assert started.running() == []


def test_one_that_ends_by_itself_is_named_with_how(started, module_path):
    killed = _server(started, module_path, "killed")
    _server(started, module_path, "left", "sys.exit(8)")
    _server(started, module_path, "stays")
    os.kill(killed, signal.SIGKILL)
    _until(lambda: len(started.ended()) == 2)
    assert started.ended() == ["killed (-9)", "left (8)"]
    assert started.ended("left", "stays") == ["left (8)"]
    assert not is_alive(killed), "though nobody has waited for it, so that its id is still its own"
    os.kill(killed, 0)


def test_stopping_reaches_children_whose_parent_was_killed(started, module_path):
    body = "print('child', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)"
    pid = _server(started, module_path, body=body)
    output = module_path.parent / "output" / "server.log"
    _until(lambda: b"child" in output.read_bytes())
    child = int(output.read_text().split("child")[1].split()[0])
    os.kill(pid, signal.SIGKILL)
    _until(started.ended)
    assert is_alive(child)
    started.stop_all()
    _until(lambda: not is_alive(child))


def test_a_stopped_or_a_deaf_process_is_ended_too(started, module_path, monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 1.0)
    frozen = _server(started, module_path, "frozen")
    deaf = _server(started, module_path, "deaf", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    os.kill(frozen, signal.SIGSTOP)
    started.stop_all()
    assert not is_alive(frozen)
    assert not is_alive(deaf)


def test_a_command_gives_its_json_and_its_exit_code(started, module_path):
    (module_path / "says.py").write_text("import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))")
    assert started.run("says", '{"found": 1}', "0") == {"found": 1, "exit_code": 0}
    assert started.run("says", '{"error": {}}', "9") == {"error": {}, "exit_code": 9}


@pytest.mark.parametrize("words", ["", "no json", "[]", "5"])
def test_a_command_that_prints_no_object_has_failed(started, module_path, words):
    (module_path / "says.py").write_text("import sys; print(sys.argv[1]); print('because', file=sys.stderr)")
    with pytest.raises(Invalid) as caught:
        started.run("says", words)
    assert caught.value.name == "CommandFailed"
    assert "because" in caught.value.message


def test_a_command_that_does_not_end_is_killed(started, module_path, monkeypatch):
    monkeypatch.setattr(module, "COMMAND_SECONDS", 0.5)
    (module_path / "waits.py").write_text("import time; time.sleep(60)")
    with pytest.raises(Invalid, match="did not end"):
        started.run("waits", "now")


def test_stopping_ends_commands_in_other_threads_and_lets_none_begin(started, module_path):
    (module_path / "waits.py").write_text("import time; time.sleep(60)")
    failures = []

    def work():
        try:
            started.run("waits", "now")
        except Invalid as error:
            failures.append(error.name)

    thread = threading.Thread(target=work)
    thread.start()
    _until(lambda: started._commands)
    started.stop_all()
    thread.join(30)
    assert failures == ["CommandFailed"]
    with pytest.raises(Unreachable, match="ending"):
        started.run("waits", "now")


def test_the_last_words_are_new_short_and_said_once(tmp_path):
    processes = Processes(tmp_path, {})
    log = tmp_path / "log-alpha.log"
    log.write_text("old trouble\n")
    assert processes.last_words() == ["log-alpha wrote: old trouble"]
    with log.open("a") as output:
        output.write("12:00 x INFO all is well\n\n  ^^^^\nagain\nagain\n" + "".join(f"line {number}\n" for number in range(19)))
        output.write("Traceback (most recent call last):\n" + "x" * 1000 + "\n")
    processes.note("demo", "a bug")
    assert processes.last_words() == [
        "demo wrote: a bug", *(f"log-alpha wrote: line {number}" for number in range(8, 19)),
        "log-alpha wrote: " + "x" * 300,
    ]
    assert processes.last_words() == []


def test_a_signal_waits_until_it_may_come():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("now"))
    try:
        with signals_held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert came == []
        assert came == ["now"]
        assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_child_of_another_is_dead_once_it_is_killed():
    """Though its parent never waits for it, as a supervisor between two looks."""
    code = ("import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)
        _until(lambda: not is_alive(child))
        parent.kill()


def test_waiting_ends_when_it_is_in_vain():
    with pytest.raises(Unreachable) as caught:
        wait_until("the moon", lambda: False, lambda: ["sun (1)"])
    assert caught.value.name == "ProcessEnded"
    assert "sun (1)" in caught.value.message
    with pytest.raises(Unreachable) as caught:
        wait_until("the moon", lambda: False, list, seconds=0.1)
    assert caught.value.name == "NotReady"
    wait_until("the moon", lambda: True, list)
