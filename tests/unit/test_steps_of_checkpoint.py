"""Checkpoint: every validation step of the specification, by its number.

Each message is right in all but the one thing that its step is about, and comes through the whole of admission.
"""

from __future__ import annotations

import pytest

from ktlog.errors import Unreachable
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, encode_root
from ktlog.pkd.messages import AddKey
from tests.admission_world import ERIN, LOG_URL, PEER, PEER_ACTOR, Inbox, badly_signed, checkpoint
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2, revoke_by_token  # noqa: F401
from tests.store_samples import Draft, append

OTHER_ROOT = encode_root(b"\x01" * 32)


@pytest.fixture
def inbox() -> Inbox:
    """A log that is not empty, and takes Checkpoints of one directory."""
    inbox = Inbox()
    inbox.enrol()
    inbox.enrol(BOB, "c")
    inbox.enrol(CAROL, "e")
    return inbox


def checkpoint_code(inbox: Inbox, sender: str = PEER_ACTOR, signer: str = "directory", **changes) -> str:
    return inbox.message_code(checkpoint(inbox, **changes), signer, sender)


def test_checkpoint_step_1_the_action(inbox):
    wire = inbox.wire(checkpoint(inbox), "directory")
    assert inbox.wire_code(wire | {"action": "checkpoint"}, PEER_ACTOR) == "unknown_action"


@pytest.mark.parametrize("directory", [
    "https://keys.example.org", "https://keys.example.net/", "https://keys.example.net/pkd",
    "https://keys.example.net:443", "https://sub.keys.example.net", LOG_URL,
])
def test_checkpoint_step_2_the_sender_is_on_the_list(inbox, directory):
    actor = f"{directory.rstrip('/')}/users/pubkeydir"
    sender = actor if directory != LOG_URL else PEER_ACTOR
    assert checkpoint_code(inbox, sender, from_directory=directory) == "directory_not_allowed"
    assert inbox.peers.asked == []


def test_checkpoint_step_2_nobody_is_on_the_list_at_first():
    inbox = Inbox(directories=frozenset())
    assert checkpoint_code(inbox) == "directory_not_allowed"


@pytest.mark.parametrize("directory", ["https://keys.example.org", LOG_URL + "/", LOG_URL + ":443", PEER])
def test_checkpoint_step_3_it_is_for_this_directory(inbox, directory):
    assert checkpoint_code(inbox, to_directory=directory) == "wrong_directory"


def test_checkpoint_step_4_it_is_recent(inbox):
    for time in (NOW - 86_401, NOW + 86_401):
        assert checkpoint_code(inbox, time=time) == "stale_time"
    inbox.admission._time_window_seconds = 30 * 86_400
    assert checkpoint_code(inbox, time=NOW - 86_401) == "stale_time"
    inbox.admission._time_window_seconds = 60
    assert checkpoint_code(inbox, time=NOW - 61) == "stale_time"


def test_checkpoint_step_5_the_validated_root_is_recent(inbox):
    old = inbox.desk.root
    append(inbox.desk.store, *(Draft(f"filler {number}") for number in range(300)))
    inbox.desk.restart()
    for root in (OTHER_ROOT, ZERO_ROOT, old):
        assert checkpoint_code(inbox, to_validated_root=root) == "merkle_root_stale"


def test_checkpoint_step_6_the_key_is_the_one_that_the_sender_has_now(inbox):
    assert checkpoint_code(inbox, signer="a", from_public_key=public("a")) == "directory_key_mismatch"
    assert inbox.peers.asked == [f"{PEER}/api/info"]
    inbox.peers.infos[PEER]["public-key"] = encode_public_key(public("a"))  # it rotates
    inbox.take(checkpoint(inbox, from_public_key=public("a")), "a", PEER_ACTOR)
    assert checkpoint_code(inbox, time=NOW + 1) == "directory_key_mismatch"
    assert len(inbox.peers.asked) == 3  # asked anew for every message


@pytest.mark.parametrize("info", [
    None, [], "mldsa44:", {}, {"!pkd-context": "fedi-e2ee:v1/api/info"},
    {"!pkd-context": "fedi-e2ee:v1/api/info", "public-key": 5},
    {"!pkd-context": "fedi-e2ee:v1/api/info", "public-key": "mldsa44:AAAA"},
    {"!pkd-context": "fedi-e2ee:v1/api/error", "public-key": encode_public_key(public("directory"))},
])
def test_checkpoint_step_6_a_sender_that_does_not_say_its_key(inbox, info):
    inbox.peers.infos[PEER] = info
    assert checkpoint_code(inbox) == "directory_unreachable"


def test_checkpoint_step_6_comes_after_every_check_that_costs_nobody_else_anything(inbox):
    checkpoint_code(inbox, to_directory=PEER)
    checkpoint_code(inbox, to_validated_root=OTHER_ROOT)
    checkpoint_code(inbox, time=NOW - 90_000)
    checkpoint_code(inbox, signer="a")
    assert inbox.peers.asked == []


def test_checkpoint_step_7_the_signature_holds(inbox):
    assert checkpoint_code(inbox, signer="a") == "bad_signature"
    wire = inbox.wire(checkpoint(inbox), "directory")
    assert inbox.wire_code(badly_signed(wire), PEER_ACTOR) == "bad_signature"


def test_checkpoint_step_8_it_is_stored_and_touches_nobody(inbox):
    before = [inbox.desk.store.actor(actor) for actor in (ALICE, BOB, CAROL)]
    receipt = inbox.take(checkpoint(inbox), "directory", PEER_ACTOR)
    (record,) = inbox.desk.store.records(receipt.leaf_index, receipt.leaf_index + 1)
    assert (record.action, record.plain) == ("Checkpoint", {})
    assert [inbox.desk.store.actor(actor) for actor in (ALICE, BOB, CAROL)] == before


def test_a_checkpoint_may_come_in_plain_text(inbox):
    wire = inbox.wire(checkpoint(inbox), "directory")
    inbox.sequence(inbox.admission.admit(inbox.request(inbox.plain(wire, PEER_ACTOR), PEER_ACTOR)))


def test_a_checkpoint_to_an_empty_log():
    inbox = Inbox()
    assert inbox.take(checkpoint(inbox, from_root=OTHER_ROOT), "directory", PEER_ACTOR).leaf_index == 0


@pytest.mark.parametrize("sender", [ALICE, CAROL, "https://example.net/users/pubkeydir"])
def test_a_checkpoint_is_brought_by_an_actor_on_the_senders_host(inbox, sender):
    assert checkpoint_code(inbox, sender) == "actor_mismatch"
    assert inbox.peers.asked == []


def test_a_directory_may_send_checkpoints_to_a_log_of_one_instance_and_nothing_else():
    inbox = Inbox(actor_domains=frozenset({"example.com"}))
    inbox.enrol()
    inbox.take(checkpoint(inbox), "directory", PEER_ACTOR)
    assert inbox.message_code(AddKey(PEER_ACTOR, public("b"), NOW), "b", PEER_ACTOR) == "domain_not_served"
    assert inbox.message_code(revoke_by_token("a"), sender=PEER_ACTOR) == "domain_not_served"
    assert inbox.message_code(AddKey(ERIN, public("b"), NOW), "b", ERIN) == "domain_not_served"


# --- when another server does not answer


def test_a_directory_that_does_not_answer_holds_up_few(inbox):
    """While two are being asked, a third is told to come back; afterwards all is as it was."""
    codes = []

    def slow(url: str, *_, **__):
        if len(inbox.peers.asked) < 3:
            inbox.peers.asked.append(url)
            codes.append(checkpoint_code(inbox, time=NOW + len(inbox.peers.asked)))
        raise Unreachable("Timeout", "no answer")

    inbox.peers.fetch_json = slow
    codes.append(checkpoint_code(inbox))
    assert codes == ["overloaded", "directory_unreachable", "directory_unreachable"]
    del inbox.peers.fetch_json
    inbox.take(checkpoint(inbox), "directory", PEER_ACTOR)
