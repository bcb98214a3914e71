"""What the chapters of the demo's story are made of: who is there, reading what is published, looking up, auditing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from ktlog.client import Answer, Directory, Present
from ktlog.demo.people import Person
from ktlog.demo.processes import Processes, wait_until
from ktlog.demo.teller import Teller
from ktlog.demo.topology import VERIFIER, Instance, Topology
from ktlog.errors import EncodingError, Invalid, KtlogError
from ktlog.keymap.bundle import parse_bundle
from ktlog.keymap.output import MAP_SUFFIX, parse_leaf
from ktlog.pkd.keys import encode_public_key
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.policy import parse_policy
from ktlog.wire.fetch import Fetcher

PUBLISH_SECONDS = 20.0


class CheckFailed(KtlogError):
    """A step of the story did not hold; ``name`` is the check's."""

    exit_code = 5


@dataclass
class Result:
    """What the story came to, as ``--json`` prints it.

    Attributes:
        actors: how many enrolled. lookups_verified: how many lookups gave an answer after every check.
        answers: how many of these said what, by the answer: present, erased, never-enrolled.
        entries_audited: that the auditor replayed, of both logs. maps_derived: that these lead to.
        lies: who refused which lie, in which words. findings: what was noticed, and convicts nobody by itself.
        evidence: files that convict a log by its public key alone.
        processes: every process, by name, pid and port (0: none). checks: those that held, in their order.

    Besides these, lies_refused: how many refusals. ok: whether every step held. seconds: that it took. And only if one
    did not hold, failed: the check, with its error. kept: the directory where everything is.
    """

    actors: int = 0
    lookups_verified: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    entries_audited: int = 0
    maps_derived: int = 0
    lies: list[dict[str, str]] = field(default_factory=list)
    findings: list[dict[str, str]] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    processes: list[dict[str, object]] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return {**vars(self), "lies_refused": len(self.lies)}


class Scene:
    """What every chapter works with. ``check`` is the name of the check under way; the logs must have been built.

    Whoever looks into an instance's log is a client of the other instance.
    """

    def __init__(self, topology: Topology, processes: Processes, teller: Teller, result: Result, check: str) -> None:
        self.topology = topology
        self.processes = processes
        self.teller = teller
        self.result = result
        self.check = check
        self.people: dict[Instance, list[Person]] = {}
        self._fetcher: Fetcher | None = None
        self._clients: dict[Instance, Directory] = {}

    @property
    def fetcher(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = self.topology.fetcher()
        return self._fetcher

    @property
    def everybody(self) -> list[Person]:
        return [person for people in self.people.values() for person in people]

    @property
    def rotating(self) -> Person:
        """Whose key changes; the first lies are about them."""
        return self.people[self.topology.instances[0]][0]

    # Lookups

    def start_clients(self) -> None:
        """A client at each instance, with a memory of its own."""
        self._clients = {
            instance: Directory.from_policy_file(
                self.topology.trust_policy, state=self.topology.directory / f"client-{instance.name}",
                domains=self.topology.domains(), fetcher=self.fetcher,
            )
            for instance in self.topology.instances
        }

    def reader_of(self, instance: Instance) -> Directory:
        """The client that looks into *instance*'s log: one that belongs to the other instance."""
        return self._clients[next(other for other in self.topology.instances if other is not instance)]

    def ask(self, instance: Instance, handle: str, *, full: bool = False) -> Answer:
        """Look *handle* up in the log of *instance*; counted when it is answered."""
        answer = self.reader_of(instance).lookup(handle, full=full)
        kind = str(answer.as_dict()["answer"])
        self.result.lookups_verified += 1
        self.result.answers[kind] = self.result.answers.get(kind, 0) + 1
        return answer

    def find(self, person: Person, *, full: bool = False) -> Present:
        """Look *person* up, who must have exactly the key that is theirs, proven by the map."""
        answer = self.ask(person.instance, person.handle, full=full)
        if not isinstance(answer, Present) or answer.map is None:
            raise self.failed(f"{person.handle} should be present in the map; the answer is {type(answer).__name__}")
        if [encode_public_key(key.public_key) for key in answer.usable_keys] != [person.public_key_text]:
            raise self.failed(f"{person.handle}: the log has other keys than the person")
        return answer

    def failed(self, what: str) -> CheckFailed:
        return CheckFailed(self.check, what)

    # What is published

    def is_ready(self, host: str) -> bool:
        """Whether *host* answers something of its own; a log answers for its sequencer too."""
        path, wanted = ("/", 404) if host in self.topology.domains() else ("/readyz", 200)
        try:
            return self.fetcher.get(f"https://{host}{path}").status == wanted
        except KtlogError:
            return False

    def raw_checkpoint(self, instance: Instance, suffix: str = "") -> bytes:
        """The published checkpoint, of the log or, with *suffix* ``/map``, of its map's log; empty if there is none."""
        response = self.fetcher.get(f"{instance.log_url}{suffix}/checkpoint")
        return response.body if response.status == 200 else b""

    def raw_bundle(self, instance: Instance, actor_id: str) -> bytes:
        """What the log's map says of an actor, as clients ask for it; empty before there is a map."""
        response = self.fetcher.get(f"{instance.log_url}{MAP_SUFFIX}/bundle/{quote(actor_id, safe='')}?aux=true")
        return response.body if response.status == 200 else b""

    def checkpoint(self, instance: Instance, suffix: str = "") -> Checkpoint:
        """The same, after the quorum of whoever reads it was checked."""
        path = self.topology.trust_policy if suffix else self.topology.audit_policy
        policy = parse_policy(path.read_bytes())
        return policy.open_checkpoint(self.raw_checkpoint(instance, suffix), int(time.time())).checkpoint

    def wait_published(self, instance: Instance, size: int) -> tuple[Checkpoint, Checkpoint]:
        """Wait until *size* entries and a map of them are published; give both checkpoints."""
        def published() -> bool:
            raw = self.raw_checkpoint(instance)
            return bool(raw) and parse_signed_checkpoint(raw)[1].size >= size

        self._wait(instance, f"{instance.origin} to publish {size} entries", published)
        checkpoint = self.checkpoint(instance)
        if checkpoint.size != size:
            raise Invalid("WrongSize", f"{instance.origin} has {checkpoint.size} entries; {size} were sent")
        self.wait_mapped(instance, size)
        return checkpoint, self.checkpoint(instance, MAP_SUFFIX)

    def wait_mapped(self, instance: Instance, size: int) -> None:
        """Wait until a map of *size* entries is published."""
        def mapped() -> bool:
            return self._mapped_size(instance) >= size

        what = f"{instance.origin} to publish a map of {size} entries"
        self._wait(instance, what, mapped, f"verifier-{VERIFIER}")

    def _wait(self, instance: Instance, what: str, ready: Callable[[], bool], *needed: str) -> None:
        ended = partial(self.processes.ended, "front", f"log-{instance.name}", *needed)
        wait_until(what, ready, ended, PUBLISH_SECONDS)

    def _mapped_size(self, instance: Instance) -> int:
        """How many entries the map covers, as it says itself; 0 before there is one."""
        try:
            bundle = parse_bundle(self.raw_bundle(instance, instance.actor_id(instance.users[0])))
            return parse_leaf(bundle.output_leaf).input_size
        except EncodingError:
            return 0

    # Audits

    def audit(self, instance: Instance, *, again: bool = False, mapped: bool = True) -> dict[str, Any]:
        """The auditor's report.

        Args:
            again: without the commitments, which cost most and were checked before.
            mapped: whether the auditor knows the key of the map, and so audits the map too.
        """
        directory = self.topology.directory / f"auditor-{instance.name}"
        policy = self.topology.audit_policy if mapped else self.topology.entries_policy
        report = self.processes.run(
            "auditor", "audit", instance.origin, "--dir", str(directory), "--policy", str(policy),
            "--json", *(["--from-start", "--commitments", "none"] if again else []),
        )
        if not isinstance(report.get("findings"), list):
            raise self.failed(f"the auditor could not audit {instance.origin}: {report.get('error')}")
        return report


def describe_findings(report: dict[str, Any]) -> str:
    """Every kind of finding by its name, and the first in words."""
    names = dict.fromkeys(finding["name"] for finding in report["findings"])
    words = report["findings"][0]["what"] if names else f"no finding, and exit code {report['exit_code']}"
    return f"{', '.join(names)}: {words}"


def together(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """``map``, two at a time. What has not begun when one fails, or at Ctrl-C, is not begun."""
    pool = ThreadPoolExecutor(2)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
