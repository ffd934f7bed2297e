"""The picture of the memorisation check: samples that are nearest to a training image, each beside its nearest ones."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from gantransfer.metrics.distances import squared_distance_blocks
from gantransfer.metrics.memorisation import nearest_neighbours, nearest_sheet
from gantransfer.metrics.pictures import Pictures


def write_nearest(
    path: Path,
    samples: Pictures,
    train: Pictures,
    sample_features: Float[np.ndarray, "n d"],
    train_features: Float[np.ndarray, "m d"],
    *,
    rows: int,
    neighbours: int,
) -> Path:
    """Writes the sheet of the nearest pairs; only the pictures that it shows are read or generated.

    Args:
      path: a .png.
      samples, train: the pictures; of one size.
      sample_features: of the first samples.
      train_features: of all training images.
      rows, neighbours: samples shown, and training images beside each.
    """
    from PIL import Image

    distance = nearest_neighbours(sample_features, train_features)[1]
    shown = np.argsort(distance, kind="stable")[:rows]
    beside = min(neighbours, len(train_features))
    points, bank = sample_features[shown].astype(np.float64), train_features.astype(np.float64)
    squares = np.concatenate([block for _, block in squared_distance_blocks(points, bank)])
    wanted = np.unique(np.argsort(squares, axis=1, kind="stable")[:, :beside])
    sheet = nearest_sheet(
        samples.read(shown),
        train.read(wanted),
        features=(sample_features[shown], train_features[wanted]),
        rows=rows,
        neighbours=neighbours,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).save(path)
    return path
