"""A log whose published files are in an object store: everything of it is there, and readers need nothing else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import requests
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.client.publicfiles import PublicFiles
from ktlog.operator.create import load_public_keys
from ktlog.store.place import parse_place
from ktlog.store.s3bucket import Bucket
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note, parse_vkey
from ktlog.tlog.tiles import bundles_between, tile_path
from ktlog.tlog.tree import hash_leaf, prove_consistency, prove_inclusion, verify_consistency, verify_inclusion
from ktlog.wire.fetch import Response
from tests.object_stores import SECRET, credentials, moto
from tests.objects_server import BUCKET, Habits, ObjectsServer
from tests.running_log import ORIGIN, RunningLog, running_log

pytestmark = pytest.mark.slow

IMMUTABLE = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with credentials(), moto() as found:
        public = {
            "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": [f"arn:aws:s3:::{BUCKET}/log/*"],
        }
        client = boto3.Session().client("s3", endpoint_url=found, region_name="us-east-1")
        client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [public]}))
        yield found


@pytest.fixture(scope="module")
def log(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    place = {"objects": f"s3://{BUCKET}/log", "objects_endpoint": endpoint}
    with running_log(tmp_path_factory.mktemp("objects"), **place) as running:
        running.wait("the map", lambda: running.get("/map/checkpoint").status == 200)
        yield running


class Plain:
    """Fetches from the bucket as its public URL would be: without credentials."""

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        found = requests.get(url, timeout=30)
        return Response(found.status_code, {name.lower(): value for name, value in found.headers.items()}, found.content, url)


def head(log: RunningLog, files: PublicFiles, map_log: bool = False):
    note, checkpoint = parse_signed_checkpoint(files.checkpoint())
    public = load_public_keys(log.settings)
    assert len(open_note(note, [parse_vkey(text) for text in (public.map_vkeys if map_log else public.vkeys)])) == 2
    assert checkpoint.origin == (f"{ORIGIN}/map" if map_log else ORIGIN)
    return checkpoint


def test_the_bucket_alone_is_a_log_and_the_web_workers_show_the_same(log: RunningLog, endpoint: str) -> None:
    size = max(0, log.published_size())
    for user in ("a01", "a02"):
        assert log.enrol(user).status // 100 == 2
    log.wait_published(size + 2)
    files = PublicFiles(Plain(), f"{endpoint}/{BUCKET}/log")
    published = head(log, files)
    hashes = files.hashes(published.size, published.root)
    entries = [entry for bundle in bundles_between(0, published.size) for entry in files.entries(bundle.number, bundle.width)]
    assert len(entries) == published.size
    for leaf_index, entry in enumerate(entries):
        proof = prove_inclusion(leaf_index, published.size, hashes)
        verify_inclusion(hash_leaf(entry), leaf_index, published.size, proof, published.root)
    for path in (tile_path(0, 0, published.size), tile_path("entries", 0, published.size)):
        shown = log.get(f"/{path}")
        assert (shown.status, shown.headers["cache-control"]) == (200, IMMUTABLE)
        assert shown.body == requests.get(f"{endpoint}/{BUCKET}/log/{path}", timeout=30).content
    shown = log.get("/checkpoint")
    assert shown.headers["cache-control"] == "no-cache"
    assert parse_signed_checkpoint(shown.body)[1].size >= published.size
    assert log.get("/tile/0/000.p/255").status == 404
    assert not log.settings.tiles.exists()
    assert not [key for key in keys(endpoint) if key.startswith("log/probe/")]


def keys(endpoint: str) -> list[str]:
    return Bucket(parse_place(f"s3://{BUCKET}", endpoint, "us-east-1")).keys("", 1000)


def test_the_map_is_there_too(log: RunningLog, endpoint: str) -> None:
    files = PublicFiles(Plain(), f"{endpoint}/{BUCKET}/log/map")
    published = head(log, files, map_log=True)
    leaves = files.entries(0, published.size)
    proof = prove_inclusion(0, published.size, files.hashes(published.size, published.root))
    verify_inclusion(hash_leaf(leaves[0]), 0, published.size, proof, published.root)
    assert log.get(f"/map/{tile_path(0, 0, published.size)}").status == 200


def test_it_goes_on_after_its_sequencer_was_killed(log: RunningLog, endpoint: str) -> None:
    files = PublicFiles(Plain(), f"{endpoint}/{BUCKET}/log")
    before = head(log, files)
    pids = json.loads((log.settings.directory / "pids.json").read_text())
    os.kill(pids["sequencer"], signal.SIGKILL)
    log.wait("the next sequencer", lambda: sequencer(log) not in (None, pids["sequencer"]) and log.is_ready())
    log.wait("an answer", lambda: log.enrol("a03").status // 100 == 2)
    log.wait_published(before.size + 1)
    after = head(log, files)
    proof = prove_consistency(before.size, after.size, files.hashes(after.size, after.root))
    verify_consistency(before.size, after.size, proof, before.root, after.root)
    assert SECRET not in log.output() and "UnfitObjectStore" not in log.output()


def sequencer(log: RunningLog) -> int | None:
    try:
        return json.loads((log.settings.directory / "pids.json").read_text()).get("sequencer")
    except (OSError, ValueError):
        return None


def test_init_makes_a_log_in_an_object_store(endpoint: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(ktlog, [
        "init", "--dir", str(tmp_path / "log"), "--origin", "keys.example.com", "--objects", f"s3://{BUCKET}/another",
        "--objects-endpoint", endpoint, "--objects-region", "us-east-1", "--json",
    ], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "log" / "ktlog.toml").read_text()
    assert f'\nobjects = "s3://{BUCKET}/another"\n' in text and f'\nobjects_endpoint = "{endpoint}"\n' in text
    assert SECRET not in text
    assert not (tmp_path / "log" / "tiles").exists()


def test_init_refuses_an_unfit_store_before_it_makes_anything(endpoint: str, tmp_path: Path) -> None:
    with ObjectsServer(Habits(ignores=frozenset({"If-Match"}))) as server:
        done = CliRunner().invoke(ktlog, [
            "init", "--dir", str(tmp_path / "log"), "--origin", "keys.example.com", "--objects", f"s3://{BUCKET}/log",
            "--objects-endpoint", server.endpoint,
        ])
    assert done.exception.name == "UnfitObjectStore"
    assert not (tmp_path / "log").exists()
