"""Measures of generated images, one file each, and the protocols they are reported under."""

from gantransfer.metrics.accuracy import class_accuracy, within_class_deviation
from gantransfer.metrics.frechet import frechet_distance
from gantransfer.metrics.memorisation import authenticity_percent, memorisation_ratio, nearest_neighbours
from gantransfer.metrics.precision_recall import precision_recall_density_coverage

__all__ = [
    "authenticity_percent",
    "class_accuracy",
    "frechet_distance",
    "memorisation_ratio",
    "nearest_neighbours",
    "precision_recall_density_coverage",
    "within_class_deviation",
]
