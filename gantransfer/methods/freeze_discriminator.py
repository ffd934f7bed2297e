"""FreezeD: holds the blocks of the discriminator that are nearest to the image.

Mo, Cho and Shin 2020, "Freeze the discriminator: a simple baseline for fine-tuning GANs". Low layers see edges and
textures, which the source has learnt already; held, they cannot overfit few images. The heads always train there.

Released code counts differently for each network: blocks of SNGAN-projection (3 of 6), progression blocks of StyleGAN
with all its layers from RGB (4 of 7 at 256 pixels), single layers in StyleGAN2-ADA. Here a block, with its attention,
counts as one everywhere, as in SNGAN. Held layers are not differentiated, but gradients pass through them to the image,
so R1 works as before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp

from gantransfer.errors import UserError
from gantransfer.methods.hooks import Method, register
from gantransfer.models.family import Networks, Role


@register("freeze_discriminator")
@dataclass(frozen=True)
class FreezeDiscriminator(Method):
    """Settings of FreezeD; exactly one of `blocks` and `resolution` is given.

    Attributes:
      blocks: how many blocks to hold, counted from the image.
      resolution: holds every block whose input is at least this size, in pixels.
      heads: whether everything behind the blocks is held too (logit, projection and class heads).
    """

    blocks: int | None = None
    resolution: int | None = None
    heads: bool = False

    def check(self) -> None:
        check_one_given(self)

    def needs(self, networks: Networks) -> None:
        check_range(self, networks, "discriminator")

    def freeze(self, role: Role, path: str, networks: Networks) -> bool:
        if role != "discriminator":
            return False
        block = networks.block(role, path)
        if block is None:
            return self.heads and networks.group(role, path) in ("head", "projection", "class_head")
        if self.blocks is not None:
            return block < self.blocks
        return block_sizes(networks, role)[block] >= self.resolution


class _Same:
    """A key that is equal only for the same object: networks hold functions and mappings and cannot be hashed by
    value."""

    def __init__(self, networks: Networks):
        self.networks = networks

    def __hash__(self) -> int:
        return id(self.networks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.networks is other.networks


def block_sizes(networks: Networks, role: Role) -> Mapping[int, int]:
    """Returns the resolution in pixels of each block of a network, by number in the order of the forward pass."""
    return _block_sizes(_Same(networks), role)


# One entry per network in use; freezing asks once for each leaf.
@lru_cache(maxsize=4)
def _block_sizes(key: _Same, role: Role) -> Mapping[int, int]:
    networks = key.networks
    network = networks.generator if role == "generator" else networks.discriminator
    shape = (
        (1, networks.z_dim) if role == "generator" else (1, networks.resolution, networks.resolution, networks.channels)
    )
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1, jnp.int32))
    sizes = {}
    for keys, _ in jax.tree_util.tree_leaves_with_path(variables["params"]):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        block, (kind, _, size) = networks.block(role, path), networks.group(role, path).partition(".")
        if block is not None and kind == "blocks":
            sizes[block] = int(size)
    return sizes


def check_one_given(method: Method) -> None:
    """Raises `UserError` unless exactly one of the settings `blocks` and `resolution` is given."""
    given = [name for name in ("blocks", "resolution") if getattr(method, name) is not None]
    if len(given) != 1:
        written = ", ".join(f"{name}={getattr(method, name)}" for name in given) or "neither"
        raise UserError(f"{method.name}.blocks", written, "exactly one of blocks and resolution")
    method.limit(given[0], 0)


def check_range(method: Method, networks: Networks, role: Role) -> None:
    """Raises `UserError` where the network has fewer blocks than are to be held, or none of the given resolution."""
    sizes = block_sizes(networks, role)
    if method.blocks is not None and method.blocks > len(sizes):
        raise UserError(f"{method.name}.blocks", method.blocks, f"from 0 to {len(sizes)}")
    if method.resolution is not None and method.resolution not in sizes.values():
        allowed = ", ".join(str(size) for size in sorted(set(sizes.values())))
        raise UserError(f"{method.name}.resolution", method.resolution, allowed)
