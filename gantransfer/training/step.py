"""The training step: one jitted program, every draw of it a function of the seed and the number of images seen.

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

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from gantransfer.methods.hooks import MethodState, Observed, Play, Seen
from gantransfer.models.family import Role
from gantransfer.training import ema
from gantransfer.training.bound import Bound
from gantransfer.training.draws import Draw, StreamedBatch, draw_update
from gantransfer.training.recipe import WARM_UP, Recipe
from gantransfer.training.state import GanState, Held, Moving

Tree = Any


def _with_trained(
    methods: Mapping[str, MethodState], role: Role, trained: Mapping[str, Tree]
) -> dict[str, MethodState]:
    return {
        name: state._replace(**{role: trained[name]}) if name in trained else state for name, state in methods.items()
    }


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
    """Loss of the discriminator on one micro-batch; returns (loss, (statistics after, metrics, (real, fake
    logits))).
    """
    recipe = bound.recipe
    stats_g, stats_d = stats
    methods = _with_trained(bound.methods, "discriminator", trained["methods"])
    params_g = bound.params("generator", state.generator.trained, methods)
    params_d = bound.params("discriminator", trained["network"], methods)
    players = bound.players(params_g, stats_g, params_d, stats_d, draw.keys)

    z, c = bound.latents(draw.keys, draw.z, draw.c, players, methods)
    picture, stats_g = bound.generate(params_g, stats_g, draw.keys, z, c)
    fakes = jax.lax.stop_gradient(picture.images)

    view_fake = partial(bound.view, draw.keys, side="fake", players=players, methods=methods)
    view_real = partial(bound.view, draw.keys, side="real", players=players, methods=methods)
    seen_fake, c_fake = view_fake(fakes, c)
    seen_real, c_real = view_real(draw.reals, draw.real_labels)
    want = bound.wants("discriminator")
    if recipe.joint_pass:
        n = seen_fake.shape[0]
        both, stats_d = bound.judge(
            params_d, stats_d, jnp.concatenate([seen_fake, seen_real]), _join(c_fake, c_real), want
        )
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
    players = bound.players(params_g, stats_g, params_d, stats_d, draw.keys)

    z, c = bound.latents(draw.keys, draw.z, draw.c, players, methods)
    picture, stats_g = bound.generate(params_g, stats_g, draw.keys, z, c, bound.wants("generator"))
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


def accumulated(
    objective: Callable, trained: Tree, stats: Tree, draw: Draw, count: int
) -> tuple[Tree, Tree, dict, Any]:
    """Gradient of the mean over `count` micro-batches; exact for whatever does not couple images of a batch.

    Returns (gradient, statistics after the last micro-batch, mean metrics, stacked outputs). Statistics advance with
    every micro-batch, as in BigGAN-PyTorch.
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
        "network": jax.tree.map_with_path(
            lambda path, _: groups[jax.tree_util.keystr(path, simple=True, separator="/")], trained["network"]
        ),
        "methods": jax.tree.map(lambda _: "weights", trained["methods"]),
    }


def make_optimizer(recipe: Recipe, role: Role) -> optax.GradientTransformation:
    """Adam's direction without the rate, with one step count per rate group; no first moment where beta1 is 0."""
    if recipe.beta1 == 0:
        # Adam with beta1 = 0 (Kingma & Ba 2015): the first moment is the gradient itself, so it is not kept.
        adam = optax.scale_by_rms(decay=recipe.beta2, eps=recipe.eps, eps_in_sqrt=False, bias_correction=True)
    else:
        adam = optax.scale_by_adam(b1=recipe.beta1, b2=recipe.beta2, eps=recipe.eps)
    # Sorted, as everywhere in a step: a program whose parts change places is not found in the compilation cache.
    names = sorted({*recipe.rate_groups[role].values(), "weights"})
    return optax.partition({name: adam for name in names}, partial(rate_labels, recipe, role))


def apply_gradient(
    recipe: Recipe, role: Role, held: Held, trained: Tree, optimizer: Tree, grads: Tree
) -> tuple[Tree, Tree]:
    """One optimizer step on `{"network": ..., "methods": ...}`; returns (trained, optimizer state)."""
    direction, optimizer = make_optimizer(recipe, role).update(grads, optimizer, trained)
    rates = held.rates[role]
    moved = jax.tree.map(
        lambda p, u, group: p - rates[group] * u, trained, direction, rate_labels(recipe, role, trained)
    )
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


class Counted(NamedTuple):
    """A metric that a step computes only sometimes: its value, and 1 where it was computed, else 0 for both."""

    value: Array
    count: Array


def iterate(
    recipe: Recipe, due: frozenset[str], state: GanState, held: Held, draws_d: Draw | None, draw_g: Draw
) -> tuple[GanState, dict[str, Array | Counted]]:
    """One iteration with its draws given: `draws_d` has a leading axis over the discriminator's updates.

    A network of which nothing trains is not updated, so its half of the step is not in the program; where that is the
    discriminator, `draws_d` may be None. During the warm-up the generator stays as it is, its statistics too. A warm-up
    that a gap of the logits may end decides on the device, by the state: both ways are in its program.
    """
    metrics: dict[str, Array | Counted] = {}
    observed, before = None, state
    if trains(recipe, state, "discriminator"):
        body = partial(update_discriminator, recipe, held, due)
        if recipe.d_steps == 1:
            state, (metrics, logits) = body(state, jax.tree.map(lambda a: a[0], draws_d))
        else:
            state, (metrics, logits) = jax.lax.scan(body, state, draws_d)
            metrics, logits = jax.tree.map(partial(jnp.mean, axis=0), metrics), jax.tree.map(lambda a: a[-1], logits)
        observed = (logits, draws_d.real_labels[-1], draws_d.c[-1])

    def whole(state: GanState) -> tuple[GanState, dict[str, Array]]:
        logged: dict[str, Array] = {}
        if trains(recipe, state, "generator"):
            state, logged = update_generator(recipe, held, due, state, draw_g)
        return finish(recipe, _seen(recipe, state), observed), logged

    def alone(state: GanState) -> GanState:
        return finish(recipe, _seen(recipe, state), observed).replace(generator=before.generator, ema=before.ema)

    if WARM_UP not in due:
        state, logged = whole(state)
        return state, metrics | logged
    if before.warmed_at is None:
        return alone(state), metrics
    empty = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(whole, state)[1])
    over = before.warmed_at >= 0
    state, logged = jax.lax.cond(over, whole, lambda state: (alone(state), empty), state)
    reached = metrics["logits/real"] - metrics["logits/fake"] > recipe.warmup_gap
    state = state.replace(warmed_at=jnp.where(reached & ~over, state.images_seen, before.warmed_at))
    return state, metrics | {name: Counted(value, over) for name, value in logged.items()}


def _seen(recipe: Recipe, state: GanState) -> GanState:
    return state.replace(images_seen=state.images_seen + recipe.images_per_step)


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
    state = state.replace(ema=ema.follow(state.ema, state.generator, decay))
    if observed is None:
        return state
    (real, fake), real_labels, fake_labels = observed
    seen = Observed(real, fake, real_labels, fake_labels, recipe.batch, state.images_seen)
    methods = dict(state.methods)
    for method in recipe.with_hook("update"):
        before = methods.get(method.name, MethodState())
        methods[method.name] = before._replace(carried=method.update(before, seen))
    return state.replace(methods=methods)


def add_to_tick(tick: dict[str, Array], metrics: Mapping[str, Array | Counted]) -> dict[str, Array]:
    """Adds metrics to the running `(sum, count)` of the tick; a metric that was not computed keeps its own count."""
    pairs = {name: m if isinstance(m, Counted) else Counted(m, jnp.float32(1)) for name, m in metrics.items()}
    return tick | {name: tick[name] + jnp.stack([x.astype(jnp.float32) for x in pair]) for name, pair in pairs.items()}


def step(
    recipe: Recipe, due: frozenset[str], state: GanState, held: Held, streamed: StreamedBatch | None = None
) -> GanState:
    """One whole iteration: draws, updates, metrics of the tick."""
    update = partial(draw_update, recipe, held, state.images_seen, streamed)
    draws = (
        [update("discriminator", k) for k in range(recipe.d_steps)]
        if trains(recipe, state, "discriminator")
        else [None]
    )
    draws_d = jax.tree.map(lambda *parts: jnp.stack(parts), *draws)
    after, metrics = iterate(recipe, due, state, held, draws_d, update("generator", 0))
    return after.replace(tick=add_to_tick(state.tick, metrics))


def metric_names(recipe: Recipe, state: GanState, held: Held, streamed: StreamedBatch | None = None) -> tuple[str, ...]:
    """Names of all metrics that a step logs when every method is due; nothing is computed."""
    everything = frozenset(method.name for method in recipe.with_hook("loss"))

    def metrics(state: GanState, held: Held, streamed: StreamedBatch | None) -> dict[str, Array | Counted]:
        update = partial(draw_update, recipe, held, state.images_seen, streamed)
        draws = [update("discriminator", k) for k in range(recipe.d_steps)]
        return iterate(
            recipe, everything, state, held, jax.tree.map(lambda *p: jnp.stack(p), *draws), update("generator", 0)
        )[1]

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
