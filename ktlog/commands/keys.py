"""``ktlog keys``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from ktlog.config import Settings, load_settings
from ktlog.operator.create import load_public_keys
from ktlog.operator.keylist import ListedKey, list_all
from ktlog.operator.rotate import OVERLAP_SECONDS, read_changes, rotate, settle
from ktlog.pkd.keychanges import KINDS, KeyChange
from ktlog.pkd.keys import encode_public_key
from ktlog.words import count_entries

DAY = 86_400
SHORT = 100
DIRECTORY = click.option(
    "--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
    help="The log's directory.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def command() -> None:
    """Show and replace a log's own keys.

    Every replacement is a line in DIR/keys.jsonl, signed by the old key and by the new, which the log publishes
    at /keys. docs/keys.md says what each key is for, and what to do when one is lost or stolen.
    """


@command.command("list")
@DIRECTORY
@AS_JSON
def list_keys(directory: Path, as_json: bool) -> None:
    """Print every key that the log has or had, and every replacement so far.

    Long keys are shortened; --json has all of each. Of `hpke`, `http` and `fetch` the public half is made from the key
    file, where that is in DIR.
    """
    settings = load_settings(directory)
    public, changes = load_public_keys(settings), read_changes(settings)
    keys = list_all(settings, public, changes)
    if as_json:
        click.echo(json.dumps({
            "vkeys": public.vkeys, "map-vkeys": public.map_vkeys,
            "leaf-keys": [encode_public_key(key) for key in public.leaf_keys],
            "retired-vkeys": public.retired_vkeys, "retired-map-vkeys": public.retired_map_vkeys,
            "keys": [
                {"kind": key.kind, "purpose": key.purpose, "key": key.public, "current": key.until is None,
                 "until": key.until}
                for key in keys
            ],
            "changes": [_summary(change) for change in changes],
        }))
        return
    for key in keys:
        state = "current" if key.until is None else f"old, until {_day(key.until)}"
        click.echo(f"{key.purpose:<19} {state:<22} {_short(key)}")
    if changes:
        click.echo("\nReplaced:")
    for change in changes:
        click.echo(
            f"{_day(change.time)}  {change.kind:<10}  at {count_entries(change.tree_size)}; the old key until"
            f" {_day(change.until)}  {change.reason}"
        )


@command.command("rotate")
@click.argument("kind", type=click.Choice(tuple(KINDS)))
@DIRECTORY
@click.option("--reason", default="", help="Published with the change: 'yearly', or what happened.")
@click.option("--overlap-days", type=click.IntRange(0, 3650),
              help="How long the old key stays in use beside the new one; 0 when it was stolen."
              f" Without it: hpke {OVERLAP_SECONDS['hpke'] // DAY}, checkpoint and map"
              f" {OVERLAP_SECONDS['checkpoint'] // DAY}, the others 0.")
@AS_JSON
def rotate_keys(kind: str, directory: Path, reason: str, overlap_days: int | None, as_json: bool) -> None:
    """Replace the keys of one KIND. The log must be stopped; start it again afterwards.

    A run that was interrupted is finished by the next one, or by `ktlog keys settle`; until then the log
    does not start.
    """
    settings = load_settings(directory)
    overlap = None if overlap_days is None else overlap_days * DAY
    change = rotate(settings, kind, reason, int(time.time()), overlap)
    if as_json:
        click.echo(json.dumps(_summary(change)))
        return
    click.echo(f"{kind}: replaced, and told in {settings.key_changes}. Start the log again.", err=True)
    for line in _advice(settings, change):
        click.echo(line, err=True)


@command.command("settle")
@DIRECTORY
def settle_keys(directory: Path) -> None:
    """Finish a rotation that was interrupted, and destroy old keys whose time is over. The log must be stopped."""
    for done in settle(load_settings(directory), int(time.time())) or ("nothing is to be done",):
        click.echo(done)


def _short(key: ListedKey) -> str:
    """Enough of it to tell it from others: of a vkey its name and key ID, as witnesses list them."""
    if key.public is None:
        return "its file is not in this directory"
    if len(key.public) > SHORT and key.kind in ("checkpoint", "map"):
        name, key_id, _ = key.public.split("+", 2)
        return f"{name}+{key_id}+…"
    if len(key.public) > SHORT and key.kind == "fetch":
        return f"RSA, SHA-256 of its PEM {hashlib.sha256(key.public.encode()).hexdigest()[:32]}…"
    return short_key(key.public)


def short_key(text: str) -> str:
    """Enough of a long key to tell it from others."""
    return text if len(text) <= SHORT else f"{text[:48]}…"


def _summary(change: KeyChange) -> dict[str, object]:
    return {
        "number": change.number, "time": change.time, "tree-size": change.tree_size, "kind": change.kind,
        "until": change.until, "reason": change.reason,
        "keys": [{"purpose": key.purpose, "old": key.old, "new": key.new} for key in change.keys],
    }


def _advice(settings: Settings, change: KeyChange) -> Sequence[str]:
    if change.kind not in ("checkpoint", "map"):
        return ()
    until = f"Until {_day(change.until)} both sign: " if change.until > change.time else "The old ones sign no more: "
    return (
        f"{until}by then every witness and verifier must have the new vkeys:",
        *(f"  {key.new}" for key in change.keys),
        "Witnesses: ktlog-witness add-log --dir W VKEY VKEY. Verifiers: ktlog-witness add-log --dir V --replay"
        f" {settings.url} and all four present vkeys (ktlog keys list --json); they have no policy file.",
        "Clients that look up by themselves find the change at /keys. Policies of auditors, mirrors and for offline"
        " proofs need a second line:",
        f"  log {change.keys[1].new} {settings.url}{'/map' if change.kind == 'map' else ''}",
    )


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
