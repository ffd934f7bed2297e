"""Convolutions and resampling that are quick to differentiate, each beside the plain form it must equal.

Every function here takes `form`. "plain" says what is meant, in the words of the papers, and leaves derivatives to
autodiff. "rewritten" computes the same numbers (to float32 rounding) with fewer multiply-adds, by three means:

- *The closed triple.* For kernel size, stride and padding there are three bilinear maps: the convolution `S(u, k)`, its
  adjoint in the input `T(x, k)` and its adjoint in the kernel `W(u, x)`:
  `<S(u, k), x> = <u, T(x, k)> = <k, W(u, x)>`. The derivatives of each are the other two, so derivatives of any order
  use only these three programs, each written in a form that compilers have a good kernel for. Left to autodiff, the
  kernel gradient of a transposed convolution and the second derivatives of gradient penalties become convolutions with
  image-sized windows or zero-stuffed operands.
- *Folding.* Nearest upsampling before a 3x3 kernel, and mean pooling after one, are a 4x4 kernel with stride 2: 16
  multiply-adds where there were 36.
- *Commuting.* A 1x1 kernel commutes with nearest upsampling and with mean pooling: it works at the lower resolution.

Arrays are NHWC and kernels HWIO. The triple has no forward-mode derivative (`jax.jvp`), which nothing here needs.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Form = Literal["rewritten", "plain"]
FORMS: tuple[Form, Form] = ("rewritten", "plain")

Kernel = Float[Array, "kh kw i o"]
Kernel3 = Float[Array, "3 3 i o"]
Kernel1 = Float[Array, "1 1 i o"]
# Before and after a change of size or width; the letters are bound within one call.
Inputs = Float[Array, "n h w i"]
Outputs = Float[Array, "n h w o"]
Upsampled = Float[Array, "n 2*h 2*w o"]
Pooled = Float[Array, "n h//2 w//2 o"]
Size = tuple[int, int]

# Kernel gradients with fewer outputs than this are computed with input and cotangent exchanged.
_FEW_OUTPUTS = 8
# A CPU's kernel gradient over a batch that overflows its second-level cache is up to three times slower than the sum of
# those over parts that fit beside their transposed copies: measured 43 against 15 ms for 16 samples of 32x32x64.
_CACHED_VALUES = 2**17
_MOST_PARTS = 8
# With fewer outputs than this XLA leaves a convolution to another kernel on CPU, which gains nothing from parts and
# loses with each: 14 ms for 8 samples of 128x128x16 in one, 79 ms in eight.
_OUTPUTS_FOR_PARTS = 32
# Below this side the border that phases compute in vain outweighs what they save.
_SIDE_FOR_PHASES = 8


# The closed triple.


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(u: Inputs, k: Kernel, stride: int, padding: int) -> Float[Array, "n ho wo o"]:
    """`S(u, k)`: cross-correlation with equal zero padding on all sides."""
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(u, k, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def transposed(x: Float[Array, "n ho wo o"], k: Kernel, stride: int, padding: int, size: Size) -> Inputs:
    """`T(x, k)`: the adjoint of `convolve` in its input, which was `size` = (height, width) large."""

    def stuffed(x, k):
        # On a CPU, XLA takes a plain loop where a kernel is larger than its operand: 263 against 15 ms for 16 samples
        # of 4x4x256 and a 5x5 kernel. Zeros beyond the border change nothing.
        beyond = [max(0, kernel - given) for kernel, given in zip(k.shape[:2], x.shape[1:3], strict=True)]
        if any(beyond):
            x = jnp.pad(x, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))
        pads = []
        for length, kernel, given in zip(size, k.shape[:2], x.shape[1:3], strict=True):
            low = kernel - 1 - padding
            pads.append((low, length - (stride * (given - 1) + 1) - low + kernel - 1))
        flipped = lax.rev(k, (0, 1)).swapaxes(2, 3)
        return lax.conv_general_dilated(
            x, flipped, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    doubling = (stride, padding, *k.shape[:2]) == (2, 1, 4, 4) and tuple(size) == (2 * x.shape[1], 2 * x.shape[2])
    if doubling and min(x.shape[1:3]) >= _SIDE_FOR_PHASES:
        return lax.platform_dependent(x, k, cpu=_in_phases, default=stuffed)
    return stuffed(x, k)


def _in_phases(x, k):
    """`T(x, k)` for the 4x4 kernel that doubles the size, as one 2x2 convolution that makes all four phases of the
    output.

    On a CPU it takes a quarter to two thirds of the time of the convolution over zero-stuffed operands.
    """
    n, h, w, o = *x.shape[:3], k.shape[2]
    # An even output reads taps 3 and 1 of the kernel, an odd one 2 and 0.
    taps = lax.rev(k, (0, 1)).swapaxes(2, 3).reshape(2, 2, 2, 2, -1, o)
    phases = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, -1, 4 * o)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = lax.conv_general_dilated(padded, phases, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = y.reshape(n, h + 1, w + 1, 2, 2, o)
    rows = [jnp.stack([y[:, a : a + h, b : b + w, a, b] for b in (0, 1)], axis=3) for a in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, o)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def kernel_gradient(u: Inputs, x: Float[Array, "n ho wo o"], stride: int, padding: int, size: Size) -> Kernel:
    """`W(u, x)`: the adjoint of `convolve` in its kernel, which was `size` = (height, width) large."""
    if stride == 1 and x.shape[3] < _FEW_OUTPUTS <= u.shape[3] and size[0] == size[1]:
        # Few outputs make a thin product; with the roles exchanged the result is the same, turned by 180 degrees.
        exchanged = _native_kernel_gradient(x, u, 1, size[0] - 1 - padding, size)
        return lax.rev(exchanged, (0, 1)).swapaxes(2, 3)
    return _native_kernel_gradient(u, x, stride, padding, size)


def _native_kernel_gradient(u, x, stride, padding, size):
    pads = [
        (padding, stride * (given - 1) + kernel - length - padding)
        for length, kernel, given in zip(u.shape[1:3], size, x.shape[1:3], strict=True)
    ]

    def whole(u, x):
        return lax.conv_general_dilated(
            u, x, (1, 1), pads, rhs_dilation=(stride, stride), dimension_numbers=("CHWN", "IHWO", "HWNC")
        )

    def in_parts(u, x):
        # Strided parts and not contiguous ones: a batch that is spread over devices stays where it is.
        us, xs = (a.reshape(a.shape[0] // parts, parts, *a.shape[1:]) for a in (u, x))
        return sum(whole(us[:, i], xs[:, i]) for i in range(parts))

    parts = _cache_parts(u.shape[0], max(u.size, x.size)) if x.shape[3] >= _OUTPUTS_FOR_PARTS else 1
    return whole(u, x) if parts == 1 else lax.platform_dependent(u, x, cpu=in_parts, default=whole)


def _cache_parts(batch, values):
    """In how many parts a CPU takes a batch so that a part stays in its cache."""
    parts = 1
    while values > parts * _CACHED_VALUES and parts < _MOST_PARTS and batch % (2 * parts) == 0:
        parts *= 2
    return parts


def _keep(function):
    return lambda a, b, *static: (function(a, b, *static), (a, b))


def _convolve_backward(stride, padding, operands, g):
    u, k = operands
    return transposed(g, k, stride, padding, u.shape[1:3]), kernel_gradient(u, g, stride, padding, k.shape[:2])


def _transposed_backward(stride, padding, size, operands, g):
    x, k = operands
    return convolve(g, k, stride, padding), kernel_gradient(g, x, stride, padding, k.shape[:2])


def _kernel_gradient_backward(stride, padding, size, operands, g):
    u, x = operands
    return transposed(x, g, stride, padding, u.shape[1:3]), convolve(u, g, stride, padding)


convolve.defvjp(_keep(convolve), _convolve_backward)
transposed.defvjp(_keep(transposed), _transposed_backward)
kernel_gradient.defvjp(_keep(kernel_gradient), _kernel_gradient_backward)


@jax.custom_vjp
def pointwise(x: Inputs, k: Float[Array, "i o"]) -> Outputs:
    """The product over channels of a 1x1 convolution.

    Its kernel gradient is written with the input first: autodiff puts the cotangent first and transposes the result,
    for which XLA has a kernel of half the speed on CPU.
    """
    return jnp.einsum("nhwi,io->nhwo", x, k)


def _pointwise_backward(operands, g):
    x, k = operands
    # The barrier keeps XLA from making x again, element by element in the order of its transposition.
    return jnp.einsum("nhwo,io->nhwi", g, k), jnp.einsum("nhwi,nhwo->io", lax.optimization_barrier(x), g)


pointwise.defvjp(_keep(pointwise), _pointwise_backward)


# What networks call.


def conv3x3(x: Inputs, kernel: Kernel3, form: Form) -> Outputs:
    """A 3x3 convolution that keeps the size."""
    if form == "plain":
        return _plain(x, kernel)
    return convolve(x, kernel, 1, 1)


def conv1x1(x: Inputs, kernel: Kernel1, form: Form) -> Outputs:
    """A 1x1 convolution; rewritten as a product over channels."""
    if form == "plain":
        return _plain(x, kernel)
    return pointwise(x, kernel[0, 0])


def conv_same(x: Inputs, kernel: Kernel, form: Form) -> Outputs:
    """A convolution that keeps the size; an even kernel reaches one pixel further up and left than down and right."""
    side = kernel.shape[0]
    if form == "plain":
        pads = [(side // 2, (side - 1) // 2)] * 2
        return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if side % 2 == 0:
        x = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    return convolve(x, kernel, 1, (side - 1) // 2)


def conv_valid(x: Inputs, kernel: Kernel, form: Form) -> Float[Array, "n ho wo o"]:
    """A convolution where the kernel lies wholly within the map."""
    if form == "plain":
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return convolve(x, kernel, 1, 0)


def conv_down(x: Inputs, kernel: Kernel, form: Form) -> Float[Array, "n ho wo o"]:
    """A convolution with stride 2, padded by half its kernel's side; halves an even size."""
    padding = (kernel.shape[0] - 1) // 2
    if form == "plain":
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, (2, 2), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return convolve(x, kernel, 2, padding)


def conv_up(x: Inputs, kernel: Kernel, form: Form) -> Upsampled:
    """A transposed convolution with stride 2 that doubles the size.

    Pixel i of the input adds `kernel[a]` to pixel `2 * i + a - (side - 1) // 2` of the output.
    """
    side = kernel.shape[0]
    padding = (side - 1) // 2
    if form == "plain":
        pads = [(side - 1 - padding, padding + 1)] * 2
        return lax.conv_general_dilated(
            x,
            lax.rev(kernel, (0, 1)),
            (1, 1),
            pads,
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return transposed(x, kernel.swapaxes(2, 3), 2, padding, (2 * x.shape[1], 2 * x.shape[2]))


def upsample2(x: Outputs, form: Form) -> Upsampled:
    """Nearest-neighbour upsampling by 2."""
    if form == "plain":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def mean_pool2(x: Outputs, form: Form) -> Pooled:
    """The mean of each 2x2 square; sides must be even."""
    if form == "plain":
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    a, b, c, d = _corners(x)
    return 0.25 * ((a + b) + (c + d))


def max_pool2(x: Outputs, form: Form) -> Pooled:
    """The maximum of each 2x2 square; sides must be even.

    Where two of the four are equal and largest, the rewritten form shares the gradient between them and the plain form
    gives it to one; nothing else differs.
    """
    if form == "plain":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def upsample_conv3x3(x: Inputs, kernel: Kernel3, form: Form) -> Upsampled:
    """Nearest upsampling by 2, then a 3x3 convolution; rewritten as a 4x4 transposed one with stride 2."""
    if form == "plain":
        return _plain(upsample2(x, form), kernel)
    wide = lax.rev(_spread(kernel), (0, 1)).swapaxes(2, 3)
    return transposed(x, wide, 2, 1, (2 * x.shape[1], 2 * x.shape[2]))


def conv3x3_pool(x: Inputs, kernel: Kernel3, form: Form) -> Pooled:
    """A 3x3 convolution, then the mean of each 2x2 square; rewritten as a 4x4 convolution with stride 2."""
    if form == "plain":
        return mean_pool2(_plain(x, kernel), form)
    return convolve(x, 0.25 * _spread(kernel), 2, 1)


def upsample_conv1x1(x: Inputs, kernel: Kernel1, form: Form) -> Upsampled:
    """Nearest upsampling by 2 and a 1x1 convolution; rewritten with the convolution first, on fewer pixels."""
    if form == "plain":
        return conv1x1(upsample2(x, form), kernel, form)
    return upsample2(conv1x1(x, kernel, form), form)


def conv1x1_pool(x: Inputs, kernel: Kernel1, form: Form) -> Pooled:
    """A 1x1 convolution and the mean of each 2x2 square; rewritten with the mean first."""
    if form == "plain":
        return mean_pool2(conv1x1(x, kernel, form), form)
    return conv1x1(mean_pool2(x, form), kernel, form)


def _plain(x: Inputs, kernel: Kernel) -> Outputs:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _corners(x):
    return x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]


def _spread(kernel: Kernel3) -> Float[Array, "4 4 i o"]:
    """The full convolution of a kernel with a 2x2 square of ones."""
    rows = jnp.pad(kernel, ((0, 1), (0, 0), (0, 0), (0, 0))) + jnp.pad(kernel, ((1, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.pad(rows, ((0, 0), (0, 1), (0, 0), (0, 0))) + jnp.pad(rows, ((0, 0), (1, 0), (0, 0), (0, 0)))
