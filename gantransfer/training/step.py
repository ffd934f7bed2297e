"""The training step: one jitted program, of which every draw is a pure function of the seed and the number of images seen.

    for each discriminator update (scan where there are several):
        z, c   <- latents(draw);  fake <- G(z, c), no gradient
        seen   <- view(real), view(fake)
        loss   <- adversarial(D(seen)) + sum of loss(role=D)
        gradient over the trained leaves of D and of the methods' D-side leaves -> optimizer
    generator update: the same with role=G, fresh z, c
    EMA of the trained leaves of G
    method states <- update(observed)

`make_step` resolves every option; the inner functions hold no `if` over anything that is not static.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from gantransfer.data.batches import DeviceImages, gather, positions_to_draws
from gantransfer.methods.hooks import Method, MethodState, Observed, Play, Players, Seen, Side
from gantransfer.models.family import Judgement, Labels, Networks, Picture, Role
from gantransfer.objectives.losses import AdversarialLoss
from gantransfer.training import ema
from gantransfer.training.partition import BatchNorm, merge, pick
from gantransfer.training.state import GanState, Held, Moving

Tree = Any


class Draw(NamedTuple):
    """Everything that one update is given: for several updates, each leaf has a leading axis more.

    Attributes:
      reals: `(n, h, w, channels)` in [-1, 1]; None for the generator.
      real_labels: int32 `(n,)`; None for the generator.
      z: latents `(n, z_dim)`.
      c: labels of the fakes.
      keys: one random key per image.
    """

    reals: Float[Array, "*u n h w c"] | None
    real_labels: Int[Array, "*u n"] | None
    z: Float[Array, "*u n z"]
    c: Labels | Int[Array, "u n"]
    keys: Any


class StreamedBatch(NamedTuple):
    """Real images of one iteration that were read by the host: uint8, and their labels."""

    images: UInt8[Array, "u n h w c"]
    labels: Int[Array, "u n"]


@dataclass(frozen=True)
class Recipe:
    """What a step is made of; everything here is static.

    Attributes:
      networks: the pair.
      loss: adversarial loss.
      methods: in the order of the config.
      batch, d_steps, accumulate: images per discriminator update, updates of D per update of G, micro-batches per update.
      joint_pass: fakes and reals through D as one batch, fakes first.
      batch_norm: `stored` (running statistics, held), `batch` (batch statistics, running ones follow) or `batch_frozen`.
      rate_groups: per role, the rate group of each trained path.
      beta1, beta2, eps: of Adam.
      ema_decay, ema_start, ema_rampup: see `gantransfer.training.ema`; the start in images.
      mirror: flip shown images by a coin of the draw.
      fake_labels: "uniform" over classes, or "data": labels of randomly drawn images.
      shard: constraint put on every batch (identity on one device).
    """

    networks: Networks
    loss: AdversarialLoss
    methods: tuple[Method, ...]
    batch: int
    d_steps: int
    accumulate: int
    joint_pass: bool
    batch_norm: BatchNorm
    rate_groups: Mapping[Role, Mapping[str, str]]
    beta1: float
    beta2: float
    eps: float
    ema_decay: float
    ema_start: float
    ema_rampup: float | None
    mirror: bool
    fake_labels: str
    shard: Callable[[Tree], Tree] = lambda tree: tree

    @property
    def images_per_step(self) -> int:
        """Real images that one iteration shows to the discriminator."""
        return self.batch * self.d_steps

    def with_hook(self, hook: str) -> tuple[Method, ...]:
        """The methods that define `hook`, in order."""
        return tuple(method for method in self.methods if hook in method.hooks())

    def due(self, iteration: int) -> frozenset[str]:
        """Names of the methods whose `loss` is computed in this iteration: a static flag, so each combination is one program."""
        return frozenset(method.name for method in self.with_hook("loss") if iteration % method.every == 0)


def name_code(name: str) -> int:
    """A number for a name that is the same in every process, for folding into keys."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def fold(keys: Any, name: str) -> Any:
    """Folds a name into every key: streams of different names never meet."""
    return jax.vmap(lambda key: jax.random.fold_in(key, name_code(name)))(keys)


def keys_at(seed: Array, positions: Int[Array, " n"]) -> Any:
    """One random key for each position of the run's image stream."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(positions)


# ---------------------------------------------------------------------------------------------------------------- draws


def draw_fakes(recipe: Recipe, held: Held, positions: Int[Array, " n"], role: Role) -> Draw:
    """Latents, labels and keys of the fakes of one update; image i's depend on its position alone."""
    keys = fold(keys_at(held.seed, positions), role)
    z = jax.vmap(lambda key: jax.random.normal(key, (recipe.networks.z_dim,)))(fold(keys, "z"))
    count = recipe.networks.num_classes if recipe.fake_labels == "uniform" else held.labels.shape[0]
    c = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(fold(keys, "c"))
    if recipe.fake_labels == "data":
        c = held.labels[c]
    return Draw(None, None, z, c, keys)


def draw_reals(
    recipe: Recipe, held: Held, positions: Int[Array, " n"], streamed: StreamedBatch | None, update: Array | int
) -> tuple[Array, Array]:
    """Real images in [-1, 1] and labels of one update, from the device's set or from what the host has read."""
    if streamed is not None:
        images = DeviceImages(streamed.images[update], streamed.labels[update])
        # The host has gathered and mirrored already; only the conversion is left.
        order = jnp.arange(recipe.batch, dtype=jnp.int32)
        return gather(images, order, jnp.zeros(recipe.batch, bool))
    length = held.labels.shape[0]
    indices, flips = positions_to_draws(held.seed, positions, length, mirror=recipe.mirror, xp=jnp)
    return gather(held.images, indices, flips)


def draw_update(
    recipe: Recipe, held: Held, images_seen: Array, streamed: StreamedBatch | None, role: Role, update: Array | int
) -> Draw:
    """Everything random of one update, as a pure function of (seed, images seen, update)."""
    positions = images_seen + update * recipe.batch + jnp.arange(recipe.batch, dtype=jnp.int32)
    draw = draw_fakes(recipe, held, positions, role)
    if role == "discriminator":
        reals, labels = draw_reals(recipe, held, positions, streamed, update)
        draw = draw._replace(reals=reals, real_labels=labels)
    return recipe.shard(draw)


# ------------------------------------------------------------------------------------------------------------- networks


def call(module: nn.Module, params: Tree, frozen_stats: Tree, stats: Tree, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
    """Runs a network with its statistics; returns its output and the moving statistics after the pass."""
    variables = {"params": params, **{name: merge(frozen_stats.get(name, {}), stats.get(name, {})) for name in {*frozen_stats, *stats}}}
    moving = [name for name, tree in stats.items() if tree]
    if not moving:
        return module.apply(variables, *args, **kwargs), stats
    out, after = module.apply(variables, *args, mutable=moving, **kwargs)
    return out, {name: pick(after[name], tree) if tree else tree for name, tree in stats.items()}


@dataclass(frozen=True)
class Bound:
    """Both networks with everything that one update holds constant; trained leaves and statistics come with each call."""

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

    def generate(self, params: Tree, stats: Tree, z: Array, c: Labels, want: tuple[str, ...] = ()) -> tuple[Picture, Tree]:
        """Generator pass in training mode."""
        train = self.recipe.batch_norm != "stored"
        return call(self.recipe.networks.generator, params, self._frozen("generator"), stats, z, c, train=train, want=want)

    def judge(self, params: Tree, stats: Tree, x: Array, c: Labels, want: tuple[str, ...] = ()) -> tuple[Judgement, Tree]:
        """Discriminator pass in training mode."""
        return call(self.recipe.networks.discriminator, params, self._frozen("discriminator"), stats, x, c, train=True, want=want)

    def players(self, params_g: Tree, stats_g: Tree, params_d: Tree, stats_d: Tree) -> Players:
        """The two networks as pure functions for the methods; their passes store no statistics."""
        return Players(
            G=lambda z, c, want=(): self.generate(params_g, stats_g, z, c, want)[0],
            D=lambda x, c, want=(): self.judge(params_d, stats_d, x, c, want)[0],
        )

    def latents(self, keys: Any, z: Array, c: Labels, players: Players, methods: Mapping[str, MethodState]) -> tuple[Array, Labels]:
        """Latents and labels after the `latents` hooks."""
        for method in self.recipe.with_hook("latents"):
            z, c = method.latents(fold(keys, f"{method.name}/latents"), z, c, players, methods.get(method.name, MethodState()))
        return z, c

    def view(
        self, keys: Any, x: Array, c: Labels, side: Side, players: Players, methods: Mapping[str, MethodState]
    ) -> tuple[Array, Labels]:
        """Images and labels after the `view` hooks, in the order of the config."""
        for method in self.recipe.with_hook("view"):
            state = methods.get(method.name, MethodState())
            x, c = method.view(fold(keys, f"{method.name}/view/{side}"), x, c, side, players, state)
        return x, c

    def terms(self, play: Play, due: frozenset[str], methods: Mapping[str, MethodState]) -> tuple[Array, dict[str, Array]]:
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


def _with_trained(methods: Mapping[str, MethodState], role: Role, trained: Mapping[str, Tree]) -> dict[str, MethodState]:
    return {name: state._replace(**{role: trained[name]}) if name in trained else state for name, state in methods.items()}


def method_leaves(methods: Mapping[str, MethodState], role: Role) -> dict[str, Tree]:
    """The leaves of methods that the optimizer of `role` moves."""
    leaves = {name: getattr(state, role) for name, state in methods.items()}
    return {name: tree for name, tree in leaves.items() if jax.tree.leaves(tree)}


# -------------------------------------------------------------------------------------------------------------- updates


def _first(logits: Array | tuple[Array, ...]) -> Array:
    return logits[0] if isinstance(logits, tuple) else logits


def discriminator_objective(
    bound: Bound, state: GanState, due: frozenset[str], trained: Tree, stats: tuple[Tree, Tree], draw: Draw
) -> tuple[Array, tuple[tuple[Tree, Tree], dict[str, Array], tuple[Array, Array]]]:
    """Loss of the discriminator on one micro-batch; returns (loss, (statistics after, metrics, (real, fake logits)))."""
    recipe = bound.recipe
    stats_g, stats_d = stats
    methods = _with_trained(bound.methods, "discriminator", trained["methods"])
    params_g = bound.params("generator", state.generator.trained, methods)
    params_d = bound.params("discriminator", trained["network"], methods)
    players = bound.players(params_g, stats_g, params_d, stats_d)

    z, c = bound.latents(draw.keys, draw.z, draw.c, players, methods)
    picture, stats_g = bound.generate(params_g, stats_g, z, c)
    fakes = jax.lax.stop_gradient(picture.images)

    view_fake = partial(bound.view, draw.keys, side="fake", players=players, methods=methods)
    view_real = partial(bound.view, draw.keys, side="real", players=players, methods=methods)
    seen_fake, c_fake = view_fake(fakes, c)
    seen_real, c_real = view_real(draw.reals, draw.real_labels)
    want = bound.wants("discriminator")
    if recipe.joint_pass:
        n = seen_fake.shape[0]
        both, stats_d = bound.judge(params_d, stats_d, jnp.concatenate([seen_fake, seen_real]), _join(c_fake, c_real), want)
        fake, real = jax.tree.map(lambda a: a[:n], both), jax.tree.map(lambda a: a[n:], both)
    else:
        fake, stats_d = bound.judge(params_d, stats_d, seen_fake, c_fake, want)
        real, stats_d = bound.judge(params_d, stats_d, seen_real, c_real, want)

    loss_real, loss_fake = recipe.loss.discriminator(real.logits, fake.logits)
    play = Play(
        role="discriminator",
        players=players,
        fake=Seen(fakes, c_fake, fake, lambda x: view_fake(x, c)[0]),
        real=Seen(draw.reals, c_real, real, lambda x: view_real(x, draw.real_labels)[0]),
        picture=None,
        z=z,
        trained=trained["network"],
        keys=draw.keys,
        images_seen=state.images_seen,
    )
    extra, logged = bound.terms(play, due, methods)
    metrics = {
        "loss/discriminator_real": loss_real,
        "loss/discriminator_fake": loss_fake,
        "loss/discriminator": loss_real + loss_fake + extra,
        "logits/real": _first(real.logits).mean(),
        "logits/fake": _first(fake.logits).mean(),
        **logged,
    }
    return metrics["loss/discriminator"], ((stats_g, stats_d), metrics, (_first(real.logits), _first(fake.logits)))


def generator_objective(
    bound: Bound, state: GanState, due: frozenset[str], trained: Tree, stats: tuple[Tree, Tree], draw: Draw
) -> tuple[Array, tuple[tuple[Tree, Tree], dict[str, Array], tuple[()]]]:
    """Loss of the generator on one micro-batch; returns (loss, (statistics after, metrics, ()))."""
    stats_g, stats_d = stats
    methods = _with_trained(bound.methods, "generator", trained["methods"])
    params_g = bound.params("generator", trained["network"], methods)
    params_d = bound.params("discriminator", state.discriminator.trained, methods)
    players = bound.players(params_g, stats_g, params_d, stats_d)

    z, c = bound.latents(draw.keys, draw.z, draw.c, players, methods)
    picture, stats_g = bound.generate(params_g, stats_g, z, c, bound.wants("generator"))
    view_fake = partial(bound.view, draw.keys, side="fake", players=players, methods=methods)
    seen, c_fake = view_fake(picture.images, c)
    fake, stats_d = bound.judge(params_d, stats_d, seen, c_fake, bound.wants("discriminator"))
    loss = bound.recipe.loss.generator(fake.logits)
    play = Play(
        role="generator",
        players=players,
        fake=Seen(picture.images, c_fake, fake, lambda x: view_fake(x, c)[0]),
        real=None,
        picture=picture,
        z=z,
        trained=trained["network"],
        keys=draw.keys,
        images_seen=state.images_seen,
    )
    extra, logged = bound.terms(play, due, methods)
    metrics = {"loss/generator_adversarial": loss, "loss/generator": loss + extra, **logged}
    return loss + extra, ((stats_g, stats_d), metrics, ())


def _join(a: Array, b: Array) -> Array:
    """Joins labels; integers beside class weights become one-hot weights."""
    if a.ndim < b.ndim:
        a = jax.nn.one_hot(a, b.shape[-1])
    if b.ndim < a.ndim:
        b = jax.nn.one_hot(b, a.shape[-1])
    return jnp.concatenate([a, b])


def accumulated(objective: Callable, trained: Tree, stats: Tree, draw: Draw, count: int) -> tuple[Tree, Tree, dict, Any]:
    """Gradient of the mean over `count` micro-batches; exact for whatever does not couple images of a batch.

    Returns (gradient, statistics after the last micro-batch, mean metrics, stacked outputs). Statistics advance with every micro-batch, as in
    BigGAN-PyTorch.
    """
    gradient = jax.value_and_grad(objective, has_aux=True)
    if count == 1:
        (_, (stats, metrics, out)), grads = gradient(trained, stats, draw)
        return grads, stats, metrics, out
    micro = jax.tree.map(lambda a: a.reshape(count, a.shape[0] // count, *a.shape[1:]), draw)

    def body(carry: tuple, part: Draw) -> tuple:
        grads, stats = carry
        (_, (stats, metrics, out)), new = gradient(trained, stats, part)
        return (jax.tree.map(jnp.add, grads, new), stats), (metrics, out)

    (grads, stats), (metrics, out) = jax.lax.scan(body, (jax.tree.map(jnp.zeros_like, trained), stats), micro)
    grads = jax.tree.map(lambda g: g / count, grads)
    return grads, stats, jax.tree.map(jnp.mean, metrics), jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)


def rate_labels(recipe: Recipe, role: Role, trained: Tree) -> Tree:
    """Rate group of each leaf of `{"network": ..., "methods": ...}`; leaves of methods take the network's base rate."""
    groups = recipe.rate_groups[role]
    return {
        "network": jax.tree.map_with_path(lambda path, _: groups[jax.tree_util.keystr(path, simple=True, separator="/")], trained["network"]),
        "methods": jax.tree.map(lambda _: "weights", trained["methods"]),
    }


def make_optimizer(recipe: Recipe, role: Role) -> optax.GradientTransformation:
    """Adam's direction without the rate, with one step count per rate group; no first moment where beta1 is 0."""
    if recipe.beta1 == 0:
        # Adam with beta1 = 0 (Kingma & Ba 2015): the first moment is the gradient itself, so it is not kept.
        adam = optax.scale_by_rms(decay=recipe.beta2, eps=recipe.eps, eps_in_sqrt=False, bias_correction=True)
    else:
        adam = optax.scale_by_adam(b1=recipe.beta1, b2=recipe.beta2, eps=recipe.eps)
    names = {*recipe.rate_groups[role].values(), "weights"}
    return optax.partition({name: adam for name in names}, partial(rate_labels, recipe, role))


def apply_gradient(
    recipe: Recipe, role: Role, held: Held, trained: Tree, optimizer: Tree, grads: Tree
) -> tuple[Tree, Tree]:
    """One optimizer step on `{"network": ..., "methods": ...}`; returns (trained, optimizer state)."""
    direction, optimizer = make_optimizer(recipe, role).update(grads, optimizer, trained)
    rates = held.rates[role]
    moved = jax.tree.map(lambda p, u, group: p - rates[group] * u, trained, direction, rate_labels(recipe, role, trained))
    return moved, optimizer


# ------------------------------------------------------------------------------------------------------------ iteration


def update_discriminator(
    recipe: Recipe, held: Held, due: frozenset[str], state: GanState, draw: Draw
) -> tuple[GanState, tuple[dict[str, Array], tuple[Array, Array]]]:
    """One discriminator update; returns (state, (metrics, (real, fake logits)))."""
    bound = Bound(recipe, held, state.methods)
    trained = {"network": state.discriminator.trained, "methods": method_leaves(state.methods, "discriminator")}
    objective = partial(discriminator_objective, bound, state, due)
    stats = (state.generator.stats, state.discriminator.stats)
    grads, (stats_g, stats_d), metrics, logits = accumulated(objective, trained, stats, draw, recipe.accumulate)
    trained, optimizer = apply_gradient(recipe, "discriminator", held, trained, state.optimizer_d, grads)
    state = state.replace(
        generator=state.generator.replace(stats=stats_g),
        discriminator=Moving(trained["network"], stats_d),
        optimizer_d=optimizer,
        methods=_with_trained(state.methods, "discriminator", trained["methods"]),
    )
    return state, (metrics, logits)


def update_generator(
    recipe: Recipe, held: Held, due: frozenset[str], state: GanState, draw: Draw
) -> tuple[GanState, dict[str, Array]]:
    """One generator update; returns (state, metrics)."""
    bound = Bound(recipe, held, state.methods)
    trained = {"network": state.generator.trained, "methods": method_leaves(state.methods, "generator")}
    objective = partial(generator_objective, bound, state, due)
    stats = (state.generator.stats, state.discriminator.stats)
    grads, (stats_g, stats_d), metrics, _ = accumulated(objective, trained, stats, draw, recipe.accumulate)
    trained, optimizer = apply_gradient(recipe, "generator", held, trained, state.optimizer_g, grads)
    state = state.replace(
        generator=Moving(trained["network"], stats_g),
        discriminator=state.discriminator.replace(stats=stats_d),
        optimizer_g=optimizer,
        methods=_with_trained(state.methods, "generator", trained["methods"]),
    )
    return state, metrics


def iterate(
    recipe: Recipe, due: frozenset[str], state: GanState, held: Held, draws_d: Draw, draw_g: Draw
) -> tuple[GanState, dict[str, Array]]:
    """One iteration with its draws given: `draws_d` has a leading axis over the discriminator's updates.

    A network of which nothing trains is not updated, so its half of the step is not in the program.
    """
    metrics: dict[str, Array] = {}
    observed = None
    if trains(recipe, state, "discriminator"):
        body = partial(update_discriminator, recipe, held, due)
        if recipe.d_steps == 1:
            state, (metrics, logits) = body(state, jax.tree.map(lambda a: a[0], draws_d))
        else:
            state, (metrics, logits) = jax.lax.scan(body, state, draws_d)
            metrics, logits = jax.tree.map(partial(jnp.mean, axis=0), metrics), jax.tree.map(lambda a: a[-1], logits)
        observed = (logits, draws_d.real_labels[-1], draws_d.c[-1])
    if trains(recipe, state, "generator"):
        state, logged = update_generator(recipe, held, due, state, draw_g)
        metrics = metrics | logged
    state = state.replace(images_seen=state.images_seen + recipe.images_per_step)
    return finish(recipe, state, observed), metrics


def trains(recipe: Recipe, state: GanState, role: Role) -> bool:
    """Whether anything of `role` trains: a leaf of the network, or a leaf that a method adds to it."""
    return bool(jax.tree.leaves(getattr(state, role).trained)) or bool(method_leaves(state.methods, role))


def finish(recipe: Recipe, state: GanState, observed: tuple | None) -> GanState:
    """Running average of G and the methods' own updates, after both networks have moved."""
    decay = ema.decay_at(
        state.images_seen,
        images_per_step=recipe.images_per_step,
        ceiling=recipe.ema_decay,
        start=recipe.ema_start,
        rampup=recipe.ema_rampup,
    )
    state = state.replace(ema=ema.average(state.ema, state.generator, decay))
    if observed is None:
        return state
    (real, fake), real_labels, fake_labels = observed
    seen = Observed(real, fake, real_labels, fake_labels, recipe.batch, state.images_seen)
    methods = dict(state.methods)
    for method in recipe.with_hook("update"):
        before = methods.get(method.name, MethodState())
        methods[method.name] = before._replace(carried=method.update(before, seen))
    return state.replace(methods=methods)


def add_to_tick(tick: dict[str, Array], metrics: dict[str, Array]) -> dict[str, Array]:
    """Adds metrics to the running `(sum, count)` of the tick; a metric that was not computed keeps its own count."""
    return tick | {name: tick[name] + jnp.stack([value.astype(jnp.float32), jnp.float32(1)]) for name, value in metrics.items()}


def step(
    recipe: Recipe, due: frozenset[str], state: GanState, held: Held, streamed: StreamedBatch | None = None
) -> GanState:
    """One whole iteration: draws, updates, metrics of the tick."""
    update = partial(draw_update, recipe, held, state.images_seen, streamed)
    draws = [update("discriminator", k) for k in range(recipe.d_steps)] if trains(recipe, state, "discriminator") else [None]
    draws_d = jax.tree.map(lambda *parts: jnp.stack(parts), *draws)
    after, metrics = iterate(recipe, due, state, held, draws_d, update("generator", 0))
    return after.replace(tick=add_to_tick(state.tick, metrics))


def metric_names(recipe: Recipe, state: GanState, held: Held, streamed: StreamedBatch | None = None) -> tuple[str, ...]:
    """Names of all metrics that a step logs when every method is due; nothing is computed."""
    everything = frozenset(method.name for method in recipe.with_hook("loss"))

    def metrics(state: GanState, held: Held, streamed: StreamedBatch | None) -> dict[str, Array]:
        update = partial(draw_update, recipe, held, state.images_seen, streamed)
        draws = [update("discriminator", k) for k in range(recipe.d_steps)]
        return iterate(recipe, everything, state, held, jax.tree.map(lambda *p: jnp.stack(p), *draws), update("generator", 0))[1]

    return tuple(sorted(jax.eval_shape(metrics, state, held, streamed)))


def make_step(recipe: Recipe, out_shardings: Tree = None) -> Callable[..., GanState]:
    """Returns `step(state, held, streamed=None, due=frozenset()) -> state`, jitted, with the state donated."""
    jitted = {}

    def run(state: GanState, held: Held, streamed: StreamedBatch | None = None, *, due: frozenset[str]) -> GanState:
        if due not in jitted:
            jitted[due] = jax.jit(partial(step, recipe, due), donate_argnums=0, out_shardings=out_shardings)
        return jitted[due](state, held, streamed)

    run.programs = jitted
    return run
