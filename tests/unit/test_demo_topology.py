"""What the demo gives to whoever reads its logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.demo import topology as places
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44, signer_from_seed
from ktlog.tlog.policy import parse_policy


def test_the_auditors_policy_is_the_one_that_the_logs_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both logs' lines in one file: with the maps' keys, so that the auditor derives the maps."""
    monkeypatch.setattr(places, "_make_cosigner", lambda _topology, _processes, host, _logs: tuple(
        signer_from_seed(host, kind, host.encode().ljust(32)[:32]).vkey
        for kind in (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)
    ))
    topology = places.plan(tmp_path / "demo", 4)
    places.build(topology, None)
    mine = parse_policy(topology.audit_policy.read_bytes())
    for instance in topology.instances:
        words = ["policy", "show", "--for", "auditors", "--dir", str(topology.log_directory(instance))]
        theirs = parse_policy(CliRunner().invoke(ktlog, words).stdout_bytes)
        of_it = tuple(log for log in mine.logs if log.vkey.name in (instance.origin, f"{instance.origin}/map"))
        assert len(of_it) == 2 and replace(mine, logs=of_it) == theirs
    assert len(mine.logs) == 2 * len(topology.instances)
