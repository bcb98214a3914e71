"""``ktlog admin`` against a sequencer that runs, over its socket; and what the web workers make of what was decided."""

from __future__ import annotations

import io
import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.durable import FileLock
from ktlog.errors import MessageRejected, StoreError
from ktlog.operator import rules as rules_module
from ktlog.operator.create import create_log
from ktlog.operator.lastbackup import LastBackup, note_backup
from ktlog.operator.link import SequencerLink
from ktlog.operator.numbers import format_metrics
from ktlog.operator.rules import Note, Rules, RulesKeeper, allowed, blocked, parse_domain_blocks
from ktlog.operator.service import Service
from ktlog.operator.stores import rules_document
from ktlog.pkd.messages import AddKey, BurnDown
from ktlog.store import upgrade
from ktlog.web.context import Context
from ktlog.web.errors import PAUSE_SECONDS
from ktlog.wire import logs
from ktlog.wire.fetch import Fetcher
from tests.admission_world import revocation, token_text
from tests.operator_world import NOW, ORIGIN, submission
from tests.pkd_samples import ALICE, BOB, public, quick_argon2  # noqa: F401
from tests.submission_site import Internet, Site, make_settings
from tests.unit.test_operator_service import policy_text

HOME = ALICE.split("/")[2]


@pytest.fixture
def settings():
    directory = Path(tempfile.mkdtemp(prefix="kt"))  # a socket's path must stay short
    made = create_log(directory / "log", ORIGIN, "spec", bytes(32))
    made.publish_policy.write_bytes(policy_text())
    yield made
    shutil.rmtree(directory)


class Running:
    """A sequencer whose publisher publishes nothing: no witness answers."""

    def __init__(self, settings) -> None:
        self.settings = settings
        self.service = Service(settings)
        self.service._publisher.run = lambda stop: stop.wait()
        self.service._publisher.compared.set()
        settings.socket_record.unlink(missing_ok=True)
        self.thread = threading.Thread(target=self.service.run)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not settings.socket_record.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.link = SequencerLink(settings.socket_record)

    def end(self) -> None:
        self.service.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def append(self, actor: str, sender: str | None = None) -> str:
        """What becomes of a message: its leaf index, or the code of its refusal."""
        try:
            return str(self.link.append(replace(submission(AddKey(actor, public("a"), NOW)), sender=sender)).leaf_index)
        except MessageRejected as refusal:
            return refusal.code


@pytest.fixture
def running(settings, quick_argon2):  # noqa: F811
    made = Running(settings)
    yield made
    made.end()


def admin(settings, *words: str):
    return CliRunner().invoke(ktlog, ["admin", *words, "--dir", str(settings.directory)])


def said(settings, *words: str) -> dict:
    done = admin(settings, *words, "--json")
    assert done.exit_code == 0, done.exception
    return json.loads(done.output)


def test_what_is_blocked_paused_and_allowed_holds_for_the_next_message_and_after_a_restart(settings, quick_argon2):  # noqa: F811
    running = Running(settings)
    assert said(settings, "block", "bad.example", "Worse.Example", "--reason", "spam")["blocked"] == "2"
    assert running.append(ALICE, "sub.bad.example") == "instance_blocked"
    assert running.append(ALICE, HOME) == "0"
    assert said(settings, "mode", "allow-list") == {"mode": "allow-list", "blocked": "2", "allowed": "0", "paused": {}}
    assert running.append(BOB, HOME) == "instance_not_allowed"
    assert said(settings, "allow", HOME)["allowed"] == "1"
    assert said(settings, "pause", "--reason", "moving house")["paused"]["reason"] == "moving house"
    assert running.append(BOB, HOME) == "paused"
    with pytest.raises(MessageRejected, match="paused"):
        running.link.totp_set(HOME, bytes(32), 1, None)
    assert b"ktlog_paused 1" in format_metrics(running.service.numbers())
    assert running.service._unready() == "Paused"
    running.end()
    running = Running(settings)
    assert running.append(BOB, HOME) == "paused"
    listed = said(settings, "list")
    assert (listed["mode"], set(listed["blocked"]), set(listed["allowed"]), listed["paused"]["reason"]) == (
        "allow-list", {"bad.example", "worse.example"}, {HOME}, "moving house"
    )
    assert listed["blocked"]["bad.example"]["reason"] == "spam"
    assert "no messages are taken: moving house" in admin(settings, "unblock", "worse.example").output
    assert "messages are taken" in admin(settings, "resume").output
    assert running.service._unready() is None
    assert said(settings, "mode", "open")["blocked"] == "1"
    root = running.link.status()["sequenced"]
    assert (root, running.append(ALICE, HOME)) == ("1", "0"), "what is in the log already is told so again"
    running.end()


def test_status_says_how_the_log_does(running):
    running.append(ALICE, HOME)
    found = said(running.settings, "status")
    assert (found["sequenced"], found["waiting"], found["rules"]["mode"]) == ("1", "0", "open")
    assert {"published", "mapped", "free-bytes", "checkpoint-age", "cosigned-age", "version"} <= found.keys()
    assert int(found["database-bytes"]["log"]) > 0
    words = admin(running.settings, "status").output
    assert "backup      none that was noted" in words
    note_backup(running.settings, LastBackup(int(time.time()) - 7_260, 1))
    assert "backup      2 h old" in admin(running.settings, "status").output
    for word in ("messages    taken", "1 sequenced", "checkpoint", "cosigned", "disk", "queue"):
        assert word in words
    admin(running.settings, "pause", "--reason", "house")
    assert "REFUSED since" in admin(running.settings, "status").output


def test_refusals_are_listed_by_reason_and_instance_and_an_erasure_takes_the_instance_away(running, monkeypatch):
    admin(running.settings, "block", "bad.example")
    assert running.append(ALICE, "bad.example") == "instance_blocked"
    running.link.report_refused({"bad_signature": 3}, [("bad_signature", "claims.example", False, 3)])
    rows = said(running.settings, "refusals")["refusals"]
    assert [(row["by"], row["code"], row["instance"], row["verified"], row["count"]) for row in rows] == [
        ("web", "bad_signature", "claims.example", False, 3), ("sequencer", "instance_blocked", "bad.example", True, 1)
    ]
    assert said(running.settings, "refusals", "--instance", "example", "--code", "bad_signature")["refusals"] == rows[:1]
    assert "claims.example?" in admin(running.settings, "refusals").output
    assert "Nobody" in admin(running.settings, "refusals", "--code", "too_large").output
    # An erasure waits for what no witness of this test cosigns; what follows it is done all the same.
    copy = upgrade.keep_copy(running.settings.database, 6)
    tasks = running.service._tasks
    monkeypatch.setattr(type(tasks), "_mapped", lambda *_: True)
    running.append("https://bad.example/a", HOME)
    monkeypatch.setattr(running.service._publisher, "published_size", 1)
    running.service._store.note_published(1, int(time.time()) - 10**6)
    words = admin(running.settings, "shred", "https://bad.example/a", "--dry-run", "--json")
    assert json.loads(words.output)["done"] is False and copy.exists()
    words = admin(running.settings, "shred", "https://bad.example/a", "--yes", "--json")
    assert json.loads(words.output)["done"] is True, words.output
    assert [row["instance"] for row in said(running.settings, "refusals")["refusals"]] == ["claims.example"]
    assert not copy.exists(), "a copy from before an upgrade has what was erased"


def test_actors_are_found_with_what_they_have_and_may_have(running):
    for actor in (ALICE, BOB):
        running.append(actor, HOME)
    found = said(running.settings, "actors", "users")
    (alice,) = [one for one in found["actors"] if one["actor"] == ALICE]
    assert (len(alice["keys"]), alice["aux"], alice["messages-in-a-day"], alice["fireproof"]) == (1, 0, 1, False)
    assert alice["limits"] == {"keys": 64, "aux": 256, "messages-in-a-day": 100}
    first = said(running.settings, "actors", "--limit", "1")
    assert first["more"] or len(found["actors"]) == 1
    whole = admin(running.settings, "actors", ALICE).output
    assert "1 of 64 keys" in whole and ", 1 entry\n" in whole
    key = alice["keys"][0]["public-key"]
    assert len(key) > 1700 and f" {key[:48]}…\n" in whole and max(map(len, whole.splitlines())) < 150
    assert "No such actor" in admin(running.settings, "actors", "nobody").output


HEADER = "#domain,#severity,#reject_media,#reject_reports,#public_comment,#obfuscate\n"
EXPORT = HEADER + """\
Worse.example,suspend,true,true,"spam, and
a second line",false

quiet.example,silence,false,false,,false
worse.example,noop,false,false,,true
media.example,noop,true,false,,false
bad.example,suspend,false,false,,false
"""


def test_whom_a_mastodon_server_suspends_is_blocked_from_its_export(running, tmp_path):
    file = tmp_path / "domain_blocks.csv"
    file.write_bytes(b"\xef\xbb\xbf" + EXPORT.replace("\n", "\r\n").encode())
    done = admin(running.settings, "block", "--from-file", str(file), "--reason", "of my server")
    assert "2 instances; 2 with another severity are passed over" in done.output and "2 blocked" in done.output
    found = said(running.settings, "list")["blocked"]
    assert {name: note["reason"] for name, note in found.items()} == dict.fromkeys(
        ("bad.example", "worse.example"), "of my server"
    )
    assert running.append(ALICE, "sub.worse.example") == "instance_blocked"
    assert running.append(ALICE, "quiet.example") == "0"
    admin(running.settings, "block", "--from-file", str(file), "--every-severity")
    assert set(said(running.settings, "list")["blocked"]) == {
        "bad.example", "worse.example", "quiet.example", "media.example"
    }


def test_a_long_list_is_sent_in_turns_or_not_at_all(running, tmp_path, monkeypatch):
    file = tmp_path / "domain_blocks.csv"
    file.write_text(HEADER + "".join(f"i{number}.example,suspend,,,,\n" for number in range(1001)), encoding="utf-8")
    monkeypatch.setattr(rules_module, "INSTANCES_LIMIT", 1000)
    assert admin(running.settings, "block", "--from-file", str(file)).exception.code == "too_many_instances"
    assert said(running.settings, "list")["blocked"] == {}
    monkeypatch.setattr(rules_module, "INSTANCES_LIMIT", 1001)
    assert admin(running.settings, "block", "--from-file", str(file)).output.count("blocked") == 1
    assert set(said(running.settings, "list")["blocked"]) == {f"i{number}.example" for number in range(1001)}
    names = [f"i{number}.example" for number in range(1001)]
    error = admin(running.settings, "unblock", *names, "other.example").exception
    assert error.code == "not_listed" and "other.example is on neither list, so nothing was changed" in error.message
    assert len(said(running.settings, "list")["blocked"]) == 1001
    assert said(running.settings, "unblock", *names)["blocked"] == "0"


LISTS = [
    ("", "line 1: the first line must name"), ("domain,severity\na.example,suspend\n", "line 1: the first line"),
    ("#domain,#severity,#severity\na.example,suspend,noop\n", "line 1: the first line"),
    (EXPORT + "ex***le.example,suspend,,,,\n", "line 9: 'ex***le.example' is not the host name"),
    (EXPORT + "b\xfccher.example,suspend,,,,\n", "line 9: 'b\\xfccher.example' is not the host name"),
    (EXPORT + "ex***le.example,silence,,,,\n", "line 9: 'ex***le"), (EXPORT + "x.example,ban,,,,\n", "line 9: 'ban' is no"),
    (EXPORT + "x.example,,,,,\n", "line 9: '' is no severity"), (EXPORT + "x.example,suspend\n", "line 9: it has not as many"),
    (EXPORT + "x.example,suspend,,,,,\n", "line 9: it has not as many"), (EXPORT + ",suspend,,,,\n", "line 9: '' is not"),
    (EXPORT + 'x.example,suspend,,,"never ends\nb.example,suspend,,,,\n', "line 9: unexpected end of data"),
    (EXPORT + 'x.example,suspend,,,"a"b,\n', "line 9: ',' expected after"),
    (EXPORT + f"x.example,suspend,,,{'x' * 140_000},\n", "line 9: field larger"),
    (EXPORT.encode() + b"x.example,suspend,,,\xff,\n", "line 9: no UTF-8"),
    (EXPORT + "x\0.example,suspend,,,,\n", "line 9: "),
]


@pytest.mark.parametrize(("text", "why"), LISTS, ids=range(len(LISTS)))
def test_a_list_with_a_line_that_is_wrong_blocks_nobody(settings, tmp_path, text, why):
    file = tmp_path / "domain_blocks.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = admin(settings, "block", "--from-file", str(file)).exception  # nothing is asked of a log: none runs
    assert (error.name, error.exit_code) == ("BadBlockList", 2)
    assert error.message.startswith(f"{file}: {why}"), error.message


def test_a_list_that_is_too_long_or_names_nobody_is_refused(settings, tmp_path, monkeypatch):
    file = tmp_path / "domain_blocks.csv"
    file.write_text(HEADER + "a.example,silence,,,,\n", encoding="utf-8")
    assert admin(settings, "block", "--from-file", str(file)).exception.name == "NobodyListed"
    assert parse_domain_blocks(file.read_bytes()) == ([], 1)
    for words in ((), ("a.example", "--from-file", str(file)), ("a.example", "--every-severity")):
        assert admin(settings, "block", *words).exception.name == "BadArguments"
    for module in ("ktlog.operator.rules", "ktlog.commands.admin"):
        monkeypatch.setattr(f"{module}.LIST_BYTES", 64)
    assert "more than" in admin(settings, "block", "--from-file", str(file)).exception.message


WRONG = [
    {"act": "reboot"}, {"act": "block", "instances": ["a.example"]}, {"act": "block", "instances": [], "reason": ""},
    {"act": "block", "instances": ["no host"], "reason": ""}, {"act": "mode", "mode": "shut"}, {"act": "pause"}, {},
    {"act": "block", "instances": ["a.example"] * 501, "reason": ""}, {"act": "pause", "reason": "a\nb"},
]


def test_what_is_no_act_changes_nothing(running):
    for request in WRONG:
        with pytest.raises(MessageRejected, match="bad_request"):
            running.link.administer(request)
    assert not running.settings.rules.exists()


def test_rules_that_cannot_be_stored_are_refused_and_do_not_hold(running, monkeypatch):
    def full(data: bytes) -> None:
        raise StoreError("DiskFull", "no room")

    monkeypatch.setattr(running.service._rules._document, "write", full)
    done = admin(running.settings, "block", "bad.example")
    assert done.exception.code == "not_stored"
    assert running.append(ALICE, "bad.example") == "0"


def test_without_a_log_that_runs_it_is_said_how_to_run_it(settings):
    done = admin(settings, "status")
    assert done.exception.name == "SequencerUnreachable" and done.exception.exit_code == 8
    assert done.exception.message == f"the log in {settings.directory} is not running"
    assert f"ktlog serve --dir {settings.directory} (or: systemctl start ktlog)" in done.exception.hint
    assert said(settings, "list")["mode"] == "open", "the lists can be read all the same"
    assert admin(settings, "block", "no host").exception.name == "BadInstance"


def test_a_log_that_waits_for_its_witnesses_is_not_said_to_be_stopped(settings):
    """Its sequencer has its lock, and no door yet."""
    lock = settings.directory / "sequencer.lock"
    with FileLock(lock):
        lock.write_text("1\n")  # a process that is no log's, after a restart of the machine
        assert "is not running" in admin(settings, "status").exception.message
        process = subprocess.Popen([sys.executable, "-c", "input()", "ktlog.operator.service"], stdin=subprocess.PIPE)
        try:
            lock.write_text(f"{process.pid}\n")
            error = admin(settings, "status").exception
        finally:
            process.communicate(b"\n")
    assert "runs, but takes no requests now" in error.message and "witnesses" in error.hint
    assert "is not running" in admin(settings, "status").exception.message


def test_a_preview_shows_what_would_go_before_it_may_and_from_when_on_it_may(running):
    running.append(ALICE, HOME)
    done = admin(running.settings, "shred", ALICE, "--dry-run")
    assert done.exit_code == 5 and "2 attributes in 1 entry go." in done.output and "not published" in done.output
    since = int(time.time())
    running.service._store.note_published(1, since)
    due = since + running.settings.notice_seconds
    done = admin(running.settings, "shred", ALICE, "--dry-run")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(due))
    assert done.exit_code == 5 and f"may be done from {when} UTC on" in done.output
    done = admin(running.settings, "shred", ALICE, "--dry-run", "--json")
    assert (done.exit_code, json.loads(done.output)["due"]) == (5, due)
    # Nobody is asked for what cannot be done, and nothing is.
    done = CliRunner().invoke(ktlog, ["shred", ALICE, "--dir", str(running.settings.directory)], input="y\n")
    assert (done.exception.code, done.exception.exit_code) == ("notice_period", 5) and "for good?" not in done.output
    assert running.service._store.erasure_count() == 0


def test_rotating_says_the_steps_while_it_runs_and_does_them_when_it_does_not(settings):
    with FileLock(settings.directory / "serve.lock"):
        done = admin(settings, "rotate", "hpke", "--reason", "yearly")
    assert done.exception.exit_code == 8
    assert f"ktlog keys rotate hpke --dir {settings.directory} --reason yearly" in done.exception.hint
    assert said(settings, "rotate", "hpke")["kind"] == "hpke"


def test_root_is_told_to_rotate_as_the_logs_user(settings, monkeypatch):
    """As itself it may not: a key that belongs to another user is refused."""
    if os.geteuid() == 0:
        os.chown(settings.directory, 65534, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    owner = pwd.getpwuid(settings.directory.stat().st_uid).pw_name
    with FileLock(settings.directory / "serve.lock"):
        hint = admin(settings, "rotate", "hpke").exception.hint
    command = Path(sys.executable).with_name("ktlog")
    assert f"&& runuser -u {owner} -- {command} keys rotate hpke --dir {settings.directory};" in hint


# --- the web workers


@pytest.fixture
def site(tmp_path, monkeypatch, quick_argon2):  # noqa: F811
    internet = Internet()
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: internet))
    monkeypatch.setattr(Context, "now", lambda self: NOW)
    made = Site(make_settings(tmp_path / "log", burndown_enabled=True), internet)
    made.keeper = RulesKeeper(rules_document(made.context.settings))
    yield made
    made.close()


@pytest.fixture
def lines(monkeypatch):
    """What is logged, as JSON."""
    root, ours = logging.getLogger(), logging.getLogger("ktlog")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def refusal(answer) -> tuple[int, str, str]:
    return answer.status_code, answer.json["error"], answer.json["code"]


def test_a_blocked_instance_is_told_so_before_anything_is_fetched_for_it(site, monkeypatch):
    fetched = []
    get = site.context.actor_keys.find
    monkeypatch.setattr(site.context.actor_keys, "find", lambda *a, **k: fetched.append(a) or get(*a, **k))
    home = BOB.split("/")[2]
    site.keeper.change(lambda rules: blocked(rules, [home], Note("private words", NOW)))
    def burn(number: int):
        wire = site.inbox.wire(BurnDown(ALICE, BOB, NOW), "c")
        return site.post(site.inbox.burn_request(wire, BOB), f"198.51.100.{number}")

    answer = burn(1)
    assert refusal(answer) == (403, "unauthorized", "instance_blocked")
    assert "private" not in answer.text and fetched == []
    site.keeper.change(lambda rules: Rules("allow-list"))
    assert refusal(burn(2))[2] == "instance_not_allowed"
    assert site.revoke(revocation(token_text("zz"))).status_code == 204, "anybody may bring a token"
    site.keeper.change(lambda rules: allowed(rules, [home], Note("", NOW)))
    assert burn(3).status_code == 200
    assert fetched


def test_in_a_pause_messages_are_told_when_to_come_again_and_reads_go_on(site):
    assert site._open("GET", "/api/info", [], b"", "192.0.2.1").status_code == 200
    site.context.link.ping = lambda: None
    assert site._open("GET", "/readyz", [], b"", "192.0.2.1").text == "ok\n"
    site.keeper.change(lambda rules: Rules(paused=Note("moving house", NOW)))
    for answer in (site.burn(BurnDown(ALICE, BOB, NOW)), site.revoke(revocation(token_text("a")))):
        assert refusal(answer) == (503, "internal_error", "paused")
        assert answer.headers["Retry-After"] == PAUSE_SECONDS and "moving house" in answer.json["message"]
    assert site._open("GET", "/api/info", [], b"", "192.0.2.1").status_code == 200
    ready = site._open("GET", "/readyz", [], b"", "192.0.2.1")
    assert (ready.status_code, ready.text) == (200, "ok, paused: moving house\n")


def test_every_answer_has_a_name_and_every_refusal_is_a_line_that_names_no_actor(site, lines):
    site.burn(BurnDown(ALICE, BOB, NOW), signer="a")
    own = site._open("GET", f"/api/actor/{ALICE.replace('/', '%2F')}x", [("X-Request-Id", "proxy-0001")], b"", "192.0.2.1")
    odd = site._open("GET", "/nothing", [("X-Request-Id", "a b c d e")], b"", "192.0.2.1")
    good = site._open("GET", "/api/info", [], b"", "192.0.2.1")
    assert own.headers["X-Request-Id"] == "proxy-0001" and " " not in odd.headers["X-Request-Id"]
    assert good.headers["X-Request-Id"] not in (line.get("id") for line in lines())
    refused = [line for line in lines() if line["msg"] == "refused"]
    assert [(line["status"], line["code"]) for line in refused] == [
        (400, "bad_signature"), (404, "not_published"), (404, "not_found")
    ]
    assert refused[0]["instance"] == BOB.split("/")[2] and refused[0]["endpoint"] == "submissions.burndown"
    assert [line["id"] for line in refused[1:]] == ["proxy-0001", odd.headers["X-Request-Id"]]
    written = json.dumps(lines())
    assert "users" not in written and "alice" not in written and "bob" not in written


def test_a_process_that_speaks_in_lines_says_nothing_else(lines, capsys, monkeypatch):
    monkeypatch.setattr(logs._said, "lines", True)
    logs.say("keys.example.com listens")
    logs.say_why(StoreError("NoRoom", "the disk is full", hint="Make room."))
    assert [(line["level"], line["msg"], line.get("error"), line.get("hint")) for line in lines()] == [
        ("info", "keys.example.com listens", None, None), ("critical", "the disk is full", "NoRoom", "Make room.")
    ]
    monkeypatch.setattr(logs._said, "lines", False)
    logs.say("keys.example.com listens")
    assert capsys.readouterr().err == "ktlog: keys.example.com listens\n"
