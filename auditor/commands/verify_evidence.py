"""``ktlog-auditor verify-evidence``: does a file convict the holder of a log's key?"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from auditor.commands.common import fetcher, load_policy, parse_known_vkey, read_file
from auditor.convict import conviction, format_conviction, format_refusal, input_origin, refusal
from auditor.evidence.judge import Known
from auditor.evidence.source import Source, open_source
from ktlog.errors import EncodingError, KtlogError, UsageError
from ktlog.keymap.evidence import MAX_EVIDENCE_BYTES
from ktlog.pkd.keys import decode_public_key
from ktlog.tlog.note import Vkey

_REFUSED = 5


@click.command("verify-evidence")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--vkey", "vkeys", multiple=True,
              metavar="[ORIGIN=]VKEY",
              help="A key you know to be the log's; evidence about another key is refused. With ORIGIN= for a key that"
                   " is not named after its log. May be repeated.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False),
              help="A tlog-policy: the keys in its log lines are known to you, as with --vkey.")
@click.option("--http-key", "http_keys", multiple=True, metavar="mldsa44:...",
              help="A key you know the log to sign its answers with: public-key in its /api/info. May be repeated.")
@click.option("--log", "log", metavar="URL|DIR",
              help="Where to read what the file names and does not hold: the log, or a copy of its files.")
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    file: Path, vkeys: tuple[str, ...], policy_file: Path | None, http_keys: tuple[str, ...], log: str | None,
    dial_file: Path | None, as_json: bool,
) -> None:
    """Check an evidence FILE: does it convict the holder of a log's key?

    It may be about a log's tree, its entries, its map or a receipt: docs/evidence.md lists the kinds. The file and the
    log's public key are enough; only with --log is anything read from anywhere. Exit code 0 when it convicts, 5 when
    it does not. Without --vkey or --policy it convicts whoever holds the key in the file, and the key's name proves
    nothing: say which keys you know to be the log's.
    """
    known, bound = _known(vkeys)
    if policy_file is not None:
        known += [line.vkey for line in load_policy(policy_file).logs]
    keys = tuple(_http_key(text) for text in http_keys)
    data = read_file(file, MAX_EVIDENCE_BYTES)
    try:
        with ExitStack() as stack:
            source: Source | None = None
            if log is not None:
                source = open_source(log, input_origin(data), stack.enter_context(fetcher(dial_file)))
            verdict = conviction(data, Known(tuple(known), keys, source, int(time.time()), os.cpu_count() or 1, bound))
    except UsageError:
        raise
    except KtlogError as error:
        if as_json:
            click.echo(refusal(error))
        click.echo(format_refusal(str(file), error), err=True)
        # A log that does not answer leaves the question open, and so does a message that it would not take.
        sys.exit(error.exit_code if error.exit_code == 3 else _REFUSED)
    click.echo(json.dumps(verdict, ensure_ascii=False) if as_json else format_conviction(verdict))


def _known(texts: Sequence[str]) -> tuple[list[Vkey], tuple[tuple[str, Vkey], ...]]:
    """What --vkey says: keys of the logs that they are named after, and keys of a named log."""
    plain, bound = [], []
    for text in texts:
        # In base64 an equals sign comes after the name's plus; a key's name has none.
        origin, equals, key = text.partition("=") if "=" in text.partition("+")[0] else ("", "", text)
        if equals and origin:
            bound.append((origin, parse_known_vkey(key)))
        else:
            plain.append(parse_known_vkey(text))
    return plain, tuple(bound)


def _http_key(text: str) -> bytes:
    try:
        return decode_public_key(text)
    except EncodingError as error:
        raise UsageError("BadKey", f"--http-key does not parse: {error.message}") from None
