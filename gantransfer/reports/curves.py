"""Line charts as inline SVG, without a plotting library.

A chart carries its own colours for light and dark pages and needs no script; resting on a point shows its values.
Colours are those of Okabe and Ito (2008, "Color Universal Design"), which the common kinds of colour blindness keep
apart; markers and dashes tell the lines apart once more.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Real
from typing import NamedTuple

import numpy as np

from gantransfer.errors import UserError

Points = Sequence[tuple[Real, ...]]

# Okabe and Ito's eight without yellow, which cannot be seen on white; their black is the page's ink.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "var(--gt-ink)")
DASHES = ("", "6 3", "2 3")
MARKERS = ("circle", "square", "triangle", "diamond")

STYLE = (
    ".gt-chart{--gt-ink:#24292f;--gt-soft:#57606a;--gt-rule:#d8dee4;width:100%;height:auto;"
    "font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    ".gt-chart text{fill:var(--gt-soft)}.gt-chart .t{fill:var(--gt-ink);font-size:14px;font-weight:600}"
    ".gt-chart .l{fill:var(--gt-ink)}.gt-chart .g{stroke:var(--gt-rule)}.gt-chart .z{stroke:var(--gt-soft)}"
    ".gt-chart .p:hover .m,.gt-chart .p:hover .h{stroke:var(--gt-ink);stroke-width:2}"
    "@media(prefers-color-scheme:dark){.gt-chart{--gt-ink:#e6edf3;--gt-soft:#9aa4b0;--gt-rule:#343b44}}"
)

MOST_POINTS, MOST_MARKERS = 160, 32
LEFT, RIGHT, BOTTOM = 64, 14, 44
# Width of a letter at 12 pixels where nothing can be measured; a little more than system fonts need.
LETTER = 6.6


class Axis(NamedTuple):
    """One axis: the data range, where it lies in the drawing, its ticks, and whether it counts in powers of ten."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool

    def __call__(self, value: float) -> float:
        """Where a value lies in the drawing, in pixels; what a log axis does not reach lies at its lower end."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        value = math.log10(max(value, self.low)) if self.log else value
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_y: bool = False,
    width: int = 430,
    height: int = 280,
) -> str:
    """Draws lines over a common pair of axes.

    Args:
      series: by name, points `(x, y)` or `(x, y, low, high)`; the latter two draw a band. Points are sorted by x. A
        line breaks at a value that is not finite; of more than 160 points the lowest and highest of each stretch stay.
      x_label, y_label, title: texts; escaped.
      log_y: logarithmic y axis; what is not positive cannot be drawn there, and the chart says how many were left out.
      width, height: of the drawing's own coordinates; on a page it fills the width that it is given.

    Returns:
      An `<svg>` element for an HTML page, with its own style.

    Raises:
      UserError: for a point that is neither a pair nor four numbers.
    """
    lines = {name: _sorted_points(name, points) for name, points in series.items()}
    left_out = sum(int((line[:, 1] <= 0).sum()) for line in lines.values()) if log_y else 0
    drawn = {name: line[~(line[:, 1] <= 0)] if log_y else line for name, line in lines.items()}

    rows = _legend_rows(list(series), width - LEFT - RIGHT) if len(series) > 1 else []
    top = 34 + 18 * len(rows) + (4 if rows else 0)
    xs = np.concatenate([line[:, 0] for line in drawn.values()] or [np.empty(0)])
    ys = np.concatenate([line[:, 1:].ravel() for line in drawn.values()] or [np.empty(0)])
    ys = ys[np.isfinite(ys) & ((ys > 0) | (not log_y))]
    parts = [
        f'<svg class="gt-chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="t" x="{LEFT}" y="18">{escape(title)}</text>',
    ]
    if not len(ys):
        note = "nothing to draw yet" if not left_out else "no positive values to draw on a logarithmic axis"
        return "".join([*parts, f'<text x="{LEFT}" y="{height / 2:g}">{note}</text></svg>'])

    x_axis = _linear_axis(xs.min(), xs.max(), LEFT, width - RIGHT, most=6, snap=False)
    make = _log_axis if log_y else _linear_axis
    y_axis = make(ys.min(), ys.max(), height - BOTTOM, top)
    if left_out:
        y_label += f", log scale; {left_out} not positive left out"
    elif log_y:
        y_label += ", log scale"
    parts += _frame(x_axis, y_axis, x_label, y_label)
    parts += _legend(list(series), rows)
    for i, (name, line) in enumerate(drawn.items()):
        parts += _line(i, name, thinned(line), x_axis, y_axis, x_label)
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten within `[low, high]`: at most `most`.

    >>> nice_ticks(0.3, 9.7)
    (2.0, 4.0, 6.0, 8.0)
    """
    step = _nice_step(low, high, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(_rounded(i * step, step) for i in range(first, last + 1))


def short(value: float) -> str:
    """A number as short as four significant digits allow.

    >>> [short(v) for v in (0, 12.34567, 0.00001234, 45_000, 2_500_000, float("nan"))]
    ['0', '12.35', '1.234e-5', '45,000', '2.5M', 'nan']
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    size = abs(value)
    if size >= 1e9 or size < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 999_950:
        return f"{value / 1e6:.4g}M"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def thinned(line: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """About `most` points of a line `(n, 4)`: the first, the last, and the lowest and highest of each stretch."""
    if len(line) <= most:
        return line
    keep = {0, len(line) - 1}
    for stretch in np.array_split(np.arange(len(line)), most // 2 - 1):
        y = line[stretch, 1]
        if np.isfinite(y).any():
            keep |= {int(stretch[np.nanargmin(y)]), int(stretch[np.nanargmax(y)])}
        # A value that is not finite is the most important one of its stretch: the line has to break there.
        keep |= set(stretch[~np.isfinite(y)][:1].tolist())
    return line[sorted(keep)]


def _sorted_points(name: str, points: Points) -> np.ndarray:
    for point in points:
        if len(point) not in (2, 4):
            raise UserError(f"series {name}", point, "(x, y) or (x, y, low, high)")
    table = np.array([(*point, *[math.nan] * (4 - len(point))) for point in points], np.float64).reshape(-1, 4)
    table = np.where(np.isinf(table), np.nan, table)
    return table[np.argsort(table[:, 0], kind="stable")]


def _nice_step(low: float, high: float, most: int) -> float:
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= most - 1)


def _rounded(value: float, step: float) -> float:
    return round(value, max(0, 1 - math.floor(math.log10(step)))) + 0.0


def _linear_axis(low: float, high: float, start: float, end: float, most: int = 6, snap: bool = True) -> Axis:
    """An axis around a range; with `snap` it ends on ticks."""
    low, high = float(low), float(high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    elif not snap and 0 < low < 0.2 * high:
        low = 0.0
    if snap:
        step = _nice_step(low, high, most)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(low, high, start, end, nice_ticks(low, high, most + 1), log=False)


def _log_axis(low: float, high: float, start: float, end: float) -> Axis:
    low, high = float(low) / 1.1, float(high) * 1.1
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = [tick for tick in nice_ticks(low, high) if tick > 0]
    return Axis(low, high, start, end, tuple(ticks[:: math.ceil(len(ticks) / 8)]), log=True)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterable[str]:
    for tick in y.ticks:
        kind = "z" if tick == 0 and y.low < 0 else "g"
        yield f'<line class="{kind}" x1="{x.start:g}" x2="{x.end:g}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        yield f'<text x="{x.start - 7:g}" y="{y(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>'
    for tick in x.ticks:
        yield f'<line class="g" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y.start:g}" y2="{y.start + 5:g}"/>'
        yield f'<text x="{x(tick):.1f}" y="{y.start + 18:g}" text-anchor="middle">{short(tick)}</text>'
    middle = (y.start + y.end) / 2
    yield f'<text x="{(x.start + x.end) / 2:g}" y="{y.start + 36:g}" text-anchor="middle">{escape(x_label)}</text>'
    yield f'<text transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'


def _legend_rows(names: list[str], room: float) -> list[list[tuple[int, float]]]:
    """Rows of (index, left edge), filled from the left."""
    rows: list[list[tuple[int, float]]] = [[]]
    x = 0.0
    for i, name in enumerate(names):
        need = 34 + LETTER * len(_cut(name))
        if rows[-1] and x + need > room:
            rows.append([])
            x = 0.0
        rows[-1].append((i, x))
        x += need
    return rows


def _legend(names: list[str], rows: list[list[tuple[int, float]]]) -> Iterable[str]:
    for number, row in enumerate(rows):
        for i, x in row:
            left, y = LEFT + x, 38 + 18 * number
            yield f'<line x1="{left:.1f}" x2="{left + 20:.1f}" y1="{y}" y2="{y}" {_stroke(i)}/>'
            yield _marker(i, left + 10, y)
            yield f'<text class="l" x="{left + 25:.1f}" y="{y + 4}">{escape(_cut(names[i]))}'
            yield f"<title>{escape(names[i])}</title></text>"


def _cut(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _stroke(i: int) -> str:
    dash = DASHES[i // len(PALETTE) % len(DASHES)]
    return f'stroke="{PALETTE[i % len(PALETTE)]}" stroke-width="2" fill="none"' + (
        f' stroke-dasharray="{dash}"' if dash else ""
    )


def _marker(i: int, x: float, y: float) -> str:
    place = f'class="m" fill="{PALETTE[i % len(PALETTE)]}"'
    match MARKERS[i % len(MARKERS)]:
        case "circle":
            return f'<circle {place} cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
        case "square":
            return f'<rect {place} x="{x - 3.1:.1f}" y="{y - 3.1:.1f}" width="6.2" height="6.2"/>'
        case "triangle":
            return f'<path {place} d="M{x:.1f} {y - 4.2:.1f}l4 7h-8z"/>'
        case _:
            return f'<path {place} d="M{x:.1f} {y - 4.4:.1f}l4.2 4.4l-4.2 4.4l-4.2 -4.4z"/>'


def _line(i: int, name: str, line: np.ndarray, x: Axis, y: Axis, x_label: str) -> Iterable[str]:
    """The band, the line in pieces, then the points with what they say."""
    shown = np.isfinite(line[:, 1])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], shown, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        piece = line[start:stop]
        band = piece[np.isfinite(piece[:, 2:]).all(1)]
        if len(band) > 1:
            outline = [(x(p[0]), y(p[3])) for p in band] + [(x(p[0]), y(p[2])) for p in band[::-1]]
            corners = "L".join(f"{a:.1f} {b:.1f}" for a, b in outline)
            yield f'<path d="M{corners}z" fill="{PALETTE[i % len(PALETTE)]}" opacity=".18"/>'
        corners = "L".join(f"{x(p[0]):.1f} {y(p[1]):.1f}" for p in piece)
        yield f'<path d="M{corners}" {_stroke(i)} stroke-linejoin="round"/>'
    marked = shown.sum() <= MOST_MARKERS
    alone = {int(start) for start, stop in edges.reshape(-1, 2) if stop - start == 1}
    for k in np.flatnonzero(shown):
        px, py = x(line[k, 0]), y(line[k, 1])
        said = f"{name}: {short(line[k, 1])}"
        if np.isfinite(line[k, 2:]).all():
            said += f" ({short(line[k, 2])} to {short(line[k, 3])})"
        dot = _marker(i, px, py) if marked or int(k) in alone else ""
        yield f'<g class="p"><title>{escape(f"{said} at {short(line[k, 0])} {x_label}")}</title>'
        yield f'<circle class="h" cx="{px:.1f}" cy="{py:.1f}" r="6" fill="none" pointer-events="all"/>{dot}</g>'


def is_wide(values: Iterable[float], factor: float = 15) -> bool:
    """Whether positive values spread so far (over more than `factor`) that a linear axis flattens the small ones."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > factor
