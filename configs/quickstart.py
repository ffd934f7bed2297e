"""The quickstart: 100 handwritten digits from the letters `glyphs`, in three ways at equal budget.

    bash launch/quickstart.sh                                          all three, one table, one page
    gantransfer finetune --config configs/quickstart.py --workdir runs/digits --mode class_embedding_only

Ten new classes; their rows are the letters' rows that the source's discriminator sees in the ten digits. 600 steps of
64 images, about a minute of one CPU core for each way. How the settings were chosen, and what they reach on other
seeds, is in docs/results/quickstart.md.
"""

from ml_collections import ConfigDict

from gantransfer.config import defaults

# What differs between the three ways, and nothing else: each has the rates that a sweep of equal size chose for it.
ARMS = {
    "scratch": {
        "mode": "none",
        "optimizer.lr_g": 2e-3,
        "optimizer.lr_d": 2e-3,
        "optimizer.lr_class_embedding": 2e-3,
    },
    "class_embedding_only": {"mode": "class_embedding_only", "optimizer.lr_class_embedding": 0.1},
    "full": {"mode": "full"},
}


def get_config() -> ConfigDict:
    """Returns the config that the three ways share."""
    config = defaults()
    config.source = "glyphs"
    config.mode = "full"
    config.data.path = "digits:train"
    config.data.images = 100
    config.kimg = 38.4
    config.batch = 64
    config.transfer.classes = "from_images"
    config.methods = (
        "r1(gamma=2.0)",
        "auxiliary_classifier(weight_d=1.0, weight_g=0.05)",
        # One pixel each way: more leaks off-centre digits into the samples.
        'differentiable_augment(policy="translation,brightness,contrast", translation_ratio=0.0625, brightness=0.5, '
        'fill="minimum")',
    )
    config.optimizer.lr_g = 2e-4
    config.optimizer.lr_d = 1e-3
    config.optimizer.lr_class_embedding = 0.05
    config.ema.decay = 0.995
    config.evaluate.features = "digits_cnn"
    config.evaluate.data = "digits"
    config.evaluate.kimg = ("0", "6.4", "12.8", "19.2", "38.4")
    config.run.tick_kimg = 3.2
    config.run.snapshot_kimg = 6.4
    config.run.checkpoint_kimg = 12.8
    return config
