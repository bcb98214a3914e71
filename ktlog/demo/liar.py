"""A log that lies: a process of its own that holds a log's real keys and serves its real data, but for one thing.

``python -m ktlog.demo.liar --dir LOGDIR --lie NAME --out FILE --listen L``. It reads the honest
log's store, signs with the honest log's keys, tells the lie to every witness and writes what they
answered to FILE, then serves the lie to whoever asks. The demo points the log's name at it.

``smaller``      an earlier checkpoint, shown as the newest: the roll-back. (``--old FILE`` has it.)
``swapped-key``  an honest checkpoint, and somebody else's key in an answer. (``--actor ID``)
``same-size``    another root for the size that is published: the fork.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask, Response

from ktlog.config import Settings, load_settings
from ktlog.durable import write_atomic
from ktlog.errors import KtlogError
from ktlog.operator.keys import load_checkpoint_signers, load_leaf_key
from ktlog.operator.service import load_publish_policy
from ktlog.operator.witnessing import format_request, peers_of
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import make_entry
from ktlog.pkd.keys import encode_public_key, private_key_from_seed
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import sign_checkpoint
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from ktlog.web.app import create_app
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpd import serve

LIES = ("smaller", "swapped-key", "same-size")


def fork_checkpoint(settings: Settings) -> tuple[bytes, int]:
    """Another tree of the published size: the last entry replaced, all of it properly signed."""
    published = TileFiles(settings.tiles).checkpoint()
    if published is None:
        raise AssertionError("the demo lies only after the log has published")
    size = parse_signed_checkpoint(published)[1].size
    store = SqliteStore.open(settings.database, origin=settings.origin, read_only=True)
    hashes = list(store.leaf_hashes(0, size))
    last = store.records(size - 1, size)[0]
    store.close()
    leaf_key = load_leaf_key(settings.keys)
    dialect = DIALECTS[settings.dialect]
    # Signed anew by the true key: ML-DSA is randomised, so even the same message gives another leaf.
    hashes[-1] = hash_leaf(make_entry(dialect, last.preimage, leaf_key.private, leaf_key.public))
    checkpoint = Checkpoint(settings.origin, size, root_hash(size, leaf_reader(hashes)))
    return sign_checkpoint(checkpoint, load_checkpoint_signers(settings.keys, settings.origin), int(time.time())), size


def tell_witnesses(settings: Settings, note: bytes, old_size: int) -> list[dict[str, object]]:
    """Offer *note* to every witness, claiming that it saw *old_size* last; gives their answers."""
    fetcher = Fetcher.from_environment()
    answers: list[dict[str, object]] = []
    for peer in peers_of(load_publish_policy(settings)):
        response = fetcher.post(
            f"{peer.url}/add-checkpoint", format_request(old_size, (), note), {"Content-Type": "text/plain"}
        )
        words = response.body[:300].decode("utf-8", "replace").strip()
        answers.append({"witness": peer.url, "status": response.status, "body": words})
    return answers


def lie_in_checkpoint(app: Flask, note: bytes) -> None:
    """Serve *note* as the newest checkpoint."""
    app.view_functions["files.checkpoint"] = lambda: Response(note, content_type="text/plain; charset=utf-8")


def lie_in_answer(app: Flask, actor_id: str) -> None:
    """Swap the first key that *actor_id* is answered with for one whose secret the liar knows."""
    endpoint = next(rule.endpoint for rule in app.url_map.iter_rules() if rule.rule.endswith("/<encoded>/keys"))
    honest: Callable[[str], Response] = app.view_functions[endpoint]
    mine = encode_public_key(private_key_from_seed(b"\x13" * 32).public_key().public_bytes_raw())

    def swapped(encoded: str) -> Response:
        response = honest(encoded)
        answer = json.loads(response.get_data())
        if answer.get("actor-id") == actor_id and answer.get("public-keys"):
            answer["public-keys"][0]["public-key"] = mine
            response.set_data(json.dumps(answer, separators=(",", ":"), ensure_ascii=False))
        return response

    app.view_functions[endpoint] = swapped


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ktlog.demo.liar")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--lie", choices=LIES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--actor")
    options = parser.parse_args(arguments)
    settings = load_settings(options.dir)
    answers: list[dict[str, object]] = []
    note: bytes | None = None
    if options.lie == "same-size":
        note, size = fork_checkpoint(settings)
        answers = tell_witnesses(settings, note, size)
    elif options.lie == "smaller":
        note = options.old.read_bytes()
        answers = tell_witnesses(settings, note, parse_signed_checkpoint(note)[1].size)

    def lying_app() -> Flask:
        app = create_app(settings)
        if note is not None:
            lie_in_checkpoint(app, note)
        else:
            lie_in_answer(app, options.actor)
        return app

    write_atomic(options.out, json.dumps({"told": answers}).encode())
    serve(lying_app, options.listen, workers=1, threads=4, name="liar")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KtlogError as error:
        sys.exit(f"liar: {error.diagnostics()}")
