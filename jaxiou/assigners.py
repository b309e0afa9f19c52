"""Assigners in which every target chooses its best k anchors.

An anchor that several targets choose goes to one of them. No matrix of anchors ×
targets is written: memory is O(targets × k) and one block.
"""

__all__ = ["match_atss", "match_simota", "match_task_aligned"]

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import _checks, _loops, _measure
from ._given import arrays_of, count, extra, operands_of, predicted
from ._measure import Measure, Planes
from ._numerics import divide, nonnegative
from ._points import (
    as_columns,
    as_rows,
    centre,
    is_inside,
    nearness,
    of_pairs,
    own_values,
    places,
    taken,
)
from ._top import most, shared_out, top
from .matching import Assignment
from .matrix import Operands
from .measures import iou


def match_atss(
    anchors: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    level_sizes: Sequence[int],
    topk: int = 9,
    where: _checks.Mask | None = None,
    where_anchors: _checks.Mask | None = None,
    measure: Measure = iou,
) -> Assignment:
    """Assigns anchors by a threshold that adapts to each target (ATSS).

    The candidates of a target are, on every level, the `topk` anchors whose centres are
    nearest to its own. Those are assigned whose measure is at least the mean plus the
    standard deviation of all its candidates', and whose centre lies inside of it. An
    anchor that several targets claim goes to the one with the largest measure.

    Args:
        anchors: `(*batch, n, 4)`, or as many coordinates as the measure takes, level
            after level.
        targets: `(*batch, m, 4)`, padded; leading axes broadcast.
        level_sizes: number of anchors on each level; their sum is n.
        topk: candidates per level and target; the published code takes 9 for each of
            the anchors that share a centre.
        where: `(*batch, m)`, False for padding.
        where_anchors: `(*batch, n)`, False for anchors to leave out.
        measure: any measure.

    Returns:
        `Assignment(indices, values, None)`: -1 for background, -2 for anchors left out;
        values are those with the assigned target, `-inf` without one.

    At the edge:
        At ties the lower index wins, of anchors at one distance as of targets with one
        measure. With a single candidate the deviation is 0. Boxes with NaN match
        nothing. Not differentiable.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, `level_sizes` that
            do not add up to n, or a `topk` below 1.
        TypeError: on a `measure` that is not one, or masks that are not boolean.

    Example:
        >>> import jaxiou
        >>> anchors = [[0, 0, 4, 2], [1, 1, 4, 4], [6, 6, 9, 8], [1, 0, 5, 5]]
        >>> targets = [[1.0, 1.0, 5.0, 4.0]]
        >>> print(jaxiou.match_atss(anchors, targets, level_sizes=[3, 1]).indices)
        [-1  0 -1 -1]

    Reference:
        S. Zhang, C. Chi, Y. Yao, Z. Lei, S. Z. Li, "Bridging the Gap Between
        Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection",
        2020, arXiv:1912.02424. The deviation is the unbiased one of its code; there and
        in mmdetection a centre is inside from 0.01 pixels on.
    """
    name = "match_atss"
    operands = operands_of(name, measure, anchors, targets, where_anchors, where)
    count(name, "topk", topk)
    sizes = list(level_sizes) or [0]
    n = operands.boxes1.shape[1]
    whole = all(isinstance(size, int | np.integer) for size in sizes)
    if not whole or sum(sizes) != n or min(sizes) < 0:
        raise ValueError(
            f"jaxiou.{name}: `level_sizes` is {sizes}, which adds up to {sum(sizes)}, "
            f"wanted numbers of anchors that add up to {n}, the length of `anchors`."
        )

    def one(_: Any, boxes1: Array, boxes2: Array, *masks: Array) -> tuple[Array, ...]:
        anchors, targets = _planes(boxes1, boxes2)
        start, candidates = 0, []
        real = ~functools.reduce(jnp.logical_or, map(jnp.isnan, anchors))
        masks = masks[0] & real, masks[1]
        for size in sizes:
            level = slice(start, start + size)
            near = tuple(p[level] for p in centre(anchors))
            _, found = top(
                nearness, near, centre(targets), masks[0][level], masks[1], topk
            )
            candidates.append(jnp.where(found >= 0, found + start, -1))
            start += size
        chosen = jnp.concatenate(candidates, axis=1)
        values = of_pairs(operands.measure, anchors, targets, chosen)
        real = (chosen >= 0) & ~jnp.isnan(values)
        claims = real & (values >= _threshold(values, real))
        claims &= is_inside(taken(centre(anchors), chosen), as_columns(targets))
        index = shared_out(jnp.where(claims, chosen, -1), values, n)
        return index, own_values(operands.measure, anchors, targets, index)

    found = _loops.each_image(one, None, arrays_of(operands))
    return _assignment(operands, found)


def match_task_aligned(
    scores: _checks.ArrayLike,
    boxes: _checks.Boxes,
    anchor_points: _checks.ArrayLike,
    labels: _checks.ArrayLike,
    targets: _checks.Boxes,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    regions: _checks.Boxes | None = None,
    where: _checks.Mask | None = None,
    where_anchors: _checks.Mask | None = None,
    measure: Measure = iou,
) -> Assignment:
    """Assigns predictions that classify and locate a target well at once (TAL).

    The alignment of a prediction with a target is t = s^α u^β, with s its score of the
    target's label and u its measure with it. A target chooses the `topk` largest t > 0
    among predictions whose point lies inside of its region; one that several targets
    choose goes to that with the largest measure.

    Args:
        scores: `(*batch, n, classes)`, probabilities.
        boxes: `(*batch, n, 4)`, predicted, or as many coordinates as the measure takes.
        anchor_points: `(*batch, n, 2)`, (x, y) of the cells that predict them; in space
            `(x, y, z)`.
        labels: `(*batch, m)` integers, classes of the targets.
        targets: `(*batch, m, 4)`, padded; leading axes broadcast.
        topk: predictions per target.
        alpha: exponent of the score.
        beta: exponent of the measure; below 0 it counts as 0.
        regions: `(*batch, m, 4)`, in the layout of the targets, where their points lie;
            None for the targets themselves. Tiny ones may be enlarged, for instance.
        where: `(*batch, m)`, False for padding.
        where_anchors: `(*batch, n)`, False for predictions to leave out.
        measure: any measure.

    Returns:
        `Assignment(indices, values, scores)`: -1 for background, -2 for predictions
        left out; values are those with the assigned target, `-inf` without one. Scores
        in [0, 1] are what the classifier is to learn: t / max(t) · max(u), the maxima
        over the predictions of one target; 0 for background.

    At the edge:
        At ties the lower index wins, of predictions as of targets. Boxes with NaN match
        nothing. Memory is O(m topk) and one block. Not differentiable.

    Raises:
        ValueError: on shapes that do not fit each other, a `topk` below 1, or negative
            exponents.
        TypeError: on a `measure` that is not one, masks that are not boolean, labels
            that are not integers.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0], [1.0, 0.0, 5.0, 4.0]]
        >>> points = [[2.0, 2.0], [3.0, 2.0], [3.0, 3.0]]
        >>> targets = [[1.0, 1.0, 5.0, 4.0]]
        >>> found = jaxiou.match_task_aligned(
        ...     [[0.9], [0.2], [0.6]], boxes, points, [0], targets, topk=2)
        >>> print(found.indices, found.scores)
        [-1  0  0] [0.         0.25       0.75]

    Reference:
        C. Feng, Y. Zhong, Y. Gao, M. R. Scott, W. Huang, "TOOD: Task-aligned One-stage
        Object Detection", 2021, arXiv:2108.07755. The code of its authors and
        mmdetection choose first and drop points outside of the target afterwards.
        ultralytics enlarges sides below 16 for that test, and an anchor that several
        targets choose may go to one that did not choose it.
    """
    name = "match_task_aligned"
    operands = operands_of(
        name, measure, boxes, targets, where_anchors, where, names=("boxes", "targets")
    )
    count(name, "topk", topk)
    for key, value, usual in (("alpha", alpha, "1"), ("beta", beta, "6")):
        _checks.number(name, key, value, least=0, default=usual)
    measure = operands.measure
    n, m = operands.boxes1.shape[1], operands.boxes2.shape[1]

    def aligned(score: Array, overlap: Array) -> Array:
        return _power(score, alpha) * _power(overlap, beta)

    def alignment(rows: Any, columns: Any) -> Array:
        (boxes, points, scores), (targets, regions, labels) = rows, columns
        score = jnp.take(scores, labels, axis=1, mode="clip").T
        t = aligned(score, measure.planes(as_rows(boxes), as_columns(targets)))
        inside = is_inside(as_rows(points), as_columns(regions))
        return jnp.where(inside & (t > 0), t, -jnp.inf)

    def one(
        _: Any,
        boxes1: Array,
        boxes2: Array,
        where1: Array,
        where2: Array,
        points: Array,
        scores: Array,
        labels: Array,
        regions: Array,
    ) -> tuple[Array, ...]:
        boxes, targets = _planes(boxes1, boxes2)
        dtype = boxes[0].dtype
        rows = boxes, _measure.split(points, dtype), scores
        columns = targets, _measure.split(regions, dtype), labels
        _, chosen = top(alignment, rows, columns, where1, where2, topk)
        overlaps = of_pairs(measure, boxes, targets, chosen)
        index = shared_out(chosen, overlaps, n)
        overlap = own_values(measure, boxes, targets, index)
        score = _own_scores(scores, labels, index)
        t = jnp.where(index >= 0, aligned(score, overlap), 0)
        most_t, most_u = (most(x, index, m) for x in (t, nonnegative(overlap)))
        return index, overlap, divide(t, most_t) * most_u

    extras = predicted(operands, scores, anchor_points, labels)
    region = operands.boxes2
    if regions is not None:
        shape = region.shape[1:]
        region = extra(operands, "regions", regions, shape, "per target")
    found = _loops.each_image(one, None, (*arrays_of(operands), *extras, region))
    return _assignment(operands, found)


def match_simota(
    scores: _checks.ArrayLike,
    boxes: _checks.Boxes,
    anchor_points: _checks.ArrayLike,
    labels: _checks.ArrayLike,
    targets: _checks.Boxes,
    *,
    strides: _checks.ArrayLike,
    radius: float = 2.5,
    topk: int = 10,
    class_weight: float = 1.0,
    measure_weight: float = 3.0,
    where: _checks.Mask | None = None,
    where_anchors: _checks.Mask | None = None,
    measure: Measure = iou,
) -> Assignment:
    """Assigns to each target as many predictions as its overlaps suggest (SimOTA).

    The cost of a prediction for a target is the cross entropy of its scores with the
    target's label, times `class_weight`, minus `measure_weight` log u with u its
    measure. Candidates are predictions whose point lies inside of any target or nearer
    to its centre than `radius` strides. A target takes the k cheapest, first those that
    are both for it; k is the sum of its `topk` largest u, rounded down, at least 1. One
    that several targets take goes to the one for which it costs least.

    Args:
        scores: `(*batch, n, classes)`, probabilities.
        boxes: `(*batch, n, 4)`, predicted, or as many coordinates as the measure takes.
        anchor_points: `(*batch, n, 2)`, (x, y) of the cells that predict them; in space
            `(x, y, z)`.
        labels: `(*batch, m)` integers, classes of the targets.
        targets: `(*batch, m, 4)`, padded; leading axes broadcast.
        strides: `(*batch, n)`, distance of neighbouring points of each level.
        radius: half side of the square round a centre, in strides.
        topk: predictions whose measures are summed, and most of a target.
        class_weight: weight of the cross entropy.
        measure_weight: weight of the logarithm.
        where: `(*batch, m)`, False for padding.
        where_anchors: `(*batch, n)`, False for predictions to leave out.
        measure: any measure of at most 1.

    Returns:
        `Assignment(indices, values, None)`: -1 for background, -2 for predictions left
        out; values are those with the assigned target, `-inf` without one.

    At the edge:
        Logarithms of what is below 1e-7 are those of 1e-7, so costs are finite. At ties
        the lower index wins. Boxes with NaN match nothing. Memory is O(m topk) and one
        block. Not differentiable.

    Raises:
        ValueError: on shapes that do not fit each other, a `topk` below 1, or negative
            weights.
        TypeError: on a `measure` that is not one, masks that are not boolean, labels
            that are not integers.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0], [1.0, 0.0, 5.0, 4.0]]
        >>> points = [[2.0, 2.0], [3.0, 2.0], [3.0, 3.0]]
        >>> found = jaxiou.match_simota(
        ...     [[0.9], [0.2], [0.6]], boxes, points, [0], [[1.0, 1.0, 5.0, 4.0]],
        ...     strides=[1.0, 1.0, 1.0])
        >>> print(found.indices, found.values)
        [-1 -1  0] [-inf -inf 0.75]

    Reference:
        Z. Ge, S. Liu, F. Wang, Z. Li, J. Sun, "YOLOX: Exceeding YOLO Series in 2021",
        2021, arXiv:2107.08430. Its code adds 1e5 to the cost of what is not both inside
        and near, which rounds that cost to 0.008 in float32, and gives an anchor that
        several targets take to the cheapest of all targets, one of them or not.
    """
    name = "match_simota"
    operands = operands_of(
        name, measure, boxes, targets, where_anchors, where, names=("boxes", "targets")
    )
    count(name, "topk", topk)
    weights = class_weight, measure_weight
    names = ("class_weight", "1"), ("measure_weight", "3")
    for (key, usual), value in zip(names, weights, strict=True):
        _checks.number(name, key, value, least=0, default=usual)
    if not _checks.is_traced(radius):
        _checks.number(name, "radius", radius, least=0, default="2.5")
    measure, n = operands.measure, operands.boxes1.shape[1]

    def overlap(rows: Any, columns: Any) -> Array:
        return measure.planes(as_rows(rows[0]), as_columns(columns[0]))

    def near_any(targets: Any, cells: Any) -> Array:
        points, reach = (as_columns(p) for p in cells)
        inside, near = places(points, reach, as_rows(targets))
        return jnp.where(inside | near, 1.0, -jnp.inf)

    def cheapness(rows: Any, columns: Any) -> Array:
        (_, points, reach, scores, others), (targets, labels) = rows, columns
        score = jnp.take(scores, labels, axis=1, mode="clip").T
        entropy = others[None, :] + _minus_log(score) - _minus_log(1 - score)
        u = overlap(rows, columns)
        cost = 1 + class_weight * nonnegative(entropy) + measure_weight * _minus_log(u)
        points, reach = as_rows(points), as_rows(reach)
        inside, near = places(points, reach, as_columns(targets))
        # One number for both orders: above 0 what is both, below -1 all others.
        return jnp.where(inside & near, 1 / cost, -cost)

    def one(
        _: Any,
        boxes1: Array,
        boxes2: Array,
        where1: Array,
        where2: Array,
        points: Array,
        scores: Array,
        labels: Array,
        strides: Array,
    ) -> tuple[Array, ...]:
        boxes, targets = _planes(boxes1, boxes2)
        cells = _measure.split(points, boxes[0].dtype), (radius * strides,)
        found, _ = top(near_any, targets, cells, where2, where1, 1)
        candidates = found[:, 0] > 0
        others = _minus_log(1 - scores).sum(-1)
        rows, columns = (boxes, *cells, scores, others), (targets, labels)
        best, _ = top(overlap, rows, columns, candidates, where2, topk)
        wanted = jnp.sum(jnp.where(best > 0, best, 0), axis=1).astype(jnp.int32)
        worth, chosen = top(cheapness, rows, columns, candidates, where2, topk)
        rank = jnp.arange(topk, dtype=jnp.int32)[None, :]
        chosen = jnp.where(rank < jnp.maximum(wanted, 1)[:, None], chosen, -1)
        index = shared_out(chosen, worth, n)
        return index, own_values(measure, boxes, targets, index)

    extras = predicted(operands, scores, anchor_points, labels)
    extras = *extras, extra(operands, "strides", strides, (n,), "per prediction")
    found = _loops.each_image(one, None, (*arrays_of(operands), *extras))
    return _assignment(operands, found)


def _assignment(operands: Operands, found: Sequence[Array]) -> Assignment:
    index = jnp.where(operands.where1, found[0], -2)
    return Assignment(*(operands.unbatch(x) for x in (index, *found[1:])))


def _planes(*boxes: Array) -> tuple[Planes, ...]:
    dtype = _checks.arithmetic_dtype(*boxes)
    return tuple(_measure.split(x, dtype) for x in boxes)


def _own_scores(scores: Array, labels: Array, index: Array) -> Array:
    """`(n,)`: the score of each prediction for the label of its target."""
    if not labels.size:
        return jnp.zeros(index.shape, scores.dtype)
    label = jnp.take(labels, index, mode="clip")
    return jnp.take_along_axis(scores, label[:, None], axis=1, mode="clip")[:, 0]


def _power(x: Array, exponent: float) -> Array:
    """x ** exponent, of what is below 0 as of 0; a product where that is enough."""
    whole = float(exponent).is_integer()
    power = nonnegative(x) ** (int(exponent) if whole else exponent)
    return jnp.where(jnp.isnan(x), x, power)  # NaN ** 0 is 1


def _minus_log(x: Array) -> Array:
    """-log(x), from 0 at 1 to that of 1e-7."""
    return -jnp.log(jnp.clip(x, 1e-7, 1))


def _threshold(values: Array, real: Array) -> Array:
    """`(m, 1)`: mean plus unbiased standard deviation of the real values of a row."""
    count = real.sum(axis=1, keepdims=True).astype(values.dtype)
    # From the largest on: the mean of equal values could be rounded to above them.
    most = jnp.where(real, values, -jnp.inf).max(
        axis=1, keepdims=True, initial=-jnp.inf
    )
    below = jnp.where(real, values - most, 0)
    mean = divide(below.sum(axis=1, keepdims=True), count)
    squares = jnp.where(real, (below - mean) ** 2, 0).sum(axis=1, keepdims=True)
    return most + (mean + jnp.sqrt(divide(squares, count - 1)))
