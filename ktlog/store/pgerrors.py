"""What a failure of PostgreSQL means, in this project's coded errors, and how its URLs are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from ktlog.errors import StoreError, UsageError

SCHEMES = ("postgresql://", "postgres://")

AGAIN = (errors.SerializationFailure, errors.DeadlockDetected)
"""The server undid the transaction because of another one: the same work may be tried again."""

# By SQLSTATE, or by its first two characters, the class; the exact one counts first.
_NAMES = {
    "40001": "Locked", "40P01": "Locked", "55P03": "Locked", "57014": "TimedOut",
    "53100": "DiskFull", "53": "OutOfResources", "25006": "ReadOnly", "42501": "Denied",
    "58": "InputOutput", "XX001": "Corrupt", "XX002": "Corrupt",
    "22": "Refused", "23": "Refused", "P0001": "Refused",
    "08": "ConnectionLost", "57P": "ConnectionLost", "25P03": "ConnectionLost",
}
_HINTS = {
    "ConnectionLost": "Nothing was changed. It is tried anew with the next call.",
    "DiskFull": "Make room on the database server. Nothing was stored.",
    "Locked": "Another session holds what this one needs. Nothing was stored; try again.",
    "TimedOut": "The server took longer than it may. Nothing was stored; try again.",
    "Denied": "The role lacks a right; docs/postgresql.md lists what it needs.",
}


def parse_url(url: str) -> dict[str, str]:
    """The connection parameters in *url*, which must name its database.

    Raises:
        UsageError: "BadStore". It quotes nothing: the URL may hold a password.
    """
    try:
        found = conninfo_to_dict(url) if url.startswith(SCHEMES) else {}
    except psycopg.Error:
        found = {}
    if not found.get("dbname"):
        raise UsageError(
            "BadStore", "the store is no URL such as postgresql://ktlog@db.example.com/ktlog?sslmode=verify-full"
        )
    return {name: str(value) for name, value in found.items()}


def describe(parameters: dict[str, str]) -> str:
    """Where the database is, for messages: without the password and everything else."""
    host = parameters.get("host") or parameters.get("hostaddr") or "localhost"
    port = f":{parameters['port']}" if parameters.get("port") else ""
    return f"postgresql://{host}{port}/{parameters['dbname']}"


@contextmanager
def database_errors(where: str) -> Iterator[None]:
    """Turn ``psycopg.Error`` about *where* into a coded ``StoreError``.

    Names: "DiskFull", "Corrupt", "Locked", "TimedOut", "ReadOnly", "InputOutput", "OutOfResources", "Denied",
    "ConnectionLost", "Refused" (a type, a constraint or a trigger), and "DatabaseError" for anything else.
    """
    try:
        yield
    except psycopg.Error as error:
        raise database_error(where, error) from error


def database_error(where: str, error: psycopg.Error) -> StoreError:
    """The coded form of *error*; see ``database_errors``."""
    name = error_name(error)
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return StoreError(name, f"{where}: {first_line}", hint=_HINTS.get(name, ""))


def error_name(error: psycopg.Error) -> str:
    state = error.sqlstate
    if state is None:
        # Not the server speaks: the connection broke, or a value has no form in its column.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return "ConnectionLost" if lost else "Refused"
    for known in (state, state[:3], state[:2]):
        if known in _NAMES:
            return _NAMES[known]
    return "DatabaseError"


def is_undone(connection: psycopg.Connection, error: psycopg.Error) -> bool:
    """Whether *error*, the answer to a COMMIT, says for certain that nothing was committed.

    It does if the server itself refused and the connection goes on. 40003 is how servers that are spread over
    machines say that they do not know.
    """
    return (
        error.sqlstate is not None and error.sqlstate != "40003" and error_name(error) != "ConnectionLost"
        and not connection.closed
        and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    )
