"""Every check of the demo's story can fail, and when it does the demo says which and why.

Each test lets ``ktlog demo`` run up to a check, tampers with its running processes or their bytes, lets it go on,
and expects that check, and no other, to end the demo. The sabotages themselves are in tests/demo_sabotages.py and
the modules tests/demo_sabotaged_*.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tests.demo_sabotaged_changes
import tests.demo_sabotaged_lies
import tests.demo_sabotaged_lookups  # noqa: F401 - they add to the table
from ktlog.demo.story import CHECKS
from tests.demo_run import demo
from tests.demo_sabotages import SABOTAGES, Sabotage
from tests.demo_saboteur import Saboteur


def test_every_check_is_sabotaged():
    assert {sabotage.check for sabotage in SABOTAGES} == set(CHECKS)
    names = [sabotage.name for sabotage in SABOTAGES]
    assert len(set(names)) == len(names)


def test_every_guarantee_of_an_answer_and_of_an_audit_is_sabotaged():
    """Those that the story claims for them: each has a sabotage after which that verification fails, by name.

    RolledBack and TwoRoots are not among those of the map path: they are what two of the lies end in.
    """
    def broken(check: str) -> set[str]:
        return {word.strip(":") for one in SABOTAGES if one.check == check for text in one.says for word in text.split()}

    assert broken("looked-up") >= {
        "UnsafePolicy", "MalformedBundle", "WrongLog", "BadLogSignature", "BadCosignature", "TooFewWitnesses",
        "TooFewVerifiers", "OldCosignatures", "BundleBehindCheckpoint", "BadOutputProof", "BadOutputLeaf", "WrongConfig",
        "OldMap", "OutcomeMismatch", "CommitmentMismatch", "WrongActor", "BadValue", "OmittedKey", "UnlistedKey",
        "WrongAuxData",
    }
    assert broken("in-full") >= {
        "HistoryMismatch", "BadEntryProof", "BadLeafSignature", "BadEntry", "PlaintextMismatch", "BadMessageSignature",
        "BadTransition",
    }
    assert broken("absent") >= {"BadMapProof", "OutcomeMismatch"}
    assert broken("consistent") >= {
        "Inconsistent", "BadConsistencyProof", "MapContradiction", "ActorRolledBack", "HistoryRewritten", "TooFewVerifiers",
    }
    assert broken("erased") >= {"OutcomeMismatch", "CommitmentMismatch"}
    assert broken("audited") >= {
        "BadLogSignature", "TooFewWitnesses", "BadCosignature", "TileMismatch", "BadEntryBundle", "TreeMismatch",
        "Inconsistent", "PlaintextMismatch", "PreimageMismatch", "BadLeafSignature", "BadMessageSignature",
        "BadTransition", "AnswerContradictsLog",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "sabotage", sorted(SABOTAGES, key=lambda one: CHECKS.index(one.check)), ids=lambda sabotage: f"{sabotage.check}-{sabotage.name}"
)
def test_a_sabotaged_demo_fails_at_its_check(sabotage: Sabotage):
    before = sabotage.before or sabotage.check
    with demo("--once", "--json", "--actors", "4", "--pause-before", before) as run:
        saboteur = Saboteur(run.paused())
        try:
            sabotage.act(saboteur)
            run.proceed()
            code = run.wait()
        finally:
            saboteur.close()
        report = run.report()
        assert code == 5, report
        failed = report["failed"]
        assert (report["ok"], failed["name"]) == (False, sabotage.check), failed["message"]
        assert [text for text in sabotage.says if text not in failed["message"]] == [], failed["message"]
        assert report["checks"] == list(CHECKS[: CHECKS.index(sabotage.check)])
        assert "Traceback" not in run.stdout + run.stderr
        assert run.left_running() == []
        assert Path(report["kept"]) == saboteur.directory
        assert "front.log" in os.listdir(saboteur.directory / "output")
