"""The process that mirrors other logs: ``python -m ktlog.operator.replica --dir DIR``.

Each source has a thread of its own, so that one that never answers delays no other, and nothing of it
happens in a web worker or in the sequencer. Only names of errors are ever written to the output: their
texts may name an actor who was erased.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

from ktlog.config import Settings
from ktlog.errors import KtlogError
from ktlog.operator.lifeline import side_process
from ktlog.operator.mirror import Mirror
from ktlog.operator.sources import load_sources
from ktlog.wire.fetch import Fetcher

FETCH_SECONDS = 60.0
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
                    log.info("%s is mirrored again: %d entries", origin, mirror.status.tree_size)
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


def start(settings: Settings, end: Callable[[], None]) -> threading.Event:
    """Begin to mirror. See :func:`ktlog.operator.lifeline.side_process`.

    Raises:
        UsageError, PolicyUnmet: from ``load_sources``.
        StoreError: what is mirrored already cannot be read.
    """
    fetcher = Fetcher.from_environment(timeout=FETCH_SECONDS)
    mirrors = [Mirror(source, fetcher, lambda: int(time.time())) for source in load_sources(settings)]
    stop = threading.Event()
    for mirror in mirrors:
        threading.Thread(
            target=follow, args=(mirror, settings.replica_interval_seconds, stop, end),
            daemon=True, name=f"mirror-{mirror.source.log.origin}",
        ).start()
    return stop


def main(arguments: list[str]) -> int:
    return side_process(arguments, "replicas.lock", start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
