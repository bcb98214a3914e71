"""``ktlog policy``: the policy of a log, and those that it gives to others."""

from __future__ import annotations

from pathlib import Path

import click

from ktlog.config import load_settings
from ktlog.durable import write_atomic
from ktlog.errors import StoreError
from ktlog.operator.create import load_public_keys
from ktlog.operator.firsthour import too_few
from ktlog.operator.policies import for_auditors, for_clients, make_policy, parse_vkeys
from ktlog.operator.service import check_publish_policy, load_publish_policy
from ktlog.tlog.policy import format_policy

_directory = click.option(
    "--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
    help="The log's directory, made by `ktlog init`.",
)


@click.group("policy", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Say who must cosign a log, and what to give to those who read it."""


@command.command()
@_directory
@click.option("--witness", "witnesses", multiple=True, metavar="'VKEY VKEY'",
              help="A witness: what `ktlog-witness vkeys` prints for it, in quotes. Once for each; more than half of"
                   " them must cosign.")
@click.option("--verifier", "verifiers", multiple=True, metavar="'VKEY VKEY'",
              help="The same for a verifier of the map; one of them must cosign it.")
@click.option("--replace", is_flag=True, help="Put it in the place of the policy that is there.")
def make(directory: Path, witnesses: tuple[str, ...], verifiers: tuple[str, ...], replace: bool) -> None:
    """Write DIR/publish.policy from the vkeys that witnesses and verifiers sent you.

    Each is asked at https:// and its name. The file is a tlog-policy: edit it where you know better.
    """
    settings = load_settings(directory)
    policy = make_policy([parse_vkeys(text) for text in witnesses], [parse_vkeys(text) for text in verifiers])
    path = settings.publish_policy
    if path.exists() and not replace:
        raise StoreError("PolicyExists", f"{path} is there already", hint="--replace puts the new one in its place.")
    write_atomic(path, format_policy(check_publish_policy(policy, settings)), mode=0o644)
    needed = policy.groups["witnesses"].threshold
    words = f"{needed} of {len(witnesses)} witnesses"
    words += f" and 1 of {len(verifiers)} verifiers" if verifiers else "; without verifiers no answer is complete"
    click.echo(f"{path}: {words}. A log that runs reads it when it is started again.")
    if few := too_few(policy):
        click.echo(few, err=True)


@command.command()
@_directory
@click.option("--for", "whom", type=click.Choice(["clients", "auditors"]), default="clients", show_default=True,
              help="Auditors and mirrors read the entries and follow the map; clients believe it.")
def show(directory: Path, whom: str) -> None:
    """Print the policy that others need to believe this log, with its publish policy's cosigners.

    Whoever chooses cosigners of their own believes more: it is theirs to change.
    """
    settings = load_settings(directory)
    made = {"clients": for_clients, "auditors": for_auditors}[whom]
    policy = made(load_publish_policy(settings), settings.origin, load_public_keys(settings))
    click.echo(format_policy(policy).decode("utf-8", "surrogateescape"), nl=False)
