"""Lookups in a map: three proven answers, what is remembered of them, and every lie by its name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from client_log import DOMAIN, NOW, ORIGIN, TinyLog, actor, key, make_policy
from client_world import remembering_argon2id
from map_log import ALICE, BOB, CAROL, DAVE, MAP, ROOT, MapLog, MapWorld, map_policy, say, story

from ktlog.client import Erased, NeverEnrolled, Present, export_proof, proof, verify_bundle
from ktlog.client.build import add_key, burn_down, enrol, revoke_by_token, revoke_key
from ktlog.client.trust import TrustStore
from ktlog.errors import Conflict, Forked, Invalid, KtlogError, NotLogged, PolicyUnmet, Stale, StoreError, Unreachable
from ktlog.keymap.bundle import NoLeaf, Tombstone, encode_bundle, parse_bundle
from ktlog.keymap.evidence import parse_map_evidence, verify_map_evidence
from ktlog.keymap.output import MapConfig
from ktlog.keymap.value import encode_value
from ktlog.pkd import attributes
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44, Signer, signer_from_seed
from ktlog.tlog.policy import Group, LogKey, Policy, Witness
from ktlog.tlog.proof import verify_proof


@pytest.fixture
def world(tmp_path, monkeypatch) -> MapWorld:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return MapWorld(tmp_path)


def refused(world: MapWorld, kind: type[KtlogError], name: str, who: str = ALICE, **options) -> KtlogError:
    """The lookup fails under this class and name, and nothing but a good head or a conviction is remembered."""
    before = world.remembered()
    with pytest.raises(kind) as caught:
        world.lookup(who, **options)
    assert (type(caught.value), caught.value.name) == (kind, name), str(caught.value)
    after = world.remembered()
    for part in ("actors/", "handles/"):
        assert {path: data for path, data in after.items() if path.startswith(part)} == {
            path: data for path, data in before.items() if path.startswith(part)
        }
    assert caught.value.diagnostics()
    return caught.value


def convicts(world: MapWorld, error: KtlogError, kind: str) -> None:
    """The evidence stands by itself, and the log stays convicted."""
    assert isinstance(error, Forked) and error.exit_code == 7
    evidence = parse_map_evidence(error.evidence)
    verify_map_evidence(evidence, world.policy.logs[0].vkey)
    assert evidence.kind == kind and evidence.origin == MAP
    world.network.requests.clear()
    again = refused(world, Forked, "Convicted", BOB)
    assert again.evidence == error.evidence and world.network.requests == []


# -- three answers


def test_present(world):
    answer = world.lookup(f"@alice@{DOMAIN}")
    assert isinstance(answer, Present)
    assert [one.public_key for one in answer.keys] == [key(2).public_key, key(3).public_key]
    assert answer.usable_keys == answer.keys and answer.reset is None and answer.new_keys == ()
    assert (answer.handle, answer.actor_id, answer.origin) == (f"@alice@{DOMAIN}", ALICE, ORIGIN)
    assert (answer.version, answer.generation, answer.status) == (4, 1, "active")
    assert answer.map.size == 3 and not answer.map.full and answer.map.linked and answer.as_of == NOW
    assert any("verifiers v1.verifier.example" in text for text in answer.checks)
    assert answer.not_proven and answer.as_dict()["map"]["size"] == 3
    assert world.lookup().usable_keys == answer.keys


def test_a_key_asked_for_by_name(world):
    answer = world.lookup()
    assert answer.key(answer.keys[1].key_id) == answer.keys[1]
    with pytest.raises(NotLogged, match="UnlistedKey"):
        answer.key("gone")


def test_lookups_from_many_threads_share_one_memory(world):
    directory = world.directory()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(directory.lookup, [ALICE, BOB, CAROL, DAVE] * 4))
    assert len({answer.map.size for answer in answers}) == 1
    assert len([path for path in world.remembered() if path.startswith("actors/")]) == 3


def test_a_lookup_that_overlaps_with_a_newer_one_looks_again(world):
    """What another lookup remembered meanwhile is what the answer speaks of."""
    other = world.directory()
    world.lookup()

    def meanwhile(url: str) -> None:
        if "/bundle/" in url and world.log.size == 7:
            stale = world.log.fork()
            say(world.log, add_key, ALICE, key(4).public_key, key(2))
            world.log.publish_map()
            other.lookup(ALICE)
            world.network.logs[ORIGIN] = stale
            world.network.before = lambda _: world.serve(world.log)

    world.network.before = meanwhile
    answer = world.lookup()
    assert len(answer.keys) == 3 and answer.new_keys == ()


def test_erased_and_never_enrolled(world):
    answer = world.lookup(CAROL)
    assert isinstance(answer, Erased)
    assert (answer.version, answer.generation, answer.erasure_number) == (2, 1, 0)
    absent = world.lookup(DAVE)
    assert isinstance(absent, NeverEnrolled)
    assert answer.keys == answer.usable_keys == absent.keys == absent.usable_keys == ()
    assert (answer.as_dict()["answer"], absent.as_dict()["answer"]) == ("erased", "never-enrolled")
    assert answer.reset is None and absent.reset is None


def test_nothing_is_kept_of_who_never_enrolled(world):
    world.lookup(DAVE)
    assert [path for path in world.remembered() if path.startswith("actors/")] == []


def test_a_light_lookup_asks_for_three_things(world):
    world.lookup()
    world.network.requests.clear()
    world.lookup()
    paths = [url.partition(ORIGIN)[2].partition("?")[0] for url in world.network.requests]
    assert [path.split("/")[2] for path in paths] == ["checkpoint", "bundle"]


def test_a_light_bundle_is_small(world):
    assert len(encode_bundle(world.log.bundle(BOB))) < 2600


def test_a_policy_that_trusts_no_map_gives_todays_answers(world):
    world.log.publish()
    answer = world.lookup(policy=make_policy([world.log]))
    assert answer.map is None and any("left out" in text for text in answer.not_proven)


# -- what is remembered


def test_new_and_gone_keys_since_the_last_lookup(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    say(world.log, revoke_key, ALICE, key(2).public_key, key(3))
    world.log.publish_map()
    answer = world.lookup()
    assert [one.public_key for one in answer.new_keys] == [key(4).public_key]
    assert len(answer.gone_keys) == 1 and answer.reset is None


def test_a_burn_down_and_a_new_beginning_are_a_reset(world):
    world.lookup()
    say(world.log, burn_down, ALICE, ROOT, key(20))
    world.log.publish_map()
    answer = world.lookup()
    assert (answer.keys, answer.status, answer.reset) == ((), "burned down", None)
    say(world.log, enrol, ALICE, key(5))
    world.log.publish_map()
    assert world.lookup().reset == "enrolment after a BurnDown"
    assert world.lookup().reset is None


def test_erase_and_re_enrol_are_shown_as_reset(world):
    world.lookup()
    world.log.erase(ALICE)
    world.log.publish_map()
    erased = world.lookup()
    assert isinstance(erased, Erased) and erased.reset == "erasure by the log" and len(erased.gone_keys) == 2
    say(world.log, enrol, ALICE, key(5))
    world.log.publish_map()
    answer = world.lookup()
    assert isinstance(answer, Present) and answer.reset == "enrolment after erasure"
    assert world.lookup(full=True).map.full


def test_an_erasure_in_between_that_nobody_saw_is_a_reset(world):
    world.lookup()
    world.log.erase(ALICE)
    say(world.log, enrol, ALICE, key(5))
    world.log.publish_map()
    assert world.lookup().reset == "enrolment after erasure"


def test_the_handle_is_pinned_to_the_actor(world):
    world.lookup(f"@alice@{DOMAIN}")
    world.network.handles[f"alice@{DOMAIN}"] = BOB
    assert refused(world, Conflict, "HandleChanged", f"@alice@{DOMAIN}").stored == ALICE


def test_a_damaged_memory_is_no_empty_memory(world):
    world.lookup()
    (path,) = (world.state / "actors").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"statement":"a3', b'"statement":"b3'))
    refused(world, StoreError, "BadState")


# -- lies in a bundle


def tell(world: MapWorld, change) -> None:
    world.log.lie = change


LIES = {
    "omitted_key": (lambda w, b: replace(b, keys=b.keys[:1]), Invalid, "OmittedKey"),
    "key_of_another_actor": (lambda w, b: replace(b, keys=(b.keys[0], key(10).public_key)), Invalid, "UnlistedKey"),
    "hidden_revocation_in_the_value": (
        lambda w, b: replace(b, outcome=replace(b.outcome, value=encode_value(replace(
            w.log.value(ALICE), version=3, history_size=3)))), Invalid, "CommitmentMismatch"),
    "answer_of_another_actor": (lambda w, b: w.log.bundle(BOB), Invalid, "CommitmentMismatch"),
    "absence_claimed_for_an_enrolled_actor": (
        lambda w, b: replace(b, outcome=NoLeaf(), keys=(), aux=None), Invalid, "OutcomeMismatch"),
    "forged_absence_proof": (lambda w, b: w.log.bundle(DAVE), Invalid, "BadMapProof"),
    "erasure_claimed_for_an_enrolled_actor": (
        lambda w, b: replace(b, outcome=Tombstone(2, 1, 0), keys=(), aux=None), Invalid, "CommitmentMismatch"),
    "output_leaf_that_is_not_the_newest": (
        lambda w, b: replace(b, output_leaf=w.log.output[1]), Invalid, "BadOutputProof"),
    "old_but_validly_signed_bundle": (lambda w, b: replace(b, output_size=2), Stale, "BundleBehindCheckpoint"),
    "bundle_of_the_input_log": (lambda w, b: replace(b, origin=ORIGIN), Invalid, "WrongLog"),
    "another_opening": (
        lambda w, b: replace(b, outcome=replace(b.outcome, opening=bytes(16))), Invalid, "CommitmentMismatch"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_a_bundle(world, lie):
    change, kind, name = LIES[lie]
    tell(world, lambda bundle: change(world, bundle))
    refused(world, kind, name)


def test_presence_claimed_for_an_erased_actor(world):
    bob = world.log.bundle(BOB)
    tell(world, lambda bundle: replace(bundle, outcome=bob.outcome, keys=bob.keys, aux=bob.aux))
    refused(world, Invalid, "CommitmentMismatch", CAROL)


def test_bytes_that_are_no_bundle(world):
    world.network.replace(f"/map/bundle/{ALICE.replace(':', '%3A').replace('/', '%2F')}", b"ktlog-bundle/v1\n\x01")
    refused(world, Invalid, "MalformedBundle")


def test_a_bundle_that_comes_late_is_asked_for_again(world):
    """The map moved on between the two requests, once."""
    late = iter([2])
    tell(world, lambda bundle: replace(bundle, output_size=next(late, bundle.output_size)))
    assert world.lookup().map.size == 3


# -- lies in a head


def stranger() -> Signer:
    return signer_from_seed(MAP, COSIGNATURE_MLDSA44, bytes([77]) * 32)


HEADS = {
    "no_witnesses": ({"witnesses": 1}, PolicyUnmet, "TooFewWitnesses"),
    "no_verifier": ({"verifiers": False}, PolicyUnmet, "TooFewVerifiers"),
    "input_checkpoint_offered_for_an_output_one": ({"origin": ORIGIN}, Invalid, "WrongLog"),
    "signed_by_a_stranger": ({"signers": lambda: (stranger(),)}, Invalid, "BadLogSignature"),
    "old_cosignatures": ({"now": NOW - 3601}, Stale, "OldCosignatures"),
}


@pytest.mark.parametrize("lie", HEADS)
def test_lies_in_a_head(world, lie):
    options, kind, name = HEADS[lie]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    world.log.map_checkpoints[3] = world.log.sign_map(**options)
    refused(world, kind, name)


def test_an_input_checkpoint_as_it_is(world):
    world.log.publish()
    world.network.replace("/map/checkpoint", world.log.checkpoint)
    refused(world, Invalid, "WrongLog")


def test_input_log_held_back_under_fresh_cosignatures(world):
    """The quorum cosigns heads all the time; the newest map is an hour old."""
    world.now = NOW + 3601
    world.log.map_checkpoints[3] = world.log.sign_map(now=world.now)
    refused(world, Stale, "OldMap")


def test_a_map_from_the_future(world):
    world.log.publish_map(time=NOW + 301)
    refused(world, Invalid, "BadOutputLeaf")


def test_another_configuration(world):
    world.lookup()
    world.log.config = MapConfig(ORIGIN, "spec", heartbeat=601)
    world.log.publish_map()
    refused(world, Invalid, "WrongConfig")


def test_the_configuration_of_another_log(world):
    world.log.output[0] = world.log.output[0].replace(ORIGIN.encode(), b"keys.evil.example")
    world.log.map_checkpoints[3] = world.log.sign_map()
    refused(world, Invalid, "WrongConfig")


def test_a_log_without_a_map_yet(world):
    del world.log.output[1:]
    world.log.map_checkpoints = {1: world.log.sign_map()}
    refused(world, Invalid, "NotNewestLeaf")


def test_post_quantum_alone(world):
    """A group that asks for an Ed25519 line cannot be met by ML-DSA lines."""
    refused(world, PolicyUnmet, "TooFewWitnesses", pq=True)
    policy = world.policy
    groups = {name: Group(name, 1, (f"{name}-1",)) for name in ("w1", "w2", "w3")} | {
        "witnesses": policy.groups["witnesses"], "verifiers": Group("verifiers", 1, ("v1-1",)),
        "all": policy.groups["all"],
    }
    quantum = Policy(policy.logs, policy.witnesses, groups, "all")
    assert world.lookup(pq=True, policy=quantum).keys
    classical = Policy((LogKey(world.log.map_signers[0].vkey, f"{world.log.url}/map"),), policy.witnesses, groups, "all")
    world.lookup(BOB, policy=classical, state=world.state.with_name("other"))
    refused(world, Invalid, "BadLogSignature", pq=True, policy=classical, state=world.state.with_name("third"))


# -- unsafe policies


def unsafe(policy: Policy) -> dict[str, Policy]:
    def with_groups(quorum: str = "all", **groups: Group) -> Policy:
        return Policy(policy.logs, policy.witnesses, {**policy.groups, **groups}, quorum)

    second = signer_from_seed("v2.verifier.example", COSIGNATURE_ED25519, bytes([9]) * 32)
    without = {name: group for name, group in policy.groups.items() if name not in ("all", "verifiers")}
    return {
        "quorum_none": Policy(policy.logs, policy.witnesses, policy.groups, "none"),
        "no_verifier": with_groups(quorum="witnesses"),
        "no_witness": with_groups(quorum="verifiers"),
        "no_group_of_verifiers": Policy(policy.logs, policy.witnesses, without, "witnesses"),
        "empty_witness_list": Policy(policy.logs, {}, {}, "none"),
        "either": with_groups(all=Group("all", 1, ("witnesses", "verifiers"))),
        "splittable": Policy(
            policy.logs, {**policy.witnesses, "v2": Witness("v2", second.vkey)}, {
                **without, "witnesses": Group("witnesses", 1, ("w1", "w2", "w3")),
                "v1": Group("v1", 2, ("v1-0", "v1-1")), "verifiers": Group("verifiers", 1, ("v1", "v2")),
                "all": policy.groups["all"],
            }, "all",
        ),
    }


@pytest.mark.parametrize("case", unsafe(map_policy(story())))
def test_unsafe_policies(world, case):
    policy = unsafe(world.policy)[case]
    refused(world, PolicyUnmet, "UnsafePolicy", policy=policy)
    with pytest.raises(PolicyUnmet, match="UnsafePolicy"):
        verify_bundle(b"", None, policy, ALICE, NOW)


# -- contradictions, with evidence


def test_two_roots_for_one_size(world):
    world.lookup()
    world.log.map_checkpoints[3] = world.log.sign_map(root=bytes(32), witnesses=0)
    error = refused(world, Forked, "TwoRoots")
    verify_evidence(parse_evidence(error.evidence), world.policy.logs[0].vkey)
    refused(world, Forked, "Convicted")


def test_a_head_that_does_not_extend_the_remembered_one(world):
    world.lookup()
    world.log.output[1] = world.log.output[2]
    world.log.publish_map()
    error = refused(world, Forked, "Inconsistent")
    verify_evidence(parse_evidence(error.evidence), world.policy.logs[0].vkey)


def test_an_older_head_is_a_roll_back(world):
    old = world.log.fork()
    world.lookup()
    del old.output[2:], old.map_checkpoints[3]
    world.serve(old)
    refused(world, Stale, "RolledBack")


CONTRADICTIONS = {
    "input_size_fell": {"input_size": 3},
    "erasures_fell": {"erasures": 0},
    "two_roots_of_the_entries": {"input_root": bytes(32)},
    "two_roots_of_the_erasures": {"erasures_root": bytes(32)},
    "two_maps_of_the_same": {"map_root": bytes(32)},
    "time_fell": {"time": NOW - 1},
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_output_leaves_that_contradict_each_other(world, case):
    world.lookup()
    world.log.publish_map(**CONTRADICTIONS[case])
    convicts(world, refused(world, Forked, "MapContradiction"), "map-contradiction")


def rolled_back(world: MapWorld) -> None:
    """The log forgets Alice's last two messages, and goes on."""
    state = world.log.states[3][ALICE]
    world.lookup()
    say(world.log, enrol, actor("eve"), key(40))
    world.log.states[-1][ALICE] = state
    for index in (3, 4):
        world.log.roles[index] = {}
    world.log.publish_map()


def test_hidden_revocation_after_it_was_shown(world):
    rolled_back(world)
    convicts(world, refused(world, Forked, "ActorRolledBack"), "actor-rolled-back")


def test_never_enrolled_after_present(world):
    world.lookup()
    say(world.log, enrol, actor("eve"), key(40))
    del world.log.states[-1][ALICE]
    world.log.publish_map()
    convicts(world, refused(world, Forked, "ActorRolledBack"), "actor-rolled-back")


def test_one_version_that_says_two_things(world):
    world.lookup()
    say(world.log, enrol, actor("eve"), key(40))
    world.log.states[-1][ALICE] = replace(world.log.states[-1][ALICE], fireproof=True)
    world.log.publish_map()
    convicts(world, refused(world, Forked, "ActorRolledBack"), "actor-rolled-back")


def test_an_erased_actor_that_comes_back_without_a_reset(world):
    before = world.log.states[-1][ALICE]
    world.log.erase(ALICE)
    world.log.publish_map()
    world.lookup()
    say(world.log, enrol, actor("eve"), key(40))
    world.log.states[-1][ALICE] = replace(before, version=9)
    del world.log.erased_at[ALICE]
    world.log.publish_map()
    convicts(world, refused(world, Forked, "ActorRolledBack"), "actor-rolled-back")


def test_a_rewritten_history(world):
    """A message more, and another one in the past: only the leaves of the new history show it."""
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.roles[2] = {}
    world.log.roles[5] = {**world.log.roles[5], ALICE: 1}
    world.log.publish_map()
    convicts(world, refused(world, Forked, "HistoryRewritten"), "history-rewritten")


def test_a_history_that_shrank(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    for index in (2, 3):
        world.log.roles[index] = {}
    world.log.publish_map()
    convicts(world, refused(world, Forked, "HistoryRewritten"), "history-rewritten")


def test_a_history_that_is_not_the_one_committed_to(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish_map()
    tell(world, lambda bundle: bundle if bundle.history is None else replace(bundle, history=bundle.history[1:]))
    refused(world, Invalid, "HistoryMismatch")


def test_a_history_that_is_not_to_be_had(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish_map()
    tell(world, lambda bundle: replace(bundle, history=None, old_histories=()))
    refused(world, Unreachable, "BusyMap")


def test_evidence_that_shows_nothing(world):
    rolled_back(world)
    evidence = parse_map_evidence(refused(world, Forked, "ActorRolledBack").evidence)
    for spoilt in (
        replace(evidence, items=(evidence.items[0],) * 2), replace(evidence, items=evidence.items[::-1]),
        replace(evidence, kind="map-contradiction"),
        replace(evidence, vkey=world.log.map_signers[0].vkey), replace(evidence, actor_id=BOB),
    ):
        with pytest.raises(KtlogError):
            verify_map_evidence(spoilt, world.policy.logs[0].vkey)


# -- pending entries


def test_a_pending_revocation_takes_its_key_out(world):
    say(world.log, revoke_key, ALICE, key(2).public_key, key(3))
    answer = world.lookup()
    assert [one.public_key for one in answer.keys] == [key(2).public_key, key(3).public_key]
    assert [one.public_key for one in answer.usable_keys] == [key(3).public_key]
    assert [(one.action, len(one.removes)) for one in answer.pending] == [("RevokeKey", 1)]


def test_a_pending_token_takes_its_key_out(world):
    world.log.accept(revoke_by_token(key(2).revocation_token()))
    assert [one.public_key for one in world.lookup().usable_keys] == [key(3).public_key]


def test_a_pending_add_key_is_shown_and_never_usable(world):
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    answer = world.lookup()
    assert [one.action for one in answer.pending] == ["AddKey"]
    assert key(4).public_key not in [one.public_key for one in answer.usable_keys]


def test_a_pending_revocation_by_a_stranger_changes_nothing(world):
    built = revoke_key(ALICE, key(2).public_key, key(66), recent_root=world.log.recent(), now=NOW)
    world.log.append(built.preimage, {"actor": ALICE, "public-key": built.message.public_key.hex()}, {ALICE: 1})
    refused(world, Invalid, "PlaintextMismatch")


# -- offline


def test_a_bundle_verifies_offline(world):
    for name, kind in ((ALICE, Present), (CAROL, Erased), (DAVE, NeverEnrolled)):
        answer = world.lookup(name)
        again = verify_bundle(answer.bundle, None, world.policy, name, NOW)
        assert type(again) is kind and again.actor_id == name and again.keys == answer.keys
        assert not again.map.linked and any("extends" in text for text in again.not_proven)
        known = verify_bundle(answer.bundle, None, world.policy, name, NOW, origin=ORIGIN, config=world.log.config)
        served = f"which log serves the domain: {ORIGIN}, by your own configuration"
        assert answer.checks[0] == known.checks[0] == served and answer.checks.count(served) == 1
        # Nobody named the log, so nothing was checked of it.
        assert not any("serves the domain" in text for text in again.checks)
        (unnamed,) = set(again.not_proven) - set(known.not_proven) - {proof._NO_CONFIG}
        assert unnamed.startswith(f"that {ORIGIN} serves the domain: nobody named the log")


def test_offline_the_checkpoint_of_another_size_is_none(world):
    answer = world.lookup()
    with pytest.raises(Stale, match="BundleBehindCheckpoint"):
        verify_bundle(answer.bundle, world.log.map_checkpoints[2], world.policy, ALICE, NOW)
    with pytest.raises(Stale, match="OldCosignatures"):
        verify_bundle(answer.bundle, None, world.policy, ALICE, NOW + 3601)
    with pytest.raises(Invalid, match="CommitmentMismatch"):
        verify_bundle(answer.bundle, None, world.policy, BOB, NOW)
    with pytest.raises(Invalid, match="MalformedBundle"):
        verify_bundle(encode_bundle(world.log.bundle(ALICE)), None, world.policy, ALICE, NOW)
    with pytest.raises(Invalid, match="MalformedBundle"):
        verify_bundle(answer.bundle + b"x", None, world.policy, ALICE, NOW)


def test_offline_every_bit_counts(world):
    """No bit of the answer can be changed and leave the answer as it was; a few only break what is unsigned."""
    answer = world.lookup()
    bundle = encode_bundle(replace(parse_bundle(answer.bundle), checkpoint=None))
    note = parse_bundle(answer.bundle).checkpoint
    for position in range(0, len(bundle), 23):
        spoilt = bytearray(bundle)
        spoilt[position] ^= 1 << position % 8
        with pytest.raises(KtlogError):
            verify_bundle(bytes(spoilt), note, world.policy, ALICE, NOW)


def test_offline_two_maps_need_a_choice(world):
    other = MapLog("keys.beta.example", seed=50)
    policy = map_policy(world.log, other)
    bundle = world.lookup().bundle
    with pytest.raises(KtlogError, match="UnknownLog"):
        verify_bundle(bundle, None, policy, ALICE, NOW)
    with pytest.raises(Invalid, match="WrongLog"):
        verify_bundle(bundle, None, policy, ALICE, NOW, origin=other.origin)
    assert verify_bundle(bundle, None, policy, ALICE, NOW, origin=ORIGIN).keys


def test_export_to_a_tlog_proof(world):
    proof, leaf = export_proof(world.lookup().bundle)
    assert verify_proof(proof, leaf, world.policy, NOW).checkpoint.size == 3
    with pytest.raises(Invalid):
        verify_proof(proof, world.log.output[1], world.policy, NOW)


# -- several logs


def other_log(world: MapWorld, *names: str) -> tuple[MapLog, Policy]:
    other = MapLog("keys.beta.example", seed=50)
    for name in names:
        say(other, enrol, name, key(10))
    say(other, enrol, ROOT, key(20))
    world.network.logs[other.publish_map().origin] = other
    return other, map_policy(world.log, other)


def test_present_here_and_never_enrolled_there_is_a_conflict(world):
    other, policy = other_log(world)
    with pytest.raises(Conflict, match="LogsDisagree") as caught:
        world.directory(policy=policy).lookup_across(BOB, [ORIGIN, other.origin])
    assert isinstance(caught.value.stored[other.origin], NeverEnrolled)


def test_logs_that_agree(world):
    other, policy = other_log(world, BOB)
    answers = world.directory(policy=policy).lookup_across(BOB, [ORIGIN, other.origin])
    assert set(answers) == {ORIGIN, other.origin}
    assert all(isinstance(answer, Present) for answer in answers.values())
    with pytest.raises(KtlogError, match="NoMap"):
        world.directory().lookup_across(BOB, [ORIGIN, "keys.gamma.example"])


@pytest.mark.parametrize("name", [f"@bob@{DOMAIN}", BOB])
def test_a_reset_is_told_by_the_lookup_that_hears_from_all_logs(world, name):
    """Whoever cuts off one log must not make the client forget what another one showed it."""
    world.network.handles[f"bob@{DOMAIN}"] = BOB
    other, policy = other_log(world, BOB)
    directory, origins = world.directory(policy=policy), [ORIGIN, other.origin]
    directory.lookup_across(BOB, origins)
    for log in (world.log, other):
        say(log, burn_down, BOB, ROOT, key(20))
        say(log, enrol, BOB, key(4))
    world.log.publish_map()
    before = world.remembered()

    def cut_off(url):
        if other.origin in url:
            raise Unreachable("Timeout", "no answer")

    world.network.before = cut_off
    with pytest.raises(Unreachable, match="Timeout"):
        directory.lookup_across(name, origins)
    world.network.before = lambda url: None
    with pytest.raises(Conflict, match="LogsDisagree") as caught:
        directory.lookup_across(name, origins)
    assert caught.value.stored[ORIGIN].reset is not None and caught.value.stored[other.origin].reset is None
    kept = world.remembered()
    for part in ("actors/", "handles/"):
        assert {path: kept[path] for path in kept if path.startswith(part)} == {
            path: before[path] for path in before if path.startswith(part)
        }
    other.publish_map()
    assert {answer.reset for answer in directory.lookup_across(name, origins).values()} == {"enrolment after a BurnDown"}
    assert {answer.reset for answer in directory.lookup_across(name, origins).values()} == {None}


def test_a_reset_is_told_although_another_log_has_to_be_asked_again(world):
    """Between this lookup's question to one log and to the next, another lookup is told the first one's reset."""
    other, policy = other_log(world, BOB)
    directory, origins = world.directory(policy=policy), [ORIGIN, other.origin]
    directory.lookup_across(BOB, origins)
    for log in (world.log, other):
        say(log, burn_down, BOB, ROOT, key(20))
        say(log, enrol, BOB, key(4))
        log.publish_map()
    told = []

    def meanwhile(url):
        if other.origin in url and not told:
            told.append(world.lookup(BOB).reset)

    world.network.before = meanwhile
    answers = directory.lookup_across(BOB, origins)
    anew = "enrolment after a BurnDown"
    assert (told, answers[ORIGIN].reset, answers[other.origin].reset) == ([anew], None, anew)


@pytest.mark.parametrize("known", [False, True])
def test_a_log_that_is_caught_while_it_is_asked_is_not_believed(world, tmp_path, known):
    other = MapWorld(tmp_path / "other")
    other.lookup()
    other.log.map_checkpoints[3] = other.log.sign_map(root=bytes(32))
    evidence = refused(other, Forked, "TwoRoots").evidence
    if known:
        world.lookup()
    directory = world.directory()

    def meanwhile(url):
        if "/bundle/" in url:
            TrustStore(world.state).convict(MAP, evidence)

    world.network.before = meanwhile
    with pytest.raises(Forked, match="Convicted"):
        directory.lookup(ALICE)


def test_of_several_logs_the_one_that_forked_is_convicted(world):
    other, policy = other_log(world, BOB)
    directory, origins = world.directory(policy=policy), [ORIGIN, other.origin]
    directory.lookup_across(BOB, origins)
    other.map_checkpoints[2] = other.sign_map(root=bytes(32))
    with pytest.raises(Forked, match="TwoRoots"):
        directory.lookup_across(BOB, origins)
    assert [path.name for path in (world.state / "convicted").iterdir()] == ["keys.beta.example%2Fmap.json"]
    assert directory.lookup(BOB).reset is None


def test_a_fork_between_two_clients(world, tmp_path):
    """Each is shown another tree; whoever compares the heads has the evidence."""
    twin = world.log.fork()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    say(twin, revoke_key, ALICE, key(2).public_key, key(3))
    first = MapWorld(tmp_path / "1", world.log.publish_map())
    second = MapWorld(tmp_path / "2", twin.publish_map())
    assert first.lookup().keys != second.lookup().keys
    first.serve(second.log)
    error = refused(first, Forked, "TwoRoots")
    verify_evidence(parse_evidence(error.evidence), world.policy.logs[0].vkey)


def test_the_tests_log_follows_the_rules():
    assert issubclass(MapLog, TinyLog) and len(story().output) == 3
