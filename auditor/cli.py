"""The ``ktlog-auditor`` command: what a person types, what is trusted, what is printed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from auditor.audit import AuditRequest, Progress, audit, parse_selection
from auditor.convict import conviction, format_conviction
from auditor.fetch import ATTEMPTS, LogReader
from auditor.heads import KnownHead, open_given_head, open_saved_head
from auditor.report import Report, format_report, printable
from auditor.state import AuditDirectory
from ktlog import __version__
from ktlog.client.publicfiles import FileGetter
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Log
from ktlog.errors import EncodingError, KtlogError, UsageError
from ktlog.keymap.evidence import MAX_EVIDENCE_BYTES
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.tlog.note import COSIGNATURE_ED25519, MAXIMUM_NOTE_BYTES, Vkey, parse_vkey
from ktlog.tlog.policy import MAXIMUM_POLICY_BYTES, LogKey, Policy, parse_policy
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.fetch import Fetcher, load_dial

REQUEST_TIMEOUT_SECONDS = 30.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ktlog-auditor", message="%(prog)s %(version)s (PKD 0.8)")
def ktlog_auditor() -> None:
    """Check key-transparency logs, and convict those that lie.

    Exit codes: 0 no fault found, 1 internal error, 2 usage, 3 unreachable, 5 invalid, 6 policy unmet,
    7 fork proven (evidence written), 8 local state unusable, 9 stale or rolled back. With several findings
    the gravest decides: 7, 5, 6, 9, 3.
    """


@ktlog_auditor.command("audit")
@click.argument("log", metavar="LOG")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Where the head of the last clean audit and evidence are kept; made if missing.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False),
              help="tlog-policy file: the log's key, the witnesses, the quorum.")
@click.option("--vkey", help="The log's verifier key, when no policy names it.")
@click.option("--also-checkpoint", "also", multiple=True, type=click.Path(path_type=Path, dir_okay=False),
              help="A signed checkpoint of this log that you got elsewhere, to compare. Repeatable.")
@click.option("--commitments", default="all", show_default=True, metavar="all|sample:N|none",
              help="Check the plaintext commitments of all entries, of N random ones, or of none. They take nearly "
                   "all of the time: about 50 ms each and core.")
@click.option("--answers", default="all", show_default=True, metavar="all|sample:N|none",
              help="Compare the API's answers about all actors, N random ones, or none with the entries.")
@click.option("--max-age", default=DEFAULT_MAX_AGE_SECONDS, show_default=True, type=click.IntRange(min=1),
              metavar="SECONDS", help="How long ago the witnesses may have seen the head.")
@click.option("--workers", default=os.cpu_count() or 1, type=click.IntRange(min=1, max=256), metavar="N",
              help="Threads that verify.  [default: one a core]")
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit_command(
    log: str, directory: Path, policy_file: Path | None, vkey: str | None, also: tuple[Path, ...], commitments: str,
    answers: str, max_age: int, workers: int, dial_file: Path | None, as_json: bool,
) -> None:
    """Read LOG from entry 0 and check all of it.

    LOG is an origin (keys.example.com) or an https URL. The log's key must come from you, by --policy or
    --vkey: a key that the log itself hands out proves nothing.

    What is checked: the checkpoint's signatures and cosignatures; that every entry and every tile belongs to the
    signed root; every leaf signature, published message, plaintext commitment and message signature; that the
    directory's rules allow each message; that the tree begins with every tree signed before; and that the API
    answers what the entries say. The report says what was not checked.

    \b
    Examples:
      ktlog-auditor audit keys.example.com --dir ./audits --policy policy.txt
      ktlog-auditor audit https://keys.example.com --dir ./audits --vkey "$VKEY" --commitments sample:100
    """
    policy = None if policy_file is None else _load_policy(policy_file)
    subject = _find_log(log, policy, vkey)
    if policy is not None:
        policy = _with_keys(policy, subject)
        policy.check_safe()
    request = AuditRequest(
        subject, policy, commitments=parse_selection(commitments), answers=parse_selection(answers), max_age=max_age,
        workers=workers,
    )
    given = tuple(open_given_head(_read_file(path, MAXIMUM_NOTE_BYTES), subject, path) for path in also)
    with AuditDirectory(directory) as state, _fetcher(dial_file) as fetcher, _progress(as_json) as progress:
        report = run_audit(request, given, state, fetcher, int(time.time()), progress)
    click.echo(json.dumps(report.as_dict(), ensure_ascii=False) if as_json else format_report(report))
    sys.exit(report.exit_code)


def run_audit(
    request: AuditRequest, given: tuple[KnownHead, ...], state: AuditDirectory, fetcher: FileGetter, now: int,
    progress: Progress, clock: Callable[[], float] = time.monotonic,
) -> Report:
    """One audit with what *state* remembers; remembers the new head if nothing at all was found."""
    origin = request.log.origin
    saved = state.load_head(origin)
    remembered = () if saved is None else (open_saved_head(saved, request.log, state.head_path(origin)),)
    started = clock()
    report = audit(
        replace(request, known=remembered + given), LogReader(fetcher, request.log.url, attempts=ATTEMPTS), now,
        lambda evidence, kind: state.save_evidence(evidence, kind, origin), progress=progress,
    )
    report.seconds = clock() - started
    if report.ok and report.signed_head is not None:
        state.save_head(origin, report.signed_head)
    return report


@ktlog_auditor.command("verify-evidence")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--vkey", help="The key you know to be the log's; evidence about another key is refused.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_evidence_command(file: Path, vkey: str | None, as_json: bool) -> None:
    """Check an evidence FILE: does it convict the holder of a log's key?

    It may be about a log's tree, or about its map: what a lookup wrote. Nothing is asked of anybody; the file and the
    log's public key are enough. Exit code 0 when it convicts, 5 when it does not. Without --vkey it convicts whoever
    holds the key in the file, and the key's name proves nothing: say with --vkey which key you know to be the log's.
    """
    known = None if vkey is None else _parse_vkey(vkey)
    data = _read_file(file, MAX_EVIDENCE_BYTES)
    try:
        verdict = conviction(data, known)
    except KtlogError as error:
        if as_json:
            click.echo(json.dumps({"convicts": False, "error": error.as_dict()}))
        click.echo(f"{file} convicts nobody. {printable(str(error))}\n{error.hint}", err=True)
        sys.exit(error.exit_code)
    click.echo(json.dumps(verdict, ensure_ascii=False) if as_json else format_conviction(verdict))


def _find_log(text: str, policy: Policy | None, vkey: str | None) -> Log:
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
        named = _parse_vkey(vkey)
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


def _with_keys(policy: Policy, log: Log) -> Policy:
    """*policy* with every key of *log* among its log lines, so that none of them counts as a cosigner."""
    listed = {line.vkey for line in policy.logs}
    added = tuple(LogKey(vkey, log.url) for vkey in log.vkeys if vkey not in listed)
    try:
        return replace(policy, logs=policy.logs + added)
    except EncodingError as error:
        raise UsageError("BadPolicy", f"--vkey and --policy do not go together: {error.message}") from None


def _load_policy(path: Path) -> Policy:
    try:
        return parse_policy(_read_file(path, MAXIMUM_POLICY_BYTES))
    except EncodingError as error:
        raise UsageError(
            "BadPolicy", f"{path} is no tlog-policy: {error.message}", hint="See c2sp.org/tlog-policy for the format."
        ) from None


def _parse_vkey(text: str) -> Vkey:
    try:
        return parse_vkey(text)
    except EncodingError as error:
        raise UsageError(
            "BadVkey", f"--vkey does not parse: {error.message}", hint="It looks like name+0123abcd+AbCd..., in quotes."
        ) from None


def _read_file(path: Path, maximum: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(maximum + 1)
    except OSError as error:
        raise UsageError("UnreadableFile", f"cannot read {path}: {error.strerror}") from None
    if len(data) > maximum:
        raise UsageError("UnreadableFile", f"{path} is larger than the {maximum} bytes that such a file may have")
    return data


def _fetcher(dial_file: Path | None) -> Fetcher:
    if dial_file is None:
        return Fetcher.from_environment(timeout=REQUEST_TIMEOUT_SECONDS)
    return Fetcher(load_dial(str(dial_file)), timeout=REQUEST_TIMEOUT_SECONDS)


@contextmanager
def _progress(as_json: bool) -> Iterator[Progress]:
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


def main() -> None:
    """Run the command; a KtlogError becomes its message and its exit code."""
    try:
        ktlog_auditor(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("ktlog-auditor: aborted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if isinstance(error, click.UsageError) else 2)
    except KtlogError as error:
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": error.as_dict(), "ok": False}))
        click.echo(f"ktlog-auditor: {error.diagnostics()}", err=True)
        sys.exit(error.exit_code)
