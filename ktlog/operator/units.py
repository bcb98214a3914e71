"""The systemd units of ``deploy/systemd``, which an install has too: in ``share/ktlog`` below its prefix."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ktlog.durable import file_errors
from ktlog.errors import StoreError, UsageError

CHECKOUT = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
INSTALLED = ("share", "ktlog", "systemd")
"""The directory that setup.cfg names for them."""


def unit_names() -> list[str]:
    """The name of each file.

    Raises:
        StoreError: ``NoUnits``: whoever installed this left them out.
    """
    return sorted(_places())


def read_unit(name: str) -> str:
    """The file called *name*, or *name*.service.

    Raises:
        UsageError: ``NoUnit``. StoreError: ``NoUnits``, or it cannot be read.
    """
    places = _places()
    path = places.get(name) or places.get(f"{name}.service")
    if path is None:
        raise UsageError("NoUnit", f"there is no unit {name!r}", hint=f"There are {', '.join(sorted(places))}.")
    with file_errors(path):
        return path.read_text(encoding="utf-8")


def _places() -> dict[str, Path]:
    places = {path.name: path for path in (CHECKOUT.iterdir() if CHECKOUT.is_dir() else _installed())}
    if not places:
        raise StoreError("NoUnits", "this install has no systemd units", hint="The source has them: deploy/systemd.")
    return places


def _installed() -> Iterator[Path]:
    try:
        listed = files("ktlog") or []
    except PackageNotFoundError:
        return
    yield from (Path(str(file.locate())) for file in listed if file.parts[-4:-1] == INSTALLED)
