"""Half precision judges as single precision does, on whatever compiler (jaxlib 0.12 needs `layers.settled` for it)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import models
from tests.invented import invented

SIZES = {
    "biggan": {"resolution": 32, "width_d": 32, "num_classes": 3},
    "biggan_deep": {"resolution": 32, "num_classes": 3},
    "dcgan": {"resolution": 32},
    "wgangp_resnet": {},
}


@pytest.mark.parametrize("family", SIZES)
def test_a_discriminator_in_half_precision_judges_as_in_single(family):
    options = SIZES[family]
    whole, half = (models.get_family(family).build(**options, dtype=dtype) for dtype in ("float32", "bfloat16"))
    size = options.get("resolution", 64)
    _, weights = invented(whole, 0)
    images = np.random.default_rng(0).uniform(-1, 1, (8, size, size, 3))
    judge = lambda networks: jax.jit(networks.discriminator.apply)(
        weights, jnp.float32(images), jnp.zeros(8, jnp.int32)
    )
    expected, found = (np.asarray(judge(networks).logits, np.float32) for networks in (whole, half))
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
