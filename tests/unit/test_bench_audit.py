"""``ktlog bench audit``, small: both logs pass the audit that is measured, and every row is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.bench.auditlog import signed_entries, write_raw
from ktlog.cli import ktlog
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tiles import TileHashReader, parse_bundle
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash


def test_the_repeated_log_is_a_log(tmp_path: Path) -> None:
    """Made small and then larger, its root and tiles are those of its entries."""
    for size in (300, 1000):
        write_raw(tmp_path, size)
        checkpoint = parse_signed_checkpoint((tmp_path / "checkpoint").read_bytes())[1]
        entries = [signed_entries()[index % 256] for index in range(size)]
        assert checkpoint.root == root_hash(size, leaf_reader(map(hash_leaf, entries)))
        read = TileHashReader(lambda path: (tmp_path / path).read_bytes(), size, checkpoint.root)
        assert read([(0, 299)]) == [hash_leaf(entries[299])]
    assert parse_bundle((tmp_path / "tile/entries/002").read_bytes(), 256) == list(signed_entries())


@pytest.mark.slow
def test_an_audit_is_measured() -> None:
    words = ["bench", "audit", "--entries", "3000", "--messages", "3", "--calibration", "0.2", "--json"]
    done = CliRunner().invoke(ktlog, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 11
    assert found["structural"] > 0 and found["semantic"] > 0
