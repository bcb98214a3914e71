"""HTML that cannot be broken out of: every text that is not already :class:`Html` is escaped.

>>> str(element("p", "<b>", class_="x"))
'<p class="x">&lt;b&gt;</p>'

"""

from __future__ import annotations

from html import escape

from auditor.report import printable

_VOID = frozenset({"meta", "br", "col", "rect", "circle", "line", "path", "polyline"})


class Html(str):
    """Text that is HTML already. Nothing but :func:`element` and :func:`join` makes it from what strangers wrote."""

    __slots__ = ()


def text(value: object) -> Html:
    """*value* as visible text: nothing in it is a tag, moves text about or hides other text."""
    return value if isinstance(value, Html) else Html(escape(printable(str(value)), quote=True))


def join(*parts: object, by: str = "") -> Html:
    """Parts one after the other, each escaped unless it is HTML."""
    return Html(by.join(text(part) for part in parts if part is not None))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """An element. ``class_`` stands for class, other underscores for hyphens; None leaves an attribute out."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for name, value in attributes.items() if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{shown}>" if tag in ("meta", "br", "col") else f"<{tag}{shown}/>")
    return Html(f"<{tag}{shown}>{join(*children)}</{tag}>")
