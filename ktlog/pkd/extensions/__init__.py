"""The types of auxiliary data that this library knows. Each module here is one, its ``EXTENSION``.

To add a type, add a file. It says what text is acceptable, and the stricter the better: what is let in
is published, and a loose check is room for what should not be (PKD "Attacker submits contraband as
auxiliary data"). A form with one text for one value keeps ids unique too.

The check is admission's: no replayer repeats it, so a type may become stricter later. A message that
revokes auxiliary data is never checked against it, or what slipped in could not be taken out.

Spec: PKD "Auxiliary Data", "Auxiliary Data Extensions" (whose registry is still empty; the names are
those of the reference servers).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ktlog.errors import UsageError
from ktlog.pkd.auxdata import Extension


def _collect() -> Mapping[str, Extension]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return MappingProxyType({module.EXTENSION.id: module.EXTENSION for module in modules})


EXTENSIONS: Mapping[str, Extension] = _collect()
"""Every known type by its id."""


def find(aux_type: str) -> Extension | None:
    """The type that goes by this id or alias."""
    found = EXTENSIONS.get(aux_type)
    if found is not None:
        return found
    return next((extension for extension in EXTENSIONS.values() if aux_type in extension.aliases), None)


def choose(aux_types: Iterable[str]) -> Mapping[str, Extension]:
    """The types of these ids: what a log's setting ``aux_types`` means.

    Raises:
        UsageError: ``UnknownAuxType``, also for an alias.
    """
    names = sorted(set(aux_types))
    for name in names:
        extension = find(name)
        if extension is None or extension.id != name:
            known = ", ".join(EXTENSIONS)
            raise UsageError("UnknownAuxType", f"aux_types names {name!r}, which is none of {known}")
    return MappingProxyType({name: EXTENSIONS[name] for name in names})
