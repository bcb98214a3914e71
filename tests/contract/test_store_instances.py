"""One-time passwords and cosignatures: what every store promises about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.store.contracts import Batch, Cosignature, LogStore, TotpSecret, TotpUse
from tests.store_samples import Backend, Draft, append, dump, hash_of, make_batch

DOMAIN = "example.com"
FIRST, SECOND = hash_of("first secret"), hash_of("second secret")


def commit_with(store: LogStore, text: str, *uses: TotpUse) -> None:
    store.commit(replace(make_batch(store.state(), Draft(text)), totp_uses=uses))


def test_a_secret_is_enrolled_replaced_and_removed(backend: Backend) -> None:
    store, reader = backend.store, backend.reader()
    assert store.totp(DOMAIN) is None
    first = store.set_totp(DOMAIN, FIRST, 100, None)
    assert first == TotpSecret(DOMAIN, 1, FIRST, 100) == reader.totp(DOMAIN)
    second = store.set_totp(DOMAIN, SECOND, 103, first.serial)
    assert second == TotpSecret(DOMAIN, 2, SECOND, 103) == reader.totp(DOMAIN)
    assert store.set_totp(DOMAIN, None, 104, second.serial) is None
    assert reader.totp(DOMAIN) is None
    assert store.totp("other.example") is store.totp("\ud800") is None


def test_a_serial_never_restarts_nor_does_a_window_go_back(store: LogStore) -> None:
    """A code seen before the removal must not count for the same secret, enrolled again."""
    store.set_totp(DOMAIN, FIRST, 100, None)
    store.set_totp(DOMAIN, None, 105, 1)
    assert store.set_totp(DOMAIN, FIRST, 101, None) == TotpSecret(DOMAIN, 3, FIRST, 105)


@pytest.mark.parametrize(("secret", "expected"), [(SECOND, None), (SECOND, 2), (None, None), (None, 0)])
def test_a_secret_that_moved_is_a_conflict(backend: Backend, secret: bytes | None, expected: int | None) -> None:
    stored = backend.store.set_totp(DOMAIN, FIRST, 100, None)
    with pytest.raises(Conflict) as caught:
        backend.store.set_totp(DOMAIN, secret, 101, expected)
    assert (caught.value.name, caught.value.stored) == ("TotpMoved", stored)
    assert backend.reader().totp(DOMAIN) == stored


def test_what_is_not_there_cannot_be_replaced(store: LogStore) -> None:
    with pytest.raises(Conflict, match="TotpMoved"):
        store.set_totp(DOMAIN, FIRST, 100, 1)
    assert store.set_totp(DOMAIN, None, 100, None) is None
    assert store.totp(DOMAIN) is None


@pytest.mark.parametrize(("domain", "secret", "window"), [
    ("", FIRST, 1), ("\ud800", FIRST, 1), (DOMAIN, FIRST[:31], 1), (DOMAIN, b"", 1), (DOMAIN, FIRST, -1),
    (DOMAIN, FIRST, 2**63),
])
def test_values_that_nobody_honest_has(store: LogStore, domain: str, secret: bytes, window: int) -> None:
    with pytest.raises(StoreError, match="BadTotp"):
        store.set_totp(domain, secret, window, None)


def test_a_code_is_used_up_with_the_entry_that_rests_on_it(backend: Backend) -> None:
    backend.store.set_totp(DOMAIN, FIRST, 100, None)
    commit_with(backend.store, "burn", TotpUse(DOMAIN, 1, 102))
    assert backend.reader().totp(DOMAIN) == TotpSecret(DOMAIN, 2, FIRST, 102)


@pytest.mark.parametrize("use", [
    TotpUse(DOMAIN, 1, 100), TotpUse(DOMAIN, 1, 99), TotpUse(DOMAIN, 0, 101), TotpUse(DOMAIN, 2, 101),
    TotpUse("other.example", 1, 101), TotpUse("gone.example", 1, 101), TotpUse("gone.example", 2, 101),
])
def test_a_batch_with_a_code_that_does_not_count_is_refused_whole(backend: Backend, use: TotpUse) -> None:
    store = backend.store
    store.set_totp(DOMAIN, FIRST, 100, None)
    store.set_totp("gone.example", FIRST, 100, None)
    store.set_totp("gone.example", None, 100, 1)
    append(store, Draft("before"))
    before = dump(store)
    with pytest.raises(Conflict, match="TotpMoved"):
        commit_with(store, "burn", use)
    assert dump(store) == dump(backend.reader()) == before


BAD_USES: dict[str, Callable[[Batch], Batch]] = {
    "two of one domain": lambda b: replace(b, totp_uses=(TotpUse(DOMAIN, 1, 101), TotpUse(DOMAIN, 2, 102))),
    "negative window": lambda b: replace(b, totp_uses=(TotpUse(DOMAIN, 1, -1),)),
    "serial beyond 63 bits": lambda b: replace(b, totp_uses=(TotpUse(DOMAIN, 2**63, 101),)),
    "no text": lambda b: replace(b, totp_uses=(TotpUse("\ud800", 1, 101),)),
}


@pytest.mark.parametrize("name", BAD_USES)
def test_a_batch_whose_uses_contradict_each_other(store: LogStore, name: str) -> None:
    store.set_totp(DOMAIN, FIRST, 100, None)
    with pytest.raises(StoreError, match="BadBatch"):
        store.commit(BAD_USES[name](make_batch(store.state(), Draft("burn"))))
    assert store.state().size == 0


def test_a_secret_is_not_in_its_repr(store: LogStore) -> None:
    """Nor in a log line that somebody writes in good faith."""
    stored = store.set_totp(DOMAIN, FIRST, 100, None)
    assert repr(FIRST) not in repr(stored)


# Cosignatures


def cosignature(size: int = 1, witness: str = "w1.example", **fields: object) -> Cosignature:
    found = Cosignature(size, f"pkd-mr-v1:{size}", witness, '{"the":"token"}', 1_700_000_000)
    return replace(found, **fields)  # type: ignore[arg-type]


def test_cosignatures_are_kept_by_size_and_witness(backend: Backend) -> None:
    append(backend.store, Draft("one"), Draft("two"))
    wanted = [cosignature(1, "w2.example"), cosignature(1), cosignature(2)]
    assert [backend.store.add_cosignature(one) for one in wanted] == [True] * 3
    for handle in (backend.store, backend.reader()):
        assert handle.cosignatures(0) == ()
        assert handle.cosignatures(1) == (cosignature(1), cosignature(1, "w2.example"))
        assert handle.cosignatures(2) == (cosignature(2),)


def test_a_witness_cosigns_a_size_once(store: LogStore) -> None:
    append(store, Draft("one"))
    assert store.add_cosignature(cosignature())
    for again in (cosignature(), cosignature(cosigned="another", time=1_700_000_009)):
        assert not store.add_cosignature(again)
    assert store.cosignatures(1) == (cosignature(),)


@pytest.mark.parametrize("size", [-1, 2, 2**70])
def test_there_is_nothing_to_cosign_beyond_the_log(store: LogStore, size: int) -> None:
    append(store, Draft("one"))
    with pytest.raises(StoreError, match="OutOfRange"):
        store.add_cosignature(cosignature(size))
    with pytest.raises(StoreError, match="OutOfRange"):
        store.cosignatures(size)


@pytest.mark.parametrize("fields", [{"time": -1}, {"time": 2**63}, {"witness": "\ud800"}, {"cosigned": "\udfff"}])
def test_cosignatures_that_cannot_be_stored(store: LogStore, fields: dict[str, object]) -> None:
    append(store, Draft("one"))
    with pytest.raises(StoreError, match="BadCosignature"):
        store.add_cosignature(cosignature(**fields))


def test_a_reading_handle_takes_neither(backend: Backend) -> None:
    reader = backend.reader()
    for write in (
        lambda: reader.set_totp(DOMAIN, FIRST, 1, None), lambda: reader.add_cosignature(cosignature(0)),
        lambda: reader.note_published(0, 1), reader.scrub,
    ):
        with pytest.raises(StoreError, match="ReadOnly"):
            write()
