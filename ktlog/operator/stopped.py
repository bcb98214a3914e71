"""What may be done to a log only while it is stopped: all locks of its processes are held meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ktlog.config import Settings
from ktlog.durable import FileLock, file_errors, name_user
from ktlog.errors import StoreError

LOCKS = ("serve.lock", "sequencer.lock", "signer.lock")


@contextmanager
def stopped(settings: Settings, why: str, hint: str) -> Iterator[None]:
    """Keep the log from starting; refuse when it runs. why, hint: what a log must be stopped for, and what to do.

    Raises:
        StoreError: ``Locked``; ``OtherUser``: the log could not start after it.
    """
    with ExitStack() as stack:
        for name in LOCKS:
            _check_owner(settings.directory, name)
            try:
                stack.enter_context(FileLock(settings.directory / name))
            except StoreError as error:
                if error.name != "Locked":
                    raise
                raise StoreError("Locked", f"{settings.directory} is in use: {why}", hint=hint) from None
        yield


def _check_owner(directory: Path, name: str) -> None:
    """A lock that root makes in another user's log is root's, and the log may not open it."""
    with file_errors(directory):
        owner = directory.stat().st_uid
    if os.geteuid() == 0 != owner and not (directory / name).exists():
        user = name_user(owner)
        raise StoreError(
            "OtherUser", f"{directory} belongs to another user, {user}",
            hint=f"Run this as that user: runuser -u {user} -- COMMAND",
        )
