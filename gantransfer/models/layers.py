"""Layers that families share: spectral normalisation, batch normalisation, attention and class tables.

Two rules hold for every layer that keeps something beside its parameters:

- It writes to a collection only if the caller made that collection mutable. Evaluation is an `apply` with nothing
  mutable.
- Spectral normalisation divides by the singular value found with one fresh power iteration, in evaluation too, as the
  reference implementation does (BigGAN-PyTorch); the iterated vectors are kept only where `spectral` is mutable.
  `SpectralNorm.stored` is for releases whose evaluation divides by what the stored vectors give.

A spectral layer that finds no vectors among its variables takes its kernel as it is: `normalised` folds the division
into the weights once, for layers that are not trained.

Collections: `params`; `batch_stats` {mean, var} of each normalisation; `spectral` {u `[num_svs, out]`, sigma
`[num_svs]`} of each normalised kernel, or {u `[out]`, v `[rest]`} with stored vectors; `moments` {mean, var} of the
last batch, only where a caller asks for them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float, Int

from gantransfer.models import attention, convolution
from gantransfer.models.convolution import Form

Labels = Int[Array, " n"] | Float[Array, "n k"]
Variables = Mapping[str, Any]
Init = Literal["orthogonal", "N02", "xavier", "fan_in"]
INITS: tuple[Init, ...] = ("orthogonal", "N02", "xavier", "fan_in")
# Power iterations by which fresh vectors come close to their kernel's singular value.
_FITTING = 15


@dataclass(frozen=True)
class SpectralNorm:
    """How kernels are divided by their largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    Attributes:
      num_svs: how many singular values are followed; only the first divides.
      iterations: power iterations per pass. More than one has an effect only where the vectors are kept, since the
        reference starts each of them from the stored vector.
      eps: lower bound of the norms that vectors are divided by.
      stored: both vectors of one singular value are kept, and where they are not being moved the stored ones say what
        divides (`torch.nn.utils.spectral_norm`).
    """

    num_svs: int = 1
    iterations: int = 1
    eps: float = 1e-12
    stored: bool = False


@dataclass(frozen=True)
class Recipe:
    """What all layers of one network have in common.

    Attributes:
      spectral: the rule for kernels; None leaves them as they are.
      init: distribution of fresh kernels and tables; "fan_in" draws N(0, 1 / fan_in) and zero biases, the others are
        the reference's, with biases uniform within 1 / sqrt(fan_in).
      dtype: of the operands of convolutions and products. Parameters and statistics are float32 always.
      form: which of the equal forms of `convolution` is computed.
    """

    spectral: SpectralNorm | None = None
    init: Init = "orthogonal"
    dtype: Literal["float32", "bfloat16"] = "float32"
    form: Form = "rewritten"

    def kernel_init(self, gain: float = 1.0) -> Callable[..., Array]:
        """An initializer for kernels whose last axis counts outputs; `gain` scales "fan_in" only."""
        if self.init == "orthogonal":
            return nn.initializers.orthogonal()
        if self.init == "N02":
            return nn.initializers.normal(0.02)
        if self.init == "xavier":
            return nn.initializers.xavier_uniform()
        return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")

    def bias_init(self, fan_in: int) -> Callable[..., Array]:
        """An initializer for the biases of a layer whose outputs are sums of `fan_in` products."""
        if self.init == "fan_in":
            return nn.initializers.zeros
        bound = fan_in**-0.5
        return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    def table_init(self, std: float) -> Callable[..., Array]:
        """An initializer for tables with one row per class; `std` is used by "fan_in" only."""
        return nn.initializers.normal(std) if self.init == "fan_in" else self.kernel_init()


def class_vector(table: Float[Array, "k e"], c: Labels) -> Float[Array, "n e"]:
    """Rows of a table by label, or weighted sums of its rows where `c` holds class weights `(n, k)`."""
    if jnp.issubdtype(c.dtype, jnp.floating):
        return c @ table
    return table[c]


# Spectral normalisation.


def power_iteration(
    rows: Float[Array, "rest out"], u: Float[Array, "s out"], eps: float
) -> tuple[Float[Array, "s out"], Float[Array, " s"]]:
    """One power iteration for the `s` largest singular values.

    Args:
      rows: a kernel with its outputs last, flattened to a matrix.
      u: the vectors to start from.
      eps: lower bound of the norms that vectors are divided by.

    Returns:
      The new vectors, constants for differentiation, and the singular values, differentiable in `rows`.
    """
    fixed, found_u, found_v, sigmas = lax.stop_gradient(rows), [], [], []
    for start in lax.stop_gradient(u):
        v = _unit(_orthogonal_to(fixed @ start, found_v), eps)
        new = _unit(_orthogonal_to(v @ fixed, found_u), eps)
        found_v.append(v)
        found_u.append(new)
        sigmas.append((v @ rows) @ new)
    return jnp.stack(found_u), jnp.stack(sigmas)


def _orthogonal_to(vector, found):
    for other in found:
        vector = vector - (vector @ other) * other
    return vector


def _unit(vector, eps):
    return vector / jnp.maximum(jnp.linalg.norm(vector), eps)


def _matrix(weight: Array, out_axis: int) -> Float[Array, "rest out"]:
    return weight.T if out_axis == 0 else weight.reshape(-1, weight.shape[-1])


def effective_weight(module: nn.Module, weight: Array, rule: SpectralNorm | None, out_axis: int = -1) -> Array:
    """The weight that a layer uses: divided by its singular value if the layer has spectral vectors.

    Args:
      module: the layer; its `spectral` collection is read, and written where mutable.
      weight: a kernel or a table, float32.
      rule: None for layers without spectral normalisation.
      out_axis: the axis that counts outputs: -1 of kernels, 0 of class tables.
    """
    starting = module.is_initializing()
    if rule is None or not (starting or module.has_variable("spectral", "u")):
        return weight
    if rule.stored:
        return weight / _stored_sigma(module, _matrix(weight, out_axis), rule)
    shape = (rule.num_svs, weight.shape[out_axis])
    u = module.variable("spectral", "u", lambda: jax.random.normal(module.make_rng("params"), shape))
    sigma = module.variable("spectral", "sigma", jnp.ones, (rule.num_svs,))
    keep = module.is_mutable_collection("spectral") and not starting
    vectors, rows = u.value, _matrix(weight, out_axis)
    for _ in range(rule.iterations if keep else 1):
        vectors, sigmas = power_iteration(rows, vectors, rule.eps)
    if keep:
        u.value, sigma.value = vectors, sigmas
    return weight / sigmas[0]


def _stored_sigma(module: nn.Module, rows: Float[Array, "rest out"], rule: SpectralNorm) -> Float[Array, ""]:
    """The singular value of stored vectors, which move first where `spectral` is mutable.

    Fresh vectors are made to fit their kernel, as in `torch.nn.utils.parametrizations`: random ones would divide by
    almost nothing until the first training pass.
    """
    fixed = lax.stop_gradient(rows)

    def fitted():
        start = _unit(jax.random.normal(module.make_rng("params"), (rows.shape[1],)), rule.eps)
        again = lambda _, u: _unit(_unit(fixed @ u, rule.eps) @ fixed, rule.eps)
        return lax.fori_loop(0, _FITTING, again, start)

    u = module.variable("spectral", "u", fitted)
    v = module.variable("spectral", "v", lambda: _unit(fixed @ u.value, rule.eps))
    if module.is_mutable_collection("spectral") and not module.is_initializing():
        for _ in range(rule.iterations):
            v.value = _unit(fixed @ u.value, rule.eps)
            u.value = _unit(v.value @ fixed, rule.eps)
    return lax.stop_gradient(v.value) @ rows @ lax.stop_gradient(u.value)


def normalised(variables: Variables, chosen: Callable[[str], bool], eps: float = 1e-12) -> dict[str, Any]:
    """Folds spectral normalisation into the weights of layers that are held.

    Args:
      variables: a network's variables with `params` and, if it has any, `spectral`.
      chosen: says of a leaf's path in `params` (joined with "/") whether its layer is folded.
      eps: as in `SpectralNorm`.

    Returns:
      The same variables, in which each chosen weight is what an evaluation pass would use, and its layer's
      entries in `spectral` are gone. The input is not modified.
    """
    params, spectral = flatten_dict(variables["params"]), flatten_dict(variables.get("spectral", {}))
    for layer in [path[:-1] for path in spectral if path[-1] == "u"]:
        leaf = next(layer + (name,) for name in ("kernel", "embedding") if layer + (name,) in params)
        if not chosen("/".join(leaf)):
            continue
        rows, u = _matrix(params[leaf], 0 if leaf[-1] == "embedding" else -1), spectral.pop(layer + ("u",))
        if layer + ("v",) in spectral:
            params[leaf] = params[leaf] / (spectral.pop(layer + ("v",)) @ rows @ u)
            continue
        _, sigmas = power_iteration(rows, u, eps)
        del spectral[layer + ("sigma",)]
        params[leaf] = params[leaf] / sigmas[0]
    folded = {name: tree for name, tree in variables.items() if name != "spectral"} | {"params": unflatten_dict(params)}
    return folded | ({"spectral": unflatten_dict(spectral)} if spectral else {})


# Layers with kernels.


class Dense(nn.Module):
    """A linear layer, float32 out.

    Attributes:
      features: number of outputs.
      gain: scale of fresh kernels under the "fan_in" init.
    """

    features: int
    recipe: Recipe
    use_bias: bool = True
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "n i"]) -> Float[Array, "n o"]:
        kernel = self.param("kernel", self.recipe.kernel_init(self.gain), (x.shape[-1], self.features))
        kernel = effective_weight(self, kernel, self.recipe.spectral)
        dtype = self.recipe.dtype
        out = jnp.dot(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
        if self.use_bias:
            out = out + self.param("bias", self.recipe.bias_init(x.shape[-1]), (self.features,))
        return out


class Conv(nn.Module):
    """A convolution; which one is said by `operation`, a function of `convolution` that takes (x, kernel, form).

    Attributes:
      features: number of outputs.
      size: side of the kernel.
      scale: factor on the kernel, after any normalisation.
      used: how many outputs, from the first, are computed, where not all are; those to spare only share in the
        normalisation.
    """

    features: int
    size: int
    operation: Callable[..., Array]
    recipe: Recipe
    use_bias: bool = True
    scale: float = 1.0
    used: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = effective_weight(self, self.param("kernel", self.recipe.kernel_init(), shape), self.recipe.spectral)
        if self.scale != 1.0:
            kernel = self.scale * kernel
        if self.used is not None:
            kernel = kernel[..., : self.used]
        dtype = self.recipe.dtype
        out = self.operation(x.astype(dtype), kernel.astype(dtype), self.recipe.form)
        if self.use_bias:
            bias = self.param("bias", self.recipe.bias_init(self.size**2 * x.shape[-1]), (self.features,))
            out = out + (bias if self.used is None else bias[: self.used]).astype(dtype)
        return out


class ClassTable(nn.Module):
    """A table with one row per class; called with labels or class weights it gives vectors `(n, features)`.

    Attributes:
      std: of fresh rows under the "fan_in" init.
      spectral: None for the generator's tables; the discriminator's is divided as a whole.
    """

    num_classes: int
    features: int
    recipe: Recipe
    std: float = 1.0
    spectral: SpectralNorm | None = None

    @nn.compact
    def __call__(self, c: Labels) -> Float[Array, "n e"]:
        table = self.param("embedding", self.recipe.table_init(self.std), (self.num_classes, self.features))
        return class_vector(effective_weight(self, table, self.spectral, out_axis=0), c)


# Batch normalisation.


@dataclass(frozen=True)
class NormRule:
    """How batch statistics are kept and used.

    Attributes:
      eps: added to the variance.
      decay: of the running values, per training pass that keeps them.
      running_variance: "unbiased" stores n / (n - 1) times the batch's variance, as torch's batch norm does; "biased"
        the variance itself, as the reference's own implementation does.
      rows: with more than 0, running values are kept in so many rows. Training moves all of them.
      mix: the rows that evaluation reads, as (row, weight); needed where there are rows.
    """

    eps: float = 1e-5
    decay: float = 0.9
    running_variance: Literal["unbiased", "biased"] = "unbiased"
    rows: int = 0
    mix: tuple[tuple[int, float], ...] = ()


def batch_moments(
    module: nn.Module, x: Float[Array, "n h w c"], rule: NormRule, train: bool
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and variance per channel that a normalisation layer uses, float32.

    With `train` they are the batch's, over all devices that the batch is spread over, and the running values move if
    `batch_stats` is mutable; else they are the running values. The layer `module` owns the running values.
    """
    channels = x.shape[-1]
    shape = (rule.rows, channels) if rule.rows else (channels,)
    mean = module.variable("batch_stats", "mean", jnp.zeros, shape)
    variance = module.variable("batch_stats", "var", jnp.ones, shape)
    if not train:
        return _read(mean.value, rule), _read(variance.value, rule)
    x = x.astype(jnp.float32)
    # Both sums in one pass over the data; rounding can leave a constant channel's difference below zero.
    m, square = x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))
    v = jnp.maximum(square - m * m, 0.0)
    if module.is_mutable_collection("batch_stats") and not module.is_initializing():
        count = x.size // channels
        kept = v * (count / (count - 1)) if rule.running_variance == "unbiased" else v
        mean.value = rule.decay * mean.value + (1 - rule.decay) * lax.stop_gradient(m)
        variance.value = rule.decay * variance.value + (1 - rule.decay) * lax.stop_gradient(kept)
    if module.is_mutable_collection("moments") and not module.is_initializing():
        module.put_variable("moments", "mean", jnp.broadcast_to(lax.stop_gradient(m), shape))
        module.put_variable("moments", "var", jnp.broadcast_to(lax.stop_gradient(v), shape))
    return m, v


def _read(values, rule):
    return sum(weight * values[row] for row, weight in rule.mix) if rule.rows else values


def scale_shift(
    x: Float[Array, "n h w c"],
    mean: Array,
    variance: Array,
    eps: float,
    gain: Array,
    bias: Array,
    dtype: str,
) -> Float[Array, "n h w c"]:
    """Normalises and scales with one multiply-add per value; all but `x` are `(c,)`, `(n, c)` or `(n, 1)`."""
    scale = gain * lax.rsqrt(variance + eps)
    shift = bias - mean * scale
    scale, shift = (a[..., None, None, :] for a in (scale, shift))
    return (x.astype(jnp.float32) * scale + shift).astype(dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with a gain and a bias per channel."""

    rule: NormRule
    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean, variance = batch_moments(self, x, self.rule, train)
        return scale_shift(x, mean, variance, self.rule.eps, gain, bias, self.recipe.dtype)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain `1 + gain(condition)` and bias `bias(condition)` depend on the sample.

    Attributes:
      num_classes: None where the condition is a vector per sample, which linear maps read; else the condition is
        labels, and gains and biases are class tables (never spectral).
      gain: scale of fresh maps and tables under the "fan_in" init.
      use_bias: whether the linear maps have biases.
    """

    rule: NormRule
    recipe: Recipe
    num_classes: int | None = None
    gain: float = 0.5
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], condition: Float[Array, "n e"] | Labels, train: bool
    ) -> Float[Array, "n h w c"]:
        channels = x.shape[-1]

        def of_condition(name):
            if self.num_classes is None:
                return Dense(channels, self.recipe, self.use_bias, self.gain, name=name)(condition)
            return ClassTable(self.num_classes, channels, self.recipe, std=self.gain, name=name)(condition)

        gain, bias = 1.0 + of_condition("gain"), of_condition("bias")
        mean, variance = batch_moments(self, x, self.rule, train)
        return scale_shift(x, mean, variance, self.rule.eps, gain, bias, self.recipe.dtype)


def standing_statistics(
    generator: nn.Module, variables: Variables, z: Float[Array, "s n z"], c: Array
) -> dict[str, Any]:
    """Replaces running statistics by the means over batches of fakes (BigGAN, arXiv:1809.11096, appendix).

    Args:
      generator: a generator with batch normalisation.
      variables: its variables.
      z: latents of each batch.
      c: labels `(s, n)` or class weights `(s, n, k)` of each batch.

    Returns:
      The variables with new `batch_stats`; spectral vectors have moved by one training pass per batch, as the
      reference's do.
    """

    def one_batch(spectral, batch):
        given = dict(variables) | ({"spectral": spectral} if spectral else {})
        _, changed = generator.apply(given, *batch, train=True, mutable=["moments", "spectral"])
        return changed.get("spectral", spectral), changed["moments"]

    spectral, moments = lax.scan(one_batch, variables.get("spectral", {}), (z, c))
    stats = jax.tree.map(lambda values: values.mean(0), moments)
    return dict(variables) | {"batch_stats": stats} | ({"spectral": spectral} if spectral else {})


# Attention.


class Attention(nn.Module):
    """Self-attention over positions with a learned share, zero at first (Zhang et al. 2018, arXiv:1805.08318).

    Keys and values are max-pooled 2x2; products are not scaled by their width; takes at least 8 channels.
    """

    recipe: Recipe

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        n, h, w, c = x.shape
        dtype, form = self.recipe.dtype, self.recipe.form

        def project(values, features, name):
            return Conv(features, 1, convolution.conv1x1, self.recipe, use_bias=False, name=name)(values)

        query = project(x, c // 8, "theta").reshape(n, h * w, c // 8)
        key = convolution.max_pool2(project(x, c // 8, "phi"), form).reshape(n, h * w // 4, c // 8)
        value = convolution.max_pool2(project(x, c // 2, "g"), form).reshape(n, h * w // 4, c // 2)
        weights = jax.nn.softmax(attention.scores(query, key, form)).astype(dtype)
        mixed = attention.mixed(weights, value, form)
        out = project(mixed.reshape(n, h, w, c // 2), c, "o")
        return self.param("gamma", nn.initializers.zeros, ()).astype(dtype) * out + x


def settled(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """The same map, to be summed over its pixels: in half precision it is computed before the sum is begun.

    jaxlib 0.12 makes one CPU kernel of half-precision convolutions and such a sum, and that returns noise, even NaN.
    """
    return x if x.dtype == jnp.float32 else jax.lax.optimization_barrier(x)
