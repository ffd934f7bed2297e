"""The battery's table: one entry for each registered method. A method that is not here fails the battery."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gantransfer.methods.hooks import Players
from gantransfer.models.family import ROLES, Role
from gantransfer.objectives.losses import class_cross_entropy
from gantransfer.objectives.penalties import orthogonal, r1_penalty
from gantransfer.training.bound import Bound
from gantransfer.training.prepare import Task
from gantransfer.training.state import GanState
from tests.contract import rig

Observable = Callable[[Task, GanState, GanState], float]


@dataclass(frozen=True)
class Case:
    """What the battery knows of one method.

    Attributes:
      line: switched on, strong enough to be seen after a few steps.
      observable: `(task, state at the start, state after the run) -> number`.
      direction: where the observable goes when the method is on, against the same run without it.
      acts_on: the networks whose updates it changes by itself; the other's are left as they are.
      neutral: settings at which it is off; the step's program must be the plain one's. None: it has no such settings.
      wrong: settings out of range, with what the refusal must name.
      programs: how many variants of the step a run compiles.
    """

    line: str
    observable: Observable
    direction: Literal["lower", "higher"]
    acts_on: tuple[Role, ...]
    neutral: str | None = None
    wrong: dict[str, str] = field(default_factory=dict)
    programs: int = 1


def reals(task: Task) -> tuple[Array, Array]:
    """The set's images in [-1, 1] and labels."""
    pixels, labels = task.images.arrays()
    return jnp.asarray(pixels, jnp.float32) / 127.5 - 1, jnp.asarray(labels)


@partial(jax.jit, static_argnums=0)
def _slope(discriminator: nn.Module, params: dict, x: Array, c: Array) -> Array:
    return r1_penalty(lambda image: discriminator.apply({"params": params}, image, c).logits, x)


def slope(task: Task, start: GanState, end: GanState) -> float:
    """Half the squared slope of the discriminator at the reals."""
    return float(_slope(task.networks.discriminator, rig.params(task, end, "discriminator"), *reals(task)))


@partial(jax.jit, static_argnums=0)
def _class_entropy(discriminator: nn.Module, params: dict, x: Array, c: Array) -> Array:
    return class_cross_entropy(discriminator.apply({"params": params}, x, c).classes, c)


def class_entropy(task: Task, start: GanState, end: GanState) -> float:
    """Cross-entropy of the class head on the reals."""
    return float(_class_entropy(task.networks.discriminator, rig.params(task, end, "discriminator"), *reals(task)))


def overlap(task: Task, start: GanState, end: GanState) -> float:
    """What orthogonal regularisation lowers, summed over both networks."""
    return sum(
        float(orthogonal({path: leaf for path, leaf in rig.named(getattr(end, role).trained).items() if leaf.ndim > 1}))
        for role in ROLES
    )


def weight(task: Task, start: GanState, end: GanState) -> float:
    """Squared norm of all trained weights of both networks."""
    return sum(float((leaf**2).sum()) for role in ROLES for leaf in rig.named(getattr(end, role).trained).values())


def moved(role: Role) -> Observable:
    """Number of leaves of a network that are not, byte for byte, what they were."""

    def count(task: Task, start: GanState, end: GanState) -> float:
        before, after = (rig.named(rig.params(task, state, role)) for state in (start, end))
        return sum(before[path].tobytes() != after[path].tobytes() for path in before)

    return count


def spread_of_views(task: Task, start: GanState, end: GanState) -> float:
    """How much equal images differ after the views of a run."""
    x, c = reals(task)
    keys = jax.random.split(jax.random.key(0), len(x))
    nobody = Players(G=lambda z, c, want=(): None, D=lambda x, c, want=(): None)
    bound = Bound(task.recipe, task.held, end.methods)
    seen, _ = bound.view(keys, jnp.broadcast_to(x[:1], x.shape), c, "real", nobody, end.methods)
    return float(jnp.std(seen, axis=0).mean())


def size_of_latents(task: Task, start: GanState, end: GanState) -> float:
    """Mean square of what the generator is given for standard normal draws."""
    z = jax.random.normal(jax.random.key(0), (1000, task.networks.z_dim))
    nobody = Players(G=lambda z, c, want=(): None, D=lambda x, c, want=(): None)
    bound = Bound(task.recipe, task.held, end.methods)
    keys = jax.random.split(jax.random.key(1), len(z))
    return float(jnp.mean(bound.latents(keys, z, jnp.zeros(1000, jnp.int32), nobody, end.methods)[0] ** 2))


def weights_beside(task: Task, start: GanState, end: GanState) -> float:
    """Largest difference between the weights that the networks use and those that they have."""
    bound = Bound(task.recipe, task.held, end.methods)
    return max(
        rig.distance(bound.params(role, getattr(end, role).trained, end.methods), rig.params(task, end, role))
        for role in ROLES
    )


def carried(task: Task, start: GanState, end: GanState) -> float:
    """How far the carried numbers of all methods have moved."""
    return sum(float(np.abs(leaf).sum()) for state in end.methods.values() for leaf in jax.tree.leaves(state.carried))


BOTH = ROLES
CASES: dict[str, Case] = {
    "r1": Case(
        line="r1(gamma=300.0, every=2)",
        observable=slope,
        direction="lower",
        acts_on=("discriminator",),
        neutral="r1(gamma=0.0)",
        wrong={"r1(gamma=-1.0)": "r1.gamma", "r1(point='fake')": "r1.point", "r1(every=0)": "r1.every"},
        programs=2,
    ),
    "differentiable_augment": Case(
        line="differentiable_augment(policy='brightness,translation', brightness=2.0)",
        observable=spread_of_views,
        direction="higher",
        acts_on=BOTH,
        neutral="differentiable_augment(policy='')",
        wrong={
            "differentiable_augment(policy='blur')": "differentiable_augment.policy",
            "differentiable_augment(cutout_ratio=2.0)": "differentiable_augment.cutout_ratio",
            "differentiable_augment(fill='white')": "differentiable_augment.fill",
        },
    ),
    "auxiliary_classifier": Case(
        line="auxiliary_classifier(weight_d=3.0, weight_g=3.0)",
        observable=class_entropy,
        direction="lower",
        acts_on=BOTH,
        neutral="auxiliary_classifier(weight_d=0.0, weight_g=0.0)",
        wrong={"auxiliary_classifier(weight_d=-1.0)": "auxiliary_classifier.weight_d"},
    ),
    "freeze_discriminator": Case(
        line="freeze_discriminator(blocks=1)",
        observable=moved("discriminator"),
        direction="lower",
        acts_on=("discriminator",),
        neutral="freeze_discriminator(blocks=0)",
        wrong={
            "freeze_discriminator()": "freeze_discriminator.blocks",
            "freeze_discriminator(blocks=9)": "freeze_discriminator.blocks",
            "freeze_discriminator(resolution=7)": "freeze_discriminator.resolution",
        },
    ),
    "freeze_generator": Case(
        line="freeze_generator(blocks=1)",
        observable=moved("generator"),
        direction="lower",
        acts_on=("generator",),
        neutral="freeze_generator(blocks=0)",
        wrong={
            "freeze_generator(blocks=1, resolution=8)": "freeze_generator.blocks",
            "freeze_generator(blocks=9)": "freeze_generator.blocks",
            "freeze_generator(resolution=7)": "freeze_generator.resolution",
        },
    ),
    "orthogonal_regularization": Case(
        line="orthogonal_regularization(strength_g=10.0, strength_d=10.0)",
        observable=overlap,
        direction="lower",
        acts_on=BOTH,
        neutral="orthogonal_regularization(strength_g=0.0, strength_d=0.0)",
        wrong={"orthogonal_regularization(strength_d=-1.0)": "orthogonal_regularization.strength_d"},
    ),
    "weight_decay": Case(
        line="weight_decay(strength_g=10.0, strength_d=10.0)",
        observable=weight,
        direction="lower",
        acts_on=BOTH,
        neutral="weight_decay(strength_g=0.0, strength_d=0.0)",
        wrong={"weight_decay(strength_g=-1.0)": "weight_decay.strength_g"},
    ),
    "fade_in": Case(
        line="fade_in(kimg=0.016)",
        observable=carried,
        direction="higher",
        acts_on=BOTH,
        wrong={"fade_in(kimg=0.0)": "fade_in.kimg"},
    ),
    "toy_lora": Case("toy_lora(scale=3.0)", weights_beside, "higher", BOTH),
    "toy_miner": Case("toy_miner(scale=0.25)", size_of_latents, "lower", BOTH),
    "toy_controller": Case("toy_controller(speed=0.5)", carried, "higher", BOTH),
}
# Every method of the table that may stand in one run, in an order in which a config would have them.
EVERYTHING = tuple(case.line for case in CASES.values())
