"""Which image comes when: the order of a run as a pure function of (seed, position), the same in numpy and inside jit.

The p-th image that a run shows (p counts from 0 over the whole run) belongs to epoch `p // length`; each epoch is a
fresh permutation of the set, evaluated for one position at a time: no array of the set's length, no sort, no state. So
any batch of any run can be made again by itself, a resumed run goes on exactly, and a set on the device and one that
streams from files agree by construction.

The permutation is the swap-or-not shuffle (Hoang, Morris, Rogaway 2012, "An enciphering scheme based on a card
shuffle", figure 1): every round pairs x with (k - x) mod length and swaps the pair by a coin. Unlike a Feistel network
it works for every length as it is, so nothing has to be walked back into range by a loop whose end depends on data
(which a GPU would have to report to its host), and the cost is the same for every position.
"""

from typing import Any

import numpy as np

# After 24 rounds one image in 2**24 is still where it began; frequencies of whole permutations of 2 to 6 images, and of
# differences, fixed points and descents at 1,000 images, cannot be told from random ones (tests/data/test_order.py).
ROUNDS = 24

# Positions are uint32: 4.29 billion images, 170 times the longest published training of a GAN on faces.
MAX_POSITION = 2**32 - 1

_GOLDEN = 0x9E3779B9
_U = np.uint32


def mix(x: Any) -> Any:
    """A bijection of uint32 that spreads each input bit over all output bits (constants: Wellons, hash-prospector)."""
    x = x ^ (x >> _U(16))
    x = x * _U(0x7FEB352D)
    x = x ^ (x >> _U(15))
    x = x * _U(0x846CA68B)
    return x ^ (x >> _U(16))


def key_of(seed: Any, stream: int, number: Any, *, xp: Any) -> Any:
    """Folds a seed, the constant number of a random stream and a uint32 array into keys of that array's shape.

    `seed` is a Python integer (taken modulo 2**32), or an integer scalar of `xp` that may be traced.
    """
    start = xp.asarray(_U(int(seed) % 2**32) if isinstance(seed, int | np.integer) else seed).astype(_U)
    # One-dimensional, because numpy warns of wrapping products of scalars though not of arrays.
    start = mix(mix(start.reshape(1) + _U(_GOLDEN)) + _U(stream * 0x85EBCA6B % 2**32))
    return mix(start ^ mix(number + _U(0x27D4EB2F)))


def permute(key: Any, x: Any, length: int, *, xp: Any) -> Any:
    """Sends each x in [0, length) to its place in the permutation of its key; uint32 arrays that broadcast together."""
    if length == 1:
        # XLA's CPU compiler (jax 0.10 to 0.12) fails on the rounds below when it can tell that all of them give 0.
        return xp.zeros_like(x)
    n = _U(length)
    for number in range(ROUNDS):
        word = mix(key + _U(_GOLDEN * (number + 1) % 2**32))
        partner = word % n + n - x
        partner = xp.where(partner >= n, partner - n, partner)
        # The coin must be the same for both of a pair: it is drawn from the larger.
        coin = mix(xp.maximum(x, partner) ^ word) >> _U(31)
        x = xp.where(coin == _U(1), partner, x)
    return x


def shuffled(length: int, seed: int, stream: int = 0) -> np.ndarray:
    """A whole permutation of `range(length)`, int64 `(length,)`, on the host; streams of one seed are independent."""
    numbers = np.arange(length, dtype=np.uint32)
    return permute(key_of(seed, 2, np.full(1, stream, np.uint32), xp=np), numbers, length, xp=np).astype(np.int64)


def positions_to_draws(seed: Any, positions: Any, length: int, *, mirror: bool, xp: Any) -> tuple[Any, Any]:
    """Which image is shown at each position of a run, and whether it is mirrored.

    Numpy and jax.numpy give the same bits, on every backend, since all arithmetic is on uint32.

    Args:
      seed: a Python integer or an integer scalar; may be traced.
      positions: how many images the run has shown before this one, `(b,)` integers in [0, 2**32); may be traced.
      length: images in the set, 1 to 2**31 - 1; static.
      mirror: whether half of the images, by a coin of (seed, position), are mirrored left to right.
      xp: `numpy` or `jax.numpy`.

    Returns:
      (indices int32 `(b,)` in [0, length), flips bool `(b,)`). In every epoch of `length` positions each index comes
      once.
    """
    if not 1 <= length < 2**31:
        raise ValueError(f"a set of {length} images cannot be drawn from; allowed: 1 to 2**31 - 1")
    positions = xp.asarray(positions).astype(_U)
    epoch, place = positions // _U(length), positions % _U(length)
    indices = permute(key_of(seed, 0, epoch, xp=xp), place, length, xp=xp).astype(np.int32)
    if not mirror:
        return indices, xp.zeros(positions.shape, bool)
    return indices, key_of(seed, 1, positions, xp=xp) >> _U(31) == _U(1)
