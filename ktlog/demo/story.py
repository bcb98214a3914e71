"""The demo's story, chapter by chapter. Every chapter ends in checks; the first that fails ends the demo.

Nothing here reaches into a process: actors enrol through their instance, clients and auditors read
over HTTPS, and the lies are told by a process that holds a log's real keys.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat, zip_longest
from typing import Any

from ktlog.client import Directory, Present
from ktlog.demo.front import write_routes
from ktlog.demo.people import Person
from ktlog.demo.processes import Processes, Running, is_alive, listen_on_loopback, wait_until
from ktlog.demo.teller import Teller
from ktlog.demo.topology import WITNESSES, Instance, Topology, address_of, build, start
from ktlog.errors import Invalid, KtlogError, VerificationError
from ktlog.pkd.keys import encode_public_key
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.policy import parse_policy

PUBLISH_SECONDS = 20.0

# In the order in which they are made. `--pause-before NAME` stops the demo there.
CHECKS = (
    "started", "enrolled", "published", "looked-up", "rotated", "consistent", "audited",
    "smaller", "swapped-key", "same-size", "still-running",
)


class CheckFailed(KtlogError):
    """A step of the story did not hold; ``name`` is the check's."""

    exit_code = 5


@dataclass
class Result:
    """What the story came to, as ``--json`` prints it."""

    actors: int = 0
    lookups_verified: int = 0
    entries_audited: int = 0
    lies: list[dict[str, str]] = field(default_factory=list)
    findings: list[dict[str, str]] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    processes: list[dict[str, object]] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return {**vars(self), "lies_refused": len(self.lies)}


class Story:
    """One telling, into *result*, which is good as far as the story got. ``pause(name)`` comes before each check."""

    def __init__(
        self, topology: Topology, processes: Processes, teller: Teller, pause: Callable[[str], None],
        result: Result,
    ) -> None:
        self._topology = topology
        self._processes = processes
        self._teller = teller
        self._pause = pause
        self._check = CHECKS[0]
        self._people: dict[Instance, list[Person]] = {}
        self._clients: dict[Instance, Directory] = {}
        self._earlier_checkpoint = topology.directory / "earlier-checkpoint"
        self.result = result

    def tell(self) -> None:
        """Live through the whole story.

        Raises:
            CheckFailed: its name is the check that did not hold.
        """
        chapters: tuple[tuple[str, str, Callable[[], None]], ...] = (
            ("started", "Two instances, two logs, three witnesses: every one a process of its own", self._started),
            ("enrolled", "Actors enrol their keys through their instances", self._enrolled),
            ("published", "Witnesses cosign, and only then the checkpoint is published", self._published),
            ("looked-up", "A client of the other instance looks everybody up", self._looked_up),
            ("rotated", "One actor rotates: a new key, and the old one revoked", self._rotated),
            ("consistent", "The client looks again, and checks that the log only grew", self._consistent),
            ("audited", "An auditor replays both logs from the first entry", self._audited),
            ("smaller", "Lie 1: an old checkpoint, so that the rotation never happened", self._roll_back),
            ("swapped-key", "Lie 2: somebody else's key in an answer", self._swap_key),
            # Last, because it convicts: nobody here talks to that log afterwards.
            ("same-size", "Lie 3: another history of the same length, signed with the log's own keys", self._fork),
            ("still-running", "Every process is still the one that was started", self._still_running),
        )
        with self._checking("started"):
            self._teller.say("Making keys, stores and policies …")
            build(self._topology, self._processes)
            start(self._topology, self._processes)
            self._fetcher = self._topology.fetcher()
        for number, (name, title, chapter) in enumerate(chapters, 1):
            self._teller.step(number, title)
            self._pause(name)
            with self._checking(name):
                chapter()
            self.result.checks.append(name)

    @contextmanager
    def _checking(self, name: str) -> Iterator[None]:
        """Turn whatever goes wrong within into a CheckFailed of *name* that says what the processes said."""
        self._check = name
        self._processes.last_words()
        try:
            yield
        except CheckFailed as failure:
            self._explain(failure)
            raise
        except KtlogError as error:
            raise self._explain(CheckFailed(name, f"{type(error).__name__} {error.diagnostics()}")) from error
        except Exception as error:
            # A bug, in the demo or in what it talks to. The traceback lies with the other output.
            self._processes.note("demo", traceback.format_exc())
            raise self._explain(CheckFailed(name, f"unexpected {type(error).__name__}: {error}")) from error

    def _explain(self, failure: CheckFailed) -> CheckFailed:
        gone = [f"{what} ended by itself" for what in self._gone()]
        said = self._processes.last_words()
        failure.message = "\n".join([failure.message, *(f"  {line}" for line in gone + said)])
        return failure

    def _gone(self) -> list[str]:
        """Which processes ended by themselves; those of a log too that its supervisor has started again since."""
        ours = {running.name for running in self._processes.running()}
        supervised = {one["name"]: one["pid"] for one in self.result.processes if one["name"] not in ours}
        return self._processes.ended() + [name for name, pid in supervised.items() if not is_alive(pid)]

    # Chapters, in order.

    def _started(self) -> None:
        for host in self._topology.hosts():
            wait_until(f"{host} to be ready", lambda host=host: self._is_ready(host), self._processes.ended)
        running = self.all_processes()
        self.result.processes = [process.as_dict() for process in running]
        for process in running:
            where = f"on 127.0.0.1:{process.port}" if process.port else ""
            self._teller.say(f"{process.name:16} pid {process.pid:<7} {where}")

    def _enrolled(self) -> None:
        self._people = {
            instance: [Person(self._fetcher, self._topology, instance, user) for user in instance.users]
            for instance in self._topology.instances
        }
        everybody = [person for people in self._people.values() for person in people]
        self.result.actors = len(everybody)
        # Nobody can name a recent root before there is one, so the first of each log goes alone.
        first = [people[0] for people in self._people.values()]
        with self._teller.progress("enrolled", len(everybody)) as advance:
            for group in (first, [person for person in everybody if person not in first]):
                for _ in _together(Person.enrol, group):
                    advance()
        self._teller.held(f"{len(everybody)} actors have a leaf index, durably, and the log's receipt for it")

    def _published(self) -> None:
        for instance in self._topology.instances:
            size = len(self._people[instance])
            checkpoint = self._wait_published(instance, size)
            self._teller.held(
                f"{instance.origin} published {checkpoint.size} entries, root {checkpoint.root.hex()[:16]}…"
            )
        first = self._topology.instances[0]
        self._earlier_checkpoint.write_bytes(self._raw_checkpoint(first))

    def _looked_up(self) -> None:
        self._clients = {
            instance: self._client(f"client-{instance.name}") for instance in self._topology.instances
        }
        # In turn from each instance, so that two at a time are two clients.
        pairs = [zip(people, repeat(instance)) for instance, people in self._people.items()]
        everybody = [pair for pairs in zip_longest(*pairs) for pair in pairs if pair is not None]
        with self._teller.progress("looked up", len(everybody)) as advance:
            for _ in _together(lambda pair: self._look_up(*pair), everybody):
                self.result.lookups_verified += 1
                advance()
        self._teller.held("each answer: log signature, cosigner quorum, inclusion, commitments, message signatures")
        self._teller.say("not proven yet: that an answer is complete. That needs a verifier of the map: it is next.")

    def _rotated(self) -> None:
        person = self._rotating
        person.rotate()
        for instance, people in self._people.items():
            # The rotation, and one more enrolment's worth of entries nowhere: sizes say who did what.
            self._wait_published(instance, len(people) + (2 if person in people else 0))
        self._teller.held(f"{person.handle}: AddKey signed by the old key, then RevokeKey signed by the new one")

    def _consistent(self) -> None:
        instance = self._topology.instances[0]
        answer = self._look_up(self._rotating, instance)
        self._teller.held(f"{self._rotating.handle} has one key, the new one, at tree size {answer.tree_size}")
        others = [other for other in self._people if other is not instance]
        for other in others:
            self._look_up(self._people[other][0], other)
        self.result.lookups_verified += 1 + len(others)
        if self.result.lookups_verified < self.result.actors + 2:
            raise CheckFailed("consistent", f"only {self.result.lookups_verified} lookups were verified")

    def _audited(self) -> None:
        for instance, report in zip(
            self._topology.instances, _together(self._audit, self._topology.instances), strict=True
        ):
            if report["exit_code"] != 0 or not report["ok"]:
                raise CheckFailed("audited", f"{instance.origin}: {_describe_findings(report)}")
            self.result.entries_audited += report["entries_audited"]
            self._teller.held(
                f"{instance.origin}: {report['entries_audited']} entries,"
                f" {report['commitments']['checked']} commitments, {report['actors']} actors, nothing amiss"
            )
        expected = sum(self._checkpoint(i).size for i in self._topology.instances)
        if self.result.entries_audited != expected:
            raise CheckFailed("audited", f"{self.result.entries_audited} entries audited of {expected}")

    def _roll_back(self) -> None:
        with self._liar("smaller", "--old", str(self._earlier_checkpoint)) as told:
            self._witnesses_refused("smaller", told, 409)
            self._client_refuses("smaller", "RolledBack")
            report = self._audit(self._lied_about)
        names = [finding["name"] for finding in report["findings"]]
        if "RolledBack" not in names or report["exit_code"] != 9 or report["evidence"]:
            raise CheckFailed("smaller", f"the auditor said {names} and exit code {report['exit_code']}")
        # A finding and no evidence: a smaller tree by itself convicts nobody.
        self.result.findings.append({"lie": "smaller", "found_by": "auditor", "reason": "RolledBack"})
        self._teller.noticed("auditor", f"{_describe_findings(report)} (a finding, no evidence)")

    def _swap_key(self) -> None:
        with self._liar("swapped-key", "--actor", self._rotating.actor_id):
            self._client_refuses("swapped-key", "UnlistedKey")
            report = self._audit(self._lied_about)
            self._auditor_refuses("swapped-key", report, "AnswerContradictsLog", 5)

    def _fork(self) -> None:
        with self._liar("same-size") as told:
            self._witnesses_refused("same-size", told, 422)
            self._client_refuses("same-size", "TwoRoots")
            report = self._audit(self._lied_about)
            self._auditor_refuses("same-size", report, "TwoRoots", 7)
        if not report["evidence"]:
            raise CheckFailed("same-size", "the auditor wrote no evidence of the fork")
        for path in report["evidence"]:
            self._convict(path)

    def _still_running(self) -> None:
        for host in self._topology.hosts():
            if not self._is_ready(host):
                raise CheckFailed("still-running", f"{host} does not answer as it did")
        if self._gone():
            raise CheckFailed("still-running", "not every process is still the one that was started")
        self._teller.held(f"{len(self.result.processes)} processes, and every host answers")

    # What the chapters are made of.

    @property
    def _rotating(self) -> Person:
        return self._people[self._topology.instances[0]][0]

    @property
    def _lied_about(self) -> Instance:
        return self._topology.instances[0]

    def _reader_of(self, instance: Instance) -> Directory:
        """The client that looks into *instance*'s log: one that belongs to the other instance."""
        other = next(i for i in self._topology.instances if i is not instance)
        return self._clients[other]

    def _client(self, name: str) -> Directory:
        return Directory.from_policy_file(
            self._topology.trust_policy, state=self._topology.directory / name,
            domains=self._topology.domains(), fetcher=self._fetcher,
        )

    def _look_up(self, person: Person, instance: Instance) -> Present:
        answer = self._reader_of(instance).lookup(person.handle)
        found = [encode_public_key(key.public_key) for key in answer.usable_keys]
        if found != [person.public_key_text]:
            raise CheckFailed(self._check, f"{person.handle}: the log has other keys than the person")
        return answer

    def all_processes(self) -> list[Running]:
        """Those that the demo started, and those that each log's supervisor did."""
        found = self._processes.running()
        for instance in self._topology.instances:
            path = self._topology.log_directory(instance) / "pids.json"
            pids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            port = next(r.port for r in found if r.name == f"log-{instance.name}")
            found += [
                Running(f"{name}-{instance.name}", pid, port if name == "web" else 0)
                for name, pid in pids.items() if name != "supervisor"
            ]
        return found

    def _is_ready(self, host: str) -> bool:
        """Whether *host* answers something of its own; a log answers for its sequencer too."""
        path, wanted = ("/readyz", 200) if host.split(".")[0] in (*WITNESSES, "keys") else ("/", 404)
        try:
            return self._fetcher.get(f"https://{host}{path}").status == wanted
        except KtlogError:
            return False

    def _raw_checkpoint(self, instance: Instance) -> bytes:
        response = self._fetcher.get(f"{instance.log_url}/checkpoint")
        return response.body if response.status == 200 else b""

    def _checkpoint(self, instance: Instance) -> Checkpoint:
        """The published checkpoint, after the trust policy's quorum was checked."""
        policy = parse_policy(self._topology.trust_policy.read_bytes())
        return policy.open_checkpoint(self._raw_checkpoint(instance), int(time.time())).checkpoint

    def _wait_published(self, instance: Instance, size: int) -> Checkpoint:
        def published() -> bool:
            raw = self._raw_checkpoint(instance)
            return bool(raw) and parse_signed_checkpoint(raw)[1].size >= size

        wait_until(
            f"{instance.origin} to publish {size} entries", published,
            lambda: self._processes.ended("front", f"log-{instance.name}"), PUBLISH_SECONDS,
        )
        checkpoint = self._checkpoint(instance)
        if checkpoint.size != size:
            raise Invalid("WrongSize", f"{instance.origin} has {checkpoint.size} entries; {size} were sent")
        return checkpoint

    def _audit(self, instance: Instance) -> dict[str, Any]:
        directory = self._topology.directory / f"auditor-{instance.name}"
        report = self._processes.run(
            "auditor", "audit", instance.origin, "--dir", str(directory), "--policy", str(self._topology.trust_policy),
            "--json",
        )
        if not isinstance(report.get("findings"), list):
            raise CheckFailed(self._check, f"the auditor could not audit {instance.origin}: {report.get('error')}")
        return report

    def _liar(self, lie: str, *arguments: str) -> _Liar:
        return _Liar(self._topology, self._processes, self._lied_about, lie, arguments)

    def _witnesses_refused(self, lie: str, told: Sequence[dict[str, Any]], status: int) -> None:
        wrong = [answer for answer in told if answer["status"] != status]
        if wrong or not told:
            raise CheckFailed(lie, f"a witness should answer {status}; they answered {told}")
        words = told[0]["body"]
        # A 409's body is the size alone, for programs (C2SP tlog-witness).
        self._record(lie, "witness", f"409: it has cosigned {words} entries" if status == 409 else f"{status} {words}")

    def _client_refuses(self, lie: str, name: str) -> None:
        try:
            self._reader_of(self._lied_about).lookup(self._rotating.handle)
        except VerificationError as error:
            if error.name != name:
                raise CheckFailed(lie, f"the client should say {name}; it said {error}") from None
            self._record(lie, "client", str(error))
            return
        raise CheckFailed(lie, "the client believed the lie")

    def _auditor_refuses(self, lie: str, report: dict[str, Any], name: str, exit_code: int) -> None:
        names = [finding["name"] for finding in report["findings"]]
        if name not in names or report["exit_code"] != exit_code:
            raise CheckFailed(lie, f"the auditor said {names} and exit code {report['exit_code']}, not {name}")
        self._record(lie, "auditor", _describe_findings(report))

    def _convict(self, path: str) -> None:
        verdict = self._processes.run("auditor", "verify-evidence", path, "--json")
        if verdict["exit_code"] != 0:
            raise CheckFailed("same-size", f"the evidence in {path} does not convict: {verdict}")
        self.result.evidence.append(path)
        self._teller.held(f"evidence: {path} convicts the log by its public key alone")

    def _record(self, lie: str, who: str, reason: str) -> None:
        self.result.lies.append({"lie": lie, "refused_by": who, "reason": reason})
        self._teller.refused(who, reason)


class _Liar:
    """While this context lasts, the log's name leads to a process that lies."""

    def __init__(
        self, topology: Topology, processes: Processes, instance: Instance, lie: str, arguments: Sequence[str]
    ) -> None:
        self._topology = topology
        self._processes = processes
        self._instance = instance
        self._lie = lie
        self._arguments = arguments
        self._routes = json.loads((topology.front_directory / "routes.json").read_text(encoding="utf-8"))

    def __enter__(self) -> list[dict[str, Any]]:
        out = self._topology.directory / f"lie-{self._lie}.json"
        listener = listen_on_loopback()
        lying = {**self._routes, self._instance.origin: address_of(listener)}
        name = f"liar-{self._lie}"
        self._processes.start(
            name, "ktlog.demo.liar",
            ["--dir", str(self._topology.log_directory(self._instance)), "--lie", self._lie, "--out", str(out),
             *self._arguments],
            listener,
        )
        wait_until("the liar to have told its lie", out.exists, lambda: self._processes.ended(name))
        write_routes(self._topology.front_directory, lying)
        return json.loads(out.read_text(encoding="utf-8"))["told"]

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        write_routes(self._topology.front_directory, self._routes)
        if failure is None:  # else the demo ends, and says whether the liar did so before
            self._processes.stop(f"liar-{self._lie}")


def _describe_findings(report: dict[str, Any]) -> str:
    """Every kind of finding by its name, and the first in words."""
    names = dict.fromkeys(finding["name"] for finding in report["findings"])
    words = report["findings"][0]["what"] if names else f"no finding, and exit code {report['exit_code']}"
    return f"{', '.join(names)}: {words}"


def _together(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """``map``, two at a time. What has not begun when one fails, or at Ctrl-C, is not begun."""
    pool = ThreadPoolExecutor(2)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
