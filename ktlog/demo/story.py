"""The demo's story, chapter by chapter. Every chapter ends in checks; the first that fails ends the demo.

Nothing here reaches into a process: actors enrol through their instance, clients and auditors read
over HTTPS, an operator erases with the operator's own command, and the lies are told by a process that
holds a log's real keys.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

from ktlog.client import Erased, NeverEnrolled
from ktlog.demo.lies import Lies
from ktlog.demo.people import Person
from ktlog.demo.processes import Processes, Running, is_alive, wait_until
from ktlog.demo.scene import CheckFailed, Result, Scene, describe_findings, together
from ktlog.demo.teller import Teller
from ktlog.demo.topology import GUEST, Topology, build, start
from ktlog.errors import KtlogError

ERASE_SECONDS = 20.0

# In the order in which they are made. `--pause-before NAME` stops the demo there.
CHECKS = (
    "started", "enrolled", "published", "looked-up", "in-full", "absent", "rotated", "consistent", "erased", "audited",
    "smaller", "swapped-key", "hidden-revocation", "same-size", "still-running",
)


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
        self._scene = Scene(topology, processes, teller, result, CHECKS[0])
        self._lies = Lies(self._scene)
        self.result = result

    def tell(self) -> None:
        """Live through the whole story.

        Raises:
            CheckFailed: its name is the check that did not hold.
        """
        with self._checking("started"):
            self._teller.say("Making keys, stores and policies …")
            build(self._topology, self._processes)
            start(self._topology, self._processes)
        for number, (name, title, chapter) in enumerate(self._chapters(), 1):
            self._teller.step(number, title)
            self._pause(name)
            with self._checking(name):
                chapter()
            self.result.checks.append(name)

    def _chapters(self) -> tuple[tuple[str, str, Callable[[], None]], ...]:
        lies = self._lies
        return (
            ("started", "Two instances, two logs, three witnesses, a verifier: every one a process of its own",
             self._started),
            ("enrolled", "Actors enrol their keys through their instances", self._enrolled),
            ("published", "Witnesses cosign each log, witnesses and verifier its map; only then is it published",
             self._published),
            ("looked-up", "A client of the other instance looks everybody up: present", self._looked_up),
            ("in-full", "One of them in full: every message behind the key", self._in_full),
            ("absent", "Somebody whom nobody enrolled: never enrolled, and that is proven too", self._absent),
            ("rotated", "One actor rotates: a new key, and the old one revoked", self._rotated),
            ("consistent", "The client looks again, and checks that the log only grew", self._consistent),
            ("erased", "An operator erases an actor: the answer is neither present nor absent", self._erased),
            ("audited", "An auditor replays both logs from the first entry", self._audited),
            ("smaller", "Lie 1: an old checkpoint, so that the rotation never happened", lies.roll_back),
            ("swapped-key", "Lie 2: somebody else's key in an answer", lies.swap_key),
            # These two last: nobody here talks to that log afterwards.
            ("hidden-revocation", "Lie 3: a revocation that the log has, and its map does not", lies.hide_revocation),
            ("same-size", "Lie 4: another history of the same length, signed with the log's own keys", lies.fork),
            ("still-running", "Every process is still the one that was started", self._still_running),
        )

    @contextmanager
    def _checking(self, name: str) -> Iterator[None]:
        """Turn whatever goes wrong within into a CheckFailed of *name* that says what the processes said."""
        self._scene.check = name
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
            wait_until(f"{host} to be ready", lambda host=host: self._scene.is_ready(host), self._processes.ended)
        running = self.all_processes()
        self.result.processes = [process.as_dict() for process in running]
        for process in running:
            where = f"on 127.0.0.1:{process.port}" if process.port else ""
            self._teller.say(f"{process.name:16} pid {process.pid:<7} {where}")

    def _enrolled(self) -> None:
        self._scene.people = {
            instance: [Person(self._scene.fetcher, self._topology, instance, user) for user in instance.users]
            for instance in self._topology.instances
        }
        everybody = self._scene.everybody
        self.result.actors = len(everybody)
        # Nobody can name a recent root before there is one, so the first of each log goes alone.
        first = [people[0] for people in self._scene.people.values()]
        with self._teller.progress("enrolled", len(everybody)) as advance:
            for group in (first, [person for person in everybody if person not in first]):
                for _ in together(Person.enrol, group):
                    advance()
        self._teller.held(f"{len(everybody)} actors have a leaf index, durably, and the log's receipt for it")

    def _published(self) -> None:
        for instance, people in self._scene.people.items():
            checkpoint, newest = self._scene.wait_published(instance, len(people))
            self._teller.held(
                f"{instance.origin} published {checkpoint.size} entries, root {checkpoint.root.hex()[:16]}…; their map"
                f" is leaf {newest.size - 1} of {newest.origin}"
            )
        self._teller.say("the verifier checked every entry itself, and made the same map with code of its own")
        self._lies.keep_earlier()

    def _looked_up(self) -> None:
        self._scene.start_clients()
        # In turn from each instance, so that two at a time are two clients.
        everybody = [
            person for people in zip_longest(*self._scene.people.values()) for person in people if person is not None
        ]
        with self._teller.progress("looked up", len(everybody)) as advance:
            for _ in together(self._scene.find, everybody):
                advance()
        self._teller.held("each answer: log signature, witnesses and verifier, newest map, the actor's place in it")
        self._teller.say("so each list of keys is complete, and current, if the verifier is honest")

    def _in_full(self) -> None:
        person = self._scene.people[self._topology.instances[0]][1]
        answer = self._scene.find(person, full=True)
        if answer.map is None or not answer.map.full:
            raise self._scene.failed(f"{person.handle} was not checked in full")
        self._teller.held(
            f"{person.handle}: inclusion, commitments and signatures lead to this key, whatever a verifier says"
        )

    def _absent(self) -> None:
        first = self._topology.instances[0]
        handle = first.handle(GUEST)
        answer = self._scene.ask(first, handle)
        if not isinstance(answer, NeverEnrolled):
            raise self._scene.failed(f"nobody enrolled {handle}; the answer is {type(answer).__name__}")
        self._teller.held(f"{handle} is an actor of {first.domain}, and {first.origin} never had a key of theirs")

    def _rotated(self) -> None:
        person = self._scene.rotating
        person.rotate()
        for instance, people in self._scene.people.items():
            # The rotation, and one more enrolment's worth of entries nowhere: sizes say who did what.
            self._scene.wait_published(instance, len(people) + (2 if person in people else 0))
        self._teller.held(f"{person.handle}: AddKey signed by the old key, then RevokeKey signed by the new one")

    def _consistent(self) -> None:
        person = self._scene.rotating
        answer = self._scene.find(person)
        changed = (len(answer.keys), len(answer.new_keys), len(answer.gone_keys))
        if changed != (1, 1, 1) or answer.reset is not None:
            raise self._scene.failed(f"{person.handle}: keys, new ones and gone ones are {changed}, not one of each")
        self._teller.held(
            f"{person.handle} has one key, the new one, at tree size {answer.tree_size}; the old one is gone"
        )
        for instance, people in self._scene.people.items():
            if instance != person.instance:
                self._scene.find(people[0])
        if self.result.lookups_verified < self.result.actors + 4:
            raise self._scene.failed(f"only {self.result.lookups_verified} lookups were verified")

    def _erased(self) -> None:
        instance = self._topology.instances[-1]
        person = self._scene.people[instance][-1]
        wait_until(f"{instance.origin} to erase {person.handle}", lambda: self._shred(person), list, ERASE_SECONDS)
        answer = self._scene.ask(instance, person.handle)
        if not isinstance(answer, Erased):
            raise self._scene.failed(f"{person.handle} was erased; the answer is {type(answer).__name__}")
        if answer.reset is None or len(answer.gone_keys) != 1:
            raise self._scene.failed(f"the client was not told that {person.handle} had a key that is gone")
        number = f"number {answer.erasure_number} of {instance.origin}"
        self._teller.held(f"{person.handle} is proven to be erased, {number}")
        self._teller.say(f"the client that knew the key is warned: {answer.reset}")

    def _shred(self, person: Person) -> bool:
        """Erase *person* with the operator's command; False while what they published is not public for long enough."""
        directory = str(self._topology.log_directory(person.instance))
        done = self._processes.run("ktlog", "shred", person.actor_id, "--dir", directory, "--yes", "--json")
        error = done.get("error", {})
        if done["exit_code"] != 0 and error.get("name") != "notice_period":
            raise self._scene.failed(f"ktlog shred ended with {done['exit_code']}: {error}")
        return done["exit_code"] == 0

    def _audited(self) -> None:
        instances = self._topology.instances
        for instance, report in zip(instances, together(self._scene.audit, instances), strict=True):
            if report["exit_code"] != 0 or not report["ok"]:
                raise self._scene.failed(f"{instance.origin}: {describe_findings(report)}")
            leaves, derived = report["map"]["leaves"], report["map"]["derived"]
            if not derived:
                raise self._scene.failed(f"{instance.origin}: none of {leaves} maps was derived from the entries")
            self.result.entries_audited += report["entries_audited"]
            self.result.maps_derived += derived
            self._teller.held(
                f"{instance.origin}: {report['entries_audited']} entries,"
                f" {report['commitments']['checked']} commitments, {report['actors']} actors, {leaves} maps"
                f" ({derived} derived from the entries), nothing amiss"
            )
        expected = sum(self._scene.checkpoint(instance).size for instance in instances)
        if self.result.entries_audited != expected:
            raise self._scene.failed(f"{self.result.entries_audited} entries audited of {expected}")

    def _still_running(self) -> None:
        for host in self._topology.hosts():
            if not self._scene.is_ready(host):
                raise self._scene.failed(f"{host} does not answer as it did")
        if self._gone():
            raise self._scene.failed("not every process is still the one that was started")
        self._teller.held(f"{len(self.result.processes)} processes, and every host answers")

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
