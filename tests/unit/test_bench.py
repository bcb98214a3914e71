"""The measuring log is a log, and measuring reads from it over HTTP."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ktlog.bench.prefill import ORIGIN, actor_name, prefill
from ktlog.bench.reads import actor_names, measure, percentile
from ktlog.cli import ktlog
from ktlog.errors import StoreError, Unreachable, UsageError
from ktlog.operator.create import create_log
from ktlog.operator.reader import ActorReader
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.messages import parse_wire
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tree import hash_leaf, verify_inclusion

ACTORS = 1_100  # two batches, and a tile of the second level


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    told = []
    settings = prefill(tmp_path_factory.mktemp("bench") / "log", ACTORS, told.append)
    assert told == [1_000, ACTORS]
    return settings


def test_every_actor_has_a_key_that_is_proven_to_be_in_the_published_tree(filled):
    tiles = TileFiles(filled.tiles)
    checkpoint = parse_signed_checkpoint(tiles.checkpoint())[1]
    assert (checkpoint.origin, checkpoint.size) == (ORIGIN, ACTORS)
    assert len(actor_names(filled)) == ACTORS
    with SqliteStore.open(filled.database, read_only=True) as store:
        assert store.root_after(ACTORS) == checkpoint.root
        reader = ActorReader(store, tiles.read, SPEC)
        for number in (0, 255, 256, ACTORS - 1):
            answer = reader.answer(actor_name(number), ACTORS, ACTORS, with_history=True)
            (row,) = answer.history.rows
            assert set(answer.key_proofs) == {number}
            verify_inclusion(hash_leaf(row.record.entry), number, ACTORS, row.proof, checkpoint.root)
            wire = parse_wire(SPEC, row.record.preimage)  # a message in form, if nothing else
            assert (wire.preimage, wire.encrypted) == (row.record.preimage, ("actor", "public-key"))


def test_a_log_is_never_filled_twice(filled):
    with pytest.raises(StoreError, match="DirectoryInUse"):
        prefill(filled.directory, 1)


def test_the_commands(tmp_path, filled):
    small = tmp_path / "small"
    made = CliRunner().invoke(ktlog, ["bench", "prefill", "--dir", str(small), "--actors", "2", "--json"])
    assert (made.exit_code, json.loads(made.stdout)["actors"]) == (0, 2)
    directories = ["--dir", str(small), "--dir", str(filled.directory)]
    read = CliRunner().invoke(ktlog, ["bench", "reads", *directories, "--requests", "5", "--json"])
    assert read.exit_code == 0, read.output
    rows = json.loads(read.stdout)["reads"]
    assert [(row["actors"], row["requests"]) for row in rows] == [(2, 5), (ACTORS, 5)]
    assert all(0 < row["p50-us"] <= row["p99-us"] for row in rows)
    assert rows[0]["ratio"] == 1
    # One log is exactly as fast as itself, which is more than half as fast.
    limited = ["bench", "reads", "--dir", str(small), "--requests", "1", "--at-most"]
    assert CliRunner().invoke(ktlog, [*limited, "1"]).exit_code == 0
    assert CliRunner().invoke(ktlog, [*limited, "0.5"]).exit_code == 5


def test_a_log_that_nobody_uses_cannot_be_measured(tmp_path):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", None)
    with pytest.raises(UsageError, match="NoActors"):
        measure([settings.directory], 1)


def test_a_worker_that_does_not_start_is_told(filled, monkeypatch):
    monkeypatch.setenv("KTLOG_THREADS", "none")
    monkeypatch.setattr("ktlog.bench.reads.load_settings", lambda directory: filled)
    with pytest.raises(Unreachable, match="NoWorker"):
        measure([filled.directory], 1)


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1, 100)])
def test_percentiles(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected
