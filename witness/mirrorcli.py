"""The commands of ``ktlog-witness`` that make, run and feed a mirror."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from ktlog import durable
from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import UsageError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import format_signature_line, parse_vkey
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries
from witness.clikit import EXIT_CODES, dir_option, json_option, open_store, print_json, reporting
from witness.config import SEED_BYTES, WitnessDir
from witness.mark import write_mark
from witness.mirrorclient import public_tree, upload
from witness.mirrordir import MirrorDir, check_apart, derive_mirror_signers, write_mirror_keys
from witness.mirrorfiles import MirrorFiles
from witness.mirrorstore import MirrorStore
from witness.mirrorwire import Mirrored
from witness.replays import ReplayStore
from witness.serveoptions import make_watching, watching_options
from witness.store import hash_origin

DEFAULT_MAX_BYTES = 16 * 1024**3

#: For one request: a mirror takes some seconds over one of 32 packages.
FETCH_SECONDS = 60.0

mark_option = click.option(
    "--mark", metavar="FILE", envvar="KTLOG_MIRROR_MARK", type=click.Path(dir_okay=False, path_type=Path),
    help="Where the mirror's high-water mark is, best on another disk; else in DIR/mirror. [env: KTLOG_MIRROR_MARK]",
)


@click.command("init-mirror", epilog=EXIT_CODES)
@dir_option
@click.option("--name", required=True, help="The mirror's key name: a URL without scheme, for ever. Not the witness's.")
@click.option(
    "--seed-file", type=click.Path(dir_okay=False, path_type=Path),
    help="Derive the keys from this file: 32 bytes in hex. Without it the keys are random.",
)
@json_option
@reporting
def init_mirror(directory: Path, name: str, seed_file: Path | None, as_json: bool) -> None:
    """Make this witness a mirror too: another cosigner, which holds every entry of the logs that it signs for.

    It has keys of its own, whose vkeys are printed. Then say which logs are mirrored (mirror-log), and run it beside
    the witness, as a process of its own: serve-mirror.
    """
    root_seed = os.urandom(SEED_BYTES) if seed_file is None else durable.read_seed_file(seed_file)
    vkeys = [signer.vkey for signer in derive_mirror_signers(root_seed, name)]
    store = open_store(directory, read_only=True)
    try:
        if ReplayStore(store).replays():
            raise UsageError("VerifierDirectory", "this directory holds a verifier, which mirrors no log")
        check_apart(name, {str(vkey) for vkey in vkeys}, store.name, set(store.vkeys))
        if any(name in (log.origin, *(vkey.name for vkey in log.vkeys)) for log in store.logs()):
            raise UsageError("OwnKey", f"{name} is a log that is followed here; a mirror has a name of its own")
    finally:
        store.close()
    paths = MirrorDir(WitnessDir(directory))
    made = paths.begin()
    write_mirror_keys(made, root_seed, name)
    MirrorStore.create(made.database, name, vkeys, int(time.time()))
    paths.finish(made)
    if as_json:
        print_json({"dir": str(directory), "name": name, "vkeys": [str(vkey) for vkey in vkeys]})
        return
    click.echo(f"Made the mirror {name} in {paths.path}. Its vkeys:")
    for vkey in vkeys:
        click.echo(str(vkey))


@click.command("mirror-log", epilog=EXIT_CODES)
@dir_option
@click.argument("origin", metavar="ORIGIN")
@click.option("--max-bytes", type=click.IntRange(1), default=None,
              help="How much of the disk it may have; 16 GiB unless said otherwise, or as before.")
@json_option
@reporting
def mirror_log(directory: Path, origin: str, max_bytes: int | None, as_json: bool) -> None:
    """Mirror a log that this witness follows (add-log), for good. It takes effect at once.

    The log, or anybody else, then uploads its entries. Run it again to change --max-bytes.
    """
    witness_store = open_store(directory, read_only=True)
    try:
        log = witness_store.log(origin)
    finally:
        witness_store.close()
    if log is None:
        raise UsageError("UnknownOrigin", f"this witness does not follow {origin}",
                         hint="Add the log first: ktlog-witness add-log --dir DIR VKEY")
    store = _open_mirror(directory, beside_daemon=True)
    try:
        own = {parse_vkey(vkey).public_key for vkey in store.vkeys}
        if store.name == origin or any(vkey.public_key in own for vkey in log.vkeys):
            raise UsageError("OwnKey", "a mirror cannot mirror a log that has the mirror's own name or key")
        known = store.log(origin)
        room = max_bytes or (DEFAULT_MAX_BYTES if known is None else known.max_bytes)
        is_new = store.add_log(origin, room, int(time.time()))
    finally:
        store.close()
    if as_json:
        print_json({"origin": origin, "added": is_new, "max_bytes": room, "monitoring_path": _path(origin)})
        return
    click.echo(f"{origin}: mirrored, up to {room} bytes, at {_path(origin)}")


@click.command("list-mirrored", epilog=EXIT_CODES)
@dir_option
@json_option
@reporting
def list_mirrored(directory: Path, as_json: bool) -> None:
    """List the mirror's vkeys, and of each log what is held of it."""
    store = _open_mirror(directory, read_only=True)
    try:
        logs = store.logs()
    finally:
        store.close()
    if as_json:
        print_json({"name": store.name, "vkeys": list(store.vkeys), "logs": [_describe(log) for log in logs]})
        return
    click.echo(store.name)
    for vkey in store.vkeys:
        click.echo(f"  {vkey}")
    for log in logs:
        told = _describe(log)
        cosigned = "never cosigned" if told["size"] is None else f"cosigned at size {told['size']}"
        pending = "nothing pending" if told["pending"] is None else f"pending {told['pending']}"
        click.echo(f"{log.origin}: {cosigned}, {pending}, holds {count_entries(log.next_entry)},"
                   f" {log.stored_bytes} of {log.max_bytes} bytes")
    if not logs:
        click.echo("No logs. Say which: ktlog-witness mirror-log --dir DIR ORIGIN")


@click.command("set-mirror-mark", epilog=EXIT_CODES)
@dir_option
@mark_option
@click.option("--record-is-the-newest", "sure", is_flag=True, required=True,
              help="Say that mirror.db is no copy, restored or otherwise, of an earlier time.")
@json_option
@reporting
def set_mirror_mark(directory: Path, mark: Path | None, sure: bool, as_json: bool) -> None:
    """Write the mirror's high-water mark anew, from its record as it is now. See set-mark, which is the witness's."""
    if not sure:
        raise UsageError("NotSaid", "say --record-is-the-newest, if you know it")
    paths = MirrorDir(WitnessDir(directory))
    paths.check()
    place = paths.mark if mark is None else mark
    with durable.FileLock(paths.lock):
        store = _open_mirror(directory)
        try:
            recorded = store.count_writes()
            write_mark(place, store.vkeys, recorded)
        finally:
            store.close()
    if as_json:
        print_json({"mark": str(place), "writes": recorded})
        return
    click.echo(f"{place} says that the record counts {recorded} writes")


@click.command("serve-mirror", epilog=EXIT_CODES)
@dir_option
@click.option(
    "--listen", default="127.0.0.1:7381", show_default=True, metavar="HOST:PORT", envvar="KTLOG_MIRROR_LISTEN",
    help="Where to serve HTTP; port 0 takes a free one, fd://N an inherited socket. [env: KTLOG_MIRROR_LISTEN]",
)
@mark_option
@watching_options("KTLOG_MIRROR_")
@reporting
def serve_mirror(
    directory: Path, listen: str, mark: Path | None, metrics_listen: str, log_format: str, log_level: str,
    log_addresses: str,
) -> None:
    """Run the mirror until SIGTERM or SIGINT, whether the witness runs or not.

    It speaks plain HTTP: put TLS in front of it, at another address than the witness's, by host or by path.

    \b
      POST /add-checkpoint                 set the pending checkpoint
      POST /add-entries                    upload entries
      POST /sign-subtree                   signatures of parts of mirrored trees
      GET  /<sha256 of origin>/checkpoint  the mirror checkpoint
      GET  /<sha256 of origin>/tile/...    its tiles and entry bundles
      GET  /                               about, with the vkeys
      GET  /livez, /readyz                 for supervisors
    """
    from witness import mirrorweb
    from witness.mirrorrunning import MirrorOperating

    def announce(name: str, address: str) -> None:
        click.echo(f"{name} listens on http://{address}")
        sys.stdout.flush()

    operating = MirrorOperating(make_watching(metrics_listen, log_format, log_level), log_addresses, log_level)
    mirrorweb.serve(WitnessDir(directory), listen, on_ready=announce, mark=mark, operating=operating)


@click.command("check-mirror", epilog=EXIT_CODES)
@dir_option
@json_option
@reporting
def check_mirror(directory: Path, as_json: bool) -> None:
    """Read all that is mirrored, and hold it against the checkpoints that were cosigned. Changes nothing.

    Also while the mirror is being served. Ends with exit code 8 at the first log whose files are not as they were.
    """
    store = _open_mirror(directory, read_only=True)
    try:
        logs = [(log.origin, log.latest.checkpoint) for log in store.logs() if log.latest is not None]
    finally:
        store.close()
    for origin, checkpoint in logs:
        MirrorFiles(MirrorDir(WitnessDir(directory)).logs, hash_origin(origin)).check_all(checkpoint)
        if not as_json:
            click.echo(f"{origin}: {count_entries(checkpoint.size)}, as they were logged")
    if as_json:
        print_json({"checked": {origin: checkpoint.size for origin, checkpoint in logs}})


@click.command("push-mirror", epilog=EXIT_CODES)
@click.argument("log_url", metavar="LOG_URL")
@click.argument("mirror_url", metavar="MIRROR_URL")
@json_option
@reporting
def push_mirror(log_url: str, mirror_url: str, as_json: bool) -> None:
    """Bring a mirror up to date with what is served at LOG_URL (tlog-tiles: a log, or another mirror of it).

    Prints the mirror's cosignatures, as signature lines that were not verified. It can be cut short at any time, and
    run again; logs that upload by themselves need none of it.
    """
    with Fetcher.from_environment(timeout=FETCH_SECONDS) as fetcher:
        files = PublicFiles(fetcher, log_url.rstrip("/"))
        note = files.checkpoint()
        checkpoint = parse_signed_checkpoint(note)[1]
        lines = upload(
            lambda endpoint, body, fields: fetcher.post(f"{mirror_url.rstrip('/')}/{endpoint}", body, fields),
            public_tree(files, checkpoint), note,
        )
    text = b"".join(format_signature_line(line) for line in lines).decode("utf-8")
    if as_json:
        print_json({"origin": checkpoint.origin, "size": checkpoint.size, "cosignatures": text})
        return
    click.echo(text, nl=False)


COMMANDS = (init_mirror, mirror_log, list_mirrored, serve_mirror, check_mirror, push_mirror, set_mirror_mark)


def _open_mirror(directory: Path, **options: bool) -> MirrorStore:
    WitnessDir(directory).check()
    paths = MirrorDir(WitnessDir(directory))
    paths.check()
    return MirrorStore.open(paths.database, **options)


def _path(origin: str) -> str:
    return f"/{hash_origin(origin)}/"


def _describe(log: Mirrored) -> dict[str, object]:
    latest = log.latest
    return {
        "origin": log.origin, "pending": None if log.pending is None else log.pending.checkpoint.size,
        "next_entry": log.next_entry, "size": None if latest is None else latest.checkpoint.size,
        "root": None if latest is None else encode_base64(latest.checkpoint.root),
        "time": None if latest is None else latest.time,
        "bytes": log.stored_bytes, "max_bytes": log.max_bytes, "monitoring_path": _path(log.origin),
    }
