"""`ktlog doctor`: each thing that is wrong is named, with what to do; and nothing that is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.commands import doctor as doctor_command
from ktlog.config import Settings
from ktlog.errors import Unreachable
from ktlog.operator import doctor
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.doctor import Ailment, Outside, examine_inside, examine_outside
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import ED25519, sign_checkpoint, signer_from_seed
from ktlog.wire.fetch import Response
from ktlog.wire.httpsig_response import content_digest

ORIGIN = "keys.example.com"
NOW = 1_700_000_000
GIB = 1 << 30


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    found = create_log(tmp_path_factory.mktemp("doctor") / "log", ORIGIN, "spec", None)
    put_policy(found, "w1.example")
    assert load_public_keys(found)
    return found


def put_policy(settings: Settings, *names: str, verifier: str = "") -> None:
    """One key for each; more than half of them, and the verifier, if there is one."""
    lines = []
    for number, name in enumerate([*names, *([verifier] if verifier else [])]):
        lines.append(f"witness c{number} {signer_from_seed(name, 4, bytes([number]) * 32).vkey} https://{name}")
    numbers = " ".join(f"c{number}" for number in range(len(names)))
    lines.append(f"group witnesses {len(names) // 2 + 1} {numbers}")
    if verifier:
        lines += [f"group verifiers any c{len(names)}", "group both all witnesses verifiers"]
    lines.append(f"quorum {'both' if verifier else 'witnesses'}")
    settings.publish_policy.write_text("\n".join(lines) + "\n")


class World:
    """The network: what each path is answered with. clocks: seconds by which a host's is ahead; None: it says none."""

    def __init__(self) -> None:
        self.answers: dict[str, Response] = {}
        self.clocks: dict[str, int | None] = {}
        self.misnamed: Response | None = Response(421, {}, b"", "")
        self.zips = False
        signer = signer_from_seed(ORIGIN, ED25519, bytes(32))
        self.note = sign_checkpoint(Checkpoint(ORIGIN, 1, bytes(32)), [signer], NOW)
        info = b'{"info":1}'
        self.say("/checkpoint", 200, self.note)
        self.say("/api/info", 200, info, {"signature": "x", "content-digest": content_digest(info)})
        self.say("/map/bundle/", 200, b"ktlog-bundle/v1\n")
        self.say("w1.example", 200, self.note)

    def say(self, part: str, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.answers[part] = Response(status, headers or {}, body, "")

    def get(self, url: str, **_: object) -> Response:
        host, _slash, rest = url.removeprefix("https://").partition("/")
        path = f"/{rest}" if host == ORIGIN else host
        found = next((answer for part, answer in self.answers.items() if path.startswith(part)), None)
        if found is None:
            raise Unreachable("Refused", f"nobody is at {url}")
        ahead = self.clocks.get(host, 0)
        date = {} if ahead is None else {"date": formatdate(NOW + ahead, usegmt=True)}
        return replace(found, headers={**date, **found.headers})

    def place(self, *dialled: str) -> Outside:
        def misname(url: str, **_: object) -> Response:
            if self.misnamed is None:
                raise Unreachable("Broken", "it hung up")
            return self.misnamed

        def zip_(url: str, **_: object) -> Response:
            if self.zips:
                raise Unreachable("BadContent", "it is compressed")
            return self.get(url)

        return Outside(self, SimpleNamespace(get=misname), SimpleNamespace(get=zip_), lambda: NOW, dialled)  # type: ignore[arg-type]


def states(found: list[Ailment]) -> dict[str, str]:
    assert all(bool(ailment.advice) == (ailment.state != "ok") for ailment in found)
    return {ailment.name: ailment.state for ailment in found}


def outside(settings: Settings, change: Callable[[World], object] = lambda world: None) -> dict[str, Ailment]:
    world = World()
    change(world)
    found = list(examine_outside(settings, world.place()))
    states(found)
    return {ailment.name: ailment for ailment in found}


def test_nothing_is_wrong_outside(settings: Settings) -> None:
    assert {one.state for one in outside(settings).values()} == {"ok"}


@pytest.mark.parametrize(("change", "name", "state"), [
    (lambda world: world.say("/checkpoint", 421, b""), "Reachable", "bad"),
    (lambda world: world.answers.pop("/checkpoint"), "Reachable", "bad"),
    (lambda world: world.say("/checkpoint", 200, b"<html>"), "Checkpoint", "bad"),
    (lambda world: world.say("/checkpoint", 200, b"other.example\n0\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 a AAAAAAAA\n"),
     "Checkpoint", "bad"),
    (lambda world: world.say("/api/info", 200, b"{}"), "Answers", "bad"),
    (lambda world: world.say("/api/info", 502, b""), "Answers", "bad"),
    (lambda world: world.say("/api/info", 200, b"{ }", {"signature": "x", "content-digest": content_digest(b"{}")}),
     "Answers", "bad"),
    (lambda world: setattr(world, "zips", True), "Answers", "bad"),
    (lambda world: world.say("/map/bundle/", 404, b"there is nothing at this address"), "Paths", "bad"),
    (lambda world: world.say("/map/bundle/", 404, b"no map was published yet"), "Paths", "ok"),
    (lambda world: world.say("w1.example", 404, b""), "Witness", "look"),
    (lambda world: world.say("w1.example", 502, b"<html>"), "Witness", "bad"),
    (lambda world: world.answers.pop("w1.example"), "Witness", "bad"),
    (lambda world: setattr(world, "misnamed", world.answers["/api/info"]), "Host", "bad"),
    (lambda world: setattr(world, "misnamed", Response(200, {}, b"another site", "")), "Host", "ok"),
    (lambda world: setattr(world, "misnamed", Response(503, {"signature": "x"}, b"", "")), "Host", "ok"),
    (lambda world: setattr(world, "misnamed", None), "Host", "ok"),
])
def test_what_is_wrong_outside_is_named(settings: Settings, change, name: str, state: str) -> None:
    found = outside(settings, change)
    assert found[name].state == state
    others = {"Quorum"} if (name, state) == ("Witness", "bad") else set()
    assert {other for other, one in found.items() if other != name and one.state != "ok"} == others


def test_an_address_that_a_dial_table_gave_is_not_called_the_dns(settings: Settings) -> None:
    by_dns, by_table = (next(examine_outside(settings, World().place(*hosts))).what for hosts in ((), (ORIGIN,)))
    assert "by DNS" in by_dns and "KTLOG_DIAL" in by_table and "by DNS" not in by_table


# -- witnesses


NAMES = ("w1.example", "w2.example", "w3.example")


@pytest.mark.parametrize(("names", "verifier", "down", "state", "what"), [
    (NAMES, "", (), "ok", "enough cosigners answer"), (NAMES, "", ("w2.example",), "ok", "enough cosigners answer"),
    (NAMES[:1], "", NAMES[:1], "bad", "w1.example does not answer, and the quorum of 1 witness needs it"),
    (NAMES, "", NAMES[1:], "bad", "w2.example, w3.example do not answer, and the quorum of 2 witnesses needs them"),
    (NAMES[:2], "", ("w2.example",), "bad", "w2.example does not answer, and the quorum of 2 witnesses needs it"),
    (NAMES, "v1.example", ("w3.example", "v1.example"), "bad",
     "v1.example does not answer, and the quorum of 1 verifier needs it"),
    (NAMES[:2], "v1.example", ("w1.example", "v1.example"), "bad",
     "w1.example does not answer, and the quorum of 2 witnesses needs it;"
     " v1.example does not answer, and the quorum of 1 verifier needs it"),
])
def test_who_is_missing_is_named(
    tmp_path: Path, names: tuple[str, ...], verifier: str, down: tuple[str, ...], state: str, what: str
) -> None:
    settings = create_log(tmp_path / "log", ORIGIN, "spec", None)
    put_policy(settings, *names, verifier=verifier)

    def change(world: World) -> None:
        for name in (*names, verifier):
            world.say(name, 502 if name in down else 200, world.note)

    found = outside(settings, change)["Quorum"]
    assert (found.state, found.what) == (state, what)


# -- the clock


@pytest.mark.parametrize(("ahead", "state", "words"), [
    ({"w1.example": 5, "w2.example": 30, "w3.example": 9000}, "ok", "30 seconds slow, by the median of 3"),
    ({"w1.example": 31, "w2.example": 31, "w3.example": 0}, "look", "31 seconds slow"),
    ({"w1.example": -150, "w2.example": -150, "w3.example": -150}, "look", "150 seconds fast"),
    ({"w1.example": -151, "w2.example": -151, "w3.example": 151}, "bad", "151 seconds fast"),
    # The proxy's is beside the log's own, and says nothing where somebody else's is known.
    ({ORIGIN: 9000}, "ok", "0 seconds"), ({ORIGIN: 1, "w1.example": None, "w2.example": None, "w3.example": None}, "ok", "proxy alone"),
    ({ORIGIN: 9000, "w1.example": None, "w2.example": None, "w3.example": None}, "bad", "by its proxy alone"),
    (dict.fromkeys((ORIGIN, *NAMES)), "look", "nobody"),
])
def test_a_clock_that_is_off(tmp_path: Path, ahead: dict[str, int | None], state: str, words: str) -> None:
    settings = create_log(tmp_path / "log", ORIGIN, "spec", None)
    put_policy(settings, *NAMES)

    def change(world: World) -> None:
        world.clocks = ahead
        for name in NAMES:
            world.say(name, 200, world.note)

    found = outside(settings, change)["Clock"]
    assert found.state == state and words in found.what


@pytest.mark.parametrize("date", [
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT",
    "Mon, 01 Jan 2026 00:00:00 +99999999999999999999", "\x9b2J",
])
def test_a_time_that_is_none_says_nothing(settings: Settings, date: str) -> None:
    """A witness could keep an operator from all the other findings."""
    def change(world: World) -> None:
        world.clocks = dict.fromkeys((ORIGIN, "w1.example"))
        for part in ("/checkpoint", "w1.example"):
            world.say(part, 200, world.note, {"date": date})

    found = outside(settings, change)
    assert found["Clock"].what == "nobody who was asked said the time"


def test_what_strangers_wrote_moves_no_cursor(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Ailment("Quorum", "bad", "it says \x9b2J\u202e", "\x1b[2J")
    monkeypatch.setattr(doctor_command, "examine_inside", lambda _: [said])
    done = CliRunner().invoke(ktlog, ["doctor", "--dir", str(settings.directory), "--inside"])
    assert done.output.startswith("BAD   Quorum: it says ?2J?\n        ?[2J\n")


def test_an_unreachable_log_has_a_clock_all_the_same(settings: Settings) -> None:
    found = outside(settings, lambda world: world.answers.pop("/checkpoint"))
    assert found["Reachable"].state == "bad" and found["Clock"].state == "ok"


# -- from inside


@pytest.mark.parametrize(("free", "state"), [(300 << 20, "bad"), (512 << 20, "look"), (3 * GIB, "ok")])
def test_room_for_an_upgrade_and_an_erasure(settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    """The floor is 128 MiB; the database, which they write anew, has 100."""
    database = settings.database
    before = database.stat().st_size
    monkeypatch.setattr(doctor.Room, "free", lambda self: free)
    os.truncate(database, 100 << 20)
    try:
        assert states(list(examine_inside(settings)))["Room"] == state
    finally:
        os.truncate(database, before)


@pytest.mark.parametrize(("version", "state"), [
    ((3, 40, 1), "look"), ((3, 44, 5), "look"), ((3, 44, 6), "ok"), ((3, 50, 7), "ok"), ((3, 51, 2), "look"), ((3, 51, 3), "ok"),
    ((4, 0, 0), "ok"),
])
def test_sqlite(settings: Settings, version: tuple[int, ...], state: str) -> None:
    assert states(list(examine_inside(settings, version)))["SQLite"] == state


def test_a_log_that_does_not_run_and_a_key_that_is_open(settings: Settings) -> None:
    found = states(list(examine_inside(settings)))
    assert (found["Running"], found["FileModes"], found["Policy"]) == ("bad", "ok", "look")
    key = sorted(settings.keys.iterdir())[0]
    key.chmod(0o640)
    try:
        assert states(list(examine_inside(settings)))["FileModes"] == "bad"
    finally:
        key.chmod(0o600)


def test_a_running_log_by_its_numbers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"sequenced": "900", "published": "600", "mapped": "590", "cosigned-age": {"log/w1": "5", "map/v1": "4000"}}
    found = running(settings, monkeypatch, status)
    assert states(found)["Published"] == "bad" and states(found)["Mapped"] == "ok"
    assert [(one.state, one.what.split()[0]) for one in found if one.name == "Cosigned"] == [("ok", "log/w1"), ("bad", "map/v1")]


def running(settings: Settings, monkeypatch: pytest.MonkeyPatch, *statuses: dict[str, object]) -> list[Ailment]:
    """What is found of a log that says each of these in turn, and then the last of them again."""
    left = list(statuses)
    clock = iter(range(10_000))

    class Link:
        def status(self) -> dict[str, object]:
            return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(doctor, "open_link", lambda *_: Link())
    monkeypatch.setattr(doctor, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None, time=lambda: NOW))
    return list(examine_inside(settings))


def numbers(published: int, mapped: int, ages: tuple[int, int]) -> dict[str, object]:
    return {
        "sequenced": "2", "published": str(published), "mapped": str(mapped), "checkpoint-age": str(ages[0]),
        "map-age": str(ages[1]),
    }


@pytest.mark.parametrize(("first", "later", "expected"), [
    # Published; below the quorum nothing is, however few entries wait.
    (numbers(1, 1, (31, 0)), numbers(1, 1, (60, 0)), ("bad", "ok")), (numbers(1, 1, (31, 0)), numbers(2, 1, (0, 0)), ("ok", "ok")),
    (numbers(1, 1, (30, 0)), numbers(1, 1, (30, 0)), ("ok", "ok")),
    # Mapped; the map has a minute.
    (numbers(2, 1, (5, 61)), numbers(2, 1, (5, 90)), ("ok", "bad")), (numbers(2, 1, (5, 61)), numbers(2, 2, (5, 0)), ("ok", "ok")),
    (numbers(2, 1, (5, 60)), numbers(2, 1, (5, 60)), ("ok", "ok")),
    # Nothing waits, but a heartbeat is due.
    (numbers(2, 2, (631, 0)), numbers(2, 2, (660, 0)), ("bad", "ok")), (numbers(2, 2, (630, 660)), numbers(2, 2, (630, 660)), ("ok", "ok")),
    (numbers(2, 2, (0, 661)), numbers(2, 2, (0, 690)), ("ok", "bad")), (numbers(2, 2, (631, 661)), numbers(2, 2, (0, 0)), ("ok", "ok")),
])
def test_a_log_or_a_map_that_stands_still(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, first: dict, later: dict, expected: tuple[str, str]
) -> None:
    found = states(running(settings, monkeypatch, first, first, later))
    assert (found["Published"], found["Mapped"]) == expected


def test_an_entry_of_an_idle_log_has_as_long_as_cosigners_may_take(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One witness that hangs costs 5 s when they are asked what they saw, and 5 s when they cosign; the map the same."""
    hanging = [numbers(1, 1, (599, 599))] * 11
    found = states(running(settings, monkeypatch, *hanging, numbers(2, 1, (0, 599)), *[numbers(2, 1, (0, 599))] * 14, numbers(2, 2, (4, 0))))
    assert (found["Published"], found["Mapped"]) == ("ok", "ok")
    found = states(running(settings, monkeypatch, *hanging * 9, numbers(2, 2, (0, 0))))
    assert found["Published"] == "bad"


def test_one_entry_is_no_entries(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"sequenced": "2", "published": "1", "mapped": "1", "checkpoint-age": "5", "cosigned-age": {"w1.example": "1"}}
    words = {one.name: one.what for one in running(settings, monkeypatch, status)}
    assert (words["Running"], words["Published"], words["Mapped"]) == (
        "the sequencer runs, and has 2 entries", "1 entry is not published yet", "0 entries are not mapped yet"
    )
    assert words["Cosigned"].startswith("w1.example cosigned 1 second ago, ")


def test_a_pause_that_was_forgotten(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"sequenced": "1", "published": "1", "rules": {"paused": {"reason": "a new disk", "since": "5"}}}
    (found,) = [one for one in running(settings, monkeypatch, status) if one.name == "Paused"]
    assert found.state == "look" and "a new disk" in found.what


def test_the_command(settings: Settings) -> None:
    done = CliRunner().invoke(ktlog, ["doctor", "--dir", str(settings.directory), "--inside", "--json"])
    said = json.loads(done.output)
    assert (done.exit_code, said["ok"]) == (5, False)
    assert {"name", "state", "what", "advice"} == set(said["findings"][0])
    done = CliRunner().invoke(ktlog, ["doctor", "--dir", str(settings.directory), "--inside"])
    assert "BAD   Running: the log in " in done.output and "is not running\n        Start it: ktlog serve --dir" in done.output
    assert Path(settings.directory).exists()
