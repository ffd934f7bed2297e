"""Methods of GAN transfer, one file each, behind seven hooks.

Importing this package registers all of them; a plug-in registers its own by `register` when it is imported.
"""

from gantransfer.methods import (
    auxiliary_classifier,
    differentiable_augment,
    fade_in,
    freeze_discriminator,
    freeze_generator,
    orthogonal_regularization,
    r1,
    weight_decay,
)
from gantransfer.methods.hooks import REGISTRY, Method, check_together, describe, parse_method, register

__all__ = [
    "REGISTRY",
    "Method",
    "auxiliary_classifier",
    "check_together",
    "describe",
    "differentiable_augment",
    "fade_in",
    "freeze_discriminator",
    "freeze_generator",
    "orthogonal_regularization",
    "parse_method",
    "r1",
    "register",
    "weight_decay",
]
