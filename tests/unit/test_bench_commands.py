"""The commands of ``ktlog bench`` against a real log: small here, with 20,000 entries where time is no matter."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ktlog.bench import pages
from ktlog.bench.mapped import build
from ktlog.bench.names import ORIGIN
from ktlog.bench.pages import FULL
from ktlog.bench.rawlog import VKEY
from ktlog.bench.row import Row
from ktlog.cli import ktlog
from ktlog.config import load_settings
from ktlog.errors import KtlogError
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note, parse_vkey
from ktlog.tlog.tiles import parse_bundle, parse_tile_path
from tests.machine import need

ENTRIES = 1_500
MANY = 20_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bench") / "log", ENTRIES).directory


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bench") / "log", MANY).directory


def found_small(words) -> bool:
    return int(words[words.index("--entries") + 1]) < 10_000


def run(*words: str, code: int = 0) -> dict:
    done = CliRunner().invoke(ktlog, ["bench", *words, "--json"])
    assert done.exit_code == code, done.output
    assert ("mean little" in done.stderr) == (words[0] == "log" and found_small(words))
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] >= 1 and 0 <= found["took-seconds"] < 600  # told in tenths
    return found | {"by-work": {row["work"]: row for row in found["rows"]}}


def short_submit(monkeypatch) -> None:
    monkeypatch.setattr("ktlog.bench.submit.IDLE", 3)
    monkeypatch.setattr("ktlog.bench.submit.SYNCS", 4)


def test_prefill(tmp_path):
    words = ["bench", "prefill", "--dir", str(tmp_path / "log"), "--entries", "100"]
    first = CliRunner().invoke(ktlog, [*words, "--json"])
    found = json.loads(first.stdout)
    assert first.exit_code == 0 and found["entries"] == 100
    assert {"entries and map, filled", "CPU for 1,000 entries", "memory of the process, at most"} <= {
        row["work"] for row in found["rows"] if row["measured"] > 0
    }
    again = CliRunner().invoke(ktlog, words)
    assert again.exit_code == 0 and "100 entries" in again.stderr
    other = CliRunner().invoke(ktlog, [*words[:-1], "101"])
    assert "NotPrefilled" in repr(other.exception)


@pytest.mark.slow
def test_submit_without_argon2id(filled, monkeypatch):
    short_submit(monkeypatch)
    words = ["submit", "--dir", str(filled), "--entries", str(ENTRIES), "--messages", "60", "--without-argon2"]
    found = run(*words)
    assert (found["limit"], found["ratio"], found["refused"]) == (None, None, {})
    assert found["rate"] == pytest.approx(found["by-work"]["AddKey over HTTP, durable, no Argon2id"]["measured"], 0.01)
    # Five actors, 60 messages of them, and those of the idle log and of the counting of syncs.
    assert found["acknowledged"] > 60 + 3 + 4
    assert {"AddKey: CPU for 1,000, web", "AddKey: CPU for 1,000, sequencer"} <= found["by-work"].keys()
    assert found["by-work"]["bytes written for an entry, map and all"]["measured"] > 1


def test_submit_says_how_near_it_comes_to_its_limit(filled, monkeypatch):
    """Two commitments a message: the rate is held against half of what Argon2id alone does."""
    from ktlog.bench import submit

    monkeypatch.setattr(submit, "argon2_rate", lambda *_: 50.0)
    monkeypatch.setattr(submit, "prepare", lambda *_, **__: [["message"]])
    monkeypatch.setattr(submit, "measure_submit", lambda settings, options: submit.Submitted(
        20.0, 25.0, [Row("AddKey over HTTP, durable", 20.0, "/s", 0.8, peer=25.0, ratio=0.8, at_least=True)]))
    monkeypatch.setattr("ktlog.commands.bench.measure_submit", submit.measure_submit)
    words = ["submit", "--dir", str(filled), "--entries", str(ENTRIES), "--at-least"]
    found = run(*words, "0.8")
    assert (found["rate"], found["limit"], found["ratio"]) == (20.0, 25.0, 0.8)
    assert found["rows"][0]["met"] is True
    assert run(*words, "0.81", code=5)["ratio"] == 0.8


def test_log():
    found = run("log", "--entries", "1000", "--size", "300", "--producers", "64", "--at-least", "1")
    assert found["rate"] > 0 and {"appends at 100, durable", "appends at 1,000, durable"} <= found["by-work"].keys()
    # Up to 1,000 entries, 200 after each of the two sizes, and as many while syncs were counted. Beside each size a log of
    # 100 entries, and as many more.
    assert found["by-work"]["acknowledged entries read back and compared"]["measured"] == 1_400 + 2 * 500
    assert run("log", "--entries", "100", "--at-least", "1e9", code=5)["entries"] == 100


def test_log_on_postgresql(postgres_url):
    found = run("log", "--entries", "400", "--store", postgres_url)
    assert found["rate"] > 0 and found["by-work"]["acknowledged entries read back and compared"]["measured"] == 480


def test_log_answers_what_load_generators_send(tmp_path):
    words = [sys.executable, "-m", "ktlog", "bench", "log", "--dir", str(tmp_path / "log"), "--serve", "127.0.0.1:0"]
    with subprocess.Popen([*words, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        vkey = process.stderr.readline().split()[-1]
        connection = http.client.HTTPConnection(process.stderr.readline().strip().removeprefix("listens on http://"))

        def ask(method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, response.read()

        entries = [b"\x00\xff" * 100, b"", b"x" * 65_535]
        assert [ask("POST", "/add", entry) for entry in [*entries, b""]] == [
            (200, b"0"), (200, b"1"), (200, b"2"), (200, b"1")
        ]
        assert ask("GET", "/tile/0/999")[0] == 404 and ask("GET", "/../keys")[0] == 404
        deadline = time.monotonic() + 30
        while (published := ask("GET", "/checkpoint"))[0] == 404:
            assert time.monotonic() < deadline
        note, checkpoint = parse_signed_checkpoint(published[1])
        assert vkey == VKEY and open_note(note, [parse_vkey(vkey)]) and checkpoint.size <= 3
        path = f"tile/entries/000.p/{checkpoint.size}"
        bundle = parse_bundle(ask("GET", f"/{path}")[1], parse_tile_path(path).width)
        assert list(bundle) == entries[: checkpoint.size]
        assert ask("POST", "/add", b"x" * 65_536)[0] == 413
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.read()) == {"benchmark": "log", "entries": 3}
    assert process.returncode == 0


@pytest.mark.slow
def test_read(filled):
    words = ["read", "--dir", str(filled), "--entries", str(ENTRIES), "--seconds", "0.4", "--connections", "4"]
    found = run(*words, "--at-least", "1e6", code=5)
    rows = found["by-work"]
    assert found["rate"] == pytest.approx(min(
        rows[f"keys with proofs, {draw}"]["measured"] for draw in ("all actors", "1,000 of them")), 0.01)
    assert all(rows[f"keys with proofs, {draw}: verified"]["measured"] >= 1 for draw in ("all actors", "1,000 of them"))
    assert {"checkpoint by a web worker", "tiles by a web worker"} <= rows.keys()
    need("nginx")
    assert all(rows[f"{work} by nginx"]["ratio"] > 0 for work in ("checkpoint", "tiles"))


@pytest.mark.slow
def test_pages(tmp_path):
    words = ["pages", "--dir", str(tmp_path / "log"), "--entries", "300", "--requests", "8", "--at-most"]
    found = run(*words, "0", code=5)
    works = {work.rpartition(":")[0] for work, row in found["by-work"].items() if row["goal"] == 50}
    assert {"status page", "actor page, drawn from all", "entry page", "status page, first of a worker"} < works
    assert found["slowest"] == pytest.approx(max(row["measured"] for row in found["rows"] if row["goal"]), 0.01)
    assert found["by-work"]["actor page, 64 keys and 256 auxiliary data: p99"]["cpu-ms"] > 0
    size = 300 + 64 + 256
    with SqliteStore.open(tmp_path / "log" / "log.db", origin=ORIGIN, read_only=True) as store:
        assert (store.state().size, len(store.actor(FULL).keys), len(store.actor(FULL).aux)) == (size, 64, 256)
    assert pages.add_full_actor(load_settings(tmp_path / "log")) == 300, "it finds what it added"


def test_a_page_that_is_not_what_was_asked_for_is_not_measured():
    page = pages._Page("a page", ["/"], "its words")
    for status, body, name in ((200, b"its words", None), (404, b"its words", "BadStatus"), (200, b"words", "BadPage")):
        connection = SimpleNamespace(
            request=lambda *_, **__: None, getresponse=lambda: SimpleNamespace(status=status, read=lambda: body)
        )
        if name is None:
            assert pages._ask(connection, page, "/") >= 0
            continue
        with pytest.raises(KtlogError) as refused:
            pages._ask(connection, page, "/")
        assert refused.value.name == name


@pytest.mark.slow
def test_recover(full):
    found = run("recover", "--dir", str(full), "--entries", str(MANY), "--messages", "40", "--at-most", "60")
    rows = found["by-work"]
    assert rows["restart until a lookup is answered"]["measured"] > 0 and 0 < found["seconds"] < 60
    assert rows["acknowledged under load before the crash"]["measured"] >= 10
    assert 0 < rows["answer before the crash, p50"]["measured"] <= rows["answer before the crash, p99"]["measured"]
    assert rows["the same, a second"]["measured"] > 0 and rows["CPU from the restart until then"]["measured"] > 0
    assert run("recover", "--dir", str(full), "--entries", str(MANY), "--messages", "10", "--at-most", "0", code=5)


@pytest.mark.slow
def test_submit_under_ten_times_the_load(full):
    words = ["submit", "--dir", str(full), "--entries", str(MANY), "--messages", "200", "--calibration", "3"]
    found = run(*words, "--overload", "--seconds", "10", "--at-least", "0.2")
    rows = found["by-work"]
    assert 0.2 < found["ratio"] == pytest.approx(found["rate"] / found["limit"], 0.01)
    assert rows["10 times the load: accepted"]["measured"] > 0
    # Bounded: what is too much is refused, and says so.
    assert set(found["overload-refused"]) <= {"503 overloaded", "429 too_many_at_once", "429 rate_limited"}
    assert sum(found["overload-refused"].values()) > 0
    assert rows["10 times the load: p99 of the accepted"]["goal"] == 5_000
    assert rows["largest process after it"]["met"], rows
    assert rows["from its end until a message is taken again"]["met"], rows


@pytest.mark.slow
def test_log_of_many():
    found = run("log", "--entries", str(MANY))
    costs = [row for row in found["rows"] if row["work"].startswith("CPU time for 1,000 entries")]
    # Each beside a log of the smaller size. How near they are is the machine's matter as much.
    assert len(costs) == 2 and all(row["ratio"] == pytest.approx(row["measured"] / row["peer"], 0.05) for row in costs)


@pytest.mark.slow
def test_read_beside_a_smaller_log(filled, full):
    words = ["read", "--dir", str(full), "--entries", str(MANY), "--seconds", "2", "--beside", str(filled)]
    # Other tests may have sent messages of new actors to either.
    (row,) = [row for row in run(*words)["rows"] if re.fullmatch(r"keys, 20,\d+ actors beside 1,\d+: p99", row["work"])]
    assert row["ratio"] > 0 and row["goal"] == 3
