"""StyleGAN2's variants against the reference: architectures, clamping, group statistics, freezing, averaging, init.

Fixtures: `parity/stylegan2ada` of the shared folder.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from gantransfer import models
from gantransfer.models.stylegan2_layers import minibatch_deviation
from gantransfer.pretrained.layouts.stylegan2 import ADA
from gantransfer.training.ema import average, decay_at
from tests.parity.stylegan2_fixtures import (
    assert_near,
    load_arrays,
    load_case,
    nchw,
    nhwc,
    options_for,
    quick_jit,
    variables_of,
)

FORWARD = 5e-6
ARCHITECTURES = ("orig", "skip", "resnet")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def root(shared):
    return shared / "parity" / "stylegan2ada"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_matches(root, name):
    arrays = load_arrays(root / "architectures.npz")
    g, d = (load_file(root / f"arch_{name}_{side}.safetensors") for side in ("G", "D"))
    options = options_for(g, d) | {"minibatch_group": 2, "conv_clamp": 0.0}
    assert (options["architecture"], options["architecture_d"]) == (name, name)
    networks = models.get_family("stylegan2").build(**options)
    captured = {"capture_intermediates": lambda module, _: bool(module.name), "mutable": ["intermediates"]}

    @quick_jit
    def generate(variables, z):
        return networks.generator.apply(variables, z, want=("ws",), **captured)

    @quick_jit
    def judge(variables, x):
        def total(x):
            judged, seen = networks.discriminator.apply(variables, x, **captured)
            return judged.logits.sum(), (judged.logits, seen)

        return jax.grad(total, has_aux=True)(x)

    picture, seen = generate(variables_of("generator", g, options), jnp.asarray(arrays["z"]))
    assert_near(picture.stages["ws"], arrays[f"{name}_ws"], FORWARD)
    assert picture.stages["ws"].shape[1] == arrays[f"{name}_num_ws"]
    assert_near(nchw(picture.images), arrays[f"{name}_G_img_const"], FORWARD)
    slope, (logits, judged) = judge(variables_of("discriminator", d, options), nhwc(arrays["img"]))
    assert_near(logits, arrays[f"{name}_logits"][:, 0], FORWARD)
    assert_near(nchw(slope), arrays[f"{name}_dlogit_dimg"], 5e-5)
    for key, value in arrays.items():
        if key.startswith((f"{name}_G_b", f"{name}_D_b")) and key != f"{name}_D_b4_x":
            _, side, block, part = key.split("_")
            outputs = (seen if side == "G" else judged)["intermediates"][block]["__call__"][0]
            assert_near(nchw(outputs["x img".split().index(part)])[: len(value)], value, FORWARD, key)


def test_clamp_limits_what_the_reference_limits(root):
    case, arrays = load_case(root, "u32"), load_arrays(root / "clamp_u32.npz")
    options = case.options | {"conv_clamp": float(arrays["conv_clamp"])}
    networks = models.get_family("stylegan2").build(**options)
    picture = quick_jit(networks.generator.apply)(case.generator, jnp.asarray(arrays["z"]))
    assert_near(nchw(picture.images), arrays["img"], FORWARD)
    judged = quick_jit(networks.discriminator.apply)(case.discriminator, nhwc(arrays["D_in"]))
    assert_near(judged.logits, arrays["logits"][:, 0], FORWARD)


@pytest.mark.parametrize("number", range(7))
def test_deviation_of_a_minibatch_matches_to_second_order(root, number):
    arrays = load_arrays(root / "minibatch_std.npz")
    x, stat, dy, dx, v, ddx = (arrays[f"{number}_{name}"] for name in ("x", "stat", "dy", "dx", "v", "ddx"))
    group, channels = map(int, arrays[f"{number}_cfg"])
    append = lambda x: minibatch_deviation(x, max(group, 0), channels)

    @quick_jit
    def derivatives(x, dy, v):
        gradient = lambda x: jax.vjp(append, x)[1](dy)[0]
        return append(x), gradient(x), jax.grad(lambda x: jnp.vdot(gradient(x), v))(x)

    out, first, second = derivatives(nhwc(x), nhwc(dy), nhwc(v))
    assert_near(nchw(out), np.concatenate([x, stat], axis=1), FORWARD)
    assert_near(nchw(first), dx, 5e-5)
    # With two samples the deviation is their distance, which is linear: second derivatives are what rounding leaves.
    assert_near(nchw(second), ddx, 5e-5, scale=max(np.abs(ddx).max(), 1e-2))


def test_layers_are_counted_for_freezing_as_published(root):
    lists = json.loads((root / "freeze_d.json").read_text())
    assert len(lists) > 10
    for key, names in lists.items():
        name, count = key.rsplit("_", 1)
        options = options_for(load_file(root / f"arch_{name}_D.safetensors"))
        networks = models.get_family("stylegan2").build(**options)
        frozen = set()
        for leaf in ADA.leaves("discriminator", options):
            layer = networks.layer("discriminator", leaf.ours.removeprefix("params/"))
            if layer is not None and layer < int(count):
                frozen.add(leaf.theirs)
        assert frozen == set(names), key


def test_running_average_matches(root):
    arrays = load_arrays(root / "ema.npz")
    for number in range(6):
        batch, kimg, ramp, seen = map(float, arrays[f"{number}_cfg"])
        decay = decay_at(
            jnp.int32(seen + batch),
            images_per_step=int(batch),
            ceiling=0.5 ** (batch / max(kimg * 1000, 1e-8)),
            start=0.0,
            rampup=None if ramp < 0 else ramp,
        )
        assert_near(decay, arrays[f"{number}_beta"], 1e-6, number)
        assert_near(average(arrays["ema"], arrays["p"], decay), arrays[f"{number}_out"], 1e-6, number)


def test_fresh_weights_are_distributed_as_the_reference_s(root):
    stats = json.loads((root / "init_stats_cifar_like.json").read_text())
    shapes = {side: {n[2:]: tuple(s[0]) for n, s in stats.items() if n.startswith(f"{side}.")} for side in ("G", "D")}
    options = options_for(*({n: np.broadcast_to(0, shape) for n, shape in named.items()} for named in shapes.values()))
    networks = models.get_family("stylegan2").build(**options)
    given = jnp.zeros((1, options["z_dim"])), jnp.zeros((1, 32, 32, 3))
    for role, x in zip(("generator", "discriminator"), given, strict=True):
        network = getattr(networks, role)
        init = quick_jit(lambda key, network=network, x=x: network.init(key, x, jnp.zeros(1, jnp.int32)))
        ours = flatten_dict(init(jax.random.key(0)), sep="/")
        table, side = ADA.leaves(role, options), role[0].upper()
        assert {leaf.ours for leaf in table} == set(ours)
        for leaf in table:
            value, (_, mean, deviation, kind) = ours[leaf.ours], stats[f"{side}.{leaf.theirs}"]
            assert leaf.ours.startswith("params/") == (kind == "param"), leaf.ours
            # Both sides are draws: the differences of their means and deviations are within five of their own.
            allowed = 5 * deviation * math.sqrt(2 / value.size) + 1e-4
            assert abs(value.mean() - mean) <= allowed, leaf.ours
            if value.size > 1:
                assert abs(value.std() - deviation) <= allowed, leaf.ours
