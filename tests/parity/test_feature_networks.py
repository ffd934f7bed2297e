"""Feature networks with closed-form weights against numbers of the published definitions: outputs, stages, gradients.

Fixtures: `parity/feature_nets` of the shared folder; its README says how they were made and where the tolerances come
from.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from gantransfer.errors import UserError
from tests.parity import feature_fixtures as fx
from tests.parity.nearness import quick_jit

SMALL = ("cifar_resnet20", "cifar_resnet20_optionA")
# The usual run takes their outputs and stages in float32; the rest, and those that differ in depth alone, take long.
LARGE = (
    "alexnet", "mobilenet_v2", "tf_efficientnet_lite0", "resnet50", "inception_v3_torchvision", "fid_inception",
)  # fmt: skip
LONG = ("cifar_resnet56", "cifar_resnet56_optionA", "vgg16")
RUNS = [(name, double, True) for name in SMALL for double in (False, True)] + [(name, False, False) for name in LARGE]
RUNS += [
    pytest.param(name, double, True, marks=pytest.mark.slow) for name in (*LARGE, *LONG) for double in (False, True)
]


class Case:
    """A network filled by the rule, its fixture, and one compiled program for values and gradient."""

    def __init__(self, root, name, double, gradient):
        self.name, self.fixture = name, dict(np.load(root / f"{name}.npz"))
        self.keys = fx.keys(root, name)
        state = fx.weights(root, name, float(self.fixture["gain"]))
        self.network = features.load(name, weights=state)
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
        self.gradient = None
        if gradient:
            (_, self.found), found = quick_jit(jax.value_and_grad(run, has_aux=True))(image, self.network.params)
            self.gradient = found.transpose(0, 3, 1, 2)
        else:
            _, self.found = quick_jit(run)(image, self.network.params)

    def _names(self, kind):
        return tuple(
            dict.fromkeys(key[len(kind) + 1 :].rpartition("/")[0] for key in self.fixture if key.startswith(kind))
        )

    def _shape(self, kind, name):
        return tuple(self.fixture[f"{kind}/{name}/shape"])


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
    if case.gradient is None:
        return
    at, values = case.fixture["grad/idx"], case.fixture["grad/val"]
    ours = case.gradient.ravel()[at]
    if double:
        assert np.abs(ours - values).max() <= tolerance * np.abs(case.fixture["grad/stats"][2:4]).max()
    else:
        limit = max(1e-3, 3 * float(case.fixture["float32_error_grad_l2"]))
        assert np.linalg.norm(ours - values) <= limit * np.linalg.norm(values)


@pytest.mark.parametrize(("name", "double", "gradient"), RUNS)
def test_a_network_equals_the_published_definition(shared, name, double, gradient):
    with jax.enable_x64(double):
        case = Case(shared / "parity" / "feature_nets", name, double, gradient)
        check(case)
        # Every published array is used, and every parameter is filled from one.
        used = {key: shape for key, shape in case.keys.items() if not key.startswith("AuxLogits.")}
        assert case.network.architecture.blueprint.shapes == used


@pytest.fixture(scope="module")
def inception(shared):
    root = shared / "parity" / "feature_nets"
    fixture = dict(np.load(root / "fid_inception.npz"))
    state = fx.weights(root, "fid_inception", float(fixture["gain"]))
    return features.load("fid_inception", weights=state), state, fixture


def test_inception_with_its_pipeline_gives_the_published_outputs(inception):
    network, _, fixture = inception
    found = network(fixture["extra/pipeline_uint8_nchw"].transpose(0, 2, 3, 1))
    assert tuple(found) == (*network.outputs, "features")
    for name in network.outputs:
        whole = fixture[f"extra/pipeline_{name}"]
        assert np.abs(found[name] - whole).max() <= 5e-5 * np.abs(whole).max(), name


def test_the_two_inceptions_do_not_take_each_other(shared, inception):
    _, state, fixture = inception
    with pytest.raises(UserError, match=r"fc.weight \(1008, 2048\), not \(1000, 2048\)"):
        features.load("inception_v3_torchvision", weights=state)
    root = shared / "parity" / "feature_nets"
    other = fx.weights(root, "inception_v3_torchvision", float(fixture["gain"]))
    with pytest.raises(UserError, match=r"fc.weight \(1000, 2048\), not \(1008, 2048\)"):
        features.load("fid_inception", weights=other)
    # With equal shapes, too, they are not the same function.
    classes = {"fc.weight": state["fc.weight"][:1000], "fc.bias": state["fc.bias"][:1000]}
    swapped = features.load("inception_v3_torchvision", weights=state | classes)
    x = fx.picture("fid_inception", (1, 3, 139, 139)).transpose(0, 2, 3, 1) * 2 - 1
    ours, theirs = (
        quick_jit(lambda params, x, network=network: network.apply(params, x, ("features",)))(network.params, x)
        for network in (inception[0], swapped)
    )
    assert np.abs(ours["features"] - theirs["features"]).max() > 0.05 * np.abs(ours["features"]).max()
