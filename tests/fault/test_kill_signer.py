"""kill -9 of the process that holds the keys: the sequencer ends with it, and what the two did next is one history."""

from __future__ import annotations

import pytest

from ktlog.operator import head, signer
from ktlog.operator.service import TRY_AGAIN
from tests.fault.test_kill_hooks import SECONDS, Sent, Site, recover, site

__all__ = ["site"]  # the fixture


def kill_signer(site: Site, hook: str) -> Sent:
    """Only the signer reaches these hooks in a running log."""
    process, sent = site.start(KTLOG_KILL_AT=hook), Sent()
    site.send_until_dead(process, sent)
    # Before the sequencer was at work, it is to be tried again like any other thing that is missing at a start.
    assert process.wait(SECONDS) in (70, TRY_AGAIN), site.output()
    assert "the signer" in site.output()
    return sent


@pytest.mark.parametrize(("hook", "occurrence"), [
    *((hook, 2) for hook in head.HOOKS), ("signer.entries_signed", 1), ("signer.answered", 9),
])
def test_killed_while_it_signs(site, hook, occurrence):
    sent = kill_signer(site, f"{hook}:{occurrence}")
    if hook == "signer.entries_signed":
        assert (len(sent.answered), len(sent.unanswered)) == (0, 1)
    recover(site, sent)


@pytest.mark.slow
@pytest.mark.parametrize("occurrence", [1, 3, 4])
@pytest.mark.parametrize("hook", [*head.HOOKS, *signer.HOOKS])
def test_killed_at_other_times(site, hook, occurrence):
    recover(site, kill_signer(site, f"{hook}:{occurrence}"))
