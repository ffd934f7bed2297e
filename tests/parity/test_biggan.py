"""BigGAN against numbers of the reference implementation: passes, statistics, singular values and gradients.

Fixtures: `parity/biggan` of the shared folder; its README says how they were made and where the tolerances come from.
"""

import json
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import models
from gantransfer.models.layers import normalised, standing_statistics
from gantransfer.pretrained.readers import read
from tests.parity.biggan_weights import load_reference, options_of, to_reference
from tests.parity.nearness import assert_near, probes, quick_jit

EVALUATION, TRAINING, BUFFERS = 1e-5, 2e-5, 1e-5
RUNS = {"cifar32": "cifar32_small", "imagenet128": "imagenet128_small"}
VARIANTS = ("mybn_hier_shared", "sagan_like_thin", "two_svs_two_itrs", "no_sn_g")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


class Case:
    """Networks with a fixture's weights, and its arrays in our layout; `generate` and `judge` keep blocks' outputs."""

    def __init__(self, root, name):
        if name in RUNS:
            self.folder, config = root / name, json.loads((root / name / "config.json").read_text())
            arrays, source = dict(np.load(root / name / "forward.npz")), root / name / "weights" / RUNS[name]
        else:
            self.folder, config = None, json.loads((root / "variants" / "variants.json").read_text())[name]
            arrays = source = dict(np.load(root / "variants" / f"{name}.npz"))
        self.options, self.generator, self.discriminator = load_reference(source, config)
        self.source, self.config, self.arrays = source, config, arrays
        self.networks = models.get_family("biggan").build(**self.options)
        self.z, self.y = jnp.asarray(arrays["z"]), jnp.asarray(arrays["y"], jnp.int32)
        self.x, self.y_real = to_images(arrays["x_real_u8"]), jnp.asarray(arrays["y_real"], jnp.int32)
        self.fakes = jnp.asarray(arrays["G_train"].transpose(0, 2, 3, 1))

    @cached_property
    def generate(self):
        return self._call(self.networks.generator)

    @cached_property
    def judge(self):
        return self._call(self.networks.discriminator)

    def _call(self, network):
        def apply(variables, first, c, train=False, keep=()):
            out, changed = network.apply(
                variables,
                first,
                c,
                train=train,
                mutable=[*keep, "intermediates"],
                capture_intermediates=lambda module, _: module.name and module.name.startswith(("block_", "attn_")),
            )
            return out, {name: changed[name] for name in keep if name in changed}, changed["intermediates"]

        return quick_jit(apply, static_argnames=("train", "keep"))

    @cached_property
    def evaluated(self):
        return self.generate(self.generator, self.z, self.y)

    @cached_property
    def trained(self):
        return self.generate(self.generator, self.z, self.y, train=True, keep=("batch_stats", "spectral"))

    @cached_property
    def judged(self):
        return self.judge(self.discriminator, self.x, self.y_real)

    def stored(self, name):
        return np.load(self.folder / f"{name}.npz")


load_case = cache(Case)


@pytest.fixture
def case(shared, request):
    return load_case(shared / "parity" / "biggan", request.param)


def to_images(u8):
    return jnp.asarray((u8.astype(np.float32) / 127.5 - 1).transpose(0, 2, 3, 1))


def assert_images(images, case, key):
    images = images.transpose(0, 3, 1, 2)
    stored = case.arrays.get(f"{key}_stride")
    if stored is not None:
        step = images.shape[2] // stored.shape[2]
        assert_near(images[:, :, ::step, ::step], stored, TRAINING if key == "G_train" else EVALUATION, key)
    if key in case.arrays:
        full = case.arrays[key]
        assert_near(images[: len(full)], full, TRAINING if key == "G_train" else EVALUATION, key)


def assert_buffers(role, changed, arrays, prefix):
    """Every buffer of the reference after a pass, and nothing more, is what our collections hold."""
    expected = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    expected = {k.replace(".bn.stored", ".stored"): v for k, v in expected.items() if not k.endswith("counter")}
    ours = to_reference(role, changed)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert_near(ours[key], value, BUFFERS, f"{prefix}{key}")


both = pytest.mark.parametrize("case", RUNS, indirect=True)
everything = pytest.mark.parametrize("case", (*RUNS, *VARIANTS), indirect=True)
variants = pytest.mark.parametrize("case", VARIANTS, indirect=True)


@everything
def test_evaluation_passes_match(case):
    picture, *_ = case.evaluated
    assert_images(picture.images, case, "G_eval")
    judged, *_ = case.judged
    assert_near(judged.logits, case.arrays["D_eval_real"][:, 0], EVALUATION)


@everything
def test_training_pass_and_its_statistics_match(case):
    picture, changed, _ = case.trained
    assert_images(picture.images, case, "G_train")
    assert_buffers("generator", changed, case.arrays, "G_train_buffers/")
    if case.folder is not None:
        after, *_ = case.generate({**case.generator, **changed}, case.z, case.y)
        assert_images(after.images, case, "G_eval_after_train")


@both
def test_every_block_matches(case):
    """Spatial means of each block's output, so that a wrong layer is named."""
    assert_stages(case.evaluated[2], case.arrays, "hG_eval", EVALUATION)
    assert_stages(case.trained[2], case.arrays, "hG_train", TRAINING)
    assert_stages(case.judged[2], case.arrays, "hD_eval_real", EVALUATION)


def assert_stages(seen, arrays, run, tolerance):
    keys = [key for key in arrays if key.startswith(f"{run}/blocks")]
    assert len(keys) == len(seen)
    for key in keys:
        _, number, part = key.split(".")
        (output,) = seen[f"{'block' if part == '0' else 'attn'}_{number}"]["__call__"]
        assert_near(output.mean((1, 2)), arrays[key], tolerance, key)


@both
def test_averaged_generator_matches(case):
    _, averaged, _ = load_reference(case.source, case.config, generator="G_ema")
    picture, *_ = case.generate(averaged, case.z, case.y)
    assert_images(picture.images, case, "G_ema_eval")


@pytest.mark.parametrize("case", ["imagenet128"], indirect=True)
def test_class_weights_walk_between_embeddings(case):
    weights = np.zeros((4, case.options["num_classes"]), np.float32)
    for row, share in zip(weights, np.linspace(0, 1, 4), strict=True):
        row[case.y[0]] += 1 - share
        row[case.y[1]] += share
    table = case.generator["params"]["shared"]["embedding"]
    assert_near(weights @ table, case.arrays["mix_y"], EVALUATION)
    picture, *_ = case.generate(case.generator, case.z[:1].repeat(4, 0), jnp.asarray(weights))
    assert_images(picture.images, case, "G_eval_mix")


@both
def test_joint_pass_of_the_discriminator_matches(case):
    n = len(case.fakes)
    fake, *_ = case.judge(case.discriminator, case.fakes, case.y[:n])
    assert_near(fake.logits, case.arrays["D_eval_fake"][:, 0], EVALUATION)
    judged, changed = joint_pass(case, case.y[:n])
    assert_near(judged.logits, case.arrays["D_train_fake_then_real"][:, 0], EVALUATION)
    assert_buffers("discriminator", changed, case.arrays, "D_train_buffers/")


def joint_pass(case, y):
    images, labels = jnp.concatenate([case.fakes, case.x]), jnp.concatenate([y, case.y_real])
    judged, changed, _ = case.judge(case.discriminator, images, labels, train=True, keep=("spectral",))
    return judged, changed


@variants
def test_joint_and_split_passes_of_variants_match(case):
    judged, changed = joint_pass(case, case.y)
    expected = [case.arrays[f"D_train_joint_{side}"][:, 0] for side in ("fake", "real")]
    assert_near(judged.logits, np.concatenate(expected), EVALUATION)
    assert_buffers("discriminator", changed, case.arrays, "D_train_joint_buffers/")
    state = case.discriminator
    for side, x, y in (("fake", case.fakes, case.y), ("real", case.x, case.y_real)):
        judged, changed, _ = case.judge(state, x, y, train=True, keep=("spectral",))
        assert_near(judged.logits, case.arrays[f"D_train_split_{side}"][:, 0], EVALUATION)
        state = {**state, **changed}
    assert_buffers("discriminator", changed, case.arrays, "D_train_split_buffers/")


@both
def test_singular_values_match(case):
    """The value that a pass divides by, without the networks around it."""
    for role, variables in (("generator", case.generator), ("discriminator", case.discriminator)):
        folded = quick_jit(lambda v: normalised(v, lambda path: True, case.options["spectral_eps"])["params"])(
            variables
        )
        raw, used, side = to_reference(role, variables), to_reference(role, {"params": folded}), role[0].upper()
        for name, (sigma, _) in zip(
            case.arrays[f"{side}_sigma/names"], case.arrays[f"{side}_sigma/values"], strict=True
        ):
            weight = f"{name}.weight"
            assert_near(np.linalg.norm(raw[weight]) / np.linalg.norm(used[weight]), sigma, BUFFERS, name)


@pytest.mark.parametrize("case", ["mybn_hier_shared"], indirect=True)
def test_standing_statistics_match(case):
    z, c = jnp.asarray(case.arrays["standing_z"]), jnp.asarray(case.arrays["standing_y"], jnp.int32)
    after = quick_jit(lambda variables: standing_statistics(case.networks.generator, variables, z, c))(case.generator)
    picture, *_ = case.generate(after, case.z, case.y)
    assert_near(picture.images.transpose(0, 3, 1, 2), case.arrays["G_eval_standing"], EVALUATION)
    ours = to_reference("generator", after)
    for key, value in case.arrays.items():
        if key.startswith("standing_buffers/") and "counter" not in key:
            name = key.removeprefix("standing_buffers/").replace(".bn.stored", ".stored")
            # The reference stores the sums of its five batches; ours are their means.
            assert_near(ours[name] * (len(z) if "stored" in name else 1), value, BUFFERS, key)


# Gradients.


def tolerances(shared, name):
    """Per parameter the tolerance of its gradient; parameters whose true gradient is zero are left out."""
    text = (shared / "parity" / "biggan" / name / "float64_deviation.json").read_text()
    deviations = json.loads(text)["grad_dev"].items()
    return {key: max(1e-4, 10 * d["rel32v64"]) for key, d in deviations if d["max64"] > 1e-12}


def assert_gradients(role, grads, stored, allowed):
    side = role[0].upper()
    ours = to_reference(role, {"params": jax.device_get(grads)})
    largest = {}
    for key, value in stored.items():
        if key.startswith(f"{side}_grad/") and key.replace("_grad", "") in allowed:
            name = key.removeprefix(f"{side}_grad/")
            assert_near(ours[name], value, allowed[f"{side}/{name}"], key)
            largest[name] = np.abs(value).max()
    assert largest
    for name, probe in zip(stored[f"{side}_grad_probe/names"], stored[f"{side}_grad_probe/values"], strict=True):
        if f"{side}/{name}" in allowed:
            # The probes are sums over the leaf, so what is allowed of each value adds up.
            value, tolerance = ours[name].astype(np.float64), allowed[f"{side}/{name}"]
            scale = np.abs(value).max() * np.sqrt(value.size)
            assert np.abs(probes(value) - probe).max() <= tolerance * scale, f"{side} {name}: {probes(value)} {probe}"


@both
def test_discriminator_gradients_match(case, shared):
    stored = case.stored("grads")
    n = len(stored["D/fake"])
    labels = jnp.concatenate([case.y[:n], case.y_real[:n]])
    picture, *_ = case.generate(case.generator, case.z[:n], case.y[:n], train=True, keep=("batch_stats", "spectral"))
    fakes = jnp.asarray(picture.images)

    @quick_jit
    def gradients(params, reals):
        def loss(params, reals):
            variables = {**case.discriminator, "params": params}
            judged = case.networks.discriminator.apply(variables, jnp.concatenate([fakes, reals]), labels, train=True)
            fake, real = jnp.split(judged.logits, 2)
            losses = jnp.stack([jax.nn.relu(1 - real).mean(), jax.nn.relu(1 + fake).mean()])
            return losses.sum(), (losses, fake, real)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, reals)

    (_, (losses, fake, real)), (grads, grad_x) = gradients(case.discriminator["params"], case.x[:n])
    assert_near(fake, stored["D/fake"][:, 0], EVALUATION)
    assert_near(real, stored["D/real"][:, 0], EVALUATION)
    assert_near(losses, stored["D/loss_real_fake"], EVALUATION)
    assert_gradients("discriminator", grads, stored, tolerances(shared, case.folder.name))
    grad_x = np.asarray(grad_x).transpose(0, 3, 1, 2)
    step = grad_x.shape[2] // stored["D/grad_x_real_stride"].shape[2]
    assert_near(grad_x[:, :, ::step, ::step], stored["D/grad_x_real_stride"], 1e-4)
    assert_near(probes(grad_x), stored["D/grad_x_real_probe"], 1e-4)


@both
def test_generator_gradients_match(case, shared):
    stored = case.stored("grads")

    @quick_jit
    def gradients(params, z):
        def loss(params, z):
            variables = {**case.generator, "params": params}
            images = case.networks.generator.apply(variables, z, case.y, train=True).images
            logits = case.networks.discriminator.apply(case.discriminator, images, case.y, train=True).logits
            return -logits.mean(), logits

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, z)

    (loss, logits), (grads, grad_z) = gradients(case.generator["params"], case.z)
    assert_near(logits, stored["G/fake"][:, 0], TRAINING)
    assert_near(loss, stored["G/loss"], TRAINING)
    allowed = tolerances(shared, case.folder.name)
    assert_gradients("generator", grads, stored, allowed)
    # Made of the same cotangents as the first layer's weight, where one value of imagenet128 lies on a rectifier's
    # edge: the plain form falls on the reference's side (4e-6), the rewritten one on that of float64.
    assert_near(grad_z, stored["G/grad_z"], 2 * allowed["G/linear.weight"])


# Names, shapes and files.


@pytest.mark.parametrize(
    "table",
    ["biggan_cifar10_ch64", "biggan_64_ch64", "biggan_128_ch96", "biggan_256_ch96", "biggan_512_ch96", "sagan_128_ch64"]
    + ["sngan_128_ch64"],
)
def test_full_width_networks_have_the_names_and_shapes_of_the_reference(shared, table):
    tables = json.loads((shared / "parity" / "biggan" / "tables" / f"{table}.json").read_text())
    networks = models.get_family("biggan").build(**options_of(tables["config"]))
    assert networks.z_dim == tables["config"]["G_dim_z_effective"]
    z, c = jnp.zeros((1, networks.z_dim)), jnp.zeros(1, jnp.int32)
    x = jnp.zeros((1, networks.resolution, networks.resolution, 3))
    for role, network, first in (("generator", networks.generator, z), ("discriminator", networks.discriminator, x)):
        if role[0].upper() not in tables:
            continue
        shapes = jax.eval_shape(network.init, jax.random.key(0), first, c)
        # Arrays without memory, so that the same renaming as for weights applies.
        arrays = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
        ours = {name: list(value.shape) for name, value in to_reference(role, arrays).items()}
        expected = tables[role[0].upper()]
        assert ours == {name: shape for name, shape, _ in expected["state_dict"]}
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected["n_parameters"]


@pytest.mark.parametrize("case", RUNS, indirect=True)
def test_weights_survive_the_way_to_our_names_and_back(case):
    for role, name, variables in (("generator", "G", case.generator), ("discriminator", "D", case.discriminator)):
        state, back = read(case.source / f"{name}.pth").states[""], to_reference(role, variables)
        assert state.keys() == back.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(back[key], value, err_msg=key)
