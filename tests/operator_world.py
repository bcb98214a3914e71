"""A log's operator in one process: messages ready for the sequencer, and witnesses to publish to.

Everything is real but the network: real signatures, the real rules, a real store. ``Network`` stands
where the fetcher would, and hands each request to whatever answers for that URL.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ktlog.config import Settings
from ktlog.errors import MessageRejected, Unreachable
from ktlog.operator.keys import LeafKey
from ktlog.operator.leaves import local_signer
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.publisher import Publisher
from ktlog.operator.sequencer import Sequencer
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.keys import ZERO_ROOT, pkd_root
from ktlog.pkd.messages import Message, format_wire, open_message_attributes, parse_wire, plain_attributes
from ktlog.store.contracts import LogStore
from ktlog.store.memory import MemoryStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Signer,
    format_signature_line,
    signer_from_seed,
)
from ktlog.tlog.policy import Group, Policy
from ktlog.tlog.policy import Witness as PolicyWitness
from ktlog.wire.fetch import Response
from tests.pkd_samples import build, private, public
from witness.decide import Cosigned, Refuse, decide, parse_request

ORIGIN = "keys.example.com"
NOW = 1_800_000_000
WITNESS_NAMES = ("w1.witness.example", "w2.witness.example", "w3.witness.example")


class Clock:
    """Tells the time it was set to."""

    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@functools.cache
def log_signers(origin: str = ORIGIN) -> tuple[Signer, Signer]:
    return (
        signer_from_seed(origin, ED25519, bytes([1]) * 32),
        signer_from_seed(origin, COSIGNATURE_MLDSA44, bytes([2]) * 32),
    )


def leaf_key() -> LeafKey:
    return LeafKey(private("leaf"), public("leaf"))


def submission(
    message: Message, signer: str = "a", root: str = ZERO_ROOT, dialect: Dialect = SPEC
) -> Submission:
    """What the web workers would hand over for *message*. Made twice, it differs in the signature only."""
    wire = parse_wire(dialect, format_wire(build(dialect, message, signer, root)))
    opened = open_message_attributes(dialect, wire, commitments=False)
    return Submission(wire.preimage, plain_attributes(wire, opened), dict(wire.symmetric_keys))


class Desk:
    """A sequencer over *store*, and someone who feeds it."""

    def __init__(self, store: LogStore | None = None, dialect: Dialect = SPEC, clock: Clock | None = None) -> None:
        self.store = store or MemoryStore(ORIGIN, dialect.name)
        self.dialect = dialect
        self.clock = clock or Clock()
        self.restart()

    def restart(self) -> None:
        """What a new process does: claim the store, and read where it stands."""
        self.sequencer = Sequencer(
            store=self.store, origin=ORIGIN, dialect=self.dialect,
            sign_entries=local_signer(self.dialect, leaf_key()), now=self.clock,
            random=lambda size: b"\x07" * size,
        )

    @property
    def size(self) -> int:
        return self.store.state().size

    @property
    def root(self) -> str:
        state = self.store.state()
        return pkd_root(state.size, state.root)

    def make(self, message: Message, signer: str = "a", root: str | None = None) -> Submission:
        return submission(message, signer, self.root if root is None else root, self.dialect)

    def batch(self, *submissions: Submission) -> list[Receipt | MessageRejected]:
        return self.sequencer.process(submissions)

    def send(self, message: Message, signer: str = "a", root: str | None = None) -> Receipt:
        """One message, which must be accepted."""
        (result,) = self.batch(self.make(message, signer, root))
        if isinstance(result, MessageRejected):
            raise result
        return result


# Publishing


Answer = Callable[[bytes], Response]


def respond(status: int, body: bytes = b"", content_type: str = "text/plain") -> Response:
    return Response(status, {"content-type": content_type}, body, "https://witness.example/add-checkpoint")


class Network:
    """A fetcher whose every URL leads to a function. ``asked`` lists the bodies sent to each."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[str, bytes]] = []

    def post(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        self.asked.append((url, body))
        answer = self.answers.get(url)
        if answer is None:
            raise Unreachable("Refused", f"nothing answers at {url}")
        return answer(body)

    def get(self, url: str) -> Response:
        """The monitoring endpoint of a witness: nothing cosigned, unless the test says otherwise."""
        self.asked.append((url, b""))
        answer = self.answers.get(url)
        if answer is not None:
            return answer(b"")
        if url.rpartition("/")[0].rpartition("/")[0] + "/add-checkpoint" not in self.answers:
            raise Unreachable("Refused", f"nothing answers at {url}")
        return respond(404)

    def notes(self) -> list[bytes]:
        """Every signed checkpoint that was sent to anybody."""
        return [body.partition(b"\n\n")[2] for _, body in self.asked if body]

    def checkpoints(self) -> list[Checkpoint]:
        return [parse_signed_checkpoint(note)[1] for note in self.notes()]


class FakeWitness:
    """A witness without a disk: the real judgement, real signatures, nothing remembered after it is gone."""

    def __init__(self, name: str, seed: int, clock: Clock) -> None:
        self.url = f"https://{name}"
        self.signers = (
            signer_from_seed(name, COSIGNATURE_ED25519, bytes([seed]) * 32),
            signer_from_seed(name, COSIGNATURE_MLDSA44, bytes([seed + 1]) * 32),
        )
        self.clock = clock
        self.latest: Cosigned | None = None
        self.refusals: list[str] = []

    def __call__(self, body: bytes) -> Response:
        judgement = decide(
            parse_request(body), self.latest, tuple(signer.vkey for signer in log_signers()), self.clock()
        )
        if isinstance(judgement, Refuse):
            self.refusals.append(judgement.reason)
            return respond(judgement.status, judgement.body, judgement.content_type)
        self.latest = Cosigned(judgement.expected_revision + 1, judgement.checkpoint, judgement.time, b"")
        return respond(200, self.cosign(judgement.text, judgement.time))

    def cosign(self, text: bytes, time: int) -> bytes:
        return b"".join(format_signature_line(signer.sign(text, time)) for signer in self.signers)


def witness_policy(witnesses: Sequence[FakeWitness], need: int) -> Policy:
    """*need* of the witnesses, each with both its keys."""
    lines: dict[str, PolicyWitness] = {}
    groups: dict[str, Group] = {}
    for number, witness in enumerate(witnesses, 1):
        members = tuple(f"w{number}-{signer.vkey.algorithm}" for signer in witness.signers)
        for member, signer in zip(members, witness.signers, strict=True):
            lines[member] = PolicyWitness(member, signer.vkey, witness.url)
        groups[f"w{number}"] = Group(f"w{number}", len(members), members)
    groups["all"] = Group("all", need, tuple(groups))
    return Policy(witnesses=lines, groups=groups, quorum="all")


class Press:
    """A publisher over *store*, its directory, and three witnesses of which two must cosign."""

    def __init__(self, directory: Path, store: LogStore) -> None:
        self.settings = Settings(directory, ORIGIN, "spec")
        self.store = store
        self.clock = Clock()
        self.witnesses = tuple(
            FakeWitness(name, 10 * number, self.clock) for number, name in enumerate(WITNESS_NAMES, 1)
        )
        self.policy = witness_policy(self.witnesses, 2)
        self.network = Network({f"{witness.url}/add-checkpoint": witness for witness in self.witnesses})
        self.tiles = TileFiles.create(self.settings.tiles)
        self.restart()

    def restart(self) -> None:
        self.publisher = Publisher(
            settings=self.settings, store=self.store, tiles=self.tiles, signers=log_signers(), policy=self.policy,
            fetcher=self.network, now=self.clock,
        )

    def cut(self, *numbers: int) -> None:
        """Take witnesses (from 1) off the network."""
        for number in numbers:
            del self.network.answers[f"{self.witnesses[number - 1].url}/add-checkpoint"]

    def answer(self, number: int, answer: Answer) -> None:
        """Let something else answer for witness *number*."""
        self.network.answers[f"{self.witnesses[number - 1].url}/add-checkpoint"] = answer

    def publish(self) -> bool:
        return self.publisher.publish(self.store.state().size)

    def published(self) -> Checkpoint | None:
        note = self.tiles.checkpoint()
        return None if note is None else parse_signed_checkpoint(note)[1]
