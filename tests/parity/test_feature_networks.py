"""Feature networks with closed-form weights against numbers of the published definitions: outputs, stages, gradients.

Fixtures: `parity/feature_nets` of the shared folder; its README says how they were made and where the tolerances come
from.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from tests.parity import feature_fixtures as fx

SMALL = ("cifar_resnet20", "cifar_resnet20_optionA")


class Case:
    """A network filled by the rule, its fixture, and one compiled program for values and gradient."""

    def __init__(self, root, name, double, fold=True):
        self.name, self.fixture = name, dict(np.load(root / f"{name}.npz"))
        self.keys = fx.keys(root, name)
        state = fx.weights(root, name, float(self.fixture["gain"]))
        self.network = features.load(name, weights=state, fold=fold)
        self.type = np.float64 if double else np.float32
        self.outputs = self._names("out_summary")
        self.stages = self._names("stage")
        mean, std = self.fixture["mean"], self.fixture["std"]
        cotangents = {name: fx.cotangent(self.name, name, self._shape("out_summary", name)) for name in self.outputs}

        def run(image, params):
            x = (image - mean) / std
            found = self.network.apply(params, x.astype(self.type), (*self.outputs, *self.stages))
            found = {key: _published(value) for key, value in found.items()}
            return sum(jnp.sum(found[key] * cotangents[key]) for key in self.outputs), found

        image = fx.picture(name, tuple(self.fixture["input_shape"])).transpose(0, 2, 3, 1).astype(self.type)
        compiled = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=QUICK)
        (_, self.found), gradient = jax.device_get(compiled(image, self.network.params))
        self.gradient = np.asarray(gradient).transpose(0, 3, 1, 2)

    def _names(self, kind):
        return tuple(
            dict.fromkeys(key[len(kind) + 1 :].rpartition("/")[0] for key in self.fixture if key.startswith(kind))
        )

    def _shape(self, kind, name):
        return tuple(self.fixture[f"{kind}/{name}/shape"])


QUICK = {"xla_backend_optimization_level": 0}


def _published(value):
    return jnp.transpose(value, (0, 3, 1, 2)) if value.ndim == 4 else value


def assert_summary(ours, fixture, prefix, tolerance):
    scale = np.abs(fixture[f"{prefix}/stats"][2:4]).max()
    assert tuple(ours.shape) == tuple(fixture[f"{prefix}/shape"]), prefix
    error = np.abs(ours.ravel()[fixture[f"{prefix}/idx"]] - fixture[f"{prefix}/val"]).max() / scale
    assert error <= tolerance, f"{prefix}: {error:.1e} > {tolerance:.0e}"
    stats = fx.summary(ours)["stats"]
    np.testing.assert_allclose(stats[:4], fixture[f"{prefix}/stats"][:4], atol=tolerance * scale, err_msg=prefix)
    np.testing.assert_allclose(stats[4], fixture[f"{prefix}/stats"][4], rtol=tolerance, err_msg=prefix)


def check(case):
    double = case.type is np.float64
    tolerance = 1e-5 if double else max(2e-5, 20 * float(case.fixture["float32_error_forward"]))
    for name in case.outputs:
        assert_summary(case.found[name], case.fixture, f"out_summary/{name}", tolerance)
        if f"out/{name}" in case.fixture:
            whole = case.fixture[f"out/{name}"]
            assert np.abs(case.found[name] - whole).max() <= tolerance * np.abs(whole).max(), name
    for name in case.stages:
        assert_summary(case.found[name], case.fixture, f"stage/{name}", tolerance)
    at, values = case.fixture["grad/idx"], case.fixture["grad/val"]
    ours = case.gradient.ravel()[at]
    if double:
        assert np.abs(ours - values).max() <= tolerance * np.abs(case.fixture["grad/stats"][2:4]).max()
    else:
        limit = max(1e-3, 3 * float(case.fixture["float32_error_grad_l2"]))
        assert np.linalg.norm(ours - values) <= limit * np.linalg.norm(values)


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SMALL)
def test_a_network_equals_the_published_definition(shared, name, double):
    with jax.enable_x64(double):
        case = Case(shared / "parity" / "feature_nets", name, double)
        check(case)
        # Every published array is used, and every parameter is filled from one.
        assert case.network.architecture.blueprint.shapes == case.keys
