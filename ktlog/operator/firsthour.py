"""What a log's operator has to do until somebody can believe the log, and the texts that this takes.

``ktlog init`` and ``ktlog next`` print them; ``ktlog serve`` does on a terminal while something is missing, and else in
short. Nothing here asks anybody over the network: ``ktlog doctor`` does.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ktlog.config import WEB, Settings
from ktlog.errors import KtlogError, UsageError
from ktlog.operator.create import load_public_keys
from ktlog.operator.keys import PublicKeys
from ktlog.operator.proxy import Proxied, format_proxy
from ktlog.operator.service import load_publish_policy
from ktlog.operator.stores import open_map_tiles, open_tiles
from ktlog.operator.witnessing import input_policy
from ktlog.tlog.policy import VERIFIERS, Policy

BACKUPS = "/var/backups/ktlog"
_NO_VERIFIER = "A verifier in the policy: without one no client gets proof that an answer is complete."


@dataclass(frozen=True)
class Step:
    """Something that is missing before anybody gets a verified answer; commands: what to type, a line each."""

    what: str
    commands: tuple[str, ...] = ()


def letter(settings: Settings, public: PublicKeys) -> Iterator[tuple[str, str]]:
    """What to send to witnesses and verifiers: lines, each of the kind ``text`` or ``vkey``."""
    yield "text", f"Please cosign the log {settings.origin}. It is, or soon will be, at {settings.url}. Its vkeys:"
    yield from (("vkey", vkey) for vkey in public.vkeys)
    yield "text", "and those of its map's log:"
    yield from (("vkey", vkey) for vkey in public.map_vkeys)
    yield "text", "A witness runs `ktlog-witness add-log --dir W VKEY VKEY` twice, once for each pair; a verifier once:"
    yield "text", f"`ktlog-witness add-log --dir V --replay {settings.url}` and all four."
    yield "text", "Then send us what `ktlog-witness vkeys --dir W` prints. Thank you!"


def addresses(settings: Settings) -> list[tuple[str, str]]:
    """What is where, once the proxy stands: what it is, and its URL."""
    return [
        ("pages for people", f"{settings.url}/") if settings.explorer else ("its terms", f"{settings.url}/api/info"),
        ("its checkpoint", f"{settings.url}/checkpoint"), ("takes messages", settings.actor_id),
    ]


def missing(settings: Settings, *, serving: bool = False) -> list[Step]:
    """What is missing still, as far as it can be seen from here, in the order in which it is done.

    serving: asked by `ktlog serve`, which need not be told to run, and waits for no object store.
    """
    where = _where(settings.directory)
    steps = []
    policy, why = _policy(settings)
    make = make_policy(settings)
    if policy is None and settings.publish_policy.exists():
        steps.append(Step(f"A policy that holds: {why}.", (f"{make} --replace",)))
    elif policy is None:
        steps.append(Step("Two witnesses or more, and a verifier. Send them the letter, and put in what they answer:", (
            f"ktlog next --dir {where} --letter", make,
        )))
    elif VERIFIERS not in policy.groups:
        steps.append(Step(_NO_VERIFIER, (f"{make} --replace",)))
    if serving and settings.objects:
        return steps
    if open_tiles(settings, read_only=True).checkpoint() is None:
        steps.append(Step("A TLS proxy (nginx, caddy or apache):", (
            f"ktlog proxy-config nginx --dir {where} > /etc/nginx/conf.d/ktlog.conf",
        )))
        if not serving:
            steps.append(Step("The log itself, which has published nothing yet:", (f"ktlog serve --dir {where}",)))
    elif open_map_tiles(settings, read_only=True).checkpoint() is None:
        steps.append(Step("Its map: the output of `ktlog serve` says who does not cosign it."))
    return steps


def make_policy(settings: Settings) -> str:
    """The command that writes a policy, but for what witnesses send."""
    where = _where(settings.directory)
    return f"ktlog policy make --dir {where} --witness 'VKEY VKEY' --witness 'VKEY VKEY' --verifier 'VKEY VKEY'"


def without_policy(settings: Settings) -> UsageError:
    """The last word of `ktlog serve` without a policy. It may stand below a page of keys: whole, and in this order."""
    return UsageError(
        "NoPublishPolicy", "`ktlog serve` stops here until it has a policy with witnesses, in"
        f" {settings.publish_policy}: without them nothing is published.",
        hint=f"With what they send you: {make_policy(settings)}\n"
        f"What to send to them, and what else is missing: ktlog next --dir {_where(settings.directory)}\n"
        "Only to look: `ktlog demo` shows a whole log at once, on this machine alone.",
    )


def afterwards(settings: Settings) -> list[Step]:
    """What nobody misses before it is too late, and what readers need."""
    where = _where(settings.directory)
    policy, _why = _policy(settings)
    few = too_few(policy) if policy is not None else ""
    return [
        *([Step(few)] if few else []),
        Step("Is all well, here and as a peer sees it?", (f"ktlog doctor --dir {where}",)),
        Step("What clients need:", (f"ktlog policy show --dir {where} > trust.policy",)),
        Step(
            "A backup each hour, in the crontab of the log's user, or by systemd (`ktlog unit --list`). No backup can"
            " be restored without a mirror: find one.", (f"17 * * * *  {backup_line(settings.directory)}",),
        ),
    ]


def too_few(policy: Policy) -> str:
    """What to say of a policy under which one witness that is down stops the log; else nothing."""
    of_log = input_policy(policy)
    vkeys = [witness.vkey for witness in of_log.witnesses.values()]
    names = {vkey.name for vkey in vkeys}
    if len(names) == 1:
        return "One witness alone: if it is down nothing is published. Take three."
    if any(of_log.satisfied([vkey for vkey in vkeys if vkey.name != name]) for name in names):
        return ""
    return f"Of the {len(names)} witnesses none may be down: else nothing is published. Of three, two are enough."


def describe_start(settings: Settings, steps: list[Step]) -> Iterator[str]:
    """What `ktlog serve` says before anything runs, where nobody reads along; a line each. steps: :func:`missing`."""
    public = load_public_keys(settings)
    for vkeys in (public.vkeys, public.map_vkeys):
        yield "signs as " + ", ".join("+".join(vkey.split("+")[:2]) for vkey in vkeys)
    yield f"answers at {settings.listen}, and as {settings.url} behind its TLS proxy"
    if steps:
        yield from (f"missing: {step.what.removesuffix(':')}" for step in steps)
        yield f"how to do that, and the letter for witnesses: ktlog next --dir {_where(settings.directory)}"


def missing_at_start(settings: Settings) -> list[Step]:
    """:func:`missing` for `ktlog serve`; nothing where that cannot be said, for what is wrong is found soon."""
    try:
        return [] if settings.role == WEB else missing(settings, serving=True)
    except KtlogError:
        return []


def proxy_snippet(settings: Settings) -> Iterator[str]:
    """What nginx must be told, without what explains it."""
    try:
        text = format_proxy("nginx", Proxied(
            settings.origin, str(settings.directory.absolute()), settings.listen, settings.body_limit_bytes,
        ))
    except KtlogError:
        return  # the log listens where only the operator knows: proxy-config --upstream
    yield from (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def backup_line(directory: Path) -> str:
    """The command that a timer runs, which has no PATH that anybody set."""
    return f"{own_command()} backup --dir {_where(directory)} --keep 14 --drop-erased {BACKUPS}"


def own_command() -> str:
    """How `ktlog` is called where no PATH leads to it."""
    script = Path(sys.executable).with_name("ktlog")
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m ktlog"


def _where(directory: Path) -> str:
    return shlex.quote(str(directory.absolute()))


def _policy(settings: Settings) -> tuple[Policy | None, str]:
    try:
        return load_publish_policy(settings), ""
    except KtlogError as error:
        return None, error.message
