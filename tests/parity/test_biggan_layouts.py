"""Tables of BigGAN against lists of names and shapes of full-width networks, and against small files, both ways."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gantransfer import models
from gantransfer.errors import UserError
from gantransfer.pretrained.fresh import variable_shapes
from gantransfer.pretrained.layouts import biggan
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs
from gantransfer.pretrained.readers import read

FULL_WIDTH = ("biggan_64_ch64", "biggan_128_ch96", "biggan_256_ch96", "biggan_512_ch96")
FULL_WIDTH += ("biggan_cifar10_ch64", "sagan_128_ch64", "sngan_128_ch64")
SIDES = {"G": "generator", "D": "discriminator"}


def table(shared, name):
    return json.loads((shared / "parity" / "biggan" / "tables" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FULL_WIDTH)
def test_a_full_width_network_is_recognised_as_what_its_config_says(shared, name):
    content = table(shared, name)
    says = biggan.PYTORCH.from_config(content["config"])
    for side, role in SIDES.items():
        if side in content:
            shapes = {key: tuple(shape) for key, shape, _ in content[side]["state_dict"]}
            found = biggan.PYTORCH.recognise(shapes)
            assert found.role == role
            common = found.options.keys() & says.keys()
            assert {key: found.options[key] for key in common} == {key: says[key] for key in common}
            assert {"resolution", "num_classes"} <= common
            assert biggan.HUB.recognise(shapes) is None


@pytest.mark.parametrize("name", FULL_WIDTH)
def test_the_table_has_every_name_of_the_file_with_parameters_in_its_order(shared, name):
    content = table(shared, name)
    for side, role in SIDES.items():
        if side in content:
            shapes = {key: tuple(shape) for key, shape, _ in content[side]["state_dict"]}
            leaves = biggan.PYTORCH.leaves(role, biggan.PYTORCH.recognise(shapes).options)
            assert sorted(key for leaf in leaves for key in leaf.names) == sorted(shapes)
            parameters = [leaf.theirs for leaf in leaves if leaf.ours.startswith("params/")]
            assert parameters == [key for key, _ in content[side]["parameters"]]


@pytest.mark.parametrize("name", ["biggan_64_ch64", "sngan_128_ch64"])
def test_arrays_of_the_published_shapes_become_the_shapes_of_our_networks(shared, name):
    content, options, read = table(shared, name), {}, {}
    for side, role in SIDES.items():
        zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape, _ in content[side]["state_dict"]}
        found = biggan.PYTORCH.recognise({key: value.shape for key, value in zeros.items()})
        options |= found.options
        read[role] = to_ours(biggan.PYTORCH.leaves(role, found.options), zeros)
        read[role] |= biggan.PYTORCH.absent(role, found.options)
    networks = models.get_family("biggan").build(**options)
    for role, shapes in zip(SIDES.values(), variable_shapes(networks), strict=True):
        expected = {path: leaf.shape for path, leaf in flatten_dict(dict(shapes), sep="/").items()}
        assert {path: value.shape for path, value in read[role].items()} == expected


@pytest.mark.parametrize("run", ["cifar32/weights/cifar32_small", "imagenet128/weights/imagenet128_small"])
@pytest.mark.parametrize("side", SIDES)
def test_what_is_read_and_written_again_is_the_same_file(shared, run, side):
    state = read(shared / "parity" / "biggan" / run / f"{side}.pth").states[""]
    assert_round_trip(biggan.PYTORCH, state)


def assert_round_trip(layout, state):
    state = {key: np.asarray(value) for key, value in state.items()}
    found = layout.recognise({key: value.shape for key, value in state.items()})
    leaves = layout.leaves(found.role, found.options)
    written = to_theirs(leaves, to_ours(leaves, state)) | dict(layout.made(found.role, found.options))
    assert written.keys() == state.keys()
    for key, value in state.items():
        assert written[key].shape == value.shape and written[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("name", ["mybn_hier_shared", "sagan_like_thin", "two_svs_two_itrs", "no_sn_g"])
def test_variants_are_told_by_their_weights_alone(shared, name):
    folder = shared / "parity" / "biggan" / "variants"
    config = json.loads((folder / "variants.json").read_text())[name]
    arrays = np.load(folder / f"{name}.npz")
    says = biggan.PYTORCH.from_config({"G_shared": False, "hier": False, "mybn": False, "G_param": "SN"} | config)
    for side, role in SIDES.items():
        state = {key.removeprefix(f"{side}/"): arrays[key] for key in arrays if key.startswith(f"{side}/")}
        found = biggan.PYTORCH.recognise({key: value.shape for key, value in state.items()})
        assert found.role == role
        assert {key: value for key, value in found.options.items() if says.get(key, value) != value} == {}
        names = {key for leaf in biggan.PYTORCH.leaves(role, found.options) for key in leaf.names}
        assert {key for key in state if biggan.PYTORCH.reason(key) is None} == names
        made = biggan.PYTORCH.made(role, found.options)
        assert made.keys() == state.keys() - names


def test_a_generator_converted_from_the_hub_has_no_singular_values(shared):
    shapes = {key: tuple(shape) for key, shape, _ in table(shared, "biggan_256_ch96")["G"]["state_dict"]}
    shapes = {key: shape for key, shape in shapes.items() if not key.endswith(".sv0")}
    assert biggan.PYTORCH.recognise(shapes) is None
    found = biggan.HUB.recognise(shapes)
    options = dict(biggan.HUB.assumed) | found.options
    assert (options["norm_eps"], options["attention_g"], options["resolution"]) == (1e-4, "128", 256)
    leaves = biggan.HUB.leaves("generator", options)
    assert sorted(key for leaf in leaves for key in leaf.names) == sorted(shapes)
    absent = biggan.HUB.absent("generator", options)
    networks = models.get_family("biggan").build(**options)
    expected = flatten_dict(dict(variable_shapes(networks)[0]), sep="/")
    assert {leaf.ours for leaf in leaves} | absent.keys() == expected.keys()
    assert {path: value.shape for path, value in absent.items()} == {path: expected[path].shape for path in absent}


@pytest.mark.parametrize("name", ["bigganpt_deep_128_ch128"])
def test_other_networks_are_not_taken_for_it(shared, name):
    for side in SIDES:
        shapes = {key: tuple(shape) for key, shape, _ in table(shared, name)[side]["state_dict"]}
        assert biggan.PYTORCH.recognise(shapes) is None
    for shapes in ({}, {"linear.weight": (3,)}, {"blocks.0.0.conv1.weight": (1, 2)}):
        assert biggan.PYTORCH.recognise(shapes) is None and biggan.HUB.recognise(shapes) is None


@pytest.mark.parametrize("name", ["biggan_128_ch96", "sngan_128_ch64"])
def test_a_written_config_says_again_what_was_read(shared, name):
    content = table(shared, name)
    options = {key: option.default for key, option in models.get_family("biggan").options.items()}
    for side in SIDES:
        found = biggan.PYTORCH.recognise({key: tuple(shape) for key, shape, _ in content[side]["state_dict"]})
        options |= found.options
    options |= {"norm_eps": 3e-4, "init": "N02", "power_iterations_d": 3}
    again = biggan.PYTORCH.from_config(json.loads(json.dumps(biggan.PYTORCH.to_config(options))))
    assert len(again) > 18
    assert {key: value for key, value in again.items() if options[key] != value} == {}


def test_what_the_reference_could_do_and_we_cannot_is_refused_by_name():
    with pytest.raises(UserError, match="G_nl.*inplace_relu"):
        biggan.PYTORCH.from_config({"G_ch": 64, "G_nl": "leaky_relu"})
    assert biggan.PYTORCH.from_config({"width": 64}) == {}
