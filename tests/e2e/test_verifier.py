"""A log whose map needs a verifier: three processes, and clients who ask for answers that it stands behind."""

from __future__ import annotations

import json
import socket
import time

import pytest

from ktlog.client import Directory
from ktlog.client.answer import Erased, NeverEnrolled, Present
from ktlog.errors import MessageRejected
from ktlog.operator.create import load_public_keys
from ktlog.operator.link import SequencerLink
from ktlog.operator.mappending import load_pending
from ktlog.store.documents import FileDocument
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import LogKey, Policy
from ktlog.wire.fetch import Fetcher
from tests.running_log import DOMAIN, ORIGIN, VERIFIER, RunningLog, actor


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    running = RunningLog(tmp_path_factory.mktemp("verified"), verifier=True, notice_seconds=1)
    try:
        running.wait("the map", lambda: (running.settings.map_tiles / "checkpoint").exists())
        yield running
    finally:
        running.stop()


@pytest.fixture
def fetcher(log):
    with Fetcher.from_environment({"KTLOG_DIAL": str(log.directory / "dial.json")}) as made:
        yield made


def client(log: RunningLog, fetcher: Fetcher, state) -> Directory:
    vkeys = map(parse_vkey, load_public_keys(log.settings).map_vkeys)
    lines = tuple(LogKey(vkey, f"https://{ORIGIN}/map") for vkey in vkeys)
    publish = log.policy
    policy = Policy(lines, publish.witnesses, publish.groups, publish.quorum)
    policy.check_safe(require_verifiers=True)
    return Directory(policy, state=state, domains={DOMAIN: ORIGIN}, fetcher=fetcher, now=lambda: int(time.time()))


def status(fetcher: Fetcher) -> dict:
    (found,) = json.loads(fetcher.get(f"https://{VERIFIER}/replays").body)["logs"]
    return found



def erased(log: RunningLog, user: str) -> bool:
    try:
        return SequencerLink(log.settings.socket_record).shred(actor(user)).done
    except MessageRejected as refusal:
        assert refusal.code in ("notice_period", "overloaded"), refusal
        return False


def test_the_three_answers(log, fetcher, tmp_path):
    assert log.enrol("a01").status == 202 and log.enrol("a02").status == 202
    log.wait("the notice period", lambda: erased(log, "a02"))
    directory = client(log, fetcher, tmp_path)
    for full in (False, True):
        answer = directory.lookup(actor("a01"), full=full)
        assert isinstance(answer, Present)
        assert [key.public_key for key in answer.keys] == [log.keys["a01"].public_key]
        assert isinstance(directory.lookup(actor("a02"), full=full), Erased)
        assert isinstance(directory.lookup(actor("nobody"), full=full), NeverEnrolled)
    found = status(fetcher)
    assert (found["wrong"], found["timely-from"], found["derived-from"]) == (None, 1, 1)
    assert found["leaves-checked"] >= 4 and found["violations"] == found["taken"] == 0


@pytest.mark.slow
def test_a_verifier_that_was_away(log, fetcher, tmp_path):
    """The log keeps the leaf that it could not publish, and says who did not sign; nobody is shown less proof."""
    (port,) = [one.port for one in log.processes.running() if one.name == "verifier"]
    log.processes.stop("verifier")
    assert log.enrol("a03").status == 202
    log.wait("a leaf that waits", lambda: load_pending(FileDocument(log.settings.map_pending)) is not None)
    waiting = load_pending(FileDocument(log.settings.map_pending))
    log.wait("a word about it", lambda: f"no cosignature for the map from https://{VERIFIER}" in log.output())
    directory = client(log, fetcher, tmp_path)
    assert isinstance(directory.lookup(actor("a03")), NeverEnrolled), "the map as it was last cosigned"
    log.processes.start(
        "verifier", "witness", ["serve", "--replay", "--dir", str(log.directory / "verifier")],
        socket.create_server(("127.0.0.1", port)),
    )
    log.wait("the map", lambda: isinstance(directory.lookup(actor("a03")), Present))
    checked = status(fetcher)
    assert checked["leaves-checked"] > waiting.leaf_index and checked["wrong"] is None
