"""The log's ActivityPub pages: its actor, its account, NodeInfo, its inbox, and what it says of a message."""

from __future__ import annotations

import hashlib
import json
import queue
import re
import threading
from base64 import b64encode
from dataclasses import replace

import pytest

from ktlog import __version__
from ktlog.errors import EncodingError, MessageRejected, RateLimited, StoreError
from ktlog.operator.create import create_log
from ktlog.operator.instance import direct_message
from ktlog.operator.link import Link, Receipt
from ktlog.pkd.actors import Status
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.erasure import erased_actor
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.messages import AddKey, parse_wire
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.app import create_app
from ktlog.web.inbox import QuickInbox
from ktlog.web.nodeinfo import SCHEMA
from ktlog.wire.actor import ED25519, ML_DSA_44, parse_actor
from ktlog.wire.received import LATER
from ktlog.wire.webfinger import ACTIVITY_JSON, actor_of_jrd
from tests.operator_world import NOW, submission
from tests.pkd_samples import ALICE, public, quick_argon2

__all__ = ["quick_argon2"]
ORIGIN = "keys.example.com"
LOG_ACTOR = f"https://{ORIGIN}/users/pubkeydir"
INBOX = "/users/pubkeydir/inbox"
ENVELOPE = json.dumps({"!pkd-context": "fedi-e2ee:v1-encrypted-message", "actor": ALICE, "encrypted-message": "hpke:AA"})


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = create_log(tmp_path_factory.mktemp("activitypub") / "log", ORIGIN, "spec", bytes(32))
    return replace(made, rate_limit_exempt="127.0.0.0/8", aux_types="age-v1")


class Site:
    """The app over an empty log; what admission and the sequencer would say is the test's to decide."""

    def __init__(self, settings):
        self.settings = settings
        self.app = create_app(settings)
        self.context = self.app.extensions["ktlog"]
        self.context.admission, self.context.link = self, self
        self.result = Receipt(4, b"entry", ZERO_ROOT)
        self.signed_by, self.lookups = "example.com", 0
        self.late = False  # it is the sequencer who refuses
        self.admitted = []

    def admit(self, request):
        self.admitted.append(request)
        request.source.domain, request.source.lookups = self.signed_by, self.lookups
        if isinstance(self.result, Exception) and not self.late:
            raise self.result
        return submission(AddKey(ALICE, public("a"), NOW))

    def append(self, _):
        self.before_it_says()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    append_later = Link.append_later

    def before_it_says(self):
        """For tests that look."""

    def get(self, target, **options):
        return self.app.test_client().get(
            target, headers={"Host": ORIGIN}, environ_overrides={"RAW_URI": target}, **options
        )

    def post(self, body, target=INBOX):
        return self.app.test_client().post(
            target, data=body, headers={"Host": ORIGIN, "Content-Type": ACTIVITY_JSON}, environ_overrides={"RAW_URI": target}
        )

    def replies(self):
        """What waits for the courier; it is taken out."""
        self.context.outbox.flush()
        found = []
        while (waiting := self.context.replies.next_due(2**40)) is not None:
            found.append(waiting)
            self.context.replies.remove(waiting.id)
        return found


@pytest.fixture
def site(settings, quick_argon2):
    site = Site(settings)
    yield site
    site.replies()
    site.context.replies.close()
    site.context.guard.close()


def message(content=ENVELOPE, sender=ALICE, **note):
    document = direct_message(LOG_ACTOR, sender, content, lambda size: bytes(size))
    document["object"] |= note
    return json.dumps(document).encode()


# --- the actor and its account


def test_the_actor_is_a_service_with_both_keys(site):
    answer = site.get("/users/pubkeydir")
    assert answer.content_type == ACTIVITY_JSON
    document = answer.get_json(force=True)
    parsed = parse_actor(document, LOG_ACTOR)
    assert [(key.id, key.algorithm) for key in parsed.assertion_method] == [
        (f"{LOG_ACTOR}#main-key", ED25519), (f"{LOG_ACTOR}#pq-key", ML_DSA_44),
    ]
    assert all(entry["publicKeyMultibase"].startswith("z") for entry in document["assertionMethod"])
    assert (document["type"], document["inbox"]) == ("Service", f"https://{ORIGIN}{INBOX}")
    assert document["endpoints"] == {"sharedInbox": f"https://{ORIGIN}/inbox"}
    for name in ("outbox", "followers", "following"):
        assert document[name] == f"{LOG_ACTOR}/{name}"


@pytest.mark.parametrize("name", ["outbox", "followers", "following"])
def test_its_collections_are_there_and_empty(site, name):
    answer = site.get(f"/users/pubkeydir/{name}")
    document = answer.get_json(force=True)
    assert answer.content_type == ACTIVITY_JSON
    assert (document["id"], document["type"]) == (f"{LOG_ACTOR}/{name}", "OrderedCollection")
    assert (document["totalItems"], document["orderedItems"]) == (0, [])


def test_there_is_no_other_actor_and_no_other_collection(site):
    for target in ("/users/alice", "/users/pubkeydir/likes", "/users/PubKeyDir", "/users/pubkeydir/", "/users/alice/outbox"):
        assert site.get(target).status_code == 404


def test_webfinger_answers_for_its_own_account_only(site):
    subject = f"acct:pubkeydir@{ORIGIN}"
    for resource in (subject, LOG_ACTOR):
        answer = site.get("/.well-known/webfinger", query_string={"resource": resource})
        assert (answer.status_code, answer.content_type) == (200, "application/jrd+json")
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert actor_of_jrd(answer.get_json(force=True), subject) == LOG_ACTOR
    for resource in (
        "acct:pubkeydir@alpha.example", f"acct:alice@{ORIGIN}", ALICE, "", "pubkeydir", f"{LOG_ACTOR}/", subject.upper(),
        "acct:alice@127.0.0.1", "http://169.254.169.254/",
    ):
        assert site.get("/.well-known/webfinger", query_string={"resource": resource}).status_code == 404


def test_webfinger_wants_one_resource(site):
    subject = f"acct:pubkeydir@{ORIGIN}"
    assert site.get("/.well-known/webfinger").status_code == 400
    both = [("resource", subject), ("resource", ALICE)]
    assert site.get("/.well-known/webfinger", query_string=both).status_code == 400


def test_webfinger_gives_the_links_that_were_asked_for(site):
    def links(*rels):
        asked = [("resource", LOG_ACTOR), *(("rel", rel) for rel in rels)]
        return site.get("/.well-known/webfinger", query_string=asked).get_json(force=True)["links"]

    assert links("http://webfinger.net/rel/profile-page") == []
    assert links("self") == links("x", "self") == links()


# --- NodeInfo


def test_nodeinfo_is_found_and_has_the_shape_of_its_schema(site):
    found = site.get("/.well-known/nodeinfo")
    assert found.headers["Access-Control-Allow-Origin"] == "*"
    (link,) = found.get_json()["links"]
    assert link == {"rel": SCHEMA, "href": f"https://{ORIGIN}/nodeinfo/2.1"}
    answer = site.get("/nodeinfo/2.1")
    assert answer.content_type == f'application/json; profile="{SCHEMA}#"'
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    document = answer.get_json()
    # The members that the schema requires, each of its type and from its list of values.
    assert set(document) == {
        "version", "software", "protocols", "services", "openRegistrations", "usage", "metadata",
    }
    assert document["version"] == "2.1"
    assert document["software"] == {"name": "ktlog", "version": __version__}
    assert re.fullmatch(r"[a-z0-9-]+", document["software"]["name"])
    assert document["protocols"] == ["activitypub"]
    assert document["services"] == {"inbound": [], "outbound": []}
    assert document["openRegistrations"] is False
    assert document["usage"] == {"users": {}}, "nobody is counted"
    pkd = document["metadata"]["pkd"]
    assert pkd["spec"] == "0.8"
    assert (pkd["api"], pkd["actor"], pkd["origin"]) == (f"https://{ORIGIN}/api", LOG_ACTOR, ORIGIN)
    assert pkd["checkpoint"] == f"https://{ORIGIN}/checkpoint"
    assert pkd["vkeys"] == list(site.context.public_keys.vkeys)
    assert pkd["extensions"] == ["age-v1"]
    assert site.get("/nodeinfo/2.0").status_code == 404


# --- the inbox


class Later:
    """A server's, which has the rest done by another thread."""

    def __init__(self) -> None:
        self._body: queue.Queue[bytes] = queue.Queue()

    def __iter__(self):
        yield self._body.get(timeout=20)

    def run(self, work) -> None:
        threading.Thread(target=work).start()

    def answer(self, body: bytes) -> None:
        self._body.put(body)


def answers(site, body, **environ):
    """What a post is answered with, its signatures aside, and to how many a reply goes."""
    digest = b64encode(hashlib.sha256(body).digest()).decode()
    site.app.testing = False
    with site.context.guard._file.transaction() as connection:  # nobody waits for what was refused before
        connection.execute("DELETE FROM bad_sources")
    answer = site.app.test_client().post(
        INBOX, data=body, environ_overrides={"RAW_URI": INBOX, "REMOTE_ADDR": "192.0.2.1"} | environ,
        headers={"Host": ORIGIN, "Content-Type": ACTIVITY_JSON, "Content-Digest": f"sha-256=:{digest}:"},
    )
    headers = {name: value for name, value in answer.headers if name not in ("Signature", "X-RateLimit-Reset", "X-Request-Id")}
    covered = headers.pop("Signature-Input")
    waits = sum(row is not None for row in (headers.get("Retry-After"), answer.headers.get("X-RateLimit-Reset")))
    replies = len(site.replies())
    return answer.status, answer.data, headers, re.sub("created=[0-9]+", "", covered), waits, replies


@pytest.mark.parametrize(
    ("body", "result", "lookups"),
    [
        (message(), None, 0), (message(), Receipt(4, b"entry", ZERO_ROOT, duplicate=True), 0),
        (message(), Receipt(4, b"entry", ZERO_ROOT, duplicate=True), 1),
        (message(), MessageRejected("bad_signature", "no"), 0), (message(), MessageRejected("actor_mismatch", "no"), 0),
        (message(), RateLimited("wait", retry_after_ms=5000, limit=1, reset=7), 0), (message(), StoreError("Gone", "x"), 0),
        (message(), EncodingError("BadJson", "no"), 0), (message(), RuntimeError("a bug"), 0), (b"{", None, 0), (b"\xff", None, 0),
        (b'{"type":"Like"}', None, 0), (b'{"type":"Like","n":1.5}', None, 0), (message(content="<p>hello"), None, 0),
    ],
)
def test_the_short_way_answers_as_the_view_does(site, monkeypatch, body, result, lookups):
    site.result, site.lookups = result or site.result, lookups
    counted = []
    monkeypatch.setattr(site.context.refusals, "count", lambda *row: counted.append(row))
    short, of_short = answers(site, body), list(counted)
    monkeypatch.setattr(QuickInbox, "_length", lambda self, environ: None)
    counted.clear()
    assert answers(site, body) == short
    assert counted == of_short


@pytest.mark.parametrize("result", [
    None, Receipt(4, b"entry", ZERO_ROOT, duplicate=True), MessageRejected("merkle_root_stale", "no"),
    MessageRejected("overloaded", "no"), MessageRejected("keys_differ", "no"), StoreError("SequencerUnreachable", "x"),
    RuntimeError("a bug"),
])
def test_what_the_sequencer_says_is_answered_the_same_whether_a_thread_waits_for_it_or_not(site, monkeypatch, result):
    """And the place at the gate is free again, whatever it says; until it says something, it is not."""
    site.result, site.lookups, site.late = result or site.result, 1, True
    counted, taken = [], []
    monkeypatch.setattr(site.context.refusals, "count", lambda *row: counted.append(row))
    monkeypatch.setattr(site.context.gate, "shut", lambda: counted.append("shut"))
    monkeypatch.setattr(site, "before_it_says", lambda: taken.append(site.context.gate._under_way))
    if not isinstance(result, RuntimeError):  # which no link tells: it would be raised at once
        waiting, of_waiting = answers(site, message()), list(counted)
        counted.clear()
        assert answers(site, message(), **{LATER: Later()}) == waiting
        assert (counted, taken) == (of_waiting, [1, 1])
    else:
        assert answers(site, message(), **{LATER: Later()})[0] == "500 INTERNAL SERVER ERROR"
    assert (site.context.gate._under_way, site.context.gate._of) == (0, {})


@pytest.mark.parametrize("target", [INBOX, "/inbox"])
def test_a_receipt_names_its_status_and_is_sent_as_a_message_too(site, target):
    answer = site.post(message(), target)
    assert answer.status_code == 202
    receipt = answer.get_json()
    unique_hash = parse_wire(SPEC, site.admit(site.admitted[0]).preimage).unique_hash
    assert receipt["status-url"] == f"https://{ORIGIN}/api/status/{encode_base64url(unique_hash)}"
    assert site.admitted[0].target_url == f"https://{ORIGIN}{target}"
    (waiting,) = site.replies()
    assert (waiting.recipient, waiting.host) == (ALICE, "example.com")
    activity = json.loads(waiting.body)
    assert json.loads(activity["object"]["content"]) == receipt
    assert activity["object"]["inReplyTo"] == json.loads(message())["object"]["id"]


def test_what_was_accepted_before_is_said_to_be_so_again(site):
    site.result = Receipt(4, b"entry", ZERO_ROOT, duplicate=True)
    assert site.post(message()).get_json()["already-processed"] is True
    assert site.replies() == [], "whoever sends it ten thousand times fills no queue"


@pytest.mark.parametrize(("lookups", "waits"), [(0, False), (1, True)])
def test_what_was_accepted_before_costs_who_makes_us_fetch_for_it(site, monkeypatch, lookups, waits):
    site.result, site.lookups = Receipt(4, b"entry", ZERO_ROOT, duplicate=True), lookups
    monkeypatch.setattr(site.context.guard, "_exempt", ())
    answer = site.post(message())
    assert (answer.status_code, "Retry-After" in answer.headers) == (202, waits)
    monkeypatch.undo()
    site.context.guard._file._connection.execute("DELETE FROM bad_sources")


@pytest.mark.parametrize("result", [MessageRejected("key_exists", "no"), Receipt(4, b"entry", ZERO_ROOT)])
def test_who_was_erased_is_written_down_nowhere(site, monkeypatch, result):
    """Neither before nor just after the message was put, when the erasure has looked into the queue already."""
    site.result = result
    answers = []
    monkeypatch.setattr(site.context.outbox, "_is_erased", lambda actor_id: answers.pop(0))
    monkeypatch.setattr(site.context.store, "erasure_count", lambda size=None: len(answers))
    for answers[:] in ([True], [False, True]):
        assert site.post(message()).status_code in (202, 400)
        assert (site.replies(), answers) == ([], [])
    answers[:] = [False, False]
    site.post(message())
    assert len(site.replies()) == 1


def test_who_enrols_again_is_erased_no_more(site, monkeypatch):
    gone = erased_actor(ALICE, 2, 0, 1)
    for left, now, expected in ((None, None, False), (gone, gone, True), (gone, replace(gone, status=Status.ACTIVE), False)):
        monkeypatch.setattr(site.context.store, "erased", lambda _, left=left: left)
        monkeypatch.setattr(site.context.store, "actor", lambda _, now=now: now)
        assert site.context.is_erased(ALICE) is expected
    assert site.context.authenticator._actor_keys._erased == site.context.is_erased


@pytest.mark.parametrize("code", ["key_exists", "actor_mismatch", "stale_time"])
def test_a_refusal_of_a_signed_message_is_sent_to_its_sender(site, code):
    site.result = MessageRejected(code, "no")
    answer = site.post(message())
    (waiting,) = site.replies()
    assert json.loads(json.loads(waiting.body)["object"]["content"]) == answer.get_json()
    assert answer.get_json()["code"] == code


@pytest.mark.parametrize("error", [
    MessageRejected("unauthorized"), MessageRejected("unknown_http_key"), MessageRejected("replayed_request"),
    MessageRejected("actor_gone"), MessageRejected("overloaded"), MessageRejected("duplicate_message"), StoreError("SequencerUnreachable"),
    RateLimited("wait", retry_after_ms=5, limit=1, reset=NOW), ZeroDivisionError("a bug"),
], ids=lambda error: getattr(error, "name", "bug"))
def test_no_message_about_who_nobody_vouches_for_or_what_will_pass(site, error):
    site.result = error
    assert site.post(message()).status_code >= 401
    assert site.replies() == []


@pytest.mark.parametrize("signed_by", [None, "beta.example", "", "example.com.evil.example"])
def test_no_message_to_who_did_not_sign(site, signed_by):
    site.signed_by, site.result = signed_by, MessageRejected("key_exists", "no")
    assert site.post(message()).status_code == 400
    assert site.replies() == []


@pytest.mark.parametrize("body", [
    message("hello"), message('{"!pkd-context":"fedi-e2ee:v1/api/inbox"}'), message(inReplyTo=f"https://{ORIGIN}/1"),
])
def test_no_message_in_answer_to_an_answer(site, body):
    site.result = MessageRejected("bad_request", "no")
    assert site.post(body).status_code == 400
    assert site.replies() == []


def test_no_message_to_another_directory(site, monkeypatch):
    for directories, sent in (("https://example.com", 0), ("https://x.example https://example.com/pkd", 0), ("https://example.co", 1)):
        monkeypatch.setattr(site.context, "settings", replace(site.settings, directories=directories))
        assert site.post(message()).status_code == 202
        assert len(site.replies()) == sent


def test_a_queue_that_fails_costs_nobody_their_receipt(site, monkeypatch, caplog):
    def fail(*_):
        raise StoreError("DiskFull", f"no room for {ALICE}")

    monkeypatch.setattr(site.context.replies, "put_all", fail)
    assert site.post(message()).status_code == 202
    site.context.outbox.flush()
    assert "DiskFull" in caplog.text
    assert "alice" not in caplog.text


@pytest.mark.parametrize("target", [INBOX, "/inbox"])
@pytest.mark.parametrize("kind", ["Delete", "Follow", "Undo", "Like", "Announce", "Update"])
def test_a_flood_is_answered_before_anybody_is_asked(site, monkeypatch, kind, target):
    """Not even the guard: who is made to wait sends everything again, and more each time."""
    monkeypatch.setattr(site.context.guard, "check", lambda *_: pytest.fail("the guard was asked"))
    body = json.dumps({"type": kind, "actor": "https://gone.example/users/x", "object": "https://gone.example/users/x"})
    answer = site.post(body.encode(), target)
    assert (answer.status_code, answer.data) == (202, b"")
    assert "Signature" in answer.headers
    assert (site.admitted, site.replies()) == ([], [])


def test_a_flood_in_large_pieces_is_not_read_for_nothing(site):
    """Beyond the length that such activities have, it goes the way of messages, where the guard counts."""
    site.result = MessageRejected("not_a_direct_message", "no")
    body = json.dumps({"type": "Delete", "content": "x" * 70_000}).encode()
    assert site.post(body).status_code == 400
    assert len(site.admitted) == 1


def test_a_message_is_read_whole_although_it_was_looked_at_before(site):
    body = message()
    site.post(body)
    assert site.admitted[0].body == body


# --- status


def test_the_status_of_a_message_that_nobody_sent(site):
    answer = site.get(f"/api/status/{encode_base64url(bytes(32))}")
    assert (answer.status_code, answer.get_json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("name", ["A", "A" * 42, "A" * 44, "A" * 43 + "=", "%00" * 10, "A" * 42 + "B", "-" * 64])
def test_the_status_of_what_is_no_hash(site, name):
    answer = site.get(f"/api/status/{name}")
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_request")
