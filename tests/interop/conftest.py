"""The other implementations, built once a run; what they need of the machine is said where it is missing."""

from __future__ import annotations

import os
from urllib.request import urlopen

import pytest

from ktlog.demo.processes import Processes, listen_on_loopback
from ktlog.tlog.note import Vkey, parse_vkey
from tests.interop_peers import SECONDS, Peer, build
from tests.machine import need
from witness.cli import main as witness_command
from witness.config import WitnessDir
from witness.store import WitnessStore


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "interop":
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.slow)  # with an empty build cache Go compiles for a minute or two


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Where the programs are."""
    need("go")
    base = tmp_path_factory.getbasetemp()
    return build((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "interop")


def _peer(name, built, tmp_path_factory):
    peer = Peer(built / name, tmp_path_factory.mktemp(name) / "words")
    yield peer
    peer.stop()


@pytest.fixture(scope="session")
def tessera(built, tmp_path_factory):
    yield from _peer("tessera", built, tmp_path_factory)


@pytest.fixture(scope="session")
def torchwood(built, tmp_path_factory):
    yield from _peer("torchwood", built, tmp_path_factory)


class OurWitness:
    """``ktlog-witness serve``, a process of its own."""

    def __init__(self, path, processes: Processes) -> None:
        self.path, self._processes = path, processes
        self._run("init", "--name", "example.com/w1")
        store = WitnessStore.open(WitnessDir(path).database, read_only=True)
        self.vkeys: tuple[Vkey, ...] = tuple(map(parse_vkey, store.vkeys))
        store.close()
        listener = listen_on_loopback()
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        processes.start("witness", "witness", ["serve", "--dir", str(path)], listener)
        assert urlopen(f"{self.url}/readyz", timeout=SECONDS).status == 200  # it answers when it has started

    def _run(self, command: str, *arguments: str) -> None:
        witness_command.main([command, "--dir", str(self.path), *arguments], standalone_mode=False)

    def add_log(self, *vkeys: str) -> None:
        self._run("add-log", *vkeys)


@pytest.fixture(scope="module")
def our_witness(tmp_path_factory):
    """One for all the tests of a module: each test has a log of another name."""
    path = tmp_path_factory.mktemp("our-witness")
    processes = Processes(path / "logs", {})
    try:
        yield OurWitness(path / "w1", processes)
        assert processes.ended() == []
        assert b"Traceback" not in (path / "logs" / "witness.log").read_bytes()
    finally:
        processes.stop_all()
