"""Networks are built as named, and random weights follow their seed."""

import jax
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.fresh import fresh, initial_leaves, variable_shapes


def test_fresh_sources_follow_their_seed_and_names(tiny):
    options = tiny.options | {"spectral_d": False}
    first, again, other = (fresh("biggan", options, tiny.names, seed) for seed in (0, 0, 1))
    assert first.info.class_names == tiny.names and first.info.num_classes == 3
    assert first.info.options["num_classes"] == 3
    assert first.generator is first.ema
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    kernels = {path: leaf for path, leaf in tiny.leaves(first.ema).items() if path.endswith("kernel")}
    assert all(leaf.std() > 0 for leaf in kernels.values())
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variable_shapes(first.networks)[0])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first.ema) == shapes
    path = "params/class_head/kernel"
    alone = initial_leaves(first.networks, 0, [f"discriminator/{path}"])
    np.testing.assert_array_equal(alone[f"discriminator/{path}"], tiny.leaves(first.discriminator)[path])


@pytest.mark.parametrize(
    ("options", "names", "words"),
    [({"widht": 4}, ("a",), "did you mean width"), ({}, ("a", "a"), "each once"), ({}, (), "at least one name")],
)
def test_fresh_refuses_what_it_does_not_know(options, names, words):
    with pytest.raises(UserError, match=words):
        fresh("biggan", options, names, 0)
