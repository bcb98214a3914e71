"""`ktlog doctor` on a log that runs behind TLS: all is well, from inside and outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_log import running_log

pytestmark = pytest.mark.slow


def test_a_healthy_log(tmp_path: Path) -> None:
    with running_log(tmp_path) as log:
        log.wait("the map", lambda: log.get("/map/checkpoint").status == 200)
        environment = {**os.environ, "KTLOG_DIAL": str(log.directory / "dial.json")}
        command = [sys.executable, "-m", "ktlog", "doctor", "--dir", str(log.settings.directory), "--json"]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout)["findings"]
        assert [one for one in found if one["state"] == "bad"] == [], done.stderr
        assert done.returncode == 0
        assert {"Running", "Reachable", "Clock", "Checkpoint", "Answers", "Paths", "Witness", "Cosigned"} <= {
            one["name"] for one in found
        }
