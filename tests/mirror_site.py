"""A mirror in process, beside a witness that follows one log, asked over HTTP as uploaders and monitors ask it."""

from __future__ import annotations

from dataclasses import dataclass

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Note, SignatureLine, open_note, parse_note, parse_signature_lines
from ktlog.tlog.tiles import TileHashReader, bundles_between, parse_bundle
from ktlog.tlog.tree import hash_leaf, leaf_reader
from tests.witness_log import NOW, Log
from witness.config import WitnessDir
from witness.keys import write_keys
from witness.mirror import Mirror
from witness.mirrorclient import Tree, format_request, upload
from witness.mirrordir import MirrorDir, derive_mirror_signers, load_mirror_signers, load_ticket_key, write_mirror_keys
from witness.mirrorstore import MirrorStore
from witness.mirrorweb import create_app
from witness.mirrorwire import OCTETS, Info
from witness.store import WitnessStore, hash_origin

WITNESS_NAME = "example.com/w1"
NAME = "example.com/m1"
ROOM = 1 << 30


@dataclass
class Reply:
    status: int
    body: bytes
    content_type: str = ""


def entry(log: Log, index: int) -> bytes:
    return log.prefix + b" %d" % index


def tree_of(log: Log, size: int) -> Tree:
    entries = [entry(log, index) for index in range(size)]
    return Tree(lambda start, end: entries[start:end], leaf_reader([hash_leaf(one) for one in entries]))


def request_body(log: Log, start: int, end: int, *, packages: int = 32, ticket: bytes = b"") -> bytes:
    """An add-entries body of the entries [start, end), or a prefix of it."""
    return format_request(tree_of(log, end), log.origin, Info(end, start, ticket), packages)


def check_copy(get, log: Log, size: int) -> None:
    """Whoever reads *get* (path below the log's prefix to bytes) finds the tree of *size*, all of it."""
    read = TileHashReader(get, size, log.root(size))
    read([(0, index) for index in range(size)])
    found = [one for bundle in bundles_between(0, size) for one in parse_bundle(get(bundle.path), bundle.width)]
    assert found == [entry(log, index) for index in range(size)]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class Site:
    """A witness directory with a mirror in it; ``restart`` opens the mirror again, as a new process would."""

    def __init__(self, path, reach=lambda name: None) -> None:
        self.directory = WitnessDir(path / "w")
        self.directory.make()
        signers = write_keys(self.directory, bytes(32), WITNESS_NAME)
        store = WitnessStore.create(self.directory.database, WITNESS_NAME, [one.vkey for one in signers], NOW)
        self.log = Log()
        store.add_log(self.log.origin, self.log.vkeys, NOW)
        store.close()
        self.paths = MirrorDir(self.directory)
        made = self.paths.begin()
        self.vkeys = tuple(one.vkey for one in derive_mirror_signers(bytes(32), NAME))
        write_mirror_keys(made, bytes(32), NAME)
        MirrorStore.create(made.database, NAME, self.vkeys, NOW)
        self.paths.finish(made)
        self.clock = Clock()
        self.start(reach)
        self.mirror.store.add_log(self.log.origin, ROOM, NOW)

    def start(self, reach=lambda name: None) -> None:
        store = MirrorStore.open(self.paths.database, reach=reach)
        store.keep_mark(self.paths.mark)
        self.mirror = Mirror(
            store, self.paths.logs, load_mirror_signers(self.paths, NAME), load_ticket_key(self.paths),
            WitnessStore.open(self.directory.database, beside_daemon=True), clock=self.clock, reach=reach,
        )
        self.mirror.check()
        self.client = create_app(self.mirror).test_client()

    def restart(self, reach=lambda name: None) -> None:
        self.mirror.close()
        self.start(reach)

    def post(self, endpoint: str, body: bytes, headers: dict[str, str] | None = None) -> Reply:
        answer = self.client.post(f"/{endpoint}", data=body, headers=headers or {})
        return Reply(answer.status_code, answer.data, answer.headers["Content-Type"])

    def submit(self, old: int, new: int) -> Reply:
        return self.post("add-checkpoint", self.log.submission(old, new))

    def send(self, body: bytes, **headers: str) -> Reply:
        return self.post("add-entries", body, {"Content-Type": OCTETS, **headers})

    def add(self, start: int, end: int, **options) -> Reply:
        return self.send(request_body(self.log, start, end, **options))

    def upload(self, size: int, packages: int = 32):
        return upload(self.post, tree_of(self.log, size), self.log.note(size), packages=packages)

    def get(self, path: str):
        return self.client.get(f"/{hash_origin(self.log.origin)}/{path}")

    def fetch(self, path: str) -> bytes:
        answer = self.get(path)
        assert answer.status_code == 200, path
        return answer.data

    def state(self):
        return self.mirror.store.log(self.log.origin)


def check_cosigned(site: Site, body: bytes, size: int) -> None:
    """*body* is the two cosignatures of the mirror, for the log's tree of *size*, and it serves that tree."""
    note = parse_note(site.fetch("checkpoint"))
    checkpoint = parse_signed_checkpoint(site.fetch("checkpoint"))[1]
    assert (checkpoint.size, checkpoint.root) == (size, site.log.root(size))
    lines = parse_signature_lines(body)
    assert len(open_note(Note(note.text, lines), site.vkeys)) == len(lines) == 2
    assert len(open_note(note, site.vkeys)) == 2 and len(open_note(note, site.log.vkeys)) == 2
    check_copy(site.fetch, site.log, size)


def format_line(line: SignatureLine) -> bytes:
    return f"— {line.name} {encode_base64(line.key_id + line.blob)}\n".encode()
