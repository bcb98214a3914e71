"""``ktlog shred``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.errors import EncodingError, MessageRejected, UsageError
from ktlog.operator.link import SHRED_SECONDS, ShredReport
from ktlog.operator.roles import open_link
from ktlog.pkd.identity import check_actor_id
from ktlog.words import count_entries, some

CANNOT = (
    "Whoever guesses the actor's id can test the guess against this log's erasure record, for ever.",
    "Entries and messages stay, as they were signed: unreadable now, and as hard to guess as PKD makes them.",
    "Copies of others stay: of mirrors, auditors, witnesses, clients and search engines.",
    "Backups that were taken before still have everything. Destroy them, or keep DIR/journal.jsonl apart from"
    " them: with it `ktlog serve` erases again what a restored copy brings back.",
    "The logs of your TLS proxy, your shell's history, and blocks that a disk or file system keeps of"
    " overwritten files are beyond this program.",
)
NOT_YET = 5
TOKENS = "A revocation token holds its key in clear and cannot be withheld: {} of this actor's, entry {}."
CARRIED = "What moved to an actor who is not erased stays readable there: entry {}. Erase that actor too if you must."


@click.command()
@click.argument("actor")
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory. Its `ktlog serve` must run.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--preview", is_flag=True, help="Say what would go and what would stay, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object. Needs --yes or --preview.")
def command(actor: str, directory: Path, yes: bool, preview: bool, as_json: bool) -> None:
    """Erase ACTOR, an actor id such as https://example.com/users/alice, from a running log. There is no way back.

    Everything readable about the actor goes: its id, keys and auxiliary data, with what could decrypt them. The
    log stays verifiable. Nothing can be erased before it was public for `notice_seconds`: until then --preview says
    from when on it may be, and exit code 5 says that it may not be now.
    """
    if as_json and not (yes or preview):
        raise UsageError("NotConfirmed", "--json asks nothing: say --yes, or --preview")
    settings = load_settings(directory)
    try:
        actor_id = check_actor_id(actor)
    except (EncodingError, MessageRejected):
        raise UsageError(
            "BadActorId", "ACTOR must be an actor id: a canonical https URL, such as https://example.social/users/alice",
            hint="`ktlog admin actors alice`, with this --dir, finds it.",
        ) from None
    link = open_link(settings, SHRED_SECONDS + 10)
    report = link.shred(actor_id, preview=True)
    if not preview:
        if not yes:
            if not _is_due(report):  # asked now, and erased a moment later: nobody would have agreed to it
                raise MessageRejected("notice_period", _when(report.due))
            _show(report)
            click.confirm("Erase it, for good?", abort=True, err=True)
        report = link.shred(actor_id)
    if as_json:
        click.echo(json.dumps(_members(report)))
    elif preview or yes:
        _show(report)
    if preview and not _is_due(report):
        sys.exit(NOT_YET)
    if preview or as_json:
        return
    click.echo(f"Erased: number {report.number} of this log, known as {report.map_index} from now on.", err=True)
    if not report.scrubbed:
        click.echo(
            "Some erased bytes are still in the store's files, because a reader holds an older state."
            " The log overwrites them as soon as it can.", err=True,
        )


def limits(report: ShredReport) -> list[str]:
    """What this erasure does not reach, in plain words."""
    found = list(CANNOT)
    if report.tokens:
        found.append(TOKENS.format(len(report.tokens), ", ".join(map(str, report.tokens))))
    if report.carried:
        found.append(CARRIED.format(", ".join(map(str, report.carried))))
    return found


def _show(report: ShredReport) -> None:
    one = report.withheld == 1
    verb = ("is gone" if one else "are gone") if report.done else ("goes" if one else "go")
    what = some(report.withheld, "attribute")
    click.echo(f"{what} in {count_entries(report.entries)} {verb}.\nWhat this cannot erase:", err=True)
    for line in limits(report):
        click.echo(f"  - {line}", err=True)
    if not _is_due(report):
        click.echo(f"Not yet: {_when(report.due)}", err=True)


def _is_due(report: ShredReport) -> bool:
    return report.done or (report.due is not None and report.due <= time.time())


def _when(due: int | None) -> str:
    if due is None:
        return "an entry of that actor is not published, or not noted as published. Look again in a few minutes."
    return f"it may be done from {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(due))} UTC on."


def _members(report: ShredReport) -> dict[str, object]:
    return {
        "done": report.done, "number": report.number, "map-index": report.map_index,
        "input-size": report.input_size, "withheld": report.withheld, "entries": report.entries,
        "carried": list(report.carried), "tokens": list(report.tokens), "scrubbed": report.scrubbed, "due": report.due,
        "cannot-erase": limits(report),
    }
