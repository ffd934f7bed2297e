"""Times training steps on one core, ours against our own plain form and against a peer, and writes what was found.

    python launch/benchmark/run.py                                  ours only
    python launch/benchmark/run.py --peer PATH --peer-python PYTHON  beside the official BigGAN-PyTorch

The protocol: long-lived processes on one core, called in turn (A B C A B C ...), rounds after warm-ups, medians of the
ratios taken round by round. Losses on equal weights and draws must agree before a ratio is made. Where the machine has
more work than cores, the result says "contended" and carries no verdict. This file needs nothing but Python: JAX and
PyTorch live in the workers.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

from tables import markdown
from workloads import MEASURED, WORKLOADS

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
RESULTS = CHECKOUT / "docs" / "results" / "benchmark_cpu.json"
PARITY = 1e-4
WARM_UPS = 2


class Worker:
    """One process that holds a compiled step and answers commands.

    Args:
      command: what to start.
      cores: the only cores that it may use, one thread for each.
      environment: variables beside those of this process.
    """

    def __init__(self, command: list[str], cores: Collection[int], environment: dict[str, str]):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
        threads = dict.fromkeys(names, str(len(cores)))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads | environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, name: str, **given: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer; RuntimeError if the process has ended."""
        self.process.stdin.write(json.dumps({"do": name, **given}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{' '.join(self.process.args)} ended with {self.process.wait()}; its messages are above"
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def ours(workload: str, form: str, core: int, cache: Path) -> Worker:
    """Starts our side."""
    script = HERE / f"{WORKLOADS[workload].family}_jax.py"
    command = [sys.executable, str(script), "--workload", workload, "--form", form]
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The flag alone does not keep XLA on one thread: pinning does.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return Worker(
        command, [core], {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | cached
    )


def theirs(options: argparse.Namespace, workload: str, variant: str, weights: Path) -> Worker:
    """Starts the peer's side; a variant that ends in "+hoisted" normalises frozen weights once."""
    name, _, hoisted = variant.partition("+")
    script = HERE / f"{WORKLOADS[workload].family}_torch.py"
    command = [options.peer_python, str(script), "--peer", options.peer, "--workload", workload]
    command += ["--variant", name, "--weights", str(weights), *(["--hoisted"] if hoisted else [])]
    return Worker(command, [options.core], {})


def variants_of(workload: str) -> tuple[str, ...]:
    """The peer's variants: hoisting only where weights are frozen, compilation only where nothing is differentiated
    twice, which torch.compile does not support.
    """
    trains, every = WORKLOADS[workload].trains, ("eager", "fused", "compile")
    if trains == "embedding":
        return (*every, *(f"{variant}+hoisted" for variant in every))
    return every[:2] if trains in ("r1", "path length") else every


def disagreement(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """Largest difference between the losses of two sides, relative to the loss where that is above 1.

    Every iteration after the first counts a tenth: Adam makes steps of the whole rate of gradients that are zero but
    for rounding, so equal steps drift apart; the variants of one peer do.
    """
    return max(
        abs(x[name] - y[name]) / max(1.0, abs(x[name])) / (10 if iteration else 1)
        for iteration, (x, y) in enumerate(zip(a, b, strict=True))
        for name in x
    )


def interleave(workers: dict[str, Worker], rounds: int, steps: dict[str, int]) -> dict[str, list[dict[str, float]]]:
    """Seconds per step of every worker, round by round, each called in turn."""
    for _ in range(WARM_UPS):
        for name, worker in workers.items():
            worker.ask("run", steps=steps[name])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            found[name].append(worker.ask("run", steps=steps[name]))
    return found


def ratio(other: list[dict[str, float]], own: list[dict[str, float]], clock: str) -> dict[str, float]:
    """Median, least and largest of the ratios other / own taken round by round."""
    values = [a[clock] / b[clock] for a, b in zip(other, own, strict=True)]
    return {"median": median(values), "min": min(values), "max": max(values)}


def wait_for_quiet(minutes: float) -> None:
    """Waits until the load average has room for one more process, at most so long."""
    end = time.monotonic() + 60 * minutes
    while os.getloadavg()[0] > (os.cpu_count() or 1) - 1 and time.monotonic() < end:
        time.sleep(5)


def measure(options: argparse.Namespace, name: str, cache: Path, folder: Path) -> dict[str, Any]:
    """Everything about one workload: parity, then rounds over all sides."""
    weights = folder / f"{name}.npz"
    workers = {form: ours(name, form, options.core, cache) for form in options.forms}
    result: dict[str, Any] = {"workload": name, "about": WORKLOADS[name].about}
    result |= {"batch": WORKLOADS[name].batch, "trains": WORKLOADS[name].trains}
    losses = {form: worker.ask("losses", path=str(weights))["losses"] for form, worker in workers.items()}
    result["ours"] = workers["rewritten"].ask("about")
    for variant in variants_of(name) if options.peer else ():
        if options.variants and variant not in options.variants:
            continue
        worker = theirs(options, name, variant, weights)
        losses[variant] = worker.ask("losses")["losses"]
        result["peer"] = worker.ask("about")
        workers[variant] = worker
    result["disagreement"] = {side: disagreement(losses["rewritten"], found) for side, found in losses.items()}
    result["sides"] = {side: worker.ask("first") for side, worker in workers.items()}
    if max(result["disagreement"].values()) <= PARITY:
        once = {side: worker.ask("run", steps=2)["wall"] for side, worker in workers.items()}
        steps = {side: max(2, round(options.seconds / wall)) for side, wall in once.items()}
        wait_for_quiet(options.patience)
        result["load"] = {"before": os.getloadavg()[0]}
        found = interleave(workers, options.rounds, steps)
        result["load"]["after"] = os.getloadavg()[0]
        result["contended"] = max(result["load"].values()) > (os.cpu_count() or 1)
        result["rounds"], result["steps per round"] = options.rounds, steps
        for side, times in found.items():
            result["sides"][side] |= {clock: median(t[clock] for t in times) for clock in ("wall", "cpu")}
            result["sides"][side]["ratio"] = {
                clock: ratio(times, found["rewritten"], clock) for clock in ("wall", "cpu")
            }
    for worker in workers.values():
        worker.close()
    return result


def starts(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """Seconds from the start of a process to the end of its first step, without and with a filled compilation cache."""
    found = {}
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for state in ("cold", "warm"):
            worker = ours(name, "rewritten", options.core, Path(cache))
            answer = worker.ask("first")
            found[state] = {"from start": answer["from start"], **answer["seconds"]}
            worker.close()
    return found


def arithmetic(options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """What the compiler counts for parts of steps, and the bytes of what each mode trains."""
    found = {}
    for name in options.workloads:
        if WORKLOADS[name].trains == "full":
            worker = ours(name, "rewritten", options.core, cache)
            found[name] = worker.ask("arithmetic")
            worker.close()
    return found


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A new result, with what an old one holds of workloads that were not run again."""
    again = {step["workload"] for step in new["steps"]}
    kept = [step for step in old["steps"] if step["workload"] not in again]
    tables = {part: old.get(part, {}) | new.get(part, {}) for part in ("starts", "arithmetic")}
    return (
        old
        | new
        | {"steps": sorted(kept + new["steps"], key=lambda step: list(WORKLOADS).index(step["workload"]))}
        | tables
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(MEASURED))
    parser.add_argument("--peer", help="a checkout of BigGAN-PyTorch; without it only our own forms are compared")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument(
        "--forms", nargs="+", choices=("rewritten", "plain"), default=("rewritten", "plain"), help="of ours"
    )
    parser.add_argument("--variants", nargs="*", default=[], help="of the peer; all by default")
    parser.add_argument("--rounds", type=int, default=9, help="after two warm-ups; results are worth something from 7")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long each side runs in a round")
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core that everything runs on"
    )
    parser.add_argument("--patience", type=float, default=0, help="minutes to wait for a quiet machine")
    parser.add_argument("--skip", nargs="*", choices=("steps", "starts", "arithmetic"), default=[])
    parser.add_argument("--cache", help="compilation cache of the timed processes; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measures what the command line asks for, writes the results and prints tables."""
    options = parse()
    result = {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "core": options.core,
            "system": platform.platform(),
        },
        "load": {"before": os.getloadavg()[0]},
        "python": platform.python_version(),
        "steps": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(options.cache or f"{folder}/cache")
        if "steps" not in options.skip:
            result["steps"] = [measure(options, name, cache, Path(folder)) for name in options.workloads]
        if "starts" not in options.skip:
            result["starts"] = {name: starts(options, name, Path(folder)) for name in options.workloads}
        if "arithmetic" not in options.skip:
            result["arithmetic"] = arithmetic(options, cache)
    result["load"]["after"] = os.getloadavg()[0]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.exists():
        result = joined(json.loads(options.out.read_text()), result)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
