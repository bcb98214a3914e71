"""``ktlog-witness retire-key``: what an operator does when a log's key was stolen, or is no longer in use."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ktlog.errors import EncodingError, UsageError
from ktlog.tlog.note import Vkey, parse_vkey
from witness.clikit import EXIT_CODES, dir_option, json_option, open_store, print_json, reporting
from witness.replays import ReplayStore
from witness.store import Log


@click.command("retire-key", epilog=EXIT_CODES)
@dir_option
@click.argument("which", metavar="VKEY|ORIGIN...", nargs=-1, required=True)
@click.option("--reason", default="", help="Kept with it, for whoever reads the record later.")
@click.option("--leave-none", is_flag=True,
              help="Also where the log is left with no key: then every submission of it is answered with 403.")
@json_option
@reporting
def retire_key(directory: Path, which: Sequence[str], reason: str, leave_none: bool, as_json: bool) -> None:
    """Trust a log's key no more, because it was stolen or rotated away.

    A VKEY, or NAME+ID as list-logs prints it, is one key, retired for every log that is trusted under it; an ORIGIN is
    all keys of that log. It takes effect at once, also while the witness is being served; a verifier must be
    restarted. What was cosigned stays on record, and so does that the key was trusted once: two trees of one size
    under it are still evidence, kept and shown, but freeze the log no more. No list brings a retired key back.

    Add the log's new keys first (add-log): a log is left with no key only if you say --leave-none.
    """
    store = open_store(directory, beside_daemon=True)
    try:
        logs = store.logs()
        keys = list(dict.fromkeys(pair for one in which for pair in _meant(logs, one)))
        verifies = bool(ReplayStore(store).replays())
        if verifies and leave_none:
            raise UsageError("VerifierDirectory", "a verifier without a log's key could read nothing of it")
        done = store.retire_keys(keys, int(time.time()), reason, leave_none=leave_none)
        after = {origin: store.log(origin) for origin, _ in keys}
    finally:
        store.close()
    if as_json:
        print_json({
            "retired": [{"origin": origin, "vkey": str(vkey)} for origin, vkey in done],
            "left": {origin: [str(vkey) for vkey in log.vkeys] for origin, log in after.items() if log},
        })
        return
    for origin, vkey in done:
        click.echo(f"{origin}: trusts {vkey.name}+{vkey.key_id.hex()} no more")
    if not done:
        click.echo("nothing new: retired before")
    for origin, log in after.items():
        if log is not None and not log.vkeys:
            click.echo(f"ktlog-witness: warning: {origin} has no key left; nothing is signed for it until add-log gives"
                       " it one", err=True)
    if verifies and done:
        click.echo("Restart the verifier: it read its keys when it started.")


def _meant(logs: Sequence[Log], what: str) -> Iterator[tuple[str, Vkey]]:
    """Origin and key, of each key that *what* names.

    Raises:
        UsageError: "UnknownKey"; "WhichKey": it is the name and id of two keys.
    """
    of_log = [(log.origin, vkey) for log in logs if log.origin == what for vkey in log.vkeys + log.retired]
    if of_log:
        yield from of_log
        return
    try:
        wanted = str(parse_vkey(what))
        found = [(log.origin, key) for log in logs for key in log.vkeys + log.retired if str(key) == wanted]
    except EncodingError:
        found = [
            (log.origin, key) for log in logs for key in log.vkeys + log.retired
            if f"{key.name}+{key.key_id.hex()}" == what
        ]
    if len({str(key) for _, key in found}) > 1:
        raise UsageError("WhichKey", f"{what} are {len(found)} keys; give the whole vkey")
    if not found:
        raise UsageError("UnknownKey", f"{what} is neither a log that is followed nor a key of one",
                         hint="ktlog-witness list-logs shows both.")
    yield from found
