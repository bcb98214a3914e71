"""The benchmark of the directory map measures a real map, and its peer computes the same."""

from __future__ import annotations

import json
import random

import naive_map
import pytest
from click.testing import CliRunner

from ktlog.bench.mapped import build
from ktlog.bench.mappeer import MemoryMap
from ktlog.cli import ktlog
from ktlog.keymap.prefix import MISSING, PrefixLeaf
from ktlog.operator.mapcheck import check_whole_map

ACTORS = 2_000
GOALS = {
    "batch of 1000 updates, durable": "ms",
    "proof of presence": "ms",
    "proof of absence": "ms",
    "restart until a lookup is answered, map checked": "s",
    "memory of the largest process of the server": "MiB",
    "light lookups a second of the server's CPU time": "/s",
    "a client's lookup beyond the network": "ms",
    "bytes of a light bundle, largest": "bytes",
    "a bundle checked beyond its signatures, CPU": "ms",
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bench") / "log", ACTORS)


def test_the_measured_map_is_whole(log):
    assert check_whole_map(log) == ACTORS


@pytest.mark.slow
def test_the_command(log):
    words = ["bench", "map", "--actors", str(ACTORS), "--dir", str(log.directory), "--requests", "20", "--batches", "1"]
    done = CliRunner().invoke(ktlog, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = {row["work"]: row for row in found["rows"]}
    assert found["actors"] == ACTORS and found["machine"]["cores"] >= 1
    assert {work: rows[work]["unit"] for work in GOALS} == GOALS
    assert all(row["measured"] > 0 for work, row in rows.items() if work in GOALS)
    assert all(isinstance(rows[work]["met"], bool) for work in GOALS)
    batch = rows["batch of 1000 updates, durable"]
    assert batch["peer"] > 0 and batch["ratio"] > 0 and rows["the same in CPU time alone"]["ratio"] > 0
    assert rows["its p99"]["unit"] == "ms" and rows["updates, batch by batch"]["unit"] == "/s"
    assert rows["proof of presence: p99"]["measured"] >= rows["proof of presence"]["measured"] > 0
    assert "syncs of a batch" not in rows or rows["syncs of a batch"]["measured"] >= 1, "it is durable"
    # Sizes are no matter of speed: 2,000 leaves are 11 levels deep, a bundle is a key and its proof.
    assert 11 * 32 < rows["bytes of a proof of presence, mean"]["measured"] < 14 * 32
    assert 1312 < rows["bytes of a light bundle, largest"]["measured"] < 4096


def test_the_peer_in_memory_has_the_root_of_the_definition():
    rng = random.Random(3)
    known: dict[bytes, bytes] = {}
    tree = MemoryMap([])
    assert tree.root == MISSING
    for count in (1, 1, 5, 60):
        news = {rng.randbytes(32): rng.randbytes(32) for _ in range(count)}
        for index in list(known)[:3]:
            news[index] = rng.randbytes(32)
            news[(int.from_bytes(index, "big") ^ 1).to_bytes(32, "big")] = rng.randbytes(32)
        known |= news
        assert tree.put(sorted(PrefixLeaf(*item) for item in news.items())) == naive_map.root(known)
    assert MemoryMap(sorted(PrefixLeaf(*item) for item in known.items())).root == tree.root

