"""FreezeG: holds the blocks of the generator that are nearest to the latent.

After FreezeG (released code of "bryandlee/FreezeG", no paper): coarse layers keep poses and layouts of the source, fine
layers take the target's look, so that one latent gives related images before and after. There it is StyleGAN2, counted
from the other end: only the last l resolutions of the synthesis train, with their styled convolutions, affine maps,
noise strengths and layers to RGB; the mapping, the constant input and all lower resolutions are held, and path length
regularisation is off.

Here everything up to a block is held: the input layers (groups `linear` and `mapping`), the blocks, and the conditional
norms inside them. The class embedding feeds all blocks at once; it trains unless `class_embedding=True`, because
classes that the source did not have need rows of their own. Held too, the features after the last held block equal the
source's for the same latent and class.
"""

from dataclasses import dataclass

from gantransfer.methods.freeze_discriminator import block_sizes, check_one_given, check_range
from gantransfer.methods.hooks import Method, register
from gantransfer.models.family import Networks, Role


@register("freeze_generator")
@dataclass(frozen=True)
class FreezeGenerator(Method):
    """Settings of FreezeG; exactly one of `blocks` and `resolution` is given.

    Attributes:
      blocks: how many blocks to hold, counted from the latent; 0 holds nothing.
      resolution: holds every block whose output is at most this size, in pixels.
      class_embedding: whether the class embedding is held too.
    """

    blocks: int | None = None
    resolution: int | None = None
    class_embedding: bool = False

    def check(self) -> None:
        check_one_given(self)

    def needs(self, networks: Networks) -> None:
        check_range(self, networks, "generator")

    def freeze(self, role: Role, path: str, networks: Networks) -> bool:
        if role != "generator" or self.blocks == 0:
            return False
        block = networks.block(role, path)
        if block is None:
            group = networks.group(role, path)
            return group in ("linear", "mapping") or (self.class_embedding and group == "class_embedding")
        if self.blocks is not None:
            return block < self.blocks
        return block_sizes(networks, role)[block] <= self.resolution
