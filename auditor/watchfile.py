"""``watch.toml``: which logs to watch, whom to believe, whom to ask, and how patient to be.

::

    every = 60                            # seconds between two looks
    lag = 300                             # grace periods, in seconds: docs/watching.md
    cosigner_grace = 3600

    [[log]]
    log = "keys.example.com"              # an origin or an https URL
    policy = "policy.txt"                 # its key, witnesses, quorum; and the key of its map
    vkeys = []                            # of the log and of its map, where no policy names them
    witnesses = ["https://w1.example"]    # to be asked what they saw, beside those whose URL the policy has
    mirrors = ["https://m1.example"]      # of tlog-mirror
    addresses = ["https://other.example"] # where the same log is reached otherwise
    peers = ["https://keys.example.org"]  # directories whose logs hold Checkpoint messages about this one
    receipts = "receipts"                 # a directory of receipts of this log, to see them honoured
    http_keys = []                        # its keys for answers, which sign receipts; else the first seen is kept
    read = "all"                          # or "none": only heads are compared, no entry is read

    [sinks.me]                            # where alarms go: docs/alarms.md

Names of files are relative to the file itself. What it does not know, it refuses: a mistyped name must not leave a log
unwatched.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from auditor.commands.common import find_log, load_policy, parse_known_vkey, read_file, with_keys
from auditor.debounce import Graces
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Log
from ktlog.errors import EncodingError, UsageError
from ktlog.keymap.output import map_origin
from ktlog.pkd.keys import decode_public_key
from ktlog.tlog.note import Vkey
from ktlog.tlog.policy import Policy
from ktlog.wire.actor_id import parse_https_url

MAX_FILE_BYTES = 1 << 20
MAX_LOGS = 200
"""Each has a thread."""
MAX_SOURCES = 50
EVERY = range(5, 86_401)
_GRACES = ("lag", "cosigner_grace", "slow_grace")
_TOP = {"every": int, "clock_skew": int, "log": list, "sinks": dict, **dict.fromkeys(_GRACES, int)}
_LOG = {
    "log": str, "policy": str, "map_policy": str, "vkeys": list, "witnesses": list, "mirrors": list,
    "addresses": list, "peers": list, "receipts": str, "http_keys": list,
    "read": str, "commitments": str, "answers": str, "max_age": int,
}
READ = ("all", "none")


@dataclass(frozen=True)
class Watched:
    """One log to watch. map: its map's log, None when no key of it is known. policy, map_policy: None for none."""

    log: Log
    policy: Policy | None = None
    map: Log | None = None
    map_policy: Policy | None = None
    witnesses: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    receipts: Path | None = None
    http_keys: tuple[bytes, ...] = ()
    read: str = "all"
    commitments: str = "all"
    answers: str = "none"
    max_age: int = DEFAULT_MAX_AGE_SECONDS


@dataclass(frozen=True)
class WatchConfig:
    """All that ``watch`` is told. every, skew: seconds. sinks: the table of that name; base: where its paths start."""

    logs: tuple[Watched, ...] = ()
    every: int = 60
    skew: int = 300
    graces: Graces = field(default_factory=Graces)
    sinks: Mapping[str, Any] = field(default_factory=dict)
    base: Path = Path()


def load_watch_file(path: Path) -> WatchConfig:
    """Read a watch file.

    Raises:
        UsageError: ``BadWatchFile``; what the policies and keys in it are refused for.
    """
    data = read_file(path, MAX_FILE_BYTES)
    try:
        return parse_watch_file(tomllib.loads(data.decode("utf-8")), path.parent)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("BadWatchFile", f"{path} is no TOML: {error}") from None
    except UsageError as error:
        error.message = f"{path}: {error.message}"
        raise


def parse_watch_file(found: Mapping[str, Any], base: Path) -> WatchConfig:
    """What the TOML document *found* says. Raises UsageError."""
    _check_members(found, _TOP, "the file")
    logs = found.get("log", [])
    if not logs or len(logs) > MAX_LOGS or not all(isinstance(one, dict) for one in logs):
        raise _bad(f"it has to have 1 to {MAX_LOGS} tables [[log]]")
    watched = tuple(_watched(one, base) for one in logs)
    origins = [one.log.origin for one in watched]
    twice = {origin for origin in origins if origins.count(origin) > 1}
    if twice:
        raise _bad(f"{min(twice)} is there twice")
    every, skew = found.get("every", 60), found.get("clock_skew", 300)
    if every not in EVERY or not 0 <= skew <= 3600:
        raise _bad(f"every is {EVERY.start} to {EVERY.stop - 1} seconds, clock_skew 0 to 3600")
    graces = Graces()
    for name in _GRACES:
        if name in found:
            if not 0 <= found[name] <= 30 * 86_400:
                raise _bad(f"{name} is 0 to {30 * 86_400} seconds")
            graces = replace(graces, **{name.removesuffix("_grace"): found[name]})
    return WatchConfig(watched, every, skew, graces, found.get("sinks", {}), base)


def make_watched(
    log: str, *, policy: Policy | None = None, map_policy: Policy | None = None, vkeys: Sequence[str] = (),
    **options: Any,
) -> Watched:
    """One log by what a person said of it.

    Raises:
        UsageError: ``NoKey``, ``BadLog``, ``WrongKey``, ``BadVkey``, ``BadPolicy``.
        PolicyUnmet: ``UnsafePolicy``.
    """
    given = {vkey.name: str(vkey) for vkey in map(parse_known_vkey, vkeys)}
    origin = (log.partition("://")[2] or log).rstrip("/")
    strange = given.keys() - {origin, map_origin(origin)}
    if strange:
        raise UsageError("WrongKey", f"{min(strange)!a} is neither {origin} nor its map")
    subject = find_log(log, policy, given.get(origin))
    more = [vkey for vkey in map(parse_known_vkey, vkeys) if vkey.name == origin and vkey not in subject.vkeys]
    subject = replace(subject, vkeys=(*subject.vkeys, *more))
    if policy is not None:
        policy = with_keys(policy, subject)
        policy.check_safe()
    of_map = _map_log(subject, [one for one in (map_policy, policy) if one is not None], vkeys)
    if map_policy is not None:
        map_policy.check_safe()
    witnesses = [*options.pop("witnesses", ())]
    for one in (policy, map_policy):
        witnesses += [] if one is None else [witness.url for witness in one.witnesses.values() if witness.url]
    return Watched(
        subject, policy, of_map, map_policy,
        witnesses=tuple(dict.fromkeys(url.rstrip("/") for url in witnesses)), **options,
    )


def _map_log(log: Log, policies: Sequence[Policy], vkeys: Sequence[str]) -> Log | None:
    """The log of the map: it answers below the log's own address."""
    origin = map_origin(log.origin)
    keys: dict[Vkey, None] = {}
    for policy in policies:
        keys |= dict.fromkeys(line.vkey for line in policy.logs if line.vkey.name == origin)
    keys |= dict.fromkeys(vkey for text in vkeys if (vkey := parse_known_vkey(text)).name == origin)
    return Log(origin, tuple(keys), f"{log.url}/map") if keys else None


def _watched(found: Mapping[str, Any], base: Path) -> Watched:
    _check_members(found, _LOG, "a [[log]]")
    if "log" not in found:
        raise _bad("a [[log]] has no member log")
    name = found["log"]
    lists: dict[str, tuple[str, ...]] = {}
    for member in ("vkeys", "witnesses", "mirrors", "addresses", "peers"):
        value = found.get(member, [])
        if len(value) > MAX_SOURCES or not all(isinstance(one, str) for one in value):
            raise _bad(f"{member} of {name!a} is a list of at most {MAX_SOURCES} strings")
        lists[member] = tuple(dict.fromkeys(value))
    for member in ("witnesses", "mirrors", "addresses", "peers"):
        for url in lists[member]:
            _check_url(url, name)
    if found.get("read", "all") not in READ:
        raise _bad(f"read of {name!a} is none of {', '.join(READ)}")
    if lists["peers"] and found.get("read", "all") != "all":
        raise _bad(f"peers of {name!a} can only be compared where its entries are read")
    policies = {
        member: load_policy(base / found[member]) for member in ("policy", "map_policy") if member in found
    }
    plain = {member.name for member in fields(Watched)} & {"read", "commitments", "answers", "max_age"}
    options: dict[str, Any] = {member: found[member] for member in plain if member in found}
    if "receipts" in found:
        options["receipts"] = base / found["receipts"]
    if "http_keys" in found:
        options["http_keys"] = tuple(_http_key(text, name) for text in found["http_keys"])
    return make_watched(name, **policies, **lists, **options)


def _http_key(text: Any, name: str) -> bytes:
    try:
        return decode_public_key(text)
    except (EncodingError, TypeError, AttributeError):
        raise _bad(f"http_keys of {name!a} holds what is no key for answers (mldsa44:...)") from None


def _check_url(url: str, name: str) -> None:
    try:
        parse_https_url(f"{url.rstrip('/')}/")
    except EncodingError as error:
        raise _bad(f"{url!a} of {name!a} is no https URL: {error.message}") from None


def _check_members(found: Mapping[str, Any], known: Mapping[str, type], where: str) -> None:
    for member, value in found.items():
        if member not in known:
            raise _bad(f"{where} has no member {member!a}")
        # type(): true is an int to Python.
        if type(value) is not known[member]:
            raise _bad(f"{member} in {where} is no {known[member].__name__}")


def _bad(what: str) -> UsageError:
    return UsageError("BadWatchFile", what, hint="docs/watching.md has an example.")
