"""Has a log as it lies in its directory served for a moment, and audited by the auditor's own command."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from auditor.commands import audit as audit_command
from ktlog.config import Settings
from ktlog.operator.keys import load_checkpoint_signers, load_map_signers
from ktlog.operator.shred import finish_erasures
from ktlog.tlog.policy import LogKey, format_policy
from ktlog.web.app import create_app
from ktlog.wire.fetch import Response
from tests.map_world import MapPress
from tests.operator_world import NOW, ORIGIN

LATER = NOW + 4000
"""After everything that the fixtures of earlier schemas signed."""

Audit = Callable[..., dict[str, Any]]


class Web:
    """A fetcher whose requests the log's own application answers."""

    def __init__(self, settings: Settings) -> None:
        self._client = create_app(settings).test_client()

    def get(self, url: str, *, max_bytes: int | None = None, **_more: object) -> Response:
        target = url.removeprefix(f"https://{ORIGIN}")
        found = self._client.get(target, headers={"Host": ORIGIN}, environ_overrides={"RAW_URI": target})
        return Response(found.status_code, dict(found.headers), found.data, url)


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Audit:
    """Serves the log in *settings* and gives the auditor's report. Each audit of a test goes on from the one before."""
    def audit(settings: Settings, now: int = LATER) -> dict:
        finish_erasures(settings, lambda: now)  # as `ktlog serve` begins
        press = MapPress.over(settings)
        try:
            press.clock.now = now
            press.cycle()
            signers = (*load_checkpoint_signers(settings.keys, ORIGIN), *load_map_signers(settings.keys, ORIGIN))
            named = {key.vkey for key in press.policy.logs}
            keys = tuple(LogKey(signer.vkey, None) for signer in signers if signer.vkey not in named)
            policy = tmp_path / "policy"
            policy.write_bytes(format_policy(replace(press.policy, logs=press.policy.logs + keys)))
            monkeypatch.setattr(audit_command, "fetcher", lambda dial: nullcontext(Web(settings)))
            monkeypatch.setattr(audit_command.time, "time", lambda: float(press.clock.now))
            ran = CliRunner().invoke(audit_command.command, [
                ORIGIN, "--dir", str(tmp_path / "audits"), "--policy", str(policy), "--commitments", "all",
                "--answers", "all", "--json",
            ])
            return json.loads(ran.stdout)
        finally:
            press.close()

    return audit
