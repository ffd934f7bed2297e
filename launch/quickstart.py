"""Finetunes the letters `glyphs` to 100 handwritten digits in three ways, prints one table and writes one page.

    bash launch/quickstart.sh [--workdir runs/quickstart] [--seed 0] [--kimg 38.4]

Offline, on two CPU cores. Started again, it goes on where it was stopped; with everything done it only prints the
table.
"""

import argparse
import runpy
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"
COLUMNS = {
    "class_accuracy": "class accuracy",
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "memorisation": "memorisation",
}
# Below this precision a recall says nothing: samples scattered far off have balls that cover everything.
READABLE = 0.5


def main() -> int:
    """Runs the three arms, then the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kimg", type=float, default=None)
    options = parser.parse_args()

    import gantransfer
    from gantransfer.errors import NotFinite, Stopped, UserError

    begun = time.perf_counter()
    runs = {}
    try:
        for name, settings in runpy.run_path(str(CONFIG))["ARMS"].items():
            print(f"\n== {name} ==", file=sys.stderr)
            workdir = options.workdir / name
            runs[name] = gantransfer.finetune(
                config=CONFIG, settings=settings, seed=options.seed, kimg=options.kimg, workdir=workdir
            )
        page = gantransfer.report(
            list(runs.values()), options.workdir / "report.html", title="100 digits from 37 letters, three ways"
        )
    except UserError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    except NotFinite as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 75
    print(table(runs))
    newest = runs["full"].path
    print(
        f"\n{time.perf_counter() - begun:.0f} seconds. Open {page} in a browser: curves, and the digits side by side."
    )
    print(f"More digits: gantransfer sample --source {newest} --seeds 0-31 --output digits.png")
    return 0


def table(runs: dict) -> str:
    """One line per way and evaluation: trained numbers, then the measures."""
    heads = ["way", "trained in G", "kimg", *COLUMNS.values()]
    rows = [heads]
    for name, run in runs.items():
        trained = sum(leaf["parameters"] for leaf in run.partition if leaf["trained"] and leaf["role"] == "generator")
        for record in run.evaluations:
            rows.append(
                [name, f"{trained:,}", f"{record['kimg']:g}", *(cell(key, record["metrics"]) for key in COLUMNS)]
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = []
    for name, *numbers in rows:
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    protocol = next(iter(runs.values())).evaluations[-1]["protocol"]
    note = (
        f"{protocol['n_generated']} samples against {protocol['n_real']} {protocol['reference']}, "
        f"features {protocol['network']} ({protocol['network_sha256'][:8]}), k = {protocol['k']};\n"
        f"recall in brackets where precision is below {READABLE}; "
        "memorisation 1 = as near to the training images as other real digits are"
    )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", note])


def cell(key: str, metrics: dict) -> str:
    """One number of the table."""
    value = metrics[key]
    if value is None:
        return "-"
    text = f"{value:.3f}" if key != "frechet_distance" else f"{value:.2f}"
    return f"({text})" if key == "recall" and metrics["precision"] < READABLE else text


if __name__ == "__main__":
    sys.exit(main())
