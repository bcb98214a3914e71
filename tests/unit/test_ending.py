"""How processes learn that they are to end: whatever the main thread was doing, and whichever thread the signal came to."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The main thread holds the very lock that the act takes when the signal comes.
HOLDING = """
import signal, threading, time
from ktlog.ending import call_when_told
told = threading.Event()
call_when_told(told.set)
with told._cond:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.05)
    assert not told.is_set()
while not told.wait(0.5):
    pass
"""

TWICE = """
import signal, threading
from ktlog.ending import ENDING, call_when_told
times = threading.Semaphore(0)
call_when_told(times.release)
for number in ENDING:
    signal.raise_signal(number)
    while not times.acquire(timeout=0.5):
        pass
"""


@pytest.mark.parametrize("program", [HOLDING, TWICE])
def test_a_signal_waits_for_no_lock(program):
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0


# A signal that another thread takes: the main thread sleeps on, as it does when one comes just before it goes to sleep.
ELSEWHERE = """
import signal, sys, threading, time
from pathlib import Path
from ktlog.operator import signer
path = Path(sys.argv[1])
def end():
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
signer.serve_path(None, path)
"""

WITNESS = """
import signal, threading, time
from witness.web import wait_for_signal
wait = wait_for_signal()
def end():
    time.sleep(0.1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
wait()
"""


@pytest.mark.parametrize("program", [ELSEWHERE, WITNESS])
def test_a_main_thread_that_sleeps_looks_up_in_time(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must stay short
    done = subprocess.run([sys.executable, "-c", program, "sock"], timeout=30, check=False, start_new_session=True)
    assert done.returncode == 0
