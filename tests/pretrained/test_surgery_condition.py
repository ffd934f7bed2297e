"""A source without classes that is given some, or the other way round, is the same source before the first update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.models import FAMILIES
from gantransfer.pretrained.source import latents
from gantransfer.pretrained.surgery import change_classes, step0_difference

SMALL = {"resolution": 16, "channels": 1, "z_dim": 12}
STYLEGAN2 = SMALL | {
    "w_dim": 8,
    "channel_base": 128,
    "channel_max": 8,
    "mapping_layers": 2,
    "mapping_layers_d": 2,
    "embedding_dim": 6,
    "conv_clamp": 0.0,
}
DCGAN = SMALL | {"width": 8}
WGANGP = SMALL | {"width": 4, "num_classes": 1, "conditional": False, "class_head": False}
THREE = ("a", "b", "c")
EMBED, FC0 = "params/mapper/embed/kernel", "params/mapper/fc0/kernel"


def one_path(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return np.asarray(tree)


@pytest.fixture(
    scope="module",
    params=[("stylegan2", STYLEGAN2), ("dcgan", DCGAN), ("wgangp_resnet", WGANGP)],
    ids=lambda given: given[0],
)
def unlabelled(request, tiny):
    name, options = request.param
    if name not in FAMILIES:
        pytest.skip(f"{name} is not a family yet")
    return tiny.make_of(name, **options)


@pytest.fixture(scope="module")
def stylegan2(tiny):
    return tiny.make_of("stylegan2", **STYLEGAN2)


@pytest.fixture(scope="module")
def labelled(tiny):
    return tiny.make_of("stylegan2", THREE, **STYLEGAN2)


@pytest.fixture(scope="module")
def conditioned(stylegan2):
    return change_classes(stylegan2, THREE)


def test_every_new_class_is_the_source(unlabelled):
    target, report = change_classes(unlabelled, THREE)
    assert target.info.class_names == THREE and target.networks.class_rows["generator"]
    z = latents(6, 12, seed=3)
    before = unlabelled.generate(z)
    for label in range(3):
        same = np.full(6, label)
        assert np.abs(target.generate(z, same) - before).max() < 1e-5 * np.ptp(before)
        want = unlabelled.judge(np.clip(before, -1, 1))
        assert np.abs(target.judge(np.clip(before, -1, 1), same) - want).max() < 2e-6 * max(np.abs(want).max(), 1)
    assert [mapped.sources for mapped in report.classes] == [(0,)] * 3
    assert max(step0_difference(unlabelled, target, report).values()) < 1e-4


def test_the_raw_generator_changes_as_the_averaged_one(conditioned, stylegan2):
    target, _ = conditioned
    assert target.generator is not target.ema
    swapped = [dataclasses.replace(s, ema=s.generator) for s in (stylegan2, target)]
    z = latents(4, 12, seed=3)
    np.testing.assert_allclose(swapped[1].generate(z, [0, 1, 2, 0]), swapped[0].generate(z), atol=2e-5)


def test_the_report_names_what_is_new(conditioned):
    _, report = conditioned
    assert report.leaves[f"generator/{FC0}"] == "reshaped"
    assert report.leaves["discriminator/params/b4/out/kernel"] == "reshaped"
    assert (
        "mapper/embed/kernel" in report.fresh()["generator"]
        and "mapper/embed/kernel" in report.fresh()["discriminator"]
    )
    assert f"fresh generator/{EMBED}" in str(report)


def test_classes_begin_to_differ_from_the_second_update_on(conditioned):
    """The padding sees the class at once; the embedding behind it has a gradient as soon as the padding has moved."""
    target, _ = conditioned
    z, labels = jnp.asarray(latents(3, 12, seed=0)), jnp.arange(3)
    rest = {name: tree for name, tree in target.generator.items() if name != "params"}

    @jax.jit
    def gradient(params):
        pictures = lambda p: target.networks.generator.apply({"params": p, **rest}, z, labels).images
        return jax.grad(lambda p: (pictures(p) * jnp.arange(3)[:, None, None, None]).mean())(params)

    params = target.generator["params"]
    first = {"params": gradient(params)}
    assert not one_path(first, EMBED).any()
    assert np.abs(one_path(first, FC0)[12:]).max() > 0
    moved = jax.tree.map(lambda p, g: p - g / (1e-8 + jnp.abs(g).max()), params, first["params"])
    assert np.abs(one_path({"params": gradient(moved)}, EMBED)).max() > 0


def test_the_coordinates_of_a_class_vector_get_gradients_of_their_own(conditioned, tiny):
    target, _ = conditioned
    kernel = tiny.leaves(target.discriminator)["params/b4/out/kernel"].astype(np.float64)
    assert np.linalg.matrix_rank(kernel - kernel.mean(axis=1, keepdims=True)) > 1
    apart = kernel - kernel.mean(axis=1, keepdims=True)
    assert 0.05 < apart.std() / kernel.mean(axis=1).std() < 0.3


def test_a_new_class_head_sees_every_class_as_equally_likely(tiny):
    if "wgangp_resnet" not in FAMILIES:
        pytest.skip("wgangp_resnet is not a family yet")
    target, _ = change_classes(tiny.make_of("wgangp_resnet", **WGANGP), THREE)
    images = jnp.zeros((2, 16, 16, 1))
    judgement = target.networks.discriminator.apply(target.discriminator, images, jnp.zeros(2, int))
    np.testing.assert_array_equal(np.asarray(judgement.classes), 0)


def test_one_class_without_mapping_layers_in_d(tiny):
    source = tiny.make_of("stylegan2", **STYLEGAN2 | {"mapping_layers_d": 0})
    target, _ = change_classes(source, THREE)
    images = np.clip(source.generate(latents(4, 12, seed=3)), -1, 1)
    np.testing.assert_allclose(target.judge(images, [0, 1, 2, 0]), source.judge(images), atol=1e-5)


@pytest.mark.parametrize("chosen", ["b", ["a", "c"]])
def test_folding_classes_keeps_the_picture_of_the_row_and_the_mean_of_the_scores(labelled, chosen):
    target, report = change_classes(labelled, ("all",), policy="list", class_map={"all": chosen})
    assert not target.networks.class_rows["generator"]
    z, rows = latents(6, 12, seed=5), [THREE.index(name) for name in chosen]
    weights = np.zeros((6, 3), np.float32)
    weights[:, rows] = 1 / len(rows)
    before = labelled.generate(z, weights)
    assert np.abs(target.generate(z) - before).max() < 1e-5 * np.ptp(before)
    images = np.clip(before, -1, 1)
    scores = np.mean([labelled.judge(images, np.full(6, row)) for row in rows], axis=0)
    np.testing.assert_allclose(target.judge(images), scores, rtol=1e-4, atol=1e-5)
    assert f"dropped generator/{EMBED}" in str(report)


def test_there_and_back_is_the_source(conditioned, stylegan2):
    target, _ = conditioned
    back, _ = change_classes(target, ("all",), policy="mean")
    z = latents(4, 12, seed=5)
    np.testing.assert_allclose(back.generate(z), stylegan2.generate(z), atol=2e-5)
    images = np.clip(stylegan2.generate(z), -1, 1)
    np.testing.assert_allclose(back.judge(images), stylegan2.judge(images), atol=1e-5)


def test_rows_of_an_equalised_table_are_rescaled_with_their_number(labelled):
    """Without the factor the effective embedding would shrink with the number of classes (its bias would not)."""
    target, _ = change_classes(
        labelled, ("u", "v", "w", "x", "y"), policy="list", class_map=dict(zip("uvwxy", "abcab", strict=True))
    )
    z = latents(5, 12, seed=5)
    before = labelled.generate(z, [0, 1, 2, 0, 1])
    assert np.abs(target.generate(z, np.arange(5)) - before).max() < 1e-5 * np.ptp(before)
    images = np.clip(before, -1, 1)
    np.testing.assert_allclose(target.judge(images, np.arange(5)), labelled.judge(images, [0, 1, 2, 0, 1]), atol=1e-4)


def test_fresh_rows_cannot_be_folded(labelled):
    with pytest.raises(UserError, match="takes source classes"):
        change_classes(labelled, ("all",), policy="fresh")


def test_tables_of_every_norm_are_repeated_from_one_class_bit_for_bit(tiny):
    """BigGAN without a shared embedding: one class is a table of one row in every normalisation."""
    options = tiny.options | {"shared": False, "hierarchical": False}
    source = tiny.make_of("biggan", **options)
    target, report = change_classes(source, THREE, policy="mean")
    z = latents(6, source.networks.z_dim, seed=3)
    np.testing.assert_array_equal(target.generate(z, [0, 1, 2, 0, 1, 2]), source.generate(z))
    images = source.generate(z)
    np.testing.assert_allclose(target.judge(images, [0, 1, 2, 0, 1, 2]), source.judge(images), atol=1e-5)
    assert len([p for p, status in report.leaves.items() if status == "reshaped" and "/bn" in p]) == 8
