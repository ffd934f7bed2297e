"""Metrics of pictures under LPIPS: diversity, diversity inside clusters, perceptual path length.

LPIPS compares maps of a network's stages. Records say which learned heads weigh the channels; without any, every
channel weighs 1, the "baseline" of the paper.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from gantransfer.errors import UserError, one_of
from gantransfer.features import RANDOM, pixels
from gantransfer.features.lpips import STAGES, load_heads
from gantransfer.metrics.distances import BLOCK
from gantransfer.metrics.metric import Case
from gantransfer.metrics.paths import SPACES, path_length, path_pictures, path_step
from gantransfer.metrics.perceptual import intra_cluster_diversity, lpips, pairwise_diversity
from gantransfer.metrics.perceptual_network import Lpips
from gantransfer.metrics.pictures import GeneratedPictures, Pictures
from gantransfer.pretrained.source import in_batches, latents

LEAST_SIZE_PX = 64
NO_HEADS = "none"
SAMPLINGS = ("end", "full")


def levels_apart(network: Any, heads: str | None) -> Callable[[Any, Array, Array], Float[Array, " n"]]:
    """A function of the network's parameters and two sets of pictures, in levels of 255, to their distances.

    Args:
      network: a trunk of LPIPS, or any network whose stages are maps: they all count then, without heads.
      heads: a file of them; None: the published ones; "none": none. Random trunks go without.

    Raises:
      UserError: for a network without maps, or heads that cannot be had.
    """
    plain = network.name.removeprefix(RANDOM)
    if plain in STAGES:
        without = heads == NO_HEADS or (heads is None and plain != network.name)
        found = Lpips(network, None if without else load_heads(plain, heads))
        scaled = lambda images: pixels.to_rgb(images) / 127.5 - 1
        return lambda params, a, b: found.distance(params, scaled(a), scaled(b))
    if not network.stages:
        raise UserError("lpips", network.name, "a network with stages that are maps: vgg16 or alexnet")
    stages = tuple(network.stages)

    def maps(params: Any, images: Float[Array, "n h w c"]) -> list[Array]:
        found = network.forward(params, images, stages)
        if any(found[name].ndim != 4 for name in stages):
            raise UserError("lpips", network.name, "a network whose stages are maps: vgg16 or alexnet")
        return [found[name] for name in stages]

    return lambda params, a, b: lpips(maps(params, a), maps(params, b), None)


def heads_named(network: Any, heads: str | None) -> str:
    """Which heads weigh the channels, for records."""
    plain = network.name.removeprefix(RANDOM)
    if plain not in STAGES or heads == NO_HEADS or (heads is None and plain != network.name):
        return "none: every channel weighs 1"
    return heads or "published, version 0.1"


@partial(jax.jit, static_argnums=(0, 1))
def _resized_apart(apart: Any, size: int | None, params: Any, a: Array, b: Array) -> Float[Array, " n"]:
    if size is not None:
        a, b = (pixels.resize(images, (size, size), "pillow_bicubic", clip=True) for images in (a, b))
    return apart(params, a, b)


class Comparer:
    """LPIPS distances of pictures.

    Args:
      network: with stages.
      settings: `size` in pixels to resize to, `heads`.
    """

    def __init__(self, network: Any, size: int | None, heads: str | None):
        if size is not None and size < LEAST_SIZE_PX and network.name.removeprefix(RANDOM) in STAGES:
            raise UserError("lpips", f"{size} px", f"at least {LEAST_SIZE_PX}")
        self.network, self.size, self.apart = network, size, levels_apart(network, heads)

    def __call__(self, a: UInt8[np.ndarray, "n h w c"], b: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
        """Distances of pairs."""
        call = partial(_resized_apart, self.apart, self.size, self.network.params)
        return in_batches(call, a, b)


def diversity(case: Case) -> float:
    """Mean distance of random pairs of samples."""
    pictures, settings = case.fake_pictures, case.settings
    compare = Comparer(case.network, settings["size"], settings["heads"])
    return pairwise_diversity(_by_number(compare, pictures), len(pictures), settings["pairs"], case.seed)


def _by_number(compare: Comparer, pictures: Pictures) -> Callable[..., Float[np.ndarray, " p"]]:
    """Distances of pictures given by number; each is read or generated once for a call."""

    def distance(first: Int[np.ndarray, " p"], second: Int[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        needed, where = np.unique(np.concatenate([first, second]), return_inverse=True)
        images = pictures.read(needed)
        return compare(images[where[: len(first)]], images[where[len(first) :]])

    return distance


def intra_cluster(case: Case) -> dict[str, float | int]:
    """Mean distance inside clusters of samples with one nearest training image."""
    settings, train = case.settings, case.train_pictures
    clusters = len(train)
    compare = Comparer(case.network, settings["size"], settings["heads"])
    centres = train.read(np.arange(clusters))
    count = min(settings["samples"], len(case.fake_pictures))
    nearest = np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        images = case.fake_pictures.read(np.arange(start, min(start + BLOCK, count)))
        apart = [compare(images, np.broadcast_to(centre, images.shape)) for centre in centres]
        nearest[start : start + len(images)] = np.argmin(apart, axis=0)
    distance = _by_number(compare, case.fake_pictures)
    return intra_cluster_diversity(nearest, distance, clusters, settings["limit"], case.seed)


def perceptual_path_length(case: Case) -> float:
    """Perceptual path length of a source's generator, in float32.

    Raises:
      UserError: for the space w of a generator that has none, or half precision, in which the step is lost.
    """
    fake, settings = case.fake_pictures, case.settings
    assert isinstance(fake, GeneratedPictures)
    networks, space = fake.source.networks, one_of("ppl.space", settings["space"], SPACES)
    one_of("ppl.sampling", settings["sampling"], SAMPLINGS)
    if space == "w" and not hasattr(networks.generator, "synthesis"):
        raise UserError("ppl.space", "w", f"z: a {fake.source.info.family} generator has no w; --set ppl.space=z")
    if fake.source.info.options.get("dtype", "float32") != "float32":
        raise UserError("ppl", fake.source.info.options["dtype"], "a generator that computes in float32")
    if fake.group > 1:
        raise UserError("--batch_norm", fake.batch_norm.kind, "stored or standing for ppl: a path has no batch")
    pairs, rng = settings["pairs"], np.random.Generator(np.random.PCG64([case.seed, 1]))
    a, b = (latents(pairs, networks.z_dim, case.seed + which, latent=networks.latent) for which in (0, 2**30))
    t = rng.random(pairs, np.float32) if settings["sampling"] == "full" else np.zeros(pairs, np.float32)
    labels = fake.labels[rng.integers(0, len(fake), pairs)]
    apart = levels_apart(case.network, settings["heads"])
    step = partial(_steps, networks.generator, apart, space, settings["crop"], settings["epsilon"])
    distances = in_batches(partial(step, fake.constants, case.network.params), a, b, t, labels)
    return path_length(distances)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _steps(
    generator: Any,
    apart: Any,
    space: str,
    crop: bool,
    epsilon: float,
    variables: Any,
    params: Any,
    a: Float[Array, "n z"],
    b: Float[Array, "n z"],
    t: Float[Array, " n"],
    labels: Int[Array, " n"],
) -> Float[Array, " n"]:
    """Distances of both ends of steps, over epsilon squared."""
    if space == "w":
        # Every layer has the same style, so the path is one in w.
        ends = [generator.apply(variables, z, labels, method="mapping") for z in (a, b)]
        near, far = path_step(ends[0][:, 0], ends[1][:, 0], t, "w", epsilon)
        styles = [jnp.broadcast_to(w[:, None], ends[0].shape) for w in (near, far)]
        images = [generator.apply(variables, ws, method="synthesis").images for ws in styles]
    else:
        images = [generator.apply(variables, z, labels).images for z in path_step(a, b, t, "z", epsilon)]
    first, second = (path_pictures(picture.astype(jnp.float32), crop) for picture in images)
    return apart(params, first, second) / epsilon**2
