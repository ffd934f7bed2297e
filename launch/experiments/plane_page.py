"""Tables (standard output) and figures of the plane's studies, for docs/results/plane.md.

python launch/experiments/plane_page.py --workdir runs/plane
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import plane

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "results" / "pictures"
PREDICTORS = ("recall", "precision", "similarity", "wasserstein", "age")
COLOURS = {"none": "#777777", "discriminator": "#d98f1f", "generator": "#2a78b5", "both": "#2d8a4e"}
SHOWN_STEPS = 500

Line = dict[str, Any]


def score(line: Line) -> float:
    """Of a finetuning: its lowest Wasserstein distance to the target, the start included."""
    return min(one["wasserstein"] for one in line["measured"])


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Linear correlation; NaN where one of the two does not vary."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def partial_correlation(a: Sequence[float], b: Sequence[float], given: Sequence[float]) -> float:
    """Correlation of what is left of `a` and `b` when the line through `given` is taken out of both."""
    design = np.stack([np.ones(len(given)), np.asarray(given, float)], axis=1)
    left = [np.asarray(x, float) - design @ np.linalg.lstsq(design, np.asarray(x, float))[0] for x in (a, b)]
    return pearson(*left)


def column(lines: Sequence[Line], name: str) -> list[float]:
    """Of each snapshot its `age`, its `score`, or what was measured before finetuning."""
    if name == "age":
        return [line["age"] for line in lines]
    return [score(line) if name == "score" else line["measured"][0][name] for line in lines]


def read(path: Path) -> list[Line]:
    """Lines of JSON."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def ways_table(lines: Sequence[Line]) -> str:
    """Means over seeds [lowest..highest] of each way from each source."""
    found = [
        "| source | transferred | W1 at 0 | at 250 | at 500 | at 1000 | modes, 500 | recall, 500 | precision, 500 |"
    ]
    found.append("| --- " * 9 + "|")
    for source in ("circle", "three"):
        for way in plane.WAYS:
            runs = [line["measured"] for line in lines if (line["source"], line["way"]) == (source, way)]
            if not runs:
                continue
            distances = [_spread([run[i]["wasserstein"] for run in runs], 1) for i in (0, 1, 2, 4)]
            rest = [_spread([run[2][name] for run in runs], d) for name, d in (("modes", 1), ("recall", 2))]
            rest.append(_spread([run[2]["precision"] for run in runs], 2))
            found.append(f"| {'-' if way == 'none' else source} | {way} | {' | '.join(distances + rest)} |")
    return "\n".join(found)


def correlation_table(lines: Sequence[Line]) -> str:
    """Pearson correlation of each predictor with the score, and given age; per seed, and means of the seeds'."""
    seeds = sorted({line["seed"] for line in lines})
    by_seed = [[line for line in lines if line["seed"] == seed] for seed in seeds]
    partly: Callable[[list[Line], str], float] = lambda part, name: partial_correlation(
        column(part, name), column(part, "score"), column(part, "age")
    )
    plain = lambda part, name: pearson(column(part, name), column(part, "score"))
    found = ["| predictor | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | given age: "]
    found[0] += " | ".join(f"seed {seed}" for seed in seeds) + " | mean |"
    found.append("| --- " * (2 * len(seeds) + 3) + "|")
    for name in PREDICTORS:
        cells = []
        for correlation in (plain, partly):
            values = [correlation(part, name) for part in by_seed]
            known = name != "age" or correlation is plain
            cells += [f"{value:+.2f}" if known else "" for value in (*values, np.mean(values))]
        found.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(found)


def choice_table(ways: Sequence[Line], snapshots: Sequence[Line], above: float = 0.95) -> str:
    """The same where age cannot explain it (finished sources of two kinds), and where recall has saturated."""
    finished = [{**line, "age": plane.SOURCE_STEPS} for line in ways if line["way"] == "both"]
    covering = [line for line in snapshots if line["measured"][0]["recall"] >= above]
    found = [
        "| predictor | both kinds of sources, equal age | snapshots with a recall of at least 0.95 |",
        "| --- " * 3 + "|",
    ]
    for name in PREDICTORS:
        values = [f"{pearson(column(covering, name), column(covering, 'score')):+.2f}"]
        known = name != "age"
        values.insert(0, f"{pearson(column(finished, name), column(finished, 'score')):+.2f}" if known else "")
        found.append(f"| {name} | {' | '.join(values)} |")
    counts = f"{len(finished)} sources; {len(covering)} snapshots, ages {min(column(covering, 'age'))} and more"
    return "\n".join([*found, "", counts])


def ways_figure(lines: Sequence[Line], workdir: Path) -> None:
    """What each way has learned after 500 steps, and the distance over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 3.6), layout="constrained")
    points = shown_points(workdir)
    axes = figure.subplots(1, len(points) + 1, width_ratios=(*(1 for _ in points), 1.35))
    target = np.asarray(plane.DISTRIBUTIONS["target"](jax.random.key(0), 1000))
    for axis, (name, own) in zip(axes, points.items(), strict=False):
        axis.scatter(*target.T, s=2, color="#d0312d", label="target")
        axis.scatter(*own.T, s=2, color="#1b1b1b", label="generated")
        axis.set(title=name, xlim=(-33, 33), ylim=(-33, 33), aspect="equal", xticks=[], yticks=[])
    for way, colour in COLOURS.items():
        runs = [line["measured"] for line in lines if (line["source"], line["way"]) == ("circle", way)]
        distances = np.array([[one["wasserstein"] for one in run] for run in runs])
        steps = plane.INTERVAL * np.arange(distances.shape[1])
        axes[-1].plot(steps, distances.mean(axis=0), color=colour, label=way)
        axes[-1].fill_between(steps, distances.min(axis=0), distances.max(axis=0), color=colour, alpha=0.2, lw=0)
    axes[-1].set(
        xlabel="generator steps of finetuning",
        ylabel="Wasserstein-1 distance",
        ylim=(0, None),
        title="mean, lowest and highest of the seeds",
    )
    axes[-1].legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0.8), fontsize="small")
    figure.savefig(PICTURES / "plane_ways.png", dpi=110)


def shown_points(workdir: Path) -> dict[str, np.ndarray]:
    """Points of the source and of each way after 500 steps, seed 0; kept in the work directory."""
    path = workdir / "points.npz"
    if not path.exists():
        source = plane.source_history(workdir, "circle", 0)[-1]
        games = plane.stacked([plane.transferred(source, way, 0) for way in plane.WAYS])
        keys = plane.game_keys([(11, 0, 0, plane.WAYS.index(way)) for way in plane.WAYS])
        after = plane.play(games, keys, 0, SHOWN_STEPS, "target")
        names = ("source", *plane.WAYS)
        drawn = [plane.samples(g, jax.random.key(1), 1000)[0] for g in (plane.stacked([source]), after)]
        np.savez(path, names=names, points=np.concatenate([np.asarray(one) for one in drawn]))
    with np.load(path) as file:
        return dict(zip(map(str, file["names"]), file["points"], strict=True))


def snapshots_figure(lines: Sequence[Line]) -> None:
    """The score of each finetuned snapshot over each predictor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.6), layout="constrained")
    labels = {
        "recall": "recall before finetuning",
        "precision": "precision before finetuning",
        "similarity": "gradient similarity",
        "wasserstein": "W1 before finetuning",
        "age": "age: steps of the source",
    }
    axes = figure.subplots(1, len(PREDICTORS), sharey=True)
    for axis, name in zip(axes, PREDICTORS, strict=True):
        for seed in sorted({line["seed"] for line in lines}):
            part = [line for line in lines if line["seed"] == seed]
            shown = axis.scatter(
                column(part, name), column(part, "score"), c=column(part, "age"), cmap="viridis", s=22,
                marker="osD^v"[seed % 5], label=f"seed {seed}",
            )  # fmt: skip
        axis.set(xlabel=labels[name], title=f"r = {pearson(column(lines, name), column(lines, 'score')):+.2f} (pooled)")
    axes[0].set_ylabel("score: lowest W1 of the finetuning")
    axes[0].legend(frameon=False)
    figure.colorbar(shown, ax=axes[-1], label="age")
    figure.savefig(PICTURES / "plane_snapshots.png", dpi=110)


def main() -> None:
    """Reads both studies; prints tables in Markdown and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/plane"))
    workdir = parser.parse_args().workdir
    ways, snapshots = read(workdir / "ways.jsonl"), read(workdir / "snapshots.jsonl")
    print(ways_table(ways), correlation_table(snapshots), choice_table(ways, snapshots), sep="\n\n")
    ways_figure(ways, workdir)
    snapshots_figure(snapshots)


if __name__ == "__main__":
    main()
