"""A running log whose keys are all handed over by the service manager, as systemd does it: none is in its directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktlog.operator.keys import PURPOSES
from tests.e2e.test_log_nginx import check_signed
from tests.running_log import RunningLog

pytestmark = pytest.mark.slow


class HandedOver(RunningLog):
    """Its keys are moved into credentials before it starts."""

    def _log_command(self) -> tuple[str, str, list[str]]:
        for purpose in PURPOSES:
            (self.settings.keys / purpose).rename(Path(os.environ["CREDENTIALS_DIRECTORY"]) / purpose)
        return super()._log_command()


def test_it_takes_messages_publishes_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    log = HandedOver(tmp_path)
    try:
        log.wait("the log to be ready", log.is_ready)
        assert [path.name for path in log.settings.keys.iterdir()] == ["fetch-rsa.pem"]
        assert log.enrol("a01").status == 202
        log.wait_published(1)
        log.wait("the map", lambda: log.get("/map/checkpoint").status == 200)
        check_signed(log, log.get("/api/info"), "GET", "/api/info")
        assert "Traceback" not in log.output()
    finally:
        log.stop()
