"""StyleGAN2 against numbers of the reference implementation: mapping, synthesis, discriminator and its variants.

Fixtures: `parity/stylegan2ada` of the shared folder; its README says how they were made and where the tolerances come
from.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.stylegan2_fixtures import (
    NAMES,
    assert_near,
    load_case,
    nchw,
    nhwc,
    quick_jit,
    synthesiser,
)

FORWARD = 5e-6


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def root(shared):
    return shared / "parity" / "stylegan2ada"


@pytest.fixture(params=NAMES)
def case(root, request):
    return load_case(root, request.param)


# Mapping.


def test_mapping_and_truncation_match(case):
    arrays = case.arrays("mapping")
    c = case.labels(arrays["c"])

    def mapped(**kwargs):
        return case.networks.generator.apply(case.generator, jnp.asarray(arrays["z"]), c, method="mapping", **kwargs)

    repeated = np.repeat(arrays["w"][:, None], case.config["num_ws"], axis=1)
    assert_near(mapped(), repeated, FORWARD, "w")
    for psi in (0.7, 0, 1.3):
        assert_near(mapped(truncation=psi), arrays[f"ws_psi{psi}"], FORWARD, f"psi {psi}")
    assert_near(mapped(truncation=0.5, cutoff=3), arrays["ws_psi0.5_cutoff3"], FORWARD, "cutoff")


def test_layers_of_the_mapping_match(case):
    arrays = case.arrays("mapping")
    _, seen = case.networks.generator.apply(
        case.generator,
        jnp.asarray(arrays["z"]),
        case.labels(arrays["c"]),
        method="mapping",
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    seen = seen["intermediates"]["mapper"]
    names = [name for name in arrays if name.startswith("fc") or name == "embed"]
    assert len(names) == len(seen) - 1
    for name in names:
        assert_near(seen[name]["__call__"][0], arrays[name], FORWARD, name)


def test_running_mean_of_styles_moves_in_training_passes_that_may_change_it(case):
    arrays, variables = case.arrays("mapping"), case.generator
    average = lambda variables: np.asarray(variables["averages"]["mapper"]["w_avg"])
    assert_near(average(variables), arrays["w_avg"], 0)
    for z, after in (("z", "w_avg_after_1_update"), ("z2", "w_avg_after_2_updates")):
        run = partial(case.networks.generator.apply, variables, jnp.asarray(arrays[z]), case.labels(arrays["c"]))
        _, unchanged = run(train=False, method="mapping", mutable=["averages"])
        assert_near(average(unchanged), average(variables), 0)
        _, changed = run(train=True, method="mapping", mutable=["averages"])
        variables = {**variables, **changed}
        assert_near(average(variables), arrays[after], FORWARD, after)


# Synthesis.


def test_images_match_in_every_noise_mode(case):
    arrays = case.arrays("synthesis")
    ws = jnp.asarray(arrays["ws"])
    for mode, noise in (("none", "none"), ("const", "const"), ("random", case.noise(arrays, "noise_"))):
        picture, _ = synthesiser(case.networks.generator, mode)(
            case.generator, ws, {} if isinstance(noise, str) else noise
        )
        assert_near(nchw(picture.images), arrays[f"img_noise_{mode}"], FORWARD, mode)
    picture, _ = synthesiser(case.networks.generator, "none")(case.generator, jnp.asarray(arrays["mix_ws"]), {})
    assert_near(nchw(picture.images), arrays["mix_img_noise_none"], FORWARD, "mixed styles")


def test_every_layer_of_the_synthesis_matches(case):
    arrays = case.arrays("synthesis")
    _, seen = synthesiser(case.networks.generator, "const")(case.generator, jnp.asarray(arrays["ws"]), {})
    checked = 0
    for key, value in arrays.items():
        if not key.startswith("const"):
            continue
        kind, name = key.split("_", 1)[1].split("_", 1)
        count = len(value)
        block, _, layer = name.partition(".")
        if kind == "styles":
            ours = seen["intermediates"][block][layer]["affine"]["__call__"][0]
        elif kind == "img":
            ours = nchw(seen["intermediates"][block]["__call__"][0][1])
        else:
            ours = nchw(seen["intermediates"][block][layer or "torgb"]["__call__"][0])
        assert_near(ours[:count], value, FORWARD, key)
        checked += 1
    assert checked > 20


def test_truncated_picture_of_the_whole_generator_matches(case):
    arrays, mapping = case.arrays("synthesis"), case.arrays("mapping")
    run = quick_jit(partial(case.networks.generator.apply, want=("ws", "b8"), truncation=0.7))
    picture = run(case.generator, jnp.asarray(mapping["z"]), case.labels(mapping["c"]))
    assert_near(nchw(picture.images), arrays["img_psi0.7_const"], FORWARD)
    assert_near(picture.stages["ws"], mapping["ws_psi0.7"], FORWARD)
    assert picture.stages["b8"].shape[1:3] == (8, 8)


# Discriminator.


def test_discriminator_and_its_layers_match(case):
    arrays, c = case.arrays("discriminator"), case.labels(case.arrays("discriminator")["c"])
    run = quick_jit(partial(case.networks.discriminator.apply, capture_intermediates=True, mutable=["intermediates"]))
    judged, seen = run(case.discriminator, nhwc(arrays["img"]), c)
    assert_near(judged.logits, arrays["logits"][:, 0], FORWARD)
    seen = seen["intermediates"]
    for key, value in arrays.items():
        if not key.startswith("act_") or key in ("act_b4.mbstd", "act_mapping"):
            continue
        block, _, layer = key.removeprefix("act_").replace("mapping", "mapper").partition(".")
        if block.endswith("_out"):
            ours = seen[block.removesuffix("_out")]["__call__"][0][0]
        else:
            ours = seen[block][layer]["__call__"][0]
        ours = ours if ours.ndim == 2 else nchw(ours)
        assert_near(ours[: len(value)], value, FORWARD, key)
    if c is not None:
        assert_near(seen["mapper"]["__call__"][0][0], arrays["act_mapping"], FORWARD)


def test_logits_of_fakes_match(case):
    mapping = case.arrays("mapping")
    c = case.labels(mapping["c"])

    @quick_jit
    def logits(generator, discriminator, z):
        images = case.networks.generator.apply(generator, z, c).images
        return case.networks.discriminator.apply(discriminator, images, c).logits

    ours = logits(case.generator, case.discriminator, jnp.asarray(mapping["z"]))
    assert_near(ours, case.arrays("discriminator")["logits_of_fake_const"][:, 0], FORWARD)
