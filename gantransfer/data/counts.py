"""Pictures that are 8x8 ink counts from 0 to 16: scikit-learn's handwritten digits, and the rule that enlarges them.

The digits were made by scanning 32x32 binary fields and counting the ink in each 4x4 block. The rendered letters
(`glyphs.py`) are made the same way, so both share the enlarging rule here and look alike to a network.
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

from gantransfer.errors import UserError

LEVELS = 16
SIDE = 8
TEST_DIGITS = 360


def enlarge(counts: UInt8[np.ndarray, "n 8 8"], resolution: int = 16) -> UInt8[np.ndarray, "n h w 1"]:
    """Turns ink counts into grey pictures.

    grey = round(count * 255 / 16), then bilinear to the resolution (half-pixel centres, edges clamped), then rounded.

    Args:
      counts: ink per block, 0 to 16.
      resolution: side of the pictures in pixels, at least 8.

    Raises:
      UserError: if the resolution is below 8, where blocks would be skipped.
    """
    if resolution < SIDE:
        raise UserError("data.resolution", resolution, f"an integer of at least {SIDE}")
    if counts.size and counts.max() > LEVELS:
        raise ValueError(f"ink counts go from 0 to {LEVELS}, got {counts.max()}")
    grey = np.rint(np.arange(LEVELS + 1) * (255 / LEVELS))[counts]
    rule = _bilinear_matrix(resolution)
    pictures = np.einsum("ij,njk,lk->nil", rule, grey, rule, optimize=True)
    return np.rint(pictures).astype(np.uint8)[..., None]


def _bilinear_matrix(resolution: int) -> np.ndarray:
    """Weights `(resolution, 8)` that take a row of blocks to a row of pixels."""
    centre = (np.arange(resolution) + 0.5) * (SIDE / resolution) - 0.5
    left = np.floor(centre).astype(int)
    share = centre - left
    matrix = np.zeros((resolution, SIDE))
    rows = np.arange(resolution)
    np.add.at(matrix, (rows, np.clip(left, 0, SIDE - 1)), 1 - share)
    np.add.at(matrix, (rows, np.clip(left + 1, 0, SIDE - 1)), share)
    return matrix


@functools.cache
def digit_counts() -> tuple[UInt8[np.ndarray, "1797 8 8"], Int[np.ndarray, " 1797"]]:
    """Returns the 1,797 digits that come with scikit-learn, in its order: ink counts and int32 labels 0 to 9."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    counts, labels = bundle.images.astype(np.uint8), bundle.target.astype(np.int32)
    counts.setflags(write=False)
    labels.setflags(write=False)
    return counts, labels


@functools.cache
def digits_split() -> tuple[Int[np.ndarray, " 1437"], Int[np.ndarray, " 360"]]:
    """Splits the digits once and for all into 1,437 training and 360 test indices, both ascending.

    Stratified: each class gives the same share to the test part (largest remainders make the sum exact), drawn by
    `numpy.random.Generator(PCG64(0))` one class after the other. The shipped digits classifier has seen no test digit.
    """
    _, labels = digit_counts()
    members = [np.flatnonzero(labels == digit) for digit in range(10)]
    exact = np.array([len(m) for m in members]) * (TEST_DIGITS / len(labels))
    share = np.floor(exact).astype(int)
    short = TEST_DIGITS - share.sum()
    share[np.argsort(share - exact, kind="stable")[:short]] += 1
    rng = np.random.Generator(np.random.PCG64(0))
    test = np.sort(np.concatenate([rng.permutation(m)[:s] for m, s in zip(members, share, strict=True)]))
    train = np.setdiff1d(np.arange(len(labels)), test)
    for part in (train, test):
        part.setflags(write=False)
    return train, test
