"""Options about where keys are and which bastions are dialled, and the command that makes the bastion key."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktlog import durable
from ktlog.errors import UsageError
from ktlog.tlog.note import parse_vkey
from witness.agent import Agent
from witness.clikit import EXIT_CODES, dir_option, json_option, open_store, print_json, reporting
from witness.config import SEED_BYTES, WitnessDir
from witness.keys import BASTION, CREDENTIAL_KINDS, KeySources, parse_credentials, read_seed

if TYPE_CHECKING:
    from witness.bastion import BastionOptions

Command = Callable[..., None]

credential_option = click.option(
    "--credential", "credentials", multiple=True, metavar="KIND=NAME", envvar="KTLOG_WITNESS_CREDENTIAL",
    help=f"The KIND key ({', '.join(CREDENTIAL_KINDS)}) is the systemd credential NAME, and not in DIR. May be given"
    " several times. [env: KTLOG_WITNESS_CREDENTIAL]",
)
agent_option = click.option(
    "--ssh-agent", is_flag=True, envvar="KTLOG_WITNESS_SSH_AGENT",
    help="The Ed25519 key is in the ssh-agent at $SSH_AUTH_SOCK, and not in DIR. [env: KTLOG_WITNESS_SSH_AGENT]",
)
_BASTION_OPTIONS = (
    click.option(
        "--bastion", "bastions", multiple=True, metavar="HOST[:PORT]", envvar="KTLOG_WITNESS_BASTION",
        help="Serve through this https-bastion too, with the key of bastion-key. May be given several times."
        " [env: KTLOG_WITNESS_BASTION]",
    ),
    click.option(
        "--bastion-ca", metavar="FILE", envvar="KTLOG_WITNESS_BASTION_CA",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Trust these certificates (PEM) for bastions, instead of the system's. [env: KTLOG_WITNESS_BASTION_CA]",
    ),
    click.option(
        "--no-listen", is_flag=True, envvar="KTLOG_WITNESS_NO_LISTEN",
        help="Serve through bastions alone. [env: KTLOG_WITNESS_NO_LISTEN]",
    ),
)


def bastion_options(command: Command) -> Command:
    """The options that ``make_bastions`` takes, and ``no_listen``."""
    for option in reversed(_BASTION_OPTIONS):
        command = option(command)
    return command


def make_sources(credentials: Sequence[str], ssh_agent: bool, agent_key: str | None = None) -> KeySources:
    """Where these options say that keys are.

    Raises:
        UsageError: ``BadCredential``, ``NoSshAgent``, ``TwoSources``.
        StoreError: ``AgentUnreachable``.
    """
    named = parse_credentials(credentials, CREDENTIAL_KINDS)
    if agent_key is not None and not ssh_agent:
        raise UsageError("NoSshAgent", "--agent-key names a key of the agent: give --ssh-agent too")
    if ssh_agent and "ed25519" in named:
        raise UsageError("TwoSources", "the Ed25519 key is either in the agent or a credential")
    return KeySources(named, Agent.from_environment() if ssh_agent else None, agent_key)


def make_bastions(
    directory: Path, sources: KeySources, bastions: Sequence[str], ca: Path | None, no_listen: bool
) -> BastionOptions | None:
    """What these options ask for, or None: no bastion is dialled.

    Raises:
        UsageError: ``BadBastion``, ``NoDoor``, ``SharedKey``.
        StoreError: there is no bastion key, or no such certificates.
    """
    if not bastions:
        if no_listen:
            raise UsageError("NoDoor", "with --no-listen and no --bastion nobody could ask this witness anything")
        return None
    from witness.bastion import BastionOptions, parse_bastion, tls_context  # late: only here h2 must be installed

    paths = WitnessDir(directory)
    paths.check()
    if BASTION not in sources.credentials and not paths.key_file(BASTION).exists():
        raise UsageError(
            "NoBastionKey", f"there is no bastion key in {directory}",
            hint=f"Make one: ktlog-witness bastion-key --dir {directory}",
        )
    options = BastionOptions(
        tuple(dict.fromkeys(parse_bastion(text) for text in bastions)), read_seed(paths, BASTION, sources),
        None if ca is None else str(ca),
    )
    _check_apart(directory, options.seed)
    tls_context(options)
    return options


def list_urls(options: BastionOptions | None) -> tuple[str, ...]:
    """Where others reach this witness through its bastions."""
    if options is None:
        return ()
    from witness import bastion

    return bastion.list_urls(options)


def _check_apart(directory: Path, seed: bytes) -> None:
    from witness.bastion import public_key

    store = open_store(directory, read_only=True)
    store.close()
    if public_key(seed) in {parse_vkey(vkey).public_key for vkey in store.vkeys}:
        raise UsageError(
            "SharedKey", "the bastion key is one of the keys that this witness cosigns with",
            hint="Give the bastion key a file or credential of its own.",
        )


@click.command("bastion-key", epilog=EXIT_CODES)
@dir_option
@credential_option
@json_option
@reporting
def bastion_key(directory: Path, credentials: Sequence[str], as_json: bool) -> None:
    """Print by what bastions know this witness, and make the key for it if there is none.

    The key is DIR/bastion.key and signs nothing but TLS handshakes; the witness's own keys are others. The bastion's
    operator needs the hash, and so does everybody who asks this witness: it begins the path,
    https://BASTION/HASH/add-checkpoint.
    """
    from witness.bastion import path_prefix

    paths = WitnessDir(directory)
    paths.check()
    sources = make_sources(credentials, ssh_agent=False)
    made = BASTION not in sources.credentials and not paths.key_file(BASTION).exists()
    if made:
        durable.write_secret(paths.key_file(BASTION), os.urandom(SEED_BYTES))
    prefix = path_prefix(read_seed(paths, BASTION, sources))
    if as_json:
        print_json({"path_prefix": prefix, "made": made})
    else:
        click.echo(prefix)
