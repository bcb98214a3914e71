"""An operator erases an actor from a log that runs: afterwards nothing readable of it is left, in any byte.

The log is the real one, with its witness, behind TLS; the act is the real command. Before it every needle is
found, so that the search is known to find; after it none is, and the log still verifies.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.client import SigningKey, add_key, build_envelope, fireproof, seal
from ktlog.client.erasures import parse_erasure_head, read_erasures
from ktlog.config import load_settings
from ktlog.demo.instance import http_key_id
from ktlog.operator.create import load_public_keys
from ktlog.operator.instance import direct_message
from ktlog.operator.journal import read_journal
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import encode_public_key
from ktlog.store.sqlite import SqliteStore
from tests.running_log import DOMAIN, EVIL, GONE, LOG_ACTOR, ORIGIN, RunningLog, actor, running_log

VICTIM, OTHER = "a01", "a02"


FORMS = [("json", "info"), ("logfmt", "debug")]
in_json = pytest.mark.parametrize("log", FORMS[:1], indirect=True, ids=["json"])


@pytest.fixture(scope="module", params=FORMS, ids=["json", "logfmt at debug"])
def log(request, tmp_path_factory):
    form, level = request.param
    with running_log(
        tmp_path_factory.mktemp("shred"), notice_seconds=1, log_format=form, log_level=level, workers=2
    ) as running:
        yield running


def bytes_under(running: RunningLog) -> dict[str, bytes]:
    """Every file of the log and every line that its processes wrote."""
    found = {}
    for file in running.settings.directory.rglob("*"):
        with suppress(FileNotFoundError):  # a file that is being written has another name for a moment
            if file.is_file():
                found[str(file.relative_to(running.settings.directory))] = file.read_bytes()
    return found | {"output": running.output().encode()}


def places(running: RunningLog, needle: bytes) -> set[str]:
    return {name for name, data in bytes_under(running).items() if needle in data}


def all_output(running: RunningLog) -> bytes:
    """Every line of every process: the log's, its witness's, its proxy's and an instance's."""
    return b"".join(path.read_bytes() for path in (running.directory / "logs").glob("*.log"))


def be_talked_of(running: RunningLog) -> None:
    """What a log says lines about, with the victim in it: lookups, refusals, and documents that cannot be had."""
    victim, target = actor(VICTIM), quote(actor(VICTIM), safe="")
    for path in ("/api/actor/{}", "/api/actor/{}/keys", "/api/actor/{}/nothing", "/actors/{}", "/search?q={}", "/{}"):
        running.get(path.format(target))
    built = running.build_enrolment(VICTIM)
    for wire in (built.wire, "{", {**built.wire, "signature": "AAAA"}, {**built.wire, "recent-merkle-root": "pkd-mr-v1:x"}):
        assert running.deliver(wire, VICTIM).status in (400, 403)
    running.evil_documents[f"/users/{VICTIM}"] = {"id": victim, "type": "Person"}
    for host in (EVIL, GONE):
        who = actor(VICTIM, host)
        content = build_envelope(who, seal(built, running.hpke()))
        body = json.dumps(direct_message(LOG_ACTOR, who, content, os.urandom)).encode()
        assert running.post(body, VICTIM, key_id=http_key_id(who)).status >= 400
    assert running.output().count("refused") >= 8
    at_debug = load_settings(running.settings.directory).log_level == "debug"
    assert running.output().count("no document of an actor") == (2 if at_debug else 0)


def shred(running: RunningLog, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ktlog", "shred", "--dir", str(running.settings.directory), *options],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )


def audit(running: RunningLog, directory: Path) -> subprocess.CompletedProcess[str]:
    vkey = load_public_keys(running.settings).vkeys[1]
    return subprocess.run(
        [sys.executable, "-m", "auditor", "audit", f"https://{ORIGIN}", "--dir", str(directory), "--vkey", vkey, "--json"],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"KTLOG_DIAL": str(running.directory / "dial.json")},
    )


def fill(running: RunningLog) -> dict[str, bytes]:
    """The victim enrols, adds a key and becomes Fireproof; somebody else enrols too. What must go, by name."""
    now, victim, second = int(time.time()), actor(VICTIM), SigningKey.generate()
    messages = []
    for make in (
        lambda root: running.build_enrolment(VICTIM),
        lambda root: add_key(victim, second.public_key, running.keys[VICTIM], recent_root=root, now=now),
        lambda root: fireproof(victim, running.keys[VICTIM], recent_root=root, now=now),
    ):
        built = make(running.root())
        answer = running.deliver(built.wire, VICTIM)
        assert answer.status == 202, answer.body
        messages.append(built)
    assert running.enrol(OTHER).status == 202
    running.wait_published(4)
    needles = {"id": victim.encode(), "user": f"users/{VICTIM}".encode()}
    for name, key in (("first key", running.keys[VICTIM]), ("second key", second)):
        text = encode_public_key(key.public_key)
        needles |= {name: key.public_key, f"{name} as text": text.encode()}
    with SqliteStore.open(running.settings.database, read_only=True) as store:
        salt = store.salt(victim)
        for record in store.records(0, 3):
            for attribute, symmetric in record.keys.items():
                needles[f"key of {attribute} in {record.leaf_index}"] = base64.b64encode(symmetric)
    return needles | {"salt": salt, "salt in JSON": base64.b64encode(salt)}


def test_an_actor_is_erased_and_the_log_stays(log, tmp_path):
    needles = fill(log)
    be_talked_of(log)
    for name in ("log", "map"):  # as an upgrade leaves them
        (log.settings.directory / f"{name}.schema-1.2026-11-22T203104Z.db").write_bytes(actor(VICTIM).encode())
    for name, needle in needles.items():
        assert places(log, needle), f"the search does not find the {name}"
    with SqliteStore.open(log.settings.database, read_only=True) as store:
        entries, others = store.entries(0, 4), store.actor(actor(OTHER))

    # Not before the notice period, and not without being asked.
    log.wait("the end of the notice period", lambda: shred(log, actor(VICTIM), "--preview").returncode == 0)
    assert shred(log, actor(VICTIM)).returncode == 130
    assert shred(log, actor(VICTIM), "--json").returncode == 2
    unknown = shred(log, "https://alpha.example/users/nobody", "--yes", "--json")
    assert (unknown.returncode, json.loads(unknown.stdout)["error"]["name"]) == (5, "nothing_to_erase")

    done = shred(log, actor(VICTIM), "--yes", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["done"], report["scrubbed"], report["number"], report["input-size"]) == (True, True, 0, 4)
    assert (report["withheld"], report["entries"]) == (5, 3)
    assert any("Backups" in line for line in report["cannot-erase"])

    for name, needle in needles.items():
        assert places(log, needle) == set(), f"the {name} is left"
    needles["id in a path"] = quote(actor(VICTIM), safe="").encode()
    assert [name for name in needles if needles[name] in all_output(log)] == []
    assert b"users" not in all_output(log), "nobody is named in any line"
    assert places(log, actor(OTHER).encode())
    (journaled,) = read_journal(log.settings.journal)
    assert journaled.record.index == map_index(ORIGIN, actor(VICTIM))

    # Nobody is told anything about the actor any more, and about others everything.
    with SqliteStore.open(log.settings.database, read_only=True) as store:
        assert (store.entries(0, 4), store.actor(actor(OTHER))) == (entries, others)
    assert log.get(f"/api/actor/{quote(actor(VICTIM), safe='')}/keys").status == 404
    assert log.get(f"/api/actor/{quote(actor(OTHER), safe='')}/keys").status == 200
    head = parse_erasure_head(log.get("/erasures").body)
    assert read_erasures(head, lambda path: log.get(f"/{path}").body) == (journaled.record,)
    lines = [json.loads(line) for line in log.get("/records/000.p/4").body.splitlines()]
    assert [line["withheld"] for line in lines] == [True, True, True, False]
    assert lines[0]["plain"] == {"actor": None, "public-key": None}
    assert log.get("/erasures/000.p/2").status == 404

    # A fresh audit of everything passes, and says what it had to take.
    audited = audit(log, tmp_path / "audits")
    assert audited.returncode == 0, audited.stdout + audited.stderr

    # Enrolling again works, as a new beginning; what was erased stays so.
    assert log.enrol(VICTIM).status == 202
    log.wait_published(5)
    with SqliteStore.open(log.settings.database, read_only=True) as store:
        again = store.actor(actor(VICTIM))
        assert (again.erasures, again.generation, again.fireproof, len(again.keys)) == (1, 2, False, 1)
    for name in ("second key", "salt", "second key as text"):
        assert places(log, needles[name]) == set()
    assert shred(log, actor(OTHER), "--preview").returncode == 0


def admin(running: RunningLog, *words: str) -> str:
    done = CliRunner().invoke(ktlog, ["admin", *words, "--dir", str(running.settings.directory)])
    assert done.exit_code == 0, done.exception
    return done.output


@in_json
def test_what_the_operator_decides_holds_at_once_in_every_worker_and_is_told_in_json(log):
    assert "everybody but the blocked" in admin(log, "status")
    admin(log, "block", DOMAIN, "--reason", "private words")
    answers = [log.enrol("a03") for _ in range(4)]
    assert {(answer.status, answer.json()["code"]) for answer in answers} == {(403, "instance_blocked")}
    admin(log, "unblock", DOMAIN)
    admin(log, "pause", "--reason", "moving house")
    paused = [log.enrol("a03") for _ in range(4)]
    assert {(answer.status, answer.json()["code"]) for answer in paused} == {(503, "paused")}
    assert int(paused[0].headers["retry-after"]) >= 60 and "moving house" in paused[0].json()["message"]
    assert log.get("/readyz").body == b"ok, paused: moving house\n"
    assert log.get(f"/api/actor/{quote(actor(OTHER), safe='')}").status == 200
    refused = json.loads(admin(log, "refusals", "--json"))["refusals"]
    assert {(row["code"], row["instance"]) for row in refused} >= {("instance_blocked", DOMAIN)}
    admin(log, "resume")
    assert log.enrol("a03").status == 202
    lines = [json.loads(line) for line in log.output().splitlines()]
    told = {line["id"]: (line["status"], line["code"], line.get("claimed")) for line in lines if line["msg"] == "refused"}
    for answer in (*answers, *paused):
        assert told[answer.headers["x-request-id"]] == (answer.status, answer.json()["code"], DOMAIN)
    assert "private words" not in log.output() and "users/a0" not in log.output()


def test_without_a_running_log_the_command_says_so(tmp_path):
    from ktlog.operator.create import create_log

    settings = create_log(tmp_path / "log", ORIGIN, "spec", bytes(32))
    result = subprocess.run(
        [sys.executable, "-m", "ktlog", "shred", "--dir", str(settings.directory), actor(VICTIM), "--yes"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert result.returncode == 8
    assert "ktlog serve" in result.stderr
    result = subprocess.run(
        [sys.executable, "-m", "ktlog", "shred", "--dir", str(settings.directory), "alice@example.com", "--yes"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert (result.returncode, "BadActorId" in result.stderr) == (2, True)
