"""The four phases of StyleGAN2's training against the reference: losses, gradients, R1 and path lengths.

Fixtures: `*_losses.npz` of `parity/stylegan2ada` of the shared folder: no style mixing, no augmentation. A phase's
gradients are compared with the largest gradient of that phase, since those of some biases are zero but for rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.objectives.losses import get_loss
from gantransfer.objectives.penalties import r1_penalty
from tests.parity.stylegan2_fixtures import NAMES, assert_near, load_case, nchw, nhwc, quick_jit, stored_names

FORWARD, GRADIENT = 5e-6, 5e-5
LOSS = get_loss("non_saturating")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(params=NAMES)
def case(shared, request):
    return load_case(shared / "parity" / "stylegan2ada", request.param)


def assert_phase(case, role, phase, grads):
    """Every stored gradient of a phase, and none that is not stored."""
    arrays, prefix = case.arrays("losses"), f"{phase}_grad_"
    stored = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    ours = stored_names(role, {"params": grads}, case.options)
    largest = max(np.abs(value).max() for value in stored.values())
    for name, value in ours.items():
        # Where the reference leaves no gradient at all, ours is zero.
        assert_near(value, stored.get(name, np.zeros_like(value)), GRADIENT, f"{phase} {name}", scale=largest)
    assert stored.keys() <= ours.keys()


def with_params(variables, params):
    return {**variables, "params": params}


def test_generator_phase_matches(case):
    arrays, c = case.arrays("losses"), case.labels(case.arrays("losses")["c"])
    generator, discriminator = case.networks.generator, case.networks.discriminator

    @quick_jit
    def gradients(params, z, noise):
        def loss(params):
            variables = with_params(case.generator, params)
            picture, changed = generator.apply(variables, z, c, train=True, noise=noise, mutable=["averages"])
            logits = discriminator.apply(case.discriminator, picture.images, c, train=True).logits
            return LOSS.generator(logits), (logits, changed)

        return jax.value_and_grad(loss, has_aux=True)(params)

    noise = case.noise(arrays, "main_noise_")
    (loss, (logits, changed)), grads = gradients(case.generator["params"], jnp.asarray(arrays["z"]), noise)
    assert_near(logits, arrays["Gmain_report_Loss_scores_fake"][:, 0], FORWARD)
    losses = arrays["Gmain_report_Loss_G_loss"]
    assert abs(loss - losses.mean()) <= FORWARD * np.abs(losses).max()
    assert_near(changed["averages"]["mapper"]["w_avg"], arrays["Gmain_w_avg_after"], FORWARD)
    assert arrays["Gmain_gain"] == 1
    assert_phase(case, "generator", "Gmain", grads)


def test_discriminator_phase_matches(case):
    arrays, c = case.arrays("losses"), case.labels(case.arrays("losses")["c"])
    generator, discriminator = case.networks.generator, case.networks.discriminator
    reals = nhwc(arrays["real_img"])

    @quick_jit
    def gradients(params, z, noise):
        images = generator.apply(case.generator, z, c, train=True, noise=noise).images

        def loss(params):
            judge = lambda x: discriminator.apply(with_params(case.discriminator, params), x, c, train=True).logits
            fake, real = judge(images), judge(reals)
            return sum(LOSS.discriminator(real, fake)), (fake, real)

        return jax.value_and_grad(loss, has_aux=True)(params)

    noise = case.noise(arrays, "main_noise_")
    (loss, (fake, real)), grads = gradients(case.discriminator["params"], jnp.asarray(arrays["z"]), noise)
    assert_near(fake, arrays["Dmain_report_Loss_scores_fake"][:, 0], FORWARD)
    assert_near(real, arrays["Dmain_report_Loss_scores_real"][:, 0], FORWARD)
    assert_near(loss, arrays["Dmain_report_Loss_D_loss"].mean(), FORWARD)
    assert_phase(case, "discriminator", "Dmain", grads)


def test_r1_phase_matches(case):
    arrays, c = case.arrays("losses"), case.labels(case.arrays("losses")["c"])
    reals = nhwc(arrays["real_img"])

    @quick_jit
    def gradients(params):
        def judge(params, x):
            return case.networks.discriminator.apply(with_params(case.discriminator, params), x, c, train=True).logits

        def penalty(params):
            return r1_penalty(lambda x: judge(params, x), reals) * float(arrays["r1_gamma"])

        slope = jax.grad(lambda x: judge(params, x).sum())(reals)
        return slope, jax.value_and_grad(penalty)(params)

    slope, (penalty, grads) = gradients(case.discriminator["params"])
    assert_near(nchw(slope), arrays["Dreg_r1_grads"], GRADIENT)
    assert_near((slope**2).sum((1, 2, 3)), arrays["Dreg_r1_penalty"], GRADIENT)
    assert_near(penalty, arrays["Dreg_report_Loss_D_reg"].mean(), GRADIENT)
    gain = float(arrays["Dreg_gain"])
    assert_phase(case, "discriminator", "Dreg", jax.tree.map(lambda g: g * gain, grads))


def test_path_length_phase_matches(case):
    arrays = case.arrays("losses")
    n = len(arrays["Greg_pl_lengths"])
    c = None if (labels := case.labels(arrays["c"])) is None else labels[:n]
    generator = case.networks.generator
    scaled = nhwc(arrays["Greg_pl_noise_unscaled"]) / np.sqrt(case.options["resolution"] ** 2)
    before, decay = float(arrays["Greg_pl_mean_before"]), float(arrays["pl_decay"])

    @quick_jit
    def gradients(params, z, noise):
        def penalty(params):
            variables = with_params(case.generator, params)
            ws = generator.apply(variables, z, c, train=True, method="mapping")

            def shown(ws):
                picture = generator.apply(variables, ws, train=True, noise=noise, method="synthesis")
                return jnp.vdot(picture.images, scaled), picture.images

            jacobian, images = jax.grad(shown, has_aux=True)(ws)
            lengths = jnp.sqrt(jnp.square(jacobian).sum(2).mean(1))
            mean = before + decay * (lengths.mean() - before)
            return jnp.square(lengths - mean).mean(), (jacobian, lengths, mean, images)

        return jax.value_and_grad(penalty, has_aux=True)(params)

    noise = case.noise(arrays, "Greg_noise_")
    (penalty, seen), grads = gradients(case.generator["params"], jnp.asarray(arrays["z"][:n]), noise)
    jacobian, lengths, mean, images = seen
    assert_near(nchw(images)[: len(arrays["Greg_img"])], arrays["Greg_img"], FORWARD)
    assert_near(jacobian, arrays["Greg_pl_grads"], GRADIENT)
    assert_near(lengths, arrays["Greg_pl_lengths"], GRADIENT)
    assert_near(mean, arrays["Greg_pl_mean_after"], FORWARD)
    assert_near(penalty, arrays["Greg_report_Loss_pl_penalty"].mean(), GRADIENT)
    gain = float(arrays["pl_weight"] * arrays["Greg_gain"])
    assert_phase(case, "generator", "Greg", jax.tree.map(lambda g: g * gain, grads))
