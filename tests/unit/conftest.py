"""For tests of what goes over HTTPS: a server that answers what the test says, and a fetcher that finds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog.wire.fetch import Fetcher
from tests.tls_server import TlsServer


@pytest.fixture(scope="session")
def pki_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pki")


@pytest.fixture
def server(pki_directory: Path) -> Iterator[TlsServer]:
    server = TlsServer(pki_directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fetcher(server: TlsServer) -> Iterator[Fetcher]:
    with Fetcher(server.dial(), timeout=5) as fetcher:
        yield fetcher
