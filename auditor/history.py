"""What an auditor remembers of a log for its report: one small file a log, ``DIR/reports/<origin>.json``.

An audit in a watch's ``DIR/logs/<origin>`` goes on where the watch is, and its outcome goes to the watch's file.

It holds the outcome of the last audits, who cosigned each head and when, how the log grew by its messages' own times,
how often each action occurred, and the events that the specification asks the community to look at: BurnDowns,
erasures, and actors who began anew. Events are counted once, by leaf index, however often an audit is repeated. As
long as nothing was audited, it holds what a watch's looks saw, the heads alone.

The file proves nothing and is trusted by nobody but who wrote it; if it is lost, an audit with ``--from-start`` writes
it anew. Its size is bounded: AUDITS outcomes, NOTABLE events, BUCKETS points of growth.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from auditor.events import ERASURE, Event, index_of
from auditor.findings_store import DATABASE
from auditor.report import Coverage, Report
from auditor.state import origin_filename
from ktlog.client.verify import Head
from ktlog.durable import read_file, write_atomic
from ktlog.errors import KtlogError, StoreError
from ktlog.tlog.note import ED25519, open_note, parse_note
from ktlog.tlog.policy import Policy

FORMAT = "ktlog-audit-history/v1"
AUDITS, NOTABLE, BUCKETS = 400, 1000, 800
FIRST_STEP_SECONDS = 900
MAX_FILE_BYTES = 32 << 20
WATCH, LOOK, WATCH_SECONDS = "watch", "look", 3600
"""What it was, where it was no `audit`: a watch's reading, or a look of it, which compares heads and reads no entry;
and how far apart their outcomes are kept, so that AUDITS are weeks."""
QUIET_SECONDS = 600
"""How old the outcome of a watch becomes while nothing happens."""
SAVE_EVERY = 4096
"""Entries. A file is written and synced each time, which takes a few milliseconds."""

Saved = dict[str, Any]


def home(directory: Path, origin: str) -> Path:
    """The directory that has the history of the log *origin*: of a watch's ``logs/<origin>``, the watch's own."""
    inner = directory.absolute()
    watch = inner.parent.parent
    is_inner = (inner.parent.name, inner.name) == ("logs", origin_filename(origin)) and (watch / DATABASE).exists()
    return watch if is_inner else directory


def history_path(directory: Path, origin: str) -> Path:
    """Where the history of the log *origin* is kept below an auditor's directory."""
    return home(directory, origin) / "reports" / f"{origin_filename(origin)}.json"


class AuditHistory:
    """The history of one log. Nothing is written before :meth:`save`. Safe to use from two threads.

    Raises:
        StoreError: ``BadHistory``: the file is no history of this log.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        self.path = history_path(directory, origin)
        self._written = 0
        self._saved = load_history(directory, origin) or {
            "format": FORMAT, "origin": origin, "covered": 0, "read_to": 0, "not_counted": 0, "erasures": 0,
            "actions": {}, "notable": [], "notable_omitted": 0,
            "growth": {"step": FIRST_STEP_SECONDS, "points": {}}, "audits": [],
        }
        self._known = max(self._saved["read_to"], self._saved["covered"])
        self._lock = threading.RLock()

    def take(self, events: Iterable[Event]) -> None:
        """Count *events* that were not counted yet: a hook for a follower's ``on_events``.

        They are written every now and then: what a kill takes away is not counted, and the report says how many.
        """
        with self._lock:
            self._take(events)

    def _take(self, events: Iterable[Event]) -> None:
        before, erased = self._saved["covered"], self._saved["erasures"]
        for event in events:
            if event.action == ERASURE:
                if (event.leaf_index, list(event.subjects)) in [(at, who) for at, _, who, *_ in self._erasures()]:
                    continue
                self._saved["erasures"] += 1
                self._forget(event)
            elif event.leaf_index < before:
                continue
            else:
                self._saved["covered"] = max(self._saved["covered"], event.leaf_index + 1)
            self._count(event)
        if self._saved["covered"] >= self._written + SAVE_EVERY or erased != self._saved["erasures"]:
            self.save()

    def _forget(self, erasure: Event) -> None:
        """Who is erased is named nowhere any more; what happened to them stays."""
        for name in erasure.subjects:
            index = index_of(self._saved["origin"], name)
            for row in self._saved["notable"]:
                row[2] = [name if index_of(self._saved["origin"], one) == index else one for one in row[2]]

    def _erasures(self) -> list[list[Any]]:
        return [row for row in self._saved["notable"] if row[1] == ERASURE]

    def _count(self, event: Event) -> None:
        actions = self._saved["actions"]
        actions[event.action] = actions.get(event.action, 0) + 1
        if event.action in ("BurnDown", ERASURE) or event.reset:
            notable = self._saved["notable"]
            notable.append([
                event.leaf_index, event.action, list(event.subjects), event.time, event.reset, event.detail,
            ])
            if len(notable) > NOTABLE:
                self._saved["notable_omitted"] += len(notable) - NOTABLE
                del notable[:-NOTABLE]
        if event.time is not None and event.action != ERASURE:
            self._grow(event.time, event.leaf_index + 1)

    def _grow(self, time: int, size: int) -> None:
        growth = self._saved["growth"]
        points, step = growth["points"], growth["step"]
        bucket = str(time - time % step)
        points[bucket] = max(points.get(bucket, 0), size)
        while len(points) > BUCKETS:
            step *= 2
            merged: dict[str, int] = {}
            for at, most in points.items():
                coarse = str(int(at) - int(at) % step)
                merged[coarse] = max(merged.get(coarse, 0), most)
            points = merged
        growth["points"], growth["step"] = points, step

    def add(
        self, report: Report, now: int, policy: Policy | None = None,
        evidence: Mapping[tuple[str, int | None], str] | None = None, by: str = "",
    ) -> None:
        """Remember the outcome of an audit.

        Args:
            now: when, in Unix seconds. evidence: paths of files, by name and leaf index of what they are about.
            by: WATCH for a watch's reading.
        """
        with self._lock:
            self._drop_looks()
            self._add(report.as_dict(), report, now, policy, evidence, by)

    def _add(
        self, outcome: Saved, report: Report, now: int, policy: Policy | None,
        evidence: Mapping[tuple[str, int | None], str] | None, by: str,
    ) -> None:
        for finding in outcome["findings"]:
            finding["evidence"] = (evidence or {}).get((finding["name"], finding.get("leaf_index")))
        self._pass(report.first, report.read_to if report.ok else 0)
        audits: list[Saved] = self._saved["audits"]
        # Only the newest says all; of the older ones the counts and names are enough.
        for older in audits[-1:]:
            older["report"] = {name: older["report"].get(name) for name in _KEPT}
        last = audits[-2:]
        if by and [one.get("by") for one in last] == [by, by] and last[1]["time"] - last[0]["time"] < WATCH_SECONDS:
            audits.pop()
        audits.append({
            "time": now, "report": outcome, "cosigned": cosigned_at(report, policy), **({"by": by} if by else {}),
        })
        del audits[:-AUDITS]
        self.save()

    def add_reading(self, report: Report, now: int, size: int, policy: Policy | None, *, complete: bool) -> None:
        """Remember what a watch's reading came to. One that changes nothing is written only now and then.

        Args:
            size: up to where all is judged now. complete: whether it was read to its end; else only how far it came.
        """
        with self._lock:
            before = self._saved["audits"][-1:]
            if not complete:
                if self._pass(report.first, size):
                    self.save()
            elif not (
                before and before[0].get("by") == WATCH and report.first == size and report.ok
                and before[0]["report"]["ok"] and 0 <= now - before[0]["time"] < QUIET_SECONDS
            ):
                self._pass(report.first, size)
                self.add(report, now, policy, by=WATCH)

    def add_look(
        self, head: Head | None, now: int, policy: Policy | None, asked: Collection[str], silent: Collection[str],
        why: str,
    ) -> None:
        """Remember a look of a watch, as long as nothing of the log was ever audited: then that says more.

        Args:
            head: the largest that the log itself showed now; None when it showed none.
            asked: witnesses, mirrors and other addresses. silent: those of them that did not answer.
            why: in a sentence, why no entry is read.
        """
        with self._lock:
            last = self._saved["audits"][-1:]
            if last and last[0].get("by") != LOOK:
                return
            report = Report(self._saved["origin"], Coverage("none"), Coverage("none"))
            if head is not None:
                report.tree_size, report.root, report.signed_head = head.size, head.root, head.note
            report.cosigners = tuple(cosigned_at(report, policy)["cosigners"])
            report.skip(why)
            report.skip("Entries and their signatures, messages, what the map says of actors, and the API's answers:"
                        " none of them was looked at.")
            if policy is None:
                report.skip("Cosignatures: no policy was given.")
            for name in sorted(silent):
                report.skip(f"What was shown to the {name}: it did not answer.")
            if head is None:
                report.skip("The log showed no head at the last look.")
            looked = {"asked": sorted(asked), "silent": sorted(silent)}
            outcome = report.as_dict() | {"looked": looked}
            same = ("root", "cosigners", "looked", "not_checked")
            if not last or now - last[0]["time"] not in range(QUIET_SECONDS) or any(
                last[0]["report"].get(name) != outcome[name] for name in same
            ):
                self._add(outcome, report, now, policy, None, LOOK)

    def _drop_looks(self) -> None:
        audits = self._saved["audits"]
        audits[:] = [one for one in audits if one.get("by") != LOOK]

    def _pass(self, first: int, size: int) -> bool:
        """Entries from *first* up to *size* were read; whether that is news. What nobody counted before is missing."""
        saved = self._saved
        before = saved["read_to"], saved["not_counted"]
        # As of before these: what was taken of them meanwhile hides no gap.
        saved["not_counted"] += max(0, first - self._known)
        saved["read_to"] = max(saved["read_to"], size, first)
        self._known = max(saved["read_to"], saved["covered"])
        return before != (saved["read_to"], saved["not_counted"])

    def save(self) -> None:
        """Write the file in one atomic step."""
        text = json.dumps(self._saved, ensure_ascii=False, sort_keys=True) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, text.encode("utf-8", "backslashreplace"))
        self._written = self._saved["covered"]


_KEPT = ("tree_size", "root", "ok", "exit_code", "complete", "tier", "seconds", "cosigners")


def cosigned_at(report: Report, policy: Policy | None) -> dict[str, Any]:
    """Who cosigned the head of *report* and when, and when the log itself signed it (None where it does not say).

    The log's ML-DSA line has a time, its Ed25519 line has none. A cosigner with two keys counts with the later one.
    """
    if report.signed_head is None or policy is None:
        return {"log": None, "cosigners": {}}
    times: dict[str, int] = {}
    try:
        note = parse_note(report.signed_head)
        for item in policy.open_cosignatures(note):
            times[item.vkey.name] = max(times.get(item.vkey.name, 0), item.timestamp)
        own = [line.vkey for line in policy.logs if line.vkey.name == report.origin]
        signed = [item.timestamp for item in open_note(note, own) if item.vkey.algorithm != ED25519]
    except KtlogError:
        return {"log": None, "cosigners": {}}
    return {"log": max(signed, default=None), "cosigners": dict(sorted(times.items()))}


def load_history(directory: Path, origin: str) -> Saved | None:
    """The saved history of a log; None when there is none.

    Raises:
        StoreError: ``BadHistory``.
    """
    path = history_path(directory, origin)
    data = read_file(path)
    if data is None:
        return None
    try:
        saved = json.loads(data.decode("utf-8")) if len(data) <= MAX_FILE_BYTES else None
        if not isinstance(saved, dict) or saved["format"] != FORMAT or saved["origin"] != origin:
            raise ValueError("another file")
        for name, kind in _MEMBERS.items():
            if type(saved[name]) is not kind:
                raise ValueError(name)
    except (ValueError, KeyError, RecursionError):
        raise StoreError(
            "BadHistory", f"{path} is no history of the audits of {origin}",
            hint="Move it away and audit with --from-start: what it says is counted again.",
        ) from None
    return saved


_MEMBERS: dict[str, type] = {
    "covered": int, "read_to": int, "not_counted": int, "erasures": int, "actions": dict, "notable": list,
    "notable_omitted": int, "growth": dict, "audits": list,
}


def origins(directory: Path) -> Sequence[str]:
    """The logs that have a history in *directory*, sorted."""
    found = []
    for path in sorted((directory / "reports").glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8"))["origin"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(name for name in found if isinstance(name, str))
