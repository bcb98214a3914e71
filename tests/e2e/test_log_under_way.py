"""Messages for which no thread waits: what becomes of them when the sequencer stops for a while, or the log ends."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from ktlog.operator.stores import open_log
from ktlog.tlog.encoding import decode_base64url
from tests.running_log import USERS, Answer, RunningLog, actor, running_log

SECONDS = 40


@pytest.fixture
def log(tmp_path):
    with running_log(tmp_path, workers=1, threads=12) as running:  # half of them may fetch actors
        yield running


def pids(log: RunningLog) -> dict[str, int]:
    return json.loads((log.settings.directory / "pids.json").read_bytes())


def check_accepted(log: RunningLog, answers: list[Answer]) -> None:
    """Whoever was told so has their entry at the index that they were told."""
    with closing(open_log(log.settings, read_only=True)) as store:
        for answer in answers:
            receipt = answer.json()
            (entry,) = store.entries(receipt["leaf-index"], receipt["leaf-index"] + 1)
            assert entry == decode_base64url(receipt["merkle-leaf"])
    indexes = [answer.json()["leaf-index"] for answer in answers]
    assert len({*indexes}) == len(indexes)


def test_a_sequencer_that_stops_for_a_while_keeps_messages_waiting_and_no_lookup(log):
    assert log.enrol(USERS[0]).status == 202
    log.wait_published(1)
    sequencer = pids(log)["sequencer"]
    with ThreadPoolExecutor(len(USERS)) as pool:
        os.kill(sequencer, signal.SIGSTOP)
        try:
            under_way = [pool.submit(log.enrol, user) for user in USERS[1:]]
            until = time.monotonic() + 3
            while time.monotonic() < until:
                began = time.monotonic()
                assert log.get(f"/api/actor/{actor(USERS[0]).replace('/', '%2F').replace(':', '%3A')}/keys").status == 200
                assert time.monotonic() - began < 2.5, "a thread is left for it"
            assert not any(one.done() for one in under_way)
        finally:
            os.kill(sequencer, signal.SIGCONT)
        answers = [one.result(SECONDS) for one in under_way]
    assert [answer.status for answer in answers] == [202] * len(answers), [answer.body for answer in answers]
    check_accepted(log, answers)
    assert pids(log)["sequencer"] == sequencer


def test_what_is_under_way_when_the_log_is_told_to_end_is_answered(log):
    assert log.enrol(USERS[0]).status == 202
    log.wait_published(1)
    found = pids(log)
    with ThreadPoolExecutor(len(USERS)) as pool:
        os.kill(found["sequencer"], signal.SIGSTOP)
        under_way = [pool.submit(log.enrol, user) for user in USERS[1:]]
        time.sleep(2)  # until all of them wait for it
        os.kill(found["supervisor"], signal.SIGTERM)
        time.sleep(1)
        os.kill(found["sequencer"], signal.SIGCONT)
        answers = [one.result(SECONDS) for one in under_way]
    assert [answer.status for answer in answers] == [202] * len(answers), [answer.body for answer in answers]
    check_accepted(log, answers)
