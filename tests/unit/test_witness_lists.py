"""Lists of logs: the format to the letter, and that a list adds and does nothing else."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ktlog.errors import EncodingError
from ktlog.tlog.note import ED25519
from tests.tls_server import HOST, answer
from tests.witness_log import Log
from tests.witness_site import NAME
from witness import cli
from witness.loglist import parse_log_list

FIRST, SECOND = Log("a.example/log", algorithms=(ED25519,)), Log("b.example", seed=2, algorithms=(ED25519,))
OTHER_KEY = Log("a.example/log", seed=3, algorithms=(ED25519,))


def item(log: Log, per_day: object = 24, origin: str = "", contact: str = "root (at) example | https://x#y") -> str:
    return f"vkey {log.vkeys[0]}\n{origin and f'origin {origin}'}\nqpd {per_day}\ncontact {contact}\n"


def of(*items: str) -> bytes:
    return ("# of the network\n\n  logs/v0 \r\n\n" + "\n\t# next\n".join(items)).encode()


@pytest.fixture
def run(tmp_path):
    def run(command: str, *arguments: object, ok: bool = True):
        result = CliRunner().invoke(cli.main, [command, "--dir", str(tmp_path / "w"), *map(str, arguments)])
        assert (result.exit_code == 0) == ok, result.stderr
        return result

    run("init", "--name", NAME)
    return run


@pytest.fixture
def pull(run, tmp_path):
    def pull(*items: str) -> dict:
        path = tmp_path / "list"
        path.write_bytes(of(*items))
        return json.loads(run("pull-logs", path, "--json").stdout)

    return pull


def logs(run) -> dict:
    return {log["origin"]: log for log in json.loads(run("list-logs", "--json").stdout)["logs"]}


def test_a_list_is_read_as_its_specification_has_it():
    first, second = parse_log_list(of(item(FIRST, 86_400), item(SECOND, 2**31 - 1, origin="some legacy origin line")))
    assert (first.origin, first.vkey, first.per_day) == (FIRST.origin, FIRST.vkeys[0], 86_400)
    assert (second.origin, second.per_day) == ("some legacy origin line", 2**31 - 1)
    assert first.contact == "root (at) example | https://x#y"
    assert parse_log_list(b"logs/v0") == ()
    assert len(parse_log_list(of(item(FIRST), item(FIRST)))) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"something else", b"\xff", of("origin x\nqpd 1\ncontact y"), of("vkey\nqpd 1\ncontact y"),
        of("vkey bananas\nqpd 1\ncontact y"), of(item(FIRST).replace("qpd", "limit")), of(item(FIRST)[:-40]),
        of(f"vkey {FIRST.vkeys[0]} and more\nqpd 1\ncontact y"), of(f"vkey {FIRST.vkeys[0]}\norigin\nqpd 1\ncontact y"),
        of(f"vkey {FIRST.vkeys[0]}\nqpd 1\norigin x\ncontact y"), of(f"vkey {FIRST.vkeys[0]}\nqpd 1"),
        of(f"vkey {FIRST.vkeys[0]}\nqpd 1\ncontact"), of(item(FIRST, origin="x" * 256)),
        of(item(FIRST, origin="x\x9b31m")), of(item(FIRST, origin="x\u202ey")),
        *(of(item(FIRST, per_day)) for per_day in ("0", "-1", "+5", "007", "1 2", "2147483648", "pineapple")),
    ],
)
def test_what_is_no_list_is_refused_whole(data):
    with pytest.raises(EncodingError) as caught:
        parse_log_list(data)
    assert caught.value.name == "BadLogList"


def test_one_name_with_two_keys_is_refused():
    with pytest.raises(EncodingError) as caught:
        parse_log_list(of(item(FIRST), item(OTHER_KEY)))
    assert caught.value.name == "NameCollision"


def test_pulling_adds_and_again_changes_nothing(run, pull):
    assert pull(item(FIRST), item(SECOND, 48))["added"] == [FIRST.origin, SECOND.origin]
    assert pull(item(FIRST), item(SECOND, 48)) == {"listed": 2, "added": [], "warnings": []}
    assert {origin: log["qpd"] for origin, log in logs(run).items()} == {FIRST.origin: 24, SECOND.origin: 48}
    assert pull(item(FIRST, 96), item(SECOND, 48))["added"] == []
    assert logs(run)[FIRST.origin]["qpd"] == 96


def test_a_changed_key_is_told_and_not_trusted_and_what_left_the_list_stays(run, pull):
    pull(item(FIRST), item(SECOND))
    done = pull(item(OTHER_KEY, 1))
    assert [warning.split(":")[0] for warning in done["warnings"]] == [FIRST.origin, SECOND.origin]
    assert logs(run)[FIRST.origin]["vkeys"] == [str(FIRST.vkeys[0])]
    assert logs(run)[FIRST.origin]["qpd"] == 24
    assert SECOND.origin in logs(run)


def test_what_the_operator_added_by_hand_no_list_limits(run, pull):
    run("add-log", FIRST.vkeys[0])
    run("add-log", SECOND.vkeys[0], "--qpd", 1000)
    pull(item(FIRST), item(SECOND))
    assert {origin: log["qpd"] for origin, log in logs(run).items()} == {FIRST.origin: None, SECOND.origin: 1000}


def test_the_witness_s_own_name_is_not_added(run, pull):
    done = pull(
        item(Log(NAME, seed=4, algorithms=(ED25519,))), item(SECOND)
    )
    assert done["added"] == [SECOND.origin]
    assert done["warnings"][0].startswith(f"{NAME}: not added")


def test_a_list_comes_from_a_url_whole_or_not_at_all(run, server, tmp_path, monkeypatch):
    (tmp_path / "dial").write_text(json.dumps({"ca_file": server.ca_file, "hosts": {HOST: f"127.0.0.1:{server.port}"}}))
    monkeypatch.setenv("KTLOG_DIAL", str(tmp_path / "dial"))
    listed, url = of(item(FIRST), item(SECOND)), f"https://{HOST}/log-list.1"
    cut = answer(listed)[0].replace(listed, listed[:-40])
    for steps in (answer(listed, 404), [cut, None], answer(listed[:-40])):
        server.behave = lambda request, steps=steps: steps
        assert "Traceback" not in run("pull-logs", url, ok=False).stderr
        assert logs(run) == {}
    server.behave = lambda request: answer(listed)
    done = json.loads(run("pull-logs", url, "--json").stdout)
    assert done["added"] == [FIRST.origin, SECOND.origin] == list(logs(run))
    assert (server.requests[-1].method, server.requests[-1].target) == ("GET", "/log-list.1")


@pytest.mark.parametrize("source", ["http://127.0.0.1/list", "https://127.0.0.1/list", "no/such/file"])
def test_a_source_that_is_no_list_s(run, source):
    assert run("pull-logs", source, ok=False).exit_code in (2, 3, 8)
