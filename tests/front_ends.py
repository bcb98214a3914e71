"""A log on PostgreSQL as it runs on four machines: two front ends, and two sequencers of which one stands by.

Each has a directory of its own, and only the keys that its role needs. The published files lie in a directory that all
of them share.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from ktlog.config import load_settings, write_settings
from ktlog.demo.processes import listen_on_loopback
from tests.running_log import SECONDS, Answer, RunningLog

WEB, SEQUENCERS = ("web1", "web2"), ("seq1", "seq2")
WEB_KEYS = ("hpke", "http-ed25519", "http-mldsa44", "fetch-rsa")


class FrontEnds(RunningLog):
    """Requests go through the TLS front to ``web1``; through :meth:`by` to either."""

    def __init__(self, directory: Path, url: str, **settings: Any) -> None:
        self.url = url
        self.ports: dict[str, int] = {}
        self._by: int | None = None
        super().__init__(directory, store=url, **settings)

    def _log_command(self) -> tuple[str, str, list[str]]:
        for name in (*WEB, *SEQUENCERS):
            self._make_machine(name)
        return self._command("web1")

    def _command(self, name: str) -> tuple[str, str, list[str]]:
        return name, "ktlog", ["serve", "--dir", str(self.directory / name)]

    def _make_machine(self, name: str) -> None:
        origin = self.settings.directory
        shutil.copytree(origin, self.directory / name, ignore=shutil.ignore_patterns("tiles", "*.lock", "*.db*"))
        (self.directory / name / "tiles").symlink_to(origin / "tiles")
        if name in WEB:
            for key in (self.directory / name / "keys").iterdir():
                if not key.name.startswith(WEB_KEYS):
                    key.unlink()
        role = "web" if name in WEB else "sequencer"
        write_settings(replace(load_settings(origin, environment={}), directory=self.directory / name, role=role))

    def _start(self) -> None:
        super()._start()
        for name in ("web2", *SEQUENCERS):
            listener = listen_on_loopback()
            self.ports[name] = listener.getsockname()[1]
            self.processes.start(*self._command(name), listener)
        self.ports["web1"] = next(running.port for running in self.processes.running() if running.name == "web1")

    def output(self) -> str:
        return "\n".join(f"== {name}\n{self.output_of(name)}" for name in (*WEB, *SEQUENCERS))

    def output_of(self, name: str) -> str:
        """What the processes of one machine wrote."""
        return (self.directory / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    # Front ends

    def by(self, name: str) -> FrontEnds:
        """The same log as its front end *name* is asked, without TLS, as a proxy beside it would."""
        other = FrontEnds.__new__(FrontEnds)
        other.__dict__.update(self.__dict__)
        other._by = self.ports[name]
        return other

    def send(self, raw: bytes) -> Answer:
        if self._by is None:
            return super().send(raw)
        with socket.create_connection(("127.0.0.1", self._by), timeout=SECONDS) as connection:
            connection.sendall(raw)
            response = http.client.HTTPResponse(connection)
            response.begin()
            headers: Mapping[str, str] = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, headers, response.read())

    # Sequencers

    def pids(self, name: str) -> dict[str, int]:
        return json.loads((self.directory / name / "pids.json").read_bytes())

    def active(self) -> str | None:
        """Which sequencer has the lease; None while nobody has, or somebody who is gone."""
        with psycopg.connect(self.url, autocommit=True) as db:
            if db.execute("SELECT to_regclass('ktlog.lease')").fetchone() == (None,):
                return None
            row = db.execute("SELECT holder FROM ktlog.lease WHERE expires > now()").fetchone()
        pid = None if row is None else int(row[0].split(":")[1])
        return next((name for name in SEQUENCERS if self._has(name, pid)), None)

    def _has(self, name: str, pid: int | None) -> bool:
        try:
            return self.pids(name).get("sequencer") == pid
        except FileNotFoundError:
            return False

    def kill(self, name: str) -> None:
        """As if the machine lost its power: nothing of it ends in order, and nothing starts again."""
        pids = self.pids(name)
        os.kill(pids["supervisor"], signal.SIGKILL)
        os.kill(pids["sequencer"], signal.SIGKILL)
        self.processes.stop(name)
