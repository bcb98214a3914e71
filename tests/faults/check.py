"""``ktlog fsck`` over what is left, so that it and the judge are held against each other."""

from __future__ import annotations

from ktlog.errors import KtlogError
from ktlog.operator.fsck import Scope, check_log
from tests.faults.site import Run


def findings(run: Run) -> list[str]:
    """What fsck finds wrong, in a line each; an error that keeps it from looking is a finding too."""
    try:
        found = check_log(run.settings, Scope(quick=False, commitments=False))
    except KtlogError as error:
        return [f"{error.name}: {error.message}"]
    return [f"{one.name}: {one.where}: {one.what}" for one in found]
