"""What keeps a log from being believed, and what to do about it: seen from inside, and from outside as a peer sees it.

Each check gives findings with a stable name, a state, a sentence and advice. Nothing is changed, nothing is signed.
"""

from __future__ import annotations

import shlex
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ktlog.config import Settings
from ktlog.errors import EncodingError, KtlogError, StoreError
from ktlog.keymap.output import map_origin
from ktlog.operator.roles import open_link
from ktlog.operator.room import MIB, Room
from ktlog.operator.service import load_publish_policy
from ktlog.operator.witnessing import WitnessPeer, peers_of
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import parse_decimal
from ktlog.tlog.policy import VERIFIERS
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig_response import content_digest

GOOD, LOOK, BAD = ("ok", "look", "bad")

COSIGNED_SECONDS = 3_600
"""After which clients believe a head no more, unless their policy says otherwise."""
CLOCK_SECONDS = 60
LINK_SECONDS = 5.0
STUCK_SECONDS = 30
"""Entries that wait, under a checkpoint that is older: cosigners are missing, or the disk."""
AGAIN_SECONDS = 3.0
ROOM_BYTES = 1 << 30
ROUTED = "https://ktlog-doctor.invalid/users/a%2Fb"
"""An actor that nobody is, with what proxies like to change in its id: slashes, and a percent sign."""


@dataclass(frozen=True)
class Ailment:
    """One thing that was looked at. state: ok, look (worth a look) or bad. advice: what to do, unless all is well.

    settled: False of what is well, and still under way.
    """

    name: str
    state: str
    what: str
    advice: str = ""
    settled: bool = True

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "what": self.what, "advice": self.advice}


def _found(name: str, well: bool, what: str, advice: str, state: str = BAD) -> Ailment:
    return Ailment(name, GOOD, what) if well else Ailment(name, state, what, advice)


def examine_inside(
    settings: Settings, sqlite_version: tuple[int, ...] = sqlite3.sqlite_version_info
) -> Iterator[Ailment]:
    """The directory, the library, the policy, and the running log."""
    yield _modes(settings)
    yield _sqlite(sqlite_version)
    free = Room(settings.directory, 0).free()
    yield _found(
        "Room", free > ROOM_BYTES, f"{free // MIB:,} MiB are free on the disk of the log's directory",
        f"Make room: below {settings.free_space_floor_mib} MiB no message is taken.", LOOK,
    )
    yield _policy(settings)
    yield from _running(settings)


def examine_outside(settings: Settings, fetcher: Fetcher, now: int) -> Iterator[Ailment]:
    """The log as its peers see it: name, TLS, proxy; and its witnesses.

    Args:
        now: Unix seconds.
    """
    answer, why = _get(fetcher, f"{settings.url}/checkpoint")
    if answer is None or answer.status != 200:
        why = why or f"the answer is {0 if answer is None else answer.status}"
        yield Ailment(
            "Reachable", BAD, f"{settings.url}/checkpoint: {why}",
            "Peers look the name up in the DNS, take no private address, and check the certificate. A 421 means that"
            " the proxy does not pass the Host header on; a 404 that nothing was published yet.",
        )
    else:
        yield Ailment("Reachable", GOOD, f"{settings.url} answers, by DNS and TLS, as peers see it")
        yield _clock(answer, now)
        yield _published(settings, answer)
        yield _answers(settings, fetcher)
        yield _paths(settings, fetcher)
    try:
        policy = load_publish_policy(settings)
    except KtlogError:
        return  # what is wrong with it is seen from inside
    for peer in peers_of(policy):
        yield _witness(settings, fetcher, peer)


def _modes(settings: Settings) -> Ailment:
    keys = sorted(settings.keys.iterdir()) if settings.keys.is_dir() else []
    secret = [path for path in (settings.directory, settings.keys, *keys, settings.database) if path.exists()]
    loose = [str(path) for path in secret if _is_open(path)]
    what = f"open to others: {', '.join(loose)}" if loose else "keys and database are closed to others"
    return _found("FileModes", not loose, what, f"chmod go= {' '.join(loose)}")


def _is_open(path: Path) -> bool:
    """A directory may be listed by others, as long as nothing secret in it is open."""
    bits = stat.S_IWGRP | stat.S_IWOTH if path.is_dir() else stat.S_IRWXG | stat.S_IRWXO
    return bool(path.stat().st_mode & bits)


def _sqlite(version: tuple[int, ...]) -> Ailment:
    # A fault in resetting the write-ahead log, when two connections do it at once.
    branches = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}
    mended = version >= branches.get(version[:2], (3, 51, 3))
    return _found(
        "SQLite", mended, f"SQLite {'.'.join(map(str, version))}",
        "It has a rare fault in its write-ahead log, mended in 3.51.3, 3.50.7 and 3.44.6. With its one writer ktlog"
        " should not meet it. Take a newer one when your system has it.", LOOK,
    )


def _policy(settings: Settings) -> Ailment:
    try:
        policy = load_publish_policy(settings)
    except KtlogError as error:
        return Ailment("Policy", BAD, f"{error.name}: {error.message}", error.hint)
    cosigners = len({witness.vkey.name for witness in policy.witnesses.values()})
    verified = VERIFIERS in policy.groups
    what = f"publish.policy names {cosigners} cosigners, {'some' if verified else 'none'} of them verifiers"
    advice = "Without verifiers of the map no client gets proof that an answer is complete: docs/running.md, The map."
    return _found("Policy", verified, what, advice, LOOK)


def _running(settings: Settings) -> Iterator[Ailment]:
    try:
        link = open_link(settings, LINK_SECONDS)
        before = status = link.status()
        if _waits(status):
            time.sleep(AGAIN_SECONDS)  # what came just now is published by then
            status = link.status()
    except StoreError as error:
        yield Ailment("Running", BAD, f"the sequencer does not answer: {error.message}",
                      f"ktlog serve --dir {shlex.quote(str(settings.directory.absolute()))}")
        return
    sequenced, published, mapped = (_number(status, name) for name in ("sequenced", "published", "mapped"))
    yield Ailment("Running", GOOD, f"the sequencer runs, and has {sequenced} entries")
    paused = (status.get("rules") or {}).get("paused") or {}
    if paused:
        what = f"no messages are taken: {paused.get('reason')}"
        there = shlex.quote(str(settings.directory.absolute()))
        yield Ailment("Paused", LOOK, what, f"ktlog admin resume --dir {there}")
    stuck = _waits(status) and published == _number(before, "published")
    age = f", and the last checkpoint is {_number(status, 'checkpoint-age')} seconds old" if stuck else ""
    for name, count in (("Published", sequenced - published), ("Mapped", published - mapped)):
        well = count <= settings.queue_limit and not (stuck and name == "Published")
        found = _found(
            name, well, f"{count} entries are not {name.lower()} yet{age if name == 'Published' else ''}",
            "The log's output says which cosigner refused, and why.",
        )
        yield replace(found, settled=count <= 0)
    ages: Mapping[str, Any] = status.get("cosigned-age") or {}
    for cosigner in sorted(ages):
        age = _number(ages, cosigner)
        yield _found(
            "Cosigned", age < COSIGNED_SECONDS, f"{cosigner} cosigned {age} seconds ago, or the log began then",
            "Ask whether it follows both of your logs, and see what the log's output says of it.",
        )


def _waits(status: Mapping[str, Any]) -> bool:
    """Whether entries are there that no checkpoint came for."""
    return _number(status, "sequenced") > _number(status, "published") and _number(
        status, "checkpoint-age") > STUCK_SECONDS


def _number(members: Mapping[str, Any], name: str) -> int:
    try:
        return parse_decimal(str(members.get(name, "0")))
    except EncodingError:
        return 0


def _clock(answer: Response, now: int) -> Ailment:
    try:
        skew = int(parsedate_to_datetime(answer.headers.get("date", "")).timestamp()) - now
    except (ValueError, TypeError):
        return Ailment("Clock", LOOK, "the proxy says no time", "Compare this machine's clock with another's.")
    return _found(
        "Clock", abs(skew) <= CLOCK_SECONDS, f"the proxy's clock is {skew} seconds from this one",
        "Set both by NTP: cosignatures and answers that are minutes off are refused.",
    )


def _published(settings: Settings, answer: Response) -> Ailment:
    try:
        _, checkpoint = parse_signed_checkpoint(answer.body)
    except EncodingError as error:
        return Ailment("Checkpoint", BAD, f"what the proxy serves is none: {error}", "It is DIR/tiles/checkpoint.")
    what = f"{checkpoint.origin} has published {checkpoint.size} entries"
    return _found("Checkpoint", checkpoint.origin == settings.origin, what, "The proxy leads to another log.")


def _answers(settings: Settings, fetcher: Fetcher) -> Ailment:
    """Whether signed answers come through whole."""
    answer, why = _get(fetcher, f"{settings.url}/api/info")
    if answer is None or answer.status != 200 or "signature" not in answer.headers:
        return Ailment(
            "Answers", BAD, f"{settings.url}/api/info: {why or 'no signed answer came'}",
            "The signature is a header of over 4 kB: give the proxy room for it (nginx: proxy_buffer_size 16k).",
        )
    return _found(
        "Answers", answer.headers.get("content-digest") == content_digest(answer.body), "signed answers of the API",
        "The proxy changes them: turn compression and rewriting off.",
    )


def _paths(settings: Settings, fetcher: Fetcher) -> Ailment:
    """Whether a path reaches the log byte by byte: somebody unknown has a bundle too, and a decoded path has none."""
    answer, why = _get(fetcher, f"{settings.url}/map/bundle/{quote(ROUTED, safe='')}")
    unpublished = answer is not None and answer.status == 404 and b"published" in answer.body
    kept = unpublished or (answer is not None and answer.status == 200)
    why = why or f"status {0 if answer is None else answer.status}"
    return _found(
        "Paths", kept, "paths reach the log as they were sent" if kept else f"a path with %2F does not reach it: {why}",
        "The proxy must not decode or merge slashes (nginx: no path after proxy_pass's address; merge_slashes off).",
    )


def _witness(settings: Settings, fetcher: Fetcher, peer: WitnessPeer) -> Ailment:
    names = ", ".join(sorted({vkey.name for vkey in peer.vkeys}))
    # A verifier cosigns the log of the map alone.
    for origin in (settings.origin, map_origin(settings.origin)):
        shown = sha256(origin.encode()).hexdigest()
        answer, why = _get(fetcher, f"{peer.url.rstrip('/')}/{shown}/checkpoint")
        if answer is None or answer.status == 200:
            break
    if answer is None:
        return Ailment("Witness", BAD, f"{names} at {peer.url} does not answer: {why}", "Ask its operator.")
    if answer.status >= 500:
        what = f"{names} at {peer.url} answers {answer.status}: the witness behind its proxy is down"
        return Ailment("Witness", BAD, what, "Write to its operator. If the quorum needs it, nothing is published.")
    return _found(
        "Witness", answer.status == 200, f"{names} at {peer.url} answers {answer.status}",
        "It has cosigned nothing of this log. Has it the log's vkeys? ktlog-witness add-log, once for the log's keys"
        " and once for the map's.", LOOK,
    )


def _get(fetcher: Fetcher, url: str) -> tuple[Response | None, str]:
    try:
        return fetcher.get(url, max_bytes=1 << 20), ""
    except KtlogError as error:
        return None, f"{error.name}: {error.message}"
