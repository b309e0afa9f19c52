"""Boxes as Gaussians against mmrotate's and ultralytics' numbers."""

import jax
import numpy as np
import pytest
from goldens import cases, load
from test_turned import evaluate
from turning import boxes

import jaxiou


def mmrotate():
    entry = load("mmrotate_gaussian")["inputs"]["pairs"]
    return entry["pred"], entry["target"], entry["category"]


def compare(case, found, category, *, left_out=(), atol=1e-9, rtol=1e-8):
    """Within rounding of the other's formula, which loses digits near 0."""
    kept = ~np.isin(category, list(left_out)) & np.isfinite(case["output"])
    assert kept.sum() > 50
    bound = atol + rtol * np.abs(case["output"]) + 20 * case["out_noise"]
    excess = np.where(kept, np.abs(found - case["output"]) - bound, 0)
    assert excess.max() <= 0, (category[excess.argmax()], excess.max())


def case_of(prefix):
    (case,) = cases("mmrotate_gaussian", prefix)
    return case


def test_means_and_covariances(x64):
    a, _, _ = mmrotate()
    case = case_of("xy_wh_r_2_xy_sigma/pred")
    mean, covariance = jaxiou.to_gaussian(a)
    np.testing.assert_allclose(mean, case["mu"], rtol=1e-14)
    size = np.abs(case["sigma"]).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(covariance / size, case["sigma"] / size, atol=1e-13)


def test_wasserstein_distance(x64):
    a, b, category = mmrotate()
    found = evaluate(jaxiou.gwd_distance.values, a, b)[0]
    # The clamps at 1e-7 under the root: up to 3e-4 for boxes that nearly agree, and
    # everything about tiny ones.
    near = ("identical", "rotated_180", "swapped_wh_plus_90", "angle_1e-7", "tiny")
    case = case_of("gwd_loss/none/tau=0.0/normalize=False")
    compare(case, found, category, left_out=(*near, "normalised"), atol=1e-5, rtol=1e-6)
    agree = np.isin(category, near)
    assert found[agree & (category != "tiny")].max() < 1e-6 * max(b.max(), 1)
    similarity = jaxiou.similarity(jaxiou.gwd_distance, tau=1.0, log=True)
    loss = 1 - evaluate(similarity, a, b)[0]
    case = case_of("gwd_loss/log1p/tau=1.0/normalize=False")
    compare(case, loss, category, left_out=(*near, "normalised"), atol=1e-5, rtol=1e-6)


def test_divergences_and_their_direction(x64):
    a, b, category = mmrotate()
    # mmrotate's (pred, target) measures in sides of the prediction.
    found = evaluate(jaxiou.kld_distance.values, b, a)[0]
    case = case_of("kld_loss/none/tau=0.0/sqrt=False")
    compare(case, found, category, left_out=("elongated_1000to1",))
    # Their matrices of 1000:1 boxes keep 10 digits.
    compare(case, found, category, rtol=1e-4, atol=1e-4)
    near = ("identical", "rotated_180", "swapped_wh_plus_90", "angle_1e-7")
    case = case_of("kld_loss/none/tau=0.0/sqrt=True")
    kept = {"left_out": (*near, "elongated_1000to1"), "atol": 1e-6, "rtol": 1e-6}
    compare(case, np.sqrt(found), category, **kept)
    similarity = jaxiou.similarity(jaxiou.kld_distance, root=True, log=True)
    case = case_of("kld_loss/log1p/tau=1.0/sqrt=True")
    compare(case, 1 - evaluate(similarity, b, a)[0], category, **kept)
    found = evaluate(jaxiou.jeffreys_distance.values, a, b)[0]
    compare(case_of("jd_loss/none/tau=0.0/sqrt=True"), np.sqrt(found), category, **kept)


def test_bhattacharyya_distance(x64):
    a, b, category = mmrotate()
    similarity = jaxiou.similarity(jaxiou.bhattacharyya_distance, tau=1.0)
    found = 1 - evaluate(similarity, a, b)[0]
    # Without a function theirs is 1 - 1 / (1 + d), with d at least 1e-6.
    case = case_of("v1_bcd_loss/none/tau=1.0")
    compare(case, found, category, atol=5e-6)


def test_kalman_overlap(x64):
    a, b, category = mmrotate()
    case = case_of("kfiou_loss/none/pred_is_decode")
    # Their loss adds a smooth L1 of the centres and clamps the sum at 0.
    distance = np.abs(a[:, :2] - b[:, :2])
    beta = case["kwargs"]["beta"]
    smooth = np.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)
    raw = evaluate(jaxiou.kfiou_raw, a, b)[0]
    found = np.maximum(smooth.sum(axis=1) + 1 - raw, 0)
    # Their denominator has 1e-6 added, which bends areas of 1 or less.
    compare(case, found, category, left_out=("tiny", "normalised"), atol=1e-6)
    whole = evaluate(jaxiou.kfiou, a, b)[0]
    np.testing.assert_allclose(whole, np.minimum(3 * raw, 1), rtol=1e-14)


def test_probiou(x64):
    (case,) = cases("ultralytics_iou", "probiou")
    entry = load("ultralytics_iou")["inputs"]["obb_pairs"]
    found = evaluate(jaxiou.probiou, entry["pred"], entry["target"])[0]
    # Theirs has 1e-7 added under both roots and B between 1e-7 and 100: compare the
    # Bhattacharyya coefficients instead of the roots. Small boxes feel it elsewhere.
    coefficient = 1 - (1 - found) ** 2
    theirs = 1 - (1 - case["output"]) ** 2 + 1e-7
    kept = ~np.isin(entry["category"], ["tiny", "normalised", "elongated_1000to1"])
    assert kept.sum() > 60
    np.testing.assert_allclose(coefficient[kept], theirs[kept], atol=5e-7)


def test_gradients_live_where_others_clamp_them():
    far = np.float32([[0, 0, 4, 3, 0.5]]), np.float32([[5000, 300, 4, 3, 0.1]])
    tiny = [x * np.float32([1e-6, 1e-6, 1e-6, 1e-6, 1]) for x in far]
    for pair in (far, tiny):
        for distance in (
            jaxiou.gwd_distance,
            jaxiou.kld_distance,
            jaxiou.bhattacharyya_distance,
        ):
            similarity = jaxiou.similarity(distance, log=True)
            gradient = evaluate(similarity, *pair)[1]
            towards = gradient[0, 0] * pair[1][0, 0]
            assert towards > 1e-8, (distance, gradient)
    near = np.float32([[0, 0, 4e-3, 3e-3, 0.5]]), np.float32([[2e-3, 0, 4e-3, 3e-3, 0]])
    assert np.abs(evaluate(jaxiou.probiou, *near)[1]).min() > 0.01


def test_squares_have_no_angle_for_gaussians_but_for_mgiou():
    a = np.float32([[3, 2, 4, 4, 0]])
    turned = np.float32([[3, 2, 4, 4, 0.5]])
    assert evaluate(jaxiou.kld_distance.values, a, turned)[0] == 0
    assert evaluate(jaxiou.probiou, a, turned)[0] == 1
    assert evaluate(jaxiou.mgiou, a, turned)[0] < 0.9


def test_boxes_that_nearly_agree_keep_their_digits():
    a = boxes(5, 31, 100, dtype=np.float32)
    b = (a * np.float32(1 + 1e-4)).astype(np.float32)
    for distance in (jaxiou.kld_distance, jaxiou.bhattacharyya_distance):
        found = evaluate(distance.values, a, b)[0]
        wide = (x.astype(np.float64) for x in (a, b))
        with jax.enable_x64(True):
            wanted = evaluate(distance.values, *wide)[0]
        # Not 1e-7 of 1, as by ln(|Σ₁| / |Σ₂|), but of the value itself.
        np.testing.assert_allclose(found, wanted, rtol=5e-3)


@pytest.mark.parametrize("constant", [1.0, 12.8])
def test_nwd_is_the_published_formula(constant, x64):
    a, b = boxes(4, 1, 50), boxes(4, 2, 50)
    ca, cb = ((x[:, :2] + x[:, 2:]) / 2 for x in (a, b))
    sa, sb = ((x[:, 2:] - x[:, :2]) / 2 for x in (a, b))
    w2 = np.sqrt(((ca - cb) ** 2 + (sa - sb) ** 2).sum(axis=1))
    found = jaxiou.nwd(constant)(a, b)
    np.testing.assert_allclose(found, np.exp(-w2 / constant), rtol=1e-13)
    turned = [
        np.concatenate([c, 2 * s, np.zeros((50, 1))], 1)
        for c, s in ((ca, sa), (cb, sb))
    ]
    again = jaxiou.rotated_nwd(constant)(*turned)
    np.testing.assert_allclose(again, found, rtol=1e-12)
