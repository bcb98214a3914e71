"""``ktlog proxy-config``."""

from __future__ import annotations

from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.errors import UsageError
from ktlog.operator.proxy import KINDS, Proxied, format_proxy


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory.")
@click.option("--upstream", metavar="ADDRESS:PORT", help="Where the proxy reaches the log.  [default: its `listen`]")
@click.option("--certificate", metavar="FILE", default="", help="PEM, with its chain; Caddy gets one by itself."
              "  [default: /etc/ssl/ORIGIN/fullchain.pem]")
@click.option("--key", metavar="FILE", default="", help="Its key.  [default: /etc/ssl/ORIGIN/privkey.pem]")
@click.option("--tiles", metavar="PATH", default="",
              help="Where nginx can read DIR/tiles, to serve the published files itself; see the text's head.")
@click.option("--also", multiple=True, metavar="NAME=ADDRESS:PORT",
              help="Another name that it serves, a witness of yours perhaps; may be repeated.")
def command(
    kind: str, directory: Path, upstream: str | None, certificate: str, key: str, tiles: str, also: tuple[str, ...]
) -> None:
    """Print what nginx, Caddy or Apache needs to know to stand before a log.

    The same text as in deploy/, with the names and places of this log. For nginx it goes into a file of its own in
    /etc/nginx/conf.d.
    """
    settings = load_settings(directory)
    if tiles and (kind != "nginx" or settings.objects):
        raise UsageError(
            "NoTiles", "here the log serves its published files itself",
            hint="--tiles is for nginx, and for a log whose files are in DIR/tiles.",
        )
    click.echo(format_proxy(kind, Proxied(
        settings.origin, str(directory.absolute()), upstream or settings.listen, settings.body_limit_bytes, certificate,
        key, tiles, tuple(map(_parse_also, also)),
    )), nl=False)


def _parse_also(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not equals:
        raise UsageError("BadName", f"--also {text!r} is not NAME=ADDRESS:PORT")
    return name, address
