"""What the installed commands start: finds the tool, and says what to install when a part is missing.

The base install is the client library and has none of the commands' packages, so nothing here may import them
before it is ready to explain their absence.
"""

from __future__ import annotations

import importlib
import sys

_OURS = ("ktlog", "witness", "auditor")


def _run(tool: str, module: str) -> None:
    # A terminal that cannot show a character should show another, not end the command.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in _OURS:
            raise
        sys.exit(
            f"{tool}: the package {missing} is not installed. The base install is the client library alone;\n"
            "for every command, in a checkout of ktlog: pip install '.[all]'"
        )
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing more can be said, not even at exit.
        sys.stdout = None  # type: ignore[assignment]
        sys.exit(141)


def ktlog() -> None:
    """Run ``ktlog``."""
    _run("ktlog", "ktlog.cli")


def ktlog_witness() -> None:
    """Run ``ktlog-witness``."""
    _run("ktlog-witness", "witness.cli")


def ktlog_auditor() -> None:
    """Run ``ktlog-auditor``."""
    _run("ktlog-auditor", "auditor.cli")
