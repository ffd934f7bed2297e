"""Both networks with their weights bound, as an update and its methods see them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from gantransfer.methods.hooks import MethodState, Play, Players, Side
from gantransfer.models.family import Judgement, Labels, Picture, Role
from gantransfer.training.draws import fold
from gantransfer.training.partition import merge, pick
from gantransfer.training.recipe import Recipe
from gantransfer.training.state import Held

Tree = Any


def call(
    module: nn.Module, params: Tree, frozen_stats: Tree, stats: Tree, *args: Any, **kwargs: Any
) -> tuple[Any, Tree]:
    """Runs a network with its statistics; returns its output and the moving statistics after the pass."""
    variables = {
        "params": params,
        **{name: merge(frozen_stats.get(name, {}), stats.get(name, {})) for name in sorted({*frozen_stats, *stats})},
    }
    moving = [name for name, tree in stats.items() if tree]
    if not moving:
        return module.apply(variables, *args, **kwargs), stats
    out, after = module.apply(variables, *args, mutable=moving, **kwargs)
    return out, {name: pick(after[name], tree) if tree else tree for name, tree in stats.items()}


@dataclass(frozen=True)
class Bound:
    """Both networks with everything that one update holds constant; trained leaves and statistics come with each
    call.
    """

    recipe: Recipe
    held: Held
    methods: Mapping[str, MethodState]

    def params(self, role: Role, trained: Tree, methods: Mapping[str, MethodState]) -> Tree:
        """The weights that the network really uses: trained and frozen leaves, passed through the `weights` hooks."""
        params = merge(trained, getattr(self.held, role).get("params", {}))
        for method in self.recipe.with_hook("weights"):
            params = method.weights(role, params, methods.get(method.name, MethodState()))
        return params

    def _frozen(self, role: Role) -> Tree:
        return {name: tree for name, tree in getattr(self.held, role).items() if name != "params"}

    def generate(
        self, params: Tree, stats: Tree, keys: Any, z: Array, c: Labels, want: tuple[str, ...] = ()
    ) -> tuple[Picture, Tree]:
        """Generator pass in training mode; its random streams begin at the key of the first image."""
        networks = self.recipe.networks
        train = self.recipe.batch_norm != "stored"
        streams = {name: fold(keys[:1], f"generator/{name}")[0] for name in networks.streams}
        held = self._frozen("generator")
        return call(networks.generator, params, held, stats, z, c, train=train, want=want, rngs=streams)

    def judge(
        self, params: Tree, stats: Tree, x: Array, c: Labels, want: tuple[str, ...] = ()
    ) -> tuple[Judgement, Tree]:
        """Discriminator pass in training mode."""
        return call(
            self.recipe.networks.discriminator,
            params,
            self._frozen("discriminator"),
            stats,
            x,
            c,
            train=True,
            want=want,
        )

    def players(self, params_g: Tree, stats_g: Tree, params_d: Tree, stats_d: Tree, keys: Any) -> Players:
        """The two networks as pure functions for the methods; their passes store no statistics.

        `keys` are those of the step's own pass, so a method that generates from the step's latents gets its images.
        """
        return Players(
            G=lambda z, c, want=(): self.generate(params_g, stats_g, keys, z, c, want)[0],
            D=lambda x, c, want=(): self.judge(params_d, stats_d, x, c, want)[0],
        )

    def latents(
        self, keys: Any, z: Array, c: Labels, players: Players, methods: Mapping[str, MethodState]
    ) -> tuple[Array, Labels]:
        """Latents and labels after the `latents` hooks."""
        for method in self.recipe.with_hook("latents"):
            z, c = method.latents(
                fold(keys, f"{method.name}/latents"), z, c, players, methods.get(method.name, MethodState())
            )
        return z, c

    def view(
        self, keys: Any, x: Array, c: Labels, side: Side, players: Players, methods: Mapping[str, MethodState]
    ) -> tuple[Array, Labels]:
        """Images and labels after the `view` hooks, in the order of the config."""
        for method in self.recipe.with_hook("view"):
            state = methods.get(method.name, MethodState())
            x, c = method.view(fold(keys, f"{method.name}/view/{side}"), x, c, side, players, state)
        return x, c

    def terms(
        self, play: Play, due: frozenset[str], methods: Mapping[str, MethodState]
    ) -> tuple[Array, dict[str, Array]]:
        """Sum of the methods' terms for this role, and what they log."""
        total, logged = jnp.float32(0.0), {}
        for method in self.recipe.with_hook("loss"):
            if method.name not in due:
                continue
            own = play._replace(keys=fold(play.keys, f"{method.name}/loss"))
            term = method.loss(own, methods.get(method.name, MethodState()))
            if term is None:
                continue
            total = total + method.every * term[0]
            logged |= {f"{method.name}/{name}": value for name, value in term[1].items()}
        return total, logged

    def wants(self, role: Role) -> tuple[str, ...]:
        """Stages of `role`'s network that some method's loss needs."""
        return tuple(sorted({name for method in self.recipe.with_hook("loss") for name in method.wants.get(role, ())}))
