"""HTML and SVG without any help from elsewhere; every text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 560, 340, 78, 52, 14

Points = Sequence[tuple[float, float]]


def element(tag: str, text: object, kind: str = "") -> str:
    """Return an element that holds a text."""
    opened = f'{tag} class="{kind}"' if kind else tag
    return f"<{opened}>{escape(str(text))}</{tag}>"


def items(texts: Iterable[object]) -> str:
    """Return an unordered list."""
    return f"<ul>{''.join(element('li', text) for text in texts)}</ul>"


def definitions(pairs: Iterable[tuple[object, object]]) -> str:
    """Return a list of names and what they are."""
    return f"<dl>{''.join(element('dt', name) + element('dd', value) for name, value in pairs)}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = (), used: int | None = None) -> str:
    """Return a table; columns of `numbers` are set to the right, the row `used` stands out."""
    kinds = ["n" if column in set(numbers) else "" for column in range(len(head))]
    lines = ["".join(element("th", text, kind) for text, kind in zip(head, kinds, strict=True))]
    lines += ["".join(element("td", cell, kind) for cell, kind in zip(row, kinds, strict=True)) for row in rows]
    marked = [('<tr class="used">' if used is not None and i == used + 1 else "<tr>") + f"{line}</tr>" for i, line in enumerate(lines)]
    return f'<div class="wide"><table>{"".join(marked)}</table></div>'


def plot(
    dots: Sequence[tuple[str, Points]], lines: Sequence[tuple[str, Points]], x: str, y: str, caption: str, square: bool = False
) -> str:
    """Return a figure with series of dots and lines, each with the name of its colour (one, two, soft); `square` adds the diagonal."""
    points = [point for _, series in [*dots, *lines] for point in series]
    if not points:
        return element("p", "There is nothing to draw.", "soft")
    across, up = zip(*points, strict=True)
    if square:
        across = up = (*across, *up)
    (x0, x1, xs), (y0, y1, ys) = _axis(across), _axis(up)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        right = _LEFT + (point[0] - x0) / (x1 - x0) * (_WIDTH - _LEFT - _EDGE)
        return round(right, 1), round(_EDGE + (y1 - point[1]) / (y1 - y0) * (_HEIGHT - _BOTTOM - _EDGE), 1)

    parts = [f'<path class="axis" d="M{_LEFT} {_EDGE}V{_HEIGHT - _BOTTOM}H{_WIDTH - _EDGE}"/>']
    parts += [f'<text x="{place((tick, y0))[0]}" y="{_HEIGHT - 30}" text-anchor="middle">{tick:,.10g}</text>' for tick in xs]
    parts += [f'<text x="{_LEFT - 8}" y="{place((x0, tick))[1] + 5}" text-anchor="end">{tick:,.10g}</text>' for tick in ys]
    parts.append(f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 7}" text-anchor="middle">{escape(x)}</text>')
    middle = (_HEIGHT - _BOTTOM) / 2
    parts.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    if square:
        lines = [("soft", [(x0, x0), (x1, x1)]), *lines]
    for kind, series in lines:
        way = "L".join("{} {}".format(*place(point)) for point in series)
        parts.append(f'<path class="{kind}" d="M{way}"/>')
    for kind, series in dots:
        radius = 3.5 if kind == "soft" else 5.5
        for point in series:
            right, down = place(point)
            parts.append(f'<circle class="{kind}" cx="{right}" cy="{down}" r="{radius}"/>')
    drawn = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}">{"".join(parts)}</svg>'
    return f"<figure>{drawn}{element('figcaption', caption)}</figure>"


def _axis(values: Iterable[float]) -> tuple[float, float, list[float]]:
    """Return the ends of an axis that has some room around the values, and round numbers on it."""
    low, high = min(values := list(values)), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    return low, high, [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
