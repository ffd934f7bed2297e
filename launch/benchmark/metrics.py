"""Times metrics on arrays of features against the usual tools, in turn, on the same cores, at equal values.

    python launch/benchmark/metrics.py --peer-python ../venv-peer/bin/python

`--peer-python` is a Python with NumPy, SciPy and, for precision and recall, the package `prdc`; without it this one is
used, and what it lacks is left out. Each side is a process of its own; both get the same stored arrays.

- `frechet`: from two float32 arrays of features to the distance, in float64. The peer is the usual route: `np.cov` of
  both, and `scipy.linalg.sqrtm` of their product.
- `prdc`: precision, recall, density and coverage, k = 5. The peer is the package `prdc`.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lines import peak_bytes, serve, take_output, timed

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
NEIGHBOUR = 5
# What a benchmark holds the values of both sides to, relative to the peer's.
EQUAL = {"frechet": 1e-6, "prdc": 1e-4}
GOAL = {"frechet": 5.0, "prdc": 3.0}


def activations(count: int, width: int, seed: int, shift: float, power: float = 0.5) -> np.ndarray:
    """Float32 features like those of a pooled network: not negative, correlated, deviations decaying by a power."""
    rng = np.random.Generator(np.random.PCG64(seed))
    # Both sets share their directions.
    shared = np.random.Generator(np.random.PCG64(12345))
    mix = shared.standard_normal((width, width)) * (1.0 + np.arange(width))[:, None] ** -power
    rows = [rng.standard_normal((min(1000, count - i), width)) @ mix + shift for i in range(0, count, 1000)]
    return np.maximum(np.concatenate(rows), 0).astype(np.float32)


def decaying(count: int, width: int, seed: int, shift: float) -> np.ndarray:
    """The same with few strong directions and many weak ones, which ask more of a distance's numerics."""
    return activations(count, width, seed, shift, power=1.5)


def normal(count: int, width: int, seed: int, shift: float) -> np.ndarray:
    """Float32 features that are independent: every distance nearly equal, the hardest case for neighbours."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return (rng.standard_normal((count, width)) * (1 + shift)).astype(np.float32)


KINDS = {"activations": activations, "decaying": decaying, "normal": normal}


def our_work() -> dict[str, Any]:
    """Our functions, from arrays to values."""
    from gantransfer.metrics import frechet_distance, precision_recall_density_coverage

    return {
        "frechet": lambda a, b: [frechet_distance(a, b)],
        "prdc": lambda a, b: list(precision_recall_density_coverage(a, b, NEIGHBOUR).values()),
    }


def peer_work() -> dict[str, Any]:
    """What people use."""
    from scipy import linalg

    def frechet(a: np.ndarray, b: np.ndarray) -> list[float]:
        shift = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
        first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = linalg.sqrtm(first @ second)
        return [float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)]

    def prdc(a: np.ndarray, b: np.ndarray) -> list[float]:
        from prdc import compute_prdc

        found = compute_prdc(a, b, nearest_k=NEIGHBOUR)
        return [float(found[name]) for name in ("precision", "recall", "density", "coverage")]

    return {"frechet": frechet} | ({"prdc": prdc} if importlib.util.find_spec("prdc") else {})


def work(side: str) -> None:
    """Answers commands of the timing process (`lines.py`)."""
    answers = take_output()
    functions = our_work() if side == "ours" else peer_work()
    arrays: dict[str, np.ndarray] = {}

    def about() -> dict[str, Any]:
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        for name in ("scipy", "sklearn", "prdc", "jax"):
            if name in sys.modules or (side == "peer" and importlib.util.find_spec(name)):
                versions[name] = getattr(importlib.import_module(name), "__version__", "")
        return {"versions": versions, "metrics": sorted(functions)}

    def load(path: str) -> dict[str, Any]:
        arrays.update({name: np.load(f"{path}/{name}.npy") for name in ("real", "fake")})
        return {}

    def run(metric: str) -> dict[str, Any]:
        values: list[float] = []
        times = timed(lambda _: values.extend(functions[metric](arrays["real"], arrays["fake"])), 1)
        return {"values": values, "peak_bytes": peak_bytes(), **times}

    serve({"about": about, "load": load, "run": run}, answers)


def measure(options: argparse.Namespace, kind: str, workers: dict[str, Any], metrics: list[str]) -> list[dict]:
    """Rounds over both sides for every metric, on one kind of features."""
    from run import ratio

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, seed, shift in (("real", 1, 0.0), ("fake", 2, 0.02)):
            np.save(f"{folder}/{name}.npy", KINDS[kind](options.rows, options.width, seed, shift))
        for worker in workers.values():
            worker.ask("load", path=folder)
    for metric in metrics:
        rounds: dict[str, list[dict]] = {side: [] for side in workers}
        for _ in range(options.rounds):
            for side, worker in workers.items():
                rounds[side].append(worker.ask("run", metric=metric))
        ours, peer = (np.array(rounds[side][0]["values"]) for side in ("ours", "peer"))
        difference = float(np.max(np.abs(ours - peer) / np.maximum(np.abs(peer), 1e-30)))
        found.append(
            {
                "metric": metric,
                "features": kind,
                "values": {side: rounds[side][0]["values"] for side in workers},
                "relative_difference": difference,
                "equal": difference <= EQUAL[metric],
                "goal": GOAL[metric],
                "ratio": {clock: ratio(rounds["peer"], rounds["ours"], clock) for clock in ("wall", "cpu")},
                "seconds": {
                    side: {clock: median(r[clock] for r in rounds[side]) for clock in ("wall", "cpu")}
                    for side in workers
                },
                "peak_bytes": {side: rounds[side][-1]["peak_bytes"] for side in workers},
            }
        )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    lines = [
        "| metric | features | ours, s | peer, s | peer / ours (wall; least to largest) | CPU | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        cpu, wall, seconds = row["ratio"]["cpu"], row["ratio"]["wall"], row["seconds"]
        verdict = "" if row["equal"] else " (values differ: no ratio counts)"
        lines.append(
            f"| {row['metric']} | {row['features']} | {seconds['ours']['wall']:.1f} | {seconds['peer']['wall']:.1f} "
            f"| **{wall['median']:.1f}** ({wall['min']:.1f} to {wall['max']:.1f}){verdict} | {cpu['median']:.1f} "
            f"| {row['relative_difference']:.1e} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with NumPy, SciPy and prdc")
    parser.add_argument("--metrics", nargs="+", choices=sorted(EQUAL), default=sorted(EQUAL))
    parser.add_argument("--features", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cores", nargs="+", type=int, default=[max(os.sched_getaffinity(0))], help="the cores of both sides"
    )
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measures what the command line asks for and prints a table."""
    options = parse()
    if options.worker:
        work(options.worker)
        return
    from run import Worker, processor

    paths = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    script, quiet = str(HERE / "metrics.py"), {"JAX_PLATFORMS": "cpu"}
    workers = {
        "ours": Worker([sys.executable, script, "--worker", "ours"], options.cores, {"PYTHONPATH": paths, **quiet}),
        "peer": Worker([options.peer_python, script, "--worker", "peer"], options.cores, quiet),
    }
    about = {side: worker.ask("about") for side, worker in workers.items()}
    metrics = [name for name in options.metrics if name in about["peer"]["metrics"]]
    for name in set(options.metrics) - set(metrics):
        print(f"{name}: left out, since the peer's Python lacks the package", file=sys.stderr)
    result: dict[str, Any] = {
        "processor": processor(),
        "cores": options.cores,
        "shape": [options.rows, options.width],
        "rounds": options.rounds,
        "about": about,
        "load": {"before": os.getloadavg()[0]},
    }
    result["rows"] = [row for kind in options.features for row in measure(options, kind, workers, metrics)]
    result["load"]["after"] = os.getloadavg()[0]
    for worker in workers.values():
        worker.close()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
