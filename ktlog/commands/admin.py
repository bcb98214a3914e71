"""``ktlog admin``: what an operator looks at and decides while the log runs."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ktlog.commands.keys import rotate_keys, short_key
from ktlog.commands.shred import command as shred_command
from ktlog.config import load_settings
from ktlog.durable import file_errors, name_user
from ktlog.ending import call_when_told
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.operator.actorlist import Found, describe, find
from ktlog.operator.administration import AT_ONCE, parse_rows
from ktlog.operator.firsthour import own_command
from ktlog.operator.roles import open_link
from ktlog.operator.rules import (
    LIST_BYTES,
    Note,
    allowed,
    blocked,
    check_name,
    check_reason,
    forgotten,
    load_rules,
    parse_domain_blocks,
)
from ktlog.operator.stores import open_log, rules_document
from ktlog.pkd.keychanges import KINDS
from ktlog.words import count_entries, size, some, span

DIRECTORY = click.option(
    "--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
    help="The log's directory. Its `ktlog serve` must run.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
REASON = click.option("--reason", default="", help="For yourself: it is listed, and told to nobody.")
INSTANCES = click.argument("instances", nargs=-1, required=True, metavar="INSTANCE...")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look after a log while it runs: how it does, whose messages it takes, whom it refused, whom it knows.

    Who may do so is who may open the log's socket, or its database: its own user. What is decided here is in effect at
    once, in every process and on every machine of the log, and after a restart.
    """


@command.command()
@DIRECTORY
@AS_JSON
def status(directory: Path, as_json: bool) -> None:
    """Say how the log does: how far everything has come, what waits, who cosigned when, what holds."""
    settings = load_settings(directory)
    found = open_link(settings).status()
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in _status_lines(found, backed_up_by_us=not settings.uses_postgres):
        click.echo(line)


def _status_lines(found: Mapping[str, Any], *, backed_up_by_us: bool) -> Iterator[str]:
    rules = found["rules"]
    paused = rules["paused"]
    yield (
        "messages    taken" if not paused
        else f"messages    REFUSED since {_time(int(paused['since']))}: {paused['reason']} (ktlog admin resume)"
    )
    yield (
        f"instances   {'everybody but the blocked' if rules['mode'] == 'open' else 'the allowed alone'};"
        f" {rules['blocked']} blocked, {rules['allowed']} allowed"
    )
    yield (
        f"entries     {found['sequenced']} sequenced, {found['integrated']} in tiles, {found['published']} published,"
        f" {found['mapped']} mapped"
    )
    yield f"queue       {found['waiting']} waiting, the first for {found['oldest-seconds']} s"
    yield f"checkpoint  {span(int(found['checkpoint-age']))} old; of the map {span(int(found['map-age']))}"
    for name, age in found["cosigned-age"].items():
        yield f"cosigned    {name} {span(int(age))} ago"
    sizes = ", ".join(f"{name} {size(float(count))}" for name, count in found["database-bytes"].items())
    yield f"disk        {size(float(found['free-bytes']))} free{sizes and f'; {sizes}'}"
    if backed_up_by_us:
        backup = found.get("backup-age")  # a sequencer of before does not say
        yield f"backup      {'none that was noted' if backup is None else span(int(backup)) + ' old'}"
    yield f"since start {found['accepted']} accepted in {some(int(found['batches']), 'batch', 'batches')}"
    refused = ", ".join(f"{name} {count}" for name, count in found["refused"].items())
    yield f"refused     {refused or 'nobody'}"
    yield f"version     {found['version']}"


@command.command()
@DIRECTORY
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="ADDRESS:PORT",
              help="Where on this machine. Port 0 takes a free one.")
def page(directory: Path, listen: str) -> None:
    """Show all of it as a page in a browser of this machine, until Ctrl-C. Nothing can be changed there.

    Its address has a secret in it that is drawn anew each time. From elsewhere: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    from ktlog.web.adminpage import AdminServer

    server = AdminServer(load_settings(directory), listen)
    click.echo(server.url)
    call_when_told(server.close)
    server.serve()


@command.command()
@click.argument("text", default="")
@DIRECTORY
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="List at most so many.")
@click.option("--after", default="", metavar="ACTOR", help="Go on behind this one.")
@AS_JSON
def actors(text: str, directory: Path, limit: int, after: str, as_json: bool) -> None:
    """List the actors whose id contains TEXT, with what each has and how much of what it may have.

    Of an id written in full the keys are shown too, long ones shortened; --json has all of each. It reads the log's
    store, which need not run for it.
    """
    settings = load_settings(directory)
    now = int(time.time())
    with open_log(settings, read_only=True) as store:
        ids, more = find(store, text, after, limit)
        found = [describe(store, actor_id, now) for actor_id in ids]
    shown = [one for one in found if one is not None]
    if as_json:
        click.echo(json.dumps({"actors": [one.as_dict() for one in shown], "more": more}))
        return
    for one in shown:
        for line in _actor_lines(one, whole=one.actor_id == text):
            click.echo(line)
    if not shown:
        click.echo("No such actor.", err=True)
    if more:
        click.echo(f"There are more: --after {shlex.quote(ids[-1])}", err=True)


def _actor_lines(one: Found, *, whole: bool) -> Iterator[str]:
    fireproof = ", fireproof" if one.fireproof else ""
    yield (
        f"{one.actor_id}  {len(one.keys)} of {one.keys_limit} keys, {one.aux} of {one.aux_limit} auxiliary data,"
        f" {one.today} of {one.today_limit} messages in a day, {count_entries(one.entries)}{fireproof}"
    )
    if whole:
        for key in one.keys:
            yield f"  key {key.key_id}  entry {key.leaf_index}, {_time(key.created)}"
            yield f"      {short_key(key.public_key)}"


@command.command()
@DIRECTORY
@click.option("--instance", default="", help="Of this one, and of its subdomains.")
@click.option("--code", default="", help="Under this code.")
@AS_JSON
def refusals(directory: Path, instance: str, code: str, as_json: bool) -> None:
    """List who was refused what within a day, the newest first.

    A name with a question mark is what the request claimed; nothing proves that it came from there. The list is kept in
    memory, and bounded. No actor is in it.
    """
    answer = open_link(load_settings(directory)).administer({"act": "refusals"})
    try:
        rows = parse_rows(answer)
    except EncodingError as error:
        raise StoreError("SequencerUnreachable", error.message) from None
    of = f".{instance}"
    rows = [
        row for row in rows
        if (not instance or f".{row.key.instance}".endswith(of)) and (not code or row.key.code == code)
    ]
    if as_json:
        click.echo(json.dumps({"refusals": [
            {"by": row.key.by, "code": row.key.code, "instance": row.key.instance, "verified": row.key.verified,
             "count": row.count, "first": row.first, "last": row.last} for row in rows
        ]}))
        return
    for row in rows:
        name = row.key.instance + ("" if row.key.verified or not row.key.instance else "?")
        click.echo(f"{_time(row.last)}  {row.count:>6}  {row.key.code:<24} {name or '-':<30} by {row.key.by}")
    if not rows:
        click.echo("Nobody was refused.", err=True)


@command.command()
@click.argument("instances", nargs=-1, metavar="[INSTANCE...]")
@DIRECTORY
@click.option("--from-file", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Those that a Mastodon server suspends: its export domain_blocks.csv.")
@click.option("--every-severity", is_flag=True, help="With --from-file: those too whom it only limits.")
@REASON
@AS_JSON
def block(
    instances: tuple[str, ...], directory: Path, file: Path | None, every_severity: bool, reason: str, as_json: bool
) -> None:
    """Take no more messages from these instances and their subdomains. They are told 403 `instance_blocked`.

    What they have in the log stays. Their actors' revocation tokens are still taken from whoever brings them unsigned.
    A file with a line that is wrong blocks nobody.
    """
    if bool(instances) == (file is not None) or (every_severity and file is None):
        raise UsageError("BadArguments", "say either INSTANCE... or --from-file FILE, which --every-severity is for")
    if file is not None:
        instances = _read_list(file, every_severity)
    _change(directory, as_json, "block", instances, reason)


def _read_list(file: Path, every_severity: bool) -> tuple[str, ...]:
    with file_errors(file), file.open("rb") as stream:
        data = stream.read(LIST_BYTES + 1)
    try:
        names, others = parse_domain_blocks(data, every_severity=every_severity)
    except UsageError as error:
        raise UsageError(error.name, f"{file}: {error.message}", hint="Nobody was blocked. Correct the line.") from None
    if not names:
        raise UsageError("NobodyListed", f"{file}: names nobody to be blocked, and {others} with another severity")
    click.echo(f"{file}: {some(len(names), 'instance')}; {others} with another severity are passed over", err=True)
    return tuple(names)


@command.command()
@INSTANCES
@DIRECTORY
@REASON
@AS_JSON
def allow(instances: tuple[str, ...], directory: Path, reason: str, as_json: bool) -> None:
    """Take messages from these instances and their subdomains, in either mode."""
    _change(directory, as_json, "allow", instances, reason)


@command.command()
@INSTANCES
@DIRECTORY
@AS_JSON
def unblock(instances: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Take these instances off both lists."""
    _change(directory, as_json, "forget", instances)


@command.command("mode")
@click.argument("mode", type=click.Choice(["open", "allow-list"]))
@DIRECTORY
@AS_JSON
def set_mode(mode: str, directory: Path, as_json: bool) -> None:
    """Take messages from everybody who is not blocked (open), or only from whom you allowed (allow-list)."""
    _ask(directory, as_json, {"act": "mode", "mode": mode})


@command.command("list")
@DIRECTORY
@AS_JSON
def list_rules(directory: Path, as_json: bool) -> None:
    """Print the mode and both lists. The log need not run for it."""
    rules = load_rules(rules_document(load_settings(directory)))
    if as_json:
        click.echo(json.dumps({
            "mode": rules.mode, "blocked": _notes(rules.blocked), "allowed": _notes(rules.allowed),
            "paused": None if rules.paused is None else {"reason": rules.paused.reason, "time": rules.paused.time},
        }))
        return
    click.echo(f"mode {rules.mode}")
    for word, notes in (("blocked", rules.blocked), ("allowed", rules.allowed)):
        for name, note in sorted(notes.items()):
            click.echo(f"{word} {_time(note.time)} {name}  {note.reason}".rstrip())


@command.command()
@DIRECTORY
@click.option("--reason", required=True, help="Told to everybody who sends a message.")
@AS_JSON
def pause(directory: Path, reason: str, as_json: bool) -> None:
    """Take no messages until `ktlog admin resume`: they are answered 503 `paused` with Retry-After and the reason.

    Reads, cosignatures and publishing go on. A restart changes nothing of it.
    """
    _ask(directory, as_json, {"act": "pause", "reason": check_reason(reason)})


@command.command()
@DIRECTORY
@AS_JSON
def resume(directory: Path, as_json: bool) -> None:
    """Take messages again."""
    _ask(directory, as_json, {"act": "resume"})


@command.command()
@click.argument("actor")
@DIRECTORY
@click.option("--dry-run", is_flag=True, help="Say what would go and what would stay, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object. Needs --yes or --dry-run.")
@click.pass_context
def shred(ctx: click.Context, actor: str, directory: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Erase ACTOR for good, as `ktlog shred` does; first look with --dry-run."""
    ctx.invoke(shred_command, actor=actor, directory=directory, yes=yes, preview=dry_run, as_json=as_json)


@command.command()
@click.argument("kind", type=click.Choice(tuple(KINDS)))
@DIRECTORY
@click.option("--reason", default="", help="Published with the change: 'yearly', or what happened.")
@click.option("--overlap-days", type=click.IntRange(0, 3650),
              help="How long the old key stays in use beside the new one; 0 when it was stolen.")
@AS_JSON
@click.pass_context
def rotate(
    ctx: click.Context, kind: str, directory: Path, reason: str, overlap_days: int | None, as_json: bool
) -> None:
    """Replace the log's keys of one KIND, as `ktlog keys rotate` does. Of a log that runs, say the steps instead.

    A process that signs must never find its key replaced under it, so a log gets new keys while it is stopped: a few
    seconds. Exit code 8 when it runs.
    """
    try:
        ctx.invoke(
            rotate_keys, kind=kind, directory=directory, reason=reason, overlap_days=overlap_days, as_json=as_json
        )
    except StoreError as error:
        if error.name != "Locked":
            raise
        where = shlex.quote(str(directory.absolute()))
        more = f" --reason {shlex.quote(reason)}" if reason else ""
        more += "" if overlap_days is None else f" --overlap-days {overlap_days}"
        raise StoreError(error.name, error.message, hint=(
            f"Say, as root where systemd runs the log: systemctl stop ktlog && {_as_owner(directory)} keys rotate"
            f" {kind} --dir {where}{more}; systemctl start ktlog"
        )) from None


def _as_owner(directory: Path) -> str:
    """How a command begins that reads secrets of the log's user, who need not have this one's PATH."""
    owner = directory.stat().st_uid
    if os.geteuid() != 0 or owner == 0:
        return "ktlog"
    return f"runuser -u {name_user(owner)} -- {own_command()}"


# What all of them need


def _change(directory: Path, as_json: bool, act: str, instances: tuple[str, ...], reason: str | None = None) -> None:
    """Put instances on a list or off it, so many at a time as fit."""
    names = [check_name(one) for one in instances]
    request: dict[str, Any] = {"act": act} if reason is None else {"act": act, "reason": check_reason(reason)}
    if len(names) > AT_ONCE:
        # What the last of several turns would be refused for is found before the first.
        rules = load_rules(rules_document(load_settings(directory)))
        if act == "forget":
            forgotten(rules, names)
        else:
            (blocked if act == "block" else allowed)(rules, names, Note("", 0))
    for start in range(0, len(names), AT_ONCE):
        last = start + AT_ONCE >= len(names)
        _ask(directory, as_json, request | {"instances": names[start:start + AT_ONCE]}, silent=not last)


def _ask(directory: Path, as_json: bool, request: Mapping[str, Any], *, silent: bool = False) -> None:
    holds = open_link(load_settings(directory)).administer(request)
    if silent:
        return
    if as_json:
        click.echo(json.dumps(holds))
        return
    paused = holds["paused"]
    click.echo(
        f"mode {holds['mode']}; {holds['blocked']} blocked, {holds['allowed']} allowed; "
        + (f"no messages are taken: {paused['reason']}" if paused else "messages are taken")
    )


def _notes(notes: Mapping[str, Note]) -> dict[str, dict[str, object]]:
    return {name: {"reason": note.reason, "time": note.time} for name, note in sorted(notes.items())}


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
