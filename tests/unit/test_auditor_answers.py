"""Lies told by the API: what it answers about actors is not what the entries say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from auditor_runs import NONE, Mutation, names, run
from auditor_world import ALICE, BOB, Answer, honest_world, public

from auditor.audit import parse_selection
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key
from ktlog.tlog.encoding import encode_base64url


def about(actor_id: str, change: Mutation) -> Callable[[dict], None]:
    def edit(answer: dict) -> None:
        if answer["actor-id"] == actor_id:
            change(answer)

    return edit


MALLORY = encode_public_key(public("mallory"))

ANSWER_LIES: list[tuple[str, str, str, Callable[[dict], object]]] = [
    ("swapped key", "AnswerContradictsLog", "swapped", lambda a: a["public-keys"][0].update({"public-key": MALLORY})),
    ("omitted key", "AnswerContradictsLog", "omits the key", lambda a: a["public-keys"].pop()),
    ("no key at all", "AnswerContradictsLog", "omits the key", lambda a: a["public-keys"].clear()),
    ("extra key", "AnswerContradictsLog", "do not give them",
     lambda a: a["public-keys"].append({**a["public-keys"][0], "public-key": MALLORY, "leaf-index": 5})),
    ("a key twice", "AnswerContradictsLog", "do not give them",
     lambda a: a["public-keys"].append(a["public-keys"][0])),
    ("a revoked key", "AnswerContradictsLog", "do not give them",
     lambda a: a["public-keys"].append(
         {**a["public-keys"][0], "public-key": encode_public_key(public("alice-1")), "leaf-index": 0})),
    ("other key-id", "AnswerContradictsLog", "key-id", lambda a: a["public-keys"][0].update({"key-id": "A" * 43})),
    ("other created", "AnswerContradictsLog", "created", lambda a: a["public-keys"][0].update({"created": "5"})),
    ("history cut", "AnswerContradictsLog", "omits this message", lambda a: a["history"].pop()),
    ("history swapped", "AnswerContradictsLog", "did not touch", lambda a: a["history"][0].update({"leaf-index": 1})),
    ("other role", "AnswerContradictsLog", "role", lambda a: a["history"][0].update({"role": 2})),
    ("other message", "AnswerContradictsLog", "another message",
     lambda a: a["history"][0].update({"encrypted-message": a["history"][1]["encrypted-message"]})),
    ("other actor", "AnswerContradictsLog", "answered about", lambda a: a.update({"actor-id": BOB})),
    ("bad entry", "BadAnswerProof", "inclusion proof",
     lambda a: a["history"][0].update({"merkle-leaf": a["history"][1]["merkle-leaf"]})),
    ("no proof", "BadAnswerProof", "there is none", lambda a: a["history"][0].update({"inclusion-proof": None})),
    ("short proof", "BadAnswerProof", "inclusion proof", lambda a: a["history"][0]["inclusion-proof"].pop()),
    ("bad key proof", "BadAnswerProof", "of a key",
     lambda a: a["public-keys"][0]["inclusion-proof"].__setitem__(0, encode_base64url(bytes(32)))),
    ("key proof of numbers", "BadAnswerProof", "list of strings",
     lambda a: a["public-keys"][0].update({"inclusion-proof": [1]})),
    ("key proof of another tree", "BadAnswerProof", "another tree",
     lambda a: a["public-keys"][0].update({"tree-size": 9})),
    ("other root", "BadAnswerProof", "merkle-root", lambda a: a.update({"merkle-root": ZERO_ROOT})),
    ("other size", "MalformedAnswer", "tree size", lambda a: a.update({"tree-size": 9})),
    ("keys not a list", "MalformedAnswer", "public-keys", lambda a: a.update({"public-keys": {}})),
    ("no history", "MalformedAnswer", "history", lambda a: a.pop("history")),
    ("created a number", "MalformedAnswer", "created", lambda a: a["public-keys"][0].update({"created": 5})),
]


@pytest.mark.parametrize(
    ("lie", "name", "word", "change"), ANSWER_LIES, ids=[lie for lie, _, _, _ in ANSWER_LIES]
)
def test_an_answer_that_is_not_what_the_entries_say(
    lie: str, name: str, word: str, change: Callable[[dict], object]
) -> None:
    world = honest_world().clone()
    world.edit_answer = about(ALICE, change)
    report = run(world)
    assert names(report) == {name}, lie
    assert any(word in finding.what for finding in report.findings)
    assert report.exit_code == 5
    assert report.saved == []


def test_denying_an_actor_contradicts_the_log() -> None:
    world = honest_world().clone()
    world.serve["api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys"] = Answer(404, b"{}")
    assert names(run(world)) == {"AnswerContradictsLog"}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"{" * 5000, b'{"!pkd-context":1}'])
def test_an_answer_that_does_not_parse(body: bytes) -> None:
    world = honest_world().clone()
    world.serve["api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys"] = body
    assert names(run(world)) == {"MalformedAnswer"}


def test_answers_in_pages_are_read_to_the_end() -> None:
    world = honest_world().clone()
    world.rows_a_page = 1
    report = run(world)
    assert report.ok and report.answers.checked == 4
    rows = sum(len(rows) for rows in world.directory.histories.values())
    assert sum(path.endswith("/keys") for path in world.requests) == rows > 4


def test_a_lie_on_a_later_page() -> None:
    def edit(answer: dict) -> None:
        if "public-keys" not in answer and answer["actor-id"] == ALICE and answer["history-next"] is None:
            answer["history"].pop()

    world = honest_world().clone()
    world.rows_a_page, world.edit_answer = 2, edit
    report = run(world)
    assert names(report) == {"AnswerContradictsLog"}
    assert any("omits this message" in finding.what for finding in report.findings)


def test_more_pages_than_are_read_are_no_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktlog.client.page.MAX_HISTORY_PAGES", 2)
    world = honest_world().clone()
    world.rows_a_page = 1
    report = run(world)
    assert report.ok and report.answers.checked < 4
    assert any("pages that are read" in sentence and ALICE in sentence for sentence in report.not_checked)


def test_a_sample_of_answers_says_what_it_left_out() -> None:
    world = honest_world().clone()
    report = run(world, answers=parse_selection("sample:1"))
    assert (report.answers.checked, report.answers.total) == (1, 4)
    assert any("about 3 of 4 actors: --answers was sample:1" in sentence for sentence in report.not_checked)
    world.requests.clear()
    report = run(world, answers=NONE)
    assert report.answers.checked == 0
    assert not any(path.startswith("api/") for path in world.requests)
