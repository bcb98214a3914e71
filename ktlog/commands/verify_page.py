"""``ktlog verify-page``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ktlog.durable import write_atomic
from ktlog.web.verifypage import page_hash, verify_page


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to write it; else to stdout.")
@click.option("--hash", "hash_only", is_flag=True, help="Print its SHA-256 and nothing else.")
def command(output: Path | None, hash_only: bool) -> None:
    """Write verify.html: one page that checks a log's answers in a browser, with nothing loaded from anywhere.

    Every log serves the same page at /verify.html. From your disk it is not the log's word: open the file.
    """
    if hash_only:
        click.echo(page_hash())
    elif output is not None:
        write_atomic(output, verify_page())
        click.echo(f"{page_hash()}  {output}")
    else:
        sys.stdout.buffer.write(verify_page())
