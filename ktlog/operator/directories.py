"""The other directories that may commit their roots to this log with a Checkpoint message.

Which ones is the operator's choice (the setting ``directories``), compared byte for byte. What such
a directory's key is, it says itself, at its own ``/api/info`` and at the moment of the message: a
key is neither remembered nor taken from the message alone.

Source: PKD specification, "Checkpoint Validation Steps", 2, 3 and 6.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from ktlog.errors import EncodingError, MessageRejected, Unreachable, UsageError
from ktlog.pkd.actions import CheckpointMessage
from ktlog.pkd.identity import check_directory_url
from ktlog.pkd.keys import decode_public_key
from ktlog.wire.actor_id import actor_domain, parse_https_url
from ktlog.wire.logs import fields

INFO_CONTEXT = "fedi-e2ee:v1/api/info"
INFO_LIMIT_BYTES = 65_536
# A directory that does not answer may hold up so many threads and no more.
FETCH_SLOTS = 2

log = logging.getLogger("ktlog.directories")


class JsonFetcher(Protocol):
    """What is needed of a fetcher; :class:`ktlog.wire.fetch.Fetcher` is one."""

    def fetch_json(
        self, url: str, content_types: Collection[str] = ("application/json",), *,
        max_bytes: int | None = None,
    ) -> Any: ...


class Directories:
    """Says whose Checkpoint messages are taken, and whether the key in one is its sender's.

    Args:
        own_url: this log's URL, without a slash at the end.
        allowed: URLs of the directories whose Checkpoints are taken, written as they write them.

    Safe to use from many threads.
    """

    def __init__(
        self, fetcher: JsonFetcher, own_url: str, allowed: frozenset[str], slots: int = FETCH_SLOTS
    ) -> None:
        self._fetcher = fetcher
        self._own_url = own_url
        self._allowed = allowed - {own_url}
        self._hosts = frozenset(host for host in map(_host, self._allowed) if host)
        self._slots = threading.BoundedSemaphore(slots)

    def is_host(self, domain: str) -> bool:
        """Whether a directory that is on the list lives at *domain*."""
        return domain in self._hosts

    def check(self, message: CheckpointMessage, sender: str) -> None:
        """Check who sends and to whom, before anything of the message costs anything.

        Args:
            sender: the actor whose HTTP signature brought the message. It must live where the
                directory does: another instance may not speak for it, whatever it has got hold of.

        Raises:
            MessageRejected: ``directory_not_allowed``, ``wrong_directory``, ``actor_mismatch``.
        """
        if message.from_directory not in self._allowed or not _host(message.from_directory):
            raise MessageRejected(
                "directory_not_allowed", f"{message.from_directory} is not on this log's list of directories"
            )
        if message.to_directory != self._own_url:
            raise MessageRejected("wrong_directory", f"the Checkpoint is not for {self._own_url}")
        if actor_domain(sender) != _host(message.from_directory):
            raise MessageRejected(
                "actor_mismatch", "the Checkpoint is of a directory on another host than the actor that sent it"
            )

    def check_key(self, message: CheckpointMessage) -> None:
        """Ask the sending directory for its key, and compare. The only step that waits for a stranger.

        Raises:
            MessageRejected: ``directory_key_mismatch``; ``directory_unreachable`` when it gives no
                usable answer; ``overloaded`` while others are being asked.
        """
        if not self._slots.acquire(blocking=False):
            raise MessageRejected("overloaded", "other directories are being asked for their keys; try again")
        try:
            info = self._fetcher.fetch_json(_info_url(message.from_directory), max_bytes=INFO_LIMIT_BYTES)
            current = decode_public_key(_member(info, "public-key"))
        except (Unreachable, EncodingError) as error:
            # What a fetch found out is for the operator alone.
            log.debug("no key of a directory", extra=fields(error=error.name))
            raise MessageRejected(
                "directory_unreachable", f"{message.from_directory} does not say what its key is"
            ) from None
        finally:
            self._slots.release()
        if current != message.from_public_key:
            raise MessageRejected(
                "directory_key_mismatch", "from-public-key is not the key that the sending directory has now"
            )


def check_directories(urls: Iterable[str]) -> None:
    """Refuse a list with a URL that no Checkpoint can ever match.

    Raises:
        UsageError: ``BadDirectory``.
    """
    for url in urls:
        try:
            check_directory_url(url)
        except MessageRejected as error:
            raise UsageError("BadDirectory", f"directories names {url!a}: {error.hint}") from None
        if not _host(url):
            raise UsageError("BadDirectory", f"directories names {url!a}, to which no path can be appended")


def _info_url(directory: str) -> str:
    return f"{directory.removesuffix('/')}/api/info"


def _host(directory: str) -> str | None:
    """Where a directory lives; None for a URL to which no path can be appended, or that is never fetched."""
    try:
        return None if "?" in directory else parse_https_url(_info_url(directory)).host
    except EncodingError:
        return None


def _member(info: Any, name: str) -> str:
    if not isinstance(info, Mapping) or info.get("!pkd-context") != INFO_CONTEXT:
        raise EncodingError("BadInfo", "its answer is not of the form of /api/info")
    text = info.get(name)
    if not isinstance(text, str):
        raise EncodingError("BadInfo", f"its answer has no {name}")
    return text
