"""The courier's process: delivers queued direct messages. ``python -m ktlog.operator.replies --dir DIR``.

Recipients' servers belong to strangers, so nothing of it happens in a web worker or in the sequencer: a server that
never answers holds one of a few threads here, and one only. A request has one Ed25519 signature and a
SHA-256 digest, because that is all that the Fediverse's servers understand.

What fails is tried again, at growing distances, for a day. Nobody's name is ever written to the output: an actor
who was erased would be in there.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.config import Settings
from ktlog.errors import KtlogError, StoreError, Unreachable
from ktlog.operator.keys import load_fetch_key, load_seed
from ktlog.operator.lifeline import side_process
from ktlog.operator.replyqueue import ReplyQueue, Waiting
from ktlog.wire.actor import GONE, fetch_actor
from ktlog.wire.cavage import get_signer
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpsig import sign_request
from ktlog.wire.webfinger import ACTIVITY_JSON

THREADS = 4
POLL_SECONDS = 1.0
FETCH_SECONDS = 10.0
BATCH = 32
"""Messages that are taken from the queue at a time, each to another host."""
TAKEN_SECONDS = 1.0
LINGER_SECONDS = 0.2
"""How long others may come, once all that were due are delivered."""
FIRST_PAUSE_SECONDS = 30
LONGEST_PAUSE_SECONDS = 6 * 3_600
GIVE_UP_SECONDS = 24 * 3_600
MAX_ANSWER_BYTES = 65_536
# Statuses of a refusal that may not be the last word. Source: what Mastodon tries again.
_PASSING = frozenset({401, 408, 425, 429})

log = logging.getLogger("ktlog.replies")


class Stop(Protocol):
    """The part of threading.Event that is needed here."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Courier:
    """Takes messages from the queue to their recipients' inboxes.

    Args:
        actor_id: the log's actor. key: the Ed25519 key that its document lists as ``#main-key``.
        now: Unix seconds. compat: how recipients' documents are read; see ktlog.wire.compat.
    """

    def __init__(
        self, queue: ReplyQueue, fetcher: Fetcher, actor_id: str, key: Ed25519PrivateKey, now: Callable[[], int],
        compat: Collection[str] = (), clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compat = frozenset(compat)
        self._queue = queue
        self._fetcher = fetcher
        self._actor_id = actor_id
        self._key = key
        self._now = now
        self._clock = clock
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._taken: deque[Waiting] = deque()
        self._more = False
        self._since = 0.0
        self._done: list[tuple[int, bool]] = []

    def work(self, stop: Stop) -> None:
        """Deliver whatever is due until *stop* is set. For several threads at once: each has its own host."""
        while not stop.is_set():
            try:
                if self.deliver_one():
                    if not self._taken and not self._more:
                        stop.wait(LINGER_SECONDS)
                    continue
            except StoreError as error:
                log.warning("the queue of replies: %s", error.name)
            stop.wait(POLL_SECONDS)

    def deliver_one(self) -> bool:
        """Take one message that is due and try to deliver it. False when there was none.

        Messages are read and removed together, up to BATCH at a time. What a process that ends has delivered and not
        removed is delivered again: under the same id, which recipients know.

        Raises:
            StoreError: the queue cannot be read or written.
        """
        with self._lock:
            waiting = self._take()
            if waiting is None:
                return False
            self._busy.add(waiting.host)
        try:
            self._deliver(waiting)
        finally:
            with self._lock:
                self._busy.discard(waiting.host)
                if not self._taken:
                    self._remove_done()
        return True

    def _take(self) -> Waiting | None:
        # Who is erased is forgotten in the queue, not here: what lies here for longer is read again.
        if self._clock() - self._since > TAKEN_SECONDS:
            self._taken.clear()
        if not self._taken:
            self._remove_done()
            self._since = self._clock()
            taken, self._more = self._queue.due_now(self._now(), self._busy, BATCH)
            self._taken.extend(taken)
        return self._taken.popleft() if self._taken else self._queue.next_due(self._now(), self._busy)

    def _remove_done(self) -> None:
        if self._done:
            self._queue.remove_all(self._done)
            self._done = []

    def _deliver(self, waiting: Waiting) -> None:
        age = self._now() - waiting.created
        try:
            status = None if age >= GIVE_UP_SECONDS else self._post(waiting)
        except KtlogError as error:
            if error.name != GONE:
                tried = max(waiting.attempts, waiting.failures)
                pause = min(FIRST_PAUSE_SECONDS * 4 ** min(tried, 8), LONGEST_PAUSE_SECONDS)
                self._queue.postpone(waiting.id, self._now() + pause)
                return
            status = 410
        with self._lock:
            self._done.append((waiting.id, status is not None))
        if status is None or status >= 300:
            log.warning("a reply was given up (%s)", "too old" if status is None else status)

    def _post(self, waiting: Waiting) -> int:
        """The status of an answer that is final.

        Raises:
            KtlogError: trying again may help; or ``GoneActor``, when it never will.
        """
        # Known when the message was queued, a moment ago as a rule: once it is tried, and then looked up.
        known = None if waiting.attempts else waiting.inbox
        status = 0 if known is None else self._post_to(known, waiting.body)
        if 200 <= status < 300:
            return status
        inbox = fetch_actor(self._fetcher, waiting.recipient, self._compat).inbox
        return status if inbox == known else self._post_to(inbox, waiting.body)

    def _post_to(self, inbox: str, body: bytes) -> int:
        headers = {"Content-Type": ACTIVITY_JSON}
        signed = sign_request("POST", inbox, headers, body, f"{self._actor_id}#main-key", self._key, self._now())
        status = self._fetcher.post(inbox, body, signed, max_bytes=MAX_ANSWER_BYTES).status
        if status in _PASSING or status >= 500:
            raise Unreachable("BadStatus", f"the inbox answers {status}")
        return status


def start(settings: Settings, _end: Callable[[], None]) -> threading.Event:
    """Begin to deliver. What is under way at the end is tried again after the next start.

    Raises:
        StoreError: no key, or no queue.
    """
    def now() -> int:
        return int(time.time())

    key = Ed25519PrivateKey.from_private_bytes(load_seed(settings.keys, "http-ed25519"))
    sign_get = get_signer(settings.fetch_key_id, load_fetch_key(settings.keys), now)
    fetcher = Fetcher.from_environment(timeout=FETCH_SECONDS, sign_get=sign_get)
    courier = Courier(
        ReplyQueue(settings.replies), fetcher, settings.actor_id, key, now, settings.compat_names()
    )
    stop = threading.Event()
    for number in range(THREADS):
        threading.Thread(target=courier.work, args=(stop,), daemon=True, name=f"courier-{number}").start()
    return stop


def main(arguments: list[str]) -> int:
    return side_process(arguments, "replies.lock", start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
