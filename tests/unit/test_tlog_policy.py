from __future__ import annotations

from itertools import chain, combinations

import pytest

from ktlog.errors import EncodingError, Invalid, PolicyUnmet
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    SignatureLine,
    format_note,
    format_signature_line,
    parse_note,
    sign_checkpoint,
    signer_from_seed,
)
from ktlog.tlog.policy import Group, LogKey, Policy, Witness, format_policy, parse_policy

ORIGIN = "keys.example.com"
NOW = 1_700_000_000


def seed(text):
    return text.encode().ljust(32, b".")


LOG_ED = signer_from_seed(ORIGIN, ED25519, seed("log"))
LOG_PQ = signer_from_seed(ORIGIN, COSIGNATURE_MLDSA44, seed("log"))
OTHER_LOG = signer_from_seed("other.example.com", ED25519, seed("other"))
ED = {n: signer_from_seed(f"w{n}.example", COSIGNATURE_ED25519, seed(f"w{n}")) for n in range(1, 6)}
PQ = {n: signer_from_seed(f"w{n}.example", COSIGNATURE_MLDSA44, seed(f"w{n}")) for n in range(1, 4)}
CHECKPOINT = Checkpoint(ORIGIN, 5, bytes(range(32)))


def text_of(*lines):
    return "".join(f"{line}\n" for line in lines).encode()


PAIRS = [line for n in PQ for line in (
    f"witness w{n}-ed {ED[n].vkey}", f"witness w{n}-pq {PQ[n].vkey}", f"group w{n} all w{n}-ed w{n}-pq",
)]
DEMO = text_of(
    f"log {LOG_PQ.vkey} https://keys.example.com/", *PAIRS, "group witnesses 2 w1 w2 w3", "quorum witnesses"
)
SINGLES = [f"witness W{n} {ED[n].vkey}" for n in ED]


def singles(*lines):
    return parse_policy(text_of(*SINGLES, *lines))


def vkeys(*signers):
    return [signer.vkey for signer in signers]


# -- reading


def test_the_demo_policy():
    policy = parse_policy(DEMO)
    assert policy.logs == (LogKey(LOG_PQ.vkey, "https://keys.example.com/"),)
    assert policy.witnesses["w1-pq"] == Witness("w1-pq", PQ[1].vkey)
    assert policy.groups["w2"] == Group("w2", 2, ("w2-ed", "w2-pq"))
    assert policy.groups["witnesses"] == Group("witnesses", 2, ("w1", "w2", "w3"))
    assert policy.quorum == "witnesses"
    assert parse_policy(format_policy(policy)) == policy
    policy.check_safe()


def test_blanks_comments_and_order():
    data = (
        b"# a comment, \xff\xfe and all\n\n \t \n\t# indented\n quorum \t none \n"
        + f"log\t{LOG_PQ.vkey}\n  witness W {ED[1].vkey}   https://w.example/ \n".encode()
    )
    policy = parse_policy(data)
    assert policy.quorum == "none"
    assert policy.witnesses["W"].url == "https://w.example/"
    assert parse_policy(format_policy(policy)) == policy


def test_names_are_octets():
    keys = {n: str(ED[n].vkey).encode() for n in ED}
    data = b"witness K %b\nwitness \xe2\x84\xaa %b\n" % (keys[1], keys[2])
    data += b"witness \xff\xa0 %b https://\xff/\ngroup \xc2\xa0 any \xff\xa0\nquorum \xc2\xa0\n" % keys[3]
    policy = parse_policy(data)
    assert len(policy.witnesses) == 3
    assert policy.satisfied(vkeys(ED[3]))
    assert parse_policy(format_policy(policy)) == policy
    assert b"\xff\xa0" in format_policy(policy)


def test_a_hash_mark_inside_a_line_is_no_comment():
    policy = parse_policy(f"witness #1 {ED[1].vkey} https://w.example/#top\nquorum #1\n".encode())
    assert policy.witnesses["#1"].url == "https://w.example/#top"
    with pytest.raises(EncodingError):
        parse_policy(f"witness W {ED[1].vkey} https://w.example/ # mine\nquorum W\n".encode())


def test_all_any_and_numbers():
    for word, threshold in (("all", 3), ("any", 1), ("2", 2), ("1", 1), ("3", 3)):
        assert singles(f"group g {word} W1 W2 W3", "quorum g").groups["g"].threshold == threshold


def test_thirty_two_and_more_of_everything():
    logs = [signer_from_seed(f"log{n}.example", ED25519, seed(f"log{n}")).vkey for n in range(40)]
    cosigners = [signer_from_seed(f"c{n}.example", COSIGNATURE_ED25519, seed(f"c{n}")).vkey for n in range(40)]
    lines = [f"log {vkey}" for vkey in logs]
    for n, vkey in enumerate(cosigners):
        lines += [f"witness c{n} {vkey}", f"group g{n} all c{n}" + (f" g{n - 1}" if n else "")]
    policy = parse_policy(text_of(*lines, "quorum g39"))
    assert policy.satisfied(cosigners)
    assert not policy.satisfied(cosigners[1:])


BAD = {
    "no quorum": SINGLES,
    "nothing": [],
    "two quorums": [*SINGLES, "quorum W1", "quorum W1"],
    "two quorums none": ["quorum none", "quorum none"],
    "undefined quorum": [*SINGLES, "quorum W9"],
    "quorum before its definition": ["quorum W1", *SINGLES],
    "quorum of two": [*SINGLES, "quorum W1 W2"],
    "bare quorum": ["quorum"],
    "unknown word": ["wintess W x", "quorum none"],
    "word in capitals": [*SINGLES, "Quorum W1"],
    "a log without key": ["log", "quorum none"],
    "a log with three": [f"log {LOG_ED.vkey} https://a https://b", "quorum none"],
    "a cosigner as log": [f"log {ED[1].vkey}", "quorum none"],
    "a log as witness": [f"witness W {LOG_ED.vkey}", "quorum W"],
    "a bad key": [f"log {LOG_ED.vkey}x", "quorum none"],
    "a witness without key": ["witness W", "quorum none"],
    "a witness twice": [SINGLES[0], f"witness W1 {ED[2].vkey}", "quorum W1"],
    "a key twice": [SINGLES[0], f"witness W2 {ED[1].vkey}", "quorum W1"],
    "a log key twice": [f"log {LOG_ED.vkey}", f"log {LOG_ED.vkey}", "quorum none"],
    "a key twice under two names": [
        SINGLES[0], f"witness W2 {signer_from_seed('x', COSIGNATURE_ED25519, seed('w1')).vkey}", "quorum W1",
    ],
    "a log key twice under two names": [
        f"log {LOG_ED.vkey}", f"log {signer_from_seed('x', ED25519, seed('log')).vkey}", "quorum none",
    ],
    "reserved witness": [f"witness none {ED[1].vkey}", "quorum none"],
    "reserved group": [*SINGLES, "group none any W1", "quorum none"],
    "reserved member": [*SINGLES, "group g any none", "quorum g"],
    "group without members": [*SINGLES, "group g any", "quorum g"],
    "group of nobody": [*SINGLES, "group g 1", "quorum g"],
    "group before its members": ["group g any W1", *SINGLES, "quorum g"],
    "group of itself": [*SINGLES, "group g any g", "quorum g"],
    "group with a witness's name": [*SINGLES, "group W1 any W2", "quorum W1"],
    "group twice": [*SINGLES, "group g any W1", "group g any W2", "quorum g"],
    "threshold of zero": [*SINGLES, "group g 0 W1", "quorum g"],
    "threshold too high": [*SINGLES, "group g 2 W1", "quorum g"],
    "threshold with a sign": [*SINGLES, "group g +1 W1", "quorum g"],
    "threshold with a zero": [*SINGLES, "group g 01 W1", "quorum g"],
    "threshold in words": [*SINGLES, "group g two W1 W2", "quorum g"],
    "member twice in a group": [*SINGLES, "group g 1 W1 W1", "quorum g"],
    "member of two groups": [*SINGLES, "group g any W1", "group h any W1 W2", "quorum h"],
    "carriage return": ["quorum none\r"],
    "vertical tab": ["quorum\vnone"],
    "delete": ["# \x7f", "quorum none"],
    "Unicode space": ["quorum\u00a0none"],
}


def test_a_threshold_that_is_none_is_told_what_it_may_be():
    with pytest.raises(EncodingError, match="any, all or a number, not 'every'"):
        singles("group g every W1 W2 W3", "quorum g")


@pytest.mark.parametrize("lines", BAD.values(), ids=BAD.keys())
def test_bad_policies(lines):
    with pytest.raises(EncodingError) as caught:
        parse_policy(text_of(*lines))
    assert caught.value.name == "BadPolicy"


def test_a_policy_cut_short_is_refused():
    for data in (DEMO[:-1], DEMO + b"# cut", DEMO + b" "):
        with pytest.raises(EncodingError):
            parse_policy(data)
    with pytest.raises(EncodingError):
        parse_policy(DEMO + b"#" * (1 << 20) + b"\n")


def test_the_line_is_named():
    with pytest.raises(EncodingError) as caught:
        parse_policy(b"\nquorum none\nlog x\n")
    assert caught.value.message.startswith("line 3: ")


def test_policies_that_cannot_be():
    witness = Witness("W", ED[1].vkey)
    for arguments in (
        {"quorum": "W"},
        {"witnesses": {"V": witness}, "quorum": "none"},
        {"witnesses": {"W": witness}, "groups": {"g": Group("h", 1, ("W",))}},
        {"witnesses": {"W": witness}, "groups": {"g": Group("g", 1, ("X",))}},
        {"witnesses": {"W": witness}, "groups": {"g": Group("g", 2, ("W",))}},
        {"witnesses": {"": Witness("", ED[1].vkey)}},
        {"logs": (LogKey(ED[1].vkey),)},
    ):
        with pytest.raises(EncodingError):
            Policy(**arguments)
    for name in ("a b", "a\nb", "a\tb", "\ud800"):
        with pytest.raises(EncodingError):
            format_policy(Policy(witnesses={name: Witness(name, ED[1].vkey)}))
    with pytest.raises(EncodingError):
        format_policy(Policy(logs=(LogKey(LOG_ED.vkey, "a b"),)))


# -- quorums


def test_satisfied_and_shortfall():
    policy = parse_policy(DEMO)
    one = vkeys(ED[1], PQ[1])
    two = vkeys(ED[2], PQ[2])
    assert not policy.satisfied([])
    assert not policy.satisfied(one)
    assert policy.satisfied(one + two)
    assert policy.satisfied(set(one + two))
    # Half a witness is none.
    assert not policy.satisfied(vkeys(ED[1], ED[2], ED[3]))
    assert policy.shortfall([]) == (0, 2)
    assert policy.shortfall([*one, ED[2].vkey]) == (1, 2)
    assert policy.shortfall(one + two) == (2, 2)
    assert policy.shortfall(one, "w1") == (2, 2)
    # Keys outside the policy, the log's among them, count for nothing.
    assert not policy.satisfied([*one, LOG_PQ.vkey, ED[4].vkey])


def test_a_single_witness_and_no_quorum():
    policy = singles("quorum W1")
    assert policy.satisfied(vkeys(ED[1])) and not policy.satisfied(vkeys(ED[2]))
    assert policy.shortfall([]) == (0, 1) and policy.shortfall(vkeys(ED[1])) == (1, 1)
    policy = singles("quorum none")
    assert policy.satisfied([]) and policy.shortfall([]) == (0, 0) and policy.as_of({}, NOW) is None


def test_as_of():
    policy = singles("group g 2 W1 W2 W3", "quorum g")
    times = {ED[1].vkey: 100, ED[2].vkey: 300, ED[3].vkey: 200}
    assert policy.as_of(times, 1000) == 200
    assert policy.as_of({ED[1].vkey: 100}, 1000) is None
    assert policy.as_of({}, 1000) is None
    # 300 seconds of another clock's haste are forgiven, no more.
    assert policy.as_of(times, 0) == 200
    assert policy.as_of({**times, ED[3].vkey: 301}, 0) == 100
    assert policy.as_of({ED[2].vkey: 301, ED[3].vkey: 301}, 0) is None
    assert policy.as_of({ED[2].vkey: 301, ED[3].vkey: 301}, 1) == 301


# -- checkpoints


def signed(*signers, time=NOW):
    return sign_checkpoint(CHECKPOINT, signers, time)


def test_open_checkpoint():
    policy = parse_policy(DEMO)
    everyone = [*PQ.values(), *(ED[n] for n in PQ)]
    opened = policy.open_checkpoint(signed(LOG_PQ, LOG_ED, *everyone, ED[5]), NOW + 60)
    assert opened.checkpoint == CHECKPOINT
    assert [item.vkey for item in opened.log] == [LOG_PQ.vkey]
    assert {item.vkey for item in opened.cosignatures} == set(vkeys(*everyone))
    assert opened.as_of == NOW


def test_any_one_listed_log_suffices():
    policy = singles("quorum W1")
    logs = (LogKey(OTHER_LOG.vkey), LogKey(LOG_ED.vkey), LogKey(LOG_PQ.vkey))
    policy = Policy(logs, policy.witnesses, policy.groups, policy.quorum)
    for log in (LOG_ED, LOG_PQ):
        assert policy.open_checkpoint(signed(log, ED[1]), NOW).checkpoint == CHECKPOINT
    with pytest.raises(Invalid) as caught:
        policy.open_checkpoint(signed(OTHER_LOG, ED[1]), NOW)
    assert caught.value.name == "BadLogSignature"


def test_refused_checkpoints():
    policy = parse_policy(DEMO)
    pair = [ED[1], PQ[1], ED[2], PQ[2]]

    def refuse(name, data, error=Invalid, now=NOW):
        with pytest.raises(error) as caught:
            policy.open_checkpoint(data, now)
        assert caught.value.name == name
        return caught.value

    refuse("WrongLog", sign_checkpoint(Checkpoint("other", 5, bytes(32)), [LOG_ED, *pair], NOW))
    refuse("BadLogSignature", signed(LOG_ED, *pair))
    note = parse_note(signed(LOG_PQ, *pair))
    for place, name in ((0, "BadLogSignature"), (1, "BadCosignature"), (4, "BadCosignature")):
        lines = list(note.signatures)
        blob = bytearray(lines[place].blob)
        blob[-1] ^= 1
        lines[place] = SignatureLine(lines[place].name, lines[place].key_id, bytes(blob))
        data = note.text + b"\n" + b"".join(map(format_signature_line, lines))
        refuse(name, data)
    error = refuse("TooFewWitnesses", signed(LOG_PQ, ED[1], PQ[1], ED[2]), PolicyUnmet)
    assert (error.have, error.need) == (1, 2)
    refuse("TooFewWitnesses", signed(LOG_PQ, *pair), PolicyUnmet, NOW - 301)
    assert policy.open_checkpoint(signed(LOG_PQ, *pair), NOW - 300).as_of == NOW
    refuse("BadNote", b"x", EncodingError)


def test_a_log_never_cosigns_itself():
    """A policy that lists the log's key, or another of its name, as witness counts neither."""
    policy = parse_policy(text_of(f"log {LOG_PQ.vkey}", f"witness W {LOG_PQ.vkey}", "quorum W"))
    with pytest.raises(PolicyUnmet):
        policy.open_checkpoint(signed(LOG_PQ), NOW)
    twin = signer_from_seed(ORIGIN, COSIGNATURE_MLDSA44, seed("twin"))
    policy = parse_policy(text_of(f"log {LOG_PQ.vkey}", f"witness W {twin.vkey}", "quorum W"))
    with pytest.raises(PolicyUnmet):
        policy.open_checkpoint(signed(LOG_PQ, twin), NOW)


# -- safety


def unsafe(policy, **options):
    with pytest.raises(PolicyUnmet) as caught:
        policy.check_safe(**options)
    assert caught.value.name == "UnsafePolicy"
    return caught.value.message


def test_unsafe_policies():
    assert "none" in unsafe(singles("quorum none"))
    unsafe(parse_policy(text_of(f"log {LOG_PQ.vkey}", f"witness W {LOG_PQ.vkey}", "quorum W")))
    twin = signer_from_seed(ORIGIN, COSIGNATURE_MLDSA44, seed("twin"))
    unsafe(parse_policy(text_of(f"log {LOG_PQ.vkey}", f"witness W {twin.vkey}", "quorum W")))
    # One Ed25519 key under two types is one key.
    same = signer_from_seed("w.example", COSIGNATURE_ED25519, seed("log"))
    unsafe(parse_policy(text_of(f"log {LOG_ED.vkey}", f"witness W {same.vkey}", "quorum W")))


@pytest.mark.parametrize(
    ("lines", "splits"),
    [
        (["quorum W1"], False),
        (["group g 1 W1", "quorum g"], False),
        (["group g any W1 W2", "quorum g"], True),
        (["group g all W1 W2", "quorum g"], False),
        (["group g 2 W1 W2 W3", "quorum g"], False),
        (["group g 2 W1 W2 W3 W4", "quorum g"], True),
        (["group g 3 W1 W2 W3 W4", "quorum g"], False),
        (["group g 3 W1 W2 W3 W4 W5", "quorum g"], False),
        (["group a any W1 W2", "group b all a W3", "quorum b"], False),
        (["group a any W1 W2", "group b 2 W3 W4 W5", "group c all a b", "quorum c"], False),
        (["group a any W1 W2", "group b any W3 W4", "group c all a b", "quorum c"], True),
        (["group a any W1 W2", "group b any a W3", "quorum b"], True),
        (["group a any W1 W2", "group b 2 a W3 W4", "quorum b"], True),
        (["group a any W1 W2", "group b 3 a W3 W4", "quorum b"], False),
        (["group a any W1 W2", "quorum W3"], False),
    ],
)
def test_splittable(lines, splits):
    policy = singles(*lines)
    assert policy.splittable() is splits
    if splits:
        unsafe(policy)
    else:
        policy.check_safe()


@pytest.mark.parametrize(
    ("threshold", "members", "splits"),
    [
        ("all", "w1-ed w1-pq", False),
        ("any", "w1-ed w1-pq", False),
        ("2", "w1-ed w1-pq w2-ed", False),
        # Counting keys, not cosigners, two witnesses would reach this threshold apart.
        ("2", "w1-ed w1-pq w2-ed w2-pq", True),
        ("3", "w1-ed w1-pq w2-ed w2-pq", False),
        ("3", "w1-ed w1-pq w2-ed w2-pq w3-ed w3-pq", False),
        ("1", "w1-ed w2-ed", True),
        ("2", "w1-ed w1-pq w2-ed w3-ed", True),
    ],
)
def test_the_keys_of_one_cosigner_stay_together(threshold, members, splits):
    witnesses = [line for line in PAIRS if line.startswith("witness")]
    policy = parse_policy(text_of(*witnesses, f"group g {threshold} {members}", "quorum g"))
    assert policy.splittable() is splits
    assert brute_force_split(policy) is splits


def brute_force_split(policy):
    """Two disjoint sets of cosigners, each of which alone makes the quorum?"""
    names = sorted({witness.vkey.name for witness in policy.witnesses.values()})
    sides = chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
    for side in sides:
        one = [w.vkey for w in policy.witnesses.values() if w.vkey.name in side]
        other = [w.vkey for w in policy.witnesses.values() if w.vkey.name not in side]
        if policy.satisfied(one) and policy.satisfied(other):
            return True
    return False


def test_the_demo_policy_cannot_be_split():
    assert not brute_force_split(parse_policy(DEMO))


VERIFIER_LINES = [*SINGLES, "group witnesses all W1 W2", "group verifiers all W3 W4"]


def test_verifiers():
    parse_policy(text_of(*VERIFIER_LINES, "group q all witnesses verifiers", "quorum q")).check_safe(True)
    for lines in (
        [*SINGLES, "quorum W1"],
        [*SINGLES, "group witnesses all W1", "quorum witnesses"],
        [*SINGLES, "group verifiers all W1", "quorum verifiers"],
        [*VERIFIER_LINES, "quorum witnesses"],
        [*VERIFIER_LINES, "quorum verifiers"],
        [*VERIFIER_LINES, "quorum W5"],
    ):
        policy = parse_policy(text_of(*lines))
        policy.check_safe()
        unsafe(policy, require_verifiers=True)


def test_a_cosigner_in_both_roles():
    policy = parse_policy(text_of(
        f"witness a {ED[1].vkey}", f"witness b {PQ[1].vkey}", "group witnesses all a", "group verifiers all b",
        "group q all witnesses verifiers", "quorum q",
    ))
    policy.check_safe()
    unsafe(policy, require_verifiers=True)


def test_too_few_verifiers_are_named():
    lines = [f"log {LOG_ED.vkey}", *VERIFIER_LINES, "group q all witnesses verifiers", "quorum q"]
    policy = parse_policy(text_of(*lines))
    for signers, name, have, need in (
        ([ED[1], ED[2], ED[3]], "TooFewVerifiers", 1, 2),
        ([ED[1], ED[3], ED[4]], "TooFewWitnesses", 1, 2),
        ([], "TooFewWitnesses", 0, 2),
    ):
        with pytest.raises(PolicyUnmet) as caught:
            policy.open_checkpoint(signed(LOG_ED, *signers), NOW)
        assert (caught.value.name, caught.value.have, caught.value.need) == (name, have, need)


def test_a_note_of_the_policys_signers_survives_formatting():
    data = signed(LOG_PQ, ED[1])
    assert format_note(parse_note(data)) == data


@pytest.mark.parametrize(("log", "cosigner"), [(ORIGIN, f"{ORIGIN}/map"), (f"{ORIGIN}/map", ORIGIN)])
def test_the_log_of_the_map_does_not_vouch_for_the_log_nor_the_reverse(log, cosigner):
    listed = signer_from_seed(log, COSIGNATURE_MLDSA44, seed("one"))
    own = signer_from_seed(cosigner, COSIGNATURE_MLDSA44, seed("another"))
    unsafe(parse_policy(text_of(f"log {listed.vkey}", f"witness w {own.vkey}", "quorum w")))
