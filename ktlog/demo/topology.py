"""Who is there in the demo, where each keeps its state, and which name leads to which process.

Everybody has a real name and real HTTPS. One TLS front stands in for the reverse proxies, with a
certificate of a CA that lives as long as the demo, and a dial table stands in for name resolution.
Nothing else differs from production (design decision 16).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktlog.config import Settings, write_settings
from ktlog.demo.front import write_routes
from ktlog.demo.instance import prepare_instance
from ktlog.demo.pki import create_pki
from ktlog.demo.processes import Processes, listen_on_loopback
from ktlog.durable import write_atomic
from ktlog.errors import Invalid
from ktlog.operator.create import create_log, load_public_keys
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey, parse_vkey
from ktlog.tlog.policy import Group, LogKey, Policy, Witness, format_policy
from ktlog.wire.dial import load_dial
from ktlog.wire.fetch import Fetcher

FEDERATION = ("alpha", "beta")
WITNESSES = ("w1", "w2", "w3")
WITNESSES_NEEDED = 2
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

    def witness_directory(self, name: str) -> Path:
        return self.directory / f"witness-{name}"

    @property
    def front_directory(self) -> Path:
        return self.directory / "front"

    @property
    def dial_file(self) -> Path:
        return self.directory / "dial.json"

    @property
    def trust_policy(self) -> Path:
        """What a client or an auditor trusts: both logs' keys, and two of the three witnesses."""
        return self.directory / "trust.policy"

    @property
    def evidence(self) -> Path:
        return self.directory / "evidence"

    def hosts(self) -> list[str]:
        names = [f"{name}.witness.example" for name in WITNESSES]
        for instance in self.instances:
            names += [instance.domain, instance.origin]
        return names

    def domains(self) -> dict[str, str]:
        return {instance.domain: instance.origin for instance in self.instances}

    def fetcher(self) -> Fetcher:
        return Fetcher(load_dial(self.dial_file), timeout=20.0)

    def origin_vkey(self, instance: Instance) -> Vkey:
        """The log's ML-DSA-44 key, the one that policies name."""
        public = load_public_keys(Settings(self.log_directory(instance), instance.origin, "spec"))
        vkeys = [parse_vkey(text) for text in public.vkeys]
        return next(vkey for vkey in vkeys if vkey.algorithm == COSIGNATURE_MLDSA44)


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
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda name: _make_witness(topology, processes, name), WITNESSES)
        cosigners = dict(zip(WITNESSES, made, strict=True))
    logs: list[LogKey] = []
    with ThreadPoolExecutor(2) as pool:
        follows: list[Future[None]] = []
        for instance in topology.instances:
            settings = create_log(topology.log_directory(instance), instance.origin, "spec", None)
            # One worker and short intervals: two whole federations share this machine's cores, and one address: the
            # front forwards no other, so what one of them did wrong would be counted against all.
            write_settings(Settings(
                settings.directory, settings.origin, settings.dialect, workers=1, checkpoint_interval_ms=200,
                map_interval_ms=200, rate_limit_exempt="127.0.0.0/8",
            ))
            write_atomic(settings.publish_policy, format_policy(_policy(cosigners, ())))
            public = load_public_keys(settings)
            follows += [
                pool.submit(_follow, topology, processes, name, vkeys)
                for name in WITNESSES for vkeys in (public.vkeys, public.map_vkeys)
            ]
            logs.append(LogKey(topology.origin_vkey(instance), instance.log_url))
            guests = (GUEST,) if instance is topology.instances[0] else ()
            prepare_instance(topology.instance_directory(instance), instance.domain, instance.users + guests)
        for follow in follows:
            follow.result()
    write_atomic(topology.trust_policy, format_policy(_policy(cosigners, tuple(logs))))
    create_pki(topology.front_directory, topology.hosts())


def _make_witness(topology: Topology, processes: Processes, name: str) -> tuple[Vkey, ...]:
    made = _witness_command(topology, processes, name, "init", "--name", f"{name}.witness.example")
    return tuple(parse_vkey(text) for text in made["vkeys"])


def _follow(topology: Topology, processes: Processes, name: str, vkeys: Sequence[str]) -> None:
    _witness_command(topology, processes, name, "add-log", *vkeys)


def _witness_command(
    topology: Topology, processes: Processes, name: str, command: str, *arguments: str
) -> dict[str, Any]:
    directory = str(topology.witness_directory(name))
    done = processes.run("witness", command, "--dir", directory, *arguments, "--json")
    if done["exit_code"] != 0:
        raise Invalid("CommandFailed", f"ktlog-witness {command} for {name}: {done.get('error')}")
    return done


def _policy(cosigners: dict[str, tuple[Vkey, ...]], logs: tuple[LogKey, ...]) -> Policy:
    """Each witness signs with two keys, and counts only when both did; two of three must."""
    witnesses: dict[str, Witness] = {}
    groups: dict[str, Group] = {}
    for name, vkeys in cosigners.items():
        members = tuple(f"{name}-{vkey.algorithm:02x}" for vkey in vkeys)
        for member, vkey in zip(members, vkeys, strict=True):
            witnesses[member] = Witness(member, vkey, f"https://{name}.witness.example")
        groups[name] = Group(name, len(members), members)
    groups["witnesses"] = Group("witnesses", WITNESSES_NEEDED, tuple(cosigners))
    return Policy(logs=logs, witnesses=witnesses, groups=groups, quorum="witnesses")


def start(topology: Topology, processes: Processes) -> None:
    """Start every process. Each gets its listening socket, so none waits for another's port."""
    routes: dict[str, str] = {}

    def launch(name: str, host: str, module: str, arguments: list[str]) -> None:
        listener = listen_on_loopback()
        routes[host] = address_of(listener)
        processes.start(name, module, arguments, listener)

    for name in WITNESSES:
        directory = str(topology.witness_directory(name))
        launch(f"witness-{name}", f"{name}.witness.example", "witness", ["serve", "--dir", directory])
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
    front = listen_on_loopback()
    table = {
        "ca_file": os.path.relpath(topology.front_directory / "ca.pem", topology.directory),
        "hosts": dict.fromkeys(topology.hosts(), address_of(front)),
    }
    write_atomic(topology.dial_file, json.dumps(table, indent=1).encode())
    processes.start("front", "ktlog.demo.front", ["--dir", str(topology.front_directory)], front)


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"
