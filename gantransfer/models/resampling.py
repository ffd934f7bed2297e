"""Filtering, upsampling and downsampling with finite impulse responses, quick to differentiate as often as needed.

What is computed, per channel and axis: zeros are put between the samples (`up - 1` after each), zeros are padded or
samples cropped on both sides, a filter is applied, and every `down`-th result is kept. This is the operator that
StyleGAN2 builds all its resampling on (Karras et al. 2020, arXiv:1912.04958, appendix B).

As in `convolution`, "plain" says this in one depthwise convolution and "rewritten" gives equal numbers: an axis at a
time as sums of shifted slices, in phases where it upsamples, so that no zero is multiplied. The adjoint of such a pass
is a pass with `up` and `down` exchanged and the taps reversed; it is declared so, and derivatives of every order are
passes of this kind.

Arrays are NHWC; pairs are (vertical, horizontal). The rewritten form has no forward-mode derivative (`jax.jvp`).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gantransfer.models import convolution
from gantransfer.models.convolution import Form

Maps = Float[Array, "n h w c"]
Resampled = Float[Array, "n h2 w2 c"]
Taps = tuple[float, ...]
Pads = tuple[tuple[int, int], tuple[int, int]]

# From this length on a list of taps stays one-dimensional where nothing else is said, as in the reference.
_SEPARABLE_FROM = 8


class Filter(NamedTuple):
    """A filter as a sum of products of a column of taps and a row of taps; one product is a separable filter.

    A constant of the architecture: hashable, and compiled into programs.
    """

    products: tuple[tuple[Taps, Taps], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in taps."""
        column, row = self.products[0]
        return len(column), len(row)

    def matrix(self) -> np.ndarray:
        """The taps as a matrix `(height, width)`, float64."""
        return sum(np.outer(column, row) for column, row in self.products)

    def turned(self) -> "Filter":
        """The filter turned by 180 degrees."""
        return Filter(tuple((column[::-1], row[::-1]) for column, row in self.products))

    def scaled(self, gain: float) -> "Filter":
        """The filter with every tap multiplied by `gain`."""
        return Filter(tuple((tuple(tap * gain for tap in column), row) for column, row in self.products))


IDENTITY = Filter((((1.0,), (1.0,)),))


def prepare_taps(
    taps: Sequence | np.ndarray | float | None,
    normalize: bool = True,
    flip: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> np.ndarray:
    """Taps as published networks store them: `(height, width)`, or `(taps,)` where the filter acts along both axes.

    Args:
      taps: a list, a matrix, a number, or None for the identity.
      normalize: divides by the sum.
      flip: reverses the taps.
      gain: total gain of the filter.
      separable: whether a list stays one-dimensional; None: from 8 taps on.
    """
    f = np.atleast_1d(np.asarray(1.0 if taps is None else taps, np.float64))
    if separable is None:
        separable = f.ndim == 1 and f.size >= _SEPARABLE_FROM
    if f.ndim == 1 and not separable:
        f = np.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip:
        f = np.flip(f)
    return f * gain ** (f.ndim / 2)


def make_filter(taps: Sequence | np.ndarray | float | None) -> Filter:
    """The normalised filter of a list of taps (both axes), of a matrix, or the identity for None."""
    return filter_of(prepare_taps(taps))


def filter_of(prepared: np.ndarray) -> Filter:
    """The filter of prepared taps, as few products as its rank allows."""
    f = np.asarray(prepared, np.float64)
    if f.ndim == 1:
        return Filter(((tuple(f.tolist()), tuple(f.tolist())),))
    left, values, right = np.linalg.svd(f)
    if len(values) == 1 or values[1] <= 1e-6 * values[0]:
        # One sign for both factors, so that positive filters stay positive in each.
        sign = 1.0 if left[:, 0].sum() >= 0 else -1.0
        root = values[0] ** 0.5
        return Filter(((tuple((sign * root * left[:, 0]).tolist()), tuple((sign * root * right[0]).tolist())),))
    unit = np.eye(len(f))
    return Filter(tuple((tuple(unit[i].tolist()), tuple(row.tolist())) for i, row in enumerate(f)))


# One axis.


class _Pass(NamedTuple):
    """A pass along one axis: `out[n] = sum_k taps[k] * stuffed[n * down + k - before]`, where `stuffed` has the inputs
    at multiples of `up` and zeros elsewhere."""

    axis: int
    taps: Taps
    up: int
    down: int
    before: int
    given: int
    made: int

    def adjoint(self) -> "_Pass":
        return _Pass(
            self.axis, self.taps[::-1], self.down, self.up, len(self.taps) - 1 - self.before, self.made, self.given
        )


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _along(x: Array, how: _Pass) -> Array:
    length = -(-how.made // how.up)
    phases = []
    for r in range(how.up):
        reached = [(tap, r * how.down + k - how.before) for k, tap in enumerate(how.taps) if tap]
        phases.append([(tap, at // how.up) for tap, at in reached if at % how.up == 0])
    starts = [start for phase in phases for _, start in phase]
    low = max(0, -min(starts, default=0))
    high = max(0, max(starts, default=0) + (length - 1) * how.down + 1 - how.given)
    pads = [(0, 0, 0)] * x.ndim
    pads[how.axis] = (low, high, 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), pads) if low or high else x

    def shifted(start):
        stop = start + low + (length - 1) * how.down + 1
        return lax.slice_in_dim(padded, start + low, stop, how.down, how.axis)

    def total(phase):
        if not phase:
            shape = list(x.shape)
            shape[how.axis] = length
            return jnp.zeros(shape, x.dtype)
        return sum(tap * shifted(start) for tap, start in phase)

    if how.up == 1:
        return total(phases[0])
    shape = list(x.shape)
    shape[how.axis] = how.up * length
    out = jnp.stack([total(phase) for phase in phases], how.axis + 1).reshape(shape)
    return lax.slice_in_dim(out, 0, how.made, 1, how.axis)


_along.defvjp(lambda x, how: (_along(x, how), None), lambda how, _, g: (_along(g, how.adjoint()),))


# Both axes.


def resample(
    x: Maps,
    filter: Filter,
    form: Form,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    pads: Pads = ((0, 0), (0, 0)),
    flip: bool = False,
    gain: float = 1.0,
) -> Resampled:
    """Upsamples, pads, filters and downsamples each channel.

    Args:
      x: feature maps or images.
      filter: the taps.
      form: which of the equal forms is computed.
      up: factor of zero-stuffing.
      down: every how many-th result is kept, beginning with the first.
      pads: zeros (before, after) per axis on the stuffed grid, which has `up - 1` zeros behind the last sample too;
        negative numbers crop.
      flip: False convolves (the filter is turned), True correlates.
      gain: factor on the result.

    Returns:
      Maps of height `(h * up + before + after - filter height) // down + 1`, widths alike.
    """
    taps = (filter if flip else filter.turned()).scaled(gain)
    if form == "plain":
        return _depthwise(x, taps, up, down, pads)
    passes = []
    for axis in (0, 1):
        made = (x.shape[1 + axis] * up[axis] + sum(pads[axis]) - filter.size[axis]) // down[axis] + 1
        passes.append((up[axis], down[axis], pads[axis][0], x.shape[1 + axis], made))
    return sum(
        _along(_along(x, _Pass(1, column, *passes[0])), _Pass(2, row, *passes[1])) for column, row in taps.products
    )


def _depthwise(x, taps, up, down, pads):
    channels = x.shape[-1]
    kernel = jnp.asarray(taps.matrix(), x.dtype)[:, :, None, None].repeat(channels, 3)
    # Zeros are put in before, with those behind the last sample that dilation does not have. Were they an argument of
    # the convolution, its derivative would crop by negative padding, which jaxlib 0.10.2 gets wrong on a CPU where
    # there is a group for each channel.
    stuffed = [(before, after + factor - 1, factor - 1) for (before, after), factor in zip(pads, up, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *stuffed, (0, 0, 0)))
    return lax.conv_general_dilated(
        x, kernel, down, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels
    )


NO_PADS: Pads = ((0, 0), (0, 0))


def _wider(pads: Pads, extra: Sequence[tuple[int, int]]) -> Pads:
    (a, b), (c, d) = ((p + e, q + f) for (p, q), (e, f) in zip(pads, extra, strict=True))
    return (a, b), (c, d)


def filtered(
    x: Maps, filter: Filter, form: Form, pads: Pads = NO_PADS, flip: bool = False, gain: float = 1.0
) -> Resampled:
    """Applies a filter and keeps the size; `pads` come on top of those that keep it."""
    extra = [(taps // 2, (taps - 1) // 2) for taps in filter.size]
    return resample(x, filter, form, pads=_wider(pads, extra), flip=flip, gain=gain)


def upsampled(
    x: Maps, filter: Filter, form: Form, factor: int = 2, pads: Pads = NO_PADS, flip: bool = False, gain: float = 1.0
) -> Resampled:
    """Enlarges by `factor` and keeps the mean; `pads` come on top, on the finer grid."""
    return resample(
        x, filter, form, (factor, factor), pads=_wider(pads, _up_pads(filter, factor)), flip=flip, gain=gain * factor**2
    )


def downsampled(
    x: Maps, filter: Filter, form: Form, factor: int = 2, pads: Pads = NO_PADS, flip: bool = False, gain: float = 1.0
) -> Resampled:
    """Filters and keeps every `factor`-th sample; `pads` come on top."""
    return resample(
        x, filter, form, down=(factor, factor), pads=_wider(pads, _down_pads(filter, factor)), flip=flip, gain=gain
    )


def _up_pads(filter, factor):
    return [((taps + factor - 1) // 2, (taps - factor) // 2) for taps in filter.size]


def _down_pads(filter, factor):
    return [((taps - factor + 1) // 2, (taps - factor) // 2) for taps in filter.size]


# With a convolution.


def convolve_resampled(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    filter: Filter,
    form: Form,
    up: int = 1,
    down: int = 1,
    pads: Pads | int = 0,
    turn_kernel: bool = False,
    flip_filter: bool = False,
) -> Float[Array, "n h2 w2 o"]:
    """Upsamples, convolves and downsamples; rewritten in the order that costs least, which changes no number.

    Args:
      x, kernel: maps and a kernel.
      filter: of the resampling; not used where both factors are 1.
      up, down: factors.
      pads: zeros on the upsampled grid, on top of those that keep the grid's phase.
      turn_kernel: False correlates; True turns the kernel by 180 degrees (a convolution in the mathematical sense).
      flip_filter: as `flip` of `resample`.
    """
    wide: Pads = ((pads, pads), (pads, pads)) if isinstance(pads, int) else pads
    if up > 1:
        wide = _wider(wide, _up_pads(filter, up))
    if down > 1:
        wide = _wider(wide, _down_pads(filter, down))
    if turn_kernel and kernel.shape[:2] != (1, 1):
        kernel = lax.rev(kernel, (0, 1))
    run = _in_words if form == "plain" else _in_best_order
    return run(x, kernel, filter, up, down, wide, flip_filter)


def _in_words(x, kernel, filter, up, down, pads, flip):
    first = filter if up > 1 else IDENTITY
    x = resample(x, first, "plain", (up, up), pads=pads, flip=flip, gain=float(up**2))
    x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return resample(x, filter, "plain", down=(down, down), flip=flip) if down > 1 else x


def _in_best_order(x, kernel, filter, up, down, pads, flip):
    go = partial(resample, filter=filter, form="rewritten", flip=flip)
    point = kernel.shape[:2] == (1, 1)
    if up == 1 and down == 1:
        return _convolve(x, kernel, pads)
    if point and up == 1:
        return convolution.pointwise(go(x, down=(down, down), pads=pads), kernel[0, 0])
    if point and down == 1:
        return go(convolution.pointwise(x, kernel[0, 0]), up=(up, up), pads=pads, gain=float(up**2))
    if up == 1:
        return convolution.convolve(go(x, pads=pads), kernel, down, 0)
    # A transposed convolution multiplies no stuffed zero; what it adds to the size is taken from the filter's pads.
    size = tuple(up * (length - 1) + taps for length, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    adjoint = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    x = convolution.transposed(x, adjoint, up, 0, size)
    taken = [(1 - taps, up - taps) for taps in kernel.shape[:2]]
    x = go(x, pads=_wider(pads, taken), gain=float(up**2))
    return go(x, down=(down, down)) if down > 1 else x


def _convolve(x, kernel, pads):
    sides = {side for pair in pads for side in pair}
    if len(sides) == 1 and min(sides) >= 0:
        if kernel.shape[:2] == (1, 1) and sides == {0}:
            return convolution.pointwise(x, kernel[0, 0])
        return convolution.convolve(x, kernel, 1, sides.pop())
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)))
    return convolution.convolve(x, kernel, 1, 0)
