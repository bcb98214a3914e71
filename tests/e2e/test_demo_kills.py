"""kill -9 for every process of the demo: it ends, names a check, and leaves nothing running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktlog.demo.liar import LIES
from ktlog.demo.processes import is_alive
from ktlog.demo.story import CHECKS
from tests.demo_run import PROCESSES, demo
from tests.demo_saboteur import Saboteur

pytestmark = pytest.mark.slow

SUPERVISED = ("sequencer", "web", "replies")
"""What a log's supervisor starts, and starts again."""


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_is_noticed_and_nothing_is_left(name):
    with demo("--once", "--json", "--actors", "4", "--pause-before", "enrolled") as run:
        paused = run.paused()
        assert set(paused.processes) == set(PROCESSES), "each of them, and no other, is killed here"
        Saboteur(paused).kill(name)
        run.proceed()
        assert run.wait() == 5
        failed = run.report()["failed"]
        # Which check notices is a matter of time: a killed server's workers serve on for a moment, a supervisor
        # starts its own again, and one witness of three may fail until every one has to refuse a lie.
        assert failed["name"] in CHECKS[1:]
        how = "" if name.startswith(SUPERVISED) else " (-9)"
        assert f"  {name}{how} ended by itself" in failed["message"]
        assert run.left_running() == []
        assert [one for one, (pid, _) in paused.processes.items() if is_alive(pid)] == []


@pytest.mark.parametrize("lie", LIES)
def test_a_killed_liar_is_noticed_and_nothing_is_left(lie):
    with demo("--once", "--json", "--actors", "4", "--pause-before", lie) as run:
        saboteur = Saboteur(run.paused())
        try:
            saboteur.kill_liar(lie)
            run.proceed()
            assert run.wait() == 5
        finally:
            saboteur.close()
        failed = run.report()["failed"]
        assert failed["name"] == lie
        assert f"liar-{lie} (-9) ended by itself" in failed["message"]
        assert run.left_running() == []
        started = {Path(path).stem for path in os.listdir(saboteur.directory / "output")}
        told = LIES[: LIES.index(lie) + 1]
        assert started == {one for one in PROCESSES if not one.startswith(SUPERVISED)} | {f"liar-{one}" for one in told}
