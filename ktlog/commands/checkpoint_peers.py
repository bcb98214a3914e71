"""``ktlog checkpoint-peers``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.errors import KtlogError, UsageError
from ktlog.operator.gossip import send_checkpoint
from ktlog.operator.sources import load_sources
from ktlog.wire.fetch import Fetcher


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory. Its `ktlog serve` must run: the peers ask it for its keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: Path, as_json: bool) -> None:
    """Commit this log's newest root to every log that it mirrors, with a Checkpoint message.

    Each must name this log in its setting `directories`. The message also says up to which root of the
    receiving log the mirror has replayed every entry. Run it once a day or so.
    """
    settings = load_settings(directory)
    sources, fetcher = load_sources(settings), Fetcher.from_environment()
    if not sources:
        raise UsageError("NoReplicas", "this log mirrors no other (the setting replicas)")
    outcomes: dict[str, object] = {}
    code = 0
    for source in sources:
        origin = source.log.origin
        try:
            receipt = send_checkpoint(settings, source, fetcher, int(time.time()), os.urandom)
        except KtlogError as error:
            code = error.exit_code
            outcomes[origin] = {"error": error.as_dict()}
            click.echo(f"ktlog: {origin}: {error.diagnostics()}", err=True)
        else:
            outcomes[origin] = {"leaf-index": receipt.leaf_index}
            if not as_json:
                click.echo(f"{origin} took the Checkpoint; as entry {receipt.leaf_index}, it says")
    if as_json:
        click.echo(json.dumps({"peers": outcomes}))
    if code:
        sys.exit(code)
