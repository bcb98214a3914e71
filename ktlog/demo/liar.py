"""A log that lies: a process of its own that holds a log's real keys and serves its real data, but for one thing.

``python -m ktlog.demo.liar --dir LOGDIR --lie NAME --out FILE --listen L``. It reads the honest
log's store, signs with the honest log's keys, tells the lie to witnesses and verifiers and writes what they
answered to FILE, and serves the lie to whoever asks. The demo points the log's name at it.

``smaller``      earlier checkpoints, of the log and of its map, shown as the newest: the roll-back.
                 (``--old FILE --old-map FILE`` have them, ``--old-bundle FILE`` has the answer of that time.)
``swapped-key``  honest checkpoints, and somebody else's key in an answer. (``--actor ID``)
``hidden-revocation``  a log that takes everything, and a map that goes on listing keys which an actor revoked.
                 (``--actor ID``, and :mod:`ktlog.demo.hider`)
``same-size``    another root for the size that is published: the fork. Another one for the map, too, at the size
                 of ``--map-size N``, which somebody remembers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from flask import Flask, Response

from ktlog.config import Settings, load_settings
from ktlog.demo.hider import hiding_log
from ktlog.durable import write_atomic
from ktlog.errors import KtlogError
from ktlog.keymap.bundle import Presented, encode_bundle, parse_bundle
from ktlog.keymap.output import format_leaf, map_origin, parse_leaf
from ktlog.keymap.value import parse_value
from ktlog.operator.keys import load_checkpoint_signers, load_leaf_key, load_map_signers
from ktlog.operator.service import load_publish_policy
from ktlog.operator.stores import open_log, open_map, open_tiles
from ktlog.operator.witnessing import format_request, input_policy, peers_of
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import make_entry
from ktlog.pkd.keys import encode_public_key, private_key_from_seed
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Signer, sign_checkpoint
from ktlog.tlog.policy import Policy
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from ktlog.web.app import create_app
from ktlog.web.quick import QuickBundles, QuickKeys
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpd import serve

LIES = ("smaller", "swapped-key", "hidden-revocation", "same-size")

Told = list[dict[str, object]]


def fork_log(settings: Settings) -> bytes:
    """A checkpoint of another tree of the published size: the last entry replaced, all of it properly signed."""
    published = open_tiles(settings).checkpoint()
    if published is None:
        raise AssertionError("the demo lies only after the log has published")
    size = parse_signed_checkpoint(published)[1].size
    store = open_log(settings, read_only=True)
    hashes = list(store.leaf_hashes(0, size))
    last = store.records(size - 1, size)[0]
    store.close()
    leaf_key = load_leaf_key(settings.keys)
    # Signed anew by the true key: ML-DSA is randomised, so even the same message gives another leaf.
    hashes[-1] = hash_leaf(make_entry(DIALECTS[settings.dialect], last.preimage, leaf_key.private, leaf_key.public))
    return _sign(settings.origin, hashes, load_checkpoint_signers(settings.keys, settings.origin))


def fork_map(settings: Settings, size: int) -> bytes:
    """The same of the map's output log at *size*: its newest leaf says another map root."""
    store = open_map(settings, read_only=True)
    hashes = list(store.output_hashes(0, size))
    leaf = parse_leaf(store.output_leaves(size - 1, size)[0])
    store.close()
    hashes[-1] = hash_leaf(format_leaf(replace(leaf, map_root=hash_leaf(leaf.map_root))))
    return _sign(map_origin(settings.origin), hashes, load_map_signers(settings.keys, settings.origin))


def _sign(origin: str, hashes: list[bytes], signers: tuple[Signer, ...]) -> bytes:
    checkpoint = Checkpoint(origin, len(hashes), root_hash(len(hashes), leaf_reader(hashes)))
    return sign_checkpoint(checkpoint, signers, int(time.time()))


def tell(notes: Iterable[tuple[bytes, Policy]]) -> Told:
    """Offer each note to every cosigner of its policy, claiming that its size is what they saw last; their answers."""
    fetcher = Fetcher.from_environment()
    answers: Told = []
    for note, policy in notes:
        checkpoint = parse_signed_checkpoint(note)[1]
        body = format_request(checkpoint.size, (), note)
        for peer in peers_of(policy):
            response = fetcher.post(f"{peer.url}/add-checkpoint", body, {"Content-Type": "text/plain"})
            words = response.body[:300].decode("utf-8", "replace").strip()
            cosigner = peer.url.removeprefix("https://")
            answers.append(
                {"log": checkpoint.origin, "cosigner": cosigner, "status": response.status, "body": words}
            )
    return answers


def lie_in_checkpoints(app: Flask, note: bytes, map_note: bytes) -> None:
    """Serve *note* as the newest checkpoint, and *map_note* as the map's."""
    for endpoint, told in (("files.checkpoint", note), ("map.checkpoint", map_note)):
        app.view_functions[endpoint] = lambda told=told: Response(told, content_type="text/plain; charset=utf-8")


def make_app(settings: Settings) -> Flask:
    """The log's application, all of whose answers about actors come from its views: the others would be the truth."""
    for quick in (QuickKeys, QuickBundles):
        quick.targets = re.compile(r"(?!)")
    return create_app(settings)


def lie_in_answers(app: Flask, actor_id: str) -> None:
    """Swap the first key that *actor_id* is answered with for one whose secret the liar knows."""
    mine = private_key_from_seed(b"\x13" * 32).public_key().public_bytes_raw()

    def in_page(response: Response) -> None:
        answer = json.loads(response.get_data())
        if answer.get("actor-id") == actor_id and answer.get("public-keys"):
            answer["public-keys"][0]["public-key"] = encode_public_key(mine)
            response.set_data(json.dumps(answer, separators=(",", ":"), ensure_ascii=False))

    def in_bundle(response: Response) -> None:
        bundle = parse_bundle(response.get_data())
        if isinstance(bundle.outcome, Presented) and parse_value(bundle.outcome.value).actor_id == actor_id:
            response.set_data(encode_bundle(replace(bundle, keys=(mine, *bundle.keys[1:]))))

    for ending, swap in (("/<encoded>/keys", in_page), ("/map/bundle/<encoded>", in_bundle)):
        endpoint = next(rule.endpoint for rule in app.url_map.iter_rules() if rule.rule.endswith(ending))
        app.view_functions[endpoint] = _swapping(app.view_functions[endpoint], swap)


def _swapping(
    honest: Callable[[str], Response], swap: Callable[[Response], None]
) -> Callable[[str], Response]:
    def swapped(encoded: str) -> Response:
        response = honest(encoded)
        swap(response)
        return response

    return swapped


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ktlog.demo.liar")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--lie", choices=LIES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--old-map", type=Path)
    parser.add_argument("--old-bundle", type=Path)
    parser.add_argument("--map-size", type=int)
    parser.add_argument("--actor")
    options = parser.parse_args(arguments)
    settings = load_settings(options.dir)

    def write(told: Told) -> None:
        write_atomic(options.out, json.dumps({"told": told}).encode())

    serve(_app_maker(options, settings, write), options.listen, workers=1, threads=4, name="liar")
    return 0


def _app_maker(options: argparse.Namespace, settings: Settings, write: Callable[[Told], None]) -> Callable[[], Flask]:
    """Tell the lie to the cosigners, and give what makes the application that tells it to everybody else."""
    if options.lie == "hidden-revocation":
        return lambda: hiding_log(settings, options.actor, write)
    if options.lie == "swapped-key":
        write([])

        def swapping_app() -> Flask:
            app = make_app(settings)
            lie_in_answers(app, options.actor)
            return app

        return swapping_app
    policy = load_publish_policy(settings)
    if options.lie == "smaller":
        note, map_note = options.old.read_bytes(), options.old_map.read_bytes()
        write(tell([(note, input_policy(policy)), (map_note, policy)]))
    else:
        note, map_note = fork_log(settings), fork_map(settings, options.map_size)
        write(tell([(note, input_policy(policy))]))

    def lying_app() -> Flask:
        app = make_app(settings)
        lie_in_checkpoints(app, note, map_note)
        if options.old_bundle is not None:
            answer = options.old_bundle.read_bytes()
            app.view_functions["map.bundle"] = lambda encoded: Response(answer, content_type="application/octet-stream")
        return app

    return lying_app


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KtlogError as error:
        sys.exit(f"liar: {error.diagnostics()}")
