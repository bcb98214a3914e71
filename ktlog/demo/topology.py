"""Who is there in the demo, where each keeps its state, and which name leads to which process.

Everybody has a real name and real HTTPS. One TLS front stands in for the reverse proxies, with a
certificate of a CA that lives as long as the demo, and a dial table stands in for name resolution.
Nothing else differs from production (design decision 16).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ktlog.config import write_settings
from ktlog.demo.front import write_routes
from ktlog.demo.instance import prepare_instance
from ktlog.demo.pki import create_pki
from ktlog.demo.processes import Processes, listen_on_loopback
from ktlog.durable import write_atomic
from ktlog.errors import Invalid
from ktlog.keymap.output import MAP_SUFFIX
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.keys import PublicKeys
from ktlog.operator.witnessing import input_policy
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey, parse_vkey
from ktlog.tlog.policy import Group, LogKey, Policy, Witness, format_policy
from ktlog.wire.dial import load_dial
from ktlog.wire.fetch import Fetcher

FEDERATION = ("alpha", "beta")
WITNESSES = ("w1", "w2", "w3")
WITNESSES_NEEDED = 2
VERIFIER = "v1"
WITNESS_HOSTS = tuple(f"{name}.witness.example" for name in WITNESSES)
VERIFIER_HOST = f"{VERIFIER}.verifier.example"
COSIGNER_HOSTS = (*WITNESS_HOSTS, VERIFIER_HOST)
LIARS_COPY = "log-of-the-liar"
"""The directory, beside the logs' own, in which one of them goes on lying."""
MAP_INTERVAL_MS = 500
NOTICE_SECONDS = 1
"""How long, in the demo's logs, something must have been public before it may be erased. A real log takes a day."""
# An actor of the first instance whom nobody enrols: for the person who runs the demo.
GUEST = "you"


@dataclass(frozen=True)
class Instance:
    """One Fediverse instance and its log. ``users`` are the actors' names there."""

    name: str
    users: tuple[str, ...]

    @property
    def domain(self) -> str:
        return f"{self.name}.example"

    @property
    def origin(self) -> str:
        return f"keys.{self.name}.example"

    @property
    def log_url(self) -> str:
        return f"https://{self.origin}"

    def actor_id(self, user: str) -> str:
        return f"https://{self.domain}/users/{user}"

    def handle(self, user: str) -> str:
        return f"@{user}@{self.domain}"


@dataclass(frozen=True)
class Topology:
    """The demo's places on disk."""

    directory: Path
    instances: tuple[Instance, ...]

    def log_directory(self, instance: Instance) -> Path:
        return self.directory / f"log-{instance.name}"

    def instance_directory(self, instance: Instance) -> Path:
        return self.directory / f"instance-{instance.name}"

    def cosigner_directory(self, host: str) -> Path:
        """``w1.witness.example`` has ``witness-w1``."""
        name, role, _ = host.split(".")
        return self.directory / f"{role}-{name}"

    @property
    def front_directory(self) -> Path:
        return self.directory / "front"

    @property
    def dial_file(self) -> Path:
        return self.directory / "dial.json"

    @property
    def trust_policy(self) -> Path:
        """What a client trusts: the keys of both logs' maps, two of the three witnesses, and the verifier."""
        return self.directory / "trust.policy"

    @property
    def audit_policy(self) -> Path:
        """What `ktlog policy show --for auditors` prints, of both logs: their keys, their maps', and the witnesses."""
        return self.directory / "audit.policy"

    @property
    def entries_policy(self) -> Path:
        """The same without the maps' keys: for an auditor who does not derive them."""
        return self.directory / "entries.policy"

    @property
    def evidence(self) -> Path:
        return self.directory / "evidence"

    def hosts(self) -> list[str]:
        names = [*COSIGNER_HOSTS]
        for instance in self.instances:
            names += [instance.domain, instance.origin]
        return names

    def domains(self) -> dict[str, str]:
        return {instance.domain: instance.origin for instance in self.instances}

    def fetcher(self) -> Fetcher:
        return Fetcher(load_dial(self.dial_file), timeout=20.0)

def plan(directory: Path, actors: int) -> Topology:
    """Share *actors* out between the two instances: a01, a02 … at alpha, b01 … at beta."""
    shares = (actors - actors // 2, actors // 2)
    instances = tuple(
        Instance(name, tuple(f"{name[0]}{number:02}" for number in range(1, share + 1)))
        for name, share in zip(FEDERATION, shares, strict=True)
    )
    return Topology(directory, instances)


def build(topology: Topology, processes: Processes) -> None:
    """Do once what each operator does by hand: init, exchange vkeys, write the policies."""
    topology.directory.mkdir(parents=True, exist_ok=True)
    logs = {instance: _make_log(topology, instance) for instance in topology.instances}
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda host: _make_cosigner(topology, processes, host, logs), COSIGNER_HOSTS)
        for instance in topology.instances:
            guests = (GUEST,) if instance is topology.instances[0] else ()
            prepare_instance(topology.instance_directory(instance), instance.domain, instance.users + guests)
        cosigners = dict(zip(COSIGNER_HOSTS, made, strict=True))
    for instance in topology.instances:
        write_atomic(topology.log_directory(instance) / "publish.policy", format_policy(_policy(cosigners, ())))
    own = tuple(LogKey(_named(public.vkeys), instance.log_url) for instance, public in logs.items())
    maps = tuple(
        LogKey(_named(public.map_vkeys), f"{instance.log_url}{MAP_SUFFIX}") for instance, public in logs.items()
    )
    write_atomic(topology.trust_policy, format_policy(_policy(cosigners, maps)))
    write_atomic(topology.audit_policy, format_policy(input_policy(_policy(cosigners, own + maps))))
    write_atomic(topology.entries_policy, format_policy(input_policy(_policy(cosigners, own))))
    create_pki(topology.front_directory, topology.hosts())


def _make_log(topology: Topology, instance: Instance) -> PublicKeys:
    settings = create_log(topology.log_directory(instance), instance.origin, "spec", None)
    # One worker and short intervals: two whole federations share this machine's cores, and one address: the
    # front forwards no other, so what one of them did wrong would be counted against all.
    write_settings(replace(
        settings, workers=1, checkpoint_interval_ms=200, map_interval_ms=MAP_INTERVAL_MS,
        notice_seconds=NOTICE_SECONDS, rate_limit_exempt="127.0.0.0/8",
    ))
    return load_public_keys(settings)


def _make_cosigner(
    topology: Topology, processes: Processes, host: str, logs: Mapping[Instance, PublicKeys]
) -> tuple[Vkey, ...]:
    """Make the witness or the verifier at *host*, and let it follow both logs and their maps; gives its vkeys."""
    directory = str(topology.cosigner_directory(host))
    commands = [["init", "--dir", directory, "--name", host, "--json"]]
    for instance, public in logs.items():
        follow = ["add-log", "--dir", directory, "--json"]
        if host == VERIFIER_HOST:
            commands.append([*follow, "--replay", instance.log_url, *public.vkeys, *public.map_vkeys])
        else:
            commands += [[*follow, *public.vkeys], [*follow, *public.map_vkeys]]
    report = processes.run("ktlog.demo.batch", "witness", json.dumps(commands))
    for command, done in zip(commands, report["done"], strict=False):
        if done["exit_code"] != 0:
            raise Invalid("CommandFailed", f"ktlog-witness {command[0]} for {host}: {done.get('error')}")
    return tuple(parse_vkey(text) for text in report["done"][0]["vkeys"])


def _named(vkeys: Sequence[str]) -> Vkey:
    """A log's ML-DSA-44 key, the one that policies name."""
    return next(vkey for vkey in map(parse_vkey, vkeys) if vkey.algorithm == COSIGNATURE_MLDSA44)


def _policy(cosigners: Mapping[str, tuple[Vkey, ...]], logs: tuple[LogKey, ...]) -> Policy:
    """Two of three witnesses, and the verifier. Each signs with two keys, and counts only when both did."""
    witnesses: dict[str, Witness] = {}
    groups: dict[str, Group] = {}
    for host, vkeys in cosigners.items():
        name = host.split(".")[0]
        members = tuple(f"{name}-{vkey.algorithm:02x}" for vkey in vkeys)
        for member, vkey in zip(members, vkeys, strict=True):
            witnesses[member] = Witness(member, vkey, f"https://{host}")
        groups[name] = Group(name, len(members), members)
    groups["witnesses"] = Group("witnesses", WITNESSES_NEEDED, WITNESSES)
    groups["verifiers"] = Group("verifiers", 1, (VERIFIER,))
    groups["quorum"] = Group("quorum", 2, ("witnesses", "verifiers"))
    return Policy(logs=logs, witnesses=witnesses, groups=groups, quorum="quorum")


def start(topology: Topology, processes: Processes) -> None:
    """Start every process. Each gets its listening socket, so none waits for another's port."""
    front = listen_on_loopback()
    table = {
        "ca_file": os.path.relpath(topology.front_directory / "ca.pem", topology.directory),
        "hosts": dict.fromkeys(topology.hosts(), address_of(front)),
    }
    write_atomic(topology.dial_file, json.dumps(table, indent=1).encode())
    routes: dict[str, str] = {}

    def launch(name: str, host: str, module: str, arguments: list[str]) -> None:
        listener = listen_on_loopback()
        routes[host] = address_of(listener)
        processes.start(name, module, arguments, listener)

    for host in COSIGNER_HOSTS:
        directory = topology.cosigner_directory(host)
        replay = ["--replay"] if host == VERIFIER_HOST else []
        launch(directory.name, host, "witness", ["serve", "--dir", str(directory), *replay])
    for instance in topology.instances:
        launch(
            f"instance-{instance.name}", instance.domain, "ktlog.demo.instance",
            ["--dir", str(topology.instance_directory(instance))],
        )
        launch(
            f"log-{instance.name}", instance.origin, "ktlog",
            ["serve", "--dir", str(topology.log_directory(instance))],
        )
    write_routes(topology.front_directory, routes)
    processes.start("front", "ktlog.demo.front", ["--dir", str(topology.front_directory)], front)


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"
