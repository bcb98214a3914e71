"""A small SMTP server on loopback that keeps what it is handed: with STARTTLS, with TLS from the start, or without."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ktlog.demo.pki import create_pki, pki_in


@dataclass(frozen=True)
class Handed:
    sender: str
    receivers: tuple[str, ...]
    data: bytes
    encrypted: bool


@dataclass
class MailServer:
    """security: "none", "starttls" or "tls". refuse: a reply to MAIL FROM in place of 250. logins: as they were sent."""

    directory: Path
    security: str = "none"
    refuse: bytes = b""
    mails: list[Handed] = field(default_factory=list)
    logins: list[bytes] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)

    def start(self) -> None:
        if self.security != "none":
            pki = pki_in(self.directory)
            if not pki.ca_file.exists():
                create_pki(self.directory, ["localhost"])
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pki.certificate_file, pki.key_file)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            encrypted = self.security == "tls"
            if encrypted:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._talk(connection, encrypted, [b"220 mail.example"])
            connection.close()

    def _talk(self, connection: socket.socket, encrypted: bool, greeting: list[bytes]) -> None:
        stream = connection.makefile("rb")

        def say(text: bytes) -> None:
            connection.sendall(text + b"\r\n")

        for text in greeting:
            say(text)
        sender, receivers = "", []
        while line := stream.readline():
            self.lines.append(line)
            verb = line[:4].upper()
            if verb == b"EHLO":
                offers = [b"250-mail.example"]
                offers += [b"250-STARTTLS"] if self.security == "starttls" and not encrypted else []
                say(b"\r\n".join([*offers, b"250 AUTH PLAIN"]))
            elif verb == b"STAR":
                say(b"220 go on")
                self._talk(self._context.wrap_socket(connection, server_side=True), True, [])
                return
            elif verb == b"AUTH":
                self.logins.append(line.split()[2])
                say(b"235 welcome")
            elif verb == b"MAIL":
                sender = line.decode().partition("<")[2].partition(">")[0]
                say(self.refuse or b"250 ok")
            elif verb == b"RCPT":
                receivers.append(line.decode().partition("<")[2].partition(">")[0])
                say(b"250 ok")
            elif verb == b"DATA":
                say(b"354 go on")
                data = b""
                while (line := stream.readline()) not in (b".\r\n", b""):
                    data += line.removeprefix(b".") if line.startswith(b"..") else line
                self.mails.append(Handed(sender, tuple(receivers), data, encrypted))
                say(b"250 taken")
            elif verb == b"QUIT":
                say(b"221 bye")
                return
            else:
                say(b"250 ok")
