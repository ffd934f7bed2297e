"""The source `glyphs`: 37 letters from matplotlib's fonts, a class-conditional BigGAN of 80 k parameters at 16 px.

    gantransfer finetune --config configs/pretrain_glyphs.py --workdir runs/glyphs

Logistic loss with R1, no spectral norm, a class head on the discriminator: at this size the four together are what
makes letters come early and keep their variety. What the run reached, and the log of its class agreement, is in
docs/results/glyphs.md.
"""

from ml_collections import ConfigDict

from gantransfer.config import defaults

# 64 -> 32 -> 16 channels in the generator, 16 -> 32 -> 64 in the discriminator; latents 3 x 16.
ARCHITECTURE = {
    "width": 16,
    "z_dim": 48,
    "shared_dim": 64,
    "spectral_g": False,
    "spectral_d": False,
    "init": "fan_in",
    "norm_eps": 1e-4,
    "out_norm_eps": 1e-4,
    "class_head": True,
    "class_head_scale": 0.25,
    "pool_scale": 0.1,
}


def get_config() -> ConfigDict:
    """Returns the config of the run that made `glyphs`."""
    config = defaults()
    with config.unlocked():
        config.model.update(ARCHITECTURE)
    config.data.path = "glyphs"
    config.kimg = 256.0
    config.batch = 64
    # The class term of the generator must stay small: at 0.5 the classes come sooner and the variety inside them goes.
    config.methods = ("r1(gamma=2.0)", "auxiliary_classifier(weight_d=1.0, weight_g=0.1)")
    config.optimizer.lr_g = 1e-3
    config.optimizer.lr_d = 1e-3
    config.optimizer.lr_class_embedding = 1e-3
    config.ema.decay = 0.999
    config.evaluate.features = "letters_cnn"
    config.evaluate.data = "glyphs:test"
    config.evaluate.samples = 2960
    config.run.tick_kimg = 6.4
    config.run.snapshot_kimg = 16.0
    config.run.checkpoint_kimg = 16.0
    return config
