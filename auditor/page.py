"""The report page: one HTML file that needs nothing else; no script, and the same bytes for the same input."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from auditor.charts import area, bar, span
from auditor.html import Html, element, join, text
from auditor.pagestyle import STYLE
from auditor.summary import Summary

_VERDICTS: dict[str, tuple[str, str, str]] = {
    "clean": ("✓", "No fault found", "good"),
    "partly": ("◐", "No fault found in what was checked", "some"),
    "unaudited": ("–", "Not audited", "some"),
    "convicted": ("✕", "Convicted", "bad"),
    "faults": ("✕", "Faults found", "bad"),
    "unwitnessed": ("!", "Too few witnesses", "warn"),
    "stale": ("!", "Old, or behind what is known", "warn"),
    "unreachable": ("?", "Not reachable", "warn"),
}
_CLASSES = {
    "Forked": ("✕", "proven", "bad"), "Invalid": ("✕", "invalid", "bad"), "PolicyUnmet": ("!", "policy unmet", "warn"),
    "Stale": ("!", "stale", "warn"), "Unreachable": ("?", "unreachable", "warn"),
}
_SHOWN_FINDINGS = 200


def render(summary: Summary, directory: Path) -> bytes:
    """The page about one log.

    Args:
        summary: from :func:`auditor.summary.summarise`.
        directory: where the page will lie: links to evidence are relative to it.
    """
    origin = summary["origin"]
    head = element(
        "head", element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy",
                content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{origin}: audit report"), Html(f"<style>{STYLE}</style>"),
    )
    parts = [
        _masthead(summary), _facts(summary), _findings(summary, directory), _checked(summary), _scrutinise(summary),
        _growth(summary), _actions(summary), _latency(summary), _footer(summary),
    ]
    body = element("body", element("main", Html("\n".join(parts))))
    page = element("html", head, Html("\n"), body, lang="en")
    return f"<!doctype html>\n{page}\n".encode()


# -- words


def _when(time: int, *, day: bool = False) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%-d %B %Y" if day else "%-d %B %Y, %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"second {time}"


def _day(time: int) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%-d %b %Y")
    except (ValueError, OverflowError, OSError):
        return str(time)


def _share(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return "< 0.1%" if 0 < share < 0.05 else f"{round(share, 1):g}%"


def _count(number: int, noun: str) -> str:
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if value < most:
            return f"{round(value / size, 1):g} {unit}"
    return f"{round(value / 86400, 1):g} days"


def _sentence(summary: Summary) -> str:
    """The verdict; of a log that was never audited it says so, whatever else was found."""
    rest = "" if summary["verdict"]["state"] == "unaudited" or not summary["audits"]["looks"] else (
        " No entry of it was audited: a watch compared heads.")
    return _verdict_words(summary) + rest


def _verdict_words(summary: Summary) -> str:
    origin, report, state = summary["origin"], summary["report"], summary["verdict"]["state"]
    at = _when(summary["as_of"])
    size = summary["tree_size"]
    faults = sum(one["open"] for one in summary["findings"])
    if state == "clean":
        return f"All {_count(size, 'entry')} of {origin} were read and checked by {at}, and no fault was found."
    if state == "partly":
        read = report.get("read_to", report["entries_audited"])
        return (f"No fault was found in {_count(read, 'entry')} of {origin} by {at}, but not all of it was checked: the"
                " list below says what was left out.")
    if state == "unaudited":
        if summary["tree_size"] is None:
            return f"Nothing of {origin} was audited, and it showed no head when a watch last asked for one, on {at}."
        others = len(report["looked"]["asked"]) - len(report["looked"]["silent"])
        return (f"Nothing of {origin} was audited. A watch compared the head that it showed on {at} with what it had"
                f" shown before and with the heads of {_count(others, 'other')}, and has nothing against it; at what is"
                " in the log nobody looked.")
    if state == "convicted":
        return (f"{origin} signed statements that cannot all be true. The evidence below convicts it before anybody who"
                " knows its key: do not trust keys from this log.")
    if state == "faults":
        return (f"What {origin} serves does not hold together: {_count(faults, 'finding')} on {at}. This is no proof"
                " for others; audit again over another network path, then ask the operator.")
    if state == "unwitnessed":
        return (f"Too few of your witnesses stand behind the head that {origin} showed on {at}: it may have been made"
                " for you alone.")
    if state == "stale":
        return f"{origin} showed less, or older, than was known on {at}. That convicts nobody: audit again."
    return f"{origin} did not answer as a log does on {at}. Nothing was learnt about it: try again."


# -- sections


def _section(title: str, *children: object, note: object = None) -> Html:
    heading = element("h2", title)
    return element("section", heading, None if note is None else element("p", note, class_="note"), *children)


def _mark(icon: str, word: object, tone: str) -> Html:
    return element("span", element("span", icon, class_="icon", aria_hidden="true"), " ", word, class_=f"mark {tone}")


def _masthead(summary: Summary) -> Html:
    icon, word, tone = _VERDICTS[summary["verdict"]["state"]]
    return element(
        "header",
        element("p", "Audit report", class_="kicker"), element("h1", summary["origin"]),
        element("div", element("span", icon, class_="icon", aria_hidden="true"),
                element("div", element("strong", word), element("p", _sentence(summary))), class_=f"verdict {tone}"),
    )


def _facts(summary: Summary) -> Html:
    report, audits = summary["report"], summary["audits"]
    facts = [
        ("Entries", "–" if summary["tree_size"] is None else f"{summary['tree_size']:,}"),
        ("Actors", f"{report['actors']:,}"), ("Erased actors", f"{report['erasures']:,}"),
        ("Cosigners", f"{len(report['cosigners']):,}"), ("Audits", f"{audits['count']:,}"),
        ("Last look" if audits["looks"] else "Last audit", _day(summary["as_of"])),
    ]
    if audits["looks"]:  # nobody counted them
        facts = [one for one in facts if one[0] not in ("Actors", "Erased actors")]
    root = summary["root"]
    return join(
        _numbers(facts),
        None if root is None else element("p", "Root of the tree: ", element("code", root), class_="root"),
    )


def _numbers(facts: list[tuple[str, str]]) -> Html:
    """Side by side, or in rows of which none is left with one of them alone; the style has 3, 4 and 6."""
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in facts),
        class_=f"facts of{len(facts)}",
    )


def _findings(summary: Summary, directory: Path) -> Html:
    rows = summary["findings"]
    if not rows:
        return _section("Findings", element("p", _mark("✓", "None.", "good"),
                                            " Neither the last audit nor a watch has anything against this log."
                                            if not summary["audits"]["looks"] else
                                            " A watch that compared heads has nothing against this log."))
    shown = element("ol", *(_finding(one, directory) for one in rows[:_SHOWN_FINDINGS]), class_="findings")
    more = len(rows) - _SHOWN_FINDINGS
    omitted = sum(summary["report"]["findings_omitted"].values()) + max(more, 0)
    linked = {one["evidence"] for one in rows[:_SHOWN_FINDINGS]}
    files = [_link(path, directory) for path in summary["evidence"] if path not in linked]
    note = ("Only what is marked as proven convicts the log before others, by the evidence beside it. All else is what"
            " this auditor saw, and whoever reads it has to believe the auditor.")
    return _section(
        "Findings", shown, None if not omitted else element("p", f"… and {omitted:,} more of the same."),
        None if not files else element("p", "More evidence: ", join(*files, by=", "), class_="more"), note=note,
    )


def _finding(one: dict[str, Any], directory: Path) -> Html:
    icon, word, tone = _CLASSES.get("Forked" if one["proven"] else one["class"], ("!", one["class"], "warn"))
    if not one["open"]:
        tone, word = "past", f"{word}, over"
    where = [] if one["leaf_index"] is None else [f"entry {one['leaf_index']:,}"]
    where += [f"about {one['about']}"] if one["about"] else []
    where.append(f"seen by the {one['source']}")
    where.append(_when(one["last_seen"]) if one["first_seen"] == one["last_seen"] else
                 f"{_count(one['count'], 'time')}, first {_when(one['first_seen'])}, last {_when(one['last_seen'])}")
    evidence = None if one["evidence"] is None else element("p", "Evidence: ", _link(one["evidence"], directory))
    return element(
        "li", element("p", _mark(icon, word, tone), " ", element("b", one["name"])), element("p", one["what"]),
        evidence, element("p", " · ".join(where), class_="small"),
    )


def _link(path: str, directory: Path) -> Html:
    """A relative link, which stays good where page and evidence are moved together."""
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(directory))
    return element("a", os.path.basename(path), href="./" + quote(relative.replace(os.sep, "/")))


def _checked(summary: Summary) -> Html:
    rows = []
    for row in summary["checked"]:
        checked, total = row["checked"], row["total"]
        if total is None:
            mark, amount = (_mark("✓", "counted", "good") if checked else _mark("–", "none", "past")), f"{checked:,}"
        elif checked >= total:
            mark, amount = _mark("✓", "all", "good"), f"{checked:,} of {total:,}"
        else:
            mark = _mark("◐", "some", "some") if checked else _mark("–", "none", "past")
            amount = f"{checked:,} of {total:,}"
        rows.append(element("tr", element("th", row["what"], scope="row"), element("td", amount, class_="number"),
                            element("td", mark)))
    report = summary["report"]
    who = ", ".join(report["cosigners"])
    heads = "Heads alone, compared" if summary["audits"]["looks"] else "Checked"
    took = "" if summary["audits"]["looks"] else f", in {_seconds(report['seconds'])}"
    by = (f"{heads} by whoever sent you this page, with ktlog-auditor{took} on {_when(summary['as_of'])};"
          f" {f'the head is cosigned by {who}' if who else 'no cosigner was asked for'}.")
    rest = summary["not_checked"]
    taken = report.get("taken", [])
    return _section(
        "What was checked", element("table", element("tbody", *rows), class_="checked"),
        element("h3", "What was not"),
        element("ul", *(element("li", one) for one in rest)) if rest else element("p", "Nothing was left out."),
        None if not taken else element(
            "details", element("summary", f"{_count(len(taken), 'entry')} taken on the word of earlier readers"),
            element("ul", *(element("li", f"entry {one['leaf_index']:,} {one['what']}") for one in taken[:200]))),
        note=by,
    )


def _scrutinise(summary: Summary) -> Html:
    found = summary["scrutinise"]
    counts = _numbers([(name, f"{found[member]:,}") for name, member in (
        ("BurnDowns", "burndowns"), ("Erasures", "erasures"), ("Began anew", "began_anew"))])
    note = ("With a BurnDown an operator takes all keys of an actor away; an erasure takes the actor out; an actor who"
            " begins anew has a first key that no earlier key vouched for. Each is allowed, and each is how an account"
            " would be taken over. Whoever it happened to should know of it.")
    if summary["audits"]["looks"] and not found["events"]:
        return _section("Events to look at", element("p", "No entry was read, so none is known."), note=note)
    if not found["events"]:
        return _section("Events to look at", counts, element("p", _mark("✓", "None so far.", "good")), note=note)
    rows = [
        element("tr",
                element("td", f"{event['leaf_index']:,}", class_="number"),
                element("td", "" if event["time"] is None else _when(event["time"]), class_="small"),
                element("th", event["action"] + (", begins anew" if event["reset"] else ""), scope="row"),
                element("td", element("span", ", ".join(event["subjects"]), class_="id"),
                        None if not event["detail"] else element("span", f" {event['detail']}", class_="small")))
        for event in found["events"]
    ]
    table = element("table", element("thead", element("tr", *(element("th", name, scope="col") for name in (
        "Entry", "Time of the message", "What", "Whom")))), element("tbody", *rows), class_="events")
    more = found["not_shown"]
    return _section("Events to look at", counts, table,
                    None if not more else element("p", f"… and {more:,} earlier ones.", class_="small"), note=note)


def _growth(summary: Summary) -> Html:
    points = [(time, size) for time, size in summary["growth"]]
    if len(points) < 2:
        return _section("Growth", element("p", "One moment is known so far; a curve takes two."))
    (first, low), (last, high) = points[0], points[-1]
    whole_days = last - first >= 2 * 86_400  # of a young log two days would be the same
    label = f"From {_count(low, 'entry')} on {_when(first)} to {high:,} on {_when(last)}."
    step = max(1, -(-len(points) // 24))
    listed = points[::step] + ([] if (len(points) - 1) % step == 0 else [points[-1]])
    table = element("table", element("tbody", *(
        element("tr", element("th", _when(time), scope="row"), element("td", f"{size:,}", class_="number"))
        for time, size in listed)))
    return _section(
        "Growth",
        element("figure", element("span", f"{high:,}", class_="most"), area(points, label),
                element("figcaption", *(element("span", _when(time, day=whole_days)) for time in (first, last)))),
        element("details", element("summary", "The numbers"), table),
        note="Entries of the log, by the times that messages state and by what each audit saw.",
    )


def _actions(summary: Summary) -> Html:
    actions = summary["actions"]
    missed = summary["not_counted"]
    rest = None if not missed else element(
        "p", f"Of {_count(missed, 'entry')} nothing is counted here: an audit was ended before it could note what it"
             " had read.", class_="small")
    if not actions:
        return _section("Actions", element("p", "None was counted yet."), rest)
    most, total = max(actions.values()), sum(actions.values())
    rows = [
        element("div", element("span", name, class_="name"), bar(number / most, f"{name}: {number:,}"),
                element("span", f"{number:,}", class_="number"),
                element("span", _share(number, total), class_="number small"), class_="row")
        for name, number in actions.items()
    ]
    return _section("Actions", element("div", *rows, class_="bars"), rest,
                    note="What entries did to actors and their keys, by kind. Checkpoints of other directories do"
                         " nothing to anybody, and are not counted.")


def _latency(summary: Summary) -> Html:
    rows = summary["latency"]
    if not rows:
        return _section("Cosigners", element("p", "No policy was given to the audits, so none was looked at."))
    most = max((row["most"] or 0 for row in rows), default=0)
    shown = []
    for row in rows:
        if row["median"] is None:
            chart: object = element("span", "the log's signature states no time", class_="small")
        else:
            label = (f"{row['cosigner']}: {_seconds(row['least'])} to {_seconds(row['most'])}, half within"
                     f" {_seconds(row['median'])}, over {_count(row['heads'], 'head')}")
            chart = span(row["least"], row["median"], row["most"], most, label)
        shown.append(element(
            "div", element("span", row["cosigner"], class_="name"), chart,
            element("span", _seconds(row["median"]), class_="number"),
            element("span", f"at most {_seconds(row['most'])}", class_="number small"), class_="row"))
    return _section("Cosigners", element("div", *shown, class_="bars"), note=(
        "How long after the log's own signature each cosigned the heads that were audited: the dot is the median, the"
        " line runs from the least to the most. Each states its time itself, so this proves nothing."))


def _footer(summary: Summary) -> Html:
    audits = summary["audits"]
    by_watch = f", {audits['by_watch']:,} by a watch, of which one an hour is kept" if audits["by_watch"] else ""
    many = (f"No audit; {_count(audits['looks'], 'look')} of a watch since {_when(audits['first'], day=True)}, of which"
            " one an hour is kept" if audits["looks"] else
            f"{_count(audits['count'], 'audit')} since {_when(audits['first'], day=True)}, {audits['clean']:,} of them"
            f" without a finding{by_watch}")
    return element(
        "footer",
        element("p", f"{many}. This page says what one auditor saw. It proves nothing by itself: run your own."),
        element("pre", f"ktlog-auditor audit {summary['origin']} --dir DIR --policy YOUR.policy", Html("\n"),
                "ktlog-auditor verify-evidence FILE --vkey KEY"),
    )


__all__ = ["render", "text"]
