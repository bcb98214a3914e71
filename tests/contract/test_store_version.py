"""``LogStore.version``: whoever keeps answers asks it before each, and must hear of every commit."""

from __future__ import annotations

from ktlog.store.contracts import Cosignature
from tests.store_samples import ALICE, Backend, append, enrol


def test_it_stays_while_nothing_is_committed(backend: Backend) -> None:
    append(backend.store, enrol(ALICE))
    for handle in (backend.store, backend.reader()):
        before = handle.version()
        handle.state(), handle.actor(ALICE), handle.records(0, 1)
        assert handle.version() == before


def test_it_moves_with_every_commit_for_every_handle(backend: Backend) -> None:
    handles = (backend.store, backend.reader(), backend.reader())

    def claim() -> None:
        backend.store.claim_epoch()

    def enrolled() -> None:
        append(backend.store, enrol(ALICE))

    def cosigned() -> None:
        backend.store.add_cosignature(Cosignature(1, "root", "witness", "token", 5))

    def secret() -> None:
        backend.store.set_totp("example.com", bytes(32), 1, None)

    def noted() -> None:
        backend.store.note_published(1, 7)

    for step in (claim, enrolled, cosigned, secret, noted):
        before = [handle.version() for handle in handles]
        step()
        after = [handle.version() for handle in handles]
        assert all(old != new for old, new in zip(before, after, strict=True)), step.__name__


def test_it_moves_while_a_snapshot_lasts(backend: Backend) -> None:
    """What is asked is whether anything was committed, not what this thread sees of it."""
    reader = backend.reader()
    before = reader.version()
    with reader.snapshot():
        assert reader.version() == before
    append(backend.store, enrol(ALICE))
    assert reader.version() != before
