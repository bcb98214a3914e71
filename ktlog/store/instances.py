"""What every store checks about one-time passwords and cosignatures: what instances and witnesses bring."""

from __future__ import annotations

from ktlog.errors import Conflict, StoreError
from ktlog.store.batch import GREATEST_NUMBER, check_range, is_text
from ktlog.store.contracts import Cosignature, TotpSecret, TotpUse

SECRET_BYTES = 32


def check_totp(domain: str, secret: bytes | None, used_window: int) -> None:
    """Refuse values that no honest caller has ("BadTotp")."""
    if not domain or not is_text(domain) or (secret is not None and len(secret) != SECRET_BYTES):
        raise StoreError("BadTotp", "refused: a domain, and a secret of 32 bytes")
    if not 0 <= used_window <= GREATEST_NUMBER:
        raise StoreError("BadTotp", "refused: a window out of range")


def totp_moved(domain: str, stored: TotpSecret | None) -> Conflict:
    """The error for a write that expected another row of this domain."""
    return Conflict(
        "TotpMoved", f"the one-time passwords of {domain} went on meanwhile", stored=stored,
        hint="Read the domain's secret again, and ask for a fresh code.",
    )


def use_allowed(stored: TotpSecret | None, use: TotpUse) -> bool:
    """Whether *use* is of the row as stored, and of a window after every one used before."""
    return stored is not None and stored.serial == use.serial and use.window > stored.last_window


def check_cosignature(cosignature: Cosignature, log_size: int) -> None:
    """Refuse a cosignature of a tree that the log never had, or that cannot be stored.

    Raises:
        StoreError: "OutOfRange", "BadCosignature".
    """
    check_range(cosignature.tree_size, cosignature.tree_size, log_size)
    texts = (cosignature.merkle_root, cosignature.witness, cosignature.cosigned)
    if not all(map(is_text, texts)) or not 0 <= cosignature.time <= GREATEST_NUMBER:
        raise StoreError("BadCosignature", "refused: text without a UTF-8 form, or a time out of range")
