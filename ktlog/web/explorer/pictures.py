"""Pictures as SVG, small enough to stand in a page. Colours are the stylesheet's: it knows whether it is dark."""

from __future__ import annotations

import re
from collections.abc import Sequence

import segno
from markupsafe import Markup, escape

from ktlog.tlog.tree import hash_node

_ROW, _BOX, _TALL, _MIDDLE, _AWAY = 44, 92, 24, 180, 124
"""Of an audit path, in a drawing that is 360 wide: a level's height, a box, and how far a sibling stands away."""
_EDGE = 3
"""Of a QR code, in modules: light around it. The standard wants four; on the page there is its box besides."""
_DARK = re.compile(rb"\x01+")


def sparkline(sizes: Sequence[int], label: str) -> Markup:
    """A line over *sizes*, the log's size at equal distances of time."""
    width, height, edge = 300, 64, 3
    low, high = min(sizes), max(sizes)
    reach = max(1, high - low)
    step = (width - 2 * edge) / max(1, len(sizes) - 1)
    points = [
        (edge + at * step, height - edge - (size - low) * (height - 2 * edge) / reach) for at, size in enumerate(sizes)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = f"{edge},{height - edge} {line} {width - edge},{height - edge}"
    end_x, end_y = points[-1]
    return Markup(  # noqa: S704 - numbers, and a label that is escaped
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
        f' preserveAspectRatio="none"><polygon class="area" points="{area}"/>'
        f'<polyline class="line" points="{line}"/><circle class="end" cx="{end_x:.1f}" cy="{end_y:.1f}" r="2.5"/></svg>'
    )


def path_steps(
    leaf_hash: bytes, leaf_index: int, tree_size: int, proof: Sequence[bytes]
) -> list[tuple[bool, bytes, bytes]]:
    """Each level of an inclusion proof, from the leaf on: whether the sibling stands left, it, and the node above both.

    Spec: RFC 9162 §2.1.3.2.
    """
    steps, node, index, last = [], leaf_hash, leaf_index, tree_size - 1
    for sibling in proof:
        while last and not index & 1 and index == last:  # on the right edge a left child may have no sibling
            index, last = index >> 1, last >> 1
        is_left = bool(index & 1)
        node = hash_node(sibling, node) if is_left else hash_node(node, sibling)
        steps.append((is_left, sibling, node))
        index, last = index >> 1, last >> 1
    return steps


def audit_path(leaf_hash: bytes, steps: Sequence[tuple[bool, bytes, bytes]]) -> Markup:
    """The way from an entry, at the bottom, up to the root: what is computed in the middle, what is given beside it."""
    height = (len(steps) + 1) * _ROW + 8
    parts, y = [], height - _TALL - 4
    parts.append(_box(_MIDDLE, y, leaf_hash, "end" if steps else "root"))
    for level, (is_left, sibling, node) in enumerate(steps):
        x, above = _MIDDLE - _AWAY if is_left else _MIDDLE + _AWAY, y - _ROW
        parts.append(f'<path class="edge" d="M{_MIDDLE} {y}V{above + _TALL}M{x} {y}V{y - 10}H{_MIDDLE}"/>')
        parts.append(_box(x, y, sibling, "given"))
        parts.append(_box(_MIDDLE, above, node, "root" if level == len(steps) - 1 else "made"))
        y = above
    label = f"Audit path of {len(steps)} levels, from the leaf hash at the bottom up to the root"
    return Markup(  # noqa: S704 - numbers and hexadecimal digits
        f'<svg class="path" viewBox="0 0 360 {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _box(x: int, y: int, node: bytes, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x - _BOX // 2}" y="{y}" width="{_BOX}" height="{_TALL}" rx="4"/>'
        f'<text x="{x}" y="{y + 16}" text-anchor="middle">{node.hex()[:10]}</text>'
    )


def qr(text: str, label: str) -> Markup:
    """*text* as a QR code, dark on light whatever the page's colours are: not every reader takes it the other way."""
    # Any mask makes a valid code. To find the best of the eight takes six times as long as all the rest.
    rows = segno.make(text, error="m", micro=False, mask=3).matrix
    size = len(rows) + 2 * _EDGE
    dark = "".join(
        f"M{_EDGE + run.start()} {_EDGE + y}h{run.end() - run.start()}v1H{_EDGE + run.start()}z"
        for y, row in enumerate(rows) for run in _DARK.finditer(row)
    )
    return Markup(  # noqa: S704 - numbers, and a label that is escaped
        f'<svg class="qr" viewBox="0 0 {size} {size}" role="img" aria-label="{escape(label)}">'
        f'<path fill="#fff" d="M0 0h{size}v{size}H0z"/><path d="{dark}"/></svg>'
    )
