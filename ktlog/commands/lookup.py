"""``ktlog lookup``, and how an answer is told in words."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from ktlog.client import Answer, Directory, Erased, Present
from ktlog.client.directory import DEFAULT_STATE
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS
from ktlog.durable import file_errors, write_atomic, write_once
from ktlog.errors import Forked, UsageError
from ktlog.pkd.keys import key_hash
from ktlog.wire.dial import load_dial
from ktlog.wire.fetch import Fetcher


def directory_options(command: Callable[..., None]) -> Callable[..., None]:
    """What :func:`open_directory` needs to be told."""
    for option in (
        click.option("--dial", type=click.Path(path_type=Path), help="Dial table, for tests; also KTLOG_DIAL."),
        click.option("--max-age", type=click.IntRange(min=1), default=DEFAULT_MAX_AGE_SECONDS, show_default=True,
                     metavar="SECONDS", help="How long ago the witnesses may have seen the head."),
        click.option("--domain", "domains", multiple=True, metavar="DOMAIN=ORIGIN",
                     help="Which log serves a domain; may be repeated. Beats domains.toml in the state directory."),
        click.option("--state", type=click.Path(path_type=Path), default=DEFAULT_STATE, show_default=True,
                     help="Where trusted heads, actors and handles are remembered between lookups."),
        click.option("--policy", type=click.Path(path_type=Path), required=True,
                     help="tlog-policy file: the logs, witnesses and verifiers you trust. The only root of trust."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("name")
@directory_options
@click.option("--evidence-dir", type=click.Path(path_type=Path),
              help="Where to write evidence against a log that forked; by default STATE/evidence.")
@click.option("--full", is_flag=True, help="Check every message behind the keys, too; needs the log's map.")
@click.option("--pq", is_flag=True, help="Count ML-DSA signatures and cosignatures alone.")
@click.option("--save", type=click.Path(path_type=Path),
              help="Write what proves the answer to this file; `ktlog verify` checks it offline.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the whole keys.")
def command(
    name: str, policy: Path, state: Path, domains: tuple[str, ...], max_age: int, evidence_dir: Path | None,
    dial: Path | None, full: bool, pq: bool, save: Path | None, as_json: bool,
) -> None:
    """Find the keys of NAME, a handle (@alice@example.social) or an actor id (https://...).

    Prints the keys only after every check passed, and says what was checked and what was not. Where
    the policy names the log's map, that somebody was erased or never enrolled is an answer, too, and
    proven. A failure has a name and its class's exit code: 3 unreachable, 4 not logged, 5 invalid,
    6 policy unmet, 7 misbehaviour proven (evidence written), 8 local conflict, 9 stale.
    """
    directory = open_directory(policy, state, domains, max_age, dial, pq=pq)
    with writing_evidence(evidence_dir or state.expanduser() / "evidence"):
        answer = directory.lookup(name, full=full)
    # First of all: what it says of a reset is remembered as told.
    click.echo(json.dumps(answer.as_dict()) if as_json else "\n".join(describe(answer)))
    if save is not None:
        if answer.bundle is None:
            raise UsageError(
                "NoMap", "there is nothing to save: the policy names no map for this log",
                hint="An answer that rests on a log without a map cannot be proven again offline.",
            )
        write_atomic(save, answer.bundle)
        whom = ["--origin", answer.origin, "--actor", answer.actor_id]
        again = shlex.join(["ktlog", "verify", str(save), "--policy", str(policy), *whom])
        click.echo(f"Saved the proof to {save}; check it again: {again}", err=True)


def open_directory(
    policy: Path, state: Path, domains: Iterable[str], max_age: int, dial: Path | None, *, pq: bool = False
) -> Directory:
    """The Directory that the options of a command ask for."""
    return Directory.from_policy_file(
        policy, state=state, domains=_parse_domains(domains), max_age_seconds=max_age, pq=pq,
        fetcher=Fetcher(load_dial(dial)) if dial else Fetcher.from_environment(),
    )


@contextmanager
def writing_evidence(directory: Path) -> Iterator[None]:
    """Write what convicts a log to *directory*, and say where."""
    try:
        yield
    except Forked as error:
        # "Convicted" repeats what was written then, and says where it is.
        if error.evidence is not None and error.name != "Convicted":
            error.message += f"; evidence written to {_write_evidence(directory, error)}"
        raise


def _parse_domains(texts: Iterable[str]) -> dict[str, str]:
    domains = {}
    for text in texts:
        domain, equals, origin = text.partition("=")
        if not (domain and equals and origin):
            raise UsageError("BadDomain", f"--domain {text!r} is not DOMAIN=ORIGIN")
        domains[domain] = origin
    return domains


def _write_evidence(directory: Path, error: Forked) -> Path:
    """Write what convicts the log, durably; the same evidence twice is one file."""
    with file_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{error.name}-{hashlib.sha256(error.evidence or b'').hexdigest()[:16]}.json"
    write_once(path, error.evidence or b"")
    return path


def describe(answer: Answer) -> list[str]:
    """The answer in plain words, a line each. What a stranger wrote is escaped."""
    lines = [f"{answer.handle or answer.actor_id}"]
    if answer.handle:
        lines.append(f"  is {answer.actor_id}")
    if isinstance(answer, Present):
        state = "fireproof" if answer.fireproof else "not fireproof"
        lines.append(f"  {answer.status}, {state}; since: {answer.cause} (generation {answer.generation})")
    elif isinstance(answer, Erased):
        lines.append(f"  ERASED by {answer.origin} (its erasure {answer.erasure_number}): it has no keys")
    else:
        lines.append(f"  NEVER ENROLLED in {answer.origin}: it has no keys there, and never had")
    if answer.reset:
        since = "The keys that you knew are gone." if isinstance(answer, Erased) else (
            "Somebody began again after your last lookup.")
        lines += [
            "", f"RESET: {answer.reset}. {since}",
            "Treat this person as a stranger until you compared keys in another way.",
        ]
    if isinstance(answer, Present):
        lines += _describe_keys(answer)
    elif answer.gone_keys:
        lines += ["", "Gone since your last lookup:", *(f"  {key_id}" for key_id in answer.gone_keys)]
    if answer.pending:
        lines += ["", "Accepted, not published yet:"]
    for item in answer.pending:
        lines.append(f"  {item.action}" + ("" if item.leaf_index is None else f" as entry {item.leaf_index}"))
    lines += ["", "Checked:", *(f"  - {text}" for text in answer.checks)]
    if isinstance(answer, Present) and answer.taken:
        lines += ["", "Taken on the word of others:", *(f"  - {text}" for text in answer.taken)]
    return [*lines, "", "Not proven:", *(f"  - {text}" for text in answer.not_proven)]


def _describe_keys(answer: Present) -> list[str]:
    complete = "" if answer.map is None else ", and no other"
    count = f"{len(answer.keys)} active key{'' if len(answer.keys) == 1 else 's'}{complete}:"
    lines = ["", count if answer.keys else "No active keys."]
    usable, new = set(answer.usable_keys), set(answer.new_keys)
    for key in answer.keys:
        marks = [] if key in usable else ["NOT USABLE: a revocation is pending"]
        marks += ["new since your last lookup"] if key in new else []
        lines.append(f"  {key.key_id}  {'; '.join(marks)}".rstrip())
        lines.append(f"    sha256 {key_hash(key.public_key).hex()}")
        created = "" if key.created is None else f", created {_moment(key.created)}"
        lines.append(f"    entry {key.leaf_index}{created}")
    if answer.gone_keys:
        lines += ["", "Gone since your last lookup:", *(f"  {key_id}" for key_id in answer.gone_keys)]
    if answer.aux:
        lines += ["", "Auxiliary data:"]
    for aux in answer.aux:
        lines += [f"  {aux.aux_id}  {aux.aux_type}", f"    {ascii(aux.aux_data)}"]
    return lines


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        # The time is the sender's claim, and may be any number.
        return f"{seconds} (Unix seconds)"
