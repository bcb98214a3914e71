"""`ktlog doctor`: each thing that is wrong is named, with what to do; and nothing that is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.config import Settings
from ktlog.errors import Unreachable
from ktlog.operator import doctor
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.doctor import Ailment, examine_inside, examine_outside
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import ED25519, sign_checkpoint, signer_from_seed
from ktlog.wire.fetch import Response
from ktlog.wire.httpsig_response import content_digest

ORIGIN = "keys.example.com"
NOW = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    found = create_log(tmp_path_factory.mktemp("doctor") / "log", ORIGIN, "spec", None)
    witness = signer_from_seed("w1.example", 4, bytes(32)).vkey
    found.publish_policy.write_text(f"witness w1 {witness} https://w1.example\ngroup witnesses all w1\nquorum witnesses\n")
    assert load_public_keys(found)
    return found


class Outside:
    """The network: what each path is answered with."""

    def __init__(self) -> None:
        self.answers: dict[str, Response] = {}
        signer = signer_from_seed(ORIGIN, ED25519, bytes(32))
        note = sign_checkpoint(Checkpoint(ORIGIN, 0, bytes(32)), [signer], NOW)
        info = b'{"info":1}'
        self.say("/checkpoint", 200, note)
        self.say("/api/info", 200, info, {"signature": "x", "content-digest": content_digest(info)})
        self.say("/map/bundle/", 200, b"ktlog-bundle/v1\n")
        self.say("w1.example", 200, note)

    def say(self, part: str, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.answers[part] = Response(status, {"date": DATE, **(headers or {})}, body, "")

    def get(self, url: str, **_: object) -> Response:
        host = "w1.example" if "w1.example" in url else ""
        path = host or "/" + url.split("/", 3)[3]
        found = next((answer for part, answer in self.answers.items() if path.startswith(part)), None)
        if found is None:
            raise Unreachable("Refused", f"nobody is at {url}")
        return found


def states(found: list[Ailment]) -> dict[str, str]:
    assert all(bool(ailment.advice) == (ailment.state != "ok") for ailment in found)
    return {ailment.name: ailment.state for ailment in found}


def outside(settings: Settings, change: Callable[[Outside], object] = lambda world: None, now: int = NOW) -> dict[str, str]:
    world = Outside()
    change(world)
    return states(list(examine_outside(settings, world, now)))  # type: ignore[arg-type]


def test_nothing_is_wrong_outside(settings: Settings) -> None:
    assert set(outside(settings).values()) == {"ok"}


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
    (lambda world: world.say("/map/bundle/", 404, b"there is nothing at this address"), "Paths", "bad"),
    (lambda world: world.say("/map/bundle/", 404, b"no map was published yet"), "Paths", "ok"),
    (lambda world: world.say("w1.example", 404, b""), "Witness", "look"),
    (lambda world: world.say("w1.example", 502, b"<html>"), "Witness", "bad"),
    (lambda world: world.answers.pop("w1.example"), "Witness", "bad"),
])
def test_what_is_wrong_outside_is_named(settings: Settings, change, name: str, state: str) -> None:
    found = outside(settings, change)
    assert found[name] == state
    assert all(one == "ok" for other, one in found.items() if other != name)


def test_a_clock_that_is_off(settings: Settings) -> None:
    assert outside(settings, now=NOW + 61)["Clock"] == "bad"
    assert outside(settings, now=NOW - 60)["Clock"] == "ok"


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

    class Link:
        def status(self) -> dict[str, object]:
            return status

    monkeypatch.setattr(doctor, "open_link", lambda *_: Link())
    found = list(examine_inside(settings))
    assert states(found)["Published"] == "bad" and states(found)["Mapped"] == "ok"
    assert [(one.state, one.what.split()[0]) for one in found if one.name == "Cosigned"] == [("ok", "log/w1"), ("bad", "map/v1")]


@pytest.mark.parametrize(("age", "later", "expected"), [
    ("31", "1", "bad"), ("31", "2", "ok"), ("30", "1", "ok"),  # published meanwhile; young
])
def test_entries_that_no_checkpoint_comes_for(settings: Settings, monkeypatch, age: str, later: str, expected: str) -> None:
    """Below the quorum nothing is published, however few entries wait."""
    members = {"sequenced": "2", "mapped": "1", "checkpoint-age": age}
    answers = iter([{**members, "published": "1"}, {**members, "published": later}])

    class Link:
        def status(self) -> dict[str, object]:
            return next(answers)

    monkeypatch.setattr(doctor, "open_link", lambda *_: Link())
    monkeypatch.setattr(doctor, "AGAIN_SECONDS", 0.0)
    assert states(list(examine_inside(settings)))["Published"] == expected


def test_a_pause_that_was_forgotten(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Link:
        def status(self) -> dict[str, object]:
            return {"sequenced": "1", "published": "1", "rules": {"paused": {"reason": "a new disk", "since": "5"}}}

    monkeypatch.setattr(doctor, "open_link", lambda *_: Link())
    (found,) = [one for one in examine_inside(settings) if one.name == "Paused"]
    assert found.state == "look" and "a new disk" in found.what


def test_the_command(settings: Settings) -> None:
    done = CliRunner().invoke(ktlog, ["doctor", "--dir", str(settings.directory), "--inside", "--json"])
    said = json.loads(done.output)
    assert (done.exit_code, said["ok"]) == (5, False)
    assert {"name", "state", "what", "advice"} == set(said["findings"][0])
    done = CliRunner().invoke(ktlog, ["doctor", "--dir", str(settings.directory), "--inside"])
    assert "BAD   Running: " in done.output and "ktlog serve --dir" in done.output
    assert Path(settings.directory).exists()
