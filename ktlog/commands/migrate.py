"""``ktlog migrate``: bring a log's store to this version's schema, or say what that would take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ktlog.config import Settings, load_settings
from ktlog.operator.stopped import stopped
from ktlog.operator.stores import database_url, look_at_database, map_exists, open_log, open_map
from ktlog.store import upgrade
from ktlog.words import count_entries, some


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory. The log must be stopped, but for --plan.")
@click.option("--plan", is_flag=True, help="Say which steps would run, how long and how large, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: Path, plan: bool, as_json: bool) -> None:
    """Bring a log's store to the schema of this ktlog, and that of its map. `ktlog serve` does the same when it starts.

    SQLite: a copy of each database is kept beside it before anything is changed, named by its schema and the time; the
    newest two stay, until something is erased. Without room for it nothing is changed. All steps are one transaction.
    PostgreSQL: the tables that a step changes are copied to another schema first, in the same transaction as all steps;
    a copy of all of it is yours to make (pg_dump). A store of newer code is refused.
    """
    settings = load_settings(directory)
    before = _look(settings)
    if plan:
        _print(before, as_json)
        return
    if _steps(before):
        why, hint = "a log is migrated while it is stopped", "Stop it first. ktlog serve migrates when it starts."
        with stopped(settings, why, hint):
            open_log(settings).close()
            if map_exists(settings):
                open_map(settings).close()
    after = _look(settings) | {"done": [step["name"] for step in _steps(before)]}
    if as_json:
        click.echo(json.dumps(after))
        return
    if before["steps"]:
        click.echo(f"schema {before['schema']} became {after['schema']}.")
    else:
        click.echo(f"schema {after['schema']}: nothing is to be done.")
    if before.get("map") and before["map"]["steps"]:
        click.echo(f"the map's schema {before['map']['schema']} became {after['map']['schema']}.")
    for copy in after["copies"] if after["done"] else ():
        click.echo(f"a copy: {copy}")


def _steps(found: dict[str, Any]) -> list[dict[str, str]]:
    """All that would run, of the log's database and of its map's."""
    return [*found["steps"], *(found["map"]["steps"] if found.get("map") else ())]


def _look(settings: Settings) -> dict[str, Any]:
    url = database_url(settings)
    if url is not None:
        there = look_at_database(url)
        return {
            "schema": there.stored, "wanted": there.wanted, "entries": there.entries,
            "database-bytes": there.database_bytes,
            "steps": [{"name": name, "about": about} for name, about in there.steps],
            "tables": there.tables, "copy-bytes": there.copy_bytes, "other-server": there.other_server,
            "copies": there.copies,
        }
    paths = [settings.database, settings.map_database] if map_exists(settings) else [settings.database]
    return _members(upgrade.look(settings.database)) | {
        "map": _members(upgrade.look_at_map(settings.map_database)) if len(paths) > 1 else None,
        "copies": [str(one) for path in paths for one in upgrade.copies(path)],
    }


def _members(found: upgrade.Upgrade) -> dict[str, Any]:
    return {
        "schema": found.stored, "wanted": found.wanted, "entries": found.entries,
        "database-bytes": found.database_bytes,
        "steps": [{"name": step.name, "about": step.about} for step in found.steps],
        "seconds": round(found.seconds, 1), "copy-bytes": found.copy_bytes, "work-bytes": found.work_bytes,
        "free-bytes": found.free_bytes, "fits": found.fits,
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in _lines(found, "schema", count_entries(found["entries"])):
        click.echo(line)
    if found.get("map"):
        for line in _lines(found["map"], "the map: schema", some(found["map"]["entries"], "leaf", "leaves")):
            click.echo(line)


def _lines(found: dict[str, Any], what: str, many: str) -> Iterator[str]:
    yield f"{what} {found['schema']}, {many}, {found['database-bytes'] / 2**20:.1f} MiB"
    if not found["steps"]:
        yield "nothing is to be done"
        return
    yield f"this ktlog needs schema {found['wanted']}; steps that would run, in one transaction:"
    for step in found["steps"]:
        yield f"  {step['name']}  {step['about']}".rstrip()
    if "tables" in found:
        yield from _database_lines(found)
        return
    yield f"about {found['seconds']:.0f} s of one core"
    yield (
        f"{found['copy-bytes'] / 2**20:.1f} MiB for a copy of the database beside it, up to"
        f" {found['work-bytes'] / 2**20:.1f} MiB for the work; {found['free-bytes'] / 2**20:.1f} MiB are free:"
        f" {'enough' if found['fits'] else 'NOT ENOUGH, and it would be refused'}"
    )


def _database_lines(found: dict[str, Any]) -> Iterator[str]:
    if found["other-server"]:
        yield f"NO, it would be refused: {found['other-server']} may leave half of a migration that fails"
        return
    if found["tables"]:
        yield (
            f"{found['copy-bytes'] / 2**20:.1f} MiB for a copy of {', '.join(found['tables'])}, in the schema"
            f" ktlog_before_{found['schema']}_TIME of the same database; look whether its server has room for it"
        )
    else:
        yield "no copy is made: no step changes a row that is there"
    yield f"for one of all of it, say first: pg_dump -Fc -n ktlog -f ktlog-schema-{found['schema']}.dump URL"
