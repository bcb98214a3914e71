"""``ktlog-witness``: make a witness, tell it which logs to follow, run it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ktlog import __version__
from ktlog.durable import read_seed_file
from ktlog.errors import EncodingError, KtlogError, UsageError
from ktlog.keymap.output import map_origin
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Vkey, parse_vkey
from ktlog.tlog.tree import EMPTY_ROOT
from ktlog.wire.actor_id import parse_https_url
from witness.config import SEED_BYTES, WitnessDir
from witness.decide import LOG_KEY_ALGORITHMS
from witness.keys import derive_signers, write_keys
from witness.replays import ReplayStore
from witness.store import Log, WitnessStore

_ALGORITHM_NAMES = {ED25519: "Ed25519", COSIGNATURE_MLDSA44: "ML-DSA-44"}

EXIT_CODES = """\b
Exit codes: 0 done; 2 the command asks for the impossible; 5 something does
not parse; 8 the witness directory contradicts the command, or is damaged.
"""


def _reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a KtlogError into its message (JSON under --json) and its exit code."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KtlogError as error:
            if options.get("as_json"):
                click.echo(json.dumps({"error": error.as_dict()}))
            click.echo(f"ktlog-witness: {error.diagnostics()}", err=True)
            sys.exit(error.exit_code)

    return run


_dir_option = click.option(
    "--dir", "directory", required=True, metavar="DIR", envvar="KTLOG_WITNESS_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The witness directory. [env: KTLOG_WITNESS_DIR]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ktlog-witness")
def main() -> None:
    """A transparency-log witness (C2SP tlog-witness v1.1).

    A witness cosigns a log's checkpoints as long as each extends the one before, so that nobody
    can be shown a different history. From nothing to running:

    \b
      ktlog-witness init --dir D --name example.com/w1
      ktlog-witness add-log --dir D VKEY
      ktlog-witness serve --dir D --listen 127.0.0.1:7380

    With --replay the two last make a verifier: it cosigns a log's directory map, and only what it has
    derived from the log's entries itself.
    """


@main.command(epilog=EXIT_CODES)
@_dir_option
@click.option("--name", required=True, help="The witness's key name: a URL without scheme, for ever.")
@click.option(
    "--seed-file", type=click.Path(dir_okay=False, path_type=Path),
    help="Derive the keys from this file: 32 bytes in hex. Without it the keys are random.",
)
@_json_option
@_reporting
def init(directory: Path, name: str, seed_file: Path | None, as_json: bool) -> None:
    """Make a new witness: its keys and its empty record.

    Refuses a directory that holds anything. Prints the two vkeys, Ed25519 (04) and ML-DSA-44
    (06), to hand to whoever should trust this witness. Keep DIR on a disk that will not lose
    it, and never run two copies of it: a witness that forgets could cosign a second history.
    """
    root_seed = os.urandom(SEED_BYTES) if seed_file is None else read_seed_file(seed_file)
    vkeys = [signer.vkey for signer in derive_signers(root_seed, name)]
    paths = WitnessDir(directory)
    paths.make()
    write_keys(paths, root_seed, name)
    WitnessStore.create(paths.database, name, vkeys, int(time.time())).close()
    if as_json:
        _print_json({"dir": str(directory), "name": name, "vkeys": [str(vkey) for vkey in vkeys]})
        return
    click.echo(f"Made the witness {name} in {directory}. Its vkeys:")
    for vkey in vkeys:
        click.echo(str(vkey))


@main.command()
@_dir_option
@_json_option
@_reporting
def vkeys(directory: Path, as_json: bool) -> None:
    """Print the vkeys of this witness or verifier: what others put into their policies."""
    store = _open(directory, read_only=True)
    store.close()
    if as_json:
        _print_json({"name": store.name, "vkeys": list(store.vkeys)})
        return
    for vkey in store.vkeys:
        click.echo(vkey)


@main.command("add-log", epilog=EXIT_CODES)
@_dir_option
@click.argument("vkeys", metavar="VKEY...", nargs=-1, required=True)
@click.option("--origin", help="The log's origin line, where it differs from the key name.")
@click.option(
    "--replay", "url", metavar="URL",
    help="Make this a verifier, which reads the log at URL and derives its map. The VKEYs are the log's and its map's.",
)
@_json_option
@_reporting
def add_log(directory: Path, vkeys: Sequence[str], origin: str | None, url: str | None, as_json: bool) -> None:
    """Follow a log, trusting it under each VKEY (type 01 Ed25519, or 06 ML-DSA-44).

    Run it again to trust a further key of the same origin; adding what is there already changes
    nothing. It takes effect at once, also while the witness is being served. A log or a key
    cannot be removed: added again later, it would start without its record.

    With --replay give at least one key named ORIGIN and one named ORIGIN/map. A verifier replays logs
    and witnesses none, so its directory is one of its own; it must be restarted to see a new log or URL.
    """
    keys = [_parse_log_key(vkey) for vkey in vkeys]
    if url is not None:
        _add_replay(directory, keys, origin, url, as_json)
        return
    names = sorted({key.name for key in keys})
    if origin is None and len(names) > 1:
        raise UsageError(
            "ManyNames", f"the keys are those of {len(names)} logs: {', '.join(names)}",
            hint="Give the keys of one log at a time: run this command once for each name. (ORIGIN and ORIGIN/map are"
                 " two logs.)",
        )
    origin = _check_origin(names[0] if origin is None else origin)
    store = _open(directory, beside_daemon=True)
    try:
        _check_not_own(store, keys)
        if ReplayStore(store).replays():
            raise UsageError(
                "VerifierDirectory", "this directory holds a verifier, which signs only for logs that it replays",
                hint="Add the log with --replay, or to the directory of a witness.",
            )
        added = store.add_log(origin, keys, int(time.time()))
        log = store.log(origin)
    finally:
        store.close()
    if log is None:
        raise AssertionError("a log that was just added is not there")
    if as_json:
        _print_json({"added": [str(key) for key in added], **_describe(log)})
        return
    if not added:
        click.echo(f"{origin}: nothing new, this witness follows it under that key already")
    for key in added:
        click.echo(f"{origin}: trusts {_short(key)}")


def _add_replay(directory: Path, keys: Sequence[Vkey], origin: str | None, url: str, as_json: bool) -> None:
    names = {key.name for key in keys}
    inputs = sorted(names - {map_origin(name) for name in names})
    if len(inputs) != 1 or names != {inputs[0], map_origin(inputs[0])} or origin not in (None, inputs[0]):
        raise UsageError(
            "NotOneLog", f"the keys are named {', '.join(sorted(names))}; a log and its map are ORIGIN and ORIGIN/map",
            hint="Give at least one key of each, as `ktlog init` prints them.",
        )
    (name,) = inputs
    try:
        base = str(parse_https_url(f"{url.rstrip('/')}/")).rstrip("/")
    except EncodingError as error:
        raise UsageError("BadAddress", f"{url!r} is no https URL: {error.message}") from None
    if "?" in base:
        raise UsageError("BadAddress", f"{url!r} has a query; the log's files lie under it as under a directory")
    store = _open(directory, beside_daemon=True)
    try:
        _check_not_own(store, keys)
        by_name = {one: [key for key in keys if key.name == one] for one in sorted(names)}
        added = ReplayStore(store).add_replay(_check_origin(name), base, by_name, int(time.time()))
    finally:
        store.close()
    if as_json:
        _print_json({"origin": name, "map": map_origin(name), "url": base, "added": [str(key) for key in added]})
        return
    click.echo(f"{name}: replayed from {base}")
    for key in added:
        click.echo(f"  trusts {_short(key)}")


def _check_not_own(store: WitnessStore, keys: Sequence[Vkey]) -> None:
    own = {parse_vkey(vkey).public_key for vkey in store.vkeys}
    if any(key.public_key in own for key in keys):
        raise UsageError("OwnKey", "a witness cannot follow a log that signs with the witness's own key")


@main.command("list-logs", epilog=EXIT_CODES)
@_dir_option
@_json_option
@_reporting
def list_logs(directory: Path, as_json: bool) -> None:
    """List the logs followed, their keys, and the latest checkpoint cosigned for each."""
    store = _open(directory, read_only=True)
    try:
        logs = store.logs()
        evidence = store.count_evidence()
        replays = ReplayStore(store)
        replayed = {replay.origin: replay.url for replay in replays.replays()}
        verdicts = {log.origin: replays.verdict(log.origin) for log in logs} if replayed else {}
    finally:
        store.close()
    wrong = {origin: f"{verdict.name}: {verdict.message}" for origin, verdict in verdicts.items() if verdict}
    if as_json:
        members = {"name": store.name, "logs": [_describe(log) for log in logs], "evidence": evidence}
        _print_json({**members, "replayed": replayed, "wrong": wrong} if replayed else members)
        return
    for log in logs:
        click.echo(log.origin)
        if log.origin in wrong:
            click.echo(f"  WRONG, and never cosigned again: {wrong[log.origin]}")
        if log.origin in replayed:
            click.echo(f"  replayed from {replayed[log.origin]}")
        elif log.latest is None:
            click.echo("  never cosigned")
        else:
            latest = log.latest
            when = datetime.fromtimestamp(latest.time, UTC).isoformat().replace("+00:00", "Z")
            root = encode_base64(latest.checkpoint.root)
            click.echo(f"  size {latest.checkpoint.size}, root {root}, cosigned {when}")
        for key in log.vkeys:
            click.echo(f"  trusts {_short(key)}")
    if not logs:
        click.echo("No logs. Add one: ktlog-witness add-log --dir DIR VKEY")
    if evidence:
        click.echo(f"Evidence of forks on record: {evidence}")


@main.command(epilog=EXIT_CODES)
@_dir_option
@click.option(
    "--listen", default="127.0.0.1:7380", show_default=True, metavar="HOST:PORT",
    envvar="KTLOG_WITNESS_LISTEN",
    help="Where to serve HTTP; port 0 takes a free one, fd://N an inherited socket. [env: KTLOG_WITNESS_LISTEN]",
)
@click.option("--replay", is_flag=True, help="As a verifier: replay the logs that were added with --replay.")
@_reporting
def serve(directory: Path, listen: str, replay: bool) -> None:
    """Run the witness, or with --replay the verifier, until SIGTERM or SIGINT.

    It speaks plain HTTP: put TLS in front of it. Only one may run on a directory. A missing
    database is refused and never made anew.

    \b
      POST /add-checkpoint                 submissions
      GET  /<sha256 of origin>/checkpoint  the latest cosigned checkpoint, for monitors
      GET  /                               about, with the vkeys
      GET  /replays                        of a verifier: how far each log was followed
      GET  /livez, /readyz                 for supervisors
    """
    from witness import web

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    web.serve(WitnessDir(directory), listen, on_ready=_announce, replaying=replay)


def _announce(name: str, address: str) -> None:
    click.echo(f"{name} listens on http://{address}")
    sys.stdout.flush()


def _open(directory: Path, **options: bool) -> WitnessStore:
    paths = WitnessDir(directory)
    paths.check()
    return WitnessStore.open(paths.database, **options)


def _parse_log_key(text: str) -> Vkey:
    vkey = parse_vkey(text)
    if vkey.algorithm not in LOG_KEY_ALGORITHMS:
        raise UsageError(
            "NotALogKey", f"{_short(vkey)} makes cosignatures (type {vkey.algorithm:02x}); "
            "a log signs with type 01 or 06",
        )
    return vkey


def _check_origin(origin: str) -> str:
    try:
        format_checkpoint(Checkpoint(origin, 0, EMPTY_ROOT))
    except EncodingError as error:
        raise UsageError("BadOrigin", f"{origin!r} cannot be an origin line: {error.message}") from error
    return origin


def _short(vkey: Vkey) -> str:
    kind = _ALGORITHM_NAMES.get(vkey.algorithm, f"type {vkey.algorithm:02x}")
    return f"{vkey.name}+{vkey.key_id.hex()} ({kind})"


def _describe(log: Log) -> dict[str, Any]:
    latest = log.latest
    return {
        "origin": log.origin,
        "vkeys": [str(vkey) for vkey in log.vkeys],
        "size": None if latest is None else latest.checkpoint.size,
        "root": None if latest is None else encode_base64(latest.checkpoint.root),
        "time": None if latest is None else latest.time,
        "monitoring_path": f"/{log.origin_hash}/checkpoint",
    }


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
