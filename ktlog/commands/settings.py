"""The settings of a log as flags, and what each is for in a line. docs/running.md says it at length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from ktlog.config import ROLES, Settings
from ktlog.wire import logs

MEANINGS = {
    "listen": "Where to answer HTTP, ADDRESS:PORT or fd://N; a TLS proxy stands before it.",
    "workers": "Web worker processes.",
    "threads": "Threads in each web worker.",
    "body_limit_bytes": "The longest request body.",
    "time_window_seconds": "How far a message's time may be from the clock.",
    "checkpoint_interval_ms": "How often to publish, if there is something new.",
    "map_interval_ms": "How often at most the map is published.",
    "heartbeat_seconds": "How often an unchanged head is cosigned again; for ever after the first start.",
    "witness_timeout_seconds": "How long to wait for a witness.",
    "unpublished_limit": "Entries that may wait for a checkpoint before messages are refused.",
    "queue_limit": "Messages that may wait for the sequencer.",
    "free_space_floor_mib": "With less room on the disk messages are refused; 0: until a write fails.",
    "aux_types": "Types of auxiliary data that are accepted, by space.",
    "actor_domains": "Domains whose actors this log serves, by space; none: every domain's.",
    "hosts": "Other host names that are answered beside the origin, by space.",
    "trusted_proxies": "Networks whose X-Forwarded-For is believed, by space.",
    "rate_limit_base_ms": "What a sender waits after its first refused request.",
    "rate_limit_maximum_seconds": "The longest that a sender waits.",
    "rate_limit_exempt": "Networks that never wait, by space.",
    "burndown_enabled": "Whether BurnDown messages are taken.",
    "directories": "URLs of the directories whose Checkpoint messages are taken, by space.",
    "notice_seconds": "How long something must be public before it may be erased; for ever after the first start.",
    "compat": "Departures from PKD that are let pass, by space.",
    "replicas": "Origins of the logs that are mirrored here, by space.",
    "replica_interval_seconds": "How often a mirrored log is asked for news.",
    "store": "The PostgreSQL database that holds the log; none: SQLite files.",
    "store_file": "A file with mode 0600 that holds the database's URL.",
    "role": "What runs here of a log on several machines.",
    "objects": "An S3-compatible store for the published files, s3://BUCKET/PREFIX.",
    "objects_endpoint": "The object store's https:// URL.",
    "objects_region": "The object store's region.",
    "partials_kept": "Checkpoints for which partial tiles stay.",
    "signer": "The Unix socket of a signer that somebody else runs.",
    "explorer": "Whether there are pages for people, at /.",
    "explorer_live": "Whether they compare an actor with what its own server publishes.",
    "metrics_listen": "Where Prometheus reads, ADDRESS:PORT of this machine.",
    "log_format": "Of lines on standard error; auto: plain on a terminal, else logfmt.",
    "log_level": "How much is logged; a line for each refusal at info.",
    "bench_without_argon2": "For measuring everything else, in a log that nobody can have.",
}
"""By setting. The origin and the dialect are no flags: they are for ever."""

_CHOICES = {"role": ROLES, "log_format": logs.FORMATS, "log_level": logs.LEVELS}


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every setting, given to the command under the setting's name; None when it was not given."""
    for field in reversed([field for field in fields(Settings) if field.name in MEANINGS]):
        kind: click.ParamType
        if field.name in _CHOICES:
            kind = click.Choice(_CHOICES[field.name])
        else:
            kind = {bool: click.BOOL, int: click.IntRange(0)}.get(type(field.default), click.STRING)
        flag = f"--{field.name.replace('_', '-')}"
        shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        help_text = f"{MEANINGS[field.name]}  [KTLOG_{field.name.upper()}; default: {shown or 'none'}]"
        command = click.option(flag, field.name, type=kind, default=None, metavar="VALUE", help=help_text)(command)
    return command


def as_environment(flags: dict[str, Any]) -> dict[str, str]:
    """The flags that were given, for processes that read the configuration anew."""
    return {
        f"KTLOG_{name.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in flags.items() if value is not None
    }
