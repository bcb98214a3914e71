"""The process that mirrors other logs: ``python -m ktlog.operator.replica --dir DIR``.

Each source has a thread of its own, so that one that never answers delays no other, and nothing of it
happens in a web worker or in the sequencer. Only names of errors are ever written to the output: their
texts may name an actor who was erased.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ktlog.config import Settings, load_settings
from ktlog.durable import FileLock
from ktlog.errors import KtlogError
from ktlog.operator.lifeline import end_with_parent
from ktlog.operator.mirror import Mirror
from ktlog.operator.sources import load_sources
from ktlog.wire.fetch import Fetcher

FETCH_SECONDS = 60.0
LOOK_SECONDS = 0.2
LONGEST_PAUSES = 16

log = logging.getLogger("ktlog.replicas")


def follow(mirror: Mirror, interval: float, stop: threading.Event, end: Callable[[], None]) -> None:
    """Poll until *stop* is set, ever less often while it fails. A bug ends the process, with *end*."""
    origin, pause, failing = mirror.source.log.origin, 0.0, ""
    try:
        while not stop.wait(pause):
            try:
                mirror.poll()
                pause = interval
                if failing:
                    log.warning("%s is mirrored again: %d entries", origin, mirror.status.tree_size)
                failing = ""
            except KtlogError as error:
                if error.name != failing:
                    log.error("%s is not mirrored: %s", origin, error.name)
                failing = error.name
                pause = min(max(2 * pause, interval), LONGEST_PAUSES * interval)
    except BaseException:
        log.exception("the mirror of %s", origin)
        end()
        raise
    finally:
        mirror.close()


def run(settings: Settings, told_to_stop: list[int]) -> None:
    """Mirror until *told_to_stop* holds anything.

    Raises:
        UsageError, PolicyUnmet: from ``load_sources``.
        StoreError: what is mirrored already cannot be read.
    """
    fetcher = Fetcher.from_environment(timeout=FETCH_SECONDS)
    mirrors = [Mirror(source, fetcher, lambda: int(time.time())) for source in load_sources(settings)]
    stop = threading.Event()
    for mirror in mirrors:
        threading.Thread(
            target=follow, args=(mirror, settings.replica_interval_seconds, stop, lambda: told_to_stop.append(1)),
            daemon=True, name=f"mirror-{mirror.source.log.origin}",
        ).start()
    while not told_to_stop:
        time.sleep(LOOK_SECONDS)
    stop.set()


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    # A list, not an Event: its lock could be held by the very code that a signal interrupts.
    told_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told_to_stop.append(number))
    try:
        settings = load_settings(Path(arguments[arguments.index("--dir") + 1]))
        with FileLock(settings.directory / "replicas.lock"):
            end_with_parent(lambda: told_to_stop.append(0))
            run(settings, told_to_stop)
    except KtlogError as error:
        print(f"ktlog: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
