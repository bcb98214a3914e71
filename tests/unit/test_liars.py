"""The zoo of lying logs: each liar is caught under its own name, by the check that it was meant for, and by no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.convict import conviction
from auditor.evidence.claims import parse_claim
from auditor.evidence.judge import Known
from auditor.evidence.source import Source
from auditor.report import format_report
from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import Invalid, Unreachable
from ktlog.pkd.messages import AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKeyThirdParty
from tests.liars.checks import CHECKS, without
from tests.liars.judges import Auditor, Showing, Watcher, judged, kinds
from tests.liars.log import SimLog
from tests.liars.names import MAP, ORIGIN, URL, log_signers, person
from tests.liars.zoo import ANN, BEN, CLEO, EVE, LIARS, Lie, first_half, story, table
from tests.pkd_samples import public, quick_argon2, token  # noqa: F401

EACH = pytest.mark.parametrize("lie", LIARS, ids=lambda lie: lie.title)


def told(lie: Lie) -> SimLog:
    """The log that tells *lie*."""
    log = story()
    with without(*((lie.check,) if lie.believed else ())):
        lie.tell(log)
    return log


def test_the_honest_log_is_accused_of_nothing(tmp_path: Path) -> None:
    log = story()
    for mapped in (False, True):
        one = Auditor(tmp_path / f"audit-{mapped}", mapped=mapped)
        one.look(log, *log.known)
        assert (one.names(), one.evidence) == (set(), set())
    with Watcher(tmp_path / "watch", Showing(log), read="all") as watch:
        watch.look(log.now)
        watch.read(log.now)
        watch.look(log.now + 300)
        assert (watch.opened, watch.evidence) == ([], set())


@EACH
def test_every_liar_is_caught_under_its_name(lie: Lie, tmp_path: Path) -> None:
    names, files = judged(lie, told(lie), tmp_path / "one")
    assert names == {lie.finding, *lie.also}
    assert files == ({lie.evidence, *lie.more} if lie.evidence else set())


@pytest.fixture(scope="module")
def position(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean audit of the first head leaves behind."""
    one = Auditor(tmp_path_factory.mktemp("position") / "audits")
    assert one.look(first_half()).report.ok
    return one.directory


@pytest.mark.slow
@pytest.mark.parametrize("lie", [lie for lie in LIARS if lie.by != "watch"], ids=lambda lie: lie.title)
def test_who_goes_on_from_a_saved_position_catches_them_too(lie: Lie, position: Path, tmp_path: Path) -> None:
    shutil.copytree(position, tmp_path / "audits")
    log, one = told(lie), Auditor(tmp_path / "audits")
    one.look(log, *log.known)
    assert (lie.later or lie.finding) in one.names()


@pytest.mark.slow
@pytest.mark.parametrize("lie", [lie for lie in LIARS if lie.check], ids=lambda lie: lie.title)
def test_without_its_check_a_lie_is_missed(lie: Lie, tmp_path: Path) -> None:
    log = told(lie)
    with without(lie.check, *lie.overlap):
        names, files = judged(lie, log, tmp_path / "one")
    assert (names, files) == (set(), set())


@pytest.mark.slow
@pytest.mark.parametrize("lie", [lie for lie in LIARS if lie.evidence], ids=lambda lie: lie.title)
def test_evidence_convicts_the_key_that_signed(lie: Lie, tmp_path: Path) -> None:
    log = told(lie)
    judged(lie, log, tmp_path / "one")
    (file,) = tmp_path.rglob(f"{lie.evidence}*.json")
    known = Known(
        tuple(log_signers(origin)[1].vkey for origin in (ORIGIN, MAP)), (public("answers"),),
        Source(PublicFiles(log, URL), True), log.now,
    )
    verdict = conviction(file.read_bytes(), known)
    assert verdict["convicts"] and verdict["kind"] == lie.evidence
    with pytest.raises(Invalid):
        conviction(file.read_bytes(), replace(known, vkeys=(log_signers(ORIGIN, 50)[1].vkey,)))


def test_who_cannot_read_the_erasures_accuses_nobody(position: Path, tmp_path: Path) -> None:
    """Cleo, whom the saved position knows, was erased since, and the API says that it does not know her."""
    shutil.copytree(position, tmp_path / "audits")
    log, one = story().bury(CLEO), Auditor(tmp_path / "audits")
    log.lies["erasures"] = Unreachable("Timeout", "no answer")
    one.look(log)
    assert one.names() == {"Timeout"}
    del log.lies["erasures"]
    assert one.look(log).report.ok
    # Now text is withheld below the saved position, and this time nothing new is.
    log.chat().grow().lies["erasures"] = Unreachable("Timeout", "no answer")
    one.look(log)
    assert one.names() == {"Timeout"}
    del log.lies["erasures"]
    assert one.look(log).report.ok


@pytest.mark.parametrize("grown", [0, 1])
def test_who_audited_before_says_which_entry_was_rewritten(grown: int, tmp_path: Path) -> None:
    """Nobody serves hashes of the older tree any more: the auditor kept those of its right edge."""
    log, one = story(), Auditor(tmp_path / "audits")
    assert one.look(log).report.ok
    log.rewrite(6).chat(grown, log.root_text(6)).grow()
    one.look(log)
    assert "two-leaves" in kinds(one.evidence)
    (file,) = tmp_path.rglob("two-leaves*.json")
    assert parse_claim(file.read_bytes())["leaf-index"] == 6
    assert conviction(file.read_bytes(), log_signers(ORIGIN)[1].vkey)["convicts"]


def test_erasures_in_every_attempt_are_no_fault(tmp_path: Path) -> None:
    log, one = story(), Auditor(tmp_path / "audits")
    alive = [ANN, BEN, CLEO]

    def weather(path: str) -> None:
        if path.startswith("records/") and alive:
            log.erased(alive.pop()).publish().add_leaf()

    log.weather = weather
    one.look(log)
    assert one.names() == {"ErasedMeanwhile"} and not alive
    assert one.look(log).report.ok


def test_erasures_that_never_rest_are_a_fault_in_the_end(tmp_path: Path) -> None:
    log, one = story(), Auditor(tmp_path / "audits")
    names = [f"p{number}" for number in range(9)]
    for name, letter in zip(names, "abcdefghi", strict=True):
        log.enrol(name, letter)
    log.grow()
    left = [3]

    def weather(path: str) -> None:
        if path.startswith("records/") and left[0]:
            left[0] -= 1
            log.erased(person(names.pop())).publish().add_leaf()

    log.weather = weather
    for found in ({"ErasedMeanwhile"}, {"ErasedMeanwhile"}, {"ErasedMeanwhile", "ErasuresNeverRest"}):
        left[0] = 3
        one.look(log)
        assert one.names() == found and not one.evidence
    assert one.look(log).report.ok


DAN = person("dan")


def _moved(log: SimLog) -> SimLog:
    return log.say(MoveIdentity(ANN, DAN, log.tick()), "r").say(AddKey(DAN, public("u"), log.tick()), "r")


def _moved_on(log: SimLog) -> SimLog:
    _moved(log).enrol("eve", "t").say(BurnDown(EVE, DAN, log.tick()), "r")
    return log.enrol("eve", "t2").say(MoveIdentity(DAN, person("fay"), log.tick()), "u").say(
        AddKey(person("fay"), public("v"), log.tick()), "u"
    )


def _burned(log: SimLog) -> SimLog:
    return log.enrol("eve", "t").say(BurnDown(EVE, ANN, log.tick()), "r").enrol("eve", "u")


def _revoked(log: SimLog) -> SimLog:
    return log.say(RevokeKeyThirdParty(token("r")), "r")


@pytest.mark.parametrize("past", [_moved, _moved_on, _burned, _revoked])
def test_open_entries_that_rest_on_erased_ones_are_no_fault(past: Callable[[SimLog], SimLog], tmp_path: Path) -> None:
    """In each attempt text is gone that an open entry of somebody else rests on."""
    log, one = past(story().enrol("gil", "w").enrol("hal", "x")).grow(), Auditor(tmp_path / "audits")
    gone = [ANN, person("hal"), person("gil")]

    def weather(path: str) -> None:
        if path.startswith("records/") and gone:
            log.erased(gone.pop()).publish().add_leaf()

    log.weather = weather
    one.look(log)
    assert one.names() == {"ErasedMeanwhile"} and not gone and not one.evidence
    assert one.look(log).report.ok


def test_who_lies_besides_is_not_excused(tmp_path: Path) -> None:
    """Ben's forged entry rests on nobody who was erased."""
    log, one = story().enrol("gil", "w").enrol("hal", "x"), Auditor(tmp_path / "audits")
    with without("signer"):
        log.say(Fireproof(CLEO, log.tick()), "p")
    _moved(log).grow()
    gone = [ANN, person("hal"), person("gil")]

    def weather(path: str) -> None:
        if path.startswith("records/") and gone:
            log.erased(gone.pop()).publish().add_leaf()

    log.weather = weather
    one.look(log)
    assert "BadMessageSignature" in one.names() and not gone


def test_who_names_the_maps_key_later_accuses_nobody(tmp_path: Path) -> None:
    log = story()
    for mapped, letter in ((False, "u"), (True, "v"), (False, "w"), (True, "x")):
        one = Auditor(tmp_path / "audits", mapped=mapped)
        assert one.look(log).report.ok
        assert one.look(log.say(AddKey(ANN, public(letter), log.tick()), "r").grow()).report.ok


def test_of_a_silent_log_the_reason_comes_first(tmp_path: Path) -> None:
    log, one = story(), Auditor(tmp_path / "audits")
    log.lies["checkpoint"] = log.lies["map/checkpoint"] = Unreachable("Refused", "nobody listens there")
    first, *rest = format_report(one.look(log).report).splitlines()
    assert first == f"{ORIGIN}: not audited. [Unreachable] Refused: nobody listens there"
    assert len([line for line in rest if "not checked" in line]) == 1 and len(rest) <= 3


def test_there_are_enough_liars_and_each_check_has_one() -> None:
    assert len({lie.title for lie in LIARS}) == len(LIARS) >= 25
    assert len({lie.check for lie in LIARS if not lie.overlap} - {""}) >= 25
    assert {check for lie in LIARS for check in (lie.check, *lie.overlap)} - {""} == CHECKS.keys()
    assert all(bool(lie.why) == bool(lie.overlap) for lie in LIARS)


def test_the_page_has_this_zoo() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert page.partition("<!-- zoo -->\n")[2].startswith(table() + "\n"), "python -m tests.liars --table"
