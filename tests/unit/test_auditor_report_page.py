"""The report page: what it says, that it says it the same way each time, and that nothing breaks out of it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from auditor_world import ALICE, BOB, NOW, ORIGIN, World, honest_world, log_signers, policy_bytes
from client_world import remembering_argon2id

from auditor import cli
from auditor.convict import conviction
from auditor.events import ERASURE, Event, erased_name
from auditor.evidence.judge import Known
from auditor.findings_store import FindingStore
from auditor.history import AUDITS, BUCKETS, FIRST_STEP_SECONDS, NOTABLE, AuditHistory, load_history
from auditor.page import render
from auditor.report import Coverage, Finding, Report
from auditor.summary import summarise
from ktlog.errors import StoreError
from ktlog.pkd import attributes
from ktlog.pkd.erasure import map_index
from ktlog.pkd.messages import Fireproof

HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\u202e\x1b[2J</title></style>'
VOID = {"meta", "br", "col"}


def event(at: int, action: str = "AddKey", **members: object) -> Event:
    return replace(Event(ORIGIN, at, action, (ALICE,), time=NOW + at), **members)


def report(size: int = 10, **members: object) -> Report:
    made = Report(ORIGIN, Coverage("all"), Coverage("all"), tree_size=size, root=bytes(32), read_to=size)
    for name, value in members.items():
        setattr(made, name, value)
    return made


def history(directory: Path, *events: Event, **members: object) -> dict:
    kept = AuditHistory(directory, ORIGIN)
    kept.take(events)
    kept.add(report(**members), NOW)
    return load_history(directory, ORIGIN)


class Page(HTMLParser):
    """What is in a page: its elements, all balanced, its addresses and its words."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(data.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "srcset")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page(directory: Path, saved: dict, watched: tuple[dict, ...] = ()) -> Page:
    data = render(summarise(saved, watched), directory)
    assert data == render(summarise(json.loads(json.dumps(saved)), watched), directory)
    return Page(data)


def row(**members: object) -> dict:
    return {
        "name": "OldMap", "class": "Stale", "what": "late", "leaf_index": None, "open": True, "first_seen": NOW,
        "last_seen": NOW + 60, "count": 2, "evidence": None,
    } | members


@pytest.mark.parametrize(("finding", "word"), [
    (None, "No fault found in what was checked"), ("Forked", "Convicted"), ("Invalid", "Faults found"),
    ("PolicyUnmet", "Too few witnesses"), ("Stale", "Old, or behind"), ("Unreachable", "Not reachable"),
])
def test_the_verdict_comes_first_in_words(tmp_path: Path, finding: str | None, word: str) -> None:
    made = report()
    if finding is not None:
        made.findings.add(Finding("AnyName", finding, "so it is"))
    kept = AuditHistory(tmp_path, ORIGIN)
    kept.add(made, NOW)
    words = page(tmp_path, load_history(tmp_path, ORIGIN)).words
    verdict = words.partition("Entries")[0]
    assert word in verdict and ORIGIN in verdict
    assert ("so it is" in words) == (finding is not None)


def test_nobody_is_called_clean_for_less_than_all(tmp_path: Path) -> None:
    saved = history(tmp_path)
    assert summarise(saved)["verdict"] == {"state": "partly", "complete": False}
    saved["audits"][-1]["report"]["complete"] = True
    assert summarise(saved)["verdict"] == {"state": "clean", "complete": True}
    assert "All 10 entries" in page(tmp_path, saved).words
    # What a watch has open counts as well, and what is over does not.
    assert summarise(saved, [row()])["verdict"]["state"] == "stale"
    assert summarise(saved, [row(open=False)])["verdict"]["state"] == "clean"


def test_what_an_audit_and_a_watch_both_saw_is_one_finding(tmp_path: Path) -> None:
    made = report()
    for at in (3, 4):
        made.findings.add(Finding("BadMessage", "Invalid", f"entry {at} is false", at))
    kept = AuditHistory(tmp_path, ORIGIN)
    kept.add(made, NOW + 90)
    watched = (row(name="BadMessage", **{"class": "Invalid"}, leaf_index=3, first_seen=NOW, last_seen=NOW + 60, key="3"),
               row(key="w1"))
    saved = load_history(tmp_path, ORIGIN)
    assert [(one["source"], one["leaf_index"], one["about"], one["first_seen"] - NOW, one["last_seen"] - NOW)
            for one in summarise(saved, watched)["findings"]] == [
        ("audit and watch", 3, "", 0, 90), ("audit", 4, "", 90, 90), ("watch", None, "w1", 0, 60),
    ]
    words = page(tmp_path, saved, watched).words
    assert words.count("first 15 January 2027") >= 2 or words.count(", first ") == 2
    saved["audits"][-1]["by"] = "watch"
    assert [one["source"] for one in summarise(saved, watched)["findings"]] == ["watch", "watch"]
    assert [one["leaf_index"] for one in summarise(saved)["findings"]] == [3, 4]  # watch.db is lost: nothing is hidden


def test_a_watch_keeps_one_outcome_an_hour(tmp_path: Path) -> None:
    kept = AuditHistory(tmp_path, ORIGIN)
    kept.add(report(size=9), NOW)
    for minute in range(1, 181):
        kept.add_reading(report(size=9 + minute, first=8 + minute), NOW + 60 * minute, 9 + minute, None, complete=True)
    saved = load_history(tmp_path, ORIGIN)
    assert [(one["time"] - NOW) // 60 for one in saved["audits"]] == [0, 1, 61, 121, 180] and saved["not_counted"] == 0
    before = kept.path.read_bytes()
    kept.add_reading(report(size=189, first=189), NOW + 10_900, 189, None, complete=True)
    assert kept.path.read_bytes() == before
    kept.add_reading(report(size=None, first=189), NOW + 10_960, 250, None, complete=False)
    assert load_history(tmp_path, ORIGIN)["read_to"] == 250


def test_what_strangers_wrote_stays_text(tmp_path: Path) -> None:
    made = report(cosigners=(HOSTILE,), evidence=[f"{tmp_path}/evidence/{HOSTILE.replace('/', '_')}.json"],
                  not_checked=[HOSTILE], taken={3: HOSTILE}, url=HOSTILE, origin=HOSTILE)
    made.findings.add(Finding(HOSTILE, "Invalid", HOSTILE, 7))
    kept = AuditHistory(tmp_path, HOSTILE)
    kept.take([event(3, HOSTILE, subjects=(HOSTILE,), reset=True, detail=HOSTILE), event(4, "BurnDown")])
    kept.add(made, NOW)
    saved = load_history(tmp_path, HOSTILE)
    saved["audits"][-1]["cosigned"] = {"log": NOW, "cosigners": {HOSTILE: NOW + 5}}
    found = page(tmp_path, saved, (row(name=HOSTILE, what=HOSTILE, evidence=f"javascript:{HOSTILE}"),))
    assert not {"script", "img", "iframe", "link", "object", "form"} & set(found.tags) and not found.handlers
    assert found.words.count("<script>") >= 8 and "\u202e" not in found.words and "\x1b" not in found.words
    assert found.addresses and all(re.fullmatch(r"\./[\w.%/~-]+", one) for one in found.addresses)


def test_nothing_is_asked_of_anybody(tmp_path: Path) -> None:
    data = render(summarise(history(tmp_path, event(1))), tmp_path)
    assert not re.search(rb"@import|url\(|https?:(?!//(alpha|keys))", data)
    assert b"default-src &#x27;none&#x27;" in data and b"\\u000a" not in data and b"prefers-color-scheme:dark" in data and b"@media print" in data


def test_events_are_counted_once(tmp_path: Path) -> None:
    events = [event(0), event(1, "BurnDown"), event(2, reset=True, detail="after a BurnDown"),
              event(2, ERASURE, subjects=(erased_name(map_index(ORIGIN, BOB)),), time=None)]
    for _ in range(2):  # as after a kill before the position was saved
        saved = history(tmp_path, *events)
    assert saved["actions"] == {"AddKey": 2, "BurnDown": 1, "Erasure": 1}
    found = summarise(saved)["scrutinise"]
    assert (found["burndowns"], found["erasures"], found["began_anew"]) == (1, 1, 1)
    assert [one["leaf_index"] for one in found["events"]] == [2, 2, 1]
    assert saved["not_counted"] == 0
    assert history(tmp_path, first=50, size=60)["not_counted"] == 40
    assert history(tmp_path, event(75), first=70, size=80)["not_counted"] == 50  # and what came after hides no gap


def test_who_is_erased_is_not_named_any_more(tmp_path: Path) -> None:
    gone = erased_name(map_index(ORIGIN, ALICE))
    history(tmp_path, event(0, "BurnDown", subjects=(ALICE, BOB)))
    saved = history(tmp_path, event(1, ERASURE, subjects=(gone,), time=None))
    assert [row[2] for row in saved["notable"]] == [[gone, BOB], [gone]]
    assert ALICE not in AuditHistory(tmp_path, ORIGIN).path.read_text()


def test_the_file_stays_small(tmp_path: Path) -> None:
    kept = AuditHistory(tmp_path, ORIGIN)
    kept.take(event(at, "BurnDown", time=NOW + at * 1000) for at in range(NOTABLE + 500))
    for at in range(AUDITS + 20):
        kept._saved["audits"].append({"time": at, "report": report().as_dict(), "cosigned": {}})
    kept.add(report(), NOW)
    saved = load_history(tmp_path, ORIGIN)
    assert len(saved["growth"]["points"]) <= BUCKETS and len(saved["audits"]) == AUDITS
    assert (len(saved["notable"]), saved["notable_omitted"]) == (NOTABLE, 500)
    sizes = [size for _, size in summarise({**saved, "audits": saved["audits"][-1:]})["growth"]]
    assert sizes == sorted(sizes) and sizes[-1] == NOTABLE + 500


def test_growth_begins_with_nothing_before_the_first_entry(tmp_path: Path) -> None:
    """The history knows a message's time to a step; nothing was in the log before the step of the first."""
    step, start = FIRST_STEP_SECONDS, NOW - NOW % FIRST_STEP_SECONDS
    kept = AuditHistory(tmp_path, ORIGIN)
    kept.take([event(0, time=start + 1), event(1, time=start + 2)])
    kept.add(report(size=2), start + 60)
    assert summarise(load_history(tmp_path, ORIGIN))["growth"] == [[start, 0], [start + 60, 2]]
    kept.take([event(2, time=start + 2 * step + 5)])
    kept.add(report(size=3, first=2), start + 5 * step)
    saved = load_history(tmp_path, ORIGIN)
    assert summarise(saved)["growth"] == [
        [start, 0], [start + 60, 2], [start + step, 2], [start + 3 * step, 3], [start + 5 * step, 3],
    ]
    # Who did not see the beginning does not know when it was.
    saved["not_counted"] = 2
    assert summarise(saved)["growth"][0] == [start + 60, 2]


@pytest.mark.parametrize(("tier", "maps", "row"), [
    ("semantic", (3, 3, 3), ("new maps, derived from the entries", 3, 3)),
    ("semantic", (3, 3, 1), ("new maps, derived from the entries", 1, 3)),
    ("structural", (3, 2, 0), ("new maps, followed from the one before", 2, 3)),
    ("semantic", (0, 0, 0), ("new maps, derived from the entries", 0, None)),
])
def test_the_map_is_among_what_was_checked(tmp_path: Path, tier: str, maps: tuple[int, int, int], row: tuple) -> None:
    leaves, followed, derived = maps
    saved = history(tmp_path, tier=tier, map_leaves=leaves, map_followed=followed, map_derived=derived)
    (found,) = [one for one in summarise(saved)["checked"] if "maps" in one["what"]]
    assert (found["what"], found["checked"], found["total"]) == row
    assert row[0] in page(tmp_path, saved).words
    del saved["audits"][-1]["report"]["map"]  # as of an earlier release
    (found,) = [one for one in summarise(saved)["checked"] if "maps" in one["what"]]
    assert (found["checked"], found["total"]) == (0, None)


def test_latency_is_counted_from_the_logs_own_signature(tmp_path: Path) -> None:
    saved = history(tmp_path)
    one = saved["audits"][0]
    saved["audits"] = [
        {**one, "cosigned": {"log": NOW, "cosigners": {"w1": NOW + late, "w2": NOW - 3}}} for late in (4, 8, 30)
    ] + [{**one, "cosigned": {"log": None, "cosigners": {"w3": NOW}}}]
    assert summarise(saved)["latency"] == [
        {"cosigner": "w1", "heads": 3, "least": 4, "median": 8, "most": 30},
        {"cosigner": "w2", "heads": 3, "least": 0, "median": 0, "most": 0},
        {"cosigner": "w3", "heads": 0, "least": None, "median": None, "most": None},
    ]
    assert "states no time" in page(tmp_path, saved).words


def test_a_damaged_history_is_never_ignored(tmp_path: Path) -> None:
    path = AuditHistory(tmp_path, ORIGIN).path
    path.parent.mkdir()
    for text in ("", "[]", '{"format": "x"}', json.dumps(history(tmp_path / "b") | {"audits": 3}), "[" * 99999):
        path.write_text(text)
        with pytest.raises(StoreError, match="BadHistory"):
            load_history(tmp_path, ORIGIN)


# -- the commands


class Ran:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)

    def __call__(self, world: World | None, *words: object) -> tuple[int, str, str]:
        from contextlib import nullcontext

        from auditor.commands import audit, verify_evidence

        for module in (audit, verify_evidence):
            self._patch.setattr(module, "fetcher", lambda dial: nullcontext(world))
        self._patch.setattr("time.time", lambda: NOW)
        self._patch.setattr(sys, "argv", ["ktlog-auditor", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Ran:
    return Ran(monkeypatch, capsys)


def audit_words(tmp_path: Path) -> list[object]:
    (tmp_path / "policy").write_bytes(policy_bytes())
    return ["audit", ORIGIN, "--dir", tmp_path / "dir", "--policy", tmp_path / "policy", "--workers", 1]


def test_from_an_audit_to_its_page(run: Ran, tmp_path: Path) -> None:
    assert run(None, "report", ORIGIN, "--dir", tmp_path, "--json")[0] == 2
    assert run(honest_world().clone(), *audit_words(tmp_path))[0] == 0
    with FindingStore(tmp_path / "dir") as store:
        store.record(ORIGIN, Finding("Slow", "Stale", "it was slow"), NOW)
        store.record("other.example", Finding("Slow", "Stale", "another log"), NOW)
    words = ["report", f"https://{ORIGIN}/", "--dir", tmp_path / "dir", "-o", tmp_path / "page.html"]
    assert run(None, *words)[0] == 0
    first = (tmp_path / "page.html").read_bytes()
    code, out, _ = run(None, *words, "--json")
    assert code == 0 and (tmp_path / "page.html").read_bytes() == first
    numbers = json.loads(out)
    assert (numbers["tree_size"], numbers["verdict"]["state"]) == (10, "stale")
    assert numbers["actions"] == {"AddKey": 5, "Fireproof": 1, "MoveIdentity": 1, "RevokeKey": 1, "RevokeKeyThirdParty": 1}
    assert [one["cosigner"] for one in numbers["latency"]] == [f"w{n}.witness.example" for n in (1, 2, 3)]
    assert [one["what"] for one in numbers["findings"]] == ["it was slow"]
    assert run(None, "report", ORIGIN, "--dir", tmp_path / "dir")[0] == 2


def test_what_an_audit_finds_comes_with_evidence_where_it_can(run: Ran, tmp_path: Path) -> None:
    world = honest_world().clone()
    wire = dict(world.build(Fireproof(ALICE, world.next_time()), "alice-2"))
    preimage = json.dumps({name: wire[name] for name in ("!pkd-context", "action", "message", "recent-merkle-root",
                                                         "signature")}).encode()
    world.append(preimage, {})
    broken = bytearray(world.entries[4])
    broken[99] ^= 1
    world.entries[4] = bytes(broken)
    world.publish()
    code, out, _ = run(world, *audit_words(tmp_path), "--commitments", "none", "--json")
    found = json.loads(out)
    kinds = {Path(path).name.partition("-keys")[0] for path in found["evidence"]}
    assert code == 5 and kinds == {"bad-leaf-signature", "bad-message"}
    for path in found["evidence"]:
        assert conviction(Path(path).read_bytes(), Known((log_signers()[1].vkey,)))["convicts"]
        assert run(None, "verify-evidence", path, "--policy", tmp_path / "policy")[0] == 0
        assert run(None, "verify-evidence", path, "--vkey", log_signers(9)[1].vkey, "--vkey", log_signers()[1].vkey)[0] == 0
        assert run(None, "verify-evidence", path, "--vkey", log_signers(9)[1].vkey)[0] == 5
    _, numbers, _ = run(None, "report", ORIGIN, "--dir", tmp_path / "dir", "-o", tmp_path / "page.html", "--json")
    assert json.loads(numbers)["verdict"]["state"] == "convicted"
    links = Page((tmp_path / "page.html").read_bytes()).addresses
    assert sorted(links) == sorted(f"./dir/evidence/{Path(path).name}" for path in found["evidence"])


def test_a_record_is_looked_at_where_the_log_publishes_it(run: Ran, tmp_path: Path) -> None:
    world = honest_world().clone()
    world.records[0]["plain"]["actor"] = "https://alpha.example/users/mallo"
    world.publish()
    code, out, _ = run(world, *audit_words(tmp_path), "--json")
    (path,) = json.loads(out)["evidence"]
    vkey = log_signers()[1].vkey
    assert code == 5 and "wrong-record" in path
    code, out, _ = run(world, "verify-evidence", path, "--vkey", vkey, "--log", f"https://{ORIGIN}", "--json")
    assert code == 0 and json.loads(out)["rests_on"]
    for log in ((), ("--log", tmp_path)):
        assert run(world, "verify-evidence", path, "--vkey", vkey, *log)[0] == 5
    # The same file convicts nobody once the log shows what it committed to.
    assert run(honest_world().clone(), "verify-evidence", path, "--vkey", vkey, "--log", f"https://{ORIGIN}")[0] == 5
