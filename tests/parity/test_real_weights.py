"""Real trained weights of small published DCGANs against golden images and scores of their own frameworks.

Weights, golden values and tolerances (1e-5 on images, 5e-5 on logits): `weights/README.md` of the shared folder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.pretrained.layouts.dcgan import THEANO
from gantransfer.pretrained.layouts.dcgan_releases import ANIME, DIGITS, FACES
from tests.parity.published import assert_round_trip, load

IMAGES, LOGITS = 1e-5, 5e-5
RELEASES = {"svhn_dcgan32": THEANO, "celeba_dcgan32": FACES, "anime_dcgan64": ANIME, "mnist_cwgan28": DIGITS}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def release(shared):
    """Networks of a release and its golden values, by name."""
    made = {}

    def get(name):
        if name not in made:
            files = [shared / "weights" / name / f"{role}.npz" for role in ("generator", "discriminator")]
            states = [dict(np.load(file)) for file in files if file.exists()]
            made[name] = load(RELEASES[name], *states), dict(np.load(shared / "weights" / "golden" / f"{name}.npz"))
        return made[name]

    return get


def generate(case, golden, train=False):
    labels = jnp.asarray(golden.get("labels", np.zeros(len(golden["z"]))), jnp.int32)
    network, variables = case.networks.generator, case.variables["generator"]
    return jax.jit(network.apply, static_argnames="train")(variables, golden["z"], labels, train=train).images


def judge(case, images, train=False):
    network, variables = case.networks.discriminator, case.variables["discriminator"]
    images, labels = jnp.asarray(images).transpose(0, 2, 3, 1), jnp.zeros(len(images), jnp.int32)
    return jax.jit(network.apply, static_argnames="train")(variables, images, labels, train=train).logits


def assert_within(ours, golden, tolerance):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=tolerance)


def test_svhn_generator_under_standing_and_batch_statistics(release):
    case, golden = release("svhn_dcgan32")
    for name, train in (("img_standing", False), ("img_batch", True)):
        assert_within(generate(case, golden, train).transpose(0, 3, 1, 2), golden[name], IMAGES)


def test_svhn_discriminator_judges_by_the_batch_in_evaluation_too(release):
    case, golden = release("svhn_dcgan32")
    assert case.options["statistics_d"] == "batch"
    for name in ("img_standing", "img_batch"):
        scores = jax.nn.sigmoid(judge(case, golden[name]))
        assert_within(scores, golden[f"d_on_{name}_batchstats"][:, 0], LOGITS)


def test_svhn_generator_without_added_statistics_evaluates_by_the_batch(release):
    whole, golden = release("svhn_dcgan32")
    rest = {name: value for name, value in whole.states[0].items() if not name.startswith("standing")}
    case = load(THEANO, rest)
    assert_round_trip(case)
    assert_within(generate(case, golden).transpose(0, 3, 1, 2), golden["img_batch"], IMAGES)


def test_celeba_generator_and_discriminator(release):
    case, golden = release("celeba_dcgan32")
    for name, train in (("img_eval", False), ("img_trainbn", True)):
        assert_within(generate(case, golden, train).transpose(0, 3, 1, 2), golden[name], IMAGES)
    for name, images, train in (
        ("d_eval_on_img_eval", "img_eval", False),
        ("d_batch_on_img_eval", "img_eval", True),
        ("d_batch_on_img_trainbn", "img_trainbn", True),
    ):
        assert_within(judge(case, golden[images], train), golden[name][:, 0], LOGITS)
    assert case.networks.latent == "uniform"


def test_anime_generator_with_a_sigmoid_is_scaled_to_our_range(release):
    case, golden = release("anime_dcgan64")
    assert_within((generate(case, golden) + 1) / 2, golden["img"], IMAGES)


def test_digits_by_class(release):
    case, golden = release("mnist_cwgan28")
    assert_within(generate(case, golden).transpose(0, 3, 1, 2), golden["img"], IMAGES)
    # Class weights are what surgery and walks between classes use.
    weights = jnp.eye(10)[golden["labels"]]
    mixed = case.networks.generator.apply(case.variables["generator"], jnp.asarray(golden["z"]), weights).images
    assert_within(mixed.transpose(0, 3, 1, 2), golden["img"], IMAGES)


@pytest.mark.parametrize("name", RELEASES)
def test_the_table_covers_the_networks_and_gives_the_file_back(release, name):
    assert_round_trip(release(name)[0])


@pytest.mark.parametrize("name", RELEASES)
def test_a_layout_recognises_its_own_files_only(release, name):
    for state in release(name)[0].states:
        shapes = {key: value.shape for key, value in state.items()}
        assert [layout.name for layout in RELEASES.values() if layout.recognise(shapes)] == [RELEASES[name].name]
