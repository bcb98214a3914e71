"""Sequenced, integrated, published, mapped: what a log says of how it does, and to whom."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from ktlog import __version__
from ktlog.errors import EncodingError, UsageError
from ktlog.operator.freshness import Fresh
from ktlog.operator.numbers import (
    CODES_LIMIT,
    Numbers,
    Refusals,
    as_members,
    format_metrics,
)
from ktlog.operator.sources import MirrorStatus
from ktlog.pkd.canonical import canonical
from ktlog.wire.prometheus import LATENCY_BOUNDS, MetricsServer, parse_metrics_listen

NUMBERS = Numbers(
    sequenced=9, integrated=8, published=7, mapped=6, waiting=2, accepted=5, batches=3, commit_seconds=0.5,
    batch_seconds=0.75, refused={("web", "bad_signature"): 4, ("sequencer", "merkle_root_stale"): 1},
    free_bytes=4096, now=5000, log=Fresh(4990, {"w1": 4980, "w2": 1000}), map=Fresh(4000, {"v1": 3999}),
    oldest_seconds=0.25, database_bytes={"map": 64, "log": 128}, tiles_bytes=512,
    messages={("AddKey", "accepted"): 5, ("AddKey", "known"): 1, ("Fireproof", "refused"): 2}, blocked=3,
    backup=4000, mirrors={
        "b.example": MirrorStatus(tree_size=7, last_success=4500),
        "a.example": MirrorStatus(tree_size=9, last_success=4400, error="Forked", stopped=True),
    },
)
NUMBERS.fetches.observe(0.3)


def test_as_prometheus_reads_it():
    lines = format_metrics(NUMBERS).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'ktlog_entries{stage="sequenced"} 9', 'ktlog_entries{stage="integrated"} 8',
        'ktlog_entries{stage="published"} 7', 'ktlog_entries{stage="mapped"} 6',
        'ktlog_checkpoint_age_seconds{log="log"} 10', 'ktlog_checkpoint_age_seconds{log="map"} 1000',
        "ktlog_heartbeat_seconds 600",
        'ktlog_witness_cosign_age_seconds{log="log",witness="w1"} 20',
        'ktlog_witness_cosign_age_seconds{log="log",witness="w2"} 4000',
        'ktlog_witness_cosign_age_seconds{log="map",witness="v1"} 1001',
        'ktlog_witnesses_fresh{log="log"} 1', 'ktlog_witnesses_fresh{log="map"} 1',
        "ktlog_queue_depth 2", "ktlog_queue_oldest_seconds 0.25",
        'ktlog_database_bytes{database="log"} 128', 'ktlog_database_bytes{database="map"} 64',
        "ktlog_tiles_bytes 512", "ktlog_free_bytes 4096", "ktlog_paused 0",
        "ktlog_accepted_total 5", "ktlog_batches_total 3", "ktlog_commit_seconds_total 0.5",
        "ktlog_batch_seconds_total 0.75", 'ktlog_refused_total{by="sequencer",code="merkle_root_stale"} 1',
        'ktlog_refused_total{by="web",code="bad_signature"} 4',
        *(f'ktlog_rate_limited_total{{scope="{scope}"}} 0' for scope in ("sender", "sender_at_once", "actor", "log")),
        'ktlog_messages_total{action="AddKey",result="accepted"} 5', 'ktlog_messages_total{action="AddKey",result="known"} 1',
        'ktlog_messages_total{action="Fireproof",result="refused"} 2',
        *(f'ktlog_fetch_seconds_bucket{{le="{bound}"}} {int(bound >= 0.3)}' for bound in LATENCY_BOUNDS),
        'ktlog_fetch_seconds_bucket{le="+Inf"} 1', "ktlog_fetch_seconds_sum 0.3", "ktlog_fetch_seconds_count 1",
        "ktlog_ssrf_blocked_total 3", "ktlog_backup_timestamp_seconds 4000",
        'ktlog_mirror_entries{origin="a.example"} 9', 'ktlog_mirror_entries{origin="b.example"} 7',
        'ktlog_mirror_success_timestamp_seconds{origin="a.example"} 4400',
        'ktlog_mirror_success_timestamp_seconds{origin="b.example"} 4500',
        'ktlog_mirror_failing{origin="a.example"} 1', 'ktlog_mirror_failing{origin="b.example"} 0',
        'ktlog_mirror_stopped{origin="a.example"} 1', 'ktlog_mirror_stopped{origin="b.example"} 0',
        "ktlog_time_seconds 5000", f'ktlog_build_info{{version="{__version__}"}} 1',
    ]
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    plain = {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert named == {name for name in plain if not name.startswith("ktlog_fetch")} | {"ktlog_fetch_seconds"}


def test_whose_limit_it_was():
    refused = {("web", "rate_limited"): 2, ("sequencer", "overloaded"): 1, ("web", "overloaded"): 4, ("web", "x"): 8}
    lines = format_metrics(replace(NUMBERS, refused=refused)).decode().splitlines()
    assert {line for line in lines if line.startswith("ktlog_rate_limited_total")} == {
        'ktlog_rate_limited_total{scope="sender"} 2', 'ktlog_rate_limited_total{scope="log"} 5',
        'ktlog_rate_limited_total{scope="sender_at_once"} 0', 'ktlog_rate_limited_total{scope="actor"} 0',
    }


def test_as_an_answer_s_members():
    members = as_members(NUMBERS)
    canonical(members)
    assert (members["sequenced"], members["commit-seconds"]) == ("9", "0.500000")
    assert members["refused"] == {"sequencer/merkle_root_stale": "1", "web/bad_signature": "4"}


def test_without_backups_and_mirrors_nothing_is_said_of_them():
    bare = replace(NUMBERS, backup=None, mirrors={})
    assert b"backup" not in format_metrics(bare) and b"mirror" not in format_metrics(bare)
    assert "backup-age" not in as_members(bare)
    assert as_members(NUMBERS)["backup-age"] == "1000"
    assert as_members(replace(NUMBERS, backup=6000))["backup-age"] == "0"  # a clock that was set back


def test_refusals_are_counted_and_no_code_breaks_a_line():
    refusals = Refusals()
    for _ in range(2):
        refusals.add("web", "too_large", 3)
    assert refusals.counts() == {("web", "too_large"): 6}
    for wrong in ("", "Upper", 'x"', "x\n", "x" * 65):
        with pytest.raises(EncodingError):
            refusals.add("web", wrong)
    for number in range(CODES_LIMIT - 1):
        refusals.add("web", f"code_{number}")
    with pytest.raises(EncodingError):
        refusals.add("web", "one_too_many")
    refusals.add("web", "too_large")


@pytest.mark.parametrize(("text", "listen"), [
    ("127.0.0.1:9464", "127.0.0.1:9464"), ("127.0.0.9:1", "127.0.0.9:1"), ("[::1]:9464", "[::1]:9464"),
    ("0.0.0.0:9464 public", "0.0.0.0:9464"), ("127.0.0.1:9464 public", "127.0.0.1:9464"),
])
def test_where_it_listens(text, listen):
    assert parse_metrics_listen(text) == listen


@pytest.mark.parametrize("text", [
    "", "9464", "0.0.0.0:9464", "192.0.2.1:9464", "[::]:9464", "0.0.0.0:9464 Public", "0.0.0.0:9464  public",
    "fd://3", "fd://3 public", "localhost:9464",
])
def test_nobody_else_s_to_read_unless_told(text):
    with pytest.raises(UsageError, match="BadListen"):
        parse_metrics_listen(text)


def test_over_http():
    server = MetricsServer("127.0.0.1:0", lambda: format_metrics(NUMBERS))
    url = f"http://127.0.0.1:{server.address[1]}"
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert answer.read() == format_metrics(NUMBERS)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/", timeout=10)
    finally:
        server.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/metrics", timeout=10)
