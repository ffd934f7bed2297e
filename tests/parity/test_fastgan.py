"""FastGAN against numbers of the released networks: passes, noise, reconstructions, statistics and gradients.

Fixtures: `parity/fastgan` of the shared folder (narrow random networks at 256 px, and Projected GAN's generators at
128 px); its README gives the formulas of inputs and the tolerances: 1e-5 relative to the largest value.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gantransfer.models import get_family
from gantransfer.pretrained.layouts.fastgan import OFFICIAL, PROJECTED
from tests.parity.published import assert_near, assert_round_trip, load, published

TOLERANCE = 1e-5
MODES = ("eval", "train")
MOVING = ("batch_stats", "spectral")
PART = 2


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def quick_jit(function, **static):
    """Compiles with few optimisations: these programs are large, and each runs once or twice on tiny arrays."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **static)


def picture(side, phase=0.0):
    """The fixtures' input of two colour images."""
    n, c, i, j = np.ogrid[:2, :3, :side, :side]
    waves = 0.03 * (n + 1) * i * (256 / side) + 0.05 * (c + 1) * j * (256 / side) + n + phase
    return jnp.asarray(np.sin(waves).transpose(0, 2, 3, 1), jnp.float32)


def draws(shapes, sides):
    """The fixtures' noise, as the collection that the generator reads: two draws for each block in turn."""
    made = {}
    for k, (count, _, height, width) in enumerate(np.asarray(shapes, int)):
        n, i, j = np.ogrid[:count, :height, :width]
        noise = 1.3 * np.sin(1.7 * i + 2.3 * j + 0.9 * n + 0.37 * k)
        block = made.setdefault(f"block_{sides.index(height)}", {})
        block[f"draw{k % 2 + 1}"] = jnp.asarray(noise[..., None], jnp.float32)
    return {"noise": made} if made else {}


def assert_stored(ours, stored, name):
    """Compares a map `(n, h, w, c)` with what is stored of it: whole, or every few pixels and its statistics."""
    ours = np.asarray(ours).transpose(0, 3, 1, 2)
    if name in stored:
        return assert_near(ours[: len(stored[name])], stored[name], TOLERANCE, name)
    part, whole = stored[f"{name}_sub"], stored[f"{name}_shape"]
    ours = ours[: whole[0]]
    step = ours.shape[2] // part.shape[2]
    assert_near(ours[: len(part), :, ::step, ::step], part, TOLERANCE, name)
    values = ours.astype(np.float64)
    assert_near((values**2).sum(), stored[f"{name}_stats"][2], 2 * TOLERANCE, name)


def assert_arrays(case, role, variables, stored, prefix):
    """Every stored array of a prefix is what our variables hold; returns how many there are."""
    ours = published(case, role, variables)
    expected = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    expected = {name: value for name, value in expected.items() if not name.endswith("num_batches_tracked")}
    assert expected and expected.keys() <= ours.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        # Gradients are relative to the largest of all, since many are rounding; buffers each to its own.
        scale = largest if "grad" in prefix else max(np.abs(value).max(), 1e-30)
        error = np.abs(ours[name].astype(np.float64) - value).max() / scale
        assert error <= TOLERANCE, f"{prefix}{name}: {error:.1e}"
    return len(expected)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "parity" / "fastgan"


@pytest.fixture(scope="module")
def official(folder):
    return load(OFFICIAL, *(load_file(folder / f"fastgan256_{side}.safetensors") for side in "GD"))


# The generator of the release.


@pytest.fixture(scope="module")
def generated(folder, official):
    """Per mode what one pass with its gradient gives, and the stored numbers."""
    stored = dict(np.load(folder / "fastgan256_G.npz"))
    network = official.networks.generator
    sides, variables = [8 << i for i in range(6)], official.variables["generator"]
    variables = variables | draws(stored["noise_shapes"], sides)
    want = (*(f"b{side}" for side in sides), "small")

    @partial(quick_jit, static_argnames="mode")
    def run(params, z, mode):
        def loss(params, z):
            out, changed = network.apply(
                {**variables, "params": params},
                z,
                jnp.zeros(2, jnp.int32),
                train=mode == "train",
                want=want,
                mutable=["intermediates", *(MOVING if mode == "train" else ())],
                capture_intermediates=lambda module, _: (module.name or "").startswith("block_"),
            )
            value = (out.images * picture(256)).mean() + (out.stages["small"] * picture(128)).mean()
            return value, (out, changed)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, z)

    with jax.default_matmul_precision("highest"):
        runs = {mode: jax.device_get(run(variables["params"], stored["z"], mode)) for mode in MODES}
    return stored, runs


@pytest.mark.parametrize("mode", MODES)
def test_generator_and_every_block_of_it_match(generated, mode):
    stored, runs = generated
    (value, (out, seen)), (_, grad_z) = runs[mode]
    assert_stored(out.images, stored, f"{mode}_big")
    assert_stored(out.stages["small"], stored, f"{mode}_128")
    for i, side in enumerate((8, 16, 32, 64, 128, 256)):
        (before,) = seen["intermediates"][f"block_{i}"]["__call__"]
        assert_stored(before, stored, f"{mode}_feat_{side}")
        if side >= 64:
            assert_stored(out.stages[f"b{side}"], stored, f"{mode}_se_{side}")
    assert_near(value, stored[f"{mode}_L"], 5 * TOLERANCE)
    assert_near(grad_z, stored[f"{mode}_dz"], 5 * TOLERANCE)


def test_generator_gradients_and_statistics_match(generated, official):
    stored, runs = generated
    (_, (_, changed)), (grads, _) = runs["train"]
    assert assert_arrays(official, "generator", {"params": grads}, stored, "train_grad_") == len(jax.tree.leaves(grads))
    moved = {name: changed[name] for name in MOVING}
    assert assert_arrays(official, "generator", moved, stored, "after_") == len(jax.tree.leaves(moved))


# The discriminator of the release.


@pytest.fixture(scope="module")
def judged(folder, official):
    """Per mode a pass over reals with the gradient of its loss, one over fakes, and the stored numbers."""
    stored = dict(np.load(folder / "fastgan256_D.npz"))
    network, variables = official.networks.discriminator, official.variables["discriminator"]
    c, names = jnp.zeros(2, jnp.int32), [f"reconstruction_{name}" for name in ("big", "small", f"part{PART}")]
    u = jnp.asarray(stored["label_noise"])

    @partial(quick_jit, static_argnames="mode")
    def real(params, x, mode):
        def loss(params, x):
            given, moving = {**variables, "params": params}, list(MOVING if mode == "train" else ())
            out, changed = network.apply(given, x, c, train=mode == "train", want=tuple(names), mutable=moving)
            logits = jnp.concatenate([head.reshape(-1) for head in out.logits])
            hinge = jax.nn.relu(u * 0.2 + 0.8 - logits).mean()
            # The images to be reconstructed are constants.
            still = jax.lax.stop_gradient(x)
            targets = (still[:, ::2, ::2], still[:, ::2, ::2], still[:, 128:, :128])
            squared = sum(((out.stages[name] - y) ** 2).mean() for name, y in zip(names, targets, strict=True))
            return hinge + squared, (logits, out.stages, hinge, squared, changed)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    @partial(quick_jit, static_argnames="mode")
    def fake(x, small, mode):
        moving = list(MOVING if mode == "train" else ())
        out, _ = network.apply(variables, x, c, train=mode == "train", small=small, mutable=moving)
        return jnp.concatenate([head.reshape(-1) for head in out.logits])

    with jax.default_matmul_precision("highest"):
        runs = {mode: jax.device_get(real(variables["params"], picture(256), mode)) for mode in MODES}
        fakes = {mode: jax.device_get(fake(picture(256, 1.0), picture(128, 1.0), mode)) for mode in MODES}
    return stored, runs, fakes


@pytest.mark.parametrize("mode", MODES)
def test_discriminator_on_reals_with_reconstructions_matches(judged, mode):
    stored, runs, _ = judged
    (_, (logits, stages, hinge, squared, _)), (_, grad_x) = runs[mode]
    assert_near(logits, stored[f"{mode}_real_logits"], TOLERANCE)
    for name in ("big", "small", f"part{PART}"):
        assert_stored(stages[f"reconstruction_{name}"], stored, f"{mode}_rec_{name}")
    assert_near(hinge, stored[f"{mode}_hinge_real"], TOLERANCE)
    assert_near(squared, stored[f"{mode}_rec_l2"], TOLERANCE)
    assert_stored(grad_x, stored, f"{mode}_dreal")


@pytest.mark.parametrize("mode", MODES)
def test_discriminator_on_both_images_of_a_fake_matches(judged, mode):
    stored, _, fakes = judged
    assert_near(fakes[mode], stored[f"{mode}_fake_logits"], TOLERANCE)
    hinge = np.maximum(stored["label_noise"] * 0.2 + 0.8 + fakes[mode], 0).mean()
    assert_near(hinge, stored[f"{mode}_hinge_fake"], TOLERANCE)


def test_every_quadrant_is_reconstructed(judged, official):
    stored, *_ = judged
    names = tuple(f"reconstruction_part{part}" for part in range(4))
    apply = quick_jit(official.networks.discriminator.apply, static_argnames="want")
    given = official.variables["discriminator"], picture(256), jnp.zeros(2, jnp.int32)
    stages = jax.device_get(apply(*given, want=names).stages)
    for part, name in enumerate(names):
        assert_stored(stages[name], stored, f"eval_rec_part{part}")


def test_discriminator_gradients_and_statistics_match(judged, official):
    stored, runs, _ = judged
    (_, (*_, changed)), (grads, _) = runs["train"]
    count = assert_arrays(official, "discriminator", {"params": grads}, stored, "train_grad_")
    assert count == len(jax.tree.leaves(grads))
    assert assert_arrays(official, "discriminator", changed, stored, "after_") == len(jax.tree.leaves(changed))


# Projected GAN's generators.


@pytest.mark.parametrize("tag", ["big", "lite", "cond_big", "cond_lite"])
def test_projected_generators_match(folder, tag):
    case = load(PROJECTED, load_file(folder / f"pg_fastgan_{tag}.safetensors"))
    assert case.options["resolution"] == 128 and case.options["conditional"] == tag.startswith("cond")
    assert_round_trip(case)
    stored = dict(np.load(folder / "projected.npz"))
    noise = draws(stored[f"{tag}_noise_shapes"], [8 << i for i in range(5)])
    apply = quick_jit(case.networks.generator.apply, static_argnames=("train", "mutable"))
    given = {**case.variables["generator"], **noise}, stored["z"], jnp.asarray(stored["c"])
    assert_stored(apply(*given).images, stored, f"{tag}_eval")
    assert_stored(apply(*given, train=True, mutable=MOVING)[0].images, stored, f"{tag}_train")


def test_the_table_covers_the_networks_and_gives_the_files_back(official):
    assert_round_trip(official)


@pytest.mark.parametrize(("resolution", "count"), [(256, 29_127_846), (512, 29_174_392), (1024, 29_176_512)])
def test_full_generators_have_the_release_s_number_of_parameters(resolution, count):
    assert parameters(resolution=resolution) == count


@pytest.mark.parametrize(
    ("variant", "resolution", "count"),
    [
        ("projected", 256, 105_684_175),
        ("projected", 1024, 105_884_483),
        ("projected_lite", 256, 79_354_307),
        ("projected_lite", 1024, 79_531_379),
    ],
)
def test_full_projected_generators_have_the_release_s_number_of_parameters(variant, resolution, count):
    assert parameters(variant=variant, resolution=resolution, width=128) == count


def parameters(**options):
    network = get_family("fastgan").build(**options).generator
    made = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 256)), jnp.zeros(1, jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))
