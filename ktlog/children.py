"""Processes of ours that we start with ``python -m``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment and *more* of it, in which ``python -m`` imports from where we do, and from nowhere else.

    It would look in the working directory first: whoever may write where an operator types ``ktlog serve`` would run
    in the process that holds the keys.
    """
    environment = {**os.environ, **(more or {})}
    # Those of PYTHONPATH are in sys.path, but for what was set since.
    said = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    places = dict.fromkeys([*said, *(place or os.getcwd() for place in sys.path)])
    return {**environment, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(places)}
