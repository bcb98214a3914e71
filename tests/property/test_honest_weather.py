"""Honest logs under bad weather raise no alarm: a few runs each time, 500 with the slow tests, 10,000 by ``make faults``."""

from __future__ import annotations

import pytest

from tests.liars.__main__ import played
from tests.liars.log import SimLog

RUNS = 500
GROUP = 25


def check(seeds: range) -> None:
    failed = {outcome.seed: outcome.faults for outcome in map(played, seeds) if outcome.faults}
    assert not failed, "\n".join(
        f"python -m tests.liars --only {seed}\n    " + "\n    ".join(faults[:3]) for seed, faults in failed.items()
    )


def test_some_honest_runs_raise_no_alarm() -> None:
    check(range(1, 4))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, RUNS, GROUP))
def test_honest_runs_raise_no_alarm(first: int) -> None:
    check(range(first, first + GROUP))


def test_a_run_is_the_same_again() -> None:
    first, again = played(7), played(7)
    assert (first.steps, first.counts) == (again.steps, again.counts) and first.steps


def test_a_log_that_begins_to_lie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So these runs can fail at all."""
    publish, calls = SimLog.publish, []

    def lying(self: SimLog, *args, **options):
        calls.append(1)
        return publish(self, root=bytes(32) if len(calls) > 4 else None, **options)

    monkeypatch.setattr(SimLog, "publish", lying)
    assert any("TreeMismatch" in fault for fault in played(9).faults)
