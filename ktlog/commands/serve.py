"""``ktlog serve``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.operator.cosigning import load_cosigners
from ktlog.operator.create import ensure_map
from ktlog.operator.directories import check_directories
from ktlog.operator.keys import load_fetch_key
from ktlog.operator.mapcheck import check_whole_map
from ktlog.operator.service import load_publish_policy
from ktlog.operator.shred import finish_erasures
from ktlog.operator.sources import load_sources
from ktlog.operator.supervisor import supervise
from ktlog.pkd.extensions import choose


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory, made by `ktlog init`.")
@click.option("--listen", metavar="HOST:PORT", help="Where to answer HTTP; a TLS proxy stands before it.")
@click.option("--workers", type=click.IntRange(1), help="Web worker processes.")
@click.option("--check-map", is_flag=True, help="First check every value of the directory map, not only a sample.")
def command(directory: Path, listen: str | None, workers: int | None, check_map: bool) -> None:
    """Run a log until SIGTERM: the sequencer, the publisher and the web workers.

    Put a TLS proxy in front that passes the Host header through. Without DIR/publish.policy
    nothing starts: a log that no witness watches is not one.
    """
    settings = load_settings(directory, {"listen": listen, "workers": workers})
    choose(settings.aux_type_names())
    check_directories(settings.directory_urls())
    load_cosigners(settings.cosigners)
    load_fetch_key(settings.keys)
    load_publish_policy(settings)
    load_sources(settings)
    finish_erasures(settings, lambda: int(time.time()))
    ensure_map(settings)
    if check_map:
        check_whole_map(settings)
    sys.exit(supervise(settings))
