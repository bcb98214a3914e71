"""A real PostgreSQL server for tests: one for a whole run, shared by all workers, with a database for each test.

    def test_x(postgres_url): ...            # a fresh, empty database (tests/conftest.py has the fixture)
    with own_cluster() as cluster: ...       # a server of one's own, to be stopped and killed

Both have fsync on, listen on a Unix socket in a short directory only, and run as the user postgres where the
tests run as root, which PostgreSQL refuses. A server is ended by its process id when the last test process that
used it is gone, however that ended: a small reaper (``python -m tests.postgres_server``) waits for the lock
that each of them holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from tests.machine import postgres_programs, program

ROOT = Path(__file__).resolve().parents[1]
USER = "ktlog"
PORT = 5432
"""Only in the socket's name: no port is opened."""
SECONDS = 60.0

_SETTINGS = {
    "listen_addresses": "''", "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
    "max_connections": "200", "shared_buffers": "'32MB'", "log_min_messages": "log", "logging_collector": "off",
    "log_line_prefix": "'%t %a '", "timezone": "'UTC'",
}


class Cluster:
    """One server's directory: ``data``, ``log``, and the socket. Made by ``initdb``; not running before ``start``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen | None = None
        self._numbers = itertools.count(1)

    @classmethod
    def create(cls, settings: dict[str, str] | None = None) -> Cluster:
        cluster = cls._new()
        directory = cluster.directory
        cluster.run(
            "initdb", "--no-sync", "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "-D", str(directory / "data")
        )
        cluster.configure({**_SETTINGS, "unix_socket_directories": f"'{directory}'", **(settings or {})})
        return cluster

    @classmethod
    def _new(cls) -> Cluster:
        directory = Path(tempfile.mkdtemp(prefix="ktpg", dir="/tmp"))  # a socket's path must stay short
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        return cls(directory)

    @classmethod
    def beside(cls, primary: Cluster) -> Cluster:
        """A hot standby of *primary*, not running yet."""
        cluster = cls._new()
        data = str(cluster.directory / "data")
        cluster.run("pg_basebackup", "-h", str(primary.directory), "-U", USER, "-D", data, "-R", "--checkpoint=fast")
        cluster.configure({"unix_socket_directories": f"'{cluster.directory}'"})
        return cluster

    def configure(self, settings: dict[str, str]) -> None:
        """Add lines to ``postgresql.conf``; the last of a name counts, from the next start on."""
        with (self.directory / "data" / "postgresql.conf").open("a") as stream:
            stream.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def run(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; its output."""
        done = subprocess.run(
            self._command(name, *arguments), cwd=self.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, env=_environment(),
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Run the server, and return when it answers."""
        assert self.process is None
        log = (self.directory / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                self._command("postgres", "-D", str(self.directory / "data")), cwd=self.directory, env=_environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS
        while not self.answers():
            assert self.process.poll() is None, f"the server ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{self.log()}"
            time.sleep(0.02)

    def answers(self) -> bool:
        done = subprocess.run(
            [str(_programs() / "pg_isready"), "-q", "-h", str(self.directory), "-p", str(PORT)], check=False,
            env=_environment(),
        )
        return done.returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends every connection and writes a checkpoint; SIGQUIT dies at once, and leaves recovery to the next start.

        (SIGKILL would leave the server's children behind.)
        """
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(SECONDS)
            self.process = None

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def url(self, database: str, user: str = USER) -> str:
        return f"postgresql://{user}@/{database}?host={quote(str(self.directory), safe='')}&port={PORT}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple]:
        """Run one statement as the superuser, in a transaction of its own."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def new_database(self, template: str = "template0") -> str:
        """Make a database, and return its URL. *template*: one to copy, to which nobody is connected."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database_name(url)} WITH (FORCE)")

    def _command(self, name: str, *arguments: str) -> list[str]:
        command = [str(_programs() / name), *arguments]
        if os.geteuid() != 0:
            return command
        return [str(program("setpriv")), "--reuid=postgres", "--regid=postgres", "--init-groups", "--", *command]


def database_name(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def _programs() -> Path:
    found = postgres_programs()
    assert found is not None, 'call need("postgres") first'
    return found


def _environment() -> dict[str, str]:
    """Nothing of libpq's, and messages that tests can read."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


@contextlib.contextmanager
def own_cluster(settings: dict[str, str] | None = None) -> Iterator[Cluster]:
    """A server for one test, running. It may be stopped and started inside."""
    cluster = Cluster.create(settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@contextlib.contextmanager
def shared_cluster(directory: Path) -> Iterator[Cluster]:
    """The server of this test run, whose workers all name the same *directory*; the first starts it."""
    with (directory / "postgres.users").open("a") as users:
        # Shared by every worker that uses the server. The reaper waits until nobody holds it.
        fcntl.flock(users, fcntl.LOCK_SH)
        record, reaper = directory / "postgres.json", None
        with (directory / "postgres.start").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not record.exists():
                reaper = _start_reaper(directory)
            cluster = Cluster(Path(json.loads(record.read_text())["directory"]))
        yield cluster
    if reaper is not None and not _is_used(directory):
        reaper.wait(SECONDS)


def _is_used(directory: Path) -> bool:
    """Whether another worker uses the server. Then the reaper waits for that one, and nobody need wait for the reaper."""
    with (directory / "postgres.users").open("a") as users:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):  # workers share it, and the reaper takes it for itself
            try:
                fcntl.flock(users, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return kind == fcntl.LOCK_SH
    return False


def _start_reaper(directory: Path) -> subprocess.Popen:
    with (directory / "postgres.log").open("ab") as log:
        reaper = subprocess.Popen(
            [sys.executable, "-m", "tests.postgres_server", str(directory)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=log, start_new_session=True,
        )
    ready = reaper.stdout.readline()
    assert ready == b"ready\n", (directory / "postgres.log").read_text()
    return reaper


def main(arguments: Sequence[str]) -> int:
    """The reaper: run a server, say so in ``DIRECTORY/postgres.json``, end it when nobody uses it any more."""
    directory = Path(arguments[0])
    record = directory / "postgres.json"
    with own_cluster() as cluster, (directory / "postgres.users").open("a") as users:
        unfinished = record.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"directory": str(cluster.directory)}))
        unfinished.rename(record)
        print("ready", flush=True)
        fcntl.flock(users, fcntl.LOCK_EX)
        # Whoever comes now waits for this lock, finds no record, and starts another server.
        record.unlink()
        cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
