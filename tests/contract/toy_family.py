"""A family as small as can be, so that the battery compiles in seconds: 8 px, two blocks a side, all kinds of groups.

It also shows what a family has to declare: the calls, the groups, the blocks and the leaves with one row per class.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from gantransfer.models.family import ClassRows, Family, Judgement, Labels, Networks, Option, Picture, Role

SIZE, WIDTH = 8, 4


class Rows(nn.Module):
    """One row per class, mixed by class weights."""

    num_classes: int
    dim: int

    @nn.compact
    def __call__(self, c: Labels) -> Array:
        table = self.param("embedding", nn.initializers.normal(1.0), (self.num_classes, self.dim))
        return (jax.nn.one_hot(c, self.num_classes) if c.ndim == 1 else c) @ table


class Block(nn.Module):
    """A convolution that changes the size."""

    transposed: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = nn.ConvTranspose if self.transposed else nn.Conv
        return nn.leaky_relu(conv(WIDTH, (3, 3), (2, 2), name="conv")(x), 0.2)


class Generator(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, z: Array, c: Labels, train: bool = False, want: tuple[str, ...] = ()) -> Picture:
        given = jnp.concatenate([z, Rows(self.num_classes, 3, name="shared")(c)], axis=1)
        x, stages = nn.Dense(4 * WIDTH, name="linear")(given).reshape(-1, 2, 2, WIDTH), {}
        for i in range(2):
            x = Block(True, name=f"block_{i}")(x)
            stages[f"b{x.shape[1]}"] = x
        images = jnp.tanh(nn.Conv(1, (1, 1), name="out")(x))
        return Picture(images, {name: stages[name] for name in want})


class Discriminator(nn.Module):
    num_classes: int
    fade: bool = True

    @nn.compact
    def __call__(self, x: Array, c: Labels, train: bool = False, want: tuple[str, ...] = ()) -> Judgement:
        stages = {}
        share = self.param("fade", nn.initializers.constant(0.8), ())
        for i in range(2):
            name, given, x = f"b{x.shape[1]}", x, Block(False, name=f"block_{i}")(x)
            if i == 0:
                x = share * x + (1 - share) * nn.avg_pool(given, (2, 2), (2, 2))
            stages[name] = x
        features = stages["pooled"] = x.mean((1, 2))
        logits = nn.Dense(1, name="head")(features)[:, 0] + (
            Rows(self.num_classes, WIDTH, name="embed")(c) * features
        ).sum(1)
        return Judgement(
            logits, {name: stages[name] for name in want}, nn.Dense(self.num_classes, name="class_head")(features)
        )


GROUPS = {"shared": "class_embedding", "linear": "linear", "out": "output"} | {
    "embed": "projection",
    "head": "head",
    "class_head": "class_head",
    "fade": "fade",
}


def block(role: Role, path: str) -> int | None:
    """Number of a leaf's block."""
    module = path.split("/")[0]
    return int(module[-1]) if module.startswith("block_") else None


def group(role: Role, path: str) -> str:
    """Group of a leaf: a block by the size that the generator's makes or the discriminator's is given."""
    number = block(role, path)
    if number is None:
        return GROUPS[path.split("/")[0]]
    return f"blocks.{4 * 2**number if role == 'generator' else SIZE // 2**number}"


def build(**options: Any) -> Networks:
    """Both networks; the compute options that runs set are accepted and change nothing."""
    o: Mapping[str, Any] = {name: option.default for name, option in OPTIONS.items()} | options
    rows: dict[Role, tuple[ClassRows, ...]] = {
        "generator": (ClassRows("shared/embedding", 0),),
        "discriminator": (
            ClassRows("embed/embedding", 0),
            ClassRows("class_head/kernel", 1),
            ClassRows("class_head/bias", 0),
        ),
    }
    return Networks(
        generator=Generator(o["num_classes"]),
        discriminator=Discriminator(o["num_classes"]),
        z_dim=3,
        resolution=SIZE,
        channels=1,
        num_classes=o["num_classes"],
        group=group,
        block=block,
        class_rows=rows,
        joint_pass=False,
        has_class_head=True,
    )


OPTIONS = {
    "resolution": Option(SIZE, (SIZE,), "side of the images, in pixels"),
    "channels": Option(1, (1,), "colour channels"),
    "num_classes": Option(3, int, "number of classes"),
    "convolution": Option("rewritten", ("rewritten", "plain"), "ignored"),
    "dtype": Option("float32", ("float32", "bfloat16"), "ignored"),
}
FAMILY = Family("toy", OPTIONS, build, "none")
