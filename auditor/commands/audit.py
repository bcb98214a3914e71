"""``ktlog-auditor audit``: read a log and check all of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from auditor.audit import NEW, parse_selection
from auditor.commands.common import fetcher, find_log, load_policy, progress_bars, read_file, with_keys
from auditor.cosigner import Cosigner, cosign, load_cosigner
from auditor.evidence.forked import KeptEdge
from auditor.evidence.gather import Gatherer, gather
from auditor.evidence.limits import MAX_CLAIM_BYTES
from auditor.fetch import ATTEMPTS, LocalCopy, LogReader
from auditor.fold import TreeFold
from auditor.follow import Follower
from auditor.heads import open_given_head
from auditor.history import AuditHistory
from auditor.position import SEMANTIC, TIERS
from auditor.report import Report, format_report
from auditor.state import AuditDirectory
from ktlog.client.publicfiles import PublicFiles
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Log, open_head
from ktlog.errors import KtlogError, UsageError
from ktlog.keymap.output import map_origin
from ktlog.tlog.note import MAXIMUM_NOTE_BYTES
from ktlog.tlog.policy import Policy
from ktlog.wire.fetch import Fetcher


@click.command("audit")
@click.argument("log", metavar="LOG")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Where positions, the head of the last clean audit and evidence are kept; made if missing.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False),
              help="tlog-policy file: the log's key, the witnesses, the quorum.")
@click.option("--vkey", help="The log's verifier key, when no policy names it.")
@click.option("--also-checkpoint", "also", multiple=True, type=click.Path(path_type=Path, dir_okay=False),
              help="A signed checkpoint of this log that you got elsewhere, to compare. Repeatable.")
@click.option("--commitments", default="all", show_default=True, metavar="all|sample:N|none",
              help="Check the plaintext commitments of all entries, of N random ones, or of none. They take nearly "
                   "all of the time: about 50 ms each and core.")
@click.option("--answers", default="new", show_default=True, metavar="new|all|sample:N|none",
              help="Compare the API's answers with the entries: about actors that an entry touched since the last "
                   "audit, about all, N random ones, or none.")
@click.option("--tier", default=SEMANTIC, show_default=True, type=click.Choice(TIERS),
              help="structural: entries, leaf signatures, tiles, cosignatures and the erasure log, without any "
                   "plaintext. semantic: all that, and what the messages say and do.")
@click.option("--leaf-signatures", default="all", show_default=True, type=click.Choice(["all", "none"]),
              help="Verify the log's signature in every entry, or in none.")
@click.option("--from-start", is_flag=True, help="Read all entries again, not just those since the last clean audit.")
@click.option("--tiles", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="A local copy of the log's published files; what is not in it is asked of the log.")
@click.option("--cosign", "cosign_key", type=click.Path(path_type=Path, dir_okay=False), metavar="KEYFILE",
              help="When all was checked and nothing was found, cosign the root with this key (ktlog key) as the PKD"
                   " specification's witness does, and hand it to the log.")
@click.option("--cosign-as", "witness", metavar="ID", help="Under which id the operator has listed that key.")
@click.option("--max-age", default=DEFAULT_MAX_AGE_SECONDS, show_default=True, type=click.IntRange(min=1),
              metavar="SECONDS", help="How long ago the witnesses may have seen the head.")
@click.option("--workers", default=os.cpu_count() or 1, type=click.IntRange(min=1, max=256), metavar="N",
              help="Threads, or processes, that verify.  [default: one a core]")
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    log: str, directory: Path, policy_file: Path | None, vkey: str | None, also: tuple[Path, ...], commitments: str,
    answers: str, tier: str, leaf_signatures: str, from_start: bool, tiles: Path | None,
    cosign_key: Path | None, witness: str | None, max_age: int, workers: int, dial_file: Path | None, as_json: bool,
) -> None:
    """Read LOG and check all of it: from entry 0, or what is new since the last clean audit.

    LOG is an origin (keys.example.com) or an https URL. The log's key must come from you, by --policy or
    --vkey: a key that the log itself hands out proves nothing.

    What is checked: the checkpoint's signatures and cosignatures; that every entry and every tile belongs to the
    signed root; every leaf signature, published message, plaintext commitment and message signature; that the
    directory's rules allow each message; that the tree begins with every tree signed before; and that the API
    answers what the entries say. The report says what was not checked. An audit can be stopped, or killed, at any
    time: the next one goes on from where it stood.

    \b
    Examples:
      ktlog-auditor audit keys.example.com --dir ./audits --policy policy.txt
      ktlog-auditor audit https://keys.example.com --dir ./audits --vkey "$VKEY" --commitments sample:100
    """
    policy = None if policy_file is None else load_policy(policy_file)
    subject = find_log(log, policy, vkey)
    if policy is not None:
        policy = with_keys(policy, subject)
        policy.check_safe()
    chosen = parse_selection(commitments), parse_selection(answers, NEW)
    given = tuple(open_given_head(read_file(path, MAXIMUM_NOTE_BYTES), subject, path) for path in also)
    if (cosign_key is None) != (witness is None):
        raise UsageError("BadOptions", "--cosign and --cosign-as go together")
    cosigner = None if cosign_key is None or witness is None else load_cosigner(cosign_key, witness)
    with AuditDirectory(directory) as state, fetcher(dial_file) as network, progress_bars(as_json) as progress:
        history = AuditHistory(directory, subject.origin)
        files = network if tiles is None else LocalCopy(tiles, subject.url, network)
        follower = Follower(
            subject, LogReader(files, subject.url, attempts=ATTEMPTS), state, policy=policy, tier=tier,
            commitments=chosen[0], answers=chosen[1], given=given, max_age=max_age, workers=workers, progress=progress,
            from_start=from_start, leaf_signatures=leaf_signatures == "all", tiles=tiles, on_events=history.take,
        )
        now = int(time.time())
        report = run_audit(follower, now)
        history.add(report, now, policy, _add_evidence(report, subject, policy, network, state, workers))
        cosigned, refused = _cosign(report, cosigner, network)
    if as_json:
        more = {} if cosigner is None else {"cosigned": cosigned}
        click.echo(json.dumps(report.as_dict() | more, ensure_ascii=False))
    else:
        click.echo(format_report(report))
        if cosigner is not None:
            click.echo(f"  cosigned: {(cosigned or {}).get('root', 'nothing')}")
        if refused is not None:
            click.echo(f"ktlog-auditor: {refused.diagnostics()}", err=True)
    sys.exit(report.exit_code or (0 if refused is None else refused.exit_code))


def _cosign(
    report: Report, cosigner: Cosigner | None, network: Fetcher
) -> tuple[dict[str, Any] | None, KtlogError | None]:
    """What the log took, or why it has nothing; the report stands either way."""
    if cosigner is None:
        return None, None
    try:
        return cosign(report, cosigner, network, int(time.time())).as_dict(), None
    except KtlogError as error:
        return {"error": error.as_dict()}, error


_EVIDENCE_OF = {"TwoRoots": "two-roots-", "Inconsistent": "inconsistent-"}


def _add_evidence(
    report: Report, log: Log, policy: Policy | None, network: Fetcher, state: AuditDirectory, workers: int
) -> dict[tuple[str, int | None], str]:
    """Make and keep evidence for what was found; the files by name and entry of the finding."""
    paths = {
        (finding.name, finding.leaf_index): path for finding in report.findings for path in report.evidence
        if Path(path).name.startswith(_EVIDENCE_OF.get(finding.name, "/"))
    }
    if report.ok or report.tree_size is None or report.signed_head is None:
        return paths
    keys = () if policy is None else tuple(
        line.vkey for line in policy.logs if line.vkey.name == map_origin(log.origin)
    )
    forks = [read_file(Path(path), MAX_CLAIM_BYTES) for path in report.evidence]
    gatherer = Gatherer(
        log, open_head(report.signed_head, log), PublicFiles(network, log.url, attempts=ATTEMPTS),
        PublicFiles(network, f"{log.url}/map", attempts=ATTEMPTS), keys, workers, _kept(state, log.origin, report),
    )
    for item in gather(report, gatherer, forks):
        path = str(state.save_evidence(item.data, item.kind, log.origin))
        paths.setdefault((item.finding.name, item.finding.leaf_index), path)
        if path not in report.evidence:
            report.evidence.append(path)
    return paths


def _kept(state: AuditDirectory, origin: str, report: Report) -> KeptEdge | None:
    """The tree of the last clean audit, as far as its hashes were kept."""
    with state.ledger(origin, report.tier) as ledger:
        position = ledger.position()
        return position and (position.size, position.root, TreeFold.decode(position.fold).right_edge())


def run_audit(follower: Follower, now: int, clock: Callable[[], float] = time.monotonic) -> Report:
    """One advance of *follower*, timed."""
    started = clock()
    report = follower.advance(now).report
    report.seconds = clock() - started
    return report
