"""After surgery step 0 equals what the report says, and the rows are those that the policy promises."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.pretrained.class_map import parse_class_map
from gantransfer.pretrained.fresh import build_networks, variable_shapes
from gantransfer.pretrained.source import latents
from gantransfer.pretrained.surgery import change_classes, step0_difference, with_fresh_discriminator

TWELVE = tuple(f"t{i}" for i in range(12))
FOUR = ("north", "east", "south", "west")
TABLE_G, TABLE_D, HEAD_D, BIAS_D = (
    "params/shared/embedding",
    "params/embed/embedding",
    "params/class_head/kernel",
    "params/class_head/bias",
)


@pytest.fixture(scope="module")
def settled(spectral_source, tiny):
    """The spectral source with exact singular vectors, as after training, so that exact ratios can be asked for."""
    import dataclasses

    table = tiny.leaves(spectral_source.discriminator)[TABLE_D]
    u = np.linalg.svd(table.astype(np.float64))[0][:, 0]
    discriminator = tiny.replace_leaves(spectral_source.discriminator, spectral__embed__u=u[None])
    return dataclasses.replace(spectral_source, discriminator=discriminator)


@pytest.fixture(scope="module")
def images(plain_source):
    """Four unlike images, one per target class: dark, bright, a gradient and noise."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 16, dtype=np.float32)[:, None], (16, 16))
    noise = np.random.default_rng(0).uniform(-1, 1, (16, 16)).astype(np.float32)
    return np.stack([np.full((16, 16), -0.9, np.float32), np.full((16, 16), 0.8, np.float32), ramp, noise])[..., None]


def pooled(source, images):
    apply = jax.jit(
        lambda variables, x: source.networks.discriminator.apply(variables, x, jnp.zeros(len(x), int), want=("pooled",))
    )
    return np.asarray(apply(source.discriminator, jnp.array(images)).stages["pooled"], np.float64)


def assert_rest_untouched(source, target, tiny, *changed):
    for before, after in (
        (source.ema, target.ema),
        (source.generator, target.generator),
        (source.discriminator, target.discriminator),
    ):
        old, new = tiny.leaves(before), tiny.leaves(after)
        assert old.keys() == new.keys()
        for path in set(old) - set(changed):
            np.testing.assert_array_equal(old[path], new[path], err_msg=path)


@pytest.mark.parametrize(
    ("policy", "class_map"),
    [
        ("list", dict(zip(FOUR, [2, "apple", 1, 2], strict=True))),
        ("copy", dict.fromkeys(FOUR, "cherry")),
        ("random", None),
    ],
)
def test_single_rows_make_the_source_s_images_bit_for_bit(plain_source, tiny, policy, class_map):
    target, report = change_classes(plain_source, FOUR, policy=policy, class_map=class_map, seed=1)
    chosen = [mapped.sources[0] for mapped in report.classes]
    z = latents(4, plain_source.networks.z_dim, seed=7)
    np.testing.assert_array_equal(target.generate(z, [0, 1, 2, 3]), plain_source.generate(z, chosen))
    for tree, table in ((target.ema, plain_source.ema), (target.generator, plain_source.generator)):
        np.testing.assert_array_equal(tiny.leaves(tree)[TABLE_G], tiny.leaves(table)[TABLE_G][chosen])
    old, new = tiny.leaves(plain_source.discriminator), tiny.leaves(target.discriminator)
    np.testing.assert_array_equal(new[TABLE_D], old[TABLE_D][chosen])
    np.testing.assert_array_equal(new[HEAD_D], old[HEAD_D][:, chosen])
    np.testing.assert_array_equal(new[BIAS_D], old[BIAS_D][chosen])
    assert_rest_untouched(plain_source, target, tiny, TABLE_G, TABLE_D, HEAD_D, BIAS_D)
    assert step0_difference(plain_source, target, report) == {"generator": 0.0, "discriminator": 0.0}


def test_the_target_has_the_leaves_of_its_own_architecture(spectral_source, tiny):
    target, _ = change_classes(spectral_source, FOUR, policy="random")
    networks, options = build_networks("biggan", tiny.options, FOUR)
    assert target.info.class_names == FOUR and target.info.options["num_classes"] == 4
    assert target.networks.generator == networks.generator
    for shapes, variables in zip(variable_shapes(networks), (target.ema, target.discriminator), strict=True):
        expected = {
            path: leaf.shape for path, leaf in tiny.leaves(jax.tree.map(lambda s: np.zeros(s.shape), shapes)).items()
        }
        assert {path: leaf.shape for path, leaf in tiny.leaves(variables).items()} == expected


def test_mean_rows_make_every_class_alike(plain_source, tiny):
    target, report = change_classes(plain_source, FOUR, policy="mean")
    rows = tiny.leaves(target.ema)[TABLE_G]
    assert all((row == rows[0]).all() for row in rows)
    np.testing.assert_allclose(rows[0], tiny.leaves(plain_source.ema)[TABLE_G].mean(0), rtol=1e-6)
    z = np.repeat(latents(1, plain_source.networks.z_dim, seed=0), 4, axis=0)
    made = target.generate(z, [0, 1, 2, 3])
    assert all((image == made[0]).all() for image in made)
    fed = plain_source.generate(z, np.full((4, 3), 1 / 3, np.float32))
    np.testing.assert_allclose(made, fed, atol=1e-5)
    assert step0_difference(plain_source, target, report)["discriminator"] < 1e-5


def test_a_list_may_mix_classes_and_leave_some_fresh(plain_source, tiny):
    class_map = {"north": ["apple", "cherry"], "east": None, "south": 1, 3: 0}
    target, report = change_classes(plain_source, FOUR, policy="list", class_map=class_map)
    old, new = tiny.leaves(plain_source.ema)[TABLE_G], tiny.leaves(target.ema)[TABLE_G]
    np.testing.assert_allclose(new[0], (old[0] + old[2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(new[[2, 3]], old[[1, 0]])
    assert np.abs(new[1] - old).min() > 0 and new[1].std() > 0
    assert report.fresh()["generator"] == {"shared/embedding"}
    assert step0_difference(plain_source, target, report)["generator"] < 1e-5


def test_fresh_rows_are_new_and_the_same_in_both_generators(plain_source, tiny):
    target, report = change_classes(plain_source, FOUR, policy="fresh", seed=3)
    rows = tiny.leaves(target.ema)[TABLE_G]
    np.testing.assert_array_equal(rows, tiny.leaves(target.generator)[TABLE_G])
    assert np.linalg.matrix_rank(rows) == 4
    assert report.fresh()["discriminator"] == {"embed/embedding", "class_head/kernel", "class_head/bias"}
    assert step0_difference(plain_source, target, report) == {"generator": None, "discriminator": None}


def test_noise_is_added_to_the_generator_s_rows_alone(plain_source, tiny):
    class_map = dict.fromkeys(TWELVE, 0)
    noisy, _ = change_classes(plain_source, TWELVE, policy="list", class_map=class_map, noise=0.1, seed=5)
    plain, _ = change_classes(plain_source, TWELVE, policy="list", class_map=class_map)
    added = tiny.leaves(noisy.ema)[TABLE_G] - tiny.leaves(plain.ema)[TABLE_G]
    assert added.std() == pytest.approx(0.1, rel=0.25)
    raw = tiny.leaves(noisy.generator)[TABLE_G] - tiny.leaves(plain.generator)[TABLE_G]
    np.testing.assert_allclose(added, raw, atol=1e-6)
    for path, leaf in tiny.leaves(plain.discriminator).items():
        np.testing.assert_array_equal(leaf, tiny.leaves(noisy.discriminator)[path])


def test_four_copies_halve_the_projection_unless_it_is_compensated(settled, tiny, images):
    class_map = {name: i % 3 for i, name in enumerate(TWELVE)}
    copy = lambda scale: change_classes(settled, TWELVE, policy="list", class_map=class_map, d_embed_scale=scale)
    (plain, report), (compensated, other) = copy("none"), copy("compensate")
    before, after = report.singular_values["embed/embedding"]
    assert before / after == pytest.approx(0.5, rel=1e-6)
    assert report.projection_scale == 1 and other.projection_scale == pytest.approx(2, rel=1e-6)
    for t in (0, 1, 5, 11):
        old = settled.judge(images, [t % 3] * 4)
        base = settled.judge(images, np.zeros((4, 3), np.float32))
        assert np.abs(old - base).max() > 1e-2
        np.testing.assert_allclose(plain.judge(images, [t] * 4), base + (old - base) * 0.5, rtol=1e-5, atol=4e-6)
        np.testing.assert_allclose(compensated.judge(images, [t] * 4), old, rtol=1e-5, atol=1e-6)


def test_compensation_holds_for_a_source_whose_vectors_have_not_settled(spectral_source, images):
    target, report = change_classes(spectral_source, FOUR, policy="list", class_map=dict.fromkeys(FOUR, "banana"))
    np.testing.assert_allclose(
        target.judge(images, [0, 1, 2, 3]), spectral_source.judge(images, [1] * 4), rtol=1e-5, atol=1e-6
    )
    assert step0_difference(spectral_source, target, report)["discriminator"] < 1e-5


def test_compensation_multiplies_an_earlier_one(settled, images):
    once, _ = change_classes(settled, FOUR, policy="list", class_map=dict.fromkeys(FOUR, 1))
    twice, report = change_classes(once, TWELVE, policy="list", class_map=dict.fromkeys(TWELVE, "east"))
    np.testing.assert_allclose(twice.judge(images, [11] * 4), settled.judge(images, [1] * 4), rtol=1e-5, atol=1e-6)
    assert report.projection_scale != pytest.approx(1)


def test_equal_rows_have_norm_one_over_root_n_and_judge_all_labels_alike(settled, tiny, images):
    seven = tuple("abcdefg")
    target, report = change_classes(settled, seven, policy="mean", d_embed_scale="none")
    table = tiny.leaves(target.discriminator)[TABLE_D].astype(np.float64)
    sigma = report.singular_values["embed/embedding"][1]
    np.testing.assert_allclose(np.linalg.norm(table / sigma, axis=1), 7**-0.5, rtol=1e-6)
    u = tiny.leaves(target.discriminator)["spectral/embed/u"]
    np.testing.assert_allclose(u, np.full((1, 7), 7**-0.5), rtol=1e-5)
    logits = [target.judge(images, [t] * 4) for t in range(7)]
    assert all((row == logits[0]).all() for row in logits)


def test_a_table_with_stored_vectors_keeps_what_it_says_of_each_class(tiny, images):
    source = tiny.make_source(spectral=True, stored_vectors=True)
    target, report = change_classes(source, FOUR, policy="list", class_map=dict.fromkeys(FOUR, "banana"))
    flat = tiny.leaves(target.discriminator)
    u, v = flat["spectral/embed/u"], flat["spectral/embed/v"]
    table = flat["params/embed/embedding"]
    np.testing.assert_allclose(u @ table @ v, np.linalg.svd(table)[1][0], rtol=1e-5)
    np.testing.assert_allclose(target.judge(images, [0, 1, 2, 3]), source.judge(images, [1] * 4), rtol=1e-4, atol=1e-5)
    assert report.leaves["discriminator/spectral/embed/v"] == "reshaped"


def test_singular_vectors_are_exact(spectral_source, tiny):
    target, report = change_classes(
        spectral_source, FOUR, policy="list", class_map=dict(zip(FOUR, (0, 1, 2, 0), strict=True))
    )
    flat = tiny.leaves(target.discriminator)
    for layer, matrix in (("embed", flat[TABLE_D].T), ("class_head", flat[HEAD_D])):
        sigma = np.linalg.norm(matrix.astype(np.float64), 2)
        u = flat[f"spectral/{layer}/u"][0].astype(np.float64)
        assert flat[f"spectral/{layer}/sigma"][0] == pytest.approx(sigma, rel=1e-6)
        np.testing.assert_allclose(matrix.T @ (matrix @ u), sigma**2 * u, atol=1e-5 * sigma**2)
    assert report.leaves["discriminator/spectral/embed/u"] == "reshaped"


def answering(source, tiny, images, answers):
    """The source with a class head and projection rows that see source class `answers[i]` in image i."""
    import dataclasses

    wanted = np.zeros((len(answers), source.info.num_classes))
    wanted[np.arange(len(answers)), answers] = 5
    # The head reads features times its scale, which is 1 by default.
    kernel = np.linalg.pinv(pooled(source, images)) @ wanted
    discriminator = tiny.replace_leaves(
        source.discriminator,
        params__class_head__kernel=kernel,
        params__class_head__bias=np.zeros(3),
        params__embed__embedding=kernel.T,
    )
    return dataclasses.replace(source, discriminator=discriminator)


@pytest.mark.parametrize("policy", ["from_images", "nearest"])
def test_images_choose_the_class_that_the_discriminator_sees(plain_source, tiny, images, policy):
    source = answering(plain_source, tiny, images, [2, 0, 1, 2])
    target, report = change_classes(source, FOUR, policy=policy, images=images, labels=np.arange(4))
    assert [mapped.sources for mapped in report.classes] == [(2,), (0,), (1,), (2,)]
    # One answer of 5 against two of 0, through a softmax or as it is.
    score = np.exp(5) / (np.exp(5) + 2) if policy == "from_images" else 5
    assert report.classes[0].score == pytest.approx(score, rel=1e-3)
    np.testing.assert_array_equal(tiny.leaves(target.ema)[TABLE_G], tiny.leaves(source.ema)[TABLE_G][[2, 0, 1, 2]])


def test_several_images_of_a_class_vote_by_their_mean_probability(plain_source, tiny, images):
    source = answering(plain_source, tiny, images, [1, 1, 0, 2])
    _, report = change_classes(
        source, ("even", "odd"), policy="from_images", images=images, labels=np.array([0, 0, 0, 1])
    )
    assert [mapped.names for mapped in report.classes] == [("banana",), ("cherry",)]


def test_weighted_rows_are_probability_weighted_means(plain_source, tiny, images):
    source = answering(plain_source, tiny, images, [2, 0, 1, 2])
    target, report = change_classes(source, FOUR, policy="from_images_weighted", images=images, labels=np.arange(4))
    high, low = np.exp(5) / (np.exp(5) + 2), 1 / (np.exp(5) + 2)
    np.testing.assert_allclose(report.classes[1].weights, [high, low, low], rtol=1e-3)
    rows = tiny.leaves(source.ema)[TABLE_G]
    np.testing.assert_allclose(tiny.leaves(target.ema)[TABLE_G][1], [high, low, low] @ rows, rtol=1e-3, atol=1e-4)


def test_without_a_class_head_projection_scores_choose(tiny, images):
    import dataclasses

    source = tiny.make_source(spectral=True, class_head=False)
    wanted = 5 * np.eye(3)[[2, 0, 1, 2]]
    rows = (np.linalg.pinv(pooled(source, images)) @ wanted).T
    source = dataclasses.replace(
        source, discriminator=tiny.replace_leaves(source.discriminator, params__embed__embedding=rows)
    )
    for policy in ("from_images", "nearest"):
        _, report = change_classes(source, FOUR, policy=policy, images=images, labels=np.arange(4))
        assert [mapped.sources for mapped in report.classes] == [(2,), (0,), (1,), (2,)]
        # Scores are those of the rows that the discriminator uses: divided by their largest singular value.
        difference = source.judge(images[:1], [2]) - source.judge(images[:1], np.zeros((1, 3), np.float32))
        assert report.classes[0].score == pytest.approx(float(difference[0]), rel=1e-4)


@pytest.mark.parametrize("policy", ["from_images", "nearest"])
def test_ties_go_to_the_lowest_index(plain_source, tiny, images, policy):
    source = answering(plain_source, tiny, images, [1, 1, 1, 1])
    flat = tiny.leaves(source.discriminator)
    kernel, rows = np.array(flat[HEAD_D]), np.array(flat[TABLE_D])
    kernel[:, 2], rows[2] = kernel[:, 1], rows[1]
    import dataclasses

    changed = tiny.replace_leaves(
        source.discriminator, params__class_head__kernel=kernel, params__embed__embedding=rows
    )
    source = dataclasses.replace(source, discriminator=changed)
    _, report = change_classes(source, FOUR, policy=policy, images=images, labels=np.arange(4))
    assert [mapped.sources for mapped in report.classes] == [(1,)] * 4


def test_random_draws_follow_the_seed_and_repeat_none_while_there_are_enough(plain_source):
    draw = lambda names, seed: [
        m.sources[0] for m in change_classes(plain_source, names, policy="random", seed=seed)[1].classes
    ]
    assert draw(TWELVE, 0) == draw(TWELVE, 0)
    assert len({tuple(draw(TWELVE, seed)) for seed in range(4)}) > 1
    assert all(sorted(draw(tuple("xyz"), seed)) == [0, 1, 2] for seed in range(4))


def test_the_same_classes_leave_the_source_untouched(plain_source):
    target, report = change_classes(plain_source, plain_source.info.class_names)
    assert target is plain_source
    assert set(report.leaves.values()) == {"kept"}


def test_other_names_of_the_same_number_are_copied_and_reported(plain_source):
    target, report = change_classes(plain_source, ("cherry", "apple", "banana"))
    assert [mapped.sources for mapped in report.classes] == [(2,), (0,), (1,)]
    assert target.info.class_names == ("cherry", "apple", "banana")
    _, by_index = change_classes(plain_source, ("x", "y", "z"))
    assert [mapped.sources for mapped in by_index.classes] == [(0,), (1,), (2,)]


def test_some_of_the_source_s_classes_are_copied_by_name(plain_source, tiny):
    target, _ = change_classes(plain_source, ("cherry", "apple"), policy="copy")
    np.testing.assert_array_equal(tiny.leaves(target.ema)[TABLE_G], tiny.leaves(plain_source.ema)[TABLE_G][[2, 0]])


def test_the_report_names_every_leaf_and_prints_the_map(settled):
    _, report = change_classes(
        settled, FOUR, policy="list", class_map={"north": 0, "east": [1, 2], "south": "apple", "west": 2}
    )
    roles = {"generator": settled.ema, "discriminator": settled.discriminator}
    paths = {
        f"{role}/{'/'.join(k.key for k in path)}"
        for role in roles
        for path, _ in jax.tree_util.tree_leaves_with_path(roles[role])
    }
    assert set(report.leaves) == paths
    assert {path for path, fate in report.leaves.items() if fate == "reshaped"} == {
        f"generator/{TABLE_G}",
        *(f"discriminator/{path}" for path in (TABLE_D, HEAD_D, BIAS_D, "constants/projection_scale")),
        *(f"discriminator/spectral/{layer}/{leaf}" for layer in ("embed", "class_head") for leaf in ("u", "sigma")),
    }
    text = str(report)
    assert "north <- apple [0]" in text and "east <- 0.50 banana + 0.50 cherry" in text
    assert json.loads(json.dumps(report.to_json()))["classes"][1]["names"] == ["banana", "cherry"]


def test_one_generator_stays_one(tiny):
    source = tiny.make_source(raw=False)
    target, _ = change_classes(source, FOUR, policy="mean")
    assert target.generator is target.ema


def test_per_class_normalisation_tables_all_follow_the_map(tiny):
    source = tiny.make_source(shared=False, hierarchical=False)
    target, report = change_classes(source, FOUR, policy="list", class_map=dict(zip(FOUR, (1, 0, 2, 1), strict=True)))
    tables = [path for path, fate in report.leaves.items() if fate == "reshaped" and path.startswith("generator/")]
    assert len(tables) == 8
    assert step0_difference(source, target, report)["generator"] == 0


@pytest.mark.parametrize(
    ("names", "settings", "field", "words"),
    [
        (FOUR, {}, "transfer.classes", "3 source classes and 4 target classes, one of mean, nearest"),
        (FOUR, {"policy": "neerest"}, "transfer.classes", "did you mean nearest"),
        (FOUR, {"policy": "list"}, "transfer.classes", "needs transfer.class_map"),
        (FOUR, {"policy": "copy"}, "transfer.classes", "no class north"),
        (FOUR, {"policy": "list", "class_map": {"north": 0}}, "transfer.class_map", "missing east"),
        (
            FOUR,
            {"policy": "list", "class_map": dict.fromkeys(FOUR, "aple")},
            "transfer.class_map",
            "did you mean apple",
        ),
        (FOUR, {"policy": "list", "class_map": {"nort": 0}}, "transfer.class_map", "did you mean north"),
        (FOUR, {"policy": "copy", "class_map": dict.fromkeys(FOUR, [0, 1])}, "transfer.class_map", "one source class"),
        (FOUR, {"policy": "mean", "class_map": {"north": 0}}, "transfer.class_map", "list and copy"),
        (FOUR, {"policy": "from_images"}, "transfer.classes", "only with images"),
        (FOUR, {"policy": "mean", "noise": -1.0}, "transfer.class_noise", "at least 0"),
        (FOUR, {"policy": "mean", "d_embed_scale": "some"}, "transfer.projection_scale", "compensate, none"),
        (("a", "a"), {"policy": "mean"}, "class_names", "each once"),
    ],
)
def test_what_cannot_be_done_is_named(plain_source, names, settings, field, words):
    with pytest.raises(UserError, match=words) as caught:
        change_classes(plain_source, names, **settings)
    assert caught.value.field == field


def test_a_class_without_images_is_named(plain_source, images):
    with pytest.raises(UserError, match="no image of west"):
        change_classes(plain_source, FOUR, policy="nearest", images=images, labels=np.array([0, 1, 2, 0]))


def test_a_source_without_discriminator_has_no_image_policies(plain_source, tiny, images):
    alone = tiny.without_discriminator(plain_source)
    with pytest.raises(UserError, match="no discriminator, one of mean, random, list, copy, fresh"):
        change_classes(alone, FOUR, policy="nearest", images=images, labels=np.arange(4))
    target, report = change_classes(alone, FOUR, policy="mean")
    assert target.discriminator is None and all(path.startswith("generator/") for path in report.leaves)


def test_a_fresh_discriminator_leaves_the_generator_alone(plain_source, tiny):
    target, report = with_fresh_discriminator(tiny.without_discriminator(plain_source), seed=0)
    assert target.ema is plain_source.ema and target.generator is plain_source.generator
    assert target.info.has_discriminator
    fresh = tiny.leaves(target.discriminator)
    assert {path: leaf.shape for path, leaf in fresh.items()} == {
        path: leaf.shape for path, leaf in tiny.leaves(plain_source.discriminator).items()
    }
    assert {fate for path, fate in report.leaves.items() if path.startswith("discriminator/")} == {"fresh"}


def test_class_maps_are_read_from_lines():
    assert parse_class_map(("0=O", "1=I+l")) == {"0": ["O"], "1": ["I", "l"]}
    assert parse_class_map(()) is None
    for line in ("0", "=O", "0="):
        with pytest.raises(UserError, match="target=source"):
            parse_class_map((line,))
