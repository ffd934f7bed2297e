"""The quickstart's three ways over seeds: the table of docs/results/quickstart.md, and the sweep before it.

    python launch/experiments/quickstart_seeds.py sweep --seeds 3,4 --workdir runs/sweep
    python launch/experiments/quickstart_seeds.py table --seeds 0,1,2 --workdir runs/seeds

The sweep gives every way the same number of settings, on seeds that the table does not use. A run that is done is not
run again.
"""

import argparse
import json
import runpy
import statistics
from pathlib import Path

import gantransfer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quickstart.py"
SHOWN = ("class_accuracy", "frechet_distance", "precision", "recall", "coverage", "memorisation")


def methods(weight_g: float) -> tuple[str, ...]:
    """The config's methods with another weight of G's class term."""
    lines = runpy.run_path(str(CONFIG))["get_config"]().methods
    head = f"auxiliary_classifier(weight_d=1.0, weight_g={weight_g})"
    return tuple(head if line.startswith("auxiliary_classifier") else line for line in lines)


def rates(g: float, d: float, rows: float) -> dict:
    """Learning rates of G's weights, of D, and of the class embedding."""
    return {"optimizer.lr_g": g, "optimizer.lr_d": d, "optimizer.lr_class_embedding": rows}


# Five settings for each way; the edge of each grid was moved outwards once. What is chosen is the setting with the
# lowest Frechet distance on average over the evaluations after the start; settings within a tenth of it tie, and of
# those the one with the highest recall at the end is taken.
SWEEP = {
    "scratch": {
        "1e-3": rates(1e-3, 1e-3, 1e-3),
        "2e-3": rates(2e-3, 2e-3, 2e-3),
        "4e-3": rates(4e-3, 4e-3, 4e-3),
        "8e-3": rates(8e-3, 8e-3, 8e-3),
        "2e-3, class 0.2": rates(2e-3, 2e-3, 2e-3) | {"methods": methods(0.2)},
    },
    "class_embedding_only": {
        "rows 0.05": rates(1e-3, 1e-3, 0.05),
        "rows 0.1": rates(1e-3, 1e-3, 0.1),
        "rows 0.2": rates(1e-3, 1e-3, 0.2),
        "rows 0.05, D 2e-3": rates(1e-3, 2e-3, 0.05),
        "rows 0.05, class 0.2": rates(1e-3, 1e-3, 0.05) | {"methods": methods(0.2)},
    },
    "full": {
        "G 2e-4": rates(2e-4, 1e-3, 0.05),
        "G 1e-3": rates(1e-3, 1e-3, 0.05),
        "G 5e-4, D 2e-3": rates(5e-4, 2e-3, 0.05),
        "G 1e-3, D 2e-3": rates(1e-3, 2e-3, 0.05),
        "G 2e-3, D 2e-3": rates(2e-3, 2e-3, 0.05),
    },
}


def run(way: str, settings: dict, seed: int, workdir: Path) -> list[dict]:
    """Trains one way (or goes on with it) and returns its evaluations."""
    arm = runpy.run_path(str(CONFIG))["ARMS"][way]
    quiet = {"run.tensorboard": False, "run.snapshot_kimg": 19.2, "run.checkpoint_kimg": 38.4}
    finished = gantransfer.finetune(config=CONFIG, settings=arm | settings | quiet, seed=seed, workdir=workdir)
    seconds = {line["images_seen"]: line["seconds"] for line in map(json.loads, (workdir / "timing.jsonl").open())}
    return [record | {"seconds": seconds.get(record["images_seen"])} for record in finished.evaluations]


def spread(values: list[float | None], digits: int) -> str:
    """`mean [lowest..highest]`."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.{digits}f} [{min(known):.{digits}f}..{max(known):.{digits}f}]"


def table(results: dict[str, dict[int, list[dict]]]) -> str:
    """Markdown: one row per kimg and way, means over seeds with their range."""
    lines = [
        "| kimg | way | " + " | ".join(name.replace("_", " ") for name in SHOWN) + " |",
        "| --- " * (len(SHOWN) + 2) + "|",
    ]
    points = sorted(
        {record["kimg"] for by_seed in results.values() for records in by_seed.values() for record in records}
    )
    for kimg in points:
        for way, by_seed in results.items():
            found = [r["metrics"] for records in by_seed.values() for r in records if r["kimg"] == kimg]
            cells = [spread([m[name] for m in found], 2 if name in ("frechet_distance",) else 3) for name in SHOWN]
            if found and statistics.mean(m["precision"] for m in found) < 0.5:
                cells[SHOWN.index("recall")] = f"({cells[SHOWN.index('recall')]})"
            lines.append(f"| {kimg:g} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints Markdown; every evaluation goes to a JSON file in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sweep", "table"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ways", default=",".join(SWEEP))
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    results: dict[str, dict[int, list[dict]]] = {}
    for way in options.ways.split(","):
        for name, settings in (SWEEP[way] if options.what == "sweep" else {"": {}}).items():
            label = f"{way}: {name}" if name else way
            place = options.workdir / label.replace(" ", "_").replace(":", "").replace(",", "")
            results[label] = {seed: run(way, settings, seed, place / str(seed)) for seed in seeds}
            print(table({label: results[label]}), flush=True)
    file = options.workdir / f"{options.what}_{options.ways.replace(',', '+')}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
