"""Sides and a feature network as small as can be: a projection of the pixels, which compiles in no time."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gantransfer.data.image_set import ArrayPixels, ImageSet


class Projection:
    """Eight features and three logits: fixed combinations of the pixels of 8x8 grey images.

    Args:
      seed: of the weights.
      broken: images whose first pixel is 7 get NaN features.
    """

    stages = ("map",)
    outputs = ("pooled", "logits")

    def __init__(self, seed=0, name="projection", broken=False, scale=1.0):
        rng = np.random.Generator(np.random.PCG64(seed))
        self.name, self.broken = name, broken
        self.params = {
            "features": jnp.asarray(scale * rng.normal(size=(64, 8)) / 8, jnp.float32),
            "logits": jnp.asarray(rng.normal(size=(64, 3)), jnp.float32),
        }
        self.info = {"preprocessing": {"pipeline": "none"}}
        self.sha256 = hashlib.sha256(np.asarray(self.params["features"]).tobytes()).hexdigest()
        self.traced = 0

    def forward(self, params, images, want=()):
        self.traced += 1
        x = (images.astype(jnp.float32) / 255).reshape(len(images), -1)
        features = jnp.matmul(x, params["features"], precision="highest")
        if self.broken:
            features = jnp.where(images[:, :1, 0, 0] == 7, jnp.nan, features)
        made = {
            "features": features,
            "pooled": features,
            "logits": jnp.matmul(x, params["logits"], precision="highest"),
            # Two channels: LPIPS scales every pixel's channels to unit length.
            "map": jnp.concatenate([images, 255.0 - images], axis=-1) / 255,
        }
        return {name: made[name] for name in want or ("features", *self.outputs)}

    def __call__(self, images, want=()):
        return jax.tree.map(np.asarray, self.forward(self.params, jnp.asarray(images), want))


def image_set(count=50, seed=0, size=8, classes=3, name="noise", spread=60.0, images=None):
    """Grey noise around a level that tells the class."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = (np.arange(count) % classes).astype(np.int32)
    if images is None:
        levels = 60 * (labels[:, None, None, None] + 1)
        images = np.clip(rng.normal(levels, spread, (count, size, size, 1)), 0, 255).astype(np.uint8)
    return ImageSet(
        name=name,
        resolution=size,
        channels=1,
        class_names=tuple(f"class{k}" for k in range(classes)),
        labels=labels,
        files=tuple(f"{i:04d}.png" for i in range(count)),
        pixels=ArrayPixels(images),
        rows=np.arange(count, dtype=np.int32),
        numbering="as made",
    )


def write_folder(path, images):
    """Writes a set as PNG files, a folder for each class."""
    for i in range(len(images)):
        picture, label = images.read(i)
        place = path / images.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(place / f"{i:04d}.png")
    return path
