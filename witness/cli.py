"""``ktlog-witness``: make a witness, tell it which logs to follow, run it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from ktlog import __version__
from ktlog.durable import file_errors, read_seed_file, write_atomic
from ktlog.errors import EncodingError, UsageError
from ktlog.keymap.output import map_origin
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Vkey, parse_vkey
from ktlog.tlog.tree import EMPTY_ROOT
from ktlog.wire.actor_id import parse_https_url
from ktlog.words import some
from witness import keyoptions, mirrorcli, retire, upkeep
from witness.clikit import EXIT_CODES, dir_option, json_option, mark_option, open_store, print_json, reporting
from witness.config import SEED_BYTES, WitnessDir
from witness.decide import LOG_KEY_ALGORITHMS
from witness.keyoptions import agent_option, bastion_options, credential_option, list_urls, make_bastions, make_sources
from witness.keys import derive_signers, write_keys
from witness.loglist import MAXIMUM_PER_DAY
from witness.replays import Replay, ReplayStore, Verdict
from witness.serveoptions import make_operating, operating_options
from witness.store import Conviction, Log, WitnessStore, hash_origin

_ALGORITHM_NAMES = {ED25519: "Ed25519", COSIGNATURE_MLDSA44: "ML-DSA-44"}


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
@dir_option
@click.option("--name", required=True, help="The witness's key name: a URL without scheme, for ever.")
@click.option(
    "--seed-file", type=click.Path(dir_okay=False, path_type=Path),
    help="Derive the keys from this file: 32 bytes in hex. Without it the keys are random.",
)
@credential_option
@agent_option
@click.option("--agent-key", metavar="FINGERPRINT", help="Which key of the agent, as ssh-add -l shows it.")
@click.option("--ed25519-only", is_flag=True, help="Make no ML-DSA-44 key. This witness then never has one.")
@json_option
@reporting
def init(
    directory: Path, name: str, seed_file: Path | None, credentials: Sequence[str], ssh_agent: bool,
    agent_key: str | None, ed25519_only: bool, as_json: bool,
) -> None:
    """Make a new witness: its keys and its empty record.

    Refuses a directory that holds anything. Prints the two vkeys, Ed25519 (04) and ML-DSA-44
    (06), to hand to whoever should trust this witness. Keep DIR on a disk that will not lose
    it, and never run two copies of it: a witness that forgets could cosign a second history.
    """
    root_seed = os.urandom(SEED_BYTES) if seed_file is None else read_seed_file(seed_file)
    sources = make_sources(credentials, ssh_agent, agent_key)
    vkeys = [signer.vkey for signer in derive_signers(root_seed, name, sources, ed25519_only=ed25519_only)]
    paths = WitnessDir(directory)
    paths.make()
    write_keys(paths, root_seed, name, sources, ed25519_only=ed25519_only)
    WitnessStore.create(paths.database, name, vkeys, int(time.time())).close()
    if as_json:
        print_json({"dir": str(directory), "name": name, "vkeys": [str(vkey) for vkey in vkeys]})
        return
    click.echo(f"Made the witness {name} in {directory}. Its vkeys:")
    for vkey in vkeys:
        click.echo(str(vkey))
    if ssh_agent:
        click.echo("Its Ed25519 key is in the SSH agent: serve it with --ssh-agent.")
    if ed25519_only:
        click.echo("It has no ML-DSA-44 key: it signs no subtrees, and nothing that outlasts quantum computers.")


@main.command()
@dir_option
@json_option
@reporting
def vkeys(directory: Path, as_json: bool) -> None:
    """Print the vkeys of this witness or verifier: what others put into their policies."""
    store = open_store(directory, read_only=True)
    store.close()
    if as_json:
        print_json({"name": store.name, "vkeys": list(store.vkeys)})
        return
    for vkey in store.vkeys:
        click.echo(vkey)


@main.command("add-log", epilog=EXIT_CODES)
@dir_option
@click.argument("vkeys", metavar="VKEY...", nargs=-1, required=True)
@click.option("--origin", help="The log's origin line, where it differs from the key name.")
@click.option(
    "--replay", "url", metavar="URL",
    help="Make this a verifier, which reads the log at URL and derives its map. The VKEYs are the log's and its map's.",
)
@click.option("--qpd", "per_day", type=click.IntRange(1, MAXIMUM_PER_DAY),
              help="How many submissions it may have signed a day. Without it as many as it likes, or as before.")
@click.option("--trust-again", is_flag=True, help="Also a VKEY that was retired; else such a one is refused.")
@json_option
@reporting
def add_log(
    directory: Path, vkeys: Sequence[str], origin: str | None, url: str | None, per_day: int | None, trust_again: bool,
    as_json: bool,
) -> None:
    """Follow a log, trusting it under each VKEY (type 01 Ed25519, or 06 ML-DSA-44).

    Run it again to trust a further key of the same origin; adding what is there already changes
    nothing. It takes effect at once, also while the witness is being served. A log
    cannot be removed: added again later, it would start without its record. A key can be retired (retire-key).

    With --replay give at least one key named ORIGIN and one named ORIGIN/map. A verifier replays logs
    and witnesses none, so its directory is one of its own; it must be restarted to see a new log or URL.
    """
    keys = [_parse_log_key(vkey) for vkey in vkeys]
    if url is not None:
        _add_replay(directory, keys, origin, url, trust_again, as_json)
        return
    names = sorted({key.name for key in keys})
    if origin is None and len(names) > 1:
        raise UsageError(
            "ManyNames", f"the keys are those of {len(names)} logs: {', '.join(names)}",
            hint="Give the keys of one log at a time: run this command once for each name. (ORIGIN and ORIGIN/map are"
                 " two logs.)",
        )
    origin = _check_origin(names[0] if origin is None else origin)
    store = open_store(directory, beside_daemon=True)
    try:
        _check_not_own(store, keys)
        if ReplayStore(store).replays():
            raise UsageError(
                "VerifierDirectory", "this directory holds a verifier, which signs only for logs that it replays",
                hint="Add the log with --replay, or to the directory of a witness.",
            )
        added = store.add_log(origin, keys, int(time.time()), per_day, again=trust_again)
        log = store.log(origin)
    finally:
        store.close()
    if log is None:
        raise AssertionError("a log that was just added is not there")
    if as_json:
        print_json({"added": [str(key) for key in added], **_describe(log)})
        return
    if not added:
        click.echo(f"{origin}: nothing new, this witness follows it under that key already")
    for key in added:
        click.echo(f"{origin}: trusts {_short(key)}")


def _add_replay(
    directory: Path, keys: Sequence[Vkey], origin: str | None, url: str, trust_again: bool, as_json: bool
) -> None:
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
    store = open_store(directory, beside_daemon=True)
    try:
        _check_not_own(store, keys)
        by_name = {one: [key for key in keys if key.name == one] for one in sorted(names)}
        added = ReplayStore(store).add_replay(
            _check_origin(name), base, by_name, int(time.time()), again=trust_again
        )
    finally:
        store.close()
    if as_json:
        print_json({"origin": name, "map": map_origin(name), "url": base, "added": [str(key) for key in added]})
        return
    click.echo(f"{name}: replayed from {base}")
    for key in added:
        click.echo(f"  trusts {_short(key)}")


def _check_not_own(store: WitnessStore, keys: Sequence[Vkey]) -> None:
    own = {parse_vkey(vkey).public_key for vkey in store.vkeys}
    if any(key.public_key in own for key in keys):
        raise UsageError("OwnKey", "a witness cannot follow a log that signs with the witness's own key")


@main.command("list-logs", epilog=EXIT_CODES)
@dir_option
@json_option
@reporting
def list_logs(directory: Path, as_json: bool) -> None:
    """List the logs followed, their keys, and the latest checkpoint cosigned for each."""
    store = open_store(directory, read_only=True)
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
        print_json({**members, "replayed": replayed, "wrong": wrong} if replayed else members)
        return
    for log in logs:
        click.echo(log.origin)
        if log.frozen is not None:
            click.echo(f"  FROZEN since {_when(log.frozen)}: it signed two trees of one size")
        if log.origin in wrong:
            click.echo(f"  WRONG, and never cosigned again: {wrong[log.origin]}")
        if log.origin in replayed:
            click.echo(f"  replayed from {replayed[log.origin]}")
        elif log.latest is None:
            click.echo("  never cosigned")
        else:
            latest = log.latest
            when = _when(latest.time)
            root = encode_base64(latest.checkpoint.root)
            click.echo(f"  size {latest.checkpoint.size}, root {root}, cosigned {when}")
        if log.per_day is not None:
            click.echo(f"  may submit {some(log.per_day, 'time')} a day")
        for key in log.vkeys:
            click.echo(f"  trusts {_short(key)}")
        for key in log.retired:
            click.echo(f"  trusts no more {_short(key)}")
        if not log.vkeys:
            click.echo("  NO KEY is trusted, and nothing signed for it: give it one with add-log")
    if not logs:
        click.echo("No logs. Add one: ktlog-witness add-log --dir DIR VKEY")
    if evidence:
        click.echo(f"Evidence of forks on record: {evidence}")


@main.command(epilog=EXIT_CODES)
@dir_option
@click.option("--save", type=click.Path(file_okay=False, path_type=Path), metavar="TO",
              help="Write each as a file into this directory.")
@json_option
@reporting
def evidence(directory: Path, save: Path | None, as_json: bool) -> None:
    """List the logs that were caught, and the file about each: what it says is for ktlog-auditor verify-evidence.

    A fork convicts its log by the log's public key alone. What a verifier caught may be something else, and has a name;
    its files are in DIR/evidence.
    """
    store = open_store(directory, read_only=True)
    try:
        found = store.convictions()
        caught = ReplayStore(store).verdicts()
    finally:
        store.close()
    told = [_describe_verdict(directory, save, replay, verdict) for replay, verdict in caught]
    paths = [None if save is None else _save_evidence(save, one) for one in found]
    if as_json:
        print_json({"evidence": [
            {"origin": one.origin, "size": one.size, "recorded": one.recorded, "frozen": one.freezes,
             "retired-key": one.retired_key or None, "file": None if path is None else str(path)}
            for one, path in zip(found, paths, strict=True)
        ], "caught": told})
        return
    for one, path in zip(found, paths, strict=True):
        state = "frozen" if one.freezes else "not frozen"
        if one.retired_key:
            state = f"under a key that was retired before ({one.retired_key})"
        click.echo(f"{one.origin}: two roots at size {one.size}, seen {_when(one.recorded)}, {state}")
        if path is not None:
            click.echo(f"  {path}")
    for one in told:
        click.echo(f"{one['origin']}: {one['name']}, caught {_when(one['recorded'])}: {one['message']}")
        click.echo(f"  {one['file'] or 'its file is not there: write it with --save TO'}")
    if not (found or told):
        click.echo("No log was caught.")


def _describe_verdict(directory: Path, save: Path | None, replay: Replay, verdict: Verdict) -> dict[str, Any]:
    """What a verifier found wrong; its file is there already, and with *save* a copy of it."""
    from witness.verifier import evidence_name

    path = WitnessDir(directory).evidence / evidence_name(replay)
    if save is not None:
        with file_errors(save):
            save.mkdir(parents=True, exist_ok=True)
        path = save / path.name
        write_atomic(path, verdict.document, mode=0o644)
    return {
        "origin": replay.origin, "name": verdict.name, "message": verdict.message, "recorded": verdict.recorded,
        "file": str(path) if path.exists() else None,
    }


def _save_evidence(directory: Path, conviction: Conviction) -> Path:
    with file_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    name = f"{hash_origin(conviction.origin)}-{conviction.size}"
    path = directory / f"{name}{conviction.retired_key and '-'}{conviction.retired_key}.json"
    write_atomic(path, conviction.document, mode=0o644)
    return path


@main.command(epilog=EXIT_CODES)
@dir_option
@click.argument("origin", metavar="ORIGIN")
@json_option
@reporting
def unfreeze(directory: Path, origin: str, as_json: bool) -> None:
    """Sign for a log again that was seen to fork. Its evidence stays on record, and is not forgotten by monitors.

    Do it only when its operator has shown how two trees came to be signed, and why it cannot happen again.
    """
    store = open_store(directory, beside_daemon=True)
    try:
        lifted = store.lift_freeze(_check_origin(origin), int(time.time()))
    finally:
        store.close()
    if as_json:
        print_json({"origin": origin, "lifted": lifted})
        return
    click.echo(f"{origin}: signed for again")


@main.command(epilog=EXIT_CODES)
@dir_option
@click.option(
    "--listen", default="127.0.0.1:7380", show_default=True, metavar="HOST:PORT",
    envvar="KTLOG_WITNESS_LISTEN",
    help="Where to serve HTTP; port 0 takes a free one, fd://N an inherited socket. [env: KTLOG_WITNESS_LISTEN]",
)
@mark_option
@click.option("--replay", is_flag=True, help="As a verifier: replay the logs that were added with --replay.")
@credential_option
@agent_option
@bastion_options
@operating_options
@reporting
def serve(
    directory: Path, listen: str, mark: Path | None, replay: bool, credentials: Sequence[str], ssh_agent: bool,
    bastions: Sequence[str], bastion_ca: Path | None, no_listen: bool, **options: Any,
) -> None:
    """Run the witness, or with --replay the verifier, until SIGTERM or SIGINT.

    It speaks plain HTTP: put TLS in front of it. Only one may run on a directory. A missing
    database is refused and never made anew, and so is one that is behind its high-water mark.

    \b
      POST /add-checkpoint                 submissions
      POST /sign-subtree                   signatures of parts of cosigned trees
      GET  /<sha256 of origin>/checkpoint  the latest cosigned checkpoint, for monitors
      GET  /<sha256 of origin>/evidence    of the log's forks
      GET  /                               about, with the vkeys
      GET  /replays                        of a verifier: how far each log was followed
      GET  /livez, /readyz                 for supervisors

    On SIGTERM it answers what is under way, for ten seconds at most, and ends with 0. All options that have an
    environment variable may be set there, and are explained in docs/witness.md.
    """
    from witness import web

    keys = make_sources(credentials, ssh_agent)
    dialled = make_bastions(directory, keys, bastions, bastion_ca, no_listen)
    operating = make_operating(directory, replaying=replay, **options)
    web.serve(
        WitnessDir(directory), None if no_listen else listen, on_ready=partial(_announce, list_urls(dialled)),
        replaying=replay, mark=mark, operating=operating, keys=keys, bastions=dialled,
    )


main.add_command(upkeep.pull_logs)
main.add_command(upkeep.set_mark)
main.add_command(keyoptions.bastion_key)
for command in mirrorcli.COMMANDS:
    main.add_command(command)
main.add_command(retire.retire_key)


def _announce(urls: Sequence[str], name: str, address: str | None) -> None:
    if address is not None:
        click.echo(f"{name} listens on http://{address}")
    for url in urls:
        click.echo(f"{name} dials a bastion, to be reached at {url}/")
    sys.stdout.flush()


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


def _when(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat().replace("+00:00", "Z")


def _short(vkey: Vkey) -> str:
    kind = _ALGORITHM_NAMES.get(vkey.algorithm, f"type {vkey.algorithm:02x}")
    return f"{vkey.name}+{vkey.key_id.hex()} ({kind})"


def _describe(log: Log) -> dict[str, Any]:
    latest = log.latest
    return {
        "origin": log.origin,
        "vkeys": [str(vkey) for vkey in log.vkeys],
        "retired": [str(vkey) for vkey in log.retired],
        "size": None if latest is None else latest.checkpoint.size,
        "root": None if latest is None else encode_base64(latest.checkpoint.root),
        "time": None if latest is None else latest.time,
        "frozen": log.frozen is not None,
        "qpd": log.per_day,
        "monitoring_path": f"/{log.origin_hash}/checkpoint",
    }
