"""From a config, a source and images to everything that the loop needs; each default decided here is printed.

The order is that of `docs/design.md`: which network starts where, partition, policy for statistics, optimizer, devices,
state.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from gantransfer.data.batches import DeviceImages
from gantransfer.data.image_set import ImageSet
from gantransfer.errors import UserError
from gantransfer.methods import check_together, parse_method
from gantransfer.methods.hooks import Method, MethodState, Players
from gantransfer.models import get_family
from gantransfer.models.family import ROLES, Networks, Role
from gantransfer.models.layers import normalised
from gantransfer.objectives.losses import get_loss
from gantransfer.pretrained.fresh import initial_variables
from gantransfer.pretrained.source import Source
from gantransfer.training import devices
from gantransfer.training.bound import Bound
from gantransfer.training.draws import StreamedBatch, keys_at, name_code
from gantransfer.training.partition import BatchNorm, Mode, Partition, get_mode, make_partition, merge, split
from gantransfer.training.recipe import Recipe
from gantransfer.training.state import GanState, Held, Moving, copy
from gantransfer.training.step import make_optimizer, make_step, method_leaves, metric_names, trains

Tree = Any
Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Task:
    """A run that is ready to start.

    Attributes:
      config, source, images: what it was made of; the source has the target's classes already.
      networks: with this run's compute options.
      partition: what trains.
      recipe: static side of the step.
      mesh: devices.
      frozen: per role, `{collection: leaves}` of what never changes, as it is in a checkpoint (nothing folded).
      held: what the step reads, placed on the devices.
      start: the state at the first step, on the host.
      streamed: whether images are read by the host.
    """

    config: ml_collections.ConfigDict
    source: Source
    images: ImageSet
    networks: Networks
    partition: Partition
    recipe: Recipe
    mesh: Mesh
    frozen: Mapping[Role, Tree]
    held: Held
    start: GanState
    streamed: bool

    @cached_property
    def shardings(self) -> GanState:
        """Where each leaf of the state lives."""
        return devices.shardings(self.mesh, self.start, tuple(self.config.devices.rules))

    @cached_property
    def step(self) -> Callable[..., GanState]:
        """The jitted step."""
        return make_step(self.recipe, self.shardings)

    def initial_state(self) -> GanState:
        """A fresh copy of the state at the first step, placed on the devices."""
        return devices.place(copy(self.start), self.shardings)

    def variables(self, moving: Moving, role: Role) -> Tree:
        """All collections of a network as a source stores them: what moves joined with what is frozen."""
        frozen = self.frozen[role]
        moving = jax.device_get(moving)
        stats = {
            name: merge(frozen.get(name, {}), moving.stats.get(name, {}))
            for name in {*frozen, *moving.stats} - {"params"}
        }
        return {"params": merge(moving.trained, frozen["params"]), **stats}

    def as_source(self, state: GanState, name: str) -> Source:
        """The networks of a state as a source: raw and averaged generator, discriminator, and what is known about
        them.
        """
        info = replace(
            self.source.info,
            name=name,
            trained_on=self.images.name,
            images_seen=int(state.images_seen),
            origin=f"finetuned from {self.source.info.name}" if self.config.source else "trained from scratch",
            has_ema=True,
            has_generator=True,
            has_discriminator=True,
        )
        generator, ema = self.variables(state.generator, "generator"), self.variables(state.ema, "generator")
        discriminator = self.variables(state.discriminator, "discriminator")
        for method in self.recipe.with_hook("weights"):
            if method.settles:
                held = jax.device_get(state.methods[method.name])
                discriminator["params"] = method.weights("discriminator", discriminator["params"], held)
        return Source(info, self.source.networks, generator, ema, discriminator)

    def example_batch(self) -> StreamedBatch | None:
        """Shapes of what the host hands to the step, where the set streams."""
        if not self.streamed:
            return None
        shape = (self.recipe.d_steps, self.recipe.batch)
        size = (self.networks.resolution, self.networks.resolution, self.networks.channels)
        return StreamedBatch(jax.ShapeDtypeStruct((*shape, *size), np.uint8), jax.ShapeDtypeStruct(shape, np.int32))


def prepare(config: ml_collections.ConfigDict, source: Source, images: ImageSet, log: Log = lambda line: None) -> Task:
    """Resolves every option of a run.

    Args:
      config: validated.
      source: with the target's classes (`gantransfer.pretrained.surgery`), or fresh networks for a run from scratch.
      images: the target's images, at the source's resolution and channels.
      log: receives one line for each thing that was decided, replaced or defaulted.

    Raises:
      UserError: methods that exclude each other, patterns that match nothing, a batch that does not divide over the
        devices, a state that does not fit the rules by which it is sharded.
    """
    mode = get_mode(config.mode, tuple(config.transfer.train_g), tuple(config.transfer.train_d))
    methods = tuple(parse_method(line) for line in config.methods)
    networks = with_compute(source, config)
    if source.info.options.get("fade_d") and not any(method.name == "fade_in" for method in methods):
        methods = (*methods, parse_method("fade_in"))
        log(f"D: its added block comes in by {methods[-1]}, which the config does not name")
    check_together(methods)
    for method in methods:
        method.needs(networks)
    mesh = devices.make_mesh(config.devices.model, devices.chosen(config.devices.count))
    devices.check_batch(mesh, config.batch, config.objective.accumulate)
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    log(f"devices: {mesh.size} x {jax.devices()[0].device_kind}, mesh {axes}")

    variables = starting_point(config, source, networks, mode, log)
    partition = make_partition(networks, {role: variables[role]["params"] for role in ROLES}, mode, methods)
    two_sets = source.generator is not source.ema and start_of(config, mode, "generator") == "source"
    if two_sets and partition.count("generator", False):
        # An averaged copy of a frozen leaf must be that leaf, so a generator with frozen parts has one set of weights.
        log("G: starts from the source's averaged weights, because parts of it are frozen and an average shares them")
        variables["generator"] = variables["average"] = source.ema
    batch_norm = choose_batch_norm(config, partition, variables["generator"], log)
    recipe = make_recipe(config, networks, methods, partition, batch_norm, mesh, log)
    moving, frozen = {}, {}
    for role in ROLES:
        moving[role], frozen[role] = divide(variables[role], partition.trained(role), batch_norm)
    average, _ = divide(variables["average"], partition.trained("generator"), batch_norm)
    streamed = images_bytes(images) > config.data.device_limit_mb * 2**20
    log(
        f"data: {images_bytes(images) / 2**20:.1f} MiB as uint8, "
        + ("streamed by the host" if streamed else "kept on the device")
    )
    held = make_held(config, networks, recipe, frozen, source, images, streamed)
    start = make_state(recipe, held, moving, average, methods, images, streamed)
    if not any(trains(recipe, start, role) for role in ROLES):
        raise UserError("transfer.train_g", tuple(config.transfer.train_g), "patterns that leave something to train")
    held = devices.place(held, devices.shardings(mesh, held))
    task = Task(config, source, images, networks, partition, recipe, mesh, frozen, held, start, streamed)
    # Rules that do not fit the state are refused here, before anything of the run is written.
    _ = task.shardings
    return task


def with_compute(source: Source, config: ml_collections.ConfigDict) -> Networks:
    """The source's networks with this run's compute options; parameters are the same."""
    options = dict(source.info.options) | {"dtype": config.compute.dtype, "convolution": config.compute.convolution}
    return get_family(source.info.family).build(**options)


def start_of(config: ml_collections.ConfigDict, mode: Mode, role: Role) -> str:
    """Where `role` starts: `source` or `random`."""
    return (config.transfer.init_g or mode.init_g) if role == "generator" else (config.transfer.init_d or mode.init_d)


def starting_point(
    config: ml_collections.ConfigDict, source: Source, networks: Networks, mode: Mode, log: Log
) -> dict[str, Tree]:
    """Variables of both networks and of the average at the first step."""
    random = None
    if "random" in [start_of(config, mode, role) for role in ROLES] or source.discriminator is None:
        random = dict(zip(ROLES, initial_variables(networks, config.seed), strict=True))
    result: dict[str, Tree] = {}
    for role in ROLES:
        where = start_of(config, mode, role)
        given = source.generator if role == "generator" else source.discriminator
        if where == "source" and given is None:
            log("D: the source has none, so it starts from random weights")
            if not config.transfer.warmup_kimg:
                log("D: transfer.warmup_kimg lets it learn something before G follows it; it is 0")
        result[role] = random[role] if where == "random" or given is None else given
        log(f"{role}: starts from {'random weights' if result[role] is not given else source.info.name}")
    result["average"] = source.ema if start_of(config, mode, "generator") == "source" else result["generator"]
    return jax.tree.map(np.asarray, result)


def choose_batch_norm(config: ml_collections.ConfigDict, partition: Partition, generator: Tree, log: Log) -> BatchNorm:
    """Policy for G's batch norm: as configured, else stored unless a convolution of G trains."""
    if "batch_stats" not in generator:
        return "batch"
    chosen = config.transfer.batch_norm or ("batch" if partition.trains_convolution() else "stored")
    why = "as configured" if config.transfer.batch_norm else f"by what mode {config.mode} trains"
    log(f"batch norm of G: {chosen} statistics, {why}")
    return chosen


def divide(variables: Tree, trained: frozenset[str], batch_norm: BatchNorm) -> tuple[Moving, Tree]:
    """Splits a network's variables into what moves and what is frozen.

    Running averages move under batch statistics. A spectral norm vector moves if its layer owns a trained leaf: a
    frozen layer whose vector went on moving would change its effective weight (`docs/design.md`). A running average of
    what a part of the network makes moves if that part owns a trained leaf. Constants never move.
    """
    layers = {path.rpartition("/")[0] for path in trained}
    parts_of = {prefix for path in trained for prefix in itertools.accumulate(path.split("/")[:-1], "{}/{}".format)}
    moves = {
        "params": trained.__contains__,
        "batch_stats": lambda path: batch_norm == "batch",
        "spectral": lambda path: path.rpartition("/")[0] in layers,
        "averages": lambda path: path.rpartition("/")[0] in parts_of,
    }
    parts = {name: split(tree, moves.get(name, lambda path: False)) for name, tree in variables.items()}
    stats = {name: moving for name, (moving, _) in parts.items() if name != "params" and moving}
    return Moving(parts["params"][0], stats), {name: held for name, (_, held) in parts.items()}


def make_recipe(
    config: ml_collections.ConfigDict,
    networks: Networks,
    methods: tuple[Method, ...],
    partition: Partition,
    batch_norm: BatchNorm,
    mesh: Mesh,
    log: Log,
) -> Recipe:
    """Static side of the step."""
    joint = networks.joint_pass if config.objective.joint_pass is None else config.objective.joint_pass
    rates = rate_table(config)
    groups = {
        role: {path: rate_group(rates, role, networks.group(role, path)) for path in partition.trained(role)}
        for role in ROLES
    }
    for role in ROLES:
        for name in sorted(set(groups[role].values())):
            log(f"learning rate of {role} {name}: {rates[role][name]:g}")
    warmup = warmup_iterations(config, bool(groups["discriminator"]), log)
    return Recipe(
        networks=networks,
        loss=get_loss(config.objective.loss),
        methods=methods,
        batch=config.batch,
        d_steps=config.objective.d_steps,
        accumulate=config.objective.accumulate,
        joint_pass=joint,
        batch_norm=batch_norm,
        rate_groups=groups,
        beta1=config.optimizer.beta1,
        beta2=config.optimizer.beta2,
        eps=config.optimizer.eps,
        ema_decay=config.ema.decay,
        ema_start=1000 * config.ema.start_kimg,
        ema_rampup=config.ema.rampup,
        mirror=config.data.mirror,
        fake_labels=config.objective.fake_labels,
        shard=devices.batch_constraint(mesh),
        warmup=warmup,
        warmup_gap=config.transfer.warmup_gap if warmup else None,
    )


def warmup_iterations(config: ml_collections.ConfigDict, trains_d: bool, log: Log) -> int:
    """Iterations in which D alone trains, if no gap of the logits ends them earlier."""
    warmup = math.ceil(1000 * config.transfer.warmup_kimg / (config.batch * config.objective.d_steps))
    gap = config.transfer.warmup_gap
    if warmup and not trains_d:
        raise UserError("transfer.warmup_kimg", config.transfer.warmup_kimg, "0 where nothing of D trains")
    if gap is not None and not warmup:
        raise UserError(
            "transfer.warmup_gap", gap, "None without transfer.warmup_kimg, by which a warm-up ends at last"
        )
    if warmup:
        end = "" if gap is None else f", or until its mean logit of reals is {gap:g} above that of fakes"
        log(f"warm-up: D alone trains in the first {warmup} iterations{end}")
    return warmup


def rate_table(config: ml_collections.ConfigDict) -> dict[str, dict[str, float]]:
    """Learning rates: `{role: {pattern over groups: rate}}`, the network's base rate under "weights".

    Raises `UserError` for a line of `optimizer.rates` that cannot be read.
    """
    optimizer = config.optimizer
    rows = 50 * optimizer.lr_d if optimizer.lr_class_embedding is None else optimizer.lr_class_embedding
    table = {
        "generator": {"class_embedding": rows, "weights": optimizer.lr_g},
        "discriminator": {"weights": optimizer.lr_d},
    }
    for line in optimizer.rates:
        name, _, rate = line.rpartition("=")
        role, _, pattern = name.partition("/")
        try:
            value = float(rate)
        except ValueError:
            value = -1.0
        if role not in table or not pattern or not 0 <= value < float("inf"):
            raise UserError("optimizer.rates", line, '"generator/GROUP=RATE" or "discriminator/GROUP=RATE"')
        table[role][pattern] = value
    return table


def rate_group(rates: Mapping[str, Mapping[str, float]], role: Role, group: str) -> str:
    """The pattern of the rate table that a group falls under; later lines win over earlier ones, all over "weights"."""
    found = [pattern for pattern in rates[role] if pattern != "weights" and fnmatchcase(group, pattern)]
    return found[-1] if found else "weights"


def make_held(
    config: ml_collections.ConfigDict,
    networks: Networks,
    recipe: Recipe,
    frozen: Mapping[Role, Tree],
    source: Source,
    images: ImageSet,
    streamed: bool,
) -> Held:
    """What the step reads: frozen leaves with their spectral norm folded in, rates, seed, images."""
    eps = source.info.options.get("spectral_eps", 1e-12)
    folded = {}
    for role in ROLES:
        vectors = {path.rpartition("/")[0] for path in flatten_dict(frozen[role].get("spectral", {}), sep="/")}
        complete = vectors & {path.rpartition("/")[0] for path in flatten_dict(frozen[role]["params"], sep="/")}
        chosen = lambda path, layers=complete: path.rpartition("/")[0] in layers
        folded[role] = jax.jit(lambda tree, chosen=chosen: normalised(tree, chosen, eps))(frozen[role])
    table = rate_table(config)
    rates = {
        role: {name: jnp.float32(table[role][name]) for name in sorted({*recipe.rate_groups[role].values(), "weights"})}
        for role in ROLES
    }
    labels = jnp.asarray(images.labels, jnp.int32)
    device_images = None if streamed else DeviceImages(*map(jnp.asarray, images.arrays()))
    return Held(folded["generator"], folded["discriminator"], rates, jnp.uint32(config.seed), labels, device_images)


def make_state(
    recipe: Recipe,
    held: Held,
    moving: Mapping[Role, Moving],
    average: Moving,
    methods: tuple[Method, ...],
    images: ImageSet,
    streamed: bool,
) -> GanState:
    """The state at the first step."""
    methods_state = start_methods(recipe, held, moving, methods, images)
    trees = {role: {"network": moving[role].trained, "methods": method_leaves(methods_state, role)} for role in ROLES}
    state = GanState(
        images_seen=jnp.int32(0),
        generator=moving["generator"],
        discriminator=moving["discriminator"],
        ema=average,
        optimizer_g=make_optimizer(recipe, "generator").init(trees["generator"]),
        optimizer_d=make_optimizer(recipe, "discriminator").init(trees["discriminator"]),
        methods=methods_state,
        tick={},
        warmed_at=None if recipe.warmup_gap is None else jnp.int32(-1),
    )
    size = (recipe.networks.resolution, recipe.networks.resolution, recipe.networks.channels)
    count = (recipe.d_steps, recipe.batch)
    batch = StreamedBatch(np.zeros((*count, *size), np.uint8), np.zeros(count, np.int32)) if streamed else None
    names = metric_names(recipe, state, held, batch)
    return state.replace(tick={name: jnp.zeros(2, jnp.float32) for name in names})


def start_methods(
    recipe: Recipe, held: Held, moving: Mapping[Role, Moving], methods: tuple[Method, ...], images: ImageSet
) -> dict[str, MethodState]:
    """Runs the `start` hooks on the first images of the set."""
    starters = [method for method in methods if "start" in method.hooks()]
    states: dict[str, MethodState] = {}
    if not starters:
        return states
    some = [images.read(i) for i in range(min(len(images), recipe.batch))]
    reals = jnp.asarray(np.stack([image for image, _ in some]), jnp.float32) / 127.5 - 1
    labels = jnp.asarray([label for _, label in some], jnp.int32)
    bound = Bound(recipe, held, {})
    params = {role: merge(moving[role].trained, getattr(held, role).get("params", {})) for role in ROLES}
    players: Players = bound.players(
        params["generator"],
        moving["generator"].stats,
        params["discriminator"],
        moving["discriminator"].stats,
        keys_at(held.seed, jnp.arange(1)),
    )
    for method in starters:
        key = jax.random.fold_in(jax.random.key(held.seed), name_code(method.name))
        states[method.name] = method.start(key, params, players, reals, labels)
    return states


def images_bytes(images: ImageSet) -> int:
    """Bytes of the whole set as uint8."""
    return len(images) * images.resolution**2 * images.channels
