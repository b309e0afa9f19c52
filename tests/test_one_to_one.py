"""One-to-one matching against scipy's solver, and costs against mmdetection's."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_boxes
from goldens import cases, load
from scipy.optimize import linear_sum_assignment

import jaxiou

match = jax.jit(jaxiou.match_one_to_one)


def pairs_of(found):
    return {(i, int(j)) for i, j in enumerate(np.asarray(found.indices)) if j >= 0}


def total(cost, pairs):
    return sum(cost[i, j] for i, j in pairs)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_least_total_cost_of_the_most_pairs(shape):
    """Costs are integers, which float32 adds up exactly."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cost = rng.integers(-50, 50, shape).astype(np.float32)
        where = np.ones(shape, bool)
        if seed % 4 == 1:  # Padded targets.
            where &= np.arange(shape[1]) < rng.integers(0, shape[1])
        if seed % 4 == 2:  # Padded rows and targets.
            where &= np.arange(shape[1]) < 4
            where &= (np.arange(shape[0]) < 3)[:, None]
        if seed % 4 == 3:  # A gate.
            where &= rng.random(shape) < 0.3
        found = match(cost, where=where)
        pairs = pairs_of(found)
        assert len({j for _, j in pairs}) == len(pairs)
        assert all(where[i, j] for i, j in pairs)
        # Pairs that cannot match cost more than all others together.
        rows, columns = linear_sum_assignment(np.where(where, cost, 10_000.0))
        wanted = {(i, j) for i, j in zip(rows, columns, strict=True) if where[i, j]}
        assert len(pairs) == len(wanted)
        assert total(cost, pairs) == total(cost, wanted)
        matched = np.asarray(found.indices) >= 0
        values = [-cost[i, j] for i, j in sorted(pairs)]
        np.testing.assert_array_equal(found.values[matched], values)
        assert np.isneginf(found.values[~matched]).all()


def test_what_is_not_finite_never_matches():
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(12, 7)).astype(np.float32)
    cost[:, 2], cost[4], cost[0, 0], cost[1, 1] = np.nan, np.inf, -np.inf, np.nan
    found = match(cost, where=np.ones((12, 7), bool))
    same = match(np.where(np.isfinite(cost), cost, 9), where=np.isfinite(cost))
    jax.tree.map(np.testing.assert_array_equal, found, same)
    assert len(pairs_of(found)) == 6
    huge = np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    huge = np.pad(huge, [(0, 10), (0, 5)], constant_values=np.nan)
    found = match(huge, where=np.ones((12, 7), bool))
    np.testing.assert_array_equal(found.indices[:3], [1, 0, -1])


def test_batch_equals_vmap_equals_loop_and_empty_sides():
    rng = np.random.default_rng(1)
    cost = rng.uniform(size=(3, 12, 7)).astype(np.float32)
    where = np.arange(7) < np.array([[0], [3], [7]])
    where = np.broadcast_to(where[:, None, :], cost.shape)
    loop = [match(c, where=w).indices for c, w in zip(cost, where, strict=True)]
    np.testing.assert_array_equal(match(cost, where=where).indices, loop)
    np.testing.assert_array_equal(
        jax.vmap(lambda c, w: match(c, where=w).indices)(cost, where), loop
    )
    for shape in [(0, 4), (4, 0), (2, 0, 3)]:
        none = jaxiou.match_one_to_one(np.zeros(shape, np.float32))
        assert none.indices.shape == shape[:-1] and (none.indices == -1).all()


def test_a_solver_of_ones_own():
    """Greedy: the rows one after the other."""

    def solve(cost):
        used, columns = jnp.zeros(cost.shape[1], bool), []
        for row in cost:
            columns.append(jnp.argmin(jnp.where(used, jnp.inf, row)))
            used = used.at[columns[-1]].set(True)
        return jnp.arange(cost.shape[0]), jnp.stack(columns)

    cost = np.array([[0.2, 0.1, 0.9], [0.3, 0.0, 0.4]], np.float32)
    greedy = jax.jit(lambda cost: jaxiou.match_one_to_one(cost, solver=solve))(cost)
    np.testing.assert_array_equal(greedy.indices, [1, 0])
    np.testing.assert_array_equal(
        jax.jit(jaxiou.match_one_to_one)(cost).indices, [0, 1]
    )


def test_without_optax_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "optax":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs Optax .* `pip install optax`; or"):
        jaxiou.match_one_to_one(np.zeros((2, 3)))


HUNGARIAN = cases("mmdet_assigners", "Hungarian")


@pytest.mark.parametrize("case", HUNGARIAN, ids=lambda case: case["id"])
def test_mmdet_costs_and_their_hungarian(case, x64):
    inputs, options = load("mmdet_assigners")["inputs"][case["input"]], case["kwargs"]
    rows = options["query_rows"].astype(int)
    boxes, logits = inputs["pred_bboxes"][rows], inputs["pred_logits"][rows]
    targets, labels = inputs["gt_bboxes"], inputs["gt_labels"].astype(int)
    size = 8 - len(targets)
    targets = np.pad(targets, [(0, size), (0, 0)], constant_values=np.nan)
    labels, real = np.pad(labels, (0, size)), np.arange(8) < len(labels)
    scale = np.tile(options["img_shape_hw"][::-1], 2)[None]

    @jax.jit
    def costs(boxes, logits, targets, labels):
        boxes1, boxes2 = (
            jaxiou.convert(b / scale, "xyxy", "cxcywh") for b in (boxes, targets)
        )
        focal = 2 * jaxiou.focal_cost(logits, labels, alpha=0.25, gamma=2)
        distance = 5 * jaxiou.box_l1_cost(boxes1, boxes2)
        overlap = 2 * jaxiou.measure_cost(boxes, targets)
        found = jaxiou.match_one_to_one(focal + distance + overlap)
        return focal, distance, overlap, found

    focal, distance, overlap, found = costs(boxes, logits, targets, labels)
    # Theirs have 1e-12 inside of the logarithms, and no maximum of GIoU.
    np.testing.assert_allclose(focal[:, real], case["cost_cls"], rtol=1e-9)
    np.testing.assert_allclose(distance[:, real], case["cost_l1"], rtol=1e-9)
    np.testing.assert_allclose(overlap[:, real] - 2, case["cost_iou"], rtol=1e-6)
    np.testing.assert_array_equal(found.indices, case["gt_inds"] - 1)


def test_costs_have_the_dtype_of_the_boxes_and_finite_values_at_any_logit():
    a, b = random_boxes(0, 2, 5), random_boxes(1, 3)
    for cost in (jaxiou.box_l1_cost, jaxiou.measure_cost):
        half = cost(a.astype("f2"), b.astype("f2"))
        assert half.dtype == jnp.float16 and half.shape == (2, 5, 3)
    turned = jaxiou.box_l1_cost(np.ones((2, 5)), np.zeros((3, 5)))
    np.testing.assert_array_equal(turned, np.full((2, 3), 5))
    logits = np.array([[-1e30, -80, 0, 80, 1e30]], np.float32)
    cost = np.asarray(jaxiou.focal_cost(logits, np.arange(5)))
    assert np.isfinite(cost).all() and (np.diff(cost) < 0).all()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"one_to_one: `cost` has shape \(3,\), want"):
        jaxiou.match_one_to_one(np.zeros(3))
    with pytest.raises(ValueError, match=r"one_to_one: `where` has shape \(2,\), want"):
        jaxiou.match_one_to_one(np.zeros((2, 3)), where=[True, False])
    with pytest.raises(TypeError, match="focal_cost: `labels` has dtype float32"):
        jaxiou.focal_cost(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="focal_cost: `alpha` is 2, wanted"):
        jaxiou.focal_cost(np.zeros((2, 3)), [0], alpha=2)


def test_a_set_without_boxes_has_the_coordinates_of_the_other_one():
    assert jaxiou.box_l1_cost([], np.ones((2, 5))).shape == (0, 2)
    with pytest.raises(ValueError, match="no coordinates"):
        jaxiou.box_l1_cost(np.zeros((3, 0)), np.zeros((2, 0)))
