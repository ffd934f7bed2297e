"""Whether a source's discriminator pulls its generator's images towards a target set, before any training."""

import numpy as np
from jaxtyping import Shaped

from gantransfer.errors import UserError
from gantransfer.metrics.distances import check_widths, flat_rows, squared_distance_blocks


def gradient_similarity(
    images: Shaped[np.ndarray, "n ..."], gradients: Shaped[np.ndarray, "_n ..."], targets: Shaped[np.ndarray, "m ..."]
) -> float:
    """Mean cosine between the descent of the generator's loss at each image and the way to the nearest target.

    After gan-transfer (Grigoryev, Voynov, Babenko, ICLR 2022, section 4), in the space of images and with the sign of a
    step that training would take: 1 says that the discriminator pushes every image straight at its nearest target, -1
    straight away from it. (The code released with the paper takes the opposite sign.) How long a source was trained
    foretells more than this number does, so compare sources of similar age; docs/results/plane.md measures it.

    Args:
      images: samples of a source's generator, or points; any shape, taken as vectors.
      gradients: derivative of the generator's loss with respect to each image; lengths do not matter.
      targets: images of the target set in the same units, or centres of its clusters.

    Returns:
      The mean over images, in [-1, 1]. An image without a pull, or on its target, has no direction and counts as 0.

    Raises:
      UserError: if a set is empty, the sizes differ or a number is not finite.
    """
    images, targets = flat_rows("images", images), flat_rows("target images", targets)
    gradients = flat_rows("gradients", gradients)
    check_widths(images, targets)
    if gradients.shape != images.shape:
        raise UserError("gradients", f"shape {gradients.shape} for images of {images.shape}", "one per image")
    total = 0.0
    for part, squares in squared_distance_blocks(images, targets):
        way = targets[np.argmin(squares, axis=1)] - images[part]
        descent = -gradients[part]
        lengths = np.linalg.norm(way, axis=1) * np.linalg.norm(descent, axis=1)
        products = np.einsum("ij,ij->i", way, descent)
        total += float(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0).sum())
    return total / len(images)
