"""Between a PostgreSQL client and its server: it cuts the connection at a chosen COMMIT, before or after the server has it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

from tests.postgres_server import PORT, USER, Cluster

COMMIT = b"COMMIT\x00"


class CuttingProxy:
    """Listens on a Unix socket of its own. ``cut``: None, "before" or "after"; it counts for one COMMIT."""

    def __init__(self, cluster: Cluster) -> None:
        self.cut: str | None = None
        self.cuts = 0
        self._target = str(cluster.directory / f".s.PGSQL.{PORT}")
        self._directory = Path(tempfile.mkdtemp(prefix="ktpx", dir="/tmp"))  # a socket's path must stay short
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._directory / f".s.PGSQL.{PORT}"))
        self._listener.listen()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self._directory), safe='')}&port={PORT}"

    def close(self) -> None:
        for one in (self._listener, *self._open):
            _shut(one)
        shutil.rmtree(self._directory)

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._open += [client, server]
            armed = threading.Event()
            threading.Thread(target=self._upstream, args=(client, server, armed), daemon=True).start()
            threading.Thread(target=self._downstream, args=(server, client, armed), daemon=True).start()

    def _take_cut(self) -> str | None:
        with self._lock:
            cut, self.cut = self.cut, None
            self.cuts += cut is not None
            return cut

    def _upstream(self, client: socket.socket, server: socket.socket, armed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                how = self._take_cut() if COMMIT in data else None
                if how == "before":
                    break
                if how == "after":
                    armed.set()
                server.sendall(data)
        _shut(client)
        _shut(server)

    def _downstream(self, server: socket.socket, client: socket.socket, armed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if armed.is_set():
                    break
                client.sendall(data)
        _shut(client)
        _shut(server)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
