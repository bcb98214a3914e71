"""``ktlog backup``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ktlog.config import load_settings
from ktlog.errors import StoreError, UsageError
from ktlog.operator.backup import back_up, left_out, prune
from ktlog.operator.lastbackup import LastBackup, note_backup
from ktlog.tlog.encoding import encode_base64
from ktlog.words import count_entries, some


@click.command()
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="The log's directory. Without it nothing is copied: only --keep and --drop-erased count.")
@click.option("--with-keys", is_flag=True,
              help="Copy the secret keys in DIR/keys, too. Whoever reads such a backup is the log.")
@click.option("--keep", type=click.IntRange(1), help="Afterwards remove all but so many of the newest backups.")
@click.option("--drop-erased", is_flag=True, help="Afterwards remove the backups from before the newest erasure.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    target: Path, directory: Path | None, with_keys: bool, keep: int | None, drop_erased: bool, as_json: bool
) -> None:
    """Copy a log into TARGET, while it runs: one directory for each backup, what did not change is linked.

    A backup holds every text that was not erased when it was made. It is no licence to run a second copy of the log,
    nor to run this one in place of a newer: `ktlog restore` compares it with the world first.
    """
    if directory is None and keep is None and not drop_erased:
        raise UsageError("BadArguments", "say --dir DIR, or --keep N or --drop-erased to remove old backups alone")
    shown: dict[str, Any] = {}
    absent: dict[str, str] = {}
    if directory is not None:
        bar = sys.stderr.isatty() and not as_json

        def progress(what: str, done: int, total: int) -> None:
            if bar:
                click.echo(f"\r{what}: {done} of {total}    ", nl=False, err=True)

        settings = load_settings(directory)
        path, manifest = back_up(settings, target, with_keys=with_keys, progress=progress)
        absent = left_out(settings, manifest)
        try:
            note_backup(settings, LastBackup(manifest.time, manifest.size))
        except StoreError as error:
            click.echo(f"The backup is finished. Metrics and the doctor do not hear of it: {error}", err=True)
        shown = {
            "backup": str(path), "size": manifest.size, "root": encode_base64(manifest.root),
            "map-size": manifest.map_size, "erasures": manifest.erasures, "files": len(manifest.files),
            "bytes": sum(size for _digest, size in manifest.files.values()), "keys": manifest.keys,
            "keys-left-out": absent, "tiles": manifest.tiles,
        }
    removed = prune(target, keep=keep, erased=drop_erased)
    if as_json:
        click.echo(json.dumps(shown | {"removed": [str(path) for path in removed]}))
        return
    if shown:
        what = f"{count_entries(shown['size'])}, {some(shown['files'], 'file')}, {some(shown['bytes'], 'byte')}"
        click.echo(f"{shown['backup']}: {what}", err=True)
        if not with_keys:
            click.echo("The secret keys are not in it: keep a copy of DIR/keys, and of what is a credential, elsewhere."
                       " Without them the log ends.", err=True)
        if absent:
            click.echo("These secret keys are NOT in it; without them the log ends. Keep a copy of each elsewhere:",
                       err=True)
        for purpose, where in absent.items():
            click.echo(f"  {purpose}: {where}", err=True)
    for path in removed:
        click.echo(f"removed {path}", err=True)
