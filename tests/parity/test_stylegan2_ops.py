"""Resampling, modulated convolutions and activations of StyleGAN2 against the reference's operators, in both forms.

Fixtures: `parity/stylegan2ada_ops` of the shared folder; its README says what the arrays are. `h_*` are derivatives of
first derivatives, as gradient penalties take them. The cases of a table are compiled as one program.
"""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer.models import resampling
from gantransfer.models.convolution import FORMS
from gantransfer.models.resampling import IDENTITY, convolve_resampled, filter_of, prepare_taps, resample
from gantransfer.models.stylegan2_layers import ACTIVATIONS, Dense, Recipe, biased, leaky_relu, modulated_convolution
from tests.parity.stylegan2_fixtures import assert_near, load_arrays, nchw, nhwc, quick_jit

FIRST, SECOND = 1e-5, 1e-4
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def folder(shared):
    return shared / "parity" / "stylegan2ada_ops"


@cache
def described(path):
    return json.loads(path.read_text())


def pair(value):
    """A number or [x, y] as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[1], value[0])


def pads_of(value):
    """A number, [x, y] or [left, right, top, bottom] as ((top, bottom), (left, right))."""
    if isinstance(value, list) and len(value) == 4:
        return (value[2], value[3]), (value[0], value[1])
    y, x = pair(value)
    return (y, y), (x, x)


def kernel_of(oihw):
    return jnp.asarray(oihw).transpose(2, 3, 1, 0)


def filters_of(text, arrays=None):
    taps = {name: prepare_taps(raw, separable=name.startswith("sep")) for name, raw in text["filters"].items()}
    if arrays is not None:
        for name, value in taps.items():
            assert_near(value, arrays[f"filter_{name}"], 1e-6, name)
    return {name: filter_of(value) for name, value in taps.items()} | {None: IDENTITY}


def derivatives(operate, operands, cotangent, directions):
    """Value, first derivatives along `cotangent`, and the derivatives of their sum along `directions`."""

    def along(cotangent, operands):
        firsts = jax.vjp(operate, *operands)[1](cotangent)
        return sum(jnp.vdot(first, v) for first, v in zip(firsts, directions, strict=True))

    firsts = jax.vjp(operate, *operands)[1](cotangent)
    return operate(*operands), firsts, jax.grad(along, (0, 1))(cotangent, tuple(operands))


def test_taps_are_prepared_as_stored(folder):
    arrays = load_arrays(folder / "setup_filter.npz")
    for number, case in described(folder / "setup_filter.json").items():
        given = dict(case)
        taps = prepare_taps(given.pop("f"), flip=given.pop("flip_filter", False), **given)
        assert_near(taps, arrays[number], 1e-6, number)
        assert_near(filter_of(taps).matrix(), np.outer(taps, taps) if taps.ndim == 1 else taps, 1e-6, number)


@forms
def test_resampling_matches(folder, form):
    text, arrays = described(folder / "upfirdn2d.json"), load_arrays(folder / "upfirdn2d.npz")
    filters = filters_of(text, arrays)

    def operation(case):
        return partial(
            resample,
            filter=filters[case["filter"]],
            form=form,
            up=pair(case["up"]),
            down=pair(case["down"]),
            pads=pads_of(case["padding"]),
            flip=case["flip_filter"],
            gain=float(case["gain"]),
        )

    @quick_jit
    def run(given):
        results = []
        for case, (x, dy) in zip(text["cases"], given, strict=True):
            value, pullback = jax.vjp(operation(case), x)
            results.append((value, pullback(dy)[0]))
        return results

    given = [(nhwc(arrays[f"{i}_x"]), nhwc(arrays[f"{i}_dy"])) for i in range(len(text["cases"]))]
    for i, (value, gradient) in enumerate(run(given)):
        assert_near(nchw(value), arrays[f"{i}_y"], FIRST, text["cases"][i])
        assert_near(nchw(gradient), arrays[f"{i}_dx"], FIRST, text["cases"][i])


@forms
def test_wrappers_of_resampling_match(folder, form):
    cases, arrays = described(folder / "resample2d.json"), load_arrays(folder / "resample2d.npz")
    filters = filters_of(described(folder / "upfirdn2d.json"))
    wrappers = {"filter2d": "filtered", "upsample2d": "upsampled", "downsample2d": "downsampled"}

    @quick_jit
    def run(given):
        results = []
        for case, x in zip(cases, given, strict=True):
            options = {"pads": pads_of(case["padding"]), "flip": case["flip_filter"], "gain": float(case["gain"])}
            if case["fn"] != "filter2d":
                options["factor"] = case["up" if case["fn"] == "upsample2d" else "down"]
            results.append(getattr(resampling, wrappers[case["fn"]])(x, filters[case["filter"]], form, **options))
        return results

    given = [nhwc(arrays[f"{i}_x"]) for i in range(len(cases))]
    for i, value in enumerate(run(given)):
        assert_near(nchw(value), arrays[f"{i}_y"], FIRST, cases[i])


def assert_derivatives(results, cases, arrays, layouts):
    """Compares what `derivatives` returned per case; `layouts` turn our arrays into stored ones, by operand."""
    for i, (value, firsts, (second, seconds)) in enumerate(results):
        assert_near(nchw(value), arrays[f"{i}_y"], FIRST, cases[i])
        assert_near(nchw(second), arrays[f"{i}_h_dy"], SECOND, cases[i])
        for (name, stored), ours, ours_h in zip(layouts.items(), firsts, seconds, strict=True):
            assert_near(stored(ours), arrays[f"{i}_d{name}"], FIRST, cases[i])
            if f"{i}_h_{name}" in arrays:
                assert_near(stored(ours_h), arrays[f"{i}_h_{name}"], SECOND, cases[i])


def oihw(kernel):
    return np.asarray(kernel).transpose(3, 2, 0, 1)


def in_groups(operate, count):
    """A grouped convolution: each part of the outputs sees its own part of the inputs."""
    if count == 1:
        return operate

    def grouped(x, kernel):
        parts = zip(jnp.split(x, count, 3), jnp.split(kernel, count, 3), strict=True)
        return jnp.concatenate([operate(a, k) for a, k in parts], 3)

    return grouped


# The plain form takes a minute more to compile; tests/models/test_resampling.py holds both forms equal on some cases.
@pytest.mark.parametrize("form", ["rewritten", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", range(3))
def test_convolution_with_resampling_matches_to_second_order(folder, form, part):
    text, stored = described(folder / "conv2d_resample.json"), load_arrays(folder / "conv2d_resample.npz")
    filters = filters_of(text)
    numbers = range(part, len(text["cases"]), 3)
    cases = [text["cases"][i] for i in numbers]
    arrays = {
        f"{place}_{key.split('_', 1)[1]}": value
        for place, i in enumerate(numbers)
        for key, value in stored.items()
        if key.startswith(f"{i}_")
    }

    def operation(case):
        one = partial(
            convolve_resampled,
            filter=filters[case["filter"]],
            form=form,
            up=case["up"],
            down=case["down"],
            pads=pads_of(case["padding"]),
            turn_kernel=not case["flip_weight"],
            flip_filter=case["flip_filter"],
        )
        return in_groups(lambda x, kernel: one(x, kernel), case["groups"])

    @quick_jit
    def run(given):
        return [derivatives(operation(case), *one) for case, one in zip(cases, given, strict=True)]

    given = [
        (
            (nhwc(arrays[f"{i}_x"]), kernel_of(arrays[f"{i}_w"])),
            nhwc(arrays[f"{i}_dy"]),
            (nhwc(arrays[f"{i}_vx"]), kernel_of(arrays[f"{i}_vw"])),
        )
        for i in range(len(cases))
    ]
    assert_derivatives(run(given), cases, arrays, {"x": nchw, "w": oihw})


@forms
def test_modulated_convolution_matches_to_second_order(folder, form):
    text, arrays = described(folder / "modulated_conv2d.json"), load_arrays(folder / "modulated_conv2d.npz")
    filters, cases = filters_of(text), text["cases"]

    def operation(case, noise):
        def operate(x, kernel, styles):
            recipe = Recipe(filters[case["filter"]], form=form)
            keep = {"up": case["up"], "down": case["down"], "pads": case["padding"]}
            out = modulated_convolution(
                x, kernel, styles, recipe, case["demodulate"], **keep, turn_kernel=not case["flip_weight"]
            )
            return out if noise is None else out + noise

        return operate

    @quick_jit
    def run(given, noises):
        return [
            derivatives(operation(case, noise), *one) for case, one, noise in zip(cases, given, noises, strict=True)
        ]

    def noise(i):
        stored = arrays.get(f"{i}_noise")
        if stored is None:
            return None
        return jnp.asarray(stored)[None, :, :, None] if stored.ndim == 2 else nhwc(stored)

    given = [
        tuple(
            (nhwc(arrays[f"{i}_{d}x"]), kernel_of(arrays[f"{i}_{d}w"]), jnp.asarray(arrays[f"{i}_{d}s"]))
            for d in ("", "v")
        )
        for i in range(len(cases))
    ]
    given = [(operands, nhwc(arrays[f"{i}_dy"]), v) for i, (operands, v) in enumerate(given)]
    results = run(given, [noise(i) for i in range(len(cases))])
    assert_derivatives(results, cases, arrays, {"x": nchw, "w": oihw, "s": np.asarray})


def test_activations_match_to_second_order(folder):
    cases, arrays = described(folder / "bias_act.json")["cases"], load_arrays(folder / "bias_act.npz")
    assert {case["act"] for case in cases} == set(ACTIVATIONS)

    def operation(case):
        function, own = ACTIVATIONS[case["act"]]
        gain = 1.0 if case["gain"] is None else case["gain"] / own
        limit = None if case["clamp"] is None else case["clamp"] / gain

        def operate(x, bias=None):
            x = jnp.moveaxis(x, case["dim"], -1)
            if case["act"] == "lrelu" and case["alpha"] is not None:
                # Networks use one slope; the layer takes its function from this table.
                with pytest.MonkeyPatch.context() as patch:
                    patch.setitem(ACTIVATIONS, "lrelu", (partial(leaky_relu, slope=case["alpha"]), own))
                    y = biased(x, bias, "lrelu", gain, limit)
            else:
                y = biased(x, bias, case["act"], gain, limit)
            return jnp.moveaxis(y, -1, case["dim"])

        return operate

    @quick_jit
    def run(given):
        return [derivatives(operation(case), *one) for case, one in zip(cases, given, strict=True)]

    names = [("x", "b") if case["bias"] else ("x",) for case in cases]
    given = [
        (tuple(arrays[f"{i}_{n}"] for n in used), arrays[f"{i}_dy"], tuple(arrays[f"{i}_v{n}"] for n in used))
        for i, used in enumerate(names)
    ]
    for i, (value, firsts, (second, seconds)) in enumerate(run(given)):
        assert_near(value, arrays[f"{i}_y"], FIRST, cases[i])
        assert_near(second, arrays[f"{i}_h_dy"], SECOND, cases[i])
        for name, ours, ours_h in zip(names[i], firsts, seconds, strict=True):
            assert_near(ours, arrays[f"{i}_d{name}"], FIRST, cases[i])
            if f"{i}_h_{name}" in arrays:
                assert_near(ours_h, arrays[f"{i}_h_{name}"], SECOND, cases[i])


def test_linear_layers_match(folder):
    cases, arrays = described(folder / "fully_connected.json"), load_arrays(folder / "fully_connected.npz")
    for i, case in enumerate(cases):
        names = ("x", "weight", "bias", "y", "dy", "dx", "dweight", "dbias")
        stored = {name: arrays.get(f"{i}_{name}") for name in names}
        layer = Dense(len(stored["weight"]), case["activation"], case["lr_multiplier"])
        bias = np.zeros(len(stored["weight"]), np.float32) if stored["bias"] is None else stored["bias"]

        def operate(x, weight, bias, layer=layer):
            return layer.apply({"params": {"kernel": weight.T, "bias": bias}}, x)

        value, pullback = jax.vjp(operate, *map(jnp.asarray, (stored["x"], stored["weight"], bias)))
        assert_near(value, stored["y"], FIRST, case)
        for name, ours in zip(("dx", "dweight", "dbias"), pullback(jnp.asarray(stored["dy"])), strict=True):
            if stored[name] is not None:
                assert_near(ours, stored[name], FIRST, case)
