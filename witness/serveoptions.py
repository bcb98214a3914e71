"""What ``ktlog-witness serve`` takes beside its directory and address: how it is run, watched and described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import Any

import click

from ktlog import durable
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.wire import logs
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpd import open_listener
from ktlog.wire.notify import Notifier
from ktlog.wire.prometheus import parse_metrics_listen
from witness.about import TEXT_BYTES, Said
from witness.pulling import Puller, format_interval, parse_interval
from witness.running import ADDRESSES, Operating

LINE_CHARACTERS = 200


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _option(name: str, help_text: str, *, prefix: str = "KTLOG_WITNESS_", **more: Any) -> Decorator:
    """An option with an environment variable of its name, which its help shows."""
    variable = f"{prefix}{name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(name, envvar=variable, help=f"{help_text} [env: {variable}]", **more)


def _watching(prefix: str) -> tuple[Decorator, ...]:
    return (
        _option("--metrics-listen", "Serve /metrics for Prometheus, /livez and /readyz there too, on loopback; on"
                " another address only as 'ADDRESS:PORT public'.", prefix=prefix, default="", metavar="ADDRESS:PORT"),
        _option("--log-format", "Of the log on standard error. auto: plain on a terminal, else logfmt.", prefix=prefix,
                default="auto", show_default=True, type=click.Choice(logs.FORMATS)),
        _option("--log-level", "How much is logged; a line a request at info. SIGUSR1 switches to debug and back.",
                prefix=prefix, default="info", show_default=True, type=click.Choice(logs.LEVELS)),
        _option("--log-addresses", "Of who asks: nothing, the /24 or /48 network, or all of it.", prefix=prefix,
                default="none", show_default=True, type=click.Choice(ADDRESSES)),
    )


_OPTIONS = (
    *_watching("KTLOG_WITNESS_"),
    _option("--pull-logs", "Follow the logs of this list (https URL or file), again and again. May be given several"
            " times; in the environment, separated by spaces.", multiple=True, metavar="SOURCE"),
    _option("--every", "How often, for --pull-logs: like 15m, 1h or 1d.", default="1h", show_default=True,
            metavar="TIME"),
    _option("--operator", "For the page at /: who runs this.", default="", metavar="TEXT"),
    _option("--contact", "For the page at /: a mail address or an https URL.", default="", metavar="TEXT"),
    _option("--public-url", "For the page at /: where logs and monitors reach it, if not at https://NAME.", default="",
            metavar="URL"),
    _option("--about", "For the page at /: more text, from this file.", metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path)),
)


def operating_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that ``make_operating`` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def watching_options(prefix: str) -> Decorator:
    """The first four of them, which ``make_watching`` takes; their variables begin with *prefix*."""
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(_watching(prefix)):
            command = option(command)
        return command

    return decorate


def make_watching(metrics_listen: str, log_format: str, log_level: str) -> socket | None:
    """Log as they say from here on; returns what listens for those who read the metrics.

    Raises:
        UsageError: ``BadListen``.
    """
    listener = open_listener(parse_metrics_listen(metrics_listen)) if metrics_listen else None
    logs.configure(log_format, log_level)
    return listener


def make_operating(
    directory: Path, *, replaying: bool, metrics_listen: str, log_format: str, log_level: str, log_addresses: str,
    pull_logs: tuple[str, ...], every: str, operator: str, contact: str, public_url: str, about: Path | None,
) -> Operating:
    """What these options ask for. Logging is as they say from here on, and the metrics' address is taken.

    Raises:
        UsageError: ``BadListen``, ``BadInterval``, ``BadSource``, ``BadAddress``, ``BadAbout``, ``VerifierDirectory``.
        StoreError: the text cannot be read.
    """
    seconds = parse_interval(every)
    if pull_logs and replaying:
        raise UsageError("VerifierDirectory", "a verifier follows no lists: start it without --pull-logs")
    for source in pull_logs:
        if "://" in source and not source.startswith("https://"):
            raise UsageError("BadSource", f"{source}: a list is read from an https URL or from a file")
    said = Said(
        operator=_line("--operator", operator), contact=_line("--contact", contact), url=_url(public_url),
        text="" if about is None else _text(about), pulled=pull_logs, cadence=f"every {format_interval(seconds)}",
    )
    return Operating(
        metrics=make_watching(metrics_listen, log_format, log_level),
        addresses=log_addresses, level=log_level, said=said, notifier=Notifier.from_environment(),
        puller=Puller(directory, pull_logs, seconds) if pull_logs else None,
    )


def _line(option: str, text: str) -> str:
    if len(text) > LINE_CHARACTERS or not text.isprintable():
        raise UsageError("BadAbout", f"{option} is more than a line of {LINE_CHARACTERS} characters")
    return text


def _url(text: str) -> str:
    if not text:
        return ""
    try:
        return str(parse_https_url(f"{text.rstrip('/')}/")).rstrip("/")
    except EncodingError as error:
        raise UsageError("BadAddress", f"{text!a} is no https URL: {error.message}") from None


def _text(path: Path) -> str:
    data = durable.read_file(path)
    if data is None:
        raise StoreError("MissingStore", f"{path}: no such file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if len(data) > TEXT_BYTES or not all(one.isprintable() or one in "\n\t" for one in text):
        raise UsageError("BadAbout", f"{path} is not plain UTF-8 text of at most {TEXT_BYTES} bytes")
    return text
