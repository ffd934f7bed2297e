"""The plane of gan-transfer: its game as published, studies that go on, and (slow) what pretraining brings there."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "launch" / "experiments"
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def plane():
    sys.path.insert(0, str(EXPERIMENTS))
    import plane

    yield plane
    sys.path.remove(str(EXPERIMENTS))


@pytest.fixture(scope="module")
def page(plane):
    import plane_page

    return plane_page


def test_distributions_are_the_published_ones(plane, key):
    draw = {name: np.asarray(found(key, 20000)) for name, found in plane.DISTRIBUTIONS.items()}
    radius = np.linalg.norm(draw["circle"], axis=1)
    assert abs(radius.mean() - 20) < 0.1 and abs(radius.std() - 4) < 0.1
    assert np.abs(draw["circle"].mean(axis=0)).max() < 0.5
    three = 20 * np.exp(1j * np.deg2rad([180, 144, -144]))
    centres = {"three": np.stack([three.real, three.imag], axis=1), "target": plane.MODES}
    for name, width in (("three", 0.5), ("target", 0.25)):
        way = draw[name][:, None] - centres[name]
        nearest = np.linalg.norm(way, axis=-1).argmin(axis=1)
        assert np.bincount(nearest, minlength=len(centres[name])).min() > 0.9 * 20000 / len(centres[name])
        assert abs(way[np.arange(20000), nearest].std() - width) < 0.01


def test_the_wasserstein_distance_is_that_of_the_best_assignment(plane):
    points = np.random.default_rng(0).normal(size=(50, 2))
    assert plane.wasserstein(points, points[::-1]) == 0
    assert plane.wasserstein(points, points + [3, 4]) == pytest.approx(5)
    # Each goes to its neighbour rather than to its partner.
    assert plane.wasserstein(np.array([[0.0, 0], [10, 0]]), np.array([[10.0, 1], [0, 1]])) == pytest.approx(1)
    with pytest.raises(UserError, match="50 and 49"):
        plane.wasserstein(points, points[1:])


def test_a_mode_is_hit_when_enough_samples_lie_on_it(plane):
    far = np.zeros((1000, 2))
    assert plane.modes_hit(far) == 0
    far[:10] = plane.MODES[3] + 0.5
    assert plane.modes_hit(far) == 1
    far[9] = 0
    assert plane.modes_hit(far) == 0
    assert plane.modes_hit(plane.MODES) == 10


@pytest.fixture(scope="module")
def played(plane):
    games = plane.stacked([plane.new_game(key) for key in plane.game_keys([(0,), (1,)])])
    keys = plane.game_keys([(2,), (3,)])
    return games, keys, plane.play(games, keys, 0, 3, "target")


def leaves(games, which):
    return [np.asarray(leaf[which]) for leaf in jax.tree.leaves(games)]


def test_a_game_that_was_stopped_goes_on_as_if_it_had_not_been(plane, played):
    games, keys, after = played
    parts = plane.play(plane.play(games, keys, 0, 1, "target"), keys, 1, 3, "target")
    assert all(np.array_equal(a, b) for a, b in zip(leaves(parts, 0), leaves(after, 0), strict=True))
    assert any((a != b).any() for a, b in zip(leaves(games, 0), leaves(after, 0), strict=True))


def test_a_game_does_not_see_those_beside_it(plane, played):
    games, keys, after = played
    turned = plane.play(jax.tree.map(lambda leaf: leaf[::-1], games), keys[::-1], 0, 3, "target")
    for a, b in zip(leaves(turned, 1), leaves(after, 0), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_discriminator_moves_four_times_as_often(played):
    count = lambda player: int(player.moments[0].count[0])
    assert (count(played[2].generator), count(played[2].discriminator)) == (3, 12)


def test_batch_norm_normalises_by_the_batch_in_training_and_by_what_was_kept_else(plane, key):
    game = plane.new_game(key)
    z = jax.random.normal(key, (64, plane.LATENT))
    weights, running = game.generator.weights, game.generator.running
    points, after = plane.generate(weights, running, z, True)
    first = z @ weights[0]["kernel"] + weights[0]["bias"]
    np.testing.assert_allclose(after[0]["mean"], 0.1 * first.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(after[0]["var"], 0.9 + 0.1 * jnp.var(first, axis=0, ddof=1), rtol=1e-5)
    still, kept = plane.generate(weights, running, z, False)
    assert all(np.array_equal(a["mean"], b["mean"]) for a, b in zip(kept, running, strict=True))
    # Alone in its batch a latent gives the same point only where the batch does not count.
    np.testing.assert_allclose(plane.generate(weights, running, z[:1], False)[0], still[:1], atol=1e-5)
    assert np.abs(np.asarray(points - still)).max() > 0.1


def test_a_way_takes_the_networks_that_it_names_and_new_optimizers(plane, played):
    source = jax.tree.map(lambda leaf: leaf[0], played[2])
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    for way, g, d in (("none", 0, 0), ("generator", 1, 0), ("discriminator", 0, 1), ("both", 1, 1)):
        game = plane.transferred(source, way, 5)
        assert same(game.generator.weights, source.generator.weights) == bool(g), way
        assert same(game.generator.running, source.generator.running) == bool(g), way
        assert same(game.discriminator.weights, source.discriminator.weights) == bool(d), way
        assert int(game.generator.moments[0].count) == int(game.discriminator.moments[0].count) == 0
    with pytest.raises(UserError, match="both, discriminator, generator, none"):
        plane.transferred(source, "neither", 5)


def test_finished_games_are_not_played_again(plane, tmp_path):
    path = tmp_path / "runs" / "ways.jsonl"
    asked = [{"seed": 0, "way": "none"}, {"seed": 0, "way": "both"}, {"seed": 1, "way": "none"}]
    plane.Records(path, ("seed", "way")).add([asked[1] | {"measured": []}])
    again = plane.Records(path, ("seed", "way"))
    assert again.missing(asked) == [asked[0], asked[2]]
    again.add([asked[0] | {"measured": []}])
    assert plane.Records(path, ("seed", "way")).missing(asked) == [asked[2]]


def test_a_partial_correlation_is_what_is_left_beside_a_third_number(page):
    rng = np.random.default_rng(0)
    age, noise = rng.normal(size=2000), rng.normal(size=2000)
    assert page.pearson(age + 0.3 * noise, age) > 0.9
    assert abs(page.partial_correlation(age + 0.3 * noise, age + 0.3 * rng.normal(size=2000), age)) < 0.06
    assert page.partial_correlation(age - noise, 3 * age + noise, age) == pytest.approx(-1)


# ------------------------------------------------------------------------------------- what pretraining brings there


@pytest.fixture(scope="module")
def histories(plane):
    """Games of the fat circle, three seeds side by side, every 250 steps up to 5000."""
    return plane.histories("circle", SEEDS)


def of_seed(games, seed):
    return jax.tree.map(lambda leaf: leaf[seed], games)


@pytest.mark.slow
def test_both_networks_beat_the_generator_alone_which_beats_none(plane, histories):
    """Means over seeds of the distance after 500 steps (paper: both are needed; here none, G, both: 17.5, 9.6, 5.2)."""
    ways = ("none", "generator", "both")
    distance, recall = {}, {}
    for way in ways:
        games = plane.stacked([plane.transferred(of_seed(histories[-1], seed), way, seed) for seed in SEEDS])
        names = [(0, seed, plane.WAYS.index(way)) for seed in SEEDS]
        measured = plane.finetuned(games, names, 0, steps=500, transported=512)
        distance[way] = np.mean([one[-1]["wasserstein"] for one in measured])
        recall[way] = np.mean([one[-1]["recall"] for one in measured])
    assert distance["both"] < distance["generator"] < distance["none"]
    assert distance["both"] < distance["none"] / 2
    assert recall["both"] > recall["none"] + 0.2


@pytest.mark.slow
def test_recall_tells_snapshots_and_sources_that_will_do_from_those_that_will_not(plane, page, histories):
    """Snapshots of the circle every 1000 steps, and a source of three Gaussians, which misses most of the target."""
    age = 2000
    chosen = [(0, step, histories[step // plane.INTERVAL]) for step in range(0, 5001, 1000)]
    chosen.append((1, age, plane.histories("three", SEEDS, steps=age, every=age)[-1]))
    lines = []
    for source, step, games in chosen:
        pairs = plane.stacked([plane.transferred(of_seed(games, seed), "both", seed) for seed in SEEDS])
        found = plane.finetuned(pairs, [(20, source, seed, step) for seed in SEEDS], 0, steps=500, transported=512)
        lines += [{"source": source, "age": step, "measured": one} for one in found]
    correlation = lambda name, part: page.pearson(page.column(part, name), page.column(part, "score"))
    snapshots = [line for line in lines if line["source"] == 0]
    assert correlation("recall", snapshots) < -0.5
    # Longer training alone says as much, so a claim about predictors needs sources of equal age.
    assert correlation("age", snapshots) < -0.5
    of_one_age = [line for line in lines if line["age"] == age]
    assert correlation("recall", of_one_age) < -0.8
    assert correlation("precision", of_one_age) > 0.5
