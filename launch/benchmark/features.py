"""Times the FID Inception network against torch-fidelity's, in turn, on one core, at equal weights and equal features.

    python launch/benchmark/features.py --peer SITE_PACKAGES --peer-python PYTHON

`--peer` is the folder that `torch_fidelity` lies in; `--peer-python` a Python that has PyTorch. Only the file of the
network is imported there, not the package, which needs torchvision. Both sides load one file of random weights, get the
same uint8 pictures and return the 2048 features; a ratio counts only where these agree to 1e-4 of the largest. At 299
pixels neither side has anything to resize; the other outputs are not computed.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import types
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lines import peak_bytes, serve, take_output, timed

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
EQUAL = 1e-4
GOAL = 1.0
SIZE_PX = 299


def pictures(count: int) -> np.ndarray:
    """Random uint8 pictures, NHWC."""
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), np.uint8)


def our_network(weights: str) -> tuple[Any, dict[str, str]]:
    """A function of pictures, and versions."""
    import jax

    from gantransfer import features

    network = features.load("fid_inception", weights=weights, batch=1024)
    return lambda images: network(images, ("2048",))["2048"], {"jax": jax.__version__}


def peer_network(weights: str, folder: str) -> tuple[Any, dict[str, str]]:
    """A function of pictures, and versions."""
    import torch

    # The package's own __init__ imports torchvision, which the network does not need.
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(Path(folder) / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    torch.set_num_threads(1)
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("inception", ["2048"], weights)
    version = importlib.import_module("torch_fidelity.version").__version__

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())[0].numpy()

    return run, {"torch": torch.__version__, "torch-fidelity": version}


def work(options: argparse.Namespace) -> None:
    """Answers commands of the timing process (`lines.py`)."""
    answers = take_output()
    made = our_network(options.weights) if options.worker == "ours" else peer_network(options.weights, options.peer)
    network, versions = made

    def about() -> dict[str, Any]:
        return {"versions": {"python": platform.python_version(), **versions}}

    def features(count: int) -> dict[str, Any]:
        return {"features": network(pictures(count)).astype(float).tolist()}

    def run(count: int) -> dict[str, Any]:
        images = pictures(count)
        return {"peak_bytes": peak_bytes(), **timed(lambda _: network(images), 1)}

    serve({"about": about, "features": features, "run": run}, answers)


def write_weights(path: Path) -> None:
    """One file of random weights under the published names; statistics of batch norm are not trivial either."""
    from gantransfer import features
    from gantransfer.features import state_dicts
    from gantransfer.pretrained.torch_writer import write_torch

    shapes = features.architectures()["fid_inception"].blueprint.shapes
    state = state_dicts.random_state(shapes, seed=0)
    draw = np.random.Generator(np.random.PCG64(1))
    for key, value in state.items():
        if key.endswith(("running_mean", "bias")):
            state[key] = (0.1 * draw.standard_normal(value.shape)).astype(np.float32)
        elif key.endswith("running_var"):
            state[key] = draw.uniform(0.5, 1.5, value.shape).astype(np.float32)
    # PyTorch asks for these counters, though nothing uses them.
    counters = {key.replace("running_var", "num_batches_tracked"): np.int64(0) for key in state if "running_var" in key}
    write_torch(path, state | {key: np.asarray(value) for key, value in counters.items()})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="folder that torch_fidelity lies in")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core of both sides")
    parser.add_argument("--patience", type=float, default=0, help="minutes to wait for a quiet machine")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, weights: str) -> dict[str, Any]:
    """Starts both sides, compares their features, then times them in turn."""
    from run import WARM_UPS, Worker, processor, ratio, wait_for_quiet

    paths = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    command = [str(HERE / "features.py"), "--weights", weights, "--peer", options.peer, "--worker"]
    ours = {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    workers = {
        "ours": Worker([sys.executable, *command, "ours"], [options.core], ours),
        "peer": Worker([options.peer_python, *command, "peer"], [options.core], {}),
    }
    versions = {side: worker.ask("about")["versions"] for side, worker in workers.items()}
    found = {side: np.array(worker.ask("features", count=2)["features"]) for side, worker in workers.items()}
    difference = float(np.abs(found["ours"] - found["peer"]).max() / np.abs(found["peer"]).max())
    for worker in workers.values():
        for _ in range(WARM_UPS):
            worker.ask("run", count=options.batch)
    wait_for_quiet(options.patience)
    load, rounds = os.getloadavg()[0], {side: [] for side in workers}
    for _ in range(options.rounds):
        for side, worker in workers.items():
            rounds[side].append(worker.ask("run", count=options.batch))
    for worker in workers.values():
        worker.close()
    return {
        "processor": processor(),
        "versions": versions,
        "batch": options.batch,
        "rounds": options.rounds,
        "load": {"before": load, "after": os.getloadavg()[0]},
        "relative_difference": difference,
        "equal": difference <= EQUAL,
        "goal": GOAL,
        "ratio": {clock: ratio(rounds["peer"], rounds["ours"], clock) for clock in ("wall", "cpu")},
        "images_per_second": {
            side: {clock: options.batch / median(r[clock] for r in rounds[side]) for clock in ("wall", "cpu")}
            for side in workers
        },
        "peak_bytes": {side: rounds[side][-1]["peak_bytes"] for side in workers},
    }


def main() -> None:
    """Measures and prints the result as JSON."""
    options = parse()
    if options.worker:
        work(options)
        return
    sys.path.insert(0, str(CHECKOUT))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "fid_inception.pth"
        write_weights(weights)
        result = measure(options, str(weights))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
