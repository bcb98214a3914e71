"""The server that the workers of a run share: it ends with the last of them, and no worker waits for another."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from tests.machine import need
from tests.postgres_server import SECONDS, shared_cluster


def test_who_ends_first_waits_for_nobody_and_the_last_leaves_nothing(tmp_path: Path) -> None:
    need("postgres")
    first, second = ExitStack(), ExitStack()
    cluster = first.enter_context(shared_cluster(tmp_path))
    second.enter_context(shared_cluster(tmp_path))
    began = time.monotonic()
    first.close()  # the one that started the server
    assert time.monotonic() - began < SECONDS / 4 and cluster.answers()
    second.close()
    while cluster.directory.exists():
        assert time.monotonic() - began < 2 * SECONDS
        time.sleep(0.05)


def test_the_only_one_waits_until_it_is_gone(tmp_path: Path) -> None:
    need("postgres")
    with shared_cluster(tmp_path) as cluster:
        assert cluster.answers()
    assert not cluster.directory.exists()
