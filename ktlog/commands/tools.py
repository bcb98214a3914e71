"""The three tools as click commands, for what is made of all of them: completion and man pages."""

from __future__ import annotations

import importlib

import click

TOOLS = {
    "ktlog": ("ktlog.cli", "ktlog"), "ktlog-witness": ("witness.cli", "main"),
    "ktlog-auditor": ("auditor.cli", "ktlog_auditor"),
}
"""By name: module and command. Witness and auditor are packages of their own, looked up when they are needed."""


def load_tool(name: str) -> click.Command:
    """The command behind *name*.

    Raises:
        ModuleNotFoundError: a part is not installed.
    """
    module, attribute = TOOLS[name]
    return getattr(importlib.import_module(module), attribute)
