"""What a serving witness counts, logs and tells; in process."""

from __future__ import annotations

import io
import json
import logging
import socket
import time

import pytest
from click.testing import CliRunner

from ktlog.errors import EncodingError, UsageError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.wire.logs import RequestIds, adopt, configure, fields, toggle_debug
from ktlog.wire.notify import Notifier
from ktlog.wire.prometheus import Histogram, Page
from tests.witness_log import Log
from tests.witness_site import NAME, Session
from witness import cli, metrics
from witness.about import POLICY, Said
from witness.follow import Progress
from witness.metrics import OTHERS, LevelCounter, Tally
from witness.pulling import Puller, format_interval, parse_interval
from witness.replays import Replay, Verdict
from witness.running import Operating, Running, peer_of
from witness.store import BEFORE_COMMIT
from witness.verifier import _describe
from witness.web import create_app

HASH = b"\x2a" * 32
ROOT = bytes(32)


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)
    yield session
    session.witness.store.close()


def run(session: Session, **operating) -> Running:
    running = Running(session.witness, Operating(**operating))
    session.client = create_app(session.witness, running).test_client()
    return running


def samples(running: Running) -> dict[str, float]:
    lines = running.metrics().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


# --- metrics


def test_what_was_asked_and_answered_is_counted(session):
    running = run(session)
    stranger = Log("other.example")
    for body in (
        session.log.submission(0, 5), session.log.submission(3, 6), session.log.submission(5, 7, proof=[HASH]),
        stranger.submission(0, 1), b"hello", session.log.submission(5, 6),
    ):
        session.post(body)
    session.client.get("/livez")
    session.client.get("/some/where/else")
    found = samples(running)

    def requests(endpoint: str, status: int, reason: str = "") -> float:
        return found[f'ktlog_witness_requests_total{{endpoint="{endpoint}",status="{status}",reason="{reason}"}}']

    assert requests("add-checkpoint", 200) == 2
    assert requests("add-checkpoint", 409, "SizeConflict") == 1
    assert requests("add-checkpoint", 422, "BadConsistencyProof") == found["ktlog_witness_failed_proofs_total"] == 1
    assert requests("add-checkpoint", 404, "UnknownOrigin") == requests("add-checkpoint", 400, "BadRequest") == 1
    assert requests("livez", 200) == requests("none", 404, "NotFound") == 1
    assert found['ktlog_witness_request_seconds_count{endpoint="add-checkpoint"}'] == 6
    assert found['ktlog_witness_request_seconds_bucket{endpoint="add-checkpoint",le="+Inf"}'] == 6
    assert found['ktlog_witness_cosignatures_total{algorithm="mldsa44"}'] == 2
    assert found["ktlog_witness_requests_in_progress"] == 0
    assert found["ktlog_witness_logs"] == 1
    # By origin what is followed, and of strangers nothing.
    origin = session.log.origin
    assert found[f'ktlog_witness_log_submissions_total{{origin="{origin}",status="200"}}'] == 2
    assert found[f'ktlog_witness_log_size{{origin="{origin}"}}'] == 6
    assert abs(found["ktlog_witness_cosigned_timestamp_seconds"] - time.time()) < 60
    assert stranger.origin not in running.metrics().decode()
    assert found["process_resident_memory_bytes"] > 1e6 and found["process_cpu_seconds_total"] > 0


def test_a_fork_and_a_failed_write_are_seen(tmp_path):
    failing = []

    def fail(name: str) -> None:
        if failing and name == BEFORE_COMMIT:
            raise OSError("the disk is gone")

    session = Session(tmp_path, reach=fail)
    running = run(session)
    session.submit(0, 5)
    assert samples(running)["ktlog_witness_frozen_logs"] == 0
    session.submit(5, 5, root=HASH)
    found = samples(running)
    assert found["ktlog_witness_forks_total"] == found["ktlog_witness_frozen_logs"] == found["ktlog_witness_ready"] == 1
    session.witness.store.lift_freeze(session.log.origin, 1)
    failing.append(1)
    session.submit(5, 6)
    found = samples(running)
    assert (found["ktlog_witness_ready"], found["ktlog_witness_record_failed"]) == (0, 1)
    assert found['ktlog_witness_requests_total{endpoint="add-checkpoint",status="503",reason="Poisoned"}'] == 1
    assert session.client.get("/readyz").data.startswith(b"Poisoned")
    session.witness.store.close()


class Following:
    """A verifier that caught one of its logs."""

    def status(self) -> list[dict]:
        replay = Replay("example.com", "https://example.com", bytes(32), (), ())
        progress = Progress(
            verdict=Verdict("WrongMap", "it lies", 1, b""), failure=EncodingError("Odd", "odd"), input_size=9,
            derived_size=7, violations=2,
        )
        return [_describe(replay, progress)]


def test_a_verifier_tells_how_far_it_is_and_whom_it_caught(session):
    running = run(session)
    assert not [name for name in samples(running) if "replay" in name]
    session.witness.verifier = Following()
    assert {name.partition("{")[0].removeprefix("ktlog_witness_replay_"): value
            for name, value in samples(running).items() if "_replay_" in name} == {
        "entries_behind": 2, "entries_derived": 7, "leaves_checked": 0, "violations": 2, "wrong": 1, "waiting": 1,
    }


def test_no_number_of_logs_and_of_reasons_makes_the_page_longer(monkeypatch):
    monkeypatch.setattr(metrics, "ORIGINS_LIMIT", 2)
    monkeypatch.setattr(metrics, "REASONS_LIMIT", 3)
    tally = Tally(lambda: 77)
    for number in range(5):
        tally.begin()
        tally.end("add-checkpoint", 200, "", 0.1, Checkpoint(f"log{number}", number, ROOT))
        tally.begin()
        tally.end("add-checkpoint", 400, f"Reason{number}", 0.1)
    counted = tally.counted()
    assert counted.origins == {("log0", 200): 1, ("log1", 200): 1, (OTHERS, 200): 3}
    assert counted.newest == {"log0": (0, 77), "log1": (1, 77)} and counted.newest_of_all == 77
    assert counted.answers == {
        ("add-checkpoint", 200, ""): 5, ("add-checkpoint", 400, "Reason0"): 1, ("add-checkpoint", 400, "Reason1"): 1,
        ("add-checkpoint", 400, "Other"): 3,
    }
    assert counted.in_progress == 0


def test_histograms_and_labels_are_written_as_prometheus_reads_them():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.1, 0.5, 7):
        histogram.observe(seconds)
    page = Page("x_")
    page.add_histograms("seconds", "Text.", [({"of": 'a"\\\n'}, histogram)])
    assert page.encode().decode().splitlines() == [
        "# HELP x_seconds Text.", "# TYPE x_seconds histogram",
        r'x_seconds_bucket{of="a\"\\\n",le="0.1"} 1', r'x_seconds_bucket{of="a\"\\\n",le="1.0"} 2',
        r'x_seconds_bucket{of="a\"\\\n",le="+Inf"} 3', r'x_seconds_sum{of="a\"\\\n"} 7.6',
        r'x_seconds_count{of="a\"\\\n"} 3',
    ]


def test_it_is_not_ready_while_it_drains_and_says_so_once(session, tmp_path):
    supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    supervisor.bind(str(tmp_path / "notify"))
    supervisor.setblocking(False)
    running = run(session, notifier=Notifier(str(tmp_path / "notify")))
    assert session.client.get("/readyz").status_code == 200
    running.drain()
    running.drain()
    assert supervisor.recv(100).startswith(b"STOPPING=1\n")
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)
    supervisor.close()
    answer = session.client.get("/readyz")
    assert (answer.status_code, answer.data[:8]) == (503, b"Draining")
    assert session.client.get("/livez").status_code == 200
    running.drain()  # nobody listens any more, and nothing happens


def test_a_supervisor_s_variables_are_taken_from_those_who_would_use_them():
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "PATH": "/bin"}
    notifier = Notifier.from_environment(environment)
    assert (notifier.address, notifier.watchdog_seconds, environment) == ("@x", 30.0, {"PATH": "/bin"})
    assert Notifier.from_environment({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notifier.from_environment({}).address == ""


# --- logs


@pytest.fixture
def logged():
    """What is logged in a form, line by line; the loggers are as they were afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()

    def start(form: str, level: str = "info") -> io.StringIO:
        configure(form, level, stream)
        return stream

    yield start
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_is_a_line_whatever_strangers_send(logged):
    log = logging.getLogger("ktlog.test")
    evil = 'a b\n2026-01-01 forged="1" \x1b[31m\u2028é'
    for form in ("logfmt", "json", "plain"):
        stream = logged(form)
        log.info("said %s", evil, extra=fields(origin=evil, size=7, none=None))
        (line,) = stream.getvalue().splitlines()
        stream.seek(0)
        stream.truncate()
        assert "\x1b" not in line and "none" not in line
        if form == "json":
            found = json.loads(line)
            assert (found["msg"], found["origin"], found["size"]) == (f"said {evil}", evil, 7)
        if form == "logfmt":
            assert " level=info logger=ktlog.test " in line and line.endswith(" size=7")
            assert json.loads(line.partition(" origin=")[2].removesuffix(" size=7")) == evil


def test_without_a_terminal_it_is_logfmt_and_a_signal_has_more_of_it(logged):
    stream = logged("auto", "warning")
    log = logging.getLogger("heard.test")  # no level of its own, nor of one above it but the root
    log.info("unheard")
    assert toggle_debug("warning") == "debug"
    log.debug("heard")
    assert toggle_debug("warning") == "warning"
    log.info("unheard")
    other = logging.getLogger("other.test")
    other.handlers, other.propagate = [logging.NullHandler()], False
    adopt("other.test")
    other.warning("heard too")
    lines = stream.getvalue().splitlines()
    assert [line.partition(" msg=")[2] for line in lines] == ["heard", '"heard too"']
    for form, level in (("xml", "info"), ("json", "loud")):
        with pytest.raises(UsageError):
            configure(form, level, stream)


def test_one_line_a_request_and_no_address_unless_asked(session, logged):
    stream = logged("json")
    run(session)
    session.submit(0, 3)
    session.post(Log("other.example").submission(0, 1), headers={"X-Forwarded-For": "192.0.2.7"})
    session.client.get("/livez")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["endpoint"], first["status"], first["origin"], first["size"]) == (
        "add-checkpoint", 200, session.log.origin, 3)
    assert (second["status"], second["reason"], second["origin"]) == (404, "UnknownOrigin", "other.example")
    assert first["id"] != second["id"] and "peer" not in second
    assert "192.0.2" not in stream.getvalue() and "127.0.0.1" not in stream.getvalue()


@pytest.mark.parametrize(("remote", "forwarded", "network", "full"), [
    ("192.0.2.7", "203.0.113.1", "192.0.2.0/24", "192.0.2.7"),  # not from a proxy: a claim
    ("127.0.0.1", "203.0.113.1, 192.0.2.7", "192.0.2.0/24", "192.0.2.7"),
    ("127.0.0.1", "nonsense", "127.0.0.0/24", "127.0.0.1"),
    ("2001:db8:1:2::3", "", "2001:db8:1::/48", "2001:db8:1:2::3"),
    ("", "", None, None),
])
def test_who_asks_as_far_as_the_operator_wants_to_know(remote, forwarded, network, full):
    environ = {"REMOTE_ADDR": remote, "HTTP_X_FORWARDED_FOR": forwarded}
    assert [peer_of(environ, addresses) for addresses in ("none", "network", "full")] == [None, network, full]


def test_request_ids_are_ours_unless_the_proxy_s_looks_like_one():
    ids = RequestIds()
    assert ids.take() != ids.take()
    assert ids.take("0123456789abcdef") == "0123456789abcdef"
    for odd in ("short", "a b c d e f g h", "x" * 65, "0123456789\n"):
        assert ids.take(odd) != odd


def test_warnings_and_worse_are_counted():
    counter = LevelCounter()
    log = logging.getLogger("ktlog.test.counted")
    log.addHandler(counter)
    log.warning("one")
    log.error("two")
    log.info("three")
    log.removeHandler(counter)
    assert counter.counts == {"warning": 1, "error": 1}


# --- the page


SAID = Said(
    operator="Ann <Example>", contact="ann@example.com", text="We rotate nothing.\n<script>", cadence="every 1h",
    pulled=("https://lists.example.net/log-list.1", "/home/ann/list"),
)


def test_for_a_shell_it_is_plain_and_for_a_browser_a_page(session):
    run(session, said=SAID)
    plain = session.client.get("/", headers={"Accept": "*/*"})
    assert plain.content_type == "text/plain; charset=utf-8"
    page = session.client.get("/", headers={"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"})
    assert page.content_type == "text/html; charset=utf-8"
    assert plain.headers["Vary"] == page.headers["Vary"] == "Accept"
    for text in (plain.text, page.text):
        for wanted in (
            NAME, *map(str, session.vkeys), f"https://{NAME}", "https://lists.example.net/log-list.1", "every 1h",
            "ann@example.com", "Logs followed", "We rotate nothing.", "/add-checkpoint",
        ):
            assert wanted in text
        assert "/home/ann" not in text
    # What the operator wrote is text, and no script runs in any case.
    assert "Ann &lt;Example&gt;" in page.text and "<script" not in page.text and "Ann <Example>" in plain.text
    assert page.headers["Content-Security-Policy"] == POLICY
    assert "script-src" not in POLICY and "unsafe" not in POLICY and POLICY.startswith("default-src 'none'; ")


# --- lists


def test_intervals():
    assert [parse_interval(text) for text in ("90s", "15m", "1h", "7d")] == [90, 900, 3600, 604_800]
    assert [format_interval(seconds) for seconds in (90, 900, 3600, 604_800)] == ["90s", "15m", "1h", "7d"]
    for wrong in ("", "1", "59s", "8d", "0h", "-1h", "1 h", "1H", "9999999d"):
        with pytest.raises(UsageError, match="BadInterval"):
            parse_interval(wrong)


def test_a_list_that_fails_ends_nothing_and_one_that_changes_a_key_is_told_once(session, tmp_path, caplog):
    source = tmp_path / "list"
    puller = Puller(session.directory.path, [str(source)], 3600)
    running = run(session, puller=puller)
    assert puller.pull_once(str(source)) is False
    source.write_text("nonsense")
    assert puller.pull_once(str(source)) is False
    other = Log("example.org/listed")
    changed = Log(session.log.origin, seed=9)
    source.write_text("logs/v0\n" + "".join(
        f"vkey {log.vkeys[0]}\nqpd 86400\ncontact somebody\n" for log in (other, changed)
    ))
    for _ in range(2):
        assert puller.pull_once(str(source)) is True
    assert session.post(other.submission(0, 1)).status_code == 200
    assert session.post(changed.submission(0, 1)).status_code == 403
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    found = samples(running)
    assert found[f'ktlog_witness_list_failures_total{{list="{source}"}}'] == 2
    assert found[f'ktlog_witness_list_warnings{{list="{source}"}}'] == 1


# --- options


@pytest.mark.parametrize(("options", "name"), [
    (["--metrics-listen", "0.0.0.0:0"], "BadListen"), (["--metrics-listen", "somewhere"], "BadListen"),
    (["--pull-logs", "http://lists.example.net/l"], "BadSource"), (["--every", "5"], "BadInterval"),
    (["--replay", "--pull-logs", "list"], "VerifierDirectory"), (["--public-url", "http://w1.example"], "BadAddress"),
    (["--operator", "two\nlines"], "BadAbout"), (["--about", "odd"], "BadAbout"), (["--about", "none"], "MissingStore"),
])
def test_what_cannot_be_meant_is_refused_before_anything_is_served(session, tmp_path, monkeypatch, options, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd").write_bytes(b"\x1b[2J")
    session.witness.store.close()
    result = CliRunner().invoke(cli.main, ["serve", "--dir", str(session.directory.path), *options])
    assert result.exit_code in (2, 8) and f" {name}: " in result.stderr, result.output
