"""What the commands share: which log and whom to trust, files that a person named, the network, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from auditor.audit import Progress
from ktlog.client.verify import Log
from ktlog.errors import EncodingError, UsageError
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.tlog.note import COSIGNATURE_ED25519, Vkey, parse_vkey
from ktlog.tlog.policy import MAXIMUM_POLICY_BYTES, LogKey, Policy, parse_policy
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.fetch import Fetcher, load_dial

REQUEST_TIMEOUT_SECONDS = 30.0


def find_log(text: str, policy: Policy | None, vkey: str | None) -> Log:
    """What LOG means: its origin and address, and the keys that the user says it has."""
    url = text.rstrip("/") if "://" in text else f"https://{text}"
    origin = url.partition("://")[2]
    try:
        parse_https_url(f"{url}/")
    except EncodingError as error:
        raise UsageError(
            "BadLog", f"{text!r} is neither an origin nor an https URL: {error.message}",
            hint="Give a host name such as keys.example.com, or https://keys.example.com.",
        ) from None
    if len(origin) > MAXIMUM_ORIGIN_BYTES:
        raise UsageError("BadLog", f"an origin has at most {MAXIMUM_ORIGIN_BYTES} bytes")
    lines = [line for line in policy.logs if line.vkey.name == origin] if policy is not None else []
    keys = dict.fromkeys(line.vkey for line in lines)
    if vkey is not None:
        named = parse_known_vkey(vkey)
        if named.name != origin or named.algorithm == COSIGNATURE_ED25519:
            raise UsageError(
                "WrongKey", f"--vkey is a key of {named.name!r}, not the key of a log with the origin {origin!r}",
                hint="A log's key is named after its origin. Check that LOG and --vkey belong together.",
            )
        keys[named] = None
    if not keys:
        raise UsageError(
            "NoKey", f"no key is known for the log {origin}",
            hint="Name it with --vkey, or with a log line in --policy, from a source other than the log itself.",
        )
    if "://" not in text:
        url = next((line.url.rstrip("/") for line in lines if line.url), url)
    return Log(origin, tuple(keys), url)


def with_keys(policy: Policy, log: Log) -> Policy:
    """*policy* with every key of *log* among its log lines, so that none of them counts as a cosigner."""
    listed = {line.vkey for line in policy.logs}
    added = tuple(LogKey(vkey, log.url) for vkey in log.vkeys if vkey not in listed)
    try:
        return replace(policy, logs=policy.logs + added)
    except EncodingError as error:
        raise UsageError("BadPolicy", f"--vkey and --policy do not go together: {error.message}") from None


def load_policy(path: Path) -> Policy:
    try:
        return parse_policy(read_file(path, MAXIMUM_POLICY_BYTES))
    except EncodingError as error:
        raise UsageError(
            "BadPolicy", f"{path} is no tlog-policy: {error.message}", hint="See c2sp.org/tlog-policy for the format."
        ) from None


def parse_known_vkey(text: str) -> Vkey:
    try:
        return parse_vkey(text)
    except EncodingError as error:
        raise UsageError(
            "BadVkey", f"--vkey does not parse: {error.message}", hint="It looks like name+0123abcd+AbCd..., in quotes."
        ) from None


def read_file(path: Path, maximum: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(maximum + 1)
    except OSError as error:
        raise UsageError("UnreadableFile", f"cannot read {path}: {error.strerror}") from None
    if len(data) > maximum:
        raise UsageError("UnreadableFile", f"{path} is larger than the {maximum} bytes that such a file may have")
    return data


def fetcher(dial_file: Path | None) -> Fetcher:
    if dial_file is None:
        return Fetcher.from_environment(timeout=REQUEST_TIMEOUT_SECONDS)
    return Fetcher(load_dial(str(dial_file)), timeout=REQUEST_TIMEOUT_SECONDS)


@contextmanager
def progress_bars(as_json: bool) -> Iterator[Progress]:
    """A progress bar with rate and time left, on a terminal only; else nothing."""
    if as_json or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, rate="")
            task = tasks[stage]
            speed = bars.tasks[task].speed
            bars.update(task, completed=done, rate="" if speed is None else f"{speed:.1f}/s")

        yield show
