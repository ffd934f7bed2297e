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


def top_k_accuracy(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], k: int = 5, *, shift: int = 0
) -> float:
    """Share of images whose class is among the classifier's k likeliest.

    Args:
      logits: one row per image.
      labels: classes as the data numbers them.
      k: how many answers count.
      shift: added to labels: 1 for the 2015 Inception graph, whose class 0 is the background.

    Raises:
      UserError: for a label that the classifier does not have, or a k that is no number of its classes.
    """
    shifted = labels + shift
    if not 1 <= k <= logits.shape[1]:
        raise UserError("k", k, f"1 to {logits.shape[1]}, the classes of the classifier")
    class_accuracy(logits, shifted)
    own = np.take_along_axis(logits, shifted[:, None], axis=1)
    return float(np.mean((logits > own).sum(axis=1) < k))


def classification_accuracy_score(
    trained_on_fake: Float[np.ndarray, "n k"],
    trained_on_real: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
) -> dict[str, float]:
    """Classification accuracy score (Ravuri and Vinyals 2019): does a classifier learn from samples as from images?

    Args:
      trained_on_fake: logits, on real images that neither classifier saw, of a classifier trained on samples alone.
      trained_on_real: the same of one that was trained on real images, in the same way.
      labels: the images' classes.

    Returns:
      `value`, `top5` (where there are more than five classes), `real_on_real` and `ratio` of the two. A low real
      accuracy says that the classifier is too weak for the score to mean anything.

    Raises:
      UserError: if a label is not one of the classifier's classes, or the real classifier is right on nothing.
    """
    value, baseline = class_accuracy(trained_on_fake, labels), class_accuracy(trained_on_real, labels)
    if baseline == 0:
        raise UserError("trained_on_real", 0.0, "a classifier that is right on some real images")
    found = {"value": value, "real_on_real": baseline, "ratio": value / baseline}
    return found if trained_on_fake.shape[1] <= 5 else found | {"top5": top_k_accuracy(trained_on_fake, labels)}


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
