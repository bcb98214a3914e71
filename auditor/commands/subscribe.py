"""``ktlog-auditor subscribe``: be woken when something happens to an actor, a key or a whole domain."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from auditor.commands.common import fetcher
from auditor.commands.owning import config_option, directory_option, find_sink, json_option, load_sinks, open_outbox
from auditor.sinks import TERMINAL
from auditor.subscriptions import ACTOR, DOMAIN, KEY, Subscriptions
from ktlog.errors import EncodingError, UsageError
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.webfinger import resolve_handle


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
    if as_json:
        click.echo(json.dumps({"subscriptions": [row.as_dict() for row in rows], "ok": True}))
        return
    for row in rows:
        click.echo(f"{row.id}: {row.kind} {row.subject} in {row.origin}, to {row.sink}")


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
