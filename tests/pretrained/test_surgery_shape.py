"""Other colours or another size: before the first update, what is promised is equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.models.resampling import downsampled, make_filter, upsampled
from gantransfer.pretrained.source import latents
from gantransfer.pretrained.surgery_shape import LUMA, change_channels, change_resolution, without_fade
from tests.parity.nearness import quick_jit

STYLEGAN2 = {
    "resolution": 16,
    "channels": 3,
    "z_dim": 12,
    "w_dim": 8,
    "channel_base": 256,
    "channel_max": 8,
    "mapping_layers": 2,
    "conv_clamp": 0.0,
}
DCGAN = {"resolution": 16, "channels": 3, "z_dim": 12, "width": 8, "bias_g": "output"}
BIGGAN = {"resolution": 16, "width": 4, "z_dim": 12, "shared_dim": 8, "spectral_g": True}
DEEP = {"resolution": 16, "width": 8, "z_dim": 12, "shared_dim": 6, "spectral_g": True, "spectral_d": True}
HUB = {"latent_first": True, "stored_vectors_g": True, "statistics": 3, "output_width": 8}
FASTGAN = {"resolution": 128, "width": 2, "width_d": 4, "decoder_width": 2, "z_dim": 12}
# Their images are not bounded by a tanh, at these sizes.
LINEAR = ("stylegan2", "fastgan")
CASES = {
    "stylegan2": ("stylegan2", STYLEGAN2),
    "dcgan": ("dcgan", DCGAN),
    "biggan": ("biggan", BIGGAN | {"spectral_d": False}),
    "biggan_spectral": ("biggan", BIGGAN),
    "biggan_stored": ("biggan", BIGGAN | {"stored_vectors": True, "rectified_shortcut": True}),
    "wgangp_resnet": ("wgangp_resnet", {"resolution": 16, "channels": 3, "z_dim": 12, "width": 4}),
    "biggan_deep": ("biggan_deep", DEEP),
    "biggan_deep_hub": ("biggan_deep", DEEP | HUB),
    "fastgan": ("fastgan", FASTGAN),
    "fastgan_classes": ("fastgan", FASTGAN | {"variant": "projected_lite", "conditional": True}),
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "fastgan")) for name in CASES]
)
def family(request):
    return CASES[request.param]


def before_end(family, images):
    """What is linear in colours: images of some are, the others' before their tanh."""
    return images if family in LINEAR else np.arctanh(np.clip(images.astype(np.float64), -1 + 1e-7, 1 - 1e-7))


def close(found, wanted, tolerance=1e-5):
    assert np.abs(found - wanted).max() < tolerance * max(np.abs(wanted).max(), 1)


def test_grey_is_the_luma_of_colour_and_is_judged_as_before(family, tiny):
    name, options = family
    source = tiny.make_of(name, **options | {"channels": 3})
    if name == "stylegan2":
        source = lively(source, tiny)
    target, report = change_channels(source, 1)
    assert (target.info.channels, target.networks.channels) == (1, 1)
    z = latents(4, source.networks.z_dim, seed=3)
    close(before_end(name, target.generate(z))[..., 0], before_end(name, source.generate(z)) @ LUMA, 2e-5)
    grey = np.clip(np.random.default_rng(0).standard_normal(target.generate(z).shape).astype(np.float32), -1, 1)
    wanted = source.judge(np.repeat(grey, 3, axis=-1))
    assert wanted.std() > 1e-4
    close(target.judge(grey), wanted)
    assert any("luma" in law for law in report.step0)
    assert "reshaped" in str(report)


def test_colour_is_grey_in_every_channel(family, tiny):
    name, options = family
    source = tiny.make_of(name, **options | {"channels": 1})
    target, _ = change_channels(source, 3)
    z = latents(4, source.networks.z_dim, seed=3)
    before = source.generate(z)
    close(target.generate(z), np.repeat(before, 3, axis=-1))
    grey = np.clip(np.tanh(before), -1, 1)
    close(target.judge(np.repeat(grey, 3, axis=-1)), source.judge(grey))


@pytest.mark.parametrize("name", ["biggan_spectral", "biggan_deep_hub", "fastgan_classes"])
def test_raw_weights_make_what_averaged_ones_make(name, tiny):
    """Each of a generator's two sets of weights has singular values of its own; both must lose nothing."""
    family, options = CASES[name]
    source = tiny.make_of(family, **options | {"channels": 3})
    target, _ = change_channels(source, 1)
    raw = [dataclasses.replace(made, ema=made.generator) for made in (source, target)]
    z = latents(4, source.networks.z_dim, seed=3)
    before, after = (before_end(family, made.generate(z)) for made in raw)
    close(after[..., 0], before @ LUMA, 2e-5)
    assert np.abs(after - before_end(family, target.generate(z))).max() > 1e-2


@pytest.mark.slow
def test_fastgan_there_and_back_judges_and_reconstructs_as_before(tiny):
    source = tiny.make_of("fastgan", **FASTGAN | {"channels": 1})
    there, _ = change_channels(source, 3)
    back, report = change_channels(there, 1)
    z = latents(2, 12, seed=3)
    assert (there.info.options["output_width"], back.info.options["output_width"]) == (3, 3)
    assert 0 < back.info.options["image_scale_g"] != 1 and back.networks.generator.channels == 1
    images = source.generate(z)
    close(back.generate(z), images)
    assert report.leaves["generator/params/to_small/kernel"] == "reshaped"
    grey = np.clip(images, -1, 1)
    close(back.judge(grey), source.judge(grey))
    want = ("reconstruction_big",)
    before, after = (reconstructed(made, x, want) for made, x in ((source, grey), (there, np.repeat(grey, 3, axis=-1))))
    for name in want:
        assert np.ptp(before[name]) > 0.01
        close(after[name], np.repeat(before[name], 3, axis=-1))


def reconstructed(source, images, want):
    """The images that the discriminator's decoders make."""

    def apply(variables, x):
        labels = jnp.zeros(len(x), jnp.int32)
        return source.networks.discriminator.apply(variables, x, labels, want=want).stages

    return jax.device_get(quick_jit(apply)(source.discriminator, images))


def test_what_spectral_normalisation_would_change_becomes_a_factor_of_the_architecture(tiny):
    source = tiny.make_of("biggan", **BIGGAN | {"channels": 3})
    target, _ = change_channels(source, 1)
    factors = [target.info.options[name] for name in ("image_scale_d", "shortcut_scale_d")]
    assert min(factors) > 0 and 1.0 not in factors
    u = tiny.leaves(target.discriminator)["spectral/block_0/conv1/u"][0]
    kernel = tiny.leaves(target.discriminator)["params/block_0/conv1/kernel"].reshape(9, -1)
    np.testing.assert_allclose(np.linalg.norm(kernel @ u), np.linalg.svd(kernel)[1][0], rtol=1e-5)
    # Back in colour, a grey image is judged as at first, by the product of both factors.
    again, _ = change_channels(target, 3)
    grey = np.repeat(np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 16, 16, 1), 3, axis=-1)
    close(again.judge(grey), source.judge(grey))


@pytest.mark.parametrize("channels", [2, 3])
def test_other_changes_of_channels_are_refused(tiny, channels):
    with pytest.raises(UserError, match="transfer.channels"):
        change_channels(tiny.make_of("stylegan2", **STYLEGAN2), channels)


@pytest.fixture(scope="module")
def sixteen(tiny):
    return tiny.make_of("stylegan2", **STYLEGAN2)


def doubled(images):
    return np.asarray(jax.jit(lambda x: upsampled(x, make_filter([1, 3, 3, 1]), "plain"))(images))


def lively(source, tiny):
    """With a discriminator of raw weights of size 1, as StyleGAN2's are, so that it tells images apart."""
    kernels = {p: v for p, v in tiny.leaves(source.discriminator).items() if p.endswith("/kernel")}
    larger = {p.replace("/", "__"): v * np.prod(v.shape[:-1]) ** 0.5 for p, v in kernels.items()}
    return dataclasses.replace(source, discriminator=tiny.replace_leaves(source.discriminator, **larger))


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
def test_a_block_above_changes_neither_images_nor_judgements(tiny, architecture):
    sixteen = lively(tiny.make_of("stylegan2", **STYLEGAN2 | {"architecture_d": architecture}), tiny)
    target, report = change_resolution(sixteen, 32)
    assert target.info.resolution == 32
    z = latents(3, 12, seed=3)
    before = sixteen.generate(z)
    close(target.generate(z), doubled(before), 1e-6)
    assert "b32/conv0/kernel" in report.fresh()["generator"] and "b32/conv0/kernel" in report.fresh()["discriminator"]
    assert report.leaves["discriminator/params/b16/conv0/kernel"] == "kept"
    large = np.clip(np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32), -1, 1)
    halved = np.asarray(jax.jit(lambda x: downsampled(x, make_filter([1, 3, 3, 1]), "plain"))(large))
    wanted = sixteen.judge(halved)
    assert wanted.std() > 0.01
    close(target.judge(large), wanted)


def with_share(source, tiny, share):
    return dataclasses.replace(source, discriminator=tiny.replace_leaves(source.discriminator, params__fade=share))


def test_a_block_that_has_faded_in_is_all_that_is_left(sixteen, tiny):
    target = lively(change_resolution(sixteen, 32)[0], tiny)
    images = np.clip(np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32), -1, 1)
    half, whole = (with_share(target, tiny, share) for share in (0.5, 1.0))
    assert np.abs(half.judge(images) - whole.judge(images)).max() > 1e-2
    assert without_fade(half) is half
    settled = without_fade(whole)
    assert "params/fade_fromrgb/kernel" not in tiny.leaves(settled.discriminator)
    np.testing.assert_array_equal(settled.judge(images), whole.judge(images))
    with pytest.raises(UserError, match="at most 32 until the block that was added has faded in"):
        change_resolution(half, 64)
    assert change_resolution(whole, 64)[0].info.options["fade_d"]


def test_without_its_highest_block_it_makes_the_partial_sum_of_colours(sixteen, tiny):
    target, report = change_resolution(sixteen, 8)
    quiet = {
        f"params__b16__torgb__{leaf}": tiny.leaves(sixteen.ema)[f"params/b16/torgb/{leaf}"] * 0
        for leaf in ("kernel", "bias")
    }
    silent = dataclasses.replace(sixteen, ema=tiny.replace_leaves(sixteen.ema, **quiet))
    z = latents(3, 12, seed=3)
    close(doubled(target.generate(z)), silent.generate(z), 1e-6)
    assert report.leaves["generator/params/b16/conv0/kernel"] == "dropped"
    assert "b8/fromrgb/kernel" in report.fresh()["discriminator"]


def test_up_and_down_is_the_source(sixteen):
    there, _ = change_resolution(sixteen, 32)
    back, _ = change_resolution(there, 16)
    z = latents(3, 12, seed=3)
    np.testing.assert_array_equal(back.generate(z), sixteen.generate(z))
    x = np.clip(np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32), -1, 1)
    np.testing.assert_array_equal(back.judge(x), sixteen.judge(x))


def test_a_fitted_layer_from_colours_judges_nearer_to_the_source_than_a_random_one(sixteen):
    smooth = np.tanh(doubled(np.random.default_rng(0).standard_normal((64, 4, 4, 3)).astype(np.float32)))
    wanted = sixteen.judge(np.clip(doubled(smooth), -1, 1))
    random, _ = change_resolution(sixteen, 8)
    fitted, report = change_resolution(sixteen, 8, images=smooth)
    distance = lambda source: np.square(source.judge(smooth) - wanted).mean()
    assert distance(fitted) < 0.5 * distance(random)
    (note,) = report.notes
    assert 0.1 < float(note.rpartition("R2 ")[2]) <= 1 and "64 images" in note


OTHERS = {"biggan": BIGGAN, "biggan_deep": DEEP, "fastgan": FASTGAN}


@pytest.mark.parametrize(
    ("name", "size"), [("sixteen", 64), ("sixteen", 16), ("biggan", 32), ("biggan_deep", 32), ("fastgan", 256)]
)
def test_other_sizes_and_families_are_refused(tiny, sixteen, name, size):
    source = sixteen if name == "sixteen" else tiny.make_of(name, **OTHERS[name])
    with pytest.raises(UserError, match="transfer.resolution"):
        change_resolution(source, size)
