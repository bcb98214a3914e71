"""A log with its map in one process: a desk, a publisher with a map cycle, and cosigners that follow both logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ktlog.config import Settings, write_settings
from ktlog.keymap.bundle import Bundle, parse_bundle
from ktlog.keymap.check import Mapped, check_bundle
from ktlog.keymap.output import OutputLeaf, parse_leaf
from ktlog.operator.create import create_log, ensure_map
from ktlog.operator.head import LocalHeads
from ktlog.operator.keys import load_checkpoint_signers, load_map_signers
from ktlog.operator.mapping import MapCycle
from ktlog.operator.mapreader import MapReader, Wanted
from ktlog.operator.publisher import Publisher
from ktlog.operator.shred import plan_for
from ktlog.operator.stores import map_config, open_log, open_map
from ktlog.operator.witnessing import input_policy
from ktlog.store.documents import FileDocument
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Signer
from ktlog.tlog.policy import Group, Policy
from ktlog.wire.fetch import Response
from tests.operator_world import ORIGIN, Clock, Desk, FakeWitness, Network, respond, witness_policy
from witness.decide import Cosigned, Refuse, decide, parse_request

MAP = f"{ORIGIN}/map"
VERIFIER = "v1.verifier.example"


class Cosigner(FakeWitness):
    """A witness of any log whose vkeys it was given."""

    def __init__(self, name: str, seed: int, clock: Clock, vkeys: dict[str, tuple]) -> None:
        super().__init__(name, seed, clock)
        self.vkeys = vkeys
        self.heads: dict[str, Cosigned] = {}
        self.asked: list[str] = []

    def __call__(self, body: bytes) -> Response:
        request = parse_request(body)
        origin = request.checkpoint.origin
        self.asked.append(origin)
        judgement = decide(request, self.heads.get(origin), self.vkeys.get(origin, ()), self.clock())
        if isinstance(judgement, Refuse):
            self.refusals.append(judgement.reason)
            return respond(judgement.status, judgement.body, judgement.content_type)
        before = self.heads.get(origin)
        self.heads[origin] = Cosigned(
            (before.revision if before else 0) + 1, judgement.checkpoint, judgement.time, b""
        )
        return respond(200, self.cosign(judgement.text, judgement.time))


def with_verifier(policy: Policy, verifier: FakeWitness) -> Policy:
    """*policy*, whose quorum becomes the group ``witnesses``, and one verifier beside it; both are needed."""
    other = witness_policy([verifier], 1)
    witnesses = dict(policy.witnesses) | {f"v{name}": w for name, w in (
        (name, type(w)(f"v{name}", w.vkey, w.url)) for name, w in other.witnesses.items()
    )}
    groups = {name: group for name, group in policy.groups.items() if name != "all"}
    groups["witnesses"] = Group("witnesses", policy.groups["all"].threshold, policy.groups["all"].members)
    members = tuple(f"v{name}" for name in other.witnesses)
    groups["verifiers"] = Group("verifiers", len(members), members)
    groups["both"] = Group("both", 2, ("witnesses", "verifiers"))
    return Policy(policy.logs, witnesses, groups, "both")


class MapPress:
    """Two witnesses of which both must cosign, and with *verified* a verifier too."""

    def __init__(self, directory: Path, *, verified: bool = False, **settings: int) -> None:
        made = create_log(directory, ORIGIN, "spec", bytes(32))
        self.settings = Settings(made.directory, ORIGIN, "spec", map_interval_ms=5000, notice_seconds=1, **settings)
        write_settings(self.settings)
        self._begin(verified)

    @classmethod
    def over(cls, settings: Settings) -> MapPress:
        """Of a log that is there already."""
        press = object.__new__(cls)
        press.settings = settings
        press._begin(verified=False)
        return press

    def _begin(self, verified: bool) -> None:
        ensure_map(self.settings)
        self.clock = Clock()
        self.ticks = 0.0
        self.store = open_log(self.settings)
        self.desk = Desk(self.store, clock=self.clock)
        vkeys = {
            ORIGIN: tuple(s.vkey for s in load_checkpoint_signers(self.settings.keys, ORIGIN)),
            MAP: tuple(s.vkey for s in load_map_signers(self.settings.keys, ORIGIN)),
        }
        self.witnesses = [Cosigner(f"w{n}.witness.example", 10 * n, self.clock, vkeys) for n in (1, 2)]
        self.policy = witness_policy(self.witnesses, 2)
        self.verifier = Cosigner(VERIFIER, 90, self.clock, {MAP: vkeys[MAP]})
        if verified:
            self.policy = with_verifier(self.policy, self.verifier)
        self.network = Network({f"{w.url}/add-checkpoint": w for w in (*self.witnesses, self.verifier)})
        self.config = map_config(self.settings)
        self.restart()

    def restart(self) -> None:
        """What a new process does."""
        reader = open_log(self.settings, read_only=True)
        self.mapping = MapCycle(
            settings=self.settings, store=reader, signers=self._heads(self.settings.map_signed_head, load_map_signers),
            policy=self.policy, fetcher=self.network, now=self.clock, ticks=lambda: self.ticks,
        )
        self.tiles = TileFiles(self.settings.tiles)
        self.publisher = Publisher(
            settings=self.settings, store=reader, tiles=self.tiles,
            signers=self._heads(self.settings.signed_head, load_checkpoint_signers), policy=input_policy(self.policy),
            fetcher=self.network, now=self.clock, mapping=self.mapping,
        )
        self.map = open_map(self.settings, read_only=True)
        self.map_tiles = TileFiles(self.settings.map_tiles)
        self.reader = MapReader(reader, self.map, self.tiles.read, self.map_tiles.read)

    def _heads(self, path: Path, load: Callable[[Path, str], tuple[Signer, ...]]) -> LocalHeads:
        """What signs, and keeps its last head in a file of its own, wherever the log is stored."""
        return LocalHeads(FileDocument(path), load(self.settings.keys, ORIGIN), self.clock)

    def close(self) -> None:
        self.mapping.close()
        self.store.close()

    def cycle(self, seconds: float = 5.0) -> None:
        """Some time later the publisher looks what is due."""
        self.ticks += seconds
        self.clock.now += int(seconds)
        self.publisher.publish_if_due()

    def erase(self, actor_id: str) -> None:
        self.store.erase(plan_for(self.store, self.store.actor(actor_id)), self.store.state())

    # What is published

    def checkpoint(self) -> Checkpoint | None:
        raw = self.map_tiles.checkpoint()
        return None if raw is None else parse_signed_checkpoint(raw)[1]

    def leaves(self) -> list[OutputLeaf]:
        return [parse_leaf(leaf) for leaf in self.map.output_leaves(1, self.map.state().output.size)]

    def bundle(self, actor_id: str, *, aux: bool = True, **wanted: bool | int) -> Bundle:
        return self.reader.bundle(
            actor_id, Wanted(aux=aux, **wanted), published_size=self.publisher.published_size
        )

    def answer(self, actor_id: str) -> Mapped:
        """What a client makes of the light bundle, from its bytes."""
        from ktlog.keymap.bundle import encode_bundle

        head = self.checkpoint()
        now = self.clock.now
        return check_bundle(
            parse_bundle(encode_bundle(self.bundle(actor_id))), actor_id, self.config, head.size, head.root,
            now=now, as_of=now, max_age=3600,
        )
