"""The order of a run: every image once an epoch, chance between epochs and seeds, the same in numpy and jit."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.data.order import positions_to_draws, shuffled


def indices(seed: int, first: int, count: int, length: int) -> np.ndarray:
    return positions_to_draws(seed, np.arange(first, first + count), length, mirror=False, xp=np)[0]


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the chi-square of equally likely cells is above its mean."""
    expected = counts.mean()
    freedom = counts.size - 1
    return (((counts - expected) ** 2).sum() / expected - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 10, 31, 64, 100, 517, 1797, 7500])
def test_every_image_comes_once_in_every_epoch(length):
    epochs = max(2, 3000 // length)
    shown = indices(5, 0, epochs * length, length).reshape(epochs, length)
    np.testing.assert_array_equal(np.sort(shown, axis=1), np.broadcast_to(np.arange(length), shown.shape))


def test_large_sets_are_permuted_too():
    length = 300_001
    assert len(np.unique(indices(0, 7 * length, length, length))) == length


def test_epochs_and_seeds_differ():
    orders = [indices(seed, epoch * 50, 50, 50).tobytes() for seed in (0, 1, 2**32 - 1) for epoch in range(20)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_orders_of_a_small_set_are_equally_likely(length):
    epochs = 6000
    shown = indices(1, 0, epochs * length, length).reshape(epochs, length)
    number = {order: i for i, order in enumerate(itertools.permutations(range(length)))}
    counts = np.bincount([number[tuple(order)] for order in shown.tolist()], minlength=len(number))
    assert abs(chi_square(counts)) < 4


def test_an_image_may_come_at_any_place_and_neighbours_do_not_stick_together():
    length, epochs = 100, 4000
    shown = indices(2, 0, epochs * length, length).reshape(epochs, length).astype(int)
    for place in (0, 1, 57, 99):
        assert abs(chi_square(np.bincount(shown[:, place], minlength=length))) < 4
    steps = (shown[:, 1:] - shown[:, :-1]) % length
    assert abs(chi_square(np.bincount(steps.ravel(), minlength=length)[1:])) < 4
    descents = (steps.shape[1] - (shown[:, 1:] > shown[:, :-1]).sum(axis=1)).mean()
    # A random permutation has (n - 1) / 2 descents on average, with variance (n + 1) / 12.
    assert abs(descents - (length - 1) / 2) < 4 * math.sqrt((length + 1) / 12 / epochs)


def test_consecutive_seeds_and_epochs_are_unrelated():
    length = 1000
    orders = np.stack([indices(seed, 3 * length, length, length) for seed in range(40)]).astype(float)
    orders = np.concatenate([orders, indices(0, 0, 40 * length, length).reshape(40, length)])
    others = np.corrcoef(orders)[np.triu_indices(len(orders), 1)]
    # Seed 0 at epoch 3 is in both halves.
    assert np.isclose(others, 1).sum() == 1
    assert np.abs(others[others < 0.99]).max() < 5 / math.sqrt(length)


def test_mirroring_is_a_fair_coin_that_leaves_the_order_alone():
    positions = np.arange(20_000)
    plain, never = positions_to_draws(3, positions, 77, mirror=False, xp=np)
    order, flips = positions_to_draws(3, positions, 77, mirror=True, xp=np)
    np.testing.assert_array_equal(plain, order)
    assert not never.any()
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(positions))
    # An image is mirrored in some epochs and not in others, and neighbours do not share their coins.
    assert 0.3 < flips[order == 5].mean() < 0.7
    assert abs((flips[1:] == flips[:-1]).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(positions))
    other = positions_to_draws(4, positions, 77, mirror=True, xp=np)[1]
    assert 0.48 < (flips == other).mean() < 0.52


@pytest.mark.parametrize("length", [1, 2, 10, 1797])
def test_numpy_and_jit_agree_bit_for_bit(length):
    compiled = jax.jit(
        lambda seed, first: positions_to_draws(
            seed, first + jnp.arange(48, dtype=first.dtype), length, mirror=True, xp=jnp
        )
    )
    for seed, first in ((0, 0), (7, length - 1), (2**32 - 1, 123_456_789), (2**31, 2**31 - 100)):
        expected = positions_to_draws(seed, np.arange(first, first + 48), length, mirror=True, xp=np)
        for kind in (np.uint32, np.int32):
            got = compiled(np.uint32(seed), kind(first))
            for array, wanted in zip(got, expected, strict=True):
                np.testing.assert_array_equal(array, wanted)
                assert array.dtype == wanted.dtype


def test_positions_up_to_the_last_uint32_are_in_order():
    shown = indices(0, 2**32 - 2000, 2000, 7)
    first = -(2**32 - 2000) % 7
    whole = shown[first : first + 7 * ((2000 - first) // 7)].reshape(-1, 7)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.broadcast_to(np.arange(7), whole.shape))


def test_the_order_is_pinned():
    """A run that goes on under a newer version shows the same images; numbers made by this code."""
    assert indices(0, 0, 10, 10).tolist() == [8, 6, 9, 7, 3, 4, 1, 5, 2, 0]
    flips = positions_to_draws(0, np.arange(10), 10, mirror=True, xp=np)[1]
    assert flips.astype(int).tolist() == [0, 1, 1, 0, 0, 0, 0, 1, 0, 0]


def test_negative_seeds_and_large_seeds_are_taken_modulo_two_to_the_32():
    np.testing.assert_array_equal(indices(-1, 0, 20, 20), indices(2**32 - 1, 0, 20, 20))


@pytest.mark.parametrize("length", [0, -1, 2**31])
def test_lengths_out_of_range_are_refused(length):
    with pytest.raises(ValueError, match=str(length)):
        indices(0, 0, 1, length)


def test_whole_shuffles_are_permutations_that_streams_keep_apart():
    first, second = shuffled(500, 1, 0), shuffled(500, 1, 1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(500))
    assert (first == second).sum() < 10
    np.testing.assert_array_equal(first, shuffled(500, 1, 0))
