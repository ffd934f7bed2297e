"""What holds for every feature network: what goes in, what comes out, what is refused. Small networks stand for all."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from gantransfer.errors import UserError
from gantransfer.features import network as networks
from gantransfer.features import state_dicts
from gantransfer.features.pixels import PIPELINES, resize

NAME = "cifar_resnet20_optionA"


@pytest.fixture(scope="module")
def images():
    return np.random.Generator(np.random.PCG64(3)).integers(0, 256, (7, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def state():
    """A published state dict of a small network, with statistics of batch norm that are not trivial."""
    shapes = features.architectures()[NAME].blueprint.shapes
    draw = np.random.Generator(np.random.PCG64(4))
    found = state_dicts.random_state(shapes, seed=1)
    for key, value in found.items():
        if key.endswith("running_var"):
            found[key] = draw.uniform(0.5, 2, value.shape).astype(np.float32)
        elif value.ndim == 1:
            found[key] = (value + 0.2 * draw.standard_normal(value.shape)).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def network(state):
    return features.load(NAME, weights=state)


def test_every_network_says_what_it_is():
    lines = features.available()
    assert {"digits_cnn", "fid_inception", "vgg16", "swav_resnet50", "mnist_lenet5", "cifar_resnet56"} <= set(lines)
    for name, architecture in features.architectures().items():
        assert f"{architecture.input.size}x{architecture.input.size}" in lines[name]
        for weights in architecture.weights:
            assert weights.file.name in lines[name] and weights.page in lines[name]
    # Sizes in plain numbers, and names that are widths only once.
    assert "dinov2_vitl14_pretrain.pth (1,217 MB)" in lines["dinov2_vitl14"]
    assert "; 64, 192, 768, 2048, logits_unbiased 1008, logits 1008; " in lines["fid_inception"]


def test_a_network_returns_its_outputs_and_the_features_of_distances(network, images):
    found = network(images)
    assert tuple(found) == (*network.outputs, "features") == ("pool", "logits", "features")
    np.testing.assert_array_equal(found["features"], found["pool"])
    assert found["pool"].shape == (7, 64) and found["pool"].dtype == np.float32
    assert isinstance(network, features.FeatureNetwork)


def test_exactly_what_is_wanted_comes_back(network, images):
    found = network(images[:1], ("layer2", "features"))
    assert tuple(found) == ("layer2", "features") and found["layer2"].shape == (1, 16, 16, 32)
    with pytest.raises(UserError, match="layer9.*outputs pool, logits; stages conv1"):
        network(images[:1], ("layer9",))
    with pytest.raises(UserError, match="tuple"):
        network(images[:1], "pool")


def test_a_batch_equals_its_images_one_by_one(network, state, images):
    whole = network(images)["pool"]
    np.testing.assert_allclose(whole, np.concatenate([network(images[i : i + 1])["pool"] for i in range(7)]), atol=1e-5)
    parts = features.load(NAME, weights=state, batch=4)
    np.testing.assert_allclose(whole, parts(images)["pool"], atol=1e-5)
    assert network(images[:0])["pool"].shape == (0, 64)


def test_folded_batch_norms_change_nothing(network, state, images):
    plain = features.load(NAME, weights=state, fold=False)
    assert plain.sha256 == network.sha256
    assert len(jax.tree.leaves(plain.params)) > len(jax.tree.leaves(network.params))
    ours, theirs = network(images[:4], ("conv1", "layer1", "pool")), plain(images[:4], ("conv1", "layer1", "pool"))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5 * np.abs(theirs[name]).max(), err_msg=name)


def test_colours_matter_grey_is_repeated_and_other_sizes_are_resized(network, images):
    colour = network(images[:4])["pool"]
    assert np.abs(network(images[:4, :, :, ::-1])["pool"] - colour).max() > 1e-3
    grey = images[:4, :, :, :1]
    np.testing.assert_allclose(network(grey)["pool"], network(np.repeat(grey, 3, axis=3))["pool"], rtol=1e-4, atol=1e-5)
    large = np.repeat(np.repeat(images[:4], 2, axis=1), 2, axis=2)
    resized = np.asarray(resize(large, (32, 32), "pillow_bilinear"))
    np.testing.assert_allclose(network(large)["pool"], network(resized)["pool"], rtol=1e-4, atol=1e-4)


def test_every_pipeline_is_known_by_name_and_resizes_by_its_own_rule():
    inception = features.architectures()["fid_inception"].input
    assert inception.pipeline == "legacy_tensorflow" and inception == inception.by("legacy_tensorflow")
    images = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (1, 24, 24, 3), np.uint8)
    for name, pipeline in PIPELINES.items():
        ours = inception.by(name).normalised(images)
        np.testing.assert_allclose(ours, pipeline.inception(images), atol=1e-5, err_msg=name)
    resnet = features.architectures()["resnet50"].input.by("clean")
    assert (resnet.rule, resnet.clip, resnet.mean) == ("pillow_bicubic", True, networks.IMAGENET[0])
    with pytest.raises(UserError, match="pixel pipeline"):
        inception.by("legacy")


def test_a_pipeline_and_means_of_the_user_are_recorded(state):
    chosen = features.load(NAME, weights=state, pipeline="clean", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    said = chosen.info["preprocessing"]
    assert (said["pipeline"], said["resize"], said["mean"]) == ("clean", "pillow_bicubic", [0.5, 0.5, 0.5])


def test_a_network_runs_inside_a_program_is_differentiable_and_never_moves(network, images):
    before = jax.tree.map(np.array, network.params)

    @jax.jit
    def gradient(params, levels):
        return jax.grad(lambda x: network.forward(params, x, ("features",))["features"].sum())(levels)

    found = gradient(network.params, jnp.asarray(images[:4], jnp.float32))
    assert np.isfinite(found).all() and np.abs(found).max() > 0
    direct = jax.jit(lambda p, x: network.forward(p, x))(network.params, images[:4])
    np.testing.assert_allclose(direct["logits"], network(images[:4])["logits"], atol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, network.params))


def test_images_may_lie_on_several_devices(network, images):
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    split = jax.device_put(images[:4], jax.NamedSharding(mesh, jax.P("data")))
    whole = jax.device_put(network.params, jax.NamedSharding(mesh, jax.P()))
    found = jax.jit(lambda params, x: network.forward(params, x, ("pool",)))(whole, split)["pool"]
    assert len(found.sharding.device_set) == 4
    np.testing.assert_allclose(found, network(images[:4])["pool"], rtol=1e-4, atol=1e-4)


def test_the_gradient_is_finite_where_all_features_are_zero(state, images):
    dead = state | {key: np.full_like(value, -1e3) for key, value in state.items() if key.endswith("bn2.bias")}
    network = features.load(NAME, weights=dead)
    assert network(images[:1], ("layer1.0",))["layer1.0"].max() == 0
    gradient = jax.grad(lambda x: network.forward(network.params, x, ("pool",))["pool"].sum())
    assert np.isfinite(jax.jit(gradient)(jnp.asarray(images[:1], jnp.float32))).all()


def test_half_precision_is_a_choice_and_comes_back_as_float32(state, images):
    half = features.load(NAME, weights=state, dtype=jnp.bfloat16, precision=jax.lax.Precision.DEFAULT)
    whole, rounded = features.load(NAME, weights=state)(images[:4])["pool"], half(images[:4])["pool"]
    assert rounded.dtype == np.float32
    assert 0 < np.abs(whole - rounded).max() < 0.2 * np.abs(whole).max()


def test_float_levels_equal_bytes(network, images):
    found = network(images[:4].astype(np.float32))["pool"]
    np.testing.assert_allclose(found, network(images[:4])["pool"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.astype(np.float32) / 255, "levels from 0 to 255"),
        (lambda x: x.astype(np.float32) / 127.5 - 1, "levels from 0 to 255"),
        (lambda x: x.astype(np.float32) * 255, "levels from 0 to 255"),
        (lambda x: np.where(x > 250, np.nan, x).astype(np.float32), "NaN"),
        (lambda x: np.concatenate([x, x[..., :1]], axis=3), "channels 1 or 3"),
        (lambda x: x.astype(np.uint16), "uint8"),
    ],
    ids=["unit", "symmetric", "too-large", "nan", "four-channels", "uint16"],
)
def test_images_that_no_network_can_take_are_refused(network, images, change, words):
    with pytest.raises(UserError, match=words):
        network(change(images))


def test_levels_given_as_normalised_values_are_refused_with_both_ranges(network, images):
    with pytest.raises(UserError, match=r"values from 0 to 255, mean 12\d.*normalised values from -2.12 to 2.64"):
        network.apply(network.params, images.astype(np.float32))


def test_random_weights_are_asked_for_by_name_and_say_so(images):
    first, again = (features.load(f"random:{NAME}", seed=s) for s in (0, 0))
    other = features.load(f"random:{NAME}", seed=1)
    assert first.name == f"random:{NAME}" and first.info["random"] and "seed 0" in first.info["origin"]
    assert first.sha256 == again.sha256 != other.sha256
    np.testing.assert_array_equal(first(images[:4])["pool"], again(images[:4])["pool"])
    with pytest.raises(UserError, match="they are random"):
        features.load(f"random:{NAME}", weights={})
    with pytest.raises(UserError, match="did you mean vgg16"):
        features.load("random:vgg61")


def test_settings_are_known_by_name():
    with pytest.raises(UserError, match="fold"):
        features.load(f"random:{NAME}", folds=True)
    with pytest.raises(UserError, match="it ships"):
        features.load("digits_cnn", weights={})


def test_the_page_of_feature_networks_names_every_one_of_ours_with_its_file():
    page = (Path(__file__).parents[2] / "docs" / "features.md").read_text("utf-8")
    for name, architecture in features.architectures().items():
        if not name.startswith("swin_t_"):
            assert f"`{name}`" in page
        if not name.startswith(("swin", "clip", "dino")):
            assert all(f"`{weights.file.name}`" in page for weights in architecture.weights), name
