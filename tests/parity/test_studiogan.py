"""StudioGAN's big_resnet against numbers of PyTorch-StudioGAN: passes, statistics, spectral vectors, and its files.

Fixtures: `parity/biggan/studiogan32` of the shared folder.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gantransfer.pretrained.convert import Request, convert, open_checkpoint
from gantransfer.pretrained.layouts.layout import to_theirs
from gantransfer.pretrained.layouts.studiogan import LAYOUT
from gantransfer.pretrained.load import load
from gantransfer.pretrained.readers import read
from tests.parity.nearness import assert_near, quick_jit

EVALUATION, TRAINING, BUFFERS = 1e-5, 2e-5, 1e-5


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@cache
def opened(root):
    """The converted source, its report, and the recorded numbers."""
    source, report = open_checkpoint(root, Request())
    return source, report, dict(np.load(root / "outputs.npz"))


@pytest.fixture
def root(shared):
    return shared / "parity" / "biggan" / "studiogan32"


def nhwc(images):
    return jnp.asarray(np.asarray(images).transpose(0, 2, 3, 1))


def applied(network, variables, *inputs, train=False):
    keep = ["batch_stats", "spectral"] if train else []

    @quick_jit
    def run(variables, *inputs):
        return network.apply(variables, *inputs, train=train, mutable=keep)

    return run(variables, *inputs)


def assert_buffers(changed, role, source, recorded, prefix):
    """Statistics and vectors after a training pass, in the file's names and layouts."""
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(changed), sep="/").items()}
    table = {leaf.ours: leaf for leaf in LAYOUT.leaves(role, source.info.options)}
    theirs = to_theirs([table[path] for path in ours], ours)
    expected = {key.removeprefix(prefix) for key in recorded if key.startswith(prefix)}
    assert theirs.keys() == {key for key in expected if not key.endswith("num_batches_tracked")}
    for name, value in theirs.items():
        assert_near(value, recorded[prefix + name], BUFFERS, name)


def test_architecture_follows_from_the_weights(root):
    source, report, _ = opened(root)
    expected = {"resolution": 32, "width": 4, "width_d": 4, "z_dim": 16, "shared_dim": 6, "num_classes": 5}
    expected |= {"attention_g": "16", "attention_d": "16", "norm_eps": 1e-4, "rectified_shortcut": True}
    assert {name: source.info.options[name] for name in expected} == expected
    assert report.layout == LAYOUT.name
    assert not source.networks.joint_pass
    assert {entry.leaf for entry in report.entries if not entry.name} == {"discriminator/constants/projection_scale"}


def test_generators_match(root):
    source, _, recorded = opened(root)
    z, y = jnp.asarray(recorded["z"]), jnp.asarray(recorded["y"], jnp.int32)
    for variables, key in ((source.generator, "G_eval"), (source.ema, "G_ema_eval")):
        picture, _ = applied(source.networks.generator, variables, z, y)
        assert_near(picture.images, nhwc(recorded[key]), EVALUATION, key)
    picture, changed = applied(source.networks.generator, source.generator, z, y, train=True)
    assert_near(picture.images, nhwc(recorded["G_train"]), TRAINING, "G_train")
    assert_buffers(changed, "generator", source, recorded, "G_train_buffers/")


def test_discriminator_matches_with_its_rectified_shortcuts(root):
    source, _, recorded = opened(root)
    x = nhwc(recorded["x_real_u8"].astype(np.float32) / 127.5 - 1)
    y = jnp.asarray(recorded["y_real"], jnp.int32)
    network = source.networks.discriminator
    judged, _ = applied(network, source.discriminator, x, y)
    assert_near(judged.logits, recorded["D_eval_real"], EVALUATION, "D_eval_real")
    clean, _ = applied(network.clone(rectified_shortcut=False), source.discriminator, x, y)
    assert_near(clean.logits, recorded["D_eval_real_if_relu_were_not_inplace"], EVALUATION, "not in place")
    judged, changed = applied(network, source.discriminator, x, y, train=True)
    assert_near(judged.logits, recorded["D_train_real"], TRAINING, "D_train_real")
    assert_buffers(changed, "discriminator", source, recorded, "D_train_buffers/")


def test_writing_the_files_again_gives_every_array_back(root):
    source, _, _ = opened(root)
    states = read(root).states
    for name, role, variables in (
        ("G", "generator", source.generator),
        ("G_ema", "generator", source.ema),
        ("D", "discriminator", source.discriminator),
    ):
        ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
        written = to_theirs(LAYOUT.leaves(role, source.info.options), ours)
        assert written.keys() == {key for key in states[name] if not key.endswith("num_batches_tracked")}
        for key, value in written.items():
            np.testing.assert_array_equal(value, states[name][key], key)


def test_the_folder_converts_and_loads(root, tmp_path):
    report = convert(root, tmp_path / "studiogan")
    assert "model=G_ema-current-weights-step=3.pth" in " ".join(report.files)
    source, direct = load(tmp_path / "studiogan", check=True), opened(root)[0]
    z, y = np.ones((2, 16), np.float32), np.array([0, 4], np.int32)
    np.testing.assert_array_equal(source.generate(z, y), direct.generate(z, y))
