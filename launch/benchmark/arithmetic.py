"""What the compiler counts for a generator update in two modes, beside the limits of arithmetic, and the bytes of what
trains.

Let a and b be the forward floating-point operations of G and D for one batch. A pass that gives the gradient of a
layer's input costs one forward, one that gives the gradient of its weights another. So a generator update that trains
everything costs 3a + 2b, and one that trains the class embedding only 2a + 2b: nothing but input gradients. The
generator's backward pass with its forward, given a gradient of the image, costs 3a against 2a.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gantransfer.training.bound import Bound
from gantransfer.training.draws import draw_update
from gantransfer.training.partition import bytes_of
from gantransfer.training.prepare import Task
from gantransfer.training.recipe import Recipe
from gantransfer.training.state import Held
from gantransfer.training.step import update_generator

MODES = ("full", "class_embedding_only")
# Machine code is not run here, so it need not be good: counts are made before it.
QUICKLY = {"xla_backend_optimization_level": 0}


def compiled(function: Callable, *arguments: Any) -> Any:
    """The compiled program of a function for arguments (arrays or shapes)."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=QUICKLY)


def flops(program: Any) -> float:
    """Floating-point operations of a compiled program, by the compiler's count."""
    return program.cost_analysis()["flops"]


def image_gradient(recipe: Recipe, trained: Any, held: Held, stats: Any, z: Any, c: Any, cotangent: Any) -> Any:
    """Gradient of the trained leaves of G for a given gradient of its images: G's own forward and backward pass."""
    bound = Bound(recipe, held, {})
    _, backward = jax.vjp(
        lambda leaves: bound.generate(bound.params("generator", leaves, {}), stats, None, z, c)[0].images, trained
    )
    return backward(cotangent)


def judge(recipe: Recipe, trained: Any, held: Held, stats: Any, x: Any, c: Any) -> Any:
    """Logits of images."""
    bound = Bound(recipe, held, {})
    return bound.judge(bound.params("discriminator", trained, {}), stats, x, c)[0].logits


def generate(recipe: Recipe, trained: Any, held: Held, stats: Any, z: Any, c: Any) -> Any:
    """Images of latents."""
    bound = Bound(recipe, held, {})
    return bound.generate(bound.params("generator", trained, {}), stats, None, z, c)[0].images


def counts(task: Task) -> dict[str, float]:
    """Counts of one mode's programs, and the bytes of what it trains."""
    recipe, held, state = task.recipe, task.held, task.start
    draw = jax.eval_shape(lambda h: draw_update(recipe, h, jnp.int32(0), None, "generator", 0), held)
    size = (recipe.batch, recipe.networks.resolution, recipe.networks.resolution, recipe.networks.channels)
    image = jax.ShapeDtypeStruct(size, jnp.float32)
    g, d = state.generator, state.discriminator
    backward = compiled(partial(image_gradient, recipe), g.trained, held, g.stats, draw.z, draw.c, image)
    update = compiled(lambda s, h, x: update_generator(recipe, h, frozenset(), s, x), state, held, draw)
    return {
        "generator forward": flops(compiled(partial(generate, recipe), g.trained, held, g.stats, draw.z, draw.c)),
        "discriminator forward": flops(compiled(partial(judge, recipe), d.trained, held, d.stats, image, draw.c)),
        "generator backward": flops(backward),
        "generator update": flops(update),
        "values trained": task.partition.count("generator", True),
        "values": task.partition.count("generator"),
        "gradient bytes": backward.memory_analysis().output_size_in_bytes,
        "optimizer bytes": bytes_of(state.optimizer_g),
        "average bytes": bytes_of(state.ema),
        "temporary bytes": update.memory_analysis().temp_size_in_bytes,
    }


def compare(make: Callable[[str], Task]) -> dict[str, Any]:
    """Counts of both modes, their ratios and the limits.

    Args:
      make: the task of a mode.
    """
    full, light = (counts(make(mode)) for mode in MODES)
    a, b = light["generator forward"], light["discriminator forward"]
    return {
        "counts": dict(zip(MODES, (full, light), strict=True)),
        "backward": {
            "ratio": light["generator backward"] / full["generator backward"],
            "limit": 0.70,
            "arithmetic": 2 / 3,
        },
        "update": {
            "ratio": light["generator update"] / full["generator update"],
            "limit": (2 * a + 2 * b) / (3 * a + 2 * b) + 0.03,
            "arithmetic": (2 * a + 2 * b) / (3 * a + 2 * b),
        },
    }
