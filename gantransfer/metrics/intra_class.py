"""Fréchet distance inside classes: does a conditional generator draw each class as it is?"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gantransfer.errors import UserError
from gantransfer.metrics.distances import check_widths, checked_rows
from gantransfer.metrics.frechet import frechet_distance


def intra_class_frechet_distance(
    real: Float[np.ndarray, "n _"],
    real_labels: Int[np.ndarray, " n"],
    fake: Float[np.ndarray, "m _"],
    fake_labels: Int[np.ndarray, " m"],
    ddof: int = 1,
) -> dict[str, Any]:
    """The mean over classes of each class's Fréchet distance; not that of the pooled sets, and far above it.

    Values depend on the number of images per class: compare only at equal ones. StudioGAN takes as many fakes of a
    class as it has real images.

    Returns:
      `value`, `per_class` (class to distance), and `excluded`: classes with a single image on a side, which have no
      covariance.

    Raises:
      UserError: if a class is missing on one side, or none is left; and as `frechet_distance`.
    """
    real, fake = checked_rows("real", real), checked_rows("fake", fake)
    check_widths(real, fake)
    missing = sorted(set(real_labels.tolist()) ^ set(fake_labels.tolist()))
    if missing:
        sides = ", ".join(f"{c} ({'fake' if c in real_labels else 'real'})" for c in missing[:5])
        raise UserError("classes", f"{len(missing)} without images on one side: {sides}", "the same classes on both")
    per_class, excluded = {}, []
    for c in np.unique(real_labels).tolist():
        reals, fakes = real[real_labels == c], fake[fake_labels == c]
        if min(len(reals), len(fakes)) < 2:
            excluded.append(c)
        else:
            per_class[c] = frechet_distance(reals, fakes, ddof)
    if not per_class:
        raise UserError("classes", f"{len(excluded)} of one image each", "a class with at least 2 images on both sides")
    return {"value": float(np.mean(list(per_class.values()))), "per_class": per_class, "excluded": excluded}
