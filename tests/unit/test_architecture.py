"""Imports point down, pure packages stay pure, and the client stands on two libraries alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each package, and what of this project it may import. Order is the order of the layers.
LAYERS = [
    "ktlog.errors", "ktlog.words", "ktlog.lazygroup", "ktlog.durable", "ktlog.credential", "ktlog.ending", "ktlog.children", "ktlog.collector", "ktlog.sqlitefile", "ktlog.tlog", "ktlog.pkd", "ktlog.keymap", "ktlog.wire", "ktlog.client", "ktlog.store",
    "ktlog.config", "ktlog.operator", "ktlog.web", "ktlog.vectors", "ktlog.conformance", "ktlog.demo", "ktlog.bench", "ktlog.commands", "ktlog.cli",
    "ktlog.entry", "ktlog.__main__",
]
OUTSIDERS = {"ktlog.errors", "ktlog.words", "ktlog.lazygroup", "ktlog.durable", "ktlog.credential", "ktlog.ending", "ktlog.children", "ktlog.collector", "ktlog.sqlitefile", "ktlog.tlog", "ktlog.pkd", "ktlog.keymap", "ktlog.wire", "ktlog.client"}
ALLOWED = {layer: set(LAYERS[: LAYERS.index(layer)]) | {layer} for layer in LAYERS}
ALLOWED |= {"ktlog": set(), "witness": OUTSIDERS | {"witness", "ktlog"}, "auditor": OUTSIDERS | {"auditor", "ktlog"}}
# Pure: no I/O, no clock, no randomness. Conformance's core is pure too.
ALLOWED["ktlog.vectors"] = {"ktlog.errors", "ktlog.tlog", "ktlog.pkd", "ktlog.vectors"}
ALLOWED["ktlog.conformance"] = ALLOWED["ktlog.vectors"] | {"ktlog.conformance"}
ALLOWED["ktlog.tlog"] -= {"ktlog.lazygroup", "ktlog.durable", "ktlog.credential", "ktlog.ending", "ktlog.children", "ktlog.collector", "ktlog.sqlitefile"}
ALLOWED["ktlog.pkd"] -= {"ktlog.lazygroup", "ktlog.durable", "ktlog.credential", "ktlog.ending", "ktlog.children", "ktlog.collector", "ktlog.sqlitefile"}
ALLOWED["ktlog.keymap"] -= {"ktlog.lazygroup", "ktlog.durable", "ktlog.credential", "ktlog.ending", "ktlog.children", "ktlog.collector"}
IMPURE = {
    "os", "io", "pathlib", "time", "random", "secrets", "socket", "threading", "subprocess", "logging", "requests",
    "urllib3", "sqlite3", "tempfile", "shutil", "uuid",
}


def modules() -> list[Path]:
    return sorted(p for top in ("ktlog", "witness", "auditor") for p in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    known = [layer for layer in ALLOWED if module == layer or module.startswith(f"{layer}.")]
    return max(known, key=len)


def imports(path: Path) -> set[str]:
    """Every module that *path* imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(module_name(path))
    for name in imports(path):
        if name.split(".")[0] in ("ktlog", "witness", "auditor"):
            target = layer_of(name)
            assert target == "ktlog" or target in ALLOWED[own], f"{module_name(path)} imports {name}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if layer_of(module_name(p)) in ("ktlog.tlog", "ktlog.pkd", "ktlog.keymap", "ktlog.vectors", "ktlog.conformance")],
    ids=module_name,
)
def test_pure_packages_do_no_io(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE


def test_the_table_names_every_package() -> None:
    """A new package must say where it stands."""
    for path in modules():
        name = module_name(path)
        assert layer_of(name) != "ktlog" or name in ("ktlog",), f"{name} stands in no layer"
