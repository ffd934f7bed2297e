"""Does a generator copy its training images? Nearest neighbours, and the scores made of their distances.

Few-shot finetuning fails by copying, and a Fréchet distance to the training images rewards it: read these beside it.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from gantransfer.errors import UserError
from gantransfer.metrics.distances import flat_rows, squared_distance_blocks


def nearest_neighbours(
    queries: Shaped[np.ndarray, "n ..."], bank: Shaped[np.ndarray, "m ..."]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each query (image or feature row): index of the nearest row of the bank, and Euclidean distance to it."""
    rows, columns = flat_rows("queries", queries), flat_rows("bank", bank)
    index, distance = np.empty(len(rows), np.int64), np.empty(len(rows))
    for part, squares in squared_distance_blocks(rows, columns):
        index[part] = squares.argmin(axis=1)
        # Exact differences: the expanded square leaves round-off where a query is a copy.
        distance[part] = np.linalg.norm(rows[part] - columns[index[part]], axis=1)
    return index, distance


def nearest_sheet(
    samples: UInt8[np.ndarray, "n h w c"],
    train: UInt8[np.ndarray, "m _h _w _c"],
    *,
    features: tuple[Float[np.ndarray, "_ d"], Float[np.ndarray, "_ d"]] | None = None,
    rows: int = 8,
    neighbours: int = 5,
    gap: int = 2,
) -> UInt8[np.ndarray, "height width c"]:
    """A picture of what may be copied: the samples nearest to a training image, each beside its nearest ones.

    Args:
      samples, train: images of one size.
      features: of both, in which distances are taken; None takes pixels.
      rows: samples shown, nearest first.
      neighbours: training images beside each, nearest first; fewer where there are fewer.
      gap: white pixels between pictures; the sample is set off by twice as many.

    Raises:
      UserError: for images of different sizes, or features that are not theirs.
    """
    if samples.shape[1:] != train.shape[1:]:
        raise UserError("images", f"{samples.shape[1:]} and {train.shape[1:]}", "samples and training images of a size")
    points, bank = (samples, train) if features is None else features
    if (len(points), len(bank)) != (len(samples), len(train)):
        raise UserError("features", f"{len(points)} and {len(bank)} rows", f"{len(samples)} and {len(train)}")
    points, bank = flat_rows("samples", points), flat_rows("training images", bank)
    shown = np.argsort(nearest_neighbours(points, bank)[1], kind="stable")[:rows]
    beside = min(neighbours, len(train))
    height, width, channels = samples.shape[1:]
    size = len(shown) * (height + gap) - gap, (beside + 1) * (width + gap)
    sheet = np.full((*size, channels), 255, np.uint8)
    distances = np.concatenate([squares for _, squares in squared_distance_blocks(points[shown], bank)])
    for i, number in enumerate(shown):
        top = i * (height + gap)
        sheet[top : top + height, :width] = samples[number]
        for j, t in enumerate(np.argsort(distances[i], kind="stable")[:beside]):
            left = (j + 1) * (width + gap) + gap
            sheet[top : top + height, left : left + width] = train[t]
    return sheet


def nearest_ratio(
    samples: Shaped[np.ndarray, "n ..."], train: Shaped[np.ndarray, "m ..."], held_out: Shaped[np.ndarray, "o ..."]
) -> float:
    """Median over samples of the distance to the nearest training image over that to the nearest held-out one.

    1 means no preference. More images are nearer by chance: give as many of both, or see `memorisation_ratio`.

    Raises:
      UserError: for a sample that equals images of both sets.
    """
    near, far = nearest_neighbours(samples, train)[1], nearest_neighbours(samples, held_out)[1]
    if np.any((near == 0) & (far == 0)):
        raise UserError("held-out images", "an image that is also a training image", "images that were not trained on")
    with np.errstate(divide="ignore"):
        return float(np.median(near / far))


def memorisation_ratio(
    samples: Shaped[np.ndarray, "n ..."],
    train: Shaped[np.ndarray, "m ..."],
    other: Shaped[np.ndarray, "o ..."],
    *,
    draws: int = 10,
    seed: int = 0,
) -> float:
    """Mean distance of samples to their nearest training image over that to as many images not trained on.

    1 means that training images are no nearer than others, 0 that every sample is a copy. More images are nearer by
    chance, so both sides hold equally many: `min(len(train), len(other))` are drawn from each, `draws` times, and
    averaged.

    Args:
      samples, train, other: images (or features) of one shape; `other` are real images that were not trained on.
      draws: how often to draw; one draw of 100 images moves the ratio by about 0.01.
      seed: of the draws.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    count = min(len(train), len(other))

    def mean_distance(bank: Shaped[np.ndarray, "m ..."]) -> float:
        if len(bank) == count:
            return float(nearest_neighbours(samples, bank)[1].mean())
        subsets = [rng.choice(len(bank), count, replace=False) for _ in range(draws)]
        total = 0.0
        for _, squares in squared_distance_blocks(flat_rows("samples", samples), flat_rows("images", bank)):
            total += sum(np.sqrt(squares[:, subset].min(axis=1)).sum() for subset in subsets)
        return float(total / (len(samples) * draws))

    to_other = mean_distance(other)
    if to_other == 0:
        raise ValueError("every sample equals one of the images not trained on, so there is nothing to compare with")
    return mean_distance(train) / to_other


def authenticity_percent(samples: Shaped[np.ndarray, "n ..."], train: Shaped[np.ndarray, "m ..."]) -> float:
    """Share of samples, in percent, that are no copies (Alaa et al. 2022): 100 means that none is.

    A sample counts as a copy if it is nearer to its nearest training image than that image is to any other of them.
    """
    if len(train) < 2:
        raise UserError("training images", len(train), "at least 2, since a copy is judged by the next training image")
    rows = flat_rows("train", train)
    index, distance = nearest_neighbours(samples, train)
    gap = np.empty(len(rows))
    for part, squares in squared_distance_blocks(rows, rows):
        squares[np.arange(len(squares)), np.arange(part.start, part.stop)] = np.inf
        gap[part] = np.sqrt(squares.min(axis=1))
    return float(100 * np.mean(gap[index] <= distance))
