"""GANs in the plane: what a pretrained pair brings, and which number of a source foretells how far finetuning gets.

The 2-D playground of gan-transfer (Grigoryev, Voynov, Babenko: When, Why, and Which Pretrained GANs Are Useful?, ICLR
2022), where a whole study takes minutes of one CPU core:

python launch/experiments/plane.py ways --seeds 0,1,2 --workdir runs/plane        # none, G, D or both transferred
python launch/experiments/plane.py snapshots --seeds 0,1,2 --workdir runs/plane   # every snapshot finetuned
python launch/experiments/plane_page.py --workdir runs/plane                      # tables and figures of both

Both studies go on where they were stopped. Games of different seeds or sources are played side by side (`vmap`), and
the steps between two measurements are one compiled loop.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from gantransfer.errors import UserError, one_of
from gantransfer.metrics.precision_recall import precision_recall_density_coverage
from gantransfer.selection.gradients import gradient_similarity

RADIUS = 20.0
LATENT, GENERATOR, DISCRIMINATOR = 64, (64, 64, 128, 128, 128, 64, 2), (2, 64, 128, 128, 64, 1)
BATCH, RATE, BETAS = 64, 2e-4, (0.5, 0.999)
# Of torch's batch norm.
MOMENTUM, EPSILON = 0.1, 1e-5
SOURCE_STEPS, INTERVAL, FINETUNE_STEPS = 5000, 250, 1000
WAYS = ("none", "discriminator", "generator", "both")
# Points of a Wasserstein distance, and of everything else that is measured.
TRANSPORTED, MEASURED, NEIGHBOURS = 1024, 1000, 5
# A mode is hit when a hundredth of the samples lies within four of its standard deviations.
MODE_WIDTH, MODE_SHARE = 0.25, 0.01
SIDE_BY_SIDE = 8

Points = Float[Array, "n 2"]


# --- distributions


def roots_of_unity(which: Sequence[int]) -> Float[np.ndarray, "m 2"]:
    """Some of the ten tenth roots of unity, scaled to the radius."""
    angles = 2 * np.pi * np.asarray(which) / 10
    return RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle(key: Key[Array, ""], n: int) -> Points:
    """A fat circle: any angle, radius 20 with standard deviation 4."""
    turn, length = jax.random.split(key)
    angle = jax.random.uniform(turn, (n,), maxval=2 * jnp.pi)
    radius = RADIUS + 4 * jax.random.normal(length, (n,))
    return radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _gaussians(centres: Float[np.ndarray, "m 2"], width: float) -> Callable[[Key[Array, ""], int], Points]:
    """Equal Gaussians at some centres."""

    def draw(key: Key[Array, ""], n: int) -> Points:
        choose, scatter = jax.random.split(key)
        chosen = jnp.asarray(centres)[jax.random.randint(choose, (n,), 0, len(centres))]
        return chosen + width * jax.random.normal(scatter, (n, 2))

    return draw


MODES = roots_of_unity(range(10))
DISTRIBUTIONS = {
    "circle": _circle,
    "three": _gaussians(roots_of_unity([5, 4, 6]), 0.5),
    "target": _gaussians(MODES, MODE_WIDTH),
}


# --- networks and the game


class Player(NamedTuple):
    """A network with its optimizer.

    Attributes:
      weights: per layer `kernel`, `bias` and, where it is normalised, `scale` and `shift`.
      running: per normalised layer the running `mean` and `var`.
      moments: Adam's.
    """

    weights: list[dict[str, Array]]
    running: list[dict[str, Array]]
    moments: optax.OptState


class Game(NamedTuple):
    """Both networks."""

    generator: Player
    discriminator: Player


OPTIMIZER = optax.adam(RATE, *BETAS)


def _new_player(key: Key[Array, ""], widths: Sequence[int], normalised: bool) -> Player:
    """Weights as PyTorch initialises linear layers: uniform within 1 / sqrt(inputs)."""
    weights, running = [], []
    for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        kernel, bias = jax.random.split(jax.random.fold_in(key, layer))
        bound = fan_in**-0.5
        leaves = {
            "kernel": jax.random.uniform(kernel, (fan_in, fan_out), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias, (fan_out,), minval=-bound, maxval=bound),
        }
        if normalised and layer < len(widths) - 2:
            leaves |= {"scale": jnp.ones(fan_out), "shift": jnp.zeros(fan_out)}
            running.append({"mean": jnp.zeros(fan_out), "var": jnp.ones(fan_out)})
        weights.append(leaves)
    return Player(weights, running, OPTIMIZER.init(weights))


def new_game(key: Key[Array, ""]) -> Game:
    """Two networks that know nothing."""
    keys = jax.random.split(key)
    return Game(_new_player(keys[0], GENERATOR, True), _new_player(keys[1], DISCRIMINATOR, False))


def generate(
    weights: list[dict[str, Array]], running: list[dict[str, Array]], z: Float[Array, "n _"], train: bool
) -> tuple[Points, list[dict[str, Array]]]:
    """Points for latents, and the running statistics after the pass: linear, batch norm, ReLU, five times; linear."""
    after = []
    x = z
    for layer, old in zip(weights[:-1], running, strict=True):
        x = x @ layer["kernel"] + layer["bias"]
        if train:
            now = {"mean": x.mean(axis=0), "var": x.var(axis=0)}
            # The variance that is kept is the unbiased one.
            kept = {"mean": now["mean"], "var": now["var"] * len(x) / (len(x) - 1)}
            after.append({name: (1 - MOMENTUM) * old[name] + MOMENTUM * kept[name] for name in old})
        else:
            now = old
            after.append(old)
        x = (x - now["mean"]) * jax.lax.rsqrt(now["var"] + EPSILON) * layer["scale"] + layer["shift"]
        x = jax.nn.relu(x)
    return x @ weights[-1]["kernel"] + weights[-1]["bias"], after


def judge(weights: list[dict[str, Array]], x: Points) -> Float[Array, " n"]:
    """Logits of points being real: linear, ReLU, four times; linear."""
    for layer in weights[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return (x @ weights[-1]["kernel"] + weights[-1]["bias"])[:, 0]


def generator_loss(weights: list[dict[str, Array]], fakes: Points) -> Float[Array, ""]:
    """-log D(x), under the discriminator's weights."""
    return jax.nn.softplus(-judge(weights, fakes)).mean()


def _stepped(player: Player, gradient: list[dict[str, Array]], running: list[dict[str, Array]]) -> Player:
    updates, moments = OPTIMIZER.update(gradient, player.moments)
    return Player(optax.apply_updates(player.weights, updates), running, moments)


def _discriminator_step(game: Game, key: Key[Array, ""], distribution: str) -> Game:
    real_key, z_key = jax.random.split(key)
    reals = DISTRIBUTIONS[distribution](real_key, BATCH)
    g = game.generator
    fakes, running = generate(g.weights, g.running, jax.random.normal(z_key, (BATCH, LATENT)), True)

    def loss(weights: list[dict[str, Array]]) -> Float[Array, ""]:
        return jax.nn.softplus(-judge(weights, reals)).mean() + jax.nn.softplus(judge(weights, fakes)).mean()

    d = _stepped(game.discriminator, jax.grad(loss)(game.discriminator.weights), [])
    return Game(g._replace(running=running), d)


def _generator_step(game: Game, key: Key[Array, ""]) -> Game:
    z = jax.random.normal(key, (BATCH, LATENT))

    def loss(weights: list[dict[str, Array]]) -> tuple[Float[Array, ""], list[dict[str, Array]]]:
        fakes, running = generate(weights, game.generator.running, z, True)
        return generator_loss(game.discriminator.weights, fakes), running

    gradient, running = jax.grad(loss, has_aux=True)(game.generator.weights)
    return game._replace(generator=_stepped(game.generator, gradient, running))


@functools.partial(jax.jit, static_argnames="distribution")
def play(games: Game, keys: Key[Array, " g"], first: int, last: int, distribution: str) -> Game:
    """Plays some games side by side: for each generator step four of the discriminator, the first of them before it.

    Args:
      games: with a leading axis of games.
      keys: a game's whole randomness; step number n of a game folds n in.
      first, last: generator steps [first, last).
      distribution: where the reals are from.
    """

    def step(game: Game, key: Key[Array, ""]) -> Game:
        keys = jax.random.split(key, 5)
        game = _generator_step(_discriminator_step(game, keys[0], distribution), keys[1])
        # A loop, so that the step is compiled once more and not three times.
        return jax.lax.scan(lambda game, draw: (_discriminator_step(game, draw, distribution), None), game, keys[2:])[0]

    def body(number: Int[Array, ""], games: Game) -> Game:
        return jax.vmap(step)(games, jax.vmap(jax.random.fold_in, (0, None))(keys, number))

    return jax.lax.fori_loop(first, last, body, games)


# --- measurements


@functools.partial(jax.jit, static_argnames="n")
def samples(games: Game, key: Key[Array, ""], n: int) -> tuple[Float[Array, "g n 2"], Float[Array, "g n 2"]]:
    """Points of each game's generator, with stored statistics, and the gradient of its loss with respect to each."""

    def one(game: Game) -> tuple[Points, Points]:
        z = jax.random.normal(key, (n, LATENT))
        points, _ = generate(game.generator.weights, game.generator.running, z, False)
        return points, jax.grad(generator_loss, argnums=1)(game.discriminator.weights, points)

    return jax.vmap(one)(games)


def wasserstein(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "n 2"]) -> float:
    """Wasserstein-1 distance of two sets of as many points, exactly: the mean length of the cheapest assignment."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if len(a) != len(b):
        raise UserError("points", f"{len(a)} and {len(b)}", "two sets of one size")
    lengths = cdist(a, b)
    return float(lengths[linear_sum_assignment(lengths)].mean())


def modes_hit(points: Float[np.ndarray, "n 2"]) -> int:
    """Number of the target's ten modes that at least a hundredth of the points lies near."""
    near = np.linalg.norm(points[:, None] - MODES, axis=-1) < 4 * MODE_WIDTH
    return int((near.mean(axis=0) >= MODE_SHARE).sum())


def measure(games: Game, seed: int, transported: int = TRANSPORTED) -> list[dict[str, float]]:
    """What each game's generator is worth for the target.

    Args:
      games: with a leading axis.
      seed: of the points that are compared; they are the same for all games.
      transported: points of the Wasserstein distance.

    Returns:
      `wasserstein`, `precision`, `recall`, `modes` and the `similarity` of the generator's descent to the way to the
      nearest target point, for each game.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 7))
    count = max(transported, MEASURED)
    target = np.asarray(DISTRIBUTIONS["target"](keys[0], count), np.float64)
    points, gradients = (np.asarray(array, np.float64) for array in samples(games, keys[1], count))
    found = []
    for own, pull in zip(points, gradients, strict=True):
        few, some = target[:MEASURED], own[:MEASURED]
        neighbours = precision_recall_density_coverage(few, some, NEIGHBOURS)
        found.append(
            {
                "wasserstein": wasserstein(target[:transported], own[:transported]),
                "precision": neighbours["precision"],
                "recall": neighbours["recall"],
                "modes": modes_hit(some),
                "similarity": gradient_similarity(some, pull[:MEASURED], few),
            }
        )
    return found


# --- the two studies


def stacked(games: Sequence[Game]) -> Game:
    """Games side by side."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *games)


def game_keys(names: Sequence[tuple[int, ...]]) -> Key[Array, " g"]:
    """A game's key from the numbers that name it."""
    return jnp.stack([functools.reduce(jax.random.fold_in, name, jax.random.key(0)) for name in names])


def histories(distribution: str, seeds: Sequence[int], steps: int = SOURCE_STEPS, every: int = INTERVAL) -> list[Game]:
    """Games with a leading axis of seeds, from a random start, before the first step and every `every` steps."""
    number = list(DISTRIBUTIONS).index(distribution)
    games = stacked([new_game(key) for key in game_keys([(number, seed) for seed in seeds])])
    keys = game_keys([(number, seed, 1) for seed in seeds])
    found = [games]
    for first in range(0, steps, every):
        games = play(games, keys, first, first + every, distribution)
        found.append(games)
    return found


def transferred(source: Game, way: str, seed: int) -> Game:
    """A game to be finetuned: the networks that `way` names are the source's, the others and all optimizers are new."""
    one_of("way", way, WAYS)
    new = new_game(game_keys([(10, seed)])[0])
    pairs = zip(Game._fields, source, new, strict=True)
    return Game(
        *(
            fresh._replace(weights=old.weights, running=old.running) if way in (role, "both") else fresh
            for role, old, fresh in pairs
        )
    )


def finetuned(
    games: Game,
    names: Sequence[tuple[int, ...]],
    seed: int,
    steps: int = FINETUNE_STEPS,
    transported: int = TRANSPORTED,
) -> list[list[dict[str, float]]]:
    """Measurements of each game before finetuning to the target and every 250 steps of it."""
    keys = game_keys([(11, *name) for name in names])
    found = [[one] for one in measure(games, seed, transported)]
    for first in range(0, steps, INTERVAL):
        games = play(games, keys, first, first + INTERVAL, "target")
        for past, now in zip(found, measure(games, seed, transported), strict=True):
            past.append(now)
    return found


class Records:
    """Finished games, one line of JSON each, so that a study that was stopped goes on.

    Args:
      path: of the file.
      keys: which entries name a game.
    """

    def __init__(self, path: Path, keys: Sequence[str]):
        self.path, self.keys = path, keys
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def missing(self, games: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are not there yet."""
        done = {tuple(line[key] for key in self.keys) for line in self.lines}
        return [game for game in games if tuple(game[key] for key in self.keys) not in done]

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Writes some more."""
        self.lines += lines
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def source_history(workdir: Path, distribution: str, seed: int) -> list[Game]:
    """A source's history, trained once and then read from the work directory."""
    path = workdir / f"{distribution}_{seed}.npz"
    template = stacked([new_game(jax.random.key(0))] * (SOURCE_STEPS // INTERVAL + 1))
    leaves, structure = jax.tree.flatten(template)
    if not path.exists():
        print(f"training the source {distribution}, seed {seed}", file=sys.stderr)
        history = [jax.tree.map(lambda leaf: leaf[0], games) for games in histories(distribution, [seed])]
        # Renamed when whole: a stopped run leaves no half of it.
        part = path.with_suffix(".part.npz")
        np.savez(part, *map(np.asarray, jax.tree.leaves(stacked(history))))
        part.rename(path)
    with np.load(path) as file:
        stack = jax.tree.unflatten(structure, [jnp.asarray(file[f"arr_{i}"]) for i in range(len(leaves))])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(SOURCE_STEPS // INTERVAL + 1)]


def _chunks(games: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(games), SIDE_BY_SIDE):
        yield list(games[start : start + SIDE_BY_SIDE])


def run_ways(workdir: Path, seeds: Sequence[int]) -> None:
    """Finetunes both sources in the four ways, to `ways.jsonl`."""
    records = Records(workdir / "ways.jsonl", ("source", "seed", "way"))
    asked = [
        {"source": source, "seed": seed, "way": way}
        for source in ("circle", "three")
        for seed in seeds
        for way in WAYS
        if (source, way) != ("three", "none")
    ]
    for chunk in _chunks(records.missing(asked)):
        games = [
            transferred(source_history(workdir, one["source"], one["seed"])[-1], one["way"], one["seed"])
            for one in chunk
        ]
        names = [(list(DISTRIBUTIONS).index(one["source"]), one["seed"], WAYS.index(one["way"])) for one in chunk]
        found = _side_by_side(games, names)
        records.add([{**one, "measured": measured} for one, measured in zip(chunk, found, strict=True)])
        print(f"{len(records.lines)} of {len(asked)} ways", file=sys.stderr)


def run_snapshots(workdir: Path, seeds: Sequence[int]) -> None:
    """Finetunes every snapshot of the circle's sources, both networks transferred, to `snapshots.jsonl`."""
    records = Records(workdir / "snapshots.jsonl", ("seed", "age"))
    ages = range(0, SOURCE_STEPS + 1, INTERVAL)
    asked = [{"seed": seed, "age": age} for seed in seeds for age in ages]
    for chunk in _chunks(records.missing(asked)):
        games = [
            transferred(source_history(workdir, "circle", one["seed"])[one["age"] // INTERVAL], "both", one["seed"])
            for one in chunk
        ]
        found = _side_by_side(games, [(20, one["seed"], one["age"]) for one in chunk])
        records.add([{**one, "measured": measured} for one, measured in zip(chunk, found, strict=True)])
        print(f"{len(records.lines)} of {len(asked)} snapshots", file=sys.stderr)


def _side_by_side(games: list[Game], names: list[tuple[int, ...]]) -> list[list[dict[str, float]]]:
    """Finetunes up to eight games; fewer are filled up, so that one compiled program serves all."""
    fill = SIDE_BY_SIDE - len(games)
    found = finetuned(stacked(games + games[:1] * fill), names + names[:1] * fill, 0)
    return found[: len(games)]


def main() -> None:
    """The command line of this file's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["ways", "snapshots"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/plane"))
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    {"ways": run_ways, "snapshots": run_snapshots}[args.what](args.workdir, seeds)


if __name__ == "__main__":
    main()
