"""``ktlog-auditor findings``: what a watch found, from its directory."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import click

from auditor.commands.watch import format_row
from auditor.findings_store import FindingStore, Row
from auditor.report import EXIT_CODES
from ktlog.errors import KtlogError

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
_WARNINGS = frozenset({"Unreachable", "Stale", "PolicyUnmet"})


@click.command("findings")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="The directory of `watch`, which may be running.")
@click.option("--log", "origin", metavar="ORIGIN", help="Only those about this log and its map.")
@click.option("--open", "only_open", is_flag=True, help="Only those that hold now.")
@click.option("--nagios", is_flag=True,
              help="One line, and 0 none, 1 warning (stale, unreachable, policy unmet), 2 critical (forked, invalid), "
                   "3 unknown. Only what holds now counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON objects, one a line.")
def command(directory: Path, origin: str | None, only_open: bool, nagios: bool, as_json: bool) -> None:
    """List the findings of a watch.

    Without --nagios the exit code is 0 whatever they are, and 8 when they cannot be read.
    """
    try:
        with FindingStore(directory, read_only=True) as store:
            rows = store.open() if only_open or nagios else store.all()
    except KtlogError as error:
        if not nagios:
            raise
        click.echo(f"KTLOG UNKNOWN - {error}")
        sys.exit(UNKNOWN)
    if origin is not None:
        rows = [row for row in rows if row.origin in (origin, f"{origin}/map")]
    if nagios:
        line, code = nagios_line(rows)
        click.echo(line)
        sys.exit(code)
    for row in rows:
        click.echo(json.dumps(row.as_dict()) if as_json else format_row(row, "OPEN" if row.is_open else "closed"))
    if not rows and not as_json:
        click.echo("No finding holds now." if only_open else "Nothing was ever found.")


def nagios_line(rows: list[Row]) -> tuple[str, int]:
    """One line for a monitoring plug-in, and its exit code. *rows*: the open ones."""
    if not rows:
        return "KTLOG OK - no finding holds | findings=0", OK
    order = list(EXIT_CODES)
    code = WARNING if all(row.kind in _WARNINGS for row in rows) else CRITICAL
    counted = Counter((row.kind, row.name, row.origin) for row in rows)
    said = [
        f"{name} at {origin}" + (f" ({count})" if count > 1 else "")
        for (_, name, origin), count in sorted(counted.items(), key=lambda one: (order.index(one[0][0]), one[0][1:]))
    ]
    shown = ", ".join(said[:5]) + (f" and {len(said) - 5} more" if len(said) > 5 else "")
    return f"KTLOG {'WARNING' if code == WARNING else 'CRITICAL'} - {shown} | findings={len(rows)}", code
