"""The compose file, as far as it can be looked at without an engine: what it starts, mounts and connects exists."""

from __future__ import annotations

import ipaddress
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from ktlog.operator.proxy import Proxied, format_proxy
from ktlog.wire.prometheus import parse_metrics_listen
from tests.unit.test_docs import TOOLS

CONTAINER = Path(__file__).parents[2] / "deploy" / "container"
TEXT = (CONTAINER / "compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "ktlog")


def check(tool: str, words: list[str]) -> None:
    command: click.Command = TOOLS[tool]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_closed_and_starts_what_exists(name: str) -> None:
    service = SERVICES[name]
    check((service.get("entrypoint") or ["ktlog"])[0], list(service["command"]))
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert service["volumes"] == [f"{name}:/data"] and service["command"][service["command"].index("--dir") + 1].startswith("/data/")


def test_networks_and_volumes_are_those_that_are_used() -> None:
    used = {network for service in SERVICES.values() for network in service["networks"]}
    assert used == set(COMPOSE["networks"]) and COMPOSE["networks"]["inside"]["internal"]
    volumes = {text.partition(":")[0] for service in SERVICES.values() for text in service["volumes"]}
    assert {volume for volume in volumes if not volume.startswith(".")} == set(COMPOSE["volumes"])


def test_the_proxy_alone_is_reached_from_elsewhere_and_believed() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    shared = {name: set(service["networks"]) & set(SERVICES["proxy"]["networks"]) for name, service in SERVICES.items()}
    assert all(shared[name] == {"inside"} for name in OURS)
    (subnet,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    trusted = SERVICES["log"]["command"][SERVICES["log"]["command"].index("--trusted-proxies") + 1]
    assert trusted == subnet["subnet"] and ipaddress.ip_network(trusted).is_private


@pytest.mark.parametrize("name", OURS)
def test_metrics_are_served_inside_alone(name: str) -> None:
    words = SERVICES[name]["command"]
    listen = parse_metrics_listen(words[words.index("--metrics-listen") + 1])
    assert listen == "0.0.0.0:9464" and listen.partition(":")[2] not in str(SERVICES["proxy"]["ports"])


def test_the_commands_of_its_head_exist_and_reach_every_service() -> None:
    lines = [line.removeprefix("#   ") for line in TEXT.splitlines() if line.startswith("#   docker compose run")]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])[3:]
        tool = "ktlog"
        while words[0].startswith("-"):
            option = words.pop(0)
            if option == "--entrypoint":
                tool = words.pop(0)
        assert words.pop(0) in SERVICES
        check(tool, words)
    also = tuple(tuple(text.split("=")) for text in re.findall(r"--also (\S+)", lines[2]))
    text = format_proxy("caddy", Proxied(upstream="log:8080", also=also))  # type: ignore[arg-type]
    assert set(re.findall(r"reverse_proxy (\w+):8080", text)) == set(OURS)
