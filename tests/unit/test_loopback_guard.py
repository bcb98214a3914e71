"""The tests' own fence: proven here, relied on everywhere."""

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Documentation addresses (RFC 5737, RFC 3849): nobody's.
OUTSIDE = ("203.0.113.7", 443)
OUTSIDE_V6 = ("2001:db8::7", 443, 0, 0)


def test_a_connect_off_loopback_never_reaches_the_system_call(loopback_guard):
    # A UDP connect sends nothing and cannot fail for want of an answer: had the system call been made,
    # the socket would have a peer now, or the error would be the kernel's.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with pytest.raises(loopback_guard.LoopbackOnly):
            probe.connect(OUTSIDE)
        with pytest.raises(OSError) as caught:
            probe.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    assert loopback_guard.refused == [("socket.connect", "203.0.113.7")]


@pytest.mark.parametrize("reach", [
    lambda: socket.create_connection(OUTSIDE, timeout=1),
    lambda: socket.socket().connect_ex(OUTSIDE),
    lambda: socket.socket(socket.AF_INET6).connect(OUTSIDE_V6),
    lambda: socket.socket(socket.AF_INET6).connect(("::ffff:203.0.113.7", 443)),
    lambda: socket.socket().connect(("names.are.resolved.example", 443)),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", OUTSIDE),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", 0, OUTSIDE),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, OUTSIDE),
    lambda: socket.getaddrinfo("keys.alpha.example", 443),
    lambda: socket.getaddrinfo(b"keys.alpha.example", 443),
    lambda: socket.gethostbyname("keys.alpha.example"),
    lambda: socket.gethostbyaddr("203.0.113.7"),
    lambda: socket.getnameinfo(OUTSIDE, 0),
])
def test_every_way_out_is_refused(loopback_guard, reach):
    with pytest.raises(loopback_guard.LoopbackOnly):
        reach()
    assert len(loopback_guard.refused) == 1


def test_loopback_is_open(loopback_guard):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    assert socket.getaddrinfo("127.0.0.1", 80)
    assert loopback_guard.refused == []


CHILD = """
import socket, sys
try:
    socket.create_connection(("203.0.113.7", 443), timeout=1)
except Exception as error:
    print(type(error).__name__)
"""


def _run(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_child_processes_are_fenced_too(tmp_path, monkeypatch):
    log = tmp_path / "refused"
    monkeypatch.setenv("KTLOG_GUARD_LOG", str(log))
    assert _run(CHILD).split() == ["LoopbackOnly"]
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"
    assert _run(grandchild).split() == ["LoopbackOnly"]
    assert log.read_text() == "socket.connect 203.0.113.7\n" * 2


def test_children_import_this_source_tree():
    import ktlog

    where = _run("import ktlog; print(ktlog.__file__)").strip()
    assert Path(where).resolve() == Path(ktlog.__file__).resolve()


def test_the_sitecustomize_it_hides_still_runs(tmp_path, monkeypatch):
    import os

    (tmp_path / "sitecustomize.py").write_text("import sys; sys.other_one_ran = True\n")
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"] + os.pathsep + str(tmp_path))
    assert _run("import sys; print(getattr(sys, 'other_one_ran', False))").strip() == "True"
    assert _run(CHILD).split() == ["LoopbackOnly"]
