"""Work that comes in the meantime is done together; and what is logged of it is written together."""

from __future__ import annotations

import io
import logging

import pytest

from ktlog.wire.logs import configure, lines_at_once
from witness.together import LEADERS, MOST, Together


def test_so_many_lead_and_each_takes_what_has_come_in_its_order():
    done: list[list[int]] = []

    def work(items) -> None:
        done.append(list(items))
        if len(done) == 1:  # these come while it works, and nobody needs to lead for them
            assert not any([together.put(number) for number in range(100, 100 + MOST + 3)][LEADERS - 1:])

    together: Together[int] = Together(work)
    assert together.put(0)
    together.lead()
    assert done == [[0], list(range(100, 100 + MOST)), [100 + MOST, 101 + MOST, 102 + MOST]]


def test_when_nothing_waits_the_next_one_asks_for_a_leader_again():
    done: list[int] = []
    together: Together[int] = Together(done.extend)
    asked = [together.put(number) for number in range(LEADERS + 2)]
    assert asked == [True] * LEADERS + [False] * 2
    for _ in range(LEADERS):
        together.lead()
    assert done == list(range(LEADERS + 2))
    assert together.put(9)


@pytest.fixture
def lines():
    root = logging.getLogger()
    before, level, flags = root.handlers[:], root.level, (logging.logThreads, logging._srcfile)
    stream = io.StringIO()
    configure("logfmt", "info", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = logging.logAsyncioTasks = flags[0]
    logging._srcfile = flags[1]


def test_lines_are_written_in_one_piece_and_none_is_lost(lines):
    log = logging.getLogger("ktlog.test")
    with pytest.raises(KeyError), lines_at_once():
        log.info("one")
        with lines_at_once():
            log.info("within")
        assert [line.rpartition("=")[2] for line in lines.getvalue().splitlines()] == ["within"]
        log.info("two")
        raise KeyError
    log.info("three")
    assert [line.rpartition("=")[2] for line in lines.getvalue().splitlines()] == ["within", "one", "two", "three"]
