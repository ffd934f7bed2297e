"""A small class-conditional BigGAN at 32 px in colour: the recipe of `glyphs`, wider and with mirrored images.

    gantransfer finetune --config configs/colour32.py --data cifar10.zip --workdir runs/colour32
    gantransfer finetune --config configs/colour32.py --source runs/colour32 --data cells.zip \
        --config.transfer.classes=from_images --kimg 25.6 --workdir runs/cells

What it reached on one core, with its pictures, is in docs/results/colour.md.
"""

from ml_collections import ConfigDict

from gantransfer.config import defaults

ARCHITECTURE = {
    "width": 8,
    "z_dim": 64,
    "shared_dim": 64,
    "spectral_g": False,
    "spectral_d": False,
    "init": "fan_in",
    "norm_eps": 1e-4,
    "out_norm_eps": 1e-4,
    "class_head": True,
    "class_head_scale": 0.25,
    "pool_scale": 0.05,
}


def get_config() -> ConfigDict:
    """Returns the config; with a source, the architecture is the source's."""
    config = defaults()
    with config.unlocked():
        config.model.update(ARCHITECTURE)
    config.data.mirror = True
    config.kimg = 51.2
    config.batch = 64
    config.methods = (
        "r1(gamma=1.0)",
        "auxiliary_classifier(weight_d=1.0, weight_g=0.1)",
        'differentiable_augment(policy="color,translation")',
    )
    config.optimizer.lr_g = 1e-3
    config.optimizer.lr_d = 1e-3
    config.optimizer.lr_class_embedding = 1e-3
    config.ema.decay = 0.998
    config.run.tick_kimg = 3.2
    config.run.snapshot_kimg = 6.4
    config.run.checkpoint_kimg = 12.8
    return config
