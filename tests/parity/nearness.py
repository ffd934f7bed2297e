"""What parity tests share: quick compilation, distances relative to the largest value, probes of large arrays."""

import jax
import numpy as np


def quick_jit(function, **static):
    """Compiles with few optimisations: these programs are large, and each runs a few times on tiny arrays."""
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **static)
    return lambda *args, **kwargs: jax.device_get(compiled(*args, **kwargs))


def assert_near(ours, reference, tolerance, name=""):
    """Holds an array to the reference's: equal shapes, and a largest difference relative to the largest value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, name
    error = np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30)
    assert error <= tolerance, f"{name}: relative to the largest value {error:.2e} > {tolerance:.0e}"


def probes(value):
    """Sum, length and a weighted sum of an array in the reference's order, by which fixtures record large ones."""
    flat = value.astype(np.float64).ravel()
    return np.array([flat.sum(), np.linalg.norm(flat), flat @ np.cos(0.37 * np.arange(flat.size) + 0.11)])
