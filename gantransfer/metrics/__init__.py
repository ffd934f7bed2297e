"""Measures of generated images, one file each, and the protocols they are reported under.

Every measure is a function of arrays; the names below are looked up at first use, so that a program that computes one
of them does not pay for the libraries of the others.
"""

from typing import Any

_HOMES = {
    "accuracy": ("class_accuracy", "classification_accuracy_score", "top_k_accuracy", "within_class_deviation"),
    "discrepancy": ("cmmd", "unit_rows"),
    "diversity": ("mind", "vendi_score"),
    "frechet": ("Moments", "frechet_distance", "frechet_from_covariances"),
    "inception": ("inception_score", "inception_score_of_logits"),
    "infinity": ("frechet_infinity", "sobol_latents"),
    "intra_class": ("intra_class_frechet_distance",),
    "kernel": ("GaussianKernel", "PolynomialKernel", "kernel_distance", "kernel_distance_full"),
    "probe": ("fit_logistic", "linear_probe"),
    "perceptual": ("intra_cluster_diversity", "lpips", "lpips_map", "pairwise_diversity", "scaling_layer"),
    "memorisation": (
        "authenticity_percent",
        "memorisation_ratio",
        "nearest_neighbours",
        "nearest_ratio",
        "nearest_sheet",
    ),
    "paths": ("lerp", "path_length", "path_pictures", "path_step", "slerp"),
    "precision_recall": ("improved_precision_recall", "precision_recall_density_coverage", "realism"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gantransfer.metrics' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gantransfer.metrics.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
