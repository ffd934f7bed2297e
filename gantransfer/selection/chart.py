"""The frame of selection's charts: one row for each candidate, best on top."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def draw_rows(names: Sequence[str], height: float, paint: Callable[[Any, np.ndarray], None], path: Path) -> Path:
    """Draws a chart and returns its file.

    Args:
      names: of the rows, best first.
      height: of a row, in inches.
      paint: draws on the axes, given the vertical place of each row.
      path: of the PNG; its folder is made if need be.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + height * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes, places = figure.subplots(), np.arange(len(names))[::-1]
    paint(axes, places)
    axes.set_yticks(places, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
