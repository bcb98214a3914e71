"""``ktlog init``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import sqlite_utils  # noqa: F401  The store needs it to be made: better missed now than after the keys are.

from ktlog.config import Settings
from ktlog.durable import read_seed_file
from ktlog.keymap.output import MAX_PROMISE_SECONDS
from ktlog.operator.create import create_log, load_public_keys
from ktlog.pkd.dialects import DIALECTS


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    directory: Path, origin: str, dialect: str, seed_file: Path | None, heartbeat_seconds: int, notice_seconds: int,
    as_json: bool,
) -> None:
    """Make a new log: its keys, its empty store, its configuration.

    Prints the log's vkeys, which witnesses and clients need. Then write DIR/publish.policy, the
    witnesses without whose cosignatures nothing is published, and run `ktlog serve --dir DIR`.
    """
    seed = read_seed_file(seed_file) if seed_file else None
    settings = create_log(
        directory, origin, dialect, seed, heartbeat_seconds=heartbeat_seconds, notice_seconds=notice_seconds
    )
    public = load_public_keys(settings)
    if as_json:
        click.echo(json.dumps({"origin": origin, "dialect": dialect, "dir": str(directory), "vkeys": public.vkeys,
                               "map-vkeys": public.map_vkeys}))
        return
    names = ("Ed25519", "ML-DSA-44", "Ed25519, of the map", "ML-DSA-44, of the map: the one for clients' policies")
    for vkey, what in zip((*public.vkeys, *public.map_vkeys), names, strict=True):
        click.echo(f"{what}:", err=True)
        click.echo(vkey)
    click.echo(
        f"\nThe log {origin} is in {directory}. Next:\n"
        f"  1. give the vkeys above to your witnesses (ktlog-witness add-log --dir W VKEY...):"
        " the log's two,\n     and in a second call the map's two\n"
        f"  2. name the witnesses in {settings.publish_policy}\n"
        f"  3. ktlog serve --dir {directory}",
        err=True,
    )
