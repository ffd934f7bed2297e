"""The TF-Hub BigGAN-deep generators against their PyTorch port: every truncation, both modes, gradients, its file.

Fixtures: `parity/biggan_deep_hf` of the shared folder.
"""

import json
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer import models
from gantransfer.models.biggan_deep import rows_at
from gantransfer.models.layers import normalised
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.pretrained.layouts.biggan_deep import PYTORCH
from gantransfer.pretrained.layouts.biggan_deep_hub import HUB
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs
from gantransfer.pretrained.readers import read
from gantransfer.pretrained.source import Source, SourceInfo
from tests.parity.nearness import assert_near, quick_jit

TRUNCATIONS = (0.02, 0.14, 0.3, 0.4, 0.41, 0.5, 0.58, 0.7, 0.94, 0.999, 1.0)
IMAGES, GRADIENTS = 1e-5, 1e-4


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


class Case:
    """The fixture's generator and arrays; `given(t)` are its statistics for one truncation."""

    def __init__(self, root):
        self.config = json.loads((root / "config.json").read_text())
        state = read(root / "pytorch_model.bin").states[""]
        self.state = {key: np.asarray(value) for key, value in state.items()}
        self.found = HUB.recognise({key: value.shape for key, value in self.state.items()})
        self.options = dict(HUB.assumed) | self.found.options
        self.leaves = {leaf.ours: leaf for leaf in HUB.leaves("generator", self.options)}
        ours = to_ours(self.leaves.values(), self.state)
        self.variables = unflatten_dict({path: jnp.asarray(value) for path, value in ours.items()}, sep="/")
        self.networks = models.get_family("biggan_deep").build(**self.options)
        self.arrays = np.load(root / "outputs.npz")
        self.y = jnp.asarray(self.arrays["class_index"], jnp.int32)

    def z(self, truncation):
        return jnp.asarray(np.float32(truncation) * self.arrays["z_unit"])

    def mixed(self, truncation):
        """The variables of a generator with one row of statistics, made of the rows of a truncation."""
        mix = rows_at(truncation, self.options["statistics"], "hub_port")
        pick = lambda rows: sum(np.float32(weight) * rows[i : i + 1] for i, weight in mix)
        return {**self.variables, "batch_stats": jax.tree.map(pick, self.variables["batch_stats"])}

    @cached_property
    def generate(self):
        """Compiled once for all truncations: statistics are an argument."""
        generator = models.get_family("biggan_deep").build(**self.options | {"statistics": 1}).generator

        def apply(variables, z, c):
            seen = lambda module, _: module.name and module.name.startswith(("block_", "attn_", "out_conv", "linear"))
            mutable = ["intermediates"]
            return generator.apply(variables, z, c, mutable=mutable, capture_intermediates=seen)

        return quick_jit(apply)


load_case = cache(Case)


@pytest.fixture
def case(shared):
    return load_case(shared / "parity" / "biggan_deep_hf")


def strided(images):
    return np.asarray(images).transpose(0, 3, 1, 2)[:, :, ::8, ::8]


def test_options_follow_from_the_weights_and_agree_with_the_config(case):
    assert case.found.role == "generator"
    says = HUB.from_config(case.config)
    assert {key: value for key, value in says.items() if case.options[key] != value} == {}
    assert case.options["attention_g"] == "64" and case.options["depth_g"] == 2
    assert case.networks.generator.attention == (case.config["attention_layer_position"] - 1,)
    assert HUB.to_config(complete(case.options)) == case.config


def complete(options):
    return {key: option.default for key, option in models.get_family("biggan_deep").options.items()} | options


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_images_match_at_every_truncation(case, truncation):
    assert set(TRUNCATIONS) == set(case.arrays["truncations"].tolist())
    picture, _ = case.generate(case.mixed(truncation), case.z(truncation), case.y)
    expected = case.arrays[f"out_stride/{truncation}"]
    np.testing.assert_allclose(strided(picture.images), expected, rtol=0, atol=IMAGES)
    if truncation == 0.4:
        full = np.asarray(picture.images).transpose(0, 3, 1, 2)[:1]
        np.testing.assert_allclose(full, case.arrays["out/0.4"], rtol=0, atol=IMAGES)


def test_rows_are_chosen_as_the_port_chooses_them(case):
    for truncation, (index, share) in zip(TRUNCATIONS, case.arrays["trunc_index_and_frac"], strict=True):
        first, *second = rows_at(truncation, 51, "hub_port")
        assert first == (int(index), share if share else 1.0)
        assert second == ([(int(index) + 1, 1 - share)] if share else [])


def test_a_source_gives_the_truncation_to_the_network_and_scales_latents(case):
    """Through the public face: rows are picked inside the network, from all 51."""
    names = tuple(f"class {i}" for i in range(case.options["num_classes"]))
    info = SourceInfo("hub", "biggan_deep", complete(case.options), 128, 3, case.networks.z_dim, names)
    source = Source(info, case.networks, case.variables, case.variables)
    for truncation in (0.58, 0.999):
        images = source.generate(case.arrays["z_unit"], np.asarray(case.y), truncation)
        expected = case.arrays[f"out_stride/{truncation}"]
        np.testing.assert_allclose(strided(images), expected, rtol=0, atol=IMAGES)


def test_class_weights_match(case):
    weights = jnp.asarray(case.arrays["soft_class"])
    picture, _ = case.generate(case.mixed(0.5), case.z(0.5), weights)
    np.testing.assert_allclose(strided(picture.images), case.arrays["out_stride_soft/0.5"], rtol=0, atol=IMAGES)
    table = np.asarray(case.variables["params"]["shared"]["embedding"])
    assert_near(case.arrays["one_hot"] @ table, case.arrays["class_embedding"], IMAGES)


def test_every_layer_matches(case):
    """Spatial means of each layer's output, so that a wrong one is named."""
    _, changed = case.generate(case.mixed(0.4), case.z(0.4), case.y)
    seen = {name: output["__call__"][0] for name, output in changed["intermediates"].items()}
    # NumPy adds float32 one after another here, which costs four digits.
    mean = lambda stage: np.asarray(stage).mean((1, 2), dtype=np.float64)
    assert_near(seen["linear"], case.arrays["h_0.4/gen_z"], IMAGES)
    place, attended = 0, case.networks.generator.attention[0]
    for i in range(10):
        assert_near(mean(seen[f"block_{i}"]), case.arrays[f"h_0.4/layers.{place}"], IMAGES, f"block {i}")
        place += 1
        if i == attended:
            assert_near(mean(seen[f"attn_{i}"]), case.arrays[f"h_0.4/layers.{place}"], IMAGES, "attention")
            place += 1
    # Only the three outputs that are seen are computed.
    assert_near(mean(seen["out_conv"]), case.arrays["h_0.4/conv_to_rgb"][:, :3], IMAGES)


def test_a_pass_that_moves_the_vectors_divides_by_moved_ones(case):
    def apply(variables, z, c):
        return case.networks.generator.apply(variables, z, c, truncation=0.4, mutable=["spectral"])

    picture, changed = quick_jit(apply)(case.variables, case.z(0.4), case.y)
    expected = case.arrays["out_stride_trainmode/0.4"]
    np.testing.assert_allclose(strided(picture.images), expected, rtol=0, atol=IMAGES)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), changed["spectral"], case.variables["spectral"])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_singular_values_match(case):
    folded = quick_jit(lambda v: normalised(v, lambda path: True)["params"])(case.variables)
    ours = flatten_dict({"params": folded}, sep="/")
    used = to_theirs([case.leaves[path] for path in ours], ours)
    for name, (sigma, _) in zip(case.arrays["sigma/names"], case.arrays["sigma/values"], strict=True):
        raw = case.state[f"{name}.weight_orig"]
        assert_near(np.linalg.norm(raw) / np.linalg.norm(used[f"{name}.weight_orig"]), sigma, 1e-5, name)


def test_gradients_match(case):
    generator = models.get_family("biggan_deep").build(**case.options | {"statistics": 1}).generator
    variables = case.mixed(0.4)

    @quick_jit
    def gradients(params, z):
        def loss(params, z):
            images = generator.apply({**variables, "params": params}, z, case.y).images
            flat = images.transpose(0, 3, 1, 2).ravel()
            # The recorded angles are float32, which at the end of 147,456 of them is off by some thousandths.
            angles = np.float32(0.37) * np.arange(flat.size, dtype=np.float32)
            return (flat * jnp.asarray(np.cos(angles))).mean()

        return jax.value_and_grad(loss, argnums=(0, 1))(params, z)

    loss, (grads, grad_z) = gradients(variables["params"], case.z(0.4))
    assert_near(loss, case.arrays["grad/loss"], GRADIENTS)
    assert_near(grad_z, case.arrays["grad/z"], GRADIENTS)
    ours = flatten_dict({"params": grads}, sep="/")
    theirs = to_theirs([case.leaves[path] for path in ours], ours)
    for name in ("embeddings.weight", "generator.gen_z.weight_orig"):
        assert_near(theirs[name], case.arrays[f"grad/{name}"], GRADIENTS, name)


# Its files.


def test_what_is_read_and_written_again_is_the_same_file(case):
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(case.variables, sep="/").items()}
    written = to_theirs(case.leaves.values(), ours)
    assert written.keys() == case.state.keys()
    assert [key for key in written if written[key].tobytes() != case.state[key].tobytes()] == []
    expected = flatten_dict(dict(variable_shapes(case.networks)[0]), sep="/")
    assert {path: leaf.shape for path, leaf in ours.items()} == {path: leaf.shape for path, leaf in expected.items()}


@pytest.mark.parametrize(("resolution", "layers"), [(256, 13), (512, 15)])
def test_the_larger_published_generators_are_recognised(resolution, layers):
    """At the published width, from names and shapes that the table itself makes; the layer list is the port's."""
    options = complete({"resolution": resolution, "width": 128, "num_classes": 1000, "attention_g": "64"})
    options |= {"statistics": 51, "stored_vectors_g": True, "latent_first": True, "output_width": 128}
    options |= {"norm_eps": 1e-4, "out_norm_eps": 1e-4, "spectral_eps": 1e-4}
    networks = models.get_family("biggan_deep").build(**options)
    expected = flatten_dict(dict(variable_shapes(networks)[0]), sep="/")
    leaves = HUB.leaves("generator", options)
    shapes = {}
    for leaf in leaves:
        (made,) = leaf.write(np.broadcast_to(np.float32(0), expected[leaf.ours].shape)).values()
        shapes[leaf.theirs] = made.shape
    found = HUB.recognise(shapes)
    assert {key: value for key, value in found.options.items() if options[key] not in (value, 0)} == {}
    assert found.options["attention_g"] == "64"
    numbers = {name.split(".")[2] for name in shapes if name.startswith("generator.layers.")}
    config = HUB.to_config(options)
    assert len(numbers) == layers == len(config["layers"]) + 1 and config["attention_layer_position"] == 8
    assert config["layers"][:4] == [[False, 16, 16], [True, 16, 16], [False, 16, 16], [True, 16, 8]]
    assert PYTORCH.recognise(shapes) is None


def test_linear_interpolation_is_offered():
    assert rows_at(0.58, 51, "linear") == ((29, 1.0),)
    (low, a), (high, b) = rows_at(0.41, 51, "linear")
    assert (low, high) == (20, 21) and a == pytest.approx(0.5) and b == pytest.approx(0.5)
    (low, a), (high, b) = rows_at(0.999, 51, "linear")
    assert (low, high) == (49, 50) and a == pytest.approx(0.05) and b == pytest.approx(0.95)
