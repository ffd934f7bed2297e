"""CLIP, DINO, DINOv2 and Swin-T with closed-form weights against numbers of the published definitions.

Fixtures: `parity/feature_nets` of the shared folder; its README says how they were made and where the tolerances come
from: 1e-5 of the largest value in float64, 20 times the reference's own float32 error in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from gantransfer.features.vit import position_table
from tests.parity import feature_fixtures as fx
from tests.parity.nearness import quick_jit

NETWORKS = ("clip_vit_b32", "dino_vits16", "dinov2_vits14", "swin_t")
# Published in the key lists, used nowhere.
UNUSED = {"dinov2_vits14": {"mask_token"}}
RESIZED = {"dino_vits16": ((96, 128), (256, 256)), "dinov2_vits14": ((224, 224), (70, 112))}
PATCH = {"dino_vits16": 16, "dinov2_vits14": 14}


@pytest.fixture(scope="module")
def load(shared):
    """Networks filled by the rule, each made once."""
    root, made = shared / "parity" / "feature_nets", {}

    def get(name):
        if name not in made:
            fixture = dict(np.load(root / f"{name}.npz"))
            state = fx.weights(root, name, float(fixture["gain"]))
            made[name] = features.load(name, weights=state), state, fixture
        return made[name]

    return get


def names(fixture, kind):
    return tuple(dict.fromkeys(key[len(kind) + 1 :].rpartition("/")[0] for key in fixture if key.startswith(kind)))


def published(name, array):
    """Our layout to that of the fixtures: maps as NCHW, blocks of CLIP with tokens before the batch."""
    if array.ndim == 4:
        return array.transpose(0, 3, 1, 2)
    return array.transpose(1, 0, 2) if ".resblocks." in name else array


def normalised(fixture, name, shape, dtype):
    picture = fx.picture(name, shape).transpose(0, 2, 3, 1).astype(dtype)
    return (picture - fixture["mean"].astype(dtype)) / fixture["std"].astype(dtype)


def assert_recorded(ours, fixture, prefix, tolerance):
    """Shape, recorded values and statistics of a tensor."""
    shape, stats = tuple(fixture[f"{prefix}/shape"]), fixture[f"{prefix}/stats"]
    scale = np.abs(stats[2:4]).max()
    assert ours.shape == shape, prefix
    error = np.abs(ours.ravel()[fixture[f"{prefix}/idx"]] - fixture[f"{prefix}/val"]).max() / scale
    assert error <= tolerance, f"{prefix}: {error:.1e} of the largest value > {tolerance:.0e}"
    found = fx.summary(ours)["stats"]
    np.testing.assert_allclose(found[:4], stats[:4], rtol=0, atol=tolerance * scale, err_msg=prefix)
    np.testing.assert_allclose(found[4], stats[4], rtol=tolerance, err_msg=prefix)


def run(network, fixture, name, dtype):
    """Everything that is recorded, and the gradient with respect to the image in [0, 1] in the published layout."""
    outputs, stages = names(fixture, "out_summary"), names(fixture, "stage")
    weigh = {key: fx.cotangent(name, key, tuple(fixture[f"out_summary/{key}/shape"])) for key in outputs}

    # Weights are an argument: as constants they would be folded into the program, element by element.
    def weighed(image, params):
        x = (image - fixture["mean"].astype(dtype)) / fixture["std"].astype(dtype)
        found = network.apply(params, x, (*outputs, *stages))
        return sum(jnp.sum(found[key] * weigh[key].astype(dtype)) for key in outputs), found

    image = fx.picture(name, tuple(fixture["input_shape"])).transpose(0, 2, 3, 1).astype(dtype)
    (_, found), gradient = quick_jit(jax.value_and_grad(weighed, has_aux=True))(image, network.params)
    return {key: published(key, value) for key, value in found.items()}, gradient.transpose(0, 3, 1, 2)


def check(load, name, double):
    network, _, fixture = load(name)
    with jax.enable_x64(double):
        found, gradient = run(network, fixture, name, np.float64 if double else np.float32)
    tolerance = 1e-5 if double else max(2e-5, 20 * float(fixture["float32_error_forward"]))
    for stage in names(fixture, "stage"):
        assert_recorded(found[stage], fixture, f"stage/{stage}", tolerance)
    for output in names(fixture, "out_summary"):
        assert_recorded(found[output], fixture, f"out_summary/{output}", tolerance)
        if f"out/{output}" in fixture:
            whole = fixture[f"out/{output}"]
            assert np.abs(found[output] - whole).max() <= tolerance * np.abs(whole).max(), output
    if double:
        assert_recorded(gradient, fixture, "grad", tolerance)
    else:
        ours, theirs = gradient.ravel()[fixture["grad/idx"]], fixture["grad/val"]
        limit = max(1e-3, 3 * float(fixture["float32_error_grad_l2"]))
        assert np.linalg.norm(ours - theirs) <= limit * np.linalg.norm(theirs)


# DINOv2 has DINO's blocks and fewer tokens: the larger one is checked with the slow tests.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "dino_vits16")) for name in NETWORKS]
)
def test_outputs_stages_and_gradients_equal_the_published_ones(load, name):
    check(load, name, double=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_stays_within_its_own_rounding(load, name):
    check(load, name, double=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_published_array_is_used(shared, load, name):
    keys = fx.keys(shared / "parity" / "feature_nets", name)
    network = load(name)[0]
    assert set(keys) - set(network.architecture.blueprint.shapes) == UNUSED.get(name, set())
    assert network.architecture.blueprint.shapes.items() <= keys.items()
    assert bool(network.info["notes"]) == bool(UNUSED.get(name))


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in RESIZED.items() for size in sizes])
def test_tables_of_positions_are_resized_as_published(load, name, size):
    _, state, fixture = load(name)
    with jax.enable_x64(True):
        table = jnp.asarray(state["pos_embed"][0], jnp.float64)
        found = np.asarray(position_table(table, (size[0] // PATCH[name], size[1] // PATCH[name])))
    # Recorded numbers are float32, and so is the interpolation in the code of DINOv2.
    recorded = fixture[f"extra/pos_{size[0]}x{size[1]}_first16"]
    np.testing.assert_allclose(found[:, :16], recorded, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in RESIZED.items() for size in sizes])
def test_images_of_other_sizes_give_the_published_features(load, name, size):
    network, _, fixture = load(name)
    with jax.enable_x64(True):
        x = normalised(fixture, f"resize{size[0]}x{size[1]}", (1, 3, *size), np.float64)
        found = quick_jit(lambda x, params: network.apply(params, x, ("cls",)))(x, network.params)["cls"]
    recorded = fixture[f"extra/out_{size[0]}x{size[1]}"]
    assert np.abs(found - recorded).max() <= 1e-5 * np.abs(recorded).max()


def test_a_square_matrix_that_was_transposed_is_seen(load):
    """Shapes cannot tell it, so the numbers must."""
    name, key = "dinov2_vits14", "blocks.5.attn.proj.weight"
    _, state, fixture = load(name)
    wrong = features.load(name, weights=state | {key: state[key].T})
    x = normalised(fixture, name, tuple(fixture["input_shape"]), np.float32)
    found = quick_jit(lambda x, params: wrong.apply(params, x, ("blocks.5", "cls")))(x, wrong.params)
    with pytest.raises(AssertionError, match="stage/blocks.5"):
        assert_recorded(found["blocks.5"], fixture, "stage/blocks.5", 1e-3)
    assert np.abs(found["cls"] - fixture["out/cls"]).max() > 1e-2 * np.abs(fixture["out/cls"]).max()
