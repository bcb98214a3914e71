"""The full check: every message behind a value, and every way in which a log with lying verifiers is caught."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from dataclasses import replace

import pytest
from client_log import NOW, actor, key
from client_world import remembering_argon2id
from map_log import ALICE, BOB, CAROL, ROOT, MapWorld, say

from ktlog import cli
from ktlog.client import Present, verify_bundle
from ktlog.client.build import (
    add_aux_data,
    add_key,
    burn_down,
    enrol,
    fireproof,
    move_identity,
    revoke_aux_data,
    revoke_by_token,
    revoke_key,
)
from ktlog.commands import watch
from ktlog.errors import Invalid, KtlogError
from ktlog.pkd import attributes
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.actors import Key
from ktlog.tlog.policy import format_policy
from ktlog.wire.fetch import Fetcher

NEW, FAR = actor("new"), actor("far")


@pytest.fixture
def world(tmp_path, monkeypatch) -> MapWorld:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return MapWorld(tmp_path)


def refused(world: MapWorld, name: str, who: str = ALICE) -> KtlogError:
    """The full check fails under this name, and the light one passes: the verifiers lied."""
    with pytest.raises(Invalid) as caught:
        world.lookup(who, full=True)
    assert caught.value.name == name, str(caught.value)
    return caught.value


# -- what passes


def test_a_plain_history(world):
    answer = world.lookup(full=True)
    assert answer.map.full and answer.taken == ()
    assert [one.created for one in answer.keys] == [NOW + 2, NOW + 3]
    assert any("lead to exactly this value" in text for text in answer.checks)
    assert len(answer.not_proven) < len(world.lookup().not_proven)


def test_a_full_bundle_verifies_offline(world):
    answer = world.lookup(full=True)
    again = verify_bundle(answer.bundle, None, world.policy, ALICE, NOW)
    assert again.map.full and any("leaf keys" in text for text in again.not_proven)
    leaf_keys = {world.log.entries[0][-32:]: world.log.leaf_public}
    known = verify_bundle(answer.bundle, None, world.policy, ALICE, NOW, leaf_keys=leaf_keys)
    assert len(known.not_proven) == len(again.not_proven) - 1


def test_a_full_bundle_is_small_enough(world):
    light, full = (len(world.lookup(BOB, full=full).bundle) for full in (False, True))
    assert full - light < 12_288


def test_a_move_shows_the_old_history(world):
    say(world.log, add_aux_data, ALICE, "ssh-v2", "text", key(2))
    say(world.log, fireproof, ALICE, key(3))
    say(world.log, move_identity, ALICE, NEW, key(2))
    say(world.log, add_key, NEW, key(5).public_key, key(3))
    world.log.publish_map()
    answer = world.lookup(NEW, full=True)
    assert (answer.taken, answer.cause, answer.fireproof) == ((), "move from another actor", True)
    assert [one.created for one in answer.keys] == [NOW + 2, NOW + 3, NOW + 10]
    assert world.lookup(full=True).status == "moved away"


def test_a_move_whose_old_history_is_missing_is_taken(world):
    """The keys that were carried are known all the same: they are listed, or were revoked since."""
    say(world.log, add_aux_data, ALICE, "ssh-v2", "text", key(2))
    say(world.log, move_identity, ALICE, NEW, key(2))
    say(world.log, revoke_key, NEW, key(2).public_key, key(3))
    say(world.log, revoke_aux_data, NEW, "ssh-v2", aux_data_id("ssh-v2", "text"), key(3))
    say(world.log, fireproof, NEW, key(3))
    world.log.publish_map()
    world.log.lie = lambda bundle: replace(bundle, old_histories=((),)) if bundle.old_histories else bundle
    answer = world.lookup(NEW, full=True)
    assert len(answer.taken) == 1 and ALICE in answer.taken[0]
    assert [one.public_key for one in answer.keys] == [key(3).public_key]


def test_a_second_move_is_followed_one_step_back(world):
    say(world.log, move_identity, ALICE, NEW, key(2))
    say(world.log, move_identity, NEW, FAR, key(2))
    world.log.publish_map()
    assert "whose history is not shown" in world.lookup(FAR, full=True).taken[0]


def test_an_unseen_move_in_an_earlier_generation(world):
    """The replay begins where the present keys begin."""
    say(world.log, move_identity, ALICE, NEW, key(2))
    say(world.log, burn_down, NEW, ROOT, key(20))
    say(world.log, enrol, NEW, key(6))
    say(world.log, add_key, NEW, key(7).public_key, key(6))
    world.log.publish_map()
    world.log.lie = lambda bundle: replace(bundle, old_histories=((),)) if bundle.old_histories else bundle
    answer = world.lookup(NEW, full=True)
    assert answer.taken == ("what happened before entry 9, where the present keys begin",)


def test_a_burn_down_is_taken(world):
    say(world.log, burn_down, ALICE, ROOT, key(20))
    world.log.publish_map()
    assert "on an operator's word" in world.lookup(full=True).taken[0]


def test_a_token_and_an_erasure_before(world):
    say(world.log, enrol, CAROL, key(31))
    say(world.log, add_key, CAROL, key(32).public_key, key(31))
    world.log.accept(revoke_by_token(key(31).revocation_token()))
    world.log.publish_map()
    answer = world.lookup(CAROL, full=True)
    assert (answer.generation, answer.version, answer.taken) == (2, 5, ())
    assert [one.public_key for one in answer.keys] == [key(32).public_key]


def test_absent_actors_need_no_messages(world):
    assert not world.lookup(CAROL, full=True).map.full


# -- lies that verifiers cosigned


def test_a_map_not_derived_from_the_log(world):
    """A key that no message put there."""
    row = world.log.states[-1][ALICE]
    world.log.states[-1][ALICE] = replace(row, keys=(*row.keys, Key(key(66).public_key, "x", 5, NOW)))
    world.log.publish_map()
    assert len(world.lookup().keys) == 3
    assert "keys" in refused(world, "BadTransition").message


def test_a_hidden_revocation_that_every_verifier_hides(world):
    """The message is left out of the history, too: nobody but a verifier can know. A history that has it shows it."""
    row = world.log.states[3][ALICE]
    world.log.states[-1][ALICE] = replace(row, version=4)
    world.log.publish_map()
    refused(world, "BadTransition")


def test_a_re_added_revoked_key(world):
    built = add_key(ALICE, key(1).public_key, key(2), recent_root=world.log.recent(), now=NOW)
    plain = {"actor": ALICE, "public-key": key(1).public_text}
    world.log.append(built.preimage, plain, {ALICE: 1})
    row = world.log.states[-1][ALICE]
    keys = (*row.keys, Key(key(1).public_key, "x", world.log.size - 1, NOW))
    world.log.states[-1][ALICE] = replace(row, keys=keys, version=row.version + 1)
    world.log.publish_map()
    assert len(world.lookup().keys) == 3
    refused(world, "BadTransition")


def forge(world: MapWorld, signer: int) -> None:
    """A key for Alice that *signer* signed, logged by the log itself."""
    built = add_key(ALICE, key(66).public_key, key(signer), recent_root=world.log.recent(), now=NOW)
    plain = {"actor": ALICE, "public-key": key(66).public_text}
    world.log.append(built.preimage, plain, {ALICE: 1})
    row = world.log.states[-1][ALICE]
    keys = (*row.keys, Key(key(66).public_key, "x", world.log.size - 1, NOW))
    world.log.states[-1][ALICE] = replace(row, keys=keys, version=row.version + 1)
    world.log.publish_map()


@pytest.mark.parametrize("signer", [66, 10, 1])
def test_a_key_that_nobody_entitled_signed_for(world, signer):
    """Itself, somebody else, or a key revoked before."""
    forge(world, signer)
    refused(world, "BadTransition" if signer == 66 else "BadMessageSignature")


def item_lie(world: MapWorld, number: int, **changes) -> None:
    def lie(bundle):
        if bundle.history is None:
            return bundle
        items = list(bundle.history)
        items[number] = replace(items[number], **changes)
        return replace(bundle, history=tuple(items))

    world.log.lie = lie


def test_lies_about_one_message(world):
    path = tuple(world.log.item(1, b"", world.log.covered).path)
    item_lie(world, 0, path=path[1:])
    refused(world, "BadEntryProof")
    item_lie(world, 0, preimage=world.log.item(2, b"", 0).preimage)
    refused(world, "BadEntry")
    item_lie(world, 0, plain={"actor": ALICE, "public-key": key(66).public_text})
    refused(world, "PlaintextMismatch")
    item_lie(world, 0, plain={"actor": None, "public-key": None})
    refused(world, "BadTransition")
    item_lie(world, 0, plain={"actor": None, "public-key": key(1).public_text})
    refused(world, "BadTransition")
    item_lie(world, 0, leaf=b"\x01" + bytes(8))
    refused(world, "HistoryMismatch")


def test_a_leaf_key_that_is_not_the_log_s(world):
    world.network.replace("/leaf-keys", json.dumps({"leaf-keys": [key(66).public_text]}).encode())
    refused(world, "BadLeafSignature")


def test_a_full_check_without_messages(world):
    world.log.lie = lambda bundle: replace(bundle, history=None, old_histories=())
    refused(world, "HistoryMismatch")


def test_an_old_history_that_is_another(world):
    say(world.log, move_identity, ALICE, NEW, key(2))
    world.log.publish_map()
    world.log.lie = lambda bundle: replace(bundle, old_histories=(bundle.old_histories[0][:-1],))
    refused(world, "HistoryMismatch", NEW)
    world.log.lie = lambda bundle: replace(bundle, old_histories=())
    refused(world, "HistoryMismatch", NEW)


def test_a_burn_down_by_an_operator_of_another_domain(world):
    stranger = actor("root", "beta.example")
    built = burn_down(ALICE, stranger, key(20), recent_root=world.log.recent(), now=NOW)
    world.log.append(built.preimage, {"actor": ALICE, "operator": stranger}, {ALICE: 1})
    row = world.log.states[-1][ALICE]
    world.log.states[-1][ALICE] = replace(
        row, keys=(), version=row.version + 1, status=2, status_leaf=world.log.size - 1
    )
    world.log.publish_map()
    assert isinstance(world.lookup(), Present)
    refused(world, "BadTransition")


@pytest.mark.parametrize("role", [1, 2])
def test_a_move_that_is_listed_as_something_else(world, role):
    """Its text partly withheld or not, it is refused, and never a surprise."""
    say(world.log, move_identity, ALICE, NEW, key(2))
    world.log.roles[-1] = {NEW: role}
    world.log.publish_map()
    refused(world, "BadTransition", NEW)
    world.log.rows[-1] = {**world.log.rows[-1], "plain": {"old-actor": None, "new-actor": NEW}}
    refused(world, "BadTransition", NEW)


def test_an_actor_erased_since_moved_here(world):
    """Nothing of the old actor can be read any more; its keys are."""
    say(world.log, move_identity, ALICE, NEW, key(2))
    world.log.publish_map()
    world.log.rows[-1] = {**world.log.rows[-1], "plain": {"old-actor": None, "new-actor": NEW}}
    world.log.lie = lambda bundle: replace(bundle, old_histories=((),))
    answer = world.lookup(NEW, full=True)
    assert answer.taken == ("entry 7 moved these keys from an actor erased since, whose history is not shown",)


def test_a_listed_message_that_is_somebody_else_s(world):
    world.log.roles[5] = {**world.log.roles[5], ALICE: 1}
    world.log.states[-1][ALICE] = replace(world.log.states[-1][ALICE], version=5)
    world.log.publish_map()
    refused(world, "BadTransition")


# -- on the command line


def run(world: MapWorld, monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    policy = world.state.with_name("policy")
    policy.write_bytes(format_policy(world.policy))
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls: world.network))
    monkeypatch.setattr(sys, "argv", ["ktlog", *arguments, "--policy", str(policy)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return (left.value.code, *capsys.readouterr())


@pytest.fixture
def today(world) -> MapWorld:
    """The log as of now by the real clock, which is the command line's."""
    world.log.now = int(time.time())
    world.log.publish_map()
    return world


def lookup_options(world: MapWorld) -> list[str]:
    return ["--state", str(world.state), "--domain", "alpha.example=keys.alpha.example"]


def test_save_and_verify(today, monkeypatch, capsys):
    saved = str(today.state.with_name("alice.bundle"))
    code, out, err = run(today, monkeypatch, capsys, "lookup", ALICE, "--full", "--save", saved, *lookup_options(today))
    assert f"Saved the proof to {saved}" in err
    (again,) = re.findall(r"check it again: (.*)", err)
    assert shlex.split(again)[-4:] == ["--origin", "keys.alpha.example", "--actor", ALICE]
    assert code == 0 and "2 active keys, and no other:" in out and "verifiers v1.verifier.example" in out
    proof = today.state.with_name("alice.tlog-proof")
    code, out, _ = run(today, monkeypatch, capsys, "verify", saved, "--export-proof", str(proof), "--json")
    assert code == 0 and json.loads(out)["map"]["linked"] is False
    assert proof.read_bytes().startswith(b"c2sp.org/tlog-proof@v1\n")
    assert proof.with_name(proof.name + ".leaf").read_bytes() == today.log.output[-1]
    code, out, _ = run(today, monkeypatch, capsys, "verify", saved)
    checked, _, unproven = out.partition("\nNot proven:\n")
    assert "serves the domain" not in checked and "that keys.alpha.example serves the domain: nobody named" in unproven
    code, _, err = run(today, monkeypatch, capsys, "verify", saved, "--actor", BOB)
    assert code == 5 and "CommitmentMismatch" in err
    later = ["--at", str(today.log.now + 7200)]
    assert run(today, monkeypatch, capsys, "verify", saved, *later)[0] == 9
    assert run(today, monkeypatch, capsys, "verify", saved, *later, "--max-age", "7200")[0] == 0


def test_three_answers_in_words(today, monkeypatch, capsys):
    saved = str(today.state.with_name("carol.bundle"))
    code, out, _ = run(today, monkeypatch, capsys, "lookup", CAROL, "--save", saved, *lookup_options(today))
    assert code == 0 and "ERASED by keys.alpha.example" in out
    assert run(today, monkeypatch, capsys, "verify", saved)[0] == 2
    assert run(today, monkeypatch, capsys, "verify", saved, "--actor", CAROL)[0] == 0
    code, out, _ = run(today, monkeypatch, capsys, "lookup", actor("dave"), *lookup_options(today))
    assert code == 0 and "NEVER ENROLLED" in out


def test_watch_tells_what_changes(today, monkeypatch, capsys):
    def happen(_: float) -> None:
        match today.log.size:
            case 7:
                say(today.log, add_key, ALICE, key(4).public_key, key(2))
            case 8:
                say(today.log, revoke_key, ALICE, key(2).public_key, key(4))
                today.log.publish_map(size=8)
            case 9 if ALICE not in today.log.dead:
                today.log.publish_map()
                today.log.erase(ALICE)
                today.log.publish_map()

    monkeypatch.setattr(watch.time, "sleep", happen)
    code, out, _ = run(today, monkeypatch, capsys, "watch", ALICE, "--count", "4", *lookup_options(today))
    assert code == 0
    told = [line.partition("UTC ")[2] for line in out.splitlines()]
    assert told[0] == f"{ALICE}: 2 keys"
    assert told[1] == f"{ALICE}: AddKey is accepted and not published yet"
    assert any("new key" in line for line in told) and any("RevokeKey is accepted" in line for line in told)
    assert any(line.startswith(f"ALARM {ALICE}: erasure by the log") for line in told)


def test_watch_goes_on_when_nothing_is_learnt(today, monkeypatch, capsys):
    today.network.break_("/map/checkpoint")
    monkeypatch.setattr(watch.time, "sleep", lambda _: today.network._replaced.clear())
    code, out, _ = run(today, monkeypatch, capsys, "watch", ALICE, "--count", "2", "--json", *lookup_options(today))
    assert code == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["unknown", "state"]
