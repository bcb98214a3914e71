"""A lookup: whom it asks and what it believes of a log's head. Every failure by its name."""

from __future__ import annotations

import json

import pytest
from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, key, make_policy
from client_world import ALICE, BOB, World, remembering_argon2id, say

from ktlog.client import Directory, parse_policy
from ktlog.client import Policy as ClientPolicy
from ktlog.client.build import add_key
from ktlog.errors import (
    Conflict,
    EncodingError,
    Invalid,
    NotLogged,
    PolicyUnmet,
    Stale,
    Unreachable,
    UsageError,
)
from ktlog.pkd import attributes
from ktlog.tlog.encoding import encode_base64
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
    assert asked == ["/checkpoint", f"/api/actor/https%3A%2F%2F{DOMAIN}%2Fusers%2Falice/keys", "/erasures", "/leaf-keys"]


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


@pytest.mark.parametrize("body", [b"", b'{"subject":"a","subject":"b"}', b"[]", b"\xff"])
def test_a_webfinger_answer_that_is_none_is_no_fault_of_the_name(world, body):
    world.network.replace("/.well-known/webfinger", body)
    world.refuses(Invalid, "BadWebFinger", f"@alice@{DOMAIN}")


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
