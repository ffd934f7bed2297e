"""Swin-T: windows and their shifts, sizes that are refused, and the spellings its weights are published in."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from gantransfer.errors import UserError
from gantransfer.features import state_dicts, swin

SWIN = swin.ARCHITECTURES[0]


@pytest.fixture(scope="module")
def state():
    return state_dicts.random_state(SWIN.blueprint.shapes, 0)


@pytest.fixture(scope="module")
def loaded(state):
    return features.load("swin_t", weights=state)


def test_it_has_the_published_number_of_parameters():
    assert sum(int(np.prod(shape)) for shape in SWIN.blueprint.shapes.values()) == 28288354
    taps = SWIN.blueprint.taps
    assert (taps["map"], taps["pool"], taps["logits"]) == ((1, 7, 7, 768), (1, 768), (1, 1000))


@pytest.mark.parametrize("size", [(224, 230), (48, 64), (0, 32)])
def test_sizes_that_cannot_be_halved_down_are_refused(size):
    call = lambda x: swin.SwinTransformer().init(jax.random.key(0), x, None)
    with pytest.raises(UserError, match="multiples of 32") as refused:
        jax.eval_shape(call, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    assert f"{size[0]}x{size[1]}" in str(refused.value)


def test_relative_positions_count_rows_first():
    index = swin._relative_positions()
    # A token to itself; one to the right of another; one below another.
    assert (index[0, 0], index[1, 0], index[7, 0]) == (84, 85, 97)
    assert index.min() == 0 and index.max() == 168


def test_windows_hold_neighbours_and_are_counted_by_rows():
    rows, columns = np.divmod(np.arange(14 * 21), 21)
    windows = swin._windows((rows * 100 + columns).reshape(1, 14, 21, 1))[0, :, :, 0]
    assert windows.shape == (6, 49)
    np.testing.assert_array_equal(windows[4].reshape(7, 7)[:, 0], 100 * np.arange(7, 14) + 7)


def test_after_a_shift_only_true_neighbours_attend_to_each_other():
    apart = swin._regions_apart((14, 14), (3, 3))
    assert apart.shape == (4, 49, 49)
    np.testing.assert_array_equal(apart[0], 0)
    # The last window holds four corners of the map: 4x4, 4x3, 3x4 and 3x3 tokens.
    sizes = sorted((apart[3] == 0).sum(axis=1))
    assert sizes == sorted([16] * 16 + [12] * 24 + [9] * 9)
    assert set(np.unique(apart)) == {-100.0, 0.0}
    # A row of windows that is not shifted is one region.
    np.testing.assert_array_equal(swin._regions_apart((7, 14), (0, 3))[0], 0)


class SecondBlock(swin.SwinTransformer):
    """The first block that is shifted, by itself."""

    @nn.compact
    def __call__(self, x):
        return self._block(x, "layers.0.blocks.1", 3, shift=3)


def test_a_far_corner_is_no_neighbour_of_the_first_token(loaded, key):
    """The shift brings opposite corners into one window; only the mask keeps them apart."""
    x = jax.random.normal(key, (1, 14, 14, 96))
    changed = x.at[:, -1, -1].add(10.0)
    block = jax.jit(lambda x: SecondBlock().apply({"params": loaded.params}, x))
    difference = np.abs(np.asarray(block(changed) - block(x))).max(axis=-1)[0]
    assert difference[10:, 10:].min() > 0
    assert difference[:10].max() < 1e-5 and difference[:, :10].max() < 1e-5


def as_torchvision(key):
    key = re.sub(r"^patch_embed\.(proj|norm)", lambda found: f"features.0.{0 if found[1] == 'proj' else 2}", key)
    key = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"features.{2 * int(found[1]) + 2}", key)
    key = re.sub(r"^layers\.(\d)\.blocks", lambda found: f"features.{2 * int(found[1]) + 1}", key)
    return key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")


def as_timm(key):
    key = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", key)
    return key.replace("head.", "head.fc.")


@pytest.mark.parametrize("spelling", [as_torchvision, as_timm])
def test_other_spellings_are_the_same_network(state, loaded, spelling):
    other = {spelling(key): array for key, array in state.items()}
    assert len(set(other) - set(state)) >= 5
    buffers = {spelling("layers.0.blocks.1.attn.relative_position_index"): np.zeros((49, 49), int)}
    found = features.load("swin_t", weights=other | buffers)
    assert found.sha256 == loaded.sha256
    assert "relative_position_index" in found.info["notes"][0]


def test_torchvision_s_numbers_are_those_of_its_layers():
    """Written out by hand from torchvision's state dict."""
    assert swin._from_torchvision("features.4.reduction.weight") == "layers.1.downsample.reduction.weight"
    assert swin._from_torchvision("features.5.5.attn.qkv.bias") == "layers.2.blocks.5.attn.qkv.bias"
    assert swin._from_torchvision("features.7.0.mlp.3.weight") == "layers.3.blocks.0.mlp.fc2.weight"
    assert swin._from_torchvision("features.0.2.bias") == "patch_embed.norm.bias"
    assert swin._from_timm("layers.1.downsample.norm.weight") == "layers.0.downsample.norm.weight"


def test_weights_without_a_head_and_backbones_of_detectors_are_told_apart(state):
    bare = {key: array for key, array in state.items() if not key.startswith(("head.", "norm."))}
    headless = features.load("swin_t", weights={f"encoder.{key}": array for key, array in bare.items()} | {
        "encoder.norm.weight": state["norm.weight"], "encoder.norm.bias": state["norm.bias"],
        "projector.weight": np.zeros((3, 3)),
    })  # fmt: skip
    assert headless.outputs == ("pool",) and "no linear layer" in headless.info["notes"][0]
    moby = features.load("swin_t_moby", weights={key: a for key, a in state.items() if not key.startswith("head.")})
    assert moby.sha256 == headless.sha256
    detector = {f"backbone.{key}": array for key, array in bare.items()} | {"rpn_head.weight": np.zeros(3)}
    for i, width in enumerate((96, 192, 384, 768)):
        detector |= {f"backbone.norm{i}.weight": np.ones(width), f"backbone.norm{i}.bias": np.zeros(width)}
    for name in ("swin_t", "swin_t_coco", "swin_t_ade20k"):
        found = features.load(name, weights=detector)
        assert {"map", "norm3"} <= set(found.stages) and found.input.size == 256 and found.outputs == ("pool",)
    assert found.architecture.blueprint.taps["map"] == (1, 8, 8, 768)
