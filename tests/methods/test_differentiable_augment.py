"""DiffAugment: the stored arrays with injected draws, the laws of the draws, order, fills and strengths."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.methods import differentiable_augment as da
from gantransfer.methods import parse_method
from gantransfer.methods.hooks import MethodState, Players

POLICIES = {
    "color16": "color",
    "translation16": "translation",
    "cutout16": "cutout",
    "cutout_odd": "cutout",
    "cutout_oddsize": "cutout",
    "translation_nonsq": "translation",
    "translation32": "translation",
    "full16": "color,translation,cutout",
    "tc16": "translation,cutout",
    "ct16": "cutout,translation",
    "grey16": "color,translation,cutout",
    "empty": "",
}
ADJUST = {
    "brightness": da.adjust_brightness,
    "saturation": da.adjust_saturation,
    "contrast": da.adjust_contrast,
}
MOVE = {"translation": da.translate, "cutout": da.cutout}
PLAYERS = Players(G=lambda z, c, want=(): None, D=lambda x, c, want=(): None)


@pytest.fixture(scope="module")
def stored(shared):
    return np.load(shared / "parity/diffaugment/diffaugment.npz")


@pytest.fixture(scope="session")
def look():
    """Returns `look(line, images, keys=None)`: the images after a method's view."""

    @partial(jax.jit, static_argnums=0)
    def view(line, images, keys):
        labels = jnp.zeros(len(images), jnp.int32)
        seen, after = parse_method(line).view(keys, images, labels, "real", PLAYERS, MethodState())
        assert after is labels
        return seen

    return lambda line, images, keys=None: view(line, images, keys_of(len(images)) if keys is None else keys)


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def replay(policy, draws, x):
    """Applies a policy with its draws given in the order of the released code."""
    draws = iter(draws)
    for operation in da.parse_policy(policy):
        if operation in ADJUST:
            x = ADJUST[operation](x, next(draws))
        else:
            x = MOVE[operation](x, next(draws), next(draws))
    assert next(draws, None) is None
    return x


@pytest.mark.parametrize(("case", "policy"), POLICIES.items())
def test_values_and_gradients_are_the_stored_ones(stored, case, policy):
    def nhwc(name):
        return jnp.asarray(stored[f"{case}/{name}"].transpose(0, 2, 3, 1))

    names = sorted((k for k in stored.files if k.startswith(f"{case}/draw")), key=lambda k: int(k.split("draw")[1][0]))
    draws = [jnp.asarray(stored[name].ravel(), jnp.float32 if "_rand" == name[-5:] else jnp.int32) for name in names]
    x, w = nhwc("x"), nhwc("w") if f"{case}/w" in stored.files else jnp.zeros(())
    y, slope = jax.jit(jax.vjp, static_argnums=0)(partial(replay, policy, draws), x)
    np.testing.assert_allclose(y, nhwc("y"), atol=1e-6)
    if f"{case}/dx" in stored.files:
        np.testing.assert_allclose(jax.jit(lambda pull, w: pull(w)[0])(slope, w), nhwc("dx"), atol=1e-5)


@pytest.mark.parametrize("case", ["translation16", "translation_nonsq", "cutout16", "cutout_odd", "cutout_oddsize"])
def test_draws_cover_exactly_the_released_ranges(stored, case):
    size = stored[f"{case}/x"].shape[2:]
    keys = jax.random.split(jax.random.key(1), 2000)
    for i in (0, 1):
        draws = da.draw_shifts(keys, size[i], 0.125) if "trans" in case else da.draw_centres(keys, size[i], 0.5)
        low, high = stored[f"{case}/range{i}"]
        np.testing.assert_array_equal(np.unique(draws), np.arange(low, high))
        counts = np.bincount(np.asarray(draws) - low)
        assert counts.min() > 0.6 * 2000 / len(counts)


def test_hole_is_whole_in_the_middle_and_cut_off_at_the_border():
    holes = da.cutout(jnp.ones((4, 16, 16, 1)), jnp.array([8, 0, 16, 8]), jnp.array([8, 0, 16, 16]))
    np.testing.assert_array_equal((holes == 0).sum((1, 2, 3)), [64, 16, 16, 32])


def test_order_of_the_policy_matters():
    x = jnp.ones((1, 16, 16, 1))
    shift, centre = (jnp.array([2]), jnp.array([0])), (jnp.array([8]), jnp.array([8]))
    moved_hole = da.translate(da.cutout(x, *centre), *shift)
    hole = da.cutout(da.translate(x, *shift), *centre)
    assert (moved_hole[0, 2:10, 4:12] == 0).all()
    assert (hole[0, 4:12, 4:12] == 0).all()
    assert (moved_hole[0, 10:12, 4:12] == 1).all()


@pytest.mark.parametrize(("fill", "expected"), [("zero", 0.0), ("minimum", -1.0), ("edge", 0.75)])
def test_fill_says_what_a_translation_brings_in(fill, expected):
    x = jnp.full((1, 5, 7, 3), 0.75)
    moved = da.translate(x, jnp.array([-2]), jnp.array([3]), fill)
    np.testing.assert_array_equal(moved[0, :2], expected)
    np.testing.assert_array_equal(moved[0, :, 4:], expected)
    np.testing.assert_array_equal(moved[0, 2:, :4], 0.75)


def test_strengths_scale_the_published_ranges():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(
        da.adjust_brightness(x, ends, 0.5) - x, jnp.array([-0.25, 0.25])[:, None, None, None] + 0 * x, atol=1e-6
    )
    for adjust, mean, scales in (
        (da.adjust_contrast, x.mean((1, 2, 3), keepdims=True), (0.75, 1.25)),
        (da.adjust_saturation, x.mean(3, keepdims=True), (0.5, 1.5)),
    ):
        expected = (x - mean) * jnp.array(scales)[:, None, None, None] + mean
        np.testing.assert_allclose(adjust(x, ends, 0.5), expected, atol=1e-6)
        np.testing.assert_allclose(adjust(x, ends, 0.0), x, atol=1e-6)


def test_words_of_color_stand_alone_and_color_is_all_three():
    assert da.parse_policy("color, cutout") == ("brightness", "saturation", "contrast", "cutout")
    assert da.parse_policy("contrast,brightness") == ("contrast", "brightness")
    assert da.parse_policy(" ") == ()


@pytest.mark.parametrize("policy", ["brightness", "saturation", "contrast", "translation", "cutout"])
def test_draws_belong_to_the_key_of_an_image_and_not_to_its_place_in_the_batch(look, policy):
    line = f"differentiable_augment(policy='{policy}')"
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (1, 16, 16, 3)), (6, 16, 16, 3))
    seen = look(line, x)
    assert len(np.unique(np.asarray(seen).reshape(6, -1), axis=0)) > 2
    np.testing.assert_allclose(look(line, x, keys_of(6)[::-1])[::-1], seen, atol=1e-6)
    assert not np.allclose(look(line, x, keys_of(6, seed=1)), seen, atol=1e-3)


def test_method_applies_what_its_settings_say(look):
    x = jnp.full((64, 16, 16, 1), 0.5)
    bright = look("differentiable_augment(policy='brightness', brightness=0.5)", x) - x
    assert -0.25 <= bright.min() < -0.2 < 0.2 < bright.max() < 0.25
    assert (bright == bright[:, :1, :1]).all()
    moved = look("differentiable_augment(policy='translation', translation_ratio=0.0625, fill='minimum')", x)
    np.testing.assert_array_equal(moved[:, 1:-1, 1:-1], 0.5)
    assert set(np.unique(moved)) == {-1.0, 0.5}
    holes = (look("differentiable_augment(policy='cutout', cutout_ratio=0.25)", x) == 0).sum((1, 2, 3))
    assert holes.max() == 16
    assert holes.min() >= 4


def test_two_shifts_of_an_image_are_drawn_apart(look):
    spot = jnp.zeros((64, 16, 16, 1)).at[:, 8, 8].set(1.0)
    moved = look("differentiable_augment(policy='translation')", spot)[..., 0].reshape(64, -1).argmax(1)
    assert len(np.unique(moved)) > 15


def test_neutral_settings_change_nothing(look):
    x = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    np.testing.assert_array_equal(look("differentiable_augment(policy='')", x), x)
    none = "translation_ratio=0.0, cutout_ratio=0.0, brightness=0.0, saturation=0.0, contrast=0.0"
    np.testing.assert_allclose(look(f"differentiable_augment({none})", x), x, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("policy='colour'", r"policy: 'colour' .*did you mean color"),
        ("policy='color,,cutout'", r"policy: ''"),
        ("translation_ratio=1.5", r"translation_ratio: 1\.5 .*from 0\.0 to 1\.0"),
        ("cutout_ratio=-0.1", r"cutout_ratio: -0\.1"),
        ("brightness=-1", r"brightness: -1\.0"),
        ("contrast=3", r"contrast: 3\.0"),
        ("fill='black'", r"fill: 'black' .*zero, minimum, edge"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=rf"differentiable_augment\.{message}"):
        parse_method(f"differentiable_augment({settings})")
