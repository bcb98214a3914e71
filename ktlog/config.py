"""Where a log keeps things and how it runs: ``ktlog.toml`` in the log's directory.

A flag beats an environment variable (``KTLOG_`` and the setting's name in capitals), which beats
the file, which beats the default. The origin and the dialect are fixed at ``init`` and live in
the store too; a file that contradicts the store is refused there.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ktlog.durable import write_atomic
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.keymap.output import MAX_PROMISE_SECONDS
from ktlog.pkd.dialects import DIALECTS
from ktlog.store.place import Place, parse_place
from ktlog.tlog.encoding import parse_decimal
from ktlog.wire import logs
from ktlog.wire.compat import parse_compat

MAXIMUM_TIME_WINDOW_SECONDS = 2_592_000  # PKD specification, "Handling Protocol Messages"


BENCH_ORIGIN = "bench.invalid"
"""The name of a log that is measured and that nobody can have. Only such a log may leave out Argon2id."""

MAP_MMD_SECONDS = 60
"""Within which an input checkpoint is followed by a leaf of the map's output log, which says so in its first leaf."""

ALL, WEB, SEQUENCER = ROLES = ("all", "web", "sequencer")
"""What of a log runs on a machine. Of several sequencers one works, and the others stand by."""


@dataclass(frozen=True)
class Settings:
    """One log's configuration. Every field but the first three can be set from the environment."""

    directory: Path
    origin: str
    dialect: str
    listen: str = "127.0.0.1:8080"
    workers: int = 2
    threads: int = 8
    body_limit_bytes: int = 262_144
    time_window_seconds: int = 86_400
    checkpoint_interval_ms: int = 1_000
    map_interval_ms: int = 5_000
    heartbeat_seconds: int = 600
    witness_timeout_seconds: int = 5
    unpublished_limit: int = 10_000
    queue_limit: int = 256
    free_space_floor_mib: int = 128
    aux_types: str = "age-v1 ssh-v2"
    actor_domains: str = ""
    hosts: str = ""
    trusted_proxies: str = "127.0.0.0/8 ::1/128"
    rate_limit_base_ms: int = 100
    rate_limit_maximum_seconds: int = 3_600
    rate_limit_exempt: str = ""
    burndown_enabled: bool = False
    directories: str = ""
    notice_seconds: int = 86_400
    compat: str = ""
    explorer: bool = True
    explorer_live: bool = True
    replicas: str = ""
    replica_interval_seconds: int = 60
    store: str = ""
    store_file: str = ""
    role: str = "all"
    objects: str = ""
    objects_endpoint: str = ""
    objects_region: str = ""
    partials_kept: int = 60
    signer: str = ""

    metrics_listen: str = ""
    log_format: str = "auto"
    log_level: str = "info"
    bench_without_argon2: bool = False

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            known = ", ".join(sorted(DIALECTS))
            raise UsageError("UnknownDialect", f"dialect {self.dialect!r} is none of {known}")
        if not 1 <= self.time_window_seconds <= MAXIMUM_TIME_WINDOW_SECONDS:
            raise UsageError(
                "BadSetting", f"time_window_seconds is {self.time_window_seconds}; PKD allows 1 to 2592000"
            )
        parse_compat(self.compat)
        if self.bench_without_argon2 and self.origin != BENCH_ORIGIN:
            raise UsageError("BadSetting", f"bench_without_argon2 is for measuring, and for a log named {BENCH_ORIGIN}")
        _check_store(self.store, self.store_file)
        for name, known in (("log_format", logs.FORMATS), ("log_level", logs.LEVELS)):
            if getattr(self, name) not in known:
                raise UsageError("BadSetting", f"{name} is {getattr(self, name)!a}; it is one of {', '.join(known)}")
        if self.role not in ROLES:
            raise UsageError("BadSetting", f"role is {self.role!r}; it is one of {', '.join(ROLES)}")
        if self.role != ALL and not self.uses_postgres:
            raise UsageError("BadSetting", "a log in files runs on one machine: its role is all")
        if self.place is None and (self.objects_endpoint or self.objects_region):
            raise UsageError("BadSetting", "objects_endpoint and objects_region go with objects, which is not set")
        if self.map_interval_ms > 1000 * MAP_MMD_SECONDS:
            raise UsageError(
                "BadSetting", f"map_interval_ms is {self.map_interval_ms}; at most {1000 * MAP_MMD_SECONDS} are allowed"
            )
        if self.heartbeat_seconds > MAX_PROMISE_SECONDS:
            raise UsageError(
                "BadSetting",
                f"heartbeat_seconds is {self.heartbeat_seconds}; at most {MAX_PROMISE_SECONDS} are allowed",
            )
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "free_space_floor_mib" else 1
            if type(value) is int and value < least:
                raise UsageError("BadSetting", f"{field.name} is {value}; it must be at least {least}")

    @property
    def url(self) -> str:
        """The log's public URL. The origin is its host name: one name for one thing."""
        return f"https://{self.origin}"

    @property
    def actor_id(self) -> str:
        """The ActivityPub actor that takes protocol messages as direct messages."""
        return f"{self.url}/users/pubkeydir"

    @property
    def fetch_key_id(self) -> str:
        """Names the key that signs GETs of other servers' actor documents, and nothing else."""
        return f"{self.actor_id}#fetch-key"

    @property
    def database(self) -> Path:
        return self.directory / "log.db"

    @property
    def uses_postgres(self) -> bool:
        """Whether the log is in a PostgreSQL database and not in ``database``."""
        return bool(self.store or self.store_file)

    @property
    def store_file_path(self) -> Path:
        """The file that holds the database's URL; relative to the log's directory."""
        return self.directory / self.store_file

    @property
    def tiles(self) -> Path:
        return self.directory / "tiles"

    @property
    def place(self) -> Place | None:
        """Where the published files are, if they are in an object store. Raises UsageError ``BadSetting``."""
        return parse_place(self.objects, self.objects_endpoint, self.objects_region) if self.objects else None

    @property
    def swept(self) -> Path:
        """Up to where superseded partial tiles are removed. May be lost."""
        return self.directory / "partials-swept"

    @property
    def map_swept(self) -> Path:
        """The same of the map's output log."""
        return self.directory / "map-partials-swept"

    @property
    def map_updates_swept(self) -> Path:
        """Which update of the map is the next to be removed. May be lost."""
        return self.directory / "map-updates-swept"

    @property
    def map_database(self) -> Path:
        """The directory map as it was published last, and every leaf and checkpoint of its output log."""
        return self.directory / "map.db"

    @property
    def map_tiles(self) -> Path:
        """Below ``tiles``, so that a web server that serves those as / serves these as /map."""
        return self.tiles / "map"

    @property
    def map_pending(self) -> Path:
        """The output leaf that waits for its cosignatures."""
        return self.directory / "map-pending"

    @property
    def map_signed_head(self) -> Path:
        """What ``signed_head`` is to the log, to the map's output log."""
        return self.directory / "map-signed-head.json"

    @property
    def keys(self) -> Path:
        return self.directory / "keys"

    @property
    def key_changes(self) -> Path:
        """Every replacement of one of the log's keys, a signed line each; published."""
        return self.directory / "keys.jsonl"

    @property
    def publish_policy(self) -> Path:
        return self.directory / "publish.policy"

    @property
    def signed_head(self) -> Path:
        """The last head the log signed; written before the signature leaves the process."""
        return self.directory / "signed-head.json"

    @property
    def acked(self) -> Path:
        """How far the sequencer on this machine has answered; see ktlog.operator.acked."""
        return self.directory / "acked"

    @property
    def rules(self) -> Path:
        """Whose messages are taken; see ktlog.operator.rules."""
        return self.directory / "rules.json"

    @property
    def socket_record(self) -> Path:
        """Names the sequencer's Unix socket, whose path must stay short."""
        return self.directory / "sequencer.addr"

    @property
    def cosigners(self) -> Path:
        """PKD witnesses whose cosignatures are taken: lines of an id and its ``mldsa44:`` key."""
        return self.directory / "cosigners"

    @property
    def guard(self) -> Path:
        """Rate limits and replayed HTTP signatures. May be lost."""
        return self.directory / "guard.db"

    @property
    def replies(self) -> Path:
        """Direct messages waiting to be delivered to senders. May be lost."""
        return self.directory / "replies.db"

    @property
    def journal(self) -> Path:
        """What the operator did by hand, a JSON object a line; names no erased actor."""
        return self.directory / "journal.jsonl"

    @property
    def replica_directory(self) -> Path:
        """Other logs that are mirrored here, and the policies under which they are believed."""
        return self.directory / "replicas"

    def host_names(self) -> frozenset[str]:
        """Host headers that are answered: the origin, and what ``hosts`` adds."""
        return frozenset([self.origin, *self.hosts.split()])

    def directory_urls(self) -> frozenset[str]:
        """Directories whose Checkpoint messages are taken. None means none."""
        return frozenset(self.directories.split())

    def compat_names(self) -> frozenset[str]:
        """What this log lets pass against the specification; see ktlog.wire.compat."""
        return parse_compat(self.compat)

    def aux_type_names(self) -> frozenset[str]:
        return frozenset(self.aux_types.split())

    def actor_domain_names(self) -> frozenset[str]:
        """Domains whose actors this log serves; none means every domain's."""
        return frozenset(self.actor_domains.split())


def _check_store(store: str, store_file: str) -> None:
    """Refuse what names no database, or tells its password to whoever reads the file."""
    if store and store_file:
        raise UsageError("BadSetting", "store and store_file name the same thing: set one of them")
    if not store:
        return
    try:
        found = urlsplit(store)
        parameters = parse_qs(found.query)
    except ValueError:
        raise UsageError("BadSetting", "store is no URL") from None
    if found.scheme not in ("postgresql", "postgres"):
        raise UsageError("BadSetting", "store begins with postgresql:// (or is empty: SQLite files in the directory)")
    if found.password is not None or {"password", "sslpassword"} & parameters.keys():
        raise UsageError(
            "BadSetting", "store holds a password, and settings are not secret",
            hint="Put the URL into a file that only ktlog's user can read (mode 0600), and name it in store_file.",
        )


_FIXED = ("directory", "origin", "dialect")


def write_settings(settings: Settings) -> None:
    """Write ``ktlog.toml``: what was fixed at init, and every other setting as a comment."""
    lines = [
        "# A ktlog log. The origin and the dialect are for ever; heartbeat_seconds and notice_seconds are so from the",
        "# first start on, because the map's log begins with them. The rest may change with a restart.",
        f'origin = "{settings.origin}"',
        f'dialect = "{settings.dialect}"',
        "",
    ]
    for field in fields(Settings):
        if field.name in _FIXED:
            continue
        value = getattr(settings, field.name)
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        shown = shown.lower() if isinstance(value, bool) else shown
        prefix = "" if value != field.default else "# "
        lines.append(f"{prefix}{field.name} = {shown}")
    write_atomic(settings.directory / "ktlog.toml", ("\n".join(lines) + "\n").encode(), mode=0o644)


def with_setting(text: str, name: str, value: str) -> str:
    """*text*, the content of ``ktlog.toml``, saying ``name = value``; every other line stays as it is.

    Raises:
        UsageError: "BadSwitch", a machine cannot change it so.
    """
    line = f"{name} = {json.dumps(value)}"
    for mark in ("", "#"):  # the setting itself, and only then the comment that stands for it
        changed, count = re.subn(rf"(?m)^[ \t]*{mark}[ \t]*{name}[ \t]*=.*$", lambda _match: line, text, count=1)
        if count:
            break
    else:
        changed = f"{text.rstrip()}\n{line}\n"
    try:
        if tomllib.loads(changed).get(name) == value:
            return changed
    except tomllib.TOMLDecodeError:
        pass
    raise UsageError(
        "BadSwitch", f"ktlog.toml cannot be changed by machine to say {line}",
        hint=f"Write {name} = \"\" there in a line of its own, before any [table], and say it again.",
    )


def load_settings(
    directory: Path, flags: Mapping[str, str | int | None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings of the log in *directory*; ``flags`` that are None count as not given.

    Raises:
        UsageError: no such log, an unknown or ill-typed setting.
    """
    environment = os.environ if environment is None else environment
    path = directory / "ktlog.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(
            "NoSuchLog", f"{path} does not exist",
            hint="Make a log first: ktlog init --dir DIR --origin keys.example.com. "
            "If ktlog.toml.restoring is there, a restore is unfinished: repeat that ktlog restore.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError("BadConfiguration", f"{path}: {error}") from None
    values: dict[str, object] = dict(found)
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in defaults:
        if name in _FIXED:
            continue
        text = environment.get(f"KTLOG_{name.upper()}")
        if text is not None:
            values[name] = _parse_variable(f"KTLOG_{name.upper()}", text, type(defaults[name]))
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    for name, value in values.items():
        if name not in defaults or name == "directory":
            raise UsageError("BadConfiguration", f"{path}: there is no setting {name!r}")
        wanted = str if name in ("origin", "dialect") else type(defaults[name])
        if type(value) is not wanted:
            raise UsageError("BadConfiguration", f"{path}: {name} must be a {wanted.__name__}")
    if "origin" not in values or "dialect" not in values:
        raise UsageError("BadConfiguration", f"{path}: origin and dialect must both be set")
    return Settings(directory=directory, **values)  # type: ignore[arg-type]


def _parse_variable(variable: str, text: str, wanted: type) -> str | int | bool:
    if wanted is str:
        return text
    if wanted is bool:
        if text not in ("true", "false"):
            raise UsageError("BadConfiguration", f"the environment's {variable} is {text!a}, not true or false")
        return text == "true"
    try:
        return parse_decimal(text)
    except EncodingError as error:
        raise UsageError("BadConfiguration", f"the environment's {variable} is {text!a}: {error.message}") from None


def socket_path(settings: Settings) -> Path:
    """Choose where the sequencer listens: in DIR when the path is short enough for a socket."""
    inside = settings.directory.resolve() / "sequencer.sock"
    # sun_path holds 108 bytes on Linux and 104 on BSD, with the closing zero.
    if len(str(inside).encode()) <= 100:
        return inside
    return Path(tempfile.mkdtemp(prefix="ktlog-")) / "sequencer.sock"
