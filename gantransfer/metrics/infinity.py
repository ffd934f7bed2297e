"""Fréchet distance at infinitely many images, extrapolated from subsets (Chong and Forsyth 2020).

A Fréchet distance of n images is too large by about b / n, where b depends on the generator, so that even equal n do
not compare. A line through the distances of subsets over 1 / n meets the axis at the distance without that bias.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gantransfer.errors import UserError
from gantransfer.metrics.distances import check_widths, checked_rows
from gantransfer.metrics.frechet import NARROW, Moments, frechet_distance


def frechet_infinity(
    real: Float[np.ndarray, "n _"],
    fake: Float[np.ndarray, "m _"],
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    permutations: Int[np.ndarray, "points m"] | None = None,
) -> dict[str, Any]:
    """Extrapolates the Fréchet distance to infinitely many fakes; the reals stay as they are.

    Args:
      real, fake: features of one width, one row per image.
      points: sizes of subsets, equally spaced from `smallest` to all fakes.
      smallest: None: 5,000, or a tenth of the fakes if that is less.
      seed: of the permutations whose first rows are the subsets.
      permutations: these instead of drawn ones.

    Returns:
      `value` (the intercept), `slope` (b), `residual` (root mean square distance from the line: a large one says that
      the line does not hold), `sizes`, `distances`.

    Raises:
      UserError: for fewer than 3 different sizes, or a smallest one below 2; and as `frechet_distance`.
    """
    real, fake = checked_rows("real", real, least=2), checked_rows("fake", fake, least=2)
    check_widths(real, fake)
    smallest = min(5000, max(len(fake) // 10, 2)) if smallest is None else smallest
    sizes = np.linspace(smallest, len(fake), max(points, 1)).astype(np.int32)
    if smallest < 2 or smallest > len(fake) or len(np.unique(sizes)) < 3:
        value = f"{points} from {smallest} to {len(fake)}"
        raise UserError("subset sizes", value, "at least 3 different ones, from at least 2 images up to all")
    rng = np.random.Generator(np.random.PCG64(seed))
    orders = [rng.permutation(len(fake)) for _ in sizes] if permutations is None else permutations
    width = real.shape[1]
    # The reals' moments are computed once, where the distance would take the moments anyway.
    reference = Moments.of(real) if width > NARROW and min(len(real), smallest) > width else real
    distances = [frechet_distance(reference, fake[order[:n]]) for order, n in zip(orders, sizes, strict=True)]
    slope, intercept = np.polyfit(1 / sizes, distances, 1)
    residual = np.sqrt(np.mean((intercept + slope / sizes - distances) ** 2))
    return {
        "value": float(intercept),
        "slope": float(slope),
        "residual": float(residual),
        "sizes": sizes.tolist(),
        "distances": distances,
    }


def sobol_latents(count: int, width: int, seed: int = 0) -> Float[np.ndarray, "count width"]:
    """Latents that fill the normal distribution evenly: scrambled Sobol points through its inverse distribution.

    With them distances of subsets scatter less about the line (Chong and Forsyth 2020, section 4). Say so in records:
    the samples are not independent.

    Raises:
      UserError: for a width above 21,201, or counts below 1.
    """
    from scipy.stats import norm, qmc

    if count < 1 or not 1 <= width <= qmc.Sobol.MAXDIM:
        raise UserError("Sobol points", f"{count} of width {width}", f"at least 1, of width 1 to {qmc.Sobol.MAXDIM}")
    engine = qmc.Sobol(width, scramble=True, rng=np.random.Generator(np.random.PCG64(seed)))
    uniform = engine.random_base2(max(count - 1, 1).bit_length())[:count]
    # Scrambled points lie in [0, 1); the inverse of 0 is no latent.
    return norm.ppf(np.maximum(uniform, 2.0**-33)).astype(np.float32)
