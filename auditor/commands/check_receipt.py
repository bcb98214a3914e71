"""``ktlog-auditor check-receipt``: did the log keep its word?"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from auditor.commands.common import fetcher, find_log, load_policy, read_file
from auditor.evidence.build import evidence_for_receipt
from auditor.evidence.promises import open_receipt
from auditor.fetch import ATTEMPTS
from auditor.state import AuditDirectory
from ktlog.client.publicfiles import PublicFiles
from ktlog.client.verify import open_head
from ktlog.errors import EncodingError, Forked, Invalid, Stale, UsageError
from ktlog.pkd.keychanges import MOST_BYTES
from ktlog.pkd.keys import decode_public_key
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.receipts import parse_receipt
from ktlog.words import count_entries

MAX_RECEIPT_BYTES = 1 << 18


@click.command("check-receipt")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--http-key", required=True, metavar="mldsa44:...",
              help="The log's key for answers, as you know it: public-key in its /api/info.")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False),
              help="tlog-policy file: the log's key.")
@click.option("--vkey", help="The log's verifier key, when no policy names it.")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Where evidence goes; made if missing.")
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    file: Path, http_key: str, policy_file: Path | None, vkey: str | None, directory: Path, dial_file: Path | None,
    as_json: bool,
) -> None:
    """Compare the receipt in FILE (ktlog submit ... --receipt FILE) with the tree that its log shows now.

    Exit code 0 when the log kept its word; 9 when its tree does not reach to the entry yet, which convicts nobody; 7
    when the tree has another entry there or another root, and then evidence was written that convicts the log.
    """
    data = read_file(file, MAX_RECEIPT_BYTES)
    try:
        key = decode_public_key(http_key)
        origin = parse_https_url(parse_receipt(data).url or "").host
    except EncodingError as error:
        raise UsageError("BadReceiptFile", f"{file}, or --http-key, does not parse: {error.message}") from None
    log = find_log(origin, None if policy_file is None else load_policy(policy_file), vkey)
    now = int(time.time())
    receipt = open_receipt(data, key, origin, now)
    with AuditDirectory(directory) as state, fetcher(dial_file) as network:
        files = PublicFiles(network, log.url, attempts=ATTEMPTS)
        head = open_head(files.checkpoint(), log)
        verdict: dict[str, Any] = {
            "origin": origin, "leaf_index": receipt.leaf_index, "accepted": receipt.created, "tree_size": head.size,
        }
        if head.size <= receipt.leaf_index:
            raise Stale(
                "NotYetPublished", f"{origin} took the message as entry {receipt.leaf_index} and shows"
                f" {count_entries(head.size)}", hint="Ask again later. A log that is late convicts nobody.",
            )
        read = files.hashes(head.size, head.root)
        evidence = evidence_for_receipt(log.vkeys, head.note, read, data, key, now, _key_changes(files))
        if evidence is not None:
            path = state.save_evidence(evidence, "broken-promise", origin)
            raise Forked(
                "BrokenPromise", f"{origin} took a message as entry {receipt.leaf_index}, and its tree says otherwise",
                evidence=evidence, hint=f"It is convicted by {path}: keep it, and give it to others.",
            )
        if read([(0, receipt.leaf_index)])[0] != receipt.leaf_hash:
            raise Invalid("BrokenPromise", f"entry {receipt.leaf_index} of {origin} is not what its receipt says")
    click.echo(json.dumps(verdict | {"kept": True}) if as_json else
               f"{origin} kept its word: entry {receipt.leaf_index} is in its tree of {count_entries(head.size)}.")
    sys.exit(0)


def _key_changes(files: PublicFiles) -> bytes:
    """The log's history of keys, which may tell others whose key signed the receipt; nothing if it has none."""
    try:
        return files.file("keys", "MissingKeys", MOST_BYTES)
    except Invalid:
        return b""
