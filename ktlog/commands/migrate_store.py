"""``ktlog migrate-store``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.errors import StoreError, UsageError
from ktlog.operator.migrate import finish_move, migrate_store
from ktlog.tlog.encoding import encode_base64
from ktlog.words import count_entries, some


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory. It must be stopped.")
@click.option("--to", "store", default="", metavar="URL",
              help="An empty PostgreSQL database: postgresql://USER@HOST/NAME.")
@click.option("--to-file", "store_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The same: a file with mode 0600 that holds the URL, with its password.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: Path, store: str, store_file: Path | None, as_json: bool) -> None:
    """Move a stopped log from its SQLite files to a PostgreSQL database.

    Not one byte of the log changes: every row is copied, compared, and the tree computed again. Then ktlog.toml names
    the database, and the old files are renamed, so that nobody serves them by mistake. Cut short, say it again.
    """
    if bool(store) == (store_file is not None):
        raise UsageError("BadArguments", "say --to URL or --to-file FILE")
    settings = load_settings(directory, environment={})
    if settings.uses_postgres:
        left = finish_move(settings)
        if not left:
            raise StoreError("AlreadyMoved", f"{directory}: the log is in a database already")
        _show({"renamed": [str(path) for path in left]}, left, as_json)
        return
    bar = sys.stderr.isatty() and not as_json

    def progress(what: str, done: int, total: int) -> None:
        if bar:
            click.echo(f"\r{what}: {done} of {total}\x1b[K", nl=False, err=True)

    moved = migrate_store(settings, store, str(store_file.absolute()) if store_file else "", progress)
    if bar:
        click.echo("\r\x1b[K", nl=False, err=True)
    if not as_json:
        click.echo(
            f"{count_entries(moved.state.size)} and {some(moved.map_leaves, 'leaf', 'leaves')} of the map are in the"
            f" database, the same as before: {some(moved.rows, 'row')} compared, the root computed again.", err=True,
        )
    _show({
        "size": moved.state.size, "root": encode_base64(moved.state.root), "rows": moved.rows,
        "map-leaves": moved.map_leaves, "renamed": [str(path) for path in moved.old],
    }, moved.old, as_json)


def _show(members: dict[str, object], old: tuple[Path, ...], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(members))
        return
    for path in old:
        click.echo(f"renamed: {path}", err=True)
    click.echo(
        "Remove the old files once you trust the new place: an erasure from now on does not reach them.", err=True
    )
