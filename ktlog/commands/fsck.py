"""``ktlog fsck``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.errors import UsageError
from ktlog.operator.findings import Findings
from ktlog.operator.fsck import Examined, Scope, examine
from ktlog.operator.fsckurl import examine_url
from ktlog.operator.tilerepair import repair_tiles
from ktlog.tlog.policy import parse_policy
from ktlog.wire.fetch import Fetcher
from ktlog.words import some

DAMAGED = 5
FETCH_SECONDS = 60.0


@click.command()
@click.argument("url", required=False)
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="The log's directory. The log may run.")
@click.option("--quick", is_flag=True, help="Tree, files and heads only: no signatures, no records, no map.")
@click.option("--commitments", is_flag=True, help="Also every Argon2id commitment: 50 ms of a core for each.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="With URL: a tlog-policy file that says with which keys the log signs.")
@click.option("--repair-tiles", "repair", is_flag=True, help="Make damaged tiles and bundles again, if all else holds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    url: str | None, directory: Path | None, quick: bool, commitments: bool, policy_file: Path | None, repair: bool,
    as_json: bool,
) -> None:
    """Check a whole log, in DIR or published at URL: everything is computed again from its entries.

    Exit code 0: whole. 5: damaged; each finding says what is, and what to do. 3: URL does not answer.
    """
    if (url is None) == (directory is None):
        raise UsageError("BadArguments", "say either --dir DIR or a URL such as https://keys.example.com")
    scope = Scope(quick=quick, commitments=commitments)
    bar = _Bar(sys.stderr.isatty() and not as_json)
    repaired = 0
    if directory is not None:
        settings = load_settings(directory)
        examined: Examined = examine(settings, scope, bar, int(time.time()))
        bar.end()
        if repair and any(examined.broken):
            repaired = repair_tiles(settings, examined)
            examined = examine(settings, scope, bar, int(time.time()))
            bar.end()
        findings = examined.findings
    else:
        if repair:
            raise UsageError("BadArguments", "--repair-tiles needs --dir")
        policy = None if policy_file is None else parse_policy(policy_file.read_bytes())
        findings = examine_url(url or "", Fetcher.from_environment(timeout=FETCH_SECONDS), policy, scope, bar)
        bar.end()
    _show(findings, repaired, as_json)
    sys.exit(0 if findings.ok else DAMAGED)


def _show(findings: Findings, repaired: int, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(findings.as_dict() | {"repaired": repaired}))
        return
    for finding in findings.kept:
        click.echo(f"{finding}\n    {finding.hint}")
    for name, count in findings.counts.items():
        kept = sum(finding.name == name for finding in findings.kept)
        if count > kept:
            click.echo(f"{name}: and {count - kept} more")
    if repaired:
        click.echo(f"{some(repaired, 'file was', 'files were')} written again.")
    click.echo("Checked: " + ", ".join(f"{what} {count:,}" for what, count in findings.checked.items()))
    for sentence in findings.skipped:
        click.echo(f"Not checked: {sentence}")
    click.echo("The log is whole." if findings.ok else f"DAMAGED: {some(sum(findings.counts.values()), 'finding')}.")


class _Bar:
    """Progress on a terminal; silent elsewhere."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._shown:
            width = 30 * done // total if total else 30
            click.echo(f"\r{what:<12} [{'#' * width}{' ' * (30 - width)}] {done} of {total} ", nl=False, err=True)

    def end(self) -> None:
        if self._shown:
            click.echo("\r" + " " * 78 + "\r", nl=False, err=True)
