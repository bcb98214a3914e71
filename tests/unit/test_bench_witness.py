"""``ktlog bench witness``, small: every row is there, and everybody was answered."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog


@pytest.mark.slow
def test_a_witness_is_measured():
    words = ["bench", "witness", "--followed", "30", "--logs", "10", "--rounds", "1", "--rate", "20", "--seconds", "1"]
    done = CliRunner().invoke(ktlog, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    refused = [row for row in found["rows"] if row["work"].endswith("not answered 200")]
    assert [row["measured"] for row in refused] == [0, 0, 0]
    assert found["ratio"] > 0
