"""``ktlog demo``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import click

from ktlog.demo import topology as places
from ktlog.demo.processes import Processes
from ktlog.demo.story import CHECKS, Result, Story
from ktlog.demo.teller import Teller, choose_teller
from ktlog.errors import KtlogError


@click.command()
@click.option("--once", is_flag=True, help="End after the story instead of staying up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Keep everything in this new directory.")
@click.option("--actors", type=click.IntRange(4, 200), default=20, show_default=True, help="How many enrol.")
@click.option("--pause-before", type=click.Choice(CHECKS), hidden=True,
              help="For tests: stop before this check, say where things are, go on after a line on standard input.")
def command(once: bool, as_json: bool, directory: Path | None, actors: int, pause_before: str | None) -> None:
    """Live through a whole federation on this machine.

    Two instances with a log each, three witnesses, actors that enrol and rotate, clients that look
    them up and check every proof, an auditor that replays everything, and three lies told with a
    log's real keys. All of it real, in separate processes, on loopback only. Exit code 0 means
    that every step held.
    """
    teller = choose_teller(as_json)
    started = time.monotonic()
    kept = directory is not None
    home = directory or Path(tempfile.mkdtemp(prefix="ktlog-demo-"))
    if kept and home.exists() and any(home.iterdir()):
        raise click.UsageError(f"{home} is not empty; the demo starts from nothing")
    topology = places.plan(home.resolve(), actors)
    processes = Processes(home / "output", {"KTLOG_DIAL": str(topology.dial_file)})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))

    def pause(name: str) -> None:
        if name == pause_before:
            told = [running.as_dict() for running in story.all_processes()]
            click.echo(json.dumps({"paused": name, "dir": str(topology.directory), "processes": told}))
            sys.stdin.readline()

    result = Result()
    code = 0
    try:
        try:
            teller.say("Making keys, stores and policies …")
            places.build(topology)
            places.start(topology, processes)
            story = Story(topology, processes, teller, pause, result)
            story.tell()
            failure = None
        except KtlogError as error:
            failure, code = error, 5
        found = {**result.as_dict(), "ok": failure is None, "seconds": round(time.monotonic() - started, 1)}
        if failure is not None:
            found["failed"] = failure.as_dict()
        if as_json:
            click.echo(json.dumps(found))
        else:
            _close(teller, found, failure)
        if failure is None and not once:
            _stay(teller, topology, processes)
    finally:
        processes.stop_all()
        if not kept:
            shutil.rmtree(home, ignore_errors=True)
    sys.exit(code)


def _close(teller: Teller, found: dict, failure: KtlogError | None) -> None:
    if failure is not None:
        click.echo(f"\nThe check `{failure.name}` did not hold: {failure.diagnostics()}", err=True)
        return
    teller.say("")
    teller.say(
        f"{found['actors']} actors, {found['lookups_verified']} lookups verified, {found['entries_audited']} entries"
        f" audited, {found['lies_refused']} refusals of 3 lies, {found['seconds']} s."
    )


def _stay(teller: Teller, topology: places.Topology, processes: Processes) -> None:
    """Stay up until Ctrl-C, so that a person can look around."""
    front = next(running for running in processes.running() if running.name == "front")
    ca_file = topology.front_directory / "ca.pem"
    teller.say("")
    teller.say("Everything stays up until you press Ctrl-C. Look around, for example:")
    curl = f"curl --cacert {ca_file} --connect-to ::127.0.0.1:{front.port}"
    for instance in topology.instances:
        teller.say(f"  {curl} {instance.log_url}/checkpoint")
    first = topology.instances[0]
    domains = " ".join(f"--domain {domain}={origin}" for domain, origin in topology.domains().items())
    teller.say(
        f"  KTLOG_DIAL={topology.dial_file} {os.path.basename(sys.argv[0])} lookup {first.handle(first.users[-1])}"
        f" --policy {topology.trust_policy} --state {topology.directory / 'mine'} {domains}"
    )
    with_signal = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: with_signal.set())
    while not with_signal.wait(0.5):
        if processes.ended():
            teller.say(f"ended by itself: {', '.join(processes.ended())}")
            return
