"""A witness in process that follows one log, asked over HTTP as logs and monitors ask it."""

from __future__ import annotations

import queue

from tests.witness_log import NOW, Log
from witness.config import WitnessDir
from witness.keys import write_keys
from witness.store import WitnessStore, hash_origin
from witness.together import Together
from witness.web import create_app
from witness.witness import Answer, Witness

NAME = "example.com/w1"
SECONDS = 30


class Clock:
    """Tells the time it was set to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class Session:
    """A witness that follows one log, an HTTP client for it, and its clock."""

    def __init__(self, path, reach=lambda name: None) -> None:
        self.directory = WitnessDir(path / "w")
        self.directory.make()
        self.signers = write_keys(self.directory, bytes(32), NAME)
        self.vkeys = tuple(signer.vkey for signer in self.signers)
        WitnessStore.create(self.directory.database, NAME, self.vkeys, NOW).close()
        self.log = Log()
        self.clock = Clock()
        self.start(reach)
        self.witness.store.add_log(self.log.origin, self.log.vkeys, NOW)

    def start(self, reach=lambda name: None) -> None:
        store = WitnessStore.open(self.directory.database, reach=reach)
        store.keep_mark(self.directory.mark)
        self.witness = Witness(store, self.signers, clock=self.clock, reach=reach)
        self.client = create_app(self.witness).test_client()

    def post(self, body: bytes, **options):
        return self.client.post("/add-checkpoint", data=body, **options)

    def submit(self, old: int, new: int, **options):
        return self.post(self.log.submission(old, new, **options))

    def monitor(self, log: Log | None = None):
        return self.client.get(f"/{hash_origin((log or self.log).origin)}/checkpoint")

    def size(self) -> int | None:
        latest = self.witness.store.log(self.log.origin).latest
        return None if latest is None else latest.checkpoint.size


class Waiting:
    """One of those who are answered later."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue = queue.SimpleQueue()
        self.answer = self.run = self.heard.put


class Served:
    """A witness as the daemon asks it: submissions that come together are worked on together, and answered later."""

    def __init__(self, witness: Witness) -> None:
        self._together = Together(witness.add_checkpoints)
        self._waiting: list[Waiting] = []

    def add_checkpoint(self, body: bytes) -> Answer:
        waiting = Waiting()
        self._waiting.append(waiting)
        try:
            if self._together.put((body, waiting)):
                self._together.lead()
            while callable(heard := waiting.heard.get(timeout=SECONDS)):
                heard()
        finally:
            self._waiting.remove(waiting)
        if isinstance(heard, BaseException):
            raise heard
        return heard

    def give_up(self, error: BaseException) -> None:
        """Have *error* raised for all that wait, whom nobody else would tell: the thread that writes has died."""
        for waiting in self._waiting:
            waiting.answer(error)


WAYS = {"asked and waited for": lambda witness: witness, "as the daemon asks": Served}
