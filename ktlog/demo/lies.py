"""The lies of the demo's story, and who refuses each. They are told by a process that holds a log's real keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ktlog.demo.front import write_routes
from ktlog.demo.people import Person
from ktlog.demo.processes import listen_on_loopback, wait_until
from ktlog.demo.scene import Scene, describe_findings
from ktlog.demo.topology import LIARS_COPY, VERIFIER_HOST, WITNESS_HOSTS, WITNESSES, Instance, address_of
from ktlog.durable import write_once
from ktlog.errors import Forked, KtlogError, VerificationError
from ktlog.keymap.output import MAP_SUFFIX

EARLIER = {"--old": "earlier-checkpoint", "--old-map": "earlier-map-checkpoint", "--old-bundle": "earlier-bundle"}
"""Files in the demo's directory, by the liar's option: what the first log had published before the rotation."""


class Lies:
    """The chapters in which somebody lies: first in the name of the first instance's log, then of the last one's.

    The last one's is caught for good, so that the first one's is still there for whoever stays to look around.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def keep_earlier(self) -> None:
        """Keep what the first log publishes now, for the roll-back."""
        scene, person = self._scene, self._scene.rotating
        now = (
            scene.raw_checkpoint(self._first), scene.raw_checkpoint(self._first, MAP_SUFFIX),
            scene.raw_bundle(self._first, person.actor_id),
        )
        for name, data in zip(EARLIER.values(), now, strict=True):
            (scene.topology.directory / name).write_bytes(data)

    def roll_back(self) -> None:
        scene, directory = self._scene, self._scene.topology.directory
        kept = [word for option, name in EARLIER.items() for word in (option, str(directory / name))]
        with self._liar(self._first, "smaller", *kept) as liar:
            offered = [(self._first.origin, host) for host in WITNESS_HOSTS]
            offered += [(self._first.origin + MAP_SUFFIX, host) for host in (*WITNESS_HOSTS, VERIFIER_HOST)]
            self._cosigners_refuse(liar.told(), 409, offered)
            self._client_refuses(scene.rotating, "RolledBack")
            report = scene.audit(self._first, again=True)
        names = [finding["name"] for finding in report["findings"]]
        if "RolledBack" not in names or report["exit_code"] != 9 or report["evidence"]:
            raise scene.failed(f"the auditor said {names} and exit code {report['exit_code']}")
        # A finding and no evidence: a smaller tree by itself convicts nobody.
        scene.result.findings.append({"lie": scene.check, "found_by": "auditor", "reason": "RolledBack"})
        scene.teller.noticed("auditor", f"{describe_findings(report)} (a finding, no evidence)")

    def swap_key(self) -> None:
        scene = self._scene
        with self._liar(self._first, "swapped-key", "--actor", scene.rotating.actor_id) as liar:
            liar.told()
            self._client_refuses(scene.rotating, "UnlistedKey")
            self._auditor_refuses(scene.audit(self._first, again=True), "AnswerContradictsLog", 5)

    def hide_revocation(self) -> None:
        """The log takes a rotation as any log does, and its map goes on listing the old key."""
        scene, person = self._scene, self._rotating_last
        with self._liar(self._last, "hidden-revocation", "--actor", person.actor_id) as liar:
            wait_until("the liar to be ready", lambda: scene.is_ready(self._last.origin), liar.ended)
            person.rotate()
            (told,) = liar.told()
            self._only_the_verifier_refuses(told)
            report = scene.audit(self._last, mapped=False)
            if report["exit_code"] != 0:
                raise scene.failed(f"the log itself is whole, and the auditor said {describe_findings(report)}")
            entries = report["entries_audited"]
            scene.teller.say(f"an auditor of the log alone finds nothing amiss in its {entries} entries")
            self._auditor_refuses(scene.audit(self._last), "MapNotDerived", 5)
            self._client_refuses(person, "TooFewVerifiers")

    def fork(self) -> None:
        """The same log goes on from there, and denies what its witnesses, the client and the auditor saw last."""
        scene = self._scene
        seen = scene.checkpoint(self._last, MAP_SUFFIX).size
        lied = scene.topology.directory / LIARS_COPY
        with self._liar(self._last, "same-size", "--map-size", str(seen), directory=lied) as liar:
            self._cosigners_refuse(liar.told(), 422, [(self._last.origin, host) for host in WITNESS_HOSTS])
            convicted = self._client_refuses(self._rotating_last, "TwoRoots")
            report = scene.audit(self._last, again=True)
            self._auditor_refuses(report, "TwoRoots", 7)
        if not report["evidence"] or not isinstance(convicted, Forked) or not convicted.evidence:
            raise scene.failed("there is no evidence of the fork")
        path = scene.topology.directory / "two-roots-of-the-map.json"
        write_once(path, convicted.evidence)
        self._convict([*report["evidence"], str(path)])

    # What they have in common.

    @property
    def _first(self) -> Instance:
        return self._scene.topology.instances[0]

    @property
    def _last(self) -> Instance:
        return self._scene.topology.instances[-1]

    @property
    def _rotating_last(self) -> Person:
        return self._scene.people[self._last][0]

    def _liar(self, instance: Instance, lie: str, *arguments: str, directory: Path | None = None) -> _Liar:
        return _Liar(self._scene, instance, lie, directory or self._scene.topology.log_directory(instance), arguments)

    def _cosigners_refuse(self, told: Sequence[dict[str, Any]], status: int, offered: list[tuple[str, str]]) -> None:
        """Everybody in *offered*, pairs of a log and a host, was told, and answered *status*."""
        if [(answer["log"], answer["cosigner"]) for answer in told] != offered:
            raise self._scene.failed(f"the lie was not told to everybody: {told}")
        if any(answer["status"] != status for answer in told):
            raise self._scene.failed(f"a cosigner should answer {status}; they answered {told}")
        named = {"verifier" if host == VERIFIER_HOST else "witness": place for place, (_, host) in enumerate(offered)}
        for who, place in named.items():
            words = told[place]["body"]
            # A 409's body is the size alone, for programs (C2SP tlog-witness).
            self._record(who, f"409: it has cosigned {words} entries" if status == 409 else f"{status} {words}")

    def _only_the_verifier_refuses(self, told: dict[str, Any]) -> None:
        scene = self._scene
        if told["cosigned"] != list(WITNESS_HOSTS):
            raise scene.failed(f"the witnesses should cosign, for the log grew as logs do; {told}")
        words = told["refused"].get(f"https://{VERIFIER_HOST}", "")
        if " answered 422: " not in words:
            raise scene.failed(f"the verifier should answer 422; {told}")
        scene.teller.say(f"cosigned by {', '.join(WITNESSES)}: they see that the map's log grew, and not what it says")
        self._record("verifier", "422 " + words.partition(" answered 422: ")[2])

    def _client_refuses(self, person: Person, name: str) -> KtlogError:
        try:
            self._scene.reader_of(person.instance).lookup(person.handle)
        except VerificationError as error:
            if error.name != name:
                raise self._scene.failed(f"the client should say {name}; it said {error}") from None
            self._record("client", str(error))
            return error
        raise self._scene.failed("the client believed the lie")

    def _auditor_refuses(self, report: dict[str, Any], name: str, exit_code: int) -> None:
        names = [finding["name"] for finding in report["findings"]]
        if name not in names or report["exit_code"] != exit_code:
            raise self._scene.failed(f"the auditor said {names} and exit code {report['exit_code']}, not {name}")
        self._record("auditor", describe_findings(report))

    def _convict(self, paths: Sequence[str]) -> None:
        commands = [["verify-evidence", path, "--json"] for path in paths]
        verdicts = self._scene.processes.run("ktlog.demo.batch", "auditor", json.dumps(commands))["done"]
        for path, verdict in zip(paths, verdicts, strict=False):
            if verdict["exit_code"] != 0:
                raise self._scene.failed(f"the evidence in {path} does not convict: {verdict}")
            self._scene.result.evidence.append(path)
            self._scene.teller.held(f"evidence: {path} convicts the log by its public key alone")

    def _record(self, who: str, reason: str) -> None:
        self._scene.result.lies.append({"lie": self._scene.check, "refused_by": who, "reason": reason})
        self._scene.teller.refused(who, reason)


class _Liar:
    """While this context lasts, the log's name leads to a process that lies."""

    def __init__(self, scene: Scene, instance: Instance, lie: str, directory: Path, arguments: Sequence[str]) -> None:
        self._processes = scene.processes
        self._front = scene.topology.front_directory
        self._routes = json.loads((self._front / "routes.json").read_text(encoding="utf-8"))
        self._instance = instance
        self._name = f"liar-{lie}"
        self._out = scene.topology.directory / f"lie-{lie}.json"
        self._arguments = [
            "--dir", str(directory), "--lie", lie, "--out", str(self._out), *arguments,
        ]

    def ended(self) -> list[str]:
        """The liar, if it ended by itself."""
        return self._processes.ended(self._name)

    def told(self) -> list[dict[str, Any]]:
        """What those answered whom it told its lie; waits until it has."""
        ready: Callable[[], bool] = self._out.exists
        wait_until("the liar to have told its lie", ready, self.ended)
        return json.loads(self._out.read_text(encoding="utf-8"))["told"]

    def __enter__(self) -> _Liar:
        listener = listen_on_loopback()
        lying = {**self._routes, self._instance.origin: address_of(listener)}
        self._processes.start(self._name, "ktlog.demo.liar", self._arguments, listener)
        write_routes(self._front, lying)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        write_routes(self._front, self._routes)
        if failure is None:  # else the demo ends, and says whether the liar did so before
            self._processes.stop(self._name)
