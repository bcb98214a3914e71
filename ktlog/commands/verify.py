"""``ktlog verify``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from ktlog.client import export_proof, parse_policy, verify_bundle
from ktlog.client.proof import read_bundle
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS
from ktlog.commands.lookup import describe
from ktlog.durable import read_file, write_atomic
from ktlog.errors import EncodingError, UsageError
from ktlog.keymap.bundle import Presented
from ktlog.keymap.value import parse_value


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--policy", type=click.Path(path_type=Path), required=True,
              help="tlog-policy file: the maps, witnesses and verifiers you trust. The only root of trust.")
@click.option("--actor", metavar="ID", help="Whom you ask about (https://...); by default whoever FILE is about.")
@click.option("--origin", metavar="ORIGIN", help="The log that serves the actor; needed if the policy trusts several.")
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="The signed checkpoint that goes with FILE, if FILE does not hold it.")
@click.option("--at", type=click.IntRange(min=0), metavar="SECONDS",
              help="Check as of this Unix time, not now: an answer is good for --max-age only.")
@click.option("--max-age", type=click.IntRange(min=1), default=DEFAULT_MAX_AGE_SECONDS, show_default=True,
              metavar="SECONDS", help="How old cosignatures and map may be.")
@click.option("--pq", is_flag=True, help="Count ML-DSA signatures and cosignatures alone.")
@click.option("--export-proof", "export", type=click.Path(path_type=Path), metavar="PATH",
              help="Write PATH (a .tlog-proof) and PATH.leaf for tools that know C2SP formats alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the whole keys.")
def command(
    file: Path, policy: Path, actor: str | None, origin: str | None, checkpoint: Path | None, at: int | None,
    max_age: int, pq: bool, export: Path | None, as_json: bool,
) -> None:
    """Check FILE, saved by `ktlog lookup --save`, without network and without memory.

    Exit codes are those of `ktlog lookup`. What only memory can show, a roll-back or a fork, is not
    looked for, and the answer says so.
    """
    data = _read(file)
    note = None if checkpoint is None else _read(checkpoint)
    try:
        rules = parse_policy(_read(policy))
    except EncodingError as error:
        raise UsageError("BadPolicy", f"{policy}: {error.message}") from error
    answer = verify_bundle(
        data, note, rules, actor or _about(data), int(time.time()) if at is None else at, origin=origin,
        max_age_seconds=max_age, pq=pq,
    )
    if export is not None:
        proof, leaf = export_proof(data, note)
        write_atomic(export, proof)
        write_atomic(export.with_name(export.name + ".leaf"), leaf)
    click.echo(json.dumps(answer.as_dict()) if as_json else "\n".join(describe(answer)))


def _read(path: Path) -> bytes:
    data = read_file(path)
    if data is None:
        raise UsageError("NoFile", f"{path} does not exist")
    return data


def _about(data: bytes) -> str:
    """Whom a saved answer is about. It is checked like any other claim, and shown."""
    outcome = read_bundle(data).outcome
    if not isinstance(outcome, Presented):
        raise UsageError("NoActor", "the file proves that somebody is absent, and does not say who: give --actor")
    return parse_value(outcome.value).actor_id
