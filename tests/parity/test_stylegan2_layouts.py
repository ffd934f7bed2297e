"""The layout of stylegan2-ada-pytorch: recognised from names and shapes, told by configurations, exact both ways.

Fixtures: `parity/stylegan2ada` of the shared folder.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gantransfer import models
from gantransfer.errors import UserError
from gantransfer.models.stylegan2 import widths
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs
from gantransfer.pretrained.layouts.stylegan2 import ADA, channel_options
from tests.parity.stylegan2_fixtures import assert_near, nchw, options_for, quick_jit, variables_of

STATES = [
    *(f"{name}_{side}" for name in ("u32", "c32", "u64") for side in ("G", "D")),
    *(f"arch_{name}_{side}" for name in ("orig", "skip", "resnet") for side in ("G", "D")),
    *(f"legacy-tf-c32_{side}" for side in ("G", "G_ema", "D")),
]


@pytest.fixture
def root(shared):
    return shared / "parity" / "stylegan2ada"


def shapes_of(state):
    return {name: array.shape for name, array in state.items()}


@pytest.mark.parametrize("name", STATES)
def test_a_file_read_and_written_is_the_same_file(root, name):
    state = load_file(root / f"{name}.safetensors")
    role = ADA.recognise(shapes_of(state)).role
    options = options_for(state)
    table = ADA.leaves(role, options)
    written = to_theirs(table, to_ours(table, state)) | ADA.made(role, options)
    assert written.keys() == state.keys()
    for key, value in state.items():
        assert written[key].dtype == value.dtype, key
        np.testing.assert_array_equal(written[key], value, key)
        assert (ADA.reason(key) is not None) == key.endswith("resample_filter"), key


@pytest.mark.parametrize("name", ["u32", "c32", "u64"])
def test_weights_and_configuration_say_the_same(root, name):
    config = json.loads((root / f"{name}_config.json").read_text())
    for side, role in (("G", "generator"), ("D", "discriminator")):
        shapes = {key: tuple(shape) for key, shape in config[f"{side}_shapes"].items()}
        found = ADA.recognise(shapes)
        assert found.role == role
        stated = ADA.from_config({side: config[f"{side}_init_kwargs"]})
        for option, value in found.options.items():
            assert stated.get(option, value) == value, option
    stated = ADA.from_config({side: config[f"{side}_init_kwargs"] for side in ("G", "D")})
    clamp = config["G_init_kwargs"]["synthesis_kwargs"]["conv_clamp"]
    group = config["D_init_kwargs"]["epilogue_kwargs"]["mbstd_group_size"]
    assert (stated["conv_clamp"], stated["minibatch_group"]) == (clamp or 0, group)
    assert stated["w_avg_decay"] == 0.995
    models.get_family("stylegan2").build(**stated)


def test_configurations_of_stylegan3_have_its_defaults():
    flat = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 32, "img_channels": 1, "channel_base": 256}
    stated = ADA.from_config({"G_ema": flat})
    assert (stated["w_avg_decay"], stated["conv_clamp"], stated["channels"]) == (0.998, 256.0, 1)
    assert stated["channel_base"] == 256 and stated["mapping_layers"] == 8
    nested = {**flat, "synthesis_kwargs": {"channel_base": 128, "use_noise": False}}
    stated = ADA.from_config({"G": nested})
    assert (stated["w_avg_decay"], stated["conv_clamp"], stated["noise"]) == (0.995, 0.0, False)
    with pytest.raises(UserError, match="activation"):
        ADA.from_config({"G": {**flat, "mapping_kwargs": {"activation": "relu"}}})


@pytest.mark.parametrize("base", [64, 96, 256, 1000, 16384, 32768, 65536])
@pytest.mark.parametrize("largest", [2, 10, 512, 1024])
@pytest.mark.parametrize("resolution", [8, 32, 1024])
def test_channels_say_how_they_are_made(base, largest, resolution):
    channels = widths(resolution, base, largest)
    if min(channels) == 0:
        pytest.skip("no channels are left")
    options = channel_options(channels)
    assert widths(resolution, *options.values()) == channels
    assert channel_options(widths(resolution, *options.values())) == options


def test_channels_that_no_rule_makes_are_not_recognised():
    assert channel_options((8, 16, 16)) is None
    assert channel_options((12, 5, 11)) is None


def test_states_of_others_are_not_recognised(root):
    state = shapes_of(load_file(root / "u32_G.safetensors"))
    for lost in ("synthesis.b4.const", "synthesis.b8.conv0.weight", "synthesis.b32.torgb.weight", "mapping.fc0.weight"):
        assert ADA.recognise({name: shape for name, shape in state.items() if name != lost}) is None
    state = shapes_of(load_file(root / "u32_D.safetensors"))
    for lost in ("b4.conv.weight", "b32.fromrgb.weight", "b4.out.weight"):
        assert ADA.recognise({name: shape for name, shape in state.items() if name != lost}) is None
    assert ADA.recognise({}) is None
    assert ADA.recognise(dict.fromkeys(state, ())) is None


def test_networks_converted_from_tensorflow_match(root):
    """The discriminator of these files maps classes without a layer; the generator's depth is its own."""
    arrays = dict(np.load(root / "legacy-tf-c32.npz"))
    g, d = (load_file(root / f"legacy-tf-c32_{side}.safetensors") for side in ("G_ema", "D"))
    options = options_for(g, d) | {"minibatch_group": 0, "conv_clamp": 0.0}
    assert (options["mapping_layers"], options["mapping_layers_d"]) == (3, 0)
    networks = models.get_family("stylegan2").build(**options)
    c = jnp.asarray(arrays["c"].argmax(1), jnp.int32)

    @quick_jit
    def run(generator, discriminator, z):
        picture = networks.generator.apply(generator, z, c, want=("ws",))
        return picture, networks.discriminator.apply(discriminator, picture.images, c).logits

    generator, discriminator = variables_of("generator", g, options), variables_of("discriminator", d, options)
    picture, logits = run(generator, discriminator, jnp.asarray(arrays["z"]))
    assert_near(picture.stages["ws"], arrays["ws"], 5e-6)
    assert_near(nchw(picture.images), arrays["img_const"], 5e-6)
    assert_near(logits, arrays["logits"][:, 0], 5e-6)
