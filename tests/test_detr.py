"""DETR's criterion against the paper, written once more in NumPy, image by image."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from examples import detr_criterion as detr

pytestmark = pytest.mark.usefixtures("quick")

CLASSES = 5
# Queries, places for targets, and how many of them are real in every image.
BATCHES = [
    (12, 6, [6, 2, 0]),
    (12, 6, [1, 5, 6]),
    (12, 6, [0, 0, 0]),
    (4, 7, [7, 5, 2]),  # more targets than queries
]


def batch(queries, places, counts, seed):
    """Random predictions and targets in float32, in the order of `detr.losses`."""
    rng = np.random.default_rng(seed)

    def boxes(*shape):
        centres = rng.uniform(0.1, 0.9, (*shape, 2))
        return np.concatenate([centres, rng.uniform(0.02, 0.6, (*shape, 2))], -1)

    b = len(counts)
    arrays = (
        rng.normal(0, 2, (b, queries, CLASSES + 1)).astype(np.float32),
        boxes(b, queries).astype(np.float32),
        rng.integers(0, CLASSES, (b, places)),
        boxes(b, places).astype(np.float32),
    )
    # Which places are real is as random as how they are filled.
    order = rng.permuted(np.tile(np.arange(places), (b, 1)), axis=1)
    return *arrays, order < np.array(counts)[:, None]


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def edges(box):
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def giou(box, target):
    (a1, b1, a2, b2), (c1, d1, c2, d2) = edges(box), edges(target)
    shared = max(min(a2, c2) - max(a1, c1), 0) * max(min(b2, d2) - max(b1, d1), 0)
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - shared
    hull = (max(a2, c2) - min(a1, c1)) * (max(b2, d2) - min(b1, d1))
    return shared / union - (hull - union) / hull


def expected(logits, boxes, labels, targets, where):
    """Indices, the losses, and the least cost of each image, in float64."""
    logits, boxes, targets = (np.float64(x) for x in (logits, boxes, targets))
    indices, costs = np.full(boxes.shape[:2], -1), []
    sums = dict.fromkeys(("entropy", "weights", "l1", "giou"), 0.0)
    for i, real in enumerate(where):
        places = np.flatnonzero(real)
        cost = np.zeros((len(boxes[i]), len(places)))
        for q, box in enumerate(boxes[i]):
            for k, place in enumerate(places):
                target = targets[i, place]
                p = np.exp(log_softmax(logits[i, q]))[labels[i, place]]
                distance = np.abs(box - target).sum()
                cost[q, k] = -p + 5 * distance + 2 * (1 - giou(box, target))
        rows, columns = linear_sum_assignment(cost)
        indices[i, rows] = places[columns]
        costs.append(cost[rows, columns].sum())
        for q, place in enumerate(indices[i]):
            label, weight = (labels[i, place], 1.0) if place >= 0 else (CLASSES, 0.1)
            sums["entropy"] -= weight * log_softmax(logits[i, q])[label]
            sums["weights"] += weight
            if place >= 0:
                sums["l1"] += np.abs(boxes[i, q] - targets[i, place]).sum()
                sums["giou"] += 1 - giou(boxes[i, q], targets[i, place])
    count = max(where.sum(), 1)
    parts = {
        "class_loss": sums["entropy"] / sums["weights"],
        "l1_loss": sums["l1"] / count,
        "giou_loss": sums["giou"] / count,
    }
    return indices, parts, costs


def results(logits, boxes, *rest):
    """The assignment, the losses made of it, and the gradient of their sum."""
    TRACES.append(boxes.shape)

    def loss(logits, boxes):
        parts = detr.losses(logits, boxes, *rest)
        return detr.total(parts), parts

    gradients, parts = jax.grad(loss, argnums=(0, 1), has_aux=True)(logits, boxes)
    return detr.match(logits, boxes, *rest), parts, gradients


def forward(*arrays):
    return detr.match(*arrays), detr.losses(*arrays)


TRACES = []
compiled = jax.jit(results)


def check(got, arrays, rtol):
    """Compares an assignment and losses with the expected ones."""
    (indices, wanted, costs), (found, parts) = expected(*arrays), got
    np.testing.assert_array_equal(found.indices, indices)
    assert parts.keys() == wanted.keys()
    for name, part in parts.items():
        np.testing.assert_allclose(part, wanted[name], rtol=rtol, err_msg=name)
    paid = -found.values.sum(axis=-1, where=found.indices >= 0)
    # Costs of both signs add up: what they lose is relative to the largest, 15.
    np.testing.assert_allclose(paid, costs, rtol=rtol, atol=15 * rtol)
    weighted = wanted["class_loss"] + 5 * wanted["l1_loss"] + 2 * wanted["giou_loss"]
    np.testing.assert_allclose(detr.total(parts), weighted, rtol=rtol)


@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_equals_the_published_one(shape):
    for seed in range(5):
        arrays = batch(*shape, seed)
        check(compiled(*arrays)[:2], arrays, rtol=5e-6)


def test_without_jit():
    arrays = batch(12, 6, [6, 2, 0], seed=9)
    check(forward(*arrays), arrays, rtol=5e-6)


def test_in_double_precision(x64):
    arrays = batch(9, 9, [9, 5, 0], seed=5)
    double = [x.astype(float) if x.dtype == np.float32 else x for x in arrays]
    check(jax.jit(forward)(*double), double, rtol=1e-12)


def test_one_compilation_serves_every_count():
    *arrays, _ = batch(12, 6, [0, 0, 0], seed=6)
    for count in range(7):
        where = np.arange(6) < np.array([[count], [6 - count], [3]])
        check(compiled(*arrays, where)[:2], (*arrays, where), rtol=5e-6)
    assert TRACES.count((3, 12, 4)) == 1


def test_padding_changes_no_bit():
    logits, boxes, labels, targets, where = batch(12, 6, [5, 2, 0], seed=1)

    def outcome(coordinate, label):
        filled = np.where(where[..., None], targets, np.float32(coordinate))
        return compiled(logits, boxes, np.where(where, labels, label), filled, where)

    for filling in [(np.nan, -1), (np.inf, 10**6), (-3e38, -7)]:
        jax.tree.map(np.testing.assert_array_equal, outcome(*filling), outcome(0.5, 0))


def test_gradients():
    arrays = batch(12, 6, [4, 6, 0], seed=2)
    found, _, gradients = compiled(*arrays)
    assert all(np.isfinite(x).all() for x in gradients)
    # Boxes learn where they are matched, classes everywhere.
    np.testing.assert_array_equal((gradients[1] != 0).any(-1), found.indices >= 0)
    assert (gradients[0] != 0).any(-1).all()
    # The slope along a direction, with the same assignment on both sides.
    rng, step, sides = np.random.default_rng(3), 1e-6, []
    away = [rng.normal(size=x.shape) for x in gradients]
    for sign in (step, -step):
        moved = (x + sign * d for x, d in zip(arrays, away, strict=False))
        indices, parts, _ = expected(*moved, *arrays[2:])
        np.testing.assert_array_equal(indices, found.indices)
        sides.append(detr.total(parts))
    got = sum((g * d).sum() for g, d in zip(gradients, away, strict=True))
    np.testing.assert_allclose(got, (sides[0] - sides[1]) / (2 * step), rtol=1e-5)


def test_boxes_without_area_have_finite_gradients():
    logits, boxes, labels, targets, where = batch(12, 6, [6, 3, 0], seed=4)
    boxes[:, ::2, 2:] = 0  # points
    boxes[0, :6] = targets[0]  # hits
    targets[1, :, 2] = 0
    _, parts, gradients = compiled(logits, boxes, labels, targets, where)
    assert all(np.isfinite(x).all() for x in (*parts.values(), *gradients))
