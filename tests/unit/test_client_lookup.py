"""A lookup against a real log in memory: what it accepts, and every lie it must name."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, actor, key, make_policy

from ktlog.client import Directory
from ktlog.client.build import (
    add_key,
    burn_down,
    enrol,
    fireproof,
    move_identity,
    revoke_by_token,
    revoke_key,
)
from ktlog.errors import (
    Conflict,
    EncodingError,
    Forked,
    Invalid,
    KtlogError,
    NotLogged,
    PolicyUnmet,
    Stale,
    StoreError,
    Unreachable,
    UsageError,
)
from ktlog.pkd.dialects import PHP
from ktlog.pkd.keys import encode_public_key
from ktlog.tlog.encoding import decode_base64url, encode_base64, encode_base64url
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.policy import Policy, format_policy
from ktlog.tlog.tiles import tile_path

ALICE, BOB, ROOT = actor("alice"), actor("bob"), actor("root")


def say(log: TinyLog, build, *arguments):
    return log.accept(build(*arguments, recent_root=log.recent(), now=NOW + log.size))


@cache
def story() -> TinyLog:
    """Bob enrols; Alice enrols, adds two keys and revokes the first; Root enrols."""
    log = TinyLog()
    say(log, enrol, BOB, key(10))
    say(log, enrol, ALICE, key(1))
    say(log, add_key, ALICE, key(2).public_key, key(1))
    say(log, add_key, ALICE, key(3).public_key, key(2))
    say(log, revoke_key, ALICE, key(1).public_key, key(3))
    say(log, enrol, ROOT, key(20))
    return log.publish()


class World:
    """A log, the network to it, and one client with its state."""

    def __init__(self, tmp_path, log: TinyLog | None = None) -> None:
        self.log = (log or story()).fork()
        self.network = Network(self.log)
        self.network.handles[f"alice@{DOMAIN}"] = ALICE
        self.state = tmp_path / "state"
        self.now = NOW
        self.policy = make_policy([self.log])

    def directory(self, **options) -> Directory:
        settings = {"state": self.state, "domains": {DOMAIN: ORIGIN}, "fetcher": self.network, "now": lambda: self.now}
        return Directory(options.pop("policy", self.policy), **(settings | options))

    def lookup(self, name: str = ALICE, **options):
        return self.directory(**options).lookup(name)

    def refuses(self, kind: type[KtlogError], name: str, who: str = ALICE, **options) -> KtlogError:
        """The lookup fails under this class and name, with its exit code, and nothing is remembered of it."""
        before = self.remembered()
        with pytest.raises(kind) as caught:
            self.lookup(who, **options)
        assert (type(caught.value), caught.value.name) == (kind, name), str(caught.value)
        assert self.remembered() == before
        assert caught.value.diagnostics()
        return caught.value

    def remembered(self) -> dict[str, bytes]:
        files = self.state.rglob("*.json") if self.state.exists() else []
        return {str(path.relative_to(self.state)): path.read_bytes() for path in files}

    def serve(self, log: TinyLog) -> None:
        self.log = log
        self.network.logs[log.origin] = log


@pytest.fixture
def world(tmp_path) -> World:
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
    assert (answer.taken, answer.reset, answer.new_keys, answer.pending) == ((), None, (), ())
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


# Which log


def test_the_log_is_chosen_here_and_not_by_the_server(world):
    world.refuses(UsageError, "UnknownDomain", domains={})
    world.refuses(UsageError, "UnknownLog", domains={DOMAIN: "keys.evil.example"})


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
    assert world.lookup(BOB).actor_id == BOB


def test_a_pin_is_set_only_after_a_good_lookup(world):
    world.network.edit(lambda page: page["public-keys"].pop())
    world.refuses(Invalid, "OmittedKey", f"@alice@{DOMAIN}")
    assert world.remembered() == {}


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
    "a withheld attribute": ("PlaintextMismatch", lambda page: put(rows(page)[0]["plain"], "actor", None)),
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
    assert (answer.keys, answer.status, answer.taken) == ((), "burned down", ())


def test_a_burn_down_by_an_operator_that_cannot_be_checked_is_taken_and_said(world):
    burned(world.log)
    world.network.edit(lambda page: page.update({"history": []}), ROOT)
    answer = world.lookup()
    assert answer.keys == ()
    assert len(answer.taken) == 1
    assert ROOT in answer.taken[0]


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
    assert "all 5 messages" in answer.checks[4]
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
    late = threading.Event()

    def slow(url):
        if url.endswith("/leaf-keys") and threading.current_thread().name == "slow":
            assert late.wait(20)

    world.network.before = slow
    results = []
    thread = threading.Thread(target=lambda: results.append(world.lookup(ALICE)), name="slow")
    thread.start()
    while not any("/keys" in url for url in world.network.requests):
        pass
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
        if url.endswith("/leaf-keys"):
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
