"""The results of `run.py` as Markdown: `python launch/benchmark/tables.py FILE.json` prints them again."""

import json
import sys
from pathlib import Path
from typing import Any

# Ratios that the project holds itself to, against the best variant of the peer.
TARGETS = {"full": 1.2, "embedding": 1.45, "main": 1.6, "r1": 1.8, "path length": 2.1}
OURS = ("rewritten", "plain")


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def megabytes(count: float) -> str:
    """Bytes in units of a million, with three digits."""
    return f"{count / 1e6:.3g} MB"


def steps_table(result: dict[str, Any]) -> str:
    """One row for each side of each workload; ratios are of times, the side's over ours."""
    rows = []
    for step in result["steps"]:
        for side, found in step["sides"].items():
            apart = f"{step['disagreement'][side]:.1e}"
            if "wall" not in found:
                rows.append([step["workload"], side, "not timed: losses differ", "", "", "", "", "", "", apart])
                continue
            ratios = [
                f"{r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f})"
                for r in (found["ratio"]["cpu"], found["ratio"]["wall"])
            ]
            rate = found["flops"] / found["cpu"] / 1e9 if found["flops"] else None
            rows.append(
                [step["workload"], side, f"{1e3 * found['cpu']:.0f}", f"{1e3 * found['wall']:.0f}"]
                + [f"{step['batch'] / found['wall']:.1f}", *ratios]
                + [
                    f"{found['flops'] / 1e9:.2f} ({rate:.0f})" if rate else "not counted",
                    megabytes(found["peak bytes"]),
                    apart,
                ]
            )
    head = [
        "workload",
        "side",
        "CPU ms/step",
        "wall ms/step",
        "images/s",
        "ratio, CPU (min-max)",
        "ratio, wall (min-max)",
    ]
    return table([*head, "GFLOP (GFLOP/s)", "peak memory", "losses apart"], rows)


def worth(found: dict[str, Any]) -> float:
    """The ratio that a verdict takes: the lower of those of CPU and of wall time."""
    return min(found["ratio"][clock]["median"] for clock in ("cpu", "wall"))


def verdicts(result: dict[str, Any]) -> str:
    """Per workload, the ratio against the best variant of the peer; no verdict where the machine was busy."""
    lines = []
    for step in result["steps"]:
        timed = {side: found for side, found in step["sides"].items() if side not in OURS and "ratio" in found}
        for kind, hoisted in (("as it is", False), ("with frozen weights hoisted", True)):
            sides = [side for side in timed if ("+" in side) == hoisted]
            if not sides:
                continue
            best = min(sides, key=lambda side: worth(timed[side]))
            value, target = worth(timed[best]), TARGETS[step["trains"]]
            word = "contended, no verdict" if step["contended"] else "reached" if value >= target else "missed"
            lines.append(
                f"- {step['workload']}: {value:.2f} against the peer {kind} (best: {best}); target {target}: {word}"
            )
    return "\n".join(lines)


def starts_table(result: dict[str, Any]) -> str:
    """Seconds to the first step with an empty and with a filled compilation cache."""
    rows = []
    for name, states in result["starts"].items():
        for state, parts in states.items():
            rows.append(
                [
                    name,
                    state,
                    f"{parts['from start']:.1f}",
                    *(f"{v:.1f}" for k, v in parts.items() if k != "from start"),
                ]
            )
    return table(
        [
            "workload",
            "cache",
            "process start to first step, s",
            "import",
            "prepare",
            "trace and lower",
            "compile",
            "first step",
        ],
        rows,
    )


def arithmetic_tables(result: dict[str, Any]) -> str:
    """Counted operations beside the limits, and bytes of what trains, for both modes."""
    flops, memory = [], []
    for name, found in result["arithmetic"].items():
        full, light = found["counts"].values()
        for part in ("backward", "update"):
            row = [f"{counts[f'generator {part}'] / 1e9:.3f}" for counts in (full, light)]
            flops.append(
                [name, f"generator {part}", *row] + [f"{found[part][k]:.3f}" for k in ("ratio", "arithmetic", "limit")]
            )
        for what in ("values trained", "gradient bytes", "optimizer bytes", "average bytes", "temporary bytes"):
            memory.append([name, what, f"{full[what]:,}", f"{light[what]:,}", f"{light[what] / full[what]:.4f}"])
    first = table(
        ["shapes", "part", "full, GFLOP", "class embedding only, GFLOP", "ratio", "arithmetic", "limit"], flops
    )
    return first + "\n\n" + table(["shapes", "of the generator", "full", "class embedding only", "ratio"], memory)


def markdown(result: dict[str, Any]) -> str:
    """All tables of a result."""
    machine, load = result["machine"], result["load"]
    lines = [
        f"{machine['processor']}, core {machine['core']} of {machine['cores']}, one thread a side; "
        f"load {load['before']:.1f} before and "
    ]
    lines[0] += f"{load['after']:.1f} after."
    busy = [step["workload"] for step in result["steps"] if step.get("contended")]
    if busy:
        lines.append(f"Contended, read with care: {', '.join(busy)}.")
    for step in result["steps"][:1]:
        about = step["ours"] | step.get("peer", {})
        lines.append(
            "Versions: Python "
            + result["python"]
            + "".join(f", {k} {about[k]}" for k in ("jax", "jaxlib", "torch") if k in about)
            + "."
        )
    if result["steps"]:
        lines += [steps_table(result), verdicts(result)]
    if "starts" in result:
        lines.append(starts_table(result))
    if "arithmetic" in result:
        lines.append(arithmetic_tables(result))
    return "\n\n".join(line for line in lines if line)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
