"""The keys that protocol messages are encrypted to: the one that is advertised, and those that were before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ktlog.errors import Invalid
from ktlog.operator.keys import load_old_seeds, load_seed
from ktlog.pkd.hpke import DecapsulationKey, open_message


class HpkeKeys:
    """Opens what was sealed to the advertised key, or lately to a predecessor. Safe to use from many threads.

    Args:
        old: predecessors, each until a Unix time, the newest first.
        now: Unix seconds.
    """

    def __init__(
        self, key: DecapsulationKey, old: Sequence[tuple[DecapsulationKey, int]] = (),
        now: Callable[[], int] = lambda: 0,
    ) -> None:
        self._key = key
        self._old = tuple(old)
        self._now = now

    @property
    def encapsulation_key(self) -> bytes:
        """What is advertised: 1216 bytes."""
        return self._key.encapsulation_key

    def open(self, text: str) -> bytes:
        """What :func:`ktlog.pkd.hpke.seal_message` sealed.

        Raises:
            EncodingError, Invalid: as :func:`ktlog.pkd.hpke.open_message`.
        """
        try:
            return open_message(self._key, text)
        except Invalid as error:
            failure = error
        now = self._now()
        # What is of no use any more is forgotten by this process too, not only in the directory of keys.
        self._old = tuple((key, until) for key, until in self._old if now < until)
        for key, _ in self._old:
            try:
                return open_message(key, text)
            except Invalid:
                continue
        raise failure


def open_hpke(key: HpkeKeys | DecapsulationKey, text: str) -> bytes:
    """Open a protocol message with whichever of the keys it was sealed to.

    Raises:
        EncodingError, Invalid: as :func:`ktlog.pkd.hpke.open_message`.
    """
    return key.open(text) if isinstance(key, HpkeKeys) else open_message(key, text)


def load_hpke_keys(directory: Path, now: Callable[[], int]) -> HpkeKeys:
    """Raises StoreError: as ``ktlog.durable.read_secret``."""
    key = DecapsulationKey.from_seed(load_seed(directory, "hpke"))
    old = [(DecapsulationKey.from_seed(seed), until) for seed, until in load_old_seeds(directory, "hpke")]
    return HpkeKeys(key, old, now)
