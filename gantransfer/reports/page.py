"""One HTML page about a run, or several side by side, that opens anywhere: no network, no script, no other file."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

import gantransfer
from gantransfer.errors import UserError
from gantransfer.reports import comparison, single
from gantransfer.reports.grids import Images, Labels, grid, write_whole
from gantransfer.reports.parts import Picture, data_name, in_words, inline, source_name
from gantransfer.reports.records import Run, read_runs

DataPreview = tuple[Images, Labels, Sequence[str]]

MOST_CLASSES, IMAGES_OF_A_CLASS = 12, 10


class ClassRow(NamedTuple):
    """A class in the section about the data: its name, how many images it has, and some of them."""

    name: str
    count: int | None
    picture: Picture


def write_report(
    run_folders: Sequence[Path],
    output: Path,
    *,
    data_preview: DataPreview | None = None,
    title: str | None = None,
) -> Path:
    """Writes a report of one run, or a comparison of several, as one self-contained HTML file.

    What a run does not have yet (evaluations, grids) is said on the page. Runs that differ only in their seed are drawn
    as one line with a band.

    Args:
      run_folders: folders of runs, in the order of the columns and colours.
      output: the HTML file; it appears whole or not at all.
      data_preview: images `(n, h, w, c)` uint8, labels `(n,)` and class names, for the section about the data.
      title: headline; None: what was finetuned on what.

    Returns:
      `output`.

    Raises:
      UserError: for no folder, one twice, a folder that is no run, or a file that cannot be understood; it is named.
    """
    runs = read_runs(run_folders)
    text = files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = in_words
    page = environment.from_string(text).render(
        title=title or headline(runs),
        single=single.sections(runs[0]) if len(runs) == 1 else None,
        comparison=comparison.sections(runs) if len(runs) > 1 else None,
        preview=class_rows(runs[0], data_preview) if data_preview is not None else [],
        preview_classes=len(np.unique(data_preview[1])) if data_preview is not None else 0,
        data=runs[0].data,
        cut_off=[f"{run.name}/{file}" for run in runs for file in run.cut_off],
        version=gantransfer.__version__,
    )
    return write_whole(output, page.encode("utf-8"))


def headline(runs: Sequence[Run]) -> str:
    """What was finetuned on what; or how many runs are compared."""
    targets = {data_name(run) for run in runs}
    data = targets.pop() if len(targets) == 1 else ""
    if len(runs) > 1:
        return f"{len(runs)} runs on {data}" if data else f"{len(runs)} runs compared"
    source = source_name(runs[0])
    what = "Trained from scratch" if source == "from scratch" else f"{source} finetuned"
    return f"{what} on {data}" if data else what


def class_rows(run: Run, preview: DataPreview) -> list[ClassRow]:
    """Images of the first classes, one row a class; an unconditional set fills one row of several lines."""
    images, labels, names = preview
    if not len(images) == len(labels) > 0:
        raise UserError(
            "report.data_preview", f"{len(images)} images, {len(labels)} labels", "one label for each image"
        )
    present = np.unique(labels).tolist()
    if not 0 <= present[0] <= present[-1] < len(names):
        raise UserError("report.data_preview", [present[0], present[-1]], f"labels from 0 to {len(names) - 1}")
    counts = {entry["index"]: entry["count"] for entry in run.data.get("classes", [])}
    most = IMAGES_OF_A_CLASS * (4 if len(present) == 1 else 1)
    rows = []
    for label in present[:MOST_CLASSES]:
        chosen = images[labels == label][:most]
        picture = grid(chosen, columns=min(len(chosen), IMAGES_OF_A_CLASS))
        rows.append(ClassRow(names[label], counts.get(label), inline(picture, room=0)))
    return rows
