"""``ktlog-auditor watch``: follow logs, and say what is wrong when it is."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from auditor.commands.common import load_policy
from auditor.commands.owning import sinks_table
from auditor.findings_store import Row
from auditor.logwatch import READ_SECONDS, Round, Settings
from auditor.outbox import Outbox
from auditor.owners import Owners
from auditor.report import printable
from auditor.sinks import TERMINAL, parse_sinks
from auditor.watch import Watch, format_change, gravest
from auditor.watchfile import EVERY, READ, WatchConfig, load_watch_file, make_watched
from ktlog.ending import call_when_told
from ktlog.errors import UsageError
from ktlog.wire.fetch import Fetcher, load_dial
from ktlog.wire.logs import FORMATS, LEVELS, configure, fields, toggle_debug
from ktlog.wire.notify import Notifier
from ktlog.wire.prometheus import MetricsServer, Page
from ktlog.words import count_entries, some

WATCH_FILE = "watch.toml"
LOOK_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 30.0
LIVE_SECONDS = 60.0
"""How long a watch that looks once waits for the servers of watched actors."""
ONCE_DELIVERIES = 5
"""How often a watch that looks once offers its alarms; what is not taken then waits for the next run."""

_LOG = logging.getLogger("ktlog.watch")


@click.command("watch")
@click.argument("log", metavar="[LOG]", required=False)
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Where findings, evidence and positions are kept; made if missing.")
@click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False),
              help="The logs to watch.  [default: DIR/watch.toml, when no LOG is given]")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False),
              help="tlog-policy of LOG: its key, the witnesses, the quorum.")
@click.option("--map-policy", "map_policy_file", type=click.Path(path_type=Path, dir_okay=False),
              help="tlog-policy of LOG's map: its key, witnesses and verifiers.")
@click.option("--vkey", "vkeys", multiple=True, help="A verifier key of LOG or of its map. Repeatable.")
@click.option("--witness", "witnesses", multiple=True, metavar="URL",
              help="A witness to be asked what it saw, beside those whose URL the policy has. Repeatable.")
@click.option("--mirror", "mirrors", multiple=True, metavar="URL", help="A mirror (tlog-mirror). Repeatable.")
@click.option("--address", "addresses", multiple=True, metavar="URL",
              help="Another address of the same log. Repeatable.")
@click.option("--read", type=click.Choice(READ), default="all", show_default=True,
              help="Read and judge the entries, or only compare heads.")
@click.option("--commitments", default="all", show_default=True, metavar="all|sample:N|none",
              help="Which plaintext commitments of new entries to check.")
@click.option("--once", is_flag=True, help="Look once, read what is new, and end: for cron.")
@click.option("--every", type=click.IntRange(EVERY.start, EVERY.stop - 1), metavar="SECONDS",
              help="How often to look.  [default: 60]")
@click.option("--read-seconds", type=click.IntRange(min=5), default=int(READ_SECONDS), show_default=True,
              metavar="SECONDS", help="How long one reading may take before it is somebody else's turn.")
@click.option("--live/--no-live", default=True, show_default=True,
              help="Compare what the servers of watched actors publish with the log.")
@click.option("--workers", default=os.cpu_count() or 1, type=click.IntRange(min=1, max=256), metavar="N",
              help="Threads that verify, of one reading.  [default: one a core]")
@click.option("--metrics-listen", metavar="ADDRESS:PORT", help="/metrics, /livez and /readyz, on loopback.")
@click.option("--log-format", type=click.Choice(FORMATS), default="auto", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON objects, one a line.")
def command(
    log: str | None, directory: Path, config_file: Path | None, once: bool, every: int | None, read_seconds: int,
    live: bool, workers: int, metrics_listen: str | None, log_format: str, log_level: str, dial_file: Path | None,
    as_json: bool, **options: Any,
) -> None:
    """Watch logs: compare what they show with what others saw, and judge each new entry.

    The logs are those of --config, or LOG alone. Each is asked for its head again and again, and so are its witnesses,
    its mirrors and its other addresses; every head has to be of one tree. What is new is read and checked as `audit`
    does. A finding opens once, and closes when it holds no longer: see `findings`.

    Without --once it runs until SIGTERM, and ends with 0. With --once the gravest open finding decides: 7 a fork is
    proven, 5 invalid, 6 policy unmet, 9 stale, 3 unreachable, 0 none.

    \b
    Examples:
      ktlog-auditor watch keys.example.com --dir ./watch --policy policy.txt --once
      ktlog-auditor watch --dir /var/lib/ktlog-watch --metrics-listen 127.0.0.1:9466
    """
    config = _config(log, directory, config_file, options)
    if every is not None:
        config = replace(config, every=every)
    configure(log_format, log_level)
    printer = _Printer(as_json=as_json, rounds=as_json or once)
    with ExitStack() as stack:
        dial = load_dial(str(dial_file)) if dial_file else None

        def fetcher(timeout: float) -> Fetcher:
            made = Fetcher(dial, timeout=timeout) if dial else Fetcher.from_environment(timeout=timeout)
            return stack.enter_context(made)

        def owners() -> Owners:
            table, base = (config.sinks, config.base) if log is None else sinks_table(directory)
            sinks = parse_sinks(table, base, lambda: fetcher(READ_TIMEOUT_SECONDS))
            if TERMINAL not in table:
                sinks[TERMINAL].findings = False  # the watch itself prints them
            outbox = stack.enter_context(Outbox(directory))
            made.append(Owners(outbox, sinks, fetcher(LOOK_TIMEOUT_SECONDS) if live else None))
            made[0].check_sinks()
            return made[0]

        made: list[Owners] = []
        watch = stack.enter_context(Watch(
            directory, config, owners, lambda: (fetcher(LOOK_TIMEOUT_SECONDS), fetcher(READ_TIMEOUT_SECONDS)),
            lambda: int(time.time()), printer, Settings(read_seconds=read_seconds, workers=workers),
        ))
        deliver = lambda now: made[0].outbox.deliver(made[0].sinks, now, chance=random.random)  # noqa: E731
        if once:
            watch.once()
            made[0].finish(LIVE_SECONDS)
            for _ in range(ONCE_DELIVERIES):
                if not deliver(int(time.time())).waiting:
                    break
            if watch.error is not None:
                raise watch.error
            code = gravest([row for log in watch.logs for row in log.open()])
        else:
            _serve(watch, made[0], deliver, metrics_listen, log_level)
            code = 0
    sys.exit(code)


def _config(log: str | None, directory: Path, file: Path | None, options: dict[str, Any]) -> WatchConfig:
    if log is None:
        file = directory / WATCH_FILE if file is None else file
        if any(options[name] for name in ("policy_file", "map_policy_file", "vkeys", "witnesses", "mirrors",
                                          "addresses")):
            raise UsageError("NoLog", "these options are about a LOG, and none is given",
                             hint=f"Name the log, or say it in {file}.")
        if not file.is_file():
            raise UsageError(
                "NoLog", f"no LOG is given, and there is no {file}", hint="docs/watching.md has an example."
            )
        return load_watch_file(file)
    if file is not None:
        raise UsageError("NoLog", "give a LOG or --config, not both")
    policies = {
        name: None if path is None else load_policy(path)
        for name, path in (("policy", options.pop("policy_file")), ("map_policy", options.pop("map_policy_file")))
    }
    return WatchConfig((make_watched(log, **policies, **options),))


def _serve(
    watch: Watch, owners: Owners, deliver: Callable[[int], object], metrics_listen: str | None, log_level: str
) -> None:
    notifier = Notifier.from_environment()

    def metrics() -> bytes:
        page = Page("ktlog_auditor_")
        watch.add_metrics(page)
        owners.outbox.add_metrics(page, int(time.time()))
        page.add_process()
        return page.encode()

    def end() -> None:
        watch.stop.set()
        notifier.send("STOPPING=1", "STATUS=ending what is under way")

    if threading.current_thread() is threading.main_thread():
        call_when_told(end)
        signal.signal(signal.SIGUSR1, lambda *_: toggle_debug(log_level))
    server = None
    if metrics_listen is not None:
        server = MetricsServer(metrics_listen, metrics, watch.unready)
        _LOG.info("metrics are served", extra=fields(address=server.address[0], port=server.address[1]))
    try:
        notifier.keep_alive(lambda: watch.store.execute("SELECT 1"))
        notifier.send("READY=1", f"STATUS=watching {some(len(watch.logs), 'log')}")
        _LOG.info("watching", extra=fields(logs=len(watch.logs), every=watch.config.every))
        watch.run(deliver)
        _LOG.info("ended")
    finally:
        if server is not None:
            server.close()


class _Printer:
    """Prints rounds and what they changed, a line each."""

    def __init__(self, *, as_json: bool, rounds: bool) -> None:
        self._as_json = as_json
        self._rounds = rounds
        self._lock = threading.Lock()

    def __call__(self, done: Round) -> None:
        with self._lock:
            for row in done.opened:
                click.echo(json.dumps(format_change(row, opened=True)) if self._as_json else format_row(row, "OPENED"))
            for row in done.closed:
                click.echo(json.dumps(format_change(row, opened=False)) if self._as_json else format_row(row, "closed"))
            if self._rounds:
                click.echo(json.dumps(done.as_dict()) if self._as_json else _line(done))


def format_row(row: Row, word: str) -> str:
    """A finding on one line, for a person; more lines where there is evidence."""
    at = row.closed_at if row.closed_at is not None else row.opened_at
    key = f" ({printable(row.key)})" if row.key else ""
    line = f"{_time(at)} {printable(row.origin)} {word} [{row.kind}] {row.name}{key}: {printable(row.what)}"
    return line if row.evidence is None else f"{line}\n  evidence: {row.evidence}"


def _line(done: Round) -> str:
    said = [count_entries(done.size) if done.size is not None else ""]
    if done.map_size is not None:
        said.append(f"map at {done.map_size}")
    if done.entries is not None:
        said.append(f"judged up to {done.entries}")
    if done.blind:
        said.append(f"silent: {', '.join(map(printable, done.blind))}")
    if not done.complete:
        said.append("not complete")
    what = ", ".join(one for one in said if one) or "nothing new"
    return f"{_time(done.began)} {printable(done.origin)} {done.kind}: {what} ({done.seconds:.1f} s)"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
