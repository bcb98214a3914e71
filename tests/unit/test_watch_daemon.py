"""The daemon: logs beside each other, its end, its numbers; the file that says what to watch; the two commands."""

from __future__ import annotations

import json
import threading
import time

import pytest
from click.testing import CliRunner

from auditor.cli import ktlog_auditor
from auditor.commands.findings import nagios_line
from auditor.findings_store import FindingStore
from auditor.logwatch import Settings
from auditor.report import Finding
from auditor.watch import Watch, gravest
from auditor.watchfile import WatchConfig, Watched, load_watch_file, parse_watch_file
from ktlog.errors import KtlogError, UsageError
from ktlog.tlog.note import signer_from_seed
from ktlog.wire.prometheus import Page
from tests.auditor_world import NOW, ORIGIN, log_signers, log_under_audit, policy_bytes
from tests.watch_world import Net, Told, cheap_world, second_log

SLOW = "slow.example"


class Both(Net):
    """The log of the world, and one that does not answer before it is let go."""

    def __init__(self) -> None:
        super().__init__(cheap_world().clone())
        self.asked_slow, self.let_go = threading.Event(), threading.Event()

    def get(self, url, *, max_bytes=None):
        if SLOW in url:
            self.asked_slow.set()
            self.let_go.wait(30)
        return super().get(url.replace(SLOW, "w1.witness.example"), max_bytes=max_bytes)


@pytest.fixture
def both(tmp_path):
    net, told, rounds = Both(), Told(), []
    config = WatchConfig((Watched(second_log(SLOW)), Watched(log_under_audit(), answers="none", commitments="none")), 5)
    with Watch(tmp_path, config, lambda: told, lambda: (net, net), lambda: NOW, rounds.append,
               Settings(read_seconds=5)) as watch:
        watch.test = net, told, rounds
        yield watch
        net.let_go.set()


def wait_for(ready) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_log_that_hangs_holds_up_no_other_and_no_end(both):
    net, _, rounds = both.test
    delivered = threading.Event()
    thread = threading.Thread(target=both.run, args=(lambda now: delivered.set(),), daemon=True)
    thread.start()
    assert net.asked_slow.wait(20)
    wait_for(lambda: {one.kind for one in rounds if one.origin == ORIGIN} == {"look", "reading"})
    assert both.unready() is None and {one.origin for one in rounds} == {ORIGIN} and delivered.wait(20)
    both.stop.set()
    net.let_go.set()
    thread.join(20)
    assert not thread.is_alive() and both.unready() == "Draining"
    assert both.store.all() == []  # what was cut off by the end is no finding


def test_once_looks_at_all_and_reads_what_is_new(both):
    net, _, _ = both.test
    net.let_go.set()
    done = {(one.origin, one.kind): one for one in both.once()}
    assert done[ORIGIN, "reading"].entries == 10 and done[SLOW, "look"].blind == ["the log"]
    page = Page("ktlog_auditor_")
    both.add_metrics(page)
    text = page.encode().decode()
    assert f'ktlog_auditor_log_entries_judged{{origin="{ORIGIN}"}} 10' in text
    assert f'ktlog_auditor_rounds_incomplete_total{{origin="{SLOW}",kind="look"}} 1' in text


def test_a_bug_about_one_log_does_not_end_the_watch(both, monkeypatch):
    net, _, _ = both.test
    net.let_go.set()
    monkeypatch.setattr(both.logs[0], "look", lambda now: 1 / 0)
    assert (ORIGIN, "reading") in {(one.origin, one.kind) for one in both.once()}


def test_the_gravest_finding_decides(tmp_path):
    with FindingStore(tmp_path) as store:
        assert gravest(store.open()) == 0
        store.record("a", Finding("FrozenLog", "Stale", "x"), 1)
        store.record("a", Finding("Late", "Unreachable", "x"), 1)
        assert gravest(store.open()) == 9
        store.record("a", Finding("TwoRoots", "Forked", "x"), 1)
        assert gravest(store.open()) == 7


# What to watch


def toml(**log: object) -> dict:
    return {"log": [{"log": ORIGIN, "policy": "policy.txt", **log}]}


@pytest.fixture
def base(tmp_path):
    (tmp_path / "policy.txt").write_bytes(policy_bytes())
    return tmp_path


def test_a_watch_file(base):
    (base / "watch.toml").write_text(f"""
        every = 30
        lag = 60
        [[log]]
        log = "{ORIGIN}"
        policy = "policy.txt"
        witnesses = ["https://w1.example", "https://w1.example/"]
        read = "none"
        [sinks.me]
        type = "terminal"
    """)
    config = load_watch_file(base / "watch.toml")
    (one,) = config.logs
    assert (config.every, config.graces.lag, one.log.origin, one.witnesses, one.read, one.map) == (
        30, 60, ORIGIN, ("https://w1.example",), "none", None
    )
    assert one.policy.logs[0].vkey in one.log.vkeys and config.sinks["me"]["type"] == "terminal"


def test_the_key_of_the_map_makes_the_map_watched(base):
    key = signer_from_seed(f"{ORIGIN}/map", 6, bytes(32)).vkey
    (one,) = parse_watch_file(toml(vkeys=[str(key)]), base).logs
    assert (one.map.origin, one.map.url, one.map.vkeys) == (f"{ORIGIN}/map", f"https://{ORIGIN}/map", (key,))


@pytest.mark.parametrize("found", [
    {}, {"log": []}, toml(wittnesses=[]), toml(witnesses="https://w1.example"), toml(witnesses=["http://w1.example"]),
    toml(read="some"), toml(vkeys=["x"]), toml(vkeys=[str(signer_from_seed("b.example", 6, bytes(32)).vkey)]),
    {**toml(), "every": 1}, {**toml(), "every": True}, {**toml(), "lag": -1}, {"log": toml()["log"] * 2},
    {"log": [{"policy": "policy.txt"}]}, {"log": [{"log": ORIGIN}]}, toml(policy="none.txt"), toml(max_age="1"),
])
def test_what_the_file_does_not_know_is_refused(base, found):
    with pytest.raises(UsageError):
        parse_watch_file(found, base)


# Commands


def run(*arguments: str):
    return CliRunner().invoke(ktlog_auditor, arguments)


@pytest.fixture
def found(tmp_path):
    with FindingStore(tmp_path) as store:
        store.record("a.example", Finding("FrozenLog", "Stale", "it is\x1b[2J frozen"), 1_700_000_000)
        store.record("a.example/map", Finding("StaleMap", "Stale", "old"), 1_700_000_000)
        store.record("b.example", Finding("Late", "Unreachable", "late"), 1_700_000_000)
        store.close_absent("b.example", set(), 1_700_000_060)
    return str(tmp_path)


def test_findings_are_listed(found):
    listed = run("findings", "--dir", found)
    assert listed.exit_code == 0 and "\x1b" not in listed.output
    assert "2023-11-14T22:14:20Z b.example closed [Unreachable] Late: late" in listed.output
    objects = [json.loads(line) for line in run("findings", "--dir", found, "--json", "--open").output.splitlines()]
    assert [(one["name"], one["open"]) for one in objects] == [("FrozenLog", True), ("StaleMap", True)]
    assert "Late" in run("findings", "--dir", found, "--log", "b.example").output
    assert run("findings", "--dir", found, "--log", "b.example", "--open").output == "No finding holds now.\n"


def test_nagios(found, tmp_path):
    one = run("findings", "--dir", found, "--nagios")
    assert one.exit_code == 1
    assert one.output == "KTLOG WARNING - FrozenLog at a.example, StaleMap at a.example/map | findings=2\n"
    assert run("findings", "--dir", found, "--nagios", "--log", "b.example").exit_code == 0
    with FindingStore(tmp_path) as store:
        store.record("b.example", Finding("TwoRoots", "Forked", "x"), 5)
        assert nagios_line(store.open())[1] == 2 and nagios_line(store.open())[0].startswith("KTLOG CRITICAL - TwoRoots")
    nowhere = run("findings", "--dir", str(tmp_path / "no"), "--nagios")
    assert nowhere.exit_code == 3 and nowhere.output.startswith("KTLOG UNKNOWN - MissingStore")


@pytest.mark.parametrize("arguments", [
    ("watch", "--dir", "D", "--once"), ("watch", "--dir", "D", "--witness", "https://w1.example"),
    ("watch", ORIGIN, "--dir", "D", "--config", "x.toml"), ("watch", ORIGIN, "--dir", "D"),
    ("watch", ORIGIN, "--dir", "D", "--vkey", "rubbish"),
])
def test_watch_says_what_it_lacks(arguments, tmp_path):
    arguments = [str(tmp_path) if word == "D" else word for word in arguments]
    assert isinstance(run(*arguments).exception, KtlogError)


def test_watch_once_from_the_command_line(tmp_path, monkeypatch):
    net = Net(cheap_world().clone())
    net.close = lambda: None
    monkeypatch.setattr("auditor.commands.watch.Fetcher", FakeFetcher(net))
    key = str(log_signers()[1].vkey)
    arguments = ("watch", ORIGIN, "--dir", str(tmp_path), "--vkey", key, "--once", "--commitments", "none")
    quiet = run(*arguments)
    assert quiet.exit_code == 0 and "judged up to 10" in quiet.output
    net.world.serve["checkpoint"] = net.world.checkpoint(root=bytes(32))
    alarmed = run(*arguments, "--json")
    events = [json.loads(line) for line in alarmed.stdout.splitlines()]
    assert alarmed.exit_code == 7 and [one["event"] for one in events][0] == "opened"
    assert {one["event"] for one in events} == {"opened", "look", "reading"} and events[0]["evidence"]


class FakeFetcher:
    """In place of the class: hands out one network, as a context manager."""

    def __init__(self, net: Net) -> None:
        self._net = net

    def from_environment(self, **_: object) -> FakeFetcher:
        return self

    def __enter__(self) -> Net:
        return self._net

    def __exit__(self, *_: object) -> None:
        pass
