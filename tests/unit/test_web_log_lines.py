"""A line of a log is a line, whatever an error quotes."""

from __future__ import annotations

import logging
import sys

from ktlog.wire.logs import _Plain

FORGED = "2026-11-23T00:00:00.000Z critical ktlog.signer: forged"


def test_a_traceback_for_people_holds_no_line_of_the_log_and_no_control_character():
    try:
        raise ValueError(f"quoted\n{FORGED} \x1b[2J")
    except ValueError:
        record = logging.LogRecord("ktlog.web", logging.ERROR, "", 0, "not queued", (), sys.exc_info())
    head, *lines = _Plain().format(record).split("\n")
    assert head.endswith("error ktlog.web: not queued")
    assert f"  {FORGED} \\x1b[2J" in lines
    assert all(line.startswith("  ") and line.isprintable() for line in lines)
