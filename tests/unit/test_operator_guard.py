"""Rate limits with back-off as the specification describes them, and the replay cache, shared between processes."""

import ipaddress
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress

import pytest

from ktlog.errors import MessageRejected, RateLimited, StoreError, UsageError
from ktlog.operator import guard as guard_module
from ktlog.operator.guard import Guard, address_name, parse_address, parse_networks
from ktlog.operator.request import Source

START = 1_790_000_000_000
ALICE_IP = "192.0.2.7"
OTHER_IP = "198.51.100.9"


class Clock:
    def __init__(self):
        self.ms = START

    def __call__(self):
        return self.ms


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(tmp_path, clock):
    guard = Guard(tmp_path / "guard.db", 100, 3600, (), clock)
    yield guard
    guard.close()


def waits(guard, ip=ALICE_IP, claimed=None, domain=None):
    """How many milliseconds a request from there has to wait; 0 when it passes."""
    source = Source(ip, domain)
    try:
        guard.check_domain(source) if domain else guard.check(source, claimed)
    except RateLimited as limited:
        return limited.retry_after_ms
    return 0


def rows(tmp_path):
    with sqlite3.connect(tmp_path / "guard.db") as connection:
        return dict(connection.execute("SELECT name, count FROM bad_sources"))


def test_nobody_waits_without_a_refusal(guard, tmp_path):
    assert [waits(guard) for _ in range(50)] == [0] * 50
    assert rows(tmp_path) == {}


def test_the_wait_doubles_with_each_refusal(guard, clock):
    for n in range(1, 8):
        wait = guard.penalize(Source(ALICE_IP))
        assert wait.retry_after_ms == 100 * 2 ** (n - 1)
        assert waits(guard) == 100 * 2 ** (n - 1)
        clock.ms += wait.retry_after_ms - 1
        assert waits(guard) == 1
        clock.ms += 1
        assert waits(guard) == 0


def test_what_a_refused_request_is_told(guard, clock):
    guard.penalize(Source(ALICE_IP), 5)
    clock.ms += 500
    with pytest.raises(MessageRejected) as caught:
        guard.check(Source(ALICE_IP), None)
    limited = caught.value
    assert (limited.code, limited.retry_after_ms, limited.limit) == ("rate_limited", 1100, 1)
    assert limited.reset == START // 1000 + 2  # 1.6 s, in whole seconds, never too early


def test_to_be_refused_for_haste_costs_nothing(guard, clock):
    guard.penalize(Source(ALICE_IP), 3)
    for _ in range(399):
        clock.ms += 1
        assert waits(guard) > 0
    clock.ms += 1
    assert waits(guard) == 0


def test_a_count_falls_by_one_after_twice_its_wait(guard, clock):
    guard.penalize(Source(ALICE_IP), 3)  # waits of 400, 200, 100: falls after 800, 400 and 200
    for after, count in ((799, 3), (800, 2), (1199, 2), (1200, 1), (1399, 1)):
        clock.ms = START + after
        # One more refusal shows the count by the wait that follows it; then all begins anew.
        assert guard.penalize(Source(ALICE_IP)).retry_after_ms == 100 * 2**count
        guard._file._connection.execute(
            "UPDATE bad_sources SET count = 3, decayed_ms = ?, last_ms = ?", (START, START)
        )
    clock.ms = START + 1400
    assert guard.penalize(Source(ALICE_IP)).retry_after_ms == 100


def test_who_has_paid_leaves_the_table(guard, clock, tmp_path):
    guard.penalize(Source(ALICE_IP), 3)
    clock.ms += 1400
    guard.penalize(Source(OTHER_IP))
    assert rows(tmp_path) == {f"ip {OTHER_IP}": 1}


def test_a_request_that_passes_starts_the_wait_again(guard, clock):
    """Of many guesses sent at once, when the wait is over, one gets through."""
    guard.penalize(Source(ALICE_IP), 4)
    clock.ms += 800
    assert [waits(guard) for _ in range(3)] == [0, 800, 800]


def test_there_is_a_longest_wait(guard, clock):
    for _ in range(40):
        guard.penalize(Source(ALICE_IP), 10)
    assert waits(guard) == 3_600_000
    # Counting on while the wait cannot grow would make it last for ever.
    clock.ms += 2 * 3_600_000
    assert guard.penalize(Source(OTHER_IP)).retry_after_ms == 100
    assert waits(guard) == 0
    clock.ms += 4 * 3_600_000
    assert waits(guard) == 0 and guard.penalize(Source(ALICE_IP)).retry_after_ms <= 200


def test_addresses_are_counted_apart_and_ipv6_by_customer(guard):
    guard.penalize(Source(ALICE_IP))
    assert waits(guard) > 0 and waits(guard, OTHER_IP) == 0
    guard.penalize(Source("2001:db8:1:2::5"))
    assert waits(guard, "2001:db8:1:2:ffff::1") > 0 and waits(guard, "2001:db8:1:3::5") == 0


def test_names_of_addresses():
    assert address_name("::ffff:192.0.2.7") == address_name("192.0.2.7") == "ip 192.0.2.7"
    assert address_name("fe80::1%eth0") == "ip fe80::/64"
    assert address_name("") == address_name("unix:") == "address of nobody"


def test_an_authenticated_server_is_counted_wherever_it_sends_from(guard, clock):
    guard.penalize(Source(ALICE_IP, "alpha.example"), 4)
    assert waits(guard, OTHER_IP, domain="alpha.example") == 800
    assert waits(guard, OTHER_IP, claimed="alpha.example") == 800
    assert waits(guard, OTHER_IP, claimed="beta.example") == 0
    clock.ms += 800
    assert [waits(guard, OTHER_IP, domain="alpha.example") for _ in range(2)] == [0, 800]


def test_a_claim_never_hurts_the_claimed(guard, clock):
    """A stranger in somebody's name: neither its refusals nor its requests make the server wait."""
    with pytest.raises(RateLimited):
        guard.penalize(Source(ALICE_IP))
        guard.check(Source(ALICE_IP), "alpha.example")
    assert waits(guard, OTHER_IP, claimed="alpha.example") == 0
    guard.penalize(Source(OTHER_IP, "alpha.example"), 4)
    clock.ms += 800
    for number in range(5):
        assert waits(guard, f"203.0.113.{number}", claimed="alpha.example") == 0
    assert waits(guard, OTHER_IP, domain="alpha.example") == 0


def test_an_address_is_not_a_server_of_that_name(guard):
    guard.penalize(Source(ALICE_IP, None))
    assert waits(guard, OTHER_IP, claimed=f"ip {ALICE_IP}") == 0
    assert waits(guard, OTHER_IP, claimed=ALICE_IP) == 0


def test_exempt_networks(tmp_path, clock):
    guard = Guard(tmp_path / "guard.db", 100, 3600, parse_networks("127.0.0.0/8 2001:db8::/32"), clock)
    for ip in ("127.0.0.1", "::ffff:127.0.0.2", "2001:db8::9"):
        assert guard.penalize(Source(ip, "alpha.example"), 9) is None
        assert waits(guard, ip) == 0 and waits(guard, ip, domain="alpha.example") == 0
    assert rows(tmp_path) == {}
    guard.penalize(Source(ALICE_IP))
    assert waits(guard) == 100
    guard.close()


def test_networks_in_settings():
    assert parse_networks("") == () and parse_networks("10.0.0.0/8") == (ipaddress.ip_network("10.0.0.0/8"),)
    for text in ("10.0.0.1/8", "localhost", "10.0.0.0/33", "10.0.0.0/8,11.0.0.0/8"):
        with pytest.raises(UsageError) as caught:
            parse_networks(text)
        assert caught.value.name == "BadNetwork"


def test_a_clock_that_was_set_back_locks_nobody_out_for_long(guard, clock):
    guard.penalize(Source(ALICE_IP), 2)
    clock.ms -= 10 * 3_600_000
    assert waits(guard) == 0


def test_the_table_is_bounded(guard, monkeypatch, tmp_path):
    monkeypatch.setattr(guard_module, "SOURCES_LIMIT", 20)
    guard.penalize(Source(ALICE_IP), 9)
    for number in range(200):
        guard.penalize(Source(f"203.0.113.{number}"))
    assert len(rows(tmp_path)) <= 20
    assert waits(guard) > 0  # the worst stay longest


def test_two_processes_share_the_counts(guard, tmp_path):
    """What one web worker refused, another one knows."""
    code = (
        "import sys; from ktlog.operator.guard import Guard; from ktlog.operator.request import Source\n"
        "from pathlib import Path\n"
        "guard = Guard(Path(sys.argv[1]), 100, 3600, (), lambda: int(sys.argv[2]))\n"
        "guard.penalize(Source(sys.argv[3], 'alpha.example'), 3)\n"
        "sys.exit(0 if guard.remember_signature(bytes(32), 2_000_000_000) else 3)\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "guard.db"), str(START), ALICE_IP]
    assert subprocess.run(run, check=False).returncode == 0
    assert waits(guard) == 400 and waits(guard, OTHER_IP, domain="alpha.example") == 400
    assert guard.remember_signature(bytes(32), 2_000_000_000) is False
    assert subprocess.run(run, check=False).returncode == 3
    assert guard.penalize(Source(ALICE_IP)).retry_after_ms == 100 * 2**6


def test_many_threads_lose_no_refusal(guard):
    threads = [
        threading.Thread(target=lambda: [guard.penalize(Source(ALICE_IP)) for _ in range(2)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waits(guard) == 100 * 2**7


# -- the replay cache


def test_a_signature_is_new_once(guard, clock):
    until = clock.ms // 1000 + 300
    assert [guard.remember_signature(b"a" * 32, until) for _ in range(3)] == [True, False, False]
    assert guard.remember_signature(b"b" * 32, until)
    clock.ms += 300_000
    assert not guard.remember_signature(b"a" * 32, until)
    clock.ms += 1000
    assert guard.remember_signature(b"a" * 32, until), "forgotten when it would be too old anyway"


def test_only_one_of_many_threads_is_first(guard):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(guard.remember_signature(b"c" * 32, 2_000_000_000)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 5 + [True]


# -- the file


def test_the_file_may_be_lost(tmp_path, clock):
    first = Guard(tmp_path / "guard.db", 100, 3600, (), clock)
    first.penalize(Source(ALICE_IP))
    first.close()
    assert os.stat(tmp_path / "guard.db").st_mode & 0o777 == 0o600
    (tmp_path / "guard.db").unlink()
    second = Guard(tmp_path / "guard.db", 100, 3600, (), clock)
    assert waits(second) == 0
    second.penalize(Source(ALICE_IP))
    assert waits(second) == 100
    second.close()


@pytest.mark.parametrize("damage", [lambda data: b"x" * len(data), lambda data: data[:16384] + b"\xff" * (len(data) - 16384)])
def test_a_damaged_file_is_begun_anew(tmp_path, clock, damage):
    path = tmp_path / "guard.db"
    guard = Guard(path, 100, 3600, (), clock)
    guard.penalize(Source(ALICE_IP))
    guard.close()
    path.write_bytes(damage(path.read_bytes()))
    again = Guard(path, 100, 3600, (), clock)
    assert waits(again) == 0
    again.penalize(Source(ALICE_IP))
    assert waits(again) == 100
    again.close()


def test_damage_under_a_running_worker_is_survived(guard, tmp_path):
    """One request fails closed; the next ones are counted in a new file."""
    guard.penalize(Source(ALICE_IP))
    (tmp_path / "guard.db").write_bytes(b"x" * 70000)
    with pytest.raises(StoreError):
        guard.check(Source(ALICE_IP), None)
    assert waits(guard) == 0
    guard.penalize(Source(ALICE_IP))
    assert waits(guard) == 100


def _other_tables(path):
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bad_sources (name, count, decayed_ms, last_ms, gone_ms, more)")
    other.close()


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 0), _other_tables])
def test_tables_that_are_not_there_or_not_ours_are_survived_too(guard, tmp_path, clock, change):
    """What a crash leaves of a file that waits for no disk, or an older version."""
    guard.penalize(Source(ALICE_IP))
    change(tmp_path / "guard.db")
    with suppress(StoreError):
        guard.penalize(Source(ALICE_IP))
    guard.penalize(Source(ALICE_IP))
    with closing(Guard(tmp_path / "guard.db", 100, 3600, (), clock)) as other:
        assert waits(other) > 0, "both count in the new file"


def test_a_file_that_is_removed_under_a_running_worker(guard, tmp_path, clock):
    guard.penalize(Source(ALICE_IP))
    (tmp_path / "guard.db").unlink()
    assert waits(guard) == 0
    other = Guard(tmp_path / "guard.db", 100, 3600, (), clock)
    other.penalize(Source(ALICE_IP))
    assert waits(guard) == 100, "both count in the new file"
    other.close()


def test_a_directory_that_is_not_there(tmp_path, clock):
    with pytest.raises(StoreError):
        Guard(tmp_path / "no" / "guard.db", 100, 3600, (), clock)


def test_an_error_of_sqlite_is_coded(guard):
    guard._file._connection.execute("DROP TABLE bad_sources")
    with pytest.raises(StoreError):
        guard.penalize(Source(ALICE_IP))


@pytest.mark.parametrize("text", [
    "2001:db8:0:5::1", "2001:db8:1:2:3:4:5:6", "::", "::1", "fe80::1", "::ffff:192.0.2.1", "192.0.2.1", "255.255.255.255",
    "01.2.3.4", "1.2.3", "1.2.3.4.5", "1.2.3.4:80", ":", "::g", "::1.2.3.4", "1:2:3:4:5:6:7:8:9", "", "0x7f.1", "\u0661.2.3.4",
])
def test_an_address_is_read_and_named_as_the_library_does_it(text):
    try:
        expected = ipaddress.ip_address(text)
    except ValueError:
        assert (parse_address(text), address_name(text)) == (None, "address of nobody")
        return
    expected = getattr(expected, "ipv4_mapped", None) or expected
    network = ipaddress.ip_network((expected, 64), strict=False) if expected.version == 6 else expected
    assert (parse_address(text), address_name(text)) == (expected, f"ip {network}")
