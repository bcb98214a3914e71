"""Of too many uploads the one goes that keeps the mirror waiting, and nobody who does not."""

from __future__ import annotations

import threading

import pytest

from witness.uploads import GRACE_SECONDS, LEAST_BYTES_PER_SECOND, Uploads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Sender:
    """An upload of which each read takes *seconds* and brings *count* bytes."""

    def __init__(self, uploads: Uploads, clock: Clock, seconds: float = 0.0, count: int = 0) -> None:
        self.hung_up = threading.Event()
        self._clock, self._seconds, self._count = clock, seconds, count
        self.upload = uploads.begin(self._read, self._hang_up)
        self._uploads = uploads

    def _read(self, _: int) -> bytes:
        self._clock.now += self._seconds
        return bytes(self._count)

    def _hang_up(self) -> None:
        self.hung_up.set()


class Silent(Sender):
    """One whose only read lasts until it is hung up on."""

    def __init__(self, uploads: Uploads, clock: Clock) -> None:
        super().__init__(uploads, clock)
        self.reads = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.reads.wait(10)

    def _read(self, _: int) -> bytes:
        self.reads.set()
        assert self.hung_up.wait(10)
        return b""

    def _run(self) -> None:
        assert self.upload.read(1) == b""
        self._uploads.end(self.upload)


@pytest.fixture
def clock():
    return Clock()


def test_a_silent_one_makes_room_and_one_that_we_keep_waiting_does_not(clock):
    uploads = Uploads(2, clock)
    kept, silent = Sender(uploads, clock), Silent(uploads, clock)
    clock.now += GRACE_SECONDS / 2
    assert uploads.begin(lambda count: b"", lambda: None) is None, "not before it had its time"
    clock.now += 100
    came = Sender(uploads, clock)
    assert came.upload is not None and silent.hung_up.is_set() and not kept.hung_up.is_set()
    assert (uploads.count(), uploads.hung_up) == (2, 1)


@pytest.mark.parametrize(("rate", "goes"), [(LEAST_BYTES_PER_SECOND // 2, True), (LEAST_BYTES_PER_SECOND * 2, False)])
def test_who_sends_at_a_rate_stays_and_who_drips_goes(clock, rate, goes):
    uploads = Uploads(1, clock)
    sender = Sender(uploads, clock, 1.0, rate)
    for _ in range(int(GRACE_SECONDS) + 1):
        sender.upload.read(rate)
    waits = threading.Event()
    sender._read = lambda _: (waits.set(), sender.hung_up.wait(1 if goes else 0.01), b"")[2]
    sender.upload._read = sender._read
    thread = threading.Thread(target=lambda: (sender.upload.read(1), uploads.end(sender.upload)), daemon=True)
    with uploads._changed:
        thread.start()
        assert waits.wait(10)
        assert uploads._make_room() is goes
    thread.join(10)
    assert sender.hung_up.is_set() is goes
