"""The outbox: no alarm is lost, whatever dies and whichever sink is dead; none waits for another's sink."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from auditor.alarm import Alarm, alarm_id, finding_alarm, redact
from auditor.events import erased_name
from auditor.findings_store import FindingStore
from auditor.outbox import KEPT_SECONDS, Delivered, Outbox
from auditor.owners import Owners
from auditor.report import Finding
from ktlog.errors import StoreError, Unreachable
from ktlog.pkd.erasure import map_index
from ktlog.wire.prometheus import Page

ORIGIN = "keys.alpha.example"
ALICE, ALICE2 = "https://alpha.example/users/alice", "https://alpha.example/users/alice2"
NOW = 1_800_000_000


class Box:
    """A sink in memory. refuse: whether it takes an alarm with this document."""

    findings = True
    rewrites = False

    def __init__(self, name: str = "box", refuse: Callable[[Mapping[str, Any]], bool] = lambda document: False) -> None:
        self.name = name
        self.refuse = refuse
        self.got: list[Mapping[str, Any]] = []
        self.asked = 0

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None:
        self.asked += 1
        if self.refuse(document):
            raise Unreachable("Refused", "the sink is down")
        self.got.append(document)


def alarm(number: int, subject: str = ALICE, **more: Any) -> Alarm:
    return Alarm(
        alarm_id(ORIGIN, "event", "AddKey", str(number)), NOW + number, ORIGIN, "event", "AddKey",
        f"AddKey for {subject} (entry {number})", (subject,), {"leaf_index": number, **more},
    )


@pytest.fixture
def outbox(tmp_path: Path):
    with Outbox(tmp_path, max_waiting=20) as outbox:
        yield outbox


def test_the_same_alarm_twice_is_one_and_goes_to_each_sink_once(outbox: Outbox) -> None:
    first, second = Box("first"), Box("second")
    sinks = {"first": first, "second": second}
    assert outbox.put(alarm(1), {"first": ["mine"], "second": []})
    assert not outbox.put(alarm(1), {"first": ["mine"]})
    outbox.deliver(sinks, NOW + 9)
    assert outbox.deliver(sinks, NOW + 99).delivered == 0
    assert not outbox.put(alarm(1), {"first": ["mine"]})  # as after a crash before the position was saved
    assert [len(sink.got) for sink in (first, second)] == [1, 1] and outbox.waiting() == 0


def test_a_dead_sink_is_tried_ever_less_often_and_holds_nobody_up(outbox: Outbox) -> None:
    dead, alive = Box("dead", lambda document: True), Box("alive")
    for number in range(3):
        outbox.put(alarm(number), {"dead": [], "alive": []})
    when = []
    for second in range(0, 7200, 30):
        asked = dead.asked
        outbox.deliver({"dead": dead, "alive": alive}, NOW + 9 + second)
        when += [second] if dead.asked > asked else []
    gaps = [later - earlier for earlier, later in zip(when, when[1:], strict=False)]
    assert dead.asked == len(when) + 1  # two at first, to see whether one alarm was to blame; then one each time
    assert len(alive.got) == 3 and gaps[0] == 30 and gaps == sorted(gaps) and gaps[-1] == 600
    dead.refuse = lambda document: False
    outbox.deliver({"dead": dead, "alive": alive}, NOW + 7900)
    assert {item["leaf_index"] for item in dead.got} == {0, 1, 2} and outbox.waiting() == 0


def test_one_alarm_that_a_sink_refuses_does_not_block_those_behind_it(outbox: Outbox) -> None:
    picky = Box("picky", lambda document: document["leaf_index"] == 0)
    for number in range(4):
        outbox.put(alarm(number), {"picky": []})
    outbox.deliver({"picky": picky}, NOW + 9)
    assert [item["leaf_index"] for item in picky.got] == [1, 2, 3] and outbox.waiting() == 1


def test_at_the_bound_nothing_more_is_taken_and_nothing_is_lost(outbox: Outbox) -> None:
    for number in range(20):
        outbox.put(alarm(number), {"box": []})
    with pytest.raises(StoreError) as caught:
        outbox.put_all([(alarm(20), {"box": []}), (alarm(21), {"other": []})])
    assert caught.value.name == "OutboxFull" and outbox.waiting("box") == 20 and outbox.waiting("other") == 1
    outbox.deliver({"box": Box()}, NOW + 99)
    assert outbox.put(alarm(20), {"box": []})
    assert outbox.give_up("box") == 1 and outbox.waiting() == 1


def other_log(number: int, name: str = "AddKey") -> Alarm:
    return Alarm(alarm_id("b.example", "event", name, str(number)), NOW, "b.example", "event", name, "s", (),
                 {"leaf_index": number})


def test_a_full_sink_holds_up_its_log_alone_and_no_finding(outbox: Outbox, tmp_path: Path) -> None:
    both = {"dead": [], "good": []}
    with pytest.raises(StoreError, match="of keys.alpha.example for the sink dead"):
        outbox.put_all([(alarm(number), {"dead": []}) for number in range(21)])
    with pytest.raises(StoreError):
        outbox.put(alarm(99), both)  # the good sink has it, the dead one is owed it
    assert outbox.put(other_log(1), both)
    good, dead = Box("good"), Box("dead", lambda document: True)
    owners = Owners(outbox, {"dead": dead, "good": good})
    with FindingStore(tmp_path) as store:
        store.record(ORIGIN, Finding("TwoRoots", "Forked", "two trees"), NOW)
        store.tell_all(owners.finding, [ORIGIN])
        assert store.untold() == []
    outbox.deliver(owners.sinks, NOW + 99)
    assert [item["name"] for item in good.got] == ["TwoRoots", "AddKey", "AddKey"]
    dead.refuse = lambda document: False
    outbox.deliver(owners.sinks, NOW + 999)
    assert outbox.put(alarm(99), both)
    outbox.deliver(owners.sinks, NOW + 999)
    assert dead.got[-1]["leaf_index"] == 99 and len(good.got) == 3


def test_findings_have_room_of_their_own_and_what_convicts_always_fits(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.outbox_room.MAX_FINDINGS_WAITING", 1)
    owners = Owners(outbox, {"dead": Box("dead")})
    with FindingStore(tmp_path) as store:
        for name in ("Late", "BadPeer"):
            store.record(ORIGIN, Finding(name, "Stale", "x"), NOW)
        store.record("b.example", Finding("Late", "Stale", "x"), NOW)
        store.tell_all(owners.finding, ["b.example"])  # another log's owed finding is no failure of this one
        store.record(ORIGIN, Finding("TwoRoots", "Forked", "x"), NOW)
        with pytest.raises(StoreError, match="OutboxFull"):
            store.tell_all(owners.finding, [ORIGIN])
        assert [row.name for row in store.untold()] == ["BadPeer"] and outbox.waiting() == 3


def test_alarms_that_are_refused_one_by_one_delay_no_other(outbox: Outbox) -> None:
    class Small(Box):
        def send(self, document: Mapping[str, Any], *rest: Any) -> None:
            if document["name"] == "AddKey":
                self.asked += 1
                raise Unreachable("AlarmRefused", "answers 400")
            super().send(document, *rest)

    box = Small()
    for number in range(15):
        outbox.put(alarm(number), {"box": []})
    for second in range(2):
        outbox.deliver({"box": box}, NOW + 99 + second)
    assert box.asked == 15  # ten in a turn, the others in the next one: the sink does not rest
    outbox.put(other_log(1, "BurnDown"), {"box": []}, NOW)
    outbox.deliver({"box": box}, NOW + 102)
    assert [item["name"] for item in box.got] == ["BurnDown"] and outbox.waiting() == 15


def test_logs_and_actors_take_turns_and_findings_go_first(outbox: Outbox) -> None:
    box = Box()
    for number in range(3):
        outbox.put(alarm(number), {"box": []}, NOW)
    outbox.put(alarm(3, ALICE2), {"box": []}, NOW)
    outbox.put(Alarm("f" * 32, NOW + 5, "b.example", "event", "AddKey", "s", (), {"leaf_index": 9}), {"box": []}, NOW)
    outbox.put(finding_alarm(ORIGIN, Finding("Late", "Stale", "x", 7), True, NOW, NOW + 6), {"box": []}, NOW)
    outbox.deliver({"box": box}, NOW)
    assert [item["leaf_index"] for item in box.got] == [7, 0, 9, 3, 1, 2]


def test_what_is_too_large_comes_without_its_record_and_says_where_it_is(outbox: Outbox) -> None:
    class Small(Box):
        def send(self, document: Mapping[str, Any], *rest: Any) -> None:
            if document["record"]:
                raise Unreachable("TooLarge", "answers 413")
            super().send(document, *rest)

    box = Small()
    outbox.put(alarm(1, record={"message": "x"}, tlog_proof="y"), {"box": []})
    outbox.deliver({"box": box}, NOW + 9)
    assert box.got[0]["tlog_proof"] is None and "alarms --json" in box.got[0]["proof_missing"]
    assert outbox.rows()[0]["alarm"]["record"] == {"message": "x"} and outbox.waiting() == 0


def test_an_erasure_takes_the_name_out_of_the_findings_of_who_nobody_watches(outbox: Outbox, tmp_path: Path) -> None:
    with FindingStore(tmp_path) as store:
        store.record(ORIGIN, Finding("AnswerContradictsLog", "Invalid", f"{ALICE}: omits; {ALICE2}: too", 1), NOW)
        outbox.forget_actor(ORIGIN, map_index(ORIGIN, ALICE))
        what = store.all()[0].what
    assert what == f"{erased_name(map_index(ORIGIN, ALICE))}: omits; {ALICE2}: too"


def test_alarms_that_everybody_has_are_forgotten_in_time_and_waiting_ones_never(outbox: Outbox) -> None:
    outbox.put(alarm(1), {"box": []})
    outbox.put(alarm(2), {"gone": []})
    outbox.deliver({"box": Box()}, NOW + 9)
    outbox.put(alarm(KEPT_SECONDS + 60), {"box": []})
    outbox.deliver({"box": Box()}, NOW + KEPT_SECONDS + 60)
    assert {row["alarm"]["leaf_index"] for row in outbox.rows()} == {2, KEPT_SECONDS + 60}


_CHILD = """
import sys
from auditor.outbox import Outbox
from tests.unit.test_auditor_outbox import NOW, alarm
class Noting:
    name, findings, rewrites = "file", True, False
    def send(self, document, reasons, recent):
        with open(sys.argv[2], "a") as file:
            file.write(document["id"] + "\\n")
with Outbox(sys.argv[1]) as outbox:
    outbox.put(alarm(7), {"file": []})
    outbox.deliver({"file": Noting()}, NOW + 9)
"""


@pytest.mark.parametrize(("hook", "delivered"), [("outbox.put", 0), ("outbox.sent", 1)])
def test_killed_after_put_or_after_the_sink_took_it_the_alarm_comes_again_and_is_known_by_its_id(
    tmp_path: Path, hook: str, delivered: int
) -> None:
    taken = tmp_path / "taken"
    command = [sys.executable, "-c", _CHILD, str(tmp_path), str(taken)]
    killed = subprocess.run(command, env={**os.environ, "KTLOG_KILL_AT": hook}, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    lines = taken.read_text().split() if taken.exists() else []
    assert len(lines) == delivered
    with Outbox(tmp_path) as outbox:
        assert outbox.waiting() == 1
        box = Box("file")
        outbox.deliver({"file": box}, NOW + 99)
    assert {*lines, box.got[0]["id"]} == {alarm(7).alarm_id}


def test_an_erasure_takes_the_name_out_of_what_is_kept_and_leaves_others_alone(outbox: Outbox, tmp_path: Path) -> None:
    feed = Box("feed")
    record = {"leaf-index": 1, "message": "{}", "plain": {"actor": ALICE}, "salts": {"actor": "x"}, "withheld": False}
    outbox.put(alarm(1, record=record, keys_added=["mldsa44:AAAA"], entry="e"), {"feed": [], "box": []})
    outbox.put(alarm(2, ALICE2, keys_added=["mldsa44:BBBB"]), {"feed": []})
    finding = Finding("AnswerContradictsLog", "Invalid", f"{ALICE}: the API omits a key", 1)
    outbox.put(finding_alarm(ORIGIN, finding, True, NOW, NOW), {"box": []})
    outbox.deliver({"feed": feed}, NOW + 9)
    index = map_index(ORIGIN, ALICE)
    assert outbox.forget_actor(ORIGIN, index, ["feed"]) == 2
    assert outbox.forget_actor(ORIGIN, index, ["feed"]) == 0
    box = Box("box")
    outbox.deliver({"feed": feed, "box": box}, NOW + 99)
    again, other = feed.got[2], next(item for item in feed.got if item["leaf_index"] == 2)
    assert again["subjects"] == [erased_name(index)] and again["keys_added"] == [] and again["entry"] == "e"
    assert again["record"]["plain"] == {"actor": None} and again["redacted"] is True
    assert other["subjects"] == [ALICE2] and other["keys_added"] == ["mldsa44:BBBB"]
    assert len(box.got) == 2 and ALICE not in str([again, *box.got])
    outbox.close()
    assert f"{ALICE} ".encode() not in (tmp_path / "watch.db").read_bytes()  # no freed page has it either


def test_redacting_cuts_whole_names_only() -> None:
    cleaned = redact({"what": f"{ALICE}: no; {ALICE2}; ({ALICE})", "subjects": []}, ORIGIN, [ALICE])
    name = erased_name(map_index(ORIGIN, ALICE))
    assert cleaned["what"] == f"{name}: no; {ALICE2}; ({name})"


def test_what_the_watch_finds_goes_to_those_who_want_findings(outbox: Outbox, tmp_path: Path) -> None:
    deaf = Box("deaf")
    deaf.findings = False
    box = Box("box")
    owners = Owners(outbox, {"deaf": deaf, "box": box})
    store = FindingStore(tmp_path)
    store.record(ORIGIN, Finding("RolledBack", "Stale", "it shows 9 entries;\x1b[2J 10 were signed"), NOW)
    for _ in range(2):
        for row in store.untold():
            store.tell(row, owners.finding)
    store.close_absent(ORIGIN, [], NOW + 60)
    for row in store.untold():
        store.tell(row, owners.finding)
    store.close()
    outbox.deliver(owners.sinks, NOW + 99)
    assert [(item["name"], item["state"]) for item in box.got] == [("RolledBack", "opened"), ("RolledBack", "closed")]
    assert "\x1b" not in box.got[0]["what"] and not deaf.got


def test_metrics_count_by_kind_and_show_what_waits(outbox: Outbox) -> None:
    for number in range(2):
        outbox.put(alarm(number), {"box": [], "dead": []})
    outbox.deliver({"box": Box(), "dead": Box("dead", lambda document: True)}, NOW + 9)
    page = Page("ktlog_auditor_")
    outbox.add_metrics(page, NOW + 10)
    lines = page.encode().decode().split("\n")
    assert f'ktlog_auditor_alarms_total{{origin="{ORIGIN}",kind="event",name="AddKey"}} 2' in lines
    assert 'ktlog_auditor_alarms_waiting{sink="dead"} 2' in lines
    assert 'ktlog_auditor_alarms_oldest_waiting_seconds{sink="dead"} 10' in lines
    assert 'ktlog_auditor_sink_failures{sink="dead"} 1' in lines
