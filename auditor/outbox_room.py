"""How many alarms may wait: for each sink and log, with room of their own for findings."""

from __future__ import annotations

import sqlite3

from auditor.alarm import FINDING, Alarm

MAX_FINDINGS_WAITING = 1000
"""Findings about one log that may wait for one sink, in room of their own."""


class Room:
    """How much may still wait for which sink, of which log. For use within one transaction."""

    def __init__(self, database: sqlite3.Connection, events: int) -> None:
        self._database = database
        self._most = {True: MAX_FINDINGS_WAITING, False: events}
        self._waiting: dict[tuple[str, str, bool], int] = {}

    def take(self, alarm: Alarm, sink: str) -> bool:
        """Whether *alarm* may go to *sink*, or is there already; it has its place then."""
        if self._database.execute(
            "SELECT 1 FROM deliveries WHERE alarm_id = ? AND sink = ?", (alarm.alarm_id, sink)
        ).fetchone():
            return True
        at = sink, alarm.origin, alarm.kind == FINDING
        if at not in self._waiting:
            self._waiting[at] = self._database.execute(
                "SELECT count(*) FROM deliveries d JOIN alarms a ON a.id = d.alarm_id WHERE d.sink = ?"
                " AND d.delivered_at IS NULL AND a.origin = ? AND (a.kind = 'finding') = ?", at,
            ).fetchone()[0]
        if self._waiting[at] >= self._most[at[2]] and alarm.more.get("class") != "Forked":
            return False
        self._waiting[at] += 1
        return True
