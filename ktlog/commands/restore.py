"""``ktlog restore``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from ktlog.operator.keys import PURPOSES
from ktlog.operator.restore import Request, choose, restore
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries, some

FETCH_SECONDS = 60.0


@click.command()
@click.argument("target", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Where the log will be: empty, or absent.")
@click.option("--backup", "name", help="Which backup in TARGET, by its directory's name; else the newest.")
@click.option("--keys", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A copy of DIR/keys, for a backup without keys.")
@click.option("--journal", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="A newer journal.jsonl than the backup's: what it says was erased is erased again.")
@click.option("--url", "urls", multiple=True, help="Another place that shows the log's checkpoint; may be repeated.")
@click.option("--from-mirror", "mirror", metavar="URL",
              help="Recover what the backup lacks: https://HOST/api/replica/ID of a mirror.")
@click.option("--accept-unknown", is_flag=True, help="Go on though a witness or verifier does not answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    target: Path, directory: Path, name: str | None, keys: Path | None, journal: Path | None, urls: tuple[str, ...],
    mirror: str | None, accept_unknown: bool, as_json: bool,
) -> None:
    """Put a log back from TARGET into DIR, if nobody has seen more of it than the backup holds.

    Before that is known DIR is no log and cannot be served. Every witness and verifier of publish.policy is asked,
    and whoever shows the log's checkpoint. If one of them has seen more, this says what is lost.
    """
    request = Request(choose(target, name), directory, urls, mirror, keys, journal, accept_unknown)
    done = restore(
        request, Fetcher.from_environment(timeout=FETCH_SECONDS), lambda: int(time.time()),
        lambda text: None if as_json else click.echo(text, err=True),
    )
    if as_json:
        click.echo(json.dumps({
            "dir": str(done.directory), "backup": str(request.generation), "size": done.size, "map-size": done.map_size,
            "recovered-entries": done.recovered[0], "recovered-leaves": done.recovered[1],
            "erased-again": done.erasures, "unknown": list(done.unknown),
        }))
        return
    click.echo(
        f"{done.directory} is the log again: {count_entries(done.size)}, {done.recovered[0]} of them recovered;"
        f" {some(done.map_size, 'leaf', 'leaves')} of its map's log, {done.recovered[1]} recovered;"
        f" {some(done.erasures, 'erasure')} done again.", err=True,
    )
    click.echo(
        "Serve it only if the old one is gone for good: two copies that run sign two histories, and that convicts the"
        " log for ever. If this was a drill, remove it.", err=True,
    )
    missing = [purpose for purpose in PURPOSES if not (directory / "keys" / purpose).exists()]
    if missing:
        click.echo(
            f"The secret keys are not there yet: put them into {directory / 'keys'}, mode 0600, or into the unit as"
            f" credentials ({', '.join(missing)}).", err=True,
        )
