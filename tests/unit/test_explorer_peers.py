"""Whom the explorer names as looking on, what it says of mirrored logs, and how it tells people to follow."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import replace

import click
import pytest

from auditor.cli import ktlog_auditor
from ktlog.cli import ktlog
from ktlog.operator.shred import plan_for
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.messages import AddKey, CheckpointMessage, Fireproof, UndoFireproof
from ktlog.web.explorer import peers
from ktlog.web.explorer.peers import mirror_rows
from tests.explorer_site import Site, page, readable
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, public, quick_argon2  # noqa: F401
from tests.reading_log import DAVE, fill, reading_log

PEER, FORMER, SILENT = (f"https://{name}.example.net" for name in ("peer", "former", "silent"))
URL = f"https://{ORIGIN}"


@pytest.fixture
def log(tmp_path):
    with reading_log(tmp_path / "log") as found:
        yield found


def watched(log) -> Site:
    """Watched by PEER, which sent two Checkpoints, the second one about the first four entries; and by others."""
    fill(log.desk)
    root = log.desk.root
    for sender, validated, time in ((FORMER, ZERO_ROOT, 20), (PEER, ZERO_ROOT, 21), (PEER, root, 22)):
        log.desk.send(CheckpointMessage(sender, ZERO_ROOT, public(sender), URL, validated, NOW + time), sender)
    log.publish()
    log.settings = replace(log.settings, directories=f"{PEER} {SILENT}")
    return Site(log)


def test_peers_are_shown_with_their_newest_checkpoint(log):
    site = watched(log)
    rows = {row["directory"]: row for row in site.json("/peers")["directories"]}
    assert list(rows) == [FORMER, PEER, SILENT]
    assert rows[PEER]["newest"] == {"leaf-index": 13, "time": NOW + 22, "from-root": ZERO_ROOT, "replayed": 11}
    assert rows[FORMER]["newest"]["replayed"] == 0
    assert (rows[PEER]["allowed"], rows[FORMER]["allowed"], rows[SILENT]["newest"]) == (True, False, None)
    text = site.ask("/peers").text
    assert "11 entries" in text and "not on the list any more" in text and "none lately" in text
    assert 'href="/e/13"' in text and 'href="/e/12"' not in text


def test_a_checkpoint_counts_when_it_is_published(log):
    watched(log)
    log.desk.send(CheckpointMessage(PEER, ZERO_ROOT, public(PEER), URL, ZERO_ROOT, NOW + 30), PEER)
    row = Site(log).json("/peers")["directories"][1]
    assert (row["directory"], row["newest"]["leaf-index"]) == (PEER, 13)


def test_looking_for_checkpoints_has_an_end(log, monkeypatch):
    site = watched(log)
    for number in range(4):
        log.desk.send((UndoFireproof if number % 2 else Fireproof)(ALICE, NOW + 40 + number), "c")
    log.publish()
    asked = []
    records = site.app.extensions["ktlog_explorer"].context.store.records
    monkeypatch.setattr(
        site.app.extensions["ktlog_explorer"].context.store, "records",
        lambda start, end: asked.append(start) or records(start, end),
    )
    assert site.json("/peers")["directories"][1]["newest"]["leaf-index"] == 13
    assert set(asked) & {14, 15, 16, 17} == set(), "entries of actors are not read"
    monkeypatch.setattr(peers, "READ", 1)
    assert [row["newest"] and row["newest"]["leaf-index"] for row in site.json("/peers")["directories"]] == [13, None]
    monkeypatch.setattr(peers, "SCANNED", 4)
    assert not any(row["newest"] for row in site.json("/peers")["directories"])


def test_what_an_erased_actor_left_is_no_checkpoint(log):
    site = watched(log)
    store = log.desk.store
    store.erase(plan_for(store, store.actor(DAVE)), store.state())
    assert [row["directory"] for row in site.json("/peers")["directories"]] == [FORMER, PEER, SILENT]


def test_without_peers_it_says_so(log):
    log.desk.send(AddKey(ALICE, public("a"), NOW))
    text = Site(log).ask("/peers").text
    assert "takes no Checkpoints" in text and "keeps no copy" in text


MIRRORED = {
    "id": "x" * 43, "ref": "https://other.example", "tree-size": 1, "last-success": str(NOW - 60), "error": None,
    "commitments-checked": 0, "commitments": 0, "taken": 0,
}


@pytest.mark.parametrize(("members", "state", "words"), [
    ({}, "ok", "heard 1 minute ago"),
    ({"last-success": str(NOW - 7200)}, "warn", "heard 2 hours ago"),
    ({"last-success": "0"}, "none", "nothing copied yet"),
    ({"error": "Forked"}, "warn", "not sound: Forked"),
])
def test_what_is_mirrored_is_not_called_sound_unless_it_is(members, state, words):
    (row,) = mirror_rows([MIRRORED | members], NOW)
    assert (row["state"], row["words"]) == (state, words)


def test_a_mirrored_log_is_listed(log, monkeypatch):
    site = Site(log)
    monkeypatch.setattr(site.app.extensions["ktlog_explorer"].context.replicas, "listed", lambda: [MIRRORED])
    text = site.ask("/peers").text
    assert 'href="https://other.example"' in text and "1 entry" in text and f"/api/replica/{'x' * 43}" in text


def test_the_commands_to_follow_with_are_commands(log):
    log.desk.send(AddKey(ALICE, public("a"), NOW))
    log.publish()
    text = readable(Site(log).ask("/monitor").text)
    commands = [shlex.split(html.unescape(found)) for found in re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL)]
    assert [words[:2] for words in commands] == [["ktlog", "watch"], ["ktlog-auditor", "watch"]]
    for words, group in zip(commands, (ktlog, ktlog_auditor), strict=True):
        with click.Context(group) as context:
            name, found, rest = group.resolve_command(context, words[1:])
        with found.make_context(name, list(rest)) as made:
            assert ORIGIN in str(made.params.values())


def test_following_a_domain_leads_to_its_feed(log):
    fill(log.desk)
    log.publish()
    site = Site(log)
    form = re.search(r'<form action="(/search)".*?name="(q)"', site.ask("/monitor").text.partition("<main")[2], re.DOTALL)
    found = site.ask(f"{form[1]}?{form[2]}=example.com").text
    feed = re.search(r'href="(/domains/[^"]+)"', found)[1]
    assert "users/alice" in site.ask(feed).text
    assert "feed.atom" in site.ask(page(ALICE)).text
