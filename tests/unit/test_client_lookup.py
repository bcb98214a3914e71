"""A lookup: whom it asks and what it believes of a log's head. Every failure by its name."""

from __future__ import annotations

import json

import pytest
from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, actor, key, make_policy
from client_world import ALICE, BOB, World, remembering_argon2id, say, story

from ktlog.client import Directory, parse_policy
from ktlog.client import Policy as ClientPolicy
from ktlog.client.build import add_key, enrol
from ktlog.errors import (
    Conflict,
    EncodingError,
    Forked,
    Invalid,
    NotLogged,
    PolicyUnmet,
    Stale,
    StoreError,
    Unreachable,
    UsageError,
)
from ktlog.pkd import attributes
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import format_evidence, parse_evidence, two_roots, verify_evidence
from ktlog.tlog.policy import Policy, format_policy
from ktlog.tlog.tiles import tile_path


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return World(tmp_path)


# What is accepted


def test_an_honest_answer(world):
    answer = world.lookup(f"@alice@{DOMAIN}")
    assert (answer.actor_id, answer.handle, answer.origin) == (ALICE, f"@alice@{DOMAIN}", ORIGIN)
    assert [found.public_key for found in answer.keys] == [key(2).public_key, key(3).public_key]
    assert answer.usable_keys == answer.keys
    assert [found.leaf_index for found in answer.keys] == [2, 3]
    assert (answer.tree_size, answer.root_hash, answer.as_of) == (6, world.log.root(), NOW)
    assert (answer.status, answer.cause, answer.version, answer.generation) == ("active", "first enrolment", 4, 1)
    assert answer.cosigners == ("w1.witness.example", "w2.witness.example", "w3.witness.example")
    assert (answer.reset, answer.new_keys, answer.gone_keys, answer.pending) == (None, (), (), ())
    assert len(answer.checks) == 8
    assert "left out" in answer.not_proven[0]
    json.dumps(answer.as_dict())


def test_the_api_of_the_readme(world, tmp_path):
    path = tmp_path / "trust.policy"
    path.write_bytes(format_policy(world.policy))
    world.directory()
    (world.state / "domains.toml").write_text(f'[domains]\n"{DOMAIN}" = "{ORIGIN}"\n')
    directory = Directory.from_policy_file(path, state=world.state, fetcher=world.network, now=lambda: NOW)
    assert directory.lookup(f"alice@{DOMAIN}").handle == f"@alice@{DOMAIN}"
    assert directory.lookup(BOB).handle is None


def test_state_is_private_and_holds_what_was_verified(world):
    world.lookup(f"@alice@{DOMAIN}")
    assert world.state.stat().st_mode & 0o777 == 0o700
    names = sorted(world.remembered())
    assert [name.partition("/")[0] for name in names] == ["actors", "handles", "heads"]
    assert all((world.state / name).stat().st_mode & 0o777 == 0o600 for name in names)
    head = json.loads(world.remembered()[f"heads/{ORIGIN}.json"])
    assert head["note"] == encode_base64(world.log.checkpoint)


def test_a_growing_log_is_followed_and_new_keys_are_named(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish(now=NOW + 60)
    world.now = NOW + 60
    answer = world.lookup()
    assert [found.public_key for found in answer.new_keys] == [key(4).public_key]
    assert answer.gone_keys == ()
    assert "the one of 6 entries" in answer.checks[3]
    assert answer.as_of == NOW + 60


def test_a_log_of_many_tiles_is_followed(world):
    """Old sizes on both sides of a tile's edge, a power of two among them, all proven from tiles."""
    for size in (255, 256, 300, 600):
        while world.log.size < size:
            world.log.append(b"{}", {}, {})
        world.log.publish()
        assert world.lookup().tree_size == size


def test_one_lookup_asks_for_little(world):
    world.lookup()
    asked = [url.partition(ORIGIN)[2].partition("?")[0] for url in world.network.requests]
    assert asked == ["/checkpoint", f"/api/actor/https%3A%2F%2F{DOMAIN}%2Fusers%2Falice/keys", "/leaf-keys"]


def test_a_missing_partial_tile_is_replaced_by_the_full_one(world):
    for _ in range(300):
        world.log.append(b"{}", {}, {})
    world.log.published = 250
    world.log.checkpoint = world.log.sign(200)
    world.lookup()
    world.log.checkpoint = world.log.sign(250)
    world.network.replace("/" + tile_path(0, 0, 250), b"gone", 404)
    assert world.lookup().tree_size == 250


# The policy


def test_no_verdict_without_witnesses(world):
    with pytest.raises(PolicyUnmet) as caught:
        world.directory(policy=Policy(world.policy.logs))
    assert (caught.value.name, caught.value.exit_code) == ("UnsafePolicy", 6)


def test_a_quorum_that_can_be_split_is_refused(world):
    with pytest.raises(PolicyUnmet, match="UnsafePolicy"):
        world.directory(policy=make_policy([world.log], need=1))


@pytest.mark.parametrize(("content", "name"), [(None, "NoPolicy"), (b"quorum maybe\n", "BadPolicy")])
def test_policy_files_that_are_none(world, tmp_path, content, name):
    path = tmp_path / "trust.policy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=name):
        Directory.from_policy_file(path, state=world.state, fetcher=world.network)


def test_a_policy_that_cannot_be_read(world, tmp_path):
    with pytest.raises(UsageError, match="NoPolicy"):
        Directory.from_policy_file(tmp_path, state=world.state, fetcher=world.network)


@pytest.mark.parametrize("policy", ["trust.policy", b"quorum none\n", None])
def test_what_is_no_policy(world, policy):
    with pytest.raises(UsageError, match="NoPolicy") as caught:
        Directory(policy, state=world.state, fetcher=world.network)
    assert "from_policy_file" in caught.value.hint


def test_the_library_makes_policies(world):
    policy = parse_policy(format_policy(world.policy))
    assert isinstance(policy, ClientPolicy)
    assert world.lookup(policy=policy).origin == ORIGIN


# Which log


def test_the_log_is_chosen_here_and_not_by_the_server(world):
    assert "domains=" in world.refuses(UsageError, "UnknownDomain", domains={}).hint
    world.refuses(UsageError, "UnknownLog", domains={DOMAIN: "keys.evil.example"})


def test_domains_are_compared_in_lower_case(world):
    assert world.lookup(domains={DOMAIN.upper(): ORIGIN}).origin == ORIGIN
    (world.state / "domains.toml").write_text(f'[domains]\n"{DOMAIN.upper()}" = "{ORIGIN}"\n')
    assert world.lookup(domains=None).origin == ORIGIN


@pytest.mark.parametrize("domains", [
    {DOMAIN: f"https://{ORIGIN}"}, {DOMAIN: f"{ORIGIN}/"}, {DOMAIN: ""}, {DOMAIN: None}, {"https://" + DOMAIN: ORIGIN},
    {"": ORIGIN}, {7: ORIGIN},
])
def test_domains_that_are_none(world, domains):
    with pytest.raises(UsageError, match="BadDomains") as caught:
        world.directory(domains=domains)
    assert "drop https://" in caught.value.hint or "/" not in str(domains.get(DOMAIN) or "")


def test_an_argument_beats_domains_toml(world):
    world.directory()
    (world.state / "domains.toml").write_text(f'[domains]\n"{DOMAIN}" = "keys.evil.example"\n')
    world.refuses(UsageError, "UnknownLog", domains=None)
    assert world.lookup().origin == ORIGIN


@pytest.mark.parametrize("text", ["[domains]\na = 1\n", "a = 'b'\n", "[domains\n", "[other]\n"])
def test_a_damaged_domains_file_is_an_error(world, text):
    world.directory()
    (world.state / "domains.toml").write_text(text)
    world.refuses(UsageError, "BadDomains", domains=None)


# Handles


def test_a_handle_is_pinned(world):
    world.lookup(f"@alice@{DOMAIN}")
    world.network.handles[f"alice@{DOMAIN}"] = BOB
    error = world.refuses(Conflict, "HandleChanged", f"@alice@{DOMAIN}")
    assert (error.stored, error.exit_code) == (ALICE, 8)
    assert "webfinger" in world.network.requests[-1], "nobody else was asked about the other id"
    assert world.lookup(BOB).actor_id == BOB


def test_a_pin_is_set_only_after_a_good_lookup(world):
    world.network.edit(lambda page: page["public-keys"].pop())
    world.refuses(Invalid, "OmittedKey", f"@alice@{DOMAIN}")
    assert list(world.remembered()) == [f"heads/{ORIGIN}.json"]


def test_a_pinned_handle_needs_no_instance(world):
    world.network.break_("/.well-known/webfinger")
    world.refuses(Unreachable, "Timeout", f"@alice@{DOMAIN}")
    world.network = Network(world.log)
    world.network.handles[f"alice@{DOMAIN}"] = ALICE
    world.lookup(f"@alice@{DOMAIN}")
    world.network.break_("/.well-known/webfinger")
    assert world.lookup(f"@alice@{DOMAIN}").actor_id == ALICE


def test_names_that_are_none(world):
    for name in ("alice", "", "@alice", "https://alpha.example:8443/users/alice", "https://127.0.0.1/alice"):
        with pytest.raises(EncodingError):
            world.lookup(name)
    world.refuses(NotLogged, "UnknownHandle", f"@nobody@{DOMAIN}")


# The checkpoint


def test_another_logs_checkpoint(world):
    world.network.replace("/checkpoint", world.log.sign(origin="keys.beta.example"))
    world.refuses(Invalid, "WrongLog")


def test_an_honest_checkpoint_of_another_trusted_log(world):
    other = TinyLog("keys.beta.example", seed=50).publish()
    world.network.replace("/checkpoint", other.checkpoint)
    world.refuses(Invalid, "WrongLog", policy=make_policy([world.log, other]))


def test_the_map_logs_checkpoint_is_not_the_logs(world):
    world.network.replace("/checkpoint", world.log.sign(origin=f"{ORIGIN}/map"))
    world.refuses(Invalid, "WrongLog")


def test_a_checkpoint_the_log_did_not_sign(world):
    world.network.replace("/checkpoint", world.log.sign(signers=TinyLog(seed=50).signers))
    world.refuses(Invalid, "BadLogSignature")


def test_a_changed_root_breaks_the_log_signature(world):
    text = world.log.checkpoint.replace(encode_base64(world.log.root()).encode(), encode_base64(bytes(32)).encode())
    world.network.replace("/checkpoint", text)
    world.refuses(Invalid, "BadLogSignature")


def test_a_bad_line_of_a_known_witness(world):
    """Its signature over another tree, pasted in: everything else on the note is right."""
    good = world.log.checkpoint.split(b"\n")
    other = world.log.sign(5).split(b"\n")
    place = next(i for i, line in enumerate(good) if line.startswith("— w2".encode()))
    world.network.replace("/checkpoint", b"\n".join([*good[:place], other[place], *good[place + 1:]]))
    world.refuses(Invalid, "BadCosignature")


def test_too_few_witnesses(world):
    world.network.replace("/checkpoint", world.log.sign(witnesses=1))
    error = world.refuses(PolicyUnmet, "TooFewWitnesses")
    assert (error.have, error.need, error.exit_code) == (1, 2, 6)
    world.network.replace("/checkpoint", world.log.sign(witnesses=2))
    assert len(world.lookup().cosigners) == 2


def test_old_cosignatures(world):
    world.now = NOW + 3600
    world.lookup()
    world.now = NOW + 3601
    error = world.refuses(Stale, "OldCosignatures")
    assert error.exit_code == 9
    assert world.lookup(max_age_seconds=4000).as_of == NOW


def test_cosignatures_from_the_future_do_not_count(world):
    world.now = NOW - 300
    world.lookup()
    world.now = NOW - 301
    world.refuses(PolicyUnmet, "TooFewWitnesses")


@pytest.mark.parametrize("body", [b"", b"\xff", b"keys.alpha.example\n1\n", b"x" * 2_000_000])
def test_a_checkpoint_that_is_none(world, body):
    world.network.replace("/checkpoint", body)
    with pytest.raises((Invalid, Unreachable)) as caught:
        world.lookup()
    assert caught.value.name in ("MalformedCheckpoint", "TooLarge")


# Against what is remembered


def test_two_roots_convict_even_without_witnesses(world):
    world.lookup()
    liar = story().fork()
    liar.entries[-1] = liar.entries[0]
    world.serve(liar.publish(witnesses=0))
    error = world.refuses(Forked, "TwoRoots")
    assert error.exit_code == 7
    evidence = parse_evidence(error.evidence)
    verify_evidence(evidence, world.policy.logs[0].vkey)
    assert evidence.kind == "two-roots"


def caught(world) -> Forked:
    """The log is shown with two trees, and serves the good one again."""
    world.lookup(f"@alice@{DOMAIN}")
    good = world.log.checkpoint
    world.log.checkpoint = world.log.sign(root=bytes(32), witnesses=0)
    error = world.refuses(Forked, "TwoRoots")
    world.log.checkpoint = good
    return error


@pytest.mark.parametrize("name", [ALICE, BOB, f"@alice@{DOMAIN}"])
def test_a_log_that_was_caught_stays_convicted(world, name):
    error = caught(world)
    path = world.state / "convicted" / f"{ORIGIN}.json"
    assert path.read_bytes() == error.evidence
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in error.hint
    world.network.requests.clear()
    again = world.refuses(Forked, "Convicted", name)
    assert again.evidence == error.evidence
    assert again.exit_code == 7
    assert str(path) in again.hint
    assert world.network.requests == []
    path.unlink()
    assert world.lookup(name).origin == ORIGIN


def test_another_log_is_not_convicted_with_it(world):
    caught(world)
    other = TinyLog("keys.beta.example", seed=50)
    dora = actor("dora", "beta.example")
    say(other, enrol, dora, key(5))
    world.network.logs[other.publish().origin] = other
    policy = make_policy([world.log, other])
    domains = {DOMAIN: ORIGIN, "beta.example": other.origin}
    assert world.lookup(dora, policy=policy, domains=domains).origin == other.origin
    world.refuses(Forked, "Convicted", policy=policy, domains=domains)


def test_a_conviction_that_cannot_be_stored_is_told_all_the_same(world):
    world.lookup()
    (world.state / "convicted").rmdir()
    directory = world.directory()
    (world.state / "convicted").rmdir()
    world.log.checkpoint = world.log.sign(root=bytes(32), witnesses=0)
    with pytest.raises(Forked, match="TwoRoots") as raised:
        directory.lookup(ALICE)
    assert raised.value.evidence
    assert "could not be remembered" in raised.value.hint


@pytest.mark.parametrize("damage", [b"", b"{}", b"about another log"])
def test_a_damaged_conviction_is_no_acquittal(world, damage):
    error = caught(world)
    path = world.state / "convicted" / f"{ORIGIN}.json"
    if damage == b"about another log":
        other = TinyLog("keys.beta.example", seed=50).publish()
        vkey = make_policy([other]).logs[0].vkey
        damage = format_evidence(two_roots(vkey, other.sign(3, root=bytes(32)), other.sign(3, root=b"x" * 32)))
    path.write_bytes(damage)
    world.refuses(StoreError, "BadState")
    path.write_bytes(error.evidence)
    world.refuses(Forked, "Convicted")


def test_without_a_memory_the_same_lie_lacks_witnesses(world):
    liar = story().fork()
    liar.entries[-1] = liar.entries[0]
    world.serve(liar.publish(witnesses=0))
    world.refuses(PolicyUnmet, "TooFewWitnesses")


def test_a_smaller_tree_is_stale_and_no_evidence(world):
    world.lookup()
    world.log.checkpoint = world.log.sign(4)
    error = world.refuses(Stale, "RolledBack")
    assert error.exit_code == 9
    assert not hasattr(error, "evidence")


@pytest.mark.parametrize("old_size", [3, 4, 5, 6])
def test_a_larger_tree_that_is_not_an_extension(world, old_size):
    """With and without the case where the old size is a power of two."""
    world.log.checkpoint = world.log.sign(old_size)
    world.lookup(BOB)
    liar = story().fork()
    liar.entries[1] = liar.entries[0]
    liar.entries += liar.entries
    world.serve(liar.publish())
    error = world.refuses(Forked, "Inconsistent")
    evidence = parse_evidence(error.evidence)
    verify_evidence(evidence, world.policy.logs[0].vkey)
    assert evidence.kind == "inconsistent"


def test_tiles_that_are_not_the_trees_convict_nobody(world):
    world.lookup()
    say(world.log, enrol, actor("dave"), key(30))
    world.log.publish()
    world.network.replace("/" + tile_path(0, 0, 7), bytes(7 * 32))
    world.refuses(Invalid, "BadConsistencyProof")


def test_tiles_that_cannot_be_had(world):
    world.lookup()
    say(world.log, enrol, actor("dave"), key(30))
    world.log.publish()
    world.network.break_("/" + tile_path(0, 0, 7))
    world.network.break_("/" + tile_path(0, 0))
    error = world.refuses(Unreachable, "Timeout")
    assert error.exit_code == 3


@pytest.mark.parametrize(("name", "who"), [("NotLogged", actor("nobody")), ("OmittedKey", ALICE)])
def test_a_good_head_is_remembered_although_the_lookup_failed(world, name, who):
    """Otherwise an older head would be accepted after it, with a key that was revoked since."""
    world.log.checkpoint = world.log.sign(4)
    world.lookup()
    world.log.checkpoint = world.log.sign(6)
    world.network.edit(lambda page: page["public-keys"].pop())
    world.refuses(NotLogged if name == "NotLogged" else Invalid, name, who)
    assert json.loads(world.remembered()[f"heads/{ORIGIN}.json"])["note"] == encode_base64(world.log.checkpoint)
    world.network = Network(world.log)
    world.log.checkpoint = world.log.sign(4)
    world.refuses(Stale, "RolledBack")


@pytest.mark.parametrize("body", [None, b'{"code":"not_found"}'])
def test_an_actor_that_was_shown_before_cannot_be_unknown(world, body):
    world.lookup()
    if body is None:
        world.network.edit(lambda page: page.update({"history": [], "public-keys": []}))
    else:
        world.network.replace(f"/api/actor/https%3A%2F%2F{DOMAIN}%2Fusers%2Falice/keys", body, 404)
    assert world.refuses(Stale, "ActorRolledBack").exit_code == 9


def test_one_entry_is_singular(world):
    log = TinyLog()
    say(log, enrol, ALICE, key(1))
    world.serve(log.publish())
    world.lookup()
    checks = " ".join(world.lookup().checks)
    assert checks.count(" 1 entry ") == 2
    assert "1 entries" not in checks


def test_a_damaged_memory_is_never_an_empty_one(world):
    world.lookup(f"@alice@{DOMAIN}")
    for name in world.remembered():
        path = world.state / name
        good = path.read_bytes()
        for bad in (b"", b"{}", good[:-9], good.replace(b"v1", b"v2"), b"\xff"):
            path.write_bytes(bad)
            world.refuses(StoreError, "BadState", f"@alice@{DOMAIN}")
        path.write_bytes(good)
    world.lookup(f"@alice@{DOMAIN}")


def test_a_remembered_head_of_another_key_is_an_error(world):
    world.lookup()
    world.policy = make_policy([TinyLog(seed=50)])
    world.refuses(StoreError, "HeadOfAnotherKey")


def test_a_state_directory_that_others_may_write_is_refused(world):
    world.lookup()
    world.state.chmod(0o770)
    with pytest.raises(StoreError, match="UnsafeState"):
        world.directory()


def test_a_hidden_message_that_was_shown_before(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish()
    truth = world.lookup()
    old = world.log.page(ALICE, 7)

    def hide_the_newest(page):
        page["history"] = old["history"][:-1]
        page["public-keys"] = [row for row in page["public-keys"] if row["leaf-index"] != 6]

    world.network.edit(hide_the_newest)
    world.refuses(Stale, "ActorRolledBack")
    assert len(truth.keys) == 3


def test_a_message_that_was_hidden_before(world):
    def hide_the_revocation(page):
        page["history"] = [row for row in page["history"] if row["leaf-index"] != 4]
        page["public-keys"].insert(0, world.log.page(ALICE, 4)["public-keys"][0])

    world.network.edit(hide_the_revocation)
    # This is the hole that the directory map closes: today the lie passes, and the answer says so.
    answer = world.lookup()
    assert key(1).public_key in [found.public_key for found in answer.keys]
    assert "revocation" in answer.not_proven[0]
    world.network = Network(world.log)
    world.refuses(Invalid, "HistoryRewritten")
