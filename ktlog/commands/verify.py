"""``ktlog verify``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ktlog.client import export_proof, parse_policy, verify_bundle
from ktlog.client.proof import read_bundle
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS
from ktlog.commands.lookup import describe
from ktlog.durable import read_file, write_atomic
from ktlog.errors import EncodingError, UsageError
from ktlog.keymap.bundle import Presented
from ktlog.keymap.output import MAP_SUFFIX
from ktlog.keymap.value import parse_value
from ktlog.pkd.keys import encode_root
from ktlog.tlog.policy import CLOCK_SKEW_SECONDS, Policy
from ktlog.tlog.proof import HEADER, parse_proof, verify_proof
from ktlog.tlog.tree import hash_leaf

# What is said about a bundle, and has no meaning for a .tlog-proof: by parameter name.
_OF_BUNDLES = {
    "actor": "--actor", "origin": "--origin", "checkpoint": "--checkpoint", "max_age": "--max-age", "pq": "--pq",
    "export": "--export-proof",
}


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
@click.option("--entry", type=click.Path(path_type=Path), metavar="PATH",
              help="FILE is a .tlog-proof, and PATH the entry that it is about: the leaf's bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the whole keys.")
@click.pass_context
def command(
    context: click.Context, file: Path, policy: Path, actor: str | None, origin: str | None, checkpoint: Path | None,
    at: int | None, max_age: int, pq: bool, export: Path | None, entry: Path | None, as_json: bool,
) -> None:
    """Check FILE, saved by `ktlog lookup --save`, without network and without memory.

    FILE may also be a C2SP .tlog-proof: then what is checked is that the log has the entry that --entry names.

    Exit codes are those of `ktlog lookup`. What only memory can show, a roll-back or a fork, is not
    looked for, and the answer says so.
    """
    data = _read(file)
    is_proof = data.partition(b"\n")[0] == HEADER.encode()
    leaf = _entry(context, entry, is_proof)
    note = None if checkpoint is None else _read(checkpoint)
    try:
        rules = parse_policy(_read(policy))
    except EncodingError as error:
        raise UsageError("BadPolicy", f"{policy}: {error.message}") from error
    now = int(time.time()) if at is None else at
    if leaf is not None:
        logged = _check_logged(data, leaf, rules, now)
        click.echo(json.dumps(logged) if as_json else _in_words(logged))
        return
    answer = verify_bundle(
        data, note, rules, actor or _about(data), now, origin=origin, max_age_seconds=max_age, pq=pq,
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


def _entry(context: click.Context, entry: Path | None, is_proof: bool) -> bytes | None:
    """The entry's bytes if FILE is a .tlog-proof, else None. An option that would be ignored is refused."""
    if not is_proof:
        if entry is not None:
            raise UsageError("NoProof", "--entry goes with a .tlog-proof, and the file is none")
        return None
    given = [
        option for name, option in _OF_BUNDLES.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError("NoBundle", f"{', '.join(given)}: not for a .tlog-proof")
    if entry is None:
        raise UsageError("NoEntry", "the file is a .tlog-proof: give the entry that it is about with --entry")
    return _read(entry)


def _check_logged(proof: bytes, entry: bytes, policy: Policy, now: int) -> dict[str, Any]:
    """What a .tlog-proof proves of *entry*, for a machine.

    Raises:
        PolicyUnmet: ``UnsafePolicy``; and the errors of :func:`verify_proof`.
    """
    policy.check_safe(require_verifiers=any(line.vkey.name.endswith(MAP_SUFFIX) for line in policy.logs))
    verified = verify_proof(proof, entry, policy, now)
    return {
        "answer": "logged",
        "origin": verified.checkpoint.origin,
        "leaf-index": parse_proof(proof).leaf_index,
        "leaf-hash": hash_leaf(entry).hex(),
        "tree-size": verified.checkpoint.size,
        "merkle-root": encode_root(verified.checkpoint.root),
        "as-of": verified.as_of,
        "cosigners": sorted({
            line.vkey.name for line in verified.cosignatures if line.timestamp <= now + CLOCK_SKEW_SECONDS
        }),
    }


def _in_words(logged: dict[str, Any]) -> str:
    told = {**logged, "cosigners": ", ".join(logged["cosigners"])}
    return "\n".join(f"{name}: {value}" for name, value in told.items())


def _about(data: bytes) -> str:
    """Whom a saved answer is about. It is checked like any other claim, and shown."""
    outcome = read_bundle(data).outcome
    if not isinstance(outcome, Presented):
        raise UsageError("NoActor", "the file proves that somebody is absent, and does not say who: give --actor")
    return parse_value(outcome.value).actor_id
