"""A log on several machines: two front ends and two sequencers over one PostgreSQL database, as processes.

Whichever sequencer ends, and however, the other takes over. Nothing acknowledged is lost or there twice, and what is
published never goes back.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from ktlog.client import Built, SigningKey, add_key, build_envelope, enrol, seal
from ktlog.keymap.bundle import Presented, parse_bundle
from ktlog.keymap.value import parse_value
from ktlog.operator.stores import open_log
from ktlog.pkd.keys import pkd_root
from ktlog.tlog.encoding import decode_base64url
from tests.machine import need

need("postgres")

import boto3  # noqa: E402 - after what may be missing

from tests.front_ends import SEQUENCERS, WEB, FrontEnds  # noqa: E402 - psycopg may be missing
from tests.object_stores import credentials, moto  # noqa: E402
from tests.objects_server import BUCKET  # noqa: E402
from tests.running_log import USERS, actor  # noqa: E402

pytestmark = pytest.mark.slow


@contextmanager
def machines(directory: Path, url: str, **settings: str) -> Iterator[FrontEnds]:
    log = FrontEnds(directory, url, **settings)
    try:
        log.wait("both front ends", lambda: all(ready(log, name) for name in WEB))
        yield log
        assert "Traceback" not in log.output()
    finally:
        log.stop()


def ready(log: FrontEnds, name: str) -> bool:
    try:
        return log.by(name).get("/readyz").status == 200
    except OSError:
        return False


def keys_at(log: FrontEnds, name: str, user: str) -> int:
    """How many keys the published map has of *user*, as the front end *name* says."""
    found = log.by(name).get(f"/map/bundle/{quote(actor(user), safe='')}")
    outcome = parse_bundle(found.body).outcome if found.status == 200 else None
    return len(parse_value(outcome.value).keys) if isinstance(outcome, Presented) else 0


def head_at(log: FrontEnds, name: str) -> int:
    try:
        found = log.by(name).get("/checkpoint")
    except OSError:
        return 0
    return int(found.body.split(b"\n")[1]) if found.status == 200 else 0


def test_two_front_ends_and_an_orderly_change_of_sequencers(tmp_path, postgres_url):
    with machines(tmp_path, postgres_url) as log:
        first = log.active()
        (second,) = set(SEQUENCERS) - {first}
        log.wait("the other to stand by", lambda: "standing by: " in log.output_of(second))
        assert log.by("web1").enrol("a01").json()["leaf-index"] == 0
        assert log.by("web2").enrol("a02").json()["leaf-index"] == 1
        log.wait("both in both maps", lambda: all(keys_at(log, name, user) for name in WEB for user in USERS[:2]))

        os.kill(log.pids(first)["supervisor"], signal.SIGTERM)
        assert log.by("web1").enrol("a03").json()["leaf-index"] == 2, "sent before the next one had begun"
        assert log.by("web2").enrol("a04").json()["leaf-index"] == 3
        assert log.active() == second
        log.processes.stop(first)
        log.wait("all in both maps", lambda: all(keys_at(log, name, user) for name in WEB for user in USERS[:4]))
        assert head_at(log, "web1") == head_at(log, "web2") == 4


def test_with_files_in_an_object_store_too(tmp_path, postgres_url):
    """Then nothing but keys and settings lies on any machine, and sequencers change as well."""
    with credentials(), moto() as endpoint, machines(
        tmp_path, postgres_url, objects=f"s3://{BUCKET}/log", objects_endpoint=endpoint,
    ) as log:
        first = log.active()
        assert log.by("web1").enrol("a01").json()["leaf-index"] == 0
        log.wait("the first in both maps", lambda: all(keys_at(log, name, "a01") for name in WEB))
        os.kill(log.pids(first)["supervisor"], signal.SIGKILL)
        assert log.by("web2").enrol("a02").json()["leaf-index"] == 1
        log.processes.stop(first)
        log.wait("the second in both maps", lambda: all(keys_at(log, name, "a02") for name in WEB))
        assert log.active() != first and head_at(log, "web1") == head_at(log, "web2") == 2
        bucket = boto3.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")
        stored = {one["Key"] for one in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]}
        assert {"log/checkpoint", "log/map/checkpoint", "log/tile/0/000.p/2", "log/tile/entries/000.p/2"} <= stored
        assert not [path for path in log.directory.rglob("tiles/*") if path.is_file()]


@dataclass
class Sender:
    """Lets one user enrol and add keys, each message until it is acknowledged, by turns through both front ends.

    acknowledged: what each message was, and the answer.
    """

    log: FrontEnds
    user: str
    count: int
    acknowledged: list[tuple[bytes, dict]] = field(default_factory=list)

    def run(self) -> None:
        for number in range(self.count):
            answer = None
            while answer is None:
                built = self._build(number)
                answer = self._send(built, number)
            self.acknowledged.append((built.preimage, answer))

    def _build(self, number: int) -> Built:
        key, root, now = self.log.keys[self.user], self.log.root(), int(time.time())
        if number == 0:
            return enrol(actor(self.user), key, recent_root=root, now=now)
        return add_key(actor(self.user), SigningKey.generate().public_key, key, recent_root=root, now=now)

    def _send(self, built: Built, number: int) -> dict | None:
        """The same message until it is acknowledged; None if the log went on so far that it has to be signed anew."""
        content = build_envelope(actor(self.user), seal(built, self.log.hpke()))
        body = json.dumps(self.log.activity(content, self.user)).encode()
        for attempt in range(300):
            answer = self.log.by(WEB[(number + attempt) % 2]).post(body, self.user)
            if answer.status == 202:
                return answer.json()
            if answer.status == 400 and answer.json()["code"] == "merkle_root_stale":
                return None
            assert answer.status in (429, 503), answer.body
            threading.Event().wait(0.2)
        raise AssertionError("never accepted")


@pytest.mark.slow
def test_the_sequencer_is_killed_while_both_front_ends_take_messages(tmp_path, postgres_url):
    with machines(tmp_path, postgres_url) as log:
        log.hpke()
        heads: dict[str, list[int]] = {name: [] for name in WEB}
        watching, count = threading.Event(), 12

        def watch() -> None:
            while not watching.wait(0.05):
                for name in WEB:
                    heads[name].append(head_at(log, name))

        watcher = threading.Thread(target=watch)
        watcher.start()
        senders = [Sender(log, user, count) for user in USERS]
        with ThreadPoolExecutor(len(senders)) as pool:
            done = [pool.submit(sender.run) for sender in senders]
            log.wait("some messages", lambda: sum(len(sender.acknowledged) for sender in senders) >= len(USERS) * 3
                     or any(one.done() for one in done))
            first = log.active()
            log.kill(first)
            for one in done:
                one.result()
        (second,) = set(SEQUENCERS) - {first}
        assert log.active() == second and "this sequencer has the lease" in log.output_of(second)
        total = len(USERS) * count
        log.wait("all published at both", lambda: all(head_at(log, name) == total for name in WEB))
        log.wait("the map", lambda: all(keys_at(log, name, user) == count for name in WEB for user in USERS))
        watching.set()
        watcher.join()
        for sizes in heads.values():
            known = [size for size in sizes if size]  # 0: no answer, or none yet
            assert known == sorted(known), "a checkpoint went back"
        check_log(log, senders, total)


def check_log(log: FrontEnds, senders: list[Sender], total: int) -> None:
    """Every acknowledged message is in the log at its index, and nothing is there twice."""
    with closing(open_log(log.settings, read_only=True)) as store:
        assert store.state().size == total
        records = store.records(0, total)
    acknowledged = [one for sender in senders for one in sender.acknowledged]
    assert sorted(answer["leaf-index"] for _, answer in acknowledged) == list(range(total))
    for preimage, answer in acknowledged:
        record = records[answer["leaf-index"]]
        assert record.preimage == preimage and record.entry == decode_base64url(answer["merkle-leaf"])
        assert pkd_root(record.leaf_index + 1, record.root) == answer["merkle-root"]
