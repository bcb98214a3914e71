"""The logs that are mirrored here: which, under whose policy, where they are kept, and how it goes.

An operator names them in the setting ``replicas`` and says in ``DIR/replicas/ORIGIN.policy`` whom to
believe: the source's keys and its witnesses. Without such a policy nothing is mirrored.

``DIR/replicas/ORIGIN/`` has the store (``log.db``), the tiles with the newest checkpoint that was
verified to the end, and ``status.json``, which names nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

from ktlog.client.verify import Log, find_log
from ktlog.config import Settings
from ktlog.durable import read_file, write_atomic
from ktlog.errors import EncodingError, KtlogError, PolicyUnmet, StoreError, UsageError
from ktlog.operator.create import check_origin
from ktlog.pkd.canonical import parse_json
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.policy import Policy, parse_policy

PLAINTEXT_SECONDS = 7 * 86_400
"""How long plaintext is shown without word from its source. Source: PKD, "Mirror Plaintext Cache Invalidation"."""

# It may be that the source erased something: its text is not shown until that is cleared up.
_HIDING = frozenset({"RecordWithheld", "NotErased", "BadErasure", "BadErasures"})


@dataclass(frozen=True)
class Source:
    """A log to be mirrored. directory: where it is kept here."""

    log: Log
    policy: Policy
    directory: Path

    @property
    def id(self) -> str:
        """What it is called in paths: the same for ever, at every mirror."""
        return encode_base64url(hashlib.sha256(self.log.origin.encode("ascii")).digest())

    @property
    def database(self) -> Path:
        return self.directory / "log.db"

    @property
    def tiles(self) -> Path:
        return self.directory / "tiles"

    @property
    def map_tiles(self) -> Path:
        """A copy of the leaves of its map's output log."""
        return self.directory / "map"

    @property
    def leaf_keys(self) -> Path:
        """What it said last of the keys that signed its entries."""
        return self.directory / "leaf-keys"

    @property
    def status(self) -> Path:
        return self.directory / "status.json"


def load_sources(settings: Settings) -> tuple[Source, ...]:
    """Every log that the settings name, with its policy.

    Raises:
        UsageError: ``BadReplica`` (no origin of another log), ``NoReplicaPolicy``, ``BadReplicaPolicy``.
        PolicyUnmet: ``UnsafePolicy``.
    """
    return tuple(_load(settings, origin) for origin in sorted(set(settings.replicas.split())))


def _load(settings: Settings, origin: str) -> Source:
    check_origin(origin)
    if origin == settings.origin:
        raise UsageError("BadReplica", "replicas names this log itself")
    path = settings.replica_directory / f"{origin}.policy"
    try:
        policy = parse_policy(path.read_bytes())
        policy.check_safe()
        log = find_log(policy, origin)
    except FileNotFoundError:
        raise UsageError(
            "NoReplicaPolicy", f"{path} does not exist; a log is mirrored only under a policy",
            hint=f"Write a tlog-policy there: a `log` line for {origin}, its `witness` lines, a `group`, a `quorum`.",
        ) from None
    except PolicyUnmet as error:
        raise PolicyUnmet(error.name, f"{path}: {error.message}") from None
    except (KtlogError, OSError) as error:
        raise UsageError("BadReplicaPolicy", f"{path}: {error}") from None
    return Source(log, policy, settings.replica_directory / origin)


@dataclass(frozen=True)
class MirrorStatus:
    """How mirroring one log goes. Times are Unix seconds, 0 for never.

    tree_size: of the newest checkpoint whose tree was verified to the end.
    last_success: when the source last answered everything that was asked, and all of it held.
    last_reread: when every record was last compared with the source's.
    error: the name of what went wrong last, None if nothing did.
    erasing: the source erased something that is not taken away here yet.
    stopped: the source was convicted of a fork; it is asked no more until an operator removes the file.
    checked, total: attributes of which the Argon2id commitment was checked, and all of them.
    taken: by leaf index, what is here on the word of earlier readers, because it rests on erased text.
    """

    tree_size: int = 0
    last_success: int = 0
    last_reread: int = 0
    error: str | None = None
    erasing: bool = False
    stopped: bool = False
    checked: int = 0
    total: int = 0
    taken: dict[str, str] = field(default_factory=dict)

    def may_show_plaintext(self, now: int) -> bool:
        """Whether what names an actor may be served: the source was heard not long ago, and is not in doubt."""
        doubtful = self.stopped or self.erasing or self.error in _HIDING
        return not doubtful and now - self.last_success <= PLAINTEXT_SECONDS


def load_status(source: Source) -> MirrorStatus:
    """Raises StoreError: ``BadMirrorStatus``, or it cannot be read."""
    data = read_file(source.status)
    if data is None:
        return MirrorStatus()
    try:
        found = parse_json(data)
    except EncodingError as error:
        raise StoreError("BadMirrorStatus", f"{source.status}: {error.message}") from None
    kinds = {item.name: type(getattr(MirrorStatus(), item.name)) for item in fields(MirrorStatus)}
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        raise StoreError("BadMirrorStatus", f"{source.status} is not of the form of a status")
    for name, kind in kinds.items():
        if type(found[name]) is not kind and not (name == "error" and isinstance(found[name], str)):
            raise StoreError("BadMirrorStatus", f"{source.status}: {name} is of another type")
    return MirrorStatus(**found)


def mirrors_of(sources: Iterable[Source]) -> dict[str, MirrorStatus]:
    """How each of them does, by origin; without those of which that cannot be read."""
    found = {}
    for source in sources:
        with suppress(StoreError):
            found[source.log.origin] = load_status(source)
    return found


def save_status(source: Source, status: MirrorStatus) -> None:
    """Raises StoreError: it cannot be written."""
    members = {item.name: getattr(status, item.name) for item in fields(MirrorStatus)}
    write_atomic(source.status, json.dumps(members).encode() + b"\n")
