"""``ktlog demo``."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ktlog.demo import topology as places
from ktlog.demo.processes import ENDING, Processes
from ktlog.demo.scene import CheckFailed, Result
from ktlog.demo.story import CHECKS, Story
from ktlog.demo.teller import Teller, choose_teller
from ktlog.demo.topology import GUEST
from ktlog.words import count_entries


@click.command()
@click.option("--once", is_flag=True, help="End after the story instead of staying up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False),
              help="Keep everything in this new directory.")
@click.option("--actors", type=click.IntRange(4, 200), default=20, show_default=True, help="How many enrol.")
@click.option("--pause-before", type=click.Choice(CHECKS), hidden=True,
              help="For tests: stop before this check, say where things are, go on after a line on standard input.")
def command(once: bool, as_json: bool, directory: Path | None, actors: int, pause_before: str | None) -> None:
    """Live through a whole federation on this machine.

    Two instances with a log each, three witnesses, a verifier, actors that enrol and rotate, clients
    that look them up and check every proof (present, erased, never enrolled), an auditor that replays
    everything, and four lies told with a log's real keys. All of it real, in separate processes, on
    loopback only. Exit code 0 means that every step held; 5 that a check did not, and then everything
    is kept for you to look at.
    """
    teller = choose_teller(as_json)
    with _ending_by_signal(), _home(directory) as home:
        topology = places.plan(home.directory, actors)
        with _running(home) as processes:
            result = Result()
            story = Story(topology, processes, teller, _pauser(pause_before, topology, lambda: story), result)
            started = time.monotonic()
            failure = _tell(story)
            home.kept = home.kept or failure is not None
            found = {**result.as_dict(), "ok": failure is None, "seconds": round(time.monotonic() - started, 1)}
            if failure is not None:
                found |= {"failed": failure.as_dict(), "kept": str(home.directory)}
            if as_json:
                click.echo(json.dumps(found))
            else:
                _close(teller, found, failure, home.directory)
                if once and not home.kept:
                    teller.say("The evidence is deleted with everything else; to keep it, name a directory: --dir DIR.")
            code = 0 if failure is None else failure.exit_code
            if failure is None and not once:
                code = _stay(teller, topology, processes)
    sys.exit(code)


class _Home:
    """Where everything is; ``kept`` unless it is a temporary directory that nobody needs any more."""

    def __init__(self, directory: Path, kept: bool) -> None:
        self.directory = directory
        self.kept = kept


@contextmanager
def _home(directory: Path | None) -> Iterator[_Home]:
    if directory is not None:
        if directory.exists() and any(directory.iterdir()):
            raise click.UsageError(f"{directory} is not empty; the demo starts from nothing")
        yield _Home(directory.resolve(), kept=True)
        return
    home = _Home(Path(tempfile.mkdtemp(prefix="ktlog-demo-")).resolve(), kept=False)
    try:
        yield home
    finally:
        if not home.kept:
            shutil.rmtree(home.directory, ignore_errors=True)


@contextmanager
def _ending_by_signal() -> Iterator[None]:
    """Make every signal that ends us a KeyboardInterrupt, but those that we were told to ignore (``nohup``)."""
    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _running(home: _Home) -> Iterator[Processes]:
    """The processes, all of which are gone afterwards, however impatient the person at the keyboard is."""
    processes = Processes(home.directory / "output", {"KTLOG_DIAL": str(home.directory / "dial.json")})
    try:
        yield processes
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        processes.stop_all()


def _pauser(pause_before: str | None, topology: places.Topology, story: Callable[[], Story]) -> Callable[[str], None]:
    def pause(name: str) -> None:
        if name == pause_before:
            told = [running.as_dict() for running in story().all_processes()]
            click.echo(json.dumps({"paused": name, "dir": str(topology.directory), "processes": told}))
            sys.stdin.readline()

    return pause


def _tell(story: Story) -> CheckFailed | None:
    try:
        story.tell()
    except CheckFailed as failure:
        return failure
    return None


def _close(teller: Teller, found: dict[str, Any], failure: CheckFailed | None, directory: Path) -> None:
    if failure is not None:
        click.echo(f"\nThe check `{failure.name}` did not hold: {failure.diagnostics()}\n", err=True)
        click.echo(f"Everything is kept in {directory}; what each process wrote is in output/ there.", err=True)
        return
    teller.say("")
    teller.say(
        f"{found['actors']} actors, {found['lookups_verified']} lookups verified ({_count(found['answers'])}),"
        f" {count_entries(found['entries_audited'])} audited, {found['lies_refused']} refusals of"
        f" {len({lie['lie'] for lie in found['lies']})} lies,"
        f" {found['seconds']} s."
    )


def _count(answers: dict[str, int]) -> str:
    return ", ".join(f"{number} {answer.replace('-', ' ')}" for answer, number in answers.items())


def _stay(teller: Teller, topology: places.Topology, processes: Processes) -> int:
    """Stay up until Ctrl-C, so that a person can look around; gives the exit code."""
    front = next(running for running in processes.running() if running.name == "front")
    ca_file = shlex.quote(str(topology.front_directory / "ca.pem"))
    teller.say("")
    teller.say("Everything stays up until you press Ctrl-C. Look around, for example:")
    for instance in topology.instances:
        teller.say(f"  curl --cacert {ca_file} --connect-to ::127.0.0.1:{front.port} {instance.log_url}/checkpoint")
    teller.say("")
    teller.say(f"Enrol yourself as {topology.instances[0].handle(GUEST)}, in a shell that knows where the names lead:")
    for line in _commands(topology):
        teller.say(f"  {line}")
    teller.say("")
    teller.say("There, too: ask whether a log is well, hear of what changes, and see the log's own pages in a browser:")
    for line in _looks(topology, front.port):
        teller.say(f"  {line}")
    try:
        while not processes.ended():
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    click.echo(f"ended by itself: {', '.join(processes.ended())}", err=True)
    return CheckFailed.exit_code


def _commands(topology: places.Topology) -> list[str]:
    """What to paste into a shell to enrol, look up and audit: this same program, wherever it was found."""
    home, first = topology.directory, topology.instances[0]
    key, http_key = home / "you.key", topology.instance_directory(first) / "keys" / f"{GUEST}.key"
    trust, audit = ["--policy", str(topology.trust_policy)], ["--policy", str(topology.audit_policy)]
    domains = [word for pair in topology.domains().items() for word in ("--domain", "=".join(pair))]
    lines = [
        _program("ktlog", "key", "new", "--out", str(key)),
        _program(
            "ktlog", "submit", "add-key", "--log", first.origin, "--actor", first.actor_id(GUEST),
            "--key", str(key), "--http-key", str(http_key),
        ),
        _program("ktlog", "lookup", first.handle(GUEST), *trust, "--state", str(home / "mine"), *domains),
        _program("ktlog-auditor", "audit", first.origin, *audit, "--dir", str(home / "my-audit")),
    ]
    return [f"export KTLOG_DIAL={shlex.quote(str(topology.dial_file))}", *map(shlex.join, lines)]


def _looks(topology: places.Topology, port: int) -> list[str]:
    """What to type to ask whether a log is well, to be told of every change to an actor, and to see the explorer."""
    first, home = topology.instances[0], topology.directory
    return list(map(shlex.join, [
        _program("ktlog", "doctor", "--dir", str(topology.log_directory(first))),
        _program(
            "ktlog", "watch", first.handle(GUEST), "--policy", str(topology.trust_policy),
            "--state", str(home / "mine"), "--domain", f"{first.domain}={first.origin}", "--interval", "5",
        ),
        [
            "chromium", f"--user-data-dir={home / 'browser'}", "--ignore-certificate-errors",
            f"--host-resolver-rules=MAP *.example 127.0.0.1:{port},MAP * ~NOTFOUND", f"{first.log_url}/",
        ],
    ]))


def _program(tool: str, *arguments: str) -> list[str]:
    """The words that start *tool*, when it is not on everybody's path: beside this program, or as a module."""
    beside = Path(sys.argv[0]).with_name(tool)
    if beside.exists():
        return [str(beside), *arguments]
    return [sys.executable, "-m", tool.removeprefix("ktlog-"), *arguments]
