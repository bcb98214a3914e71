"""The output log's leaves: its configuration, once, and then what the map was, when, over which entries.

The output log is a second append-only log (origin ``O/map``). Whoever holds a checkpoint of it that witnesses and
verifiers cosigned knows the newest map root, because the newest leaf is the one at ``size - 1``.

Spec: directory map v1 §6.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal

MAP_SUFFIX = "/map"
SUITE_HASH = "hash"
MAX_PROMISE_SECONDS = 86_400
"""The longest `mmd` and `heartbeat` that a log may promise."""


@dataclass(frozen=True, slots=True)
class MapConfig:
    """Leaf 0. Another configuration is another log.

    mmd: seconds within which an input checkpoint is followed by a leaf. heartbeat: seconds within which there is
    a leaf when nothing happens. notice: seconds that an attribute is public before it may be withheld.
    """

    origin: str
    dialect: str
    suite: str = SUITE_HASH
    mmd: int = 60
    heartbeat: int = 600
    notice: int = 86400


@dataclass(frozen=True, slots=True)
class OutputLeaf:
    """Leaf k > 0. config: hash of leaf 0. time: Unix seconds. Sizes and 32-byte roots of entries and erasures."""

    config: bytes
    time: int
    input_size: int
    input_root: bytes
    erasures: int
    erasures_root: bytes
    map_root: bytes


def map_origin(origin: str) -> str:
    """The origin of the output log of the log *origin*."""
    return origin + MAP_SUFFIX


def format_config(config: MapConfig) -> bytes:
    return (
        f"ktlog-map-config/v1\norigin {config.origin}\ndialect {config.dialect}\nsuite {config.suite}\n"
        f"mmd {config.mmd}\nheartbeat {config.heartbeat}\nnotice {config.notice}\n"
    ).encode()


def hash_config(config: MapConfig) -> bytes:
    """What every later leaf names its configuration by."""
    return sha256(format_config(config)).digest()


def parse_config(data: bytes) -> MapConfig:
    """Raises EncodingError(``BadMapConfig``), also for a suite that this version does not know."""
    fields = _fields(data, "ktlog-map-config/v1", ("origin", "dialect", "suite", "mmd", "heartbeat", "notice"),
                     "BadMapConfig")
    origin, dialect, suite = (field[0] for field in fields[:3])
    if suite != SUITE_HASH or dialect not in ("spec", "vector", "php"):
        raise EncodingError("BadMapConfig", f"unknown suite {suite!a} or dialect {dialect!a}")
    mmd, heartbeat, notice = (_number(field[0], "BadMapConfig") for field in fields[3:])
    if not (1 <= mmd <= MAX_PROMISE_SECONDS and 1 <= heartbeat <= MAX_PROMISE_SECONDS):
        # A log could else be founded that may hold entries back for years and break no promise.
        raise EncodingError("BadMapConfig", f"mmd and heartbeat are 1 to {MAX_PROMISE_SECONDS} seconds")
    return MapConfig(origin, dialect, suite, mmd, heartbeat, notice)


def format_leaf(leaf: OutputLeaf) -> bytes:
    return (
        f"ktlog-map/v1\nconfig {encode_base64(leaf.config)}\ntime {leaf.time}\n"
        f"input {leaf.input_size} {encode_base64(leaf.input_root)}\n"
        f"erasures {leaf.erasures} {encode_base64(leaf.erasures_root)}\nmap {encode_base64(leaf.map_root)}\n"
    ).encode()


def parse_leaf(data: bytes) -> OutputLeaf:
    """Raises EncodingError(``BadOutputLeaf``)."""
    names = ("config", "time", "input", "erasures", "map")
    config, time, entries, erasures, root = _fields(
        data, "ktlog-map/v1", names, "BadOutputLeaf", pairs=("input", "erasures")
    )
    return OutputLeaf(
        _hash(config[0]), _number(time[0]), _number(entries[0]), _hash(entries[1]),
        _number(erasures[0]), _hash(erasures[1]), _hash(root[0]),
    )


def _fields(
    data: bytes, first: str, names: tuple[str, ...], error: str, pairs: tuple[str, ...] = ()
) -> list[list[str]]:
    """The words after each name: exactly these lines, in this order, each with one word or, in *pairs*, two."""
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise EncodingError(error, "it is not ASCII") from None
    if len(lines) != len(names) + 2 or lines[0] != first or lines[-1]:
        raise EncodingError(error, f"it is not the {len(names) + 1} lines of {first}")
    fields = []
    for line, name in zip(lines[1:-1], names, strict=True):
        words = line.split(" ")
        if words[0] != name or len(words) != (3 if name in pairs else 2) or not all(words) or not line.isprintable():
            raise EncodingError(error, f"its line {name!r} is malformed")
        fields.append(words[1:])
    return fields


def _number(text: str, error: str = "BadOutputLeaf") -> int:
    try:
        return parse_decimal(text)
    except EncodingError as bad:
        raise EncodingError(error, bad.message) from None


def _hash(text: str) -> bytes:
    try:
        return decode_base64(text, 32)
    except EncodingError as bad:
        raise EncodingError("BadOutputLeaf", bad.message) from None
