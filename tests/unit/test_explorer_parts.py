"""Parts of the explorer by themselves: the verdict, audit paths, and what differs from what a server publishes."""

from __future__ import annotations

import threading

import pytest

from ktlog.errors import MessageRejected, Unreachable
from ktlog.operator.reader import Held
from ktlog.operator.request import Source
from ktlog.pkd.actors import Aux, Key
from ktlog.pkd.keys import key_hash
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey
from ktlog.tlog.policy import Group, Policy, Witness
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash
from ktlog.web.explorer import live as live_module
from ktlog.web.explorer.live import KEEP_SECONDS, Live, LiveDesk, differences
from ktlog.web.explorer.pictures import path_steps
from ktlog.web.explorer.standing import FRESH_SECONDS, Head, matrix, verdict
from ktlog.web.explorer.words import soft, span
from ktlog.wire.actor import ED25519, ML_DSA_44, ActorDocument, Multikey, parse_actor
from ktlog.wire.mls import KeyPackage, parse_key_packages
from tests.pkd_samples import ALICE, BOB, public

NOW = 1_800_000_000

# --- who vouches

WITNESSES = [Vkey(f"w{n}.example", COSIGNATURE_MLDSA44, bytes([n]) * 1312) for n in range(3)]
VERIFIER = Vkey("v.example", COSIGNATURE_MLDSA44, bytes([9]) * 1312)


def policy(*, verifiers: bool = True) -> Policy:
    lines = {f"w{n}": Witness(f"w{n}", vkey) for n, vkey in enumerate(WITNESSES)}
    groups = {"witnesses": Group("witnesses", 2, tuple(lines))}
    if not verifiers:
        return Policy((), lines, groups, "witnesses")
    lines["v"] = Witness("v", VERIFIER)
    groups |= {"verifiers": Group("verifiers", 1, ("v",)), "all": Group("all", 2, ("witnesses", "verifiers"))}
    return Policy((), lines, groups, "all")


def head(*ages: int, verifier: int | None = None, sound: bool = True, size: int = 5) -> Head:
    times = {WITNESSES[n]: NOW - age for n, age in enumerate(ages)}
    if verifier is not None:
        times[VERIFIER] = NOW - verifier
    return Head(b"", Checkpoint("o", size, bytes(32)), times, sound)


OLD = FRESH_SECONDS + 1


@pytest.mark.parametrize(("policy", "log", "map", "state", "words"), [
    (policy(), None, None, "none", "Nothing is published"),
    (policy(), head(1, 1), head(1, 1, verifier=1), "ok", "2 witnesses cosigned these 5 entries and no other history, and 1 ver"),
    (policy(), head(1, 1, OLD), head(1, 1, verifier=1), "ok", "2 witnesses"),
    (policy(), head(1, 1, size=1), head(1, 1, verifier=1, size=1), "ok", "cosigned this 1 entry and no other history"),
    (policy(), head(1), head(1, 1, verifier=1), "warn", "1 of the 2"),
    (policy(verifiers=False), head(1), None, "warn", "1 of the 2"),
    (policy(), head(1, OLD), head(1, 1, verifier=1), "warn", "for 1 hour"),
    (policy(), head(1, 1), head(1, 1), "warn", "newest map of who has which keys: 1 of the 2"),
    (policy(), head(1, 1), head(1, 1, verifier=OLD), "warn", "By now apps refuse it"),
    (policy(), head(1, 1), None, "warn", "not published yet"),
    (policy(verifiers=False), head(1, 1), None, "warn", "no verifier checks"),
    (Policy(), head(), None, "warn", "No witness vouches"),
    (policy(), head(sound=False), head(1, 1, verifier=1), "bad", "does not verify"),
    (policy(), head(1, 1), head(sound=False), "bad", "does not verify"),
])
def test_the_verdict_says_no_more_than_holds(policy, log, map, state, words):
    said = verdict(policy, log, map, NOW)
    assert said["state"] == state and words in said["sentence"], said


def test_the_matrix_has_a_row_for_each_cosigner():
    rows = matrix(policy(), head(5, OLD), head(5, verifier=7), NOW)
    assert [(row["name"], row["role"]) for row in rows] == [
        ("w0.example", "witness"), ("w1.example", "witness"), ("w2.example", "witness"), ("v.example", "verifier"),
    ]
    assert [row["log"]["words"] for row in rows] == [
        "fresh, 5 seconds ago", "stale, 1 hour ago", "did not cosign this one", "not asked",
    ]
    assert [row["map"]["cosigned"] for row in rows] == [True, False, False, True]
    assert matrix(Policy(), None, None, NOW) == []


def test_lengths_of_time():
    assert [span(n) for n in (-5, 0, 1, 59, 60, 7200, 86_400 * 3)] == [
        "0 seconds", "0 seconds", "1 second", "59 seconds", "1 minute", "2 hours", "3 days",
    ]


def test_a_long_name_is_broken_behind_its_parts_and_says_the_same():
    assert soft("https://w1.example/users/@al") == "https://<wbr>w1.<wbr>example/<wbr>users/@<wbr>al"
    assert soft("a.b/") == "a.<wbr>b/" and soft("a=b") == "a=<wbr>b" and soft("") == ""
    assert soft("<i>.&/'") == "&lt;i&gt;.<wbr>&amp;/<wbr>&#39;"


# --- the way to the root


def test_every_audit_path_ends_in_the_root():
    for size in range(1, 34):
        leaves = [hash_leaf(bytes([n])) for n in range(size)]
        root = root_hash(size, leaf_reader(leaves))
        for index in range(size):
            steps = path_steps(leaves[index], index, size, prove_inclusion(index, size, leaf_reader(leaves)))
            assert (steps[-1][2] if steps else leaves[index]) == root


# --- what a server publishes

HELD = Held((Key(public("a"), "id-a", 3, 1),), (Aux("mls", "aux-id", "logged", 4, 1),))


PENDING = Held((*HELD.keys, Key(public("p"), "id-p", 5, 1)), (*HELD.aux, Aux("mls", "aux-2", "soon", 6, 1)))


def document(*keys: tuple[str, bytes], packages: str | None = None) -> ActorDocument:
    listed = tuple(Multikey(f"{ALICE}#{n}", ALICE, algorithm, key) for n, (algorithm, key) in enumerate(keys))
    return ActorDocument(ALICE, f"{ALICE}/inbox", listed, None, packages)


def states(live: Live) -> list[tuple[str, str]]:
    return [(row["state"], row["words"]) for row in differences(live, HELD, PENDING)]


def test_what_is_published_and_not_logged_comes_first():
    packages = (KeyPackage("1", "logged"), KeyPackage("2", "other"), KeyPackage("3", None))
    found = Live(document((ED25519, bytes(32)), (ML_DSA_44, public("a")), (ML_DSA_44, public("b"))), packages, "", NOW)
    bad, ok = ("bad", "published but not logged"), ("ok", "published and logged")
    assert states(found) == [bad, bad, bad, ok, ok, ("none", "signs requests between servers")]
    assert states(Live(document(), (), "", NOW)) == [("none", "logged, not in the actor document")]


def test_a_key_that_was_withdrawn_and_is_still_published_is_called_that():
    print_ = key_hash(public("b")).hex()
    found = Live(document((ML_DSA_44, public("b"))), (), "", NOW)
    said, listed = differences(found, HELD, PENDING, {print_: 9})
    assert (said["state"], said["words"], said["leaf-index"]) == ("bad", "withdrawn in the log, still published", 9)
    assert listed["words"] == "logged, not in the actor document"
    assert differences(found, HELD, PENDING, {"ff" * 32: 9})[0]["words"] == "published but not logged"


def test_nobody_is_accused_of_a_key_listed_twice_or_of_what_waits_to_be_published():
    twice = document(*[(ML_DSA_44, public("a"))] * 2, (ML_DSA_44, public("p")))
    ok, soon = ("ok", "published and logged"), ("none", "logged, not published yet")
    assert states(Live(twice, (KeyPackage("1", "soon"),), "", NOW)) == [ok, ok, soon, soon]


class Keys:
    """``ActorKeys`` that counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.erasures = 0
        self.time = NOW
        self.answer = document(packages="https://example.com/kp")
        self.inside = threading.Event()
        self.go_on: threading.Event | None = None

    def document(self, actor_id: str, *, source: Source) -> ActorDocument:
        self.asked += 1
        if self.go_on is not None:
            self.inside.set()
            assert self.go_on.wait(10)
        return self.answer


@pytest.fixture
def keys(monkeypatch) -> Keys:
    monkeypatch.setattr(live_module, "fetch_key_packages", lambda fetcher, url: (KeyPackage("1", "x"),))
    return Keys()


def desk(keys: Keys) -> LiveDesk:
    return LiveDesk(keys, None, lambda: keys.erasures, lambda: keys.time)


def test_a_server_is_asked_once_in_a_while_and_nothing_outlives_an_erasure(keys):
    looking, source = desk(keys), Source("127.0.0.1")
    for _ in range(3):
        assert looking.look(ALICE, source).packages
    assert keys.asked == 1
    keys.time += KEEP_SECONDS
    looking.look(ALICE, source)
    keys.erasures += 1
    looking.look(ALICE, source)
    assert keys.asked == 3


def test_one_comparison_at_a_time(keys):
    looking, source = desk(keys), Source("127.0.0.1")
    kept = looking.look(BOB, source)
    keys.go_on = threading.Event()
    first = threading.Thread(target=looking.look, args=(ALICE, source))
    first.start()
    assert keys.inside.wait(10)
    with pytest.raises(MessageRejected, match="another comparison"):
        looking.look(ALICE, source)
    assert looking.look(BOB, source) is kept, "what is kept is had at any time"
    keys.go_on.set()
    first.join()
    looking.look(ALICE, source)


def test_why_key_packages_are_not_there_is_not_told(keys, monkeypatch):
    def fail(fetcher, url):
        raise Unreachable("Refused", "10.1.2.3 refused")

    monkeypatch.setattr(live_module, "fetch_key_packages", fail)
    found = desk(keys).look(ALICE, Source("127.0.0.1"))
    assert found.failure and "10.1" not in found.failure


def test_a_collection_elsewhere_is_not_an_actors():
    plain = {"id": ALICE, "inbox": f"{ALICE}/inbox"}
    for value, taken in (
        (f"{ALICE}/kp", f"{ALICE}/kp"), ({"id": f"{ALICE}/kp"}, f"{ALICE}/kp"), ("https://other.example/kp", None), (7, None),
        ("no url", None), (None, None),
    ):
        assert parse_actor(plain | {"keyPackages": value}, ALICE).key_packages == taken
    listed = parse_key_packages({"items": ["https://a/1", {"id": "2", "content": "c"}, 3, {"content": 4}]})
    assert [(item.id, item.content) for item in listed] == [("https://a/1", None), ("2", "c"), ("", None)]
    for wrong in ([], {"items": ["x"] * 65}):
        with pytest.raises(Exception, match="BadKeyPackages"):
            parse_key_packages(wrong)
