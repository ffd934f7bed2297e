"""What BigGAN's programs may hold: read from their text, so that nothing needs to be timed.

Counts are those of the program as it is handed to the compiler (StableHLO), which is the same on every machine; one
test reads what the CPU's compiler makes of it.
"""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from gantransfer.models import get_family
from gantransfer.models.biggan import LAYOUTS
from gantransfer.objectives.penalties import r1_penalty

SIDE = 32
OPTIONS = {"resolution": SIDE, "num_classes": 3, "width": 4, "z_dim": 20, "attention_g": "16", "attention_d": "16"}
KEPT = ("batch_stats", "spectral")
# Doubling convolutions are written otherwise for CPUs, so both are lowered; neither device is needed for that.
PLATFORMS = ("cpu", "cuda")


@cache
def networks(**options):
    return get_family("biggan").build(**OPTIONS | options)


def generate(network, variables, z, c):
    return network.apply(variables, z, c, train=True, mutable=KEPT)


def generate_and_back(network, variables, z, c, cotangent):
    """Gradients of all parameters and of the latents, for a gradient of the images."""
    images = lambda params, z: generate(network, {**variables, "params": params}, z, c)[0].images
    return jax.vjp(images, variables["params"], z)[1](cotangent)


def judge(network, variables, x, c):
    return network.apply(variables, x, c, train=True, mutable=["spectral"])


def judge_and_back(network, variables, x, c):
    """Gradients of all parameters and of the images."""
    logits = lambda params, x: judge(network, {**variables, "params": params}, x, c)[0].logits.sum()
    return jax.grad(logits, (0, 1))(variables["params"], x)


def judge_and_back_twice(network, variables, x, c):
    """Gradients of all parameters from a penalty on the slope in the images."""

    def penalty(params):
        return r1_penalty(lambda x: judge(network, {**variables, "params": params}, x, c)[0].logits, x)

    return jax.grad(penalty)(variables["params"])


PROGRAMS = {f.__name__: f for f in (generate, generate_and_back, judge, judge_and_back, judge_and_back_twice)}


@cache
def traced(program, **options):
    pair, c = networks(**options), jax.ShapeDtypeStruct((2,), jnp.int32)
    z = jax.ShapeDtypeStruct((2, pair.z_dim), jnp.float32)
    x = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)
    network, first = (pair.generator, z) if program.startswith("generate") else (pair.discriminator, x)
    variables = jax.eval_shape(network.init, jax.random.key(0), first, c)
    more = (x,) if program == "generate_and_back" else ()
    return jax.jit(partial(PROGRAMS[program], network)).trace(variables, first, c, *more)


@cache
def text(program, platform, **options):
    return traced(program, **options).lower(lowering_platforms=(platform,)).as_text()


def count(program_text, pattern, function="main"):
    """How often a line that matches runs: lines of functions count as often as these are called."""
    body = re.search(rf"func\.func \w+ @{re.escape(function)}\(.*?\n  \}}\n", program_text, re.S).group()
    called = re.findall(r"call @([\w.]+)\(", body)
    return len(re.findall(pattern, body)) + sum(count(program_text, pattern, name) for name in called)


everywhere = pytest.mark.parametrize("platform", PLATFORMS)
every_program = pytest.mark.parametrize("program", PROGRAMS)


@everywhere
@pytest.mark.parametrize("options", [{}, {"convolution": "plain"}], ids=str)
@every_program
def test_no_convolution_is_grouped(program, options, platform):
    found = text(program, platform, **options)
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", found)
    assert len(groups) == 2 * found.count("stablehlo.convolution(") > 0
    assert set(groups) == {"1"}


# Doubling convolutions: one for each block that doubles, and one for the input gradient of each that halves.
DOUBLING, HALVING = len(LAYOUTS[SIDE].generator) - 1, LAYOUTS[SIDE].pooled
STUFFED = {
    "generate": DOUBLING,
    # Backward they are strided convolutions.
    "generate_and_back": DOUBLING,
    "judge": 0,
    "judge_and_back": HALVING,
    # Attention is not piecewise linear, so the slope's own derivative goes back to the image once more.
    "judge_and_back_twice": 2 * HALVING,
}
# On a CPU those of at least 8 px are done in phases: one of 4 px is left in G, and none in D.
STUFFED_ON_CPU = {"generate": 1, "generate_and_back": 1, "judge": 0, "judge_and_back": 0, "judge_and_back_twice": 0}


@every_program
def test_only_doubling_convolutions_are_zero_stuffed(program):
    stuffed = r"stablehlo\.convolution\(.*lhs_dilate = \[(?!1, 1\])"
    assert count(text(program, "cuda"), stuffed) == STUFFED[program]
    assert count(text(program, "cpu"), stuffed) == STUFFED_ON_CPU[program]
    for platform in PLATFORMS:
        assert count(text(program, platform, convolution="plain"), stuffed) == 0


@everywhere
@every_program
def test_no_pooling_window_and_no_selection_is_in_the_rewritten_form(program, platform):
    found = text(program, platform)
    assert "reduce_window" not in found
    assert "select_and_scatter" not in found


def test_pooling_windows_would_be_found():
    """The control: the plain form has them."""
    found = text("judge_and_back", "cpu", convolution="plain")
    assert "reduce_window" in found
    assert "select_and_scatter" in found


@pytest.mark.parametrize("options", [{}, {"convolution": "plain"}, {"dtype": "bfloat16"}], ids=str)
@every_program
def test_nothing_is_float64(program, options):
    assert not re.search(r"\bf64\b|xf64\b", text(program, "cuda", **options))


@everywhere
@every_program
def test_no_convolution_is_float32_under_bfloat16(program, platform):
    found = text(program, platform, dtype="bfloat16")
    convolutions = [line for line in found.splitlines() if "stablehlo.convolution(" in line]
    assert convolutions
    # The types of both operands and of the result are at the end of the line.
    assert not [line for line in convolutions if "f32" in line.rpartition(" : ")[2]]


@every_program
def test_no_product_over_pixels_is_float32_under_bfloat16(program):
    """Float32 are singular values, heads, and the gradients of conditions and of attention's scores."""
    products = [line for line in text(program, "cuda", dtype="bfloat16").splitlines() if "dot_general" in line]
    assert products
    # Two or three axes: samples, positions, channels. 1x1 convolutions have four.
    assert [line for line in products if re.search(r"tensor<(\d+x){4,}f32>, tensor", line)] == []


def large_windows(compiled):
    """Convolutions whose window has a side above 8, as (line, the fusion that holds it or None)."""
    computations, name = {}, None
    for line in compiled.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.split(" ")[1 if line.startswith("ENTRY") else 0].lstrip("%")
            computations[name] = []
        elif name is not None:
            computations[name].append(line)
    holder = {}
    for lines in computations.values():
        for line in lines:
            for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                holder[called] = line
    found = []
    for name, lines in computations.items():
        for line in lines:
            sides = re.search(r" convolution\(.*window={size=([\dx]+)", line)
            if sides and max(map(int, sides.group(1).split("x"))) > 8:
                found.append((line, holder.get(name)))
    return found


def without_kernel(program, form):
    """Convolutions with a large window that XLA leaves to a slow form on CPU, and how many there are in all."""
    # From 32 outputs on XLA hands convolutions to another library.
    program = traced(program, convolution=form, width=8)
    found = large_windows(program.lower().compile(compiler_options={"xla_backend_optimization_level": 0}).as_text())
    return [line for line, fusion in found if fusion is None or "__ynn_fusion" not in fusion], len(found)


pinned = pytest.mark.skipif(not jaxlib.__version__.startswith("0.10."), reason="reads what jaxlib 0.10 compiles")


@pinned
@pytest.mark.parametrize("program", ["generate_and_back", "judge_and_back_twice"])
def test_the_cpu_has_a_kernel_for_every_convolution_with_a_large_window(program):
    slow, count = without_kernel(program, "rewritten")
    # Kernel gradients have windows as large as the images.
    assert count >= 4
    assert slow == []


@pinned
def test_convolutions_without_a_kernel_would_be_found():
    """The control: to three colours the plain form has one."""
    slow, _ = without_kernel("generate_and_back", "plain")
    assert any("f32[32,3,3,3]" in line for line in slow)
