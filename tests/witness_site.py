"""A witness in process that follows one log, asked over HTTP as logs and monitors ask it."""

from __future__ import annotations

from tests.witness_log import NOW, Log
from witness.config import WitnessDir
from witness.keys import write_keys
from witness.store import WitnessStore, hash_origin
from witness.web import create_app
from witness.witness import Witness

NAME = "example.com/w1"


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
