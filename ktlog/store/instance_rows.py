"""Between values and SQLite rows: one-time passwords and cosignatures. See ``ktlog.store.rows``."""

from __future__ import annotations

import sqlite3

from ktlog.store.contracts import Cosignature, TotpSecret, TotpUse


def read_totp(db: sqlite3.Connection, domain: str) -> TotpSecret | None:
    row = db.execute(
        "SELECT serial, secret, last_window FROM totp WHERE domain = ? AND secret IS NOT NULL", (domain,)
    ).fetchone()
    return None if row is None else TotpSecret(domain, *row)


def write_totp(db: sqlite3.Connection, domain: str, secret: bytes | None, used_window: int) -> None:
    db.execute(
        "INSERT INTO totp (domain, serial, secret, last_window) VALUES (?, 1, ?, ?)"
        " ON CONFLICT (domain) DO UPDATE SET serial = serial + 1, secret = excluded.secret,"
        " last_window = max(last_window, excluded.last_window)",
        (domain, secret, used_window),
    )


def use_totp(db: sqlite3.Connection, use: TotpUse) -> bool:
    """Use up a code; False, and nothing changes, when the row is another one by now."""
    cursor = db.execute(
        "UPDATE totp SET serial = serial + 1, last_window = ?"
        " WHERE domain = ? AND serial = ? AND last_window < ? AND secret IS NOT NULL",
        (use.window, use.domain, use.serial, use.window),
    )
    return cursor.rowcount == 1


def insert_cosignature(db: sqlite3.Connection, cosignature: Cosignature) -> bool:
    cursor = db.execute(
        "INSERT INTO cosignatures (tree_size, witness, merkle_root, cosigned, time) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (tree_size, witness) DO NOTHING",
        (
            cosignature.tree_size, cosignature.witness, cosignature.merkle_root, cosignature.cosigned,
            cosignature.time,
        ),
    )
    return cursor.rowcount == 1


def read_cosignatures(db: sqlite3.Connection, tree_size: int) -> tuple[Cosignature, ...]:
    found = db.execute(
        "SELECT tree_size, merkle_root, witness, cosigned, time FROM cosignatures WHERE tree_size = ?"
        " ORDER BY witness",
        (tree_size,),
    )
    return tuple(Cosignature(*row) for row in found)
