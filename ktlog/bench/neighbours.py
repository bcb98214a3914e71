"""Everybody whom a measured log talks to, in one process behind TLS: instances with their actors, and cosigners.

The log keeps all its rules of production: it looks actors up over https, and publishes nothing without its policy.
Only names are resolved by a dial table. The cosigners sign whatever they are shown; of what they check in reality
nothing is the log's work.

    python -m ktlog.bench.neighbours --dir D --listen fd://N
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import sys
import time
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.bench.mapped import COSIGNERS, cosigners
from ktlog.bench.names import ORIGIN, bytes_of
from ktlog.demo.pki import create_pki, pki_in
from ktlog.demo.processes import Processes, listen_on_loopback
from ktlog.durable import write_atomic
from ktlog.errors import KtlogError
from ktlog.pkd.canonical import canonical
from ktlog.tlog.note import format_signature_line
from ktlog.wire.actor import ED25519, actor_key
from ktlog.wire.httpd import open_listener
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS

INSTANCES = 64
"""Each a server of its own to the log, which limits what it asks of one."""
_COSIGNER_HOSTS = tuple(f"{name}.{ORIGIN}" for name in COSIGNERS)
_HEAD_LIMIT = 1 << 16


def instance_host(number: int) -> str:
    return f"instance{number % INSTANCES:02}.example"


def http_key_id(actor_id: str) -> str:
    return f"{actor_id}#main-key"


@cache
def http_key(host: str) -> Ed25519PrivateKey:
    """With which all actors of an instance sign their requests."""
    return Ed25519PrivateKey.from_private_bytes(bytes_of(f"http {host}"))


def start(processes: Processes, directory: Path) -> None:
    """Start them in *directory*, whose ``dial.json`` then leads to them."""
    hosts = [*_COSIGNER_HOSTS, *map(instance_host, range(INSTANCES))]
    create_pki(directory, hosts)
    listener = listen_on_loopback()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    write_atomic(directory / "dial.json", canonical({"ca_file": "ca.pem", "hosts": dict.fromkeys(hosts, address)}))
    processes.start("neighbours", "ktlog.bench.neighbours", ["--dir", str(directory)], listener)


def actor_document(host: str, user: str) -> bytes:
    actor_id = f"https://{host}/users/{user}"
    return json.dumps({
        "@context": [ACTIVITYSTREAMS, "https://w3id.org/security/multikey/v1"],
        "id": actor_id, "type": "Person", "preferredUsername": user, "inbox": f"{actor_id}/inbox",
        "outbox": f"{actor_id}/outbox",
        "assertionMethod": [
            actor_key(http_key_id(actor_id), actor_id, ED25519, http_key(host).public_key().public_bytes_raw())
        ],
    }).encode()


def cosign(host: str, body: bytes) -> bytes:
    """The signature lines of the cosigner at *host* on the checkpoint in *body*, an add-checkpoint request."""
    note = body.partition(b"\n\n")[2]
    text = note[: note.index(b"\n\n") + 1]
    signers = cosigners()[_COSIGNER_HOSTS.index(host)]
    return b"".join(format_signature_line(signer.sign(text, int(time.time()))) for signer in signers)


def answer(method: str, host: str, target: str, body: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body."""
    if host in _COSIGNER_HOSTS:
        if (method, target) == ("POST", "/add-checkpoint"):
            return 200, "text/plain; charset=utf-8", cosign(host, body)
        return 404, "text/plain; charset=utf-8", b"nothing was cosigned\n"
    user, _, rest = target.removeprefix("/users/").partition("/")
    if method == "POST" and rest == "inbox":
        return 202, "text/plain; charset=utf-8", b""
    if method == "GET" and not rest:
        return 200, ACTIVITY_JSON, actor_document(host, user)
    return 404, "text/plain; charset=utf-8", b""


async def _serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, request by request; what it cannot read ends it."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, LookupError, ValueError):
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            status, content_type, data = answer(method, fields["host"], target, body)
            writer.write(
                f"HTTP/1.1 {status} Answer\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n\r\n"
                .encode("latin-1") + data
            )
            await writer.drain()
    writer.close()


async def _serve(directory: Path, listen: str) -> None:
    pki = pki_in(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.certificate_file, pki.key_file)
    server = await asyncio.start_server(_serve_one, sock=open_listener(listen), ssl=context, limit=_HEAD_LIMIT)
    async with server:
        await server.serve_forever()


def main(arguments: list[str] | None = None) -> int:
    """Answer until SIGTERM."""
    parser = argparse.ArgumentParser(prog="ktlog.bench.neighbours")
    parser.add_argument("--dir", required=True, type=Path)
    parser.add_argument("--listen", required=True)
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(options.dir, options.listen))
    except KtlogError as error:
        print(f"ktlog bench: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
