"""A witness and a model of the specification, told the same story side by side: every answer must be the model's.

Many clients submit for several origins: growth, the same size again, forks, wrong proofs, old sizes too old or too new,
keys that are strangers', spoilt or retired. Operators add and retire keys, lift freezes, restart, and now and then the
process dies at a hook. Between the judgement of a submission and its commit others may come whole. The clock steps.

Whatever happens: no two cosignatures were ever answered whose trees contradict each other.

The witness is asked in both ways: by one who waits, and as the daemon asks, whose answers come from the thread that wrote.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ktlog.errors import UsageError
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.cosignature import subtree_message
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.note import (
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    format_note,
    open_note,
    parse_signature_lines,
    signer_from_seed,
)
from ktlog.tlog.subtree import prove_subtree
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, root_hash
from tests.witness_log import NOW, join
from tests.witness_model import FORGED, Model, ModelLog, Submission, Tree, Verdict, contradict, is_subtree
from tests.witness_site import Served
from witness.keys import derive_signers
from witness.limits import Limits
from witness.store import WitnessStore, hash_origin
from witness.witness import CHECKED, HOOKS, Witness

ORIGINS = ("one.example/log", "two.example/log", "three.example/log")
KEYS = ("k0", "k1", "k2")
STRANGER = "stranger"
SIZES = 9
NAME = "example.com/w1"
GARBAGE = b"\x2a" * 32


@cache
def own_signers():
    return derive_signers(bytes(32), NAME)


@cache
def signer(origin: str, key: str):
    seed = ORIGINS.index(origin) * 10 + (*KEYS, STRANGER).index(key) + 1
    return signer_from_seed(origin, ED25519, bytes([seed]) * 32)


def tree(branch: str, size: int) -> Tree:
    """"a" and "b" have nothing in common, "c" is "a" up to four leaves."""
    if branch == FORGED:
        return (f"{FORGED} {size}",) * max(1, size)  # no tree of another size begins with it
    return tuple(f"{'a' if branch == 'c' and index < 4 else branch}{index}" for index in range(size))


def forged(leaves: Tree) -> bool:
    return bool(leaves) and leaves[0].startswith(FORGED)


@cache
def reader(leaves: Tree):
    return leaf_reader([hash_leaf(leaf.encode()) for leaf in leaves])


@cache
def root(leaves: Tree) -> bytes:
    return GARBAGE if forged(leaves) else root_hash(len(leaves), reader(leaves))


@cache
def note(origin: str, size: int, leaves: Tree, keys: tuple[str, ...], spoilt: frozenset[str], extended: bool) -> bytes:
    text = format_checkpoint(Checkpoint(origin, size, root(leaves), ("more",) if extended else ()))
    lines = [
        signer(origin, key).sign(text + b"?" if key in spoilt else text, NOW) for key in keys
    ]
    return format_note(Note(text, tuple(lines)))


def body(asked: Submission) -> bytes:
    proof: list[bytes] = []
    if asked.proof in ("right", "more") and 0 < asked.old < asked.size and not forged(asked.tree):
        proof = prove_consistency(asked.old, asked.size, reader(asked.tree))
    elif asked.proof == "right" and 0 < asked.old < asked.size:
        proof = [GARBAGE]
    if asked.proof in ("garbage", "more"):
        proof = [*proof, GARBAGE]
    data = join(asked.old, proof, note(asked.origin, asked.size, asked.tree, asked.signers, asked.spoilt, asked.extended))
    return b"old 0" + data[4:] if asked.malformed else data


class Died(BaseException):
    """The process, at a hook."""


branches = st.sampled_from(["a"] * 8 + ["b", "c", FORGED])
signing = st.sampled_from([["k0", "k1"]] * 8 + [["k0"], ["k1"], ["k2"], ["k2", "k0"], [*KEYS, STRANGER], [STRANGER]])
olds = st.sampled_from(["latest"] * 10 + ["believed", "believed", "one less", "one more", "zero"])
proofs = st.sampled_from(["right"] * 10 + ["none", "garbage", "more"])
drafts = st.fixed_dictionaries({
    "origin": st.sampled_from([*ORIGINS[:2] * 4, ORIGINS[2]]), "client": st.integers(0, 3), "size": st.integers(0, SIZES), "grow": st.sampled_from([True, True, False]),
    "branch": branches, "keys": signing, "old": olds, "proof": proofs, "spoilt": st.sampled_from([()] * 14 + [KEYS[:1], KEYS[1:2]]),
    "odd": st.sampled_from([""] * 30 + ["extended", "malformed"]),
})


class Story(RuleBasedStateMachine):
    answered = Bundle("answered")
    asked_by_daemon = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="ktlog-witness-")
        self.path = Path(self.directory.name)
        self.model = Model()
        self.now = NOW
        self.believed: dict[tuple[int, str], int] = {}
        self.said: dict[str, set[Tree]] = {origin: set() for origin in ORIGINS}
        self.at_hook = lambda name: None
        self.ticks = 0
        WitnessStore.create(self.path / "witness.db", NAME, [one.vkey for one in own_signers()], NOW).close()
        self.start()
        for origin in ORIGINS[:2]:
            self.store.add_log(origin, [signer(origin, key).vkey for key in KEYS[:2]], NOW)
            self.model.logs[origin] = ModelLog(list(KEYS[:2]))

    def start(self) -> None:
        self.store = WitnessStore.open(self.path / "witness.db", reach=self.reach)
        self.store.keep_mark(self.path / "mark")
        self.witness = Witness(
            self.store, own_signers(), clock=lambda: self.now, reach=self.reach, limits=Limits(self.tick)
        )
        self.asked = Served(self.witness) if self.asked_by_daemon else self.witness

    def tick(self) -> float:
        self.ticks += 1
        return float(self.ticks)

    def reach(self, name: str) -> None:
        self.at_hook(name)

    def stop(self) -> None:
        turns = self.store._group._turns
        if turns is not None:  # else a thread for each of many starts would wait for ever
            self.store._group._lead = sys.exit
            turns.release()
        self.store.close()

    def teardown(self) -> None:
        self.stop()
        self.directory.cleanup()

    def on_the_side(self, beside: bool):
        """The store as a command sees it: of this process, or of another."""
        return WitnessStore.open(self.path / "witness.db", beside_daemon=True) if beside else self.store

    # --- submissions

    def drawn(self, draft: dict) -> Submission:
        origin = draft["origin"]
        log = self.model.logs.get(origin, ModelLog([]))
        size = min(SIZES, log.size + draft["size"] % 3) if draft["grow"] else draft["size"]
        old = {
            "latest": log.size, "one less": max(0, log.size - 1), "one more": log.size + 1, "zero": 0,
            "believed": self.believed.get((draft["client"], origin), 0),
        }[draft["old"]]
        branch = draft["branch"]
        if branch == "a" and log.latest is not None and draft["grow"]:  # the log itself goes on where it was
            branch = log.latest[1][-1][0] if log.latest[1] and not forged(log.latest[1]) else "a"
            branch = "c" if branch == "c" or (log.latest[1] and log.latest[1][-1].startswith("c")) else branch
        return Submission(
            origin, old, size, tree(branch, size), tuple(draft["keys"]), draft["proof"], frozenset(draft["spoilt"]),
            draft["odd"] == "extended", draft["odd"] == "malformed",
        )

    def submit(self, draft: dict, between: tuple[dict, ...] = (), dies: str = "") -> Verdict | None:
        """Send it, and others between its judgement and its commit; hold the answer against the model's."""
        asked = self.drawn(draft)
        log = self.model.logs.get(asked.origin)
        first = self.model.judge(asked, self.now)
        before = log and log.version
        waiting = list(between)
        reached: list[str] = []

        def at_hook(name: str) -> None:
            reached.append(name)
            while waiting and name == CHECKED:
                outer, self.at_hook = self.at_hook, lambda name: None
                self.do(waiting.pop(0))
                self.at_hook = outer
            if name == dies:
                if threading.current_thread() is not threading.main_thread():
                    self.asked.give_up(Died())  # else nobody would tell who waits
                raise Died

        outer, self.at_hook = self.at_hook, at_hook
        try:
            answer = self.asked.add_checkpoint(body(asked))
        except Died:
            answer = None
        finally:
            self.at_hook = outer
        holds = first.status == 200 and log is not None and log.version == before
        expected = first if CHECKED not in reached or holds else self.model.judge(asked, self.now)
        if CHECKED in reached and holds and answer is not None and not self.signed_at(first.time, answer):
            # It had remembered something older, and judged again at another time.
            expected = self.model.judge(asked, self.now)
        if dies in reached:  # nobody has an answer, and what was committed before counts
            if expected.status != 200:
                self.model.refused(asked, expected)  # evidence is counted by the mark, too
            elif dies not in HOOKS[:2]:
                self.model.accepted(asked, expected)
            self.restart()
            return None
        self.compare(asked, expected, answer)
        self.believed[draft["client"], asked.origin] = self.model.logs[asked.origin].size if log else 0
        return expected

    @staticmethod
    def signed_at(time: int, answer) -> bool:
        if answer.status != 200:
            return False
        lines = parse_signature_lines(answer.body)
        return all(int.from_bytes(line.blob[:8], "big") == time for line in lines)

    def compare(self, asked: Submission, expected: Verdict, answer) -> None:
        said = (answer.status, answer.body if expected.status == 409 else answer.reason)
        wanted = (expected.status, expected.reason.encode() if expected.status == 409 else expected.reason)
        assert said == wanted or (asked.malformed and answer.status == 400), (asked, expected, answer)
        assert answer.content_type == ("text/x.tlog.size" if expected.status == 409 else "text/plain; charset=utf-8")
        if expected.status != 200:
            assert b"\xe2\x80\x94" not in answer.body
            self.model.refused(asked, expected)
            return
        lines = parse_signature_lines(answer.body)
        text = format_checkpoint(Checkpoint(asked.origin, asked.size, root(asked.tree)))
        verified = open_note(Note(text, lines), [one.vkey for one in own_signers()])
        assert [one.timestamp for one in verified] == [expected.time] * len(own_signers()) and len(lines) == len(verified)
        self.model.accepted(asked, expected)
        assert not any(contradict(asked.tree, other) for other in self.said[asked.origin]), asked
        self.said[asked.origin].add(asked.tree)

    def do(self, what: dict) -> None:
        """One of the things that may come between."""
        kind = what.get("kind", "submit")
        if kind == "submit":
            self.submit(what)
        elif kind == "retire":
            self.retire(what["origin"], what["key"], True, what["beside"])
        elif kind == "clock":
            self.now += what["by"]
        else:
            self.unfreeze(what["origin"], what["beside"])

    # --- what happens

    @rule(target=answered, draft=drafts)
    def a_submission(self, draft):
        asked = self.drawn(draft)
        verdict = self.submit(draft)
        return (asked, verdict.time) if verdict.status == 200 else None

    @rule(draft=drafts, branch=st.sampled_from(["b", "c", FORGED]), key=st.sampled_from(["k0", "k1"]))
    def a_fork(self, draft, branch, key):
        size = self.model.logs.get(draft["origin"], ModelLog([])).size
        self.submit({**draft, "grow": False, "size": size, "branch": branch, "keys": [key], "odd": "", "spoilt": ()})

    @rule(draft=drafts, between=st.lists(drafts, min_size=1, max_size=2), same=st.booleans())
    def a_submission_while_others_come(self, draft, between, same):
        if same:
            between = [{**one, "origin": draft["origin"]} for one in between]
        self.submit(draft, tuple(between))

    @rule(draft=drafts, what=st.one_of(
        st.fixed_dictionaries({"kind": st.just("retire"), "key": st.sampled_from(KEYS), "beside": st.booleans()}),
        st.fixed_dictionaries({"kind": st.just("clock"), "by": st.integers(-40, 40)}),
    ))
    def a_submission_while_something_is_done(self, draft, what):
        self.submit(draft, ({**what, "origin": draft["origin"]},))

    @rule(origin=st.sampled_from(ORIGINS[:2]), what=st.sampled_from(["a fork", "a fork", "retired", "grown"]), beside=st.booleans())
    def an_honest_submission_is_overtaken(self, origin, what, beside):
        honest = {
            "origin": origin, "client": 0, "size": 1, "grow": True, "branch": "a", "keys": ["k0", "k1"], "old": "latest",
            "proof": "right", "spoilt": (), "odd": "",
        }
        if self.model.logs[origin].frozen:
            self.unfreeze(origin, beside)
        for key in KEYS[:2]:
            self.add_key(origin, key, True, beside)
        fork = {**honest, "size": self.model.logs[origin].size, "grow": False, "branch": FORGED}
        self.submit(honest, {
            "a fork": (fork,), "grown": (honest,),
            "retired": tuple({"kind": "retire", "origin": origin, "key": key, "beside": beside} for key in KEYS[:2]),
        }[what])

    @rule(draft=drafts, hook=st.sampled_from(HOOKS))
    def a_submission_that_kills(self, draft, hook):
        self.submit(draft, dies=hook)

    @rule(by=st.integers(-30, 60))
    def the_clock_steps(self, by):
        self.now += by

    @rule()
    def restart(self):
        self.stop()
        self.start()

    @rule(origin=st.sampled_from(ORIGINS), key=st.sampled_from(KEYS), again=st.booleans(), beside=st.booleans())
    def add_key(self, origin, key, again, beside):
        log = self.model.logs.get(origin)
        vkey = signer(origin, key).vkey
        store = self.on_the_side(beside)
        try:
            added, refused = store.add_log(origin, [vkey], NOW, again=again), ""
        except UsageError as error:
            added, refused = (), error.name
        finally:
            if beside:
                store.close()
        if log is None:
            self.model.logs[origin] = ModelLog([key])
            assert (added, refused) == ((vkey,), "")
        elif key in log.retired and not again:
            assert refused == "KeyRetired"
        else:
            assert (added, refused) == (() if key in log.trusted else (vkey,), "")
            if key not in log.trusted:
                log.trusted.append(key)
                log.key_changes += 1
            if key in log.retired:
                log.retired.remove(key)

    @rule(origin=st.sampled_from(ORIGINS), key=st.sampled_from(KEYS), leave_none=st.booleans(), beside=st.booleans())
    def retire(self, origin, key, leave_none, beside):
        log = self.model.logs.get(origin, ModelLog([]))
        vkey = signer(origin, key).vkey
        store = self.on_the_side(beside)
        try:
            done, refused = store.retire_keys([(origin, vkey)], NOW, "", leave_none=leave_none), ""
        except UsageError as error:
            done, refused = (), error.name
        finally:
            if beside:
                store.close()
        if key in log.retired:
            assert (done, refused) == ((), "")
        elif key not in log.trusted:
            assert refused == "UnknownKey"
        elif log.trusted == [key] and not leave_none:
            assert refused == "LastKey"
        else:
            assert (done, refused) == (((origin, vkey),), "")
            log.trusted.remove(key)
            log.retired.append(key)
            log.key_changes += 1

    @rule(origin=st.sampled_from(ORIGINS), beside=st.booleans())
    def unfreeze(self, origin, beside):
        log = self.model.logs.get(origin, ModelLog([]))
        store = self.on_the_side(beside)
        try:
            lifted = store.lift_freeze(origin, self.now)
        except UsageError as error:
            lifted = error.name
        finally:
            if beside:
                store.close()
        if not beside:
            self.store.forget(origin)
        assert lifted == (len(log.frozen) or "NotFrozen")
        log.frozen.clear()

    @rule(origin=st.sampled_from(ORIGINS))
    def a_monitor_reads(self, origin):
        log = self.model.logs.get(origin)
        shown = self.store.cosigned_note(hash_origin(origin))
        if log is None or log.latest is None:
            assert shown is None
            return
        size, leaves, time, by = log.latest
        shown_note, checkpoint = parse_signed_checkpoint(shown)
        assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (origin, size, root(leaves))
        keys = [*(signer(origin, key).vkey for key in by), *(one.vkey for one in own_signers())]
        verified = open_note(shown_note, keys)
        assert len(verified) == len(shown_note.signatures) == len(keys)
        assert {one.timestamp for one in verified[len(by):]} == {time}

    @rule(
        cosigned=answered, start=st.integers(0, SIZES), length=st.integers(0, SIZES), right=st.booleans(),
        by=st.sampled_from(["mldsa", "mldsa", "ed25519", "log"]),
    )
    def a_subtree_is_asked_for(self, cosigned, start, length, right, by):
        if cosigned is None or forged(cosigned[0].tree):
            return
        asked, time = cosigned
        leaves, end = asked.tree, start + length
        ed25519, mldsa = own_signers()
        key = {"mldsa": mldsa, "ed25519": ed25519, "log": signer(asked.origin, "k0")}[by]
        text = format_checkpoint(Checkpoint(asked.origin, asked.size, root(leaves)))
        valid = is_subtree(start, end, asked.size)
        part = root(leaves[start:end]) if valid and right else GARBAGE
        proof = prove_subtree(start, end, asked.size, reader(leaves)) if valid else []
        lines = "".join(f"{encode_base64(one)}\n" for one in (part, *proof))
        answer = self.witness.sign_subtree(
            f"subtree {start} {end}\n{lines}\n".encode() + format_note(Note(text, (key.sign(text, time),)))
        )
        log = self.model.logs[asked.origin]
        if not valid:
            expected = (400, "NoSubtree")
        elif log.frozen:
            expected = (403, "LogFrozen")
        elif by != "mldsa":
            expected = (403, "NoSubtreeKey" if by == "ed25519" else "NotCosigned")
        else:
            expected = (200, "") if right else (422, "BadSubtreeProof")
        assert (answer.status, answer.reason) == expected
        if answer.status == 200:
            (vkey,) = (one.vkey for one in own_signers() if one.vkey.algorithm == COSIGNATURE_MLDSA44)
            message = subtree_message(NAME, 0, asked.origin, start, end, part)
            vkey.mldsa44.verify(decode_base64(answer.body.decode().strip()), message)

    @invariant()
    def the_same_is_on_record(self):
        with self.store.reading() as database:
            forks = database.execute("SELECT origin, size FROM evidence").fetchall()
            late = database.execute("SELECT origin, key_id FROM retired_evidence").fetchall()
        assert sorted(forks) == sorted((origin, size) for origin, log in self.model.logs.items() for size in log.forks)
        assert sorted(late) == sorted(
            (origin, signer(origin, key).vkey.key_id) for origin, log in self.model.logs.items() for key in log.forked_keys
        )


class DaemonsStory(Story):
    asked_by_daemon = True


def run(way: type[Story], examples: int, steps: int) -> None:
    examples *= int(os.environ.get("KTLOG_FUZZ", "1") or 1)
    run_state_machine_as_test(way, settings=settings(
        settings.default, max_examples=examples, stateful_step_count=steps
    ))


@pytest.fixture(autouse=True)
def silence(caplog, monkeypatch):
    caplog.set_level(logging.CRITICAL)
    unforeseen = threading.excepthook
    monkeypatch.setattr(threading, "excepthook", lambda told: told.exc_type in (Died, SystemExit) or unforeseen(told))


@pytest.fixture(params=[Story, DaemonsStory], ids=["waiting", "as the daemon asks"])
def way(request):
    return request.param


def test_the_witness_answers_what_the_model_answers(way):
    run(way, 16, 30)


@pytest.mark.slow
def test_the_witness_answers_what_the_model_answers_for_longer(way):
    run(way, 80, 60)
