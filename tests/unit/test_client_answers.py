"""What a log says about an actor: every lie must be named, also those of the log's own making."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, actor, key
from client_world import ALICE, BOB, ROOT, World, remembering_argon2id, say, story

from ktlog.client import logonly
from ktlog.client.build import add_key, burn_down, enrol, fireproof, move_identity, revoke_by_token, revoke_key
from ktlog.errors import Forked, Invalid, NotLogged, Unreachable
from ktlog.pkd import attributes
from ktlog.pkd.dialects import PHP
from ktlog.pkd.keys import encode_public_key
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.tlog.evidence import format_evidence, parse_evidence, two_roots, verify_evidence


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return World(tmp_path)


# The answer about the actor


def rows(page):
    return page["history"]


def flip(text: str, place: int) -> str:
    raw = bytearray(decode_base64url(text))
    raw[place] ^= 1
    return encode_base64url(bytes(raw))


def put(container, name, value):
    container[name] = value


LIES = {
    "an omitted key": ("OmittedKey", lambda page: page["public-keys"].pop()),
    "a swapped key": (
        "UnlistedKey", lambda page: put(page["public-keys"][0], "public-key", key(66).public_text)),
    "an added key": (
        "UnlistedKey",
        lambda page: page["public-keys"].append({**page["public-keys"][0], "public-key": key(66).public_text})),
    "a key listed twice": ("UnlistedKey", lambda page: page["public-keys"].append(page["public-keys"][0])),
    "another key id": ("UnlistedKey", lambda page: put(page["public-keys"][0], "key-id", "A" * 43)),
    "another time": ("UnlistedKey", lambda page: put(page["public-keys"][0], "created", "1")),
    "another place": ("UnlistedKey", lambda page: put(page["public-keys"][0], "leaf-index", 1)),
    "a broken proof": (
        "BadEntryProof", lambda page: put(rows(page)[0], "inclusion-proof", [encode_base64url(bytes(32))] * 3)),
    "a short proof": ("BadEntryProof", lambda page: rows(page)[0]["inclusion-proof"].pop()),
    "no proof": ("BadEntryProof", lambda page: put(rows(page)[0], "inclusion-proof", None)),
    "another index": ("BadEntryProof", lambda page: put(rows(page)[0], "leaf-index", 0)),
    "another entry": (
        "BadEntryProof", lambda page: put(rows(page)[0], "merkle-leaf", flip(rows(page)[0]["merkle-leaf"], 40))),
    "another message": (
        "BadEntry", lambda page: put(rows(page)[0], "encrypted-message", rows(page)[1]["encrypted-message"])),
    "white space in the message": (
        "BadEntry", lambda page: put(rows(page)[0], "encrypted-message", rows(page)[0]["encrypted-message"] + " ")),
    "another plaintext key": (
        "PlaintextMismatch", lambda page: put(rows(page)[0]["plain"], "public-key", key(66).public_text)),
    "another plaintext actor": (
        "PlaintextMismatch", lambda page: put(rows(page)[0]["plain"], "actor", BOB + "xy")),
    "a withheld name": ("WrongActor", lambda page: put(rows(page)[0]["plain"], "actor", None)),
    "a withheld key": (
        "RecordWithheld", lambda page: put(rows(page)[0]["plain"], "public-key", None)),
    "a missing attribute": ("PlaintextMismatch", lambda page: rows(page)[0]["plain"].pop("actor")),
    "a hidden first message": ("BadMessageSignature", lambda page: rows(page).pop(0)),
    "a hidden AddKey": ("BadMessageSignature", lambda page: rows(page).pop(1)),
    "another role": ("BadTransition", lambda page: put(rows(page)[0], "role", 2)),
    "another actor": ("WrongActor", lambda page: put(page, "actor-id", BOB)),
    "another tree size": ("MalformedAnswer", lambda page: put(page, "tree-size", 5)),
    "a history in another order": ("MalformedAnswer", lambda page: rows(page).reverse()),
    "a message shown twice": ("MalformedAnswer", lambda page: rows(page).insert(0, rows(page)[0])),
    "an unknown role": ("MalformedAnswer", lambda page: put(rows(page)[0], "role", 4)),
    "a negative index": ("MalformedAnswer", lambda page: put(rows(page)[0], "leaf-index", -1)),
    "true as an index": ("MalformedAnswer", lambda page: put(rows(page)[0], "leaf-index", True)),
    "sloppy base64": (
        "MalformedAnswer", lambda page: put(rows(page)[0], "merkle-leaf", rows(page)[0]["merkle-leaf"] + "=")),
    "a proof as high as no tree": (
        "MalformedAnswer", lambda page: put(rows(page)[0], "inclusion-proof", [encode_base64url(bytes(32))] * 64)),
    "no history": ("MalformedAnswer", lambda page: page.pop("history")),
    "no keys": ("MalformedAnswer", lambda page: page.pop("public-keys")),
    "numbers for plaintext": ("MalformedAnswer", lambda page: put(rows(page)[0], "plain", {"actor": 1})),
    "another context": ("MalformedAnswer", lambda page: put(page, "!pkd-context", "fedi-e2ee:v1/api/history")),
    "a key that is none": ("MalformedAnswer", lambda page: put(page["public-keys"][0], "public-key", "mldsa44:AA")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_the_actor(world, lie):
    name, change = LIES[lie]
    world.network.edit(change)
    error = world.refuses(Invalid, name)
    assert error.exit_code == 5


def test_a_whole_honest_answer_about_someone_else(world):
    def bobs(page):
        page.update(world.log.page(BOB, 6), **{"actor-id": ALICE})

    world.network.edit(bobs)
    world.refuses(Invalid, "WrongActor")


def test_answers_that_are_no_answers(world):
    for body in (b"", b"[]", b"null", b'{"a":1,"a":2}', b"\xff", b'{"a":NaN}'):
        world.network.replace("/leaf-keys", body)
        world.refuses(Invalid, "MalformedAnswer")
    world.network.replace("/leaf-keys", b'{"leaf-keys":[]}')
    world.refuses(Invalid, "BadLeafSignature")
    world.network.replace("/leaf-keys", b"{}", 500)
    world.refuses(Unreachable, "BadStatus")


def test_a_leaf_of_another_logs_key(world):
    world.network.replace("/leaf-keys", json.dumps({"leaf-keys": [key(1).public_text]}).encode())
    world.refuses(Invalid, "BadLeafSignature")


def test_nobody_by_that_name(world):
    error = world.refuses(NotLogged, "NotLogged", actor("nobody"))
    assert error.exit_code == 4


def test_an_empty_history_is_not_an_answer(world):
    world.network.edit(lambda page: page.update({"history": [], "public-keys": []}))
    world.refuses(NotLogged, "NotLogged")


def test_an_empty_log_has_nobody(world):
    world.serve(TinyLog().publish())
    world.refuses(NotLogged, "NotLogged")


def test_not_found_by_somebody_else_is_no_word_of_the_log(world):
    for body in (b"<html>not found</html>", b"{}", b'{"error":"not_found","code":"not_published"}'):
        world.network.replace(f"/api/actor/https%3A%2F%2F{DOMAIN}%2Fusers%2Falice/keys", body, 404)
        world.refuses(Unreachable, "BadStatus")


# What the log itself did against the rules


def test_a_replayed_message(world):
    log = world.log
    log.append(log.rows[1]["encrypted-message"].encode(), log.rows[1]["plain"], {ALICE: 1})
    log.publish()
    world.refuses(Invalid, "BadEntry")


def forge(log: TinyLog, build, *arguments):
    """Log an AddKey although the rules forbid it."""
    built = build(*arguments, recent_root=log.recent(), now=NOW)
    message = built.message
    plain = {"actor": message.actor, "public-key": encode_public_key(message.public_key)}
    log.append(built.preimage, plain, {message.actor: 1})
    log.publish()


def test_a_key_that_the_log_slipped_in(world):
    """The log signs and includes an AddKey that no key of Alice's signed."""
    forge(world.log, add_key, ALICE, key(66).public_key, key(67))
    world.refuses(Invalid, "BadMessageSignature")


def test_a_self_signed_key_beside_others(world):
    forge(world.log, enrol, ALICE, key(66))
    world.refuses(Invalid, "BadTransition")


def test_a_revoked_key_that_comes_back(world):
    forge(world.log, add_key, ALICE, key(1).public_key, key(2))
    world.refuses(Invalid, "BadTransition")


def test_a_key_revoked_by_token_that_comes_back(world):
    world.log.accept(revoke_by_token(key(3).revocation_token()))
    forge(world.log, add_key, ALICE, key(3).public_key, key(2))
    world.refuses(Invalid, "BadTransition")


def test_a_message_of_a_revoked_key(world):
    forge(world.log, add_key, ALICE, key(66).public_key, key(1))
    world.refuses(Invalid, "BadMessageSignature")


def test_an_entry_in_another_dialect(world):
    world.log.dialect = PHP
    forge(world.log, add_key, ALICE, key(66).public_key, key(2))
    world.refuses(Invalid, "BadEntry")


# Pending messages


def test_a_pending_key_is_shown_and_never_usable(world):
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    answer = world.lookup()
    assert [item.action for item in answer.pending] == ["AddKey"]
    assert key(4).public_key not in [found.public_key for found in answer.keys]
    assert answer.usable_keys == answer.keys


def test_a_pending_revocation_takes_the_key_out_of_use(world):
    say(world.log, revoke_key, ALICE, key(3).public_key, key(2))
    answer = world.lookup()
    assert [found.public_key for found in answer.keys] == [key(2).public_key, key(3).public_key]
    assert [found.public_key for found in answer.usable_keys] == [key(2).public_key]
    assert answer.pending[0].removes == (answer.keys[1].key_id,)


def test_a_pending_token_takes_the_key_out_of_use(world):
    world.log.accept(revoke_by_token(key(2).revocation_token()))
    assert [found.public_key for found in world.lookup().usable_keys] == [key(3).public_key]


def test_a_pending_rotation(world):
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    say(world.log, revoke_key, ALICE, key(2).public_key, key(4))
    assert [found.public_key for found in world.lookup().usable_keys] == [key(3).public_key]


def test_a_pending_revocation_by_a_stranger_changes_nothing(world):
    built = revoke_key(ALICE, key(3).public_key, key(67), recent_root=world.log.recent(), now=NOW)
    world.log.append(built.preimage, {"actor": ALICE, "public-key": key(3).public_text}, {ALICE: 1})
    answer = world.lookup()
    assert answer.usable_keys == answer.keys
    assert answer.pending[0].removes == ()


@pytest.mark.parametrize(("name", "change"), [
    ("PlaintextMismatch", lambda row: put(row["plain"], "public-key", key(2).public_text)),
    ("BadLeafSignature", lambda row: put(row, "merkle-leaf", flip(row["merkle-leaf"], 40))),
    ("BadEntry", lambda row: put(row, "merkle-leaf", flip(row["merkle-leaf"], 4))),
    ("MalformedAnswer", lambda row: put(row, "inclusion-proof", [])),
])
def test_a_lie_about_a_pending_message(world, name, change):
    say(world.log, revoke_key, ALICE, key(3).public_key, key(2))
    world.network.edit(lambda page: change(rows(page)[-1]))
    world.refuses(Invalid, name)


# Other actors in one's history


def burned(log: TinyLog) -> TinyLog:
    say(log, burn_down, ALICE, ROOT, key(20))
    return log.publish()


def test_after_a_burn_down_there_are_no_keys_and_the_answer_says_why(world):
    world.lookup()
    burned(world.log)
    answer = world.lookup()
    assert (answer.keys, answer.status, len(answer.gone_keys)) == ((), "burned down", 2)


def test_a_burn_down_by_an_operator_that_cannot_be_checked_is_refused(world):
    burned(world.log)
    world.network.edit(lambda page: page.update({"history": []}), ROOT)
    error = world.refuses(Invalid, "BadTransition")
    assert f"no history of {ROOT}" in error.message


def test_the_log_alone_cannot_replace_a_key_by_a_burn_down(world):
    """A BurnDown in the name of nobody, and a self-signed key after it: all by the log itself."""
    log, nobody = world.log, actor("never-enrolled")
    built = burn_down(ALICE, nobody, key(99), recent_root=log.recent(), now=NOW)
    log.append(built.preimage, {"actor": ALICE, "operator": nobody}, {ALICE: 1})
    forge(log, enrol, ALICE, key(66))
    world.refuses(Invalid, "BadTransition")


def test_more_histories_than_are_read_are_refused(world, monkeypatch):
    burned(world.log)
    monkeypatch.setattr(logonly, "MAX_HISTORIES", 0)
    error = world.refuses(Invalid, "BadTransition")
    assert "too many to check" in error.message


def test_a_burn_down_that_the_operator_did_not_sign(world):
    built = burn_down(ALICE, ROOT, key(66), recent_root=world.log.recent(), now=NOW)
    world.log.append(built.preimage, {"actor": ALICE, "operator": ROOT}, {ALICE: 1})
    world.log.publish()
    world.refuses(Invalid, "BadMessageSignature")


def test_a_burn_down_of_a_fireproof_actor(world):
    say(world.log, fireproof, ALICE, key(2))
    built = burn_down(ALICE, ROOT, key(20), recent_root=world.log.recent(), now=NOW)
    world.log.append(built.preimage, {"actor": ALICE, "operator": ROOT}, {ALICE: 1})
    world.log.publish()
    world.refuses(Invalid, "BadTransition")


def test_a_new_generation_is_a_reset_and_never_silent(world):
    world.lookup()
    burned(world.log)
    say(world.log, enrol, ALICE, key(40))
    world.log.publish()
    answer = world.lookup()
    assert answer.reset == "enrolment after a BurnDown"
    assert (answer.generation, [found.public_key for found in answer.new_keys]) == (2, [key(40).public_key])
    assert world.lookup().reset is None


def moved(log: TinyLog) -> TinyLog:
    say(log, move_identity, ALICE, actor("alicia"), key(2))
    return log.publish()


def test_moved_keys_are_traced_to_their_origin(world):
    moved(world.log)
    answer = world.lookup(actor("alicia"))
    assert [found.leaf_index for found in answer.keys] == [2, 3]
    assert answer.cause == "move from another actor"
    assert "rests on (5)" in answer.checks[4]
    assert world.lookup(ALICE).status == "moved away"


def test_moved_keys_without_their_origin_are_refused(world):
    moved(world.log)
    world.network.edit(lambda page: page.update({"history": []}), ALICE)
    world.refuses(Invalid, "BadTransition", actor("alicia"))


def test_a_lie_in_the_history_that_keys_were_moved_from(world):
    moved(world.log)
    world.network.edit(lambda page: put(rows(page)[0]["plain"], "public-key", key(66).public_text), ALICE)
    world.refuses(Invalid, "PlaintextMismatch", actor("alicia"))


def test_a_chain_of_moves_and_back(world):
    moved(world.log)
    say(world.log, move_identity, actor("alicia"), ALICE, key(3))
    world.log.publish()
    answer = world.lookup()
    assert [found.public_key for found in answer.keys] == [key(2).public_key, key(3).public_key]
    assert answer.generation == 2


def test_a_token_in_the_history(world):
    world.log.accept(revoke_by_token(key(2).revocation_token()))
    world.log.publish()
    assert [found.public_key for found in world.lookup().keys] == [key(3).public_key]
    world.log.accept(revoke_by_token(key(3).revocation_token()))
    world.log.publish()
    assert world.lookup().status == "revoked by token"


def convicting(world) -> bytes:
    """Evidence against the world's log, of which the client has not heard."""
    vkey = world.policy.logs[0].vkey
    return format_evidence(two_roots(vkey, world.log.checkpoint, world.log.sign(root=bytes(31) + b"x", witnesses=0)))


# Several at once


def test_threads_share_one_directory(world):
    directory = world.directory()
    names = [ALICE, BOB, ROOT] * 4
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(directory.lookup, names))
    assert [answer.actor_id for answer in answers] == names
    assert len(world.remembered()) == 4


def test_the_remembered_head_never_falls(world):
    """A lookup that began before another finished may end after it, with a smaller tree."""
    started, late = threading.Event(), threading.Event()

    def slow(url):
        if url.endswith("/leaf-keys") and threading.current_thread().name == "slow":
            started.set()
            assert late.wait(20)

    world.network.before = slow
    results = []
    thread = threading.Thread(target=lambda: results.append(world.lookup(ALICE)), name="slow")
    thread.start()
    assert started.wait(20)
    say(world.log, enrol, actor("dave"), key(30))
    world.log.publish()
    world.lookup(BOB)
    large = world.remembered()[f"heads/{ORIGIN}.json"]
    late.set()
    thread.join()
    assert results[0].tree_size == 6
    assert world.remembered()[f"heads/{ORIGIN}.json"] == large


def test_two_overlapping_lookups_cannot_be_shown_two_trees(world, tmp_path):
    """The slow one is shown a fork; the fast one finishes first with the truth."""
    liar = story().fork()
    liar.entries[0] = liar.entries[1]
    liar.publish()
    fork = Network(liar)
    started, late = threading.Event(), threading.Event()

    def slow(url):
        if url.endswith("/checkpoint"):
            started.set()
            assert late.wait(20)

    fork.before = slow
    caught = []

    def run():
        try:
            world.lookup(ALICE, fetcher=fork)
        except Forked as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    world.lookup(BOB)
    late.set()
    thread.join()
    assert [error.name for error in caught] == ["TwoRoots"]
    verify_evidence(parse_evidence(caught[0].evidence), world.policy.logs[0].vkey)
    assert world.refuses(Forked, "Convicted").evidence == caught[0].evidence


def test_a_lookup_that_overlaps_with_a_conviction_answers_nothing(world):
    """It began before the log was caught, and would end after it."""
    network, found = Network(world.log), world.directory()
    slow = world.directory(fetcher=network)
    evidence = convicting(world)
    network.before = lambda url: url.endswith("/leaf-keys") and found._trust.convict(ORIGIN, evidence)
    with pytest.raises(Forked, match="Convicted"):
        slow.lookup(ALICE)
    assert [name for name in world.remembered() if name.startswith("actors/")] == []


def test_a_lock_that_is_held_is_waited_for(world):
    directory = world.directory()
    done = threading.Event()

    def hold():
        with directory._trust.locked():
            done.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    assert directory.lookup(BOB).actor_id == BOB
    thread.join()
