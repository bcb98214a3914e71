"""What the benchmarks are made of counts right, finds what was lost, and says whether a goal is met."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ktlog.bench import calibrate, neighbours
from ktlog.bench.acks import check_acks, refusals
from ktlog.bench.getter import get
from ktlog.bench.load import Answer, Plan, read_answer, read_plan, write_plan
from ktlog.bench.logs import check_numbers, marks_of, raw_settings
from ktlog.bench.mapped import build, trust_policy
from ktlog.bench.messages import prepare, request_of
from ktlog.bench.names import ORIGIN, actor_name, bytes_of
from ktlog.bench.prefilled import prefilled
from ktlog.bench.rawlog import RawLog
from ktlog.bench.reading import check_page
from ktlog.bench.reads import actor_names, measure
from ktlog.bench.row import Row, cpu_rows, percentile
from ktlog.bench.usage import Server, Usage, counting_syncs, holders
from ktlog.errors import EncodingError, Invalid, MessageRejected, StoreError, Unreachable, UsageError
from ktlog.operator.activity import open_envelope, parse_activity
from ktlog.operator.create import create_log
from ktlog.operator.keys import load_seed
from ktlog.operator.stores import open_log
from ktlog.operator.witnessing import format_request
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.hpke import DecapsulationKey, open_message
from ktlog.pkd.keys import pkd_root
from ktlog.pkd.messages import open_message_attributes, parse_wire
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.note import parse_signature_lines, sign_checkpoint, signer_from_seed, verify_line
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash
from ktlog.wire.actor import parse_actor
from ktlog.wire.httpsig import verify_request
from tests.machine import need

ACTORS = 300
NOW = 1_800_000_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    told = []
    settings = build(tmp_path_factory.mktemp("bench") / "log", ACTORS, told.append)
    assert told == [ACTORS]
    return settings


# The prefilled log


def test_a_log_is_filled_once_and_used_again(filled):
    assert prefilled(filled.directory, ACTORS) == filled
    assert len(actor_names(filled)) == ACTORS
    with pytest.raises(UsageError, match="NotPrefilled"):
        prefilled(filled.directory, ACTORS + 1)
    with pytest.raises(StoreError, match="DirectoryInUse"):
        build(filled.directory, 1)


def test_a_log_that_nobody_uses_cannot_be_measured(tmp_path):
    settings = create_log(tmp_path / "log", ORIGIN, "spec", None)
    with pytest.raises(UsageError, match="NoActors"):
        measure([settings.directory], 1)


def test_a_worker_that_does_not_start_is_told(filled, monkeypatch):
    monkeypatch.setenv("KTLOG_THREADS", "none")
    monkeypatch.setattr("ktlog.bench.reads.load_settings", lambda directory: filled)
    with pytest.raises(Unreachable, match="NoWorker"):
        measure([filled.directory], 1)


# Messages and neighbours


def test_prepared_messages_are_what_a_log_takes(filled, monkeypatch):
    monkeypatch.setattr("ktlog.bench.messages.EACH", 2)
    groups = prepare(filled, 3, "t", NOW)
    assert [len(group) for group in groups] == [2, 1]
    message = groups[0][1]
    assert message.actor_id == "https://instance00.example/users/tn0"
    content = open_envelope(parse_activity(message.body, filled.actor_id).content)
    hpke = DecapsulationKey.from_seed(load_seed(filled.keys, "hpke"))
    wire = parse_wire(SPEC, open_message(hpke, content.encrypted))
    assert sha256(wire.preimage).digest() == message.digest
    assert open_message_attributes(SPEC, wire, commitments=True).actor == message.actor_id  # and its commitments hold
    # Its HTTP signature is by the key in the document that the instance gives out.
    head, _, body = request_of(message, NOW, "2001:db8::1").partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    assert first == "POST /users/pubkeydir/inbox HTTP/1.1" and body == message.body
    document = parse_actor(_json(neighbours.answer("GET", "instance00.example", "/users/tn0", b"")), message.actor_id)
    keys = {key.id: key for key in document.assertion_method}
    verify_request("POST", f"{filled.actor_id}/inbox", headers, body, keys.__getitem__, NOW)


def _json(answered):
    status, _, body = answered
    assert status == 200
    return json.loads(body)


def test_the_cosigners_sign_what_the_publish_policy_asks_for(filled):
    signer = signer_from_seed(ORIGIN, 1, bytes(32))
    checkpoint = Checkpoint(ORIGIN, 5, bytes(32))
    body = format_request(2, [bytes(32)], sign_checkpoint(checkpoint, [signer], NOW))
    for witness in trust_policy(filled).witnesses.values():
        host = witness.url.removeprefix("https://")
        status, _, lines = neighbours.answer("POST", host, "/add-checkpoint", body)
        assert status == 200
        found = [line for line in parse_signature_lines(lines) if line.key_id == witness.vkey.key_id]
        assert [verify_line(witness.vkey, format_checkpoint(checkpoint), line) > 0 for line in found] == [True]
    assert neighbours.answer("GET", "w1.bench.invalid", "/x/checkpoint", b"")[0] == 404
    assert neighbours.answer("POST", "instance00.example", "/users/a/inbox", b"{}")[0] == 202


# What came back


def test_an_acknowledgement_that_the_log_does_not_keep_is_found(filled, monkeypatch):
    with open_log(filled, read_only=True) as store:
        entry, root = store.entries(7, 8)[0], pkd_root(8, store.root_after(8))
    kept = Answer(0, 0.0, 0.1, 202, "", 7, sha256(entry).hexdigest(), root)
    message = b"m" * 32
    monkeypatch.setattr("ktlog.bench.acks.parse_entry", lambda data: (SPEC, type("E", (), {"message_hash": message})))
    assert check_acks(filled, [(kept, message), (replace(kept, code="repeated"), message)]) == 1
    assert check_acks(filled, [(replace(kept, status=503), b"")]) == 0
    for wrong, digest in (
        (replace(kept, index=ACTORS), message), (replace(kept, index=8), message), (kept, b"n" * 32),
        (replace(kept, root=pkd_root(9, bytes(32))), message),
    ):
        with pytest.raises(StoreError, match="AckLost"):
            check_acks(filled, [(wrong, digest)])


def test_answers_are_read_and_refusals_counted():
    taken = b'{"leaf-index":4,"merkle-leaf":"AAAA","merkle-root":"r"}'
    answer = read_answer(2, 1.0, 0.5, 202, taken)
    assert answer == Answer(2, 1.0, 0.5, 202, "", 4, sha256(bytes(3)).hexdigest(), "r")
    refused = [read_answer(0, 0.0, 0.0, status, body) for status, body in (
        (429, b'{"code":"rate_limited"}'), (503, b"busy"), (0, b""), (503, b"busy"), (202, taken),
    )]
    assert refusals(refused) == {"429 rate_limited": 1, "503": 2, "no answer": 1}


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = Plan(80, 4, rate=2.5, workers=(1, 2), again=True)
    write_plan(tmp_path / "plan", plan, [[b"a", b"bc"], [b"\x00" * 70_000]])
    assert read_plan(tmp_path / "plan") == (plan, [deque([b"a", b"bc"]), deque([b"\x00" * 70_000])])


# Raw entries


def test_raw_entries_get_their_indexes_once_they_are_durable(tmp_path):
    settings = raw_settings(tmp_path / "log", checkpoint_interval_ms=50)

    async def append(entries):
        log = RawLog(settings)
        found = await asyncio.gather(*map(log.append, entries))
        await log.close()
        return found

    first = asyncio.run(append([b"a", b"b", b"a", b"c"]))
    assert first == [0, 1, 0, 2]  # the same bytes have one index
    assert asyncio.run(append([b"d", b"b"])) == [3, 1]
    with open_log(settings, read_only=True) as store:
        assert store.entries(0, 4) == (b"a", b"b", b"c", b"d")
        root = store.root_after(4)
    checkpoint = parse_signed_checkpoint((settings.tiles / "checkpoint").read_bytes())[1]
    assert checkpoint == Checkpoint(ORIGIN, 4, root)


def test_a_full_queue_refuses(tmp_path):
    async def flood():
        log = RawLog(raw_settings(tmp_path / "log"), queue_limit=3)
        with pytest.raises(MessageRejected, match="overloaded"):
            for number in range(10_000):
                log.append(b"%d" % number)
        await log.close()

    asyncio.run(flood())


def test_raw_entries_are_compared_with_what_was_acknowledged(tmp_path):
    settings = raw_settings(tmp_path / "log")

    async def append():
        log = RawLog(settings)
        await asyncio.gather(*(log.append(b"entry %d" % number) for number in range(5)))
        await log.close()

    asyncio.run(append())
    assert check_numbers(settings, [0, 1, -1, 3, 4], lambda number: b"entry %d" % number, 0) == 4
    with pytest.raises(StoreError, match="AckLost"):
        check_numbers(settings, [0, 2, 1], lambda number: b"entry %d" % number, 0)


def test_a_run_is_looked_at_from_its_smallest_size_to_its_end():
    assert marks_of(1_000_000) == [10_000, 100_000, 1_000_000]
    assert marks_of(20_000) == [10_000, 20_000] and marks_of(500) == [50, 500]


# Answers to readers


def test_an_answer_that_does_not_verify_is_found():
    leaves = [hash_leaf(bytes_of(f"entry {number}")) for number in range(9)]
    read = leaf_reader(leaves)
    checkpoint = Checkpoint(ORIGIN, 9, root_hash(9, read))
    proof = [encode_base64url(node) for node in prove_inclusion(5, 9, read)]
    page = {
        "actor-id": actor_name(5), "merkle-root": pkd_root(9, checkpoint.root),
        "public-keys": [{"leaf-index": 5, "inclusion-proof": proof}],
    }
    check_page(checkpoint, actor_name(5), page)
    with pytest.raises(EncodingError, match="BadPage"):
        check_page(checkpoint, actor_name(6), page)
    with pytest.raises(EncodingError, match="BadPage"):
        check_page(replace(checkpoint, root=bytes(32)), actor_name(5), page)
    page["public-keys"][0]["inclusion-proof"] = [*proof[:-1], encode_base64url(bytes(32))]
    with pytest.raises(Invalid):
        check_page(checkpoint, actor_name(5), page)


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"body")

    def log_message(self, *_):
        pass


def test_what_is_got_is_counted_and_a_refusal_ends_it(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        server, port = Server(os.getpid()), site.server_address[1]
        got = get(server, port, ORIGIN, ["/a", "/b"], 0.2, tmp_path, connections=1, in_flight=3)
        assert got.count > 0 and got.size == 4 * got.count and got.p99_ms >= got.p50_ms > 0
        assert (got.kept[0].target, got.kept[0].body) == ("/a", b"body")
        with pytest.raises(Unreachable, match="BadStatus"):
            get(server, port, ORIGIN, ["/a", "/none"], 5.0, tmp_path)
        site.shutdown()


# Processes


def test_processes_are_told_apart_and_their_use_is_counted():
    words = [sys.executable, "-c", "import sys; sum(range(10**6)); print(1, flush=True); sys.stdin.read()"]
    with subprocess.Popen([*words, "ktlog.web.service"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        server = Server(process.pid)
        assert server.kinds() == {process.pid: "web"}
        assert server.usage().cpu["web"] > 0 and server.resident() > 2**20 and max(server.peaks()) >= server.resident()
        process.stdin.close()
    used = Usage({"web": 3.0, "signer": 1.0}, 50) - Usage({"web": 1.0}, 20)
    assert used == Usage({"web": 2.0, "signer": 1.0}, 30) and used.seconds == 3.0


def test_syncs_are_counted(tmp_path):
    need("strace")
    code = (
        "import os, sys\nfile = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "for line in sys.stdin:\n    os.fsync(file); os.fdatasync(file); print(1, flush=True)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "file")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        with counting_syncs([process.pid]) as syncs:
            for _ in range(3):
                process.stdin.write("\n")
                process.stdin.flush()
                process.stdout.readline()
        process.stdin.close()
    assert syncs.value == 6


def test_without_strace_syncs_are_not_counted(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with counting_syncs([os.getpid()]) as syncs:
        pass
    assert syncs.value is None


def test_connections_are_known_by_who_holds_them():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted = listener.accept()[0]
        assert holders(listener.getsockname()[1], [os.getpid()]) == {client.getsockname()[1]: os.getpid()}
        accepted.close()


def test_argon2id_is_computed_in_as_many_processes_as_were_asked_for():
    assert calibrate.argon2_rate(2, 1, 0.2) > 1 and 0 < calibrate.argon2_alone() < 10


# Rows


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1, 100)])
def test_percentiles(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_cpu_is_told_of_kinds_that_had_a_share():
    rows = cpu_rows("reads", {"web": 2.0, "signer": 1.0, "replies": 0.001, "load generator": 0.0}, 500)
    assert [(row.work, row.measured) for row in rows] == [
        ("reads: CPU for 1,000, load generator", 0.0), ("reads: CPU for 1,000, signer", 2.0),
        ("reads: CPU for 1,000, web", 4.0),
    ], "and always of what is not the log's"


def test_a_row_says_whether_its_goal_is_met():
    assert Row("a", 5, "ms", 5).met is True and Row("a", 5.1, "ms", 5).met is False
    assert Row("a", 299, "/s", 300, at_least=True).met is False and Row("a", 300, "/s", 300, at_least=True).met
    assert Row("a", 300, "ms", 2.0, peer=100, ratio=3.0).met is False and Row("a", 1, "ms", None).met is None
    line = Row("batch", 300, "ms", 2.0, cpu_ms=12.3456, peer=150, ratio=2.0).as_line()
    assert line.split() == ["batch", "300", "ms", "12.3", "150", "2.00", "<=", "2", "x", "met"]
