"""Runs several commands of one tool in one interpreter, because its start costs more than what they do.

``python -m ktlog.demo.batch witness '[["init", "--dir", "D", "--json"], ["add-log", …]]'`` runs each as
``python -m witness init …`` would, until one fails, and prints one JSON object: ``done`` has what each printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from typing import Any


def run_batch(module: str, commands: list[list[str]]) -> list[dict[str, Any]]:
    """What each command printed, JSON all of it, and its ``exit_code``; nothing after the first that is not 0."""
    done: list[dict[str, Any]] = []
    for command in commands:
        said, code = io.StringIO(), 0
        sys.argv = [module, *command]
        try:
            with contextlib.redirect_stdout(said):
                runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        done.append({**json.loads(said.getvalue() or "{}"), "exit_code": code})
        if code != 0:
            break
    return done


if __name__ == "__main__":
    print(json.dumps({"done": run_batch(sys.argv[1], json.loads(sys.argv[2]))}))
