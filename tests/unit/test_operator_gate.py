"""Who is let in: so many at a time, nobody more than a share, nobody to wait for long; and all is given back."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlog.errors import MessageRejected, RateLimited
from ktlog.operator.gate import SHUT_SECONDS, WAIT_SECONDS, Gate
from ktlog.operator.request import Source

NOW = 1_800_000_000


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def gate(clock) -> Gate:
    """Six at a time, four of them of one instance, two hashes at a time."""
    return Gate(6, 4, 2, clock, lambda: NOW)


def source(number: int, domain: str | None = None) -> Source:
    return Source(f"192.0.2.{number}", domain)


def refusal(action) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        action()
    return caught.value


def entered(gate: Gate, whose: Source, **options) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(gate.enter(whose, **options))
    return stack


def is_empty(gate: Gate) -> bool:
    return (gate._under_way, gate._hashes, dict(gate._of)) == (0, 0, {})


def test_so_many_at_a_time_and_one_more_when_one_has_left(gate):
    inside = [entered(gate, source(number)) for number in range(6)]
    refused = refusal(lambda: entered(gate, source(7)))
    assert (refused.code, refused.retry_after_ms, refused.limit, refused.reset) == ("overloaded", 1000, 6, NOW + 2)
    inside.pop().close()
    inside.append(entered(gate, source(7)))
    for one in inside:
        one.close()
    assert is_empty(gate)


def test_an_address_has_a_share(gate):
    inside = [entered(gate, source(1)) for _ in range(4)]
    refused = refusal(lambda: entered(gate, source(1)))
    assert (refused.code, refused.limit) == ("too_many_at_once", 4)
    others = [entered(gate, source(number)) for number in (2, 3)]
    for one in (*inside, *others):
        one.close()
    assert is_empty(gate)


def test_one_customer_s_ipv6_addresses_are_one(gate):
    inside = [entered(gate, Source(f"2001:db8::{number}")) for number in range(1, 5)]
    assert refusal(lambda: entered(gate, Source("2001:db8::9"))).code == "too_many_at_once"
    entered(gate, Source("2001:db8:0:1::9")).close()
    for one in inside:
        one.close()


def test_an_instance_has_a_share_from_wherever_it_sends(gate):
    """As soon as a signature has proved who it is; its subdomains are it too."""
    sources = [source(number, f"n{number}.example.com") for number in range(5)]
    inside = [entered(gate, one) for one in sources]
    for one in sources[:4]:
        gate.claim(one)
    assert refusal(lambda: gate.claim(sources[4])).code == "too_many_at_once"
    other = source(6, "example.net")
    inside.append(entered(gate, other))
    gate.claim(other)
    for one in inside:
        one.close()
    assert is_empty(gate)


def test_a_refused_claim_gives_back_nothing_twice(gate):
    """What a request was never counted for, its end does not take off."""
    first = [source(number, "example.com") for number in range(4)]
    inside = [entered(gate, one) for one in first]
    for one in first:
        gate.claim(one)
    late = source(9, "example.com")
    with pytest.raises(RateLimited), gate.enter(late):
        gate.claim(late)
    assert gate._of["site example.com"] == 4
    for one in inside:
        one.close()
    assert is_empty(gate)


def test_whom_the_operator_exempts_has_no_share_and_no_more_than_all(gate):
    exempt = [source(1, "example.com") for _ in range(6)]
    inside = [entered(gate, one, exempt=True) for one in exempt]
    for one in exempt:
        gate.claim(one)
    assert refusal(lambda: entered(gate, source(1), exempt=True)).code == "overloaded"
    for one in inside:
        one.close()
    assert is_empty(gate)


def test_who_was_never_let_in_is_not_counted(gate):
    gate.claim(source(1, "example.com"))
    assert is_empty(gate)


@pytest.mark.parametrize("error", [MessageRejected("bad_signature", "no"), KeyError("x")])
def test_a_failure_gives_the_place_back(gate, error):
    whose = source(1, "example.com")
    with pytest.raises(type(error)), gate.enter(whose):
        gate.claim(whose)
        with gate.hashing(2), gate.slot():
            raise error
    assert is_empty(gate)


def test_nobody_is_let_in_to_wait_for_long(gate, clock):
    """Those who came before need their time: what would have to wait longer is told for how long."""
    with gate.hashing(1), gate.slot():
        clock.now += 2.0
    with ExitStack() as waiting:
        for _ in range(3):
            waiting.enter_context(gate.hashing(2))  # 6 hashes of 2 s, two at a time
        assert WAIT_SECONDS < 6 * 2.0 / 2
        refused = refusal(lambda: waiting.enter_context(gate.hashing(2)))
        assert (refused.code, refused.retry_after_ms) == ("overloaded", 6000)
    with gate.hashing(2):
        pass
    assert is_empty(gate)


def test_it_is_known_whether_others_are_about_to_be_ready(gate):
    assert not gate.is_hashing()
    with gate.hashing(2):
        assert gate.is_hashing()
        with pytest.raises(ValueError, match="wrong"), gate.hashing(1):
            raise ValueError("wrong")
        assert gate.is_hashing()
    assert not gate.is_hashing()


def test_the_mean_follows_what_hashes_take(gate, clock):
    for seconds in (1.0, *[0.1] * 30):
        with gate.slot():
            clock.now += seconds
    with ExitStack() as waiting:
        for _ in range(20):
            waiting.enter_context(gate.hashing(2))


def test_when_the_sequencer_is_full_nobody_is_let_in_for_a_moment(gate, clock):
    gate.shut()
    assert refusal(lambda: entered(gate, source(1))).code == "overloaded"
    clock.now += SHUT_SECONDS
    entered(gate, source(1)).close()
    assert is_empty(gate)


def test_every_text_of_a_refusal_is_the_same_each_time(gate):
    """Its signature is then made once and sent again: refusing stays cheap."""
    inside = [entered(gate, source(number)) for number in range(6)]
    assert len({refusal(lambda: entered(gate, source(n))).message for n in range(7, 9)}) == 1  # noqa: B023
    for one in inside:
        one.close()


@pytest.mark.parametrize(("threads", "limit", "share"), [(1, 1, 1), (2, 1, 1), (4, 3, 2), (8, 6, 4), (16, 12, 8)])
def test_lookups_keep_a_quarter_of_the_threads(threads, limit, share):
    gate = Gate.for_threads(threads, 2)
    assert (gate._limit, gate._share) == (limit, share)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=60))
def test_whatever_comes_and_goes_the_counts_are_right(steps):
    gate = Gate(6, 4, 2, lambda: 0.0, lambda: NOW)
    inside: list[tuple[ExitStack, str, str | None]] = []
    for address, site, leaves in steps:
        if leaves and inside:
            inside.pop(address % len(inside))[0].close()
            continue
        whose = source(address, f"i{site}.example")
        try:
            stack = entered(gate, whose)
        except RateLimited:
            assert len(inside) == 6 or sum(one[1] == whose.ip for one in inside) == 4
            continue
        try:
            gate.claim(whose)
            inside.append((stack, whose.ip, whose.domain))
        except RateLimited:
            assert sum(one[2] == whose.domain for one in inside) == 4
            stack.close()
    assert gate._under_way == len(inside)
    for stack, *_ in inside:
        stack.close()
    assert is_empty(gate)


def test_those_that_wait_hold_no_thread_and_get_their_turns_in_order():
    gate = Gate(3, 1, 2, lambda: 0.0, lambda: NOW, places=5)
    sources = [source(number) for number in range(5)]
    inside = [ExitStack() for _ in range(5)]
    for stack, whose in zip(inside, sources, strict=True):
        stack.enter_context(gate.enter(whose, waits=True))
    with pytest.raises(RateLimited, match="overloaded"), gate.enter(source(9), waits=True):
        pass
    turns: list[int] = []
    assert [gate.hold(whose, lambda n=n: turns.append(n)) for n, whose in enumerate(sources)] == [True] * 2 + [False] * 3
    assert turns == []
    with pytest.raises(RateLimited, match="overloaded"), gate.enter(source(9)):
        pass  # there is no place
    gate.let_go(sources[0])
    assert turns == [2]
    inside[0].close()  # its thread was let go of before; its place is free now
    with gate.enter(source(9)):  # and a thread is left for one that holds its own
        assert gate._holding == 3
        gate.let_go(sources[1])
        assert turns == [2, 3]
    for whose in sources[2:4]:
        gate.let_go(whose)
    assert (turns, gate._holding) == ([2, 3, 4], 1)
    gate.let_go(sources[4])
    for stack in inside[1:]:
        stack.close()
    assert is_empty(gate) and (gate._holding, gate._turns, gate._held) == (0, 0, {})


def test_no_address_has_every_thread_while_others_wait():
    gate = Gate.for_threads(8, 2)
    turns: list[str] = []
    greedy, other = source(1), source(2)
    with ExitStack() as inside:
        for whose, count in ((greedy, 10), (other, 2)):
            for _ in range(count):
                inside.enter_context(gate.enter(whose, waits=True))
        assert [gate.hold(greedy, lambda: turns.append("greedy")) for _ in range(10)] == [True] * 4 + [False] * 6
        assert [gate.hold(other, lambda: turns.append("other")) for _ in range(2)] == [True, False]
        gate.let_go(other)
        assert turns == ["other"], "who came before it has its share"
        gate.let_go(greedy)
        assert turns == ["other", "greedy"]
        with gate.enter(source(3)):
            assert gate._holding == 6


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["wait", "go", "sync", "leave"])), max_size=80))
def test_whoever_waits_for_a_thread_gets_it(steps):
    gate = Gate.for_threads(8, 2)
    holding: list = []
    syncs: list[ExitStack] = []
    with ExitStack() as inside:
        for number, step in steps:
            whose = source(number)
            if step == "go" and holding:
                gate.let_go(holding.pop(number % len(holding)))
            elif step == "leave" and syncs:
                syncs.pop().close()
            elif step in ("wait", "sync"):
                stack = ExitStack()
                try:
                    stack.enter_context(gate.enter(whose, waits=step == "wait"))
                except RateLimited:
                    continue
                (inside.enter_context(stack) if step == "wait" else syncs.append(stack))
                if step == "wait" and gate.hold(whose, lambda whose=whose: holding.append(whose)):
                    holding.append(whose)
            assert gate._turns == len(holding) <= 5 and gate._holding == len(holding) + len(syncs) <= 6
            assert max(Counter(one.ip for one in holding).values(), default=0) <= 4
        for stack in syncs:
            stack.close()
        while holding:
            gate.let_go(holding.pop())
        assert not gate._waiting
    assert is_empty(gate) and (gate._holding, gate._turns, gate._held) == (0, 0, {})


def test_of_more_places_everybody_has_the_same_share():
    gate = Gate.for_threads(8, 2)
    with ExitStack() as inside:
        for _ in range(16):
            inside.enter_context(gate.enter(source(1), waits=True))
        for waits, limit in ((True, 16), (False, 4)):
            with pytest.raises(RateLimited, match="too_many_at_once") as refused, gate.enter(source(1), waits=waits):
                pass
            assert refused.value.limit == limit
        for number in range(2, 10):
            inside.enter_context(gate.enter(source(number), waits=True))
        with pytest.raises(RateLimited, match="overloaded"), gate.enter(source(10), waits=True):
            pass
    assert is_empty(gate)
