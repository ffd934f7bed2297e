"""Methods for tests only: they use the hooks that no shipped method uses, so that all seven are known to work.

`toy_lora` makes leaves that both optimizers move and adds them to kernels; `toy_miner` moves latents by a leaf that the
generator's loss trains; `toy_controller` carries a number that follows the sign of the logits of reals and brightens
images by it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from gantransfer.methods.hooks import Keys, Method, MethodState, Observed, Players, Side, Tree
from gantransfer.models.family import ROLES, Labels, Role

# Kept out of the registry except while the battery runs, so that no other test sees them.
TOYS: dict[str, type[Method]] = {}


def toy(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: `register` into `TOYS`."""

    def add(method: type[Method]) -> type[Method]:
        method.name = name
        TOYS[name] = method
        return method

    return add


@toy("toy_lora")
@dataclass(frozen=True)
class ToyLora(Method):
    """Adds `scale * B A` of rank one to the first 4-D kernel of each network; B starts at 0."""

    scale: float = 1.0

    def start(self, key: Any, params: dict[Role, Tree], players: Players, reals: Array, labels: Labels) -> MethodState:
        factors = {}
        for role in ROLES:
            kernel = flatten_dict(params[role])[first_kernel(params[role])]
            a = jax.random.normal(jax.random.fold_in(key, len(factors)), (1, kernel.shape[-1]))
            factors[role] = {"a": a, "b": jnp.zeros((kernel.size // kernel.shape[-1], 1))}
        return MethodState(**factors)

    def weights(self, role: Role, params: Tree, state: MethodState) -> Tree:
        factors, flat = getattr(state, role), flatten_dict(params)
        path = first_kernel(params)
        change = self.scale * (factors["b"] @ factors["a"])
        return unflatten_dict(flat | {path: flat[path] + change.reshape(flat[path].shape)})


def first_kernel(params: Tree) -> tuple[str, ...]:
    """Path of the first convolution of a network, in the order of the alphabet."""
    return min(path for path, leaf in flatten_dict(params).items() if leaf.ndim == 4)


@toy("toy_miner")
@dataclass(frozen=True)
class ToyMiner(Method):
    """Scales and shifts latents; the shift is learned by the generator's loss."""

    scale: float = 0.5

    def start(self, key: Any, params: dict[Role, Tree], players: Players, reals: Array, labels: Labels) -> MethodState:
        return MethodState(generator={"shift": jnp.zeros(())})

    def latents(self, keys: Keys, z: Array, c: Labels, players: Players, state: MethodState) -> tuple[Array, Labels]:
        return self.scale * z + state.generator["shift"], c


@toy("toy_controller")
@dataclass(frozen=True)
class ToyController(Method):
    """Brightens what the discriminator sees by a number that follows the sign of its logits of reals."""

    speed: float = 0.25

    claims: ClassVar[tuple[str, ...]] = ("overfitting controller",)

    def start(self, key: Any, params: dict[Role, Tree], players: Players, reals: Array, labels: Labels) -> MethodState:
        return MethodState(carried={"p": jnp.zeros(())})

    def view(
        self, keys: Keys, x: Array, c: Labels, side: Side, players: Players, state: MethodState
    ) -> tuple[Array, Labels]:
        return x + state.carried["p"], c

    def update(self, state: MethodState, observed: Observed) -> Tree:
        return {"p": state.carried["p"] + self.speed * jnp.sign(observed.real.mean())}


@toy("toy_rival")
@dataclass(frozen=True)
class ToyRival(Method):
    """Claims what the controller claims, and does nothing else."""

    claims: ClassVar[tuple[str, ...]] = ("overfitting controller",)

    def view(
        self, keys: Keys, x: Array, c: Labels, side: Side, players: Players, state: MethodState
    ) -> tuple[Array, Labels]:
        return x, c
