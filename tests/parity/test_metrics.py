"""Metrics equal the values that published implementations give for stored arrays.

Tolerances are those that the stored arrays come with: relative to max(1, |value|), 1e-9 for float64 routes; counts are
exact. Fréchet distances and the balls of precision and recall are in tests/metrics beside their other tests.
"""

import jax
import numpy as np
import pytest

from gantransfer import metrics
from gantransfer.metrics import diversity, kernel, paths, perceptual, probe
from gantransfer.metrics.precision_recall import improved_precision_recall


@pytest.fixture(scope="module")
def load(shared):
    def read(name):
        with np.load(shared / "parity" / "metrics" / f"{name}.npz") as file:
            return dict(file)

    return read


def near(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


# --- Fréchet distances of classes and of infinitely many images


def test_intra_class_distances(load):
    stored = load("fid")
    labels = stored["intra/labels"]
    got = metrics.intra_class_frechet_distance(stored["intra/real"], labels, stored["intra/gen"], labels)
    # Stored by the general-root route, which loses up to 4e-7.
    near(list(got["per_class"].values()), stored["intra/per_class"], 1e-6)
    near(got["value"], stored["intra/mean"], 1e-6)
    near(metrics.frechet_distance(stored["intra/real"], stored["intra/gen"]), stored["intra/pooled"], 1e-6)
    assert got["excluded"] == []


def test_extrapolation_to_infinitely_many_images(load):
    stored = load("fid_infinity")
    permutations = stored["perms"].astype(np.int64)
    got = metrics.frechet_infinity(stored["real"], stored["gen"], smallest=60, permutations=permutations)
    assert got["sizes"] == stored["sizes"].tolist()
    near(got["distances"], stored["fids"], 1e-8)
    near(got["slope"], stored["slope"], 1e-8)
    near(got["value"], stored["fid_infinity"], 1e-8)


# --- kernel distances


def test_subsets_by_three_estimators(load):
    stored = load("kid")
    real, gen = stored["real"].astype(np.float64), stored["gen"].astype(np.float64)
    cubic = kernel.PolynomialKernel()
    for column, estimator in enumerate(("unbiased", "biased", "u_statistic")):
        got = [
            kernel.squared_discrepancy(real[i], gen[j], cubic, estimator)
            for i, j in zip(stored["tf/idx_real"], stored["tf/idx_gen"], strict=True)
        ]
        near(got, stored["tf/per_subset_float64"][:, column], 1e-9)


def test_kernel_distance_of_injected_subsets(load):
    stored = load("kid")
    draws = stored["tf/idx_real"], stored["tf/idx_gen"]
    mean, std = metrics.kernel_distance(stored["real"], stored["gen"], draws=draws)
    # Published in float32.
    near([mean, std], np.array([stored["tf/mean"], stored["tf/std"]]), 2e-6)
    near(mean, stored["tf/per_subset_float64"][:, 0].mean(), 1e-9)


def test_other_kernels(load):
    stored = load("kid")
    draws = stored["tf/idx_real"], stored["tf/idx_gen"]
    wide = metrics.kernel_distance(stored["real"], stored["gen"], draws=draws, kernel=kernel.GaussianKernel(1.0))
    near(np.array(wide), np.array([stored["tf/rbf1_mean"], stored["tf/rbf1_std"]]), 2e-6)
    square = kernel.PolynomialKernel(2, 0.05, 0.5)
    got = metrics.kernel_distance(stored["real"], stored["gen"], draws=draws, kernel=square)
    near(got.mean, stored["tf/deg2_mean"], 2e-6)


def test_draws_of_clean_fid_and_the_whole_sets(load):
    stored = load("kid")
    draws = stored["clean/idx_real"], stored["clean/idx_gen"]
    near(metrics.kernel_distance(stored["real"], stored["gen"], draws=draws).mean, stored["clean/kid"], 2e-6)
    m = min(len(stored["real"]), len(stored["gen"]))
    real, gen = stored["real"].astype(np.float64), stored["gen"].astype(np.float64)
    whole = kernel.squared_discrepancy(real, gen[:m], kernel.PolynomialKernel())
    full = metrics.kernel_distance_full(stored["real"], stored["gen"])
    assert min(abs(whole - stored["clean/kid_all"]), abs(full - stored["clean/kid_all"])) <= 2e-6


# --- inception score


@pytest.mark.parametrize("splits", [1, 2, 10])
def test_inception_scores_of_logits(load, splits):
    stored = load("inception_score")
    plain = metrics.inception_score_of_logits(stored["logits"], splits)
    near(plain, stored[f"tf/splits{splits}_shuffle0"], 1e-9)
    shuffled = metrics.inception_score_of_logits(stored["logits"], splits, order=stored["tf/permutation"])
    near(shuffled, stored[f"tf/splits{splits}_shuffle1"], 1e-9)


def test_inception_scores_of_probabilities(load):
    stored = load("inception_score")
    # The published values are of float64 probabilities, of which the stored ones are float32 copies.
    exact = np.exp(stored["logits"].astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    near(metrics.inception_score(exact), stored["nvidia/splits10"], 1e-9)
    near(metrics.inception_score(stored["probs"]), stored["nvidia/splits10"], 1e-7)
    cut = metrics.inception_score(exact, order=stored["tf/permutation"], drop_remainder=True)
    near(cut, stored["dgm/splits10_drop_remainder"], 1e-9)
    near(metrics.inception_score(stored["zeros/probs"], 5), stored["zeros/dgm_splits5"], 1e-9)


# --- precision and recall in other forms


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("case", ["plain", "ties", "disjoint", "same", "far_outlier", "near", "offset"])
def test_improved_precision_and_recall(load, case, k):
    stored = load("prdc")
    real, fake = stored[f"{case}/real"], stored[f"{case}/gen"]
    for name, half, tolerance in (("improved_pr", False, 1e-12), ("tf", False, 1e-7), ("float16", True, 1e-7)):
        got = improved_precision_recall(real, fake, k, half=half)
        np.testing.assert_allclose(list(got.values()), stored[f"{case}/{name}_k{k}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("case", ["plain", "disjoint", "far_outlier", "near", "offset"])
def test_realism(load, case, k):
    stored = load("prdc")
    got = metrics.realism(stored[f"{case}/real"], stored[f"{case}/gen"], k)
    np.testing.assert_allclose(got, stored[f"{case}/realism_k{k}"], rtol=1e-9)


# --- distances between sets


def test_cmmd(load):
    stored = load("distances")
    got = metrics.cmmd(stored["x"], stored["y"])
    near(got, stored["cmmd_float64"], 1e-10)
    assert got == pytest.approx(float(stored["cmmd"]), abs=1e-3)
    near(metrics.cmmd(stored["raw_x"], stored["raw_y"]), stored["cmmd_unnormalised_float64"], 1e-10)


def test_vendi_scores_and_mind(load):
    stored = load("distances")
    x, y = stored["raw_x"], stored["raw_y"]
    near(diversity.vendi_score(x), stored["vendi_q1_linear"], 1e-10)
    near(diversity.vendi_score(x, np.inf), stored["vendi_qinf_linear"], 1e-10)
    near(diversity.vendi_score(x, 2, "cubic"), stored["vendi_q2_poly"], 1e-10)
    got = diversity.mind(x, y, directions=stored["mind/directions"], chosen=stored["mind/idx_x"])
    near(got, stored["mind"], 1e-7)


# --- LPIPS and path length


@pytest.fixture(scope="module")
def stages(load):
    stored = load("lpips_ppl")
    last = {
        name: [stored[f"layer{i}/{name}"].astype(np.float64).transpose(0, 2, 3, 1) for i in range(3)]
        for name in ("f0", "f1")
    }
    heads = [stored[f"layer{i}/lin"].astype(np.float64)[0, :, 0, 0] for i in range(3)]
    return stored, last["f0"], last["f1"], heads


def test_lpips_of_each_stage_and_of_all(stages):
    stored, a, b, heads = stages
    with jax.enable_x64(True):
        for i in range(3):
            near(perceptual.lpips(a[i : i + 1], b[i : i + 1], heads[i : i + 1]), stored[f"layer{i}/value"], 1e-10)
            near(perceptual.lpips(a[i : i + 1], b[i : i + 1], None), stored[f"layer{i}/baseline"], 1e-10)
        near(perceptual.lpips(a, b, heads), stored["total"], 1e-10)
        near(perceptual.lpips(a, b, None), stored["total_baseline"], 1e-10)


def test_lpips_maps(stages):
    stored, a, b, heads = stages
    for i in range(3):
        args = [[stage.astype(np.float32) for stage in side[i : i + 1]] for side in (a, b, heads)]
        got = perceptual.lpips_map(*args, size=(18, 14))
        near(got, stored[f"layer{i}/spatial"][:, 0], 2e-6)


def test_scaling_layer(stages):
    stored = stages[0]
    got = perceptual.scaling_layer(stored["scaling/in"].transpose(0, 2, 3, 1))
    near(got, stored["scaling/out"].transpose(0, 2, 3, 1), 1e-6)


def test_path_length_and_great_circles(stages):
    stored = stages[0]
    with jax.enable_x64(True):
        near(paths.slerp(stored["slerp/a"], stored["slerp/b"], stored["slerp/t"]), stored["slerp/out"], 1e-10)
    near(paths.path_length(stored["ppl/distances"]), stored["ppl/value"], 1e-10)


# --- linear probe


def test_linear_probe(load):
    stored = load("linear_probe")
    got = metrics.linear_probe(stored["real"], stored["gen"], permutations=stored["perm"][None])
    assert got["train_accuracy"] == pytest.approx(float(stored["train_acc"]), abs=1e-12)
    assert got["validation_accuracy"] == pytest.approx(float(stored["val_acc"]), abs=1e-12)
    first = np.concatenate([stored["real"][stored["perm"]][:100], stored["gen"][:96]])
    plane = probe.fit_logistic(first, np.arange(196) < 100)
    near(plane.weights, stored["coef_converged"], 1e-5)
    near(plane.bias, stored["intercept_converged"], 1e-5)
