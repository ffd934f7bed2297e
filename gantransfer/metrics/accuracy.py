"""Do samples show the class they were asked for, and do the samples of a class differ from each other?"""

import numpy as np
from jaxtyping import Float, Int, Num

from gantransfer.errors import UserError


def class_accuracy(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> float:
    """Share of samples that a classifier puts in the class they were asked for.

    High for a generator that draws one picture per class: read `within_class_deviation` beside it.

    Raises:
      UserError: if a label is not one of the classifier's classes.
    """
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        worst = int(labels.max() if labels.max() >= logits.shape[1] else labels.min())
        raise UserError("labels", worst, f"0 to {logits.shape[1] - 1}, the classes of the classifier")
    return float(np.mean(logits.argmax(axis=1) == labels))


def within_class_deviation(
    fake: Num[np.ndarray, "n ..."],
    fake_labels: Int[np.ndarray, " n"],
    real: Num[np.ndarray, "m ..."],
    real_labels: Int[np.ndarray, " m"],
) -> float:
    """Pixel deviation of samples inside their class over that of real images: 1 is as varied, 0 one picture per class.

    Per class the root mean square over pixels of the standard deviation, then the mean over the classes that have at
    least two images on both sides.

    Raises:
      ValueError: if there is no such class, or the real images of every class are identical.
    """
    numbers = np.intersect1d(fake_labels, real_labels)
    enough = [c for c in numbers if min(np.sum(fake_labels == c), np.sum(real_labels == c)) >= 2]
    if not enough:
        raise ValueError("no class has two images on both sides")

    def deviation(images: Num[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> float:
        of_class = (images[labels == c].astype(np.float64) for c in enough)
        return float(np.mean([np.sqrt(np.mean(np.var(members, axis=0, ddof=1))) for members in of_class]))

    real_deviation = deviation(real, real_labels)
    if real_deviation == 0:
        raise ValueError("the real images of each class are identical")
    return deviation(fake, fake_labels) / real_deviation
