"""From a web worker into the queue of replies, many in one transaction, in a thread that no answer waits for.

What a process that ends has not queued yet is lost, as the queue itself may be: the senders have their answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ktlog.errors import StoreError
from ktlog.operator.replyqueue import Letter, ReplyQueue
from ktlog.store.contracts import LogStore

LIMIT = 256
"""Letters that wait to be queued. More come only while the file is stuck, and are dropped."""
LINGER_SECONDS = 0.02
"""How long the first of a batch waits for others."""

log = logging.getLogger("ktlog.web")


class Outbox:
    """Safe to use from many threads. Its own begins with the first letter: to be made after a fork.

    Args:
        is_erased: whether an actor was erased: nobody who was is written down again, not even as a recipient.
        now: Unix seconds.
    """

    def __init__(
        self, queue: ReplyQueue, store: LogStore, is_erased: Callable[[str], bool], now: Callable[[], int]
    ) -> None:
        self._queue = queue
        self._store = store
        self._is_erased = is_erased
        self._now = now
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._letters: list[Letter] = []
        self._some = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, letter: Letter) -> bool:
        """Have *letter* queued soon. False when it is dropped."""
        with self._lock:
            if len(self._letters) >= LIMIT:
                return False
            self._letters.append(letter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="outbox")
                self._thread.start()
        self._some.set()
        return True

    def flush(self) -> None:
        """Queue all that was sent before; what cannot be queued is lost, and logged."""
        with self._writing:
            with self._lock:
                letters, self._letters = self._letters, []
            if letters:
                try:
                    self._put(letters)
                except StoreError as error:
                    log.warning("%d replies were not queued: %s", len(letters), error.name)

    def _put(self, letters: list[Letter]) -> None:
        with self._store.snapshot():
            erasures = self._store.erasure_count()
            letters = [letter for letter in letters if not self._is_erased(letter.recipient)]
        self._queue.put_all(letters, self._now())
        if self._store.erasure_count() != erasures:
            # Just now, and the erasure may have looked into the queue before this.
            for recipient in {letter.recipient for letter in letters}:
                if self._is_erased(recipient):
                    self._queue.forget(recipient)

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(LINGER_SECONDS)
            self._some.clear()
            try:
                self.flush()
            except Exception:
                # A bug must not end the thread: every reply after it would wait for ever.
                log.exception("replies were not queued")
