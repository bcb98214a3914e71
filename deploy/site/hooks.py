"""What the documents link to outside of docs/ becomes part of the site, as text: configurations, units, the schema."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
HOME = {"README.md": "index.md"}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add every file that a page links to, and a list for every directory."""
    for page in list(files.documentation_pages()):
        text = (ROOT / "docs" / page.src_uri).read_text(encoding="utf-8")
        for target in sorted({found for match in _LINK.finditer(text) if (found := _outside(page.src_uri, match[1]))}):
            _add(files, config, target)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/ to the copies."""
    here = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        target = _outside(here, match[1])
        if target is None:
            return match[0]
        place = HOME.get(target, _place(target))
        return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{match[2] or ''})"

    return _LINK.sub(lead, markdown)


def _outside(page: str, link: str) -> str | None:
    """Where *link* of *page* leads in the repository, unless that is in docs/."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if target.startswith("docs/") else target


def _place(target: str) -> str:
    return f"source/{target}/index.md" if (ROOT / target).is_dir() else f"source/{target}.txt"


def _add(files: Files, config: Any, target: str) -> None:
    place = _place(target)
    if target in HOME or files.get_file_from_path(place) is not None:
        return
    path = ROOT / target
    if not path.is_dir():
        files.append(File.generated(config, place, content=path.read_bytes()))
        return
    inside = sorted(one for one in path.iterdir() if one.is_file())
    lines = [f"# {target}", "", *(f"- [{one.name}]({one.name}.txt)" for one in inside)]
    files.append(File.generated(config, place, content="\n".join(lines) + "\n", inclusion=InclusionLevel.NOT_IN_NAV))
    for one in inside:
        _add_file(files, config, f"source/{target}/{one.name}.txt", one)


def _add_file(files: Files, config: Any, place: str, path: Path) -> None:
    if files.get_file_from_path(place) is None:
        files.append(File.generated(config, place, content=path.read_bytes()))
