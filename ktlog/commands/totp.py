"""``ktlog submit totp-…``: an instance's TOTP secret at a log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from ktlog.client import totp
from ktlog.client.keyfile import SigningKey, load_key
from ktlog.client.page import parse_encapsulation_key
from ktlog.client.terms import fetch_body
from ktlog.commands.delivery import FILE, Delivery, asks, sign_with
from ktlog.durable import read_secret, write_secret
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.pkd.totp import decode_secret, encode_secret
from ktlog.wire.actor_id import actor_domain, parse_https_url

SECRET_FILE_BYTES = 53  # 52 characters of base32 and a newline

key_id_option = click.option(
    "--key-id", metavar="ID", help="What the log calls that key.  [default: the log is asked]"
)
uri_option = click.option("--show-uri", is_flag=True, help="Print the secret as an otpauth: URI, for a QR code.")
old_options = (
    click.option("--otp", metavar="DIGITS", help="The one-time password that an app shows now."),
    click.option("--secret-file", type=FILE, metavar="FILE", help="The secret itself: makes the password."),
)


def load_secret(path: Path) -> bytes:
    """The 32 bytes of a secret that :func:`save_secret` wrote.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret".
    """
    text = read_secret(path, SECRET_FILE_BYTES)
    try:
        return decode_secret(text.removesuffix(b"\n"))
    except EncodingError as error:
        raise StoreError("BadSecret", f"{path}: {error.message}") from None


def save_secret(path: Path, secret: bytes) -> None:
    """Write a secret as base32, mode 0600. Raises StoreError: "SecretExists" rather than replace one."""
    write_secret(path, encode_secret(secret).encode("ascii") + b"\n")


def _new_secret(path: Path) -> bytes:
    """The secret in *path*, made and stored there before anybody else hears of it."""
    if not path.exists():
        save_secret(path, totp.new_secret(os.urandom))
    return load_secret(path)


def _old_password(otp: str | None, path: Path | None) -> Callable[[int], str]:
    """Gives the password for a time: the one that was typed, or one made from the secret in *path*."""
    if otp is not None and path is None:
        return lambda now: otp
    if otp is None and path is not None:
        secret = load_secret(path)
        return lambda now: totp.password(secret, now)
    raise UsageError("BadOptions", "give either --otp DIGITS or --secret-file FILE")


def _key_id(delivery: Delivery, key: SigningKey, given: str | None) -> str:
    if given is not None:
        return given
    page = fetch_body(delivery.fetcher, delivery.log_url, f"/api/actor/{quote(delivery.actor_id, safe='')}/keys")
    return totp.key_id_of(page, key.public_key)


def _encapsulation_key(delivery: Delivery) -> bytes:
    return parse_encapsulation_key(fetch_body(delivery.fetcher, delivery.log_url, "/api/server-public-key"))


def _report(delivery: Delivery, answer: dict[str, Any], words: str, shown: bytes | None = None) -> None:
    delivery.report(answer, words)
    if shown is not None:
        log = parse_https_url(f"{delivery.log_url}/").host
        click.echo(totp.otpauth_uri(shown, log, actor_domain(delivery.actor_id)), err=delivery.as_json)


@click.command("totp-enroll")
@asks
@sign_with
@key_id_option
@click.option("--secret-file", type=FILE, required=True, metavar="FILE",
              help="The secret in base32; made if there is no such file.")
@uri_option
def enroll(
    delivery: Delivery, sign_with: Path, key_id: str | None, secret_file: Path, show_uri: bool
) -> None:
    """Have the log ask your instance for a one-time password with every BurnDown.

    Keep the secret off the instance's machines: it protects against whoever controls those. A password is good
    once, and the log takes another from the next half minute on.
    """
    key = load_key(sign_with)
    name, encapsulation_key = _key_id(delivery, key, key_id), _encapsulation_key(delivery)
    secret, now = _new_secret(secret_file), int(time.time())
    body = totp.enroll(delivery.actor_id, name, key, secret, encapsulation_key, now=now)
    answer = delivery.post("/api/totp/enroll", body, now)
    words = f"enrolled: the log wants one-time passwords of {actor_domain(delivery.actor_id)}; secret in {secret_file}"
    _report(delivery, answer, words, secret if show_uri else None)


@click.command("totp-rotate")
@asks
@sign_with
@key_id_option
@old_options[0]
@old_options[1]
@click.option("--new-secret-file", type=FILE, required=True, metavar="FILE",
              help="The new secret in base32; made if there is no such file.")
@uri_option
def rotate(
    delivery: Delivery, sign_with: Path, key_id: str | None, otp: str | None, secret_file: Path | None,
    new_secret_file: Path, show_uri: bool,
) -> None:
    """Replace your instance's secret; a password of the old one allows it."""
    key, old_password = load_key(sign_with), _old_password(otp, secret_file)
    name, encapsulation_key = _key_id(delivery, key, key_id), _encapsulation_key(delivery)
    secret, now = _new_secret(new_secret_file), int(time.time())
    body = totp.rotate(delivery.actor_id, name, key, secret, old_password(now), encapsulation_key, now=now)
    answer = delivery.post("/api/totp/rotate", body, now)
    words = f"rotated: the secret of {actor_domain(delivery.actor_id)} is now the one in {new_secret_file}"
    _report(delivery, answer, words, secret if show_uri else None)


@click.command("totp-disenroll")
@asks
@sign_with
@key_id_option
@old_options[0]
@old_options[1]
def disenroll(
    delivery: Delivery, sign_with: Path, key_id: str | None, otp: str | None, secret_file: Path | None
) -> None:
    """Remove your instance's secret: its BurnDowns need no password any more."""
    key, old_password = load_key(sign_with), _old_password(otp, secret_file)
    name, now = _key_id(delivery, key, key_id), int(time.time())
    body = totp.disenroll(delivery.actor_id, name, key, old_password(now), now=now)
    answer = delivery.post("/api/totp/disenroll", body, now)
    _report(delivery, answer, f"removed: {actor_domain(delivery.actor_id)} needs no one-time passwords any more")


COMMANDS = (enroll, rotate, disenroll)
