"""What differs between a log on one machine and one on several: how requests get to the sequencer, and who is it.

With SQLite files there is one of everything, with a Unix socket between them. With PostgreSQL there is a queue
in it, whatever runs where; one sequencer works at a time, and the others stand by.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol

from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator.desk import Desk
from ktlog.operator.door import Door
from ktlog.operator.link import Link
from ktlog.operator.sharedlink import SharedLink
from ktlog.operator.stores import database_url

FAILED = 70


class AnyDoor(Protocol):
    """A way in to the desk. needed: files without which nobody finds it."""

    needed: tuple[Path, ...]

    def open(self) -> None:
        """Let requests in."""

    def close(self) -> None:
        """Let no more in; what is done is answered."""


class Turn(Protocol):
    """That it is this process's turn to be the sequencer."""

    def release(self) -> None:
        """Let the next one begin."""


def open_link(settings: Settings, timeout_seconds: float = 25.0) -> Link:
    """The way to the sequencer, wherever it is. Nothing is connected before it is used."""
    url = database_url(settings)
    if url is None:
        return SharedLink(settings.socket_record, timeout_seconds)
    return _module("courier").QueueLink(url, timeout_seconds)


def make_door(settings: Settings, desk: Desk, stop: threading.Event, epoch: int) -> AnyDoor:
    """What lets requests in to *desk*, still closed. *epoch*: the one that this process claimed."""
    url = database_url(settings)
    if url is None:
        return Door(settings, desk.hand_in, stop)
    return _module("pgdoor").PgDoor(
        url, desk.hand_in, in_flight=settings.queue_limit, epoch=epoch, failed=end_at_once
    )


def wait_for_turn(settings: Settings, stop: Callable[[], bool]) -> Turn | None:
    """Stand by until it is this process's turn, and keep it; None if *stop* says so before.

    A process that loses its turn ends at once.
    """
    url = database_url(settings)
    if url is None:
        return _Alone()
    lease = _module("lease").Lease(url, end_at_once)
    if lease.wait(stop):
        return lease
    lease.release()
    return None


class _Alone:
    """The turn of a log in files, whose lock the process has."""

    def release(self) -> None:
        pass


def end_at_once() -> None:
    """Leave everything as it is. What is fenced cannot be finished, and what was stored is for the next one."""
    os._exit(FAILED)


def _module(name: str) -> ModuleType:
    """One of those that only who has a PostgreSQL database can import."""
    try:
        return importlib.import_module(f"ktlog.operator.{name}")
    except ImportError:
        raise StoreError(
            "MissingExtra", "a log in PostgreSQL needs psycopg, which is not installed",
            hint="pip install 'ktlog[postgres]'",
        ) from None
