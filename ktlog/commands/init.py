"""``ktlog init``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import sqlite_utils  # noqa: F401  The store needs it to be made: better missed now than after the keys are.

from ktlog.commands.next import describe_next
from ktlog.config import Settings
from ktlog.durable import read_seed_file
from ktlog.keymap.output import MAX_PROMISE_SECONDS
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.firsthour import letter
from ktlog.pkd.dialects import DIALECTS
from ktlog.web.verifypage import page_hash


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True, help="Where the log will live.")
@click.option("--origin", required=True, help="The log's host name, for ever: keys.example.com.")
@click.option("--dialect", type=click.Choice(sorted(DIALECTS)), default="spec", show_default=True,
              help="How bytes are laid out, for ever; spec unless you must match another implementation.")
@click.option("--seed-file", type=click.Path(path_type=Path, dir_okay=False),
              help="Derive the keys from this file: 32 bytes in hex. Without it they are random.")
@click.option("--heartbeat-seconds", type=click.IntRange(1, MAX_PROMISE_SECONDS),
              default=Settings.heartbeat_seconds, show_default=True,
              help="How often the map gets a leaf when nothing happens; for ever from the first start on.")
@click.option("--notice-seconds", type=click.IntRange(min=1), default=Settings.notice_seconds, show_default=True,
              help="How long something must be public before it may be erased; for ever from the first start on.")
@click.option("--store", default="", metavar="URL",
              help="Keep the log in this PostgreSQL database, postgresql://USER@HOST/NAME, and not in SQLite files.")
@click.option("--store-file", type=click.Path(path_type=Path, dir_okay=False),
              help="The same: a file with mode 0600 that holds the URL, with its password.")
@click.option("--objects", default="", metavar="URL",
              help="Publish the log's files in this S3-compatible store, s3://BUCKET/PREFIX, and not in DIR/tiles.")
@click.option("--objects-endpoint", default="", metavar="URL", help="The store's https:// URL, unless it is Amazon's.")
@click.option("--objects-region", default="", metavar="REGION", help="Its region.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    directory: Path, origin: str, dialect: str, seed_file: Path | None, heartbeat_seconds: int, notice_seconds: int,
    store: str, store_file: Path | None, objects: str, objects_endpoint: str, objects_region: str, as_json: bool,
) -> None:
    """Make a new log: its keys, its empty store, its configuration.

    Prints the log's vkeys to stdout, the log's two and its map's two; around them, to stderr, what to send to
    witnesses, and what is missing before anybody gets a verified answer. `ktlog next` says it again.
    """
    seed = read_seed_file(seed_file) if seed_file else None
    settings = create_log(
        directory, origin, dialect, seed, heartbeat_seconds=heartbeat_seconds, notice_seconds=notice_seconds,
        store=store, store_file=str(store_file.absolute()) if store_file else "", objects=objects,
        objects_endpoint=objects_endpoint, objects_region=objects_region,
    )
    public = load_public_keys(settings)
    if as_json:
        click.echo(json.dumps({"origin": origin, "dialect": dialect, "dir": str(directory), "vkeys": public.vkeys,
                               "map-vkeys": public.map_vkeys, "verify-page-sha256": page_hash()}))
        return
    click.echo(f"The log {origin} is in {directory}, and nobody vouches for it yet. To its witnesses:\n", err=True)
    for kind, line in letter(settings, public):
        click.echo(line, err=kind == "text")
    click.echo("\n" + "\n".join(describe_next(settings)), err=True)
