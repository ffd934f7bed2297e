"""Our side of the StyleGAN2 benchmark: one phase of training, built from the library's networks, losses and penalties.

The main phases are the library's own step, as a user runs it. R1 and path length are timed by themselves, as the
released code runs them: each a gradient of its penalty and an update of Adam.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
from lines import peak_bytes, serve, since_start, take_output, timed  # noqa: E402
from workloads import (  # noqa: E402
    EMA,
    EPS,
    PATH_DECAY,
    PATH_WEIGHT,
    R1_GAMMA,
    STYLE_BETA2,
    STYLE_RATE,
    WORKLOADS,
    StyleWorkload,
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from gantransfer.host_memory import keep_freed_memory  # noqa: E402

# As the command line does, before JAX begins.
keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
import published  # noqa: E402
from biggan_jax import ITERATIONS, LOSSES, about, make_images, random_variables  # noqa: E402

from gantransfer import config as fields  # noqa: E402
from gantransfer.objectives.penalties import path_lengths, r1_penalty  # noqa: E402
from gantransfer.pretrained.fresh import build_networks, variable_shapes  # noqa: E402
from gantransfer.pretrained.layouts.stylegan2 import ADA  # noqa: E402
from gantransfer.pretrained.source import Source, SourceInfo  # noqa: E402
from gantransfer.training.draws import Draw  # noqa: E402
from gantransfer.training.prepare import Task, prepare  # noqa: E402
from gantransfer.training.step import iterate, step  # noqa: E402

State = dict[str, Any]


def make_source(workload: StyleWorkload) -> Source:
    """A source with random weights; noise has no strength, so that both sides make the same pictures."""
    options = {"resolution": workload.resolution, "z_dim": workload.latent, "w_dim": workload.latent}
    options |= {"channel_base": workload.channel_base, "channel_max": workload.channel_max}
    options |= {"mapping_layers": workload.mapping_layers, "conv_clamp": 0.0}
    networks, options = build_networks("stylegan2", options, ("any",))
    generator, discriminator = (random_variables(tree, i) for i, tree in enumerate(variable_shapes(networks)))
    # The release divides weights by the root of their inputs while it runs: its parameters are of unit deviation.
    unit = lambda path, leaf: _unit(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    generator, discriminator = (jax.tree.map_with_path(unit, tree) for tree in (generator, discriminator))
    names = (networks.resolution, networks.channels, networks.z_dim)
    info = SourceInfo("random", "stylegan2", options, *names, ("any",))
    return Source(info, networks, generator, generator, discriminator)


def _unit(path: str, leaf: np.ndarray) -> np.ndarray:
    if path.endswith("kernel"):
        leaf = leaf * np.prod(leaf.shape[:-1]) ** 0.5
        return (leaf / 0.01 if "mapper" in path else leaf).astype(np.float32)
    if path.endswith("noise_strength"):
        return np.zeros_like(leaf)
    if path.endswith("bias"):
        # Of the styles the bias is about 1, of all else about 0.
        return (leaf + 1 if "affine" in path or "style" in path else leaf).astype(np.float32)
    return leaf


def make_task(workload: StyleWorkload, form: str) -> Task:
    """The main phases, through the library's preparation."""
    config = fields.defaults()
    settings = {"batch": workload.batch, "mode": "full", "objective.loss": "non_saturating"}
    settings |= {"compute.convolution": form, "optimizer.lr_g": STYLE_RATE, "optimizer.lr_d": STYLE_RATE}
    settings |= {"optimizer.beta2": STYLE_BETA2, "optimizer.eps": EPS, "ema.decay": EMA, "ema.rampup": None}
    settings["devices.count"] = 1
    for name, value in settings.items():
        fields.set_field(config, name, value)
    return prepare(config, make_source(workload), make_images(workload))


class Worker:
    """One phase, compiled once, and the answers to commands about it."""

    def __init__(self, workload: StyleWorkload, form: str):
        self.workload, self.form = workload, form
        begun = time.perf_counter()
        self.task = make_task(workload, form)
        self.adam = optax.scale_by_rms(STYLE_BETA2, EPS, eps_in_sqrt=False, bias_correction=True)
        phases = {"main": self.main, "r1": self.r1, "path length": self.path_length}
        self.phase: Callable = phases[workload.trains]
        self.state = self.start()
        self.draws = jax.tree.map(jnp.asarray, self.draw(np.random.default_rng(0)))
        self.seconds = {"import": begun - STARTED, "prepare": time.perf_counter() - begun}

    def start(self) -> Any:
        """The state at the first step."""
        source, trains = self.task.source, self.workload.trains
        if trains == "main":
            return self.task.initial_state()
        network = source.discriminator if trains == "r1" else source.generator
        network = jax.tree.map(jnp.array, dict(network))
        state = {"network": network, "adam": self.adam.init(network["params"]), "mean": jnp.float32(0)}
        return state

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """What one iteration draws."""
        w = self.workload
        shape = (w.batch, w.resolution, w.resolution, 3)
        return {
            "z_d": rng.standard_normal((w.batch, w.latent), np.float32),
            "z_g": rng.standard_normal((w.batch, w.latent), np.float32),
            "reals": rng.uniform(-1, 1, shape).astype(np.float32),
            "directions": rng.standard_normal(shape, np.float32),
        }

    def main(self, state: Any, held: Any, draws: Any) -> tuple[Any, dict[str, Any]]:
        """An update of each network on given draws."""
        n = self.workload.batch
        none, keys = jnp.zeros(n, jnp.int32), jax.random.split(jax.random.key(0), n)
        of_d = jax.tree.map(lambda a: a[None], Draw(draws["reals"], none, draws["z_d"], none, keys))
        recipe = self.task.recipe
        state, metrics = iterate(recipe, frozenset(), state, held, of_d, Draw(None, None, draws["z_g"], none, keys))
        return state, {name: metrics[ours] for name, ours in LOSSES.items()}

    def _update(self, state: State, gradient: Any, **changed: Any) -> State:
        update, adam = self.adam.update(gradient, state["adam"])
        params = jax.tree.map(lambda p, u: p - STYLE_RATE * u, state["network"]["params"], update)
        return state | {"network": state["network"] | {"params": params}, "adam": adam} | changed

    def r1(self, state: State, held: Any, draws: Any) -> tuple[State, dict[str, Any]]:
        """The discriminator's slope at the reals, and its update."""
        judge, rest = self.task.recipe.networks.discriminator, dict(state["network"])
        params, labels = rest.pop("params"), jnp.zeros(self.workload.batch, jnp.int32)

        def penalty(params: Any) -> Any:
            logits = lambda x: judge.apply({"params": params, **rest}, x, labels, train=True).logits
            return R1_GAMMA * r1_penalty(logits, draws["reals"])

        loss, gradient = jax.value_and_grad(penalty)(params)
        return self._update(state, gradient), {"r1": loss}

    def path_length(self, state: State, held: Any, draws: Any) -> tuple[State, dict[str, Any]]:
        """The generator's slope along random directions, and its update."""
        generator, rest = self.task.recipe.networks.generator, dict(state["network"])
        params, labels = rest.pop("params"), jnp.zeros(self.workload.batch, jnp.int32)
        noise = {"noise": jax.random.key(0)}

        def penalty(params: Any) -> Any:
            given = {"params": params, **rest}
            mapping = partial(generator.apply, given, mutable=["averages"], method="mapping")
            ws, moved = mapping(draws["z_g"], labels, train=True)
            draw = lambda ws: generator.apply(given, ws, train=True, rngs=noise, method="synthesis").images
            lengths = path_lengths(draw, ws, draws["directions"])
            mean = state["mean"] + PATH_DECAY * (lengths.mean() - state["mean"])
            return PATH_WEIGHT * jnp.mean((lengths - mean) ** 2), (mean, moved)

        (loss, (mean, moved)), gradient = jax.value_and_grad(penalty, has_aux=True)(params)
        state = self._update(state, gradient, mean=mean)
        return state | {"network": state["network"] | moved}, {"path length": loss}

    def _program(self) -> tuple[Callable, tuple]:
        if self.workload.trains == "main":
            return partial(step, self.task.recipe, frozenset()), (self.task.held,)
        return lambda state, draws: self.phase(state, None, draws)[0], (self.draws,)

    def first(self) -> dict[str, Any]:
        """Compiles and runs the first step; returns seconds of the parts, and what was counted."""
        begun = time.perf_counter()
        function, self.given = self._program()
        lowered = jax.jit(function, donate_argnums=0).lower(self.state, *self.given)
        self.seconds["trace and lower"] = time.perf_counter() - begun
        begun = time.perf_counter()
        self.program = lowered.compile()
        self.seconds["compile"] = time.perf_counter() - begun
        begun = time.perf_counter()
        self._steps(1)
        self.seconds["first step"] = time.perf_counter() - begun
        return {
            "from start": since_start(),
            "seconds": self.seconds,
            "flops": self.program.cost_analysis()["flops"],
            "temporary bytes": self.program.memory_analysis().temp_size_in_bytes,
            "peak bytes": peak_bytes(),
        }

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.state = self.program(self.state, *self.given)
        jax.block_until_ready(self.state)

    def run(self, steps: int) -> dict[str, Any]:
        """Runs steps; returns seconds per step."""
        return timed(self._steps, steps)

    def losses(self, path: str) -> dict[str, Any]:
        """Writes weights and draws to an npz in the other side's layout; returns the losses of iterations on them.

        Noise has no strength in the first iteration and its own draws on each side from then on, so only the
        discriminator's phase, which has none, goes on to a second.
        """
        weights, rng = published.weights(self.task.source, ADA), np.random.default_rng(1)
        every = [self.draw(rng) for _ in range(ITERATIONS if self.workload.trains == "r1" else 1)]
        np.savez(path, **weights, **{name: np.stack([one[name] for one in every]) for name in every[0]})
        state, losses, program = self.start(), [], jax.jit(self.phase)
        for given in every:
            state, found = program(state, self.task.held, given)
            losses.append({name: float(value) for name, value in found.items()})
        return {"losses": losses}


def main() -> None:
    """Builds the phase that the command line names, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--form", choices=("rewritten", "plain"), default="rewritten")
    given, answers = parser.parse_args(), take_output()
    worker = Worker(WORKLOADS[given.workload], given.form)
    serve({"first": worker.first, "run": worker.run, "losses": worker.losses, "about": about}, answers)


if __name__ == "__main__":
    main()
