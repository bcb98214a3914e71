"""What is dropped unread, who gets an answer, and what the answer looks like."""

from __future__ import annotations

import json
import os

import pytest

from ktlog.operator.activity import ENCRYPTED_CONTEXT, PLAINTEXT_CONTEXT, parse_activity
from ktlog.operator.federation import Question, escape_html, is_noise, parse_question, reply
from ktlog.operator.instance import direct_message

LOG_ACTOR = "https://keys.example.com/users/pubkeydir"
OTHER_LOG = "https://keys.beta.example/users/pubkeydir"
ALICE = "https://alpha.example/users/alice"
NOTE = "https://alpha.example/objects/1"
ENVELOPE = json.dumps({"!pkd-context": ENCRYPTED_CONTEXT, "actor": ALICE, "encrypted-message": "hpke:AA"})
RESULT = json.dumps({"!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": 5})
ERROR = json.dumps({"!pkd-context": "fedi-e2ee:v1/api/error", "code": "key_exists", "message": "no"})


def question(content: str = ENVELOPE, to: str = LOG_ACTOR, sender: str = ALICE, **note: object) -> bytes:
    document = direct_message(to, sender, content, os.urandom)
    document["object"] |= {"id": NOTE} | note
    return json.dumps(document).encode()


# --- noise


@pytest.mark.parametrize("kind", [
    "Delete", "Follow", "Undo", "Like", "Announce", "Update", "Accept", "Add", "EmojiReact", "https://example.org/ns#Wave",
    ["Like"], ["Like", "EmojiReact"],
])
def test_what_servers_tell_everybody_is_noise(kind):
    body = {"@context": "https://www.w3.org/ns/activitystreams", "type": kind, "actor": ALICE, "object": ALICE}
    assert is_noise(json.dumps(body).encode())
    assert is_noise(json.dumps(body | {"signature": {"x": 1.5}, "to": ["as:Public"]}).encode())


def test_a_create_is_never_noise():
    assert not is_noise(question())
    for kind in (
        "Create", "create", " Create", "as:Create", "https://www.w3.org/ns/activitystreams#Create", ["Create"],
        ["Like", "Create"], "", None, 5, [], ["Like", 5], ["Like", ""], {"type": "Delete"},
    ):
        assert not is_noise(json.dumps({"type": kind}).encode()), kind


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"Delete"', b"\xff", b'["Delete"]', b'[{"type":"Delete"}]', b"{}",
    b'{"type":"Delete","type":"Create"}', b'{"type":"Create","type":"Delete"}', b'{"\\u0074ype":"Create","type":"Delete"}',
    b'{"object":{"type":"Delete"}}', b"[" * 100_000, b'{"type":"Delete"} {}', b'{"type":"Delete","a":NaN}',
], ids=lambda body: repr(body[:30]))
def test_what_cannot_be_read_goes_the_way_of_messages(body):
    """There it is refused with its code; a body that could be read as a Create above all."""
    assert not is_noise(body)


# --- who is answered


def test_a_protocol_message_is_answered():
    assert parse_question(question(), LOG_ACTOR) == Question(ALICE, NOTE)
    plain = json.dumps({"!pkd-context": PLAINTEXT_CONTEXT, "actor": ALICE, "message": "{}"})
    assert parse_question(question(plain), LOG_ACTOR) == Question(ALICE, NOTE)
    assert parse_question(question(inReplyTo=None), LOG_ACTOR) == Question(ALICE, NOTE)


@pytest.mark.parametrize("content", [
    RESULT, ERROR, "thank you!", f"<p>{ENVELOPE}</p>", "", "{}", ENVELOPE.replace("v1", "v2"), f"{ENVELOPE} thanks",
])
def test_what_is_no_protocol_message_is_not(content):
    assert parse_question(question(content), LOG_ACTOR) is None


@pytest.mark.parametrize("body", [
    b"", b"[]", question(to=OTHER_LOG), question(type="Article"), question(attributedTo="https://beta.example/x"),
    question().replace(b"https://alpha", b"http://alpha"), question(sender=LOG_ACTOR),
    question(sender=OTHER_LOG),
])
def test_nor_what_is_no_direct_message_to_us(body):
    assert parse_question(body, LOG_ACTOR) is None


@pytest.mark.parametrize("reply_to", [NOTE, "https://keys.example.com/objects/1", [], {}, 5, ""])
def test_a_reply_is_never_answered(reply_to):
    assert parse_question(question(inReplyTo=reply_to), LOG_ACTOR) is None


@pytest.mark.parametrize("result", [RESULT, ERROR])
def test_two_logs_do_not_answer_each_other_for_ever(result):
    """Our answer to another log's actor, seen by that log: no question. And the same once more."""
    # Actors by other names than ours, so that it is the answer itself which tells.
    directories = ("https://keys.beta.example/users/directory", "https://keys.gamma.example/actor")
    for asker, asked in (directories, directories[::-1]):
        answer = reply(asked, Question(asker, None), result, 1_800_000_000, os.urandom)
        assert parse_question(json.dumps(answer).encode(), asker) is None


@pytest.mark.parametrize("note", [
    "https://beta.example/objects/1", "http://alpha.example/objects/1", "x", "urn:uuid:5", "https://alpha.example",
    "https://user@alpha.example/1", f"{NOTE}#fragment", "x" * 10_000,
])
def test_we_point_at_nobody_elses_things(note):
    assert parse_question(question(id=note), LOG_ACTOR) == Question(ALICE, None)


# --- the answer


def test_the_answer_is_a_direct_message_to_the_sender_alone():
    activity = reply(LOG_ACTOR, Question(ALICE, NOTE), RESULT, 1_800_000_000, os.urandom)
    assert parse_activity(json.dumps(activity).encode(), ALICE).actor == LOG_ACTOR  # by our own strict rules
    note = activity["object"]
    assert (activity["type"], activity["actor"], activity["to"]) == ("Create", LOG_ACTOR, [ALICE])
    assert (note["type"], note["attributedTo"], note["to"]) == ("Note", LOG_ACTOR, [ALICE])
    assert note["inReplyTo"] == NOTE
    assert note["published"] == activity["published"] == "2027-01-15T08:00:00Z"
    assert note["tag"] == [{"type": "Mention", "href": ALICE, "name": ALICE}]
    assert json.loads(note["content"]) == json.loads(RESULT)
    assert all(identifier.startswith("https://keys.example.com/") for identifier in (activity["id"], note["id"]))
    assert activity["id"] != note["id"]
    again = reply(LOG_ACTOR, Question(ALICE, None), RESULT, 1_800_000_000, os.urandom)
    assert again["id"] != activity["id"]
    assert "inReplyTo" not in again["object"]


def test_the_answer_holds_nothing_that_html_would_eat():
    text = json.dumps({"message": "<script>alert(1)</script> & \"quoted\" \\ é"}, ensure_ascii=False)
    escaped = escape_html(text)
    assert not set("<>&") & set(escaped)
    assert json.loads(escaped) == json.loads(text)
    with pytest.raises(ValueError, match="Expecting value"):
        escape_html("<p>")
