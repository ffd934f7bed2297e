"""DiffAugment: shows the discriminator randomly coloured, moved and cut images, reals and fakes alike.

Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training", section 3. Every operation of the
policy is always applied, from left to right, with draws of its own for each image; gradients flow through all of them
to the generator.

`color` is brightness, saturation, contrast in this order, as in the released code, where `x` names rows and `y`
columns. As there, colours are not clipped, what a translation brings in and what a cutout takes away is 0 (mid grey),
and the hole of a cutout is cut off at the border: between a quarter of its nominal area and all of it. Additions of
this project: the three operations of `color` as words of their own, their strengths (1 as published), and `fill`, for
sets whose background is black (-1).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gantransfer.errors import one_of
from gantransfer.methods.hooks import Keys, Method, MethodState, Players, Side, register
from gantransfer.models.family import Labels

Images = Float[Array, "n h w c"]
Uniform = Float[Array, " n"]
Pixels = Int[Array, " n"]
Fill = Literal["zero", "minimum", "edge"]

COLOR = ("brightness", "saturation", "contrast")
WORDS = (*COLOR, "translation", "cutout")


def parse_policy(policy: str) -> tuple[str, ...]:
    """Returns the operations of a comma list in order, `color` spelt out; empty text is no operation."""
    words = [word.strip() for word in policy.split(",")] if policy.strip() else []
    for word in words:
        one_of("differentiable_augment.policy", word, (*WORDS, "color"))
    return tuple(operation for word in words for operation in (COLOR if word == "color" else (word,)))


def adjust_brightness(x: Images, u: Uniform, strength: float = 1.0) -> Images:
    """Adds `strength * (u - 0.5)` to every pixel; `u` in [0, 1), one per image."""
    return x + strength * (_each(u) - 0.5)


def adjust_saturation(x: Images, u: Uniform, strength: float = 1.0) -> Images:
    """Scales the distance to each pixel's grey by `1 + strength * (2 u - 1)`; the identity for one channel."""
    grey = jnp.mean(x, axis=3, keepdims=True)
    return (x - grey) * (1 + strength * (2 * _each(u) - 1)) + grey


def adjust_contrast(x: Images, u: Uniform, strength: float = 1.0) -> Images:
    """Scales the distance to each image's mean by `1 + strength * (u - 0.5)`."""
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (1 + strength * (_each(u) - 0.5)) + mean


def translate(x: Images, rows: Pixels, columns: Pixels, fill: Fill = "zero") -> Images:
    """Moves each image up by `rows` and left by `columns` pixels (down and right where they are negative).

    Args:
      x: images.
      rows, columns: whole pixels, one per image.
      fill: what comes in: 0, -1 (black) or the nearest pixel of the border.
    """
    for axis, shift in ((1, rows), (2, columns)):
        size = x.shape[axis]
        source = jnp.arange(size) + shift[:, None]
        outside = (source < 0) | (source >= size)
        source, outside = (jnp.expand_dims(index, (3, 3 - axis)) for index in (jnp.clip(source, 0, size - 1), outside))
        x = jnp.take_along_axis(x, source, axis=axis)
        if fill != "edge":
            x = jnp.where(outside, 0.0 if fill == "zero" else -1.0, x)
    return x


def cutout(x: Images, rows: Pixels, columns: Pixels, ratio: float = 0.5) -> Images:
    """Sets a box of each image to 0: `ratio` of the sides, rounded, centred on (rows, columns), inside the image.

    Where the side `k` of the box is even, `k / 2` pixels lie before its centre and `k / 2 - 1` behind it.
    """
    inside = jnp.ones((), bool)
    for axis, centre in ((1, rows), (2, columns)):
        size = x.shape[axis]
        first = centre[:, None] - _pixels(size, ratio) // 2
        covered = (jnp.arange(size) >= first) & (jnp.arange(size) < first + _pixels(size, ratio))
        inside = inside & jnp.expand_dims(covered, (3, 3 - axis))
    return jnp.where(inside, 0.0, x)


def draw_shifts(keys: Keys, size: int, ratio: float) -> Pixels:
    """One whole shift per key, uniform from `-s` to `s`, where `s` is `ratio` of `size`, rounded."""
    reach = _pixels(size, ratio)
    return jax.vmap(lambda key: jax.random.randint(key, (), -reach, reach + 1))(keys)


def draw_centres(keys: Keys, size: int, ratio: float) -> Pixels:
    """One centre of a hole per key: uniform from 0 to `size` for holes of even size, to `size - 1` for odd ones."""
    odd = _pixels(size, ratio) % 2
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, size + 1 - odd))(keys)


def _pixels(size: int, ratio: float) -> int:
    return int(size * ratio + 0.5)


def _each(draws: Uniform) -> Float[Array, "n 1 1 1"]:
    return draws[:, None, None, None]


@register("differentiable_augment")
@dataclass(frozen=True)
class DifferentiableAugment(Method):
    """Settings of DiffAugment.

    Attributes:
      policy: comma list of `color`, `brightness`, `saturation`, `contrast`, `translation`, `cutout`, done in this
        order.
      translation_ratio: largest shift as a share of the side, rounded to pixels (2 pixels of 16).
      cutout_ratio: side of the hole as a share of the image's side.
      brightness: strength; brightness moves by up to half of it either way.
      saturation: strength; colours are scaled by 1 - strength to 1 + strength.
      contrast: strength; contrast is scaled by 1 - strength / 2 to 1 + strength / 2.
      fill: what a translation brings in: `zero` (mid grey, as published), `minimum` (black), `edge` (the border
        repeated).
    """

    policy: str = "color,translation,cutout"
    translation_ratio: float = 0.125
    cutout_ratio: float = 0.5
    brightness: float = 1.0
    saturation: float = 1.0
    contrast: float = 1.0
    fill: Fill = "zero"

    def check(self) -> None:
        parse_policy(self.policy)
        for setting in ("translation_ratio", "cutout_ratio", "saturation"):
            self.limit(setting, 0.0, 1.0)
        for setting in ("brightness", "contrast"):
            self.limit(setting, 0.0, 2.0)

    def view(
        self, keys: Keys, x: Images, c: Labels, side: Side, players: Players, state: MethodState
    ) -> tuple[Images, Labels]:
        for position, operation in enumerate(parse_policy(self.policy)):
            own = jax.vmap(lambda key, position=position: jax.random.fold_in(key, position))(keys)
            x = self._apply(operation, x, own)
        return x, c

    def _apply(self, operation: str, x: Images, keys: Keys) -> Images:
        """One operation of the policy, with draws from keys that nothing else uses."""
        if operation in COLOR:
            adjust = {"brightness": adjust_brightness, "saturation": adjust_saturation, "contrast": adjust_contrast}
            return adjust[operation](x, jax.vmap(jax.random.uniform)(keys), getattr(self, operation))
        by_rows, by_columns = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        height, width = x.shape[1:3]
        if operation == "translation":
            ratio = self.translation_ratio
            return translate(x, draw_shifts(by_rows, height, ratio), draw_shifts(by_columns, width, ratio), self.fill)
        ratio = self.cutout_ratio
        return cutout(x, draw_centres(by_rows, height, ratio), draw_centres(by_columns, width, ratio), ratio)
