"""Our side of the benchmark: builds a step through the library's own preparation and answers the commands of `run.py`.

The step that is timed is the one that a user runs: `gantransfer.training.prepare` makes the task, the set of images
lives on the device, and draws, gathering, metrics, optimizer and running average are inside the program.
"""

import argparse
import os
import time
from functools import partial
from typing import Any

STARTED = time.perf_counter()

import arithmetic  # noqa: E402
import numpy as np  # noqa: E402
from lines import peak_bytes, serve, since_start, take_output, timed  # noqa: E402
from workloads import BETA2, EMA, EPS, LR_D, LR_G, NORM_EPS, SPECTRAL_EPS, WORKLOADS, Workload  # noqa: E402

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from gantransfer.host_memory import keep_freed_memory  # noqa: E402

# As the command line does, before JAX begins.
keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import published  # noqa: E402

from gantransfer import config as fields  # noqa: E402
from gantransfer.data.image_set import ArrayPixels, ImageSet  # noqa: E402
from gantransfer.pretrained.fresh import build_networks, variable_shapes  # noqa: E402
from gantransfer.pretrained.layouts.biggan import PYTORCH  # noqa: E402
from gantransfer.pretrained.source import Source, SourceInfo  # noqa: E402
from gantransfer.training.draws import Draw  # noqa: E402
from gantransfer.training.prepare import Task, prepare  # noqa: E402
from gantransfer.training.step import iterate, step  # noqa: E402

IMAGES, ITERATIONS = 256, 2
LOSSES = {
    "real": "loss/discriminator_real",
    "fake": "loss/discriminator_fake",
    "generator": "loss/generator_adversarial",
}


def about() -> dict[str, Any]:
    """Versions and device."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "device": device.device_kind,
        "platform": device.platform,
        "count": jax.device_count(),
    }


def options_of(workload: Workload) -> dict[str, Any]:
    """Architecture options of a workload."""
    return {
        "resolution": workload.resolution,
        "width": workload.width,
        "z_dim": workload.z_dim,
        "shared_dim": 128,
        "attention_g": workload.attention,
        "attention_d": workload.attention,
        "spectral_eps": SPECTRAL_EPS,
        "norm_eps": NORM_EPS,
        "out_norm_eps": NORM_EPS,
    }


def random_variables(shapes: Any, seed: int) -> Any:
    """Values for a tree of shapes at which every part of a network matters: no gain, share or statistic is at 0 or 1 by
    accident.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        name, shape = path[-1].key, leaf.shape
        normal = lambda deviation, mean=0.0: (mean + deviation * rng.standard_normal(shape)).astype(np.float32)
        if name == "kernel":
            return normal(np.prod(shape[:-1]) ** -0.5)
        if name in ("sigma", "projection_scale"):
            return np.ones(shape, np.float32)
        if name == "var":
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return normal(*{"gamma": (0.1, 0.5), "gain": (0.1, 1.0), "bias": (0.1,), "mean": (0.1,)}.get(name, (1.0,)))

    return jax.tree.map_with_path(draw, shapes)


def make_source(workload: Workload, seed: int = 0) -> Source:
    """A source with random weights."""
    names = tuple(f"class {i}" for i in range(workload.classes))
    networks, options = build_networks("biggan", options_of(workload), names)
    generator, discriminator = (random_variables(tree, seed + i) for i, tree in enumerate(variable_shapes(networks)))
    info = SourceInfo("random", "biggan", options, networks.resolution, networks.channels, networks.z_dim, names)
    return Source(info, networks, generator, generator, discriminator)


def make_images(workload: Workload, seed: int = 0) -> ImageSet:
    """A set of noise images in memory."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (IMAGES, workload.resolution, workload.resolution, 3), np.uint8)
    labels = rng.integers(0, workload.classes, IMAGES).astype(np.int32)
    names = tuple(f"class {i}" for i in range(workload.classes))
    files, rows = tuple(map(str, range(IMAGES))), np.arange(IMAGES, dtype=np.int32)
    return ImageSet(
        "noise", workload.resolution, 3, names, labels, files, ArrayPixels(pixels), rows, "by number", decoded=pixels
    )


def make_task(workload: Workload, form: str, mode: str | None = None) -> Task:
    """The run of a workload, through the library's preparation.

    Args:
      workload: what to run.
      form: "rewritten" or "plain" convolutions.
      mode: a mode of the library instead of what the workload trains.
    """
    config = fields.defaults()
    settings = {
        "batch": workload.batch,
        "mode": mode or {"full": "full", "embedding": "custom"}[workload.trains],
        "objective.loss": "hinge",
        "compute.convolution": form,
        "optimizer.lr_g": LR_G,
        "optimizer.lr_d": LR_D,
        "optimizer.lr_class_embedding": LR_G,
        "optimizer.beta2": BETA2,
        "optimizer.eps": EPS,
        "ema.decay": EMA,
        "ema.rampup": None,
    }
    if settings["mode"] == "custom":
        settings["transfer.train_g"] = ("class_embedding",)
    for name, value in settings.items():
        fields.set_field(config, name, value)
    return prepare(config, make_source(workload), make_images(workload))


class Worker:
    """One step, compiled once, and the answers to commands about it."""

    def __init__(self, workload: Workload, form: str):
        self.workload, self.form = workload, form
        begun = time.perf_counter()
        self.task = make_task(workload, form)
        self.state = self.task.initial_state()
        self.seconds = {"import": begun - STARTED, "prepare": time.perf_counter() - begun}

    def first(self) -> dict[str, Any]:
        """Compiles and runs the first step; returns seconds from the start of the process, the parts, and what was
        counted.
        """
        begun = time.perf_counter()
        jitted = jax.jit(partial(step, self.task.recipe, frozenset()), donate_argnums=0)
        lowered = jitted.lower(self.state, self.task.held)
        self.seconds["trace and lower"] = time.perf_counter() - begun
        begun = time.perf_counter()
        self.program = lowered.compile()
        self.seconds["compile"] = time.perf_counter() - begun
        begun = time.perf_counter()
        self._steps(1)
        self.seconds["first step"] = time.perf_counter() - begun
        memory = self.program.memory_analysis()
        return {
            "from start": since_start(),
            "seconds": self.seconds,
            "flops": self.program.cost_analysis()["flops"],
            "temporary bytes": memory.temp_size_in_bytes,
            "peak bytes": peak_bytes(),
        }

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.state = self.program(self.state, self.task.held)
        jax.block_until_ready(self.state)

    def run(self, steps: int) -> dict[str, Any]:
        """Runs steps; returns seconds per step."""
        return timed(self._steps, steps)

    def arithmetic(self) -> dict[str, Any]:
        """Counts of the generator's update in two modes beside the limits; see `arithmetic`."""
        return arithmetic.compare(lambda mode: make_task(self.workload, self.form, mode))

    def losses(self, path: str) -> dict[str, Any]:
        """Writes weights and draws to an npz in the other side's layout, and returns the losses of iterations on those
        draws.

        Starts from the weights that the task started from, so it may be asked at any time.
        """
        source, recipe, rng = self.task.source, self.task.recipe, np.random.default_rng(1)
        shape = (ITERATIONS, self.workload.batch)
        draws = {
            "z_d": rng.standard_normal((*shape, self.workload.latent), np.float32),
            "z_g": rng.standard_normal((*shape, self.workload.latent), np.float32),
            "c_d": rng.integers(0, self.workload.classes, shape),
            "c_g": rng.integers(0, self.workload.classes, shape),
            "reals": rng.uniform(-1, 1, (*shape, self.workload.resolution, self.workload.resolution, 3)).astype(
                np.float32
            ),
            "real_labels": rng.integers(0, self.workload.classes, shape),
        }
        np.savez(path, **published.weights(source, PYTORCH), **draws)
        program = jax.jit(partial(iterate, recipe, frozenset()))
        state, losses = self.task.initial_state(), []
        keys = jax.random.split(jax.random.key(0), self.workload.batch)
        for i in range(ITERATIONS):
            given = {name: jnp.asarray(values[i]) for name, values in draws.items()}
            of_d = Draw(given["reals"], given["real_labels"], given["z_d"], given["c_d"], keys)
            of_d = jax.tree.map(lambda a: a[None], of_d)
            state, metrics = program(state, self.task.held, of_d, Draw(None, None, given["z_g"], given["c_g"], keys))
            losses.append({name: float(metrics[ours]) for name, ours in LOSSES.items() if ours in metrics})
        return {"losses": losses}


def main() -> None:
    """Builds the step that the command line names, says that it is there, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--form", choices=("rewritten", "plain"), default="rewritten")
    given, answers = parser.parse_args(), take_output()
    worker = Worker(WORKLOADS[given.workload], given.form)
    serve(
        {
            "first": worker.first,
            "run": worker.run,
            "losses": worker.losses,
            "about": about,
            "arithmetic": worker.arithmetic,
        },
        answers,
    )


if __name__ == "__main__":
    main()
