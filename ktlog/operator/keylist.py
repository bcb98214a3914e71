"""Every key that a log has or had, with what it is for and until when: what ``ktlog keys list`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator.keys import PublicKeys
from ktlog.operator.rotate import newest_keys, read_public_half
from ktlog.pkd.keychanges import KINDS, KeyChange
from ktlog.pkd.keys import encode_public_key


@dataclass(frozen=True)
class ListedKey:
    """One key. public: as the log publishes it; None where only the key's file would say, and it is not here.

    until: Unix time from which an old one is of no use any more; None for the present one.
    """

    kind: str
    purpose: str
    public: str | None
    until: int | None = None


def list_all(settings: Settings, public: PublicKeys, changes: Sequence[KeyChange]) -> tuple[ListedKey, ...]:
    """By kind; of each the present keys, then the old ones, newest first."""
    found = []
    for kind, purposes in KINDS.items():
        found += [ListedKey(kind, purpose, _present(settings, public, changes, purpose)) for purpose in purposes]
        found += [
            ListedKey(kind, key.purpose, key.old, change.until)
            for change in reversed(changes) if change.kind == kind for key in change.keys
        ]
    return tuple(found)


def _present(settings: Settings, public: PublicKeys, changes: Sequence[KeyChange], purpose: str) -> str | None:
    told = {
        **dict(zip(KINDS["checkpoint"], public.vkeys, strict=False)),
        **dict(zip(KINDS["map"], public.map_vkeys, strict=False)),
        **dict(zip(KINDS["leaf"], map(encode_public_key, public.leaf_keys[-1:]), strict=False)),
    }
    if purpose in told:
        return told[purpose]
    try:
        return read_public_half(settings, purpose)
    except StoreError:  # on a machine that has no use for it, say
        return newest_keys(tuple(changes)).get(purpose)
