"""``ktlog-auditor verify-alarm``: check an alarm offline."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from auditor.alarm import printable_line
from auditor.alarmproof import verify_alarm
from auditor.commands.common import load_policy, read_file
from auditor.outbox import MAX_ALARM_BYTES
from ktlog.errors import EncodingError, UsageError
from ktlog.pkd.canonical import parse_json


@click.command("verify-alarm")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--policy", "policy_file", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="tlog-policy file: the log's key and witnesses you trust. Nothing in FILE is believed without it.")
@click.option("--at", type=click.IntRange(min=0), metavar="SECONDS", help="Check as of this Unix time, not now.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, policy_file: Path, at: int | None, as_json: bool) -> None:
    """Check FILE, an alarm about an entry as a sink got it, without network.

    It shows that the log has this message, word for word, and that the quorum of your policy stands behind the log. It
    does not show what the message did to the actor: `ktlog lookup` and `ktlog-auditor audit` do.
    """
    policy = load_policy(policy_file)
    policy.check_safe()
    try:
        document = parse_json(read_file(file, 2 * MAX_ALARM_BYTES))
    except EncodingError as error:
        raise UsageError("BadAlarm", f"{file} is no alarm: {error.message}") from None
    if not isinstance(document, dict):
        raise UsageError("BadAlarm", f"{file} is no alarm")
    found = verify_alarm(document, policy, int(time.time()) if at is None else at)
    if as_json:
        click.echo(json.dumps({
            "ok": True, "log": found.origin, "leaf_index": found.leaf_index, "action": found.action,
            "subjects": list(found.subjects), "keys": list(found.keys), "claimed_time": found.time,
            "as_of": found.as_of,
        }))
        return
    click.echo(f"{found.origin} has this {found.action} as entry {found.leaf_index}.")
    for subject in found.subjects:
        click.echo(f"  about: {'(withheld)' if subject is None else printable_line(subject)}")
    for key in found.keys:
        click.echo(f"  key: {key}")
    if found.as_of is not None:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(found.as_of))
        click.echo(f"  the quorum stood behind the log at {moment} UTC")
