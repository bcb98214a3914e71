"""What keeps a log from being believed, and what to do about it: seen from inside, and from outside as a peer sees it.

Each check gives findings with a stable name, a state, a sentence and advice. Nothing is changed, nothing is signed.
"""

from __future__ import annotations

import shlex
import sqlite3
import stat
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ktlog.config import MAP_MMD_SECONDS, Settings
from ktlog.errors import EncodingError, KtlogError, StoreError
from ktlog.keymap.output import map_origin
from ktlog.operator.lastbackup import last_backup
from ktlog.operator.roles import open_link
from ktlog.operator.room import MIB, Room
from ktlog.operator.service import load_publish_policy
from ktlog.operator.witnessing import WitnessPeer, host_of, input_policy, peers_of
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import parse_decimal
from ktlog.tlog.policy import CLOCK_SKEW_SECONDS, VERIFIERS, Policy
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.httpsig_response import content_digest
from ktlog.words import count_entries, some

GOOD, LOOK, BAD = ("ok", "look", "bad")

COSIGNED_SECONDS = 3_600
"""After which clients believe a head no more, unless their policy says otherwise."""
CLOCK_SECONDS, CLOCK_BAD_SECONDS = 30, CLOCK_SKEW_SECONDS // 2
"""A clock that NTP sets is never so far off as the first. Others forgive twice the second, but are off themselves."""
LINK_SECONDS = 5.0
STUCK_SECONDS = 30
"""Entries that wait, under a checkpoint that is older: cosigners are missing, or the disk."""
SPARE_SECONDS = 3.0
LOOK_SECONDS = 0.5
ROOM_BYTES = 1 << 30
BACKUP_SECONDS = 2 * 86_400
"""Under which it is time to look for more: some 45,000 messages."""
WRONG_HOST = "ktlog-doctor.invalid"
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


ROOM = "the proxy has no room for the signatures, over 4 kB of header (nginx: proxy_buffer_size 16k)."


@dataclass(frozen=True)
class Outside:
    """A peer's place, to look from.

    fetcher: asks as peers do. misnamed: asks the same servers, but names the host ``WRONG_HOST`` in each request.
    zipping: asks them for compressed answers. now: Unix seconds. dialled: hosts that a dial table leads to, and not
    the DNS.
    """

    fetcher: Fetcher
    misnamed: Fetcher
    zipping: Fetcher
    now: Callable[[], int]
    dialled: Collection[str] = ()


def _found(name: str, well: bool, what: str, advice: str, state: str = BAD) -> Ailment:
    return Ailment(name, GOOD, what) if well else Ailment(name, state, what, advice)


def examine_inside(
    settings: Settings, sqlite_version: tuple[int, ...] = sqlite3.sqlite_version_info,
    now: Callable[[], int] = lambda: int(time.time()),
) -> Iterator[Ailment]:
    """The directory, the library, the policy, and the running log."""
    yield _modes(settings)
    yield _sqlite(sqlite_version)
    yield _room(settings)
    yield _policy(settings)
    if not settings.uses_postgres:  # which has means of its own
        yield _backup(settings, now())
    yield from _running(settings)


def examine_outside(settings: Settings, outside: Outside) -> Iterator[Ailment]:
    """The log as its peers see it: name, TLS, proxy; and its witnesses, and what time it is there."""
    answer, why = _get(outside.fetcher, f"{settings.url}/checkpoint")
    dates = [("its proxy", skew)] if answer and (skew := _skew(answer, outside.now())) is not None else []
    if answer is None or answer.status != 200:
        why = why or f"the answer is {0 if answer is None else answer.status}"
        yield Ailment(
            "Reachable", BAD, f"{settings.url}/checkpoint: {why}",
            "Peers look the name up in the DNS, take no private address, and check the certificate. A 421 means that"
            " the proxy does not pass the Host header on; a 404 that nothing was published yet; a 502 that the log does"
            f" not run, or that {ROOM}",
        )
    else:
        yield _reachable(settings, outside)
        yield _published(settings, answer)
        yield _answers(settings, outside)
        yield _paths(settings, outside.fetcher)
        yield _host(settings, outside.misnamed)
    try:
        policy = load_publish_policy(settings)
    except KtlogError:
        policy = Policy()  # what is wrong with it is seen from inside
    down, told = [], []
    for peer in peers_of(policy):
        answer, why = _ask_witness(settings, outside.fetcher, peer)
        if answer is None or answer.status >= 500:
            down.append(peer)
        if answer and (skew := _skew(answer, outside.now())) is not None:
            told.append((host_of(peer.url), skew))
        yield _witness(peer, answer, why)
    if policy.witnesses:
        yield _quorum(policy, down)
    yield _clock(told or dates)


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
    what = f"publish.policy names {some(cosigners, 'cosigner')}, verifiers"
    what += " among them" if verified else " not among them"
    advice = "Without verifiers of the map no client gets proof that an answer is complete: docs/running.md, The map."
    return _found("Policy", verified, what, advice, LOOK)


def _running(settings: Settings) -> Iterator[Ailment]:
    try:
        link = open_link(settings, LINK_SECONDS)
        status = link.status()
        deadline = time.monotonic() + _patience(settings)
        while any(_stands(status, settings)) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)  # what came just now is published and mapped by then
            status = link.status()
    except StoreError as error:
        yield Ailment("Running", BAD, error.message, error.hint)
        return
    sequenced, published, mapped = (_number(status, name) for name in ("sequenced", "published", "mapped"))
    yield Ailment("Running", GOOD, f"the sequencer runs, and has {count_entries(sequenced)}")
    paused = (status.get("rules") or {}).get("paused") or {}
    if paused:
        what = f"no messages are taken: {paused.get('reason')}"
        there = shlex.quote(str(settings.directory.absolute()))
        yield Ailment("Paused", LOOK, what, f"ktlog admin resume --dir {there}")
    standing = _stands(status, settings)
    for name, count, stands, age, of in (
        ("Published", sequenced - published, standing[0], "checkpoint-age", ""),
        ("Mapped", published - mapped, standing[1], "map-age", " of the map"),
    ):
        what = f"{some(count, 'entry is', 'entries are')} not {name.lower()} yet"
        what += f", and the last checkpoint{of} is {some(_number(status, age), 'second')} old" if stands else ""
        advice = "The log's output says which cosigner refused, and why."
        yield replace(_found(name, count <= settings.queue_limit and not stands, what, advice), settled=count <= 0)
    ages: Mapping[str, Any] = status.get("cosigned-age") or {}
    for cosigner in sorted(ages):
        age = _number(ages, cosigner)
        yield _found(
            "Cosigned", age < COSIGNED_SECONDS, f"{cosigner} cosigned {some(age, 'second')} ago, or the log began then",
            "Ask whether it follows both of your logs, and see what the log's output says of it.",
        )


def _patience(settings: Settings) -> float:
    """What an entry may take to be published and mapped with a cosigner that does not answer, in seconds.

    Before each publication the witnesses are asked what they have seen, and then to cosign; the cosigners of the map
    the same; and each begins when its interval is over.
    """
    intervals = (settings.checkpoint_interval_ms + settings.map_interval_ms) / 1000
    return intervals + 4 * settings.witness_timeout_seconds + SPARE_SECONDS


def _stands(status: Mapping[str, Any], settings: Settings) -> tuple[bool, bool]:
    """Whether the log and its map have something to publish, but publish nothing: entries, or else a heartbeat.

    After so long without a checkpoint, that is: an entry that came just now counts too, until its time is over.
    """
    found = []
    for done, of, age, seconds in (
        ("published", "sequenced", "checkpoint-age", STUCK_SECONDS), ("mapped", "published", "map-age", MAP_MMD_SECONDS)
    ):
        allowed = seconds if _number(status, of) > _number(status, done) else settings.heartbeat_seconds + seconds
        found.append(_number(status, age) > allowed)
    return found[0], found[1]


def _number(members: Mapping[str, Any], name: str) -> int:
    try:
        return parse_decimal(str(members.get(name, "0")))
    except EncodingError:
        return 0


def _room(settings: Settings) -> Ailment:
    """An upgrade and an erasure write the database anew beside the old one; and twice the floor is near the end."""
    free = Room(settings.directory, 0).free()
    databases = [path for path in (settings.database, settings.map_database) if path.exists()]
    needed = 2 * settings.free_space_floor_mib * MIB + sum(path.stat().st_size for path in databases)
    return _found(
        "Room", free > needed + ROOM_BYTES, f"{free // MIB:,} MiB are free on the disk of the log's directory",
        f"Make room: below {settings.free_space_floor_mib} MiB no message is taken, and below {needed // MIB:,} MiB an"
        " upgrade or an erasure has none, which writes the database anew.", LOOK if free > needed else BAD,
    )


def _backup(settings: Settings, now: int) -> Ailment:
    backup = last_backup(settings)
    advice = (
        f"Back it up each day, to another disk: ktlog backup --dir {shlex.quote(str(settings.directory))} TARGET, by a"
        " timer. See docs/backup.md."
    )
    if backup is None:
        return Ailment("Backup", LOOK, "no backup was made yet, or none that was noted here", advice)
    age = max(0, now - backup.time)
    old = some(age // 60, "minute") if age < 7_200 else some(age // 3_600, "hour")
    what = f"the newest backup is {old} old and has {count_entries(backup.size)}"
    return _found("Backup", age <= BACKUP_SECONDS, what, advice, LOOK)


def _reachable(settings: Settings, outside: Outside) -> Ailment:
    if settings.origin in outside.dialled:
        what = f"{settings.url} answers, by TLS, where KTLOG_DIAL leads: the DNS was not asked, as peers do"
        return Ailment("Reachable", GOOD, what)
    return Ailment("Reachable", GOOD, f"{settings.url} answers, by DNS and TLS, as peers see it")


def _host(settings: Settings, misnamed: Fetcher) -> Ailment:
    """Whether the log hears what host it is asked for. Another site's answer to that is as good as a refusal."""
    answer, _why = _get(misnamed, f"{settings.url}/api/info")
    refused = answer is None or answer.status != 200 or "signature" not in answer.headers
    return _found(
        "Host", refused, "requests for another host are refused" if refused else
        f"the log was asked for {WRONG_HOST}, and answered: its proxy puts another name into the Host header",
        "The proxy must pass the Host header on as it came (nginx: proxy_set_header Host $host), and refuse other"
        " hosts than its own: `ktlog proxy-config`.",
    )


def _skew(answer: Response, now: int) -> int | None:
    """How far a server's clock is ahead of this one, in seconds; None if it does not say."""
    try:
        return int(parsedate_to_datetime(answer.headers.get("date", "")).timestamp()) - now
    except (ValueError, TypeError, OverflowError):
        return None


def _clock(told: list[tuple[str, int]]) -> Ailment:
    """By the median of the witnesses' clocks: some may be wrong, and the log's own proxy is where the log is."""
    if not told:
        what = "nobody who was asked said the time"
        return Ailment("Clock", LOOK, what, "Compare this machine's clock with another's.")
    skew = int(statistics.median(skew for _, skew in told))
    said = f"by {told[0][0]} alone" if len(told) == 1 else f"by the median of {len(told)} witnesses"
    return _found(
        "Clock", abs(skew) <= CLOCK_SECONDS,
        f"this machine's clock is {some(abs(skew), 'second')} {'slow' if skew > 0 else 'fast'}, {said}",
        f"Set it by NTP: cosignatures and requests that are {CLOCK_SKEW_SECONDS} seconds off do not count.",
        BAD if abs(skew) > CLOCK_BAD_SECONDS else LOOK,
    )


def _published(settings: Settings, answer: Response) -> Ailment:
    try:
        _, checkpoint = parse_signed_checkpoint(answer.body)
    except EncodingError as error:
        return Ailment("Checkpoint", BAD, f"what the proxy serves is none: {error}", "It is DIR/tiles/checkpoint.")
    what = f"{checkpoint.origin} has published {count_entries(checkpoint.size)}"
    return _found("Checkpoint", checkpoint.origin == settings.origin, what, "The proxy leads to another log.")


def _answers(settings: Settings, outside: Outside) -> Ailment:
    """Whether signed answers come through whole."""
    answer, why = _get(outside.fetcher, f"{settings.url}/api/info")
    if answer is None or answer.status != 200 or "signature" not in answer.headers:
        return Ailment(
            "Answers", BAD, f"{settings.url}/api/info: {why or 'no signed answer came'}",
            f"Either the log does not run, or {ROOM}",
        )
    changed = "The proxy changes them: turn compression and rewriting off (nginx: gzip off)."
    if answer.headers.get("content-digest") != content_digest(answer.body):
        return Ailment("Answers", BAD, "signed answers of the API are not what was signed", changed)
    _answer, why = _get(outside.zipping, f"{settings.url}/api/info")
    zips = why.startswith("BadContent")
    what = "whoever takes compressed answers gets others than were signed" if zips else "signed answers of the API"
    return _found("Answers", not zips, what, changed)


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


def _ask_witness(settings: Settings, fetcher: Fetcher, peer: WitnessPeer) -> tuple[Response | None, str]:
    """What it has cosigned of the log; or of the log of the map, which is all that a verifier cosigns."""
    for origin in (settings.origin, map_origin(settings.origin)):
        shown = sha256(origin.encode()).hexdigest()
        answer, why = _get(fetcher, f"{peer.url.rstrip('/')}/{shown}/checkpoint")
        if answer is None or answer.status == 200:
            break
    return answer, why


def _witness(peer: WitnessPeer, answer: Response | None, why: str) -> Ailment:
    names = ", ".join(_names(peer))
    if answer is None:
        return Ailment("Witness", BAD, f"{names} at {peer.url} does not answer: {why}", "Ask its operator.")
    if answer.status >= 500:
        what = f"{names} at {peer.url} answers {answer.status}: the witness behind its proxy is down"
        return Ailment("Witness", BAD, what, "Write to its operator.")
    return _found(
        "Witness", answer.status == 200, f"{names} at {peer.url} answers {answer.status}",
        "It has cosigned nothing of this log. Has it the log's vkeys? ktlog-witness add-log, once for the log's keys"
        " and once for the map's.", LOOK,
    )


def _names(peer: WitnessPeer) -> list[str]:
    return sorted({vkey.name for vkey in peer.vkeys})


def _quorum(policy: Policy, down: list[WitnessPeer]) -> Ailment:
    """Whether enough cosigners answer, and if not, who is missing."""
    gone = {vkey for peer in down for vkey in peer.vkeys}
    there = [witness.vkey for witness in policy.witnesses.values() if witness.vkey not in gone]
    if policy.satisfied(there):
        return Ailment("Quorum", GOOD, "enough cosigners answer")
    of_log = input_policy(policy)
    witnesses = {witness.vkey.name for witness in of_log.witnesses.values()}
    missing = {name for peer in down for name in _names(peer)}
    words = []
    for group, role, names in (
        (of_log.quorum, ("witness", "witnesses"), missing & witnesses),
        (VERIFIERS, ("verifier", "verifiers"), missing - witnesses),
    ):
        have, need = policy.shortfall(there, group) if names else (0, 0)
        if have < need:
            does, it = ("does", "it") if len(names) == 1 else ("do", "them")
            quorum = some(need, *role)
            words.append(f"{', '.join(sorted(names))} {does} not answer, and the quorum of {quorum} needs {it}")
    return Ailment(
        "Quorum", BAD, "; ".join(words) or "too few cosigners answer",
        "Nothing is published until they are back. With other cosigners: ktlog policy make --replace, and a restart.",
    )


def _get(fetcher: Fetcher, url: str) -> tuple[Response | None, str]:
    try:
        return fetcher.get(url, max_bytes=1 << 20), ""
    except KtlogError as error:
        return None, f"{error.name}: {error.message}"
