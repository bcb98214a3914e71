"""``ktlog-auditor report``: one page about a log, from what the audits and the watch of a directory left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from auditor.findings_store import DATABASE, FindingStore
from auditor.history import home, load_history, origins
from auditor.page import render
from auditor.summary import summarise
from ktlog.durable import file_errors, write_atomic
from ktlog.errors import UsageError
from ktlog.keymap.output import MAP_SUFFIX


@click.command("report")
@click.argument("log", metavar="LOG")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Where the audits of this log, or its watch, keep what they know.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where the page goes. Links to evidence are relative to it.")
@click.option("--json", "as_json", is_flag=True, help="Print the page's numbers as one JSON object.")
def command(log: str, directory: Path, output: Path | None, as_json: bool) -> None:
    """Write one page about LOG: what was checked by whom and when, how it grew, and what was found.

    LOG is an origin (keys.example.com) or its https URL. Nothing is asked of anybody: the page says what the audits in
    --dir saw, and what a watch in the same directory read and found. Of a log that was never audited it says what the
    watch's looks compared, and that nothing was audited. It is one file that needs nothing else, without scripts, and
    the same input gives the same bytes.

    \b
    Example:
      ktlog-auditor report keys.example.com --dir ./audits -o report.html
    """
    if output is None and not as_json:
        raise UsageError("NoOutput", "say where the page goes: -o FILE, or --json for its numbers")
    origin = (log.partition("://")[2] if "://" in log else log).rstrip("/")
    history = load_history(directory, origin)
    if history is None or not history["audits"]:
        known = ", ".join(origins(directory)) or "none"
        raise UsageError(
            "NoAudit", f"{directory} has no audit of {origin}, and no look at it; it has those of: {known}",
            hint=f"Audit it first: ktlog-auditor audit {origin} --dir {directory}; or watch it.",
        )
    summary = summarise(history, watched(directory, origin))
    if output is not None:
        page = render(summary, output.parent)
        with file_errors(output):
            write_atomic(output, page)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
    elif output is not None:
        last = "look, and nothing was audited" if summary["audits"]["looks"] else "audit"
        click.echo(f"{output}: {summary['verdict']['state']}, as of the last {last}")


def watched(directory: Path, origin: str) -> list[dict[str, Any]] | None:
    """A watch's findings about a log and its map; None where nobody watches."""
    directory = home(directory, origin)
    if not (directory / DATABASE).exists():
        return None
    with FindingStore(directory, read_only=True) as store:
        return [row.as_dict() for row in store.all() if row.origin in (origin, origin + MAP_SUFFIX)]
