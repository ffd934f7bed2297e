"""Images for training and evaluation: opening, few-shot draws, batches as a pure function of (seed, images seen)."""

from gantransfer.data.choose import choose
from gantransfer.data.image_set import ImageSet
from gantransfer.data.sources import open_images

__all__ = ["ImageSet", "choose", "open_images"]
