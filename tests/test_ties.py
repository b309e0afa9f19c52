"""Every tie of a small integer grid: all boxes as anchors, all pairs as targets.

Random boxes never tie. On a grid, overlaps, distances and costs are equal all the time,
and equal fractions of small integers are equal floats.
"""

import functools
import itertools

import assigning
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rescoring import matrix, soft
from test_suppression import greedy_of

import jaxiou

SIDES = list(itertools.combinations(range(4), 2))
GRID = np.array([(x1, y1, x2, y2) for x1, x2 in SIDES for y1, y2 in SIDES], "f4")
N = len(GRID)  # 36
PAIRS = np.stack([np.repeat(GRID, N, 0), np.tile(GRID, (N, 1))], 1)  # (1296, 2, 4)
LEVELS = (20, 13, 3)
SMALL = GRID[(GRID <= 2).all(1)]  # 9
OVERLAPS = assigning.matrix_of(SMALL, SMALL)


def rule(overlaps, inside, ignored, positive, negative, force):
    """Of one image: overlaps with the targets `(n, m)`, and parts that lie on them."""
    values = np.where(ignored, -np.inf, overlaps)
    value, result = values.max(1), values.argmax(1)
    forced = force & ((values == values.max(0)) & (values > 0)).any(1)
    found = np.where(value >= negative, -2, -1)
    found = np.where((inside * ignored).max(1) >= 0.5, -2, found)
    return np.where((value >= positive) | forced, result, found)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("thresholds", [(0.5, 0.25), (1.0, 0.5)])
@pytest.mark.parametrize("ignored", [[False, False], [False, True]], ids=str)
def test_match_anchors(force, thresholds, ignored):
    positive, negative = thresholds
    match = jax.jit(
        functools.partial(
            jaxiou.match_anchors,
            positive=positive,
            negative=negative,
            force_match=force,
            ignore=np.array(ignored),
        )
    )
    found = match(GRID, PAIRS).indices
    inside = np.asarray(jaxiou.pairwise(GRID, GRID, measure=jaxiou.iof))
    overlaps = assigning.matrix_of(GRID, GRID)
    for k, (first, second) in enumerate(itertools.product(range(N), repeat=2)):
        columns = [first, second]
        wanted = rule(
            overlaps[:, columns],
            inside[:, columns],
            np.array(ignored),
            positive,
            negative,
            force,
        )
        np.testing.assert_array_equal(found[k], wanted, str(PAIRS[k]))


def predictions():
    """Points that many boxes share, scores of two values, strides of the levels."""
    rng = np.random.default_rng(0)
    points = np.stack(np.divmod(np.arange(N), 6), -1) / 2 + 0.25
    scores = rng.choice([0.25, 0.75], (N, 2))
    return scores.astype("f4"), points.astype("f4"), np.repeat([0.5, 1, 2], LEVELS)


def test_match_atss():
    match = jax.jit(functools.partial(jaxiou.match_atss, level_sizes=LEVELS, topk=3))
    found = match(GRID, PAIRS).indices
    for k, targets in enumerate(PAIRS):
        wanted = assigning.atss(GRID, targets, LEVELS, 3)
        np.testing.assert_array_equal(found[k], wanted, str(targets))


@pytest.mark.parametrize("name", ["match_task_aligned", "match_simota"])
@pytest.mark.parametrize("topk", [1, 4])
def test_assigners_of_predictions(name, topk):
    scores, points, strides = predictions()
    labels = np.array([1, 0])
    options = {"strides": strides.astype("f4")} if name == "match_simota" else {}
    plain = getattr(assigning, name.removeprefix("match_"))
    match = jax.jit(functools.partial(getattr(jaxiou, name), topk=topk, **options))
    found = match(scores, GRID, points, labels, PAIRS).indices
    for k, targets in enumerate(PAIRS):
        wanted = plain(scores, GRID, points, labels, targets, topk=topk, **options)
        wanted = wanted[0] if name == "match_task_aligned" else wanted
        np.testing.assert_array_equal(found[k], wanted, str(targets))


def test_match_one_to_one():
    """All costs of 0, 1 or no pair: the most pairs, and the cheapest of those."""
    costs = np.array(list(itertools.product([0.0, 1.0, np.inf], repeat=6)), "f4")
    costs = costs.reshape(-1, 3, 2)
    choices = [
        pairs
        for count in range(3)
        for rows in itertools.permutations(range(3), count)
        for columns in itertools.combinations(range(2), count)
        for pairs in [list(zip(rows, columns, strict=True))]
    ]
    found = jax.jit(jaxiou.match_one_to_one)(costs).indices
    for cost, index in zip(costs, np.asarray(found), strict=True):
        totals = [(-len(p), sum(cost[i, j] for i, j in p)) for p in choices]
        wanted = min(total for total in totals if np.isfinite(total[1]))
        pairs = [(i, j) for i, j in enumerate(index) if j >= 0]
        assert len({j for _, j in pairs}) == len(pairs)
        assert (-len(pairs), sum(cost[i, j] for i, j in pairs)) == wanted


def orders(levels):
    """Every assignment of so many scores to the nine boxes of the smaller grid."""
    return np.array(list(itertools.product(range(levels), repeat=9)), "f4")


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5])
def test_nms(threshold):
    scores = orders(2)
    run = functools.partial(jaxiou.nms, threshold=threshold, max_outputs=9)
    found = jax.jit(jax.vmap(run, in_axes=(None, 0)))(SMALL, scores)
    for each, indices in zip(scores, np.asarray(found.indices), strict=True):
        wanted = greedy_of(OVERLAPS, each, threshold)
        assert [i for i in indices if i >= 0] == wanted


@pytest.mark.parametrize("function", [jaxiou.soft_nms, jaxiou.matrix_nms])
def test_rescoring(function):
    # Factors of 1/2 alone, so that products have no rounding.
    half = jax.tree_util.Partial(lambda overlap: np.float32(1) - (overlap > 0.3) / 2)
    run = functools.partial(function, decay=half, max_outputs=9, score_threshold=-1.0)
    scores = orders(2) + 1
    found = jax.jit(jax.vmap(run, in_axes=(None, 0)))(jnp.asarray(SMALL), scores)
    plain = soft if function is jaxiou.soft_nms else matrix
    for k, each in enumerate(scores):
        wanted = plain(OVERLAPS, each, half, -1)
        np.testing.assert_array_equal(found.indices[k], [i for i, _ in wanted])
        np.testing.assert_array_equal(found.scores[k], [s for _, s in wanted])
