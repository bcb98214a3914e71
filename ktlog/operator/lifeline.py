"""What the processes beside the sequencer have in common: their beginning, and their end with the supervisor."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ktlog.collector import look_rarely
from ktlog.config import Settings, load_settings
from ktlog.durable import FileLock
from ktlog.ending import ENDING
from ktlog.errors import KtlogError
from ktlog.wire import logs

LOOK_SECONDS = 0.5
STOP_LOOK_SECONDS = 0.2


def end_with_parent(end: Callable[[], None]) -> None:
    """Call *end* once, from a thread, when the parent process is gone: a killed supervisor leaves no orphan."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def side_process(
    arguments: list[str], lock: str, start: Callable[[Settings, Callable[[], None]], threading.Event]
) -> int:
    """Run the one process of its kind for the log in ``--dir DIR`` until a signal or *start*'s threads end it.

    Args:
        lock: the name of the file in DIR that keeps a second one out.
        start: starts the threads that do the work. It is given what ends the process, and returns the event
            that tells the threads to stop.

    Returns:
        The exit code.
    """
    # A list, not an Event: its lock could be held by the very code that a signal interrupts.
    told_to_stop: list[int] = []
    for number in ENDING:
        signal.signal(number, lambda number, _frame: told_to_stop.append(number))
    try:
        settings = load_settings(Path(arguments[arguments.index("--dir") + 1]))
        logs.configure_daemon(settings.log_format, settings.log_level)
        with FileLock(settings.directory / lock):
            end_with_parent(lambda: told_to_stop.append(0))
            stop = start(settings, lambda: told_to_stop.append(1))
            look_rarely()
            while not told_to_stop:
                time.sleep(STOP_LOOK_SECONDS)
            stop.set()
    except KtlogError as error:
        logs.say_why(error)
        return error.exit_code
    return 0
