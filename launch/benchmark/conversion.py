"""Measures converting, loading and first sampling of a checkpoint of BigGAN-128's size, each in a process of its own.

The file is made first: a generator at the published width (96) with random weights, about 300 MB, as BigGAN-PyTorch
saves it. Memory is the largest resident set of the process, file pages that it has mapped included.

  python launch/benchmark/conversion.py --folder scratch
  python launch/benchmark/conversion.py --width 16 --folder scratch        # a quick look

Prints one JSON object: file_mb; convert_s, convert_peak_mb, peak_over_file; load_s; first_sample_s (16 images after
`load`, with what compilation the cache has), again_s (16 more).
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

FROM_A_NOTEBOOK = """
import json, sys, time
start = time.perf_counter()
import gantransfer
from gantransfer.pretrained.load import load
imported = time.perf_counter()
source = load(sys.argv[1])
loaded = time.perf_counter()
source.sample(16, seed=0)
sampled = time.perf_counter()
source.sample(16, seed=1)
print(json.dumps({
    "import_s": round(imported - start, 2), "load_s": round(loaded - imported, 2),
    "first_sample_s": round(sampled - loaded, 2), "again_s": round(time.perf_counter() - sampled, 2),
}))
"""


def write_checkpoint(file: Path, width: int) -> None:
    """Writes the state dict of a generator of 128 px with random weights."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    from gantransfer.pretrained.fresh import build_networks, variable_shapes
    from gantransfer.pretrained.layouts import get_layout
    from gantransfer.pretrained.layouts.layout import to_theirs
    from gantransfer.pretrained.torch_writer import write_torch

    layout = get_layout("biggan-pytorch")
    given = {"resolution": 128, "width": width, "z_dim": 120, "shared_dim": 128, "attention_g": "64"}
    networks, options = build_networks("biggan", given, [f"class {i}" for i in range(1000)])
    draw, ours = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(dict(variable_shapes(networks)[0]), sep="/").items():
        ours[path] = np.ones(leaf.shape, np.float32)
        if not path.endswith(("/var", "/sigma", "/gain")):
            ours[path] = draw.standard_normal(leaf.shape, np.float32) / float(max(1, np.prod(leaf.shape[:-1]))) ** 0.5
    write_torch(file, to_theirs(layout.leaves("generator", options), ours))


def run(*command: str) -> tuple[str, float, float]:
    """Runs a process; returns what it prints, its seconds, and the largest resident set of all so far in MB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return done.stdout, time.perf_counter() - start, peak


def main() -> None:
    """Measures, and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", required=True, type=Path, help="for the files, about 1 GB; the parts are deleted")
    parser.add_argument("--width", type=int, default=96, help="of the generator, in channels")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file, out = options.folder / "G_ema.pth", options.folder / "converted"
    shutil.rmtree(out, ignore_errors=True)
    write_checkpoint(file, options.width)
    _, convert_s, peak = run("-m", "gantransfer", "convert", str(file), str(out))
    printed, _, _ = run("-c", FROM_A_NOTEBOOK, str(out))
    file_mb = file.stat().st_size / 1e6
    result = {
        "file_mb": round(file_mb, 1),
        "convert_s": round(convert_s, 1),
        "convert_peak_mb": round(peak * 1.048576, 1),
        "peak_over_file": round(peak * 1.048576 / file_mb, 2),
    }
    print(json.dumps(result | json.loads(printed)))
    file.unlink()
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
