"""The numbers of a report page, of one log: from the history of its audits and the findings of a watch. Pure.

The same history and the same findings give the same summary. It knows no clock: what it says is as of the last audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from statistics import median
from typing import Any

from auditor.history import LOOK, WATCH
from auditor.report import EXIT_CODES

FORMAT = "ktlog-report/v1"
SHOWN_EVENTS = 100

Summary = dict[str, Any]


def summarise(history: dict[str, Any], watched: Sequence[dict[str, Any]] | None = None) -> Summary:
    """What the page shows and ``--json`` prints.

    Args:
        history: as :func:`auditor.history.load_history` gives it, with one audit, or one look, at least.
        watched: rows of a watch's findings about this log and its map, as dictionaries; None where nobody watches.
    """
    audits = history["audits"]
    last = audits[-1]
    report = last["report"]
    # What a watch's reading met is among the watch's findings, if it held for long enough to be one.
    told_by_watch = watched is not None and last.get("by") == WATCH
    looks = sum(one.get("by") == LOOK for one in audits)
    findings = _findings([] if told_by_watch else report["findings"], last["time"], watched or ())
    return {
        "format": FORMAT,
        "origin": history["origin"],
        "as_of": last["time"],
        "verdict": _verdict(report, findings),
        "audits": {
            "count": len(audits) - looks, "first": audits[0]["time"],
            "clean": 0 if looks else sum(bool(one["report"]["ok"]) for one in audits),
            "by_watch": sum(one.get("by") == WATCH for one in audits), "looks": looks,
        },
        "tree_size": report["tree_size"],
        "root": report["root"],
        "report": report,
        "checked": _checked(report),
        "not_checked": report["not_checked"],
        "growth": _growth(history, audits),
        "latency": _latency(audits),
        "actions": dict(sorted(history["actions"].items(), key=lambda one: (-one[1], one[0]))),
        "not_counted": history["not_counted"],
        "scrutinise": _scrutinise(history),
        "findings": findings,
        "evidence": sorted({*report["evidence"], *(one["evidence"] for one in findings if one["evidence"])}),
    }


def _verdict(report: dict[str, Any], findings: Sequence[dict[str, Any]]) -> Summary:
    """The state in one word, and whether everything was checked."""
    classes = {"Forked" if finding["proven"] else finding["class"] for finding in findings if finding["open"]}
    gravest = next((kind for kind in EXIT_CODES if kind in classes), None)
    states = {
        "Forked": "convicted", "Invalid": "faults", "PolicyUnmet": "unwitnessed", "Stale": "stale",
        "Unreachable": "unreachable",
    }
    if gravest is not None:
        return {"state": states[gravest], "complete": False}
    if report.get("looked"):
        return {"state": "unaudited", "complete": False}
    return {"state": "clean" if report["complete"] else "partly", "complete": bool(report["complete"])}


def _checked(report: dict[str, Any]) -> list[Summary]:
    """Each thing that an audit looks at: how many were checked, of how many; None where it is not known."""
    size = report["tree_size"]
    if looked := report.get("looked"):
        asked = len(looked["asked"])
        return [
            _row("witnesses, mirrors and other addresses that answered", asked - len(looked["silent"]), asked),
            _row("cosigners behind the head", len(report["cosigners"]), None),
            _row("entries in the signed tree", 0, size),
        ]
    covered = report.get("covered") or {}
    semantic = report.get("tier", "semantic") == "semantic"
    maps = report.get("map") or {"leaves": 0}  # of an audit before there was one
    what, member = ("derived from the entries", "derived") if semantic else ("followed from the one before", "followed")
    return [
        _row("entries in the signed tree", report.get("read_to", report["entries_audited"]), size),
        _row("signatures of the log on its entries", covered.get("leaf_signatures", report["leaf_signatures"]), size),
        _row("signatures on messages, and the rules of the directory",
             covered.get("message_signatures", report["message_signatures"]) if semantic else 0,
             None if semantic else size),
        _row("plaintext commitments", covered.get("commitments_checked", report["commitments"]["checked"]),
             covered.get("commitments", report["commitments"]["total"]) if semantic else None),
        _row(f"new maps, {what}", maps.get(member, 0), maps["leaves"] or None),  # without any, not "all of them"
        _row("answers of the API about actors", report["answers"]["checked"], report["answers"]["total"]),
        _row("cosigners behind the head", len(report["cosigners"]), None),
    ]


def _row(what: str, checked: int, total: int | None) -> Summary:
    return {"what": what, "checked": checked, "total": total}


def _growth(history: dict[str, Any], audits: Sequence[dict[str, Any]]) -> list[list[int]]:
    """(time, entries), ascending in both: by the messages' own times, and by what each audit saw.

    A step of the history has its many entries by its end, or by the last audit's time; before the first step, none.
    """
    step, now = history["growth"]["step"], audits[-1]["time"]
    counted = {int(time): size for time, size in history["growth"]["points"].items()}
    points: dict[int, int] = {}
    if counted and not history["not_counted"]:
        points[min(counted)] = 0
    seen = [(max(time + 1, min(time + step, now)), size) for time, size in counted.items()]
    seen += [(one["time"], one["report"]["tree_size"]) for one in audits if one["report"]["tree_size"] is not None]
    for time, size in seen:
        points[time] = max(points.get(time, 0), size)
    rising: list[list[int]] = []
    most = 0
    for time, size in sorted(points.items()):
        most = max(most, size)
        rising.append([time, most])
    return rising


def _latency(audits: Sequence[dict[str, Any]]) -> list[Summary]:
    """By cosigner, how long after the log's own signature it cosigned the heads that were audited, in seconds."""
    seen: dict[str, list[int]] = {}
    for one in audits:
        at, cosigners = one["cosigned"]["log"], one["cosigned"]["cosigners"]
        for name, time in cosigners.items():
            seen.setdefault(name, [])
            if at is not None:
                # One head, audited twice, was cosigned again in between as often as not: the last line is what counts.
                seen[name].append(max(0, time - at))
    return [
        {
            "cosigner": name, "heads": len(values), "least": min(values, default=None),
            "median": median(values) if values else None, "most": max(values, default=None),
        }
        for name, values in sorted(seen.items())
    ]


def _scrutinise(history: dict[str, Any]) -> Summary:
    """BurnDowns, erasures, and actors who began anew: what the specification asks the community to look at."""
    rows = [
        {"leaf_index": at, "action": action, "subjects": subjects, "time": time, "reset": reset, "detail": detail}
        for at, action, subjects, time, reset, detail in history["notable"]
    ]
    rows.sort(key=lambda row: (-row["leaf_index"], row["action"], row["subjects"]))
    actions = history["actions"]
    return {
        "burndowns": actions.get("BurnDown", 0), "erasures": actions.get("Erasure", 0),
        "began_anew": sum(row["reset"] for row in rows), "events": rows[:SHOWN_EVENTS],
        "not_shown": max(0, len(rows) - SHOWN_EVENTS) + history["notable_omitted"],
    }


def _proven(kind: str, evidence: str | None) -> bool:
    """Whether others need not believe the auditor. What is published beside an entry only the log itself can show."""
    return kind == "Forked" or (evidence is not None and not PurePath(evidence).name.startswith("wrong-record-"))


def _findings(
    audited: Sequence[dict[str, Any]], time: int, watched: Sequence[dict[str, Any]]
) -> list[Summary]:
    """The last audit's and the watch's, open ones first, the gravest first; what both saw is one."""
    found = [
        _finding(row, "watch", row["open"], row["first_seen"], row["last_seen"], row["count"], row.get("key", ""))
        for row in watched
    ]
    by_watch: dict[tuple[str, int | None], list[Summary]] = {}
    for one in found:
        by_watch.setdefault((one["name"], one["leaf_index"]), []).append(one)
    for row in audited:
        same = _same(row, by_watch.get((row["name"], row.get("leaf_index")), ()))
        if same is None:
            found.append(_finding(row, "audit", True, time, time, 1))
            continue
        evidence = same["evidence"] or row.get("evidence")
        same.update(
            source="audit and watch", open=same["open"] or same["last_seen"] <= time, evidence=evidence,
            first_seen=min(same["first_seen"], time), last_seen=max(same["last_seen"], time),
            proven=_proven(same["class"], evidence),
        )
    rank = {kind: number for number, kind in enumerate(EXIT_CODES)}
    found.sort(key=lambda one: (not one["open"], not one["proven"], rank.get(one["class"], len(rank)), one["name"],
                                one["leaf_index"] or 0, one["about"], one["what"], one["source"], one["first_seen"]))
    return found


def _same(row: dict[str, Any], rows: Sequence[Summary]) -> Summary | None:
    """The watch's row of what an audit found: about the same entry, or with the same words or evidence."""
    for one in rows:
        if one["class"] == row["class"] and (
            row.get("leaf_index") is not None or one["what"] == row["what"]
            or (one["evidence"] is not None and one["evidence"] == row.get("evidence"))
        ):
            return one
    return None


def _finding(
    row: dict[str, Any], source: str, is_open: bool, first: int, last: int, count: int, about: str = ""
) -> Summary:
    index, evidence = row.get("leaf_index"), row.get("evidence")
    return {
        "source": source, "name": row["name"], "class": row["class"], "what": row["what"], "leaf_index": index,
        "about": "" if about == str(index) else about, "open": is_open, "first_seen": first, "last_seen": last,
        "count": count, "evidence": evidence, "proven": _proven(row["class"], evidence),
    }
