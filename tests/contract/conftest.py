"""The battery compiles many programs that run for four steps, so it compiles them without optimisation."""

import jax
import pytest

from tests.contract import rig


@pytest.fixture(autouse=True)
def quick_compilation():
    """No optimisation of code inside the battery; arithmetic is the same."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def toys():
    """The test-only family and methods are registered."""
    with rig.with_toys():
        yield
