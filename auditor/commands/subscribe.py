"""``ktlog-auditor subscribe``: be woken when something happens to an actor, a key or a whole domain."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import SystemRandom

import click

from auditor.alarm import printable_line
from auditor.commands.common import fetcher
from auditor.commands.owning import config_option, directory_option, find_sink, json_option, load_sinks, open_outbox
from auditor.live import LiveCheck
from auditor.present import Present, present
from auditor.sinks import TERMINAL
from auditor.subscriptions import ACTOR, DOMAIN, KEY, Subscriptions
from ktlog.errors import EncodingError, UsageError
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.webfinger import resolve_handle
from ktlog.words import count_entries

SHOWN = 50
"""Actors of a domain, on a terminal."""


@click.command("subscribe")
@click.argument("log", metavar="LOG")
@directory_option
@click.option("--actor", "actors", multiple=True, metavar="HANDLE|ID",
              help="An actor: @alice@example.social, or https://... Repeatable.")
@click.option("--key", "keys", multiple=True, metavar="KEY",
              help="A public key (mldsa44:...) or a key id, whoever has it. Repeatable.")
@click.option("--domain", "domains", multiple=True, metavar="HOST", help="Every actor of a host. Repeatable.")
@click.option("--to", "sinks", multiple=True, default=(TERMINAL,), show_default=True, metavar="SINK",
              help="Where alarms go: a sink of the settings. Repeatable.")
@click.option("--label", default="", metavar="TEXT", help="Your own words for it; each alarm repeats them.")
@click.option("--from-entry", "first", default=0, show_default=True, type=click.IntRange(min=0), metavar="N",
              help="Entries before this one raise no alarm.")
@config_option
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@json_option
def command(
    log: str, directory: Path, actors: tuple[str, ...], keys: tuple[str, ...], domains: tuple[str, ...],
    sinks: tuple[str, ...], label: str, first: int, config: Path | None, dial_file: Path | None, as_json: bool,
) -> None:
    """Raise an alarm when the entries of LOG (an origin) change an actor, a key, or anybody of a domain.

    Alarms are for AddKey, RevokeKey, RevokeKeyThirdParty, BurnDown, Fireproof and UndoFireproof, MoveIdentity, erasures
    and new enrolments, each with its proof. `ktlog-auditor watch` raises them; a watch that runs takes the subscription
    up at its next look. What it had read before raises none.

    A handle is resolved now, by asking its own server, and the actor id is what is watched.

    Of a domain it says at once who has keys in the log already, by the entries that the watch in --dir has read.

    \b
    Examples:
      ktlog-auditor subscribe keys.example.com --dir ./watch --actor @alice@example.social --to mail
      ktlog-auditor subscribe keys.example.com --dir ./watch --domain example.social --to hook --label "our users"
    """
    origin = parse_origin(log)
    if not actors and not keys and not domains:
        raise UsageError("NothingToWatch", "say what to watch", hint="--actor, --key or --domain.")
    known = load_sinks(directory, config, dial_file)
    for sink in sinks:
        find_sink(known, sink)
    wanted = [(ACTOR, _actor_id(text, dial_file)) for text in actors]
    wanted += [(KEY, text) for text in keys] + [(DOMAIN, text) for text in domains]
    with open_outbox(directory) as outbox:
        subscriptions = Subscriptions(outbox)
        rows = [
            subscriptions.add(origin, kind, text, sink, label, int(time.time()), first)
            for kind, text in wanted for sink in dict.fromkeys(sinks)
        ]
        # After the rows are there: whoever enrols in between is told of twice, and not missed.
        hosts = dict.fromkeys(row.subject for row in rows if row.kind == DOMAIN and row.subject is not None)
        there = {host: present(directory, origin, host) for host in hosts}
        live = LiveCheck(outbox, subscriptions, origin, lambda alarm, actor_id: False, chance=SystemRandom().random)
        for found in there.values():
            live.note([] if found is None else [actor_id for actor_id, _ in found.actors], int(time.time()))
    if as_json:
        click.echo(json.dumps({
            "subscriptions": [row.as_dict() for row in rows],
            "there": [found.as_dict() for found in there.values() if found is not None], "ok": True,
        }))
        return
    for row in rows:
        click.echo(f"{row.id}: {row.kind} {row.subject} in {row.origin}, to {row.sink}")
    for host, found in there.items():
        click.echo("\n".join(printable_line(line) for line in _there(host, found)))


def _there(host: str, found: Present | None) -> list[str]:
    """Who is there already, of whom no alarm will tell; or why nobody can be named yet."""
    if found is None:
        return [f"The watch has read no entry of the log yet: its first reading tells who of {host} is in it."]
    if not found.actors:
        return [f"Nobody of {host} has a key by the {count_entries(found.read_to)} that the watch has read."]
    rest = len(found.actors) - SHOWN + found.more
    return [
        f"By the {count_entries(found.read_to)} that the watch has read, these of {host} have keys; no alarm tells of"
        " them:",
        *(f"  {actor_id}: {keys}" for actor_id, keys in found.actors[:SHOWN]),
        *([f"  ... and {rest:,} more; --json lists them"] if rest > 0 else []),
    ]


def parse_origin(text: str) -> str:
    """The origin that LOG names. Raises UsageError(``BadLog``)."""
    origin = text.removeprefix("https://").rstrip("/")
    try:
        parse_https_url(f"https://{origin}/")
    except EncodingError as error:
        raise UsageError("BadLog", f"{text[:120]!a} is no origin of a log: {error.message}",
                         hint="Give a host name such as keys.example.com.") from None
    if len(origin) > MAXIMUM_ORIGIN_BYTES:
        raise UsageError("BadLog", f"an origin has at most {MAXIMUM_ORIGIN_BYTES} bytes")
    return origin


def _actor_id(text: str, dial_file: Path | None) -> str:
    if "://" in text:
        return text
    with fetcher(dial_file) as network:
        return resolve_handle(network, text)
